//! A streaming replica, for what may be read there instead of at the primary.
//!
//! ```text
//!   read, and the position that it needs ─► replica: what has it replayed? ; statement       sent together
//!                                              ├─ enough, and it has rows ───► rows
//!                                              └─ else, or no answer in time ► the primary
//! ```
//!
//! The server answers in order, so it has told what it has replayed before it takes the statement's snapshot: the rows are
//! at least as new as that. A row that it does not have may be too new for it, so nothing is only ever the primary's word.
//! One that was promoted follows nobody any more, and is not believed. A replica that does not answer within half a second is
//! left alone for a second, so that it delays a few reads and not each.

use std::time::{Duration, Instant};

use feedmill_model::Lsn;
use futures::future::{join, try_join};
use parking_lot::Mutex;
use tokio::time::timeout;
use tokio_postgres::Row;
use tokio_postgres::types::PgLsn;

use crate::database::{DatabaseError, Params, Pool};

/// What a standby has replayed; null of a server that is none.
const REPLAYED: &str = "SELECT CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() END";
/// How long an answer may take, with what it takes to get a connection.
const ANSWER_MAX: Duration = Duration::from_millis(500);
/// How long a replica that failed is left alone.
const PAUSE: Duration = Duration::from_secs(1);

/// What became of reads, by `result`.
const READS: &str = "feedmill_replica_reads_total";

/// The replica.
pub(crate) struct Replica {
    pool: Pool,
    away_until: Mutex<Option<Instant>>,
}

impl Replica {
    pub fn new(pool: Pool) -> Self {
        for result in ["served", "behind", "away"] {
            metrics::counter!(READS, "result" => result).increment(0);
        }
        Replica { pool, away_until: Mutex::new(None) }
    }

    /// Its connections.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// The rows of a statement, if it is there, has everything up to `needed`, and has any.
    pub async fn rows(&self, needed: Lsn, sql: &str, params: Params<'_>) -> Option<Vec<Row>> {
        if self.away_until.lock().is_some_and(|until| Instant::now() < until) {
            metrics::counter!(READS, "result" => "away").increment(1);
            return None;
        }
        let asked = timeout(ANSWER_MAX, self.ask(sql, params)).await;
        let asked = asked.map_err(|_| format!("nothing within {ANSWER_MAX:?}"));
        let (result, rows) = match asked.and_then(|answer| answer.map_err(|error| error.to_string())) {
            Ok((Some(replayed), rows)) if replayed >= needed && !rows.is_empty() => ("served", Some(rows)),
            Ok(_) => ("behind", None),
            Err(error) => {
                tracing::warn!(%error, "the replica does not answer; the primary is asked instead");
                *self.away_until.lock() = Some(Instant::now() + PAUSE);
                ("away", None)
            }
        };
        metrics::counter!(READS, "result" => result).increment(1);
        rows
    }

    #[tracing::instrument(
        target = "feedmill::trace",
        level = "trace",
        name = "replica",
        skip_all,
        fields(otel.kind = "client", db.system.name = "postgresql")
    )]
    async fn ask(&self, sql: &str, params: Params<'_>) -> Result<(Option<Lsn>, Vec<Row>), DatabaseError> {
        let client = self.pool.get().await?;
        let (replayed, statement) = try_join(client.prepare_cached(REPLAYED), client.prepare_cached(sql)).await?;
        // The futures are polled in this order, and each sends at its first poll.
        let (replayed, rows) = join(client.query_one(&replayed, &[]), client.query(&statement, params)).await;
        let replayed: Option<PgLsn> = replayed?.try_get(0)?;
        Ok((replayed.map(|lsn| Lsn(lsn.into())), rows?))
    }
}
