//! Tweets: post, read, delete.

use axum::Json;
use axum::extract::State;
use axum::http::StatusCode;
use axum::response::Response;
use feedmill_model::{Phase, Tweet};
use feedmill_sinks::CountedTweet;
use feedmill_sinks::read::{self, Access};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio_postgres::types::ToSql;
use utoipa::ToSchema;

use super::auth::no_row;
use crate::answer::{TweetBody, as_of};
use crate::database::column;
use crate::media::Media;
use crate::problem::{Failed, Kind, Problem};
use crate::reader::Reader;
use crate::request::{Body, Id, id_in};
use crate::state::{Context, Shared};
use crate::viewer::Viewer;
use crate::write::{Answer, Once, OnceHeader};

/// The tweet `$2`, if the user `$1` may read it: what the facts say, as the database has it at the moment. So one can
/// answer and like what the views do not have yet, and nothing that was hidden a moment ago. Blocks and follows are asked
/// for by their keys: as conditions with EXISTS, all of the user's might be read.
macro_rules! readable {
    () => {
        "SELECT t.id, t.user_id, t.conversation_id, author.protected
         FROM tweets t JOIN users author ON author.id = t.user_id
         WHERE t.id = $2 AND t.deleted_at IS NULL AND author.deleted_at IS NULL
           AND EXISTS (SELECT FROM users WHERE id = $1 AND deleted_at IS NULL)
           AND (t.user_id = $1
                OR (SELECT true FROM blocks WHERE blocker_id = $1 AND blocked_id = t.user_id) IS NULL
               AND (SELECT true FROM blocks WHERE blocker_id = t.user_id AND blocked_id = $1) IS NULL
               AND (NOT author.protected
                    OR (SELECT accepted FROM follows WHERE follower_id = $1 AND following_id = t.user_id)))"
    };
}
pub(super) use readable;

/// Posts. That the author exists is the foreign key's matter, and that the account was not deleted the facts'; asking for
/// it here would make the statement half as dear again.
const POST: &str = "
    INSERT INTO tweets (id, user_id, content, media, conversation_id)
    SELECT fresh.id, $1, $2, $3, fresh.id FROM feedmill_id() AS fresh (id)
    RETURNING id, feedmill_micros(created_at), conversation_id";

/// Answers a tweet that its author may read: no row where there is none.
const ANSWER: &str = concat!(
    "WITH parent AS (",
    readable!(),
    ")
    INSERT INTO tweets (id, user_id, content, media, reply_to_id, conversation_id)
    SELECT fresh.id, $1::bigint, $3, $4, parent.id, parent.conversation_id FROM parent, feedmill_id() AS fresh (id)
    RETURNING id, feedmill_micros(created_at), conversation_id"
);

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

/// A new tweet.
#[derive(Deserialize, Serialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub(crate) struct NewTweet {
    /// What it says: 1 to 280 code points, not white space alone.
    #[schema(min_length = 1, max_length = 280, example = "Hello, world")]
    content: String,
    /// The tweet that it answers.
    #[schema(pattern = "^-?[0-9]{1,19}$", example = "111405301760")]
    reply_to: Option<String>,
    /// What is attached.
    #[schema(max_items = 4)]
    #[serde(default)]
    media: Vec<Media>,
}

impl NewTweet {
    /// Refuses what breaks a rule; gives the tweet that it answers.
    fn check(&self) -> Result<Option<i64>, Problem> {
        self.check_content()?;
        Media::check(&self.media)?;
        self.reply_to.as_deref().map(|id| id_in(id, "replyTo")).transpose()
    }

    fn check_content(&self) -> Result<(), Problem> {
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

/// Posts a tweet, or answers one.
///
/// Nobody answers what they may not read: it is answered like what is not there.
#[utoipa::path(
    post, path = "/tweets", tag = "tweets", request_body = NewTweet, params(OnceHeader),
    responses((status = 201, description = "The tweet.", body = TweetBody), Failed), security(("token" = [])),
)]
pub(crate) async fn create(
    State(context): State<Shared>,
    Viewer(author): Viewer,
    once: Once,
    Body(tweet): Body<NewTweet>,
) -> Result<Response, Problem> {
    let reply_to_id = tweet.check()?;
    let author = context.writer(author).await?;
    let once = once.with(&tweet);
    let media = Media::stored(&tweet.media);
    let (id, content) = (author.id, tweet.content.clone());
    let params: (&str, &[&(dyn ToSql + Sync)]) = match &reply_to_id {
        None => (POST, &[&id, &content, &media]),
        Some(parent) => (ANSWER, &[&id, parent, &content, &media]),
    };
    let done = context
        .write(id, once, &[params], |rows| {
            let missing = || if reply_to_id.is_some() { no_tweet().field("replyTo") } else { no_row() };
            let row = rows.first().ok_or_else(missing)?;
            let media = media.as_ref().map(Value::to_string);
            let (id, created_at, conversation_id) = (column(row, 0)?, column(row, 1)?, column(row, 2)?);
            let content = tweet.content;
            let tweet = Tweet { id, created_at, content, reply_to_id, conversation_id, media, ..Tweet::default() };
            let counted = CountedTweet { tweet, likes: 0, retweets: 0, replies: 0 };
            Answer::json(StatusCode::CREATED, &TweetBody::posted(&counted, &author))
        })
        .await?;
    Ok(context.written(done.lsn, done.answer))
}

/// Reads a tweet. What the viewer may not see is not there.
#[utoipa::path(
    get, path = "/tweets/{id}", tag = "tweets", params(("id" = String, Path, description = "Which.")),
    responses((status = 200, description = "The tweet.", body = TweetBody), Failed), security((), ("token" = [])),
)]
pub(crate) async fn read(State(context): State<Shared>, reader: Reader, Id(id): Id) -> Result<Response, Problem> {
    context.catch_up_with_likes(&reader, Phase::Rows).await?;
    let tweet = shown(read::tweet(context.views.as_ref(), reader.id(), id).await?)?;
    let flags = context.flags(reader.id(), std::slice::from_ref(&tweet.value)).await?;
    Ok(as_of(tweet.time, Json(TweetBody::from(&tweet.value).seen(&flags))))
}

/// Deletes a tweet of one's own.
#[utoipa::path(
    delete, path = "/tweets/{id}", tag = "tweets", params(("id" = String, Path, description = "Which.")),
    responses((status = 204, description = "It is deleted."), Failed), security(("token" = [])),
)]
pub(crate) async fn delete(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(id): Id,
) -> Result<Response, Problem> {
    let (rows, lsn) = context.database.commit(DELETE, &[&id, &viewer]).await?;
    let row = rows.first().ok_or_else(no_tweet)?;
    let (author, deleted): (i64, bool) = (column(row, 0)?, column(row, 1)?);
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

/// What the viewer may read of a tweet: one that is not for the viewer is not there.
pub(super) fn shown<T>(access: Access<T>) -> Result<T, Problem> {
    match access {
        Access::Granted(value) => Ok(value),
        Access::Hidden | Access::NotFound => Err(no_tweet()),
    }
}

pub(super) fn no_tweet() -> Problem {
    Kind::TweetNotFound.because("The tweet never was, was deleted, or is not visible to you.")
}
