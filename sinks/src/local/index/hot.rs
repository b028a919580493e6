//! What is read again and again, decoded and in memory.
//!
//! ```text
//!   reader ─ id ─► there ─────────────────────────────────────────────────────► value
//!                  not there: takes its place ─► snapshot ─► reads ─► puts it ──► value
//!   worker ─ applies a closed time ─► written ─► what it changed goes, places too ─► told
//! ```
//!
//! Why it is correct: the snapshot from which a value is read is taken after its place. A closed time that the snapshot
//! lacks is written after that, and takes away the place or what was put there before anybody is told of the closed time.
//! Both writers of what a value is made of, of rows and of reactions, do so.
//! So a value that is there has all that anybody was told of, and one whose place was taken away is only returned, to who
//! asked before that. A reader who finds the place of another reads for itself: nobody waits.

use std::mem::size_of;
use std::sync::Arc;
use std::time::Duration;

use feedmill_model::{Closed, Counter, Fact, Op, ViewRow};
use fjall::Snapshot;
use quick_cache::Weighter;
use quick_cache::sync::{Cache, GuardResult};

use super::Fault;
use super::facts::Account;
use crate::{CountedTweet, Profile};

/// What a value takes in memory beside itself, about.
const ENTRY_BYTES: usize = 96;
/// What a value of the caches takes on average; it sizes their tables only.
const VALUE_BYTES: usize = 512;
/// What the caches hold at most.
const TWEETS_BYTES: usize = 64 << 20;
const PROFILES_BYTES: usize = 32 << 20;
const ACCOUNTS_BYTES: usize = 32 << 20;
const DELETED_TWEETS_BYTES: usize = 16 << 20;
/// A closed time with more operations than this takes everything away: to look for what each changed would take longer than
/// to read again what is read.
const OPS_MAX: usize = 50_000;

/// Something that takes memory.
pub(super) trait Bytes {
    /// How much, about.
    fn bytes(&self) -> usize;
}

impl Bytes for bool {
    fn bytes(&self) -> usize {
        0
    }
}

impl Bytes for Option<Arc<CountedTweet>> {
    fn bytes(&self) -> usize {
        let text = |tweet: &Arc<CountedTweet>| {
            tweet.tweet.content.len() + tweet.tweet.media.as_ref().map_or(0, |media| media.len())
        };
        self.as_ref().map_or(0, |tweet| size_of::<CountedTweet>() + text(tweet))
    }
}

impl Bytes for Option<Arc<Profile>> {
    fn bytes(&self) -> usize {
        let text = |profile: &Arc<Profile>| {
            let user = &profile.user;
            let optional = [&user.bio, &user.avatar_url].into_iter().flatten().map(|text| text.len()).sum::<usize>();
            user.username.len() + user.display_name.len() + optional
        };
        self.as_ref().map_or(0, |profile| size_of::<Profile>() + text(profile))
    }
}

impl Bytes for Arc<Account> {
    fn bytes(&self) -> usize {
        size_of::<Account>() + self.list_bytes()
    }
}

#[derive(Clone, Copy)]
struct ByBytes;

impl<V: Bytes> Weighter<i64, V> for ByBytes {
    fn weight(&self, _: &i64, value: &V) -> u64 {
        (ENTRY_BYTES + value.bytes()) as u64
    }
}

/// Values by id, those that are read most.
pub(super) struct Hot<V>(Cache<i64, V, ByBytes>);

impl<V: Bytes + Clone> Hot<V> {
    /// Holds values of at most `bytes`.
    fn new(bytes: usize) -> Self {
        Hot(Cache::with_weighter(bytes / (ENTRY_BYTES + VALUE_BYTES), bytes as u64, ByBytes))
    }

    /// The values of `ids`, in their order. Those that are not there are read from one snapshot.
    pub(super) fn get(
        &self,
        ids: &[i64],
        snapshot: impl Fn() -> Snapshot,
        read: impl Fn(&Snapshot, i64) -> Result<V, Fault>,
    ) -> Result<Vec<V>, Fault> {
        let found: Vec<_> = ids.iter().map(|id| self.0.get_value_or_guard(id, Some(Duration::ZERO))).collect();
        let mut at = None;
        let mut values = Vec::with_capacity(ids.len());
        for (id, found) in ids.iter().zip(found) {
            let place = match found {
                GuardResult::Value(value) => {
                    values.push(value);
                    continue;
                }
                GuardResult::Guard(place) => Some(place),
                GuardResult::Timeout => None,
            };
            let value = read(at.get_or_insert_with(&snapshot), *id)?;
            if let Some(place) = place {
                // Its place may have been taken away: then the value is not kept.
                let _ = place.insert(value.clone());
            }
            values.push(value);
        }
        Ok(values)
    }

    fn forget(&self, id: i64) {
        self.0.remove(&id);
    }

    fn forget_all(&self) {
        self.0.clear();
    }
}

/// Rows with their counts; `None` for one that is not there.
pub(super) struct HotRows {
    pub(super) tweets: Hot<Option<Arc<CountedTweet>>>,
    pub(super) profiles: Hot<Option<Arc<Profile>>>,
}

impl HotRows {
    pub(super) fn new() -> Self {
        HotRows { tweets: Hot::new(TWEETS_BYTES), profiles: Hot::new(PROFILES_BYTES) }
    }

    /// To be called when `closed`, of the reactions, is written, in whole or in part.
    pub(super) fn forget_likes(&self, closed: &Closed<ViewRow>) {
        if closed.ops.len() > OPS_MAX {
            self.tweets.forget_all();
            return;
        }
        for (_, Op::Put(row) | Op::Delete(row) | Op::Add(row, _)) in &closed.ops {
            if let ViewRow::Count { of, .. } = row {
                self.tweets.forget(*of);
            }
        }
    }

    /// To be called when `closed`, of the rows, is written, in whole or in part.
    pub(super) fn forget(&self, closed: &Closed<ViewRow>) {
        if closed.ops.len() > OPS_MAX {
            self.tweets.forget_all();
            self.profiles.forget_all();
            return;
        }
        for (_, Op::Put(row) | Op::Delete(row) | Op::Add(row, _)) in &closed.ops {
            match row {
                ViewRow::Tweet(tweet) => self.tweets.forget(tweet.id),
                ViewRow::Profile(user) => self.profiles.forget(user.id),
                ViewRow::Count { counter: Counter::Retweets | Counter::Replies, of } => self.tweets.forget(*of),
                ViewRow::Count { counter: Counter::Followers | Counter::Following | Counter::Tweets, of } => {
                    self.profiles.forget(*of);
                }
                _ => {}
            }
        }
    }
}

/// What the facts say of accounts, and which tweets they call deleted.
pub(super) struct HotFacts {
    pub(super) accounts: Hot<Arc<Account>>,
    pub(super) deleted_tweets: Hot<bool>,
}

impl HotFacts {
    pub(super) fn new() -> Self {
        HotFacts { accounts: Hot::new(ACCOUNTS_BYTES), deleted_tweets: Hot::new(DELETED_TWEETS_BYTES) }
    }

    /// To be called when `closed` is written, in whole or in part.
    pub(super) fn forget(&self, closed: &Closed<Fact>) {
        if closed.ops.len() > OPS_MAX {
            self.accounts.forget_all();
            self.deleted_tweets.forget_all();
            return;
        }
        for (_, Op::Put(fact) | Op::Delete(fact) | Op::Add(fact, _)) in &closed.ops {
            match *fact {
                Fact::Follow { follower: id, .. }
                | Fact::Block { blocker: id, .. }
                | Fact::Mute { muter: id, .. }
                | Fact::Protected(id)
                | Fact::DeletedUser(id) => self.accounts.forget(id),
                Fact::DeletedTweet(id) => self.deleted_tweets.forget(id),
            }
        }
    }
}
