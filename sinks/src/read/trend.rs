//! What many speak of now.

use std::cmp::Reverse;
use std::collections::{BTreeMap, VecDeque};

use feedmill_model::{EntryId, Phase, TrendWindow};

use super::candidates::{Audience, Candidates, show};
use super::merge::Candidate;
use super::{Served, TimelineTweet, served};
use crate::{ReadError, TrendingTag, TrendingTweet, Views};

/// A tweet that trends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LikedTweet {
    /// The tweet.
    pub tweet: TimelineTweet,
    /// How many liked it in 24 hours.
    pub likes: u64,
}

/// At most `limit` tags of a window: those that most authors use, then the most used, then by the tag. They are the same
/// for everyone: authors who are protected do not count, and a tag does not say who used it.
pub async fn trending_tags(
    views: &dyn Views,
    window: TrendWindow,
    limit: usize,
) -> Result<Served<Vec<TrendingTag>>, ReadError> {
    let time = served(views, &[Phase::Rows]);
    let mut tags = views.trending_tags(window).await?;
    tags.sort_by(|one, other| {
        let counts = (other.authors, other.uses).cmp(&(one.authors, one.uses));
        counts.then_with(|| one.tag.cmp(&other.tag))
    });
    tags.truncate(limit);
    Ok(Served { value: tags, time })
}

/// At most `limit` of the tweets that were liked most in 24 hours, without those that the viewer may not read; of two
/// that were liked as often the newer first.
pub async fn trending_tweets(
    views: &dyn Views,
    viewer: Option<i64>,
    limit: usize,
) -> Result<Served<Vec<LikedTweet>>, ReadError> {
    let time = served(views, &[Phase::Reactions, Phase::Rows, Phase::Facts]);
    let mut trending = views.trending_tweets().await?;
    trending.sort_by_key(|trending| Reverse((trending.likes, trending.tweet)));
    let likes: BTreeMap<i64, u64> = trending.iter().map(|trending| (trending.tweet, trending.likes)).collect();
    let mut candidates = Trending(trending.into());
    let shown = show(views, &Audience::Discovery { viewer }, &mut candidates, limit, |_| true).await?;
    let liked = |tweet: TimelineTweet| {
        let likes = likes.get(&tweet.entry.id).copied().unwrap_or_default();
        LikedTweet { tweet, likes }
    };
    Ok(Served { value: shown.items.into_iter().map(liked).collect(), time })
}

/// Tweets that trend, as candidates.
struct Trending(VecDeque<TrendingTweet>);

impl Candidates for Trending {
    async fn take(&mut self, count: usize) -> Result<Vec<Candidate>, ReadError> {
        let taken = self.0.drain(..count.min(self.0.len()));
        let candidate =
            |TrendingTweet { tweet, .. }| Candidate { entry: EntryId::tweet(tweet), by: None, tweet: Some(tweet) };
        Ok(taken.map(candidate).collect())
    }

    fn more(&self) -> bool {
        !self.0.is_empty()
    }
}
