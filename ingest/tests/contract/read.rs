//! Readers, the state at a time, and compaction.

use std::thread;
use std::time::Duration;

use feedmill_ingest::{Log, LogError};
use feedmill_model::{Batch, Change, Like, Lsn, Relation, Row, Time};

use crate::model::State;
use crate::{
    Implementation, LIMIT, NOW, append, follow, insert, next, read, ready, rows, state, state_at, tweet, user,
};

/// More than the batches that a log keeps in memory.
const MANY: usize = 1_200;

fn ticks(log: &Log, number: usize) -> Vec<Time> {
    (0..number).map(|_| log.append(&[], Lsn(0), NOW).unwrap().time).collect()
}

fn times(batches: &[Batch]) -> Vec<Time> {
    batches.iter().map(|batch| batch.position.time).collect()
}

pub fn readers_wait_for_what_comes<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![]);
    let start = log.position().unwrap().time;
    let mut behind = log.reader(start).unwrap();
    assert!(behind.next(Duration::ZERO).unwrap().is_none());
    let read_all = |number: usize| {
        let mut reader = log.reader(start).unwrap();
        let next = move || next(&mut reader, LIMIT).expect("one comes within the limit");
        move || std::iter::repeat_with(next).take(number).collect::<Vec<_>>()
    };
    let (appended, seen) = thread::scope(|scope| {
        let readers = [scope.spawn(read_all(MANY)), scope.spawn(read_all(MANY))];
        (ticks(&log, MANY), readers.map(|reader| times(&reader.join().unwrap())))
    });
    assert_eq!(seen, [appended.clone(), appended.clone()]);
    // From disk, then on into memory, without a gap.
    assert_eq!(times(&read(&mut behind)), appended);
    let newest = append(&log, insert([user(1, "new")]));
    assert_eq!(next(&mut behind, LIMIT), Some(newest));
    assert!(matches!(log.reader(log.position().unwrap().time + 1).err(), Some(LogError::Gone { .. })));
}

pub fn a_reader_that_is_too_slow_is_told<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![]);
    let start = log.position().unwrap().time;
    let mut slow = log.reader(start).unwrap();
    let appended = ticks(&log, MANY);
    let mut slower = log.reader(appended[0]).unwrap();
    assert!(slower.next(Duration::ZERO).unwrap().is_some());
    log.compact(appended[MANY - 10]).unwrap();
    assert!(matches!(slow.next(Duration::ZERO), Err(LogError::Gone { asked, .. }) if asked == start));
    assert!(matches!(log.reader(start).err(), Some(LogError::Gone { .. })));
    assert!(matches!(log.state_at(start).err(), Some(LogError::Gone { .. })));
    // What it has taken already it may give; then it says so.
    while let Ok(batch) = slower.next(Duration::ZERO) {
        assert!(batch.is_some_and(|batch| batch.position.time < appended[MANY - 10]), "there is a gap");
    }
    let mut kept = log.reader(log.tail_after()).unwrap();
    assert_eq!(times(&read(&mut kept)), appended[MANY - 10..]);
}

pub fn compaction_keeps_the_newest<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![user(1, "old")]);
    let [first, second] = ["a", "b"].map(|name| append(&log, insert([user(1, name)])));
    log.compact(first.position.time).unwrap();
    assert_eq!(log.tail_after(), NOW);
    log.compact(Time::MAX).unwrap();
    log.compact(Time::MAX).unwrap();
    assert_eq!(log.tail_after(), first.position.time);
    drop(log);
    let log = I::open(dir.path()).unwrap();
    assert_eq!(log.tail_after(), first.position.time);
    assert_eq!(read(&mut log.reader(first.position.time).unwrap()), std::slice::from_ref(&second));
    assert_eq!(state_at(&log, first.position.time).into_values().collect::<Vec<_>>(), [user(1, "a")]);
    assert_eq!(rows(&log), [user(1, "b")]);
}

pub fn a_batch_of_many_parts_is_whole<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![]);
    let start = log.position().unwrap().time;
    let large = append(&log, insert((0..20_000).map(|id| follow(id, id))));
    let small = append(&log, insert([user(1, "new")]));
    let check = |log: &Log| {
        assert_eq!(read(&mut log.reader(start).unwrap()), [large.clone(), small.clone()]);
        assert_eq!(state_at(log, start).len(), 0);
        assert_eq!(state_at(log, large.position.time).len(), 20_000);
    };
    check(&log);
    drop(log);
    let log = I::open(dir.path()).unwrap();
    check(&log);
    log.compact(Time::MAX).unwrap();
    assert_eq!(log.tail_after(), large.position.time, "all of its parts are gone");
    assert_eq!(read(&mut log.reader(large.position.time).unwrap()), [small]);
}

pub fn the_state_is_of_one_moment_while_appends_go_on<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let users = |name: usize| (0..500).map(move |id| user(id, &name.to_string()));
    let log = ready::<I>(dir.path(), users(0).collect());
    let rename = |name: usize| append(&log, insert(users(name)));
    let time = rename(1).position.time;
    thread::scope(|scope| {
        let writer = scope.spawn(|| (2..60).for_each(|name| drop(rename(name))));
        loop {
            let is_last = writer.is_finished();
            let names: Vec<Row> = state_at(&log, time).into_values().collect();
            assert!(names.iter().cloned().eq(users(1)), "{:?} … {:?}", names.first(), names.last());
            if is_last {
                break;
            }
        }
    });
    assert!(state(&log).into_values().eq(users(59)));
}

pub fn the_state_comes_in_bounded_slices<I: Implementation>() {
    const ROWS: i64 = 70_000;
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), (0..ROWS).map(|id| follow(id, 0)).chain([user(1, "a"), tweet(1)]).collect());
    let slices: Vec<Vec<Row>> = log.state_at(NOW).unwrap().map(|slice| slice.unwrap()).collect();
    assert!(slices.len() > 1 && slices.iter().all(|slice| (1..=8_192).contains(&slice.len())));
    let order: Vec<Relation> = slices.iter().flatten().map(Row::relation).collect();
    assert_eq!(order[..3], [Relation::Users, Relation::Tweets, Relation::Follows]);
    assert_eq!(order.len(), ROWS as usize + 2);
}

pub fn a_state_that_nobody_reads_on_lets_go_of_the_log<I: Implementation>() {
    const ROWS: i64 = 300_000;
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), (0..ROWS).map(|id| follow(id, 0)).collect());
    let mut begun = log.state_at(NOW).unwrap();
    assert!(!begun.next().expect("there are rows").unwrap().is_empty());
    let not_begun = log.state_at(NOW).unwrap();
    drop((begun, not_begun, log));
    assert_eq!(rows(&I::open(dir.path()).unwrap()).len(), ROWS as usize);
}

pub fn who_needs_some_relations_is_given_all_of_them_and_little_else<I: Implementation>() {
    const ROWS: i64 = 70_000;
    const WANTED: [&[Relation]; 7] = [
        &[Relation::Users],
        &[Relation::Tweets, Relation::Likes],
        &[Relation::Follows],
        &[Relation::Likes, Relation::Users],
        &[Relation::Tweets],
        &[Relation::ReadMarks],
        &Relation::ALL,
    ];
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![user(1, "a"), tweet(1), follow(1, 1)]);
    let start = log.position().unwrap().time;
    let like = |id| Row::Like(Like { user_id: id, tweet_id: id, created_at: 0 });
    let mixed = || (0..5).flat_map(move |id| [user(id, "b"), tweet(id), follow(id, id), like(id)]);
    let batches = [
        append(&log, insert(mixed())),
        append(&log, insert((10..ROWS).map(|id| follow(id, id)).chain(mixed()))),
        append(&log, insert([like(7)])),
    ];
    for relations in WANTED {
        let is_wanted = |change: &Change| {
            let row = change.old.as_ref().or(change.new.as_ref()).unwrap();
            relations.contains(&row.relation())
        };
        let given = read(&mut log.reader_of(start, relations).unwrap());
        assert_eq!(given.len(), batches.len());
        for (mut given, whole) in given.into_iter().zip(&batches) {
            let mut wanted = whole.clone();
            wanted.changes.retain(is_wanted);
            let is_few = !relations.contains(&Relation::Follows) && given.changes.len() > 20_000;
            assert!(!is_few, "{} changes were given for {}", given.changes.len(), wanted.changes.len());
            given.changes.retain(is_wanted);
            assert_eq!(given, wanted, "{relations:?}");
        }
        for time in std::iter::once(start).chain(batches.iter().map(|batch| batch.position.time)) {
            let mut state = state_at(&log, time);
            state.retain(|key, _| relations.contains(&key.relation));
            let rows = log.state_of(time, relations).unwrap().flat_map(|slice| slice.unwrap());
            assert_eq!(rows.map(|row| (row.key(), row)).collect::<State>(), state, "{relations:?} at {time}");
        }
    }
}
