//! Notifications.

use serde::{Deserialize, Serialize};

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
