//! The read side of the stores: what `api` needs, whichever store serves it.

use std::sync::Arc;

use async_trait::async_trait;
use feedmill_model::{EntryId, Notice, PackedEntry, Phase, Time, Timestamp, TrendWindow, Tweet, User, View};

use crate::{Changes, Progress};

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
#[error("the store of {} is being built again from the change log", .0.name())]
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

/// An account in a list of accounts; lists are ordered by `(at, id)`, newest first.
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

/// A tag that many use.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TrendingTag {
    /// Folded.
    pub tag: String,
    /// How many use it.
    pub authors: u64,
    /// In how many tweets.
    pub uses: u64,
}

/// A tweet that many like.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct TrendingTweet {
    /// The tweet.
    pub tweet: i64,
    /// How many liked it in 24 hours.
    pub likes: u64,
}

/// A reply in its thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reply {
    /// The replies from the root down to this one, without the root.
    pub path: Vec<i64>,
    /// What it answers: the last but one of the path, or the root; something else where the path is cut.
    pub parent: i64,
    /// Who wrote it.
    pub user: i64,
}

/// A list of accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum List {
    /// Accepted followers of a user.
    Followers,
    /// Accounts that a user follows.
    Following,
    /// Who asks to follow a user.
    FollowRequests,
    /// Who likes a tweet.
    Likers,
}

impl List {
    /// The view that holds it.
    pub const fn view(self) -> View {
        match self {
            List::Followers => View::Followers,
            List::Following => View::Following,
            List::FollowRequests => View::FollowRequests,
            List::Likers => View::Likers,
        }
    }
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

/// Whether something has come to the top of a viewer's home timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct HomeHead {
    /// Another number when the newest entries or the hot accounts of the record have changed; it means nothing else.
    pub stamp: u64,
    /// One of the accounts asked about is among the hot ones.
    pub takes: bool,
    /// There are hot ones, whose entries are not in the record.
    pub hot: bool,
    /// The record is complete above this id; what lies below is merged.
    pub floor: i64,
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
    async fn profiles(&self, ids: &[i64]) -> Result<Vec<Option<Arc<Profile>>>, ReadError>;

    /// At most `limit` accounts of a list of `of`, a user or a tweet, that come after (are older than) `after`.
    async fn edges(&self, list: List, of: i64, after: Option<Edge>, limit: usize) -> Result<Vec<Edge>, ReadError>;

    /// Rows and counts of tweets; `None` for one that does not exist or was deleted.
    async fn tweets(&self, ids: &[i64]) -> Result<Vec<Option<Arc<CountedTweet>>>, ReadError>;

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

    /// At most `limit` retweets of `tweet` older than `before`, newest first, with who retweeted.
    async fn retweeters(&self, tweet: i64, before: Option<i64>, limit: usize) -> Result<Vec<(i64, i64)>, ReadError>;

    /// Which of the tweets `user` likes.
    async fn liked(&self, user: i64, tweets: &[i64]) -> Result<Vec<bool>, ReadError>;

    /// The retweets by which `user` retweeted the tweets, if so.
    async fn retweeted(&self, user: i64, tweets: &[i64]) -> Result<Vec<Option<i64>>, ReadError>;

    /// At most `limit` tweets with `tag`, which is folded, older than `before`, newest first.
    async fn tagged(&self, tag: &str, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError>;

    /// The tags that most use in a window, in no particular order.
    async fn trending_tags(&self, window: TrendWindow) -> Result<Vec<TrendingTag>, ReadError>;

    /// The tweets that are liked most, in no particular order.
    async fn trending_tweets(&self) -> Result<Vec<TrendingTweet>, ReadError>;

    /// At most `limit` replies of the thread `root`, depth first: those below the reply with the path `under` (all of the
    /// thread if that is empty) that come after the one with the path `after`.
    async fn replies(
        &self,
        root: i64,
        under: &[i64],
        after: Option<&[i64]>,
        limit: usize,
    ) -> Result<Vec<Reply>, ReadError>;

    /// The replies of these ids in the thread `root`, also deleted ones; `None` for what is no reply there.
    async fn replies_of(&self, root: i64, ids: &[i64]) -> Result<Vec<Option<Reply>>, ReadError>;

    /// At most `limit` notifications of `user` that come after (are older than) `after`.
    async fn notifications(&self, user: i64, after: Option<&Notice>, limit: usize) -> Result<Vec<Notice>, ReadError>;

    /// Up to where `user` has read notifications ([`Notice::order`]).
    async fn read_mark(&self, user: i64) -> Result<Option<i64>, ReadError>;

    /// The viewer's record, `None` for one who is not active.
    async fn home(&self, viewer: i64) -> Result<Option<HomeRecord>, ReadError>;

    /// The heads of the viewers' records, `None` for one who is not active; `authors` are those asked about, in ascending
    /// order. No record is copied, so that it may be asked often of many, who come in the order of their shards.
    async fn heads(&self, viewers: &[i64], authors: &[i64]) -> Result<Vec<Option<HomeHead>>, ReadError>;

    /// The facts between `viewer` (or nobody in particular) and each of `users`.
    async fn relationships(&self, viewer: Option<i64>, users: &[i64]) -> Result<Vec<Relationship>, ReadError>;

    /// At most `limit` accounts that `user` blocks, by id, after `after`.
    async fn blocks(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError>;

    /// At most `limit` accounts that `user` mutes, by id, after `after`.
    async fn mutes(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError>;

    /// Which of the tweets were deleted, by the facts.
    async fn deleted_tweets(&self, ids: &[i64]) -> Result<Vec<bool>, ReadError>;

    /// Who tells what changes in facts and rows.
    fn changes(&self) -> &Changes;

    /// How far the views are.
    fn progress(&self) -> &Progress;

    /// The time that a read of `phase` serves now.
    fn time(&self, phase: Phase) -> Time {
        self.progress().position(phase).time
    }
}
