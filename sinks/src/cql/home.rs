//! Home timelines in a CQL cluster.
//!
//! ```text
//!   worker ─ HomeClosed ─► floors of the shards ─► for each viewer, in one request: the record with its time, hot accounts,
//!                          acknowledged            entries in and out, what is cut ─► all acknowledged ─► progress
//!   reader ─► the viewer's partition, and the row of progress
//! ```
//!
//! What a record is, and what its floors mean, is as in the local store (`sinks/src/local/home.rs`). Here nothing of a record
//! is in memory but its floor and how many entries it has at most, of those viewers that had something lately.
//!
//! Why it is correct: all that a closed time changes for a viewer is one batch of one partition, which a replica applies at
//! once: a reader, who asks for the partition in one request, never sees half of a switch. The record has the time of the
//! last such batch, so a closed time that comes again after a crash finds where it was applied already. A batch of more than
//! [`BATCH_MAX`] changes would be refused: of a record that is made its row comes last, and of another the floor rises until
//! few enough are left, which is always safe.
//!
//! That an entry is there which comes once more is not noticed: it would cost a read for each delivery. One that leaves is
//! looked for.

use std::sync::atomic::{AtomicU64, Ordering};

use feedmill_model::{
    Delivery, HomeClosed, HomeRecordChange, HomeSink, PackedEntry, Parameters, Position, Shard, StoreError, Time,
    failpoint, shard_of,
};
use parking_lot::Mutex;
use quick_cache::sync::Cache;

use super::cluster::Cluster;
use super::fault::Fault;
use super::ledger::Ledger;
use super::record::{Known, Record, StoredRecord, stored};
use super::spread::timestamp;
use super::statement::{ENTRY, HOT, KEYS_MAX, Statement, Write};
use crate::{HomeStore, Saved};

/// Viewers of whom it is known what they have.
const VIEWERS_MAX: usize = 500_000;
/// Changes of one viewer at one closed time that are one batch.
const BATCH_MAX: usize = 500;

/// Home timelines in a CQL cluster.
pub struct CqlHome {
    pub(super) ledger: Ledger,
    pub(super) parameters: Parameters,
    known: Cache<i64, Known>,
    anomalies: AtomicU64,
    deliveries: AtomicU64,
    /// What is recorded.
    saved: Mutex<Option<Position>>,
}

/// What applying a closed time did.
#[derive(Clone, Copy, Debug, Default)]
struct Outcome {
    /// Entries put in and taken out.
    deliveries: u64,
    /// Changes that did not fit.
    anomalies: u64,
}

/// A shard as a closed time finds it.
#[derive(Clone, Copy, Debug)]
struct ShardAt {
    /// No record is complete at or below it.
    bound: i64,
    /// The closed time may have been applied in part before a crash.
    repeats: bool,
}

/// What a closed time changes for a viewer.
#[derive(Clone, Copy, Debug)]
struct Viewer<'a> {
    id: i64,
    at: ShardAt,
    records: &'a [(HomeRecordChange, i64)],
    /// In the order of the entries.
    deliveries: &'a [Delivery],
}

impl CqlHome {
    pub(super) fn new(ledger: Ledger, parameters: Parameters) -> Self {
        let (anomalies, deliveries) = (AtomicU64::new(0), AtomicU64::new(0));
        let home = CqlHome {
            ledger,
            parameters,
            known: Cache::new(VIEWERS_MAX),
            anomalies,
            deliveries,
            saved: Mutex::default(),
        };
        *home.saved.lock() = home.position();
        home
    }

    fn cluster(&self) -> &Cluster {
        &self.ledger.cluster
    }

    /// Empties the store. No closed time may be applied meanwhile, by any process.
    pub fn clear(&self) -> Result<(), StoreError> {
        let cleared = self.cluster().wait(self.ledger.rebuild(0));
        self.known.clear();
        *self.saved.lock() = None;
        cleared.map_err(|fault| fault.store("home", "begin anew"))
    }

    /// Empties the store, and has the next load fill it with the entries of the month.
    pub fn fill(&self) -> Result<(), StoreError> {
        self.clear()?;
        self.ledger.fill();
        Ok(())
    }

    /// Has the next load fill the store, which another process has emptied.
    pub fn fill_with_load(&self) {
        self.ledger.fill();
    }

    /// Whether it was begun anew at some time.
    pub fn is_emptied(&self) -> bool {
        self.ledger.generation() > 0
    }

    /// The least closed time that a shard has; `None` if one has none.
    pub fn position(&self) -> Option<Position> {
        let positions = self.ledger.progress().into_iter().collect::<Option<Vec<Position>>>()?;
        positions.into_iter().min_by_key(|position| position.time)
    }

    /// Records how far the store is also where nothing changed. Returns the least position that a shard has, `None` while one
    /// has none.
    pub fn durable(&self) -> Result<Option<Position>, StoreError> {
        let recorded = self.cluster().wait(self.ledger.record_idle());
        let recorded = recorded.map_err(|fault| fault.store("home", "record its progress"))?;
        let positions: Option<Vec<Position>> = recorded.into_iter().collect();
        Ok(positions.and_then(|positions| positions.into_iter().min_by_key(|position| position.time)))
    }

    /// Entries put into and taken out of records since the store was opened.
    pub fn deliveries(&self) -> u64 {
        self.deliveries.load(Ordering::Relaxed)
    }

    /// Changes that did not fit what the store held, and were left out. Anything but 0 is a defect of whoever feeds it.
    pub fn anomalies(&self) -> u64 {
        self.anomalies.load(Ordering::Relaxed)
    }

    async fn apply_all(&self, closed: &mut HomeClosed) -> Result<Outcome, Fault> {
        let HomeClosed { position, shards, floor, records, deliveries } = closed;
        let mut due = self.ledger.lock_due(position.time, *shards);
        if due.iter().all(Option::is_none) {
            return Ok(Outcome::default());
        }
        self.cluster().check()?;
        if let Some(floor) = *floor {
            self.ledger.raise_floor(&mut due, *shards, floor, position.time).await?;
        }
        let horizon = self.parameters.horizon(position.time);
        let at = |shard: Shard| {
            let shard = due.get(usize::from(shard))?.as_ref()?;
            Some(ShardAt { bound: shard.floor.map_or(horizon, |floor| floor.max(horizon)), repeats: !shard.goes_on })
        };
        records.sort_unstable_by_key(|(change, _)| (shard_of(change.viewer()), change.viewer(), *change));
        deliveries.iter_mut().for_each(|of_shard| {
            of_shard.sort_unstable_by_key(|delivery| (delivery.viewer, delivery.entry));
        });
        let viewers = viewers(records, deliveries)
            .filter_map(|(id, records, deliveries)| at(shard_of(id)).map(|at| Viewer { id, at, records, deliveries }));
        let outcomes = self.cluster().each(viewers, |viewer| self.change(viewer, position.time)).await?;
        let has_rows = !outcomes.is_empty();
        failpoint!("sink_write_after");
        let has_rows = has_rows || floor.is_some();
        if self.ledger.record(&mut due, *shards, *position, has_rows) {
            // Of what has rows only the last closed time may come again after a crash: see `goes_on`.
            self.ledger.write_behind().await?;
        }
        let sum = |one: Outcome, other: Outcome| Outcome {
            deliveries: one.deliveries + other.deliveries,
            anomalies: one.anomalies + other.anomalies,
        };
        Ok(outcomes.into_iter().fold(Outcome::default(), sum))
    }

    /// Applies what a closed time brings a viewer, in one request.
    async fn change(&self, viewer: Viewer<'_>, time: Time) -> Result<Outcome, Fault> {
        let known = match self.known.get(&viewer.id) {
            Some(known) => known,
            None => self.read(viewer.id).await?.known(),
        };
        let mut outcome = Outcome::default();
        let (known, writes) = if known.time >= time {
            (known, Vec::new())
        } else {
            self.changed(&viewer, time, known, &mut outcome).await?
        };
        self.send(&writes).await?;
        self.known.insert(viewer.id, known);
        Ok(outcome)
    }

    /// What becomes of a record, and the writes that make it so.
    async fn changed(
        &self,
        viewer: &Viewer<'_>,
        time: Time,
        known: Known,
        outcome: &mut Outcome,
    ) -> Result<(Known, Vec<Write>), Fault> {
        let (mut record, mut made, mut dropped) = (known.record, false, false);
        for (change, diff) in viewer.records {
            let HomeRecordChange::Active { .. } = change else { continue };
            match (record, diff) {
                (None, 1) => (record, made) = (Some(Record { floor: viewer.at.bound, entries_max: 0 }), true),
                (Some(_), -1) => (record, dropped) = (None, true),
                (None, -1) if viewer.at.repeats => {}
                _ => outcome.anomalies += 1,
            }
        }
        let at = timestamp(time);
        if dropped {
            return Ok((Known { record: None, time }, vec![Write::HomeDrop { viewer: viewer.id, at }]));
        }
        let Some(record) = record else { return Ok((known, Vec::new())) };
        let mut change =
            Change { viewer: viewer.id, made, record, hot: Vec::new(), puts: Vec::new(), gone: Vec::new() };
        self.change_hot(viewer, &mut change, outcome).await?;
        let floor = viewer.at.bound.max(record.floor);
        self.change_entries(viewer, floor, &mut change, outcome).await?;
        if !made && change.is_empty() {
            return Ok((Known { record: Some(record), time: known.time }, Vec::new()));
        }
        let cut = self.cut(floor, &mut change).await?;
        let mut writes = change.writes(at);
        if let Some(id) = cut.and_then(PackedEntry::last_at) {
            writes.push(Write::HomeCut { viewer: viewer.id, id: id.0 as i64, at });
        }
        // It says that the others are there.
        let floor = change.record.floor;
        writes.push(Write::Record { viewer: viewer.id, floor, time: time as i64, at });
        Ok((Known { record: Some(change.record), time }, writes))
    }

    async fn change_hot(&self, viewer: &Viewer<'_>, change: &mut Change, outcome: &mut Outcome) -> Result<(), Fault> {
        let hot = viewer.records.iter().filter_map(|(change, diff)| match change {
            HomeRecordChange::Hot { author, .. } => Some((*author, *diff)),
            HomeRecordChange::Active { .. } => None,
        });
        let mut hot = hot.peekable();
        if hot.peek().is_none() {
            return Ok(());
        }
        let there = if change.made { Vec::new() } else { self.read_hot(viewer.id).await? };
        for (author, diff) in hot {
            match (there.contains(&author), diff) {
                (false, 1) => change.hot.push((author, true)),
                (true, -1) => change.hot.push((author, false)),
                _ => outcome.anomalies += 1,
            }
        }
        Ok(())
    }

    async fn change_entries(
        &self,
        viewer: &Viewer<'_>,
        floor: i64,
        change: &mut Change,
        outcome: &mut Outcome,
    ) -> Result<(), Fault> {
        let mut leaving = Vec::new();
        for of_entry in viewer.deliveries.chunk_by(|one, other| one.entry == other.entry) {
            let Some(entry) = of_entry.first().map(|delivery| delivery.entry) else { continue };
            let net: i64 = of_entry.iter().map(|delivery| i64::from(delivery.diff)).sum();
            if net == 0 || entry.id() <= floor {
                continue;
            }
            if net < 0 {
                leaving.push((entry.0 as i64, net));
                continue;
            }
            change.puts.push(entry.0 as i64);
            outcome.deliveries += 1;
            outcome.anomalies += u64::from(net > 1);
        }
        if leaving.is_empty() {
            return Ok(());
        }
        let ids: Vec<i64> = leaving.iter().map(|(entry, _)| *entry).collect();
        let there = if change.made { Vec::new() } else { self.there(viewer.id, &ids).await? };
        for (entry, net) in leaving {
            if there.contains(&entry) {
                change.gone.push(entry);
                outcome.deliveries += 1;
                outcome.anomalies += u64::from(net < -1);
            } else {
                outcome.anomalies += 1;
            }
        }
        Ok(())
    }

    /// Raises the record's floor if it has too many entries, or too many change; returns up to where entries go then.
    async fn cut(&self, floor: i64, change: &mut Change) -> Result<Option<i64>, Fault> {
        let Parameters { home_max, home_keep, .. } = self.parameters;
        let mut cut = None;
        let entries_max =
            change.record.entries_max + change.puts.len() - change.gone.len().min(change.record.entries_max);
        change.record.entries_max = entries_max;
        if entries_max > home_max {
            let mut live = self.newest(change, floor, home_max + change.gone.len() + 1).await?;
            live.retain(|entry| !change.gone.contains(entry));
            live.extend(&change.puts);
            live.sort_unstable_by(|one, other| other.cmp(one));
            live.dedup();
            if live.len() > home_max
                && let Some(last) = live.get(home_keep.min(home_max))
            {
                // A floor is an id: of a tweet and a retweet with one id both go.
                change.raise(id_of(*last));
            }
            live.retain(|entry| id_of(*entry) > change.record.floor);
            change.record.entries_max = live.len();
            cut = Some(floor.max(change.record.floor));
        }
        let entries_at_once = BATCH_MAX.saturating_sub(change.hot.len());
        if !change.made && change.puts.len() + change.gone.len() > entries_at_once {
            let mut changed: Vec<i64> = change.puts.iter().chain(&change.gone).copied().collect();
            changed.sort_unstable_by(|one, other| other.cmp(one));
            if let Some(last) = changed.get(entries_at_once) {
                change.raise(id_of(*last));
                cut = Some(floor.max(change.record.floor));
            }
        }
        Ok(cut)
    }

    /// Sends what is one viewer's: at once, unless a record is made of more than a request may have.
    async fn send(&self, writes: &[Write]) -> Result<(), Fault> {
        let (before, last) = writes.split_at(writes.len().saturating_sub(BATCH_MAX + 2));
        for request in before.chunks(BATCH_MAX) {
            self.cluster().write_together(std::iter::once(request)).await?;
        }
        if last.is_empty() {
            return Ok(());
        }
        self.cluster().write_together(std::iter::once(last)).await
    }

    async fn read(&self, viewer: i64) -> Result<StoredRecord, Fault> {
        stored(&self.cluster().read(Statement::RecordRead, (viewer,)).await?)
    }

    async fn read_hot(&self, viewer: i64) -> Result<Vec<i64>, Fault> {
        Ok(stored(&self.cluster().read(Statement::HomeHead, (viewer, ENTRY)).await?)?.hot)
    }

    async fn there(&self, viewer: i64, ids: &[i64]) -> Result<Vec<i64>, Fault> {
        let read = |ids: &[i64]| self.cluster().read(Statement::HomeKeys, (viewer, ENTRY, ids.to_vec()));
        let found = self.cluster().each(ids.chunks(KEYS_MAX), read).await?;
        let found: Vec<Vec<i64>> = found.iter().map(numbers).collect::<Result<_, _>>()?;
        Ok(found.concat())
    }

    async fn newest(&self, change: &Change, floor: i64, limit: usize) -> Result<Vec<i64>, Fault> {
        if change.made {
            return Ok(Vec::new());
        }
        let above = PackedEntry::last_at(floor).map_or(-1, |entry| entry.0 as i64);
        numbers(&self.cluster().read(Statement::HomeNewest, (change.viewer, ENTRY, above, limit as i32)).await?)
    }
}

/// What a closed time writes of a record.
struct Change {
    viewer: i64,
    made: bool,
    record: Record,
    hot: Vec<(i64, bool)>,
    puts: Vec<i64>,
    gone: Vec<i64>,
}

impl Change {
    fn is_empty(&self) -> bool {
        self.hot.is_empty() && self.puts.is_empty() && self.gone.is_empty()
    }

    /// Raises the floor. What lies at or below it is of no interest any more: it goes.
    fn raise(&mut self, floor: i64) {
        self.record.floor = self.record.floor.max(floor);
        self.puts.retain(|entry| id_of(*entry) > floor);
        self.gone.retain(|entry| id_of(*entry) > floor);
    }

    fn writes(&self, at: i64) -> Vec<Write> {
        let viewer = self.viewer;
        let of = |kind, id, is_there| match is_there {
            true => Write::HomePut { viewer, kind, id, at },
            false => Write::HomeDelete { viewer, kind, id, at },
        };
        let hot = self.hot.iter().map(|(author, is_there)| of(HOT, *author, *is_there));
        let entries = self.puts.iter().map(|entry| of(ENTRY, *entry, true));
        hot.chain(entries).chain(self.gone.iter().map(|entry| of(ENTRY, *entry, false))).collect()
    }
}

fn id_of(entry: i64) -> i64 {
    PackedEntry(entry as u64).id()
}

fn numbers(found: &scylla::response::query_result::QueryRowsResult) -> Result<Vec<i64>, Fault> {
    let undecodable = || Fault::Undecodable { of: "home timelines" };
    let rows = found.rows::<(i64,)>().map_err(|_| undecodable())?;
    rows.map(|row| row.map(|(id,)| id).map_err(|_| undecodable())).collect()
}

/// Who has changes: with those of the record, sorted by shard, and with the deliveries, by shard and sorted.
fn viewers<'a>(
    records: &'a [(HomeRecordChange, i64)],
    deliveries: &'a [Vec<Delivery>],
) -> impl Iterator<Item = (i64, &'a [(HomeRecordChange, i64)], &'a [Delivery])> {
    let mut records = records.chunk_by(|(one, _), (other, _)| one.viewer() == other.viewer()).peekable();
    let mut of_viewers =
        deliveries.iter().flat_map(|of_shard| of_shard.chunk_by(|one, other| one.viewer == other.viewer)).peekable();
    let place = |viewer: i64| (shard_of(viewer), viewer);
    std::iter::from_fn(move || {
        let record = records.peek().and_then(|changes| changes.first()).map(|(change, _)| place(change.viewer()));
        let delivery = of_viewers.peek().and_then(|of_viewer| of_viewer.first()).map(|first| place(first.viewer));
        let next = record.into_iter().chain(delivery).min()?;
        let records = if record == Some(next) { records.next() } else { None };
        let deliveries = if delivery == Some(next) { of_viewers.next() } else { None };
        Some((next.1, records.unwrap_or_default(), deliveries.unwrap_or_default()))
    })
}

impl HomeSink for CqlHome {
    fn progress(&self) -> Vec<Option<Position>> {
        self.ledger.progress()
    }

    fn is_to_be_filled(&self) -> bool {
        self.ledger.is_filling()
    }

    fn apply(&self, closed: &mut HomeClosed) -> Result<(), StoreError> {
        let time = closed.position.time;
        let applied = self.cluster().wait(self.apply_all(closed));
        closed.records.clear();
        closed.deliveries.iter_mut().for_each(Vec::clear);
        let outcome = applied.map_err(|fault| fault.store("home", format!("apply the closed time {time}")))?;
        self.deliveries.fetch_add(outcome.deliveries, Ordering::Relaxed);
        metrics::counter!("feedmill_home_anomalies_total").increment(outcome.anomalies);
        if outcome.anomalies > 0 && self.anomalies.fetch_add(outcome.anomalies, Ordering::Relaxed) == 0 {
            tracing::error!(
                anomalies = outcome.anomalies,
                time,
                "changes of home timelines did not fit what the store holds and were left out; `feedmill verify` tells \
                 which timelines differ, `feedmill replay home` begins them anew"
            );
        }
        Ok(())
    }
}

impl HomeStore for CqlHome {
    /// Nothing must be.
    fn load(&self) {}

    fn position(&self) -> Option<Position> {
        CqlHome::position(self)
    }

    fn saved(&self) -> Option<Position> {
        *self.saved.lock()
    }

    fn save(
        &self,
        durable: &mut dyn FnMut() -> Result<(), StoreError>,
        _: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Saved>, StoreError> {
        durable()?;
        let position = self.durable()?;
        *self.saved.lock() = position;
        Ok(position.map(|position| Saved { position, bytes: 0 }))
    }

    fn clear(&self) -> Result<(), StoreError> {
        CqlHome::clear(self)
    }

    fn fill(&self) -> Result<(), StoreError> {
        CqlHome::fill(self)
    }

    fn deliveries(&self) -> u64 {
        CqlHome::deliveries(self)
    }

    fn anomalies(&self) -> u64 {
        CqlHome::anomalies(self)
    }

    /// Nobody counts them.
    fn viewers(&self) -> Option<usize> {
        None
    }
}
