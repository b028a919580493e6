//! Writes of signed-in users, done once however often they are sent.
//!
//! ```text
//!   without a key   statements ; position                                          one round trip
//!   with a key      BEGIN ─ claim ─┬─ new    ─ statements ─ keep the answer ─ COMMIT
//!                                  ├─ known  ─ the kept answer, if it was the same request
//!                                  └─ being done by another request: waits for its end, a while
//! ```
//!
//! A key is claimed by inserting its row, and the answer is kept in that row by the transaction of the write itself. So
//! there is an answer exactly where there was a write, whatever ends in between: a request that is refused or given up
//! leaves neither, and may be sent again with the same key. Of two that are sent at the same time, the second waits at
//! the row of the first, as long as it waits for any lock, and then finds the answer or, if the first was given up, the
//! key free.

use axum::extract::FromRequestParts;
use axum::http::request::Parts;
use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use feedmill_model::Lsn;
use ring::digest;
use serde::Serialize;
use tokio_postgres::Row;
use utoipa::IntoParams;

use crate::database::{DatabaseError, Params, column};
use crate::problem::{Kind, Problem};
use crate::state::{Context, Shared};

const HEADER: HeaderName = HeaderName::from_static("idempotency-key");
/// The longest key.
const KEY_BYTES_MAX: usize = 255;

const CLAIM: &str = "
    INSERT INTO idempotency_keys (user_id, key, request_hash) VALUES ($1, $2, $3) ON CONFLICT DO NOTHING RETURNING true";

const KEPT: &str = "
    SELECT request_hash, status, response::text FROM idempotency_keys WHERE user_id = $1 AND key = $2";

const KEEP: &str = "
    UPDATE idempotency_keys SET status = $3, response = $4::text::jsonb WHERE user_id = $1 AND key = $2";

/// What makes a request that is sent again be done once: the header `Idempotency-Key`, if it came.
pub(crate) struct Once(Option<Key>);

struct Key {
    text: String,
    /// Of the path and of what the body asks for.
    request: digest::Context,
}

/// Makes a request that is sent again be done once.
#[derive(IntoParams)]
#[into_params(parameter_in = Header)]
#[expect(dead_code, reason = "it is the form of what `Once` reads")]
pub(crate) struct OnceHeader {
    /// Any text that no other request of yours had in the last 24 hours. Sent again with the same request, it has the
    /// same answer and does nothing more.
    #[param(rename = "Idempotency-Key", min_length = 1, max_length = 255, pattern = "^[!-~]+$")]
    idempotency_key: Option<String>,
}

impl Once {
    /// The same, for a request with this body.
    pub fn with(mut self, body: &impl Serialize) -> Self {
        if let Some(key) = &mut self.0
            && let Ok(body) = serde_json::to_vec(body)
        {
            key.request.update(&body);
        }
        self
    }
}

impl FromRequestParts<Shared> for Once {
    type Rejection = Problem;

    async fn from_request_parts(parts: &mut Parts, _: &Shared) -> Result<Self, Problem> {
        let mut keys = parts.headers.get_all(HEADER).iter();
        let Some(key) = keys.next() else { return Ok(Once(None)) };
        let refused = || {
            Kind::InvalidIdempotencyKey
                .because(format!("Idempotency-Key is one text of 1 to {KEY_BYTES_MAX} visible characters of ASCII."))
        };
        let text = key.to_str().ok().filter(|text| {
            (1..=KEY_BYTES_MAX).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_graphic())
        });
        let (Some(text), None) = (text, keys.next()) else { return Err(refused()) };
        let mut request = digest::Context::new(&digest::SHA256);
        request.update(parts.uri.path().as_bytes());
        request.update(b"\0");
        Ok(Once(Some(Key { text: text.to_owned(), request })))
    }
}

/// What a write is answered with.
#[derive(Debug)]
pub(crate) struct Answer {
    status: StatusCode,
    /// JSON.
    body: Option<String>,
}

impl Answer {
    /// It is done, and there is nothing to tell.
    pub fn done() -> Self {
        Answer { status: StatusCode::NO_CONTENT, body: None }
    }

    /// A status and a body.
    pub fn json(status: StatusCode, body: &impl Serialize) -> Result<Self, Problem> {
        let body = serde_json::to_string(body).map_err(|error| {
            tracing::error!(%error, "an answer could not be written");
            Kind::Internal.because("The answer could not be written.")
        })?;
        Ok(Answer { status, body: Some(body) })
    }
}

impl IntoResponse for Answer {
    fn into_response(self) -> Response {
        match self.body {
            None => self.status.into_response(),
            Some(body) => {
                let json = HeaderValue::from_static("application/json");
                (self.status, [(header::CONTENT_TYPE, json)], body).into_response()
            }
        }
    }
}

/// A write that was done, now or by an earlier request with the same key.
pub(crate) struct Done {
    /// A position of PostgreSQL's log that holds its commit.
    pub lsn: Lsn,
    pub answer: Answer,
    /// It was an earlier request that did it.
    pub before: bool,
}

impl Context {
    /// Runs the statements as one write of `user`; `judge` makes the answer of the rows of the last. What it refuses must
    /// have changed nothing.
    pub async fn write(
        &self,
        user: i64,
        once: Once,
        statements: &[(&str, Params<'_>)],
        judge: impl FnOnce(&[Row]) -> Result<Answer, Problem> + Send,
    ) -> Result<Done, Problem> {
        let Once(Some(key)) = once else {
            let (rows, lsn) = match statements {
                [(sql, params)] => self.database.commit(sql, params).await?,
                statements => self.database.commit_all(statements).await?,
            };
            return Ok(Done { lsn, answer: judge(&rows)?, before: false });
        };
        let (text, request) = (key.text, key.request.finish());
        let mut session = self.database.session().await?;
        let transaction = session.begin().await?;
        let claimed = transaction.query(CLAIM, &[&user, &text, &request.as_ref()]).await.map_err(in_use)?;
        if claimed.is_empty() {
            let rows = transaction.query(KEPT, &[&user, &text]).await?;
            let answer = kept(rows.first().ok_or_else(swept)?, request.as_ref())?;
            transaction.commit().await?;
            return Ok(Done { lsn: session.position().await?, answer, before: true });
        }
        let mut rows = Vec::new();
        for (sql, params) in statements {
            rows = transaction.query(sql, params).await?;
        }
        let answer = judge(&rows)?;
        let status = i16::try_from(answer.status.as_u16()).unwrap_or_default();
        transaction.query(KEEP, &[&user, &text, &status, &answer.body]).await?;
        transaction.commit().await?;
        Ok(Done { lsn: session.position().await?, answer, before: false })
    }

    /// The answer to an earlier request with the same key, for what must be known before anything else is looked at.
    pub async fn done_before(&self, user: i64, once: &Once) -> Result<Option<Done>, Problem> {
        let Once(Some(key)) = once else { return Ok(None) };
        let rows = self.database.query(KEPT, &[&user, &key.text]).await?;
        let Some(row) = rows.first() else { return Ok(None) };
        let answer = kept(row, key.request.clone().finish().as_ref())?;
        Ok(Some(Done { lsn: self.database.position().await?, answer, before: true }))
    }
}

/// The answer that is kept for the request.
fn kept(row: &Row, request: &[u8]) -> Result<Answer, Problem> {
    let (known, status): (&[u8], Option<i16>) = (column(row, 0)?, column(row, 1)?);
    if known != request {
        return Err(reused());
    }
    let status = status.and_then(|status| StatusCode::from_u16(status.unsigned_abs()).ok());
    Ok(Answer { status: status.ok_or_else(swept)?, body: column(row, 2)? })
}

/// The key came with another request before.
pub(crate) fn reused() -> Problem {
    let told = "Idempotency-Key came with another request before. Make a new one for each request.";
    Kind::IdempotencyKeyReused.because(told)
}

fn in_use(error: DatabaseError) -> Problem {
    if error.waited_in_vain() { swept() } else { error.into() }
}

/// It is being done, or was forgotten since the key was claimed.
fn swept() -> Problem {
    Kind::IdempotencyKeyInUse.because("A request with this Idempotency-Key is being done. Send it again in a moment.")
}
