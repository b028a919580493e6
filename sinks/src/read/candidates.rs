//! From entries that a page may show to the tweets that it does.
//!
//! Rows first, facts last: what a fact forbids cannot have come in between. An entry whose row is not there any more is
//! left out.
//!
//! Workers apply a closed time side by side, each in its shards, so a timeline may name a tweet or an account of which the
//! row follows a moment later. A row that is missing may be such a *late* one until the stores have ended the last time that
//! may have begun when it was missed. For a page late rows are waited for, so that what it names is not left out because
//! another worker applies it; who comes again anyway is told of them. One that the facts call deleted is not late.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Duration;

use feedmill_model::{EntryId, EntryKind, Phase};
use futures::future::BoxFuture;

use super::merge::{Candidate, Merge};
use super::{CANDIDATES_PER_ITEM, TimelineTweet, Verdict};
use crate::{CountedTweet, Profile, ReadError, Relationship, Views};

/// How long a row may be missing while a closed time is being applied, and how often it is looked for.
const ROW_WAITS: usize = 20;
const ROW_WAIT: Duration = Duration::from_millis(10);
/// The same where others write: nobody tells when they have, and each look asks a server.
const FOLLOWED_WAITS: usize = 4;
const FOLLOWED_WAIT: Duration = Duration::from_millis(50);

/// What is done about late rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Late {
    /// They are waited for, but not for long.
    Awaited,
    /// They are told of at once.
    Told,
}

/// Who looks, and at what.
#[derive(Debug)]
pub(super) enum Audience<'a> {
    /// The viewer's own home timeline: accounts followed and one's own, without those muted. Of the accounts followed
    /// only those of the set, if there is one.
    Home { viewer: i64, within: Option<&'a HashSet<i64>> },
    /// What was asked for by its owner's name, or by what it answers: mutes do not matter.
    Asked { viewer: Option<i64> },
    /// What nobody in particular was asked for, by its tag or because it trends: without accounts that are muted.
    Discovery { viewer: Option<i64> },
}

impl Audience<'_> {
    const fn viewer(&self) -> Option<i64> {
        match self {
            Audience::Home { viewer, .. } => Some(*viewer),
            Audience::Asked { viewer } | Audience::Discovery { viewer } => *viewer,
        }
    }

    /// Whether what `author` wrote may be shown, in an entry of the author or of someone else.
    fn shows(&self, author: i64, relationship: &Relationship) -> bool {
        let own = self.viewer() == Some(author);
        let muted = !matches!(self, Audience::Asked { .. }) && relationship.mutes;
        relationship.may_read(own) && (own || !muted)
    }

    /// Whether entries of `by` belong in the timeline.
    fn includes(&self, by: i64, relationship: &Relationship) -> bool {
        match self {
            Audience::Home { viewer, .. } if *viewer == by => true,
            Audience::Home { within, .. } => {
                relationship.following == Some(true) && within.is_none_or(|within| within.contains(&by))
            }
            Audience::Asked { .. } | Audience::Discovery { .. } => true,
        }
    }
}

/// What a page shows, and how far it looked.
pub(super) struct Shown {
    pub items: Vec<TimelineTweet>,
    /// Entries of which rows are late.
    pub late: Vec<EntryId>,
    /// The last entry that was looked at.
    pub last: Option<EntryId>,
    /// Whether there may be more.
    pub more: bool,
}

/// Where a page's candidates come from.
pub(super) trait Candidates: Send {
    /// What is done about late rows of them.
    const LATE: Late = Late::Awaited;

    /// The next candidates, `count` of them unless there are no more.
    fn take(&mut self, count: usize) -> impl Future<Output = Result<Vec<Candidate>, ReadError>> + Send;

    /// Whether there may be more.
    fn more(&self) -> bool;
}

impl Candidates for Merge<'_> {
    async fn take(&mut self, count: usize) -> Result<Vec<Candidate>, ReadError> {
        let mut taken = Vec::new();
        while taken.len() < count
            && let Some(candidate) = self.next().await?
        {
            taken.push(candidate);
        }
        Ok(taken)
    }

    fn more(&self) -> bool {
        !self.is_empty()
    }
}

/// Takes candidates until `limit` may be shown, [`CANDIDATES_PER_ITEM`] times as many were looked at, or no more are
/// left. `is_new` has the last word on what else may be shown, and is asked in order.
pub(super) async fn show<C: Candidates>(
    views: &dyn Views,
    audience: &Audience<'_>,
    candidates: &mut C,
    limit: usize,
    mut is_new: impl FnMut(&TimelineTweet) -> bool + Send,
) -> Result<Shown, ReadError> {
    let limit = limit.max(1);
    let mut may_look_at = limit.saturating_mul(CANDIDATES_PER_ITEM);
    let mut shown = Shown { items: Vec::new(), late: Vec::new(), last: None, more: true };
    while shown.more && shown.items.len() < limit && may_look_at > 0 {
        let missing = limit - shown.items.len();
        let taken = candidates.take((missing + missing / 8).min(may_look_at)).await?;
        may_look_at -= taken.len();
        shown.more = candidates.more();
        let mut judged = judge(views, audience, &taken, C::LATE).await?.into_iter();
        for (candidate, verdict) in taken.iter().zip(judged.by_ref()) {
            shown.last = Some(candidate.entry);
            match verdict {
                Verdict::Shown(tweet) => shown.items.extend(Some(tweet).filter(&mut is_new)),
                Verdict::Late => shown.late.push(candidate.entry),
                Verdict::Hidden | Verdict::Missing => {}
            }
            if shown.items.len() == limit {
                break;
            }
        }
        shown.more |= judged.len() > 0;
    }
    Ok(shown)
}

/// For each candidate the tweet, if it may be shown. Late rows are waited for.
pub(super) async fn shown(
    views: &dyn Views,
    audience: &Audience<'_>,
    candidates: &[Candidate],
) -> Result<Vec<Option<TimelineTweet>>, ReadError> {
    let judged = judge(views, audience, candidates, Late::Awaited).await?;
    Ok(judged.into_iter().map(Verdict::shown).collect())
}

/// For each candidate what becomes of it.
pub(super) async fn judge(
    views: &dyn Views,
    audience: &Audience<'_>,
    candidates: &[Candidate],
    late: Late,
) -> Result<Vec<Verdict>, ReadError> {
    let named = name_retweets(views, candidates, late).await?;
    let ids: BTreeSet<i64> = named.iter().flatten().map(|named| named.tweet).collect();
    let tweets = tweets(views, &to_vec(&ids), late).await?;
    let authors = tweets.rows.values().map(|tweet| tweet.tweet.user_id);
    let retweeters = named.iter().flatten().filter_map(|named| named.retweeter);
    let users: BTreeSet<i64> = authors.chain(retweeters).collect();
    let profiles = profiles_or_late(views, &to_vec(&users), late).await?;
    let relationships = relationships(views, audience.viewer(), &users).await?;
    let deleted = views.deleted_tweets(&to_vec(&ids)).await?;
    let deleted: BTreeSet<i64> = ids.into_iter().zip(deleted).filter_map(|(id, gone)| gone.then_some(id)).collect();

    let shows = |author: &i64| relationships.get(author).is_some_and(|facts| audience.shows(*author, facts));
    let includes = |by: &i64| relationships.get(by).is_some_and(|facts| audience.includes(*by, facts));
    let verdict = |Named { entry, tweet, retweeter }| {
        let tweet = match tweets.rows.get(&tweet) {
            _ if deleted.contains(&tweet) => return Verdict::Hidden,
            None if tweets.late.contains(&tweet) => return Verdict::Late,
            None => return Verdict::Missing,
            Some(tweet) => Arc::clone(tweet),
        };
        let author = tweet.tweet.user_id;
        let by = retweeter.unwrap_or(author);
        if !includes(&by) || !shows(&by) || !shows(&author) {
            return Verdict::Hidden;
        }
        match (profiles.rows.get(&author), profiles.rows.get(&by)) {
            (Some(author), Some(by)) => {
                let retweeted_by = retweeter.map(|_| Arc::clone(by));
                Verdict::Shown(TimelineTweet { entry, tweet, author: Arc::clone(author), retweeted_by })
            }
            _ if profiles.late.contains(&author) || profiles.late.contains(&by) => Verdict::Late,
            _ => Verdict::Hidden,
        }
    };
    Ok(named.into_iter().map(|named| named.map_or_else(|verdict| verdict, verdict)).collect())
}

/// A candidate of which all is known.
struct Named {
    entry: EntryId,
    tweet: i64,
    /// Set for a retweet.
    retweeter: Option<i64>,
}

/// Looks up who retweeted what where the source did not say; a verdict for a retweet that is not there, and for a tweet that
/// the source does not want to be shown.
async fn name_retweets(
    views: &dyn Views,
    candidates: &[Candidate],
    late: Late,
) -> Result<Vec<Result<Named, Verdict>>, ReadError> {
    let unnamed = |candidate: &&Candidate| candidate.tweet.is_none() && candidate.entry.kind == EntryKind::Retweet;
    let ids: Vec<i64> = candidates.iter().filter(unnamed).map(|candidate| candidate.entry.id).collect();
    // Which of them were taken back nobody knows.
    let deleted: Read<bool> = |_, ids| Box::pin(async move { Ok(vec![false; ids.len()]) });
    let retweets = rows(views, &ids, |views, ids| views.retweets(ids), deleted, late).await?;
    let name = |candidate: &Candidate| {
        let entry = candidate.entry;
        let (by, tweet) = match (candidate.tweet, entry.kind) {
            (Some(tweet), _) => (candidate.by, tweet),
            (None, EntryKind::Tweet) => return Err(Verdict::Hidden),
            (None, EntryKind::Retweet) => match retweets.rows.get(&entry.id) {
                Some((by, tweet)) => (Some(*by), *tweet),
                None if retweets.late.contains(&entry.id) => return Err(Verdict::Late),
                None => return Err(Verdict::Missing),
            },
        };
        let retweeter = by.filter(|_| entry.kind == EntryKind::Retweet);
        Ok(Named { entry, tweet, retweeter })
    };
    Ok(candidates.iter().map(name).collect())
}

fn to_vec(ids: &BTreeSet<i64>) -> Vec<i64> {
    ids.iter().copied().collect()
}

/// Reads something by ids.
type Read<T> = for<'a> fn(&'a dyn Views, &'a [i64]) -> BoxFuture<'a, Result<Vec<T>, ReadError>>;

/// Rows that are there, by id, and the ids of those that are late.
pub(super) struct Rows<T> {
    pub rows: BTreeMap<i64, T>,
    pub late: BTreeSet<i64>,
}

/// The rows of these ids. One that is missing, and not known as `deleted`, is late as long as the stores have not ended a time
/// that may have begun when it was missed first.
async fn rows<T>(
    views: &dyn Views,
    ids: &[i64],
    read: Read<Option<T>>,
    deleted: Read<bool>,
    late: Late,
) -> Result<Rows<T>, ReadError> {
    let mut found = Rows { rows: BTreeMap::new(), late: BTreeSet::new() };
    if ids.is_empty() {
        return Ok(found);
    }
    let progress = views.progress();
    let mut ended = progress.position(Phase::Rows).time;
    let mut missing = found.add(ids, read(views, ids).await?);
    let begun = progress.begun();
    let (most, wait) = if progress.follows() { (FOLLOWED_WAITS, FOLLOWED_WAIT) } else { (ROW_WAITS, ROW_WAIT) };
    let mut waits = if late == Late::Awaited { most } else { 0 };
    while !missing.is_empty() && ended < begun {
        let deleted = deleted(views, &missing).await?;
        found.late = missing.iter().zip(deleted).filter_map(|(id, deleted)| (!deleted).then_some(*id)).collect();
        if found.late.is_empty() || waits == 0 {
            return Ok(found);
        }
        waits -= 1;
        // However it ends, what is there now is read.
        let _ = tokio::time::timeout(wait, progress.watch().changed()).await;
        ended = progress.position(Phase::Rows).time;
        let again = read(views, &missing).await?;
        missing = found.add(&missing, again);
    }
    found.late.clear();
    Ok(found)
}

impl<T> Rows<T> {
    /// Adds what was read; gives the ids of what is missing.
    fn add(&mut self, ids: &[i64], rows: Vec<Option<T>>) -> Vec<i64> {
        let mut missing = Vec::new();
        for (id, row) in ids.iter().zip(rows) {
            match row {
                Some(row) => drop(self.rows.insert(*id, row)),
                None => missing.push(*id),
            }
        }
        missing
    }
}

async fn tweets(views: &dyn Views, ids: &[i64], late: Late) -> Result<Rows<Arc<CountedTweet>>, ReadError> {
    rows(views, ids, |views, ids| views.tweets(ids), |views, ids| views.deleted_tweets(ids), late).await
}

/// Rows and counts of users.
pub(super) async fn profiles_or_late(
    views: &dyn Views,
    ids: &[i64],
    late: Late,
) -> Result<Rows<Arc<Profile>>, ReadError> {
    let deleted: Read<bool> = |views, ids| {
        Box::pin(async move {
            let facts = views.relationships(None, ids).await?;
            Ok(facts.iter().map(|facts| facts.deleted).collect())
        })
    };
    rows(views, ids, |views, ids| views.profiles(ids), deleted, late).await
}

/// Rows and counts of users, as [`Views::profiles`] gives them. Late rows are waited for.
pub(super) async fn profiles(views: &dyn Views, ids: &[i64]) -> Result<Vec<Option<Arc<Profile>>>, ReadError> {
    let Rows { rows, .. } = profiles_or_late(views, ids, Late::Awaited).await?;
    Ok(ids.iter().map(|id| rows.get(id).cloned()).collect())
}

/// Rows and counts of one user.
pub(super) async fn profile(views: &dyn Views, id: i64) -> Result<Option<Arc<Profile>>, ReadError> {
    Ok(profiles(views, &[id]).await?.into_iter().next().flatten())
}

/// The facts between the viewer and these users, by user.
pub(super) async fn relationships(
    views: &dyn Views,
    viewer: Option<i64>,
    users: &BTreeSet<i64>,
) -> Result<BTreeMap<i64, Relationship>, ReadError> {
    let facts = views.relationships(viewer, &to_vec(users)).await?;
    Ok(users.iter().copied().zip(facts).collect())
}

/// The facts between the viewer and one user.
pub(super) async fn relationship(views: &dyn Views, viewer: Option<i64>, user: i64) -> Result<Relationship, ReadError> {
    Ok(views.relationships(viewer, &[user]).await?.into_iter().next().unwrap_or_default())
}
