//! Who asks.
//!
//! A user's token is trusted as long as it holds, unless its session has ended or the facts say that the account was
//! deleted. An account that the views do not know yet was registered a moment ago, and is trusted too: the facts of a
//! deletion come before everything else, and stay.

use axum::extract::{FromRequestParts, OptionalFromRequestParts};
use axum::http::HeaderMap;
use axum::http::header::AUTHORIZATION;
use axum::http::request::Parts;

use crate::answer::now_ms;
use crate::database::DatabaseError;
use crate::keys::{Bearer, Keys};
use crate::own_writes::Asker;
use crate::problem::{Kind, Problem};
use crate::state::{Context, Shared};

/// Whether an account was deleted, of one that is there.
const DELETED: &str = "SELECT deleted_at IS NOT NULL FROM users WHERE id = $1";

const SIGN_IN: &str = "Send `Authorization: Bearer <token>`, as login gives it.";

/// What came in `Authorization`. It is looked at once a request, and then a part of that.
#[derive(Clone, Copy)]
pub(crate) enum Authorization {
    Absent,
    /// It is none of ours, or its time is over.
    Refused,
    /// A token that holds, unless its session has ended.
    Holds(Bearer),
}

impl Authorization {
    pub fn of(headers: &HeaderMap, keys: &Keys) -> Self {
        let Some(header) = headers.get(AUTHORIZATION) else { return Authorization::Absent };
        let token = header.to_str().ok().and_then(|header| header.split_once(' '));
        match token.map(|(scheme, token)| (scheme.eq_ignore_ascii_case("bearer"), keys.bearer_of(token.trim()))) {
            Some((true, Ok(bearer))) => Authorization::Holds(bearer),
            Some((true, Err(error))) => {
                tracing::debug!(%error, "a token is refused");
                Authorization::Refused
            }
            _ => Authorization::Refused,
        }
    }
}

/// The signed-in user. As `Option<Viewer>`: nobody when no token came, but a token that came must hold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Viewer(pub i64);

impl FromRequestParts<Shared> for Viewer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Self, Problem> {
        let viewer = <Viewer as OptionalFromRequestParts<Shared>>::from_request_parts(parts, context).await?;
        viewer.ok_or_else(|| Kind::Unauthenticated.because(SIGN_IN))
    }
}

impl OptionalFromRequestParts<Shared> for Viewer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Option<Self>, Problem> {
        let bearer = <Bearer as OptionalFromRequestParts<Shared>>::from_request_parts(parts, context).await?;
        Ok(bearer.map(|bearer| Viewer(bearer.user)))
    }
}

impl FromRequestParts<Shared> for Bearer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Self, Problem> {
        let bearer = <Bearer as OptionalFromRequestParts<Shared>>::from_request_parts(parts, context).await?;
        bearer.ok_or_else(|| Kind::Unauthenticated.because(SIGN_IN))
    }
}

impl OptionalFromRequestParts<Shared> for Bearer {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, context: &Shared) -> Result<Option<Self>, Problem> {
        let known = parts.extensions.get().copied();
        let refused =
            || Kind::Unauthenticated.because("The token is not valid, or not any more. Refresh it, or log in.");
        let bearer = match known.unwrap_or_else(|| Authorization::of(&parts.headers, &context.keys)) {
            Authorization::Absent => return Ok(None),
            Authorization::Holds(bearer) if context.admit(&bearer).await? => bearer,
            Authorization::Refused | Authorization::Holds(_) => return Err(refused()),
        };
        if let Some(asker) = parts.extensions.get::<Asker>() {
            asker.is(Viewer(bearer.user));
        }
        Ok(Some(bearer))
    }
}

impl Context {
    /// Lets the holder of a token or ticket in, and notes the activity; not one whose session has ended or whose account
    /// was deleted.
    pub async fn admit(&self, bearer: &Bearer) -> Result<bool, Problem> {
        if self.revoked.has(bearer) || self.is_deleted(Viewer(bearer.user)).await? {
            return Ok(false);
        }
        self.activity.note(bearer.user, now_ms());
        Ok(true)
    }

    async fn is_deleted(&self, Viewer(id): Viewer) -> Result<bool, Problem> {
        match self.views.relationships(None, &[id]).await {
            Ok(facts) => Ok(facts.first().is_some_and(|facts| facts.deleted)),
            // A write goes on while the facts are being built again, or their server is away.
            Err(error) => {
                tracing::debug!(%error, "the database is asked for an account instead of the facts");
                let rows = self.database.query(DELETED, &[&id]).await?;
                let deleted = rows.first().map(|row| row.try_get(0)).transpose().map_err(DatabaseError::from)?;
                Ok(deleted.unwrap_or(false))
            }
        }
    }
}

/// The account that writes is gone, although the facts do not say so yet.
pub(crate) fn account_gone() -> Problem {
    Kind::Unauthenticated.because("The account of this token does not exist any more.")
}
