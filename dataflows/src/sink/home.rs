//! The sink of the store of home timelines.
//!
//! Deliveries are sorted into the lists of their time and shard as they arrive, and stay unsummed: the store sums them
//! as it applies them. Records are few, and summed here. The lists come back from the store and are used again.
//!
//! What a shard has reached is dropped on arrival. For a shard that has reached nothing everything at or before the load
//! time is one closed time: `active` and the hot accounts followed make the records, in full, with the floors at the
//! greatest entry loaded; the joins have suppressed the entries.
//!
//! A store that the load fills is given each slice of the load as a closed time of its own, so that no more than the
//! entries of a slice wait here. The last of them, the load's own time, brings the floor above which records are complete.

use std::collections::BTreeMap;
use std::sync::Arc;

use differential_dataflow::consolidation::consolidate;
use feedmill_model::{Delivery, HomeClosed, HomeRecordChange, HomeSink, Position, SHARDS, Time, shard_of};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::{Held, Tick, open_from, route, shards_of};
use crate::collection::Rows;
use crate::jobs::home::TimedDelivery;
use crate::supervisor::Supervisor;

/// Lists that were handed back and are kept for later times: at most this many sets,
const SPARE_SETS_MAX: usize = 4;
/// and none that has room for more deliveries than this (24 bytes each).
const SPARE_DELIVERIES_MAX: usize = 1 << 20;

/// What waits for one time.
struct Home {
    closed: HomeClosed,
    records: Vec<(HomeRecordChange, isize)>,
    /// Length of `records` at which they are summed before more are taken.
    sum_at: usize,
}

/// What the sink has received and not applied.
struct Waiting {
    store: Arc<dyn HomeSink>,
    supervisor: Arc<Supervisor>,
    shards: u64,
    /// Changes at or before these are not needed, by shard.
    reached: [Option<Time>; SHARDS],
    /// The least of those of this worker.
    reached_by_all: Option<Time>,
    /// What comes before this time is applied with it.
    first: Time,
    times: BTreeMap<Time, Home>,
    ticks: BTreeMap<Time, Tick>,
    newest: Position,
    spare: Vec<Home>,
}

/// Applies deliveries and records to `store`, from the time `first` on; gives on each tick once its time is applied.
pub(crate) fn home_sink<'scope>(
    deliveries: StreamVec<'scope, Time, TimedDelivery>,
    records: Rows<'scope, HomeRecordChange>,
    ticks: StreamVec<'scope, Time, Tick>,
    store: Arc<dyn HomeSink>,
    first: Time,
    supervisor: Arc<Supervisor>,
) -> StreamVec<'scope, Time, Tick> {
    let scope = ticks.scope();
    let mut builder = OperatorBuilder::new("HomeSink".to_owned(), scope);
    let by_shard = Exchange::new(|(delivery, _): &TimedDelivery| route(shard_of(delivery.viewer)));
    let mut deliveries = builder.new_input(deliveries, by_shard);
    let by_shard = Exchange::new(|(record, _, _): &(HomeRecordChange, Time, isize)| route(shard_of(record.viewer())));
    let mut records = builder.new_input(records.inner, by_shard);
    let mut ticks = builder.new_input(ticks, Pipeline);
    let (output, applied) = builder.new_output();
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<Vec<Tick>>>::from(output);
    let shards = shards_of(scope.index(), scope.peers());
    builder.build(move |initial| {
        drop(initial);
        let mut reached = [None; SHARDS];
        for (reached, position) in reached.iter_mut().zip(store.progress()) {
            *reached = position.map(|position| position.time);
        }
        let of_worker = |(shard, _): &(usize, &Option<Time>)| shards & (1 << shard) != 0;
        let reached_by_all = reached.iter().enumerate().filter(of_worker).map(|(_, reached)| *reached).min().flatten();
        let mut waiting = Waiting {
            store,
            supervisor,
            shards,
            reached,
            reached_by_all,
            first,
            times: BTreeMap::new(),
            ticks: BTreeMap::new(),
            newest: Position::default(),
            spare: Vec::new(),
        };
        let mut held = Held::default();
        move |frontiers| {
            deliveries.for_each(|capability, deliveries| {
                if waiting.deliver(deliveries) {
                    held.keep(*capability.time(), || capability.retain(0));
                }
            });
            records.for_each(|capability, records| {
                if waiting.record(records) {
                    held.keep(*capability.time(), || capability.retain(0));
                }
            });
            ticks.for_each(|capability, ticks| {
                held.keep(*capability.time(), || capability.retain(0));
                waiting.ticks.extend(ticks.drain(..).map(|tick| (tick.position.time, tick)));
            });
            let Some(open) = open_from(frontiers) else { return };
            let Ok(done) = waiting.apply_before(open) else { return };
            if let Some(capability) = held.0.as_ref().filter(|_| !done.is_empty()) {
                output.activate().session(capability).give_iterator(done.into_iter());
            }
            held.release(waiting.first());
        }
    });
    applied
}

/// The store refused a time; the workers are told to end.
struct Refused;

impl Home {
    fn record(&mut self, record: HomeRecordChange, diff: isize) {
        if self.records.len() >= self.sum_at {
            consolidate(&mut self.records);
            self.sum_at = (2 * self.records.len()).max(1 << 16);
        }
        self.records.push((record, diff));
    }
}

impl Waiting {
    /// What waits for `time`, or for the first time if that is later.
    fn at(&mut self, time: Time) -> &mut Home {
        let (spare, shards) = (&mut self.spare, self.shards);
        self.times.entry(time.max(self.first)).or_insert_with(|| spare.pop().unwrap_or_else(|| empty(shards)))
    }

    /// Whether the store needs what happens to `viewer` at `time`.
    #[inline]
    fn needs(&self, viewer: i64, time: Time) -> bool {
        let reached = self.reached.get(usize::from(shard_of(viewer))).copied().flatten();
        reached.is_none_or(|reached| reached < time)
    }

    /// Takes in changes of records; `false` if none is needed.
    fn record(&mut self, records: &mut Vec<(HomeRecordChange, Time, isize)>) -> bool {
        let mut any = false;
        for (record, time, diff) in records.drain(..) {
            if self.needs(record.viewer(), time) {
                self.at(time).record(record, diff);
                any = true;
            }
        }
        any
    }

    /// Takes in deliveries; `false` if none is needed.
    fn deliver(&mut self, deliveries: &mut Vec<TimedDelivery>) -> bool {
        let mut any = false;
        for same in deliveries.chunk_by(|(_, one), (_, other)| one == other) {
            let Some(&(_, time)) = same.first() else { continue };
            // Where some shard needs the time, the others know by themselves that they do not.
            if self.reached_by_all.is_some_and(|reached| time <= reached) {
                continue;
            }
            any = true;
            let lists = &mut self.at(time).closed.deliveries;
            for (delivery, _) in same {
                if let Some(list) = lists.get_mut(usize::from(shard_of(delivery.viewer))) {
                    list.push(*delivery);
                }
            }
        }
        deliveries.clear();
        any
    }

    /// The first time that waits.
    fn first(&self) -> Option<Time> {
        self.times.keys().next().into_iter().chain(self.ticks.keys().next()).copied().min()
    }

    /// Applies every time before `open`, in order, and returns their ticks.
    fn apply_before(&mut self, open: Time) -> Result<Vec<Tick>, Refused> {
        let mut done = Vec::<Tick>::new();
        let mut last = None;
        while let Some(time) = self.first().filter(|time| *time < open) {
            let tick = self.ticks.remove(&time);
            if let Some(tick) = tick {
                self.newest = tick.position;
                done.push(tick);
            }
            let floor = tick.and_then(|tick| tick.floor);
            let home = self.times.remove(&time);
            if home.is_some() || floor.is_some() {
                let home = home.unwrap_or_else(|| self.spare());
                self.apply(Position { time, lsn: self.newest.lsn }, floor, home)?;
                last = Some(time);
            }
        }
        // A time without changes moves the progress, unless a later one has.
        if let Some(tick) = done.last().filter(|tick| last.is_none_or(|last| last < tick.position.time)) {
            let home = self.spare();
            self.apply(tick.position, None, home)?;
        }
        Ok(done)
    }

    fn spare(&mut self) -> Home {
        self.spare.pop().unwrap_or_else(|| empty(self.shards))
    }

    fn apply(&mut self, position: Position, floor: Option<i64>, mut home: Home) -> Result<(), Refused> {
        consolidate(&mut home.records);
        let anomalies = home.records.iter().filter(|(_, diff)| diff.abs() > 1).count();
        self.supervisor.anomaly("home records", position.time, anomalies as u64);
        home.closed.position = position;
        home.closed.floor = floor;
        home.closed.records.extend(home.records.drain(..).map(|(record, diff)| (record, diff as i64)));
        self.store.apply(&mut home.closed).map_err(|error| {
            self.supervisor.refused(error);
            Refused
        })?;
        home.closed.records.clear();
        let room: usize = home.closed.deliveries.iter_mut().map(cleared).sum();
        if self.spare.len() < SPARE_SETS_MAX && room <= SPARE_DELIVERIES_MAX && home.records.capacity() <= 1 << 16 {
            self.spare.push(home);
        }
        Ok(())
    }
}

/// Empties a list and says for how many deliveries it has room.
fn cleared(list: &mut Vec<Delivery>) -> usize {
    list.clear();
    list.capacity()
}

fn empty(shards: u64) -> Home {
    Home { closed: HomeClosed::empty(Position::default(), shards), records: Vec::new(), sum_at: 1 << 16 }
}
