//! A row of ours that cannot be read: it is set aside, and the stream goes on.

use feedmill_model::{Key, Relation};
use serde::{Deserialize, Serialize};

/// A row that cannot be read, as it was sent. What it stands for is not known, so nobody can apply it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unusable {
    /// Of which table.
    pub relation: Relation,
    /// What was done to the row.
    pub operation: Operation,
    /// Its primary key now, if that can be read.
    pub key: Option<Key>,
    /// The key it had before, if the change tells one that differs.
    pub old_key: Option<Key>,
    /// The columns that Feedmill reads, with what was sent of them.
    pub columns: Vec<(String, Field)>,
    /// Why it cannot be read.
    pub reason: String,
}

/// What was done to a row.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Operation {
    /// It was there when the table was copied.
    Copy,
    /// It is new.
    Insert,
    /// It has new values.
    Update,
    /// It is gone.
    Delete,
}

/// What was sent of a value.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Field {
    /// NULL.
    Null,
    /// Nothing, because it is stored out of line and unchanged.
    Unsent,
    /// A value in words: a number or text as SQL prints it, a time in microseconds since 1970, a date in days since 1970.
    Text(String),
    /// The bytes of a value that cannot be told in words.
    Bytes(Vec<u8>),
}
