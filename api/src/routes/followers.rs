//! What an account decides about those who follow it, or ask to.

use axum::extract::State;
use axum::response::Response;

use super::follows::no_user;
use crate::database::column;
use crate::problem::{Failed, Kind, Problem};
use crate::request::Id;
use crate::state::Shared;
use crate::viewer::Viewer;
use crate::write::{Answer, Once, OnceHeader};

/// One that was accepted before stays so.
const ACCEPT: &str = "
    UPDATE follows SET accepted = true WHERE follower_id = $2 AND following_id = $1 RETURNING true";

const REJECT: &str = "
    DELETE FROM follows WHERE follower_id = $2 AND following_id = $1 AND NOT accepted RETURNING true";

const REMOVE: &str = "
    WITH ended AS (DELETE FROM follows WHERE follower_id = $2 AND following_id = $1 RETURNING true)
    SELECT EXISTS (SELECT FROM ended) OR EXISTS (SELECT FROM users WHERE id = $2 AND deleted_at IS NULL)";

/// Lets an account follow you that asks to.
#[utoipa::path(
    post, path = "/follows/requests/{userId}/accept", tag = "follows",
    params(("userId" = String, Path, description = "Who asks.", pattern = "^-?[0-9]{1,19}$"), OnceHeader),
    responses((status = 204, description = "It follows you."), Failed), security(("token" = [])),
)]
pub(crate) async fn accept(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(user): Id,
    once: Once,
) -> Result<Response, Problem> {
    let done = context.write(viewer, once, &[(ACCEPT, &[&viewer, &user])], asked).await?;
    Ok(context.written(done.lsn, done.answer))
}

/// Refuses an account that asks to follow you. It may ask again; a block keeps it from that.
#[utoipa::path(
    post, path = "/follows/requests/{userId}/reject", tag = "follows",
    params(("userId" = String, Path, description = "Who asks.", pattern = "^-?[0-9]{1,19}$"), OnceHeader),
    responses((status = 204, description = "The request is gone."), Failed), security(("token" = [])),
)]
pub(crate) async fn reject(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(user): Id,
    once: Once,
) -> Result<Response, Problem> {
    let done = context.write(viewer, once, &[(REJECT, &[&viewer, &user])], asked).await?;
    Ok(context.narrowed(done.lsn, done.answer).await)
}

/// Removes a follower, or a request. The account is not told, and may follow again.
#[utoipa::path(
    delete, path = "/follows/{userId}/follower", tag = "follows",
    params(("userId" = String, Path, description = "Who follows you.", pattern = "^-?[0-9]{1,19}$")),
    responses((status = 204, description = "It does not follow you."), Failed), security(("token" = [])),
)]
pub(crate) async fn remove(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(user): Id,
) -> Result<Response, Problem> {
    if user == viewer {
        return Err(Kind::Oneself.because("userId is your own."));
    }
    let (rows, lsn) = context.database.commit(REMOVE, &[&viewer, &user]).await?;
    match column(rows.first().ok_or_else(no_user)?, 0)? {
        true => Ok(context.narrowed(lsn, Answer::done()).await),
        false => Err(no_user()),
    }
}

fn asked(rows: &[tokio_postgres::Row]) -> Result<Answer, Problem> {
    match rows {
        [] => Err(Kind::FollowRequestNotFound.because("This account does not ask to follow you, or not any more.")),
        _ => Ok(Answer::done()),
    }
}
