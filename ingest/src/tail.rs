//! How batches lie in the tail.
//!
//! ```text
//!   time, 0 ─► previous, position, floor, parts, changes …      a batch is one part or more, so that no value grows with
//!   time, 1 ─► the same head,               changes …           the size of a transaction
//!   time', 0 ─► previous = time, …
//! ```
//!
//! Each batch names the time of the one before it, so a reader that wants what comes after a time knows whether it has
//! missed any, whatever compaction has dropped meanwhile.

use feedmill_model::{Batch, Change, Position, Time};
use fjall::{Keyspace, OwnedWriteBatch, Readable, Snapshot};
use serde::{Deserialize, Serialize};

use crate::LogError;
use crate::error::storage;
use crate::key::{decode, encode, tail_key};

/// Changes of one part.
const PART_CHANGES: usize = 4_096;

/// What every part of a batch begins with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Time of the batch before.
    pub previous: Time,
    position: Position,
    floor: Option<i64>,
    parts: u32,
}

/// Adds a batch to a write, and says how many bytes it takes.
pub(crate) fn write(
    write: &mut OwnedWriteBatch,
    tail: &Keyspace,
    previous: Time,
    batch: &Batch,
) -> Result<usize, LogError> {
    let parts = u32::try_from(batch.changes.len().div_ceil(PART_CHANGES).max(1)).unwrap_or(u32::MAX);
    let head = Head { previous, position: batch.position, floor: batch.floor, parts };
    let mut chunks = batch.changes.chunks(PART_CHANGES);
    let mut bytes = 0;
    for part in 0..parts {
        let value = encode(&(head, chunks.next().unwrap_or_default()), "a batch")?;
        bytes += value.len();
        write.insert(tail, tail_key(batch.position.time, part), value);
    }
    Ok(bytes)
}

/// Reads batches in order.
pub(crate) struct Parts {
    parts: fjall::Iter,
}

impl Parts {
    /// Every batch with a time later than `after`.
    pub fn after(snapshot: &Snapshot, tail: &Keyspace, after: Time) -> Self {
        Parts { parts: snapshot.range(tail, tail_key(after.saturating_add(1), 0)..) }
    }

    fn next_part(&mut self) -> Result<Option<(Head, Vec<Change>)>, LogError> {
        let Some(entry) = self.parts.next() else { return Ok(None) };
        let (key, value) = entry.into_inner().map_err(storage("read the tail of"))?;
        let part: (Head, Vec<Change>) = decode(&value, || "a batch of the tail".to_owned())?;
        let number = key.last_chunk().map(|number| u32::from_be_bytes(*number)).unwrap_or(u32::MAX);
        if *key != tail_key(part.0.position.time, number) || number >= part.0.parts {
            return Err(LogError::Corrupt { what: format!("the batch of time {}", part.0.position.time) });
        }
        Ok(Some(part))
    }

    fn next_batch(&mut self) -> Result<Option<(Head, Batch)>, LogError> {
        let Some((head, mut changes)) = self.next_part()? else { return Ok(None) };
        for _ in 1..head.parts {
            match self.next_part()? {
                Some((same, more)) if same == head => changes.extend(more),
                _ => return Err(LogError::Corrupt { what: format!("the batch of time {}", head.position.time) }),
            }
        }
        Ok(Some((head, Batch { position: head.position, floor: head.floor, changes })))
    }
}

impl Iterator for Parts {
    type Item = Result<(Head, Batch), LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}
