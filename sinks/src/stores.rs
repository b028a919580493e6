//! What whoever runs the stores asks of each, whichever it is.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use feedmill_model::{Closed, Counter, Fact, HomeSink, Position, RowSink, SourceId, StoreError, Time, ViewRow};

use crate::{FrozenViews, LocalHome, LocalIndex, LocalViews, ReadError, Saved, Views};

/// A store of facts, rows and reactions. As a [`RowSink`] of rows it takes those of the phase of that name; [`Reactions`] takes the
/// others.
pub trait IndexStore: RowSink<Fact> + RowSink<ViewRow> {
    /// The last closed time of the reactions that each shard has, as [`RowSink::progress`] tells it.
    fn reactions_progress(&self) -> Vec<Option<Position>>;

    /// Applies a closed time of the reactions, as [`RowSink::apply`] does.
    fn apply_reactions(&self, closed: &Closed<ViewRow>) -> Result<(), StoreError>;

    /// Begins the facts anew, empty and without progress. Until they have the closed time `due` on all shards, reads that
    /// need them fail with [`Rebuilding`](crate::Rebuilding). No closed time may be applied meanwhile.
    fn rebuild_facts(&self, due: Time) -> Result<(), StoreError>;

    /// The same for the rows.
    fn rebuild_rows(&self, due: Time) -> Result<(), StoreError>;

    /// The same for the reactions.
    fn rebuild_reactions(&self, due: Time) -> Result<(), StoreError>;

    /// Whether rows and reactions are in the same tables: then each is begun anew with the other.
    fn shares_tables(&self) -> bool {
        false
    }

    /// Makes all that was applied before the call durable, and records how far that is. Returns the least position that a
    /// shard of facts, rows or reactions has, `None` while one has none: the change log must keep what came after it. To be called
    /// every few seconds.
    fn durable(&self) -> Result<Option<Position>, StoreError>;

    /// Positions are of `source` from the time `since` on; those before are of another history. Who reads in other processes is
    /// told so.
    fn begin_history(&self, _source: &SourceId, _since: Time) -> Result<(), StoreError> {
        Ok(())
    }

    /// The process ends: a closed time that cannot be applied in a moment fails, and the next start goes on before it.
    fn end(&self);

    /// Does what makes the next start quick; gives up after `limit`.
    fn write_out(&self, limit: Duration) -> Result<(), StoreError>;
}

/// The reactions of a store.
pub struct Reactions<S: ?Sized>(pub Arc<S>);

impl<S: IndexStore + ?Sized> RowSink<ViewRow> for Reactions<S> {
    fn progress(&self) -> Vec<Option<Position>> {
        self.0.reactions_progress()
    }

    fn apply(&self, closed: &Closed<ViewRow>) -> Result<(), StoreError> {
        self.0.apply_reactions(closed)
    }
}

/// A store of home timelines.
pub trait HomeStore: HomeSink {
    /// Reads what must be in memory; to be called before the first closed time is applied.
    fn load(&self);

    /// The least closed time that a shard has; `None` if one has none.
    fn position(&self) -> Option<Position>;

    /// The least closed time that is durable: closed times after it are needed to go on from there.
    fn saved(&self) -> Option<Position>;

    /// Makes durable what was applied. `durable` is called before it counts: it must make durable what facts and rows have.
    /// `go_on` is asked now and then; when it says no, the last save stays, and this returns `None`, as it does while there
    /// is nothing to be saved.
    fn save(
        &self,
        durable: &mut dyn FnMut() -> Result<(), StoreError>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Saved>, StoreError>;

    /// Empties the store: what was saved is of no use. No closed time may be applied meanwhile.
    fn clear(&self) -> Result<(), StoreError>;

    /// Empties the store, and has the next load fill it with the entries of the month.
    fn fill(&self) -> Result<(), StoreError>;

    /// Entries put into and taken out of records since the store was opened.
    fn deliveries(&self) -> u64;

    /// Changes that did not fit what the store held, and were left out. Anything but 0 is a defect of whoever feeds it.
    fn anomalies(&self) -> u64;

    /// How many viewers have a record, if that is known.
    fn viewers(&self) -> Option<usize>;
}

/// The stores, read also as a whole.
pub trait StoreViews: Views {
    /// Calls `each` with everything that `counter` counts, and how often, in no particular order. Blocks.
    fn counts(&self, counter: Counter, each: &mut dyn FnMut(i64, i64)) -> Result<(), ReadError>;

    /// All stores as they are now. No closed time may be applied until this returns. What has to be copied lies in the folder
    /// `dir`, takes at most `bytes_max` there, and goes with what this returns. Blocks.
    fn freeze(&self, dir: &Path, bytes_max: u64) -> Result<FrozenViews, StoreError>;
}

impl IndexStore for LocalIndex {
    fn reactions_progress(&self) -> Vec<Option<Position>> {
        LocalIndex::reactions_progress(self)
    }

    fn apply_reactions(&self, closed: &Closed<ViewRow>) -> Result<(), StoreError> {
        LocalIndex::apply_reactions(self, closed)
    }

    fn rebuild_reactions(&self, due: Time) -> Result<(), StoreError> {
        LocalIndex::rebuild_reactions(self, due)
    }

    fn rebuild_facts(&self, due: Time) -> Result<(), StoreError> {
        LocalIndex::rebuild_facts(self, due)
    }

    fn rebuild_rows(&self, due: Time) -> Result<(), StoreError> {
        LocalIndex::rebuild_rows(self, due)
    }

    fn durable(&self) -> Result<Option<Position>, StoreError> {
        LocalIndex::durable(self)
    }

    fn end(&self) {}

    fn write_out(&self, limit: Duration) -> Result<(), StoreError> {
        LocalIndex::write_out(self, limit)
    }
}

impl HomeStore for LocalHome {
    fn load(&self) {
        LocalHome::load(self);
    }

    fn position(&self) -> Option<Position> {
        LocalHome::position(self)
    }

    fn saved(&self) -> Option<Position> {
        LocalHome::saved(self)
    }

    fn save(
        &self,
        durable: &mut dyn FnMut() -> Result<(), StoreError>,
        go_on: &mut dyn FnMut() -> bool,
    ) -> Result<Option<Saved>, StoreError> {
        LocalHome::save(self, durable, go_on)
    }

    fn clear(&self) -> Result<(), StoreError> {
        LocalHome::clear(self);
        Ok(())
    }

    fn fill(&self) -> Result<(), StoreError> {
        LocalHome::fill(self);
        Ok(())
    }

    fn deliveries(&self) -> u64 {
        LocalHome::deliveries(self)
    }

    fn anomalies(&self) -> u64 {
        LocalHome::anomalies(self)
    }

    fn viewers(&self) -> Option<usize> {
        Some(LocalHome::viewers(self))
    }
}

impl StoreViews for LocalViews {
    fn counts(&self, counter: Counter, each: &mut dyn FnMut(i64, i64)) -> Result<(), ReadError> {
        LocalViews::counts(self, counter, each)
    }

    fn freeze(&self, dir: &Path, bytes_max: u64) -> Result<FrozenViews, StoreError> {
        LocalViews::freeze(self, dir, bytes_max)
    }
}
