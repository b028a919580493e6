//! Follows: begin and end.

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use feedmill_sinks::read::Access;
use serde::Serialize;
use utoipa::ToSchema;

use super::auth::no_row;
use crate::answer::IdText;
use crate::database::{Params, column};
use crate::problem::{Failed, Kind, Problem};
use crate::request::Id;
use crate::state::Shared;
use crate::viewer::{Viewer, account_gone};
use crate::write::{Answer, Once, OnceHeader};

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

/// A follow, or a request for one.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Follow)]
struct FollowBody {
    user_id: IdText,
    /// Whether the account followed has accepted; one that is not protected does at once.
    accepted: bool,
}

/// Follows an account. It may be protected: then it is asked, and `accepted` is false.
#[utoipa::path(
    post, path = "/follows/{userId}", tag = "follows",
    params(("userId" = String, Path, description = "Whom.", pattern = "^-?[0-9]{1,19}$"), OnceHeader),
    responses(
        (status = 201, description = "It is followed, or asked.", body = FollowBody),
        (status = 200, description = "It was before.", body = FollowBody),
        Failed,
    ),
    security(("token" = [])),
)]
pub(crate) async fn follow(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(user): Id,
    once: Once,
) -> Result<Response, Problem> {
    if user == viewer {
        return Err(Kind::FollowsOneself.because("userId is your own."));
    }
    let statements: [(_, Params<'_>); 2] = [(LOCK_PAIR, &[&viewer, &user]), (FOLLOW, &[&viewer, &user])];
    let done = context
        .write(viewer, once, &statements, |rows| {
            let row = rows.first().ok_or_else(no_row)?;
            let (exists, blocked): (bool, bool) = (column(row, 0)?, column(row, 1)?);
            let (made, before): (Option<bool>, Option<bool>) = (column(row, 2)?, column(row, 3)?);
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
            Answer::json(status, &FollowBody { user_id: IdText(user), accepted })
        })
        .await?;
    Ok(context.written(done.lsn, done.answer))
}

/// Ends a follow, or withdraws a request.
#[utoipa::path(
    delete, path = "/follows/{userId}", tag = "follows", params(("userId" = String, Path, description = "Whom.")),
    responses((status = 204, description = "It is not followed."), Failed), security(("token" = [])),
)]
pub(crate) async fn unfollow(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(user): Id,
) -> Result<Response, Problem> {
    if user == viewer {
        return Err(Kind::FollowsOneself.because("userId is your own."));
    }
    let (rows, lsn) = context.database.commit(UNFOLLOW, &[&viewer, &user]).await?;
    match column(rows.first().ok_or_else(no_row)?, 0)? {
        true => Ok(context.narrowed(lsn, StatusCode::NO_CONTENT).await),
        false => Err(no_user()),
    }
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
