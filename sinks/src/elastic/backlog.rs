//! What was handed over and is not with the server yet, in order.
//!
//! ```text
//!   push ─► memory, while there is room and nothing on disk ─► pop
//!      └──► files, oldest first, once there is not ────────────► pop, when memory is empty
//! ```
//!
//! So a server that is away for long fills a disk and not the memory, and no closed time waits for it. The files have no
//! names and end with the process: what was not durable is replayed from the change log.

use std::collections::VecDeque;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use feedmill_model::{Document, Position, Time};
use serde::{Deserialize, Serialize};

/// A file after which the next is begun, so that what was taken makes room.
const FILE_BYTES: u64 = 64 << 20;

/// What becomes of one document.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Change {
    /// It is this from now on.
    Put(Document),
    /// There is none of this id any more.
    Delete(String),
}

/// A part of a closed time.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Piece {
    /// The closed time.
    pub time: Time,
    /// In no order.
    pub changes: Vec<Change>,
    /// With it the shards of these bits have reached this position.
    pub reaches: Option<(Position, u64)>,
}

/// A file and how far it is written and read.
struct Segment {
    file: File,
    written: u64,
    read: u64,
}

/// What waits.
pub(super) struct Backlog {
    folder: PathBuf,
    memory: VecDeque<Piece>,
    /// Of pieces in memory.
    operations: usize,
    operations_max: usize,
    files: VecDeque<Segment>,
    /// On disk, and not taken.
    bytes: u64,
    bytes_max: u64,
}

impl Backlog {
    /// Nothing waits; files will be made in `folder`.
    pub fn new(folder: PathBuf, operations_max: usize, bytes_max: u64) -> Self {
        let (memory, files) = (VecDeque::new(), VecDeque::new());
        Backlog { folder, memory, operations: 0, operations_max, files, bytes: 0, bytes_max }
    }

    /// Bytes on disk.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Adds `piece`; gives it back with the reason when there is no room, and none can be made on disk.
    pub fn push(&mut self, piece: Piece) -> Result<(), (Piece, String)> {
        // One that has no changes is as good as one that has.
        if self.files.is_empty() && self.operations < self.operations_max {
            self.operations += piece.changes.len() + 1;
            self.memory.push_back(piece);
            return Ok(());
        }
        match self.spill(&piece) {
            Ok(()) => Ok(()),
            Err(reason) => Err((piece, reason)),
        }
    }

    fn spill(&mut self, piece: &Piece) -> Result<(), String> {
        let failed =
            |error: &dyn std::error::Error| format!("nothing can be written in {}: {error}", self.folder.display());
        let encoded = postcard::to_stdvec(piece).map_err(|error| failed(&error))?;
        let length = u32::try_from(encoded.len()).map_err(|error| failed(&error))?;
        let frame = [&length.to_le_bytes()[..], &encoded].concat();
        let bytes = frame.len() as u64;
        if self.bytes + bytes > self.bytes_max {
            return Err(format!("{} bytes wait on disk, and more may not", self.bytes));
        }
        if self.files.back().is_none_or(|last| last.written >= FILE_BYTES) {
            let file = self.unnamed().map_err(|error| failed(&error))?;
            self.files.push_back(Segment { file, written: 0, read: 0 });
        }
        let Some(last) = self.files.back_mut() else { return Err("there is no file".to_owned()) };
        // What a failed write left is written over by the next.
        last.file.write_all_at(&frame, last.written).map_err(|error| failed(&error))?;
        last.written += bytes;
        self.bytes += bytes;
        Ok(())
    }

    fn unnamed(&self) -> io::Result<File> {
        let path = self.folder.join("waiting");
        let file = File::options().read(true).write(true).create(true).truncate(true).open(&path)?;
        std::fs::remove_file(&path)?;
        Ok(file)
    }

    /// Takes the oldest; `None` when nothing waits.
    pub fn pop(&mut self) -> io::Result<Option<Piece>> {
        if let Some(piece) = self.memory.pop_front() {
            self.operations -= piece.changes.len() + 1;
            return Ok(Some(piece));
        }
        while let Some(first) = self.files.front_mut() {
            if first.read == first.written {
                self.files.pop_front();
                continue;
            }
            let mut length = [0; 4];
            first.file.read_exact_at(&mut length, first.read)?;
            let mut encoded = vec![0; u32::from_le_bytes(length) as usize];
            first.file.read_exact_at(&mut encoded, first.read + length.len() as u64)?;
            let bytes = (length.len() + encoded.len()) as u64;
            first.read += bytes;
            self.bytes -= bytes;
            if first.read == first.written {
                self.files.pop_front();
            }
            return postcard::from_bytes(&encoded).map(Some).map_err(io::Error::other);
        }
        Ok(None)
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.memory.clear();
        self.files.clear();
        (self.operations, self.bytes) = (0, 0);
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn piece(time: Time, changes: usize) -> Piece {
        Piece { time, changes: vec![Change::Delete("t1".to_owned()); changes], reaches: None }
    }

    proptest! {
        #[test]
        fn what_is_pushed_is_popped_in_order(steps in prop::collection::vec((0..4_usize, 0..3_usize), 1..80)) {
            let folder = tempfile::tempdir().unwrap();
            let mut backlog = Backlog::new(folder.path().to_owned(), 5, 1 << 20);
            let (mut pushed, mut popped) = (0, 0);
            for (push, pop) in steps {
                for _ in 0..push {
                    pushed += 1;
                    backlog.push(piece(pushed, pushed as usize % 3)).unwrap();
                }
                for _ in 0..pop.min((pushed - popped) as usize) {
                    popped += 1;
                    prop_assert_eq!(backlog.pop().unwrap(), Some(piece(popped, popped as usize % 3)));
                }
                prop_assert_eq!(backlog.memory.is_empty() && backlog.files.is_empty(), pushed == popped);
            }
            while popped < pushed {
                popped += 1;
                prop_assert_eq!(backlog.pop().unwrap().unwrap().time, popped);
            }
            prop_assert_eq!((backlog.pop().unwrap(), backlog.bytes()), (None, 0));
            prop_assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 0);
        }
    }

    #[test]
    fn it_has_an_end() {
        let folder = tempfile::tempdir().unwrap();
        let mut backlog = Backlog::new(folder.path().to_owned(), 1, 100);
        let fit = (0..1_000).take_while(|time| backlog.push(piece(*time, 2)).is_ok()).count();
        assert!((2..60).contains(&fit), "{fit}");
        let (refused, reason) = backlog.push(piece(1_000, 2)).unwrap_err();
        assert!(refused.time == 1_000 && reason.contains("wait on disk"), "{reason}");
        while backlog.pop().unwrap().is_some() {}
        backlog.push(piece(0, 2)).unwrap();
        backlog.clear();
        assert_eq!((backlog.pop().unwrap(), backlog.bytes()), (None, 0));
    }
}
