//! What fails in the middle of a large batch, in a process that goes on.
#![cfg(feature = "failpoints")]
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::time::Duration;

use fail::FailScenario;
use feedmill_connectors::postgres::{Operation, RowChange, Transaction, Unusable};
use feedmill_ingest::{Log, LogError, Options};
use feedmill_model::{Lsn, Relation, Row, SourceId, User};

const NOW: u64 = 1_700_000_000_000;

fn user(id: i64, display_name: &str) -> Row {
    Row::User(Box::new(User { id, display_name: display_name.to_owned(), ..User::default() }))
}

fn source() -> SourceId {
    SourceId { system: 1, timeline: 1, slot: "feedmill".to_owned() }
}

fn ready(dir: &Path) -> Log {
    let log = Log::open(dir, Options::default()).unwrap();
    log.begin_copy(&source()).unwrap();
    log.copy_rows(vec![user(1, "old"), user(2, "old")]).unwrap();
    log.finish_copy(Lsn(100), NOW).unwrap();
    log
}

fn rows(log: &Log) -> Vec<Row> {
    let time = log.position().unwrap().time;
    log.state_at(time).unwrap().flat_map(|slice| slice.unwrap()).collect()
}

/// Takes a new snapshot, and fails at this place.
fn fails_at(log: &Log, place: &str) {
    let resync = log.begin_resync(&source(), &[Relation::Users]).unwrap();
    resync.stage_rows(&[user(1, "new")]).unwrap();
    let unusable = Unusable {
        relation: Relation::Users,
        operation: Operation::Copy,
        key: None,
        old_key: None,
        columns: vec![],
        reason: "a test".to_owned(),
    };
    // So many that some of them are written before the batch is.
    resync.stage_unusable(vec![unusable; 1_000]).unwrap();
    fail::cfg(place, "1*panic").unwrap();
    let finished = catch_unwind(AssertUnwindSafe(|| resync.finish(None, NOW)));
    assert!(finished.is_err(), "it was to fail at {place}");
}

fn insert(log: &Log, row: Row) -> Result<(), LogError> {
    let end_lsn = Lsn(log.position().unwrap().lsn.0 + 10);
    let changes = vec![RowChange::Insert(row)].into();
    log.append(&[Transaction { end_lsn, committed_at: 0, changes }], Lsn(0), NOW).map(drop)
}

#[test]
fn what_fails_before_it_is_published_leaves_nothing_behind() {
    let _scenario = FailScenario::setup();
    let dir = tempfile::tempdir().unwrap();
    let log = ready(dir.path());
    let before = log.position().unwrap();
    fails_at(&log, "large_parts_after");
    assert_eq!((log.position(), log.quarantine_len()), (Some(before), 0));
    insert(&log, user(3, "after it")).unwrap();
    let expected = [user(1, "old"), user(2, "old"), user(3, "after it")];
    assert_eq!(rows(&log), expected);
    drop(log);
    let log = Log::open(dir.path(), Options::default()).unwrap();
    assert_eq!(rows(&log), expected);
    let mut reader = log.reader(before.time).unwrap();
    assert_eq!(reader.next(Duration::ZERO).unwrap().unwrap().changes.len(), 1);
    assert!(reader.next(Duration::ZERO).unwrap().is_none());
    assert_eq!(log.state_at(before.time).unwrap().map(|slice| slice.unwrap().len()).sum::<usize>(), 2);
}

#[test]
fn what_fails_once_it_is_published_ends_the_log_until_it_is_opened_again() {
    let _scenario = FailScenario::setup();
    let dir = tempfile::tempdir().unwrap();
    let log = ready(dir.path());
    let before = log.position().unwrap();
    fails_at(&log, "large_rows_before");
    let published = log.position().unwrap();
    assert!(published.time > before.time);
    // Whatever were written now would rest on the rows before it.
    assert!(matches!(insert(&log, user(3, "after it")), Err(LogError::Unsettled)));
    assert!(matches!(log.append(&[], Lsn(0), NOW), Err(LogError::Unsettled)));
    assert!(matches!(log.compact(NOW + 1), Err(LogError::Unsettled)));
    assert!(matches!(log.state_at(published.time).err(), Some(LogError::Unsettled)));
    drop(log);
    let log = Log::open(dir.path(), Options::default()).unwrap();
    assert_eq!((log.position(), log.quarantine_len()), (Some(published), 1_000));
    assert_eq!(rows(&log), [user(1, "new")]);
    insert(&log, user(3, "after it")).unwrap();
    assert_eq!(rows(&log), [user(1, "new"), user(3, "after it")]);
}

/// What does not fit is refused before anything of it is written, and the writer waits for it.
#[test]
fn what_there_is_no_room_for_is_known_before_it_is_written() {
    let _scenario = FailScenario::setup();
    let dir = tempfile::tempdir().unwrap();
    let log = ready(dir.path());
    let position = log.position();
    drop(log);
    // More is to stay free than there is on any disk.
    let options = Options { reserve_bytes: u64::MAX / 2, ..Options::default() };
    let log = Log::open(dir.path(), options).unwrap();
    let changes = vec![RowChange::Truncate(Relation::Users)].into();
    let truncate = Transaction { end_lsn: Lsn(110), committed_at: 0, changes };
    let refused = log.append(&[truncate], Lsn(0), NOW);
    assert!(matches!(refused, Err(LogError::NoRoom { .. })), "{refused:?}");
    let refused = log.begin_resync(&source(), &[Relation::Users]).unwrap().finish(None, NOW);
    assert!(matches!(refused, Err(LogError::NoRoom { .. })), "{refused:?}");
    assert_eq!((log.position(), rows(&log).len()), (position, 2));
}
