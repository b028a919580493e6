//! The keys of facts and of rows, and where they live.

use crate::{Fact, Shard, ViewRow, shard_of};

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
