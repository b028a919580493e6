//! pgoutput, the logical decoding plugin of PostgreSQL, protocol 2 with streaming of transactions in progress.
//!
//! ```text
//!  Begin  Relation? Insert|Update|Delete|Truncate …  Commit        one transaction, in commit order
//!
//!  StreamStart x  (Relation? Insert|Update|Delete|Truncate) of x or a subtransaction of it …  StreamStop
//!  StreamAbort x s    of x's changes those of s are gone, or all when s = x
//!  StreamCommit x     in commit order
//!
//!  Relation oid ─> Plan: position in the tuple -> column of model::Relation     (None: not one of ours)
//!  Insert oid, tuple ─> Plan ─> [Value; 10] borrowed from the message ─> Row
//! ```
//!
//! Why it is right: the server sends a Relation message before the first row of a relation and again after each change
//! of it, so a plan is always that of the rows that follow. A transaction in progress may have changed a table in a way
//! that nobody else sees, and that is gone when it is rolled back; so the server sends each one descriptions of its own,
//! and here each has plans of its own. When it commits, the server takes them for known by all; when it aborts, it does
//! not. Of two descriptions that hold for all, the one that was sent last is the newer.
//!
//! The plan finds columns by name and checks their types, so columns that come, go or move elsewhere do not disturb, and
//! one that we read does with its name, as soon as a row needs it. A row that cannot be read for its values is a change
//! of its own, [`RowChange::Unusable`]. Every length is checked against the message, so no input makes it panic.
//!
//! Protocol 2 is known to every server from PostgreSQL 14 on. Protocol 3 adds transactions in two phases, which no slot
//! of ours asks for, and 4 streams that are applied in parallel, before their commit.
//! See <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>.

use feedmill_model::{Key, Lsn, Relation, Timestamp};
use hashbrown::HashMap;

use super::tuple::{self, DecodeError, Tuple, Value};
use super::{Operation, RowChange, Unusable};
use plan::Plan;
pub(super) use plan::Tables;
use reader::Reader;

mod plan;
mod reader;

/// A message of pgoutput, as far as it concerns us.
#[derive(Clone, Debug, PartialEq)]
pub(super) enum Message {
    /// A transaction begins, which is sent whole.
    Begin,
    /// It is complete.
    Commit {
        /// The end of its commit record.
        end_lsn: Lsn,
        /// When it was committed.
        committed_at: Timestamp,
    },
    /// What comes now belongs to a transaction in progress.
    StreamStart {
        /// The transaction.
        xid: u32,
    },
    /// That was it for now.
    StreamStop,
    /// A transaction that was sent in progress was committed.
    StreamCommit {
        /// The transaction.
        xid: u32,
        /// The end of its commit record.
        end_lsn: Lsn,
        /// When it was committed.
        committed_at: Timestamp,
    },
    /// A transaction that was sent in progress, or a part of it, was rolled back.
    StreamAbort {
        /// The transaction.
        xid: u32,
        /// What was rolled back: a subtransaction, or `xid` itself.
        subxid: u32,
    },
    /// A change of a row.
    Change {
        /// Between StreamStart and StreamStop the transaction, or subtransaction, that made it; else 0.
        xid: u32,
        /// What changed.
        change: RowChange,
    },
    /// All rows of these relations are gone.
    Truncate {
        /// As for a change.
        xid: u32,
        /// Those of ours.
        relations: Vec<Relation>,
    },
    /// A change of a row of a table that is not as we need it.
    Unreadable {
        /// As for a change.
        xid: u32,
        /// What is wrong with the table.
        error: DecodeError,
    },
    /// Nothing for us: a description, another's table, an origin, a logical message.
    Other,
}

/// What is known of a table, by its oid; `None` if it is not one of ours.
type Plans = HashMap<u32, Described>;

#[derive(Clone, Debug)]
struct Described {
    plan: Option<Plan>,
    /// Counts descriptions: which of two is the newer.
    number: u64,
}

/// Decodes the messages of one connection. It knows the relations that were described so far, so a new connection needs
/// a new decoder.
#[derive(Debug, Default)]
pub(super) struct Decoder {
    /// The tables as they were after everything that is now sent was written; empty once that is over.
    tables: Tables,
    plans: Plans,
    /// The plans of transactions in progress.
    streamed: HashMap<u32, Plans>,
    /// The transaction in progress that messages now belong to.
    block: Option<u32>,
    described: u64,
}

impl Decoder {
    /// A decoder for a source of which the tables are `tables` now.
    pub(super) fn new(tables: Tables) -> Self {
        Decoder { tables, ..Decoder::default() }
    }

    /// What is known of the tables as they are now says nothing of what comes from here on.
    pub(super) fn forget_tables(&mut self) {
        self.tables.clear();
    }

    /// Decodes one message.
    pub(super) fn decode(&mut self, message: &[u8]) -> Result<Message, DecodeError> {
        let mut bytes = Reader::new(message);
        match bytes.u8()? {
            b'I' => self.change(&mut bytes, insert),
            b'U' => self.change(&mut bytes, update),
            b'D' => self.change(&mut bytes, delete),
            b'T' => self.truncate(&mut bytes),
            b'B' if self.block.is_some() => Err(DecodeError::Order("a transaction begins inside a part of another")),
            b'B' => Ok(Message::Begin),
            b'C' => {
                let (end_lsn, committed_at) = committed(&mut bytes)?;
                Ok(Message::Commit { end_lsn, committed_at })
            }
            b'R' => self.relation(&mut bytes),
            b'S' => self.stream_start(&mut bytes),
            b'E' => match self.block.take() {
                Some(_) => Ok(Message::StreamStop),
                None => Err(DecodeError::Order("a part of a transaction ends that did not begin")),
            },
            b'c' => self.stream_commit(&mut bytes),
            b'A' => self.stream_abort(&mut bytes),
            // Type, Origin, logical Message.
            b'Y' | b'O' | b'M' => Ok(Message::Other),
            byte => Err(DecodeError::Unknown { what: "kind", byte }),
        }
    }

    fn stream_start(&mut self, bytes: &mut Reader<'_>) -> Result<Message, DecodeError> {
        let (xid, _is_first) = (bytes.u32()?, bytes.u8()?);
        if self.block.replace(xid).is_some() {
            return Err(DecodeError::Order("a part of a transaction begins inside another"));
        }
        self.streamed.entry(xid).or_default();
        Ok(Message::StreamStart { xid })
    }

    fn stream_commit(&mut self, bytes: &mut Reader<'_>) -> Result<Message, DecodeError> {
        let xid = bytes.u32()?;
        let (end_lsn, committed_at) = committed(bytes)?;
        for (oid, described) in self.streamed.remove(&xid).unwrap_or_default() {
            let newer = self.plans.get(&oid).is_some_and(|known| known.number > described.number);
            if !newer {
                self.plans.insert(oid, described);
            }
        }
        Ok(Message::StreamCommit { xid, end_lsn, committed_at })
    }

    fn stream_abort(&mut self, bytes: &mut Reader<'_>) -> Result<Message, DecodeError> {
        let (xid, subxid) = (bytes.u32()?, bytes.u32()?);
        // After the abort of a part the server describes tables again.
        if xid == subxid {
            self.streamed.remove(&xid);
        }
        Ok(Message::StreamAbort { xid, subxid })
    }

    /// Inside a part of a transaction in progress each message names the transaction, or subtransaction, it is of.
    fn xid(&self, bytes: &mut Reader<'_>) -> Result<u32, DecodeError> {
        if self.block.is_some() { bytes.u32() } else { Ok(0) }
    }

    fn relation(&mut self, bytes: &mut Reader<'_>) -> Result<Message, DecodeError> {
        let _xid = self.xid(bytes)?;
        let (oid, plan) = (bytes.u32()?, Plan::read(bytes, &self.tables)?);
        self.described += 1;
        let plans = match self.block {
            Some(block) => self.streamed.entry(block).or_default(),
            None => &mut self.plans,
        };
        plans.insert(oid, Described { plan, number: self.described });
        Ok(Message::Other)
    }

    fn plan(&self, oid: u32) -> Result<Option<&Plan>, DecodeError> {
        let plans = match self.block {
            Some(block) => self.streamed.get(&block),
            None => Some(&self.plans),
        };
        let described = plans.and_then(|plans| plans.get(&oid));
        let unknown = DecodeError::Order("a row comes before its table's description");
        described.map(|described| described.plan.as_ref()).ok_or(unknown)
    }

    fn change(&self, bytes: &mut Reader<'_>, read: ReadChange) -> Result<Message, DecodeError> {
        let xid = self.xid(bytes)?;
        let Some(plan) = self.plan(bytes.u32()?)? else { return Ok(Message::Other) };
        match plan.columns() {
            Ok(columns) => Ok(Message::Change { xid, change: read(plan.relation, columns, bytes)? }),
            Err(error) => Ok(Message::Unreadable { xid, error: error.clone() }),
        }
    }

    fn truncate(&self, bytes: &mut Reader<'_>) -> Result<Message, DecodeError> {
        let xid = self.xid(bytes)?;
        let (count, _flags) = (bytes.u32()?, bytes.u8()?);
        let mut relations = Vec::new();
        for _ in 0..count {
            if let Some(plan) = self.plan(bytes.u32()?)? {
                relations.push(plan.relation);
            }
        }
        Ok(Message::Truncate { xid, relations })
    }
}

/// Reads a change of a row of which the columns are known.
type ReadChange = fn(Relation, &[Option<usize>], &mut Reader<'_>) -> Result<RowChange, DecodeError>;

/// What Commit and StreamCommit end with.
fn committed(bytes: &mut Reader<'_>) -> Result<(Lsn, Timestamp), DecodeError> {
    let (_flags, _lsn) = (bytes.u8()?, bytes.u64()?);
    Ok((Lsn(bytes.u64()?), tuple::timestamp(bytes.i64()?)))
}

fn insert(relation: Relation, columns: &[Option<usize>], bytes: &mut Reader<'_>) -> Result<RowChange, DecodeError> {
    match bytes.u8()? {
        b'N' => {
            let tuple = plan::tuple(columns, bytes)?;
            match tuple::row(relation, &tuple) {
                Ok((row, 0)) => Ok(RowChange::Insert(row)),
                Ok(_) => Err(DecodeError::Order("a new row has columns that were not sent")),
                Err(error) => Ok(unusable(relation, Operation::Insert, &tuple, None, &error)),
            }
        }
        byte => Err(DecodeError::Unknown { what: "tuple of an insert", byte }),
    }
}

fn update(relation: Relation, columns: &[Option<usize>], bytes: &mut Reader<'_>) -> Result<RowChange, DecodeError> {
    let mut kind = bytes.u8()?;
    let mut old = None;
    if kind == b'K' || kind == b'O' {
        old = Some((kind, plan::tuple(columns, bytes)?));
        kind = bytes.u8()?;
    }
    if kind != b'N' {
        return Err(DecodeError::Unknown { what: "tuple of an update", byte: kind });
    }
    let mut new = plan::tuple(columns, bytes)?;
    if let Some((b'O', old)) = &old {
        // REPLICA IDENTITY FULL sends the old values too, so nothing has to be looked up.
        for (new, old) in new.iter_mut().zip(old) {
            if *new == Value::Unchanged {
                *new = *old;
            }
        }
    }
    let old_key = old.map(|(_, old)| tuple::key(relation, &old)).transpose();
    match (old_key, tuple::row(relation, &new)) {
        (Ok(old_key), Ok((row, unchanged))) => {
            Ok(RowChange::Update { old_key: old_key.filter(|old| *old != row.key()), row, unchanged })
        }
        (Ok(old_key), Err(error)) => Ok(unusable(relation, Operation::Update, &new, old_key, &error)),
        (Err(error), _) => Ok(unusable(relation, Operation::Update, &new, None, &error)),
    }
}

fn delete(relation: Relation, columns: &[Option<usize>], bytes: &mut Reader<'_>) -> Result<RowChange, DecodeError> {
    match bytes.u8()? {
        b'K' | b'O' => {
            let tuple = plan::tuple(columns, bytes)?;
            match tuple::key(relation, &tuple) {
                Ok(key) => Ok(RowChange::Delete(key)),
                Err(error) => Ok(unusable(relation, Operation::Delete, &tuple, None, &error)),
            }
        }
        byte => Err(DecodeError::Unknown { what: "tuple of a delete", byte }),
    }
}

/// The change of a row that cannot be read.
fn unusable(
    relation: Relation,
    operation: Operation,
    tuple: &Tuple<'_>,
    old_key: Option<Key>,
    error: &DecodeError,
) -> RowChange {
    let unusable = tuple::unusable(relation, operation, tuple, error);
    let old_key = old_key.filter(|old| Some(*old) != unusable.key);
    RowChange::Unusable(Box::new(Unusable { old_key, ..unusable }))
}

#[cfg(test)]
mod tests;
#[cfg(test)]
pub(super) mod written;
