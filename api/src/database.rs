//! Statements against PostgreSQL, each in as few round trips as it can be.
//!
//! ```text
//!   client ── statement ; SELECT pg_current_wal_flush_lsn() ──►  PostgreSQL       sent together,
//!          ◄─ rows      ; position                           ──                   answered in order
//! ```
//!
//! A statement commits by itself before the server answers it, and its commit is flushed by then (a session for which
//! `synchronous_commit` is off is set right when it is made). The position that is asked for behind it is therefore at or
//! past the end of its commit. It may lie past it, in what others wrote meanwhile: a reader then waits a little longer,
//! and never too short.
//!
//! What takes more than one statement sends `BEGIN … COMMIT` and the question for the position together as well. A
//! request that is given up meanwhile leaves no transaction open, because all of it has been sent.
//!
//! What must know the answer to one statement before it sends the next has a [`Session`] and a [`Transaction`] in it. A
//! transaction that is dropped before its end sends `ROLLBACK` then and there, ahead of whatever the connection is used
//! for next; so a request that is given up leaves none open either.

use std::sync::Arc;
use std::time::Duration;

use deadpool::Runtime;
use deadpool::managed::{self, BuildError, Metrics, RecycleError, RecycleResult};
use deadpool_postgres::ClientWrapper;
use feedmill_connectors::postgres::{Source, SourceError};
use feedmill_model::Lsn;
use futures::future::{join, join_all, join4, try_join};
use tokio_postgres::Row;
use tokio_postgres::error::SqlState;
use tokio_postgres::types::{FromSql, PgLsn, ToSql};

use crate::problem::{Kind, Problem};
use crate::replica::Replica;

/// Where the log ends that is flushed.
const POSITION: &str = "SELECT pg_current_wal_flush_lsn()";

/// The constraint that an answer has a greater id than what it answers: imported ids may lie ahead by an hour at most.
const ANSWERS_LATER: &str = "tweets_reply_is_later";

/// Bounds of every session. All statements are look-ups by key, for which one plan is right whatever the parameters:
/// planning them again would cost more than running them, most of all for tables with partitions.
const SESSION: &str = "-c statement_timeout=5000 -c lock_timeout=2000 -c idle_in_transaction_session_timeout=5000 \
                       -c plan_cache_mode=force_generic_plan";

/// A write is answered with a position that must hold its commit.
const FLUSHED_AT_COMMIT: &str = "SELECT set_config('synchronous_commit', 'local', false)
                                 WHERE current_setting('synchronous_commit') = 'off'";

/// Bounds of a pool.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PoolLimits {
    /// Connections.
    pub size: usize,
    /// How long a request waits for a connection.
    pub wait: Duration,
    /// How long making a connection may take.
    pub create: Duration,
    /// How long making an old connection ready may take.
    pub recycle: Duration,
}

impl Default for PoolLimits {
    fn default() -> Self {
        let limit = Duration::from_secs(2);
        PoolLimits { size: 16, wait: limit, create: limit, recycle: limit }
    }
}

/// A pool of connections for the API.
pub type Pool = managed::Pool<Sessions>;

type Object = managed::Object<Sessions>;
type PoolError = managed::PoolError<SessionError>;

/// Makes a pool. It connects when it is first used, and again whenever that is needed.
pub fn pool(source: &Source, application_name: &str, limits: PoolLimits) -> Result<Pool, BuildError> {
    Pool::builder(Sessions { source: source.with_options(SESSION), application_name: application_name.to_owned() })
        .max_size(limits.size)
        .wait_timeout(Some(limits.wait))
        .create_timeout(Some(limits.create))
        .recycle_timeout(Some(limits.recycle))
        .runtime(Runtime::Tokio1)
        .build()
}

/// Makes the sessions of a pool.
#[derive(Debug)]
pub struct Sessions {
    source: Source,
    application_name: String,
}

/// Why a session cannot be had.
#[derive(Debug, thiserror::Error)]
pub enum SessionError {
    /// The server cannot be reached, or does not let us in.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// It lets us in, and then answers nothing.
    #[error("a new connection could not be made ready: {}", with_cause(.0))]
    Statement(#[from] tokio_postgres::Error),
}

impl managed::Manager for Sessions {
    type Type = ClientWrapper;
    type Error = SessionError;

    async fn create(&self) -> Result<ClientWrapper, SessionError> {
        let (client, task) = self.source.session(&self.application_name).await?;
        client.batch_execute(FLUSHED_AT_COMMIT).await?;
        Ok(ClientWrapper::new(client, task))
    }

    async fn recycle(&self, client: &mut ClientWrapper, _: &Metrics) -> RecycleResult<SessionError> {
        if client.is_closed() {
            return Err(RecycleError::message("the connection is closed"));
        }
        Ok(())
    }
}

/// Parameters of a statement.
pub(crate) type Params<'a> = &'a [&'a (dyn ToSql + Sync)];

/// Why a statement has no answer.
#[derive(Debug, thiserror::Error)]
pub(crate) enum DatabaseError {
    /// No connection could be had.
    #[error("no connection to PostgreSQL could be had: {0}")]
    Pool(#[from] PoolError),
    /// The server or the connection failed.
    #[error("PostgreSQL could not run a statement: {}", with_cause(.0))]
    Statement(#[from] tokio_postgres::Error),
}

fn with_cause(error: &tokio_postgres::Error) -> String {
    match error.as_db_error() {
        Some(refused) => format!("{} ({})", refused.message(), refused.code().code()),
        None => error.to_string(),
    }
}

impl DatabaseError {
    /// The constraint that the statement would have broken.
    pub fn constraint(&self) -> Option<&str> {
        match self {
            DatabaseError::Statement(error) => error.as_db_error()?.constraint(),
            DatabaseError::Pool(_) => None,
        }
    }

    /// Whether another transaction held a lock for longer than is waited for.
    pub fn waited_in_vain(&self) -> bool {
        matches!(self, DatabaseError::Statement(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE))
    }

    /// Whether a foreign key points nowhere: what handlers write points to accounts alone.
    fn names_nobody(&self) -> bool {
        matches!(self, DatabaseError::Statement(error) if error.code() == Some(&SqlState::FOREIGN_KEY_VIOLATION))
    }

    /// Whether the same statement may succeed later: the server is away, starting, stopping, overloaded, or gave up on
    /// a lock.
    fn is_transient(&self) -> bool {
        match self {
            DatabaseError::Pool(_) => true,
            DatabaseError::Statement(error) => error.code().is_none_or(|state| {
                matches!(state, &SqlState::LOCK_NOT_AVAILABLE)
                    || ["08", "40", "53", "57"].iter().any(|class| state.code().starts_with(class))
            }),
        }
    }
}

impl From<DatabaseError> for Problem {
    fn from(error: DatabaseError) -> Self {
        if error.names_nobody() {
            return Kind::UserNotFound.because("An account that this needs does not exist any more.");
        }
        if error.constraint() == Some(ANSWERS_LATER) {
            return Kind::DatabaseUnavailable
                .because("The tweet that it answers is ahead of time. Try again in a moment.");
        }
        if error.is_transient() {
            tracing::warn!(%error, "a request was turned away");
            return Kind::DatabaseUnavailable.because("The database does not answer in time. Try again in a moment.");
        }
        tracing::error!(%error, "a statement was refused");
        Kind::Internal.because("The database refused a statement. The log of the server says why.")
    }
}

/// PostgreSQL, as the handlers use it.
#[derive(Clone)]
pub(crate) struct Database {
    pool: Pool,
    replica: Option<Arc<Replica>>,
}

impl Database {
    pub fn new(pool: Pool, replica: Option<Pool>) -> Self {
        Database { pool, replica: replica.map(|pool| Arc::new(Replica::new(pool))) }
    }

    /// Runs one statement that changes nothing, and whose rows are as new as `needed` wants them: on the replica, if
    /// there is one that can.
    pub async fn read(&self, needed: Lsn, sql: &str, params: Params<'_>) -> Result<Vec<Row>, DatabaseError> {
        if let Some(replica) = &self.replica
            && let Some(rows) = replica.rows(needed, sql, params).await
        {
            return Ok(rows);
        }
        self.query(sql, params).await
    }

    /// Runs one statement that changes nothing, or of which the position does not matter.
    #[tracing::instrument(
        target = "feedmill::trace",
        level = "trace",
        name = "postgresql",
        skip_all,
        fields(otel.kind = "client", db.system.name = "postgresql")
    )]
    pub async fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, DatabaseError> {
        let client = self.pool.get().await?;
        let statement = client.prepare_cached(sql).await?;
        Ok(client.query(&statement, params).await?)
    }

    /// Runs one statement and tells a position that holds its commit.
    #[tracing::instrument(
        target = "feedmill::trace",
        level = "trace",
        name = "postgresql",
        skip_all,
        fields(otel.kind = "client", db.system.name = "postgresql")
    )]
    pub async fn commit(&self, sql: &str, params: Params<'_>) -> Result<(Vec<Row>, Lsn), DatabaseError> {
        let client = self.pool.get().await?;
        let (statement, position) = try_join(client.prepare_cached(sql), client.prepare_cached(POSITION)).await?;
        // The futures are polled in this order, and each sends at its first poll.
        let (rows, position) = join(client.query(&statement, params), client.query_one(&position, &[])).await;
        let rows = rows?;
        Ok((rows, lsn(&position?)?))
    }

    /// Runs the statements in one transaction, each of which sees what others had committed when it began; gives the
    /// rows of the last, and a position that holds the commit.
    #[tracing::instrument(
        target = "feedmill::trace",
        level = "trace",
        name = "postgresql",
        skip_all,
        fields(otel.kind = "client", db.system.name = "postgresql")
    )]
    pub async fn commit_all(&self, statements: &[(&str, Params<'_>)]) -> Result<(Vec<Row>, Lsn), DatabaseError> {
        let client = self.pool.get().await?;
        let mut prepared = Vec::with_capacity(statements.len());
        for (sql, params) in statements {
            prepared.push((client.prepare_cached(sql).await?, *params));
        }
        let position = client.prepare_cached(POSITION).await?;
        let queries = join_all(prepared.iter().map(|(statement, params)| client.query(statement, params)));
        let (began, rows, committed, position) = in_order(&client, queries, &position).await;
        began?;
        let rows = rows.into_iter().collect::<Result<Vec<_>, _>>()?.pop().unwrap_or_default();
        committed?;
        Ok((rows, lsn(&position?)?))
    }

    /// A position that holds what others have committed.
    pub async fn position(&self) -> Result<Lsn, DatabaseError> {
        self.session().await?.position().await
    }

    /// A connection for a transaction that goes on after an answer.
    pub async fn session(&self) -> Result<Session, DatabaseError> {
        Ok(Session(self.pool.get().await?))
    }

    /// Tells the metrics how the pools stand.
    pub fn gauge(&self) {
        let replica = self.replica.as_ref().map(|replica| ("replica", replica.pool()));
        for (name, pool) in [("primary", &self.pool)].into_iter().chain(replica) {
            let status = pool.status();
            let connections = |state| metrics::gauge!("feedmill_pool_connections", "pool" => name, "state" => state);
            connections("open").set(status.size as f64);
            connections("idle").set(status.available as f64);
            metrics::gauge!("feedmill_pool_connections_max", "pool" => name).set(status.max_size as f64);
            metrics::gauge!("feedmill_pool_waiting", "pool" => name).set(status.waiting as f64);
        }
    }
}

/// A connection.
pub(crate) struct Session(Object);

impl Session {
    /// Begins a transaction.
    pub async fn begin(&mut self) -> Result<Transaction<'_>, DatabaseError> {
        Ok(Transaction(self.0.transaction().await?))
    }

    /// A position that holds what was committed here.
    pub async fn position(&self) -> Result<Lsn, DatabaseError> {
        let statement = self.0.prepare_cached(POSITION).await?;
        lsn(&self.0.query_one(&statement, &[]).await?)
    }
}

/// A transaction, rolled back unless it is committed.
pub(crate) struct Transaction<'a>(deadpool_postgres::Transaction<'a>);

impl Transaction<'_> {
    /// Runs a statement, which sees what others had committed when it began.
    pub async fn query(&self, sql: &str, params: Params<'_>) -> Result<Vec<Row>, DatabaseError> {
        let statement = self.0.prepare_cached(sql).await?;
        Ok(self.0.query(&statement, params).await?)
    }

    /// Ends it.
    pub async fn commit(self) -> Result<(), DatabaseError> {
        Ok(self.0.commit().await?)
    }
}

type Answered<T> = Result<T, tokio_postgres::Error>;

/// Sends `BEGIN`, the queries, `COMMIT` and the question for the position, in this order and without waiting.
async fn in_order(
    client: &Object,
    queries: impl Future<Output = Vec<Answered<Vec<Row>>>>,
    position: &tokio_postgres::Statement,
) -> (Answered<()>, Vec<Answered<Vec<Row>>>, Answered<()>, Answered<Row>) {
    let (begin, commit) = (client.batch_execute("BEGIN"), client.batch_execute("COMMIT"));
    join4(begin, queries, commit, client.query_one(position, &[])).await
}

/// A column of a row.
pub(crate) fn column<'a, T: FromSql<'a>>(row: &'a Row, index: usize) -> Result<T, DatabaseError> {
    Ok(row.try_get(index)?)
}

fn lsn(row: &Row) -> Result<Lsn, DatabaseError> {
    let position: PgLsn = row.try_get(0)?;
    Ok(Lsn(position.into()))
}
