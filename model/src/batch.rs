//! What the change log hands to the dataflows.

use serde::{Deserialize, Serialize};

use crate::{Position, Row};

/// One row's change: `old` is what the row store held, `new` is what it holds from now on. An insert has no old row,
/// a delete no new one. A key that changes is two changes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Change {
    /// The row before.
    pub old: Option<Row>,
    /// The row after.
    pub new: Option<Row>,
}

/// One or more whole source transactions, or none: an idle tick. A large one is several values: see [`Self::last`].
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Its time, and the end of the source's log that it covers.
    pub position: Position,
    /// Set on a *bulk* batch, which is not fanned out: the greatest of the floor of the batch's time, the entry ids that
    /// the log knows, and the ids of tweets and retweets that come or go with the batch. Every home timeline's floor
    /// rises to it.
    pub floor: Option<i64>,
    /// At most one change a key, in no particular order.
    pub changes: Vec<Change>,
    /// A large batch is handed over in pieces: values of one position and one floor, of which only the final one has
    /// this set. A batch that is one piece has it set too.
    pub last: bool,
}
