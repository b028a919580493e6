//! The schema of the source: migrations, partitions, publication.
//!
//! ```text
//!  prepare ─ server and role fit? ─ lock ─ migrations/V*.sql ─ partitions ahead ─ publication ─ all published? ─ unlock
//! ```
//!
//! Each migration commits together with its line in `refinery_schema_history`, so a kill in between leaves whole ones.
//! Callers at the same time wait for each other at an advisory lock. What is there already is left as it is: a
//! publication that somebody changed is reported with the statement that mends it, and never altered, because rows
//! written while it lacked a table are in nobody's stream.

use feedmill_model::Relation;
use tokio_postgres::Client;

use super::error::{is_transient, with_causes};
use super::validate::{self, Unfit};
use super::{Source, SourceError};

/// The name of the publication that the stream reads.
pub const PUBLICATION: &str = "feedmill";

/// The schema that holds the relations.
pub const SCHEMA: &str = "public";

/// Quarters of a year for which partitions are made ahead at each start.
pub const QUARTERS_AHEAD: u32 = 4;

/// The oldest major version that has all that is used here.
pub(super) const VERSION_MIN: i32 = 14;

/// Why the schema could not be prepared.
#[derive(Debug, thiserror::Error)]
pub enum SchemaError {
    /// The database cannot be reached.
    #[error("the schema was not prepared: {0}")]
    Connect(#[from] SourceError),
    /// A statement failed.
    #[error("could not {tried}: {}", with_causes(.error))]
    Statement {
        /// What was tried.
        tried: &'static str,
        /// What went wrong.
        error: tokio_postgres::Error,
    },
    /// A migration failed, or one that was applied is not the one we have.
    #[error("could not migrate the schema: {}", with_causes(.0))]
    Migrate(#[from] refinery::Error),
    /// The database cannot serve as a source as it is.
    #[error(transparent)]
    Unfit(#[from] Unfit),
}

impl SchemaError {
    /// Whether a later attempt may succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            SchemaError::Connect(error) => error.is_transient(),
            SchemaError::Statement { error, .. } => is_transient(error),
            SchemaError::Migrate(error) => {
                let cause = std::error::Error::source(error).and_then(|cause| cause.downcast_ref());
                cause.is_some_and(is_transient)
            }
            SchemaError::Unfit(_) => false,
        }
    }
}

mod migrations {
    #![allow(missing_docs, reason = "generated")]
    refinery::embed_migrations!("migrations");
}

/// Makes the database ready to be a source: migrates it, makes the partitions of the next [`QUARTERS_AHEAD`] quarters,
/// and the publication. Done twice, the second time changes nothing.
pub async fn prepare(source: &Source) -> Result<(), SchemaError> {
    let mut client = source.connect("feedmill-schema").await?;
    let checked = |error| SchemaError::Statement { tried: "check the database", error };
    validate::judge(validate::before_migration(&client).await.map_err(checked)?)?;
    // The session's end, however it comes, releases the lock.
    client
        .batch_execute("SET lock_timeout = '60s'; SELECT pg_advisory_lock(hashtext('feedmill_schema'))")
        .await
        .map_err(|error| SchemaError::Statement {
            tried: "wait for another process that migrates the schema",
            error,
        })?;
    let report = migrations::migrations::runner().run_async(&mut client).await?;
    for migration in report.applied_migrations() {
        tracing::info!(%migration, "migrated the schema");
    }
    match ensure_partitions(&client, QUARTERS_AHEAD).await {
        // Somebody has locked the table for long: the default partition takes what has no other, so this can wait.
        Err(error) if error.is_transient() => tracing::warn!(%error, "partitions are not made now"),
        Err(error) => return Err(error),
        Ok(_) => {}
    }
    ensure_publication(&client).await?;
    Ok(validate::judge(validate::after_migration(&client).await.map_err(checked)?)?)
}

/// The versions of the migrations.
pub(super) fn versions() -> Vec<i64> {
    migrations::migrations::runner().get_migrations().iter().map(|migration| i64::from(migration.version())).collect()
}

/// The relations, as a publication lists them.
pub(super) fn published_tables() -> String {
    Relation::ALL.map(|relation| format!("{SCHEMA}.{}", relation.table())).join(", ")
}

/// What the publication must publish of them.
pub(super) const OPTIONS: &str = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true";

/// Makes the partitions of `tweets` that are missing from this quarter up to `quarters_ahead` later, and returns how
/// many it made. To be called daily. It waits for locks a few seconds at most; then the error is transient.
pub async fn ensure_partitions(client: &Client, quarters_ahead: u32) -> Result<u32, SchemaError> {
    let months = i64::from(quarters_ahead) * 3;
    let statement = "SELECT feedmill_ensure_partitions(feedmill_micros(now()) / 1000, \
                     feedmill_micros(now() + $1::bigint * interval '1 month') / 1000)";
    let row = client
        .query_one(statement, &[&months])
        .await
        .map_err(|error| SchemaError::Statement { tried: "make the next partitions of tweets", error })?;
    let made: i32 = row.get(0);
    if made > 0 {
        tracing::info!(made, "made partitions of tweets");
    }
    Ok(made.unsigned_abs())
}

async fn ensure_publication(client: &Client) -> Result<(), SchemaError> {
    let failed = |error| SchemaError::Statement { tried: "make the publication", error };
    let there = client.query_opt("SELECT 1 FROM pg_publication WHERE pubname = $1", &[&PUBLICATION]).await;
    if there.map_err(failed)?.is_some() {
        return Ok(());
    }
    let statement = format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE {} WITH ({OPTIONS})", published_tables());
    client.batch_execute(&statement).await.map_err(failed)
}
