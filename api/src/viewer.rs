//! Who asks.
//!
//! A user's token is trusted as long as it holds, unless the facts say that the account was deleted. An account that the
//! views do not know yet was registered a moment ago, and is trusted too: the facts of a deletion come before everything
//! else, and stay.

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use crate::answer::now_ms;
use crate::database::DatabaseError;
use crate::problem::{Kind, Problem};
use crate::state::{Context, Shared};

/// Whether an account was deleted, of one that is there.
const DELETED: &str = "SELECT deleted_at IS NOT NULL FROM users WHERE id = $1";

/// The signed-in user. As `Option<Viewer>`: nobody when no token came, but a token that came must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Viewer(pub i64);

impl FromRequestParts<Shared> for Viewer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Self, Problem> {
        let viewer = <Viewer as OptionalFromRequestParts<Shared>>::from_request_parts(parts, context).await?;
        viewer.ok_or_else(|| Kind::Unauthenticated.because("Send `Authorization: Bearer <token>`, as login gives it."))
    }
}

impl OptionalFromRequestParts<Shared> for Viewer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Option<Self>, Problem> {
        let Some(header) = parts.headers.get(AUTHORIZATION) else { return Ok(None) };
        let refused = || Kind::Unauthenticated.because("The token is not valid, or not any more. Log in again.");
        let token = header.to_str().ok().and_then(|header| header.split_once(' '));
        let Some((scheme, token)) = token else { return Err(refused()) };
        if !scheme.eq_ignore_ascii_case("bearer") {
            return Err(refused());
        }
        let viewer = context.keys.user_of(token.trim()).map(Viewer).map_err(|error| {
            tracing::debug!(%error, "a request was refused");
            refused()
        })?;
        if context.is_deleted(viewer).await? {
            return Err(refused());
        }
        context.activity.note(viewer.0, now_ms());
        Ok(Some(viewer))
    }
}

impl Context {
    async fn is_deleted(&self, Viewer(id): Viewer) -> Result<bool, Problem> {
        match self.views.relationships(None, &[id]).await {
            // A write goes on while the facts are being built again.
            Err(error) if error.rebuilding().is_some() => {
                let rows = self.database.query(DELETED, &[&id]).await?;
                let deleted = rows.first().map(|row| row.try_get(0)).transpose().map_err(DatabaseError::from)?;
                Ok(deleted.unwrap_or(false))
            }
            facts => Ok(facts?.first().is_some_and(|facts| facts.deleted)),
        }
    }
}

/// The account that writes is gone, although the facts do not say so yet.
pub(crate) fn account_gone() -> Problem {
    Kind::Unauthenticated.because("The account of this token does not exist any more.")
}
