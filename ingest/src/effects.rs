//! What a large batch does to the quarantine, on disk until the batch is published.
//!
//! ```text
//!   tail:  time, 0x8000_0000 ─► effects   written before the batch is published, when nobody looks for them
//!          time, 0x8000_0001 ─► effects   applied after it is; once more, with the same outcome, after a crash
//! ```

use feedmill_model::Time;
use fjall::PersistMode;
use parking_lot::Mutex;

use crate::LogError;
use crate::error::storage;
use crate::key::{decode, encode, tail_key};
use crate::log::Shared;
use crate::quarantine::Effect;

/// Parts of the tail from this number on are effects.
const FIRST: u32 = 1 << 31;
/// Effects of one part.
const PART_EFFECTS: usize = 256;

/// Collects the effects of a batch.
pub(crate) struct Effects<'a> {
    shared: &'a Shared,
    time: Time,
    pending: Mutex<Pending>,
}

struct Pending {
    effects: Vec<Effect>,
    part: u32,
}

impl<'a> Effects<'a> {
    pub fn new(shared: &'a Shared, time: Time) -> Self {
        Effects { shared, time, pending: Mutex::new(Pending { effects: Vec::new(), part: FIRST }) }
    }

    /// Adds one; of several with one id the last counts.
    pub fn push(&self, effect: Effect) -> Result<(), LogError> {
        let mut pending = self.pending.lock();
        pending.effects.push(effect);
        if pending.effects.len() >= PART_EFFECTS { self.write(&mut pending) } else { Ok(()) }
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

impl Shared {
    /// Applies the effects of a published batch.
    pub fn apply_effects(&self, time: Time) -> Result<(), LogError> {
        for part in self.tail.range(tail_key(time, FIRST)..=tail_key(time, u32::MAX)) {
            let value = part.value().map_err(storage("read rows in quarantine from"))?;
            let effects: Vec<Effect> =
                decode(&value, || format!("the rows in quarantine of the batch of time {time}"))?;
            let mut write = self.db.batch();
            let count = self.write_effects(&mut write, &effects)?;
            write.commit().map_err(storage("write rows in quarantine to"))?;
            self.count_quarantined(&count);
        }
        Ok(())
    }

    /// Makes all that was written so far durable.
    pub fn persist(&self) -> Result<(), LogError> {
        self.db.persist(PersistMode::SyncData).map_err(storage("make durable what was written to"))
    }
}
