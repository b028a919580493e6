//! What each view holds, computed anew from all rows, one view after the other.

use std::collections::{BTreeMap, BTreeSet};

use feedmill_model::{
    Activity, Block, Counter, EntryId, Fact, Follow, Mute, PackedEntry, Parameters, Retweet, Row, Time, ViewRow,
    minute_of,
};

use super::history::World;

/// All views of one world at one time.
#[derive(Debug, Default, PartialEq)]
pub struct Views {
    pub facts: BTreeSet<Fact>,
    pub rows: BTreeSet<ViewRow>,
    pub counts: BTreeMap<(Counter, i64), i64>,
    pub home: BTreeMap<i64, HomeView>,
}

/// A home timeline.
#[derive(Debug, Default, PartialEq)]
pub struct HomeView {
    pub hot: BTreeSet<i64>,
    pub entries: BTreeSet<PackedEntry>,
}

macro_rules! rows_of {
    ($world:expr, $variant:ident) => {
        $world.values().filter_map(|row| match row {
            Row::$variant(row) => Some(row),
            _ => None,
        })
    };
}

/// Computes all views.
pub fn views(world: &World, time: Time, parameters: &Parameters) -> Views {
    let mut views = Views::default();
    let deleted: BTreeSet<i64> =
        rows_of!(world, Tweet).filter(|tweet| tweet.deleted_at.is_some()).map(|tweet| tweet.id).collect();
    of_users(world, &mut views);
    of_follows(world, &mut views);
    of_tweets(world, &deleted, &mut views);
    for viewer in active(world, time, parameters) {
        views.home.insert(viewer, home(world, viewer, time, parameters, &deleted));
    }
    views
}

fn of_users(world: &World, views: &mut Views) {
    for user in rows_of!(world, User) {
        if user.protected {
            views.facts.insert(Fact::Protected(user.id));
        }
        if user.deleted_at.is_some() {
            views.facts.insert(Fact::DeletedUser(user.id));
            continue;
        }
        views.rows.insert(ViewRow::Profile(user.clone()));
        views.rows.insert(ViewRow::Username { name: user.username.to_lowercase(), user: user.id });
    }
}

fn of_follows(world: &World, views: &mut Views) {
    for &Follow { follower_id, following_id, accepted, created_at: at } in rows_of!(world, Follow) {
        views.facts.insert(Fact::Follow { follower: follower_id, following: following_id, accepted });
        if accepted {
            views.rows.insert(ViewRow::Follower { user: following_id, at, follower: follower_id });
            views.rows.insert(ViewRow::Following { user: follower_id, at, following: following_id });
            *views.counts.entry((Counter::Followers, following_id)).or_default() += 1;
            *views.counts.entry((Counter::Following, follower_id)).or_default() += 1;
        }
    }
    for &Block { blocker_id, blocked_id } in rows_of!(world, Block) {
        views.facts.insert(Fact::Block { blocker: blocker_id, blocked: blocked_id });
    }
    for &Mute { muter_id, muted_id } in rows_of!(world, Mute) {
        views.facts.insert(Fact::Mute { muter: muter_id, muted: muted_id });
    }
}

fn of_tweets(world: &World, deleted: &BTreeSet<i64>, views: &mut Views) {
    views.facts.extend(deleted.iter().map(|id| Fact::DeletedTweet(*id)));
    for tweet in rows_of!(world, Tweet).filter(|tweet| tweet.deleted_at.is_none()) {
        let (user, entry, reply) = (tweet.user_id, EntryId::tweet(tweet.id), tweet.reply_to_id.is_some());
        views.rows.insert(ViewRow::Tweet(tweet.clone()));
        views.rows.insert(ViewRow::TimelineEntry { user, reply, entry, tweet: tweet.id });
        *views.counts.entry((Counter::Tweets, user)).or_default() += 1;
        if let Some(parent) = tweet.reply_to_id {
            *views.counts.entry((Counter::Replies, parent)).or_default() += 1;
        }
    }
    for &Retweet { id, user_id: user, tweet_id: tweet, .. } in rows_of!(world, Retweet) {
        *views.counts.entry((Counter::Retweets, tweet)).or_default() += 1;
        if !deleted.contains(&tweet) {
            views.rows.insert(ViewRow::Retweet { id, user, tweet });
            views.rows.insert(ViewRow::TimelineEntry { user, reply: false, entry: EntryId::retweet(id), tweet });
        }
    }
    for like in rows_of!(world, Like) {
        *views.counts.entry((Counter::Likes, like.tweet_id)).or_default() += 1;
    }
}

/// `minute(t) < minute(last activity day at 00:00 UTC + active_days days + (user_id mod 86,400) s)`
fn active(world: &World, time: Time, parameters: &Parameters) -> BTreeSet<i64> {
    let is_active = |activity: &&Activity| {
        let days = i64::from(activity.day) + i64::from(parameters.active_days);
        let limit = days * 86_400 + activity.user_id.rem_euclid(86_400);
        (minute_of(time) as i64) < limit.div_euclid(60)
    };
    rows_of!(world, Activity).filter(is_active).map(|activity| activity.user_id).collect()
}

fn is_hot(world: &World, user: i64) -> bool {
    rows_of!(world, User).any(|row| row.id == user && row.verified && row.deleted_at.is_none())
        || rows_of!(world, Popular).any(|row| row.user_id == user)
}

fn home(world: &World, viewer: i64, time: Time, parameters: &Parameters, deleted: &BTreeSet<i64>) -> HomeView {
    let mut view = HomeView::default();
    let hides = |author: i64| {
        let pairs = [(viewer, author), (author, viewer)];
        rows_of!(world, Mute).any(|mute| (mute.muter_id, mute.muted_id) == (viewer, author))
            || rows_of!(world, Block).any(|block| pairs.contains(&(block.blocker_id, block.blocked_id)))
    };
    let mut pushed = BTreeSet::from([viewer]);
    for follow in rows_of!(world, Follow).filter(|follow| follow.accepted && follow.follower_id == viewer) {
        let author = follow.following_id;
        match (hides(author), is_hot(world, author)) {
            (true, _) => false,
            (false, true) => view.hot.insert(author),
            (false, false) => pushed.insert(author),
        };
    }
    let tweets = rows_of!(world, Tweet)
        .filter(|tweet| tweet.deleted_at.is_none() && tweet.reply_to_id.is_none())
        .map(|tweet| (tweet.user_id, EntryId::tweet(tweet.id)));
    let retweets = rows_of!(world, Retweet)
        .filter(|retweet| !deleted.contains(&retweet.tweet_id))
        .map(|retweet| (retweet.user_id, EntryId::retweet(retweet.id)));
    let due =
        tweets.chain(retweets).filter(|(author, entry)| pushed.contains(author) && entry.id > parameters.horizon(time));
    view.entries.extend(due.filter_map(|(_, entry)| PackedEntry::new(entry)));
    view
}
