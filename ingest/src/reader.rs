//! Reads batches in order: from memory while it keeps up, from disk when it is behind.
//!
//! ```text
//!   ring has every batch after ours? ── yes ─► next ones from the ring, or wait for an append
//!            └── no ─► next ones from the tail, each of which names its predecessor; large ones piece by piece
//! ```
//!
//! Why there are no gaps: the ring knows after which time it has every batch, and a batch on disk names the time of the
//! one before it. If that one lies beyond what the reader has, the batches between are gone, and the reader says so. What
//! lies beyond the position is not read: it may be part of a batch that is not published yet.
//!
//! Who needs only some relations passes over the parts of a large batch that have none of them ([`tail::next_of`]).

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_model::{Batch, Relation, Time};
use parking_lot::MutexGuard;

use crate::error::storage;
use crate::key::tail_key;
use crate::ring::Ring;
use crate::tail::{self, Batches, Head, Stored};
use crate::{Log, LogError};

/// Batches, and changes in them, that are taken at a time; a single batch may be larger.
const BATCHES_AT_A_TIME: usize = 64;
const CHANGES_AT_A_TIME: usize = 65_536;
/// Parts of a large batch that are one piece: at most 16,384 changes, and about 16 MiB of them.
const PIECE_PARTS: u32 = 4;

/// Gives each batch after a time, once, without gaps.
pub struct Reader {
    log: Log,
    /// What is needed.
    relations: &'static [Relation],
    /// Time of the last batch that was given in full.
    after: Time,
    /// What comes next, already taken.
    taken: VecDeque<Arc<Batch>>,
    /// A large batch that comes after what was taken: its head, and its next part.
    large: Option<(Head, u32)>,
}

impl Reader {
    pub(crate) fn new(log: Log, after: Time, relations: &'static [Relation]) -> Result<Self, LogError> {
        log.check_is_held(after)?;
        Ok(Reader { log, relations, after, taken: VecDeque::new(), large: None })
    }

    /// The next batch, or the next piece of one; blocks until there is one, and gives `None` when none has come within
    /// `limit`.
    ///
    /// Fails with [`LogError::Gone`] when the reader was too slow and the batch was dropped by [`Log::compact`].
    pub fn next(&mut self, limit: Duration) -> Result<Option<Arc<Batch>>, LogError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(batch) = self.taken.pop_front() {
                self.after = batch.position.time;
                return Ok(Some(batch));
            }
            if let Some((head, part)) = self.large.take() {
                return self.piece(head, part).map(Some);
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
        let end = tail_key(self.log.position().map_or(0, |newest| newest.time), u32::MAX);
        let (mut previous, mut changes) = (self.after, 0);
        let batches = Batches::after(self.after, |from| shared.tail.range(from..=end.max(from)));
        for stored in batches.take(BATCHES_AT_A_TIME) {
            let stored = stored?;
            if stored.head().previous > previous {
                return Err(self.gap(previous));
            }
            previous = stored.head().position.time;
            match stored {
                Stored::Whole(_, batch) => {
                    changes += batch.changes.len();
                    self.taken.push_back(Arc::new(batch));
                }
                Stored::Large(head) => self.large = Some((head, 1)),
            }
            if changes > CHANGES_AT_A_TIME || self.large.is_some() {
                break;
            }
        }
        // The ring said that there is more, so it must be on disk.
        if self.taken.is_empty() && self.large.is_none() { Err(self.gap(previous)) } else { Ok(()) }
    }

    /// The piece of a large batch that begins with this part, or a later one that has something of what is needed.
    fn piece(&mut self, head: Head, part: u32) -> Result<Arc<Batch>, LogError> {
        let time = head.position.time;
        let read = |number| {
            let part = self.log.shared.tail.get(tail_key(time, number)).map_err(storage("read the tail of"))?;
            part.ok_or_else(|| self.gap(self.after))
        };
        let part = tail::next_of(self.relations, &head, part, read)?;
        let end = part.saturating_add(PIECE_PARTS).min(head.parts);
        let mut changes = Vec::new();
        for number in part..end {
            changes.extend(tail::changes(&read(number)?, time)?);
        }
        let last = end == head.parts;
        if last {
            self.after = head.position.time;
        } else {
            self.large = Some((head, end));
        }
        Ok(Arc::new(Batch { position: head.position, floor: head.floor, changes, last }))
    }

    /// Why nothing follows `after`: it was dropped on purpose, or lost.
    fn gap(&self, after: Time) -> LogError {
        match self.log.check_is_held(after) {
            Err(error) => error,
            Ok(()) => LogError::Corrupt { what: format!("the batch after time {after}") },
        }
    }
}
