//! The thread that writes the log.

use std::thread;

use feedmill_connectors::postgres::RowChange;
use feedmill_ingest::{Incoming, LogError, run_writer};
use feedmill_model::Lsn;
use tokio::sync::{mpsc, watch};

use crate::{HOUR_MS, Implementation, NOW, insert, read, ready, rows, transactions, user};

pub fn the_writer_acknowledges_what_is_durable<I: Implementation>() {
    const TRANSACTIONS: i64 = 500;
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![]);
    let changes: Vec<Vec<RowChange>> = (0..TRANSACTIONS).map(|id| insert([user(id, "new")])).collect();
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

pub fn the_writer_ends_with_the_error<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![]);
    let (sender, incoming) = mpsc::channel(1);
    let (durable, is_durable) = watch::channel(Lsn(0));
    sender.try_send(Incoming::Covered(Lsn(200))).unwrap();
    let error = run_writer(&log, incoming, &durable, || NOW - 2 * HOUR_MS);
    assert!(matches!(error, Err(LogError::ClockBack { .. })));
    assert!(sender.is_closed(), "capture learns that nobody takes transactions");
    assert_eq!(*is_durable.borrow(), Lsn(0));
}
