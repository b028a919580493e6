//! Keys and values of the views.

use serde::{Deserialize, Serialize};

use crate::{EntryId, PackedEntry, Phase, Shard, Timestamp, Tweet, User, shard_of};

/// A view, by the name that `verify`, `replay` and the metrics use.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum View {
    /// Follows and follow requests, as facts.
    FollowFacts,
    /// Who blocks whom.
    Blocks,
    /// Who mutes whom.
    Mutes,
    /// Accounts that only accepted followers may read.
    Protected,
    /// Accounts that were deleted.
    DeletedUsers,
    /// Tweets that were deleted.
    DeletedTweets,
    /// A user's row.
    Profile,
    /// Name to user.
    Username,
    /// User to followers.
    Followers,
    /// User to accounts followed.
    Following,
    /// A tweet's row.
    Tweet,
    /// A retweet's row.
    Retweet,
    /// User to own entries and replies.
    UserTimeline,
    /// All counters.
    Counts,
    /// Tweet to who likes it.
    Likers,
    /// Tweet to who retweeted it.
    Retweeters,
    /// User and tweet that the user likes.
    Liked,
    /// User and tweet that the user retweeted.
    Retweeted,
    /// User to who asks to follow.
    FollowRequests,
    /// Up to where a user has read notifications.
    ReadMarks,
    /// Tag to tweets.
    Hashtag,
    /// The tags that most authors use, by window.
    TrendingHashtags,
    /// The tweets that are liked most.
    TrendingTweets,
    /// First tweet of a thread to all replies, depth first.
    Conversation,
    /// User to what happened to them.
    Notifications,
    /// Who has a home timeline.
    Active,
    /// Viewer to hot accounts followed.
    VerifiedFollowing,
    /// Viewer to pushed entries.
    Home,
    /// What search finds.
    Search,
}

impl View {
    /// All views.
    pub const ALL: [View; 29] = [
        View::FollowFacts,
        View::Blocks,
        View::Mutes,
        View::Protected,
        View::DeletedUsers,
        View::DeletedTweets,
        View::Profile,
        View::Username,
        View::Followers,
        View::Following,
        View::Tweet,
        View::Retweet,
        View::UserTimeline,
        View::Counts,
        View::Likers,
        View::Retweeters,
        View::Liked,
        View::Retweeted,
        View::FollowRequests,
        View::ReadMarks,
        View::Hashtag,
        View::TrendingHashtags,
        View::TrendingTweets,
        View::Conversation,
        View::Notifications,
        View::Active,
        View::VerifiedFollowing,
        View::Home,
        View::Search,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            View::FollowFacts => "follow_facts",
            View::Blocks => "blocks",
            View::Mutes => "mutes",
            View::Protected => "protected",
            View::DeletedUsers => "deleted_users",
            View::DeletedTweets => "deleted_tweets",
            View::Profile => "profile",
            View::Username => "username",
            View::Followers => "followers",
            View::Following => "following",
            View::Tweet => "tweet",
            View::Retweet => "retweet",
            View::UserTimeline => "user_timeline",
            View::Counts => "counts",
            View::Likers => "likers",
            View::Retweeters => "retweeters",
            View::Liked => "liked",
            View::Retweeted => "retweeted",
            View::FollowRequests => "follow_requests",
            View::ReadMarks => "read_marks",
            View::Hashtag => "hashtag",
            View::TrendingHashtags => "trending_hashtags",
            View::TrendingTweets => "trending_tweets",
            View::Conversation => "conversation",
            View::Notifications => "notifications",
            View::Active => "active",
            View::VerifiedFollowing => "verified_following",
            View::Home => "home",
            View::Search => "search",
        }
    }

    /// The phase in which it becomes visible, and so the store that holds it.
    pub const fn phase(self) -> Phase {
        match self {
            View::FollowFacts
            | View::Blocks
            | View::Mutes
            | View::Protected
            | View::DeletedUsers
            | View::DeletedTweets => Phase::Facts,
            View::Profile
            | View::Username
            | View::Followers
            | View::Following
            | View::Tweet
            | View::Retweet
            | View::UserTimeline
            | View::Counts
            | View::Likers
            | View::Retweeters
            | View::Liked
            | View::Retweeted
            | View::FollowRequests
            | View::ReadMarks
            | View::Hashtag
            | View::TrendingHashtags
            | View::TrendingTweets
            | View::Conversation
            | View::Notifications => Phase::Rows,
            View::Active | View::VerifiedFollowing | View::Home => Phase::Home,
            View::Search => Phase::Search,
        }
    }
}

/// What decides who may see what; applied before everything else of its time, and read after everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Fact {
    /// `follower` follows `following`, or has asked to.
    Follow {
        /// Who follows; with `following` the key.
        follower: i64,
        /// Who is followed.
        following: i64,
        /// `false`: only requested.
        accepted: bool,
    },
    /// `blocker` blocks `blocked`; both are the key.
    Block {
        /// Who blocks.
        blocker: i64,
        /// Who is blocked.
        blocked: i64,
    },
    /// `muter` mutes `muted`; both are the key.
    Mute {
        /// Who mutes.
        muter: i64,
        /// Who is muted.
        muted: i64,
    },
    /// Only accepted followers may read this account.
    Protected(i64),
    /// The account was deleted.
    DeletedUser(i64),
    /// The tweet was deleted.
    DeletedTweet(i64),
}

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

/// What happened to a user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[repr(u8)]
pub enum NoticeKind {
    /// Somebody follows them.
    Follow = 1,
    /// Somebody asks to follow them.
    FollowRequest = 2,
    /// Somebody likes a tweet of theirs.
    Like = 3,
    /// Somebody retweeted a tweet of theirs.
    Retweet = 4,
    /// Somebody answered a tweet of theirs.
    Reply = 5,
    /// Somebody named them in a tweet.
    Mention = 6,
}

impl NoticeKind {
    /// All kinds.
    pub const ALL: [NoticeKind; 6] = [
        NoticeKind::Follow,
        NoticeKind::FollowRequest,
        NoticeKind::Like,
        NoticeKind::Retweet,
        NoticeKind::Reply,
        NoticeKind::Mention,
    ];

    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            NoticeKind::Follow => "follow",
            NoticeKind::FollowRequest => "follow_request",
            NoticeKind::Like => "like",
            NoticeKind::Retweet => "retweet",
            NoticeKind::Reply => "reply",
            NoticeKind::Mention => "mention",
        }
    }
}

/// A notification, without whose it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Notice {
    /// Orders notifications, and is what a read mark names: the id of the tweet or retweet; of a like or a follow what an
    /// id would be that was made at its time ([`id_at`](crate::id_at) its millisecond, and its microsecond as sequence).
    pub order: i64,
    /// What happened.
    pub kind: NoticeKind,
    /// Who did it.
    pub actor: i64,
    /// The tweet that is liked or retweeted, or that answers or names; 0 for a follow.
    pub tweet: i64,
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

/// What has a key, lives in the shard of its owner, and is either kept as a row or summed.
pub trait Keyed: Ord + Clone {
    /// The user or tweet whose shard this row lives in.
    fn owner(&self) -> i64;
    /// Whether the two rows have the same key. In the order of `Ord`, rows of equal key are neighbours.
    fn same_key(&self, other: &Self) -> bool;
    /// Whether differences are added up, instead of the last row standing.
    fn is_sum(&self) -> bool;
    /// The shard of the owner.
    fn shard(&self) -> Shard {
        shard_of(self.owner())
    }
}

impl Keyed for Fact {
    fn owner(&self) -> i64 {
        match *self {
            Fact::Follow { follower, .. } => follower,
            Fact::Block { blocker, .. } => blocker,
            Fact::Mute { muter, .. } => muter,
            Fact::Protected(id) | Fact::DeletedUser(id) | Fact::DeletedTweet(id) => id,
        }
    }

    fn same_key(&self, other: &Self) -> bool {
        match (self, other) {
            (
                Fact::Follow { follower, following, .. },
                Fact::Follow { follower: other_follower, following: other_following, .. },
            ) => (follower, following) == (other_follower, other_following),
            _ => self == other,
        }
    }

    fn is_sum(&self) -> bool {
        false
    }
}

/// Names and tags live in a shard too: that of a hash (FNV-1a) of the name.
pub fn name_owner(name: &str) -> i64 {
    name.bytes().fold(0xCBF2_9CE4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01B3))
        as i64
}

impl Keyed for ViewRow {
    fn owner(&self) -> i64 {
        match self {
            ViewRow::Profile(user) => user.id,
            ViewRow::Username { name, .. } => name_owner(name),
            ViewRow::Tagged { tag, .. } => name_owner(tag),
            ViewRow::TrendingTag { window, .. } => *window as i64,
            ViewRow::Follower { user, .. }
            | ViewRow::Following { user, .. }
            | ViewRow::TimelineEntry { user, .. }
            | ViewRow::Liked { user, .. }
            | ViewRow::Retweeted { user, .. }
            | ViewRow::FollowRequest { user, .. }
            | ViewRow::ReadMark { user, .. }
            | ViewRow::Notification { user, .. } => *user,
            ViewRow::Liker { tweet, .. } | ViewRow::Retweeter { tweet, .. } => *tweet,
            ViewRow::TrendingTweet { .. } => 0,
            ViewRow::Reply { root, .. } => *root,
            ViewRow::Tweet(tweet) => tweet.id,
            ViewRow::Retweet { id, .. } => *id,
            ViewRow::Count { of, .. } => *of,
        }
    }

    fn same_key(&self, other: &Self) -> bool {
        match (self, other) {
            (ViewRow::Profile(one), ViewRow::Profile(other)) => one.id == other.id,
            (ViewRow::Username { name: one, .. }, ViewRow::Username { name: other, .. }) => one == other,
            (ViewRow::Tweet(one), ViewRow::Tweet(other)) => one.id == other.id,
            (ViewRow::Retweet { id: one, .. }, ViewRow::Retweet { id: other, .. }) => one == other,
            (
                ViewRow::TimelineEntry { user, reply, entry, .. },
                ViewRow::TimelineEntry { user: other_user, reply: other_reply, entry: other_entry, .. },
            ) => (user, reply, entry) == (other_user, other_reply, other_entry),
            (ViewRow::Retweeter { tweet, id, .. }, ViewRow::Retweeter { tweet: other_tweet, id: other_id, .. }) => {
                (tweet, id) == (other_tweet, other_id)
            }
            (
                ViewRow::Retweeted { user, tweet, .. },
                ViewRow::Retweeted { user: other_user, tweet: other_tweet, .. },
            ) => (user, tweet) == (other_user, other_tweet),
            (ViewRow::ReadMark { user: one, .. }, ViewRow::ReadMark { user: other, .. }) => one == other,
            (
                ViewRow::TrendingTag { window, tag, .. },
                ViewRow::TrendingTag { window: other_window, tag: other_tag, .. },
            ) => (window, tag) == (other_window, other_tag),
            (ViewRow::TrendingTweet { tweet: one, .. }, ViewRow::TrendingTweet { tweet: other, .. }) => one == other,
            (ViewRow::Reply { root, path, .. }, ViewRow::Reply { root: other_root, path: other_path, .. }) => {
                (root, path) == (other_root, other_path)
            }
            _ => self == other,
        }
    }

    fn is_sum(&self) -> bool {
        matches!(self, ViewRow::Count { .. })
    }
}

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
