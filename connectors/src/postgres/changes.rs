//! The changes of one transaction, in memory or, when there are many, on disk.

use std::borrow::Cow;

use super::{RowChange, Spill, SpillError};

/// Changes in each chunk but the last.
pub const CHUNK_CHANGES: usize = 4_096;

/// The changes of a transaction, in order; a key may occur more than once.
#[derive(Clone, Debug, PartialEq)]
pub enum Changes {
    /// Few enough to be held.
    Memory(Vec<RowChange>),
    /// Too many: in a file, to be read in chunks.
    Spilled(Spill),
}

impl Changes {
    /// How many there are.
    pub fn len(&self) -> usize {
        match self {
            Changes::Memory(changes) => changes.len(),
            Changes::Spilled(spill) => spill.len(),
        }
    }

    /// Whether the transaction changed nothing that is published.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// All of them in order, in chunks of at most [`CHUNK_CHANGES`]. Can be read again, also from several threads.
    pub fn chunks(&self) -> impl Iterator<Item = Result<Cow<'_, [RowChange]>, SpillError>> {
        let (held, spilled) = match self {
            Changes::Memory(changes) => (Some(changes), None),
            Changes::Spilled(spill) => (None, Some(spill)),
        };
        let held = held.into_iter().flat_map(|changes| changes.chunks(CHUNK_CHANGES)).map(Cow::Borrowed).map(Ok);
        let spilled = spilled.into_iter().flat_map(Spill::chunks).map(|chunk| chunk.map(Cow::Owned));
        held.chain(spilled)
    }
}

impl Default for Changes {
    fn default() -> Self {
        Changes::Memory(Vec::new())
    }
}

impl From<Vec<RowChange>> for Changes {
    fn from(changes: Vec<RowChange>) -> Self {
        Changes::Memory(changes)
    }
}
