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
//! takes it along. After [`DAYS`] it goes at a full minute, so what waits for its author here is bounded by a month.
//! Whether the viewer blocks or mutes who did it is decided at read.

use std::rc::Rc;

use differential_dataflow::ExchangeData;
use feedmill_model::{
    Follow, Like, Notice, NoticeKind, Retweet, Time, Timestamp, Tweet, User, ViewRow, id_at, name_owner, text,
};
use serde::{Deserialize, Serialize};

use crate::collection::{Rows, index};
use crate::expire::expire;
use crate::jobs::trends::leaves;

/// How long notifications are kept.
const DAYS: u64 = 30;

/// What someone did.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Act {
    notice: Notice,
    at: Timestamp,
}

impl Act {
    fn new(kind: NoticeKind, actor: i64, tweet: i64, order: i64, at: Timestamp) -> Self {
        Act { notice: Notice { order, kind, actor, tweet }, at }
    }
}

/// Where something stands that has no id of its own.
fn order_of(at: Timestamp) -> i64 {
    let micros = at.clamp(0, (1 << 47) * 1_000 - 1);
    id_at(micros / 1_000, (micros % 1_000) as u16)
}

/// `acts` with whom or what they were done to, as long as they count.
fn recent<'scope, D: ExchangeData>(
    acts: Rows<'scope, (D, Act)>,
    start: Time,
    name: &str,
    owner: fn(&(D, Act)) -> i64,
) -> Rows<'scope, (D, Act)> {
    let leaving = acts.map(|(to, act)| (leaves(act.at, DAYS * 24 * 60), (to, act)));
    expire(leaving, start, name, owner)
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
    let follows = follows.map(|Follow { follower_id, following_id, accepted, created_at: at }| {
        let kind = if accepted { NoticeKind::Follow } else { NoticeKind::FollowRequest };
        (following_id, Act::new(kind, follower_id, 0, order_of(at), at))
    });
    let to_users = recent(follows, start, "ExpireFollowNotices", |(user, _)| *user);

    let likes = likes.map(|Like { user_id, tweet_id, created_at: at }| {
        (tweet_id, Act::new(NoticeKind::Like, user_id, tweet_id, order_of(at), at))
    });
    let retweets = retweets.map(|Retweet { id, user_id, tweet_id, created_at: at }| {
        (tweet_id, Act::new(NoticeKind::Retweet, user_id, tweet_id, id, at))
    });
    let replies = tweets.clone().flat_map(|tweet| {
        let to = tweet.reply_to_id?;
        Some((to, Act::new(NoticeKind::Reply, tweet.user_id, tweet.id, tweet.id, tweet.created_at)))
    });
    let to_tweets = recent(likes.concatenate([retweets, replies]), start, "ExpireTweetNotices", |(tweet, _)| *tweet);
    let authors = index(tweets.clone().map(|tweet| (tweet.id, tweet.user_id)), "AuthorByTweet");
    let to_authors = index(to_tweets, "NoticesByTweet").join_core(authors, |_tweet, act, author| Some((*author, *act)));

    let mentions = tweets.flat_map(|tweet| {
        let names = text::mentions(&tweet.content).into_iter();
        names
            .map(move |name| (name, Act::new(NoticeKind::Mention, tweet.user_id, tweet.id, tweet.id, tweet.created_at)))
    });
    let mentions = recent(mentions, start, "ExpireMentions", |(name, _)| name_owner(name));
    let mentions = index(mentions.map(|(name, act)| (name_owner(&name), (name, act))), "MentionsByName");
    let names = users.filter(|user| user.deleted_at.is_none()).map(|user| {
        let name = user.username.to_ascii_lowercase();
        (name_owner(&name), (name, user.id))
    });
    let to_named = mentions.join_core(index(names, "UsersByName"), |_hash, (mentioned, act), (name, user)| {
        (mentioned == name).then_some((*user, *act))
    });

    to_users
        .concatenate([to_authors, to_named])
        .filter(|(user, act)| *user != act.notice.actor)
        .map(|(user, act)| ViewRow::Notification { user, notice: act.notice })
}
