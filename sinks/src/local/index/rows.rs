//! Rows and counts of a phase, in a keyspace a view ([`layout`]).
//!
//! A count carries the time of its last change and ignores what is not after it, so that it is added up exactly once. One
//! that comes down to zero stays, with its time, until the shard's progress on disk has passed it: were it dropped before,
//! a replay would begin at nothing again.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Bound;
use std::panic::resume_unwind;
use std::sync::Arc;
use std::thread;

use feedmill_model::{
    Counter, EntryId, Notice, Op, Phase, Position, Shard, StoreError, Time, TrendWindow, View, ViewRow, name_owner,
    shard_of,
};
use fjall::{Database, Keyspace, OwnedWriteBatch, Readable, Snapshot, UserKey, UserValue};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;

use super::bulk::{Change, Due, bits, ingest, put};
use super::ledger::{Ledger, Progressed, Writes};
use super::{Fault, open_keyspace};
use crate::key::Key;
use crate::{CountedTweet, Edge, Profile, Reply, TimelineItem, TrendingTag, TrendingTweet, layout};

/// What a user likes is read at once between the first and the last tweet of a page, as far as this many a tweet: a step costs
/// a fraction of a look-up.
const OTHERS_PER_TWEET: usize = 8;
const PATHS: &str = "conversation_paths";

/// The keyspaces of the rows, or of the reactions.
pub(super) struct Rows {
    pub(super) ledger: Ledger,
    keyspaces: BTreeMap<View, Keyspace>,
    /// The replies of [`View::Conversation`] by their ids, beside that view.
    paths: Option<Keyspace>,
    /// The view that has its counts.
    counts: View,
}

impl Rows {
    /// The rows.
    pub(super) fn open(db: &Database, ledger: Ledger) -> fjall::Result<Self> {
        let paths = Some(open_keyspace(db, &ledger, PATHS)?);
        Rows::open_views(db, ledger, Phase::Rows, paths, View::Counts)
    }

    /// The reactions.
    pub(super) fn open_reactions(db: &Database, ledger: Ledger) -> fjall::Result<Self> {
        Rows::open_views(db, ledger, Phase::Reactions, None, View::LikeCounts)
    }

    fn open_views(
        db: &Database,
        ledger: Ledger,
        phase: Phase,
        paths: Option<Keyspace>,
        counts: View,
    ) -> fjall::Result<Self> {
        let views = View::ALL.into_iter().filter(|view| view.phase() == phase);
        let keyspaces = views.map(|view| Ok((view, open_keyspace(db, &ledger, view.name())?)));
        Ok(Rows { keyspaces: keyspaces.collect::<fjall::Result<_>>()?, paths, counts, ledger })
    }

    fn keyspace(&self, view: View) -> Result<&Keyspace, Fault> {
        self.keyspaces.get(&view).ok_or(Fault::Elsewhere { view: view.name() })
    }

    /// What an operation of the closed time `time` makes of the key of its row; `None` if a count has it already.
    fn change(&self, time: Time, op: &Op<ViewRow>, shard: &mut Progressed) -> Result<Option<(View, Change)>, Fault> {
        match op {
            Op::Add(ViewRow::Count { counter, of }, diff) => {
                let change = self.change_of_count(time, *counter, *of, *diff, shard)?;
                Ok(change.map(|change| (self.counts, change)))
            }
            Op::Put(row) | Op::Delete(row) | Op::Add(row, _) => Ok(Some((layout::view(row), change_of_row(time, op)?))),
        }
    }

    /// What adding `diff` makes of a count; nothing if it has the closed time.
    fn change_of_count(
        &self,
        time: Time,
        counter: Counter,
        of: i64,
        diff: i64,
        shard: &mut Progressed,
    ) -> Result<Option<Change>, Fault> {
        let key = layout::count_key(counter, of);
        let (count, last) = count_and_time(self.keyspace(counter.view())?.get(&key)?)?;
        if last.is_some_and(|last| last >= time) {
            return Ok(None);
        }
        let count = count.wrapping_add(diff);
        if count == 0 {
            shard.is_zero(key.as_ref(), time);
        }
        Ok(Some((key, Some(layout::two(count as u64, time).into()))))
    }

    /// Drops the counts that are zero since a time that the shard's progress on disk has passed.
    pub(super) fn drop_zeros(&self, db: &Database, durable: &[Option<Position>]) -> Result<(), StoreError> {
        let failed = |fault: Fault| fault.store("index", "drop counts that are zero");
        let counts = self.keyspace(self.counts).map_err(failed)?;
        for (shard, durable) in durable.iter().enumerate() {
            let Some((mut shard, durable)) = self.ledger.free_shard(shard).zip(*durable) else { continue };
            let mut batch = db.batch();
            while let Some((since, key)) = shard.next_zero(durable.time) {
                let value = counts.get(&key).map_err(|error| failed(error.into()))?;
                if count_and_time(value).map_err(failed)? == (0, Some(since)) {
                    batch.remove(counts, key);
                }
            }
            batch.commit().map_err(|error| failed(error.into()))?;
        }
        Ok(())
    }

    fn get(&self, at: &Snapshot, view: View, key: &Key) -> Result<Option<UserValue>, Fault> {
        Ok(at.get(self.keyspace(view)?, key)?)
    }

    fn count(&self, at: &Snapshot, counter: Counter, of: i64) -> Result<i64, Fault> {
        Ok(count_and_time(self.get(at, counter.view(), &layout::count_key(counter, of))?)?.0)
    }

    /// The id that stands under a key.
    fn id(&self, at: &Snapshot, view: View, key: &Key) -> Result<Option<i64>, Fault> {
        let Some(value) = self.get(at, view, key)? else { return Ok(None) };
        decoded(view, layout::id(&value)).map(Some)
    }

    pub(super) fn user_by_name(&self, at: &Snapshot, name: &str) -> Result<Option<i64>, Fault> {
        let name = name.to_ascii_lowercase();
        self.id(at, View::Username, &Key::in_shard(shard_of(name_owner(&name))).text(&name))
    }

    pub(super) fn profile(&self, at: &Snapshot, id: i64) -> Result<Option<Arc<Profile>>, Fault> {
        let Some(value) = self.get(at, View::Profile, &layout::id_key(id))? else { return Ok(None) };
        Ok(Some(Arc::new(Profile {
            user: decoded_row(View::Profile, &value)?,
            followers: self.count(at, Counter::Followers, id)?,
            following: self.count(at, Counter::Following, id)?,
            tweets: self.count(at, Counter::Tweets, id)?,
        })))
    }

    /// A tweet with its counts, of which the reactions have one.
    pub(super) fn tweet(&self, at: &Snapshot, id: i64, reactions: &Rows) -> Result<Option<Arc<CountedTweet>>, Fault> {
        let Some(value) = self.get(at, View::Tweet, &layout::id_key(id))? else { return Ok(None) };
        Ok(Some(Arc::new(CountedTweet {
            tweet: decoded_row(View::Tweet, &value)?,
            likes: reactions.count(at, Counter::Likes, id)?,
            retweets: self.count(at, Counter::Retweets, id)?,
            replies: self.count(at, Counter::Replies, id)?,
        })))
    }

    pub(super) fn retweet(&self, at: &Snapshot, id: i64) -> Result<Option<(i64, i64)>, Fault> {
        let Some(value) = self.get(at, View::Retweet, &layout::id_key(id))? else { return Ok(None) };
        let (user, tweet) = decoded(View::Retweet, layout::of_two(&value))?;
        Ok(Some((user as i64, tweet as i64)))
    }

    /// Which of the tweets `user` likes.
    pub(super) fn liked(&self, at: &Snapshot, user: i64, tweets: &[i64]) -> Result<Vec<bool>, Fault> {
        let likes = self.below(at, View::Liked, user, tweets)?;
        Ok(tweets.iter().map(|tweet| likes.contains_key(tweet)).collect())
    }

    /// The retweets by which `user` retweeted the tweets, if so.
    pub(super) fn retweeted(&self, at: &Snapshot, user: i64, tweets: &[i64]) -> Result<Vec<Option<i64>>, Fault> {
        let retweets = self.below(at, View::Retweeted, user, tweets)?;
        let id = |tweet| retweets.get(tweet).map(|value| decoded(View::Retweeted, layout::id(value))).transpose();
        tweets.iter().map(id).collect()
    }

    /// What stands under the keys of `user` and each of `tweets`. They are read in one go from the first to the last, and
    /// one by one after as many others were found as that would take.
    fn below(&self, at: &Snapshot, view: View, user: i64, tweets: &[i64]) -> Result<HashMap<i64, UserValue>, Fault> {
        let key = |tweet: i64| layout::id_key(user).ascending(tweet);
        let mut found = HashMap::new();
        let (Some(first), Some(last)) = (tweets.iter().min(), tweets.iter().max()) else { return Ok(found) };
        let keyspace = self.keyspace(view)?;
        let mut reached = *first;
        for (looked_at, row) in at.range(keyspace, key(*first)..=key(*last)).enumerate() {
            if looked_at == OTHERS_PER_TWEET * tweets.len() {
                for tweet in tweets.iter().filter(|tweet| **tweet > reached) {
                    found.extend(at.get(keyspace, key(*tweet))?.map(|value| (*tweet, value)));
                }
                break;
            }
            let (key, value) = row.into_inner()?;
            reached = decoded(view, layout::tweet_below(&key))?;
            found.insert(reached, value);
        }
        Ok(found)
    }

    pub(super) fn read_mark(&self, at: &Snapshot, user: i64) -> Result<Option<i64>, Fault> {
        self.id(at, View::ReadMarks, &layout::id_key(user))
    }

    /// What `decode` makes of at most `limit` rows below `all`, in the order of keys, after the key `after`.
    fn page<T>(
        &self,
        at: &Snapshot,
        view: View,
        (all, after): (Key, Option<Key>),
        limit: usize,
        decode: impl Fn(&UserKey, &UserValue) -> Option<T>,
    ) -> Result<Vec<T>, Fault> {
        let from = after.unwrap_or_else(|| all.clone());
        let rows = at.range(self.keyspace(view)?, (Bound::Excluded(from), Bound::Excluded(all.end())));
        let row = |row: fjall::Guard| {
            let (key, value) = row.into_inner()?;
            decoded(view, decode(&key, &value))
        };
        rows.take(limit).map(row).collect()
    }

    /// At most `limit` edges of a list of `of` after `after`.
    pub(super) fn edges(
        &self,
        at: &Snapshot,
        list: View,
        of: i64,
        after: Option<Edge>,
        limit: usize,
    ) -> Result<Vec<Edge>, Fault> {
        let range = (layout::id_key(of), after.map(|after| layout::edge_key(of, after)));
        self.page(at, list, range, limit, |key, _| layout::edge(key).map(|(_, edge)| edge))
    }

    /// At most `limit` retweets of `tweet` older than `before`, with who retweeted.
    pub(super) fn retweeters(
        &self,
        at: &Snapshot,
        tweet: i64,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<(i64, i64)>, Fault> {
        let range = (layout::id_key(tweet), before.map(|before| layout::id_key(tweet).descending(before)));
        self.page(at, View::Retweeters, range, limit, |key, value| {
            layout::retweeter(key, value).map(|(_, id, user)| (id, user))
        })
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
        let before = before.map(|before| layout::timeline_key(user, replies, before));
        let range = (layout::timeline_prefix(user, replies), before);
        self.page(at, View::UserTimeline, range, limit, |key, value| {
            layout::timeline_item(key, value).map(|(_, _, item)| item)
        })
    }

    /// At most `limit` tweets with `tag`, older than `before`.
    pub(super) fn tagged(
        &self,
        at: &Snapshot,
        tag: &str,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<i64>, Fault> {
        let range = (layout::tag_prefix(tag), before.map(|before| layout::tag_prefix(tag).descending(before)));
        self.page(at, View::Hashtag, range, limit, |key, _| layout::tagged(key).map(|(_, tweet)| tweet))
    }

    /// The tags of a window, in no particular order.
    pub(super) fn trending_tags(&self, at: &Snapshot, window: TrendWindow) -> Result<Vec<TrendingTag>, Fault> {
        let rows = at.prefix(self.keyspace(View::TrendingHashtags)?, layout::trend_prefix(window));
        let tag = |row: fjall::Guard| {
            let (key, value) = row.into_inner()?;
            let row = layout::row(View::TrendingHashtags, &key, &value);
            decoded(
                View::TrendingHashtags,
                row.and_then(|(row, _)| match row {
                    ViewRow::TrendingTag { tag, authors, uses, .. } => Some(TrendingTag { tag, authors, uses }),
                    _ => None,
                }),
            )
        };
        rows.map(tag).collect()
    }

    /// The tweets that trend, in no particular order.
    pub(super) fn trending_tweets(&self, at: &Snapshot) -> Result<Vec<TrendingTweet>, Fault> {
        let mut tweets = Vec::new();
        self.scan(at, View::TrendingTweets, &mut |row, _| {
            if let ViewRow::TrendingTweet { tweet, likes } = row {
                tweets.push(TrendingTweet { tweet, likes });
            }
        })?;
        Ok(tweets)
    }

    /// At most `limit` replies below the one at `under` (or the root), depth first, after the one at `after`.
    pub(super) fn replies(
        &self,
        at: &Snapshot,
        root: i64,
        under: &[i64],
        after: Option<&[i64]>,
        limit: usize,
    ) -> Result<Vec<Reply>, Fault> {
        let range = (layout::path_key(root, under), after.map(|after| layout::path_key(root, after)));
        self.page(at, View::Conversation, range, limit, |key, value| {
            match layout::row(View::Conversation, key, value)?.0 {
                ViewRow::Reply { path, parent, user, .. } => Some(Reply { path, parent, user }),
                _ => None,
            }
        })
    }

    /// The reply of this id in the thread `root`.
    pub(super) fn reply(&self, at: &Snapshot, root: i64, id: i64) -> Result<Option<Reply>, Fault> {
        let Some(paths) = &self.paths else { return Err(Fault::Elsewhere { view: PATHS }) };
        let mut found = at.prefix(paths, layout::id_key(root).ascending(id));
        let Some(row) = found.next() else { return Ok(None) };
        let (key, value) = row.into_inner()?;
        layout::by_reply(&key, &value).map(Some).ok_or(Fault::Undecodable { keyspace: PATHS })
    }

    /// At most `limit` notifications of `user` after `after`.
    pub(super) fn notifications(
        &self,
        at: &Snapshot,
        user: i64,
        after: Option<&Notice>,
        limit: usize,
    ) -> Result<Vec<Notice>, Fault> {
        let range = (layout::id_key(user), after.map(|after| layout::notice_key(user, after)));
        self.page(at, View::Notifications, range, limit, |key, _| layout::notice(key).map(|(_, notice)| notice))
    }

    /// Calls `each` with every row of a view, counts with how many.
    pub(super) fn scan(&self, at: &Snapshot, view: View, each: &mut dyn FnMut(ViewRow, i64)) -> Result<(), Fault> {
        for row in at.iter(self.keyspace(view)?) {
            let (key, value) = row.into_inner()?;
            let (row, count) = decoded(view, layout::row(view, &key, &value))?;
            each(row, count);
        }
        Ok(())
    }
}

/// What an operation makes of a row that is no count.
fn change_of_row(time: Time, op: &Op<ViewRow>) -> Result<Change, Fault> {
    Ok(match op {
        Op::Put(row) | Op::Add(row, 1..) => (layout::key(row), Some(layout::value(row, time)?)),
        Op::Delete(row) | Op::Add(row, _) => (layout::key(row), None),
    })
}

/// What an operation on a reply makes of its place by its id.
fn change_of_path(op: &Op<ViewRow>, time: Time) -> Result<Option<Change>, Fault> {
    let (Op::Put(row) | Op::Delete(row) | Op::Add(row, _)) = op;
    let ViewRow::Reply { root, path, .. } = row else { return Ok(None) };
    let there = matches!(op, Op::Put(_) | Op::Add(_, 1..)).then(|| layout::value(row, time)).transpose()?;
    Ok(Some((layout::by_reply_key(*root, path), there)))
}

impl Writes<ViewRow> for Rows {
    fn write(
        &self,
        time: Time,
        op: &Op<ViewRow>,
        batch: &mut OwnedWriteBatch,
        shard: &mut Progressed,
    ) -> Result<(), Fault> {
        if let Some((view, change)) = self.change(time, op, shard)? {
            put(batch, self.keyspace(view)?, change);
        }
        if let (Some(paths), Some(change)) = (&self.paths, change_of_path(op, time)?) {
            put(batch, paths, change);
        }
        Ok(())
    }

    fn ingest(&self, time: Time, ops: &[(Shard, Op<ViewRow>)], due: &mut Due<'_>) -> Result<(), Fault> {
        let shards = bits(due);
        let mut views: BTreeSet<View> = ops.iter().map(|(_, op)| view_of(op)).collect();
        let has_counts = views.remove(&self.counts);
        // Each thread takes the next view when it is through with one; where one fails nothing is left for the other.
        let views = Mutex::new(views);
        let next = || views.lock().pop_first();
        let failed = |_: &Fault| views.lock().clear();
        let write = || {
            while let Some(view) = next() {
                ingest(self.keyspace(view)?, ops, shards, |_, op| {
                    (view_of(op) == view).then(|| change_of_row(time, op)).transpose()
                })?;
                if let Some(paths) = self.paths.as_ref().filter(|_| view == View::Conversation) {
                    ingest(paths, ops, shards, |_, op| change_of_path(op, time))?;
                }
            }
            Ok(())
        };
        let of_rows = || write().inspect_err(failed);
        thread::scope(|scope| {
            let beside = scope.spawn(of_rows);
            let counts = self.keyspace(self.counts)?;
            if has_counts {
                ingest(counts, ops, shards, |shard, op| {
                    let shard = due.get_mut(usize::from(shard)).and_then(Option::as_mut);
                    let Some(shard) = shard.filter(|_| view_of(op) == self.counts) else { return Ok(None) };
                    Ok(self.change(time, op, shard)?.map(|(_, change)| change))
                })
                .inspect_err(failed)?;
            }
            of_rows()?;
            beside.join().unwrap_or_else(|panic| resume_unwind(panic))
        })
    }
}

/// Where the row of an operation is kept.
fn view_of(op: &Op<ViewRow>) -> View {
    let (Op::Put(row) | Op::Delete(row) | Op::Add(row, _)) = op;
    layout::view(row)
}

fn decoded<T>(view: View, decoded: Option<T>) -> Result<T, Fault> {
    decoded.ok_or(Fault::Undecodable { keyspace: view.name() })
}

fn decoded_row<T: DeserializeOwned>(view: View, value: &[u8]) -> Result<T, Fault> {
    decoded(view, postcard::from_bytes(value).ok())
}

fn count_and_time(value: Option<UserValue>) -> Result<(i64, Option<Time>), Fault> {
    let Some(value) = value else { return Ok((0, None)) };
    let (count, time) = decoded(View::Counts, layout::of_two(&value))?;
    Ok((count as i64, Some(time)))
}
