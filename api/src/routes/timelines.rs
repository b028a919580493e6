//! Profiles and timelines.

use axum::Json;
use axum::extract::State;
use axum::response::Response;
use feedmill_model::{EntryId, Phase};
use feedmill_sinks::read::{HomeCursor, home_page, profile_by_name, user_page};
use serde::Deserialize;
use utoipa::IntoParams;

use super::follows::{granted, no_user};
use crate::answer::{TweetsBody, UserBody, as_of};
use crate::cursor::list;
use crate::problem::{Failed, Problem};
use crate::reader::Reader;
use crate::request::{List, ListQuery, Name};
use crate::state::Shared;
use crate::viewer::Viewer;

/// Reads a profile. Anyone may.
#[utoipa::path(
    get, path = "/users/{username}", tag = "users", params(("username" = String, Path, description = "Whose.")),
    responses((status = 200, description = "The profile.", body = UserBody), Failed), security((), ("token" = [])),
)]
pub(crate) async fn profile(
    State(context): State<Shared>,
    reader: Reader,
    Name(name): Name,
) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Rows).await?;
    let profile = profile_by_name(context.views.as_ref(), &name).await?.ok_or_else(no_user)?;
    let flags = context.flags(reader.id(), std::slice::from_ref(&profile.value)).await?;
    Ok(as_of(profile.time, Json(UserBody::from(profile.value.as_ref()).seen(&flags))))
}

#[derive(Deserialize, IntoParams)]
#[into_params(parameter_in = Query)]
pub(crate) struct UserQuery {
    /// Whether what the account answered is wanted too.
    #[serde(default)]
    #[param(default = false)]
    replies: bool,
}

/// Reads what an account tweeted and retweeted, the newest first; with `replies` also what it answered.
#[utoipa::path(
    get, path = "/users/{username}/tweets", tag = "timelines",
    params(("username" = String, Path, description = "Whose."), UserQuery, ListQuery),
    responses((status = 200, description = "A page.", body = TweetsBody), Failed), security((), ("token" = [])),
)]
pub(crate) async fn of_user(
    State(context): State<Shared>,
    reader: Reader,
    Name(name): Name,
    list: List<EntryId, { list::USER }, UserQuery>,
) -> Result<Response, Problem> {
    context.catch_up_with_likes(&reader, Phase::Rows).await?;
    let views = context.views.as_ref();
    let user = views.user_by_name(&name).await?.ok_or_else(no_user)?;
    let page = user_page(views, reader.id(), user, list.query.replies, list.cursor, list.limit).await?;
    context.tweets(reader.id(), &list, &granted(page)?).await
}

/// Reads the home timeline of whoever asks, the newest first: each tweet once.
#[utoipa::path(
    get, path = "/timeline", tag = "timelines", params(ListQuery),
    responses((status = 200, description = "A page.", body = TweetsBody), Failed), security(("token" = [])),
)]
pub(crate) async fn home(
    State(context): State<Shared>,
    reader: Reader<Viewer>,
    mut list: List<HomeCursor, { list::HOME }>,
) -> Result<Response, Problem> {
    context.catch_up_with_likes(&reader, Phase::Home).await?;
    let cursor = list.cursor.take().unwrap_or_default();
    let page = home_page(context.views.as_ref(), &context.parameters, reader.id(), cursor, list.limit).await?;
    context.tweets(Some(reader.id()), &list, &page).await
}
