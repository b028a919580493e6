//! The two ways to post: through the API, or straight into PostgreSQL.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feedmill_connectors::postgres::Source;
use tokio_postgres::Statement;

use super::client::{Client, RequestError};

/// A commit takes no longer.
const COMMIT_MAX: Duration = Duration::from_secs(30);

/// Through what posts go.
pub enum Poster {
    /// The HTTP API.
    Api(Arc<Client>),
    /// Connections to PostgreSQL, each of which has many statements on the way at a time.
    Sql(Vec<(tokio_postgres::Client, Statement)>),
}

/// A committed post: its id, or what has to be parsed to know it. Few need to know.
pub enum Posted {
    /// The id.
    Id(i64),
    /// The API's answer.
    Answer(hyper::body::Bytes),
}

/// Why a post failed.
#[derive(Debug, thiserror::Error)]
pub enum PostError {
    /// By the API.
    #[error(transparent)]
    Api(#[from] RequestError),
    /// By PostgreSQL.
    #[error("could not insert the tweet: {0}")]
    Sql(#[from] tokio_postgres::Error),
    /// By PostgreSQL, which has not answered in time.
    #[error("no answer within {COMMIT_MAX:?}")]
    Late,
}

impl PostError {
    /// What errors are counted by.
    pub fn kind(&self) -> String {
        match self {
            PostError::Api(error) => error.kind(),
            PostError::Sql(error) => error.code().map_or("no connection".to_owned(), |code| code.code().to_owned()),
            PostError::Late => "no answer".to_owned(),
        }
    }
}

impl Poster {
    /// Opens connections to PostgreSQL.
    pub async fn sql(source: &Source, connections: usize) -> anyhow::Result<Self> {
        // A commit of its own for each: the connection is pipelined, but each statement ends its own transaction.
        let insert = "INSERT INTO tweets (id, user_id, content, conversation_id)
                      SELECT fresh.id, $1, $2, fresh.id FROM feedmill_id() AS fresh (id) RETURNING id";
        let mut clients = Vec::with_capacity(connections);
        for _ in 0..connections {
            let client = source.connect("feedmill load").await?;
            let statement = client.prepare(insert).await.context("could not prepare the insertion of tweets")?;
            clients.push((client, statement));
        }
        Ok(Poster::Sql(clients))
    }

    /// Posts, and returns once it is committed.
    pub async fn post(&self, number: u64, author: i64) -> Result<Posted, PostError> {
        let content = format!("Post {number} of the load generator, by user {author}, long enough to be like others");
        match self {
            Poster::Api(client) => {
                let answer = client.post("/api/tweets", author, format!("{{\"content\":\"{content}\"}}")).await?;
                Ok(Posted::Answer(answer.body))
            }
            Poster::Sql(clients) => {
                let Some((client, statement)) = clients.get(number as usize % clients.len().max(1)) else {
                    return Err(PostError::Late);
                };
                let row = tokio::time::timeout(COMMIT_MAX, client.query_one(statement, &[&author, &content])).await;
                Ok(Posted::Id(row.map_err(|_| PostError::Late)??.try_get(0)?))
            }
        }
    }
}

impl Posted {
    /// The id of the tweet.
    pub fn id(&self) -> Option<i64> {
        match self {
            Posted::Id(id) => Some(*id),
            Posted::Answer(body) => {
                serde_json::from_slice::<serde_json::Value>(body).ok()?.get("id")?.as_str()?.parse().ok()
            }
        }
    }
}
