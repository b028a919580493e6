//! Batches that are too large for memory.
//!
//! ```text
//!   changes ─► sorted runs, in a file ─► merge with the row store ─┬─► parts of the tail, under the new time  ─┐ tables,
//!                                                                  └─► rows, and the time that they are of    ─┤ not yet
//!                                                                                                              │ linked in
//!   1. the parts are linked in, and durable: they lie beyond the position, so nobody reads them                ▼
//!   2. ONE durable write: position and head of the batch            ── published: readers go on, piece by piece
//!   3. effects on the quarantine
//!   4. the rows are linked in, with the time that they are of       ── the state can be read, the next append begins
//! ```
//!
//! Why nothing is lost or half done: before 2 the batch is not there, and parts that lie beyond the position are dropped
//! at the next open. From 2 on it is there, with all its parts. Between 2 and 4 the rows are as of the batch before, and
//! say so; an open that finds them so does 3 and 4 over again from the parts, which gives the same however often it is
//! done. In 4 the rows and their time become visible at once, as one set of tables. Nobody reads rows between 2 and 4:
//! appends wait for their turn, and so does whoever wants the state; if something fails there, both are refused from then
//! on, until an open has done it over again. What fails before 2 takes what was written with it, and the log goes on.
//!
//! The runs of a transaction that came while it was in progress are there when it is appended, see [`crate::sorter`].
//!
//! Why the memory is bounded: a buffer of changes is sorted and written when it is full, the merge holds a block of each
//! run, and what comes out of it goes into tables directly, which the engine writes block by block; neither its journal
//! nor its memory sees rows or parts.
//!
//! A row whose key changed, and that takes columns along which were not sent, needs the row of another key as it was at
//! that moment. Transactions with such changes are resolved in memory, as small ones are.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread;
use std::time::Instant;

use feedmill_connectors::postgres::Transaction;
use feedmill_model::{Change, Position, Row, Time, failpoint};

use crate::LogError;
use crate::bulk::Tally;
use crate::effects::Effects;
use crate::error::storage;
use crate::intake::{Intake, Sorted};
use crate::key::{RowKey, encode, row_key, tail_key};
use crate::log::{ROWS_TIME, Shared};
use crate::merge::{Chunk, Cleared, Merge};
use crate::meta::Meta;
use crate::quarantine::Effect;
use crate::resolve::{Resolved, resolve};
use crate::run::{Buffer, Runs};
use crate::tail::{self, Head, PART_CHANGES};

/// Chunks of changes between the merge and what writes them.
const CHUNKS_MAX: usize = 4;

impl Shared {
    /// Appends transactions as one batch at `position`. Whoever calls holds the right to write.
    pub fn append_large(&self, transactions: &[Transaction], position: Position, before: Meta) -> Result<(), LogError> {
        let meta = Meta { position: Some(position), ..before };
        let sorted = match self.sorter.take(transactions) {
            Some(sorted) => Some(sorted),
            None => self.sort(transactions)?,
        };
        match sorted {
            Some(Sorted { runs, cleared }) => self.append_runs(&runs, cleared, position, meta),
            None => self.append_resolved(transactions, position, meta),
        }
    }

    /// Appends what runs hold as one batch.
    pub fn append_runs(
        &self,
        runs: &Runs,
        cleared: Vec<Cleared>,
        position: Position,
        meta: Meta,
    ) -> Result<(), LogError> {
        self.check_room_of(runs, &cleared, position)?;
        let part_changes = self.part_changes();
        let effects = Effects::new(self, position.time);
        self.publish(position, meta, &effects, |take| {
            let mut merge = Merge::new(self, position, &effects, runs.cursors()?, cleared)?;
            merge.run(part_changes, take)?;
            Ok(merge.tally)
        })
    }

    /// Changes of one part of a large batch.
    fn part_changes(&self) -> usize {
        PART_CHANGES.min(self.large_changes).max(1)
    }

    /// Sorts the changes of transactions, on a second thread; `None` if they cannot be told key by key.
    fn sort(&self, transactions: &[Transaction]) -> Result<Option<Sorted>, LogError> {
        let runs = Runs::create(&self.dir)?;
        let sorted = thread::scope(|scope| {
            let (full, buffers) = sync_channel::<(usize, Buffer)>(1);
            let runs = &runs;
            let sorter =
                scope.spawn(move || buffers.into_iter().try_for_each(|(number, buffer)| runs.write(number, buffer)));
            let mut intake = Intake::new(self.run_changes);
            let told = take_all(&mut intake, transactions, &full);
            drop(full);
            joined(sorter.join())?;
            Ok::<_, LogError>(told?.then(|| intake.cleared()))
        })?;
        Ok(sorted.map(|cleared| Sorted { runs, cleared }))
    }

    /// Appends transactions that must be resolved in the order of their changes.
    fn append_resolved(&self, transactions: &[Transaction], position: Position, meta: Meta) -> Result<(), LogError> {
        let Resolved { changes, effects: resolved } = resolve(self, transactions, position)?;
        let effects = Effects::new(self, position.time);
        for (id, entry) in resolved {
            effects.push(Effect { id, entry })?;
        }
        let mut changes: Vec<(RowKey, Change)> = changes
            .into_iter()
            .filter_map(|change| Some((row_key(&change.new.as_ref().or(change.old.as_ref())?.key()), change)))
            .collect();
        changes.sort_unstable_by_key(|(key, _)| *key);
        let part_changes = self.part_changes();
        self.publish(position, meta, &effects, |take| {
            let mut tally = Tally::default();
            let mut chunk = Chunk::default();
            for (key, change) in &changes {
                tally.add(change.old.as_ref(), change.new.as_ref());
                let row = |row: &Option<Row>| row.as_ref().map(|row| encode(row, "a row")).transpose();
                chunk.push(*key, row(&change.old)?.as_deref(), row(&change.new)?.as_deref());
                if chunk.is_full(part_changes) && !take(std::mem::take(&mut chunk)) {
                    return Ok(tally);
                }
            }
            if chunk.changes > 0 {
                take(chunk);
            }
            Ok(tally)
        })
    }

    /// Writes and publishes what `produce` gives, which must be in the order of keys.
    fn publish(
        &self,
        position: Position,
        meta: Meta,
        effects: &Effects<'_>,
        produce: impl FnOnce(&mut dyn FnMut(Chunk) -> bool) -> Result<Tally, LogError>,
    ) -> Result<(), LogError> {
        let before = self.current.lock().clone();
        let previous = before.position.map_or(before.tail_after, |position| position.time);
        let started = Instant::now();
        thread::scope(|scope| {
            let (to_tail, for_tail) = sync_channel::<Arc<Chunk>>(CHUNKS_MAX);
            let (to_rows, for_rows) = sync_channel::<Arc<Chunk>>(CHUNKS_MAX);
            let (tail_is_written, tail_written) = sync_channel(1);
            let (rows_are_written, rows_written) = sync_channel(1);
            // Dropped without a word, they tell the threads that nothing is to be linked in.
            let (link_tail, may_link_tail) = sync_channel::<()>(1);
            let (link_rows, may_link_rows) = sync_channel::<()>(1);
            let tail = scope.spawn(move || {
                let failed = storage("write parts of a large batch to");
                let mut tail = self.tail.start_ingestion().map_err(&failed)?;
                let written = write_parts(position.time, for_tail, |key, part| tail.write(key, part))?;
                // Whoever is gone has no use for it.
                let _ = tail_is_written.send(written);
                if may_link_tail.recv().is_ok() { tail.finish().map_err(&failed) } else { Ok(()) }
            });
            let rows = scope.spawn(move || {
                let failed = storage("write rows of a large batch to");
                let mut rows = self.rows.start_ingestion().map_err(&failed)?;
                write_rows(position.time, for_rows.into_iter().map(Ok), |key, row| match row {
                    Some(row) => rows.write(key, row),
                    None => rows.write_tombstone(key),
                })?;
                let _ = rows_are_written.send(());
                if may_link_rows.recv().is_ok() { rows.finish().map_err(&failed) } else { Ok(()) }
            });
            let mut changes = 0;
            let tally = produce(&mut |chunk| {
                changes += chunk.changes as u64;
                give(Arc::new(chunk), &to_tail, &to_rows)
            });
            drop((to_tail, to_rows));
            let (Ok(Written { parts, bytes }), Ok(())) = (tail_written.recv(), rows_written.recv()) else {
                drop((link_tail, link_rows));
                joined(tail.join())?;
                joined(rows.join())?;
                // They end without a word only with an error.
                return tally.and(Err(LogError::NotReady));
            };
            let tally = tally?;
            effects.end()?;
            let merged = started.elapsed();
            // What is linked in must never be ahead of the journal.
            self.persist()?;
            let _ = link_tail.send(());
            joined(tail.join())?;
            failpoint!("large_parts_after");

            let greatest_entry = meta.greatest_entry.max(tally.greatest_entry);
            let floor = tally.floor(self.bulk_rows, position.time, greatest_entry);
            let head = Head { previous, position, floor, parts, large: true };
            let mut write = self.durable_write();
            write.insert(&self.tail, tail_key(position.time, 0), encode(&(head, Vec::<Change>::new()), "a batch")?);
            let mut unsettled = self.unsettled.lock();
            *unsettled = true;
            effects.publish();
            self.commit(write, Meta { greatest_entry, ..meta }, "append a large batch to")?;
            failpoint!("log_append_after");
            self.ring.lock().pass(position.time);
            self.appended.notify_all();
            let published = started.elapsed();

            self.apply_effects(position.time)?;
            self.persist()?;
            failpoint!("large_rows_before");
            {
                let _visible = self.visible.lock();
                let _ = link_rows.send(());
                joined(rows.join())?;
            }
            failpoint!("large_rows_after");
            *unsettled = false;
            drop(unsettled);
            self.observe(position, changes, bytes);
            tracing::info!(
                "a batch of {changes} changes: merged in {merged:.1?}, published after {published:.1?}, rows after {:.1?}",
                started.elapsed()
            );
            Ok(())
        })
    }

    /// After a crash: drops what was not published, and does over again what was published and is not in the rows.
    pub fn settle(&self, newest: Position) -> Result<(), LogError> {
        // Parts beyond the position are those of a batch that was never published.
        if let Some(beyond) = newest.time.checked_add(1) {
            self.drop_parts_from(beyond)?;
        }
        let rows = self.rows.get(ROWS_TIME).map_err(storage("read the rows of"))?;
        let head = tail::head(&self.tail, newest.time)?;
        let Some(head) = head.filter(|head| head.large && rows.as_deref() == Some(&head.previous.to_be_bytes()[..]))
        else {
            return Ok(());
        };
        tracing::info!("writing the rows of a batch of {} parts that a crash cut short", head.parts);
        self.apply_effects(newest.time)?;
        self.persist()?;
        failpoint!("large_settle_before");
        let failed = storage("write rows of a large batch to");
        let mut rows = self.rows.start_ingestion().map_err(&failed)?;
        let parts = (1..head.parts).map(|number| self.published_part(newest.time, number).map(Arc::new));
        write_rows(newest.time, parts, |key, row| match row {
            Some(row) => rows.write(key, row),
            None => rows.write_tombstone(key),
        })?;
        rows.finish().map_err(&failed)
    }

    /// A part of a published batch, with the rows as they are after it.
    fn published_part(&self, time: Time, number: u32) -> Result<Chunk, LogError> {
        let part = self.tail.get(tail_key(time, number)).map_err(storage("read the tail of"))?;
        let lost = || LogError::Corrupt { what: format!("the batch of time {time}") };
        let mut chunk = Chunk::default();
        for change in tail::changes(&part.ok_or_else(lost)?, time)? {
            let key = row_key(&change.new.as_ref().or(change.old.as_ref()).ok_or_else(lost)?.key());
            let new = change.new.as_ref().map(|row| encode(row, "a row")).transpose()?;
            chunk.push(key, None, new.as_deref());
        }
        Ok(chunk)
    }

    /// Drops what the tail has of batches from `time` on.
    pub fn drop_parts_from(&self, time: Time) -> Result<(), LogError> {
        for part in self.tail.range(tail_key(time, 0)..) {
            let key = part.key().map_err(storage("read the tail of"))?;
            self.tail.remove(key).map_err(storage("drop what was not published from"))?;
        }
        Ok(())
    }
}

/// Takes changes in and hands full buffers over; `false` if they cannot be told key by key. Ends early when nobody takes
/// buffers any more: who did knows why.
fn take_all(
    intake: &mut Intake,
    transactions: &[Transaction],
    full: &SyncSender<(usize, Buffer)>,
) -> Result<bool, LogError> {
    for chunk in transactions.iter().flat_map(|transaction| transaction.changes.chunks()) {
        for change in chunk?.iter() {
            if !intake.take(change)? {
                return Ok(false);
            }
            if intake.is_full() && full.send(intake.next_run()).is_err() {
                return Ok(true);
            }
        }
    }
    let _ = full.send(intake.next_run());
    Ok(true)
}

/// What was written of a batch to the tail.
struct Written {
    /// How many parts, the head included.
    parts: u32,
    bytes: u64,
}

/// Writes chunks as the parts of a batch, after its head.
fn write_parts(
    time: Time,
    chunks: Receiver<Arc<Chunk>>,
    mut write: impl FnMut([u8; 12], Vec<u8>) -> fjall::Result<()>,
) -> Result<Written, LogError> {
    let mut written = Written { parts: 1, bytes: 0 };
    for chunk in chunks {
        let part = tail::encoded_part(&chunk)?;
        written.bytes += part.len() as u64;
        write(tail_key(time, written.parts), part).map_err(storage("write parts of a large batch to"))?;
        written.parts += 1;
    }
    Ok(written)
}

/// Writes what rows are after a batch, beginning with its time: no key is less than that one's.
fn write_rows(
    time: Time,
    chunks: impl Iterator<Item = Result<Arc<Chunk>, LogError>>,
    mut write: impl FnMut(&[u8], Option<&[u8]>) -> fjall::Result<()>,
) -> Result<(), LogError> {
    let failed = storage("write rows of a large batch to");
    write(ROWS_TIME, Some(&time.to_be_bytes())).map_err(&failed)?;
    for chunk in chunks {
        let chunk = chunk?;
        for (key, place) in &chunk.rows {
            let row = chunk.body.get(place.clone()).filter(|row| !row.is_empty());
            write(key, row).map_err(&failed)?;
        }
    }
    Ok(())
}

/// Hands a chunk to both; `false` if one of them has failed.
fn give(chunk: Arc<Chunk>, to_tail: &SyncSender<Arc<Chunk>>, to_rows: &SyncSender<Arc<Chunk>>) -> bool {
    to_tail.send(Arc::clone(&chunk)).is_ok() && to_rows.send(chunk).is_ok()
}

/// What a thread gave; its panic goes on here.
pub(crate) fn joined<T>(outcome: thread::Result<T>) -> T {
    outcome.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
}
