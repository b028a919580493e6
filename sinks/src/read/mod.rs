//! Pages of what a viewer may read, assembled from [`Views`].
//!
//! Every page is made in the order home record, timelines, rows, facts, so that each is at least as new as what it
//! judges, and looks at no more than [`CANDIDATES_PER_ITEM`] × its limit.

use feedmill_model::{EntryId, Parameters, Time};
use serde::{Deserialize, Serialize};

use crate::{CountedTweet, Edge, Profile, ReadError, Views};

/// Candidates that a read looks at for each item that it may return.
pub const CANDIDATES_PER_ITEM: usize = 10;

/// Tweets that a cursor of the home timeline remembers as shown.
pub const SHOWN_MAX: usize = 200;

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T, C> {
    /// What may be shown, in order.
    pub items: Vec<T>,
    /// Where the next page begins; `None` when there is nothing more.
    pub next: Option<C>,
    /// The time that was served: that of the oldest view that was read.
    pub time: Time,
}

/// A tweet in a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineTweet {
    /// The entry that brought it here.
    pub entry: EntryId,
    /// The tweet.
    pub tweet: CountedTweet,
    /// Its author.
    pub author: Profile,
    /// Who retweeted it, when the entry is a retweet.
    pub retweeted_by: Option<Profile>,
}

/// Where a page of a home timeline ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeCursor {
    /// The last entry that was looked at.
    pub before: Option<EntryId>,
    /// The last [`SHOWN_MAX`] tweets shown.
    pub shown: Vec<i64>,
}
