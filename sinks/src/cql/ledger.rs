//! Which closed times a store has, by shard.
//!
//! ```text
//!   apply(t, some shards) ─► locks them, leaves out those that have t already
//!     rows ─► all of them acknowledged ─► reached = t ─► beside what comes next: progress (shards → t)
//! ```
//!
//! Why nothing is lost, and nothing counted twice: progress is written when all rows of the closed time are where the
//! consistency level wants them, so it never passes one that is not. After a crash in between, the closed time comes again:
//! its rows are the same, with the same timestamps, and change nothing; sums carry the time that they have.
//!
//! As in the local store progress is a row for each set of shards that comes together. A closed time does not wait for it: with
//! rows it is written at once, without them within [`TELL_EVERY`], for who reads in another process; and what came while one was
//! on its way goes together. Who needs to know that it is written waits for it. A shard's progress is the greatest of the rows
//! with its bit.
//!
//! Deletes of a cluster hide what is written later with an earlier timestamp, and a store that is built again begins with
//! early times: so its tables are truncated, and its progress is that of another *generation*, a part of its key. The
//! generation goes up first, and then nothing is truncated for [`LEASE`]: who reads in another process looks at the generation
//! more often than that, and throws away what it read without having looked for so long.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use feedmill_model::{Lsn, Position, SHARDS, Shard, Time, failpoint};
use parking_lot::{Mutex, MutexGuard};
use scylla::response::query_result::QueryRowsResult;

use super::cluster::Cluster;
use super::fault::Fault;
use super::spread::{FULL, Full, ONLY, Table, timestamp};
use super::state::{Generation, State};
use super::statement::{Statement, Write};
use super::trends::KnownTrends;

/// Stream time after which progress is written at once though there was no row.
const IDLE_MS: Time = 1_000;
/// How long progress waits to be written that is not written at once.
pub(super) const TELL_EVERY: Duration = Duration::from_millis(50);
/// For how long who reads may go on with a generation that it has seen.
pub(super) const LEASE: Duration = Duration::from_secs(5);

/// What is known about a shard.
#[derive(Debug, Default)]
pub(super) struct Progressed {
    /// The last closed time that it has.
    pub(super) reached: Option<Position>,
    /// Which parts of its lists are full.
    pub(super) full: Full,
    /// What its lists of trends are.
    pub(super) trends: KnownTrends,
    /// No home timeline of the shard is complete at or below it.
    pub(super) floor: Option<i64>,
    /// The load fills it, and has not ended: no home timeline is complete anywhere yet.
    pub(super) filling: bool,
    /// A closed time with rows was applied since the store was opened: what comes now was never applied in part.
    pub(super) goes_on: bool,
}

/// The shards of a closed time that do not have it yet, each at its index.
pub(super) type Due<'a> = Vec<Option<MutexGuard<'a, Progressed>>>;

/// The last closed time of a set of shards, and the time that its row has.
#[derive(Clone, Copy, Debug)]
struct Reached {
    applied: Position,
    written: Option<Time>,
}

/// A row of progress.
#[derive(Clone, Copy, Debug)]
pub(super) struct ProgressRow {
    pub(super) shards: u64,
    pub(super) position: Option<Position>,
    pub(super) floor: Option<i64>,
}

/// Progress of the shards of one store.
pub(super) struct Ledger {
    pub(super) cluster: Arc<Cluster>,
    pub(super) store: &'static str,
    tables: &'static [&'static str],
    /// The table whose lists it lays out, if it has any.
    lists: Option<Table>,
    generation: AtomicI64,
    shards: Vec<Mutex<Progressed>>,
    sets: Mutex<BTreeMap<u64, Reached>>,
    /// Shards, as bits, of a store that is built again, which have not reached `due`.
    missing: AtomicU64,
    due: AtomicU64,
}

impl Ledger {
    /// Reads the progress of `store`, which is in `tables`.
    pub(super) async fn open(
        cluster: &Arc<Cluster>,
        store: &'static str,
        tables: &'static [&'static str],
        lists: Option<Table>,
    ) -> Result<Self, Fault> {
        let Generation { number, due } = State::new(cluster).generation(store).await?;
        let ledger = Ledger {
            cluster: Arc::clone(cluster),
            store,
            tables,
            lists,
            generation: AtomicI64::new(number),
            shards: (0..SHARDS).map(|_| Mutex::default()).collect(),
            sets: Mutex::default(),
            missing: AtomicU64::new(0),
            due: AtomicU64::new(due),
        };
        for ProgressRow { shards, position, floor } in ledger.rows().await? {
            for (_, shard) in ledger.shards.iter().enumerate().filter(|(number, _)| shards & (1 << number) != 0) {
                let mut shard = shard.lock();
                shard.reached = newest(shard.reached, position);
                shard.floor = shard.floor.max(floor);
            }
            if let Some(position) = position {
                ledger.sets.lock().insert(shards, Reached { applied: position, written: Some(position.time) });
            }
        }
        ledger.learn_full().await?;
        Ok(ledger)
    }

    /// The rows of progress.
    async fn rows(&self) -> Result<Vec<ProgressRow>, Fault> {
        progress_rows(&self.cluster, self.store, self.generation()).await
    }

    /// Reads which parts of lists are full.
    async fn learn_full(&self) -> Result<(), Fault> {
        let Some(table) = self.lists else { return Ok(()) };
        let read = |shard: usize| {
            let values = (FULL, shard as i64, ONLY, Vec::<u8>::new(), vec![u8::MAX; 18], i32::MAX);
            self.cluster.read(Statement::page(table), values)
        };
        let found = self.cluster.each(0..self.shards.len(), read).await?;
        for (shard, rows) in self.shards.iter().zip(found) {
            let undecodable = |_| Fault::Undecodable { of: FULL };
            let mut shard = shard.lock();
            for row in rows.rows::<(&[u8], &[u8])>().map_err(|_| Fault::Undecodable { of: FULL })? {
                let (key, value) = row.map_err(undecodable)?;
                shard.full.learn(key, value).ok_or(Fault::Undecodable { of: FULL })?;
            }
        }
        Ok(())
    }

    /// Whether every shard has reached some time.
    pub(super) fn is_complete(&self) -> bool {
        self.progress().iter().all(Option::is_some)
    }

    /// Takes away what a load has left that did not end. No other process may apply anything meanwhile, nor may this one.
    pub(super) async fn clear(&self) -> Result<(), Fault> {
        // Of a store that was to be built again the rest is due as it was.
        self.begin_anew(self.due.load(Ordering::Acquire)).await
    }

    /// Begins the store anew; it is not read before all shards have the closed time `due`.
    pub(super) async fn rebuild(&self, due: Time) -> Result<(), Fault> {
        self.due.store(due, Ordering::Release);
        self.missing.store(u64::MAX, Ordering::Release);
        self.begin_anew(due).await
    }

    async fn begin_anew(&self, due: Time) -> Result<(), Fault> {
        let rows = self.rows().await?;
        let is_read = rows.iter().filter(|row| row.position.is_some()).fold(0, |all, row| all | row.shards) == u64::MAX;
        let mut used = !rows.is_empty();
        let mut tables = Vec::new();
        for table in self.tables {
            let text = format!("SELECT * FROM {table} LIMIT 1");
            let found = self.cluster.run(&text).await?.into_rows_result();
            if found.is_ok_and(|rows| rows.rows_num() > 0) {
                tables.push(*table);
            }
        }
        used |= !tables.is_empty();
        // What was not written of the old generation must not become progress of the new one.
        self.sets.lock().clear();
        if used || due > 0 {
            // A crash from here on finds a store without progress, which is cleared.
            let number = self.generation() + 1;
            State::new(&self.cluster).set_generation(self.store, Generation { number, due }).await?;
            self.generation.store(number, Ordering::Release);
            // Somebody may still read what a process has left that was ended in this very place.
            if is_read || (self.generation() > 1 && !tables.is_empty()) {
                self.cluster.pause(LEASE).await?;
            }
            for table in tables {
                self.cluster.run(&format!("TRUNCATE {table}")).await?;
            }
        }
        self.shards.iter().for_each(|shard| *shard.lock() = Progressed::default());
        Ok(())
    }

    /// Whether the store may be read: it is not being built again.
    pub(super) fn is_readable(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }

    pub(super) fn generation(&self) -> i64 {
        self.generation.load(Ordering::Acquire)
    }

    pub(super) fn progress(&self) -> Vec<Option<Position>> {
        let reached = |shard: &Mutex<Progressed>| {
            let shard = shard.lock();
            shard.reached.filter(|_| !shard.filling)
        };
        self.shards.iter().map(reached).collect()
    }

    /// Has the next load fill the shards.
    pub(super) fn fill(&self) {
        self.shards.iter().for_each(|shard| shard.lock().filling = true);
    }

    /// Whether the load is to fill it.
    pub(super) fn is_filling(&self) -> bool {
        self.shards.iter().all(|shard| shard.lock().filling)
    }

    /// Those of the shards that do not have the closed time, each at its index, locked in their order.
    pub(super) fn lock_due<'a>(&'a self, time: Time, shards: u64) -> Due<'a> {
        let has_it = |shard: &Progressed| shard.reached.is_some_and(|own| own.time >= time);
        let lock = |(number, shard): (usize, &'a Mutex<Progressed>)| {
            (shards & 1 << number != 0).then(|| shard.lock()).filter(|shard| !has_it(shard))
        };
        self.shards.iter().enumerate().map(lock).collect()
    }

    /// All that the closed time brings to the shards that are due is acknowledged: they have it. Returns whether this is to be
    /// written at once: it has rows, or was not written for a while of stream time.
    pub(super) fn record(&self, due: &mut Due<'_>, shards: u64, position: Position, has_rows: bool) -> bool {
        if due.iter().all(Option::is_none) {
            return false;
        }
        for shard in due.iter_mut().flatten() {
            shard.goes_on |= has_rows;
            if shard.filling {
                shard.reached = Some(position);
            }
        }
        if due.iter().flatten().any(|shard| shard.filling) {
            return false;
        }
        let written = {
            let mut sets = self.sets.lock();
            let set = sets.entry(shards).or_insert(Reached { applied: position, written: None });
            set.applied = position;
            set.written
        };
        due.iter_mut().flatten().for_each(|shard| shard.reached = Some(position));
        if position.time >= self.due.load(Ordering::Acquire) && !self.is_readable() {
            self.missing.fetch_and(!shards, Ordering::AcqRel);
        }
        has_rows || written.is_none_or(|written| written + IDLE_MS <= position.time)
    }

    /// Writes the progress that was not written yet, and returns that of each shard.
    pub(super) async fn record_idle(&self) -> Result<Vec<Option<Position>>, Fault> {
        // What is applied meanwhile is not passed: the positions are those before.
        let progress = self.progress();
        self.write_behind().await?;
        Ok(progress)
    }

    /// Writes the progress that was not written yet. It waits for no shard, of which whoever applies a closed time holds the lock
    /// until the cluster has answered: that may need the very thread on which this runs.
    pub(super) async fn write_behind(&self) -> Result<(), Fault> {
        // What begins anew meanwhile has another.
        let generation = self.generation();
        let behind = |(set, reached): (&u64, &Reached)| {
            (reached.written.is_none_or(|written| written < reached.applied.time)).then_some((*set, reached.applied))
        };
        let behind: Vec<(u64, Position)> = self.sets.lock().iter().filter_map(behind).collect();
        if behind.is_empty() {
            return Ok(());
        }
        let row = |(shards, position): &(u64, Position)| Write::Progress {
            store: self.store,
            generation,
            shards: *shards as i64,
            time: position.time as i64,
            lsn: position.lsn.0 as i64,
            at: timestamp(position.time),
        };
        failpoint!("sink_progress_before");
        self.cluster.write(&behind.iter().map(row).collect::<Vec<_>>()).await?;
        failpoint!("sink_progress_after");
        let mut sets = self.sets.lock();
        for (set, position) in behind {
            // What was written of a generation says nothing of the next, which may have begun meanwhile.
            if let Some(reached) = sets.get_mut(&set).filter(|_| self.generation() == generation) {
                reached.written = reached.written.max(Some(position.time));
            }
        }
        Ok(())
    }

    /// Raises the floors of shards, before anything of the closed time is written. A load that filled them ends so.
    pub(super) async fn raise_floor(
        &self,
        due: &mut Due<'_>,
        shards: u64,
        floor: i64,
        time: Time,
    ) -> Result<(), Fault> {
        let (store, generation) = (self.store, self.generation());
        let own = due.iter().flatten().filter_map(|shard| shard.floor).max();
        // One row has the floor of all of its shards, so it is the greatest of what they have.
        let floor = own.map_or(floor, |own| own.max(floor));
        let raised = Write::Floor { store, generation, shards: shards as i64, floor, at: timestamp(time) };
        self.cluster.write(&[raised]).await?;
        for shard in due.iter_mut().flatten() {
            shard.floor = Some(floor);
            shard.filling = false;
        }
        Ok(())
    }
}

/// The rows of progress of a generation of a store.
pub(super) async fn progress_rows(
    cluster: &Cluster,
    store: &'static str,
    generation: i64,
) -> Result<Vec<ProgressRow>, Fault> {
    progress_in(&cluster.read(Statement::ProgressRead, (store, generation)).await?)
}

/// The rows of progress in an answer.
pub(super) fn progress_in(found: &QueryRowsResult) -> Result<Vec<ProgressRow>, Fault> {
    let undecodable = || Fault::Undecodable { of: "progress" };
    let rows = found.rows::<(i64, Option<i64>, Option<i64>, Option<i64>)>().map_err(|_| undecodable())?;
    let row = |row: Result<_, _>| {
        let (shards, time, lsn, floor): (i64, Option<i64>, Option<i64>, Option<i64>) =
            row.map_err(|_: scylla::deserialize::DeserializationError| undecodable())?;
        let position = time.zip(lsn).map(|(time, lsn)| Position { time: time as Time, lsn: Lsn(lsn as u64) });
        Ok(ProgressRow { shards: shards as u64, position, floor })
    };
    rows.map(row).collect()
}

/// The least closed time that shards have by these rows; `None` while one has none.
pub(super) fn least(rows: &[ProgressRow]) -> Option<Position> {
    let positions: Option<Vec<Position>> = (0..SHARDS as Shard).map(|shard| of_shard(rows, shard).0).collect();
    positions?.into_iter().min_by_key(|position| position.time)
}

/// What rows of progress say of a shard: its position, and its floor.
pub(super) fn of_shard(rows: &[ProgressRow], shard: Shard) -> (Option<Position>, Option<i64>) {
    let of_it = rows.iter().filter(|row| row.shards & (1 << shard) != 0);
    of_it.fold((None, None), |(position, floor), row| (newest(position, row.position), floor.max(row.floor)))
}

fn newest(one: Option<Position>, other: Option<Position>) -> Option<Position> {
    [one, other].into_iter().flatten().max_by_key(|position| position.time)
}
