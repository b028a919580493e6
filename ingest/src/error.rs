//! What can go wrong in the change log.

use std::path::PathBuf;

use feedmill_model::{Lsn, Time};

/// Why the change log could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The folder cannot be opened.
    #[error("could not open the change log in {path}: {source}; is another process using it?")]
    Open {
        /// The folder.
        path: PathBuf,
        /// What the storage engine says.
        source: fjall::Error,
    },
    /// The folder was written by another version.
    #[error("the change log in {path} has format {found}, and this version reads format {known}: use the version that wrote it")]
    Format {
        /// The folder.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The format of this version.
        known: u32,
    },
    /// The storage engine failed.
    #[error("could not {tried} the change log: {source}")]
    Storage {
        /// What was tried.
        tried: &'static str,
        /// What it says.
        source: fjall::Error,
    },
    /// What was read is not what was written.
    #[error("{what} in the change log cannot be read: the disk has lost or changed it. Restore the folder, or copy again")]
    Corrupt {
        /// What was read.
        what: String,
    },
    /// There is no finished copy to append to.
    #[error("the change log holds no finished copy of the source")]
    NotReady,
    /// This machine's clock was set back.
    #[error(
        "no time is minted for the batch up to {lsn}: it would be {time}, more than an hour ahead of this machine's clock,          which says {now_ms} ms since 1970. Set the clock right and start again; nothing is lost"
    )]
    ClockBack {
        /// End of the batch.
        lsn: Lsn,
        /// The time it would get.
        time: Time,
        /// What the clock says.
        now_ms: u64,
    },
    /// Somebody asks for a time that the log does not have, or no longer.
    #[error("the change log holds times {oldest} to {newest}, and {asked} was asked for")]
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
