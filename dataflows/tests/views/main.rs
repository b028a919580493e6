//! Every view, at every time, on 1 to 4 workers of 1 to 3 processes, against a naive oracle, over generated histories with restarts.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that cannot go on should say where"
)]

mod actions;
mod checking;
mod history;
mod oracle;
mod processes;
mod recording;
mod texts;

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

use actions::{Action, Age, At, Jump, Step};
use checking::{ENTRIES, Kept, Run, Waiter, check, play_run, runs};
use feedmill_dataflows::{Cluster, Config, Meeting, Part, Runtime, RuntimeError, Stores};
use feedmill_model::{Batch, Lsn, PATH_MAX, Position, Relation, RowSink, ViewRow, text};
use history::{parameters, play};
use processes::hosts;
use proptest::prelude::*;
use recording::{HomeLog, HomeState, RowRecord};

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
    let histories = (prop::collection::vec(actions::steps(), 1..40), runs());
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
        let run =
            |part, one_by_one, lose_stores, home| Run { part, one_by_one, lose_stores, home, ..Run::whole(workers) };
        check(&moments, &[run(64, true, false, None)]);
        check(&moments, &[run(20, false, false, None), run(32, false, true, None), run(64, true, false, None)]);
        // Home timelines as they were saved, of each shard at another time; facts and rows lost in the end.
        check(&moments, &[run(20, false, false, Some(7)), run(40, false, true, Some(5)), run(64, true, false, None)]);
    }
}

/// Replies that come before what they answer, in a circle, and beyond the longest path, of which one goes and comes again.
#[test]
fn a_thread_that_is_too_deep_and_loses_replies_on_each_number_of_workers() {
    let second = || Jump::Ms(1_000);
    let chain = |pick, length| Action::Chain { user: 1, pick, length };
    let deepest = PATH_MAX + 20;
    let purge = |pick| step(second(), vec![Action::Purge { pick }]);
    let back = || step(second(), vec![Action::Return { pick: 0 }]);
    // The first tweet is number 0, and number n of the chain the nth.
    let steps = [
        step(second(), vec![post(0), chain(0, deepest - 10)]),
        step(second(), vec![chain(deepest - 10, 10), Action::Orphan { user: 2, pick: deepest - 10 }]),
        step(second(), vec![Action::Post { user: 3, age: Age::Ms(0), reply_to: Some(deepest) }]),
        back(),
        purge(deepest - 5),
        purge(PATH_MAX),
        back(),
        back(),
        purge(PATH_MAX - 1),
        back(),
        purge(2),
        step(second(), vec![Action::Return { pick: 0 }, Action::Move { pick: 4, other: 9 }]),
        step(second(), vec![Action::Move { pick: 4, other: 2 }]),
        step(second(), vec![Action::Move { pick: PATH_MAX + 5, other: 1 }]),
        step(second(), vec![chain(deepest, 3), Action::Purge { pick: 0 }]),
    ];
    let moments = play(&steps);
    let longest = oracle::views(&moments[3].world, moments[3].batch.position.time, &parameters()).rows.into_iter();
    let at_the_end = |row: &ViewRow| matches!(row, ViewRow::Reply { path, .. } if path.len() == PATH_MAX);
    assert!(longest.filter(at_the_end).count() > 20, "no path is as long as can be");
    for workers in 1..=4 {
        let sizes = Run { slice: 300, rows_at_a_time: 300, piece: 400, ..Run::whole(workers) };
        let run = |part, lose_stores| Run { part, lose_stores, ..sizes.clone() };
        check(&moments, &[run(64, false)]);
        // Loaded whole where something waits, with the stores and without.
        check(&moments, &[run(28, workers % 2 == 0), run(40, workers % 2 == 1), run(64, false)]);
    }
}

/// Likes and follows that are from no time, or from one that has not come.
#[test]
fn what_is_from_the_future_counts_when_that_comes() {
    let date = |relation, pick, at| Action::Date { relation, pick, at };
    let hours = |hours: i64| At::Ahead(hours * 3_600_000);
    let likes = (0..6).map(|user| Action::Like { user, pick: 0 });
    let first: Vec<_> =
        [post(6), Action::Follow { user: 0, other: 6, accepted: true }].into_iter().chain(likes).collect();
    let dates = [hours(2), hours(1), hours(30), At::Infinity, At::MinusInfinity];
    let dated = dates.into_iter().enumerate();
    let dated = dated.flat_map(|(pick, at)| [date(Relation::Likes, pick, at), date(Relation::Follows, 2 * pick, at)]);
    let hour = || step(Jump::Ms(3_600_000), vec![]);
    let steps: Vec<_> = [step(Jump::Ms(1_000), first), step(Jump::Ms(1_000), dated.collect()), hour(), hour()]
        .into_iter()
        .chain([step(Jump::Ms(1_000), vec![Action::Unlike { pick: 2 }]), step(Jump::Ms(100_000_000), vec![]), hour()])
        .chain([step(Jump::Ms(32 * 86_400_000), vec![])])
        .collect();
    let moments = play(&steps);
    let likes_at = |number: usize| {
        let rows = oracle::views(&moments[number].world, moments[number].batch.position.time, &parameters()).rows;
        rows.into_iter().find_map(|row| if let ViewRow::TrendingTweet { likes, .. } = row { Some(likes) } else { None })
    };
    assert_eq!((1..=6).map(likes_at).collect::<Vec<_>>(), [Some(6), Some(2), Some(3), Some(3), Some(3), None]);
    for workers in 1..=4 {
        let run = |part, lose_stores| Run { part, lose_stores, ..Run::whole(workers) };
        check(&moments, &[run(64, false)]);
        check(&moments, &[run(20, true), run(30, false), run(64, false)]);
    }
}

#[test]
fn the_oracle_reads_texts_as_users_do() {
    let read = |text: &str| {
        let joined = |words: BTreeSet<String>| words.into_iter().collect::<Vec<_>>().join(" ");
        (joined(texts::hashtags(text)), joined(texts::mentions(text)))
    };
    let expected = |tags: &str, names: &str| (tags.to_owned(), names.to_owned());
    assert_eq!(read("#Rust ＃rust, (@Ada) ＠bob_2: #ΟΔΌΣ #cafe\u{301}"), expected("café rust οδόσ", "ada bob_2"));
    assert_eq!(read("a#b 1#c &#d ##e #1 /#f a@g @@h #@i @#j"), expected("", ""));
    assert_eq!(read("http://a.b/#c, (https://d/@e). xhttp://f#g http://."), expected("", ""));
    assert_eq!(read("http://a.b,#c #d http://.#e"), expected("d", ""));
}

proptest! {
    #[test]
    fn views_and_oracle_read_the_same_in_texts(parts in prop::collection::vec(prop::sample::select(vec![
        "#", "＃", "@", "＠", " ", "a", "Ä", "1", "_", "/", "&", "e\u{301}", "É", "http://", "HTTPS://", "x.y", "日", "ΣΑΣ",
        "\u{3000}", ",", ".", "😀", "<", "\"", "’", ")", "½", "Ⅷ", "٣", "\u{20e3}", "abcdefghijklmnopqrstuvwxyz",
    ]), 0..40)) {
        let written = parts.concat();
        prop_assert_eq!(texts::hashtags(&written), text::hashtags(&written), "{}", written);
        prop_assert_eq!(texts::mentions(&written), text::mentions(&written), "{}", written);
    }
}

#[test]
fn a_load_that_fills_home_timelines_gives_every_entry_of_the_month_whatever_the_order_of_its_rows() {
    let moments = play(&story());
    let mut filled = 0;
    for (workers, backwards) in (1..=4).flat_map(|workers| [(workers, false), (workers, true)]) {
        for (load_at, moment) in moments.iter().enumerate() {
            let load = moment.batch.position;
            let (slice, rows_at_a_time) = (1 + load_at % 3, 1 + load_at % 4);
            let run = Run { part: 0, fill: true, backwards, slice, rows_at_a_time, piece: 1, ..Run::whole(workers) };
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

#[test]
fn a_story_told_in_full_by_several_processes_on_each_number_of_workers() {
    let moments = play(&story());
    for (processes, workers) in [(2, 1), (2, 2), (3, 1)] {
        let run = |part, workers, processes, home| Run { part, processes, home, ..Run::whole(workers) };
        check(&moments, &[run(64, workers, processes, None)]);
        // One goes on where several ended, and the other way round.
        check(
            &moments,
            &[run(20, workers, processes, Some(3)), run(40, 2, 1, Some(5)), run(64, workers, processes, None)],
        );
    }
}

fn config(workers: usize) -> Config {
    Config { workers, part: Part::All, parameters: parameters(), rows_at_a_time: Config::ROWS_AT_A_TIME, profile: None }
}

/// Starts a process of a cluster, on stores of its own; it has loaded nothing yet.
fn member(process: usize, hosts: &[String], workers: usize, meeting_max: Duration) -> Result<Runtime, RuntimeError> {
    let stores = Stores {
        facts: Arc::new(RowRecord::default()),
        rows: Arc::new(RowRecord::default()),
        home: Arc::new(HomeLog::default()),
        search: Arc::new(RowRecord::default()),
        reactions: Arc::new(RowRecord::default()),
    };
    let config = config(workers);
    let cluster = Cluster { process, hosts: hosts.to_vec(), meeting_max };
    let meeting = Meeting::hold(cluster, workers, &config.parameters, "the tests".to_owned(), || false)?;
    Runtime::start_in(meeting, config, stores, Position { time: 1_000, lsn: Lsn(1) }, Arc::new(|_| {}))
}

#[test]
fn processes_that_do_not_agree_or_do_not_come_are_named() {
    let hosts = hosts(2);
    let disagree = |workers| {
        let hosts = hosts.clone();
        thread::spawn(move || member(workers - 1, &hosts, workers, Duration::from_secs(60)).err().unwrap().to_string())
    };
    // Whoever learns of it second finds the other gone already.
    let told: Vec<String> = [disagree(1), disagree(2)].into_iter().map(|start| start.join().unwrap()).collect();
    assert!(told.iter().any(|told| told.contains("does not agree")), "{told:?}");

    let alone = member(1, &hosts, 1, Duration::from_millis(100)).err().unwrap().to_string();
    assert!(alone.contains(&format!("process 0 at {} did not come", hosts[0])), "{alone}");
    let nowhere = member(2, &hosts, 1, Duration::ZERO).err().unwrap().to_string();
    assert!(nowhere.contains("there is no process 2"), "{nowhere}");
}

#[test]
fn a_process_that_ends_ends_the_others_which_name_it() {
    let hosts = hosts(2);
    let start = |process| {
        let hosts = hosts.clone();
        thread::spawn(move || member(process, &hosts, 1, Cluster::MEETING_MAX).unwrap())
    };
    let [stays, ends] = [start(0), start(1)].map(|start| start.join().unwrap());
    ends.join().unwrap();
    let mut time = 1_000;
    // Whoever feeds it learns of it, sooner or later.
    let failed = stays.loaded(0).err().or_else(|| {
        (0..1_000_000).find_map(|_| {
            time += 1;
            let position = Position { time, lsn: Lsn(1) };
            stays.feed(Arc::new(Batch { position, floor: None, changes: vec![], last: true })).err()
        })
    });
    let Some(RuntimeError::Peer { process: 1, host, .. }) = failed else { panic!("{failed:?}") };
    assert_eq!(host, hosts[1]);
    assert!(matches!(stays.join(), Err(RuntimeError::Peer { process: 1, .. })));
}

fn start(rows: Arc<dyn RowSink<ViewRow>>, workers: usize) -> (Runtime, Waiter) {
    let (home, waiter) = (Arc::new(HomeLog::default()), Waiter::default());
    let search = Arc::new(RowRecord::default());
    let reactions = Arc::new(RowRecord::default());
    let stores = Stores { facts: Arc::new(RowRecord::default()), rows, home, search, reactions };
    let config = config(workers);
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
