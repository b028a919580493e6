//! Reads batches in order: from memory while it keeps up, from disk when it is behind.
//!
//! ```text
//!   ring has every batch after ours? ── yes ─► next ones from the ring, or wait for an append
//!            └── no ─► next ones from a snapshot of the tail, each of which names its predecessor
//! ```
//!
//! Why there are no gaps: the ring knows after which time it has every batch, and a batch on disk names the time of the
//! one before it. If that one lies beyond what the reader has, the batches between are gone, and the reader says so.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_model::{Batch, Time};
use parking_lot::MutexGuard;

use crate::ring::Ring;
use crate::tail::Parts;
use crate::{Log, LogError};

/// Batches, and changes in them, that are taken at a time; a single batch may be larger.
const BATCHES_AT_A_TIME: usize = 64;
const CHANGES_AT_A_TIME: usize = 65_536;

/// Gives each batch after a time, once, without gaps.
pub struct Reader {
    log: Log,
    /// Time of the last batch that was given.
    after: Time,
    /// What comes next, already taken.
    taken: VecDeque<Arc<Batch>>,
}

impl Reader {
    pub(crate) fn new(log: Log, after: Time) -> Result<Self, LogError> {
        log.check_is_held(after)?;
        Ok(Reader { log, after, taken: VecDeque::new() })
    }

    /// The next batch; blocks until there is one, and gives `None` when none has come within `limit`.
    ///
    /// Fails with [`LogError::Gone`] when the reader was too slow and the batch was dropped by [`Log::compact`].
    pub fn next(&mut self, limit: Duration) -> Result<Option<Arc<Batch>>, LogError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(batch) = self.taken.pop_front() {
                self.after = batch.position.time;
                return Ok(Some(batch));
            }
            if !self.wait(deadline) {
                return Ok(None);
            }
            self.take()?;
        }
    }

    /// Waits until there is a batch to be taken; `false` if there is none at the deadline.
    fn wait(&self, deadline: Instant) -> bool {
        let shared = &self.log.shared;
        let mut ring: MutexGuard<'_, Ring> = shared.ring.lock();
        while !ring.is_beyond(self.after) {
            if shared.appended.wait_until(&mut ring, deadline).timed_out() {
                return ring.is_beyond(self.after);
            }
        }
        true
    }

    fn take(&mut self) -> Result<(), LogError> {
        let shared = &self.log.shared;
        if let Some(batches) = shared.ring.lock().after(self.after, BATCHES_AT_A_TIME) {
            self.taken.extend(batches.cloned());
            return Ok(());
        }
        let (mut previous, mut changes) = (self.after, 0);
        for batch in Parts::after(&shared.snapshot(), &shared.tail, self.after).take(BATCHES_AT_A_TIME) {
            let (head, batch) = batch?;
            if head.previous > previous {
                return Err(self.gap(previous));
            }
            previous = batch.position.time;
            changes += batch.changes.len();
            self.taken.push_back(Arc::new(batch));
            if changes > CHANGES_AT_A_TIME {
                break;
            }
        }
        // The ring said that there is more, so it must be on disk.
        if self.taken.is_empty() { Err(self.gap(previous)) } else { Ok(()) }
    }

    /// Why nothing follows `after`: it was dropped on purpose, or lost.
    fn gap(&self, after: Time) -> LogError {
        match self.log.check_is_held(after) {
            Err(error) => error,
            Ok(()) => LogError::Corrupt { what: format!("the batch after time {after}") },
        }
    }
}
