//! Room on the disk: the log stops taking before there is none.
//!
//! ```text
//!   free ≥ need ── write ─►
//!   free < need ── wait, and say so ── free ≥ need + a quarter of the reserve ── write ─►
//! ```
//!
//! A write that the disk refuses half-way is the end of the storage engine until the next start, and of whatever else
//! lies on the same disk. So the writer keeps a reserve free: what it does not take stays in the source, whose slot is not
//! acknowledged, and everything that is there goes on being served. It is the reserve from which the stores finish what
//! the log has taken, and from which the tail that nobody needs is dropped.

use std::path::Path;
use std::time::Duration;

use nix::sys::statvfs::statvfs;

use crate::log::Shared;
use crate::{Log, LogError};

/// How often the disk is looked at while there is no room.
const LOOK: Duration = Duration::from_millis(200);
/// What a change takes on disk at most, for the size of a batch to be guessed: in the journal, the tail and the rows.
const CHANGE_BYTES: u64 = 1_024;

/// What the log waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NoRoom {
    /// Bytes that are free where the log lies.
    pub free: u64,
    /// Bytes that must be for it to go on.
    pub need: u64,
}

impl Log {
    /// What the writer waits for, while it does not take anything because the disk is nearly full.
    pub fn waits_for_room(&self) -> Option<NoRoom> {
        *self.shared.no_room.lock()
    }

    /// Blocks while there is no room for a batch of so many changes; `false` if `end` says that nobody waits for it any
    /// more.
    pub(crate) fn wait_for_room(&self, changes: usize, end: impl Fn() -> bool) -> Result<bool, LogError> {
        let shared = &self.shared;
        let need = shared.need(changes);
        if shared.free()? >= need {
            return Ok(true);
        }
        let need = need + shared.reserve_bytes / 4;
        loop {
            let free = shared.free()?;
            let waits = (free < need).then_some(NoRoom { free, need });
            let waited = std::mem::replace(&mut *shared.no_room.lock(), waits);
            metrics::gauge!("feedmill_log_waits_for_room").set(f64::from(u8::from(waits.is_some())));
            match (waited, waits) {
                (None, Some(_)) => tracing::error!(
                    "the disk of {} is nearly full: {} MiB are free, and {} MiB must be. Nothing more is taken from \
                     PostgreSQL until there is room; what is there is served, and nothing is lost",
                    shared.dir.display(),
                    free >> 20,
                    need >> 20,
                ),
                (Some(_), None) => tracing::info!("there is room on the disk of {} again", shared.dir.display()),
                _ => {}
            }
            if waits.is_none() {
                return Ok(true);
            }
            if end() {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
    }
}

impl Shared {
    /// Fails if there is no room for so many rows of a copy.
    pub fn check_room(&self, rows: usize) -> Result<(), LogError> {
        let (free, need) = (self.free()?, self.need(rows));
        if free >= need { Ok(()) } else { Err(LogError::NoRoom { path: self.dir.clone(), free, need }) }
    }

    fn need(&self, changes: usize) -> u64 {
        self.reserve_bytes.saturating_add((changes as u64).saturating_mul(CHANGE_BYTES))
    }

    fn free(&self) -> Result<u64, LogError> {
        free(&self.dir)
    }
}

fn free(dir: &Path) -> Result<u64, LogError> {
    let failed =
        |error: nix::Error| LogError::File { tried: "look at the disk of", dir: dir.to_owned(), source: error.into() };
    let disk = statvfs(dir).map_err(failed)?;
    // Their types differ between systems.
    #[allow(clippy::useless_conversion, reason = "not useless everywhere")]
    Ok(u64::from(disk.blocks_available()).saturating_mul(u64::from(disk.fragment_size())))
}
