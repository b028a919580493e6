//! Pages of what a viewer may read, assembled from [`Views`].
//!
//! Every page is made in the order home record or list of reactions, timelines, rows, facts, so that each is at least as new as
//! what it judges, and looks at no more than [`CANDIDATES_PER_ITEM`] × its limit.

mod account;
mod candidates;
mod conversation;
mod flags;
mod home;
mod list;
mod merge;
mod notification;
mod search;
mod suggestion;
mod tag;
mod trend;
mod tweet;

use std::sync::Arc;

use feedmill_model::{EntryId, Phase, Time};
use serde::{Deserialize, Serialize};

use crate::{CountedTweet, Profile, Views};

pub use account::{followers_page, following_page, profile_by_name};
pub use conversation::{Ancestor, FIRST_MAX, ThreadCursor, ThreadOrder, ThreadReply, ancestors_page, thread_page};
pub use flags::{TweetFlags, ViewerFlags, viewer_flags};
pub use home::{News, home_news, home_page};
pub use list::{blocked_page, follow_requests_page, likers_page, muted_page, retweeters_page};
pub use notification::{
    ACTORS_MAX, Notification, UNREAD_MAX, Unread, notifications_at_once, notifications_page, unread, unread_at_once,
};
pub use search::{RANKED_MAX, Rank, SearchFrom, search_accounts_page, search_tweets_page};
pub use suggestion::{SUGGESTION_SOURCES_MAX, Suggestion, suggestions};
pub use tag::hashtag_page;
pub use trend::{LikedTweet, trending_tags, trending_tweets};
pub use tweet::{tweet, tweets, user_page};

/// Candidates that a read looks at for each item that it may return.
pub const CANDIDATES_PER_ITEM: usize = 10;

/// Tweets that a cursor of the home timeline remembers as shown.
pub const SHOWN_MAX: usize = 200;

/// A page of a list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Page<T, C> {
    /// What may be shown, in order.
    pub items: Vec<T>,
    /// Where the next page begins; `None` when there is nothing more. A page may be short, even empty, and yet have a
    /// next one: what it looked at was hidden.
    pub next: Option<C>,
    /// The time that was served: that of the oldest view that was read. Beside tweets of a timeline, how often they are liked may be
    /// older.
    pub time: Time,
}

/// One thing, and the time that was served: that of the oldest view that was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Served<T> {
    /// What was read.
    pub value: T,
    /// As of when.
    pub time: Time,
}

/// What a viewer gets who asks for something that not everybody may read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Access<T> {
    /// It is there, and the viewer may read it.
    Granted(T),
    /// It is there, but not for this viewer: its owner is protected, or one of the two blocks the other.
    Hidden,
    /// There is no such thing, or not any more.
    NotFound,
}

/// A tweet in a timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TimelineTweet {
    /// The entry that brought it here.
    pub entry: EntryId,
    /// The tweet.
    pub tweet: Arc<CountedTweet>,
    /// Its author.
    pub author: Arc<Profile>,
    /// Who retweeted it, when the entry is a retweet.
    pub retweeted_by: Option<Arc<Profile>>,
}

/// What becomes of something that was to be shown.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// The viewer may see it.
    Shown(TimelineTweet),
    /// It is not for this viewer, or was deleted.
    Hidden,
    /// It is not there, and nobody knows that it was deleted: it never was, or is yet to come.
    Missing,
    /// It may be that another worker is applying it at this moment: whoever reads again in a moment knows.
    Late,
}

impl Verdict {
    /// The tweet, if the viewer may see it.
    pub fn shown(self) -> Option<TimelineTweet> {
        match self {
            Verdict::Shown(tweet) => Some(tweet),
            Verdict::Hidden | Verdict::Missing | Verdict::Late => None,
        }
    }
}

/// What was read without waiting for late rows.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AtOnce<T> {
    /// What was read.
    pub value: T,
    /// Some of it may be applied by another worker at this moment, and is left out: whoever reads again in a moment finds it.
    pub late: bool,
}

/// Where a page of a home timeline ended.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct HomeCursor {
    /// The last entry that was looked at.
    pub before: Option<EntryId>,
    /// The last [`SHOWN_MAX`] tweets shown.
    pub shown: Vec<i64>,
}

/// The oldest of the times that reads of these phases serve from now on.
fn served(views: &dyn Views, phases: &[Phase]) -> Time {
    phases.iter().map(|phase| views.time(*phase)).min().unwrap_or_default()
}
