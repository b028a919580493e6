//! Any history of transactions, restarts and compaction, against the naive model.

use std::marker::PhantomData;
use std::path::Path;
use std::time::Duration;

use feedmill_connectors::postgres::{RowChange, Transaction};
use feedmill_ingest::{Log, Reader};
use feedmill_model::{Batch, Time};
use proptest::test_runner::{Config, TestRunner};

use crate::model::{State, Step, apply, by_key, difference, steps};
use crate::{Implementation, LIMIT, append_group, next, read, ready, state_at, transactions};

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
    /// `None` only while the folder is closed.
    open: Option<Open>,
    /// The state at the end of the copy, and after each batch.
    states: Vec<(Time, State)>,
    batches: Vec<Batch>,
    /// What the last batch was made of.
    last: Vec<Transaction>,
    implementation: PhantomData<I>,
}

struct Open {
    log: Log,
    /// Reads along from the start, or from the last restart.
    reader: Reader,
}

impl Open {
    fn new(log: Log) -> Self {
        let reader = log.reader(log.position().unwrap().time).unwrap();
        Open { log, reader }
    }
}

impl<'a, I: Implementation> Run<'a, I> {
    fn new(dir: &'a Path) -> Self {
        let open = Open::new(ready::<I>(dir, vec![]));
        let states = vec![(open.log.position().unwrap().time, State::new())];
        Run { dir, open: Some(open), states, batches: vec![], last: vec![], implementation: PhantomData }
    }

    fn log(&self) -> &Log {
        &self.open.as_ref().unwrap().log
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Append(changes) => self.append(changes),
            Step::Again => {
                let state = self.states.last().unwrap().1.clone();
                let batch = append_group(self.log(), &self.last);
                assert!(batch.changes.is_empty(), "it is held already");
                self.took(batch, state);
            }
            Step::Reopen => self.reopen(),
            Step::Compact => {
                let before = self.states[self.states.len() / 2].0;
                self.log().compact(before).unwrap();
                self.log().write_out(LIMIT).unwrap();
                assert!(self.log().tail_after() < before || self.states.len() == 1);
            }
        }
    }

    fn append(&mut self, mut changes: Vec<Vec<RowChange>>) {
        let before = self.states.last().unwrap().1.clone();
        let mut after = before.clone();
        apply(&mut after, &mut changes);
        let position = self.log().position().unwrap();
        self.last = transactions(position.lsn, changes);
        let batch = append_group(self.log(), &self.last);
        assert!(batch.position.time > position.time);
        assert_eq!(batch.position.lsn.0, position.lsn.0 + 10 * self.last.len() as u64);
        assert_eq!(by_key(&batch.changes), difference(&before, &after));
        self.took(batch, after);
    }

    fn took(&mut self, batch: Batch, state: State) {
        let reader = &mut self.open.as_mut().unwrap().reader;
        assert_eq!(next(reader, Duration::ZERO).as_ref(), Some(&batch), "a reader that keeps up");
        self.states.push((batch.position.time, state));
        self.batches.push(batch);
    }

    fn reopen(&mut self) {
        let known = |log: &Log| (log.position(), log.tail_after(), log.greatest_entry(), log.source());
        let before = known(self.log());
        self.open = None;
        self.open = Some(Open::new(I::open(self.dir).unwrap()));
        assert_eq!(known(self.log()), before);
    }

    /// From memory, and from disk after a restart.
    fn check(&mut self) {
        self.check_tail();
        self.reopen();
        self.check_tail();
    }

    fn check_tail(&self) {
        let log = self.log();
        let (held, gone): (Vec<_>, Vec<_>) = self.states.iter().partition(|(time, _)| *time >= log.tail_after());
        for (time, state) in held {
            assert_eq!(&state_at(log, *time), state, "at {time}");
            let after = self.batches.iter().filter(|batch| batch.position.time > *time);
            assert!(read(&mut log.reader(*time).unwrap()).iter().eq(after), "after {time}");
        }
        for (time, _) in gone {
            assert!(log.reader(*time).is_err() && log.state_at(*time).is_err(), "at {time}");
        }
    }
}
