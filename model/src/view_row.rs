//! Rows of the indexes, and what stands in them.

use serde::{Deserialize, Serialize};

use crate::{EntryId, Notice, Timestamp, Tweet, User, View};

/// The longest path of a reply. One that lies deeper hangs from the last that fits.
pub const PATH_MAX: usize = 1_000;

/// What is counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum Counter {
    /// Accepted followers of a user.
    Followers = 1,
    /// Accepted follows by a user.
    Following = 2,
    /// Tweets and replies of a user that were not deleted.
    Tweets = 3,
    /// Likes of a tweet, also of a deleted one.
    Likes = 4,
    /// Retweets of a tweet, also of a deleted one.
    Retweets = 5,
    /// Replies to a tweet that were not deleted.
    Replies = 6,
}

impl Counter {
    /// All of them.
    pub const ALL: [Counter; 6] =
        [Counter::Followers, Counter::Following, Counter::Tweets, Counter::Likes, Counter::Retweets, Counter::Replies];

    /// The view that has it: likes are counted apart from all else.
    pub const fn view(self) -> View {
        match self {
            Counter::Likes => View::LikeCounts,
            Counter::Followers | Counter::Following | Counter::Tweets | Counter::Retweets | Counter::Replies => {
                View::Counts
            }
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Counter::Followers => "followers",
            Counter::Following => "following",
            Counter::Tweets => "tweets",
            Counter::Likes => "likes",
            Counter::Retweets => "retweets",
            Counter::Replies => "replies",
        }
    }
}

/// How far back a list of trends looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum TrendWindow {
    /// An hour.
    Hour = 1,
    /// 24 hours.
    Day = 2,
}

impl TrendWindow {
    /// Both.
    pub const ALL: [TrendWindow; 2] = [TrendWindow::Hour, TrendWindow::Day];

    /// How long it is.
    pub const fn minutes(self) -> u64 {
        match self {
            TrendWindow::Hour => 60,
            TrendWindow::Day => 24 * 60,
        }
    }

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            TrendWindow::Hour => "1h",
            TrendWindow::Day => "24h",
        }
    }
}

/// A row of an index.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum ViewRow {
    /// A user's row; the key is the id. Deleted accounts have none.
    Profile(Box<User>),
    /// Name to user; the key is the name.
    Username {
        /// With ASCII letters lower-cased, as `lower` does under the collation "C" of the column.
        name: String,
        /// Whose.
        user: i64,
    },
    /// An accepted follower; every field is key, newest first.
    Follower {
        /// Who is followed.
        user: i64,
        /// Since when.
        at: Timestamp,
        /// Who follows.
        follower: i64,
    },
    /// An accepted follow; every field is key, newest first.
    Following {
        /// Who follows.
        user: i64,
        /// Since when.
        at: Timestamp,
        /// Who is followed.
        following: i64,
    },
    /// A tweet's row; the key is the id. Deleted tweets have none.
    Tweet(Box<Tweet>),
    /// A retweet of a tweet that was not deleted; the key is the id.
    Retweet {
        /// Its id.
        id: i64,
        /// Who retweeted.
        user: i64,
        /// What.
        tweet: i64,
    },
    /// An entry or a reply of a user; the key is user, `reply` and entry, newest first.
    TimelineEntry {
        /// Whose.
        user: i64,
        /// `true` for a reply, which is no entry of home timelines.
        reply: bool,
        /// Tweet or retweet.
        entry: EntryId,
        /// The tweet itself or the one retweeted.
        tweet: i64,
    },
    /// Who likes a tweet; every field is key, newest first.
    Liker {
        /// What is liked.
        tweet: i64,
        /// Since when.
        at: Timestamp,
        /// Who likes it.
        user: i64,
    },
    /// Who retweeted a tweet; the key is the tweet and the retweet's id, newest first.
    Retweeter {
        /// What was retweeted.
        tweet: i64,
        /// The retweet.
        id: i64,
        /// Who retweeted it.
        user: i64,
    },
    /// A like; both fields are key.
    Liked {
        /// Who likes.
        user: i64,
        /// What is liked.
        tweet: i64,
    },
    /// A retweet; the key is user and tweet.
    Retweeted {
        /// Who retweeted.
        user: i64,
        /// What was retweeted.
        tweet: i64,
        /// The retweet.
        id: i64,
    },
    /// A follow that is not accepted yet; every field is key, newest first.
    FollowRequest {
        /// Who is asked.
        user: i64,
        /// Since when.
        at: Timestamp,
        /// Who asks.
        follower: i64,
    },
    /// Up to where a user has read notifications; the key is the user.
    ReadMark {
        /// Who.
        user: i64,
        /// [`Notice::order`] of the newest that was read.
        read: i64,
    },
    /// A tweet with a tag; both fields are key, newest first.
    Tagged {
        /// Folded ([`fold_tag`](crate::text::fold_tag)).
        tag: String,
        /// The tweet.
        tweet: i64,
    },
    /// One of the first hundred tags of a window; the key is window and tag.
    TrendingTag {
        /// Counted over how long.
        window: TrendWindow,
        /// Folded.
        tag: String,
        /// How many use it.
        authors: u64,
        /// In how many tweets.
        uses: u64,
    },
    /// One of the hundred tweets that were liked most in 24 hours; the key is the tweet.
    TrendingTweet {
        /// The tweet.
        tweet: i64,
        /// How often it was liked in that time.
        likes: u64,
    },
    /// A reply in its thread; the key is root and path.
    Reply {
        /// The first tweet of the thread.
        root: i64,
        /// The replies from the root down to this one, without the root; at most [`PATH_MAX`].
        path: Vec<i64>,
        /// What it answers.
        parent: i64,
        /// Who wrote it.
        user: i64,
    },
    /// A notification; every field is key, newest first.
    Notification {
        /// Whose.
        user: i64,
        /// What happened.
        notice: Notice,
    },
    /// A count; the key is counter and id, the row's multiplicity is the count.
    Count {
        /// What is counted.
        counter: Counter,
        /// User or tweet.
        of: i64,
    },
}
