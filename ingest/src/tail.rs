//! How batches lie in the tail.
//!
//! ```text
//!   time,  0 ─► head: previous, position, floor, parts …; changes      a batch is one part or more, so that no value
//!   time,  1 ─► changes                                                grows with the size of a transaction
//!   time,  2 ─► changes
//!   time', 0 ─► head: previous = time, …
//! ```
//!
//! Each batch names the time of the one before it, so a reader that wants what comes after a time knows whether it has
//! missed any, whatever compaction has dropped meanwhile. The head of a large batch has no changes of its own, and is
//! written last: parts without a head are those of a batch that was never published.

use feedmill_model::{Batch, Change, Position, Relation, Row, Time};
use fjall::{Keyspace, OwnedWriteBatch, UserValue};
use serde::{Deserialize, Serialize};

use crate::LogError;
use crate::error::storage;
use crate::key::{decode, encode, tail_key, time_of};
use crate::merge::Chunk;

/// Changes of one part; of a large batch it has fewer when they take much.
pub(crate) const PART_CHANGES: usize = 4_096;

/// What the first part of a batch begins with.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Head {
    /// Time of the batch before.
    pub previous: Time,
    pub position: Position,
    pub floor: Option<i64>,
    /// How many parts there are, this one included.
    pub parts: u32,
    /// All of the changes are in the other parts, and readers get them in pieces.
    pub large: bool,
}

/// Adds a batch to a write, and says how many bytes it takes.
pub(crate) fn write(
    write: &mut OwnedWriteBatch,
    tail: &Keyspace,
    previous: Time,
    batch: &Batch,
) -> Result<usize, LogError> {
    let parts = u32::try_from(batch.changes.len().div_ceil(PART_CHANGES).max(1)).unwrap_or(u32::MAX);
    let head = Head { previous, position: batch.position, floor: batch.floor, parts, large: false };
    let mut chunks = batch.changes.chunks(PART_CHANGES);
    let first = encode(&(head, chunks.next().unwrap_or_default()), "a batch")?;
    let mut bytes = first.len();
    write.insert(tail, tail_key(batch.position.time, 0), first);
    for (part, changes) in (1..).zip(chunks) {
        let value = encode(&changes, "a batch")?;
        bytes += value.len();
        write.insert(tail, tail_key(batch.position.time, part), value);
    }
    Ok(bytes)
}

/// A batch of the tail.
pub(crate) enum Stored {
    /// One that is not large.
    Whole(Head, Batch),
    /// A large one, of which the parts are read one by one.
    Large(Head),
}

impl Stored {
    pub fn head(&self) -> &Head {
        match self {
            Stored::Whole(head, _) | Stored::Large(head) => head,
        }
    }
}

/// Batches in order.
pub(crate) struct Batches<Seek> {
    /// Begins to read at a key; ends at the newest batch.
    seek: Seek,
    parts: Option<fjall::Iter>,
    /// Where the next batch begins at the earliest.
    from: Time,
}

impl<Seek: Fn([u8; 12]) -> fjall::Iter> Batches<Seek> {
    /// Those with a time later than `after`. `seek` reads from a key up to the last part of the newest published batch.
    pub fn after(after: Time, seek: Seek) -> Self {
        Batches { seek, parts: None, from: after.saturating_add(1) }
    }

    fn next_part(&mut self) -> Result<Option<(Time, u32, UserValue)>, LogError> {
        let parts = self.parts.get_or_insert_with(|| (self.seek)(tail_key(self.from, 0)));
        let Some(entry) = parts.next() else { return Ok(None) };
        let (key, value) = entry.into_inner().map_err(storage("read the tail of"))?;
        let time = time_of(&key)?;
        let number = key.last_chunk().map(|number| u32::from_be_bytes(*number)).unwrap_or(u32::MAX);
        Ok(Some((time, number, value)))
    }

    fn next_batch(&mut self) -> Result<Option<Stored>, LogError> {
        let Some((time, number, value)) = self.next_part()? else { return Ok(None) };
        let (head, mut changes): (Head, Vec<Change>) = decode(&value, || of(time))?;
        let corrupt = || LogError::Corrupt { what: of(time) };
        if number != 0 || head.position.time != time {
            return Err(corrupt());
        }
        self.from = time.saturating_add(1);
        if head.large {
            self.parts = None;
            return Ok(Some(Stored::Large(head)));
        }
        for expected in 1..head.parts {
            match self.next_part()? {
                Some((same, number, value)) if (same, number) == (time, expected) => {
                    changes.extend(decode::<Vec<Change>>(&value, || of(time))?);
                }
                _ => return Err(corrupt()),
            }
        }
        let batch = Batch { position: head.position, floor: head.floor, changes, last: true };
        Ok(Some(Stored::Whole(head, batch)))
    }
}

impl<Seek: Fn([u8; 12]) -> fjall::Iter> Iterator for Batches<Seek> {
    type Item = Result<Stored, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        self.next_batch().transpose()
    }
}

/// The changes of a part other than the first, from its value.
pub(crate) fn changes(part: &[u8], time: Time) -> Result<Vec<Change>, LogError> {
    decode(part, || of(time))
}

/// The first of the parts of a large batch from `part` on that can have a change of `relations`; their number if none can.
///
/// The changes of a large batch are in the order of their keys, which begin with the relation. So the parts that begin with one
/// relation stand side by side, all but the last of them have nothing else, and that one is found by halving.
pub(crate) fn next_of(
    relations: &[Relation],
    head: &Head,
    mut part: u32,
    read: impl Fn(u32) -> Result<UserValue, LogError>,
) -> Result<u32, LogError> {
    let time = head.position.time;
    let first = |number| first_relation(&read(number)?, time);
    while part < head.parts && relations.len() < Relation::ALL.len() {
        let relation = first(part)?;
        if relation.is_some_and(|relation| relations.contains(&relation)) {
            break;
        }
        // `same` begins with the relation, and `other` does not, or is none.
        let (mut same, mut other) = (part, head.parts);
        while other - same > 1 {
            let middle = same + (other - same) / 2;
            if first(middle)? == relation { same = middle } else { other = middle }
        }
        let is_needed = |change: &Change| row_of(change).is_some_and(|row| relations.contains(&row.relation()));
        if changes(&read(same)?, time)?.iter().any(is_needed) {
            return Ok(same);
        }
        part = other;
    }
    Ok(part)
}

/// The relation of the first change of a part; `None` of one without changes.
fn first_relation(part: &[u8], time: Time) -> Result<Option<Relation>, LogError> {
    let corrupt = |_| LogError::Corrupt { what: of(time) };
    // As a list is written: how many there are, then each of them.
    let (changes, part) = postcard::take_from_bytes::<u64>(part).map_err(corrupt)?;
    if changes == 0 {
        return Ok(None);
    }
    let (first, _) = postcard::take_from_bytes::<Change>(part).map_err(corrupt)?;
    Ok(row_of(&first).map(Row::relation))
}

fn row_of(change: &Change) -> Option<&Row> {
    change.old.as_ref().or(change.new.as_ref())
}

/// A chunk of changes as a part: their number, then each of them.
pub(crate) fn encoded_part(chunk: &Chunk) -> Result<Vec<u8>, LogError> {
    let mut value = encode(&chunk.changes, "a batch")?;
    value.extend_from_slice(&chunk.body);
    Ok(value)
}

/// The head of the batch of this time.
pub(crate) fn head(tail: &Keyspace, time: Time) -> Result<Option<Head>, LogError> {
    let value = tail.get(tail_key(time, 0)).map_err(storage("read the tail of"))?;
    let head = |value: UserValue| decode::<(Head, Vec<Change>)>(&value, || of(time)).map(|(head, _)| head);
    value.map(head).transpose()
}

fn of(time: Time) -> String {
    format!("the batch of time {time}")
}
