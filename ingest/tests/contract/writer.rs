//! The thread that writes the log.

use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Instant;

use feedmill_connectors::postgres::RowChange;
use feedmill_ingest::{Incoming, LogError, Waits, run_writer};
use feedmill_model::Lsn;
use tokio::sync::{mpsc, watch};

use crate::{HOUR_MS, Implementation, LIMIT, NOW, follow, insert, read, ready, rows, transactions};

pub fn the_writer_acknowledges_what_is_durable<I: Implementation>() {
    const TRANSACTIONS: i64 = 500;
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![]);
    let changes: Vec<Vec<RowChange>> = (0..TRANSACTIONS).map(|id| insert([follow(id, 0)])).collect();
    let (sender, incoming) = mpsc::channel(16);
    let (durable, is_durable) = watch::channel(Lsn(0));
    thread::scope(|scope| {
        let writer = scope.spawn(|| run_writer(&log, incoming, &durable, || NOW));
        for transaction in transactions(Lsn(100), changes) {
            sender.blocking_send(Incoming::Transaction(transaction)).unwrap();
            let acknowledged = *is_durable.borrow();
            assert!(log.position().unwrap().lsn >= acknowledged);
        }
        sender.blocking_send(Incoming::Covered(Lsn(9_999))).unwrap();
        drop(sender);
        writer.join().unwrap().unwrap();
    });
    assert_eq!((*is_durable.borrow(), log.position().unwrap().lsn), (Lsn(9_999), Lsn(9_999)));
    let batches = read(&mut log.reader(NOW).unwrap());
    assert_eq!(batches.iter().map(|batch| batch.changes.len()).sum::<usize>(), TRANSACTIONS as usize);
    assert!(batches.iter().all(|batch| batch.floor.is_none()), "small transactions never become bulk together");
    drop(log);
    assert_eq!(rows(&I::open(dir.path()).unwrap()).len(), TRANSACTIONS as usize);
}

pub fn the_writer_waits_for_a_right_clock<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![]);
    let clock = AtomicU64::new(NOW - 2 * HOUR_MS);
    let (durable, mut is_durable) = watch::channel(Lsn(0));
    let waits =
        || matches!(log.waits_for(), Some(Waits::Clock { problem }) if problem.contains("ahead of this machine"));
    let until = |what: &str, is: &dyn Fn() -> bool| {
        let deadline = Instant::now() + LIMIT;
        while !is() {
            assert!(Instant::now() < deadline, "{what}");
            thread::yield_now();
        }
    };
    thread::scope(|scope| {
        let (sender, incoming) = mpsc::channel(1);
        let writer = scope.spawn(|| run_writer(&log, incoming, &durable, || clock.load(Ordering::Relaxed)));
        sender.blocking_send(Incoming::Covered(Lsn(200))).unwrap();
        until("the writer waits", &waits);
        assert!(!is_durable.has_changed().unwrap() && !writer.is_finished());
        clock.store(NOW + 1, Ordering::Relaxed);
        until("the writer goes on", &|| log.waits_for().is_none());
        drop(sender);
        writer.join().unwrap().unwrap();
    });
    assert_eq!((*is_durable.borrow_and_update(), log.position().unwrap().lsn), (Lsn(200), Lsn(200)));
    // It ends while it waits when nobody wants more of it.
    clock.store(NOW - 2 * HOUR_MS, Ordering::Relaxed);
    let (sender, incoming) = mpsc::channel(1);
    sender.try_send(Incoming::Covered(Lsn(300))).unwrap();
    drop(sender);
    run_writer(&log, incoming, &durable, || clock.load(Ordering::Relaxed)).unwrap();
    assert_eq!(log.position().unwrap().lsn, Lsn(200));
}

pub fn the_writer_ends_with_the_error<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = I::open(dir.path()).unwrap();
    let (sender, incoming) = mpsc::channel(1);
    let (durable, is_durable) = watch::channel(Lsn(0));
    sender.try_send(Incoming::Covered(Lsn(200))).unwrap();
    let error = run_writer(&log, incoming, &durable, || NOW);
    assert!(matches!(error, Err(LogError::NotReady)));
    assert!(sender.is_closed(), "capture learns that nobody takes transactions");
    assert_eq!(*is_durable.borrow(), Lsn(0));
}
