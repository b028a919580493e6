//! Lists of accounts: who likes a tweet or retweeted it, who asks to follow, whom the viewer blocks or mutes.
//!
//! What an account likes and retweets is for those to know who may read it: others do not find it in these lists.

use std::sync::Arc;

use feedmill_model::{Phase, Time};
use futures::future::BoxFuture;

use super::candidates::profiles;
use super::tweet::may_read;
use super::{Access, CANDIDATES_PER_ITEM, Page, served};
use crate::{Edge, List, Profile, ReadError, Relationship, Views};

/// A page of who likes a tweet, newest first.
pub async fn likers_page(
    views: &dyn Views,
    viewer: Option<i64>,
    tweet: i64,
    cursor: Option<Edge>,
    limit: usize,
) -> Result<Access<Page<Arc<Profile>, Edge>>, ReadError> {
    let take: Take<Edge> = |views, tweet, after, count| edges(views, List::Likers, tweet, after, count);
    // Asked before what follows: the list may be older than the tweet.
    let time = served(views, &[Phase::Reactions]);
    page_of_tweet(views, viewer, tweet, take, (cursor, time), limit).await
}

/// A page of who retweeted a tweet, newest first. The cursor is the id of a retweet.
pub async fn retweeters_page(
    views: &dyn Views,
    viewer: Option<i64>,
    tweet: i64,
    cursor: Option<i64>,
    limit: usize,
) -> Result<Access<Page<Arc<Profile>, i64>>, ReadError> {
    let take: Take<i64> = |views, tweet, before, count| views.retweeters(tweet, before, count);
    page_of_tweet(views, viewer, tweet, take, (cursor, Time::MAX), limit).await
}

/// A page of who asks to follow the viewer, newest first. One that was answered or taken back is none, by the facts.
pub async fn follow_requests_page(
    views: &dyn Views,
    viewer: i64,
    cursor: Option<Edge>,
    limit: usize,
) -> Result<Page<Arc<Profile>, Edge>, ReadError> {
    let take: Take<Edge> = |views, user, after, count| edges(views, List::FollowRequests, user, after, count);
    let asks = |_, facts: &Relationship| facts.followed_by == Some(false) && !facts.blocks && !facts.blocked_by;
    let time = served(views, &[Phase::Rows, Phase::Facts]);
    page(views, Accounts { of: viewer, take, viewer: Some(viewer), shows: asks }, time, cursor, limit).await
}

/// A page of the accounts that the viewer blocks, by id.
pub async fn blocked_page(
    views: &dyn Views,
    viewer: i64,
    cursor: Option<i64>,
    limit: usize,
) -> Result<Page<Arc<Profile>, i64>, ReadError> {
    let take: Take<i64> = |views, user, after, count| by_id(views.blocks(user, after, count));
    let time = served(views, &[Phase::Rows, Phase::Facts]);
    let shows = |_, facts: &Relationship| facts.blocks;
    page(views, Accounts { of: viewer, take, viewer: Some(viewer), shows }, time, cursor, limit).await
}

/// A page of the accounts that the viewer mutes, by id.
pub async fn muted_page(
    views: &dyn Views,
    viewer: i64,
    cursor: Option<i64>,
    limit: usize,
) -> Result<Page<Arc<Profile>, i64>, ReadError> {
    let take: Take<i64> = |views, user, after, count| by_id(views.mutes(user, after, count));
    let time = served(views, &[Phase::Rows, Phase::Facts]);
    let shows = |_, facts: &Relationship| facts.mutes;
    page(views, Accounts { of: viewer, take, viewer: Some(viewer), shows }, time, cursor, limit).await
}

/// Reads accounts of a list of someone or something after a cursor, each with its own cursor.
type Take<C> = for<'a> fn(&'a dyn Views, i64, Option<C>, usize) -> BoxFuture<'a, Taken<C>>;
type Taken<C> = Result<Vec<(C, i64)>, ReadError>;

fn edges(views: &dyn Views, list: List, of: i64, after: Option<Edge>, count: usize) -> BoxFuture<'_, Taken<Edge>> {
    Box::pin(async move {
        let edges = views.edges(list, of, after, count).await?;
        Ok(edges.into_iter().map(|edge| (edge, edge.id)).collect())
    })
}

/// Accounts that are their own cursors.
fn by_id<'a>(accounts: impl Future<Output = Result<Vec<i64>, ReadError>> + Send + 'a) -> BoxFuture<'a, Taken<i64>> {
    Box::pin(async move { Ok(accounts.await?.into_iter().map(|id| (id, id)).collect()) })
}

/// A list of accounts, as a viewer sees it.
struct Accounts<C> {
    /// Whose, or of what.
    of: i64,
    take: Take<C>,
    viewer: Option<i64>,
    /// Whether an account may be shown, of which is known whether it is the viewer's own.
    shows: fn(bool, &Relationship) -> bool,
}

/// A page of a list of `tweet` after a cursor; the list is of the time `listed` at least.
async fn page_of_tweet<C: Copy + Send + Sync>(
    views: &dyn Views,
    viewer: Option<i64>,
    tweet: i64,
    take: Take<C>,
    (cursor, listed): (Option<C>, Time),
    limit: usize,
) -> Result<Access<Page<Arc<Profile>, C>>, ReadError> {
    let time = match may_read(views, viewer, tweet).await? {
        Access::Granted(time) => time.min(listed),
        Access::Hidden => return Ok(Access::Hidden),
        Access::NotFound => return Ok(Access::NotFound),
    };
    let shows = |own, facts: &Relationship| facts.may_read(own);
    let found = page(views, Accounts { of: tweet, take, viewer, shows }, time, cursor, limit).await?;
    // Facts last: the tweet may have been hidden while its list was read.
    Ok(match may_read(views, viewer, tweet).await? {
        Access::Granted(_) => Access::Granted(found),
        Access::Hidden => Access::Hidden,
        Access::NotFound => Access::NotFound,
    })
}

/// Takes accounts until `limit` may be shown or [`CANDIDATES_PER_ITEM`] times as many were looked at.
async fn page<C: Copy + Send + Sync>(
    views: &dyn Views,
    accounts: Accounts<C>,
    time: Time,
    mut cursor: Option<C>,
    limit: usize,
) -> Result<Page<Arc<Profile>, C>, ReadError> {
    let limit = limit.max(1);
    let mut may_look_at = limit.saturating_mul(CANDIDATES_PER_ITEM);
    let (mut items, mut more) = (Vec::new(), true);
    while more && items.len() < limit && may_look_at > 0 {
        let count = (limit - items.len()).min(may_look_at);
        // One more tells whether there are more.
        let mut taken = (accounts.take)(views, accounts.of, cursor, count + 1).await?;
        more = taken.len() > count;
        taken.truncate(count);
        may_look_at -= taken.len();
        cursor = taken.last().map(|(cursor, _)| *cursor).or(cursor);
        let users: Vec<i64> = taken.into_iter().map(|(_, user)| user).collect();
        let profiles = profiles(views, &users).await?;
        let facts = views.relationships(accounts.viewer, &users).await?;
        let shown = profiles
            .into_iter()
            .zip(facts)
            .zip(users)
            .filter(|((_, facts), user)| !facts.deleted && (accounts.shows)(accounts.viewer == Some(*user), facts));
        items.extend(shown.filter_map(|((profile, _), _)| profile));
    }
    Ok(Page { items, next: cursor.filter(|_| more), time })
}
