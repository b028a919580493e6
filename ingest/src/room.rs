//! Room on the disk, and a right clock: the log stops taking before there is none.
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
//!
//! What a batch needs is guessed by the number of its changes. A TRUNCATE or a new snapshot may be one change and take
//! away every row: when the most that it can come to does not fit, it is merged once for nothing but its size.
//!
//! A clock that cannot be right (see [`crate::clock`]) is waited for in the same way.

use std::fmt;
use std::time::Duration;

use feedmill_connectors::disk::free_bytes;
use feedmill_model::Position;

use crate::effects::Effects;
use crate::log::Shared;
use crate::merge::{Cleared, Merge};
use crate::run::Runs;
use crate::tail::PART_CHANGES;
use crate::{Log, LogError};

/// How often is looked whether there is room, or the clock is right.
const LOOK: Duration = Duration::from_millis(200);
/// What a change takes on disk at most, for the size of a batch to be guessed: in the journal, the tail and the rows.
pub(crate) const CHANGE_BYTES: u64 = 1_024;
/// By how much rows are compressed at most, for the most that a batch can come to.
const COMPRESSED: u64 = 4;

/// What the writer waits for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Waits {
    /// There is no room on the disk.
    Room {
        /// Bytes that are free where the log lies.
        free: u64,
        /// Bytes that must be for it to go on.
        need: u64,
    },
    /// This machine's clock, or the source's, cannot be right.
    Clock {
        /// What is wrong, and what mends it.
        problem: String,
    },
}

impl fmt::Display for Waits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Waits::Room { free, need } => {
                write!(f, "the disk is nearly full: {} MiB are free, and {} MiB must be", free >> 20, need >> 20)
            }
            Waits::Clock { problem } => f.write_str(problem),
        }
    }
}

impl Log {
    /// What the writer waits for, while it does not take anything.
    pub fn waits_for(&self) -> Option<Waits> {
        self.shared.waits.lock().clone()
    }

    /// Bytes that must be free for a batch of so many changes.
    pub(crate) fn need(&self, changes: usize) -> u64 {
        self.shared.need(changes)
    }

    /// Blocks while less than `need` is free; `false` if `end` says that nobody waits for it any more.
    pub(crate) fn wait_for_room(&self, need: u64, end: impl Fn() -> bool) -> Result<bool, LogError> {
        let shared = &self.shared;
        if shared.free()? >= need {
            return Ok(true);
        }
        shared.sorter.let_go();
        if shared.free()? >= need {
            return Ok(true);
        }
        let need = need + shared.reserve_bytes / 4;
        loop {
            let free = shared.free()?;
            if free >= need {
                shared.wait(None);
                return Ok(true);
            }
            shared.wait(Some(Waits::Room { free, need }));
            if end() {
                return Ok(false);
            }
            std::thread::sleep(LOOK);
        }
    }

    /// Blocks for a moment because of an error of the clock; `false` if `end` says that nobody waits for it any more.
    pub(crate) fn wait_for_clock(&self, error: &LogError, end: impl Fn() -> bool) -> bool {
        // The text names the time as it is now, and is told once.
        if !matches!(self.waits_for(), Some(Waits::Clock { .. })) {
            self.shared.wait(Some(Waits::Clock { problem: error.to_string() }));
        }
        if end() {
            return false;
        }
        std::thread::sleep(LOOK);
        true
    }

    /// The writer has written.
    pub(crate) fn waits_no_more(&self) {
        self.shared.wait(None);
    }
}

impl Shared {
    /// Says what the writer waits for: in the log once, in metrics and in the health as long as it does.
    fn wait(&self, waits: Option<Waits>) {
        let waited = std::mem::replace(&mut *self.waits.lock(), waits.clone());
        if waited.is_none() && waits.is_none() {
            return;
        }
        let is = |waits: bool| f64::from(u8::from(waits));
        metrics::gauge!("feedmill_log_waits_for_room").set(is(matches!(waits, Some(Waits::Room { .. }))));
        metrics::gauge!("feedmill_log_waits_for_clock").set(is(matches!(waits, Some(Waits::Clock { .. }))));
        match (waited, waits) {
            (None | Some(Waits::Clock { .. }), Some(Waits::Room { free, need })) => tracing::error!(
                "the disk of {} is nearly full: {} MiB are free, and {} MiB must be. Nothing more is taken from \
                 PostgreSQL until there is room; what is there is served, and nothing is lost",
                self.dir.display(),
                free >> 20,
                need >> 20,
            ),
            (None | Some(Waits::Room { .. }), Some(Waits::Clock { problem })) => {
                tracing::error!("{problem}. Nothing more is taken from PostgreSQL until it is; what is there is served")
            }
            (Some(Waits::Room { .. }), None) => {
                tracing::info!("there is room on the disk of {} again", self.dir.display());
            }
            (Some(Waits::Clock { .. }), None) => tracing::info!("the clock is right again"),
            _ => {}
        }
    }

    /// Fails if there is no room for so many rows of a copy.
    pub fn check_room(&self, rows: usize) -> Result<(), LogError> {
        self.check_free(self.need(rows))
    }

    /// Fails if there is no room for what `runs` come to as a batch that clears ranges. Writes nothing that stays.
    pub fn check_room_of(&self, runs: &Runs, cleared: &[Cleared], position: Position) -> Result<(), LogError> {
        if cleared.is_empty() {
            return Ok(());
        }
        let most = runs.bytes().saturating_mul(2).saturating_add(self.rows.disk_space().saturating_mul(COMPRESSED));
        if self.free()? >= self.reserve_bytes.saturating_add(most) {
            return Ok(());
        }
        let effects = Effects::new(self, position.time);
        let mut bytes = 0_u64;
        Merge::new(self, position, &effects, runs.cursors()?, cleared.to_vec())?.run(PART_CHANGES, &mut |chunk| {
            // In the tail; and of it, at most, in the rows.
            bytes = bytes.saturating_add(2 * chunk.body.len() as u64);
            true
        })?;
        self.check_free(self.reserve_bytes.saturating_add(bytes))
    }

    fn check_free(&self, need: u64) -> Result<(), LogError> {
        let free = self.free()?;
        if free >= need { Ok(()) } else { Err(LogError::NoRoom { path: self.dir.clone(), free, need }) }
    }

    fn need(&self, changes: usize) -> u64 {
        self.reserve_bytes.saturating_add((changes as u64).saturating_mul(CHANGE_BYTES))
    }

    fn free(&self) -> Result<u64, LogError> {
        let failed = |source| LogError::File { tried: "look at the disk of", dir: self.dir.clone(), source };
        free_bytes(&self.dir).map_err(failed)
    }
}
