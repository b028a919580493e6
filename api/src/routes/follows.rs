//! Follows: begin, end, list.

use axum::Json;
use axum::extract::{OriginalUri, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use feedmill_model::Phase;
use feedmill_sinks::Edge;
use feedmill_sinks::read::{Access, followers_page, following_page};
use serde_json::json;

use super::accounts::no_row;
use crate::answer::users_page;
use crate::database::DatabaseError;
use crate::problem::{Kind, Problem};
use crate::request::{Id, List};
use crate::state::Shared;
use crate::viewer::{Viewer, account_gone};

/// A block takes the same lock before it ends follows. So either the follow was committed before, and the block ends it,
/// or the block was, and the statement after this one sees it.
const LOCK_PAIR: &str = "SELECT feedmill_lock_pair($1, $2)";

/// Follows, or asks to; what is there already stays as it is.
const FOLLOW: &str = "
    WITH target AS (
        SELECT id, protected FROM users WHERE id = $2 AND deleted_at IS NULL
    ), blocked AS (
        SELECT EXISTS (SELECT FROM blocks WHERE blocker_id = $1 AND blocked_id = $2)
            OR EXISTS (SELECT FROM blocks WHERE blocker_id = $2 AND blocked_id = $1) AS either_way
    ), made AS (
        INSERT INTO follows (follower_id, following_id, accepted)
        SELECT follower.id, target.id, NOT target.protected
        FROM target, blocked, users follower
        WHERE NOT blocked.either_way AND follower.id = $1 AND follower.deleted_at IS NULL
        ON CONFLICT DO NOTHING
        RETURNING accepted
    )
    SELECT EXISTS (SELECT FROM target), either_way, (SELECT accepted FROM made),
           (SELECT accepted FROM follows WHERE follower_id = $1 AND following_id = $2)
    FROM blocked";

/// Ends a follow or withdraws a request.
const UNFOLLOW: &str = "
    WITH ended AS (DELETE FROM follows WHERE follower_id = $1 AND following_id = $2)
    SELECT EXISTS (SELECT FROM users WHERE id = $2 AND deleted_at IS NULL)";

/// `POST /api/follows/{userId}`. The account may be protected: then it is asked, and `accepted` is false.
pub(crate) async fn follow(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(user): Id,
) -> Result<Response, Problem> {
    if user == viewer {
        return Err(Kind::FollowsOneself.because("userId is your own."));
    }
    let statements = [(LOCK_PAIR, [&viewer as _, &user as _]), (FOLLOW, [&viewer as _, &user as _])];
    let (rows, lsn) =
        context.database.commit_all(&statements.each_ref().map(|(sql, params)| (*sql, &params[..]))).await?;
    let row = rows.first().ok_or_else(no_row)?;
    let (exists, blocked): (bool, bool) = (get(row, 0)?, get(row, 1)?);
    let (made, before): (Option<bool>, Option<bool>) = (get(row, 2)?, get(row, 3)?);
    if !exists {
        return Err(no_user());
    }
    if blocked {
        return Err(Kind::Blocked.because("You cannot follow an account that blocks you or that you block."));
    }
    let (status, accepted) = match (made, before) {
        (Some(accepted), _) => (StatusCode::CREATED, accepted),
        (None, Some(accepted)) => (StatusCode::OK, accepted),
        (None, None) => return Err(account_gone()),
    };
    let body = Json(json!({ "userId": user.to_string(), "accepted": accepted }));
    Ok(context.written(lsn, (status, body)))
}

/// `DELETE /api/follows/{userId}`.
pub(crate) async fn unfollow(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(user): Id,
) -> Result<Response, Problem> {
    if user == viewer {
        return Err(Kind::FollowsOneself.because("userId is your own."));
    }
    let (rows, lsn) = context.database.commit(UNFOLLOW, &[&viewer, &user]).await?;
    match get(rows.first().ok_or_else(no_row)?, 0)? {
        true => Ok(context.narrowed(lsn, StatusCode::NO_CONTENT).await),
        false => Err(no_user()),
    }
}

/// `GET /api/follows/{userId}/followers`.
pub(crate) async fn followers(
    State(context): State<Shared>,
    viewer: Option<Viewer>,
    Id(user): Id,
    list: List<Edge>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    context.catch_up(&headers, Phase::Rows).await?;
    let viewer = viewer.map(|viewer| viewer.0);
    let page = followers_page(context.views.as_ref(), viewer, user, list.cursor, list.limit).await?;
    Ok(users_page(&uri, &list, &granted(page)?))
}

/// `GET /api/follows/{userId}/following`.
pub(crate) async fn following(
    State(context): State<Shared>,
    viewer: Option<Viewer>,
    Id(user): Id,
    list: List<Edge>,
    OriginalUri(uri): OriginalUri,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    context.catch_up(&headers, Phase::Rows).await?;
    let viewer = viewer.map(|viewer| viewer.0);
    let page = following_page(context.views.as_ref(), viewer, user, list.cursor, list.limit).await?;
    Ok(users_page(&uri, &list, &granted(page)?))
}

/// What the viewer may read of an account.
pub(super) fn granted<T>(access: Access<T>) -> Result<T, Problem> {
    match access {
        Access::Granted(value) => Ok(value),
        Access::Hidden => Err(Kind::NotVisible.because(
            "The account is protected and you do not follow it, or one of the two accounts blocks the other.",
        )),
        Access::NotFound => Err(no_user()),
    }
}

pub(super) fn no_user() -> Problem {
    Kind::UserNotFound.because("The user never was, or was deleted.")
}

fn get<'a, T: tokio_postgres::types::FromSql<'a>>(row: &'a tokio_postgres::Row, column: usize) -> Result<T, Problem> {
    row.try_get(column).map_err(|error| DatabaseError::from(error).into())
}
