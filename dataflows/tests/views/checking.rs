//! Plays a history in several runs of the runtime, and compares all stores with the oracle at all times.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use feedmill_dataflows::{Config, OnApplied, Part, Stores};
use feedmill_model::{Applied, Batch, Counter, Document, Fact, Position, Relation, Row, Time, ViewRow};
use proptest::prelude::*;

use super::history::{Moment, greatest_entry, parameters};
use super::oracle;
use super::processes::Processes;
use super::recording::{HomeLog, HomeState, RowRecord, RowState, tick};

/// No wait of a test is longer.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until the stores are as far as a test needs.
#[derive(Clone, Default)]
pub struct Waiter(Arc<(Mutex<Applied>, Condvar)>);

impl Waiter {
    pub fn moved(&self, applied: Applied) {
        *self.0.0.lock().unwrap() = applied;
        self.0.1.notify_all();
    }

    pub fn until_applied(&self, time: Time) {
        let applied = self.0.0.lock().unwrap();
        let (applied, wait) = self.0.1.wait_timeout_while(applied, LIMIT, |applied| applied.by_all() <= time).unwrap();
        assert!(!wait.timed_out(), "{time} was not applied in time: {applied:?}");
    }
}

/// One start of the runtime, and where it ends.
#[derive(Clone, Debug)]
pub struct Run {
    /// Of each process.
    pub workers: usize,
    pub processes: usize,
    /// What likes bring is derived by a runtime of its own, in one process.
    pub apart: bool,
    /// How many of the batches that are left are fed, in 64ths.
    pub part: usize,
    /// Wait for each batch before the next is fed.
    pub one_by_one: bool,
    /// Stop without waiting for all that was fed.
    pub abruptly: bool,
    /// The stores of facts, rows, search and reactions are lost afterwards.
    pub lose_stores: bool,
    /// Home timelines are left as they were saved with this seed; `None`: they are lost.
    pub home: Option<usize>,
    /// The load fills home timelines of which nothing is left.
    pub fill: bool,
    /// Relations are loaded in the reverse of their order.
    pub backwards: bool,
    /// Rows a slice of the load.
    pub slice: usize,
    /// Rows of the load at one time, at least.
    pub rows_at_a_time: usize,
    /// Changes a piece of a batch.
    pub piece: usize,
}

impl Run {
    /// All that is left, on so many workers, into stores that stay.
    pub fn whole(workers: usize) -> Self {
        Run {
            workers,
            processes: 1,
            apart: workers.is_multiple_of(2),
            part: 64,
            one_by_one: false,
            abruptly: false,
            lose_stores: false,
            home: None,
            fill: false,
            backwards: false,
            slice: 3,
            rows_at_a_time: 3,
            piece: 2,
        }
    }
}

pub fn runs() -> impl Strategy<Value = Vec<Run>> {
    let sizes = (1..40_usize, prop_oneof![1..80_usize, Just(1_000)], prop_oneof![1..5_usize, Just(1_000)]);
    let home = prop::option::weighted(0.7, any::<u16>().prop_map(usize::from));
    let kept = (prop::bool::weighted(0.3), home, any::<bool>(), prop::bool::weighted(0.2));
    let workers = prop_oneof![12 => (1..=4_usize, Just(1_usize)), 1 => (1..=2_usize, 2..=3_usize)];
    let run = (workers, any::<bool>(), 0..64_usize, any::<bool>(), any::<bool>(), kept, sizes).prop_map(
        |((workers, processes), apart, part, one_by_one, abruptly, kept, (slice, rows_at_a_time, piece))| {
            let (lose_stores, home, fill, backwards) = kept;
            Run {
                workers,
                processes,
                apart: apart && processes == 1,
                part,
                one_by_one,
                abruptly,
                lose_stores,
                home,
                fill,
                backwards,
                slice,
                rows_at_a_time,
                piece,
            }
        },
    );
    prop::collection::vec(run, 1..4)
}

/// The stores of a history.
#[derive(Default)]
pub struct Kept {
    pub facts: Arc<RowRecord<Fact>>,
    pub rows: Arc<RowRecord<ViewRow>>,
    pub search: Arc<RowRecord<Document>>,
    pub reactions: Arc<RowRecord<ViewRow>>,
    /// Index of the first moment that facts, rows, search and reactions must agree with.
    pub from: usize,
    pub home: Arc<HomeLog>,
    /// The time at which home timelines began.
    pub home_from: Time,
}

impl Kept {
    fn rows_reached(&self) -> Option<Position> {
        let reached = [self.facts.reached()?, self.rows.reached()?, self.search.reached()?, self.reactions.reached()?];
        reached.into_iter().min_by_key(|reached| reached.time)
    }

    /// Where the stores are that have something.
    fn reached(&self) -> Option<Position> {
        self.rows_reached().into_iter().chain(self.home.reached()).min_by_key(|position| position.time)
    }
}

/// Full minutes between two batches that are looked at though nothing was written: about as many at most.
const TURNS_MAX: usize = 6;

/// Entries that were compared, over all cases: a test that compares nothing proves nothing.
pub static ENTRIES: AtomicUsize = AtomicUsize::new(0);

/// Plays `moments` in `runs` and compares all stores at all times.
pub fn check(moments: &[Moment], runs: &[Run]) {
    let mut kept = Kept::default();
    // The first moment is the snapshot that the first run loads.
    let mut log_at = 0;
    for (number, run) in runs.iter().enumerate() {
        let last_run = number + 1 == runs.len();
        let run = &Run { abruptly: run.abruptly && !last_run, ..run.clone() };
        if kept.rows_reached().is_none() {
            compare_rows(moments, &kept, log_at);
            (kept.facts, kept.rows, kept.search, kept.reactions) = Default::default();
        }
        let load = kept.reached().unwrap_or(moments[log_at].batch.position);
        let load_at = moments.iter().rposition(|moment| moment.batch.position.time <= load.time).unwrap();
        if kept.rows_reached().is_none() {
            kept.from = load_at;
        }
        if kept.home.reached().is_none() {
            (kept.home, kept.home_from) = (Arc::new(HomeLog::new(run.fill)), load.time);
        }
        let left = moments.len() - 1 - log_at;
        log_at = if last_run { moments.len() - 1 } else { log_at + left * run.part / 64 };
        let applied = play_run(moments, (load, load_at), log_at, run, &kept);
        if !run.abruptly {
            assert_eq!(applied, log_at);
        }
        if run.lose_stores && !last_run {
            compare_rows(moments, &kept, applied);
            (kept.facts, kept.rows, kept.search, kept.reactions) = Default::default();
        }
        kept.home = Arc::new(run.home.map_or_else(HomeLog::default, |seed| kept.home.saved(seed)));
    }
    compare_rows(moments, &kept, moments.len() - 1);
}

/// Runs from the state at `load`, which is that of moment `load_at`, through the batch `end`; returns the last one that
/// was certainly applied.
pub fn play_run(moments: &[Moment], (load, load_at): (Position, usize), end: usize, run: &Run, kept: &Kept) -> usize {
    let (home, waiter, began) = (&kept.home, Waiter::default(), tick());
    let stores = Stores {
        facts: kept.facts.clone(),
        rows: kept.rows.clone(),
        home: home.clone(),
        search: kept.search.clone(),
        reactions: kept.reactions.clone(),
    };
    let config = Config {
        workers: run.workers,
        part: Part::All,
        parameters: parameters(),
        rows_at_a_time: run.rows_at_a_time,
        profile: None,
    };
    let moved = waiter.clone();
    let on_applied: OnApplied = Arc::new(move |applied| moved.moved(applied));
    let runtime = match run.apart {
        true => Processes::apart(&config, &stores, load, &on_applied),
        false => Processes::start(run.processes, &config, &stores, load, &on_applied),
    };
    let mut relations = Relation::LOAD_ORDER;
    if run.backwards {
        relations.reverse();
    }
    for relation in relations {
        let rows: Vec<Row> =
            moments[load_at].world.values().filter(|row| row.relation() == relation).cloned().collect();
        for slice in rows.chunks(run.slice) {
            runtime.load(slice);
        }
    }
    let load_floor = greatest_entry(&moments[load_at].world);
    runtime.loaded(load_floor);
    for moment in &moments[load_at + 1..=end] {
        for piece in pieces(&moment.batch, run.piece) {
            runtime.feed(&piece);
        }
        if run.one_by_one {
            waiter.until_applied(moment.batch.position.time);
        }
    }
    let end_time = moments[end].batch.position.time.max(load.time);
    if !run.abruptly {
        waiter.until_applied(end_time);
    }
    let frontier = runtime.applied();
    assert!(frontier <= end_time + 1, "{frontier} was applied and only {end_time} was fed");
    runtime.end();
    compare_phases(kept, load.time, began, run.apart);
    let applied = moments[load_at..=end].iter().rposition(|moment| moment.batch.position.time < frontier);
    if frontier > load.time {
        compare_home(moments, home, kept.home_from, frontier);
    }
    applied.map_or(0, |applied| load_at + applied)
}

/// A batch in pieces of at most `changes` changes.
fn pieces(batch: &Batch, changes: usize) -> Vec<Batch> {
    let mut pieces: Vec<Batch> = batch
        .changes
        .chunks(changes)
        .map(|changes| Batch { changes: changes.to_vec(), last: false, ..batch.clone() })
        .collect();
    match pieces.last_mut() {
        Some(last) => last.last = true,
        None => pieces.push(batch.clone()),
    }
    pieces
}

/// Each time begins in a phase when it has ended in the one before, on all workers.
fn compare_phases(kept: &Kept, load: Time, run_began: u64, apart: bool) {
    let facts: Vec<_> = kept.facts.by_time().into_iter().map(|(time, began, ended, _)| (time, began, ended)).collect();
    let rows: Vec<_> = kept.rows.by_time().into_iter().map(|(time, began, ended, _)| (time, began, ended)).collect();
    let home = kept.home.by_time().into_iter().map(|(time, began, _)| (time, began));
    let home = home.filter(|(time, began)| *time > load && *began > run_began);
    let later = |one: &[(Time, u64, u64)], time: Time, began: u64| {
        // What an earlier run, with stores that survived it, has applied is no part of the order.
        one.iter().filter(|(before, _, _)| *before == time).all(|(_, _, ended)| *ended < began)
    };
    let first_home = home.clone().map(|(_, began)| began).min().unwrap_or(u64::MAX);
    for (time, began, _) in rows.iter().filter(|(time, began, _)| *time > load && *began > first_home) {
        assert!(later(&facts, *time, *began), "rows of {time} before its facts");
    }
    // Apart, it is for who feeds them to keep the order.
    let reactions = kept.reactions.by_time().into_iter().filter(|_| !apart);
    for (time, began, ..) in reactions.filter(|(time, began, ..)| *time > load && *began > first_home) {
        assert!(later(&rows, time, began), "reactions of {time} before its rows");
    }
    for (time, began) in home {
        assert!(later(&rows, time, began), "home of {time} before its rows");
    }
}

/// The time of each moment, and full minutes between at which something is to happen though nothing is written.
fn times_of(moments: &[Moment]) -> BTreeSet<Time> {
    let mut times: BTreeSet<Time> = moments.iter().map(|moment| moment.batch.position.time).collect();
    for between in moments.windows(2) {
        let (from, until) = (between[0].batch.position.time, between[1].batch.position.time);
        let turns = oracle::turns(&between[0].world, from, until, &parameters());
        times.extend(turns.iter().step_by(1 + turns.len() / TURNS_MAX));
    }
    times
}

/// Compares at each batch, and between two at each time at which something happened, or was to happen.
fn compare_rows(moments: &[Moment], kept: &Kept, last: usize) {
    let (facts, rows, documents) = (kept.facts.by_time(), kept.rows.by_time(), kept.search.by_time());
    let reactions = kept.reactions.by_time();
    if kept.rows_reached().is_none() {
        return;
    }
    let moments = &moments[kept.from..=last.max(kept.from)];
    let (first, last) = (moments[0].batch.position.time, moments[moments.len() - 1].batch.position.time);
    let mut times: BTreeSet<Time> = rows.iter().chain(&reactions).map(|(time, ..)| *time).collect();
    times.extend(times_of(moments));
    let (mut facts, mut rows) = (facts.iter().peekable(), rows.iter().peekable());
    let (mut documents, mut reactions) = (documents.iter().peekable(), reactions.iter().peekable());
    let (mut fact_state, mut row_state, mut found) = (RowState::default(), RowState::default(), RowState::default());
    let mut reaction_state = RowState::default();
    for time in times.into_iter().filter(|time| (first..=last).contains(time)) {
        while let Some((_, _, _, closed)) = facts.next_if(|(at, ..)| *at <= time) {
            fact_state.apply(closed);
        }
        while let Some((_, _, _, closed)) = rows.next_if(|(at, ..)| *at <= time) {
            row_state.apply(closed);
        }
        while let Some((_, _, _, closed)) = reactions.next_if(|(at, ..)| *at <= time) {
            reaction_state.apply(closed);
        }
        while let Some((_, _, _, closed)) = documents.next_if(|(at, ..)| *at <= time) {
            found.apply(closed);
        }
        let moment = moments.iter().rfind(|moment| moment.batch.position.time <= time).unwrap();
        let expected = oracle::views(&moment.world, time, &parameters());
        assert_eq!(fact_state.rows, expected.facts, "facts at {time}");
        let held: BTreeSet<_> = row_state.rows.union(&reaction_state.rows).cloned().collect();
        assert_eq!(held.len(), row_state.rows.len() + reaction_state.rows.len(), "each row is in one store");
        let missing: Vec<_> = expected.rows.difference(&held).collect();
        let wrong: Vec<_> = held.difference(&expected.rows).collect();
        assert!(missing.is_empty() && wrong.is_empty(), "rows at {time}: {missing:?} missing, {wrong:?} wrong");
        assert_eq!(found.rows, expected.documents, "search at {time}");
        let (mut counts, likes) = (row_state.counts(), reaction_state.counts());
        assert!(likes.keys().all(|(counter, _)| *counter == Counter::Likes), "a count in the wrong store");
        counts.extend(likes);
        assert_eq!(counts, expected.counts, "counts at {time}");
    }
}

/// Compares at each batch, and between two at each time at which something happened, or was to happen.
fn compare_home(moments: &[Moment], home: &HomeLog, load: Time, frontier: Time) {
    let closed = home.by_time();
    let mut times: BTreeSet<Time> = closed.iter().map(|(time, ..)| *time).collect();
    times.extend(times_of(moments));
    let (mut closed, mut state) = (closed.iter().peekable(), HomeState::default());
    for time in times.into_iter().filter(|time| (load..frontier).contains(time)) {
        while let Some((_, _, closed)) = closed.next_if(|(at, ..)| *at <= time) {
            state.apply(closed, &parameters());
        }
        let moment = moments.iter().rfind(|moment| moment.batch.position.time <= time).unwrap();
        let expected = oracle::views(&moment.world, time, &parameters()).home;
        assert_eq!(
            state.records.keys().collect::<Vec<_>>(),
            expected.keys().collect::<Vec<_>>(),
            "active viewers at {time}"
        );
        for (viewer, record) in &state.records {
            assert_eq!(record.hot, expected[viewer].hot, "hot accounts that {viewer} follows at {time}");
            let floor = record.floor.max(parameters().horizon(time));
            let above = |entry: &feedmill_model::PackedEntry| entry.id() > floor;
            let held: BTreeSet<_> =
                record.entries.iter().filter(|(entry, times)| above(entry) && **times > 0).map(|(e, _)| *e).collect();
            let due: BTreeSet<_> = expected[viewer].entries.iter().copied().filter(above).collect();
            assert_eq!(held, due, "home timeline of {viewer} above {floor} at {time}");
            ENTRIES.fetch_add(due.len(), Ordering::Relaxed);
        }
    }
}
