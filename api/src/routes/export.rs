//! All that an account wrote and did, for its owner to take along.
//!
//! One JSON document a line. Each page is read from PostgreSQL when the one before has been taken, so an account of any
//! size needs the memory of a page, and no connection is held while a client is slow. The last line says how many came
//! before it: without it the export was cut off.
//!
//! Exports have a few places, of which a user takes one, until the last page was taken or the client is gone. How long a
//! client may take over a page is bounded by the server's connections, and over all of them by [`TIME_MAX`].

use std::collections::HashSet;
use std::fmt::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::body::Body;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use futures::stream;
use parking_lot::Mutex;
use serde::Serialize;
use serde_json::Value;
use tokio::sync::OwnedSemaphorePermit;
use tokio_postgres::Row;
use utoipa::ToSchema;

use super::me::{AccountBody, user_of};
use crate::answer::{IdText, TimeText};
use crate::database::{Database, DatabaseError, column};
use crate::gates::Gate;
use crate::problem::{Failed, Kind, Problem};
use crate::state::Shared;
use crate::viewer::{Viewer, account_gone};

/// Rows of a page.
const ROWS: i64 = 500;
/// Tweets of a page: with media one may have 33 KB.
const TWEETS: i64 = 50;
/// After this no other page is read.
const TIME_MAX: Duration = Duration::from_secs(10 * 60);

/// A line of an export.
#[derive(Serialize, ToSchema)]
#[serde(tag = "kind", rename_all = "camelCase", rename_all_fields = "camelCase")]
pub(crate) enum Exported {
    /// The account.
    Account(AccountBody),
    /// A tweet that it wrote and has not deleted.
    Tweet {
        id: IdText,
        content: String,
        reply_to: Option<IdText>,
        conversation_id: IdText,
        media: Option<Value>,
        created_at: TimeText,
    },
    /// An account that it follows or asks to.
    Follow { user_id: IdText, accepted: bool, created_at: TimeText },
    /// A tweet that it likes.
    Like { tweet_id: IdText, created_at: TimeText },
    /// A tweet that it retweeted.
    Retweet { id: IdText, tweet_id: IdText, created_at: TimeText },
    /// An account that it blocks.
    Block { user_id: IdText },
    /// An account that it mutes.
    Mute { user_id: IdText },
    /// Nothing is missing: as many lines came before this one.
    End { lines: u64 },
}

type Line = Result<Exported, DatabaseError>;

/// Where lines come from: rows of the account `$1` in the order of a key, which is their first column, after `$2`.
struct Source {
    sql: &'static str,
    /// How many a page has.
    page: i64,
    line: fn(&Row) -> Line,
}

static SOURCES: [Source; 7] = [
    Source {
        sql: "SELECT u.id, u.username, u.display_name, u.bio, u.avatar_url, u.verified, u.protected,
                     feedmill_micros(u.created_at), a.email
              FROM users u JOIN accounts a ON a.user_id = u.id
              WHERE u.id = $1 AND u.deleted_at IS NULL AND u.id > $2 LIMIT $3",
        page: ROWS,
        line: |row| Ok(Exported::Account(AccountBody::of(user_of(row)?, column(row, 8)?))),
    },
    Source {
        sql: "SELECT id, content, reply_to_id, conversation_id, media, feedmill_micros(created_at) FROM tweets
              WHERE user_id = $1 AND deleted_at IS NULL AND id > $2 ORDER BY id LIMIT $3",
        page: TWEETS,
        line: |row| {
            Ok(Exported::Tweet {
                id: IdText(column(row, 0)?),
                content: column(row, 1)?,
                reply_to: column::<Option<i64>>(row, 2)?.map(IdText),
                conversation_id: IdText(column(row, 3)?),
                media: column(row, 4)?,
                created_at: TimeText(column(row, 5)?),
            })
        },
    },
    Source {
        sql: "SELECT following_id, accepted, feedmill_micros(created_at) FROM follows
              WHERE follower_id = $1 AND following_id > $2 ORDER BY following_id LIMIT $3",
        page: ROWS,
        line: |row| {
            let (user_id, created_at) = (IdText(column(row, 0)?), TimeText(column(row, 2)?));
            Ok(Exported::Follow { user_id, accepted: column(row, 1)?, created_at })
        },
    },
    Source {
        sql: "SELECT tweet_id, feedmill_micros(created_at) FROM likes
              WHERE user_id = $1 AND tweet_id > $2 ORDER BY tweet_id LIMIT $3",
        page: ROWS,
        line: |row| Ok(Exported::Like { tweet_id: IdText(column(row, 0)?), created_at: TimeText(column(row, 1)?) }),
    },
    Source {
        sql: "SELECT id, tweet_id, feedmill_micros(created_at) FROM retweets
              WHERE user_id = $1 AND id > $2 ORDER BY id LIMIT $3",
        page: ROWS,
        line: |row| {
            let (id, tweet_id) = (IdText(column(row, 0)?), IdText(column(row, 1)?));
            Ok(Exported::Retweet { id, tweet_id, created_at: TimeText(column(row, 2)?) })
        },
    },
    Source {
        sql: "SELECT blocked_id FROM blocks WHERE blocker_id = $1 AND blocked_id > $2 ORDER BY blocked_id LIMIT $3",
        page: ROWS,
        line: |row| Ok(Exported::Block { user_id: IdText(column(row, 0)?) }),
    },
    Source {
        sql: "SELECT muted_id FROM mutes WHERE muter_id = $1 AND muted_id > $2 ORDER BY muted_id LIMIT $3",
        page: ROWS,
        line: |row| Ok(Exported::Mute { user_id: IdText(column(row, 0)?) }),
    },
];

/// Whose exports are under way.
#[derive(Clone, Default)]
pub(crate) struct Exporting(Arc<Mutex<HashSet<i64>>>);

impl Exporting {
    /// A place for an export of `user`, if there is one and the user has none; it is given back when this is dropped.
    fn begin(&self, user: i64, gate: &Gate) -> Result<Place, Problem> {
        let place = gate.enter()?;
        if !self.0.lock().insert(user) {
            return Err(Kind::Overloaded.because("An export of yours is under way. Let it end first."));
        }
        Ok(Place { _place: place, user, exporting: self.clone() })
    }
}

/// A place of an export.
struct Place {
    _place: OwnedSemaphorePermit,
    user: i64,
    exporting: Exporting,
}

impl Drop for Place {
    fn drop(&mut self) {
        self.exporting.0.lock().remove(&self.user);
    }
}

/// Why an export was cut off.
#[derive(Debug, thiserror::Error)]
enum CutOff {
    /// A page could not be read.
    #[error(transparent)]
    Database(#[from] DatabaseError),
    /// It took too long.
    #[error("it was not taken within {TIME_MAX:?}")]
    Slow,
}

/// How far an export is.
struct Export {
    database: Database,
    place: Place,
    began: Instant,
    sources: std::slice::Iter<'static, Source>,
    /// The source that is being read, and the key of its last row.
    at: Option<(&'static Source, i64)>,
    lines: u64,
}

impl Export {
    fn next_source(&mut self) {
        self.at = self.sources.next().map(|source| (source, i64::MIN));
    }

    /// The next lines; `None` after the last.
    async fn page(&mut self) -> Result<Option<String>, CutOff> {
        while let Some((source, after)) = self.at {
            if self.began.elapsed() > TIME_MAX {
                return Err(CutOff::Slow);
            }
            let rows = self.database.query(source.sql, &[&self.place.user, &after, &source.page]).await?;
            let mut page = String::new();
            for row in &rows {
                push(&mut page, &(source.line)(row)?);
                self.at = Some((source, column(row, 0)?));
            }
            self.lines += rows.len() as u64;
            if (rows.len() as i64) < source.page {
                self.next_source();
            }
            if self.at.is_none() {
                push(&mut page, &Exported::End { lines: self.lines });
            }
            if !page.is_empty() {
                return Ok(Some(page));
            }
        }
        Ok(None)
    }
}

impl From<CutOff> for Problem {
    fn from(cut_off: CutOff) -> Self {
        match cut_off {
            CutOff::Database(error) => error.into(),
            CutOff::Slow => Kind::TimedOut.because("The export took too long."),
        }
    }
}

fn push(page: &mut String, line: &Exported) {
    match serde_json::to_string(line) {
        Ok(line) => drop(writeln!(page, "{line}")),
        Err(error) => tracing::error!(%error, "a line of an export could not be written"),
    }
}

/// Exports all that you wrote and did: one JSON document a line.
///
/// Of what changes meanwhile some may be in it and some not. The last line is of the kind `end`; without it, something is
/// missing. A user has one export at a time.
#[utoipa::path(
    get, path = "/users/me/export", tag = "accounts",
    responses(
        (status = 200, description = "The lines.", body = Exported, content_type = "application/x-ndjson"),
        Failed,
    ),
    security(("token" = [])),
)]
pub(crate) async fn export(State(context): State<Shared>, Viewer(user): Viewer) -> Result<Response, Problem> {
    let place = context.exporting.begin(user, &context.gates.export)?;
    let (database, began) = (context.database.clone(), Instant::now());
    let mut export = Export { database, place, began, sources: SOURCES.iter(), at: None, lines: 0 };
    export.next_source();
    // The first page is read before the status is sent.
    let first = export.page().await?.ok_or_else(account_gone)?;
    let more = stream::try_unfold(export, |mut export| async move {
        let page = export.page().await.inspect_err(|error| tracing::warn!(%error, "an export was cut off"))?;
        Ok::<_, CutOff>(page.map(|page| (page, export)))
    });
    let pages = futures::StreamExt::chain(stream::iter([Ok(first)]), more);
    let headers = [
        (header::CONTENT_TYPE, "application/x-ndjson"),
        (header::CONTENT_DISPOSITION, "attachment; filename=\"feedmill-export.ndjson\""),
    ];
    Ok((headers, Body::from_stream(pages)).into_response())
}
