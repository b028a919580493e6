//! Registration, login, and how a session goes on and ends.

use std::sync::Arc;

use axum::extract::State;
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use axum::{Extension, Json};
use feedmill_model::Phase;
use feedmill_sinks::Profile;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use super::me::user_of;
use crate::address::ClientNetwork;
use crate::answer::{UserBody, as_of, now_ms};
use crate::database::{Params, column};
use crate::keys::Bearer;
use crate::problem::{Failed, Kind, Problem};
use crate::reader::Reader;
use crate::request::Body;
use crate::rules::{check_display_name, check_email, check_password, check_username};
use crate::sessions::RefreshToken;
use crate::state::{Context, Shared};
use crate::viewer::Viewer;
use crate::write::{Answer, Once, OnceHeader, reused};

/// One statement, so one transaction; foreign keys are checked at its end.
const REGISTER: &str = "
    WITH account AS (
        INSERT INTO accounts (username, email, password_hash) VALUES ($1, $2, $3) RETURNING user_id, username
    ), registered AS (
        INSERT INTO users (id, username, display_name) SELECT user_id, username, $4 FROM account
        RETURNING id, username, display_name, bio, avatar_url, verified, protected, created_at
    ), seen AS (
        INSERT INTO activity (user_id, day) SELECT id, (now() AT TIME ZONE 'UTC')::date FROM registered
    ), session AS (
        INSERT INTO sessions (user_id, expires_at, family_hash, refresh_hash)
        SELECT user_id, now() + $5::bigint * interval '1 second', $6, $7 FROM account
        RETURNING id
    )
    SELECT id, username, display_name, bio, avatar_url, verified, protected, feedmill_micros(created_at),
           (SELECT id FROM session)
    FROM registered";

/// The account of which a column is `$1`, whose letters A–Z are small ones. PostgreSQL must not fold `$1` once more: by the
/// rules of its own locale it may make one name of many, and each would be tried as often as one may be.
macro_rules! login_by {
    ($column:literal) => {
        concat!(
            "SELECT u.id, u.username, u.display_name, u.bio, u.avatar_url, u.verified, u.protected,
                    feedmill_micros(u.created_at), a.password_hash
             FROM accounts a JOIN users u ON u.id = a.user_id
             WHERE lower(a.",
            $column,
            ") = $1 AND u.deleted_at IS NULL"
        )
    };
}

/// Opens a session, if the password is still the one that was checked. Whoever changes it ends sessions after that, and
/// waits for this to be committed: none that was opened with the old one is overlooked.
const OPEN: &str = "
    WITH holder AS (
        SELECT user_id FROM accounts WHERE user_id = $1 AND password_hash = $2 FOR SHARE
    )
    INSERT INTO sessions (user_id, expires_at, family_hash, refresh_hash)
    SELECT user_id, now() + $3::bigint * interval '1 second', $4, $5 FROM holder
    RETURNING id";

/// Renews a session that has the family's secret `$2`; if its other secret is not `$3` any more, the session ends.
const REFRESH: &str = "
    UPDATE sessions SET
        refresh_hash = CASE WHEN refresh_hash = $3 THEN $4 ELSE refresh_hash END,
        expires_at = CASE WHEN refresh_hash = $3 THEN now() + $5::bigint * interval '1 second' ELSE expires_at END,
        revoked_at = CASE WHEN refresh_hash = $3 THEN NULL ELSE now() END
    WHERE id = $1 AND family_hash = $2 AND revoked_at IS NULL AND expires_at > now()
    RETURNING user_id, revoked_at IS NULL";

const LOGOUT: &str = "UPDATE sessions SET revoked_at = now() WHERE id = $1 AND user_id = $2 AND revoked_at IS NULL";

const PASSWORD: &str = "SELECT password_hash FROM accounts WHERE user_id = $1";

/// Only while the password is the one that was checked.
const CHANGE_PASSWORD: &str = "UPDATE accounts SET password_hash = $3 WHERE user_id = $1 AND password_hash = $2";

/// Ends the sessions of the user `$1` but `$2`, if the password is `$3`; tells whether it is, and which ended.
const END_OTHERS: &str = "
    WITH changed AS (
        SELECT user_id FROM accounts WHERE user_id = $1 AND password_hash = $3
    ), ended AS (
        UPDATE sessions SET revoked_at = now()
        WHERE user_id IN (SELECT user_id FROM changed) AND id IS DISTINCT FROM $2 AND revoked_at IS NULL
        RETURNING id
    )
    SELECT EXISTS (SELECT FROM changed), ARRAY(SELECT id FROM ended)";

/// A new account.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Registration {
    /// Letters a–z of either case, digits and underscores. No two accounts have the same but for case.
    #[schema(min_length = 1, max_length = 30, pattern = "^[A-Za-z0-9_]+$", example = "ada")]
    username: String,
    /// An address that no other account has.
    #[schema(max_length = 254, example = "ada@example.org")]
    email: String,
    /// At least 8 characters.
    #[schema(min_length = 8, max_length = 128, example = "correct horse battery")]
    password: String,
    /// The name as shown, on one line.
    #[schema(min_length = 1, max_length = 50, example = "Ada")]
    display_name: String,
}

impl Registration {
    fn check(&self) -> Result<(), Problem> {
        check_username(&self.username)?;
        check_email(&self.email)?;
        check_password(&self.password, "password")?;
        check_display_name(&self.display_name)
    }
}

/// Registers an account, and signs it in.
#[utoipa::path(
    post, path = "/auth/register", tag = "accounts", request_body = Registration,
    responses((status = 201, description = "The account, signed in.", body = SessionBody), Failed), security(()),
)]
pub(crate) async fn register(
    State(context): State<Shared>,
    Body(registration): Body<Registration>,
) -> Result<Response, Problem> {
    registration.check()?;
    let Registration { username, email, password, display_name } = registration;
    let hash = context.passwords.hash(password).await?;
    let mut refresh = RefreshToken::new()?;
    let (family, secret) = refresh.hashes();
    let params: Params<'_> = &[&username, &email, &hash, &display_name, &context.session_s(), &family, &secret];
    let written = context.database.commit(REGISTER, params).await;
    let (rows, lsn) = written.map_err(|error| match error.constraint() {
        Some("accounts_username_key") => Kind::Taken.because("This username is taken.").field("username"),
        Some("accounts_email_key") => Kind::Taken.because("This address has an account.").field("email"),
        _ => error.into(),
    })?;
    let row = rows.first().ok_or_else(no_row)?;
    let profile = Profile { user: user_of(row)?, followers: 0, following: 0, tweets: 0 };
    refresh.session = column(row, 8)?;
    let tokens = context.tokens_of(profile.user.id, &refresh)?;
    let body = SessionBody { tokens, user: UserBody::from(&profile) };
    let writer = Extension(Viewer(profile.user.id));
    Ok(context.written(lsn, (StatusCode::CREATED, writer, Json(body))))
}

/// Who signs in: a username or an address, and the password.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Credentials {
    #[schema(example = "ada")]
    username: Option<String>,
    email: Option<String>,
    #[schema(example = "correct horse battery")]
    password: String,
}

/// What a client signs its requests with.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Tokens)]
pub(crate) struct TokensBody {
    /// Sent as `Authorization: Bearer <token>` with each request.
    token: String,
    /// For how many seconds from now `token` holds.
    expires_in: u64,
    /// What the next tokens come for, once.
    refresh_token: String,
}

/// A signed-in account.
#[derive(Serialize, ToSchema)]
#[schema(as = Session)]
struct SessionBody<'a> {
    #[serde(flatten)]
    tokens: TokensBody,
    user: UserBody<'a>,
}

/// The signed-in account.
#[derive(Serialize, ToSchema)]
#[schema(as = Verified)]
struct VerifiedBody<'a> {
    user: UserBody<'a>,
}

/// Signs in. An unknown name and a wrong password have the same answer after the same work.
#[utoipa::path(
    post, path = "/auth/login", tag = "accounts", request_body = Credentials,
    responses((status = 200, description = "The account, signed in.", body = SessionBody), Failed), security(()),
)]
pub(crate) async fn login(
    State(context): State<Shared>,
    ClientNetwork(from): ClientNetwork,
    Body(credentials): Body<Credentials>,
) -> Result<Response, Problem> {
    let (sql, mut name) = match (credentials.username, credentials.email) {
        (Some(name), None) => (login_by!("username"), name),
        (None, Some(email)) => (login_by!("email"), email),
        _ => return Err(Kind::InvalidBody.because("Give either username or email.")),
    };
    // What is counted is what is looked up.
    name.make_ascii_lowercase();
    context.limits.sign_in(&name, from)?;
    // What no account can have is asked for like the rest, except what PostgreSQL cannot be asked.
    let rows = match name.contains('\0') {
        true => Vec::new(),
        false => context.database.query(sql, &[&name]).await?,
    };
    let row = rows.first();
    let hash: Option<String> = row.map(|row| column(row, 8)).transpose()?.flatten();
    let right = context.passwords.is_right(credentials.password, hash.clone()).await?;
    let refused = || Kind::InvalidCredentials.because("There is no account with this name and this password.");
    let user = user_of(row.filter(|_| right).ok_or_else(refused)?)?;
    let profile = context.profile(user.id).await;
    let mut refresh = RefreshToken::new()?;
    let (family, secret) = refresh.hashes();
    let params: Params<'_> = &[&user.id, &hash, &context.session_s(), &family, &secret];
    let opened = context.database.query(OPEN, params).await?;
    refresh.session = column(opened.first().ok_or_else(refused)?, 0)?;
    context.activity.note(user.id, now_ms());
    let tokens = context.tokens_of(user.id, &refresh)?;
    let profile = profile.unwrap_or_else(|| Arc::new(Profile { user, followers: 0, following: 0, tweets: 0 }));
    Ok(Json(SessionBody { tokens, user: UserBody::from(profile.as_ref()) }).into_response())
}

/// Tells whose token it is.
#[utoipa::path(
    get, path = "/auth/verify", tag = "accounts",
    responses((status = 200, description = "The token holds.", body = VerifiedBody), Failed), security(("token" = [])),
)]
pub(crate) async fn verify(State(context): State<Shared>, reader: Reader<Viewer>) -> Result<Response, Problem> {
    context.catch_up(&reader, Phase::Rows).await?;
    let time = context.views.time(Phase::Rows);
    let profile = context.account(reader.id()).await?;
    Ok(as_of(time, Json(VerifiedBody { user: UserBody::from(profile.as_ref()) })))
}

/// What renews a session.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Refresh {
    /// The `refreshToken` that came last.
    refresh_token: String,
}

/// Renews a session: the next tokens come for the refresh token, which is good for that once.
///
/// One that was used before ends the session, for somebody else may have used it.
#[utoipa::path(
    post, path = "/auth/refresh", tag = "accounts", request_body = Refresh,
    responses((status = 200, description = "The next tokens.", body = TokensBody), Failed), security(()),
)]
pub(crate) async fn refresh(
    State(context): State<Shared>,
    Body(Refresh { refresh_token }): Body<Refresh>,
) -> Result<Response, Problem> {
    let refused = || Kind::Unauthenticated.because("The refresh token is not valid, or not any more. Log in again.");
    let token = RefreshToken::parse(&refresh_token).ok_or_else(refused)?;
    let next = token.next()?;
    let ((family, old), (_, new)) = (token.hashes(), next.hashes());
    let params: Params<'_> = &[&token.session, &family, &old, &new, &context.session_s()];
    let rows = context.database.query(REFRESH, params).await?;
    let row = rows.first().ok_or_else(refused)?;
    let (user, renewed): (i64, bool) = (column(row, 0)?, column(row, 1)?);
    if !renewed {
        tracing::warn!(user, session = token.session, "a refresh token was used twice: its session ends");
        context.revoked.add([token.session]);
        return Err(refused());
    }
    Ok(Json(context.tokens_of(user, &next)?).into_response())
}

/// Signs out: the session of the token ends, and with it its other tokens.
#[utoipa::path(
    post, path = "/auth/logout", tag = "accounts",
    responses((status = 204, description = "You are signed out."), Failed), security(("token" = [])),
)]
pub(crate) async fn logout(State(context): State<Shared>, bearer: Bearer) -> Result<StatusCode, Problem> {
    // An operator's own token has no session.
    if let Some(session) = bearer.session {
        context.database.query(LOGOUT, &[&session, &bearer.user]).await?;
        context.revoked.add([session]);
    }
    Ok(StatusCode::NO_CONTENT)
}

/// A new password, and the one before.
#[derive(Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NewPassword {
    /// The one until now.
    #[schema(example = "correct horse battery")]
    password: String,
    /// At least 8 characters.
    #[schema(min_length = 8, max_length = 128, example = "staple battery horse")]
    new_password: String,
}

/// Changes the password. All other sessions end; this one goes on.
#[utoipa::path(
    post, path = "/auth/password", tag = "accounts", request_body = NewPassword, params(OnceHeader),
    responses((status = 204, description = "It is changed."), Failed), security(("token" = [])),
)]
pub(crate) async fn change_password(
    State(context): State<Shared>,
    bearer: Bearer,
    once: Once,
    Body(NewPassword { password, new_password }): Body<NewPassword>,
) -> Result<Response, Problem> {
    check_password(&new_password, "newPassword")?;
    // Neither password is a part of what is kept of the request. Sent again, the old one is none any more.
    if let Some(done) = context.done_before(bearer.user, &once).await? {
        context.changed_to(bearer.user, new_password).await?;
        return Ok(context.written(done.lsn, done.answer));
    }
    let hash = context.checked(bearer.user, password).await?;
    let new = context.passwords.hash(new_password.clone()).await?;
    let statements: [(_, Params<'_>); 2] =
        [(CHANGE_PASSWORD, &[&bearer.user, &hash, &new]), (END_OTHERS, &[&bearer.user, &bearer.session, &new])];
    let mut ended = Vec::new();
    let done = context
        .write(bearer.user, once, &statements, |rows| {
            let row = rows.first().ok_or_else(no_row)?;
            ended = column(row, 1)?;
            match column(row, 0)? {
                true => Ok(Answer::done()),
                false => Err(wrong_password()),
            }
        })
        .await?;
    if done.before {
        context.changed_to(bearer.user, new_password).await?;
    }
    context.revoked.add(ended);
    Ok(context.written(done.lsn, done.answer))
}

impl Context {
    /// Checks the password of a user who is signed in; gives its hash. Whoever has a token alone cannot guess for long.
    pub(super) async fn checked(&self, user: i64, password: String) -> Result<String, Problem> {
        self.limits.confirmation(user)?;
        let rows = self.database.query(PASSWORD, &[&user]).await?;
        let hash: Option<String> = rows.first().map(|row| column(row, 0)).transpose()?.flatten();
        match self.passwords.is_right(password, hash.clone()).await? {
            true => hash.ok_or_else(wrong_password),
            false => Err(wrong_password()),
        }
    }

    /// Checks that a change of the password which an earlier request made was to this one.
    async fn changed_to(&self, user: i64, password: String) -> Result<(), Problem> {
        match self.checked(user, password).await {
            Err(problem) if problem.kind() == Kind::WrongPassword => Err(reused()),
            checked => checked.map(drop),
        }
    }

    /// For how many seconds one stays signed in.
    fn session_s(&self) -> i64 {
        i64::try_from(self.settings.session.as_secs()).unwrap_or(i64::MAX)
    }

    /// What signs a user in, in a session that was just opened or renewed.
    fn tokens_of(&self, user: i64, refresh: &RefreshToken) -> Result<TokensBody, Problem> {
        let access = self.settings.access;
        let token = self.keys.session_token(user, refresh.session, access).ok_or_else(|| {
            tracing::error!("a token could not be signed");
            Kind::Internal.because("The session could not be signed.")
        })?;
        Ok(TokensBody { token, expires_in: access.as_secs(), refresh_token: refresh.text() })
    }
}

pub(super) fn wrong_password() -> Problem {
    Kind::WrongPassword.because("This is not the password of your account.").field("password")
}

/// A statement that always gives a row has given none.
pub(super) fn no_row() -> Problem {
    tracing::error!("a statement gave no row where it always gives one");
    Kind::Internal.because("The database gave no answer.")
}
