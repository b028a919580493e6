//! The first copy.

use std::thread;

use feedmill_connectors::postgres::RowChange;
use feedmill_ingest::{LogError, LogState};
use feedmill_model::{Lsn, Relation, Row, SourceId};

use crate::{Implementation, NOW, append, follow, insert, ready, rows, source, tweet, user};

pub fn a_new_log_is_empty_and_gives_nothing<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = I::open(dir.path()).unwrap();
    assert_eq!((log.state(), log.source(), log.position(), log.greatest_entry()), (LogState::Empty, None, None, 0));
    assert!(matches!(log.append(&[], Lsn(1), NOW), Err(LogError::NotReady)));
    assert!(matches!(log.reader(0).err(), Some(LogError::NotReady)));
    assert!(matches!(log.state_at(0).err(), Some(LogError::NotReady)));
    assert!(matches!(log.copy_rows(vec![tweet(1)]), Err(LogError::NotCopying)));
    assert!(matches!(log.finish_copy(Lsn(1), NOW), Err(LogError::NotCopying)));
    log.compact(NOW).unwrap();
}

pub fn a_copy_that_did_not_end_is_never_ready<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    for _ in 0..3 {
        let log = I::open(dir.path()).unwrap();
        log.begin_copy(&source()).unwrap();
        log.copy_rows((0..1_000).map(|id| user(id, "half")).collect()).unwrap();
        drop(log);
        let log = I::open(dir.path()).unwrap();
        assert_eq!((log.state(), log.source(), log.position()), (LogState::Copying, Some(source()), None));
        assert!(matches!(log.append(&[], Lsn(1), NOW), Err(LogError::NotReady)));
        assert!(matches!(log.state_at(0).err(), Some(LogError::NotReady)));
    }
    let log = ready::<I>(dir.path(), vec![user(5, "whole")]);
    assert_eq!(rows(&log), [user(5, "whole")]);
    drop(log);
    let log = I::open(dir.path()).unwrap();
    assert_eq!((log.state(), log.position().unwrap().lsn), (LogState::Ready, Lsn(100)));
    assert_eq!(rows(&log), [user(5, "whole")]);
}

pub fn what_follows_a_copy_that_was_cut_short_outlives_restarts<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = I::open(dir.path()).unwrap();
    log.begin_copy(&source()).unwrap();
    log.copy_rows((0..1_000).map(|id| user(id, "half")).collect()).unwrap();
    drop(log);
    let log = ready::<I>(dir.path(), (0..500).map(|id| user(id, "whole")).collect());
    // A batch that goes past the journal of the engine, and one that does not.
    let expected: Vec<Row> = (100..200).map(|id| user(id, "new")).collect();
    append(&log, [vec![RowChange::Truncate(Relation::Users)], insert(expected.clone())].concat());
    log.append(&[], Lsn(0), NOW).unwrap();
    assert_eq!(rows(&log), expected);
    drop(log);
    for _ in 0..2 {
        assert_eq!(rows(&I::open(dir.path()).unwrap()), expected);
    }
}

pub fn a_copy_goes_into_an_empty_log_only<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![tweet(1)]);
    let promoted = SourceId { timeline: 2, ..source() };
    assert!(matches!(log.begin_copy(&promoted), Err(LogError::NotEmpty { path }) if path == dir.path()));
    assert_eq!((log.state(), log.source(), rows(&log)), (LogState::Ready, Some(source()), vec![tweet(1)]));
}

pub fn rows_are_copied_from_several_threads<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = I::open(dir.path()).unwrap();
    log.begin_copy(&source()).unwrap();
    thread::scope(|scope| {
        for follower in 0..4 {
            let log = &log;
            scope.spawn(move || {
                for slice in 0..10 {
                    let follows = slice * 100..(slice + 1) * 100;
                    log.copy_rows(follows.map(|following| follow(follower, following)).collect()).unwrap();
                }
                log.copy_rows(vec![tweet(follower)]).unwrap();
            });
        }
    });
    log.finish_copy(Lsn(1), NOW).unwrap();
    assert_eq!((rows(&log).len(), log.greatest_entry()), (4 * 1_000 + 4, 3));
    drop(log);
    let log = I::open(dir.path()).unwrap();
    assert_eq!((rows(&log).len(), log.greatest_entry()), (4 * 1_000 + 4, 3));
}

pub fn only_one_has_it_open<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = I::open(dir.path()).unwrap();
    let error = I::open(dir.path()).err().expect("it is open");
    assert!(matches!(&error, LogError::Locked { path } if path == dir.path()), "{error}");
    drop(log);
    I::open(dir.path()).unwrap();
}
