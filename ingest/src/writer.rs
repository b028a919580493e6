//! The thread that writes the change log.
//!
//! One write for whatever has come while the last one was on its way to the disk: one transaction when it is quiet, so
//! that it is visible soon; many when there is a backlog, so that an fsync is shared. A keepalive ends the group: the
//! batch covers exactly what was committed before its position.

use std::time::Instant;

use feedmill_connectors::postgres::Transaction;
use feedmill_model::Lsn;
use tokio::sync::{mpsc, watch};

use crate::{Log, LogError};

/// Transactions, and changes in them, that one write takes.
const GROUP_TRANSACTIONS_MAX: usize = 4_096;
const GROUP_CHANGES_MAX: usize = 65_536;

/// What capture hands to the writer, in the order of the source's log.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// A committed transaction.
    Transaction(Transaction),
    /// Everything that was committed before this has been handed over.
    Covered(Lsn),
}

/// Writes until `incoming` ends; publishes what is durable to `durable`. `now_ms` is this machine's clock.
pub fn run_writer(
    log: &Log,
    mut incoming: mpsc::Receiver<Incoming>,
    durable: &watch::Sender<Lsn>,
    now_ms: impl Fn() -> u64,
) -> Result<(), LogError> {
    let mut group = Vec::new();
    while let Some(first) = incoming.blocking_recv() {
        let mut covers = take(first, &mut group);
        let mut changes: usize = group.iter().map(|transaction| transaction.changes.len()).sum();
        while covers.is_none() && group.len() < GROUP_TRANSACTIONS_MAX && changes < GROUP_CHANGES_MAX {
            let Ok(next) = incoming.try_recv() else { break };
            covers = take(next, &mut group);
            changes += group.last().map_or(0, |transaction| transaction.changes.len());
        }
        let started = Instant::now();
        let batch = log.append(&group, covers.unwrap_or_default(), now_ms())?;
        metrics::histogram!("feedmill_log_append_seconds").record(started.elapsed().as_secs_f64());
        metrics::counter!("feedmill_log_batches_total").increment(1);
        metrics::counter!("feedmill_log_transactions_total").increment(group.len() as u64);
        metrics::counter!("feedmill_log_changes_total").increment(batch.changes.len() as u64);
        durable.send_replace(batch.position.lsn);
        group.clear();
    }
    Ok(())
}

fn take(incoming: Incoming, group: &mut Vec<Transaction>) -> Option<Lsn> {
    match incoming {
        Incoming::Transaction(transaction) => {
            group.push(transaction);
            None
        }
        Incoming::Covered(lsn) => Some(lsn),
    }
}
