//! Accounts and lists of accounts.

use std::sync::Arc;

use feedmill_model::Phase;

use super::candidates::{profile, profiles, relationship};
use super::{Access, Page, Served, served};
use crate::{Edge, List, Profile, ReadError, Views};

/// A page of the accounts that follow `user`, newest first, without those that a block separates from the viewer.
pub async fn followers_page(
    views: &dyn Views,
    viewer: Option<i64>,
    user: i64,
    cursor: Option<Edge>,
    limit: usize,
) -> Result<Access<Page<Arc<Profile>, Edge>>, ReadError> {
    list_page(views, List::Followers, viewer, user, cursor, limit).await
}

/// A page of the accounts that `user` follows, newest first, likewise.
pub async fn following_page(
    views: &dyn Views,
    viewer: Option<i64>,
    user: i64,
    cursor: Option<Edge>,
    limit: usize,
) -> Result<Access<Page<Arc<Profile>, Edge>>, ReadError> {
    list_page(views, List::Following, viewer, user, cursor, limit).await
}

/// The account of this name, whatever its case. Anyone may read a profile: what protects or blocks hides what an
/// account writes, and whom it follows.
pub async fn profile_by_name(views: &dyn Views, name: &str) -> Result<Option<Served<Arc<Profile>>>, ReadError> {
    let time = served(views, &[Phase::Rows, Phase::Facts]);
    let Some(id) = views.user_by_name(name).await? else { return Ok(None) };
    let found = profile(views, id).await?;
    let deleted = relationship(views, None, id).await?.deleted;
    Ok(found.filter(|_| !deleted).map(|value| Served { value, time }))
}

async fn list_page(
    views: &dyn Views,
    list: List,
    viewer: Option<i64>,
    user: i64,
    cursor: Option<Edge>,
    limit: usize,
) -> Result<Access<Page<Arc<Profile>, Edge>>, ReadError> {
    let time = served(views, &[Phase::Rows, Phase::Facts]);
    let limit = limit.max(1);
    // One more tells whether there is a next page.
    let mut edges = views.edges(list, user, cursor, limit + 1).await?;
    let more = edges.len() > limit;
    edges.truncate(limit);
    let next = edges.last().copied().filter(|_| more);
    let users: Vec<i64> = std::iter::once(user).chain(edges.into_iter().map(|edge| edge.id)).collect();
    let mut profiles = profiles(views, &users).await?.into_iter();
    let mut relationships = views.relationships(viewer, &users).await?.into_iter();
    let (Some(Some(_)), Some(owner)) = (profiles.next(), relationships.next().filter(|owner| !owner.deleted)) else {
        return Ok(Access::NotFound);
    };
    if !owner.may_read(viewer == Some(user)) {
        return Ok(Access::Hidden);
    }
    // Anyone may know of a protected account, but those whom a block separates do not meet in lists.
    let shown = profiles.zip(relationships).filter(|(_, facts)| !facts.deleted && !facts.blocks && !facts.blocked_by);
    let items = shown.filter_map(|(profile, _)| profile).collect();
    Ok(Access::Granted(Page { items, next, time }))
}
