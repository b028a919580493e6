//! pgoutput, the logical decoding plugin of PostgreSQL, protocol 1 and 2 without streaming of open transactions.
//!
//! ```text
//!  Begin  Relation? Insert|Update|Delete|Truncate …  Commit        one transaction, in commit order
//!
//!  Relation oid ─> Plan: position in the tuple -> column of model::Relation     (None: not one of ours)
//!  Insert oid, tuple ─> Plan ─> [Value; 10] borrowed from the message ─> Row
//! ```
//!
//! Why it is right: the server sends a Relation message before the first row of a relation and again after each change
//! of it, so a plan is always that of the rows that follow. The plan finds columns by name and checks their types, so
//! columns that come, go or move elsewhere do not disturb, and one that we read does with its name. Every length is
//! checked against the message, so no input makes it panic.
//! See <https://www.postgresql.org/docs/current/protocol-logicalrep-message-formats.html>.

use std::collections::HashMap;

use feedmill_model::{Key, Lsn, Relation, Row, Timestamp};

use super::schema::SCHEMA;
use super::tuple::{self, COLUMNS_MAX, DecodeError, Tuple, Value};
use super::{Operation, Unusable};

/// A message of pgoutput, as far as it concerns us.
#[derive(Clone, Debug, PartialEq)]
pub enum Message {
    /// A transaction begins.
    Begin {
        /// Where its commit record begins.
        final_lsn: Lsn,
        /// When it was committed.
        committed_at: Timestamp,
    },
    /// The transaction is complete.
    Commit {
        /// The end of its commit record.
        end_lsn: Lsn,
        /// When it was committed.
        committed_at: Timestamp,
    },
    /// A new row.
    Insert(Row),
    /// A row's new values.
    Update {
        /// The key it had before, when the key changed.
        old_key: Option<Key>,
        /// The row now.
        row: Row,
        /// A bit for each column that was not sent.
        unchanged: u32,
    },
    /// A row is gone.
    Delete(Key),
    /// A change of a row that cannot be read.
    Unusable(Box<Unusable>),
    /// All rows of these relations are gone.
    Truncate(Vec<Relation>),
    /// Nothing for us: a description, another's table, an origin, a logical message.
    Other,
}

/// How the tuples of a relation become rows: for each position the column of [`Relation::columns`] that stands there.
#[derive(Debug)]
struct Plan {
    relation: Relation,
    columns: Vec<Option<usize>>,
}

/// Decodes the messages of one connection. It knows the relations that were described so far, so a new connection needs
/// a new decoder.
#[derive(Debug, Default)]
pub struct Decoder {
    /// `None`: a table that is not ours.
    plans: HashMap<u32, Option<Plan>>,
}

impl Decoder {
    /// Decodes one message.
    pub fn decode(&mut self, message: &[u8]) -> Result<Message, DecodeError> {
        let mut bytes = Reader::new(message);
        match bytes.u8()? {
            b'B' => {
                let (final_lsn, committed_at) = (Lsn(bytes.u64()?), tuple::timestamp(bytes.i64()?));
                Ok(Message::Begin { final_lsn, committed_at })
            }
            b'C' => {
                let (_flags, _lsn) = (bytes.u8()?, bytes.u64()?);
                Ok(Message::Commit { end_lsn: Lsn(bytes.u64()?), committed_at: tuple::timestamp(bytes.i64()?) })
            }
            b'R' => self.relation(&mut bytes),
            b'I' => self.insert(&mut bytes),
            b'U' => self.update(&mut bytes),
            b'D' => self.delete(&mut bytes),
            b'T' => self.truncate(&mut bytes),
            // Type, Origin, logical Message.
            b'Y' | b'O' | b'M' => Ok(Message::Other),
            byte => Err(DecodeError::Unknown { what: "kind", byte }),
        }
    }

    fn relation(&mut self, bytes: &mut Reader<'_>) -> Result<Message, DecodeError> {
        let (oid, schema, table) = (bytes.u32()?, bytes.name()?, bytes.name()?);
        let _replica_identity = bytes.u8()?;
        let ours = Relation::ALL.into_iter().find(|relation| schema == SCHEMA && relation.table() == table);
        let plan = ours.map(|relation| Plan::read(relation, bytes)).transpose()?;
        self.plans.insert(oid, plan);
        Ok(Message::Other)
    }

    fn plan(&self, oid: u32) -> Result<Option<&Plan>, DecodeError> {
        let plan = self.plans.get(&oid).ok_or(DecodeError::Order("a row comes before its table's description"))?;
        Ok(plan.as_ref())
    }

    fn insert(&self, bytes: &mut Reader<'_>) -> Result<Message, DecodeError> {
        let Some(plan) = self.plan(bytes.u32()?)? else { return Ok(Message::Other) };
        match bytes.u8()? {
            b'N' => {
                let tuple = plan.tuple(bytes)?;
                let (row, unchanged) = match tuple::row(plan.relation, &tuple) {
                    Ok(row) => row,
                    Err(error) => return plan.unusable(Operation::Insert, &tuple, None, &error),
                };
                if unchanged != 0 {
                    return Err(DecodeError::Order("a new row has columns that were not sent"));
                }
                Ok(Message::Insert(row))
            }
            byte => Err(DecodeError::Unknown { what: "tuple of an insert", byte }),
        }
    }

    fn update(&self, bytes: &mut Reader<'_>) -> Result<Message, DecodeError> {
        let Some(plan) = self.plan(bytes.u32()?)? else { return Ok(Message::Other) };
        let mut kind = bytes.u8()?;
        let mut old = None;
        if kind == b'K' || kind == b'O' {
            old = Some((kind, plan.tuple(bytes)?));
            kind = bytes.u8()?;
        }
        if kind != b'N' {
            return Err(DecodeError::Unknown { what: "tuple of an update", byte: kind });
        }
        let mut new = plan.tuple(bytes)?;
        if let Some((b'O', old)) = &old {
            // REPLICA IDENTITY FULL sends the old values too, so nothing has to be looked up.
            for (new, old) in new.iter_mut().zip(old) {
                if *new == Value::Unchanged {
                    *new = *old;
                }
            }
        }
        let old_key = old.map(|(_, old)| tuple::key(plan.relation, &old)).transpose();
        let (old_key, (row, unchanged)) = match (old_key, tuple::row(plan.relation, &new)) {
            (Ok(old_key), Ok(row)) => (old_key, row),
            (Ok(old_key), Err(error)) => return plan.unusable(Operation::Update, &new, old_key, &error),
            (Err(error), _) => return plan.unusable(Operation::Update, &new, None, &error),
        };
        Ok(Message::Update { old_key: old_key.filter(|old| *old != row.key()), row, unchanged })
    }

    fn delete(&self, bytes: &mut Reader<'_>) -> Result<Message, DecodeError> {
        let Some(plan) = self.plan(bytes.u32()?)? else { return Ok(Message::Other) };
        match bytes.u8()? {
            b'K' | b'O' => {
                let tuple = plan.tuple(bytes)?;
                match tuple::key(plan.relation, &tuple) {
                    Ok(key) => Ok(Message::Delete(key)),
                    Err(error) => plan.unusable(Operation::Delete, &tuple, None, &error),
                }
            }
            byte => Err(DecodeError::Unknown { what: "tuple of a delete", byte }),
        }
    }

    fn truncate(&self, bytes: &mut Reader<'_>) -> Result<Message, DecodeError> {
        let (count, _flags) = (bytes.u32()?, bytes.u8()?);
        let mut relations = Vec::new();
        for _ in 0..count {
            if let Some(plan) = self.plan(bytes.u32()?)? {
                relations.push(plan.relation);
            }
        }
        Ok(Message::Truncate(relations))
    }
}

impl Plan {
    fn read(relation: Relation, bytes: &mut Reader<'_>) -> Result<Plan, DecodeError> {
        let table = relation.table();
        let count = bytes.u16()?;
        let mut columns = Vec::new();
        let mut found = [false; COLUMNS_MAX];
        for _ in 0..count {
            let (flags, name, oid, _modifier) = (bytes.u8()?, bytes.name()?, bytes.u32()?, bytes.u32()?);
            let ours = relation.columns().iter().zip(tuple::kinds(relation)).enumerate();
            let ours = ours.into_iter().find(|(_, (column, _))| **column == name);
            columns.push(ours.map(|(at, _)| at));
            let Some((at, (column, kind))) = ours else { continue };
            if !kind.accepts(oid) {
                return Err(DecodeError::ColumnType { table, column, expected: kind.name(), oid });
            }
            if at < relation.key_columns() && flags & 1 == 0 {
                return Err(DecodeError::ReplicaIdentity { table });
            }
            if let Some(found) = found.get_mut(at) {
                *found = true;
            }
        }
        match relation.columns().iter().zip(found).find(|(_, found)| !found) {
            Some((column, _)) => Err(DecodeError::MissingColumn { table, column }),
            None => Ok(Plan { relation, columns }),
        }
    }

    /// The change of a row that cannot be read.
    fn unusable(
        &self,
        operation: Operation,
        tuple: &Tuple<'_>,
        old_key: Option<Key>,
        error: &DecodeError,
    ) -> Result<Message, DecodeError> {
        let unusable = tuple::unusable(self.relation, operation, tuple, error);
        let old_key = old_key.filter(|old| Some(*old) != unusable.key);
        Ok(Message::Unusable(Box::new(Unusable { old_key, ..unusable })))
    }

    fn tuple<'a>(&self, bytes: &mut Reader<'a>) -> Result<Tuple<'a>, DecodeError> {
        let mut tuple = [Value::Null; COLUMNS_MAX];
        if usize::from(bytes.u16()?) != self.columns.len() {
            return Err(DecodeError::Order("a row has another number of columns than its table's description"));
        }
        for column in &self.columns {
            let value = match bytes.u8()? {
                b'n' => Value::Null,
                b'u' => Value::Unchanged,
                kind @ (b'b' | b't') => {
                    let length = bytes.u32()?;
                    let value = bytes.take(length as usize)?;
                    if kind == b'b' { Value::Binary(value) } else { Value::Text(value) }
                }
                byte => return Err(DecodeError::Unknown { what: "kind of a value", byte }),
            };
            if let Some(slot) = column.and_then(|column| tuple.get_mut(column)) {
                *slot = value;
            }
        }
        Ok(tuple)
    }
}

/// Reads a message from the front, and never past its end.
struct Reader<'a> {
    rest: &'a [u8],
    kind: char,
}

impl<'a> Reader<'a> {
    fn new(message: &'a [u8]) -> Self {
        Reader { rest: message, kind: message.first().map_or('?', |kind| char::from(*kind)) }
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], DecodeError> {
        let (taken, rest) = self.rest.split_at_checked(length).ok_or(DecodeError::Truncated { kind: self.kind })?;
        self.rest = rest;
        Ok(taken)
    }

    fn array<const N: usize>(&mut self) -> Result<[u8; N], DecodeError> {
        let (taken, rest) = self.rest.split_first_chunk().ok_or(DecodeError::Truncated { kind: self.kind })?;
        self.rest = rest;
        Ok(*taken)
    }

    fn u8(&mut self) -> Result<u8, DecodeError> {
        self.array().map(|[byte]| byte)
    }

    fn u16(&mut self) -> Result<u16, DecodeError> {
        self.array().map(u16::from_be_bytes)
    }

    fn u32(&mut self) -> Result<u32, DecodeError> {
        self.array().map(u32::from_be_bytes)
    }

    fn u64(&mut self) -> Result<u64, DecodeError> {
        self.array().map(u64::from_be_bytes)
    }

    fn i64(&mut self) -> Result<i64, DecodeError> {
        self.array().map(i64::from_be_bytes)
    }

    /// A zero-terminated text.
    fn name(&mut self) -> Result<&'a str, DecodeError> {
        let length = self.rest.iter().position(|byte| *byte == 0);
        let name = self.take(length.ok_or(DecodeError::Truncated { kind: self.kind })?)?;
        self.take(1)?;
        std::str::from_utf8(name).map_err(|_| DecodeError::Name)
    }
}

#[cfg(test)]
mod tests;
