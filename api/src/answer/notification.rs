//! Notifications, as clients get them.

use feedmill_model::{NoticeKind, ms_of};
use feedmill_sinks::read::{ACTORS_MAX, Notification, UNREAD_MAX, Unread};
use serde::Serialize;
use utoipa::ToSchema;

use super::flags::Flags;
use super::user::AuthorBody;
use super::{IdText, TimeText, TweetBody};

/// What happened.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "snake_case")]
#[schema(as = NotificationKind)]
enum Happened {
    /// They follow you.
    Follow,
    /// They ask to follow you.
    FollowRequest,
    /// They like your tweet.
    Like,
    /// They retweeted your tweet.
    Retweet,
    /// They answered your tweet: with this one.
    Reply,
    /// They named you: in this tweet.
    Mention,
}

impl From<NoticeKind> for Happened {
    fn from(kind: NoticeKind) -> Self {
        match kind {
            NoticeKind::Follow => Happened::Follow,
            NoticeKind::FollowRequest => Happened::FollowRequest,
            NoticeKind::Like => Happened::Like,
            NoticeKind::Retweet => Happened::Retweet,
            NoticeKind::Reply => Happened::Reply,
            NoticeKind::Mention => Happened::Mention,
        }
    }
}

/// One or more things of a kind that happened to whoever asks.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Notification)]
pub(crate) struct NotificationBody<'a> {
    /// What marks this and all older ones as read. Later ones have greater ids; two that happened in the same microsecond
    /// may have the same.
    id: IdText,
    kind: Happened,
    /// When the newest of them happened, to the millisecond.
    created_at: TimeText,
    /// Whether the newest of them was not read yet.
    unread: bool,
    /// The tweet that is liked or retweeted, or that answers or names; `null` for a follow.
    tweet: Option<TweetBody<'a>>,
    /// Who did it, the newest first.
    #[schema(max_items = 10)]
    users: Vec<AuthorBody<'a>>,
    /// How many did it, as far as the page looked.
    count: usize,
}

// What the document says of `users`.
const _: () = assert!(ACTORS_MAX == 10);

impl<'a> NotificationBody<'a> {
    /// A notification, with the flags of who reads.
    pub fn new(notification: &'a Notification, flags: &Flags) -> Self {
        NotificationBody {
            id: IdText(notification.order),
            kind: notification.kind.into(),
            created_at: TimeText(ms_of(notification.order) * 1_000),
            unread: notification.unread,
            tweet: notification.tweet.as_ref().map(|tweet| TweetBody::from(tweet).seen(flags)),
            users: notification.actors.iter().map(|actor| AuthorBody::from(&actor.user).seen(flags)).collect(),
            count: notification.count,
        }
    }
}

/// How much of what happened is not read yet, each thing counted for itself.
#[derive(Serialize, ToSchema)]
#[schema(as = Unread)]
pub(crate) struct UnreadBody {
    /// It is counted up to 100.
    #[schema(maximum = 100)]
    count: usize,
    /// There may be more than that.
    more: bool,
}

// What the document says of `count`.
const _: () = assert!(UNREAD_MAX == 100);

impl From<Unread> for UnreadBody {
    fn from(Unread { count, more }: Unread) -> Self {
        UnreadBody { count, more }
    }
}

/// A page of notifications.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Notifications)]
pub(crate) struct NotificationsBody<'a> {
    pub notifications: Vec<NotificationBody<'a>>,
    pub unread: UnreadBody,
    /// Where the next page begins; `null` when there is nothing more. A page may be short, even empty, and have one.
    pub next_cursor: Option<String>,
}
