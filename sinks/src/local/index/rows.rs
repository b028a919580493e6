//! Rows and counts: a keyspace a view, each key in the shard of its owner.
//!
//! | keyspace | key after the shard | value |
//! |---|---|---|
//! | `profile`, `tweet` | id | the row (postcard) |
//! | `username` | name | id |
//! | `followers`, `following` | user, at ↓, other ↓ | |
//! | `retweet` | id | user, tweet |
//! | `user_timeline` | user, reply, id ↓, kind ↓ | tweet |
//! | `counts` | counter, id | count, time |
//!
//! ↓ is in descending order, so that a page is one range, newest first. A count carries the time of its last change and
//! ignores what is not after it, so that it is added up exactly once. One that comes down to zero stays, with its time,
//! until the shard's progress on disk has passed it: were it dropped before, a replay would begin at nothing again.

use std::ops::Bound;

use feedmill_model::{Counter, EntryId, EntryKind, Keyed, Op, Position, StoreError, Time, ViewRow};
use fjall::{Database, Keyspace, OwnedWriteBatch, Readable, Snapshot, UserValue};
use serde::de::DeserializeOwned;

use super::key::{Key, Parts};
use super::ledger::{Ledger, Progressed};
use super::{Fault, open_keyspace};
use crate::{CountedTweet, Edge, Profile, TimelineItem};
const PROFILE: &str = "profile";
const USERNAME: &str = "username";
const FOLLOWERS: &str = "followers";
const FOLLOWING: &str = "following";
const TWEET: &str = "tweet";
const RETWEET: &str = "retweet";
const USER_TIMELINE: &str = "user_timeline";
const COUNTS: &str = "counts";

/// The keyspaces of the rows.
pub(super) struct Rows {
    pub(super) ledger: Ledger,
    profile: Keyspace,
    username: Keyspace,
    followers: Keyspace,
    following: Keyspace,
    tweet: Keyspace,
    retweet: Keyspace,
    user_timeline: Keyspace,
    counts: Keyspace,
}

/// Which of the two lists of accounts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum List {
    Followers,
    Following,
}

fn edge_key(user: i64, edge: Edge) -> Key {
    Key::of(user).ascending(user).descending(edge.at).descending(edge.id)
}

fn timeline_key(user: i64, reply: bool, entry: EntryId) -> Key {
    let kind = match entry.kind {
        EntryKind::Retweet => 0,
        EntryKind::Tweet => 1,
    };
    timeline_prefix(user, reply).descending(entry.id).byte(kind)
}

fn timeline_prefix(user: i64, reply: bool) -> Key {
    Key::of(user).ascending(user).byte(u8::from(reply))
}

fn count_key(counter: Counter, of: i64) -> Key {
    Key::of(of).byte(counter as u8).ascending(of)
}

fn encode_two(one: u64, other: u64) -> [u8; 16] {
    (u128::from(one) << 64 | u128::from(other)).to_be_bytes()
}

/// User and other account of a key of a list.
fn decode_edge(key: &[u8]) -> Option<(i64, Edge)> {
    let mut parts = Parts::new(key);
    let (_, user) = (parts.byte()?, parts.ascending()?);
    Some((user, Edge { at: parts.descending()?, id: parts.descending()? }))
}

fn decode_timeline(key: &[u8], value: &[u8]) -> Option<(i64, bool, TimelineItem)> {
    let mut parts = Parts::new(key);
    let (_, user, reply, id) = (parts.byte()?, parts.ascending()?, parts.byte()? == 1, parts.descending()?);
    let entry = if parts.byte()? == 0 { EntryId::retweet(id) } else { EntryId::tweet(id) };
    Some((user, reply, TimelineItem { entry, tweet: decode_id(value)? }))
}

fn decode_count(key: &[u8], value: &[u8]) -> Option<(Counter, i64, i64)> {
    let mut parts = Parts::new(key);
    let (_, number) = (parts.byte()?, parts.byte()?);
    let counters =
        [Counter::Followers, Counter::Following, Counter::Tweets, Counter::Likes, Counter::Retweets, Counter::Replies];
    let counter = counters.into_iter().find(|counter| *counter as u8 == number)?;
    Some((counter, parts.ascending()?, decode_two(value)?.0 as i64))
}

fn decode_two(value: &[u8]) -> Option<(u64, u64)> {
    let mut parts = Parts::new(value);
    Some((parts.number()?, parts.number()?))
}

fn decode_id(value: &[u8]) -> Option<i64> {
    Parts::new(value).number().map(|id| id as i64)
}

fn undecodable<T>(keyspace: &'static str) -> impl FnOnce() -> Result<T, Fault> {
    move || Err(Fault::Undecodable { keyspace })
}

impl Rows {
    pub(super) fn open(db: &Database, ledger: Ledger) -> fjall::Result<Self> {
        let open = |name| open_keyspace(db, &ledger, name);
        Ok(Rows {
            profile: open(PROFILE)?,
            username: open(USERNAME)?,
            followers: open(FOLLOWERS)?,
            following: open(FOLLOWING)?,
            tweet: open(TWEET)?,
            retweet: open(RETWEET)?,
            user_timeline: open(USER_TIMELINE)?,
            counts: open(COUNTS)?,
            ledger,
        })
    }

    /// Where a row lives.
    fn place(&self, row: &ViewRow) -> (&Keyspace, Key) {
        match row {
            ViewRow::Profile(user) => (&self.profile, Key::of(user.id).ascending(user.id)),
            ViewRow::Username { name, .. } => (&self.username, Key::in_shard(row.shard()).text(name)),
            ViewRow::Follower { user, at, follower } => {
                (&self.followers, edge_key(*user, Edge { at: *at, id: *follower }))
            }
            ViewRow::Following { user, at, following } => {
                (&self.following, edge_key(*user, Edge { at: *at, id: *following }))
            }
            ViewRow::Tweet(tweet) => (&self.tweet, Key::of(tweet.id).ascending(tweet.id)),
            ViewRow::Retweet { id, .. } => (&self.retweet, Key::of(*id).ascending(*id)),
            ViewRow::TimelineEntry { user, reply, entry, .. } => {
                (&self.user_timeline, timeline_key(*user, *reply, *entry))
            }
            ViewRow::Count { counter, of } => (&self.counts, count_key(*counter, *of)),
        }
    }

    /// Puts one operation of the closed time `time` into the batch.
    pub(super) fn write(
        &self,
        op: &Op<ViewRow>,
        time: Time,
        batch: &mut OwnedWriteBatch,
        shard: &mut Progressed,
    ) -> Result<(), Fault> {
        match op {
            Op::Add(ViewRow::Count { counter, of }, diff) => {
                self.add(count_key(*counter, *of), *diff, time, batch, shard)?;
            }
            Op::Put(row) | Op::Add(row, 1..) => {
                let (keyspace, key) = self.place(row);
                batch.insert(keyspace, key, encode(row, time)?);
            }
            Op::Delete(row) | Op::Add(row, _) => {
                let (keyspace, key) = self.place(row);
                batch.remove(keyspace, key);
            }
        }
        Ok(())
    }

    fn add(
        &self,
        key: Key,
        diff: i64,
        time: Time,
        batch: &mut OwnedWriteBatch,
        shard: &mut Progressed,
    ) -> Result<(), Fault> {
        let (count, last) = self.count_and_time(self.counts.get(&key)?)?;
        if last.is_some_and(|last| last >= time) {
            return Ok(());
        }
        let count = count.wrapping_add(diff);
        if count == 0 {
            shard.is_zero(key.as_ref(), time);
        }
        batch.insert(&self.counts, key, encode_two(count as u64, time));
        Ok(())
    }

    fn count_and_time(&self, value: Option<UserValue>) -> Result<(i64, Option<Time>), Fault> {
        let Some(value) = value else { return Ok((0, None)) };
        let (count, time) = decode_two(&value).map_or_else(undecodable(COUNTS), Ok)?;
        Ok((count as i64, Some(time)))
    }

    /// Drops the counts that are zero since a time that the shard's progress on disk has passed.
    pub(super) fn drop_zeros(&self, db: &Database, durable: &[Option<Position>]) -> Result<(), StoreError> {
        let failed = |fault: Fault| fault.store("rows", "drop counts that are zero");
        for (shard, durable) in durable.iter().enumerate() {
            let Some((mut shard, durable)) = self.ledger.shard(shard).zip(*durable) else { continue };
            let mut batch = db.batch();
            while let Some((since, key)) = shard.next_zero(durable.time) {
                let value = self.counts.get(&key).map_err(|error| failed(error.into()))?;
                if self.count_and_time(value).map_err(failed)? == (0, Some(since)) {
                    batch.remove(&self.counts, key);
                }
            }
            batch.commit().map_err(|error| failed(error.into()))?;
        }
        Ok(())
    }

    fn count(&self, at: &Snapshot, counter: Counter, of: i64) -> Result<i64, Fault> {
        Ok(self.count_and_time(at.get(&self.counts, count_key(counter, of))?)?.0)
    }

    pub(super) fn user_by_name(&self, at: &Snapshot, name: &str) -> Result<Option<i64>, Fault> {
        let row = ViewRow::Username { name: name.to_ascii_lowercase(), user: 0 };
        let (keyspace, key) = self.place(&row);
        let Some(value) = at.get(keyspace, key)? else { return Ok(None) };
        decode_id(&value).map_or_else(undecodable(USERNAME), |id| Ok(Some(id)))
    }

    pub(super) fn profile(&self, at: &Snapshot, id: i64) -> Result<Option<Profile>, Fault> {
        let Some(value) = at.get(&self.profile, Key::of(id).ascending(id))? else { return Ok(None) };
        Ok(Some(Profile {
            user: decode_row(PROFILE, &value)?,
            followers: self.count(at, Counter::Followers, id)?,
            following: self.count(at, Counter::Following, id)?,
            tweets: self.count(at, Counter::Tweets, id)?,
        }))
    }

    pub(super) fn tweet(&self, at: &Snapshot, id: i64) -> Result<Option<CountedTweet>, Fault> {
        let Some(value) = at.get(&self.tweet, Key::of(id).ascending(id))? else { return Ok(None) };
        Ok(Some(CountedTweet {
            tweet: decode_row(TWEET, &value)?,
            likes: self.count(at, Counter::Likes, id)?,
            retweets: self.count(at, Counter::Retweets, id)?,
            replies: self.count(at, Counter::Replies, id)?,
        }))
    }

    pub(super) fn retweet(&self, at: &Snapshot, id: i64) -> Result<Option<(i64, i64)>, Fault> {
        let Some(value) = at.get(&self.retweet, Key::of(id).ascending(id))? else { return Ok(None) };
        let (user, tweet) = decode_two(&value).map_or_else(undecodable(RETWEET), Ok)?;
        Ok(Some((user as i64, tweet as i64)))
    }

    /// At most `limit` accounts of the list of `user` after `after`.
    pub(super) fn edges(
        &self,
        at: &Snapshot,
        list: List,
        user: i64,
        after: Option<Edge>,
        limit: usize,
    ) -> Result<Vec<Edge>, Fault> {
        let (keyspace, name) = match list {
            List::Followers => (&self.followers, FOLLOWERS),
            List::Following => (&self.following, FOLLOWING),
        };
        let all = Key::of(user).ascending(user);
        let from = after.map_or_else(|| all.clone(), |after| edge_key(user, after));
        let rows = at.range(keyspace, (Bound::Excluded(from), Bound::Excluded(all.end())));
        let edge = |row: fjall::Guard| match decode_edge(&row.key()?) {
            Some((_, edge)) => Ok(edge),
            None => Err(Fault::Undecodable { keyspace: name }),
        };
        rows.take(limit).map(edge).collect()
    }

    /// At most `limit` entries or replies of `user` before `before`.
    pub(super) fn timeline(
        &self,
        at: &Snapshot,
        user: i64,
        replies: bool,
        before: Option<EntryId>,
        limit: usize,
    ) -> Result<Vec<TimelineItem>, Fault> {
        let all = timeline_prefix(user, replies);
        let from = before.map_or_else(|| all.clone(), |before| timeline_key(user, replies, before));
        let rows = at.range(&self.user_timeline, (Bound::Excluded(from), Bound::Excluded(all.end())));
        let item = |row: fjall::Guard| {
            let (key, value) = row.into_inner()?;
            match decode_timeline(&key, &value) {
                Some((_, _, item)) => Ok(item),
                None => Err(Fault::Undecodable { keyspace: USER_TIMELINE }),
            }
        };
        rows.take(limit).map(item).collect()
    }

    /// Calls `each` with every row of a view, counts with how many.
    pub(super) fn scan(&self, at: &Snapshot, view: RowView, each: &mut dyn FnMut(ViewRow, i64)) -> Result<(), Fault> {
        let (keyspace, name) = match view {
            RowView::Profile => (&self.profile, PROFILE),
            RowView::Username => (&self.username, USERNAME),
            RowView::Followers => (&self.followers, FOLLOWERS),
            RowView::Following => (&self.following, FOLLOWING),
            RowView::Tweet => (&self.tweet, TWEET),
            RowView::Retweet => (&self.retweet, RETWEET),
            RowView::UserTimeline => (&self.user_timeline, USER_TIMELINE),
            RowView::Counts => (&self.counts, COUNTS),
        };
        for row in at.iter(keyspace) {
            let (key, value) = row.into_inner()?;
            let (row, count) = decode(view, &key, &value).map_or_else(undecodable(name), Ok)?;
            each(row, count);
        }
        Ok(())
    }
}

/// A view that has a keyspace of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum RowView {
    Profile,
    Username,
    Followers,
    Following,
    Tweet,
    Retweet,
    UserTimeline,
    Counts,
}

fn encode(row: &ViewRow, time: Time) -> Result<UserValue, Fault> {
    Ok(match row {
        ViewRow::Profile(user) => postcard::to_allocvec(user)?.into(),
        ViewRow::Tweet(tweet) => postcard::to_allocvec(tweet)?.into(),
        ViewRow::Username { user, .. } => user.to_be_bytes().into(),
        ViewRow::Retweet { user, tweet, .. } => encode_two(*user as u64, *tweet as u64).into(),
        ViewRow::TimelineEntry { tweet, .. } => tweet.to_be_bytes().into(),
        ViewRow::Follower { .. } | ViewRow::Following { .. } => UserValue::from([]),
        ViewRow::Count { .. } => encode_two(1, time).into(),
    })
}

fn decode_row<T: DeserializeOwned>(keyspace: &'static str, value: &[u8]) -> Result<T, Fault> {
    postcard::from_bytes(value).map_err(|_| Fault::Undecodable { keyspace })
}

/// The row, and the count if it is one.
fn decode(view: RowView, key: &[u8], value: &[u8]) -> Option<(ViewRow, i64)> {
    let row = match view {
        RowView::Profile => ViewRow::Profile(postcard::from_bytes(value).ok()?),
        RowView::Tweet => ViewRow::Tweet(postcard::from_bytes(value).ok()?),
        RowView::Username => {
            let name = String::from_utf8(key.get(1..)?.to_vec()).ok()?;
            ViewRow::Username { name, user: decode_id(value)? }
        }
        RowView::Followers => {
            let (user, edge) = decode_edge(key)?;
            ViewRow::Follower { user, at: edge.at, follower: edge.id }
        }
        RowView::Following => {
            let (user, edge) = decode_edge(key)?;
            ViewRow::Following { user, at: edge.at, following: edge.id }
        }
        RowView::Retweet => {
            let id = Parts::new(key.get(1..)?).ascending()?;
            let (user, tweet) = decode_two(value)?;
            ViewRow::Retweet { id, user: user as i64, tweet: tweet as i64 }
        }
        RowView::UserTimeline => {
            let (user, reply, item) = decode_timeline(key, value)?;
            ViewRow::TimelineEntry { user, reply, entry: item.entry, tweet: item.tweet }
        }
        RowView::Counts => {
            let (counter, of, count) = decode_count(key, value)?;
            return Some((ViewRow::Count { counter, of }, count));
        }
    };
    Some((row, 1))
}
