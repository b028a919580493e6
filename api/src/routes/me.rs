//! One's own account: read, changed, deleted.

use std::sync::Arc;

use axum::extract::State;
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use feedmill_model::{Lsn, Timestamp, User};
use feedmill_sinks::Profile;
use serde::{Deserialize, Deserializer, Serialize};
use tokio_postgres::Row;
use utoipa::ToSchema;
use xxhash_rust::xxh3::xxh3_64;

use super::auth::wrong_password;
use crate::answer::{IdText, TimeText};
use crate::database::{DatabaseError, Params, column};
use crate::erasure;
use crate::problem::{Failed, Kind, Problem};
use crate::request::Body;
use crate::rules::{check_avatar_url, check_bio, check_display_name, check_username};
use crate::state::{Context, Shared};
use crate::viewer::{Viewer, account_gone};

const JSON: &str = "application/json";

const USER: &str = "
    SELECT id, username, display_name, bio, avatar_url, verified, protected, feedmill_micros(created_at)
    FROM users WHERE id = $1 AND deleted_at IS NULL";

const ACCOUNT: &str = "
    SELECT u.id, u.username, u.display_name, u.bio, u.avatar_url, u.verified, u.protected, feedmill_micros(u.created_at),
           feedmill_micros(u.updated_at), a.email
    FROM users u JOIN accounts a ON a.user_id = u.id
    WHERE u.id = $1 AND u.deleted_at IS NULL";

/// Changes what is given, if the row is of one of the versions `$2`; a flag says of what may be nothing whether it is
/// given. A version is never used again: two changes in the same microsecond are a microsecond apart. A new name goes
/// from the account to the user's row by the foreign key.
const CHANGE: &str = "
    WITH changed AS (
        UPDATE users SET
            display_name = coalesce($3, display_name),
            bio = CASE WHEN $4 THEN $5 ELSE bio END,
            avatar_url = CASE WHEN $6 THEN $7 ELSE avatar_url END,
            protected = coalesce($8, protected),
            updated_at = greatest(now(), updated_at + interval '1 microsecond')
        WHERE id = $1 AND deleted_at IS NULL AND ($2::bigint[] IS NULL OR feedmill_micros(updated_at) = ANY($2))
        RETURNING id, username, display_name, bio, avatar_url, verified, protected, created_at, updated_at
    ), renamed AS (
        UPDATE accounts SET username = $9
        WHERE $9::text IS NOT NULL AND user_id IN (SELECT id FROM changed) AND username <> $9
        RETURNING username
    )
    SELECT c.id, coalesce((SELECT username FROM renamed), c.username), c.display_name, c.bio, c.avatar_url, c.verified,
           c.protected, feedmill_micros(c.created_at), feedmill_micros(c.updated_at), a.email
    FROM changed c JOIN accounts a ON a.user_id = c.id";

/// Takes name, address and password from an account, if the password is the one that was checked. Its name can be taken
/// by another; this one has a letter that no registration lets in.
const CLOSE: &str = "
    UPDATE accounts SET username = '†' || to_hex(user_id), email = NULL, password_hash = NULL
    WHERE user_id = $1 AND password_hash = $2 RETURNING true";

const END_SESSIONS: &str = "
    UPDATE sessions SET revoked_at = now() WHERE user_id = $1 AND revoked_at IS NULL RETURNING id";

/// Who was protected stays so: nothing of the account is ever shown to more than before.
const EMPTY: &str = "
    UPDATE users SET display_name = '', bio = NULL, avatar_url = NULL, verified = false, deleted_at = now(),
                     updated_at = now()
    WHERE id = $1 AND deleted_at IS NULL";

/// The first columns of the queries, as a user.
pub(super) fn user_of(row: &Row) -> Result<User, DatabaseError> {
    Ok(User {
        id: column(row, 0)?,
        username: column(row, 1)?,
        display_name: column(row, 2)?,
        bio: column(row, 3)?,
        avatar_url: column(row, 4)?,
        verified: column(row, 5)?,
        protected: column(row, 6)?,
        created_at: column(row, 7)?,
        ..User::default()
    })
}

/// One's own account.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Account)]
pub(crate) struct AccountBody {
    id: IdText,
    username: String,
    display_name: String,
    bio: Option<String>,
    avatar_url: Option<String>,
    verified: bool,
    protected: bool,
    created_at: TimeText,
    /// Nobody else is shown it.
    email: Option<String>,
}

/// Reads one's own account, as it is at the moment. `ETag` is its version.
#[utoipa::path(
    get, path = "/users/me", tag = "accounts",
    responses((status = 200, description = "The account.", body = AccountBody), Failed), security(("token" = [])),
)]
pub(crate) async fn read(State(context): State<Shared>, Viewer(id): Viewer) -> Result<Response, Problem> {
    let rows = context.database.query(ACCOUNT, &[&id]).await?;
    answer(rows.first().ok_or_else(account_gone)?)
}

/// What is to change of one's own account; what is left out stays.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Change {
    /// Letters a–z of either case, digits and underscores. No two accounts have the same but for case.
    #[schema(min_length = 1, max_length = 30, pattern = "^[A-Za-z0-9_]+$", example = "ada")]
    username: Option<String>,
    /// The name as shown, on one line.
    #[schema(min_length = 1, max_length = 50, example = "Ada")]
    display_name: Option<String>,
    /// What the account says about itself; `null` for nothing.
    #[schema(value_type = Option<String>, max_length = 160, example = "Writes programs")]
    #[serde(default, deserialize_with = "given")]
    bio: Option<Option<String>>,
    /// An address that begins with https; `null` for none.
    #[schema(value_type = Option<String>, max_length = 2048, example = "https://media.example.org/ada.jpg")]
    #[serde(default, deserialize_with = "given")]
    avatar_url: Option<Option<String>>,
    /// Whether only those may read it who follow it, whom it lets. Requests to follow stay requests when it is not any
    /// more.
    protected: Option<bool>,
}

/// What is given, be it nothing.
fn given<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Option<String>>, D::Error> {
    Option::deserialize(deserializer).map(Some)
}

impl Change {
    fn check(&self) -> Result<(), Problem> {
        self.username.as_deref().map_or(Ok(()), check_username)?;
        self.display_name.as_deref().map_or(Ok(()), check_display_name)?;
        self.bio.iter().flatten().try_for_each(|bio| check_bio(bio))?;
        self.avatar_url.iter().flatten().try_for_each(|url| check_avatar_url(url))
    }
}

/// Changes one's own account.
///
/// With `If-Match: <ETag>` only if nobody has changed it since; else the answer is 412.
#[utoipa::path(
    patch, path = "/users/me", tag = "accounts", request_body = Change,
    params(("If-Match" = Option<String>, Header, description = "The `ETag` that the account must still have.")),
    responses((status = 200, description = "The account as it is now.", body = AccountBody), Failed),
    security(("token" = [])),
)]
pub(crate) async fn change(
    State(context): State<Shared>,
    Viewer(id): Viewer,
    headers: HeaderMap,
    Body(change): Body<Change>,
) -> Result<Response, Problem> {
    change.check()?;
    let versions = versions(&headers);
    let (bio, avatar) = (change.bio.clone().flatten(), change.avatar_url.clone().flatten());
    let params: Params<'_> = &[
        &id,
        &versions,
        &change.display_name,
        &change.bio.is_some(),
        &bio,
        &change.avatar_url.is_some(),
        &avatar,
        &change.protected,
        &change.username,
    ];
    let changed = context.database.commit(CHANGE, params).await;
    let (rows, lsn) = changed.map_err(|error| match error.constraint() {
        Some("accounts_username_key") => Kind::Taken.because("This username is taken.").field("username"),
        _ => error.into(),
    })?;
    let Some(row) = rows.first() else {
        return Err(match versions {
            Some(_) => Kind::PreconditionFailed.because("The account was changed since. Read it again."),
            None => account_gone(),
        });
    };
    let answer = answer(row)?;
    Ok(match change.protected {
        Some(true) => context.narrowed(lsn, answer).await,
        _ => context.written(lsn, answer),
    })
}

/// The versions that `If-Match` names; `None` where any will do. What is none of ours is no version.
fn versions(headers: &HeaderMap) -> Option<Vec<i64>> {
    let mut named = headers.get_all(header::IF_MATCH).iter().peekable();
    named.peek()?;
    let mut versions = Vec::new();
    for tag in named.filter_map(|value| value.to_str().ok()).flat_map(|tags| tags.split(',')).map(str::trim) {
        if tag == "*" {
            return None;
        }
        let tag = tag.strip_prefix('"').and_then(|tag| tag.strip_suffix('"'));
        let version = tag.and_then(|tag| tag.split('.').next());
        versions.extend(version.and_then(|version| version.parse::<i64>().ok()));
    }
    Some(versions)
}

impl AccountBody {
    /// The account of a user, with its address of mail.
    pub(super) fn of(user: User, email: Option<String>) -> Self {
        AccountBody {
            id: IdText(user.id),
            username: user.username,
            display_name: user.display_name,
            bio: user.bio,
            avatar_url: user.avatar_url,
            verified: user.verified,
            protected: user.protected,
            created_at: TimeText(user.created_at),
            email,
        }
    }
}

/// The account of a row. Its tag is its version, which `If-Match` is compared with, and a hash of the answer, because the
/// database may be changed without another version.
fn answer(row: &Row) -> Result<Response, Problem> {
    let updated_at: Timestamp = column(row, 8)?;
    let json = serde_json::to_vec(&AccountBody::of(user_of(row)?, column(row, 9)?)).map_err(|error| {
        tracing::error!(%error, "an account cannot be written as JSON");
        Kind::Internal.because("The account cannot be written.")
    })?;
    let tag = HeaderValue::try_from(format!("\"{updated_at}.{:016x}\"", xxh3_64(&json)));
    let mut answer = ([(header::CONTENT_TYPE, JSON)], json).into_response();
    if let Ok(tag) = tag {
        answer.headers_mut().insert(header::ETAG, tag);
    }
    Ok(answer)
}

/// What deleting an account needs.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub(crate) struct Confirmation {
    /// The password of the account.
    #[schema(example = "correct horse battery")]
    password: String,
}

/// Deletes one's own account, with all that it wrote and did. This cannot be undone.
///
/// Nobody reads anything of it once this is answered. Answers to its tweets keep their places.
#[utoipa::path(
    delete, path = "/users/me", tag = "accounts", request_body = Confirmation,
    responses((status = 204, description = "It is deleted."), Failed), security(("token" = [])),
)]
pub(crate) async fn delete(
    State(context): State<Shared>,
    Viewer(id): Viewer,
    Body(Confirmation { password }): Body<Confirmation>,
) -> Result<Response, Problem> {
    let hash = context.checked(id, password).await?;
    let mut session = context.database.session().await?;
    let transaction = session.begin().await?;
    if transaction.query(CLOSE, &[&id, &hash]).await?.is_empty() {
        return Err(wrong_password());
    }
    let ended = transaction.query(END_SESSIONS, &[&id]).await?;
    let ended = ended.iter().map(|row| column(row, 0)).collect::<Result<Vec<i64>, _>>()?;
    transaction.query(EMPTY, &[&id]).await?;
    erasure::begin(&transaction, id).await?;
    transaction.commit().await?;
    let lsn = session.position().await?;
    drop(session);
    context.revoked.add(ended);
    context.upkeep.erase();
    Ok(context.narrowed(lsn, StatusCode::NO_CONTENT).await)
}

impl Context {
    /// The signed-in user's own account: from the views, or from the database if it was registered a moment ago.
    pub(super) async fn account(&self, id: i64) -> Result<Arc<Profile>, Problem> {
        if let Some(profile) = self.views.profiles(&[id]).await?.pop().flatten() {
            return Ok(profile);
        }
        // A replica that has an account which the views do not have yet is further than they are.
        let rows = self.database.read(Lsn(0), USER, &[&id]).await?;
        Ok(Arc::new(Profile { user: registered(&rows)?, followers: 0, following: 0, tweets: 0 }))
    }

    /// A user as the views have it, if they do: while they are being built again, or their server is away, they have nobody.
    pub(super) async fn profile(&self, id: i64) -> Option<Arc<Profile>> {
        let found = self.views.profiles(&[id]).await;
        let found = found.inspect_err(|error| tracing::debug!(%error, "the database is asked instead of the views"));
        found.ok()?.pop().flatten()
    }

    /// The signed-in user's own row, for a write.
    pub(super) async fn writer(&self, id: i64) -> Result<User, Problem> {
        match self.profile(id).await {
            Some(profile) => Ok(Arc::unwrap_or_clone(profile).user),
            None => registered(&self.database.query(USER, &[&id]).await?),
        }
    }
}

/// A user's row as the database has it.
fn registered(rows: &[Row]) -> Result<User, Problem> {
    Ok(user_of(rows.first().ok_or_else(account_gone)?)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_those_that_were_given_out() {
        let of = |tags: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for tag in tags {
                headers.append(header::IF_MATCH, HeaderValue::from_static(tag));
            }
            versions(&headers)
        };
        assert_eq!(of(&[]), None);
        assert_eq!(of(&["*"]), None);
        assert_eq!(of(&["\"7.00c0ffee00c0ffee\""]), Some(vec![7]));
        assert_eq!(of(&["\"7.1\", \"8.2\"", "\"9\""]), Some(vec![7, 8, 9]));
        // A weak one never matches, by RFC 9110; neither does what is none.
        assert_eq!(of(&["W/\"7\""]), Some(Vec::new()));
        assert_eq!(of(&["7", "\"x\"", "\".7\"", ""]), Some(Vec::new()));
    }
}
