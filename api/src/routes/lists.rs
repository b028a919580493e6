//! Lists of accounts: who follows whom or asks to, who likes or retweeted a tweet, whom one blocks and mutes.

use axum::extract::State;
use axum::response::Response;
use feedmill_model::Phase;
use feedmill_sinks::Edge;
use feedmill_sinks::read::{
    blocked_page, follow_requests_page, followers_page, following_page, likers_page, muted_page, retweeters_page,
};

use super::follows::granted;
use super::tweets::shown;
use crate::answer::UsersBody;
use crate::cursor::list;
use crate::problem::{Failed, Problem};
use crate::reader::Reader;
use crate::request::{Id, List, ListQuery};
use crate::state::Shared;
use crate::viewer::Viewer;

/// Lists who follows an account, the newest first.
#[utoipa::path(
    get, path = "/follows/{userId}/followers", tag = "follows",
    params(("userId" = String, Path, description = "Whose."), ListQuery),
    responses((status = 200, description = "A page.", body = UsersBody), Failed), security((), ("token" = [])),
)]
pub(crate) async fn followers(
    State(context): State<Shared>,
    reader: Reader,
    Id(user): Id,
    list: List<Edge, { list::FOLLOWERS }>,
) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Rows).await?;
    let page = followers_page(context.views.as_ref(), reader.id(), user, list.cursor, list.limit).await?;
    context.users(reader.id(), &list, &granted(page)?).await
}

/// Lists whom an account follows, the newest first.
#[utoipa::path(
    get, path = "/follows/{userId}/following", tag = "follows",
    params(("userId" = String, Path, description = "Whose."), ListQuery),
    responses((status = 200, description = "A page.", body = UsersBody), Failed), security((), ("token" = [])),
)]
pub(crate) async fn following(
    State(context): State<Shared>,
    reader: Reader,
    Id(user): Id,
    list: List<Edge, { list::FOLLOWING }>,
) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Rows).await?;
    let page = following_page(context.views.as_ref(), reader.id(), user, list.cursor, list.limit).await?;
    context.users(reader.id(), &list, &granted(page)?).await
}

/// Lists who likes a tweet, the newest like first.
///
/// Accounts that the reader may not read are left out.
#[utoipa::path(
    get, path = "/tweets/{id}/likes", tag = "tweets", params(("id" = String, Path, description = "Which."), ListQuery),
    responses((status = 200, description = "A page of who likes it.", body = UsersBody), Failed),
    security((), ("token" = [])),
)]
pub(crate) async fn likes(
    State(context): State<Shared>,
    reader: Reader,
    Id(id): Id,
    list: List<Edge, { list::LIKES }>,
) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Reactions).await?;
    let page = likers_page(context.views.as_ref(), reader.id(), id, list.cursor, list.limit).await?;
    context.users(reader.id(), &list, &shown(page)?).await
}

/// Lists who retweeted a tweet, the newest retweet first.
///
/// Accounts that the reader may not read are left out.
#[utoipa::path(
    get, path = "/tweets/{id}/retweets", tag = "tweets", params(("id" = String, Path, description = "Which."), ListQuery),
    responses((status = 200, description = "A page of who retweeted it.", body = UsersBody), Failed),
    security((), ("token" = [])),
)]
pub(crate) async fn retweets(
    State(context): State<Shared>,
    reader: Reader,
    Id(id): Id,
    list: List<i64, { list::RETWEETS }>,
) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Rows).await?;
    let page = retweeters_page(context.views.as_ref(), reader.id(), id, list.cursor, list.limit).await?;
    context.users(reader.id(), &list, &shown(page)?).await
}

/// Lists who asks to follow you, the newest request first.
#[utoipa::path(
    get, path = "/follows/requests", tag = "follows", params(ListQuery),
    responses((status = 200, description = "A page of who asks.", body = UsersBody), Failed),
    security(("token" = [])),
)]
pub(crate) async fn follow_requests(
    State(context): State<Shared>,
    reader: Reader<Viewer>,
    list: List<Edge, { list::FOLLOW_REQUESTS }>,
) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Rows).await?;
    let page = follow_requests_page(context.views.as_ref(), reader.id(), list.cursor, list.limit).await?;
    context.users(Some(reader.id()), &list, &page).await
}

/// Lists whom you block.
#[utoipa::path(
    get, path = "/blocks", tag = "blocks and mutes", params(ListQuery),
    responses((status = 200, description = "A page of the accounts, by id.", body = UsersBody), Failed),
    security(("token" = [])),
)]
pub(crate) async fn blocks(
    State(context): State<Shared>,
    reader: Reader<Viewer>,
    list: List<i64, { list::BLOCKS }>,
) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Rows).await?;
    let page = blocked_page(context.views.as_ref(), reader.id(), list.cursor, list.limit).await?;
    context.users(Some(reader.id()), &list, &page).await
}

/// Lists whom you mute.
#[utoipa::path(
    get, path = "/mutes", tag = "blocks and mutes", params(ListQuery),
    responses((status = 200, description = "A page of the accounts, by id.", body = UsersBody), Failed),
    security(("token" = [])),
)]
pub(crate) async fn mutes(
    State(context): State<Shared>,
    reader: Reader<Viewer>,
    list: List<i64, { list::MUTES }>,
) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Rows).await?;
    let page = muted_page(context.views.as_ref(), reader.id(), list.cursor, list.limit).await?;
    context.users(Some(reader.id()), &list, &page).await
}
