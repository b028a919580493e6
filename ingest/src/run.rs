//! What is done to many keys, sorted by key, in a file.
//!
//! ```text
//!   add, add, … ─► Buffer ── full ─► sort by key, then by order of arrival ─► run 0 ┐
//!   add, add, … ─► Buffer ── full ─► sort …                                ─► run 1 ├ one file, without a name
//!                                                                             …     ┘
//!   Cursor ◄── one a run, a block at a time
//!
//!   record: key (17) ─ operation (1) ─ length (u32, little-endian) ─ value
//! ```
//!
//! Runs are numbered in the order in which their changes happened: of a key that is in several, the later run is the
//! later word. The file has no name, so it is gone with the process, whatever happens: nothing reads it after a crash.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use feedmill_connectors::postgres::Unusable;
use feedmill_model::Position;
use parking_lot::Mutex;

use crate::LogError;
use crate::key::{RowKey, append_encoded, row_key};
use crate::quarantine::{Quarantined, unnamed_key};

/// What is read of a run at once.
const BLOCK_BYTES: usize = 64 << 10;
/// Of a record, before its value.
const RECORD_HEAD: usize = 17 + 1 + 4;

/// What is done to a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(crate) enum Op {
    /// The row is gone. No value.
    Gone = 0,
    /// The row is now this. The value is the row.
    Set = 1,
    /// The row is now this, but for some columns that stay as they were. The value is which (a `u32`, little-endian),
    /// and the row.
    Fill = 2,
    /// What the row is now cannot be used. The value is what goes into quarantine; if its key cannot be read either, it
    /// stands under a key of no relation ([`unnamed_key`]).
    Aside = 3,
}

impl Op {
    fn of(byte: u8) -> Option<Self> {
        [Op::Gone, Op::Set, Op::Fill, Op::Aside].into_iter().find(|op| *op as u8 == byte)
    }
}

struct Entry {
    key: RowKey,
    op: Op,
    start: u32,
    end: u32,
}

/// Changes on their way into a run.
#[derive(Default)]
pub(crate) struct Buffer {
    bytes: Vec<u8>,
    entries: Vec<Entry>,
}

impl Buffer {
    /// Adds a change; `value` writes its value.
    pub fn add(
        &mut self,
        key: RowKey,
        op: Op,
        value: impl FnOnce(&mut Vec<u8>) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let start = self.bytes.len();
        value(&mut self.bytes)?;
        // A buffer is full long before 4 GiB, so only a single row can be too large.
        let too_large = |_| LogError::Encode { what: "a row", source: postcard::Error::SerializeBufferFull };
        let place = |at: usize| u32::try_from(at).map_err(too_large);
        self.entries.push(Entry { key, op, start: place(start)?, end: place(self.bytes.len())? });
        Ok(())
    }

    /// Adds a row that goes into quarantine; `number` names it if its key cannot be read.
    pub fn add_aside(&mut self, row: Unusable, number: u32) -> Result<(), LogError> {
        let key = row.key.map_or_else(|| unnamed_key(number), |key| row_key(&key));
        // Of which batch it is, is known when it is merged.
        let entry = Quarantined { row, readable: None, position: Position::default() };
        self.add(key, Op::Aside, |bytes| append_encoded(bytes, &entry, "a row in quarantine"))
    }

    pub fn is_full(&self, entries: usize, bytes: usize) -> bool {
        self.entries.len() >= entries || self.bytes.len() >= bytes
    }

    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// Forgets all changes.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.entries.clear();
    }

    /// How much of the disk it takes as a run.
    pub fn run_bytes(&self) -> u64 {
        (self.bytes.len() + self.entries.len() * RECORD_HEAD) as u64
    }

    /// Forgets the changes of keys that begin with `prefix`.
    pub fn forget(&mut self, prefix: u8) {
        self.entries.retain(|entry| entry.key.first() != Some(&prefix));
    }

    fn sorted(mut self) -> Vec<u8> {
        // Stable: changes of a key stay in the order in which they came.
        self.entries.sort_by_key(|entry| entry.key);
        let mut records = Vec::with_capacity(self.bytes.len() + self.entries.len() * RECORD_HEAD);
        for entry in &self.entries {
            let value = self.bytes.get(entry.start as usize..entry.end as usize).unwrap_or_default();
            records.extend_from_slice(&entry.key);
            records.push(entry.op as u8);
            records.extend_from_slice(&(entry.end - entry.start).to_le_bytes());
            records.extend_from_slice(value);
        }
        records
    }
}

/// The runs of one file.
#[derive(Debug)]
pub(crate) struct Runs {
    file: Arc<File>,
    dir: PathBuf,
    end: AtomicU64,
    /// Number, and where the run lies.
    runs: Mutex<Vec<(usize, u64, u64)>>,
}

impl Runs {
    /// An empty file in `dir`.
    pub fn create(dir: &Path) -> Result<Self, LogError> {
        let file = tempfile::tempfile_in(dir).map_err(failed("make a temporary file of", dir))?;
        Ok(Runs { file: Arc::new(file), dir: dir.to_owned(), end: AtomicU64::new(0), runs: Mutex::default() })
    }

    /// Writes a buffer as the run with this number. May be called from several threads.
    pub fn write(&self, number: usize, buffer: Buffer) -> Result<(), LogError> {
        let records = buffer.sorted();
        let length = records.len() as u64;
        let start = self.end.fetch_add(length, Ordering::Relaxed);
        self.file.write_all_at(&records, start).map_err(failed("write a temporary file of", &self.dir))?;
        self.runs.lock().push((number, start, start + length));
        Ok(())
    }

    /// Forgets the runs from this number on. Not while any is being written.
    pub fn keep_before(&self, number: usize) {
        let mut runs = self.runs.lock();
        runs.retain(|(other, ..)| *other < number);
        self.end.store(runs.iter().map(|(.., end)| *end).max().unwrap_or(0), Ordering::Relaxed);
    }

    /// How much of the disk they take.
    pub fn bytes(&self) -> u64 {
        self.end.load(Ordering::Relaxed)
    }

    /// A cursor for each run that is not empty, in the order of their numbers, on its first record.
    pub fn cursors(&self) -> Result<Vec<Cursor>, LogError> {
        let mut runs = self.runs.lock().clone();
        runs.sort_unstable();
        let mut cursors = Vec::with_capacity(runs.len());
        for (number, start, end) in runs {
            let (file, dir) = (Arc::clone(&self.file), self.dir.clone());
            let mut cursor = Cursor {
                number,
                key: [0; 17],
                op: Op::Gone,
                value: 0..0,
                file,
                dir,
                start,
                end,
                block: Vec::new(),
                at: 0,
            };
            if cursor.advance()? {
                cursors.push(cursor);
            }
        }
        Ok(cursors)
    }
}

/// Reads a run in order.
pub(crate) struct Cursor {
    /// Number of the run.
    pub number: usize,
    /// The record that it stands on.
    pub key: RowKey,
    pub op: Op,
    value: std::ops::Range<usize>,
    file: Arc<File>,
    dir: PathBuf,
    /// What is not read yet.
    start: u64,
    end: u64,
    block: Vec<u8>,
    /// Where in the block the next record begins.
    at: usize,
}

impl Cursor {
    pub fn value(&self) -> &[u8] {
        self.block.get(self.value.clone()).unwrap_or_default()
    }

    /// Goes to the next record; `false` at the end.
    pub fn advance(&mut self) -> Result<bool, LogError> {
        if self.at == self.block.len() && self.start == self.end {
            return Ok(false);
        }
        self.hold(RECORD_HEAD)?;
        let corrupt = || LogError::Corrupt { what: "a file for a large transaction".to_owned() };
        let (key, rest) =
            self.block.get(self.at..).and_then(|rest| rest.split_first_chunk::<17>()).ok_or_else(corrupt)?;
        let (op, rest) = rest.split_first().ok_or_else(corrupt)?;
        let length = rest.first_chunk().map(|length| u32::from_le_bytes(*length)).ok_or_else(corrupt)? as usize;
        (self.key, self.op) = (*key, Op::of(*op).ok_or_else(corrupt)?);
        self.hold(RECORD_HEAD + length)?;
        let start = self.at + RECORD_HEAD;
        self.value = start..start + length;
        self.at = start + length;
        Ok(true)
    }

    /// Makes the block hold `bytes` from where it stands.
    fn hold(&mut self, bytes: usize) -> Result<(), LogError> {
        let held = self.block.len() - self.at;
        if held >= bytes {
            return Ok(());
        }
        self.block.drain(..self.at);
        self.at = 0;
        let left = usize::try_from(self.end - self.start).unwrap_or(usize::MAX);
        let more = left.min(BLOCK_BYTES.max(bytes - held));
        self.block.resize(held + more, 0);
        let place = self.block.get_mut(held..).unwrap_or_default();
        self.file.read_exact_at(place, self.start).map_err(failed("read a temporary file of", &self.dir))?;
        self.start += more as u64;
        if self.block.len() < bytes {
            return Err(LogError::Corrupt { what: "a file for a large transaction".to_owned() });
        }
        Ok(())
    }
}

fn failed(tried: &'static str, dir: &Path) -> impl FnOnce(io::Error) -> LogError {
    let dir = dir.to_owned();
    move |source| LogError::File { tried, dir, source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(number: u8) -> RowKey {
        [number; 17]
    }

    #[test]
    fn a_run_is_read_in_the_order_of_keys_and_then_of_arrival() {
        let dir = tempfile::tempdir().expect("a folder");
        let runs = Runs::create(dir.path()).expect("a file");
        let large = vec![7; 3 * BLOCK_BYTES];
        let mut buffer = Buffer::default();
        for (number, op, value) in
            [(5, Op::Set, b"five".as_slice()), (3, Op::Set, &large), (5, Op::Gone, b""), (9, Op::Fill, b"nine")]
        {
            let put = |bytes: &mut Vec<u8>| {
                bytes.extend_from_slice(value);
                Ok(())
            };
            buffer.add(key(number), op, put).expect("added");
        }
        buffer.forget(9);
        runs.write(1, buffer).expect("written");
        runs.write(0, Buffer::default()).expect("written");
        let mut cursors = runs.cursors().expect("read");
        assert_eq!(cursors.len(), 1, "an empty run has nothing to tell");
        let cursor = &mut cursors[0];
        let mut seen = Vec::new();
        loop {
            seen.push((cursor.key[0], cursor.op, cursor.value().len()));
            if !cursor.advance().expect("read") {
                break;
            }
        }
        assert_eq!(seen, [(3, Op::Set, large.len()), (5, Op::Set, 4), (5, Op::Gone, 0)]);
    }

    #[test]
    fn changes_of_a_key_keep_their_order_also_those_without_a_value() {
        let dir = tempfile::tempdir().expect("a folder");
        let runs = Runs::create(dir.path()).expect("a file");
        let mut buffer = Buffer::default();
        for number in 0..10_000_u32 {
            let [_, _, high, low] = (number * 7_919 % 10_000).to_be_bytes();
            let key = std::array::from_fn(|place| if place % 2 == 0 { high } else { low });
            buffer.add(key, Op::Gone, |_| Ok(())).expect("added");
            let one = |bytes: &mut Vec<u8>| {
                bytes.push(1);
                Ok(())
            };
            buffer.add(key, Op::Set, one).expect("added");
        }
        runs.write(0, buffer).expect("written");
        let mut cursor = runs.cursors().expect("read").remove(0);
        for pair in 0..10_000 {
            assert_eq!(cursor.op, Op::Gone, "pair {pair}");
            assert!(cursor.advance().expect("read"));
            assert_eq!(cursor.op, Op::Set, "pair {pair}");
            assert_eq!(cursor.advance().expect("read"), pair < 9_999);
        }
    }
}
