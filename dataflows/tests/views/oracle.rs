//! What each view holds, computed anew from all rows, one view after the other.

use std::collections::{BTreeMap, BTreeSet};

use feedmill_model::{
    Activity, Block, Counter, Document, EntryId, Fact, Follow, Like, Mute, Notice, NoticeKind, PATH_MAX, PackedEntry,
    Parameters, ReadMark, Retweet, Row, Time, Timestamp, TrendWindow, Tweet, User, ViewRow, minute_of, ms_of,
};

use super::history::World;
use super::texts;

/// All views of one world at one time.
#[derive(Debug, Default, PartialEq)]
pub struct Views {
    pub facts: BTreeSet<Fact>,
    pub rows: BTreeSet<ViewRow>,
    pub documents: BTreeSet<Document>,
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
    of_texts(world, &mut views);
    trends(world, time, &deleted, &mut views);
    conversations(world, &mut views);
    notifications(world, time, &deleted, &mut views);
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
        let (username, name) = (user.username.clone(), user.display_name.clone());
        views.documents.insert(Document::Account { id: user.id, username, name });
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
        } else {
            views.rows.insert(ViewRow::FollowRequest { user: following_id, at, follower: follower_id });
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
        let (content, media) = (tweet.content.clone(), tweet.media.is_some());
        views.documents.insert(Document::Tweet { id: tweet.id, user, content, media, at: tweet.created_at });
        views.rows.insert(ViewRow::TimelineEntry { user, reply, entry, tweet: tweet.id });
        *views.counts.entry((Counter::Tweets, user)).or_default() += 1;
        if let Some(parent) = tweet.reply_to_id {
            *views.counts.entry((Counter::Replies, parent)).or_default() += 1;
        }
    }
    for &Retweet { id, user_id: user, tweet_id: tweet, .. } in rows_of!(world, Retweet) {
        *views.counts.entry((Counter::Retweets, tweet)).or_default() += 1;
        views.rows.insert(ViewRow::Retweeter { tweet, id, user });
        views.rows.insert(ViewRow::Retweeted { user, tweet, id });
        if !deleted.contains(&tweet) {
            views.rows.insert(ViewRow::Retweet { id, user, tweet });
            views.rows.insert(ViewRow::TimelineEntry { user, reply: false, entry: EntryId::retweet(id), tweet });
        }
    }
    for &Like { user_id: user, tweet_id: tweet, created_at: at } in rows_of!(world, Like) {
        *views.counts.entry((Counter::Likes, tweet)).or_default() += 1;
        views.rows.insert(ViewRow::Liker { tweet, at, user });
        views.rows.insert(ViewRow::Liked { user, tweet });
    }
    for &ReadMark { user_id: user, notifications_id: read } in rows_of!(world, ReadMark) {
        views.rows.insert(ViewRow::ReadMark { user, read });
    }
}

fn of_texts(world: &World, views: &mut Views) {
    for tweet in rows_of!(world, Tweet).filter(|tweet| tweet.deleted_at.is_none()) {
        for tag in texts::hashtags(&tweet.content) {
            views.rows.insert(ViewRow::Tagged { tag, tweet: tweet.id });
        }
    }
}

/// `minute(t) − window < minute(created_at) ≤ minute(t) + 60`
fn within(time: Time, minutes: i64, at: Timestamp) -> bool {
    let (now, made) = (minute_of(time) as i64, at.div_euclid(60_000_000));
    now - minutes < made && made <= now + 60
}

/// The full minutes between two times at which a row of `world` enters a window or leaves one, whatever is written.
pub fn turns(world: &World, from: Time, until: Time, parameters: &Parameters) -> BTreeSet<Time> {
    let mut minutes = BTreeSet::new();
    for row in world.values() {
        let (at, id) = match row {
            Row::Tweet(tweet) => (tweet.created_at, tweet.id),
            Row::Retweet(retweet) => (retweet.created_at, retweet.id),
            Row::Like(like) => (like.created_at, 0),
            Row::Follow(follow) => (follow.created_at, 0),
            Row::Activity(activity) => {
                let days = i64::from(activity.day) + i64::from(parameters.active_days);
                minutes.insert((days * 86_400 + activity.user_id.rem_euclid(86_400)).div_euclid(60));
                continue;
            }
            _ => continue,
        };
        let made = at.div_euclid(60_000_000);
        minutes.extend([-60, 60, 24 * 60, 30 * 24 * 60].map(|window| made + window));
        minutes.insert(ms_of(id).saturating_add_unsigned(parameters.fanout_ms()).div_euclid(60_000) + 1);
    }
    let times = minutes.into_iter().filter_map(|minute| u64::try_from(minute).ok()?.checked_mul(60_000));
    times.filter(|time| from < *time && *time < until).collect()
}

fn trends(world: &World, time: Time, deleted: &BTreeSet<i64>, views: &mut Views) {
    let protected: BTreeSet<i64> = rows_of!(world, User).filter(|user| user.protected).map(|user| user.id).collect();
    for (window, minutes) in [(TrendWindow::Hour, 60), (TrendWindow::Day, 24 * 60)] {
        let mut tags = BTreeMap::<String, (BTreeSet<i64>, u64)>::new();
        let counts = |tweet: &&Tweet| tweet.deleted_at.is_none() && !protected.contains(&tweet.user_id);
        let tweets = rows_of!(world, Tweet).map(Box::as_ref).filter(counts);
        for tweet in tweets.filter(|tweet| within(time, minutes, tweet.created_at)) {
            for tag in texts::hashtags(&tweet.content) {
                let (authors, uses) = tags.entry(tag).or_default();
                authors.insert(tweet.user_id);
                *uses += 1;
            }
        }
        let mut ranked: Vec<_> =
            tags.into_iter().map(|(tag, (authors, uses))| (authors.len() as u64, uses, tag)).collect();
        ranked.sort_by(|one, other| (other.0, other.1, &one.2).cmp(&(one.0, one.1, &other.2)));
        let listed = ranked.into_iter().take(100);
        views.rows.extend(listed.map(|(authors, uses, tag)| ViewRow::TrendingTag { window, tag, authors, uses }));
    }
    let mut likes = BTreeMap::<i64, u64>::new();
    for like in rows_of!(world, Like).filter(|like| within(time, 24 * 60, like.created_at)) {
        if !deleted.contains(&like.tweet_id) {
            *likes.entry(like.tweet_id).or_default() += 1;
        }
    }
    let mut ranked: Vec<_> = likes.into_iter().collect();
    ranked.sort_by_key(|(tweet, likes)| std::cmp::Reverse((*likes, *tweet)));
    views.rows.extend(ranked.into_iter().take(100).map(|(tweet, likes)| ViewRow::TrendingTweet { tweet, likes }));
}

fn conversations(world: &World, views: &mut Views) {
    let replies: BTreeMap<i64, &Tweet> = rows_of!(world, Tweet)
        .filter(|tweet| tweet.reply_to_id.is_some() && tweet.id != tweet.conversation_id)
        .map(|tweet| (tweet.id, &**tweet))
        .collect();
    for reply in replies.values() {
        let root = reply.conversation_id;
        let (mut path, mut at) = (vec![reply.id], reply.reply_to_id);
        while let Some(above) = at.filter(|above| *above != root && path.len() <= replies.len()) {
            let above = replies.get(&above).filter(|above| above.conversation_id == root);
            path.extend(above.map(|above| above.id));
            at = above.and_then(|above| above.reply_to_id);
        }
        if at == Some(root) {
            path.reverse();
            if path.len() > PATH_MAX {
                path.drain(PATH_MAX - 1..path.len() - 1);
            }
            let (parent, user) = (reply.reply_to_id.unwrap(), reply.user_id);
            views.rows.insert(ViewRow::Reply { root, path, parent, user });
        }
    }
}

fn notifications(world: &World, time: Time, deleted: &BTreeSet<i64>, views: &mut Views) {
    let author = |tweet: i64| {
        rows_of!(world, Tweet).find(|row| row.id == tweet && !deleted.contains(&tweet)).map(|row| row.user_id)
    };
    let mut note = |user: Option<i64>, kind, actor: i64, tweet, id: Option<i64>, at: Timestamp| {
        let micros = at.clamp(0, (1 << 47) * 1_000 - 1);
        let order = id.unwrap_or(((micros / 1_000) << 16) + micros % 1_000);
        if let Some(user) = user.filter(|user| *user != actor && within(time, 30 * 24 * 60, at)) {
            views.rows.insert(ViewRow::Notification { user, notice: Notice { order, kind, actor, tweet } });
        }
    };
    for follow in rows_of!(world, Follow) {
        let kind = if follow.accepted { NoticeKind::Follow } else { NoticeKind::FollowRequest };
        note(Some(follow.following_id), kind, follow.follower_id, 0, None, follow.created_at);
    }
    for like in rows_of!(world, Like) {
        note(author(like.tweet_id), NoticeKind::Like, like.user_id, like.tweet_id, None, like.created_at);
    }
    for &Retweet { id, user_id, tweet_id, created_at } in rows_of!(world, Retweet) {
        note(author(tweet_id), NoticeKind::Retweet, user_id, tweet_id, Some(id), created_at);
    }
    for tweet in rows_of!(world, Tweet).filter(|tweet| tweet.deleted_at.is_none()) {
        let mut note = |user, kind| note(user, kind, tweet.user_id, tweet.id, Some(tweet.id), tweet.created_at);
        if let Some(parent) = tweet.reply_to_id {
            note(author(parent), NoticeKind::Reply);
        }
        for name in texts::mentions(&tweet.content) {
            let named = |user: &&User| user.deleted_at.is_none() && user.username.eq_ignore_ascii_case(&name);
            rows_of!(world, User)
                .map(Box::as_ref)
                .filter(named)
                .for_each(|user| note(Some(user.id), NoticeKind::Mention));
        }
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
