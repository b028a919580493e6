//! A large transaction, read along while it is received.
//!
//! ```text
//!   SpillWriter ── records ─► file ◄── next ── Growing, on another thread
//!       │                                         ▲
//!       └─ written up to, cut back to, end ───────┘      a lock that is held for a moment, and a condition
//! ```
//!
//! Why what is read is what was written: the writer tells what can be read after it is in the file, and that something is
//! cut off before it writes over it. A block is read without the lock; if by then something was cut off that it has, it is
//! read again, and nothing of it was looked at. If more than the block was cut off, the reader is told where to, and goes
//! back there or farther. Whether that is so is asked before each block and before the end is told, so at the end
//! everything that it took and did not take back is what the transaction has.
//!
//! Neither waits for the other: the writer goes on whether anybody reads or not, and the reader waits no longer than it
//! says. What is read along holds the file as long as it is, and no longer.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::spill::{BLOCK_BYTES, End, LENGTH_BYTES, SpillFile, first_record};
use super::{RowChange, SpillError, SpillId};

/// Whoever reads large transactions along while they are received.
pub trait Follow: fmt::Debug + Send + Sync {
    /// Takes on a transaction, without waiting. `false` if there is no time for it: it is offered again when there is more
    /// of it.
    fn follow(&self, growing: Growing) -> bool;
}

/// Reads a file while it is written.
#[derive(Debug)]
pub struct Growing {
    file: Arc<SpillFile>,
    /// Where the next change begins.
    offset: u64,
    block: Vec<u8>,
    /// Where in the block that is.
    at: usize,
}

/// What comes next of a transaction that is being received.
#[derive(Debug)]
pub enum Grown {
    /// A change.
    Change(RowChange),
    /// What was read from this place on was rolled back. The next change is the one that stands there now.
    Cut(u64),
    /// Nothing for as long as it was to wait.
    Waiting,
    /// The transaction was committed, and this was all of it.
    Complete,
    /// It was rolled back, or the connection was lost.
    Dropped,
}

impl Growing {
    pub(super) fn new(file: Arc<SpillFile>) -> Self {
        Growing { file, offset: 0, block: Vec::new(), at: 0 }
    }

    /// Which file it is.
    pub fn id(&self) -> SpillId {
        self.file.id()
    }

    /// Where the next change begins.
    pub fn offset(&self) -> u64 {
        self.offset
    }

    /// Goes back to where a change began.
    pub fn go_back(&mut self, offset: u64) {
        self.offset = offset;
        self.block.clear();
        self.at = 0;
    }

    /// What comes next; waits for it no longer than `limit`.
    ///
    /// # Errors
    /// The disk fails.
    pub fn next(&mut self, limit: Duration) -> Result<Grown, SpillError> {
        loop {
            if let Some(record) = first_record(self.block.get(self.at..).unwrap_or_default()) {
                let length = LENGTH_BYTES + record.len();
                let change = postcard::from_bytes(record).map_err(|error| self.file.damaged(error))?;
                self.at += length;
                self.offset += length as u64;
                return Ok(Grown::Change(change));
            }
            if let Some(instead) = self.read(limit)? {
                return Ok(instead);
            }
        }
    }

    /// Reads a block that begins with the next change, and has all of it; or says what there is instead.
    fn read(&mut self, limit: Duration) -> Result<Option<Grown>, SpillError> {
        let length = self.block.get(self.at..).and_then(|rest| rest.first_chunk());
        let mut needed = LENGTH_BYTES + length.map_or(0, |length| u32::from_le_bytes(*length) as usize);
        self.go_back(self.offset);
        let bytes = {
            let mut state = self.file.state.lock();
            loop {
                if let Some(cut) = state.cut.take() {
                    if cut < self.offset {
                        drop(state);
                        self.go_back(cut);
                        return Ok(Some(Grown::Cut(cut)));
                    }
                    // Another change may stand there now.
                    needed = LENGTH_BYTES;
                }
                if state.bytes > self.offset {
                    break state.bytes;
                }
                let end = state.end;
                match end {
                    Some(End::Complete) => return Ok(Some(Grown::Complete)),
                    Some(End::Dropped) => return Ok(Some(Grown::Dropped)),
                    None if self.file.changed.wait_for(&mut state, limit).timed_out() => {
                        return Ok(Some(Grown::Waiting));
                    }
                    None => {}
                }
            }
        };
        let left = usize::try_from(bytes - self.offset).unwrap_or(usize::MAX);
        if needed > left {
            return Err(self.file.damaged("it ends too early"));
        }
        self.block.resize(BLOCK_BYTES.max(needed).min(left), 0);
        self.file.read(&mut self.block, self.offset)?;
        let cut = {
            let mut state = self.file.state.lock();
            let end = self.offset + self.block.len() as u64;
            state.cut.take().filter(|cut| *cut < end)
        };
        match cut {
            Some(cut) if cut < self.offset => {
                self.go_back(cut);
                Ok(Some(Grown::Cut(cut)))
            }
            // What was read may be half of this and half of that.
            Some(_) => {
                self.block.clear();
                Ok(None)
            }
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use feedmill_model::{Block, Row, Tweet};
    use proptest::prelude::*;

    use super::super::{Changes, SpillWriter};
    use super::*;

    const LIMIT: Duration = Duration::from_secs(60);

    fn block(number: i64) -> RowChange {
        RowChange::Insert(Row::Block(Block { blocker_id: number, blocked_id: i64::MAX }))
    }

    fn writer() -> SpillWriter {
        SpillWriter::create(&std::env::temp_dir(), 0).expect("a file")
    }

    /// Takes what is there; `Grown::Waiting` or the end.
    fn take(growing: &mut Growing, taken: &mut Vec<(u64, RowChange)>, limit: Duration) -> Grown {
        loop {
            let offset = growing.offset();
            match growing.next(limit).expect("readable") {
                Grown::Change(change) => taken.push((offset, change)),
                Grown::Cut(cut) => taken.retain(|(offset, _)| *offset < cut),
                other => return other,
            }
        }
    }

    #[test]
    fn what_is_dropped_is_told_and_what_is_gone_is_known() {
        let mut writer = writer();
        let mut growing = writer.growing();
        let id = growing.id();
        writer.push(&block(1)).expect("written");
        assert!(matches!(growing.next(Duration::ZERO), Ok(Grown::Waiting)), "it is not in the file yet");
        drop(writer);
        assert!(matches!(growing.next(LIMIT), Ok(Grown::Dropped)));
        assert!(!id.is_gone());
        drop(growing);
        assert!(id.is_gone());
    }

    #[test]
    fn a_record_longer_than_a_block_is_read_along() {
        let mut writer = writer();
        let mut growing = writer.growing();
        let content = "x".repeat(3 * BLOCK_BYTES);
        let long = RowChange::Insert(Row::Tweet(Box::new(Tweet { content, ..Tweet::default() })));
        let changes = [block(1), long, block(2)];
        changes.iter().for_each(|change| writer.push(change).expect("written"));
        let spill = writer.freeze().expect("written");
        assert_eq!(spill.id(), growing.id());
        let mut taken = Vec::new();
        assert!(matches!(take(&mut growing, &mut taken, LIMIT), Grown::Complete));
        assert!(taken.into_iter().map(|(_, change)| change).eq(changes));
    }

    /// So many changes; or back by so many, of which those that were read along are told.
    #[derive(Clone, Debug)]
    enum Step {
        Push(usize),
        Back(usize),
        Read,
    }

    fn write(writer: &mut SpillWriter, steps: &[Step], read: &mut dyn FnMut()) {
        let (mut offsets, mut number) = (Vec::new(), 0);
        for step in steps {
            match step {
                Step::Push(count) => {
                    for _ in 0..*count {
                        offsets.push(writer.offset());
                        number += 1;
                        writer.push(&block(number)).expect("written");
                    }
                }
                Step::Back(count) => {
                    let kept = offsets.len().saturating_sub(*count);
                    if let Some(offset) = offsets.get(kept).copied() {
                        writer.truncate(kept, offset);
                        offsets.truncate(kept);
                    }
                }
                Step::Read => read(),
            }
        }
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

        /// Wherever it is cut, and whenever that is read, in turns and at the same time: what is left in the end is what
        /// the file has.
        #[test]
        fn what_was_read_along_is_what_the_file_has(
            steps in prop::collection::vec(
                prop_oneof![
                    4 => (1..40_000_usize).prop_map(Step::Push),
                    2 => (1..60_000_usize).prop_map(Step::Back),
                    3 => Just(Step::Read),
                ],
                1..20,
            ),
            beside in any::<bool>(),
        ) {
            let mut writer = writer();
            let (mut growing, mut taken) = (writer.growing(), Vec::new());
            let spill = if beside {
                std::thread::scope(|scope| {
                    let reader = scope.spawn(|| take(&mut growing, &mut taken, LIMIT));
                    write(&mut writer, &steps, &mut || {});
                    let spill = writer.freeze().expect("written");
                    prop_assert!(matches!(reader.join().expect("no panic"), Grown::Complete));
                    Ok(spill)
                })?
            } else {
                write(&mut writer, &steps, &mut || { take(&mut growing, &mut taken, Duration::ZERO); });
                let spill = writer.freeze().expect("written");
                prop_assert!(matches!(take(&mut growing, &mut taken, LIMIT), Grown::Complete));
                spill
            };
            let taken: Vec<RowChange> = taken.into_iter().map(|(_, change)| change).collect();
            let written = Changes::Spilled(spill);
            let written: Vec<RowChange> =
                written.chunks().flat_map(|chunk| chunk.expect("readable").into_owned()).collect();
            prop_assert!(taken == written, "{} changes read along, {} in the file", taken.len(), written.len());
        }
    }
}
