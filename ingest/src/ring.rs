//! The newest batches, in memory, for readers that keep up.

use std::collections::VecDeque;
use std::sync::Arc;

use feedmill_model::{Batch, Time};

/// Bounds of the ring. The newest batch is in it, unless it is large: it was in memory anyway.
const BATCHES_MAX: usize = 1_024;
const CHANGES_MAX: usize = 200_000;

/// Every batch after a time.
pub(crate) struct Ring {
    after: Time,
    batches: VecDeque<Arc<Batch>>,
    changes: usize,
}

impl Ring {
    /// Nothing, as long as there is nothing after `newest`.
    pub fn new(newest: Time) -> Self {
        Ring { after: newest, batches: VecDeque::new(), changes: 0 }
    }

    /// Adds the newest batch.
    pub fn push(&mut self, batch: Arc<Batch>) {
        self.changes += batch.changes.len();
        self.batches.push_back(batch);
        while self.batches.len() > BATCHES_MAX || (self.changes > CHANGES_MAX && self.batches.len() > 1) {
            let Some(oldest) = self.batches.pop_front() else { break };
            self.changes -= oldest.changes.len();
            self.after = oldest.position.time;
        }
    }

    /// The newest batch is a large one, which only the disk has.
    pub fn pass(&mut self, time: Time) {
        *self = Ring::new(time);
    }

    /// At most `limit` batches after `after`, the oldest first; `None` if some of them are no longer here.
    pub fn after(&self, after: Time, limit: usize) -> Option<impl Iterator<Item = &Arc<Batch>>> {
        let begin = self.batches.partition_point(|batch| batch.position.time <= after);
        (self.after <= after).then(|| self.batches.range(begin..).take(limit))
    }

    /// Whether there is a batch after `after`, here or on disk.
    pub fn is_beyond(&self, after: Time) -> bool {
        self.batches.back().map_or(self.after, |newest| newest.position.time) > after
    }
}

#[cfg(test)]
mod tests {
    use feedmill_model::{Change, Lsn, Position};

    use super::*;

    fn batch(time: Time, changes: usize) -> Arc<Batch> {
        let changes = vec![Change { old: None, new: None }; changes];
        Arc::new(Batch { position: Position { time, lsn: Lsn(time) }, floor: None, changes, last: true })
    }

    fn times(ring: &Ring, after: Time) -> Option<Vec<Time>> {
        Some(ring.after(after, usize::MAX)?.map(|batch| batch.position.time).collect())
    }

    #[test]
    fn it_gives_all_or_says_that_it_cannot() {
        let mut ring = Ring::new(10);
        assert_eq!((times(&ring, 10), times(&ring, 9)), (Some(vec![]), None));
        assert!(ring.is_beyond(9) && !ring.is_beyond(10));
        ring.push(batch(11, 1));
        ring.push(batch(13, 1));
        assert_eq!((times(&ring, 10), times(&ring, 11), times(&ring, 9)), (Some(vec![11, 13]), Some(vec![13]), None));
        assert!(ring.is_beyond(12) && !ring.is_beyond(13));
    }

    #[test]
    fn it_is_bounded_by_batches_and_by_changes() {
        let mut ring = Ring::new(0);
        (1..=2 * BATCHES_MAX as Time).for_each(|time| ring.push(batch(time, 0)));
        assert_eq!(ring.batches.len(), BATCHES_MAX);
        ring.push(batch(10_000, CHANGES_MAX + 1));
        assert_eq!((ring.batches.len(), ring.changes), (1, CHANGES_MAX + 1));
        ring.push(batch(10_001, 1));
        assert_eq!((times(&ring, 10_000), times(&ring, 9_999)), (Some(vec![10_001]), None));
    }
}
