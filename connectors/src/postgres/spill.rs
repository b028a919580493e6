//! A file for the changes of one large transaction.
//!
//! ```text
//!   SpillWriter: push ─► buffer ─► file (no name)         truncate: a subtransaction was rolled back
//!                                   │ freeze
//!   Spill (Arc): chunks ◄───────────┘                     read at offsets, as often as one likes
//!   Growing: read along while it is written, see [`super::growing`]
//!
//!   file: record, record, …      record: length of the rest (u32, little-endian) ─ RowChange (postcard)
//! ```
//!
//! Why it is right: the file has no name, so it ends with the process that wrote it, whatever happens, and nothing reads
//! it after a crash: the source sends the transaction again. So there is nothing to sync and nothing to check. Only what
//! lies before `bytes` counts, so cutting the end off is setting a number.
//!
//! Nothing is written that would leave less of the disk free than the reserve: it is what the change log and the stores
//! finish from what they have begun.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Weak};

use parking_lot::{Condvar, Mutex};

use super::changes::CHUNK_CHANGES;
use super::{Growing, RowChange};
use crate::disk::free_bytes;

/// How much is written and read at once.
pub(super) const BLOCK_BYTES: usize = 256 << 10;

/// The length before each record.
pub(super) const LENGTH_BYTES: usize = 4;

/// Bytes of transactions that lie in files.
const SPILLED_BYTES: &str = "feedmill_capture_spilled_bytes";

/// Why the changes of a large transaction cannot be put on disk or read from there. Nothing is lost: the source sends
/// them again.
#[derive(Debug, thiserror::Error)]
pub enum SpillError {
    /// The disk failed or is full.
    #[error("could not {tried} a file for a large transaction in {}: {error}. Look at the disk (space, errors)", dir.display())]
    Disk {
        /// What was tried.
        tried: &'static str,
        /// The folder.
        dir: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
    /// The disk is nearly full.
    #[error(
        "the disk of {} is nearly full: {} MiB are free, and {} MiB must be for a large transaction to be received. Make \
         room; --disk-reserve-mb says how much is kept free",
        dir.display(),
        free >> 20,
        need >> 20
    )]
    NoRoom {
        /// The folder.
        dir: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that must be.
        need: u64,
    },
    /// What is read is not what was written.
    #[error("a file for a large transaction in {} is damaged: {problem}. Look at the disk (errors)", dir.display())]
    Damaged {
        /// The folder.
        dir: PathBuf,
        /// What is wrong.
        problem: String,
    },
}

/// Changes of a complete transaction on disk. A clone is the same file.
#[derive(Clone, Debug)]
pub struct Spill(Arc<Frozen>);

#[derive(Debug)]
struct Frozen {
    file: Arc<SpillFile>,
    bytes: u64,
    changes: usize,
}

impl Spill {
    /// Writes changes to a file of their own in `dir`.
    pub fn write<'a>(dir: &Path, changes: impl IntoIterator<Item = &'a RowChange>) -> Result<Spill, SpillError> {
        let mut writer = SpillWriter::create(dir, 0)?;
        for change in changes {
            writer.push(change)?;
        }
        writer.freeze()
    }

    /// How many changes there are.
    pub fn len(&self) -> usize {
        self.0.changes
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// How much of the disk they take.
    pub fn bytes(&self) -> u64 {
        self.0.bytes
    }

    /// Which file it is.
    pub fn id(&self) -> SpillId {
        SpillId(Arc::downgrade(&self.0.file))
    }

    /// All changes in order, in chunks of at most [`CHUNK_CHANGES`].
    pub(super) fn chunks(&self) -> Chunks<'_> {
        Chunks { spill: &self.0, offset: 0, left: self.0.changes, buffer: Vec::new(), at: 0 }
    }
}

/// The same file, not only the same content.
impl PartialEq for Spill {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }
}

/// A file, also one that is gone.
#[derive(Clone, Debug)]
pub struct SpillId(Weak<SpillFile>);

impl SpillId {
    /// Whether nobody has the file any more.
    pub fn is_gone(&self) -> bool {
        self.0.strong_count() == 0
    }
}

impl PartialEq for SpillId {
    fn eq(&self, other: &Self) -> bool {
        self.0.ptr_eq(&other.0)
    }
}

/// A file without a name.
#[derive(Debug)]
pub(super) struct SpillFile {
    file: File,
    dir: PathBuf,
    pub(super) state: Mutex<State>,
    /// Told when there is more, and at the end.
    pub(super) changed: Condvar,
}

/// How far a file is.
#[derive(Debug, Default)]
pub(super) struct State {
    /// What can be read: whole records.
    pub bytes: u64,
    /// The least place to which the file was cut since whoever reads along asked.
    pub cut: Option<u64>,
    /// Nothing more comes.
    pub end: Option<End>,
    /// What the metric has of it.
    counted: u64,
}

/// How a transaction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    /// The file is complete.
    Complete,
    /// It was rolled back, or the connection was lost.
    Dropped,
}

impl SpillFile {
    pub(super) fn id(self: &Arc<Self>) -> SpillId {
        SpillId(Arc::downgrade(self))
    }

    /// Fills `place` from `offset` on.
    pub(super) fn read(&self, place: &mut [u8], offset: u64) -> Result<(), SpillError> {
        self.file.read_exact_at(place, offset).map_err(self.failed("read"))
    }

    fn failed(&self, tried: &'static str) -> impl FnOnce(io::Error) -> SpillError {
        let dir = self.dir.clone();
        move |error| SpillError::Disk { tried, dir, error }
    }

    pub(super) fn damaged(&self, problem: impl ToString) -> SpillError {
        SpillError::Damaged { dir: self.dir.clone(), problem: problem.to_string() }
    }

    /// So much can be read.
    fn grown(&self, bytes: u64) {
        let mut state = self.state.lock();
        metrics::gauge!(SPILLED_BYTES).increment(bytes as f64 - state.counted as f64);
        (state.bytes, state.counted) = (bytes, bytes);
        self.changed.notify_all();
    }

    /// What lies beyond `offset` does not count any more.
    fn cut(&self, offset: u64) {
        let mut state = self.state.lock();
        state.bytes = offset;
        state.cut = Some(state.cut.map_or(offset, |cut| cut.min(offset)));
    }

    /// The first end counts.
    fn end(&self, end: End) {
        self.state.lock().end.get_or_insert(end);
        self.changed.notify_all();
    }
}

impl Drop for SpillFile {
    fn drop(&mut self) {
        metrics::gauge!(SPILLED_BYTES).decrement(self.state.get_mut().counted as f64);
    }
}

/// A file that grows while its transaction is open. Dropped without being frozen, it is the end of what was read along.
#[derive(Debug)]
pub struct SpillWriter {
    file: Arc<SpillFile>,
    /// How much of the disk is kept free.
    reserve_bytes: u64,
    /// What is in the file.
    written: u64,
    /// What comes after it.
    buffer: Vec<u8>,
    changes: usize,
}

impl SpillWriter {
    /// An empty file in `dir`, which leaves `reserve_bytes` of the disk free.
    ///
    /// # Errors
    /// The folder cannot be made or written.
    pub fn create(dir: &Path, reserve_bytes: u64) -> Result<SpillWriter, SpillError> {
        let failed = |error| SpillError::Disk { tried: "make", dir: dir.to_owned(), error };
        let file = std::fs::create_dir_all(dir).and_then(|()| tempfile::tempfile_in(dir)).map_err(failed)?;
        let file = SpillFile { file, dir: dir.to_owned(), state: Mutex::default(), changed: Condvar::new() };
        Ok(SpillWriter { file: Arc::new(file), reserve_bytes, written: 0, buffer: Vec::new(), changes: 0 })
    }

    /// Adds a change.
    ///
    /// # Errors
    /// The disk fails, or is nearly full.
    pub fn push(&mut self, change: &RowChange) -> Result<(), SpillError> {
        let at = self.buffer.len();
        self.buffer.extend([0; LENGTH_BYTES]);
        let buffer = std::mem::take(&mut self.buffer);
        self.buffer = postcard::to_extend(change, buffer).map_err(|error| self.file.damaged(error))?;
        let length = u32::try_from(self.buffer.len() - at - LENGTH_BYTES).map_err(|error| self.file.damaged(error))?;
        if let Some(place) = self.buffer.get_mut(at..at + LENGTH_BYTES) {
            place.copy_from_slice(&length.to_le_bytes());
        }
        self.changes += 1;
        if self.buffer.len() >= BLOCK_BYTES { self.flush() } else { Ok(()) }
    }

    /// Where the next change begins.
    pub fn offset(&self) -> u64 {
        self.written + self.buffer.len() as u64
    }

    /// Keeps the first `changes`, which end at `offset`.
    pub fn truncate(&mut self, changes: usize, offset: u64) {
        match offset.checked_sub(self.written) {
            Some(kept) => self.buffer.truncate(usize::try_from(kept).unwrap_or(usize::MAX)),
            None => {
                self.buffer.clear();
                self.written = offset;
                self.file.cut(offset);
            }
        }
        self.changes = changes;
    }

    /// Reads it along, from its beginning. Of several only one hears of what is cut off.
    pub fn growing(&self) -> Growing {
        Growing::new(Arc::clone(&self.file))
    }

    /// All changes have come.
    ///
    /// # Errors
    /// As [`Self::push`].
    pub fn freeze(mut self) -> Result<Spill, SpillError> {
        self.flush()?;
        self.file.end(End::Complete);
        Ok(Spill(Arc::new(Frozen { file: Arc::clone(&self.file), bytes: self.written, changes: self.changes })))
    }

    fn flush(&mut self) -> Result<(), SpillError> {
        let free = free_bytes(&self.file.dir).map_err(self.file.failed("look at the disk for"))?;
        let need = self.reserve_bytes.saturating_add(self.buffer.len() as u64);
        if free < need {
            return Err(SpillError::NoRoom { dir: self.file.dir.clone(), free, need });
        }
        self.file.file.write_all_at(&self.buffer, self.written).map_err(self.file.failed("write"))?;
        self.written += self.buffer.len() as u64;
        self.buffer.clear();
        self.file.grown(self.written);
        Ok(())
    }
}

impl Drop for SpillWriter {
    fn drop(&mut self) {
        self.file.end(End::Dropped);
    }
}

/// The first record of some bytes, without its length; `None` if they do not hold it whole.
pub(super) fn first_record(bytes: &[u8]) -> Option<&[u8]> {
    let (length, rest) = bytes.split_first_chunk::<LENGTH_BYTES>()?;
    rest.get(..u32::from_le_bytes(*length) as usize)
}

/// Reads a file from its beginning.
pub(super) struct Chunks<'a> {
    spill: &'a Frozen,
    /// Where the next block begins.
    offset: u64,
    /// Changes that are still to come.
    left: usize,
    buffer: Vec<u8>,
    /// How much of the buffer was taken.
    at: usize,
}

impl Chunks<'_> {
    fn chunk(&mut self) -> Result<Vec<RowChange>, SpillError> {
        let mut changes = Vec::with_capacity(self.left.min(CHUNK_CHANGES));
        while changes.len() < CHUNK_CHANGES && self.left > 0 {
            changes.push(self.change()?);
            self.left -= 1;
        }
        Ok(changes)
    }

    fn change(&mut self) -> Result<RowChange, SpillError> {
        let spill = self.spill;
        loop {
            if let Some(record) = first_record(self.buffer.get(self.at..).unwrap_or_default()) {
                self.at += LENGTH_BYTES + record.len();
                return postcard::from_bytes(record).map_err(|error| spill.file.damaged(error));
            }
            self.fill()?;
        }
    }

    /// Reads the next block.
    fn fill(&mut self) -> Result<(), SpillError> {
        self.buffer.drain(..self.at);
        self.at = 0;
        let held = self.buffer.len();
        let left = usize::try_from(self.spill.bytes - self.offset).unwrap_or(usize::MAX);
        if left == 0 {
            return Err(self.spill.file.damaged("it ends too early"));
        }
        let wanted = BLOCK_BYTES.min(left);
        self.buffer.resize(held + wanted, 0);
        self.spill.file.read(self.buffer.get_mut(held..).unwrap_or_default(), self.offset)?;
        self.offset += wanted as u64;
        Ok(())
    }
}

impl Iterator for Chunks<'_> {
    type Item = Result<Vec<RowChange>, SpillError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.left == 0 {
            return None;
        }
        let chunk = self.chunk();
        if chunk.is_err() {
            self.left = 0;
        }
        Some(chunk)
    }
}

#[cfg(test)]
mod tests {
    use feedmill_model::{Like, Row, Tweet};

    use super::super::Changes;
    use super::*;

    fn like(user_id: i64) -> RowChange {
        RowChange::Insert(Row::Like(Like { user_id, tweet_id: 7, created_at: i64::MAX }))
    }

    fn read(changes: &Changes) -> Vec<RowChange> {
        changes.chunks().flat_map(|chunk| chunk.expect("readable").into_owned()).collect()
    }

    #[test]
    fn what_is_read_is_what_was_written_as_often_as_one_likes() {
        let dir = tempfile::tempdir().expect("a folder");
        let long =
            RowChange::Insert(Row::Tweet(Box::new(Tweet { content: "x".repeat(3 * BLOCK_BYTES), ..Tweet::default() })));
        let changes: Vec<RowChange> = (0..20_000).map(like).chain([long]).chain((0..10).map(like)).collect();
        let spilled = Changes::Spilled(Spill::write(dir.path(), &changes).expect("written"));
        assert_eq!(spilled.len(), changes.len());
        assert!(read(&spilled) == changes && read(&spilled.clone()) == changes);
        assert!(spilled.chunks().all(|chunk| chunk.is_ok_and(|chunk| (1..=CHUNK_CHANGES).contains(&chunk.len()))));
        assert_eq!(std::fs::read_dir(dir.path()).expect("a folder").count(), 0, "it has no name");
        assert_eq!(read(&Changes::Spilled(Spill::write(dir.path(), []).expect("written"))), []);
    }

    #[test]
    fn the_end_can_be_cut_off_in_the_buffer_and_in_the_file() {
        let dir = tempfile::tempdir().expect("a folder");
        for kept in [0, 5, 30_000] {
            let mut writer = SpillWriter::create(dir.path(), 0).expect("made");
            let mut offset = 0;
            for user in 0..60_000 {
                if user == kept {
                    offset = writer.offset();
                }
                writer.push(&like(user)).expect("written");
                if user == kept + 3 {
                    writer.truncate(kept as usize, offset);
                    writer.push(&like(user)).expect("written");
                }
            }
            writer.truncate(kept as usize, offset);
            writer.push(&like(-1)).expect("written");
            let expected: Vec<RowChange> = (0..kept).chain([-1]).map(like).collect();
            assert!(read(&Changes::Spilled(writer.freeze().expect("written"))) == expected);
        }
    }

    #[test]
    fn the_reserve_of_the_disk_is_not_touched() {
        let dir = tempfile::tempdir().expect("a folder");
        let mut writer = SpillWriter::create(dir.path(), u64::MAX).expect("made");
        let refused = (0..100_000).find_map(|user| writer.push(&like(user)).err());
        assert!(matches!(refused, Some(SpillError::NoRoom { need: u64::MAX, .. })), "{refused:?}");
        assert_eq!(writer.file.file.metadata().expect("a file").len(), 0);
    }

    #[test]
    fn a_folder_that_cannot_be_is_named() {
        let error = Spill::write(Path::new("/dev/null/spill"), &[like(1)]).expect_err("no folder");
        assert!(error.to_string().contains("/dev/null/spill"), "{error}");
    }
}
