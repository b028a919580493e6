//! What becomes of the lines: counted, and each bad one told with its file, line and reason.

use std::path::{Path, PathBuf};
use std::time::Duration;

use super::file::Kind;

/// Counts of one file.
#[derive(Debug, Default)]
struct Counts {
    read: u64,
    inserted: u64,
    there: u64,
    bad: u64,
    lost: u64,
}

/// Counts of all files.
#[derive(Debug)]
pub struct Report {
    files: Vec<(Kind, PathBuf, Counts)>,
}

impl Report {
    /// Nothing has been read of these files. A file stands here for each kind of row that is made of it.
    pub fn new(files: &[(Kind, &Path)]) -> Self {
        Report { files: files.iter().map(|(kind, path)| (*kind, path.to_path_buf(), Counts::default())).collect() }
    }

    fn counts(&mut self, kind: Kind) -> Option<&mut Counts> {
        self.files.iter_mut().find(|(file, ..)| *file == kind).map(|(.., counts)| counts)
    }

    /// One more line was read.
    pub fn read(&mut self, kind: Kind) {
        if let Some(counts) = self.counts(kind) {
            counts.read += 1;
        }
    }

    /// So many rows were inserted, and so many were there before.
    pub fn written(&mut self, kind: Kind, inserted: u64, there: u64) {
        if let Some(counts) = self.counts(kind) {
            counts.inserted += inserted;
            counts.there += there;
        }
    }

    /// A line is bad: told at once, so that any number of them takes no memory.
    pub fn refuse(&mut self, kind: Kind, line: i64, reason: &str) {
        if let Some((_, path, counts)) = self.files.iter_mut().find(|(file, ..)| *file == kind) {
            counts.bad += 1;
            eprintln!("{}:{line}: {reason}", path.display());
        }
    }

    /// A good line could not be inserted, because the database changed since it was checked.
    pub fn lose(&mut self, kind: Kind, line: i64, reason: &str) {
        self.refuse(kind, line, reason);
        if let Some(counts) = self.counts(kind) {
            counts.lost += 1;
        }
    }

    /// Bad lines of all files.
    pub fn bad(&self) -> u64 {
        self.files.iter().map(|(.., counts)| counts.bad).sum()
    }

    /// Good lines that could not be inserted.
    pub fn lost(&self) -> u64 {
        self.files.iter().map(|(.., counts)| counts.lost).sum()
    }

    /// Prints a line for each file.
    pub fn print(&self, took: Duration) {
        println!("{:<10} {:>12} {:>12} {:>14} {:>12}", "", "rows read", "inserted", "already there", "skipped");
        for (kind, _, counts) in &self.files {
            let Counts { read, inserted, there, bad, .. } = counts;
            println!("{:<10} {read:>12} {inserted:>12} {there:>14} {bad:>12}", kind.name());
        }
        println!("imported in {:.1} s", took.as_secs_f64());
    }
}
