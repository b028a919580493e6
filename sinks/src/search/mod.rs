//! Search, whichever store serves it: the words of a text, the language of queries, and what a store answers.

mod query;
mod terms;

use std::time::Duration;

use async_trait::async_trait;
use feedmill_model::Time;

use crate::ReadError;

pub use query::{AccountQuery, Clause, Query, QueryError, What};
pub use terms::{fold, terms};

/// Something that was found.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Hit {
    /// The tweet or the account.
    pub id: i64,
    /// How well it fits, 0 or more.
    pub score: f32,
}

/// The search index, read. What it gives are candidates: whether somebody may see them the facts decide.
#[async_trait]
pub trait Search: Send + Sync {
    /// At most `limit` tweets that fit, older than `before`, newest first.
    async fn latest(&self, query: &Query, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError>;

    /// At most `limit` tweets, those that fit best first. A query without words is answered with the newest, all alike.
    async fn relevant(&self, query: &Query, limit: usize) -> Result<Vec<Hit>, ReadError>;

    /// At most `limit` accounts that fit, those that fit best first.
    async fn accounts(&self, query: &AccountQuery, limit: usize) -> Result<Vec<Hit>, ReadError>;

    /// What was closed up to this time is found.
    fn time(&self) -> Time;

    /// Waits until what was closed up to `time` is found; `false` when `limit` passes first.
    async fn reached(&self, time: Time, limit: Duration) -> bool;
}
