//! Profiles and timelines.

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::HeaderMap;
use axum::response::Response;
use feedmill_model::{EntryId, Phase};
use feedmill_sinks::read::{HomeCursor, home_page, profile_by_name, user_page};

use super::follows::{granted, no_user};
use crate::answer::{UserBody, as_of, tweets_page};
use crate::problem::Problem;
use crate::request::{List, Name};
use crate::state::Shared;
use crate::viewer::Viewer;

/// `GET /api/users/{username}`. Anyone may read a profile.
pub(crate) async fn profile(
    State(context): State<Shared>,
    _viewer: Option<Viewer>,
    Name(name): Name,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    context.catch_up(&headers, Phase::Rows).await?;
    let profile = profile_by_name(context.views.as_ref(), &name).await?.ok_or_else(no_user)?;
    Ok(as_of(profile.time, Json(UserBody::from(&profile.value))))
}

/// `GET /api/users/{username}/tweets`.
pub(crate) async fn of_user(
    State(context): State<Shared>,
    viewer: Option<Viewer>,
    Name(name): Name,
    list: List<EntryId>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    context.catch_up(&headers, Phase::Rows).await?;
    let views = context.views.as_ref();
    let user = views.user_by_name(&name).await?.ok_or_else(no_user)?;
    let viewer = viewer.map(|viewer| viewer.0);
    let page = user_page(views, viewer, user, list.replies, list.cursor, list.limit).await?;
    Ok(tweets_page(&uri, &list, &granted(page)?))
}

/// `GET /api/timeline`: the home timeline of whoever asks.
pub(crate) async fn home(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    mut list: List<HomeCursor>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    context.catch_up(&headers, Phase::Home).await?;
    let cursor = list.cursor.take().unwrap_or_default();
    let page = home_page(context.views.as_ref(), &context.parameters, viewer, cursor, list.limit).await?;
    Ok(tweets_page(&uri, &list, &page))
}
