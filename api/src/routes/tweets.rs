//! Tweets: post, read, delete.

use axum::Json;
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use feedmill_model::{Phase, Tweet};
use feedmill_sinks::CountedTweet;
use feedmill_sinks::read::{self, Access};
use serde::Deserialize;

use super::accounts::no_row;
use crate::answer::{TweetBody, as_of};
use crate::database::DatabaseError;
use crate::problem::{Kind, Problem};
use crate::request::{Body, Id};
use crate::state::{Context, Shared};
use crate::viewer::Viewer;

/// Posts. That the author exists is the foreign key's matter, and that the account was not deleted the facts'; asking for
/// it here would make the statement half as dear again.
const POST: &str = "
    INSERT INTO tweets (id, user_id, content, conversation_id)
    SELECT fresh.id, $1, $2, fresh.id FROM feedmill_id() AS fresh (id)
    RETURNING id, feedmill_micros(created_at)";

/// Empties the tweet if it is the caller's, and tells whose it was before.
const DELETE: &str = "
    WITH deleted AS (
        UPDATE tweets SET content = '', media = NULL, deleted_at = now(), updated_at = now()
        WHERE id = $1 AND user_id = $2 AND deleted_at IS NULL
        RETURNING id
    )
    SELECT user_id, EXISTS (SELECT FROM deleted) FROM tweets WHERE id = $1 AND deleted_at IS NULL";

/// Characters of a tweet, counted as PostgreSQL's `char_length` does: code points. The schema says the same.
const CONTENT_MAX: usize = 280;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NewTweet {
    content: String,
}

impl NewTweet {
    fn check(&self) -> Result<(), Problem> {
        let length = self.content.chars().count();
        let wrong = match &self.content {
            content if content.trim().is_empty() => "content is empty.".to_owned(),
            content if content.contains('\0') => "content has a character U+0000, which cannot be stored.".to_owned(),
            _ if length > CONTENT_MAX => format!("content has {length} characters, but may have {CONTENT_MAX}."),
            _ => return Ok(()),
        };
        Err(Kind::InvalidContent.because(wrong).field("content"))
    }
}

/// `POST /api/tweets`.
pub(crate) async fn create(
    State(context): State<Shared>,
    Viewer(author): Viewer,
    Body(tweet): Body<NewTweet>,
) -> Result<Response, Problem> {
    tweet.check()?;
    let author = context.writer(author).await?;
    let (rows, lsn) = context.database.commit(POST, &[&author.id, &tweet.content]).await?;
    let row = rows.first().ok_or_else(no_row)?;
    let id = row.try_get(0).map_err(DatabaseError::from)?;
    let created_at = row.try_get(1).map_err(DatabaseError::from)?;
    let tweet = Tweet { id, created_at, content: tweet.content, ..Tweet::default() };
    let counted = CountedTweet { tweet, likes: 0, retweets: 0, replies: 0 };
    Ok(context.written(lsn, (StatusCode::CREATED, Json(TweetBody::new(&counted, &author)))))
}

/// `GET /api/tweets/{id}`. What the viewer may not see is not there.
pub(crate) async fn read(
    State(context): State<Shared>,
    viewer: Option<Viewer>,
    Id(id): Id,
    headers: HeaderMap,
) -> Result<Response, Problem> {
    context.catch_up(&headers, Phase::Rows).await?;
    match read::tweet(context.views.as_ref(), viewer.map(|viewer| viewer.0), id).await? {
        Access::Granted(tweet) => Ok(as_of(tweet.time, Json(TweetBody::from(&tweet.value)))),
        Access::Hidden | Access::NotFound => Err(no_tweet()),
    }
}

/// `DELETE /api/tweets/{id}`.
pub(crate) async fn delete(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(id): Id,
) -> Result<Response, Problem> {
    let (rows, lsn) = context.database.commit(DELETE, &[&id, &viewer]).await?;
    let row = rows.first().ok_or_else(no_tweet)?;
    let author: i64 = row.try_get(0).map_err(DatabaseError::from)?;
    let deleted: bool = row.try_get(1).map_err(DatabaseError::from)?;
    match deleted {
        true => Ok(context.narrowed(lsn, StatusCode::NO_CONTENT).await),
        // Deleted by another request since this one began.
        false if author == viewer => Err(no_tweet()),
        false => Err(context.not_yours(viewer, author).await?),
    }
}

impl Context {
    /// Only who may see a tweet is told that it is somebody else's.
    async fn not_yours(&self, viewer: i64, author: i64) -> Result<Problem, Problem> {
        let facts = self.views.relationships(Some(viewer), &[author]).await?;
        Ok(match facts.first() {
            Some(facts) if facts.may_read(false) => Kind::NotYours.because("Only its author can delete a tweet."),
            _ => no_tweet(),
        })
    }
}

fn no_tweet() -> Problem {
    Kind::TweetNotFound.because("The tweet never was, was deleted, or is not visible to you.")
}
