//! Puts messages together to transactions.
//!
//! ```text
//!   Begin … Commit                          one at a time, whole ─────────────────┐
//!   StreamStart x … StreamStop, … again     one Open for each x ── StreamCommit x ┴─> Transaction, in commit order
//!                                                               └─ StreamAbort x ──> nothing
//! ```
//!
//! What a commit completes is taken in two steps: which of its subtransactions were rolled back has to be asked in between,
//! if it has any ([`super::outcome`]).
//!
//! All that is open shares one budget of memory; when it is spent, the largest goes to disk. What comes of that one later
//! follows it there soon, so that whoever reads it along has little left to read when it is committed.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;

use feedmill_model::{Lsn, Timestamp};
use hashbrown::HashMap;

use super::super::pgoutput::{Decoder, Message};
use super::super::{Changes, DecodeError, Follow, ReplicationError, RowChange, SpillError, Transaction};
use super::open::Open;

/// What a transaction of which a part is on disk may take in memory.
const FILED_BYTES: usize = 1 << 20;

/// Where large transactions go, and when.
#[derive(Clone, Debug)]
pub struct Spilling {
    /// Folder for the files of large transactions. They have no names and end with the process.
    pub dir: PathBuf,
    /// How much memory the changes of all transactions that are not yet committed may take together.
    pub memory_bytes: usize,
    /// How much of the disk is kept free: what would take more fails with [`SpillError::NoRoom`].
    pub reserve_bytes: u64,
    /// Who reads along what goes there.
    pub follower: Option<Arc<dyn Follow>>,
}

impl Spilling {
    /// Spills to `dir` what takes more than 8 MiB, keeps nothing free, and nobody reads along.
    pub fn to(dir: impl Into<PathBuf>) -> Self {
        Spilling { dir: dir.into(), memory_bytes: 8 << 20, reserve_bytes: 0, follower: None }
    }
}

/// A transaction of which the commit has come.
#[derive(Debug)]
pub(super) struct Committed {
    open: Open,
    end_lsn: Lsn,
    committed_at: Timestamp,
}

impl Committed {
    /// Its subtransactions of which no rollback was told.
    pub(super) fn subtransactions(&self) -> Vec<u32> {
        self.open.subtransactions()
    }

    /// Whether part of it is on disk.
    pub(super) fn is_filed(&self) -> bool {
        self.open.is_filed()
    }
}

/// The transactions of one connection that are not yet committed.
pub(super) struct Assembly {
    decoder: Decoder,
    spilling: Spilling,
    /// Between Begin and Commit.
    whole: Option<Open>,
    /// Transactions in progress.
    streamed: HashMap<u32, Open>,
    /// Which of them messages now belong to.
    block: Option<u32>,
    /// What all of them take in memory.
    memory: usize,
    /// The end of the last transaction, or where the stream began.
    end: Lsn,
}

impl Assembly {
    pub(super) fn new(decoder: Decoder, spilling: Spilling, from: Lsn) -> Self {
        let streamed = HashMap::new();
        Assembly { decoder, spilling, whole: None, streamed, block: None, memory: 0, end: from }
    }

    /// The transaction of which this message is the commit, if it is one.
    pub(super) fn add(&mut self, message: &[u8]) -> Result<Option<Committed>, ReplicationError> {
        match self.decoder.decode(message)? {
            Message::Change { xid, change } => self.push(xid, change)?,
            Message::Truncate { xid, relations } => {
                for relation in relations {
                    self.push(xid, RowChange::Truncate(relation))?;
                }
            }
            // Of a transaction in progress it may never be seen.
            Message::Unreadable { xid, error } => match self.block.and_then(|block| self.streamed.get_mut(&block)) {
                Some(open) => {
                    self.memory += open.push_unreadable(self.block.unwrap_or(xid), xid, error);
                    self.spill()?;
                }
                None => return Err(error.into()),
            },
            Message::Begin => {
                if self.whole.replace(Open::default()).is_some() {
                    return Err(DecodeError::Order("a transaction begins inside another").into());
                }
            }
            Message::Commit { end_lsn, committed_at } => {
                let open = self.whole.take().ok_or(DecodeError::Order("a transaction ends that did not begin"))?;
                return Ok(Some(Committed { open, end_lsn, committed_at }));
            }
            Message::StreamStart { xid } => {
                self.streamed.entry(xid).or_default();
                self.block = Some(xid);
            }
            Message::StreamStop => self.block = None,
            Message::StreamCommit { xid, end_lsn, committed_at } => {
                let open = self.streamed.remove(&xid);
                let open = open.ok_or(DecodeError::Order("a transaction in progress ends that did not begin"))?;
                return Ok(Some(Committed { open, end_lsn, committed_at }));
            }
            Message::StreamAbort { xid, subxid } => self.abort(xid, subxid),
            Message::Other => {}
        }
        Ok(None)
    }

    /// From here on tables may be other than they were when the stream began.
    pub(super) fn forget_tables(&mut self) {
        self.decoder.forget_tables();
    }

    /// What a keepalive tells: nothing while a transaction is being sent whole, because part of what lies before its end
    /// is still to come. Of transactions in progress all of what was committed has come. One that was sent while the
    /// last Commit was being written names a place before its end.
    pub(super) fn keepalive(&self, end: Lsn) -> Option<Lsn> {
        self.whole.is_none().then(|| end.max(self.end))
    }

    /// Brings the gauges up to date.
    pub(super) fn measure(&self) {
        let open = self.streamed.len() + usize::from(self.whole.is_some());
        metrics::gauge!("feedmill_capture_open_transactions").set(open as f64);
        metrics::gauge!("feedmill_capture_memory_bytes").set(self.memory as f64);
    }

    fn push(&mut self, xid: u32, change: RowChange) -> Result<(), ReplicationError> {
        let outside = DecodeError::Order("a change stands outside a transaction");
        let (open, xid, sub) = match (self.block, &mut self.whole) {
            (Some(block), _) => (self.streamed.get_mut(&block).ok_or(outside)?, block, xid),
            (None, Some(whole)) => (whole, xid, xid),
            (None, None) => return Err(outside.into()),
        };
        self.memory += open.push(xid, sub, change);
        if open.is_filed() && open.held_bytes() > FILED_BYTES {
            self.memory -= open.held_bytes();
            open.spill(&self.spilling)?;
        }
        Ok(self.spill()?)
    }

    /// Brings what is in memory back into the budget, as far as it can go to disk.
    fn spill(&mut self) -> Result<(), SpillError> {
        while self.memory > self.spilling.memory_bytes {
            let all = self.streamed.values_mut().chain(&mut self.whole);
            let Some(largest) = all.max_by_key(|open| open.held_bytes()).filter(|open| open.held_bytes() > 0) else {
                break;
            };
            if !largest.is_filed() {
                metrics::counter!("feedmill_capture_spilled_transactions_total").increment(1);
            }
            self.memory -= largest.held_bytes();
            largest.spill(&self.spilling)?;
        }
        Ok(())
    }

    /// What was committed, without `rolled_back` of its subtransactions, and what its changes take in memory.
    pub(super) fn complete(
        &mut self,
        committed: Committed,
        rolled_back: &HashSet<u32>,
    ) -> Result<(Transaction, usize), ReplicationError> {
        let Committed { open, end_lsn, committed_at } = committed;
        self.memory -= open.bytes();
        let held = open.held_bytes();
        let changes: Changes = open.commit(&self.spilling, rolled_back)??;
        self.end = end_lsn;
        Ok((Transaction { end_lsn, committed_at, changes }, held))
    }

    fn abort(&mut self, xid: u32, subxid: u32) {
        if xid == subxid {
            self.memory -= self.streamed.remove(&xid).map_or(0, |open| open.bytes());
        } else if let Some(open) = self.streamed.get_mut(&xid) {
            let before = open.bytes();
            open.abort(subxid);
            self.memory -= before - open.bytes();
        }
    }
}

#[cfg(test)]
mod tests;
