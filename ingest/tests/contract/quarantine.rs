//! Rows that cannot be used.

use feedmill_connectors::postgres::{Field, Operation, RowChange, Unusable};
use feedmill_ingest::{Log, QuarantineId, Retried};
use feedmill_model::{Key, Lsn, Relation, Row, Tweet, id_at};

use crate::{HOUR_MS, Implementation, NOW, append, insert, ready, rows, tweet, user};

fn unusable(key: Option<Key>) -> RowChange {
    let columns = vec![("id".to_owned(), Field::Bytes(vec![1, 2])), ("bio".to_owned(), Field::Unsent)];
    let reason = "column id is not a bigint".to_owned();
    let operation = Operation::Update;
    RowChange::Unusable(Box::new(Unusable {
        relation: Relation::Users,
        operation,
        key,
        old_key: None,
        columns,
        reason,
    }))
}

/// A tweet that says it was made so many hours from now.
fn ahead(hours: u64, content: &str) -> Row {
    let ms = NOW + hours * HOUR_MS;
    let id = id_at(i64::try_from(ms).unwrap(), 7);
    Row::Tweet(Box::new(Tweet { id, content: content.to_owned(), created_at: ms as i64 * 1_000, ..Tweet::default() }))
}

fn ids(log: &Log) -> Vec<String> {
    log.quarantine(None, 100).unwrap().into_iter().map(|(id, _)| id.to_string()).collect()
}

pub fn an_unusable_row_is_out_of_the_log_until_it_is_mended<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![user(1, "a"), user(2, "a"), user(3, "a")]);
    let batch =
        append(&log, vec![unusable(Some(user(1, "").key())), unusable(None), unusable(Some(user(9, "").key()))]);
    assert_eq!(batch.changes.len(), 1, "what it was is gone: {batch:?}");
    assert_eq!(rows(&log), [user(2, "a"), user(3, "a")]);
    let time = batch.position.time;
    let unnamed = format!("{time}.0");
    assert_eq!((ids(&log), log.quarantine_len()), (vec!["users/1".into(), "users/9".into(), unnamed.clone()], 3));
    drop(log);
    let log = I::open(dir.path()).unwrap();
    assert_eq!((ids(&log).len(), log.quarantine_len()), (3, 3));
    let entry = log.quarantined("users/1".parse().unwrap()).unwrap().unwrap();
    assert_eq!((entry.row.reason.as_str(), entry.position), ("column id is not a bigint", batch.position));
    assert_eq!(entry.row.columns[0].1, Field::Bytes(vec![1, 2]));

    // One is mended by its owner, one is deleted, one is dropped.
    append(&log, vec![RowChange::Update { old_key: None, row: user(1, "good"), unchanged: 0 }]);
    append(&log, vec![RowChange::Delete(user(9, "").key())]);
    assert_eq!((rows(&log), ids(&log)), (vec![user(1, "good"), user(2, "a"), user(3, "a")], vec![unnamed.clone()]));
    assert!(log.drop_quarantined(unnamed.parse().unwrap()).unwrap());
    assert!(!log.drop_quarantined(unnamed.parse().unwrap()).unwrap());
    assert_eq!((ids(&log).len(), log.quarantine_len()), (0, 0));
}

pub fn a_row_changes_again_and_again_in_one_batch<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), (1..=5).map(|id| user(id, "a")).collect());
    let key = |id| user(id, "").key();
    append(
        &log,
        vec![
            // Bad and mended, good and bad, bad and gone, bad and moved away from, bad and only partly told.
            unusable(Some(key(1))),
            RowChange::Insert(user(1, "good")),
            RowChange::Insert(user(2, "good")),
            unusable(Some(key(2))),
            unusable(Some(key(3))),
            RowChange::Delete(key(3)),
            unusable(Some(key(4))),
            RowChange::Update { old_key: Some(key(4)), row: user(6, "moved"), unchanged: 0 },
            unusable(Some(key(5))),
            RowChange::Update { old_key: None, row: user(5, "renamed"), unchanged: 1 << 3 },
        ],
    );
    assert_eq!(rows(&log), [user(1, "good"), user(6, "moved")]);
    assert_eq!(ids(&log), ["users/2", "users/5"]);
    let entry = log.quarantined("users/5".parse().unwrap()).unwrap().unwrap();
    assert!(entry.row.reason.contains("not sent"), "{entry:?}");
    append(&log, vec![RowChange::Truncate(Relation::Users), RowChange::Insert(user(2, "back"))]);
    assert_eq!((rows(&log), ids(&log)), (vec![user(2, "back")], vec![]));
}

pub fn the_future_waits_for_its_time<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![tweet(5), ahead(2, "copied")]);
    let late = ahead(24, "tomorrow");
    let soon = ahead(1, "within the hour");
    assert_eq!((rows(&log), ids(&log)), (vec![tweet(5)], vec![format!("tweets/{}", ahead(2, "").key().first)]));
    append(&log, insert([late.clone(), soon.clone()]));
    assert_eq!((rows(&log), log.quarantine_len()), (vec![tweet(5), soon.clone()], 2));
    assert!(log.greatest_entry() < late.key().first, "nothing of the future counts as known");
    assert!(log.greatest_entry() < ahead(2, "").key().first, "nor what was copied of it");

    // A column that was not sent comes from the row in quarantine.
    let Row::Tweet(mut renamed) = late.clone() else { unreachable!() };
    (renamed.content, renamed.user_id) = (String::new(), 3);
    append(&log, vec![RowChange::Update { old_key: None, row: Row::Tweet(renamed), unchanged: 1 << 2 }]);
    let Row::Tweet(mut expected) = late.clone() else { unreachable!() };
    expected.user_id = 3;
    let id = QuarantineId::Key(late.key());
    assert_eq!(log.quarantined(id).unwrap().unwrap().readable, Some(Row::Tweet(expected.clone())));

    let before = log.position().unwrap();
    let still = log.retry_quarantined(&[id], NOW + HOUR_MS).unwrap();
    assert!(matches!(&still[..], [(_, Retried::Still(why))] if why.contains("an hour ahead")), "{still:?}");
    assert_eq!(log.position(), Some(before), "nothing has changed");
    let unknown = QuarantineId::Key(user(77, "").key());
    let back = log.retry_quarantined(&[id, unknown], NOW + 24 * HOUR_MS).unwrap();
    assert_eq!(back, [(id, Retried::Back), (unknown, Retried::Unknown)]);
    assert_eq!(rows(&log), [tweet(5), soon, Row::Tweet(expected)]);
    let now = log.position().unwrap();
    assert!(now.time > before.time && now.lsn == before.lsn && log.quarantine_len() == 1);
    let copied = log.quarantine(None, 1).unwrap().remove(0).0;
    assert_eq!(log.retry_quarantined(&[copied], NOW + 24 * HOUR_MS).unwrap(), [(copied, Retried::Back)]);
    assert_eq!(log.append(&[], Lsn(0), NOW + 24 * HOUR_MS).unwrap().lsn, before.lsn);
}
