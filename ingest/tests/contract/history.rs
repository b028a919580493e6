//! Any history of transactions, restarts and compaction, against the naive model.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use feedmill_ingest::{Log, Reader};
use feedmill_model::{Batch, Lsn, Row, SourceId, Time};
use proptest::test_runner::{Config, TestRunner};

use crate::model::{State, Step, apply, by_key, difference, steps};
use crate::{Implementation, NOW, read, ready, state_at, transactions};

/// Every batch is the difference of two states, every state in the tail can be read, and ring and disk give the same.
pub fn any_history_is_kept<I: Implementation>() {
    let mut runner = TestRunner::new(Config { cases: 48, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&steps(), |steps| {
        let dir = tempfile::tempdir().unwrap();
        let mut run = Run::<I>::new(dir.path());
        for step in steps {
            run.step(step);
        }
        run.check();
        Ok(())
    });
    outcome.unwrap_or_else(|failure| panic!("{failure}"));
}

/// A log beside its model.
struct Run<'a, I> {
    dir: &'a Path,
    log: Log,
    /// Reads along from the start, or from the last restart.
    reader: Reader,
    /// The state at the end of the copy, and after each batch.
    states: Vec<(Time, State)>,
    batches: Vec<Arc<Batch>>,
    /// What the last batch was made of.
    last: Vec<feedmill_connectors::postgres::Transaction>,
    implementation: std::marker::PhantomData<I>,
}

impl<'a, I: Implementation> Run<'a, I> {
    fn new(dir: &'a Path) -> Self {
        let log = ready::<I>(dir, Vec::<Row>::new());
        let start = log.position().unwrap().time;
        let reader = log.reader(start).unwrap();
        let states = vec![(start, State::new())];
        Run { dir, log, reader, states, batches: vec![], last: vec![], implementation: std::marker::PhantomData }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append(changes) => self.append(changes),
            Step::Again => {
                let (state, last) = (self.states.last().unwrap().1.clone(), self.last.clone());
                let batch = self.log.append(&last, Lsn(0), NOW).unwrap();
                assert!(batch.changes.is_empty(), "it is held already");
                self.took(batch, state);
            }
            Step::Reopen => self.reopen(),
            Step::Compact => {
                let newest = self.states.last().unwrap().0;
                let before = self.states[self.states.len() / 2].0;
                self.log.compact(before).unwrap();
                assert!(self.log.tail_after() < before.min(newest) || self.states.len() == 1);
            }
        }
    }

    fn append(&mut self, mut changes: Vec<Vec<feedmill_connectors::postgres::RowChange>>) {
        let before = self.states.last().unwrap().1.clone();
        let mut after = before.clone();
        apply(&mut after, &mut changes);
        let position = self.log.position().unwrap();
        self.last = transactions(position.lsn, changes);
        let batch = self.log.append(&self.last, Lsn(0), NOW).unwrap();
        assert!(batch.position.time > position.time);
        assert_eq!(batch.position.lsn.0, position.lsn.0 + 10 * self.last.len() as u64);
        assert_eq!(by_key(&batch.changes), difference(&before, &after));
        self.took(batch, after);
    }

    fn took(&mut self, batch: Arc<Batch>, state: State) {
        assert_eq!(self.reader.next(Duration::ZERO).unwrap(), Some(Arc::clone(&batch)), "a reader that keeps up");
        self.states.push((batch.position.time, state));
        self.batches.push(batch);
    }

    fn reopen(&mut self) {
        let (position, tail_after, greatest) = (self.log.position(), self.log.tail_after(), self.log.greatest_entry());
        // Every handle must go before the folder can be opened again.
        let other = tempfile::tempdir().unwrap();
        let spare = ready::<I>(other.path(), vec![]);
        self.reader = spare.reader(spare.position().unwrap().time).unwrap();
        self.log = spare;
        self.log = I::open(self.dir).unwrap();
        assert_eq!((self.log.position(), self.log.tail_after()), (position, tail_after));
        assert_eq!(self.log.greatest_entry(), greatest);
        assert_eq!(self.log.source(), Some(SourceId { system: 7, timeline: 1, slot: "feedmill".to_owned() }));
        self.reader = self.log.reader(position.unwrap().time).unwrap();
    }

    fn check(&mut self) {
        self.check_tail();
        self.reopen();
        self.check_tail();
    }

    /// From memory before a restart, from disk after it.
    fn check_tail(&self) {
        let held = |time: Time| time >= self.log.tail_after();
        for (time, state) in self.states.iter().filter(|(time, _)| held(*time)) {
            assert_eq!(&state_at(&self.log, *time), state, "at {time}");
            let expected: Vec<&Arc<Batch>> = self.batches.iter().filter(|batch| batch.position.time > *time).collect();
            let batches = read(&mut self.log.reader(*time).unwrap());
            assert_eq!(batches.iter().collect::<Vec<_>>(), expected, "after {time}");
        }
        if let Some((time, _)) = self.states.iter().find(|(time, _)| !held(*time)) {
            assert!(self.log.reader(*time).is_err() && self.log.state_at(*time).is_err());
        }
    }
}
