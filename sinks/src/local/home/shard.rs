//! The records of one shard, and how a closed time changes them.

use feedmill_model::{Delivery, HomeRecordChange, Parameters, Position, Time};
use hashbrown::DefaultHashBuilder;

use super::places::Places;
use super::record::{Change, Record};
use super::segment::{Damaged, SEGMENT_PLACES};

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

/// A range of [`SEGMENT_PLACES`] places: what a save writes or leaves at a time.
#[derive(Clone, Copy, Debug)]
struct Segment {
    /// Closed times at or before this are in its records already; 0 for one that was not loaded.
    has: Time,
    /// The last closed time that changed a record.
    changed: Time,
}

/// A segment as a save finds it.
pub(super) struct SegmentView<'a> {
    /// Its places.
    pub records: &'a [Record],
    /// The records are as of this time.
    pub time: Time,
    /// Nothing has changed in it after this time.
    pub changed: Time,
    /// At `time` no record is complete at or below this.
    pub bound: i64,
}

/// The records of one shard.
///
/// A record stays where it is: a place that becomes vacant is used again. While the shard catches up with its save,
/// new records go to new segments only, because what a loaded segment has already it does not take again.
pub(super) struct ShardRecords {
    /// The last closed time; 0 before the first.
    position: Position,
    /// The greatest time of a loaded segment: the shard catches up until this has passed.
    ahead: Time,
    /// No record is complete at or below it.
    floor: i64,
    /// The load fills it, and has not ended: no record is complete anywhere yet.
    filling: bool,
    records: Vec<Record>,
    places: Places,
    segments: Vec<Segment>,
    vacant: Vec<u32>,
}

impl ShardRecords {
    pub(super) fn new(hasher: DefaultHashBuilder) -> Self {
        ShardRecords {
            position: Position::default(),
            ahead: 0,
            floor: i64::MIN,
            filling: false,
            records: Vec::new(),
            places: Places::new(hasher),
            segments: Vec::new(),
            vacant: Vec::new(),
        }
    }

    /// An empty shard that the load fills, until a closed time brings the floor above which its records are complete.
    pub(super) fn filling(hasher: DefaultHashBuilder) -> Self {
        ShardRecords { filling: true, ..ShardRecords::new(hasher) }
    }

    pub(super) const fn is_filling(&self) -> bool {
        self.filling
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    /// The last closed time; `None` before the first, and while the shard is being filled.
    pub(super) fn position(&self) -> Option<Position> {
        Some(self.position).filter(|position| position.time > 0 && !self.filling)
    }

    /// Every closed time at or before `position`, when the shard's floor was `floor`, is in the saved segments that follow.
    pub(super) fn begin_load(&mut self, position: Position, floor: i64) {
        self.position = position;
        self.ahead = position.time;
        self.floor = floor;
    }

    /// Adds a saved segment, which has every closed time up to `has`.
    pub(super) fn load(&mut self, bytes: &[u8], has: Time) -> Result<(), Damaged> {
        self.segments.push(Segment { has, changed: has });
        self.ahead = self.ahead.max(has);
        let end = self.segments.len() * SEGMENT_PLACES;
        let mut fits = true;
        super::segment::decode(bytes, |record| {
            fits &= self.records.len() < end;
            if fits {
                self.load_record(record, has);
            }
        })?;
        while self.records.len() < end {
            self.leave_vacant();
        }
        if fits { Ok(()) } else { Err(Damaged) }
    }

    /// A viewer who was dropped and came back between the saves of two segments is in both: the later one counts, and
    /// the other segment is not what was saved any more.
    fn load_record(&mut self, record: Record, has: Time) {
        match self.places.find(record.viewer(), &self.records) {
            Some(other) if self.has(other) >= has => {
                self.differs_from_save(self.records.len());
                return self.leave_vacant();
            }
            Some(other) => {
                self.vacate(other);
                self.differs_from_save(other);
            }
            None => {}
        }
        self.places.insert(record.viewer(), self.records.len(), &self.records);
        self.records.push(record);
    }

    fn differs_from_save(&mut self, place: usize) {
        if let Some(segment) = self.segments.get_mut(place / SEGMENT_PLACES) {
            segment.changed = segment.has + 1;
        }
    }

    fn leave_vacant(&mut self) {
        self.vacant.push(self.records.len() as u32);
        self.records.push(Record::VACANT);
    }

    /// No record is complete at or below it.
    pub(super) const fn floor(&self) -> i64 {
        self.floor
    }

    /// The segment `number`, if there is one.
    pub(super) fn segment(&self, number: usize, parameters: &Parameters) -> Option<SegmentView<'_>> {
        let segment = self.segments.get(number)?;
        let first = number * SEGMENT_PLACES;
        let records = self.records.get(first..self.records.len().min(first + SEGMENT_PLACES))?;
        let time = self.position.time.max(segment.has);
        Some(SegmentView { records, time, changed: segment.changed, bound: self.bound(time, parameters) })
    }

    /// The viewer's record, and the floor above which it is complete; none is while the shard is being filled.
    pub(super) fn read(&self, viewer: i64, parameters: &Parameters) -> Option<(&Record, i64)> {
        if self.filling {
            return None;
        }
        let record = self.records.get(self.places.find(viewer, &self.records)?)?;
        Some((record, self.bound(self.position.time, parameters).max(record.floor())))
    }

    /// Below this, and at it, no record of the shard is complete at `time`.
    fn bound(&self, time: Time, parameters: &Parameters) -> i64 {
        self.floor.max(parameters.horizon(time))
    }

    /// Applies one closed time: first the floor, then `records`, then `deliveries`. A time that is not after the last
    /// one changes nothing.
    pub(super) fn apply(
        &mut self,
        position: Position,
        floor: Option<i64>,
        records: &[(HomeRecordChange, i64)],
        deliveries: &mut Vec<Delivery>,
        parameters: &Parameters,
    ) -> Outcome {
        let mut outcome = Outcome::default();
        if position.time <= self.position.time {
            return outcome;
        }
        self.position = position;
        self.floor = self.floor.max(floor.unwrap_or(i64::MIN));
        self.filling &= floor.is_none();
        let bound = self.bound(position.time, parameters);
        for changes in records.chunk_by(|(one, _), (other, _)| one.viewer() == other.viewer()) {
            outcome.anomalies += self.change_records(changes, bound);
        }
        if self.catches_up() {
            deliveries.retain(|delivery| {
                let place = self.places.find(delivery.viewer, &self.records);
                place.is_some_and(|place| self.has(place) < position.time)
            });
        }
        if deliveries.iter().all(|delivery| delivery.diff == 1) {
            self.insert_all(deliveries, bound, parameters, &mut outcome);
        } else {
            self.sum_and_apply(deliveries, bound, parameters, &mut outcome);
        }
        outcome
    }

    /// Whether some segment may have the current time already.
    const fn catches_up(&self) -> bool {
        self.position.time <= self.ahead
    }

    /// Up to when the segment of `place` has all closed times.
    fn has(&self, place: usize) -> Time {
        self.segments.get(place / SEGMENT_PLACES).map_or(0, |segment| segment.has)
    }

    /// The record at `place`, to be changed.
    #[inline]
    fn change(&mut self, place: usize) -> Option<&mut Record> {
        self.segments.get_mut(place / SEGMENT_PLACES)?.changed = self.position.time;
        self.records.get_mut(place)
    }

    /// Changes of one viewer: those of the record itself, or those of its hot accounts.
    fn change_records(&mut self, changes: &[(HomeRecordChange, i64)], bound: i64) -> u64 {
        let Some(viewer) = changes.first().map(|(change, _)| change.viewer()) else { return 0 };
        let place = self.places.find(viewer, &self.records);
        if self.catches_up() && place.is_some_and(|place| self.has(place) >= self.position.time) {
            return 0;
        }
        let mut anomalies = 0;
        for (change, diff) in changes {
            let HomeRecordChange::Active { .. } = *change else { continue };
            match (self.places.find(viewer, &self.records), diff) {
                (None, 1) => self.make(Record::new(viewer, bound)),
                (Some(place), -1) => {
                    self.vacate(place);
                }
                // The segment that it was in was saved when it was gone.
                (None, -1) if self.catches_up() => {}
                _ => anomalies += 1,
            }
        }
        let hot = changes.iter().filter_map(|(change, diff)| match *change {
            HomeRecordChange::Hot { author, .. } => Some((author, *diff)),
            HomeRecordChange::Active { .. } => None,
        });
        let mut hot = hot.peekable();
        if hot.peek().is_some() {
            let place = self.places.find(viewer, &self.records);
            anomalies += place.and_then(|place| self.change(place)).map_or(0, |record| record.change_hot(hot));
        }
        anomalies
    }

    /// Adds the record of a viewer who has none.
    fn make(&mut self, record: Record) {
        let vacant = if self.catches_up() { None } else { self.vacant.pop() };
        let place = vacant.map_or(self.records.len(), |place| place as usize);
        self.places.insert(record.viewer(), place, &self.records);
        match self.records.get_mut(place) {
            Some(vacant) => *vacant = record,
            None => self.records.push(record),
        }
        if self.segments.len() * SEGMENT_PLACES < self.records.len() {
            self.segments.push(Segment { has: 0, changed: 0 });
        }
        self.change(place);
    }

    /// Drops the record at `place`.
    fn vacate(&mut self, place: usize) {
        let Some(record) = self.change(place) else { return };
        let viewer = std::mem::replace(record, Record::VACANT).viewer();
        self.places.remove(viewer, place);
        self.vacant.push(place as u32);
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
                if let Some(record) = place.and_then(|place| self.change(place)) {
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
            let Some(record) = place.and_then(|place| self.change(place)) else { continue };
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
