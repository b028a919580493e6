//! Pages of what search finds.
//!
//! ```text
//!   order of time:      index ─ ids, newest first ───────────────────────────────────┐
//!   order of relevance: index ─ the best some hundred ─► weighed with the counts ────┴─► rows, facts last ─► page
//! ```
//!
//! The index knows the texts and nothing else: how often a tweet is liked is read from the counts, so that no like is an
//! update of the index, and who may see it from the facts. What protected accounts write their accepted followers find,
//! and they themselves; what the viewer mutes is not found.
//!
//! Relevance is kept to the first [`RANKED_MAX`]. Each page ranks them anew, so what is liked meanwhile may move from one
//! page to another.

use std::collections::{HashMap, VecDeque};
use std::sync::Arc;

use feedmill_model::{EntryId, Phase, Time};
use serde::{Deserialize, Serialize};

use super::candidates::{Audience, Candidates, show};
use super::merge::Candidate;
use super::{CANDIDATES_PER_ITEM, Page, TimelineTweet, served};
use crate::search::{AccountQuery, Hit, Query, Search, What};
use crate::{CountedTweet, Profile, ReadError, Views};

/// Tweets or accounts that are ranked.
pub const RANKED_MAX: usize = 500;
/// What a step of engagement adds to the score: each twice as many likes, retweets and replies are a step.
const STEP_SCORE: f32 = 0.5;

/// Place in the order of relevance: better first, of equals the newer.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Rank {
    /// How well it fits, with what it is worth to others.
    pub score: f32,
    /// The tweet or the account.
    pub id: i64,
}

impl Rank {
    fn order(&self, other: &Rank) -> std::cmp::Ordering {
        other.score.total_cmp(&self.score).then(other.id.cmp(&self.id))
    }
}

/// How tweets are ordered, and where the page begins.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub enum SearchFrom {
    /// The newest first, older than this tweet if there is one.
    Latest(Option<i64>),
    /// Those that fit best first, after this place if there is one.
    Relevant(Option<Rank>),
}

/// A page of the tweets that fit `query` and that `viewer` may see.
pub async fn search_tweets_page(
    views: &dyn Views,
    search: &dyn Search,
    viewer: Option<i64>,
    mut query: Query,
    from: SearchFrom,
    limit: usize,
) -> Result<Page<TimelineTweet, SearchFrom>, ReadError> {
    let time = time(views, search);
    for clause in &mut query.clauses {
        if let What::From { name, user } = &mut clause.what {
            *user = views.user_by_name(name).await?;
        }
    }
    let audience = Audience::Discovery { viewer };
    match from {
        SearchFrom::Latest(before) => {
            let mut found = Latest { search, query: &query, before, more: true };
            let shown = show(views, &audience, &mut found, limit, |_| true).await?;
            let next = shown.last.map(|entry| entry.id).or(before).filter(|_| shown.more);
            Ok(Page { items: shown.items, next: next.map(|id| SearchFrom::Latest(Some(id))), time })
        }
        SearchFrom::Relevant(after) => {
            let ranks = ranked_tweets(views, search, &query, after).await?;
            let by_id: HashMap<i64, Rank> = ranks.iter().map(|rank| (rank.id, *rank)).collect();
            let mut found = Ranked(ranks.into_iter().map(|rank| rank.id).collect());
            let shown = show(views, &audience, &mut found, limit, |_| true).await?;
            let last = shown.last.and_then(|entry| by_id.get(&entry.id).copied());
            let next = last.or(after).filter(|_| shown.more);
            Ok(Page { items: shown.items, next: next.map(|rank| SearchFrom::Relevant(Some(rank))), time })
        }
    }
}

/// A page of the accounts that fit `query`, best first: the one of just this name, then by words that are whole, then by
/// followers in steps, each twice as many. Accounts that block or are blocked, or are muted, are not found.
pub async fn search_accounts_page(
    views: &dyn Views,
    search: &dyn Search,
    viewer: Option<i64>,
    query: &AccountQuery,
    after: Option<Rank>,
    limit: usize,
) -> Result<Page<Arc<Profile>, Rank>, ReadError> {
    let time = time(views, search);
    let limit = limit.max(1);
    let hits = search.accounts(query, RANKED_MAX).await?;
    let ids: Vec<i64> = hits.iter().map(|hit| hit.id).collect();
    let found = hits.iter().zip(views.profiles(&ids).await?);
    let mut ranked: Vec<(Rank, Arc<Profile>)> = found
        .filter_map(|(hit, profile)| {
            let profile = profile?;
            // Steps are fewer than 64, and scores whole numbers.
            Some((Rank { score: hit.score * 64.0 + steps(profile.followers), id: hit.id }, profile))
        })
        .filter(|(rank, _)| is_after(rank, after))
        .collect();
    ranked.sort_by(|(one, _), (other, _)| one.order(other));
    let looked_at = ranked.len().min(limit.saturating_mul(CANDIDATES_PER_ITEM));
    let ids: Vec<i64> = ranked.iter().take(looked_at).map(|(rank, _)| rank.id).collect();
    let relationships = views.relationships(viewer, &ids).await?;
    let (all, mut items, mut last) = (ranked.len(), Vec::new(), None);
    let mut seen = 0;
    for ((rank, profile), relationship) in ranked.into_iter().zip(relationships) {
        let own = viewer == Some(rank.id);
        let hidden = relationship.blocks || relationship.blocked_by || relationship.mutes;
        if !relationship.deleted && (own || !hidden) {
            items.push(profile);
        }
        (last, seen) = (Some(rank), seen + 1);
        if items.len() == limit {
            break;
        }
    }
    Ok(Page { items, next: last.filter(|_| seen < all), time })
}

fn time(views: &dyn Views, search: &dyn Search) -> Time {
    search.time().min(served(views, &[Phase::Rows, Phase::Facts]))
}

/// How often `count` can be halved.
fn steps(count: i64) -> f32 {
    let count = u64::try_from(count).unwrap_or(0);
    (u64::BITS - count.leading_zeros()) as f32
}

fn is_after(rank: &Rank, after: Option<Rank>) -> bool {
    after.is_none_or(|after| after.order(rank).is_lt())
}

/// The tweets that fit best, after `after`, in their order.
async fn ranked_tweets(
    views: &dyn Views,
    search: &dyn Search,
    query: &Query,
    after: Option<Rank>,
) -> Result<Vec<Rank>, ReadError> {
    let hits = search.relevant(query, RANKED_MAX).await?;
    let ids: Vec<i64> = hits.iter().map(|hit| hit.id).collect();
    let engagement = |tweet: &CountedTweet| steps(tweet.likes + tweet.retweets + tweet.replies);
    let rank = |(Hit { id, score }, tweet): (Hit, Option<Arc<CountedTweet>>)| {
        let steps = tweet.as_deref().map_or(0.0, engagement);
        Rank { score: score + STEP_SCORE * steps, id }
    };
    let mut ranks: Vec<Rank> = hits.into_iter().zip(views.tweets(&ids).await?).map(rank).collect();
    ranks.retain(|rank| is_after(rank, after));
    ranks.sort_by(Rank::order);
    Ok(ranks)
}

fn candidate(id: i64) -> Candidate {
    Candidate { entry: EntryId::tweet(id), by: None, tweet: Some(id) }
}

/// Tweets newest first, asked for as they are needed.
struct Latest<'a> {
    search: &'a dyn Search,
    query: &'a Query,
    before: Option<i64>,
    more: bool,
}

impl Candidates for Latest<'_> {
    async fn take(&mut self, count: usize) -> Result<Vec<Candidate>, ReadError> {
        // One more tells whether there are any after them.
        let mut ids = self.search.latest(self.query, self.before, count + 1).await?;
        self.more = ids.len() > count;
        ids.truncate(count);
        self.before = ids.last().copied().or(self.before);
        Ok(ids.into_iter().map(candidate).collect())
    }

    fn more(&self) -> bool {
        self.more
    }
}

/// Tweets that were ranked.
struct Ranked(VecDeque<i64>);

impl Candidates for Ranked {
    async fn take(&mut self, count: usize) -> Result<Vec<Candidate>, ReadError> {
        Ok(self.0.drain(..count.min(self.0.len())).map(candidate).collect())
    }

    fn more(&self) -> bool {
        !self.0.is_empty()
    }
}
