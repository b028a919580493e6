//! What every store of home timelines must do.

use std::collections::{BTreeMap, BTreeSet};

use feedmill_model::{
    Delivery, EntryId, HomeClosed, HomeRecordChange, HomeSink, PackedEntry, Parameters, Time, id_at, shard_of,
};
use feedmill_sinks::{HomeRecord, LocalHome};
use proptest::prelude::*;

use crate::index::{ALL, position};

/// A store of home timelines that can be read.
pub trait Subject: HomeSink {
    /// Histories that are tried.
    const HISTORIES: u32 = 200;
    /// The viewer's record.
    fn record(&self, viewer: i64) -> Option<HomeRecord>;
    /// Changes that did not fit.
    fn anomalies(&self) -> u64;
    /// Rows applied.
    fn deliveries(&self) -> u64;
}

impl Subject for LocalHome {
    fn record(&self, viewer: i64) -> Option<HomeRecord> {
        LocalHome::record(self, viewer)
    }

    fn anomalies(&self) -> u64 {
        LocalHome::anomalies(self)
    }

    fn deliveries(&self) -> u64 {
        LocalHome::deliveries(self)
    }
}

const DAY_MS: u64 = 86_400_000;
pub const START: Time = 1_700_000_000_000;

pub fn active(viewer: i64, diff: i64) -> (HomeRecordChange, i64) {
    (HomeRecordChange::Active { viewer }, diff)
}

pub fn hot(viewer: i64, author: i64, diff: i64) -> (HomeRecordChange, i64) {
    (HomeRecordChange::Hot { viewer, author }, diff)
}

pub fn packed(id: i64) -> PackedEntry {
    PackedEntry::new(EntryId::tweet(id)).unwrap()
}

/// A closed time. Deliveries are (viewer, entry, diff).
pub fn closed(
    time: Time,
    mut records: Vec<(HomeRecordChange, i64)>,
    deliveries: &[(i64, PackedEntry, i32)],
) -> HomeClosed {
    records.sort();
    let mut closed = HomeClosed { records, ..HomeClosed::empty(position(time), ALL) };
    for &(viewer, entry, diff) in deliveries {
        closed.deliveries[usize::from(shard_of(viewer))].push(Delivery { viewer, entry, diff });
    }
    closed
}

/// Ids of the entries of a record.
fn ids(home: &impl Subject, viewer: i64) -> Option<Vec<i64>> {
    home.record(viewer).map(|record| record.entries.iter().map(|entry| entry.id()).collect())
}

/// Ids that are one millisecond apart.
pub fn id(number: u64) -> i64 {
    id_at((START + number) as i64, 0)
}

pub fn records_come_fill_and_go<S: Subject>(new: fn(Parameters) -> S) {
    let home = new(Parameters::default());
    let mut first = closed(
        START,
        vec![active(1, 1), hot(1, 9, 1), hot(1, 8, 1)],
        &[(1, packed(id(2)), 1), (1, packed(id(1)), 1), (2, packed(id(1)), 1)],
    );
    home.apply(&mut first).unwrap();
    assert!(first.records.is_empty() && first.deliveries.iter().all(Vec::is_empty));
    let record = home.record(1).unwrap();
    assert_eq!(record.floor, Parameters::default().horizon(START));
    assert_eq!(record.hot, [8, 9]);
    assert_eq!(record.entries, [packed(id(2)), packed(id(1))]);
    assert_eq!(home.record(2), None);
    assert_eq!(home.deliveries(), 2);

    // The entry of an author who becomes hot leaves while the author comes.
    home.apply(&mut closed(START + 1, vec![hot(1, 7, 1)], &[(1, packed(id(1)), -1)])).unwrap();
    let record = home.record(1).unwrap();
    assert_eq!((record.hot, record.entries), (vec![7, 8, 9], vec![packed(id(2))]));

    let gone = &[(1, packed(id(2)), -1)];
    home.apply(&mut closed(START + 2, vec![active(1, -1), hot(1, 7, -1), hot(1, 8, -1)], gone)).unwrap();
    assert_eq!(home.record(1), None);
    assert_eq!((home.deliveries(), home.anomalies()), (3, 0));
}

pub fn changes_of_one_time_are_summed<S: Subject>(new: fn(Parameters) -> S) {
    let home = new(Parameters::default());
    home.apply(&mut closed(START, vec![active(1, 1)], &[(1, packed(id(1)), 1)])).unwrap();
    let changes = [(1, packed(id(1)), -1), (1, packed(id(2)), 2), (1, packed(id(1)), 1), (1, packed(id(2)), -1)];
    home.apply(&mut closed(START + 1, vec![], &changes)).unwrap();
    assert_eq!(ids(&home, 1).unwrap(), [id(2), id(1)]);
    assert_eq!((home.deliveries(), home.anomalies()), (2, 0));
}

pub fn an_older_time_is_ignored<S: Subject>(new: fn(Parameters) -> S) {
    let home = new(Parameters::default());
    home.apply(&mut closed(START, vec![active(1, 1)], &[(1, packed(id(1)), 1)])).unwrap();
    for time in [START, START - 1] {
        home.apply(&mut closed(time, vec![active(1, -1)], &[(1, packed(id(2)), 1)])).unwrap();
    }
    assert_eq!(ids(&home, 1).unwrap(), [id(1)]);
    assert_eq!(home.anomalies(), 0);
}

pub fn shards_of_other_workers_are_left_alone<S: Subject>(new: fn(Parameters) -> S) {
    let home = new(Parameters::default());
    let other = (2..).find(|viewer| shard_of(*viewer) != shard_of(1)).unwrap();
    let both = vec![active(1, 1), active(other, 1)];
    home.apply(&mut HomeClosed { shards: 1 << shard_of(1), ..closed(START, both, &[]) }).unwrap();
    assert!(home.record(1).is_some() && home.record(other).is_none());
    home.apply(&mut HomeClosed { shards: !(1 << shard_of(1)), ..closed(START, vec![active(other, 1)], &[]) }).unwrap();
    assert!(home.record(other).is_some());
    assert_eq!(home.anomalies(), 0);
}

pub fn what_outgrows_is_cut_and_the_floor_rises<S: Subject>(new: fn(Parameters) -> S) {
    let home = new(Parameters { home_max: 50, home_keep: 30, ..Parameters::default() });
    home.apply(&mut closed(START, vec![active(1, 1)], &[])).unwrap();
    for number in 1..=51 {
        home.apply(&mut closed(START + number, vec![], &[(1, packed(id(number)), 1)])).unwrap();
    }
    let record = home.record(1).unwrap();
    assert_eq!((record.floor, record.entries.len()), (id(21), 30));
    // What comes or goes below the floor is nothing to the record.
    home.apply(&mut closed(START + 60, vec![], &[(1, packed(id(3)), -1), (1, packed(id(20)), 1)])).unwrap();
    assert_eq!(ids(&home, 1).unwrap().len(), 30);
    assert_eq!(home.anomalies(), 0);
}

pub fn a_bulk_raises_all_floors_and_time_does_too<S: Subject>(new: fn(Parameters) -> S) {
    let home = new(Parameters::default());
    let entries = [(1, packed(id(1)), 1), (1, packed(id(5)), 1)];
    home.apply(&mut closed(START, vec![active(1, 1)], &entries)).unwrap();
    let late = [(1, packed(id(2)), 1), (1, packed(id(4)), 1)];
    home.apply(&mut HomeClosed { floor: Some(id(3)), ..closed(START + 9, vec![active(2, 1)], &late) }).unwrap();
    assert_eq!(home.record(1).unwrap().floor, id(3));
    assert_eq!(ids(&home, 1).unwrap(), [id(5), id(4)]);
    assert_eq!(home.record(2).unwrap().floor, id(3), "a record that is made is no lower");
    // A month later the entries are below the horizon, though nothing took them out.
    home.apply(&mut closed(START + 4 + 30 * DAY_MS, vec![], &[])).unwrap();
    assert_eq!(home.record(1).unwrap().floor, Parameters::default().horizon(START + 4 + 30 * DAY_MS));
    assert_eq!(ids(&home, 1).unwrap(), [id(5)]);
}

pub fn what_does_not_fit_is_counted_and_left_out<S: Subject>(new: fn(Parameters) -> S) {
    let home = new(Parameters::default());
    let twice = [(1, packed(id(1)), 1), (1, packed(id(1)), 1)];
    home.apply(&mut closed(START, vec![active(1, 1)], &twice)).unwrap();
    assert_eq!((ids(&home, 1).unwrap(), home.anomalies()), (vec![id(1)], 1));
    home.apply(&mut closed(START + 1, vec![], &[(1, packed(id(9)), -1)])).unwrap();
    assert_eq!(home.anomalies(), 2);
    home.apply(&mut closed(START + 2, vec![], &[(1, packed(id(2)), 3)])).unwrap();
    assert_eq!((ids(&home, 1).unwrap(), home.anomalies()), (vec![id(2), id(1)], 3));
    home.apply(&mut closed(START + 3, vec![active(1, 1), active(3, -1), hot(1, 5, -1)], &[])).unwrap();
    assert_eq!(home.anomalies(), 6);
}

/// A reader never sees an author's entries and the author among the hot ones, nor neither of both.
pub fn a_switch_is_never_seen_half<S: Subject + 'static>(new: fn(Parameters) -> S) {
    let home = new(Parameters::default());
    // More than one statement may name.
    let entries: Vec<PackedEntry> = (1..=120).map(|number| packed(id(number))).collect();
    let deliver = |diff| entries.iter().map(|entry| (1, *entry, diff)).collect::<Vec<_>>();
    home.apply(&mut closed(START, vec![active(1, 1)], &deliver(1))).unwrap();
    std::thread::scope(|scope| {
        let reader = scope.spawn(|| {
            let (mut switches, mut was_hot) = (0, false);
            while switches < 20 {
                let record = home.record(1).unwrap();
                let is_hot = !record.hot.is_empty();
                assert_eq!(record.entries.len(), if is_hot { 0 } else { 120 });
                switches += usize::from(is_hot != was_hot);
                was_hot = is_hot;
            }
        });
        for step in 1.. {
            let diff = if step % 2 == 1 { 1 } else { -1 };
            home.apply(&mut closed(START + step, vec![hot(1, 9, diff)], &deliver(-diff as i32))).unwrap();
            if reader.is_finished() {
                break;
            }
            assert!(step < 10_000_000, "the reader never saw it change");
        }
    });
}

/// What happens between two closed times.
#[derive(Clone, Debug)]
enum Event {
    /// Entry number so and so of a viewer comes if it is not there, else it goes; or both at once.
    Entry { viewer: i64, number: u64, retweet: bool, both: bool },
    /// A viewer becomes active, or stops being so.
    Active { viewer: i64 },
    /// An author becomes hot for a viewer, or stops being so.
    Hot { viewer: i64, author: i64 },
    /// A bulk batch, up to the entry of this number.
    Bulk { number: u64 },
}

/// Four viewers of one shard, and two of others.
fn viewers() -> Vec<i64> {
    let of_one_shard = (1..).filter(|viewer| shard_of(*viewer) == shard_of(1)).take(4);
    of_one_shard.chain((2..).filter(|viewer| shard_of(*viewer) != shard_of(1)).take(2)).collect()
}

/// Entries of the history are this far apart, so that a month is a hundred of them.
const APART_MS: u64 = 30 * DAY_MS / 100;
const ENTRIES: u64 = 200;

fn events() -> impl Strategy<Value = Vec<Vec<Event>>> {
    let viewer = || prop::sample::select(viewers());
    let event = prop_oneof![
        // Mostly near the newest: the number is taken relative to the time.
        20 => (viewer(), 0..40_u64, any::<bool>(), prop::bool::weighted(0.1))
            .prop_map(|(viewer, number, retweet, both)| Event::Entry { viewer, number, retweet, both }),
        2 => viewer().prop_map(|viewer| Event::Active { viewer }),
        2 => (viewer(), 10..14_i64).prop_map(|(viewer, author)| Event::Hot { viewer, author }),
        1 => (20..60_u64).prop_map(|number| Event::Bulk { number }),
    ];
    prop::collection::vec(prop::collection::vec(event, 0..12), 0..100)
}

/// What is true of a viewer, whoever keeps it.
#[derive(Default)]
struct Truth {
    active: bool,
    entries: BTreeSet<PackedEntry>,
    hot: BTreeSet<i64>,
    /// The record's floor can not be below this, nor above it as long as the record was never full.
    least_floor: i64,
    was_full: bool,
    last_floor: i64,
}

/// A naive history: what is true, and the closed times that say so.
struct History {
    parameters: Parameters,
    viewers: BTreeMap<i64, Truth>,
    floor: i64,
    time: Time,
}

fn numbered(number: u64, retweet: bool) -> PackedEntry {
    let id = id_at((START + number * APART_MS) as i64, 0);
    PackedEntry::new(if retweet { EntryId::retweet(id) } else { EntryId::tweet(id) }).unwrap()
}

impl History {
    fn new(parameters: Parameters) -> Self {
        let viewers = viewers().into_iter().map(|viewer| (viewer, Truth::default())).collect();
        History { parameters, viewers, floor: i64::MIN, time: START }
    }

    /// The closed time `step`, with these events.
    fn close(&mut self, step: u64, events: &[Event]) -> HomeClosed {
        let newest = step.min(ENTRIES);
        self.time = START + newest * APART_MS + 1 + step;
        let mut next: BTreeMap<i64, (bool, BTreeSet<PackedEntry>, BTreeSet<i64>)> = BTreeMap::new();
        for (viewer, truth) in &self.viewers {
            next.insert(*viewer, (truth.active, truth.entries.clone(), truth.hot.clone()));
        }
        let mut pairs = Vec::new();
        let mut bulk = None;
        for event in events {
            match *event {
                Event::Entry { viewer, number, retweet, both } => {
                    let entry = numbered(newest.saturating_sub(number), retweet);
                    let entries = &mut next.get_mut(&viewer).unwrap().1;
                    if both {
                        pairs.extend([(viewer, entry, 1), (viewer, entry, -1)]);
                    } else if !entries.remove(&entry) {
                        entries.insert(entry);
                    }
                }
                Event::Active { viewer } => {
                    let active = &mut next.get_mut(&viewer).unwrap().0;
                    *active = !*active;
                }
                Event::Hot { viewer, author } => {
                    let hot = &mut next.get_mut(&viewer).unwrap().2;
                    if !hot.remove(&author) {
                        hot.insert(author);
                    }
                }
                Event::Bulk { number } => bulk = Some(numbered(newest.saturating_sub(number), true).id()),
            }
        }
        self.floor = self.floor.max(bulk.unwrap_or(i64::MIN));
        self.differences(next, pairs, bulk)
    }

    fn differences(
        &mut self,
        next: BTreeMap<i64, (bool, BTreeSet<PackedEntry>, BTreeSet<i64>)>,
        pairs: Vec<(i64, PackedEntry, i32)>,
        bulk: Option<i64>,
    ) -> HomeClosed {
        let horizon = self.parameters.horizon(self.time);
        let (mut records, mut deliveries) = (Vec::new(), pairs);
        for (viewer, (is_active, mut entries, hots)) in next {
            let truth = self.viewers.get_mut(&viewer).unwrap();
            entries.retain(|entry| entry.id() > horizon);
            truth.entries.retain(|entry| entry.id() > horizon);
            let diff = i64::from(is_active) - i64::from(truth.active);
            records.extend((diff != 0).then_some(active(viewer, diff)));
            let none = (BTreeSet::new(), BTreeSet::new());
            let (old, old_hot) = if truth.active { (&truth.entries, &truth.hot) } else { (&none.0, &none.1) };
            let (new, new_hot) = if is_active { (&entries, &hots) } else { (&none.0, &none.1) };
            deliveries.extend(new.difference(old).map(|entry| (viewer, *entry, 1)));
            deliveries.extend(old.difference(new).map(|entry| (viewer, *entry, -1)));
            records.extend(new_hot.difference(old_hot).map(|author| hot(viewer, *author, 1)));
            records.extend(old_hot.difference(new_hot).map(|author| hot(viewer, *author, -1)));
            if diff > 0 {
                (truth.was_full, truth.last_floor) = (false, i64::MIN);
            }
            let live = |entries: &BTreeSet<PackedEntry>| entries.iter().filter(|entry| entry.id() > self.floor).count();
            let added = new.difference(old).count();
            truth.was_full |= live(old) + added > self.parameters.home_max;
            truth.least_floor = self.floor.max(horizon);
            (truth.active, truth.entries, truth.hot) = (is_active, entries, hots);
        }
        // In no order.
        deliveries
            .sort_by_key(|(viewer, entry, diff)| entry.0.wrapping_mul(0x9E37_79B9) ^ (*viewer as u64) ^ (*diff as u64));
        HomeClosed { floor: bulk, ..closed(self.time, records, &deliveries) }
    }

    fn check(&mut self, home: &impl Subject) -> Result<(), TestCaseError> {
        prop_assert_eq!(home.anomalies(), 0);
        for (viewer, truth) in &mut self.viewers {
            let record = home.record(*viewer);
            prop_assert_eq!(record.is_some(), truth.active);
            let Some(record) = record else { continue };
            prop_assert!(record.floor >= truth.least_floor.max(truth.last_floor), "a floor never falls");
            prop_assert!(truth.was_full || record.floor == truth.least_floor, "a floor does not rise without need");
            prop_assert!(record.entries.len() <= self.parameters.home_max);
            truth.last_floor = record.floor;
            let above = truth.entries.iter().rev().filter(|entry| entry.id() > record.floor);
            prop_assert_eq!(record.entries, above.copied().collect::<Vec<_>>());
            prop_assert_eq!(record.hot, truth.hot.iter().copied().collect::<Vec<_>>());
        }
        Ok(())
    }
}

pub fn every_history_is_kept_above_the_floors<S: Subject>(new: fn(Parameters) -> S) {
    let sizes = (1..60_usize, 1..60_usize);
    proptest!(ProptestConfig { cases: S::HISTORIES, ..ProptestConfig::default() }, |(history in events(), (one, other) in sizes)| {
        let parameters = Parameters { home_max: one.max(other), home_keep: one.min(other), ..Parameters::default() };
        let home = new(parameters.clone());
        let mut truth = History::new(parameters);
        for (step, events) in history.iter().enumerate() {
            home.apply(&mut truth.close(2 * step as u64, events)).unwrap();
            truth.check(&home)?;
        }
    });
}

/// Puts a store through all of the above: `home_suite!(module, from parameters to a new store)`.
macro_rules! home_suite {
    ($module:ident, $new:expr) => {
        home_suite!($module, $new,
            records_come_fill_and_go changes_of_one_time_are_summed an_older_time_is_ignored
            shards_of_other_workers_are_left_alone what_outgrows_is_cut_and_the_floor_rises
            a_bulk_raises_all_floors_and_time_does_too what_does_not_fit_is_counted_and_left_out
            a_switch_is_never_seen_half every_history_is_kept_above_the_floors);
    };
    ($module:ident, $new:expr, $($test:ident)*) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $test() {
                $crate::home::$test($new);
            })*
        }
    };
}
pub(crate) use home_suite;
