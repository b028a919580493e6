//! The first copy.

use std::thread;
use std::time::Duration;

use feedmill_ingest::{LogError, LogState};
use feedmill_model::{Lsn, SourceId};

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

pub fn a_second_copy_replaces_the_first<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), (0..1_000).map(tweet).collect());
    append(&log, insert((1_000..2_000).map(tweet)));
    let last = log.position().unwrap();
    let mut reader = log.reader(last.time).unwrap();
    let promoted = SourceId { timeline: 2, ..source() };
    log.begin_copy(&promoted).unwrap();
    assert_eq!((log.state(), log.greatest_entry()), (LogState::Copying, 0));
    assert!(reader.next(Duration::ZERO).unwrap().is_none());
    log.copy_rows(vec![user(1, "new")]).unwrap();
    // Times never go back, even if the clock stands still.
    assert!(log.finish_copy(Lsn(5), NOW).unwrap().time > last.time);
    assert!(matches!(reader.next(Duration::ZERO), Err(LogError::Gone { .. })));
    assert_eq!(rows(&log), [user(1, "new")]);
    drop((log, reader));
    let log = I::open(dir.path()).unwrap();
    assert_eq!((log.source(), log.position().unwrap().lsn), (Some(promoted), Lsn(5)));
    assert_eq!(rows(&log), [user(1, "new")]);
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
