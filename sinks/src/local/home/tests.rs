//! A store that is saved while closed times are applied, and killed, against one that never stops.

use std::collections::{BTreeMap, BTreeSet};

use feedmill_model::{Delivery, EntryId, HomeRecordChange, Lsn, id_at};
use proptest::prelude::*;
use tempfile::TempDir;

use super::*;

const START: Time = 1_700_000_000_000;
const DAY_MS: Time = 86_400_000;

/// Small, so that records are cut.
fn parameters() -> Parameters {
    Parameters { home_max: 6, home_keep: 4, ..Parameters::default() }
}

/// Viewers of two shards, so that each has several segments.
fn viewers() -> Vec<i64> {
    (1..).filter(|viewer| shard_of(*viewer) < 2).take(24).collect()
}

/// What happens at one closed time; `usize` is a viewer.
#[derive(Clone, Debug)]
enum Action {
    /// An inactive viewer becomes active, with this many old entries; an active one stops being so.
    Toggle(usize, u8),
    /// A new entry for the active ones among every n-th viewer.
    Post(usize),
    /// One of the viewer's entries goes.
    Take(usize, usize),
    /// The viewer follows a hot account, or does so no longer.
    Hot(usize, i64),
    /// All floors rise past every entry.
    Bulk,
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let action = prop_oneof![
        6 => (0..24_usize, 0..4_u8).prop_map(|(viewer, old)| Action::Toggle(viewer, old)),
        6 => (1..8_usize).prop_map(Action::Post),
        3 => (0..24_usize, 0..6_usize).prop_map(|(viewer, entry)| Action::Take(viewer, entry)),
        2 => (0..24_usize, 0..3_i64).prop_map(|(viewer, author)| Action::Hot(viewer, author)),
        1 => Just(Action::Bulk),
    ];
    prop::collection::vec(action, 0..6)
}

/// What the subject goes through.
#[derive(Clone, Debug)]
enum Step {
    /// So many closed times are applied.
    Apply(usize),
    /// A save; before the segments of these numbers a closed time is applied. It is broken off before the last of them.
    Save(Vec<usize>, bool),
    /// The process is killed, and started again.
    Crash,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let step = prop_oneof![
        3 => (1..8_usize).prop_map(Step::Apply),
        4 => (prop::collection::vec(0..16_usize, 0..12), prop::bool::weighted(0.1))
            .prop_map(|(mut at, broken)| { at.sort_unstable(); Step::Save(at, broken) }),
        2 => Just(Step::Crash),
    ];
    prop::collection::vec(step, 1..20)
}

/// Makes closed times as the dataflows would give them.
#[derive(Default)]
struct World {
    active: BTreeMap<i64, BTreeSet<PackedEntry>>,
    hot: BTreeSet<(i64, i64)>,
}

impl World {
    fn close(&mut self, actions: &[Action], jump: Time, last: Time) -> HomeClosed {
        let time = last + 1 + jump;
        let (mut records, mut deliveries) = (BTreeMap::new(), BTreeMap::<(i64, PackedEntry), i32>::new());
        let viewers = viewers();
        let mut floor = None;
        for (first, action) in (0..).step_by(16).zip(actions) {
            let entry = |number| PackedEntry::new(EntryId::tweet(id_at(time as i64, number))).unwrap();
            match *action {
                Action::Toggle(viewer, old) => {
                    let viewer = viewers[viewer];
                    let (diff, entries) = match self.active.remove(&viewer) {
                        Some(entries) => (-1, entries),
                        None => {
                            let entries: BTreeSet<_> = (0..u16::from(old)).map(|old| entry(first + old)).collect();
                            self.active.insert(viewer, entries.clone());
                            (1, entries)
                        }
                    };
                    *records.entry(HomeRecordChange::Active { viewer }).or_default() += diff;
                    let hot: Vec<i64> = self.hot.iter().filter(|of| of.0 == viewer).map(|of| of.1).collect();
                    for author in hot {
                        *records.entry(HomeRecordChange::Hot { viewer, author }).or_default() += diff;
                    }
                    for entry in entries {
                        *deliveries.entry((viewer, entry)).or_default() += diff as i32;
                    }
                }
                Action::Post(every) => {
                    for viewer in viewers.iter().step_by(every) {
                        if let Some(entries) = self.active.get_mut(viewer) {
                            entries.insert(entry(first));
                            *deliveries.entry((*viewer, entry(first))).or_default() += 1;
                        }
                    }
                }
                Action::Take(viewer, nth) => {
                    let viewer = viewers[viewer];
                    if let Some(entries) = self.active.get_mut(&viewer)
                        && let Some(entry) = entries.iter().nth_back(nth).copied()
                    {
                        entries.remove(&entry);
                        *deliveries.entry((viewer, entry)).or_default() -= 1;
                    }
                }
                Action::Hot(viewer, author) => {
                    let viewer = viewers[viewer];
                    let diff = if self.hot.remove(&(viewer, author)) { -1 } else { 1 };
                    if diff > 0 {
                        self.hot.insert((viewer, author));
                    }
                    if self.active.contains_key(&viewer) {
                        *records.entry(HomeRecordChange::Hot { viewer, author }).or_default() += diff;
                    }
                }
                // What a bulk batch brings is not delivered.
                Action::Bulk => floor = Some(id_at(time as i64, 60_000)),
            }
        }
        let position = Position { time, lsn: Lsn(time) };
        let mut closed = HomeClosed { floor, ..HomeClosed::empty(position, u64::MAX) };
        closed.records = records.into_iter().filter(|(_, diff)| *diff != 0).collect();
        for ((viewer, entry), diff) in deliveries.into_iter().filter(|(_, diff)| *diff != 0) {
            closed.deliveries[usize::from(shard_of(viewer))].push(Delivery { viewer, entry, diff });
        }
        closed
    }
}

type Records = BTreeMap<i64, HomeRecord>;

fn records(home: &LocalHome) -> Records {
    viewers().into_iter().filter_map(|viewer| Some((viewer, home.record(viewer)?))).collect()
}

/// A store that is killed again and again.
struct Subject {
    dir: TempDir,
    home: LocalHome,
    history: Vec<HomeClosed>,
    /// What the store that never stops held after each closed time.
    expected: Vec<Records>,
    /// How many closed times were applied since the last start.
    at: usize,
    /// How many were applied before the last crash: its segments have no more.
    crashed_at: usize,
    /// The least number of closed times that a segment had at the last start.
    started_at: usize,
}

impl Subject {
    /// Each record is one that the viewer has had since the save, and the current one once nothing is missing.
    fn compare(&self) {
        assert_eq!(self.home.anomalies(), 0, "after {} closed times", self.at);
        let held = records(&self.home);
        if self.at >= self.crashed_at {
            let current = self.at.checked_sub(1).map(|last| self.expected[last].clone()).unwrap_or_default();
            assert_eq!(held, current, "after {} closed times", self.at);
            return;
        }
        for viewer in viewers() {
            let states = self.started_at..=self.crashed_at;
            let mut had = states.map(|count| count.checked_sub(1).and_then(|last| self.expected[last].get(&viewer)));
            let now = held.get(&viewer);
            let same = |had: &HomeRecord, now: &HomeRecord| had.entries == now.entries && had.hot == now.hot;
            assert!(
                had.any(|had| had == now || matches!((had, now), (Some(had), Some(now)) if same(had, now))),
                "{viewer} has {now:?} after {} of {}..={}",
                self.at,
                self.started_at,
                self.crashed_at
            );
        }
    }

    fn apply(&mut self) {
        if let Some(closed) = self.history.get(self.at) {
            self.home.apply(&mut closed.clone()).unwrap();
            self.at += 1;
            self.compare();
        }
    }

    fn save(&mut self, at: &[usize], broken: bool) {
        // The save asks before each segment; what is applied meanwhile is applied from there.
        let (home, history, first) = (&self.home, &self.history, self.at);
        let (mut asked, mut applied) = (0, 0);
        let go_on = || {
            while at.get(applied).is_some_and(|at| *at <= asked) {
                if let Some(closed) = history.get(first + applied) {
                    home.apply(&mut closed.clone()).unwrap();
                }
                applied += 1;
            }
            asked += 1;
            !broken || applied < at.len()
        };
        home.save(|| Ok(()), go_on).unwrap();
        self.at = (first + applied).min(self.history.len());
        self.compare();
    }

    fn crash(&mut self) {
        self.crashed_at = self.crashed_at.max(self.at);
        self.home = LocalHome::open(self.dir.path(), parameters());
        if self.at.is_multiple_of(2) {
            self.home.load();
        }
        let position = self.home.position();
        self.at = position.map_or(0, |position| {
            assert_eq!(position.lsn.0, position.time);
            self.history.partition_point(|closed| closed.position.time <= position.time)
        });
        self.started_at = self.at;
        self.compare();
        self.home.load();
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_saved_at_different_times_becomes_one_again(
        history in prop::collection::vec((actions(), prop_oneof![9 => 0..100_u64, 1 => 0..20 * DAY_MS]), 1..60),
        steps in steps(),
    ) {
        let (mut world, mut time) = (World::default(), START);
        let history: Vec<HomeClosed> = history
            .iter()
            .map(|(actions, jump)| {
                let closed = world.close(actions, *jump, time);
                time = closed.position.time;
                closed
            })
            .collect();
        let model = LocalHome::new(parameters());
        let after = |closed: &HomeClosed| {
            model.apply(&mut closed.clone()).unwrap();
            records(&model)
        };
        let expected: Vec<Records> = history.iter().map(after).collect();
        prop_assert_eq!(model.anomalies(), 0);
        let dir = tempfile::tempdir().unwrap();
        let home = LocalHome::open(dir.path(), parameters());
        let mut subject = Subject { dir, home, history, expected, at: 0, crashed_at: 0, started_at: 0 };
        for step in steps.iter().chain([&Step::Crash, &Step::Apply(usize::MAX)]) {
            match step {
                Step::Apply(count) => (0..(*count).min(subject.history.len())).for_each(|_| subject.apply()),
                Step::Save(at, broken) => subject.save(at, *broken),
                Step::Crash => subject.crash(),
            }
        }
        prop_assert_eq!(subject.at, subject.history.len());
    }
}
