//! The rows as of a time in the tail.
//!
//! The row store is as of the newest batch. Each change after the time asked for is undone: of a key that changed
//! several times, the first of these changes knows the row as it was. Rows and tail are read from one snapshot of the
//! storage engine, so appends go on meanwhile.
//!
//! Relations come in an order that suits the dataflows: what makes rows of others irrelevant comes before them (who is
//! active, hot, muted or blocked), so that little is derived only to be withdrawn.

use std::collections::HashMap;

use feedmill_model::{Batch, Relation, Row, Time};
use fjall::Readable;

use crate::error::storage;
use crate::key::{decode, relation_prefix, row_key, tail_key};
use crate::{Log, LogError};

/// Rows of a slice.
const SLICE_ROWS: usize = 65_536;

const ORDER: [Relation; 10] = [
    Relation::Activity,
    Relation::Popular,
    Relation::Users,
    Relation::Mutes,
    Relation::Blocks,
    Relation::Tweets,
    Relation::Retweets,
    Relation::Follows,
    Relation::Likes,
    Relation::ReadMarks,
];

/// Gives all rows, in slices.
pub struct StateAt {
    snapshot: fjall::Snapshot,
    rows: fjall::Keyspace,
    relations: std::array::IntoIter<Relation, 10>,
    /// The relation that is being read.
    reading: Option<fjall::Iter>,
    /// Rows as they were, of keys that have changed since; taken out as the keys are met.
    undo: HashMap<[u8; 17], Option<Row>>,
}

impl StateAt {
    pub(crate) fn new(log: &Log, time: Time) -> Result<Self, LogError> {
        let newest = log.position().ok_or(LogError::NotReady)?.time;
        let oldest = log.tail_after();
        if !(oldest..=newest).contains(&time) {
            return Err(LogError::Gone { asked: time, oldest, newest });
        }
        let shared = &log.shared;
        let snapshot = shared.db.snapshot();
        let mut undo = HashMap::new();
        for entry in snapshot.range(&shared.tail, tail_key(time.saturating_add(1))..) {
            let bytes = entry.value().map_err(storage("read the tail of"))?;
            let batch: Batch = decode(&bytes, || "a batch of the tail".to_owned())?;
            for change in batch.changes {
                if let Some(key) = change.old.as_ref().or(change.new.as_ref()).map(Row::key) {
                    undo.entry(row_key(&key)).or_insert(change.old);
                }
            }
        }
        Ok(StateAt { snapshot, rows: shared.rows.clone(), relations: ORDER.into_iter(), reading: None, undo })
    }

    fn slice(&mut self) -> Result<Vec<Row>, LogError> {
        let mut slice = Vec::with_capacity(SLICE_ROWS);
        while slice.len() < SLICE_ROWS {
            let Some(reading) = &mut self.reading else {
                match self.relations.next() {
                    Some(relation) => self.reading = Some(self.snapshot.prefix(&self.rows, relation_prefix(relation))),
                    None => {
                        // What is left was deleted since.
                        slice.extend(self.undo.drain().filter_map(|(_, row)| row));
                        break;
                    }
                }
                continue;
            };
            let Some(entry) = reading.next() else {
                self.reading = None;
                continue;
            };
            let (key, value) = entry.into_inner().map_err(storage("read the rows of"))?;
            let undone = <[u8; 17]>::try_from(&*key).ok().and_then(|key| self.undo.remove(&key));
            match undone {
                Some(row) => slice.extend(row),
                None => slice.push(decode(&value, || "a row".to_owned())?),
            }
        }
        Ok(slice)
    }
}

impl Iterator for StateAt {
    type Item = Result<Vec<Row>, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        match self.slice() {
            Ok(slice) if slice.is_empty() => None,
            slice => Some(slice),
        }
    }
}
