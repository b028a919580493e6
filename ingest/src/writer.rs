//! The thread that writes the change log.
//!
//! One write for whatever has come while the last one was on its way to the disk: one transaction when it is quiet, so
//! that it is visible soon; many when there is a backlog, so that an fsync is shared. Where many come each time the writer rests
//! for a moment first: a write costs as much as some ten transactions, and the server needs the processors too. A keepalive ends
//! the group: the batch covers exactly what was committed before its position.
//!
//! While the disk is nearly full, or the clock cannot be right, nothing is written, and so nothing more is read from the
//! source: see [`crate::room`].

use std::time::{Duration, Instant};

use feedmill_connectors::postgres::Transaction;
use feedmill_model::{Lsn, Position};
use tokio::sync::mpsc::Receiver;
use tokio::sync::watch;

use crate::{Log, LogError};

/// Transactions, and changes in them, that one write takes. A single transaction may be larger, and is then a write of
/// its own.
const GROUP_TRANSACTIONS_MAX: usize = 4_096;
const GROUP_CHANGES_MAX: usize = 16_384;
/// Transactions of a write from which on more are waited for before the next, unless enough have come; and for how long.
const MANY: usize = 16;
const ENOUGH: usize = 256;
const REST: Duration = Duration::from_millis(5);

/// What capture hands to the writer, in the order of the source's log.
#[derive(Clone, Debug, PartialEq)]
pub enum Incoming {
    /// A committed transaction.
    Transaction(Transaction),
    /// Everything that was committed before this has been handed over.
    Covered(Lsn),
}

/// Writes until `incoming` ends and all that was in it is durable, or until it ends while there is no room or no right
/// clock. `durable` is told what is, after it is. `now_ms` is this machine's clock, in milliseconds since 1970.
pub fn run_writer(
    log: &Log,
    incoming: Receiver<Incoming>,
    durable: &watch::Sender<Lsn>,
    now_ms: impl Fn() -> u64,
) -> Result<(), LogError> {
    // Transactions that are not bulk must not become so by being written together.
    let changes_max = GROUP_CHANGES_MAX.min(log.bulk_rows());
    let mut groups = Groups { incoming, changes_max, carried: None, rests: false };
    while let Some(group) = groups.next() {
        let Some(position) = append(log, &group, || groups.incoming.is_closed(), &now_ms)? else { return Ok(()) };
        metrics::counter!("feedmill_log_transactions_total").increment(group.transactions.len() as u64);
        durable.send_replace(position.lsn);
    }
    Ok(())
}

/// Appends a group as soon as there is room and the clock is right; `None` if `end` says that nobody waits for it any
/// more.
fn append(
    log: &Log,
    group: &Group,
    end: impl Fn() -> bool,
    now_ms: impl Fn() -> u64,
) -> Result<Option<Position>, LogError> {
    let mut need = log.need(group.transactions.iter().map(|transaction| transaction.changes.len()).sum());
    loop {
        if !log.wait_for_room(need, &end)? {
            return Ok(None);
        }
        let started = Instant::now();
        match log.append(&group.transactions, group.covers.unwrap_or_default(), now_ms()) {
            Err(LogError::NoRoom { need: more, .. }) => need = need.max(more),
            Err(error @ (LogError::ClockBack { .. } | LogError::ClockAhead { .. })) => {
                if !log.wait_for_clock(&error, &end) {
                    return Ok(None);
                }
            }
            appended => {
                metrics::histogram!("feedmill_log_append_seconds").record(started.elapsed().as_secs_f64());
                log.waits_no_more();
                return appended.map(Some);
            }
        }
    }
}

/// What goes into one batch.
#[derive(Debug, Default, PartialEq)]
struct Group {
    transactions: Vec<Transaction>,
    /// Set when a keepalive ended it.
    covers: Option<Lsn>,
}

/// Cuts what comes in into groups.
struct Groups {
    incoming: Receiver<Incoming>,
    changes_max: usize,
    /// What did not fit into the last group.
    carried: Option<Transaction>,
    /// The last group had many transactions, and was all that there was.
    rests: bool,
}

impl Groups {
    /// Blocks for the first, then takes what is there; `None` at the end.
    fn next(&mut self) -> Option<Group> {
        let mut group = Group::default();
        let mut changes = 0;
        if self.rests && self.incoming.len() < ENOUGH {
            std::thread::sleep(REST);
        }
        self.rests = false;
        let mut next = match self.carried.take() {
            Some(carried) => Some(Incoming::Transaction(carried)),
            None => Some(self.incoming.blocking_recv()?),
        };
        while let Some(incoming) = next {
            match incoming {
                Incoming::Covered(lsn) => {
                    group.covers = Some(lsn);
                    break;
                }
                Incoming::Transaction(transaction) => {
                    changes += transaction.changes.len();
                    if changes > self.changes_max && !group.transactions.is_empty() {
                        self.carried = Some(transaction);
                        break;
                    }
                    group.transactions.push(transaction);
                }
            }
            let is_full = group.transactions.len() >= GROUP_TRANSACTIONS_MAX || changes >= self.changes_max;
            next = if is_full { None } else { self.incoming.try_recv().ok() };
            self.rests = next.is_none() && !is_full && group.transactions.len() >= MANY;
        }
        Some(group)
    }
}

#[cfg(test)]
mod tests {
    use feedmill_connectors::postgres::RowChange;
    use feedmill_model::Relation;
    use tokio::sync::mpsc::channel;

    use super::*;

    fn transaction(end_lsn: u64, changes: usize) -> Transaction {
        let changes = vec![RowChange::Truncate(Relation::Likes); changes];
        Transaction { end_lsn: Lsn(end_lsn), committed_at: 0, changes: changes.into() }
    }

    /// The end of each transaction in each group, and what the group covers.
    fn groups(incoming: Vec<Incoming>, changes_max: usize) -> Vec<(Vec<u64>, Option<u64>)> {
        let (sender, received) = channel(incoming.len());
        for incoming in incoming {
            sender.try_send(incoming).expect("there is room");
        }
        drop(sender);
        let mut groups = Groups { incoming: received, changes_max, carried: None, rests: false };
        let ends = |group: Group| {
            let ends = group.transactions.iter().map(|transaction| transaction.end_lsn.0).collect();
            (ends, group.covers.map(|lsn| lsn.0))
        };
        std::iter::from_fn(|| groups.next()).map(ends).collect()
    }

    #[test]
    fn a_backlog_shares_a_write_and_a_keepalive_ends_it() {
        let incoming = vec![
            Incoming::Covered(Lsn(1)),
            Incoming::Transaction(transaction(2, 1)),
            Incoming::Transaction(transaction(3, 1)),
            Incoming::Covered(Lsn(4)),
            Incoming::Transaction(transaction(5, 1)),
        ];
        assert_eq!(groups(incoming, 100), [(vec![], Some(1)), (vec![2, 3], Some(4)), (vec![5], None)]);
    }

    #[test]
    fn a_group_is_bounded_and_a_large_transaction_stands_alone() {
        let sizes = [3, 3, 3, 30, 1, 1];
        let incoming =
            (1..).zip(sizes).map(|(end, changes)| Incoming::Transaction(transaction(end, changes))).collect();
        let expected = [vec![1, 2, 3], vec![4], vec![5, 6]].map(|ends| (ends, None));
        assert_eq!(groups(incoming, 10), expected);
        let incoming = (1..=5_000).map(|end| Incoming::Transaction(transaction(end, 0))).collect();
        let sizes: Vec<usize> = groups(incoming, 10).iter().map(|(ends, _)| ends.len()).collect();
        assert_eq!(sizes, [GROUP_TRANSACTIONS_MAX, 5_000 - GROUP_TRANSACTIONS_MAX]);
    }
}
