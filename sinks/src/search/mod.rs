//! Search, whichever store serves it: the words of a text, the language of queries, and what a store answers.

mod query;
mod reached;
mod terms;

use std::time::Duration;

use async_trait::async_trait;
use feedmill_model::{Document, Position, RowSink, StoreError, Time};

use crate::ReadError;

pub use query::{AccountQuery, Clause, Query, QueryError, What};
pub(crate) use reached::{Reached, least, prefix, prefixes, reaches, read_reached, time_of, write_reached};
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

/// A search index, read also as a whole.
pub trait SearchIndex: Search {
    /// What was closed up to this is found; `None` while nothing can be read.
    fn found(&self) -> Option<Position>;

    /// The index as it is found now, to be read while it goes on. Blocks.
    fn snapshot(&self) -> Result<Box<dyn SearchSnapshot>, ReadError>;

    /// Why it does not go on at the moment, though it tries.
    fn waits(&self) -> Option<String> {
        None
    }
}

/// A search index, as those see it who keep it.
pub trait SearchStore: SearchIndex + RowSink<Document> {
    /// Begins anew, empty and without progress. Until the new index has the closed time `due` on all shards nothing of it
    /// is read: what was there before goes on to be found, or reads fail with [`Rebuilding`](crate::Rebuilding). No closed
    /// time may be applied meanwhile. It is begun for good when [`Self::durable`] says that nothing is.
    fn rebuild(&self, due: Time) -> Result<(), StoreError>;

    /// Asks that all that was applied before the call becomes durable and is found, and waits for it at most `limit`. Gives
    /// the least position that a shard has for good, `None` while one has none: the change log must keep what came after
    /// it. An error is final: the store takes no more.
    fn durable(&self, limit: Duration) -> Result<Option<Position>, StoreError>;

    /// Documents that the engine refuses, and that are therefore not found.
    fn refused(&self) -> u64 {
        0
    }
}

/// A search index as of one closed time.
pub trait SearchSnapshot: Send + Sync {
    /// The closed time of which it is.
    fn time(&self) -> Time;

    /// Calls `each` with key and value of every document, in the form in which the view's SQL prints them, in no
    /// particular order.
    fn scan(&self, each: &mut dyn FnMut(String, String)) -> Result<(), ReadError>;
}

/// Key and value of a document as the view's SQL prints them.
pub(crate) fn printed(document: Document) -> (String, String) {
    const SEPARATOR: &str = "\u{1f}";
    match document {
        Document::Tweet { id, user, content, media, at } => {
            let media = if media { "t" } else { "f" };
            let text = [&user.to_string(), &content, media, &at.to_string()];
            (format!("tweet {id}"), text.join(SEPARATOR))
        }
        Document::Account { id, username, name } => (format!("account {id}"), [username, name].join(SEPARATOR)),
    }
}
