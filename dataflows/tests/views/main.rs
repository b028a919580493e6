//! Every view, at every time, on 1 to 4 workers, against a naive oracle, over generated histories with restarts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on should say where"
)]

mod history;
mod oracle;
mod recording;

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Duration;

use feedmill_dataflows::{Config, Runtime, RuntimeError, Stores};
use feedmill_model::{Applied, Batch, Document, Fact, Lsn, Position, Relation, Row, RowSink, Time, ViewRow};
use history::{Action, Age, Jump, Moment, Step, greatest_entry, parameters, play};
use proptest::prelude::*;
use recording::{HomeLog, HomeState, RowRecord, RowState, tick};

/// No wait of a test is longer.
const LIMIT: Duration = Duration::from_secs(30);

/// Waits until the stores are as far as a test needs.
#[derive(Clone, Default)]
struct Waiter(Arc<(Mutex<Applied>, Condvar)>);

impl Waiter {
    fn moved(&self, applied: Applied) {
        *self.0.0.lock().unwrap() = applied;
        self.0.1.notify_all();
    }

    fn until_applied(&self, time: Time) {
        let applied = self.0.0.lock().unwrap();
        let (applied, wait) = self.0.1.wait_timeout_while(applied, LIMIT, |applied| applied.by_all() <= time).unwrap();
        assert!(!wait.timed_out(), "{time} was not applied in time: {applied:?}");
    }
}

/// One start of the runtime, and where it ends.
#[derive(Clone, Debug)]
struct Run {
    workers: usize,
    /// How many of the batches that are left are fed, in 64ths.
    part: usize,
    /// Wait for each batch before the next is fed.
    one_by_one: bool,
    /// Stop without waiting for all that was fed.
    abruptly: bool,
    /// The stores of facts, rows and search are lost afterwards.
    lose_stores: bool,
    /// Home timelines are left as they were saved with this seed; `None`: they are lost.
    home: Option<usize>,
    /// The load fills home timelines of which nothing is left.
    fill: bool,
    /// Relations are loaded in the reverse of their order.
    backwards: bool,
    /// Rows a slice of the load.
    slice: usize,
    /// Rows of the load at one time, at least.
    rows_at_a_time: usize,
    /// Changes a piece of a batch.
    piece: usize,
}

fn runs() -> impl Strategy<Value = Vec<Run>> {
    let sizes = (1..40_usize, prop_oneof![1..80_usize, Just(1_000)], prop_oneof![1..5_usize, Just(1_000)]);
    let home = prop::option::weighted(0.7, any::<u16>().prop_map(usize::from));
    let kept = (prop::bool::weighted(0.3), home, any::<bool>(), prop::bool::weighted(0.2));
    let run = (1..=4_usize, 0..64_usize, any::<bool>(), any::<bool>(), kept, sizes).prop_map(
        |(workers, part, one_by_one, abruptly, kept, (slice, rows_at_a_time, piece))| {
            let (lose_stores, home, fill, backwards) = kept;
            Run {
                workers,
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
struct Kept {
    facts: Arc<RowRecord<Fact>>,
    rows: Arc<RowRecord<ViewRow>>,
    search: Arc<RowRecord<Document>>,
    /// Index of the first moment that facts, rows and search must agree with.
    from: usize,
    home: Arc<HomeLog>,
    /// The time at which home timelines began.
    home_from: Time,
}

impl Kept {
    fn rows_reached(&self) -> Option<Position> {
        let reached = [self.facts.reached()?, self.rows.reached()?, self.search.reached()?];
        reached.into_iter().min_by_key(|reached| reached.time)
    }

    /// Where the stores are that have something.
    fn reached(&self) -> Option<Position> {
        self.rows_reached().into_iter().chain(self.home.reached()).min_by_key(|position| position.time)
    }
}

/// Entries that were compared, over all cases: a test that compares nothing proves nothing.
static ENTRIES: AtomicUsize = AtomicUsize::new(0);

/// Plays `moments` in `runs` and compares all stores at all times.
fn check(moments: &[Moment], runs: &[Run]) {
    let mut kept = Kept::default();
    // The first moment is the snapshot that the first run loads.
    let mut log_at = 0;
    for (number, run) in runs.iter().enumerate() {
        let last_run = number + 1 == runs.len();
        let run = &Run { abruptly: run.abruptly && !last_run, ..run.clone() };
        if kept.rows_reached().is_none() {
            compare_rows(moments, &kept, log_at);
            (kept.facts, kept.rows, kept.search) = Default::default();
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
            (kept.facts, kept.rows, kept.search) = Default::default();
        }
        kept.home = Arc::new(run.home.map_or_else(HomeLog::default, |seed| kept.home.saved(seed)));
    }
    compare_rows(moments, &kept, moments.len() - 1);
}

/// Runs from the state at `load`, which is that of moment `load_at`, through the batch `end`; returns the last one that
/// was certainly applied.
fn play_run(moments: &[Moment], (load, load_at): (Position, usize), end: usize, run: &Run, kept: &Kept) -> usize {
    let (home, waiter, began) = (&kept.home, Waiter::default(), tick());
    let stores =
        Stores { facts: kept.facts.clone(), rows: kept.rows.clone(), home: home.clone(), search: kept.search.clone() };
    let config =
        Config { workers: run.workers, parameters: parameters(), rows_at_a_time: run.rows_at_a_time, profile: None };
    let on_applied = waiter.clone();
    let runtime = Runtime::start(config, stores, load, Arc::new(move |applied| on_applied.moved(applied))).unwrap();
    let mut relations = Relation::LOAD_ORDER;
    if run.backwards {
        relations.reverse();
    }
    for relation in relations {
        let rows: Vec<Row> =
            moments[load_at].world.values().filter(|row| row.relation() == relation).cloned().collect();
        for slice in rows.chunks(run.slice) {
            runtime.load(slice.to_vec()).unwrap();
        }
    }
    let load_floor = greatest_entry(&moments[load_at].world);
    runtime.loaded(load_floor).unwrap();
    for moment in &moments[load_at + 1..=end] {
        for piece in pieces(&moment.batch, run.piece) {
            runtime.feed(Arc::new(piece)).unwrap();
        }
        if run.one_by_one {
            waiter.until_applied(moment.batch.position.time);
        }
    }
    let end_time = moments[end].batch.position.time.max(load.time);
    if !run.abruptly {
        waiter.until_applied(end_time);
    }
    let frontier = runtime.applied().by_all();
    assert!(frontier <= end_time + 1, "{frontier} was applied and only {end_time} was fed");
    runtime.join().unwrap();
    assert_eq!(runtime.anomalies(), 0);
    compare_phases(kept, load.time, began);
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
fn compare_phases(kept: &Kept, load: Time, run_began: u64) {
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
    for (time, began) in home {
        assert!(later(&rows, time, began), "home of {time} before its rows");
    }
}

/// Compares at each batch, and at each full minute between two at which something happened.
fn compare_rows(moments: &[Moment], kept: &Kept, last: usize) {
    let (facts, rows, documents) = (kept.facts.by_time(), kept.rows.by_time(), kept.search.by_time());
    if kept.rows_reached().is_none() {
        return;
    }
    let moments = &moments[kept.from..=last.max(kept.from)];
    let (first, last) = (moments[0].batch.position.time, moments[moments.len() - 1].batch.position.time);
    let mut times: BTreeSet<Time> = rows.iter().map(|(time, ..)| *time).collect();
    times.extend(moments.iter().map(|moment| moment.batch.position.time));
    let (mut facts, mut rows) = (facts.iter().peekable(), rows.iter().peekable());
    let mut documents = documents.iter().peekable();
    let (mut fact_state, mut row_state, mut found) = (RowState::default(), RowState::default(), RowState::default());
    for time in times.into_iter().filter(|time| (first..=last).contains(time)) {
        while let Some((_, _, _, closed)) = facts.next_if(|(at, ..)| *at <= time) {
            fact_state.apply(closed);
        }
        while let Some((_, _, _, closed)) = rows.next_if(|(at, ..)| *at <= time) {
            row_state.apply(closed);
        }
        while let Some((_, _, _, closed)) = documents.next_if(|(at, ..)| *at <= time) {
            found.apply(closed);
        }
        let moment = moments.iter().rfind(|moment| moment.batch.position.time <= time).unwrap();
        let expected = oracle::views(&moment.world, time, &parameters());
        assert_eq!(fact_state.rows, expected.facts, "facts at {time}");
        let missing: Vec<_> = expected.rows.difference(&row_state.rows).collect();
        let wrong: Vec<_> = row_state.rows.difference(&expected.rows).collect();
        assert!(missing.is_empty() && wrong.is_empty(), "rows at {time}: {missing:?} missing, {wrong:?} wrong");
        assert_eq!(found.rows, expected.documents, "search at {time}");
        assert_eq!(row_state.counts(), expected.counts, "counts at {time}");
    }
}

/// Compares at each batch, and at each full minute between two at which something happened.
fn compare_home(moments: &[Moment], home: &HomeLog, load: Time, frontier: Time) {
    let closed = home.by_time();
    let mut times: BTreeSet<Time> = closed.iter().map(|(time, ..)| *time).collect();
    times.extend(moments.iter().map(|moment| moment.batch.position.time));
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

#[test]
fn views_equal_the_oracle_at_every_time_on_any_number_of_workers() {
    let settings = ProptestConfig::default();
    let cases = 4 * settings.cases;
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig {
        cases,
        failure_persistence: None,
        max_shrink_iters: 400,
        ..settings
    });
    let histories = (prop::collection::vec(history::steps(), 1..40), runs());
    let outcome = runner.run(&histories, |(steps, runs)| {
        check(&play(&steps), &runs);
        Ok(())
    });
    if let Err(failure) = outcome {
        panic!("{failure}");
    }
    let compared = ENTRIES.load(Ordering::Relaxed);
    println!("{compared} entries stood above floors");
    assert!(compared > 20 * cases as usize, "only {compared} entries stood above floors");
}

fn step(jump: Jump, actions: Vec<Action>) -> Step {
    Step { jump, actions, bulk: false }
}

fn post(user: usize) -> Action {
    Action::Post { user, age: Age::Ms(0), reply_to: None }
}

/// A story with everything that a home timeline must bear.
fn story() -> Vec<Step> {
    let second = || Jump::Ms(1_000);
    let mut steps = vec![
        step(second(), (1..7).map(|user| Action::Follow { user, other: 0, accepted: true }).collect()),
        step(second(), vec![post(0), post(1)]),
        step(second(), vec![Action::Retweet { user: 0, pick: 1, age: Age::Ms(0) }]),
        step(second(), vec![Action::Mute { user: 1, other: 0 }, Action::Block { user: 0, other: 2 }]),
        step(second(), vec![Action::Block { user: 2, other: 0 }]),
        step(second(), vec![Action::Unmute { pick: 0 }, Action::Unblock { pick: 0 }]),
        step(second(), vec![Action::Verify { user: 0, verified: true }, post(0)]),
        step(second(), vec![Action::Popular { user: 0, popular: true }, Action::Verify { user: 0, verified: false }]),
        step(second(), vec![Action::Popular { user: 0, popular: false }]),
        step(second(), vec![Action::DeleteTweet { pick: 1 }]),
    ];
    // Its id lies ahead of the clock and so above the floor of the bulk batch that takes it away again.
    steps.push(step(second(), vec![Action::Retweet { user: 0, pick: 0, age: Age::Ms(-1_800_000) }]));
    let bulk = vec![post(0), post(3), post(0), Action::Unretweet { pick: 1 }];
    steps.push(Step { jump: second(), actions: bulk, bulk: true });
    steps.push(step(second(), vec![post(0), Action::Unfollow { pick: 0 }]));
    steps.push(step(Jump::Ms(2 * 86_400_000 - 30_000), vec![Action::Act { user: 3, days_ago: 0 }]));
    steps.extend((0..3).map(|_| step(Jump::Minute, vec![])));
    steps.push(step(Jump::Ms(2 * 86_400_000), vec![post(0)]));
    steps.push(step(second(), (0..7).map(|user| Action::Act { user, days_ago: 0 }).collect()));
    steps.push(step(second(), vec![post(0), Action::Protect { user: 0, protected: true }]));
    steps
}

#[test]
fn a_story_told_in_full_on_each_number_of_workers() {
    let moments = play(&story());
    for workers in 1..=4 {
        let run = |part, one_by_one, lose_stores, home| Run {
            workers,
            part,
            one_by_one,
            abruptly: false,
            lose_stores,
            home,
            fill: false,
            backwards: false,
            slice: 3,
            rows_at_a_time: 3,
            piece: 2,
        };
        check(&moments, &[run(64, true, false, None)]);
        check(&moments, &[run(20, false, false, None), run(32, false, true, None), run(64, true, false, None)]);
        // Home timelines as they were saved, of each shard at another time; facts and rows lost in the end.
        check(&moments, &[run(20, false, false, Some(7)), run(40, false, true, Some(5)), run(64, true, false, None)]);
    }
}

#[test]
fn a_load_that_fills_home_timelines_gives_every_entry_of_the_month_whatever_the_order_of_its_rows() {
    let moments = play(&story());
    let mut filled = 0;
    for (workers, backwards) in (1..=4).flat_map(|workers| [(workers, false), (workers, true)]) {
        for (load_at, moment) in moments.iter().enumerate() {
            let load = moment.batch.position;
            let run = Run {
                workers,
                part: 0,
                one_by_one: false,
                abruptly: false,
                lose_stores: false,
                home: None,
                fill: true,
                backwards,
                slice: 1 + load_at % 3,
                rows_at_a_time: 1 + load_at % 4,
                piece: 1,
            };
            let home = Arc::new(HomeLog::new(true));
            let kept = Kept { home, home_from: load.time, ..Kept::default() };
            play_run(&moments, (load, load_at), load_at, &run, &kept);
            let mut state = HomeState::default();
            kept.home.by_time().iter().for_each(|(.., closed)| state.apply(closed, &parameters()));
            let expected = oracle::views(&moment.world, load.time, &parameters()).home;
            assert!(state.records.keys().eq(expected.keys()), "active viewers at {}", load.time);
            for (viewer, record) in &state.records {
                assert_eq!(record.floor, parameters().horizon(load.time));
                let held = record.entries.iter().filter(|(_, times)| **times > 0).map(|(entry, _)| *entry);
                let held: BTreeSet<_> = held.collect();
                assert_eq!(held, expected[viewer].entries, "home timeline of {viewer} filled at {}", load.time);
                filled += held.len();
            }
        }
    }
    assert!(filled > 500, "only {filled} entries were given");
}

fn start(rows: Arc<dyn RowSink<ViewRow>>, workers: usize) -> (Runtime, Waiter) {
    let (home, waiter) = (Arc::new(HomeLog::default()), Waiter::default());
    let search = Arc::new(RowRecord::default());
    let stores = Stores { facts: Arc::new(RowRecord::default()), rows, home, search };
    let config = Config { workers, parameters: parameters(), rows_at_a_time: Config::ROWS_AT_A_TIME, profile: None };
    let on_applied = waiter.clone();
    let load = Position { time: 1_000, lsn: Lsn(1) };
    let runtime = Runtime::start(config, stores, load, Arc::new(move |applied| on_applied.moved(applied))).unwrap();
    (runtime, waiter)
}

#[test]
fn a_store_that_refuses_stops_the_runtime_and_is_named() {
    let moments = play(&[step(Jump::Ms(1), vec![post(0)])]);
    for workers in [1, 3] {
        let refused_time = moments[1].batch.position.time;
        let (runtime, waiter) = start(Arc::new(RowRecord::refusing_from(refused_time)), workers);
        runtime.loaded(0).unwrap();
        runtime.feed(Arc::new(moments[0].batch.clone())).unwrap();
        waiter.until_applied(moments[0].batch.position.time);
        // Whoever feeds learns of it: at once, or when the next batch finds the workers gone.
        let mut batch = moments[1].batch.clone();
        let refused = (0..1_000_000).find_map(|_| {
            let outcome = runtime.feed(Arc::new(batch.clone())).err();
            batch.position.time += 1;
            outcome
        });
        assert!(matches!(refused, Some(RuntimeError::Store(_))), "{refused:?}");
        assert!(runtime.applied().rows <= refused_time, "a time that was refused is not applied");
        let error = runtime.join().unwrap_err().to_string();
        assert!(error.contains("could not apply") && error.contains("recording store"), "{error}");
    }
}

/// A store with a defect.
struct Panics;

impl RowSink<ViewRow> for Panics {
    fn progress(&self) -> Vec<Option<Position>> {
        vec![None; feedmill_model::SHARDS]
    }

    fn apply(&self, _: &feedmill_model::Closed<ViewRow>) -> Result<(), feedmill_model::StoreError> {
        panic!("a defect");
    }
}

#[test]
fn a_panic_ends_all_workers_with_an_error() {
    let (runtime, _) = start(Arc::new(Panics), 3);
    let loaded = runtime.loaded(0);
    assert!(matches!(loaded, Ok(()) | Err(RuntimeError::Panic(_))), "{loaded:?}");
    let mut time = 1_000;
    let failed = (0..1_000_000).find_map(|_| {
        time += 1;
        let position = Position { time, lsn: Lsn(1) };
        runtime.feed(Arc::new(Batch { position, floor: None, changes: vec![], last: true })).err()
    });
    assert!(matches!(&failed, Some(RuntimeError::Panic(text)) if text == "a defect"), "{failed:?}");
    assert!(matches!(runtime.join(), Err(RuntimeError::Panic(_))));
}

#[test]
fn calls_out_of_order_are_refused() {
    let (runtime, waiter) = start(Arc::new(RowRecord::default()), 2);
    let piece = |time, last| {
        let position = Position { time, lsn: Lsn(2) };
        Arc::new(Batch { position, floor: None, changes: vec![], last })
    };
    let batch = |time| piece(time, true);
    let refused = |outcome: Result<(), RuntimeError>| assert!(matches!(outcome, Err(RuntimeError::Order { .. })));
    refused(runtime.feed(batch(2_000)));
    runtime.loaded(0).unwrap();
    refused(runtime.loaded(0));
    refused(runtime.load(vec![]));
    refused(runtime.feed(batch(1_000)));
    runtime.feed(piece(2_000, false)).unwrap();
    refused(runtime.feed(batch(2_001)));
    runtime.feed(piece(2_000, false)).unwrap();
    runtime.feed(batch(2_000)).unwrap();
    refused(runtime.feed(batch(2_000)));
    waiter.until_applied(2_000);
    runtime.stop();
    assert!(matches!(runtime.feed(batch(3_000)), Err(RuntimeError::Stopped)));
    runtime.join().unwrap();
}
