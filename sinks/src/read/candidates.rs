//! From entries that a page may show to the tweets that it does.
//!
//! Rows first, facts last: what a fact forbids cannot have come in between. An entry whose row is not there any more is
//! left out.
//!
//! Workers apply a closed time side by side, each in its shards, so a timeline may name a tweet or an account of which the
//! row follows a moment later. A row that is missing is read again until the stores have ended that time: what a page names
//! is never left out because another worker applies it. One that the facts call deleted is not waited for.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::time::Duration;

use feedmill_model::{EntryId, EntryKind, Phase};
use futures::future::BoxFuture;

use super::merge::{Candidate, Merge};
use super::{CANDIDATES_PER_ITEM, TimelineTweet};
use crate::{CountedTweet, Profile, ReadError, Relationship, Views};

/// How long a row may be missing while a closed time is being applied, and how often it is looked for.
const ROW_WAITS: usize = 20;
const ROW_WAIT: Duration = Duration::from_millis(10);

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
    /// The last entry that was looked at.
    pub last: Option<EntryId>,
    /// Whether there may be more.
    pub more: bool,
}

/// Where a page's candidates come from.
pub(super) trait Candidates: Send {
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
pub(super) async fn show(
    views: &dyn Views,
    audience: &Audience<'_>,
    candidates: &mut impl Candidates,
    limit: usize,
    mut is_new: impl FnMut(&TimelineTweet) -> bool + Send,
) -> Result<Shown, ReadError> {
    let limit = limit.max(1);
    let mut may_look_at = limit.saturating_mul(CANDIDATES_PER_ITEM);
    let mut shown = Shown { items: Vec::new(), last: None, more: true };
    while shown.more && shown.items.len() < limit && may_look_at > 0 {
        let missing = limit - shown.items.len();
        let taken = candidates.take((missing + missing / 8).min(may_look_at)).await?;
        may_look_at -= taken.len();
        shown.more = candidates.more();
        let mut judged = judge(views, audience, &taken).await?.into_iter();
        for (candidate, tweet) in taken.iter().zip(judged.by_ref()) {
            shown.last = Some(candidate.entry);
            shown.items.extend(tweet.filter(&mut is_new));
            if shown.items.len() == limit {
                break;
            }
        }
        shown.more |= judged.len() > 0;
    }
    Ok(shown)
}

/// For each candidate the tweet, if it may be shown.
pub(super) async fn judge(
    views: &dyn Views,
    audience: &Audience<'_>,
    candidates: &[Candidate],
) -> Result<Vec<Option<TimelineTweet>>, ReadError> {
    let named = name_retweets(views, candidates).await?;
    let ids: BTreeSet<i64> = named.iter().flatten().map(|named| named.tweet).collect();
    let tweets = Tweets::read(views, ids).await?;
    let retweeters = named.iter().flatten().filter_map(|named| named.retweeter);
    let users: BTreeSet<i64> = tweets.authors().chain(retweeters).collect();
    let profiles = keyed(&users, profiles(views, &to_vec(&users)).await?);
    let relationships = relationships(views, audience.viewer(), &users).await?;
    let deleted = tweets.deleted(views).await?;

    let judge = |named: Named| {
        let tweet = tweets.0.get(&named.tweet)?.as_ref().filter(|_| !deleted.contains(&named.tweet))?;
        let author = tweet.tweet.user_id;
        let by = named.retweeter.unwrap_or(author);
        let belongs = audience.includes(by, relationships.get(&by)?)
            && audience.shows(by, relationships.get(&by)?)
            && audience.shows(author, relationships.get(&author)?);
        let profile = |user| profiles.get(&user).cloned().flatten();
        let retweeted_by = named.retweeter.map(profile);
        belongs.then_some(TimelineTweet {
            entry: named.entry,
            tweet: tweet.clone(),
            author: profile(author)?,
            retweeted_by: match retweeted_by {
                Some(retweeter) => Some(retweeter?),
                None => None,
            },
        })
    };
    Ok(named.into_iter().map(|named| judge(named?)).collect())
}

/// A candidate of which all is known.
struct Named {
    entry: EntryId,
    tweet: i64,
    /// Set for a retweet.
    retweeter: Option<i64>,
}

/// Looks up who retweeted what where the source did not say; `None` for a retweet that is not there any more, and for a
/// tweet that the source does not want to be shown.
async fn name_retweets(views: &dyn Views, candidates: &[Candidate]) -> Result<Vec<Option<Named>>, ReadError> {
    let unnamed = |candidate: &&Candidate| candidate.tweet.is_none() && candidate.entry.kind == EntryKind::Retweet;
    let ids: Vec<i64> = candidates.iter().filter(unnamed).map(|candidate| candidate.entry.id).collect();
    let retweets = if ids.is_empty() { Vec::new() } else { views.retweets(&ids).await? };
    let mut retweets = retweets.into_iter();
    let name = |candidate: &Candidate| {
        let entry = candidate.entry;
        let (by, tweet) = match candidate.tweet {
            Some(tweet) => (candidate.by, tweet),
            None if entry.kind == EntryKind::Tweet => return None,
            None => retweets.next().flatten().map(|(by, tweet)| (Some(by), tweet))?,
        };
        let retweeter = by.filter(|_| entry.kind == EntryKind::Retweet);
        Some(Named { entry, tweet, retweeter })
    };
    Ok(candidates.iter().map(name).collect())
}

/// Rows of tweets, by id.
struct Tweets(BTreeMap<i64, Option<CountedTweet>>);

impl Tweets {
    async fn read(views: &dyn Views, ids: BTreeSet<i64>) -> Result<Self, ReadError> {
        let rows =
            rows(views, &to_vec(&ids), |views, ids| views.tweets(ids), |views, ids| views.deleted_tweets(ids)).await?;
        Ok(Tweets(keyed(&ids, rows)))
    }

    fn authors(&self) -> impl Iterator<Item = i64> {
        self.0.values().flatten().map(|tweet| tweet.tweet.user_id)
    }

    async fn deleted(&self, views: &dyn Views) -> Result<BTreeSet<i64>, ReadError> {
        let ids: Vec<i64> = self.0.keys().copied().collect();
        let deleted = views.deleted_tweets(&ids).await?;
        Ok(ids.into_iter().zip(deleted).filter_map(|(id, deleted)| deleted.then_some(id)).collect())
    }
}

fn to_vec(ids: &BTreeSet<i64>) -> Vec<i64> {
    ids.iter().copied().collect()
}

/// Answers by the ids that were asked for.
fn keyed<T>(ids: &BTreeSet<i64>, answers: Vec<T>) -> BTreeMap<i64, T> {
    ids.iter().copied().zip(answers).collect()
}

/// Reads something by ids.
type Read<T> = for<'a> fn(&'a dyn Views, &'a [i64]) -> BoxFuture<'a, Result<Vec<T>, ReadError>>;

/// The rows of these ids; those that are missing, and not known as `deleted`, are read again until the closed times have
/// ended that were begun.
async fn rows<T>(
    views: &dyn Views,
    ids: &[i64],
    read: Read<Option<T>>,
    deleted: Read<bool>,
) -> Result<Vec<Option<T>>, ReadError> {
    let mut rows = read(views, ids).await?;
    let progress = views.progress();
    // The last time that is known to have begun. What a worker has begun the others may not have reported yet, so it is
    // looked up after a wait.
    let mut begun = None;
    for _ in 0..ROW_WAITS {
        let missing: Vec<i64> = ids.iter().zip(&rows).filter_map(|(id, row)| row.is_none().then_some(*id)).collect();
        if missing.is_empty() || begun.is_some_and(|begun| progress.position(Phase::Rows).time >= begun) {
            break;
        }
        if !deleted(views, &missing).await?.contains(&false) {
            break;
        }
        // However it ends, what is there now is read.
        let _ = tokio::time::timeout(ROW_WAIT, progress.watch().changed()).await;
        begun.get_or_insert_with(|| progress.position(Phase::Facts).time);
        let mut again = read(views, &missing).await?.into_iter();
        for row in rows.iter_mut().filter(|row| row.is_none()) {
            *row = again.next().flatten();
        }
    }
    Ok(rows)
}

/// Rows and counts of users, as [`Views::profiles`] gives them.
pub(super) async fn profiles(views: &dyn Views, ids: &[i64]) -> Result<Vec<Option<Profile>>, ReadError> {
    let deleted: Read<bool> = |views, ids| {
        Box::pin(async move {
            let facts = views.relationships(None, ids).await?;
            Ok(facts.iter().map(|facts| facts.deleted).collect())
        })
    };
    rows(views, ids, |views, ids| views.profiles(ids), deleted).await
}

/// Rows and counts of one user.
pub(super) async fn profile(views: &dyn Views, id: i64) -> Result<Option<Profile>, ReadError> {
    Ok(profiles(views, &[id]).await?.into_iter().next().flatten())
}

/// The facts between the viewer and these users, by user.
pub(super) async fn relationships(
    views: &dyn Views,
    viewer: Option<i64>,
    users: &BTreeSet<i64>,
) -> Result<BTreeMap<i64, Relationship>, ReadError> {
    Ok(keyed(users, views.relationships(viewer, &to_vec(users)).await?))
}

/// The facts between the viewer and one user.
pub(super) async fn relationship(views: &dyn Views, viewer: Option<i64>, user: i64) -> Result<Relationship, ReadError> {
    Ok(views.relationships(viewer, &[user]).await?.into_iter().next().unwrap_or_default())
}
