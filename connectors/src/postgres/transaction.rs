//! Whole committed transactions, as the source's log tells them.

use feedmill_model::{Key, Lsn, Relation, Row, Timestamp};
use serde::{Deserialize, Serialize};

use super::{Changes, Unusable};

/// One committed transaction, in the order in which PostgreSQL committed them.
#[derive(Clone, Debug, PartialEq)]
pub struct Transaction {
    /// The end of its commit record: a slot acknowledged up to here does not send it again.
    pub end_lsn: Lsn,
    /// When it was committed, by the source's clock, in microseconds since 1970.
    pub committed_at: Timestamp,
    /// Its changes of the published relations.
    pub changes: Changes,
}

/// What the source's log says of one row.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum RowChange {
    /// A new row.
    Insert(Row),
    /// A row's new values.
    Update {
        /// The key it had before, when the key changed.
        old_key: Option<Key>,
        /// The row now. Columns marked in `unchanged` hold nothing.
        row: Row,
        /// Bit `i`: column `i` of [`Relation::columns`] was not sent, because it is stored out of line and unchanged.
        unchanged: u32,
    },
    /// The row is gone.
    Delete(Key),
    /// All rows of the relation are gone.
    Truncate(Relation),
    /// A change of a row that cannot be read.
    Unusable(Box<Unusable>),
}
