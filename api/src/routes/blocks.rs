//! Blocks and mutes: made and ended. Doing either twice is the same as once.

use axum::extract::State;
use axum::response::Response;

use super::follows::no_user;
use crate::database::column;
use crate::problem::{Failed, Kind, Problem};
use crate::request::Id;
use crate::state::{Context, Shared};
use crate::viewer::Viewer;
use crate::write::Answer;

/// The table's trigger ends the follows between the two.
const BLOCK: &str = "
    WITH target AS (
        SELECT id FROM users WHERE id = $2 AND deleted_at IS NULL
    ), made AS (
        INSERT INTO blocks (blocker_id, blocked_id) SELECT $1::bigint, id FROM target ON CONFLICT DO NOTHING
    )
    SELECT EXISTS (SELECT FROM target)";

const UNBLOCK: &str = "
    WITH ended AS (DELETE FROM blocks WHERE blocker_id = $1 AND blocked_id = $2 RETURNING true)
    SELECT EXISTS (SELECT FROM ended) OR EXISTS (SELECT FROM users WHERE id = $2 AND deleted_at IS NULL)";

const MUTE: &str = "
    WITH target AS (
        SELECT id FROM users WHERE id = $2 AND deleted_at IS NULL
    ), made AS (
        INSERT INTO mutes (muter_id, muted_id) SELECT $1::bigint, id FROM target ON CONFLICT DO NOTHING
    )
    SELECT EXISTS (SELECT FROM target)";

const UNMUTE: &str = "
    WITH ended AS (DELETE FROM mutes WHERE muter_id = $1 AND muted_id = $2 RETURNING true)
    SELECT EXISTS (SELECT FROM ended) OR EXISTS (SELECT FROM users WHERE id = $2 AND deleted_at IS NULL)";

/// Blocks an account: neither of the two reads or follows the other any more.
#[utoipa::path(
    put, path = "/blocks/{userId}", tag = "blocks and mutes",
    params(("userId" = String, Path, description = "Whom.", pattern = "^-?[0-9]{1,19}$")),
    responses((status = 204, description = "It is blocked."), Failed), security(("token" = [])),
)]
pub(crate) async fn block(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(user): Id,
) -> Result<Response, Problem> {
    context.narrow(BLOCK, viewer, user).await
}

/// Ends a block. The follows that it ended do not come back.
#[utoipa::path(
    delete, path = "/blocks/{userId}", tag = "blocks and mutes",
    params(("userId" = String, Path, description = "Whom.", pattern = "^-?[0-9]{1,19}$")),
    responses((status = 204, description = "It is not blocked."), Failed), security(("token" = [])),
)]
pub(crate) async fn unblock(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(user): Id,
) -> Result<Response, Problem> {
    context.widen(UNBLOCK, viewer, user).await
}

/// Mutes an account: nothing of it comes to your timelines and notifications. It is not told.
#[utoipa::path(
    put, path = "/mutes/{userId}", tag = "blocks and mutes",
    params(("userId" = String, Path, description = "Whom.", pattern = "^-?[0-9]{1,19}$")),
    responses((status = 204, description = "It is muted."), Failed), security(("token" = [])),
)]
pub(crate) async fn mute(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(user): Id,
) -> Result<Response, Problem> {
    context.narrow(MUTE, viewer, user).await
}

/// Ends a mute.
#[utoipa::path(
    delete, path = "/mutes/{userId}", tag = "blocks and mutes",
    params(("userId" = String, Path, description = "Whom.", pattern = "^-?[0-9]{1,19}$")),
    responses((status = 204, description = "It is not muted."), Failed), security(("token" = [])),
)]
pub(crate) async fn unmute(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(user): Id,
) -> Result<Response, Problem> {
    context.widen(UNMUTE, viewer, user).await
}

impl Context {
    async fn narrow(&self, sql: &str, viewer: i64, user: i64) -> Result<Response, Problem> {
        if user == viewer {
            return Err(Kind::Oneself.because("userId is your own."));
        }
        let (rows, lsn) = self.database.commit(sql, &[&viewer, &user]).await?;
        match column(rows.first().ok_or_else(no_user)?, 0)? {
            true => Ok(self.narrowed(lsn, Answer::done()).await),
            false => Err(no_user()),
        }
    }

    async fn widen(&self, sql: &str, viewer: i64, user: i64) -> Result<Response, Problem> {
        let (rows, lsn) = self.database.commit(sql, &[&viewer, &user]).await?;
        match column(rows.first().ok_or_else(no_user)?, 0)? {
            true => Ok(self.written(lsn, Answer::done())),
            false => Err(no_user()),
        }
    }
}
