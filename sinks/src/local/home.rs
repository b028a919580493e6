//! Home timelines in memory.
//!
//! ```text
//!   worker ─ HomeClosed ─► for each of its shards, under one write lock:
//!                            floor of the shard ▲ │ records made, dropped, hot ± │ entries in, entries out
//!   reader ─ record(v)  ─► read lock of v's shard: floor, hot accounts and entries of one closed time
//! ```
//!
//! Why it is correct: a record is changed only by its shard's worker, under the shard's lock, one closed time at a time,
//! so a reader never sees half of one: an account that becomes hot leaves the pushed entries and enters the hot list at
//! once. A record is complete above its floor, which is the greatest of its own, its shard's and the horizon. It starts
//! complete, since its own closed time fills it; an entry is left out only at or below a floor; and floors only rise.
//!
//! Nothing is saved: a process starts with an empty store, whose floors start at the greatest entry loaded.

mod entries;
mod record;
mod shard;

use std::sync::atomic::{AtomicU64, Ordering};

use feedmill_model::{HomeClosed, HomeSink, PackedEntry, Parameters, SHARDS, Shard, StoreError, Time, shard_of};
use hashbrown::DefaultHashBuilder;
use parking_lot::RwLock;

use self::record::Record;
use self::shard::{Outcome, ShardRecords};
use crate::HomeRecord;

/// Home timelines in memory.
pub struct LocalHome {
    parameters: Parameters,
    shards: Vec<HomeShard>,
    anomalies: AtomicU64,
}

struct HomeShard {
    records: RwLock<ShardRecords>,
    deliveries: AtomicU64,
}

/// A record as a scan sees it.
pub(super) struct ScannedRecord<'a> {
    record: &'a Record,
    /// It is complete above this id.
    pub floor: i64,
}

impl ScannedRecord<'_> {
    /// Whose.
    pub(super) fn viewer(&self) -> i64 {
        self.record.viewer()
    }

    /// Hot accounts followed, in ascending order.
    pub(super) fn hot(&self) -> &[i64] {
        self.record.hot()
    }

    /// Entries above the floor.
    pub(super) fn entries(&self) -> impl Iterator<Item = PackedEntry> {
        self.record.entries_above(self.floor)
    }
}

impl LocalHome {
    /// An empty store. Its records are cut, and its entries expire, as `parameters` say.
    pub fn new(parameters: Parameters) -> Self {
        let hasher = DefaultHashBuilder::default();
        let shard =
            || HomeShard { records: RwLock::new(ShardRecords::new(hasher.clone())), deliveries: AtomicU64::new(0) };
        LocalHome { parameters, shards: (0..SHARDS).map(|_| shard()).collect(), anomalies: AtomicU64::new(0) }
    }

    /// The viewer's record as of the last closed time; `None` for one who is not active.
    pub fn record(&self, viewer: i64) -> Option<HomeRecord> {
        let shard = self.shards.get(usize::from(shard_of(viewer)))?;
        let records = shard.records.read();
        let (record, floor) = records.read(viewer, &self.parameters)?;
        Some(HomeRecord { floor, hot: record.hot().to_vec(), entries: record.entries_above(floor).collect() })
    }

    /// Entries put into and taken out of records since the store was made.
    pub fn deliveries(&self) -> u64 {
        self.shards.iter().map(|shard| shard.deliveries.load(Ordering::Relaxed)).sum()
    }

    /// Changes that did not fit what the store held, and were left out: an entry that came twice, or left without
    /// having been there. Anything but 0 is a defect of whoever feeds the store.
    pub fn anomalies(&self) -> u64 {
        self.anomalies.load(Ordering::Relaxed)
    }

    /// How many viewers have a record.
    pub fn viewers(&self) -> usize {
        self.shards.iter().map(|shard| shard.records.read().len()).sum()
    }

    /// Each viewer with the id above which the record is complete at `at`, shard by shard.
    pub fn floors(&self, at: Time) -> impl Iterator<Item = (i64, i64)> + '_ {
        self.shards.iter().flat_map(move |shard| {
            let records = shard.records.read();
            records.scan(at, &self.parameters).map(|record| (record.viewer(), record.floor)).collect::<Vec<_>>()
        })
    }

    /// Calls `each` with every record as it is at `at`. Holds the read lock of a shard meanwhile.
    pub(super) fn scan(&self, at: Time, mut each: impl FnMut(ScannedRecord<'_>)) {
        for shard in &self.shards {
            shard.records.read().scan(at, &self.parameters).for_each(&mut each);
        }
    }

    fn report(&self, anomalies: u64, time: Time) {
        metrics::counter!("feedmill_home_anomalies_total").increment(anomalies);
        if self.anomalies.fetch_add(anomalies, Ordering::Relaxed) == 0 {
            tracing::error!(
                anomalies,
                time,
                "changes of home timelines did not fit what the store holds and were left out; \
                 `feedmill verify` tells which timelines differ, a restart rebuilds them all"
            );
        }
    }
}

impl HomeSink for LocalHome {
    fn apply(&self, closed: &mut HomeClosed) -> Result<(), StoreError> {
        let time = closed.position.time;
        closed.records.sort_unstable_by_key(|(change, _)| (shard_of(change.viewer()), *change));
        let mut records = closed.records.as_slice();
        let mut anomalies = 0;
        for (number, shard) in self.shards.iter().enumerate() {
            let end = records.partition_point(|(change, _)| usize::from(shard_of(change.viewer())) <= number);
            let (of_shard, rest) = records.split_at(end);
            records = rest;
            if closed.shards & (1 << number as Shard) == 0 {
                continue;
            }
            let mut none = Vec::new();
            let deliveries = closed.deliveries.get_mut(number).unwrap_or(&mut none);
            let outcome: Outcome =
                shard.records.write().apply(time, closed.floor, of_shard, deliveries, &self.parameters);
            deliveries.clear();
            shard.deliveries.fetch_add(outcome.deliveries, Ordering::Relaxed);
            anomalies += outcome.anomalies;
        }
        closed.records.clear();
        if anomalies > 0 {
            self.report(anomalies, time);
        }
        Ok(())
    }
}
