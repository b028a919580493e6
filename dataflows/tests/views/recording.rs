//! Stores that record what they are handed, and what a store holds after each time of such a record.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};

use feedmill_model::{
    Closed, Counter, HomeClosed, HomeRecordChange, HomeSink, Keyed, Op, PackedEntry, Parameters, Position, RowSink,
    SHARDS, StoreError, Time, ViewRow, shard_of,
};

/// A closed time as it was handed over, and when that began and ended by a clock that all stores share.
pub struct Applied<C> {
    pub began: u64,
    pub ended: u64,
    pub closed: C,
}

/// Orders what happens in all stores.
static CLOCK: AtomicU64 = AtomicU64::new(0);

/// The next tick of the clock.
pub fn tick() -> u64 {
    CLOCK.fetch_add(1, Ordering::SeqCst)
}

/// All that was applied, and the progress of each shard.
type Log<C> = (Vec<Applied<C>>, Vec<Option<Position>>);

/// A store of rows that keeps all it was given.
pub struct RowRecord<R> {
    inner: Mutex<Log<Closed<R>>>,
    refuse_from: Option<Time>,
}

impl<R> Default for RowRecord<R> {
    fn default() -> Self {
        RowRecord { inner: Mutex::new((Vec::new(), vec![None; SHARDS])), refuse_from: None }
    }
}

impl<R: Clone> RowRecord<R> {
    /// A store that refuses `time` and later ones.
    pub fn refusing_from(time: Time) -> Self {
        RowRecord { refuse_from: Some(time), ..RowRecord::default() }
    }

    /// Everything so far, by time.
    pub fn by_time(&self) -> Vec<(Time, u64, u64, Closed<R>)> {
        let inner = self.inner.lock().unwrap();
        let mut all: Vec<_> =
            inner.0.iter().map(|one| (one.closed.position.time, one.began, one.ended, one.closed.clone())).collect();
        all.sort_by_key(|(time, ..)| *time);
        all
    }

    /// The least of the shards' progress.
    pub fn reached(&self) -> Option<Position> {
        let inner = self.inner.lock().unwrap();
        inner.1.iter().copied().min_by_key(|position| position.map(|position| position.time)).flatten()
    }
}

impl<R: Keyed + Debug + Send + Sync> RowSink<R> for RowRecord<R> {
    fn progress(&self) -> Vec<Option<Position>> {
        self.inner.lock().unwrap().1.clone()
    }

    fn apply(&self, closed: &Closed<R>) -> Result<(), StoreError> {
        let (began, time) = (tick(), closed.position.time);
        if self.refuse_from.is_some_and(|from| from <= time) {
            let source = "as told".into();
            return Err(StoreError { store: "recording", tried: format!("apply {time}"), source });
        }
        assert!(closed.ops.is_sorted_by_key(|(shard, _)| *shard), "operations are not in the order of shards");
        let mut inner = self.inner.lock().unwrap();
        for (shard, op) in &closed.ops {
            let (Op::Put(row) | Op::Delete(row) | Op::Add(row, _)) = op;
            assert!(closed.shards >> shard & 1 == 1 && row.shard() == *shard, "{row:?} is in the wrong place");
            assert!(!matches!(op, Op::Add(_, 0)), "nothing is added to {row:?}");
        }
        for (shard, progress) in inner.1.iter_mut().enumerate().filter(|(shard, _)| closed.shards >> shard & 1 == 1) {
            if let Some(before) = progress.filter(|before| before.time > time || before.lsn > closed.position.lsn) {
                assert!(closed.ops.iter().all(|(of, _)| usize::from(*of) != shard), "{before:?} then {closed:?}");
                continue;
            }
            if !closed.loading {
                *progress = Some(closed.position);
            }
        }
        inner.0.push(Applied { began, ended: tick(), closed: closed.clone() });
        Ok(())
    }
}

/// What a store of rows holds.
#[derive(Debug)]
pub struct RowState<R> {
    pub rows: BTreeSet<R>,
    pub sums: BTreeMap<R, i64>,
    reached: Vec<Option<Time>>,
}

impl<R> Default for RowState<R> {
    fn default() -> Self {
        RowState { rows: BTreeSet::new(), sums: BTreeMap::new(), reached: vec![None; SHARDS] }
    }
}

impl<R: Keyed + Debug> RowState<R> {
    pub fn apply(&mut self, closed: &Closed<R>) {
        let time = closed.position.time;
        for (shard, op) in &closed.ops {
            if self.reached[usize::from(*shard)].is_some_and(|reached| reached >= time) {
                continue;
            }
            match op {
                Op::Put(row) => {
                    self.rows.retain(|other| !other.same_key(row));
                    self.rows.insert(row.clone());
                }
                Op::Delete(row) => assert!(self.rows.remove(row), "{row:?} is deleted and was not there"),
                Op::Add(row, diff) => {
                    let sum = self.sums.entry(row.clone()).or_default();
                    *sum += diff;
                    assert!(*sum >= 0, "{row:?} fell to {sum}");
                }
            }
        }
        for (shard, reached) in self.reached.iter_mut().enumerate() {
            if closed.shards >> shard & 1 == 1 && !closed.loading {
                *reached = (*reached).max(Some(time));
            }
        }
    }
}

impl RowState<ViewRow> {
    /// The sums that are not zero.
    pub fn counts(&self) -> BTreeMap<(Counter, i64), i64> {
        let counts = self.sums.iter().filter(|(_, sum)| **sum != 0).map(|(row, sum)| match row {
            ViewRow::Count { counter, of } => ((*counter, *of), *sum),
            other => panic!("{other:?} is no count"),
        });
        counts.collect()
    }
}

/// A store of home timelines that keeps all it was given.
pub struct HomeLog {
    inner: Mutex<Log<HomeClosed>>,
    /// The load is to fill it.
    fills: bool,
}

impl Default for HomeLog {
    fn default() -> Self {
        HomeLog::new(false)
    }
}

impl HomeLog {
    /// An empty store, to be filled by the load or not.
    pub fn new(fills: bool) -> Self {
        HomeLog { inner: Mutex::new((Vec::new(), vec![None; SHARDS])), fills }
    }

    /// Everything so far, by time.
    pub fn by_time(&self) -> Vec<(Time, u64, HomeClosed)> {
        let inner = self.inner.lock().unwrap();
        let mut all: Vec<_> =
            inner.0.iter().map(|one| (one.closed.position.time, one.began, one.closed.clone())).collect();
        all.sort_by_key(|(time, ..)| *time);
        all
    }

    /// The least of the shards' progress.
    pub fn reached(&self) -> Option<Position> {
        let inner = self.inner.lock().unwrap();
        inner.1.iter().copied().min_by_key(|position| position.map(|position| position.time)).flatten()
    }

    /// What a save has of it that was made of each shard at another time; nothing before all shards have something.
    pub fn saved(&self, seed: usize) -> HomeLog {
        let saved = HomeLog::default();
        if self.reached().is_none() {
            return saved;
        }
        let all = self.by_time();
        let load = all.iter().find(|(.., closed)| closed.floor.is_some()).map_or(0, |(time, ..)| *time);
        let times: Vec<Time> = all.iter().map(|(time, ..)| *time).filter(|time| *time >= load).collect();
        for (time, began, closed) in &all {
            let has = |shard: &usize| *time <= times[(seed * (shard + 1)) % times.len()];
            let shards = (0..SHARDS).filter(has).fold(0, |shards, shard| shards | 1 << shard);
            saved.keep(HomeClosed { shards: closed.shards & shards, ..closed.clone() }, *began);
        }
        // The first of the times is the load, so no shard is without it.
        assert!(saved.reached().is_some());
        saved
    }

    /// Keeps what is of the shards of the closed time that do not have it.
    fn keep(&self, mut closed: HomeClosed, began: u64) {
        let (applied, progress) = &mut *self.inner.lock().unwrap();
        for (shard, progress) in progress.iter_mut().enumerate() {
            if closed.shards >> shard & 1 == 0 {
                closed.deliveries[shard].clear();
            } else if progress.is_some_and(|before| before.time >= closed.position.time) {
                closed.shards &= !(1 << shard);
                closed.deliveries[shard].clear();
            } else if !self.fills || closed.floor.is_some() || progress.is_some() {
                *progress = Some(closed.position);
            }
        }
        closed.records.retain(|(change, _)| closed.shards >> shard_of(change.viewer()) & 1 == 1);
        applied.push(Applied { began, ended: tick(), closed });
    }
}

impl HomeSink for HomeLog {
    fn progress(&self) -> Vec<Option<Position>> {
        self.inner.lock().unwrap().1.clone()
    }

    fn is_to_be_filled(&self) -> bool {
        self.fills && self.reached().is_none()
    }

    fn apply(&self, closed: &mut HomeClosed) -> Result<(), StoreError> {
        let began = tick();
        assert!(closed.records.is_sorted(), "records are not in order");
        let mine = |(change, _): &(HomeRecordChange, i64)| closed.shards >> shard_of(change.viewer()) & 1 == 1;
        assert!(closed.records.iter().all(mine), "a record is in the wrong place");
        self.keep(closed.clone(), began);
        closed.deliveries.iter_mut().for_each(Vec::clear);
        closed.records.clear();
        Ok(())
    }
}

/// A viewer's record.
#[derive(Debug)]
pub struct Record {
    pub floor: i64,
    pub hot: BTreeSet<i64>,
    pub entries: BTreeMap<PackedEntry, i64>,
}

/// What a store of home timelines holds.
#[derive(Debug, Default)]
pub struct HomeState {
    pub records: BTreeMap<i64, Record>,
}

impl HomeState {
    pub fn apply(&mut self, closed: &HomeClosed, parameters: &Parameters) {
        let horizon = parameters.horizon(closed.position.time);
        for (change, diff) in &closed.records {
            assert_eq!(diff.abs(), 1, "{change:?}");
            assert!(closed.shards >> shard_of(change.viewer()) & 1 == 1, "{change:?} is in the wrong place");
            match (*change, *diff > 0) {
                (HomeRecordChange::Active { viewer }, true) => {
                    let record = Record { floor: horizon, hot: BTreeSet::new(), entries: BTreeMap::new() };
                    assert!(self.records.insert(viewer, record).is_none(), "{viewer} was active");
                }
                (HomeRecordChange::Active { viewer }, false) => {
                    assert!(self.records.remove(&viewer).is_some(), "{viewer} was not active");
                }
                (HomeRecordChange::Hot { viewer, author }, joins) => match self.records.get_mut(&viewer) {
                    Some(record) if joins => assert!(record.hot.insert(author), "{change:?} twice"),
                    Some(record) => assert!(record.hot.remove(&author), "{change:?} and was not"),
                    None => assert!(!joins, "{change:?} without a record"),
                },
            }
        }
        self.deliver(closed, horizon);
        if let Some(floor) = closed.floor {
            assert!(closed.deliveries.iter().all(Vec::is_empty), "entries at the load or at a bulk batch");
            for (viewer, record) in &mut self.records {
                if closed.shards >> shard_of(*viewer) & 1 == 1 {
                    record.floor = record.floor.max(floor);
                }
            }
        }
    }

    fn deliver(&mut self, closed: &HomeClosed, horizon: i64) {
        for (shard, deliveries) in closed.deliveries.iter().enumerate() {
            let mut sums = BTreeMap::<(i64, PackedEntry), i64>::new();
            for delivery in deliveries {
                assert_eq!(usize::from(shard_of(delivery.viewer)), shard, "{delivery:?} is in the wrong place");
                assert!(closed.shards >> shard & 1 == 1, "{delivery:?} is in the wrong place");
                assert!(delivery.entry.id() > horizon, "{delivery:?} is below the horizon");
                *sums.entry((delivery.viewer, delivery.entry)).or_default() += i64::from(delivery.diff);
            }
            for ((viewer, entry), diff) in sums {
                let Some(record) = self.records.get_mut(&viewer).filter(|record| entry.id() > record.floor) else {
                    continue;
                };
                let times = record.entries.entry(entry).or_default();
                *times += diff;
                assert!((0..=1).contains(times), "{viewer} has {entry:?} {times} times");
            }
        }
    }
}
