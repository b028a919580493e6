//! The rows as of a time in the tail.
//!
//! ```text
//!   rows of a relation, by key  ──┐
//!                                 ├─ merge ─► slices; of a key that is in both, the row as it was
//!   rows as they were before    ──┘
//!   their first change after T
//! ```
//!
//! The row store is as of the newest batch. Each change after the time asked for is undone: of a key that changed
//! several times, the first of these changes knows the row as it was. Rows, tail and its extent are read from one
//! snapshot of the storage engine, so appends and compaction go on meanwhile. What must be undone is held in memory: one
//! row for each key that has changed since.

use std::collections::{BTreeMap, HashMap, btree_map};
use std::iter::Peekable;

use feedmill_model::{Change, Relation, Row, Time};
use fjall::{Readable, UserValue};

use crate::error::storage;
use crate::key::{RowKey, decode_row, relation_prefix, row_key, tail_key};
use crate::tail::{Batches, Stored};
use crate::{Log, LogError, tail};

/// Rows of a slice.
const SLICE_ROWS: usize = 65_536;

/// Rows as they were, of keys that have changed since.
type Undo = BTreeMap<RowKey, Option<Row>>;

/// Gives all rows, in slices of bounded size, relation by relation and in the order of their keys.
pub struct StateAt {
    snapshot: fjall::Snapshot,
    rows: fjall::Keyspace,
    undo: HashMap<Relation, Undo>,
    relations: std::array::IntoIter<Relation, 10>,
    /// The relation that is being read.
    reading: Option<Reading>,
}

impl StateAt {
    pub(crate) fn new(log: &Log, time: Time) -> Result<Self, LogError> {
        let shared = &log.shared;
        let snapshot = shared.settled_snapshot()?;
        let meta = shared.meta_in(&snapshot)?;
        meta.check_is_held(time)?;
        let newest = meta.ready()?.time;
        let mut undo: HashMap<Relation, Undo> = HashMap::new();
        let mut previous = time;
        let mut undo_all = |changes: Vec<Change>| {
            for change in changes {
                if let Some(key) = change.old.as_ref().or(change.new.as_ref()).map(Row::key) {
                    undo.entry(key.relation).or_default().entry(row_key(&key)).or_insert(change.old);
                }
            }
        };
        let end = tail_key(newest, u32::MAX);
        for stored in Batches::after(time, |from| snapshot.range(&shared.tail, from..=end.max(from))) {
            let stored = stored?;
            let head = *stored.head();
            if head.previous > previous {
                return Err(LogError::Corrupt { what: format!("the batch after time {previous}") });
            }
            previous = head.position.time;
            match stored {
                Stored::Whole(_, batch) => undo_all(batch.changes),
                Stored::Large(head) => {
                    for number in 1..head.parts {
                        let part = snapshot.get(&shared.tail, tail_key(previous, number));
                        let part = part.map_err(storage("read the tail of"))?;
                        let lost = || LogError::Corrupt { what: format!("the batch of time {previous}") };
                        undo_all(tail::changes(&part.ok_or_else(lost)?, previous)?);
                    }
                }
            }
        }
        Ok(StateAt {
            snapshot,
            rows: shared.rows.clone(),
            undo,
            relations: Relation::LOAD_ORDER.into_iter(),
            reading: None,
        })
    }

    fn slice(&mut self) -> Result<Vec<Row>, LogError> {
        let mut slice = Vec::new();
        while slice.len() < SLICE_ROWS {
            let Some(reading) = &mut self.reading else {
                let Some(relation) = self.relations.next() else { break };
                let rows = self.snapshot.prefix(&self.rows, relation_prefix(relation));
                let undo = self.undo.remove(&relation).unwrap_or_default();
                self.reading = Some(Reading { relation, rows, stored: None, undo: undo.into_iter().peekable() });
                continue;
            };
            match reading.next()? {
                Some(row) => slice.push(row),
                None => self.reading = None,
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

/// The merge of one relation.
struct Reading {
    relation: Relation,
    rows: fjall::Iter,
    /// The next row of the store, if it is known.
    stored: Option<(RowKey, UserValue)>,
    undo: Peekable<btree_map::IntoIter<RowKey, Option<Row>>>,
}

impl Reading {
    fn next(&mut self) -> Result<Option<Row>, LogError> {
        loop {
            if self.stored.is_none() {
                self.stored = self.next_stored()?;
            }
            let undone = match (&self.stored, self.undo.peek()) {
                (None, None) => return Ok(None),
                (Some((stored, _)), Some((undone, _))) if stored == undone => {
                    self.stored = None;
                    true
                }
                (Some((stored, _)), Some((undone, _))) => undone < stored,
                (stored, _) => stored.is_none(),
            };
            let row = match undone {
                true => self.undo.next().and_then(|(_, row)| row),
                false => self.stored.take().map(|(_, value)| decode_row(&value, self.relation)).transpose()?,
            };
            if row.is_some() {
                return Ok(row);
            }
        }
    }

    fn next_stored(&mut self) -> Result<Option<(RowKey, UserValue)>, LogError> {
        let Some(entry) = self.rows.next() else { return Ok(None) };
        let (key, value) = entry.into_inner().map_err(storage("read the rows of"))?;
        let corrupt = |_| LogError::Corrupt { what: format!("a key of {}", self.relation.table()) };
        Ok(Some((RowKey::try_from(&*key).map_err(corrupt)?, value)))
    }
}
