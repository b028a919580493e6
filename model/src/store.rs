//! How the dataflows hand closed times to the stores.
//!
//! A time is closed when no worker can still produce a change at or before it. For each closed time a worker hands the
//! changes of its shards to the stores in phases, each of which begins when all workers have ended the one before:
//!
//! ```text
//!     facts(t) ─┬─► rows(t) ─┬─► home(t)          facts(t+1) need not wait for rows(t)
//!               │            └─► reactions(t)     nor anybody for reactions(t)
//!               └─► search(t)                     or search(t)
//! ```
//!
//! What likes bring is a phase of its own, because one transaction can bring millions of them: they may come later than the
//! rows of the same time, and never earlier. So a like that can be read is of a tweet and a user that can be.
//!
//! A reader goes the other way, home record first and facts last, so what it judges is never newer than the facts that
//! it is judged by.

use crate::{Delivery, HomeRecordChange, Position, SHARDS, Shard, Time};

/// One of the stages in which a closed time becomes visible.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Phase {
    /// Visibility facts.
    Facts,
    /// Rows, counts, user timelines.
    Rows,
    /// Home timelines.
    Home,
    /// Documents of search.
    Search,
    /// What likes bring: lists and counts of them, tweets that trend, notifications.
    Reactions,
}

impl Phase {
    /// All of them, in their order.
    pub const ALL: [Phase; 5] = [Phase::Facts, Phase::Rows, Phase::Home, Phase::Search, Phase::Reactions];

    /// Its name, which is that of its store.
    pub const fn name(self) -> &'static str {
        match self {
            Phase::Facts => "facts",
            Phase::Rows => "rows",
            Phase::Home => "home",
            Phase::Search => "search",
            Phase::Reactions => "reactions",
        }
    }
}

/// How far the stores are: every time *before* these is applied, on all workers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Applied {
    /// Frontier of the facts.
    pub facts: Time,
    /// Frontier of the rows.
    pub rows: Time,
    /// Frontier of the home timelines.
    pub home: Time,
    /// Frontier of search: it has been handed all times before, and finds them when it has committed them.
    pub search: Time,
    /// Frontier of what likes bring.
    pub reactions: Time,
}

impl Applied {
    /// Before everything.
    pub const NOTHING: Applied = Applied::at(0);

    /// All of them are at `frontier`.
    pub const fn at(frontier: Time) -> Self {
        Applied { facts: frontier, rows: frontier, home: frontier, search: frontier, reactions: frontier }
    }

    /// As far as both are.
    pub fn met(self, other: Applied) -> Self {
        Applied {
            facts: self.facts.min(other.facts),
            rows: self.rows.min(other.rows),
            home: self.home.min(other.home),
            search: self.search.min(other.search),
            reactions: self.reactions.min(other.reactions),
        }
    }

    /// The frontier of a phase.
    pub const fn of(&self, phase: Phase) -> Time {
        match phase {
            Phase::Facts => self.facts,
            Phase::Rows => self.rows,
            Phase::Home => self.home,
            Phase::Search => self.search,
            Phase::Reactions => self.reactions,
        }
    }

    /// Every time before this is applied in all stores.
    pub fn by_all(&self) -> Time {
        self.facts.min(self.rows).min(self.home).min(self.search).min(self.reactions)
    }
}

/// What to do with one key at one closed time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op<R> {
    /// The row of this key from now on.
    Put(R),
    /// The key has no row any more. What is not key in the row is its last value.
    Delete(R),
    /// Add to a sum.
    Add(R, i64),
}

/// The changes of one closed time in some shards of one worker: at most one operation a key. A time may come in several,
/// each of other shards.
#[derive(Clone, Debug)]
pub struct Closed<R> {
    /// The closed time, and the source position which it covers.
    pub position: Position,
    /// Bit `s` is set when this has all changes of shard `s`: its progress is `position` once this is applied.
    pub shards: u64,
    /// Set while the first state is loaded in slices: apply, but do not record progress yet.
    pub loading: bool,
    /// The operations, ordered by shard.
    pub ops: Vec<(Shard, Op<R>)>,
}

/// The changes of home timelines of one closed time in the shards of one worker.
#[derive(Clone, Debug)]
pub struct HomeClosed {
    /// The closed time, and the source position which it covers.
    pub position: Position,
    /// Bit `s` is set when shard `s` belongs to the worker.
    pub shards: u64,
    /// All floors rise to this id: after a load or a bulk batch.
    pub floor: Option<i64>,
    /// Records made and dropped, hot accounts gained and lost: summed, ordered, never zero.
    pub records: Vec<(HomeRecordChange, i64)>,
    /// The entries, by shard ([`SHARDS`] lists), as the join gave them: in no order, and not summed.
    pub deliveries: Vec<Vec<Delivery>>,
}

impl HomeClosed {
    /// Nothing happens at `position` in `shards`.
    pub fn empty(position: Position, shards: u64) -> Self {
        HomeClosed {
            position,
            shards,
            floor: None,
            records: Vec::new(),
            deliveries: (0..SHARDS).map(|_| Vec::new()).collect(),
        }
    }
}

/// Why a store could not take a closed time. It retries what a retry can cure before it gives up.
#[derive(Debug, thiserror::Error)]
#[error("could not {tried} in the {store} store: {source}")]
pub struct StoreError {
    /// Which store.
    pub store: &'static str,
    /// What was tried.
    pub tried: String,
    /// What went wrong.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// A store of [`Fact`](crate::Fact)s, of [`ViewRow`](crate::ViewRow)s or of [`Document`](crate::Document)s.
pub trait RowSink<R>: Send + Sync {
    /// The last closed time that each shard has; `None` for one that has never reached any. Entry `s` is shard `s`.
    fn progress(&self) -> Vec<Option<Position>>;

    /// Applies one closed time, data and progress in one atomic step where the engine can. Shards that have reached
    /// the time already ignore it.
    fn apply(&self, closed: &Closed<R>) -> Result<(), StoreError>;
}

/// A store of home timelines.
pub trait HomeSink: Send + Sync {
    /// The last closed time that each shard has; `None` for one that has never reached any. Entry `s` is shard `s`.
    fn progress(&self) -> Vec<Option<Position>>;

    /// Whether the load is to fill it: it has reached nothing, and is to hold the entries of the month when the load has
    /// ended, instead of those alone that come after it. Then the load comes as many closed times, in order; a record is
    /// complete above the floor that the last of them brings, and has reached nothing before.
    fn is_to_be_filled(&self) -> bool;

    /// Applies one closed time; the lists come back empty and keep their capacity. Shards that have reached the time
    /// already ignore it.
    fn apply(&self, closed: &mut HomeClosed) -> Result<(), StoreError>;
}
