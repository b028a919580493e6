//! Likes and retweets: done, and taken back. Doing either twice is the same as once.

use axum::extract::State;
use axum::response::Response;
use feedmill_model::Lsn;

use super::tweets::{no_tweet, readable};
use crate::database::column;
use crate::problem::{Failed, Kind, Problem};
use crate::request::Id;
use crate::state::{Context, Shared};
use crate::viewer::Viewer;
use crate::write::{Answer, Once, OnceHeader};

const LIKE: &str = concat!(
    "WITH tweet AS (",
    readable!(),
    "), made AS (INSERT INTO likes (user_id, tweet_id) SELECT $1::bigint, id FROM tweet ON CONFLICT DO NOTHING)
    SELECT true FROM tweet"
);

/// What a protected account wrote is for its followers, so only the account itself may show it to others.
const RETWEET: &str = concat!(
    "WITH tweet AS (",
    readable!(),
    "), made AS (
        INSERT INTO retweets (user_id, tweet_id) SELECT $1::bigint, id FROM tweet WHERE NOT protected OR user_id = $1
        ON CONFLICT DO NOTHING
    )
    SELECT NOT protected OR user_id = $1 FROM tweet"
);

/// One's own like goes, whoever may read the tweet by now. Without one, only who may read the tweet is told that there was
/// none.
const UNLIKE: &str = concat!(
    "WITH tweet AS (",
    readable!(),
    "), ended AS (DELETE FROM likes WHERE user_id = $1 AND tweet_id = $2 RETURNING true)
    SELECT EXISTS (SELECT FROM ended) OR EXISTS (SELECT FROM tweet)"
);

/// Likewise.
const UNRETWEET: &str = concat!(
    "WITH tweet AS (",
    readable!(),
    "), ended AS (DELETE FROM retweets WHERE user_id = $1 AND tweet_id = $2 RETURNING true)
    SELECT EXISTS (SELECT FROM ended) OR EXISTS (SELECT FROM tweet)"
);

/// Likes a tweet.
#[utoipa::path(
    post, path = "/tweets/{id}/like", tag = "tweets",
    params(("id" = String, Path, description = "Which.", pattern = "^-?[0-9]{1,19}$"), OnceHeader),
    responses((status = 204, description = "You like it."), Failed), security(("token" = [])),
)]
pub(crate) async fn like(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(tweet): Id,
    once: Once,
) -> Result<Response, Problem> {
    let done = context
        .write(viewer, once, &[(LIKE, &[&viewer, &tweet])], |rows| match rows {
            [] => Err(no_tweet()),
            _ => Ok(Answer::done()),
        })
        .await?;
    Ok(context.liked(done.lsn, done.answer))
}

/// Takes a like back.
#[utoipa::path(
    delete, path = "/tweets/{id}/like", tag = "tweets",
    params(("id" = String, Path, description = "Which.", pattern = "^-?[0-9]{1,19}$")),
    responses((status = 204, description = "You do not like it."), Failed), security(("token" = [])),
)]
pub(crate) async fn unlike(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(tweet): Id,
) -> Result<Response, Problem> {
    let lsn = context.take_back(UNLIKE, viewer, tweet).await?;
    Ok(context.liked(lsn, Answer::done()))
}

/// Retweets a tweet: it comes to your followers' timelines.
///
/// Of protected accounts only one's own tweets can be retweeted.
#[utoipa::path(
    post, path = "/tweets/{id}/retweet", tag = "tweets",
    params(("id" = String, Path, description = "Which.", pattern = "^-?[0-9]{1,19}$"), OnceHeader),
    responses((status = 204, description = "You retweet it."), Failed), security(("token" = [])),
)]
pub(crate) async fn retweet(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(tweet): Id,
    once: Once,
) -> Result<Response, Problem> {
    let done = context
        .write(viewer, once, &[(RETWEET, &[&viewer, &tweet])], |rows| {
            match column(rows.first().ok_or_else(no_tweet)?, 0)? {
                true => Ok(Answer::done()),
                false => Err(Kind::AuthorProtected.because("The author is protected: nobody else can retweet this.")),
            }
        })
        .await?;
    Ok(context.written(done.lsn, done.answer))
}

/// Takes a retweet back.
#[utoipa::path(
    delete, path = "/tweets/{id}/retweet", tag = "tweets",
    params(("id" = String, Path, description = "Which.", pattern = "^-?[0-9]{1,19}$")),
    responses((status = 204, description = "You do not retweet it."), Failed), security(("token" = [])),
)]
pub(crate) async fn unretweet(
    State(context): State<Shared>,
    Viewer(viewer): Viewer,
    Id(tweet): Id,
) -> Result<Response, Problem> {
    let lsn = context.take_back(UNRETWEET, viewer, tweet).await?;
    Ok(context.written(lsn, Answer::done()))
}

impl Context {
    /// Gives the position of the write.
    async fn take_back(&self, sql: &str, viewer: i64, tweet: i64) -> Result<Lsn, Problem> {
        let (rows, lsn) = self.database.commit(sql, &[&viewer, &tweet]).await?;
        match column(rows.first().ok_or_else(no_tweet)?, 0)? {
            true => Ok(lsn),
            false => Err(no_tweet()),
        }
    }
}
