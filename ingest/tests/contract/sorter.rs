//! Large transactions that are sorted while they are received.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use feedmill_connectors::postgres::{Changes, Operation, RowChange, Spill, SpillWriter, Transaction, Unusable};
use feedmill_ingest::{Log, QuarantineId, Quarantined};
use feedmill_model::{Batch, Lsn, Relation, Row};
use metrics::{Counter, Gauge, Histogram, Key, KeyName, Metadata, Recorder, SharedString, Unit};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestRunner};

use crate::model::change;
use crate::{Implementation, LIMIT, NOW, append, append_group, ready, rows, state, user};

/// Counts the transactions that were sorted before they were appended.
#[derive(Default)]
struct Sorted(Arc<AtomicU64>);

impl Recorder for Sorted {
    fn describe_counter(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_gauge(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}
    fn describe_histogram(&self, _: KeyName, _: Option<Unit>, _: SharedString) {}

    fn register_counter(&self, key: &Key, _: &Metadata<'_>) -> Counter {
        if key.name() == "feedmill_log_sorted_early_total" { self.0.clone().into() } else { Counter::noop() }
    }

    fn register_gauge(&self, _: &Key, _: &Metadata<'_>) -> Gauge {
        Gauge::noop()
    }

    fn register_histogram(&self, _: &Key, _: &Metadata<'_>) -> Histogram {
        Histogram::noop()
    }
}

/// A transaction that is being received.
struct Received {
    writer: SpillWriter,
    /// Where each of its changes begins.
    offsets: Vec<u64>,
}

impl Received {
    /// One that the log follows.
    fn new(log: &Log) -> Self {
        let writer = SpillWriter::create(&std::env::temp_dir(), 0).unwrap();
        assert!(log.sorter().follow(writer.growing()), "it has nothing else to do");
        Received { writer, offsets: vec![] }
    }

    /// One that the log follows once nothing is left of the one before.
    fn after_another(log: &Log, dir: &Path) -> Self {
        let writer = SpillWriter::create(&std::env::temp_dir(), 0).unwrap();
        let deadline = Instant::now() + LIMIT;
        while open_files(dir) > 0 || !log.sorter().follow(writer.growing()) {
            // An idle tick.
            log.append(&[], Lsn(0), NOW).unwrap();
            assert!(Instant::now() < deadline, "what was sorted is still there");
        }
        Received { writer, offsets: vec![] }
    }

    fn push(&mut self, change: &RowChange) {
        self.offsets.push(self.writer.offset());
        self.writer.push(change).unwrap();
    }

    /// The last changes are rolled back.
    fn roll_back(&mut self, changes: usize) {
        let kept = self.offsets.len().saturating_sub(changes);
        if let Some(offset) = self.offsets.get(kept).copied() {
            self.writer.truncate(kept, offset);
            self.offsets.truncate(kept);
        }
    }

    fn committed(self) -> Transaction {
        Transaction { end_lsn: Lsn(200), committed_at: 0, changes: Changes::Spilled(self.writer.freeze().unwrap()) }
    }
}

/// Appends a transaction; gives its batch, and how many were sorted before.
fn append_received(log: &Log, transaction: Transaction) -> (Batch, u64) {
    let sorted = Sorted::default();
    let batch = metrics::with_local_recorder(&sorted, || append_group(log, &[transaction]));
    (batch, sorted.0.load(Ordering::Relaxed))
}

/// What happens to a transaction before its commit.
#[derive(Clone, Debug)]
enum Step {
    Change(RowChange),
    /// So many changes are rolled back.
    Back(usize),
    /// Whoever reads along is let on.
    Yield,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let row = |id: Option<i64>| {
        let key = id.map(|id| user(id, "").key());
        let unusable = Unusable {
            relation: Relation::Users,
            operation: Operation::Update,
            key,
            old_key: None,
            columns: vec![],
            reason: "a test".to_owned(),
        };
        Step::Change(RowChange::Unusable(Box::new(unusable)))
    };
    let step = prop_oneof![
        24 => change().prop_map(|change| Step::Change(long(change))),
        2 => prop::option::of(0..4_i64).prop_map(row),
        3 => (1..30_usize).prop_map(Step::Back),
        3 => Just(Step::Yield),
    ];
    prop::collection::vec(step, 1..150)
}

/// The same, but so long that a few fill a block of the file.
fn long(mut change: RowChange) -> RowChange {
    if let RowChange::Insert(row) | RowChange::Update { row, .. } = &mut change {
        match row {
            Row::User(user) if !user.display_name.is_empty() => user.display_name.push_str(&"-".repeat(60_000)),
            Row::Tweet(tweet) if !tweet.content.is_empty() => tweet.content.push_str(&"-".repeat(60_000)),
            _ => {}
        }
    }
    change
}

/// Whether it takes columns along from the row of another key.
fn needs_another_key(change: &RowChange) -> bool {
    matches!(change, RowChange::Update { old_key: Some(old), row, unchanged } if *unchanged != 0 && *old != row.key())
}

fn set_aside(log: &Log) -> Vec<(QuarantineId, Quarantined)> {
    log.quarantine(None, 1_000).unwrap()
}

/// Whatever a transaction does, and whatever of it is rolled back while it is read along: batch, state and quarantine are
/// those of the same transaction that is sorted when it is appended.
pub fn what_is_sorted_while_it_is_received_is_the_same<I: Implementation>() {
    let mut runner = TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&(prop::collection::vec(change(), 0..20), steps()), |(before, steps)| {
        let dirs = [tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap()];
        let [early, late] = dirs.each_ref().map(|dir| ready::<I>(dir.path(), vec![]));
        prop_assert_eq!(append(&early, before.clone()), append(&late, before));
        let (mut received, mut changes) = (Received::new(&early), Vec::new());
        let mut is_told = true;
        for step in steps {
            match step {
                Step::Change(change) => {
                    is_told &= !needs_another_key(&change);
                    received.push(&change);
                    changes.push(change);
                }
                Step::Back(count) => {
                    received.roll_back(count);
                    changes.truncate(changes.len().saturating_sub(count));
                }
                Step::Yield => (0..50).for_each(|_| std::thread::yield_now()),
            }
        }
        let (batch, sorted) = append_received(&early, received.committed());
        prop_assert!(sorted == 1 || !is_told);
        let at_commit = Spill::write(&std::env::temp_dir(), &changes).unwrap();
        let at_commit = Transaction { end_lsn: Lsn(200), committed_at: 0, changes: Changes::Spilled(at_commit) };
        let (expected, sorted) = append_received(&late, at_commit);
        prop_assert_eq!(sorted, 0);
        prop_assert!(batch == expected, "{:?} instead of {:?}", batch, expected);
        prop_assert!(state(&early) == state(&late) && set_aside(&early) == set_aside(&late));
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

/// Rolled back, lost with its connection or never appended: nothing is left of it, and the next one is sorted.
pub fn what_was_sorted_goes_with_its_transaction<I: Implementation>() {
    let dir = tempfile::tempdir().unwrap();
    let log = ready::<I>(dir.path(), vec![]);
    let long_user = |id: i64| long(RowChange::Insert(user(id, "u")));
    for ends in [true, false] {
        let mut received = Received::after_another(&log, dir.path());
        (0..100).for_each(|id| received.push(&long_user(id)));
        let other = SpillWriter::create(&std::env::temp_dir(), 0).unwrap();
        assert!(!log.sorter().follow(other.growing()), "one at a time");
        if ends {
            drop(received);
        } else {
            drop(received.committed());
        }
    }
    let mut received = Received::after_another(&log, dir.path());
    (0..100).for_each(|id| received.push(&long_user(id)));
    let (batch, sorted) = append_received(&log, received.committed());
    assert_eq!((batch.changes.len(), rows(&log).len(), sorted), (100, 100, 1));
    // Whoever closes the log waits for nobody.
    let mut received = Received::after_another(&log, dir.path());
    received.push(&long_user(1));
    drop(log);
    assert_eq!(open_files(dir.path()), 0);
    I::open(dir.path()).unwrap();
}

/// Files without a name in a folder that this process has open.
fn open_files(dir: &Path) -> usize {
    let dir = dir.to_str().unwrap();
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten().flat_map(|fd| std::fs::read_link(fd.path()));
    links.filter(|link| link.to_str().is_some_and(|link| link.starts_with(dir) && link.ends_with("(deleted)"))).count()
}
