//! What can go wrong in the change log. A person, or a restart, has to mend it; only a disk that is nearly full and a clock
//! that is wrong pass when what they name was mended, and the writer waits for that.

use std::path::PathBuf;

use feedmill_connectors::postgres::SpillError;
use feedmill_model::{Lsn, Time};

/// Why the change log could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// Another process, or another part of this one, has the folder open.
    #[error("the change log in {path} is open in another process: stop that one first, or use another folder")]
    Locked {
        /// The folder.
        path: PathBuf,
    },
    /// The folder cannot be opened.
    #[error("could not open the change log in {path}: {source}. Is the folder writable, and the disk sound?")]
    Open {
        /// The folder.
        path: PathBuf,
        /// What the storage engine says.
        source: fjall::Error,
    },
    /// The folder was written by a version that stores in another way.
    #[error(
        "the change log in {path} has format {found}, and this version reads format {known}: use the version that wrote \
         it, or an empty folder"
    )]
    Format {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format of this version.
        known: u32,
    },
    /// The storage engine failed. After a failed write it takes no more: what was acknowledged is safe, and a restart
    /// finds it.
    #[error("could not {tried} the change log: {source}. Look at the disk (errors, space), then start again")]
    Storage {
        /// What was tried.
        tried: &'static str,
        /// What it says.
        source: fjall::Error,
    },
    /// The system gave no thread.
    #[error("could not start a thread that reads the change log: {source}. Is the number of processes limited?")]
    Thread {
        /// What the system said.
        source: std::io::Error,
    },
    /// What was read is not what was written.
    #[error(
        "{what} in the change log cannot be read: the disk has lost or changed it. Restore the folder, or copy again"
    )]
    Corrupt {
        /// What was read.
        what: String,
    },
    /// A row or batch cannot be stored.
    #[error("{what} cannot be stored in the change log: {source}")]
    Encode {
        /// What was to be written.
        what: &'static str,
        /// Why not.
        source: postcard::Error,
    },
    /// A large transaction that waits on disk cannot be read.
    #[error(transparent)]
    Spill(#[from] SpillError),
    /// There is no room on the disk.
    #[error(
        "the disk of {path} is nearly full: {} MiB are free, and {} MiB must be to go on. Make room, and try or start again: \
         what did not end begins anew. --disk-reserve-mb says how much is kept free",
        free >> 20,
        need >> 20
    )]
    NoRoom {
        /// The folder.
        path: PathBuf,
        /// Bytes that are free.
        free: u64,
        /// Bytes that must be.
        need: u64,
    },
    /// The file system failed beside the storage engine.
    #[error("could not {tried} the change log in {}: {source}. Look at the disk (errors, space)", dir.display())]
    File {
        /// What was tried.
        tried: &'static str,
        /// The folder.
        dir: PathBuf,
        /// What the system says.
        source: std::io::Error,
    },
    /// There is no finished copy to append to or to read.
    #[error("the change log holds no finished copy of the source: copy it first")]
    NotReady,
    /// A copy is to go where rows are already.
    #[error(
        "the change log in {path} holds rows already, and a copy goes into an empty one: this is a defect of Feedmill's. A \
         restart goes on with what is there; to copy anew, remove the folder"
    )]
    NotEmpty {
        /// The folder.
        path: PathBuf,
    },
    /// What a snapshot was taken for has changed meanwhile.
    #[error(
        "the change log went on from {from} to {to} while it was compared with a snapshot as of {from}: nothing was taken \
         over. Compare again"
    )]
    MovedOn {
        /// Where the log was when the snapshot was begun.
        from: Lsn,
        /// Where it is.
        to: Lsn,
    },
    /// A batch is published, and its rows could not be written.
    #[error(
        "the rows of a large batch could not be written into the change log: start again, which writes them. Nothing is lost"
    )]
    Unsettled,
    /// Rows of a copy come while none was begun.
    #[error("no copy into the change log was begun: rows can only be copied between its begin and its end")]
    NotCopying,
    /// This machine's clock was set back.
    #[error(
        "no time is minted for the batch up to {lsn}: it would be {time}, more than an hour ahead of this machine's clock, \
         which says {now_ms} ms since 1970. Set the clock right; nothing is lost"
    )]
    ClockBack {
        /// End of the batch.
        lsn: Lsn,
        /// The time it would get.
        time: Time,
        /// What the clock says.
        now_ms: u64,
    },
    /// This machine's clock is ahead of the source's.
    #[error(
        "no time is minted for the batch up to {lsn}: this machine's clock is {} minutes ahead of the source's. Set the \
         wrong one right; nothing is lost",
        ahead_ms / 60_000
    )]
    ClockAhead {
        /// End of the batch.
        lsn: Lsn,
        /// By how much, at the least.
        ahead_ms: u64,
    },
    /// Somebody asks for a time that the log does not have, or no longer.
    #[error(
        "the change log can tell of times from {oldest} to {newest}, and {asked} was asked for: whoever asks has fallen \
         too far behind, or has another history. Fill it again from the state as it is now"
    )]
    Gone {
        /// What was asked for.
        asked: Time,
        /// The tail has every batch after this time.
        oldest: Time,
        /// Time of the newest batch.
        newest: Time,
    },
}

/// Names what was tried when the storage engine fails.
pub(crate) fn storage(tried: &'static str) -> impl Fn(fjall::Error) -> LogError {
    move |source| LogError::Storage { tried, source }
}
