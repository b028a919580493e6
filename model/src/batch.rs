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

/// One or more whole source transactions, or none: an idle tick.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Batch {
    /// Its time, and the end of the source's log that it covers.
    pub position: Position,
    /// Set on a *bulk* batch, which is not fanned out: the greatest entry id that the log knows, or the floor of the
    /// batch's time if that is greater. Every home timeline's floor rises to it.
    pub floor: Option<i64>,
    /// At most one change a key, in no particular order.
    pub changes: Vec<Change>,
}
