//! How far an account has read what happened to it.

use axum::extract::State;
use axum::response::Response;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::problem::{Failed, Problem};
use crate::request::{Body, id_in};
use crate::state::Shared;
use crate::viewer::Viewer;
use crate::write::{Answer, Once, OnceHeader};

/// A mark never goes back, and never beyond now: what happens later is unread.
const MARK: &str = "
    INSERT INTO read_marks (user_id, notifications_id)
    VALUES ($1, least($2, ((extract(epoch FROM clock_timestamp()) * 1000)::bigint + 1) << 16))
    ON CONFLICT (user_id) DO UPDATE SET notifications_id = EXCLUDED.notifications_id
    WHERE read_marks.notifications_id < EXCLUDED.notifications_id";

/// How far notifications were read.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct ReadUpTo {
    /// The id of the newest notification that was read.
    #[schema(pattern = "^-?[0-9]{1,19}$", example = "111405301760")]
    up_to: String,
}

/// Marks notifications as read, up to one of them and including it.
///
/// A mark never goes back: an earlier one than before changes nothing.
#[utoipa::path(
    post, path = "/notifications/read", tag = "notifications", request_body = ReadUpTo, params(OnceHeader),
    responses((status = 204, description = "They are read."), Failed), security(("token" = [])),
)]
pub(crate) async fn mark(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    once: Once,
    Body(read): Body<ReadUpTo>,
) -> Result<Response, Problem> {
    let up_to = id_in(&read.up_to, "upTo")?;
    let once = once.with(&read);
    let done = context.write(viewer, once, &[(MARK, &[&viewer, &up_to])], |_| Ok(Answer::done())).await?;
    Ok(context.written(done.lsn, done.answer))
}
