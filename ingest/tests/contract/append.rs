//! What becomes of transactions.

use feedmill_connectors::postgres::RowChange;
use feedmill_ingest::LogError;
use feedmill_model::{Change, Like, Lsn, Relation, Retweet, Row, Timestamp, Tweet, User, floor_of, id_at};

use crate::model::by_key;
use crate::{
    BULK_ROWS, HOUR_MS, Implementation, NOW, append, append_group, follow, insert, ready, rows, source, transactions,
    tweet, user,
};

fn update(row: Row) -> RowChange {
    RowChange::Update { old_key: None, row, unchanged: 0 }
}

pub fn a_batch_holds_the_net_change_of_each_key<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), (1..=5).map(|id| user(id, "old")).collect());
    let changes = vec![
        // Twice changed, back and forth, gone and back, inserted again, gone and unknown.
        vec![update(user(1, "a")), update(user(2, "a")), RowChange::Delete(user(3, "").key())],
        vec![update(user(1, "b")), update(user(2, "old")), RowChange::Insert(user(3, "new"))],
        vec![RowChange::Insert(user(4, "new")), RowChange::Delete(user(9, "").key())],
        vec![RowChange::Insert(user(8, "new")), RowChange::Delete(user(8, "").key())],
        vec![RowChange::Delete(user(5, "").key())],
    ];
    let batch = append_group(&log, &transactions(Lsn(100), changes));
    let became = |id, new: Option<&str>| Change { old: Some(user(id, "old")), new: new.map(|name| user(id, name)) };
    let expected = [became(1, Some("b")), became(3, Some("new")), became(4, Some("new")), became(5, None)];
    assert_eq!(by_key(&batch.changes), by_key(&expected));
    assert_eq!(rows(&log), [user(1, "b"), user(2, "old"), user(3, "new"), user(4, "new")]);
}

pub fn a_changed_key_takes_unchanged_columns_along<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let long = |id, name: &str| {
        Row::User(Box::new(User { id, display_name: name.to_owned(), bio: Some("long".to_owned()), ..User::default() }))
    };
    let log = ready::<I>(dir.path(), vec![long(1, "ada")]);
    let moved = RowChange::Update { old_key: Some(user(1, "").key()), row: user(2, "ada"), unchanged: 1 << 3 };
    let renamed = RowChange::Update { old_key: None, row: user(2, "eve"), unchanged: 1 << 3 };
    let batch = append(&log, vec![moved, renamed]);
    let expected = [Change { old: Some(long(1, "ada")), new: None }, Change { old: None, new: Some(long(2, "eve")) }];
    assert_eq!(by_key(&batch.changes), by_key(&expected));
    assert_eq!(rows(&log), [long(2, "eve")]);
}

pub fn truncate_takes_rows_that_came_in_the_same_batch<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![user(1, "old"), user(2, "old"), tweet(1)]);
    let changes = vec![
        RowChange::Insert(user(3, "new")),
        update(user(1, "new")),
        RowChange::Truncate(Relation::Users),
        RowChange::Insert(user(2, "new")),
    ];
    let batch = append(&log, changes);
    let expected = [
        Change { old: Some(user(1, "old")), new: None },
        Change { old: Some(user(2, "old")), new: Some(user(2, "new")) },
    ];
    assert_eq!(by_key(&batch.changes), by_key(&expected));
    assert_eq!(rows(&log), [user(2, "new"), tweet(1)]);
}

pub fn an_update_that_needs_a_missing_row_is_set_aside<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![user(1, "here"), user(3, "here"), user(5, "here"), tweet(1)]);
    let update = |old: Option<i64>, id| RowChange::Update {
        old_key: old.map(|old| user(old, "").key()),
        row: user(id, "part"),
        unchanged: 1 << 3,
    };
    let ids =
        || -> Vec<String> { log.quarantine(None, 100).unwrap().into_iter().map(|(id, _)| id.to_string()).collect() };
    // Never there; gone in the same batch. The rest of the batch is taken.
    let batch = append(
        &log,
        vec![update(None, 2), RowChange::Delete(user(3, "").key()), update(None, 3), RowChange::Insert(tweet(2))],
    );
    let expected = [Change { old: Some(user(3, "here")), new: None }, Change { old: None, new: Some(tweet(2)) }];
    assert_eq!(by_key(&batch.changes), by_key(&expected));
    assert_eq!(ids(), ["users/2", "users/3"]);
    let entry = log.quarantined("users/2".parse().unwrap()).unwrap().unwrap();
    assert!(entry.row.reason.contains("not sent"), "{entry:?}");
    // A key that changes; a row that was dropped from the quarantine.
    log.drop_quarantined("users/2".parse().unwrap()).unwrap();
    append(&log, vec![update(Some(8), 9)]);
    append(&log, vec![update(None, 2)]);
    assert_eq!(ids(), ["users/2", "users/3", "users/9"]);
    // The whole row brings it back, as does a new snapshot of the table.
    append(&log, insert([user(2, "whole")]));
    assert_eq!(ids(), ["users/3", "users/9"]);
    let resync = log.begin_resync(&source(), &[Relation::Users]).unwrap();
    resync.stage_rows(&[user(1, "here"), user(3, "whole")]).unwrap();
    resync.finish(None, NOW).unwrap();
    assert_eq!((ids(), rows(&log)), (vec![], vec![user(1, "here"), user(3, "whole"), tweet(1), tweet(2)]));
    // After a TRUNCATE nothing is left that columns could come from.
    append(&log, vec![RowChange::Truncate(Relation::Users), update(None, 1)]);
    assert_eq!((ids(), rows(&log)), (vec!["users/1".to_owned()], vec![tweet(1), tweet(2)]));
}

pub fn times_grow_and_are_kept<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![]);
    // The clock stands, goes on, and goes back a little.
    let times = [NOW, NOW, NOW + 50, NOW + 20].map(|now| log.append(&[], Lsn(0), now).unwrap().time);
    assert_eq!(times, [NOW + 1, NOW + 2, NOW + 50, NOW + 51]);
    drop(log);
    let log = I::open(dir.path()).unwrap();
    assert_eq!(log.append(&[], Lsn(0), NOW).unwrap().time, NOW + 52);
    // A tick covers what the source says, which never goes back.
    let covered = [150, 120].map(|lsn| log.append(&[], Lsn(lsn), NOW).unwrap().lsn);
    assert_eq!(covered, [Lsn(150), Lsn(150)]);
}

pub fn a_clock_that_cannot_be_right_mints_nothing<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![]);
    let group = transactions(Lsn(100), vec![insert([user(1, "new")])]);
    let source_says = |ms: u64| Timestamp::try_from(ms * 1_000).unwrap();
    let back = log.append(&group, Lsn(0), NOW - 2 * HOUR_MS);
    assert!(matches!(back, Err(LogError::ClockBack { lsn: Lsn(110), .. })));
    log.compare_clocks(source_says(NOW), NOW + 2 * HOUR_MS);
    let ahead = log.append(&group, Lsn(0), NOW + 2 * HOUR_MS);
    assert!(matches!(ahead, Err(LogError::ClockAhead { lsn: Lsn(110), .. })));
    assert_eq!((log.position().unwrap().lsn, rows(&log)), (Lsn(100), vec![]), "nothing has changed");
    // Old commits do not mean a wrong clock: they are what an outage leaves behind.
    log.compare_clocks(source_says(NOW + 9 * HOUR_MS), NOW + 9 * HOUR_MS);
    log.append(&group, Lsn(0), NOW + 9 * HOUR_MS).unwrap();
    assert_eq!(rows(&log), [user(1, "new")]);
}

pub fn what_is_held_is_skipped<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![]);
    let group = transactions(Lsn(100), vec![insert([user(1, "a")]), insert([user(1, "b")]), insert([user(1, "c")])]);
    log.append(&group[..2], Lsn(0), NOW).unwrap();
    // The second comes again together with the third: applied once more it would restate "b".
    let batch = append_group(&log, &group[1..]);
    assert_eq!(batch.changes, [Change { old: Some(user(1, "b")), new: Some(user(1, "c")) }]);
    let batch = append_group(&log, &group);
    assert_eq!((batch.changes.len(), batch.position.lsn), (0, Lsn(130)));
}

pub fn a_bulk_batch_raises_the_floor<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![]);
    let follows = |from: i64, number: usize| insert((from..).take(number).map(|id| follow(id, 0)));
    let likes = (0..).map(|user_id| Row::Like(Like { user_id, tweet_id: 1, created_at: 0 }));
    assert_eq!(append(&log, follows(0, BULK_ROWS)).floor, None);
    assert_eq!(append(&log, insert(likes.take(10 * BULK_ROWS))).floor, None);
    let bulk = append(&log, follows(1_000, BULK_ROWS + 1));
    assert_eq!(bulk.floor, Some(floor_of(bulk.position.time)));
    // An entry from the future, in the batch or known before it, is below the floor too.
    let future = id_at(i64::try_from(NOW + HOUR_MS).unwrap(), 0);
    let bulk = append(&log, [insert([tweet(future)]), follows(2_000, BULK_ROWS)].concat());
    assert_eq!(bulk.floor, Some(future));
    let deleted = (1_000..).take(BULK_ROWS + 1).map(|id| RowChange::Delete(follow(id, 0).key()));
    assert_eq!(append(&log, deleted.collect()).floor, Some(future));
}

pub fn the_greatest_entry_is_remembered<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let too_great = 1 << 62;
    let log = ready::<I>(dir.path(), vec![tweet(5), tweet(-7), tweet(too_great)]);
    assert_eq!(log.greatest_entry(), 5);
    let reply = Row::Tweet(Box::new(Tweet { id: 99, reply_to_id: Some(5), ..Tweet::default() }));
    let retweet = Row::Retweet(Retweet { id: 9, user_id: 1, tweet_id: 5, created_at: 0 });
    append(&log, insert([reply, retweet.clone(), tweet(too_great + 1)]));
    append(&log, vec![RowChange::Delete(retweet.key())]);
    assert_eq!(log.greatest_entry(), 9);
    drop(log);
    assert_eq!(I::open(dir.path()).unwrap().greatest_entry(), 9);
}
