//! What many changes do to the row store, without holding them or it in memory.
//!
//! ```text
//!   run 0 ─┐
//!   run 1 ─┼─ merge by key ─► fold: what the row is now ─┐
//!   run n ─┘                                             ├─ join by key ─► changes, in the order of keys
//!   rows of the store: looked up, or all of a range ─────┘
//!   that is cleared
//! ```
//!
//! Why it gives what the changes give one after the other: what becomes of a row depends on the changes of its own key
//! alone, in their order, and on the row in the store; runs keep that order. (A row that takes columns along from another
//! key does not fit here, see [`crate::large`].) A TRUNCATE clears a range: of its keys only what came after it counts,
//! and each row of the store that nothing brings back is gone.
//!
//! Rows are compared and passed on as bytes: equal rows are equal bytes, and most of them need not be decoded at all. The
//! store is read in the order of keys, by scanning where keys lie close together and by single reads where they do not.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::collections::binary_heap::PeekMut;

use feedmill_connectors::postgres::Operation;
use feedmill_model::{Position, Relation, Row};
use fjall::{Keyspace, UserValue};

use crate::LogError;
use crate::bulk::Tally;
use crate::effects::Effects;
use crate::error::storage;
use crate::key::{RowKey, decode_row, encode, key_of};
use crate::log::Shared;
use crate::quarantine::{self, Effect, QuarantineId, Quarantined};
use crate::run::{Cursor, Op};

/// A scan may pass over so many rows in all, and so many for each row that is looked up, before it is given up.
const PASSED_FREE: u64 = 256;
const PASSED_A_KEY: u64 = 6;
/// Single reads before a scan is tried again.
const READS: u32 = 512;

/// Bytes of changes above which a chunk ends.
const CHUNK_BYTES: usize = 4 << 20;

/// A range of keys whose rows are gone before the changes of a run.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Cleared {
    pub first: RowKey,
    pub last: RowKey,
    /// Changes of earlier runs do not count.
    pub from_run: usize,
}

/// Some changes, encoded.
#[derive(Default)]
pub(crate) struct Chunk {
    pub changes: usize,
    /// Changes as a part of the tail has them, without their number.
    pub body: Vec<u8>,
    /// For each, its key and where in the body the row is from now on; an empty range where it is gone.
    pub rows: Vec<(RowKey, std::ops::Range<usize>)>,
}

impl Chunk {
    /// Whether it should end: with so many changes, or so many bytes of them.
    pub fn is_full(&self, changes: usize) -> bool {
        self.changes >= changes || self.body.len() >= CHUNK_BYTES
    }

    /// Adds a change, from the bytes of its rows.
    pub fn push(&mut self, key: RowKey, old: Option<&[u8]>, new: Option<&[u8]>) {
        for row in [old, new] {
            // As postcard writes an `Option`.
            self.body.push(u8::from(row.is_some()));
            self.body.extend_from_slice(row.unwrap_or_default());
        }
        let end = self.body.len();
        self.rows.push((key, end - new.map_or(0, <[u8]>::len)..end));
        self.changes += 1;
    }
}

/// What is merged.
pub(crate) struct Merge<'a> {
    shared: &'a Shared,
    position: Position,
    effects: &'a Effects<'a>,
    cursors: Vec<Cursor>,
    /// Key, and which cursor stands on it.
    next: BinaryHeap<Reverse<(RowKey, usize)>>,
    cleared: Vec<Cleared>,
    lookup: Lookup<'a>,
    /// Of the ranges that are cleared: the one that is being read, and its next row.
    scanned: usize,
    scan: Option<Scan>,
    /// Counts what comes out.
    pub tally: Tally,
}

impl<'a> Merge<'a> {
    /// `cleared` must not overlap.
    pub fn new(
        shared: &'a Shared,
        position: Position,
        effects: &'a Effects<'a>,
        cursors: Vec<Cursor>,
        mut cleared: Vec<Cleared>,
    ) -> Result<Self, LogError> {
        cleared.sort_unstable_by_key(|range| range.first);
        if shared.has_quarantined() {
            for range in &cleared {
                for id in shared.quarantined_between(&range.first, &range.last)? {
                    effects.push(Effect { id, entry: None })?;
                }
            }
        }
        let next = cursors.iter().enumerate().map(|(index, cursor)| Reverse((cursor.key, index))).collect();
        let lookup = Lookup { rows: &shared.rows, scan: None, reads: 0 };
        let tally = Tally::default();
        Ok(Merge { shared, position, effects, cursors, next, cleared, lookup, scanned: 0, scan: None, tally })
    }

    /// Gives all changes to `take`, in chunks of at most `changes` and about 4 MiB; ends early when it returns `false`.
    pub fn run(&mut self, changes: usize, take: &mut dyn FnMut(Chunk) -> bool) -> Result<(), LogError> {
        let mut chunk = Chunk::default();
        let mut fold = Fold::default();
        loop {
            let changed = self.next.peek().map(|Reverse((key, _))| *key);
            let stored = self.cleared_row()?;
            let key = match (changed, stored) {
                (None, None) => break,
                (Some(changed), Some(stored)) => changed.min(stored),
                (Some(key), None) | (None, Some(key)) => key,
            };
            let cleared = self.range_of(&key);
            let old = match cleared {
                Some(_) if stored == Some(key) => {
                    self.scan.as_mut().and_then(|scan| scan.next.take()).map(|(_, row)| row)
                }
                Some(_) => None,
                None => self.lookup.get(&key)?,
            };
            fold.begin(key, cleared.is_some());
            if changed == Some(key) {
                self.fold(&key, cleared.map_or(0, |range| range.from_run), &mut fold)?;
            }
            self.end(&mut fold, old.as_deref(), &mut chunk)?;
            if chunk.is_full(changes) && !take(std::mem::take(&mut chunk)) {
                return Ok(());
            }
        }
        if chunk.changes > 0 {
            take(chunk);
        }
        Ok(())
    }

    /// Applies what the runs say of a key.
    fn fold(&mut self, key: &RowKey, from_run: usize, fold: &mut Fold) -> Result<(), LogError> {
        while let Some(mut top) = self.next.peek_mut() {
            let Reverse((at, index)) = *top;
            if at != *key {
                break;
            }
            let Some(cursor) = self.cursors.get_mut(index) else { break };
            if cursor.number >= from_run {
                fold.apply(cursor.op, cursor.value(), self.position)?;
            }
            if cursor.advance()? {
                *top = Reverse((cursor.key, index));
            } else {
                PeekMut::pop(top);
            }
        }
        Ok(())
    }

    /// Puts out what has become of a key whose row was `old`.
    fn end(&mut self, fold: &mut Fold, old: Option<&[u8]>, chunk: &mut Chunk) -> Result<(), LogError> {
        let key = fold.key;
        let id = || Ok::<_, LogError>(QuarantineId::of(&key, self.position.time)?.to_bytes());
        let held = if self.shared.has_quarantined() { self.shared.quarantined_at(&fold.key)? } else { None };
        let mut aside = None;
        if let Now::Fill(unchanged) = fold.now {
            let mut row = fold.row()?;
            let before = match old {
                Some(old) => Some(decode_row(old, fold.row_key.relation)?),
                None => held.as_ref().and_then(|held| held.readable.clone()),
            };
            match before {
                Some(before) => {
                    row.fill_unchanged(unchanged, &before);
                    fold.set(&row)?;
                }
                None => aside = Some(quarantine::without_columns(&row, self.position)),
            }
        }
        let mut new = match fold.now {
            Now::Store => old,
            Now::Set => Some(fold.value.as_slice()),
            Now::Gone | Now::Fill(_) => None,
            Now::Aside => {
                aside = Some(Quarantined { position: self.position, ..fold.entry()? });
                None
            }
        };
        let relation = fold.row_key.relation;
        let counted = matches!(relation, Relation::Tweets | Relation::Retweets);
        if counted && old != new {
            let row = |bytes: Option<&[u8]>| bytes.map(|bytes| decode_row(bytes, relation)).transpose();
            let mut now = row(new)?;
            if let Some(reason) = now.as_ref().and_then(|row| quarantine::ahead(row, self.position.time))
                && let Some(row) = now.take()
            {
                let operation = if old.is_some() { Operation::Update } else { Operation::Insert };
                aside = Some(quarantine::of_the_future(row, operation, reason, self.position));
                new = None;
            }
            if old != new {
                self.tally.add(row(old)?.as_ref(), now.as_ref());
            }
        }
        if relation == Relation::Follows && old != new {
            self.tally.add_follow();
        }
        match aside {
            Some(entry) => self.effects.push(Effect { id: id()?, entry: Some(Box::new(entry)) })?,
            None if held.is_some() && fold.now != Now::Store => self.effects.push(Effect { id: id()?, entry: None })?,
            None => {}
        }
        if old != new {
            chunk.push(fold.key, old, new);
        }
        Ok(())
    }

    /// The range that is cleared and has this key.
    fn range_of(&self, key: &RowKey) -> Option<Cleared> {
        let after = self.cleared.partition_point(|range| range.first <= *key);
        self.cleared.get(after.checked_sub(1)?).filter(|range| *key <= range.last).copied()
    }

    /// The key of the next row of the store in a range that is cleared.
    fn cleared_row(&mut self) -> Result<Option<RowKey>, LogError> {
        loop {
            if let Some(scan) = &mut self.scan {
                if scan.next.is_none() {
                    scan.step()?;
                }
                if let Some((key, _)) = &scan.next {
                    return Ok(Some(*key));
                }
                self.scan = None;
            }
            let Some(range) = self.cleared.get(self.scanned) else { return Ok(None) };
            self.scan = Some(Scan::new(self.shared.rows.range(range.first..=range.last)));
            self.scanned += 1;
        }
    }
}

/// What a row is now, as far as its changes tell.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
enum Now {
    /// What it is in the store.
    #[default]
    Store,
    Gone,
    Set,
    /// As given, but for these columns, which are as in the store.
    Fill(u32),
    Aside,
}

/// Folds the changes of one key.
struct Fold {
    key: RowKey,
    row_key: feedmill_model::Key,
    now: Now,
    /// The row, or what goes into quarantine.
    value: Vec<u8>,
}

impl Default for Fold {
    fn default() -> Self {
        let row_key = feedmill_model::Key { relation: Relation::Users, first: 0, second: 0 };
        Fold { key: [0; 17], row_key, now: Now::Store, value: Vec::new() }
    }
}

impl Fold {
    fn begin(&mut self, key: RowKey, cleared: bool) {
        self.key = key;
        if let Some(row_key) = key_of(&key) {
            self.row_key = row_key;
        }
        self.now = if cleared { Now::Gone } else { Now::Store };
    }

    fn apply(&mut self, op: Op, value: &[u8], position: Position) -> Result<(), LogError> {
        match op {
            Op::Gone => self.now = Now::Gone,
            Op::Set => self.hold(Now::Set, value),
            Op::Aside => self.hold(Now::Aside, value),
            Op::Fill => {
                let corrupt = || LogError::Corrupt { what: "a file for a large transaction".to_owned() };
                let (unchanged, row) = value.split_first_chunk().ok_or_else(corrupt)?;
                let unchanged = u32::from_le_bytes(*unchanged);
                match self.now {
                    Now::Store => self.hold(Now::Fill(unchanged), row),
                    Now::Set => {
                        let mut row = decode_row(row, self.row_key.relation)?;
                        row.fill_unchanged(unchanged, &self.row()?);
                        self.set(&row)?;
                    }
                    Now::Fill(before) => {
                        let mut row = decode_row(row, self.row_key.relation)?;
                        row.fill_unchanged(unchanged, &self.row()?);
                        self.set(&row)?;
                        self.now = Now::Fill(unchanged & before);
                        if unchanged & before == 0 {
                            self.now = Now::Set;
                        }
                    }
                    Now::Gone | Now::Aside => {
                        let row = decode_row(row, self.row_key.relation)?;
                        let entry = quarantine::without_columns(&row, position);
                        self.value = encode(&entry, "a row in quarantine")?;
                        self.now = Now::Aside;
                    }
                }
            }
        }
        Ok(())
    }

    fn hold(&mut self, now: Now, value: &[u8]) {
        self.value.clear();
        self.value.extend_from_slice(value);
        self.now = now;
    }

    fn set(&mut self, row: &Row) -> Result<(), LogError> {
        self.value = encode(row, "a row")?;
        self.now = Now::Set;
        Ok(())
    }

    fn row(&self) -> Result<Row, LogError> {
        decode_row(&self.value, self.row_key.relation)
    }

    fn entry(&self) -> Result<Quarantined, LogError> {
        crate::key::decode(&self.value, || "a row on its way to quarantine".to_owned())
    }
}

/// Reads rows in order.
struct Scan {
    rows: fjall::Iter,
    next: Option<(RowKey, UserValue)>,
    looked_up: u64,
    passed: u64,
}

impl Scan {
    fn new(rows: fjall::Iter) -> Self {
        Scan { rows, next: None, looked_up: 0, passed: 0 }
    }

    fn step(&mut self) -> Result<(), LogError> {
        self.next = match self.rows.next() {
            None => None,
            Some(entry) => {
                let (key, row) = entry.into_inner().map_err(storage("read the rows of"))?;
                let corrupt = |_| LogError::Corrupt { what: "a key of the row store".to_owned() };
                Some((RowKey::try_from(&*key).map_err(corrupt)?, row))
            }
        };
        Ok(())
    }
}

/// Looks up rows whose keys only grow.
struct Lookup<'a> {
    rows: &'a Keyspace,
    scan: Option<Scan>,
    /// Single reads before the next scan.
    reads: u32,
}

impl Lookup<'_> {
    fn get(&mut self, key: &RowKey) -> Result<Option<UserValue>, LogError> {
        if self.scan.is_none() && self.reads == 0 {
            let mut scan = Scan::new(self.rows.range(*key..));
            scan.step()?;
            self.scan = Some(scan);
        }
        let Some(scan) = &mut self.scan else {
            self.reads -= 1;
            return self.rows.get(key).map_err(storage("read a row of"));
        };
        scan.looked_up += 1;
        while scan.next.as_ref().is_some_and(|(at, _)| at < key) {
            scan.passed += 1;
            if scan.passed > PASSED_FREE + PASSED_A_KEY * scan.looked_up {
                (self.scan, self.reads) = (None, READS);
                return self.rows.get(key).map_err(storage("read a row of"));
            }
            scan.step()?;
        }
        Ok(scan.next.as_ref().filter(|(at, _)| at == key).map(|(_, row)| row.clone()))
    }
}
