#![allow(missing_docs, clippy::unwrap_used, clippy::panic, reason = "temporary")]
use feedmill_connectors::postgres::{RowChange, Transaction};
use feedmill_ingest::{Log, LogState, Options};
use feedmill_model::{Follow, Lsn, Row, SourceId};
fn follow(follower_id: i64, following_id: i64) -> Row {
    Row::Follow(Follow { follower_id, following_id, accepted: true, created_at: 0 })
}
fn copy(log: &Log, copy: i64, slices: i64) {
    log.begin_copy(&SourceId { system: 1, timeline: 1, slot: "s".into() }).unwrap();
    for slice in 0..slices {
        log.copy_rows((0..10_000).map(|n| follow((n * 7919 + slice * 104_729) % 1_000_003, slice * 10_000 + n + copy * 1_000_000_000)).collect()).unwrap();
    }
}
fn count(log: &Log, copy: i64) -> usize {
    let mut n = 0;
    for slice in log.state_at(log.position().unwrap().time).unwrap() {
        for row in slice.unwrap() {
            let Row::Follow(f) = row else { panic!() };
            assert_eq!(f.following_id / 1_000_000_000, copy);
            n += 1;
        }
    }
    n
}
#[test]
fn stress() {
    let dir = tempfile::tempdir().unwrap();
    let open = || Log::open(dir.path(), Options::default()).unwrap();
    let log = open();
    copy(&log, 1, 250);
    drop(log);
    let log = open();
    assert_eq!(log.state(), LogState::Copying);
    copy(&log, 2, 200);
    log.finish_copy(Lsn(5), 1000).unwrap();
    assert_eq!(count(&log, 2), 2_000_000);
    drop(log);
    let log = open();
    assert_eq!(count(&log, 2), 2_000_000);
    copy(&log, 3, 30);
    log.finish_copy(Lsn(6), 1000).unwrap();
    assert_eq!(count(&log, 3), 300_000);
    let mut end = 6;
    for slice in 0..40_i64 {
        end += 1;
        let changes = (0..20_000).map(|n| RowChange::Insert(follow((n * 7919 + slice * 104_729) % 1_000_003, 3_000_400_000 + slice * 20_000 + n))).collect();
        log.append(&[Transaction { end_lsn: Lsn(end), committed_at: 0, changes }], Lsn(0), 1000).unwrap();
    }
    assert_eq!(count(&log, 3), 1_100_000);
    let t = log.position().unwrap().time;
    drop(log);
    for _ in 0..2 {
        let started = std::time::Instant::now();
        let log = open();
        println!("open {:?}", started.elapsed());
        assert_eq!(count(&log, 3), 1_100_000);
        assert_eq!(log.state_at(t - 40).unwrap().map(|s| s.unwrap().len()).sum::<usize>(), 300_000);
    }
}
