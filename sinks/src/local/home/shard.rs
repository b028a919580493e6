//! The records of one shard, and how a closed time changes them.

use std::hash::BuildHasher;

use feedmill_model::{Delivery, HomeRecordChange, Parameters, Time};
use hashbrown::{DefaultHashBuilder, HashTable};

use super::ScannedRecord;
use super::record::{Change, Record};

/// Deliveries that are looked up together, so that their cache misses overlap.
const LOOKUPS: usize = 16;

/// What applying a closed time did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Outcome {
    /// Entries put in and taken out.
    pub deliveries: u64,
    /// Changes that did not fit.
    pub anomalies: u64,
}

impl Outcome {
    fn count(&mut self, change: Change) {
        match change {
            Change::Applied => self.deliveries += 1,
            Change::Below => {}
            Change::Anomaly => self.anomalies += 1,
        }
    }
}

/// The records of one shard.
pub(super) struct ShardRecords {
    /// The last closed time; 0 before the first.
    time: Time,
    /// No record is complete at or below it.
    floor: i64,
    records: Vec<Record>,
    places: Places,
}

impl ShardRecords {
    pub(super) fn new(hasher: DefaultHashBuilder) -> Self {
        let places = Places { places: HashTable::new(), hasher };
        ShardRecords { time: 0, floor: i64::MIN, records: Vec::new(), places }
    }

    pub(super) fn len(&self) -> usize {
        self.records.len()
    }

    /// The viewer's record, and the floor above which it is complete.
    pub(super) fn read(&self, viewer: i64, parameters: &Parameters) -> Option<(&Record, i64)> {
        let record = self.records.get(self.places.find(viewer, &self.records)?)?;
        Some((record, self.bound(self.time, parameters).max(record.floor())))
    }

    /// All records as they are at `at`.
    pub(super) fn scan(&self, at: Time, parameters: &Parameters) -> impl Iterator<Item = ScannedRecord<'_>> {
        let bound = self.bound(at, parameters);
        self.records.iter().map(move |record| ScannedRecord { record, floor: bound.max(record.floor()) })
    }

    /// Below this, and at it, no record of the shard is complete at `time`.
    fn bound(&self, time: Time, parameters: &Parameters) -> i64 {
        self.floor.max(parameters.horizon(time))
    }

    /// Applies one closed time: first the floor, then `records`, then `deliveries`. A time that is not after the last
    /// one changes nothing.
    pub(super) fn apply(
        &mut self,
        time: Time,
        floor: Option<i64>,
        records: &[(HomeRecordChange, i64)],
        deliveries: &mut [Delivery],
        parameters: &Parameters,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        if time <= self.time {
            return outcome;
        }
        self.time = time;
        self.floor = self.floor.max(floor.unwrap_or(i64::MIN));
        let bound = self.bound(time, parameters);
        for changes in records.chunk_by(|(one, _), (other, _)| one.viewer() == other.viewer()) {
            outcome.anomalies += self.change_records(changes, bound);
        }
        if deliveries.iter().all(|delivery| delivery.diff == 1) {
            self.insert_all(deliveries, bound, parameters, &mut outcome);
        } else {
            self.sum_and_apply(deliveries, bound, parameters, &mut outcome);
        }
        outcome
    }

    /// Changes of one viewer: those of the record itself, or those of its hot accounts.
    fn change_records(&mut self, changes: &[(HomeRecordChange, i64)], bound: i64) -> u64 {
        let mut anomalies = 0;
        for (change, diff) in changes {
            let HomeRecordChange::Active { viewer } = *change else { continue };
            match (self.places.find(viewer, &self.records), diff) {
                (None, 1) => self.places.push(Record::new(viewer, bound), &mut self.records),
                (Some(place), -1) => self.places.remove(place, &mut self.records),
                _ => anomalies += 1,
            }
        }
        let hot = changes.iter().filter_map(|(change, diff)| match *change {
            HomeRecordChange::Hot { author, .. } => Some((author, *diff)),
            HomeRecordChange::Active { .. } => None,
        });
        let mut hot = hot.peekable();
        if let (Some((change, _)), Some(_)) = (changes.first(), hot.peek()) {
            let record = self.places.find(change.viewer(), &self.records).and_then(|place| self.records.get_mut(place));
            anomalies += record.map_or(0, |record| record.change_hot(hot));
        }
        anomalies
    }

    /// The way of nearly all: new entries, each once, to viewers all over the memory. Each delivery misses the cache
    /// for its record, so a few are looked up before they are put in: misses that do not depend on one another the
    /// processor waits for at the same time.
    fn insert_all(&mut self, deliveries: &[Delivery], bound: i64, parameters: &Parameters, outcome: &mut Outcome) {
        for deliveries in deliveries.chunks(LOOKUPS) {
            let mut places = [None; LOOKUPS];
            for (place, delivery) in places.iter_mut().zip(deliveries) {
                *place = self.places.find(delivery.viewer, &self.records);
            }
            for (place, delivery) in places.iter().zip(deliveries) {
                if let Some(record) = place.and_then(|place| self.records.get_mut(place)) {
                    outcome.count(record.insert(delivery.entry, bound, parameters));
                }
            }
        }
    }

    /// The way when entries leave too, or come several at once: what an entry gains and loses in one time is summed.
    fn sum_and_apply(
        &mut self,
        deliveries: &mut [Delivery],
        bound: i64,
        parameters: &Parameters,
        outcome: &mut Outcome,
    ) {
        deliveries.sort_unstable_by_key(|delivery| (delivery.viewer, delivery.entry));
        for of_viewer in deliveries.chunk_by(|one, other| one.viewer == other.viewer) {
            let Some(viewer) = of_viewer.first().map(|delivery| delivery.viewer) else { continue };
            let place = self.places.find(viewer, &self.records);
            let Some(record) = place.and_then(|place| self.records.get_mut(place)) else { continue };
            for of_entry in of_viewer.chunk_by(|one, other| one.entry == other.entry) {
                let Some(entry) = of_entry.first().map(|delivery| delivery.entry) else { continue };
                let net: i64 = of_entry.iter().map(|delivery| i64::from(delivery.diff)).sum();
                let change = match net {
                    0 => continue,
                    1.. => record.insert(entry, bound, parameters),
                    ..0 => record.remove(entry, bound),
                };
                outcome.count(change);
                if net.abs() > 1 && change == Change::Applied {
                    outcome.anomalies += 1;
                }
            }
        }
    }
}

/// Where each viewer's record is. Apart from the records, so that these lie side by side and a table of 5 bytes a
/// viewer, which the cache can hold, has the gaps.
struct Places {
    places: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Places {
    #[inline]
    fn find(&self, viewer: i64, records: &[Record]) -> Option<usize> {
        let is = |place: &u32| records.get(*place as usize).is_some_and(|record| record.viewer() == viewer);
        self.places.find(self.hasher.hash_one(viewer), is).map(|place| *place as usize)
    }

    /// Adds the record of a viewer who has none.
    fn push(&mut self, record: Record, records: &mut Vec<Record>) {
        // 2³² records of 128 bytes fit no memory.
        let place = records.len() as u32;
        let hash = |place: &u32| {
            let viewer = records.get(*place as usize).map_or(record.viewer(), Record::viewer);
            self.hasher.hash_one(viewer)
        };
        self.places.insert_unique(hash(&place), place, hash);
        records.push(record);
    }

    /// Drops the record at `place`; the last record takes its place.
    fn remove(&mut self, place: usize, records: &mut Vec<Record>) {
        let Some(viewer) = records.get(place).map(Record::viewer) else { return };
        if let Ok(found) = self.places.find_entry(self.hasher.hash_one(viewer), |found| *found as usize == place) {
            found.remove();
        }
        records.swap_remove(place);
        let Some(moved) = records.get(place).map(Record::viewer) else { return };
        let last = records.len();
        if let Ok(mut found) = self.places.find_entry(self.hasher.hash_one(moved), |found| *found as usize == last) {
            *found.get_mut() = place as u32;
        }
    }
}
