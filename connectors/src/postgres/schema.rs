//! The schema of the source: migrations, partitions, publication.
//!
//! ```text
//!  prepare ─ server fit? ─ lock ─ migrations/V*.sql ─ partitions ahead ─ publication ─ unlock
//! ```
//!
//! Each migration commits together with its line in `refinery_schema_history`, so a kill in between leaves whole ones.
//! Callers at the same time wait for each other at an advisory lock. What is there already is left as it is: a
//! publication that somebody changed is reported with the statement that mends it, and never altered, because rows
//! written while it lacked a table are in nobody's stream.

use feedmill_model::Relation;
use tokio_postgres::Client;

use super::error::{is_transient, with_causes};
use super::{Source, SourceError};

/// The name of the publication that the stream reads.
pub const PUBLICATION: &str = "feedmill";

/// The schema that holds the relations.
pub const SCHEMA: &str = "public";

/// Quarters of a year for which partitions are made ahead at each start.
pub const QUARTERS_AHEAD: u32 = 4;

/// The oldest major version that has all that is used here.
const VERSION_MIN: i32 = 14;

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
    /// The server cannot serve as a source.
    #[error("the server cannot be a source: {found}; {mend}")]
    Server {
        /// What was found.
        found: String,
        /// What mends it.
        mend: String,
    },
    /// The publication lacks something.
    #[error("publication {PUBLICATION} {lacks}; mend it by: {mend} Rows written meanwhile were not published: resync")]
    Publication {
        /// What it lacks.
        lacks: String,
        /// SQL that mends it.
        mend: String,
    },
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
            SchemaError::Server { .. } | SchemaError::Publication { .. } => false,
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
    check_server(&client).await?;
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
    ensure_publication(&client).await
}

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

async fn check_server(client: &Client) -> Result<(), SchemaError> {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int / 10000, current_setting('wal_level'), \
             pg_is_in_recovery(), current_setting('server_encoding')",
            &[],
        )
        .await
        .map_err(|error| SchemaError::Statement { tried: "read the server's settings", error })?;
    let (version, wal_level, standby, encoding): (i32, &str, bool, &str) =
        (row.get(0), row.get(1), row.get(2), row.get(3));
    let (found, mend) = if version < VERSION_MIN {
        (format!("it is PostgreSQL {version}"), format!("PostgreSQL {VERSION_MIN} or newer is needed"))
    } else if wal_level != "logical" {
        let mend = "run ALTER SYSTEM SET wal_level = logical; and restart the server";
        (format!("wal_level is {wal_level}"), mend.to_owned())
    } else if standby {
        ("it is a standby".to_owned(), "give the address of the primary".to_owned())
    } else if encoding != "UTF8" {
        (format!("the database's encoding is {encoding}"), "create the database with ENCODING 'UTF8'".to_owned())
    } else {
        return Ok(());
    };
    Err(SchemaError::Server { found, mend })
}

async fn ensure_publication(client: &Client) -> Result<(), SchemaError> {
    let failed = |error| SchemaError::Statement { tried: "make the publication", error };
    let settings = client
        .query_opt(
            "SELECT pubinsert AND pubupdate AND pubdelete AND pubtruncate, pubviaroot FROM pg_publication \
             WHERE pubname = $1",
            &[&PUBLICATION],
        )
        .await
        .map_err(failed)?;
    let tables = Relation::ALL.map(|relation| format!("{SCHEMA}.{}", relation.table())).join(", ");
    let options = "publish = 'insert, update, delete, truncate', publish_via_partition_root = true";
    let Some(settings) = settings else {
        let statement = format!("CREATE PUBLICATION {PUBLICATION} FOR TABLE {tables} WITH ({options})");
        return client.batch_execute(&statement).await.map_err(failed);
    };
    let lacks = if settings.get(0) && settings.get(1) {
        missing_from_publication(client).await.map_err(failed)?
    } else {
        Some("does not publish everything through the partition root".to_owned())
    };
    match lacks {
        None => Ok(()),
        Some(lacks) => {
            let mend = format!(
                "ALTER PUBLICATION {PUBLICATION} SET TABLE {tables}; ALTER PUBLICATION {PUBLICATION} SET ({options});"
            );
            Err(SchemaError::Publication { lacks, mend })
        }
    }
}

/// The first thing that the publication does not publish, in words. Column lists and row filters exist from
/// PostgreSQL 15 on, so they are read by way of JSON, which does not mind their absence.
async fn missing_from_publication(client: &Client) -> Result<Option<String>, tokio_postgres::Error> {
    let rows = client
        .query(
            "SELECT tablename::text, \
                    ARRAY(SELECT jsonb_array_elements_text(to_jsonb(t) -> 'attnames')), \
                    to_jsonb(t) ->> 'rowfilter' \
             FROM pg_publication_tables t WHERE pubname = $1 AND schemaname = $2",
            &[&PUBLICATION, &SCHEMA],
        )
        .await?;
    for relation in Relation::ALL {
        let table = relation.table();
        let Some(row) = rows.iter().find(|row| row.get::<_, &str>(0) == table) else {
            return Ok(Some(format!("lacks the table {table}")));
        };
        let (columns, filter): (Vec<String>, Option<String>) = (row.get(1), row.get(2));
        let missing = relation.columns().iter().find(|column| !columns.iter().any(|name| name == *column));
        if let (false, Some(column)) = (columns.is_empty(), missing) {
            return Ok(Some(format!("lacks the column {table}.{column}")));
        }
        if let Some(filter) = filter {
            return Ok(Some(format!("leaves out rows of {table} by the filter {filter}")));
        }
    }
    Ok(None)
}
