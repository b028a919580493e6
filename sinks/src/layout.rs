//! How rows are keys and values: in a local store in a keyspace a view, of the view's name, each key in the shard of its
//! owner; in a CQL store in partitions, of which the beginning of the key is a part ([`crate::cql`]).
//!
//! | view | key after the shard | value |
//! |---|---|---|
//! | `profile`, `tweet` | id | the row (postcard) |
//! | `username` | name | id |
//! | `followers`, `following`, `follow_requests` | user, at ↓, other ↓ | |
//! | `likers` | tweet, at ↓, user ↓ | |
//! | `liked` | user, tweet | |
//! | `retweet` | id | user, tweet |
//! | `retweeters` | tweet, id ↓ | user |
//! | `retweeted` | user, tweet | id |
//! | `user_timeline` | user, reply, id ↓, kind ↓ | tweet |
//! | `counts`, `like_counts` | counter, id | count, time |
//! | `hashtag` | tag, 0, tweet ↓ | |
//! | `trending_hashtags` | window, tag | authors, uses |
//! | `trending_tweets` | tweet | likes |
//! | `conversation` | root, ids from there down | parent, user |
//! | `conversation_paths` | root, id, ids from the root down to it | parent, user |
//! | `notifications` | user, order ↓, kind, actor, tweet | |
//! | `read_marks` | user | order |
//!
//! ↓ is in descending order, so that a page is one range, newest first. A conversation's keys are depth first, and those
//! below a reply begin with its own. Where a reply lies in it is found by its id: the path is part of that key too, so that
//! a reply which moves within a closed time is deleted and put in any order.

use feedmill_model::{
    Counter, EntryId, EntryKind, Keyed, Notice, NoticeKind, Shard, Time, TrendWindow, View, ViewRow, name_owner,
    shard_of,
};
use fjall::UserValue;

use crate::key::{Key, Parts};
use crate::{Edge, Reply, TimelineItem};

/// The view of a row.
pub(crate) const fn view(row: &ViewRow) -> View {
    match row {
        ViewRow::Profile(_) => View::Profile,
        ViewRow::Username { .. } => View::Username,
        ViewRow::Follower { .. } => View::Followers,
        ViewRow::Following { .. } => View::Following,
        ViewRow::FollowRequest { .. } => View::FollowRequests,
        ViewRow::Tweet(_) => View::Tweet,
        ViewRow::Retweet { .. } => View::Retweet,
        ViewRow::TimelineEntry { .. } => View::UserTimeline,
        ViewRow::Count { counter, .. } => counter.view(),
        ViewRow::Liker { .. } => View::Likers,
        ViewRow::Liked { .. } => View::Liked,
        ViewRow::Retweeter { .. } => View::Retweeters,
        ViewRow::Retweeted { .. } => View::Retweeted,
        ViewRow::ReadMark { .. } => View::ReadMarks,
        ViewRow::Tagged { .. } => View::Hashtag,
        ViewRow::TrendingTag { .. } => View::TrendingHashtags,
        ViewRow::TrendingTweet { .. } => View::TrendingTweets,
        ViewRow::Reply { .. } => View::Conversation,
        ViewRow::Notification { .. } => View::Notifications,
    }
}

/// The key of a row among those of its view.
pub(crate) fn key(row: &ViewRow) -> Key {
    match row {
        ViewRow::Profile(user) => id_key(user.id),
        ViewRow::Username { name, .. } => Key::in_shard(shard_of_name(name)).text(name),
        ViewRow::Follower { user, at, follower } => edge_key(*user, Edge { at: *at, id: *follower }),
        ViewRow::Following { user, at, following } => edge_key(*user, Edge { at: *at, id: *following }),
        ViewRow::FollowRequest { user, at, follower } => edge_key(*user, Edge { at: *at, id: *follower }),
        ViewRow::Tweet(tweet) => id_key(tweet.id),
        ViewRow::Retweet { id, .. } => id_key(*id),
        ViewRow::TimelineEntry { user, reply, entry, .. } => timeline_key(*user, *reply, *entry),
        ViewRow::Count { counter, of } => count_key(*counter, *of),
        ViewRow::Liker { tweet, at, user } => edge_key(*tweet, Edge { at: *at, id: *user }),
        ViewRow::Liked { user, tweet } => id_key(*user).ascending(*tweet),
        ViewRow::Retweeter { tweet, id, .. } => id_key(*tweet).descending(*id),
        ViewRow::Retweeted { user, tweet, .. } => id_key(*user).ascending(*tweet),
        ViewRow::ReadMark { user, .. } => id_key(*user),
        ViewRow::Tagged { tag, tweet } => tag_prefix(tag).descending(*tweet),
        ViewRow::TrendingTag { window, tag, .. } => trend_prefix(*window).text(tag),
        ViewRow::TrendingTweet { tweet, .. } => Key::in_shard(row.shard()).ascending(*tweet),
        ViewRow::Reply { root, path, .. } => path_key(*root, path),
        ViewRow::Notification { user, notice } => notice_key(*user, notice),
    }
}

/// What stands under the key of a row that is put at `time`.
pub(crate) fn value(row: &ViewRow, time: Time) -> Result<UserValue, postcard::Error> {
    Ok(match row {
        ViewRow::Profile(user) => postcard::to_allocvec(user)?.into(),
        ViewRow::Tweet(tweet) => postcard::to_allocvec(tweet)?.into(),
        ViewRow::Username { user: id, .. }
        | ViewRow::TimelineEntry { tweet: id, .. }
        | ViewRow::Retweeter { user: id, .. }
        | ViewRow::Retweeted { id, .. }
        | ViewRow::ReadMark { read: id, .. } => id.to_be_bytes().into(),
        ViewRow::TrendingTweet { likes, .. } => likes.to_be_bytes().into(),
        ViewRow::Retweet { user, tweet, .. } => two(*user as u64, *tweet as u64).into(),
        ViewRow::TrendingTag { authors, uses, .. } => two(*authors, *uses).into(),
        ViewRow::Reply { parent, user, .. } => two(*parent as u64, *user as u64).into(),
        ViewRow::Count { .. } => two(1, time).into(),
        ViewRow::Follower { .. }
        | ViewRow::Following { .. }
        | ViewRow::FollowRequest { .. }
        | ViewRow::Liker { .. }
        | ViewRow::Liked { .. }
        | ViewRow::Tagged { .. }
        | ViewRow::Notification { .. } => UserValue::from([]),
    })
}

/// The row of a view that lies under a key, and the count if it is one; `None` for what no row is.
pub(crate) fn row(view: View, key: &[u8], value: &[u8]) -> Option<(ViewRow, i64)> {
    let row = match view {
        View::Profile => ViewRow::Profile(postcard::from_bytes(value).ok()?),
        View::Tweet => ViewRow::Tweet(postcard::from_bytes(value).ok()?),
        View::Username => {
            let name = String::from_utf8(key.get(1..)?.to_vec()).ok()?;
            ViewRow::Username { name, user: id(value)? }
        }
        View::Followers => {
            let (user, Edge { at, id: follower }) = edge(key)?;
            ViewRow::Follower { user, at, follower }
        }
        View::Following => {
            let (user, Edge { at, id: following }) = edge(key)?;
            ViewRow::Following { user, at, following }
        }
        View::FollowRequests => {
            let (user, Edge { at, id: follower }) = edge(key)?;
            ViewRow::FollowRequest { user, at, follower }
        }
        View::Likers => {
            let (tweet, Edge { at, id: user }) = edge(key)?;
            ViewRow::Liker { tweet, at, user }
        }
        View::Retweet => {
            let (user, tweet) = of_two(value)?;
            ViewRow::Retweet { id: Parts::new(key.get(1..)?).ascending()?, user: user as i64, tweet: tweet as i64 }
        }
        View::UserTimeline => {
            let (user, reply, item) = timeline_item(key, value)?;
            ViewRow::TimelineEntry { user, reply, entry: item.entry, tweet: item.tweet }
        }
        View::Counts | View::LikeCounts => {
            let (counter, of, count) = counted(key, value)?;
            return Some((ViewRow::Count { counter, of }, count));
        }
        View::Liked => {
            let mut parts = Parts::new(key.get(1..)?);
            ViewRow::Liked { user: parts.ascending()?, tweet: parts.ascending()? }
        }
        View::Retweeters => {
            let (tweet, id, user) = retweeter(key, value)?;
            ViewRow::Retweeter { tweet, id, user }
        }
        View::Retweeted => {
            let mut parts = Parts::new(key.get(1..)?);
            ViewRow::Retweeted { user: parts.ascending()?, tweet: parts.ascending()?, id: id(value)? }
        }
        View::ReadMarks => ViewRow::ReadMark { user: Parts::new(key.get(1..)?).ascending()?, read: id(value)? },
        View::Hashtag => {
            let (tag, tweet) = tagged(key)?;
            ViewRow::Tagged { tag: tag.to_owned(), tweet }
        }
        View::TrendingHashtags => {
            let mut parts = Parts::new(key.get(1..)?);
            let number = parts.byte()?;
            let window = TrendWindow::ALL.into_iter().find(|window| *window as u8 == number)?;
            let (authors, uses) = of_two(value)?;
            ViewRow::TrendingTag { window, tag: String::from_utf8(parts.rest().to_vec()).ok()?, authors, uses }
        }
        View::TrendingTweets => {
            let likes = Parts::new(value).number()?;
            ViewRow::TrendingTweet { tweet: Parts::new(key.get(1..)?).ascending()?, likes }
        }
        View::Conversation => {
            let mut parts = Parts::new(key.get(1..)?);
            let root = parts.ascending()?;
            let (parent, user) = of_two(value)?;
            let path = std::iter::from_fn(|| parts.ascending()).collect();
            ViewRow::Reply { root, path, parent: parent as i64, user: user as i64 }
        }
        View::Notifications => {
            let (user, notice) = notice(key)?;
            ViewRow::Notification { user, notice }
        }
        View::FollowFacts
        | View::Blocks
        | View::Mutes
        | View::Protected
        | View::DeletedUsers
        | View::DeletedTweets
        | View::Active
        | View::VerifiedFollowing
        | View::Home
        | View::Search => return None,
    };
    Some((row, 1))
}

/// The tweet of a key of [`View::Liked`] or [`View::Retweeted`].
pub(crate) fn tweet_below(key: &[u8]) -> Option<i64> {
    // Shard and user come before it.
    Parts::new(key.get(9..)?).ascending()
}

fn shard_of_name(name: &str) -> Shard {
    shard_of(name_owner(name))
}

/// The only key of `id`, and the beginning of those that belong to it.
pub(crate) fn id_key(id: i64) -> Key {
    Key::of(id).ascending(id)
}

pub(crate) fn edge_key(of: i64, edge: Edge) -> Key {
    id_key(of).descending(edge.at).descending(edge.id)
}

/// Whose edge a key of a list is, and the edge.
pub(crate) fn edge(key: &[u8]) -> Option<(i64, Edge)> {
    let mut parts = Parts::new(key.get(1..)?);
    Some((parts.ascending()?, Edge { at: parts.descending()?, id: parts.descending()? }))
}

pub(crate) fn timeline_prefix(user: i64, reply: bool) -> Key {
    id_key(user).byte(u8::from(reply))
}

pub(crate) fn timeline_key(user: i64, reply: bool, entry: EntryId) -> Key {
    let kind = match entry.kind {
        EntryKind::Retweet => 0,
        EntryKind::Tweet => 1,
    };
    timeline_prefix(user, reply).descending(entry.id).byte(kind)
}

pub(crate) fn timeline_item(key: &[u8], value: &[u8]) -> Option<(i64, bool, TimelineItem)> {
    let mut parts = Parts::new(key.get(1..)?);
    let (user, reply, number) = (parts.ascending()?, parts.byte()? == 1, parts.descending()?);
    let entry = if parts.byte()? == 0 { EntryId::retweet(number) } else { EntryId::tweet(number) };
    Some((user, reply, TimelineItem { entry, tweet: id(value)? }))
}

pub(crate) fn count_key(counter: Counter, of: i64) -> Key {
    Key::of(of).byte(counter as u8).ascending(of)
}

fn counted(key: &[u8], value: &[u8]) -> Option<(Counter, i64, i64)> {
    let mut parts = Parts::new(key.get(1..)?);
    let number = parts.byte()?;
    let counter = Counter::ALL.into_iter().find(|counter| *counter as u8 == number)?;
    Some((counter, parts.ascending()?, of_two(value)?.0 as i64))
}

/// Tweet, retweet and user.
pub(crate) fn retweeter(key: &[u8], value: &[u8]) -> Option<(i64, i64, i64)> {
    let mut parts = Parts::new(key.get(1..)?);
    Some((parts.ascending()?, parts.descending()?, id(value)?))
}

/// The beginning of the keys of a tag. No text of PostgreSQL's has a NUL, so it ends the tag.
pub(crate) fn tag_prefix(tag: &str) -> Key {
    Key::in_shard(shard_of_name(tag)).text(tag).byte(0)
}

/// The tag, and a tweet that has it.
pub(crate) fn tagged(key: &[u8]) -> Option<(&str, i64)> {
    let (tag, tweet) = key.get(1..)?.split_at_checked(key.len().checked_sub(10)?)?;
    Some((str::from_utf8(tag).ok()?, Parts::new(tweet.get(1..)?).descending()?))
}

pub(crate) fn trend_prefix(window: TrendWindow) -> Key {
    Key::of(window as i64).byte(window as u8)
}

pub(crate) fn path_key(root: i64, path: &[i64]) -> Key {
    path.iter().fold(id_key(root), |key, id| key.ascending(*id))
}

/// The key of a reply in `conversation_paths`.
pub(crate) fn by_reply_key(root: i64, path: &[i64]) -> Key {
    let id = path.last().copied().unwrap_or(root);
    path.iter().fold(id_key(root).ascending(id), |key, id| key.ascending(*id))
}

/// The reply under such a key.
pub(crate) fn by_reply(key: &[u8], value: &[u8]) -> Option<Reply> {
    // Shard, root and id come before the path.
    let mut parts = Parts::new(key.get(17..)?);
    let (parent, user) = of_two(value)?;
    let path = std::iter::from_fn(|| parts.ascending()).collect();
    Some(Reply { path, parent: parent as i64, user: user as i64 })
}

pub(crate) fn notice_key(user: i64, notice: &Notice) -> Key {
    let Notice { order, kind, actor, tweet } = *notice;
    id_key(user).descending(order).byte(kind as u8).ascending(actor).ascending(tweet)
}

pub(crate) fn notice(key: &[u8]) -> Option<(i64, Notice)> {
    let mut parts = Parts::new(key.get(1..)?);
    let (user, order, number) = (parts.ascending()?, parts.descending()?, parts.byte()?);
    let kind = NoticeKind::ALL.into_iter().find(|kind| *kind as u8 == number)?;
    Some((user, Notice { order, kind, actor: parts.ascending()?, tweet: parts.ascending()? }))
}

pub(crate) fn id(value: &[u8]) -> Option<i64> {
    Parts::new(value).number().map(|id| id as i64)
}

pub(crate) fn two(one: u64, other: u64) -> [u8; 16] {
    (u128::from(one) << 64 | u128::from(other)).to_be_bytes()
}

pub(crate) fn of_two(value: &[u8]) -> Option<(u64, u64)> {
    let mut parts = Parts::new(value);
    Some((parts.number()?, parts.number()?))
}

#[cfg(test)]
mod tests {
    use feedmill_model::{Tweet, User};

    use super::*;

    #[test]
    fn every_row_comes_back_from_its_key_and_value() {
        let rows = [
            ViewRow::Profile(Box::new(User { id: -4, ..User::default() })),
            ViewRow::Username { name: "ada".to_owned(), user: 1 },
            ViewRow::Follower { user: 1, at: -5, follower: i64::MAX },
            ViewRow::Following { user: 1, at: 5, following: 2 },
            ViewRow::FollowRequest { user: 1, at: 5, follower: 2 },
            ViewRow::Tweet(Box::new(Tweet { id: 7, ..Tweet::default() })),
            ViewRow::Retweet { id: 8, user: -1, tweet: 7 },
            ViewRow::TimelineEntry { user: 1, reply: true, entry: EntryId::retweet(8), tweet: 7 },
            ViewRow::Count { counter: Counter::Likes, of: 7 },
            ViewRow::Liker { tweet: 7, at: 3, user: -2 },
            ViewRow::Liked { user: -2, tweet: 7 },
            ViewRow::Retweeter { tweet: 7, id: 8, user: 1 },
            ViewRow::Retweeted { user: 1, tweet: 7, id: 8 },
            ViewRow::ReadMark { user: 1, read: i64::MIN },
            ViewRow::Tagged { tag: "日本".to_owned(), tweet: 7 },
            ViewRow::TrendingTag { window: TrendWindow::Day, tag: "日本".to_owned(), authors: 3, uses: u64::MAX },
            ViewRow::TrendingTweet { tweet: 7, likes: 9 },
            ViewRow::Reply { root: 1, path: vec![2, -3, i64::MAX], parent: -3, user: 5 },
            ViewRow::Notification {
                user: 1,
                notice: Notice { order: -9, kind: NoticeKind::Mention, actor: 2, tweet: 3 },
            },
        ];
        for expected in rows {
            let (view, key) = (view(&expected), key(&expected));
            assert_eq!(key.as_ref().first(), Some(&expected.shard()));
            let value = value(&expected, 1).unwrap();
            assert_eq!(row(view, key.as_ref(), &value), Some((expected, 1)));
        }
    }

    #[test]
    fn a_conversation_is_depth_first_and_a_subtree_is_a_prefix() {
        let paths: [&[i64]; 6] = [&[2], &[2, 5], &[2, 5, 9], &[2, 7], &[3], &[3, 4]];
        let keys = paths.map(|path| path_key(1, path));
        assert!(keys.is_sorted());
        let below = |key: &&Key| key.as_ref().starts_with(path_key(1, &[2]).as_ref());
        assert_eq!(keys.iter().filter(below).count(), 4);
    }
}
