//! Changes on their way into sorted runs, in the order in which they happened.

use feedmill_connectors::postgres::RowChange;
use feedmill_model::{Relation, Row};

use crate::LogError;
use crate::key::{append_encoded, first_key, last_key, row_key};
use crate::merge::Cleared;
use crate::run::{Buffer, Op, Runs};

/// Changes of one run at most.
pub(crate) const RUN_CHANGES: usize = 262_144;
/// Bytes of one run, about.
pub(crate) const RUN_BYTES: usize = 16 << 20;

/// What transactions come to, key by key.
#[derive(Debug)]
pub(crate) struct Sorted {
    pub runs: Runs,
    /// What a TRUNCATE has cleared.
    pub cleared: Vec<Cleared>,
}

/// Takes changes in, one after the other.
pub(crate) struct Intake {
    run_changes: usize,
    buffer: Buffer,
    mark: Mark,
}

/// How far an intake is, between two runs.
#[derive(Clone, Default)]
pub(crate) struct Mark {
    /// Number of the run that comes next.
    pub run: usize,
    /// Changes so far.
    pub changes: usize,
    cleared: Vec<Cleared>,
    /// Rows without a readable key so far.
    unnamed: u32,
}

impl Intake {
    pub fn new(run_changes: usize) -> Self {
        Intake { run_changes, buffer: Buffer::default(), mark: Mark::default() }
    }

    /// Takes a change; `false` if it cannot be told key by key.
    pub fn take(&mut self, change: &RowChange) -> Result<bool, LogError> {
        let nothing = |_: &mut Vec<u8>| Ok(());
        self.mark.changes += 1;
        match change {
            RowChange::Insert(row) => self.set(row)?,
            RowChange::Delete(key) => self.buffer.add(row_key(key), Op::Gone, nothing)?,
            RowChange::Truncate(relation) => self.clear(*relation),
            RowChange::Update { old_key, row, unchanged } => {
                let key = row.key();
                if let Some(old_key) = old_key.filter(|old_key| *old_key != key) {
                    if *unchanged != 0 {
                        return Ok(false);
                    }
                    self.buffer.add(row_key(&old_key), Op::Gone, nothing)?;
                }
                if *unchanged == 0 {
                    self.set(row)?;
                } else {
                    self.buffer.add(row_key(&key), Op::Fill, |bytes| {
                        bytes.extend_from_slice(&unchanged.to_le_bytes());
                        append_encoded(bytes, row, "a row")
                    })?;
                }
            }
            RowChange::Unusable(unusable) => {
                if let Some(old_key) = &unusable.old_key {
                    self.buffer.add(row_key(old_key), Op::Gone, nothing)?;
                }
                self.buffer.add_aside((**unusable).clone(), self.mark.unnamed)?;
                self.mark.unnamed += u32::from(unusable.key.is_none());
            }
        }
        Ok(true)
    }

    /// Whether what was taken is to become a run.
    pub fn is_full(&self) -> bool {
        self.buffer.is_full(self.run_changes, RUN_BYTES)
    }

    /// How much of the disk what was taken since the last run takes as one.
    pub fn run_bytes(&self) -> u64 {
        self.buffer.run_bytes()
    }

    /// Gives what was taken since the last run, and the number of the run that it is to become.
    pub fn next_run(&mut self) -> (usize, Buffer) {
        let number = self.mark.run;
        self.mark.run += 1;
        (number, std::mem::take(&mut self.buffer))
    }

    /// How far it is. Whoever wants to go back there asks when a run has been given.
    pub fn mark(&self) -> Mark {
        self.mark.clone()
    }

    /// Changes so far.
    pub fn changes(&self) -> usize {
        self.mark.changes
    }

    /// Forgets what was taken since.
    pub fn go_back(&mut self, mark: &Mark) {
        self.mark = mark.clone();
        self.buffer.clear();
    }

    /// What is cleared, once all has been taken.
    pub fn cleared(self) -> Vec<Cleared> {
        self.mark.cleared
    }

    fn set(&mut self, row: &Row) -> Result<(), LogError> {
        self.buffer.add(row_key(&row.key()), Op::Set, |bytes| append_encoded(bytes, row, "a row"))
    }

    /// What came before in this run is forgotten, and what lies in earlier ones does not count.
    fn clear(&mut self, relation: Relation) {
        self.buffer.forget(relation as u8);
        self.mark.cleared.retain(|range| range.first != first_key(relation));
        let from_run = self.mark.run;
        self.mark.cleared.push(Cleared { first: first_key(relation), last: last_key(relation), from_run });
    }
}
