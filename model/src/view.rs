//! The views, by name.

use serde::{Deserialize, Serialize};

use crate::Phase;

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
    /// All counters but that of likes.
    Counts,
    /// How often tweets are liked.
    LikeCounts,
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
    pub const ALL: [View; 30] = [
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
        View::LikeCounts,
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
            View::LikeCounts => "like_counts",
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
            | View::Retweeters
            | View::Retweeted
            | View::FollowRequests
            | View::ReadMarks
            | View::Hashtag
            | View::TrendingHashtags
            | View::Conversation => Phase::Rows,
            View::LikeCounts | View::Likers | View::Liked | View::TrendingTweets | View::Notifications => {
                Phase::Reactions
            }
            View::Active | View::VerifiedFollowing | View::Home => Phase::Home,
            View::Search => Phase::Search,
        }
    }
}
