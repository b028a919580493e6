//! Registration, login, and who one is.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::{IntoResponse, Response};
use feedmill_model::{Phase, User};
use feedmill_sinks::Profile;
use serde::Deserialize;
use serde_json::json;
use tokio_postgres::Row;

use crate::answer::{UserBody, as_of, now_ms};
use crate::database::DatabaseError;
use crate::problem::{Kind, Problem};
use crate::request::Body;
use crate::state::{Context, Shared};
use crate::viewer::{Viewer, account_gone};

/// One statement, so one transaction; foreign keys are checked at its end.
const REGISTER: &str = "
    WITH account AS (
        INSERT INTO accounts (username, email, password_hash) VALUES ($1, $2, $3) RETURNING user_id, username
    ), registered AS (
        INSERT INTO users (id, username, display_name) SELECT user_id, username, $4 FROM account
        RETURNING id, username, display_name, bio, avatar_url, verified, protected, created_at
    ), seen AS (
        INSERT INTO activity (user_id, day) SELECT id, (now() AT TIME ZONE 'UTC')::date FROM registered
    )
    SELECT id, username, display_name, bio, avatar_url, verified, protected, feedmill_micros(created_at) FROM registered";

const LOGIN_BY_NAME: &str = "
    SELECT u.id, u.username, u.display_name, u.bio, u.avatar_url, u.verified, u.protected,
           feedmill_micros(u.created_at), a.password_hash
    FROM accounts a JOIN users u ON u.id = a.user_id
    WHERE lower(a.username) = lower($1) AND u.deleted_at IS NULL";

const LOGIN_BY_EMAIL: &str = "
    SELECT u.id, u.username, u.display_name, u.bio, u.avatar_url, u.verified, u.protected,
           feedmill_micros(u.created_at), a.password_hash
    FROM accounts a JOIN users u ON u.id = a.user_id
    WHERE lower(a.email) = lower($1) AND u.deleted_at IS NULL";

const USER: &str = "
    SELECT id, username, display_name, bio, avatar_url, verified, protected, feedmill_micros(created_at)
    FROM users WHERE id = $1 AND deleted_at IS NULL";

/// Characters of a username; the schema says the same.
const USERNAME_MAX: usize = 30;
/// Characters of a name as shown.
const DISPLAY_NAME_MAX: usize = 50;
/// Characters of an address, by RFC 5321.
const EMAIL_MAX: usize = 254;
/// Characters of a password: as few as NIST SP 800-63B allows, and no more than are worth hashing.
const PASSWORD_CHARACTERS: std::ops::RangeInclusive<usize> = 8..=128;

/// The first columns of the queries above, as a user.
fn user_of(row: &Row) -> Result<User, DatabaseError> {
    Ok(User {
        id: row.try_get(0)?,
        username: row.try_get(1)?,
        display_name: row.try_get(2)?,
        bio: row.try_get(3)?,
        avatar_url: row.try_get(4)?,
        verified: row.try_get(5)?,
        protected: row.try_get(6)?,
        created_at: row.try_get(7)?,
        ..User::default()
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Registration {
    username: String,
    email: String,
    password: String,
    display_name: String,
}

impl Registration {
    fn check(&self) -> Result<(), Problem> {
        let wrong = |field: &'static str, rule: String| Err(Kind::InvalidField.because(rule).field(field));
        let name = self.username.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || *byte == b'_';
        if name.is_empty() || name.len() > USERNAME_MAX || !name.iter().all(plain) {
            return wrong("username", format!("username has 1 to {USERNAME_MAX} letters a–z, digits and underscores."));
        }
        let visible = |text: &str| !text.chars().any(|c| c.is_whitespace() || c.is_control());
        let is_address = |(local, domain): (&str, &str)| !local.is_empty() && !domain.is_empty();
        let email = &self.email;
        if email.chars().count() > EMAIL_MAX || !visible(email) || !email.rsplit_once('@').is_some_and(is_address) {
            return wrong("email", format!("email is an address of at most {EMAIL_MAX} characters."));
        }
        if !PASSWORD_CHARACTERS.contains(&self.password.chars().count()) {
            let (least, most) = (PASSWORD_CHARACTERS.start(), PASSWORD_CHARACTERS.end());
            return wrong("password", format!("password has {least} to {most} characters."));
        }
        // Unicode's separators of lines and paragraphs are no control characters.
        let breaks_line = |c: char| c.is_control() || matches!(c, '\u{2028}' | '\u{2029}');
        let shown = self.display_name.chars();
        if self.display_name.trim().is_empty()
            || shown.clone().count() > DISPLAY_NAME_MAX
            || shown.into_iter().any(breaks_line)
        {
            return wrong("displayName", format!("displayName has 1 to {DISPLAY_NAME_MAX} characters on one line."));
        }
        Ok(())
    }
}

/// `POST /api/auth/register`.
pub(crate) async fn register(
    State(context): State<Shared>,
    Body(registration): Body<Registration>,
) -> Result<Response, Problem> {
    registration.check()?;
    let Registration { username, email, password, display_name } = registration;
    let hash = context.passwords.hash(password).await?;
    let written = context.database.commit(REGISTER, &[&username, &email, &hash, &display_name]).await;
    let (rows, lsn) = written.map_err(|error| match error.constraint() {
        Some("accounts_username_key") => Kind::Taken.because("This username is taken.").field("username"),
        Some("accounts_email_key") => Kind::Taken.because("This address has an account.").field("email"),
        _ => error.into(),
    })?;
    let row = rows.first().ok_or_else(no_row)?;
    let profile = Profile { user: user_of(row)?, followers: 0, following: 0, tweets: 0 };
    Ok(context.written(lsn, (StatusCode::CREATED, context.session(&profile)?)))
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct Credentials {
    username: Option<String>,
    email: Option<String>,
    password: String,
}

/// `POST /api/auth/login`. An unknown name and a wrong password have the same answer after the same work.
pub(crate) async fn login(
    State(context): State<Shared>,
    Body(credentials): Body<Credentials>,
) -> Result<Response, Problem> {
    let (sql, name) = match (credentials.username, credentials.email) {
        (Some(name), None) => (LOGIN_BY_NAME, name),
        (None, Some(email)) => (LOGIN_BY_EMAIL, email),
        _ => return Err(Kind::InvalidBody.because("Give either username or email.")),
    };
    // What no account can have is asked for like the rest, except what PostgreSQL cannot be asked.
    let rows = match name.contains('\0') {
        true => Vec::new(),
        false => context.database.query(sql, &[&name]).await?,
    };
    let row = rows.first();
    let hash = row.map(|row| row.try_get::<_, Option<String>>(8)).transpose().map_err(DatabaseError::from)?;
    let right = context.passwords.is_right(credentials.password, hash.flatten()).await?;
    let Some(row) = row.filter(|_| right) else {
        return Err(Kind::InvalidCredentials.because("There is no account with this name and this password."));
    };
    let user = user_of(row)?;
    context.activity.note(user.id, now_ms());
    let profile = context.views.profiles(&[user.id]).await?.pop().flatten();
    let profile = profile.unwrap_or(Profile { user, followers: 0, following: 0, tweets: 0 });
    Ok(context.session(&profile)?.into_response())
}

/// `GET /api/auth/verify`.
pub(crate) async fn verify(
    State(context): State<Shared>,
    Viewer(id): Viewer,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    context.catch_up(&headers, Phase::Rows).await?;
    let time = context.views.time(Phase::Rows);
    let profile = context.account(id).await?;
    Ok(as_of(time, Json(json!({ "user": UserBody::from(&profile) }))))
}

impl Context {
    /// The signed-in user's own account: from the views, or from the database if it was registered a moment ago.
    pub(super) async fn account(&self, id: i64) -> Result<Profile, Problem> {
        if let Some(profile) = self.views.profiles(&[id]).await?.pop().flatten() {
            return Ok(profile);
        }
        Ok(Profile { user: self.registered(id).await?, followers: 0, following: 0, tweets: 0 })
    }

    /// The signed-in user's own row, for a write: also while the views are being built again.
    pub(super) async fn writer(&self, id: i64) -> Result<User, Problem> {
        let profiles = match self.views.profiles(&[id]).await {
            Err(error) if error.rebuilding().is_some() => Vec::new(),
            profiles => profiles?,
        };
        match profiles.into_iter().next().flatten() {
            Some(profile) => Ok(profile.user),
            None => self.registered(id).await,
        }
    }

    /// A user's row as the database has it.
    async fn registered(&self, id: i64) -> Result<User, Problem> {
        let rows = self.database.query(USER, &[&id]).await?;
        Ok(user_of(rows.first().ok_or_else(account_gone)?)?)
    }

    /// The answer that signs the user in.
    fn session(&self, profile: &Profile) -> Result<impl IntoResponse + use<>, Problem> {
        let token = self.keys.token_for(profile.user.id, self.settings.session).ok_or_else(|| {
            tracing::error!("a token could not be signed");
            Kind::Internal.because("The session could not be signed.")
        })?;
        Ok(Json(json!({ "token": token, "user": UserBody::from(profile) })))
    }
}

/// A statement that always gives a row has given none.
pub(super) fn no_row() -> Problem {
    tracing::error!("a statement gave no row where it always gives one");
    Kind::Internal.because("The database gave no answer.")
}
