//! Which closed times a store has, by shard.
//!
//! ```text
//!   apply(t, some shards) ─► locks them, leaves out those that have t already
//!     loading:     rows                       reached stays
//!     otherwise:   rows + row (shards → t)    reached = t          one batch, or tables of very many rows first
//! ```
//!
//! Closed times come hundreds a second and most touch few shards, so progress is one row for each set of shards that
//! comes together, and a closed time without rows writes it at most once a second of stream time: what is replayed
//! from the older position has no row for these shards. A shard's progress is the greatest of the rows with its bit, so
//! rows of an earlier number of workers do no harm, nor do those of the sets in which very many changes come.
//!
//! A store that is built again is not read before all shards have the closed time that the log had at the beginning of it:
//! the other stores have no later one, and facts must be as new as what they judge.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};

use feedmill_model::{Closed, Lsn, Op, Position, SHARDS, Shard, StoreError, Time, failpoint};
use fjall::{Database, Keyspace, OwnedWriteBatch, PersistMode};
use parking_lot::{Mutex, MutexGuard};

use super::bulk::{BULK_OPS, Due};
use super::{BATCH_ROWS, Fault};
use crate::key::Parts;

/// Stream time after which progress is written though no row was.
const IDLE_MS: Time = 1_000;

/// Counts that were seen to reach zero, by shard, at most; those beyond stay in the store, where they mean the same.
const ZEROS_MAX: usize = 4_096;

/// What is known about a shard.
#[derive(Debug, Default)]
pub(super) struct Progressed {
    /// The last closed time that it has.
    reached: Option<Position>,
    /// Keys of sums that are zero since a time, in the order of the times.
    zeros: VecDeque<(Time, Vec<u8>)>,
}

impl Progressed {
    /// The sum under `key` is zero since `time`.
    pub(super) fn is_zero(&mut self, key: &[u8], time: Time) {
        if self.zeros.len() < ZEROS_MAX {
            self.zeros.push_back((time, key.to_vec()));
        }
    }

    /// Takes the next sum that is zero since `time` or earlier.
    pub(super) fn next_zero(&mut self, time: Time) -> Option<(Time, Vec<u8>)> {
        self.zeros.pop_front_if(|(since, _)| *since <= time)
    }
}

/// The keyspaces that a ledger is of.
pub(super) trait Writes<R> {
    /// Puts an operation of the closed time `time` into the batch.
    fn write(&self, time: Time, op: &Op<R>, batch: &mut OwnedWriteBatch, shard: &mut Progressed) -> Result<(), Fault>;

    /// Writes those of shards that are due into tables.
    fn ingest(&self, time: Time, ops: &[(Shard, Op<R>)], due: &mut Due<'_>) -> Result<(), Fault>;
}

/// By sets of shards that come together.
type Sets = BTreeMap<u64, Reached>;

/// The last closed time of a set, and the one that its row has.
#[derive(Clone, Copy, Debug)]
struct Reached {
    applied: Position,
    written: Position,
}

/// Progress of the shards of one store.
pub(super) struct Ledger {
    store: &'static str,
    /// First byte of its rows in `state`.
    prefix: u8,
    state: Keyspace,
    shards: Vec<Mutex<Progressed>>,
    /// Written under the lock of a shard of the set.
    sets: Mutex<Sets>,
    /// Shards, as bits, of a store that is built again, which have not reached `due`.
    missing: AtomicU64,
    due: Time,
}

impl Ledger {
    /// Reads the progress of the store whose rows begin with `prefix`. If a shard has none that of the others goes.
    pub(super) fn open(db: &Database, state: &Keyspace, store: &'static str, prefix: u8) -> fjall::Result<Self> {
        let mut reached = [None::<Position>; SHARDS];
        let mut sets = Sets::new();
        for row in state.prefix([prefix]) {
            let (key, value) = row.into_inner()?;
            let Some((set, position)) = decode(&key, &value) else { continue };
            sets.insert(set, Reached { applied: position, written: position });
            for (_, reached) in reached.iter_mut().enumerate().filter(|(shard, _)| set & (1 << shard) != 0) {
                let newest = reached.filter(|reached| reached.time > position.time);
                *reached = newest.or(Some(position));
            }
        }
        if reached.contains(&None) {
            reached = [None; SHARDS];
            forget(db, state, prefix, &mut sets)?;
        }
        let shards = reached.map(|reached| Mutex::new(Progressed { reached, ..Progressed::default() }));
        let (shards, sets) = (shards.into(), Mutex::new(sets));
        Ok(Ledger { store, prefix, state: state.clone(), shards, sets, missing: AtomicU64::new(0), due: 0 })
    }

    /// The ledger of the store that is built again in the place of this one's, which has no progress any more. It is not
    /// read before all shards have the closed time `due`. No closed time may be applied meanwhile.
    pub(super) fn begun_anew(&self, db: &Database, due: Time) -> fjall::Result<Self> {
        forget(db, &self.state, self.prefix, &mut self.sets.lock())?;
        let anew = Ledger::open(db, &self.state, self.store, self.prefix)?;
        Ok(Ledger { missing: AtomicU64::new(u64::MAX), due, ..anew })
    }

    /// Whether the store may be read: it is not being built again.
    pub(super) fn is_readable(&self) -> bool {
        self.missing.load(Ordering::Acquire) == 0
    }

    /// Whether every shard has reached some time.
    pub(super) fn is_complete(&self) -> bool {
        self.progress().iter().all(Option::is_some)
    }

    pub(super) fn progress(&self) -> Vec<Option<Position>> {
        self.shards.iter().map(|shard| shard.lock().reached).collect()
    }

    /// Locks a shard, unless a closed time is being applied to it.
    pub(super) fn free_shard(&self, shard: usize) -> Option<MutexGuard<'_, Progressed>> {
        self.shards.get(shard).and_then(Mutex::try_lock)
    }

    /// Applies a closed time to the shards that do not have it yet.
    pub(super) fn apply<R>(&self, db: &Database, closed: &Closed<R>, to: &impl Writes<R>) -> Result<(), StoreError> {
        let position = closed.position;
        let failed = |fault: Fault| fault.store(self.store, format!("apply the closed time {}", position.time));
        let mut due = self.lock_due(closed);
        let mut batch = db.batch();
        let mut rows = 0;
        let mut ops = &closed.ops[..];
        // Where no shard is due there is nothing to begin tables for.
        if ops.len() >= BULK_OPS && due.iter().any(Option::is_some) {
            to.ingest(position.time, ops, &mut due).map_err(failed)?;
            failpoint!("sink_write_part_after");
            (rows, ops) = (ops.len(), &[]);
        }
        for (shard, op) in ops {
            let Some(shard) = due.get_mut(usize::from(*shard)).and_then(Option::as_mut) else { continue };
            to.write(position.time, op, &mut batch, shard).map_err(failed)?;
            rows += 1;
            if batch.len() >= BATCH_ROWS {
                let full = std::mem::replace(&mut batch, db.batch());
                full.commit().map_err(|error| failed(error.into()))?;
                failpoint!("sink_write_part_after");
            }
        }
        let record = !closed.loading && due.iter().any(Option::is_some);
        let written = record && (rows > 0 || self.is_time_to_write(closed));
        if written {
            batch.insert(&self.state, encode_set(self.prefix, closed.shards), encode_position(position));
        }
        failpoint!("sink_write_before");
        batch.commit().map_err(|error| failed(error.into()))?;
        failpoint!("sink_write_after");
        if record {
            due.iter_mut().flatten().for_each(|shard| shard.reached = Some(position));
            self.note(closed.shards, position, written);
            if position.time >= self.due && !self.is_readable() {
                self.missing.fetch_and(!closed.shards, Ordering::AcqRel);
            }
        }
        Ok(())
    }

    /// The shards of the closed time that do not have it, each at its index, locked in their order.
    fn lock_due<'a, R>(&'a self, closed: &Closed<R>) -> Vec<Option<MutexGuard<'a, Progressed>>> {
        let lock = |(number, shard): (usize, &'a Mutex<Progressed>)| {
            let comes = closed.shards & (1 << number) != 0;
            let has_it = |shard: &Progressed| shard.reached.is_some_and(|own| own.time >= closed.position.time);
            comes.then(|| shard.lock()).filter(|shard| !has_it(shard))
        };
        self.shards.iter().enumerate().map(lock).collect()
    }

    fn is_time_to_write<R>(&self, closed: &Closed<R>) -> bool {
        let sets = self.sets.lock();
        sets.get(&closed.shards).is_none_or(|set| set.written.time + IDLE_MS <= closed.position.time)
    }

    fn note(&self, set: u64, position: Position, written: bool) {
        let mut sets = self.sets.lock();
        let reached = sets.entry(set).or_insert(Reached { applied: position, written: position });
        reached.applied = position;
        if written {
            reached.written = position;
        }
    }

    /// Writes the progress that was not written yet, and returns what is written of each shard. Waits for nobody: where a closed
    /// time is being applied, which may take long, it is what was written before.
    pub(super) fn record(&self, db: &Database) -> Result<Vec<Option<Position>>, StoreError> {
        // No closed time is being applied to a set whose shards are all locked, so no row can go back.
        let shards: Vec<_> = self.shards.iter().map(Mutex::try_lock).collect();
        let free =
            shards.iter().enumerate().filter(|(_, shard)| shard.is_some()).fold(0, |free, (at, _)| free | 1 << at);
        let mut sets = self.sets.lock();
        let mut batch = db.batch();
        let is_behind = |set: u64, reached: &Reached| set & !free == 0 && reached.applied.time > reached.written.time;
        let behind = sets.iter().filter(|(set, reached)| is_behind(**set, reached));
        behind.for_each(|(set, reached)| {
            batch.insert(&self.state, encode_set(self.prefix, *set), encode_position(reached.applied));
        });
        failpoint!("sink_progress_before");
        let recorded = batch.commit().map_err(Fault::from);
        failpoint!("sink_progress_after");
        recorded.map_err(|fault| fault.store(self.store, "record its progress"))?;
        let written = sets.iter_mut().filter(|(set, reached)| is_behind(**set, reached));
        written.for_each(|(_, reached)| reached.written = reached.applied);
        let of_sets = |shard: usize| {
            let sets = sets.iter().filter(|(set, _)| *set & 1 << shard != 0);
            sets.map(|(_, reached)| reached.written).max_by_key(|written| written.time)
        };
        Ok((0..SHARDS).map(of_sets).collect())
    }
}

/// Takes the progress of `sets` away, durably.
fn forget(db: &Database, state: &Keyspace, prefix: u8, sets: &mut Sets) -> fjall::Result<()> {
    let mut batch = db.batch();
    sets.keys().for_each(|set| batch.remove(state, encode_set(prefix, *set)));
    sets.clear();
    // The progress goes before the rows do: a crash in between must not find progress without rows.
    batch.durability(Some(PersistMode::SyncAll)).commit()
}

fn encode_set(prefix: u8, set: u64) -> [u8; 9] {
    let mut key = [prefix; 9];
    key.iter_mut().skip(1).zip(set.to_be_bytes()).for_each(|(to, from)| *to = from);
    key
}

fn encode_position(position: Position) -> [u8; 16] {
    (u128::from(position.time) << 64 | u128::from(position.lsn.0)).to_be_bytes()
}

fn decode(key: &[u8], value: &[u8]) -> Option<(u64, Position)> {
    let mut key = Parts::new(key);
    let mut value = Parts::new(value);
    let (_, set) = (key.byte()?, key.number()?);
    let position = Position { time: value.number()?, lsn: Lsn(value.number()?) };
    key.rest().is_empty().then_some((set, position))
}
