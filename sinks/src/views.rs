//! The read side of the stores: what `api` needs, whichever store serves it.

use async_trait::async_trait;
use feedmill_model::{EntryId, PackedEntry, Phase, Time, Timestamp, Tweet, User};

use crate::Progress;

/// A read failed; a retry may cure it.
#[derive(Debug, thiserror::Error)]
#[error("could not read {what} from the {store} store: {source}")]
pub struct ReadError {
    /// Which store.
    pub store: &'static str,
    /// What was read.
    pub what: &'static str,
    /// What went wrong.
    #[source]
    pub source: Box<dyn std::error::Error + Send + Sync>,
}

/// The store that a read needs is being built again from the change log: ask again when that has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the {} are being built again from the change log", .0.name())]
pub struct Rebuilding(pub Phase);

impl ReadError {
    /// The store that is being built again, if that is why it cannot be read.
    pub fn rebuilding(&self) -> Option<Phase> {
        self.source.downcast_ref::<Rebuilding>().map(|rebuilding| rebuilding.0)
    }
}

/// A user's row with counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Profile {
    /// The row.
    pub user: User,
    /// Accepted followers.
    pub followers: i64,
    /// Accepted follows.
    pub following: i64,
    /// Tweets and replies.
    pub tweets: i64,
}

/// A tweet's row with counts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CountedTweet {
    /// The row.
    pub tweet: Tweet,
    /// Likes.
    pub likes: i64,
    /// Retweets.
    pub retweets: i64,
    /// Replies.
    pub replies: i64,
}

/// An account in a list of followers or of accounts followed; lists are ordered by `(at, id)`, newest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
pub struct Edge {
    /// Since when.
    pub at: Timestamp,
    /// The other account.
    pub id: i64,
}

/// An entry or reply in a user's own timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TimelineItem {
    /// Tweet or retweet.
    pub entry: EntryId,
    /// The tweet itself or the one retweeted.
    pub tweet: i64,
}

/// The pushed part of a viewer's home timeline.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct HomeRecord {
    /// The record is complete above this id: the greatest of its own floor, the store's and the horizon.
    pub floor: i64,
    /// Hot accounts followed, in ascending order.
    pub hot: Vec<i64>,
    /// Entries above the floor, newest first.
    pub entries: Vec<PackedEntry>,
}

/// What the facts say between a viewer and another account.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Relationship {
    /// `Some(true)`: the viewer follows the account; `Some(false)`: has asked to.
    pub following: Option<bool>,
    /// Likewise from the account to the viewer.
    pub followed_by: Option<bool>,
    /// The viewer blocks the account.
    pub blocks: bool,
    /// The account blocks the viewer.
    pub blocked_by: bool,
    /// The viewer mutes the account.
    pub mutes: bool,
    /// Only accepted followers may read the account.
    pub protected: bool,
    /// The account was deleted.
    pub deleted: bool,
}

impl Relationship {
    /// Whether the viewer may read what the account wrote. Mutes do not forbid: they only keep it out of timelines.
    pub const fn may_read(&self, own: bool) -> bool {
        own || !self.deleted
            && !self.blocks
            && !self.blocked_by
            && (!self.protected || matches!(self.following, Some(true)))
    }
}

/// The views, read.
///
/// Answers keep the order of the ids asked for. Each call sees one closed time of each key, not of all keys: callers
/// read the home record first and the facts last (see [`Phase`]).
#[async_trait]
pub trait Views: Send + Sync {
    /// The account of this name, whatever its case.
    async fn user_by_name(&self, name: &str) -> Result<Option<i64>, ReadError>;

    /// Rows and counts of users; `None` for one that does not exist or was deleted.
    async fn profiles(&self, ids: &[i64]) -> Result<Vec<Option<Profile>>, ReadError>;

    /// At most `limit` accepted followers of `user` that come after (are older than) `after`.
    async fn followers(&self, user: i64, after: Option<Edge>, limit: usize) -> Result<Vec<Edge>, ReadError>;

    /// At most `limit` accounts that `user` follows and that come after (are older than) `after`.
    async fn following(&self, user: i64, after: Option<Edge>, limit: usize) -> Result<Vec<Edge>, ReadError>;

    /// Rows and counts of tweets; `None` for one that does not exist or was deleted.
    async fn tweets(&self, ids: &[i64]) -> Result<Vec<Option<CountedTweet>>, ReadError>;

    /// Retweeter and tweet of retweets; `None` for one that does not exist or whose tweet was deleted.
    async fn retweets(&self, ids: &[i64]) -> Result<Vec<Option<(i64, i64)>>, ReadError>;

    /// At most `limit` entries of `user` (replies when `replies`) older than `before`, newest first.
    async fn user_timeline(
        &self,
        user: i64,
        replies: bool,
        before: Option<EntryId>,
        limit: usize,
    ) -> Result<Vec<TimelineItem>, ReadError>;

    /// The viewer's record, `None` for one who is not active.
    async fn home(&self, viewer: i64) -> Result<Option<HomeRecord>, ReadError>;

    /// The facts between `viewer` (or nobody in particular) and each of `users`.
    async fn relationships(&self, viewer: Option<i64>, users: &[i64]) -> Result<Vec<Relationship>, ReadError>;

    /// Which of the tweets were deleted, by the facts.
    async fn deleted_tweets(&self, ids: &[i64]) -> Result<Vec<bool>, ReadError>;

    /// How far the views are.
    fn progress(&self) -> &Progress;

    /// The time that a read of `phase` serves now.
    fn time(&self, phase: Phase) -> Time {
        self.progress().position(phase).time
    }
}
