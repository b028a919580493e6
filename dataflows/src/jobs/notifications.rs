//! What happened to users: who followed them, liked, retweeted or answered what they wrote, or named them.
//!
//! ```text
//!   follows ─────────────────────────────────────────────► expire ─┐
//!   likes, retweets, replies ─► expire ─► by tweet ─┬─ join ───────┤
//!   tweets that were not deleted ─► author ─────────┘              ├─► without what users did to themselves
//!   tweets ─► names mentioned ─► expire ─► by name ─┬─ join ───────┘
//!   users ─► names ─────────────────────────────────┘
//! ```
//!
//! A notification is there as long as its cause is: a like that is taken back, a tweet that is deleted, a follow that ends
//! takes it along. After [`DAYS`] it goes at a full minute, so what waits for its author here is bounded by a month. The
//! authors are not: each tweet that was not deleted takes some 50 bytes in an arrangement, as long as it is there, because
//! a like of today can be of a tweet of any age, and does not say whose that is. No other job keeps authors by tweet.
//! Whether the viewer blocks or mutes who did it is decided at read.

use std::rc::Rc;

use differential_dataflow::ExchangeData;
use feedmill_model::{
    Follow, Like, Notice, NoticeKind, Retweet, Time, Timestamp, Tweet, User, ViewRow, id_at, name_owner, text,
};
use serde::{Deserialize, Serialize};

use crate::collection::{Rows, index};
use crate::jobs::trends::{leaves, within};

/// How long notifications are kept.
const DAYS: u64 = 30;

/// What someone did to a tweet or to a name; of which tweet, whoever it is joined with knows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Act {
    /// [`Notice::order`]; of a reply and of a mention the tweet that answers or names.
    order: i64,
    actor: i64,
    kind: NoticeKind,
}

impl Act {
    /// What the user is told, about `tweet`.
    const fn notice(self, tweet: i64) -> Notice {
        let Act { order, actor, kind } = self;
        Notice { order, kind, actor, tweet }
    }
}

/// Where something stands that has no id of its own.
fn order_of(at: Timestamp) -> i64 {
    let micros = at.clamp(0, (1 << 47) * 1_000 - 1);
    id_at(micros / 1_000, (micros % 1_000) as u16)
}

/// What was done to something, from when it was done on, for as long as that counts.
fn recent<'scope, D: ExchangeData>(
    acts: Rows<'scope, (Timestamp, (D, Act))>,
    start: Time,
    name: &str,
    owner: fn(&(D, Act)) -> i64,
) -> Rows<'scope, (D, Act)> {
    within(acts, DAYS * 24 * 60, start, name, owner)
}

/// What notifications come from.
pub(crate) struct Causes<'scope> {
    pub(crate) users: Rows<'scope, Rc<User>>,
    pub(crate) tweets: Rows<'scope, Rc<Tweet>>,
    pub(crate) follows: Rows<'scope, Follow>,
    pub(crate) likes: Rows<'scope, Like>,
    pub(crate) retweets: Rows<'scope, Retweet>,
}

/// All notifications.
pub(crate) fn notifications<'scope>(causes: Causes<'scope>, start: Time) -> Rows<'scope, ViewRow> {
    let Causes { users, tweets, follows, likes, retweets } = causes;
    let tweets = tweets.filter(|tweet| tweet.deleted_at.is_none());
    // What is too old is not even looked at: all follows of all time are loaded.
    let follows = follows.filter(move |follow| leaves(follow.created_at, DAYS * 24 * 60) > start);
    let follows = follows.map(|Follow { follower_id: actor, following_id, accepted, created_at: at }| {
        let kind = if accepted { NoticeKind::Follow } else { NoticeKind::FollowRequest };
        (at, (following_id, Act { order: order_of(at), actor, kind }))
    });
    let to_users = recent(follows, start, "ExpireFollowNotices", |(user, _)| *user);
    let to_users = to_users.map(|(user, act)| (user, act.notice(0)));

    let likes = likes.filter(move |like| leaves(like.created_at, DAYS * 24 * 60) > start);
    let likes = likes.map(|Like { user_id: actor, tweet_id, created_at: at }| {
        (at, (tweet_id, Act { order: order_of(at), actor, kind: NoticeKind::Like }))
    });
    let retweets = retweets.map(|Retweet { id: order, user_id: actor, tweet_id, created_at: at }| {
        (at, (tweet_id, Act { order, actor, kind: NoticeKind::Retweet }))
    });
    let by_author = |kind| move |tweet: &Tweet| Act { order: tweet.id, actor: tweet.user_id, kind };
    let reply = by_author(NoticeKind::Reply);
    let replies = tweets.clone().flat_map(move |tweet| Some((tweet.created_at, (tweet.reply_to_id?, reply(&tweet)))));
    let to_tweets = recent(likes.concatenate([retweets, replies]), start, "ExpireTweetNotices", |(tweet, _)| *tweet);
    let authors = index(tweets.clone().map(|tweet| (tweet.id, tweet.user_id)), "AuthorByTweet");
    let to_authors = index(to_tweets, "NoticesByTweet").join_core(authors, |tweet, act, author| {
        let about = if act.kind == NoticeKind::Reply { act.order } else { *tweet };
        Some((*author, act.notice(about)))
    });

    let mention = by_author(NoticeKind::Mention);
    // Texts that are too old are not even read: all tweets of all time are loaded.
    let is_recent = move |tweet: &Rc<Tweet>| leaves(tweet.created_at, DAYS * 24 * 60) > start;
    let mentions = tweets.filter(is_recent).flat_map(move |tweet| {
        let (at, act) = (tweet.created_at, mention(&tweet));
        text::mentions(&tweet.content).into_iter().map(move |name| (at, (name, act)))
    });
    let mentions = recent(mentions, start, "ExpireMentions", |(name, _)| name_owner(name));
    let mentions = index(mentions.map(|(name, act)| (name_owner(&name), (name, act))), "MentionsByName");
    let names = users.filter(|user| user.deleted_at.is_none()).map(|user| {
        let name = user.username.to_ascii_lowercase();
        (name_owner(&name), (name, user.id))
    });
    let to_named = mentions.join_core(index(names, "UsersByName"), |_hash, (mentioned, act), (name, user)| {
        (mentioned == name).then_some((*user, act.notice(act.order)))
    });

    to_users
        .concatenate([to_authors, to_named])
        .filter(|(user, notice)| *user != notice.actor)
        .map(|(user, notice)| ViewRow::Notification { user, notice })
}
