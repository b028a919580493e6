//! Changes of home timelines.

use serde::{Deserialize, Serialize};

use crate::PackedEntry;

/// A change of a viewer's home record other than its entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum HomeRecordChange {
    /// The viewer is active: has a record.
    Active {
        /// Whose record.
        viewer: i64,
    },
    /// The viewer takes the entries of a hot account.
    Hot {
        /// Whose record.
        viewer: i64,
        /// The hot account followed.
        author: i64,
    },
}

impl HomeRecordChange {
    /// Whose record it changes.
    pub const fn viewer(&self) -> i64 {
        match *self {
            HomeRecordChange::Active { viewer } | HomeRecordChange::Hot { viewer, .. } => viewer,
        }
    }
}

/// One entry that enters (`diff` > 0) or leaves (`diff` < 0) one viewer's home timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Delivery {
    /// Whose timeline.
    pub viewer: i64,
    /// Which entry.
    pub entry: PackedEntry,
    /// How often it enters; negative when it leaves.
    pub diff: i32,
}
