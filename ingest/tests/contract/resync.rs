//! New snapshots of a source, or of a part of it.

use std::thread;

use feedmill_ingest::{LogError, LogState};
use feedmill_model::{Change, Lsn, Relation, Row, SourceId};

use crate::model::by_key;
use crate::{Implementation, NOW, append, follow, insert, next, read, ready, rows, source, state_at, tweet, user};

pub fn a_resync_is_the_difference<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![user(1, "same"), user(2, "old"), tweet(4), tweet(5), follow(1, 2)]);
    append(&log, insert([user(3, "old")]));
    let before = log.position().unwrap();
    let mut reader = log.reader(before.time).unwrap();
    let promoted = SourceId { timeline: 2, ..source() };

    let dropped = log.begin_resync(&promoted, &Relation::ALL).unwrap();
    dropped.stage_rows(&[user(9, "never")]).unwrap();
    drop(dropped);
    let resync = log.begin_resync(&promoted, &Relation::ALL).unwrap();
    thread::scope(|scope| {
        scope.spawn(|| resync.stage_rows(&[user(2, "new"), tweet(5), tweet(6)]).unwrap());
        scope.spawn(|| resync.stage_rows(&[follow(1, 2), user(1, "same")]).unwrap());
    });
    assert_eq!((log.source(), log.position()), (Some(source()), Some(before)), "nothing can be seen of it yet");
    // The new source may be at any position.
    let position = resync.finish(Some(Lsn(7)), NOW).unwrap();
    assert!(position.time > before.time && position.lsn == Lsn(7));
    assert_eq!((log.source(), log.position()), (Some(promoted.clone()), Some(position)));
    let batch = next(&mut reader, std::time::Duration::ZERO).unwrap();
    let change = |old: Option<Row>, new: Option<Row>| Change { old, new };
    let expected = [
        change(Some(user(2, "old")), Some(user(2, "new"))),
        change(Some(user(3, "old")), None),
        change(Some(tweet(4)), None),
        change(None, Some(tweet(6))),
    ];
    assert_eq!((batch.position, by_key(&batch.changes)), (position, by_key(&expected)));
    let after = [user(1, "same"), user(2, "new"), tweet(5), tweet(6), follow(1, 2)];
    assert_eq!(rows(&log), after);
    assert_eq!(state_at(&log, before.time).len(), 6, "the state before can still be told");
    append(&log, insert([tweet(7)]));
    drop((log, reader));
    let log = I::open(dir.path()).unwrap();
    assert_eq!((log.state(), log.source(), log.position().unwrap().lsn), (LogState::Ready, Some(promoted), Lsn(17)));
    assert_eq!(log.history(), position.time, "what was before is of another history");
    assert_eq!(state_at(&log, position.time).into_values().collect::<Vec<_>>(), after);
    assert_eq!(read(&mut log.reader(before.time).unwrap()).len(), 2);
}

pub fn a_resync_of_a_table_leaves_the_rest<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), (1..=9).map(tweet).chain([user(1, "a"), follow(1, 2)]).collect());
    let before = log.position().unwrap();
    let resync = log.begin_resync(&source(), &[Relation::Tweets, Relation::Follows]).unwrap();
    resync.stage_rows(&[tweet(7)]).unwrap();
    let position = resync.finish(None, NOW).unwrap();
    assert_eq!(position.lsn, before.lsn, "capture goes on where it is");
    assert_eq!(rows(&log), [user(1, "a"), tweet(7)]);
    log.begin_resync(&source(), &[Relation::Tweets]).unwrap().finish(None, NOW).unwrap();
    assert_eq!(rows(&log), [user(1, "a")]);
}

pub fn a_snapshot_is_no_more_use_when_the_log_went_on<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![user(1, "a"), user(2, "a")]);
    let begin = || {
        let resync = log.begin_resync(&source(), &[Relation::Users]).unwrap();
        resync.stage_rows(&[user(1, "a"), user(2, "a")]).unwrap();
        resync
    };
    let resync = begin();
    append(&log, insert([user(3, "written since")]));
    let before = log.position().unwrap();
    let error = resync.finish(None, NOW);
    assert!(matches!(error, Err(LogError::MovedOn { from: Lsn(100), to: Lsn(110) })), "{error:?}");
    assert_eq!((log.position(), rows(&log).len()), (Some(before), 3), "nothing has changed");
    // A tick that covers nothing new does not matter.
    let resync = begin();
    log.append(&[], Lsn(0), NOW).unwrap();
    resync.finish(None, NOW).unwrap();
    assert_eq!(rows(&log), [user(1, "a"), user(2, "a")]);
}
