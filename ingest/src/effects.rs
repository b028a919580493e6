//! What a large batch does to the quarantine, on disk until the batch is published. If it never is, nothing of the batch
//! stays behind in the tail.
//!
//! ```text
//!   tail:  time, 0x8000_0000 ─► effects   written before the batch is published, when nobody looks for them
//!          time, 0x8000_0001 ─► effects   applied after it is; once more, with the same outcome, after a crash
//! ```

use std::sync::atomic::{AtomicBool, Ordering};

use feedmill_model::Time;
use fjall::PersistMode;
use parking_lot::Mutex;

use crate::LogError;
use crate::error::storage;
use crate::key::{decode, encode, tail_key};
use crate::log::Shared;
use crate::quarantine::{Count, Effect};

/// Parts of the tail from this number on are effects.
const FIRST: u32 = 1 << 31;
/// Effects of one part.
const PART_EFFECTS: usize = 256;

/// Collects the effects of a batch. Dropped before the batch is published, it takes along what the tail has of it.
pub(crate) struct Effects<'a> {
    shared: &'a Shared,
    time: Time,
    published: AtomicBool,
    pending: Mutex<Pending>,
}

struct Pending {
    effects: Vec<Effect>,
    part: u32,
}

impl<'a> Effects<'a> {
    pub fn new(shared: &'a Shared, time: Time) -> Self {
        let pending = Mutex::new(Pending { effects: Vec::new(), part: FIRST });
        Effects { shared, time, published: AtomicBool::new(false), pending }
    }

    /// Adds one; of several with one id the last counts.
    pub fn push(&self, effect: Effect) -> Result<(), LogError> {
        let mut pending = self.pending.lock();
        pending.effects.push(effect);
        if pending.effects.len() >= PART_EFFECTS { self.write(&mut pending) } else { Ok(()) }
    }

    /// The write that publishes the batch is about to be made: from now on only an open can tell whether it was.
    pub fn publish(&self) {
        self.published.store(true, Ordering::Relaxed);
    }

    /// Writes what is left. The write that publishes the batch makes it durable: both lie in one journal.
    pub fn end(&self) -> Result<(), LogError> {
        self.write(&mut self.pending.lock())
    }

    fn write(&self, pending: &mut Pending) -> Result<(), LogError> {
        if !pending.effects.is_empty() {
            let value = encode(&pending.effects, "rows in quarantine")?;
            let written = self.shared.tail.insert(tail_key(self.time, pending.part), value);
            written.map_err(storage("write rows in quarantine to"))?;
            pending.effects.clear();
            pending.part = pending.part.saturating_add(1);
        }
        Ok(())
    }
}

impl Drop for Effects<'_> {
    fn drop(&mut self) {
        if *self.published.get_mut() {
            return;
        }
        if let Err(error) = self.shared.drop_parts_from(self.time) {
            tracing::warn!("a batch that failed has left something, which the next start drops: {error}");
        }
    }
}

impl Shared {
    /// Applies the effects of a published batch.
    pub fn apply_effects(&self, time: Time) -> Result<(), LogError> {
        let mut all = Count::default();
        for part in self.tail.range(tail_key(time, FIRST)..=tail_key(time, u32::MAX)) {
            let value = part.value().map_err(storage("read rows in quarantine from"))?;
            let effects: Vec<Effect> =
                decode(&value, || format!("the rows in quarantine of the batch of time {time}"))?;
            let mut write = self.db.batch();
            let count = self.write_effects(&mut write, &effects)?;
            write.commit().map_err(storage("write rows in quarantine to"))?;
            self.count_quarantined(&count);
            all.add(count);
        }
        all.tell();
        Ok(())
    }

    /// Makes all that was written so far durable.
    pub fn persist(&self) -> Result<(), LogError> {
        self.db.persist(PersistMode::SyncData).map_err(storage("make durable what was written to"))
    }
}
