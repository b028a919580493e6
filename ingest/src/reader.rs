//! Reads batches in order: from memory while it keeps up, from disk when it is behind.

use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_model::{Batch, Time};

use crate::error::storage;
use crate::key::{decode, tail_key};
use crate::{Log, LogError};

/// Batches read from disk at a time.
const AT_A_TIME: usize = 64;

/// Gives each batch after a time, once, without gaps.
pub struct Reader {
    log: Log,
    after: Time,
    read: std::collections::VecDeque<Arc<Batch>>,
}

impl Reader {
    pub(crate) fn new(log: Log, after: Time) -> Result<Self, LogError> {
        let newest = log.position().ok_or(LogError::NotReady)?.time;
        let oldest = log.tail_after();
        if !(oldest..=newest).contains(&after) {
            return Err(LogError::Gone { asked: after, oldest, newest });
        }
        Ok(Reader { log, after, read: std::collections::VecDeque::new() })
    }

    /// The next batch; `None` when none comes within `limit`.
    pub fn next(&mut self, limit: Duration) -> Result<Option<Arc<Batch>>, LogError> {
        let deadline = Instant::now() + limit;
        loop {
            if let Some(batch) = self.read.pop_front() {
                self.after = batch.position.time;
                return Ok(Some(batch));
            }
            if self.fill()? {
                continue;
            }
            let shared = &self.log.shared;
            let mut ring = shared.ring.lock();
            if ring.batches.back().is_some_and(|newest| newest.position.time > self.after) {
                continue;
            }
            if shared.appended.wait_until(&mut ring, deadline).timed_out() {
                return Ok(None);
            }
        }
    }

    /// Reads what there is; `false` when there is nothing newer.
    fn fill(&mut self) -> Result<bool, LogError> {
        let shared = &self.log.shared;
        {
            let ring = shared.ring.lock();
            let oldest = ring.batches.front().map(|batch| batch.position.time);
            if oldest.is_some_and(|oldest| oldest <= self.after) || ring.batches.is_empty() && self.is_newest() {
                let begin = ring.batches.partition_point(|batch| batch.position.time <= self.after);
                self.read.extend(ring.batches.range(begin..).take(AT_A_TIME).cloned());
                return Ok(!self.read.is_empty());
            }
        }
        for entry in shared.tail.range(tail_key(self.after.saturating_add(1))..).take(AT_A_TIME) {
            let bytes = entry.value().map_err(storage("read the tail of"))?;
            self.read.push_back(Arc::new(decode(&bytes, || "a batch of the tail".to_owned())?));
        }
        Ok(!self.read.is_empty())
    }

    fn is_newest(&self) -> bool {
        self.log.position().is_some_and(|newest| newest.time <= self.after)
    }
}
