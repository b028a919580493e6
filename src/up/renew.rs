//! What to do when the source no longer continues what was read from it.

use std::sync::Arc;

use anyhow::Context;
use feedmill_connectors::postgres::{
    COPY_APPLICATION, CopyError, Replication, ReplicationError, Source, SourceError, schema, schema::SchemaError,
};
use feedmill_ingest::Log;
use feedmill_model::{Position, Relation, SourceId};

use super::stations::Stations;
use super::{SLOT, copy};
use crate::config::Settings;
use crate::resync::{self, Snapshot};

/// A log that was brought to a new snapshot.
pub struct Renewed {
    /// The source as it is now.
    pub identity: SourceId,
    /// The batch that holds the difference.
    pub position: Position,
}

/// Makes the slot anew, compares the source as of its snapshot with the log, and lets the log go on from there. What fails
/// half-way leaves the log as it was, and the next attempt begins anew.
pub async fn renew(
    source: &Source,
    log: &Log,
    settings: &Settings,
    stations: &Arc<Stations>,
    found: &ReplicationError,
) -> anyhow::Result<Renewed> {
    tracing::warn!("{found}: comparing everything with the database as it is now (--on-mismatch resync)");
    // The database may be another one.
    schema::prepare(source).await.context("could not prepare the schema")?;
    let mut replication = Replication::connect(source, COPY_APPLICATION).await?;
    let identity = replication.identify(SLOT).await?;
    copy::drop_slot(source, &mut replication).await?;
    // The snapshot lives until the next command on this connection.
    let start = replication.create_slot(SLOT, false).await.context("could not make the replication slot")?;
    let snapshot = Snapshot { source: &identity, name: &start.snapshot, goes_on_at: Some(start.consistent_point) };
    let outcome = resync::compare(source, log, &snapshot, &Relation::ALL, settings.copy_connections, stations).await?;
    outcome.partitions.save(&settings.data)?;
    drop(replication);
    tracing::info!("the change log goes on from {} of {identity}", outcome.position.lsn);
    Ok(Renewed { identity, position: outcome.position })
}

/// Whether a later attempt may succeed without anybody changing anything.
pub fn is_transient(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| {
        cause.downcast_ref::<ReplicationError>().is_some_and(ReplicationError::is_transient)
            || cause.downcast_ref::<CopyError>().is_some_and(CopyError::is_transient)
            || cause.downcast_ref::<tokio_postgres::Error>().is_some_and(tokio_postgres::Error::is_closed)
            || cause.downcast_ref::<SchemaError>().is_some_and(SchemaError::is_transient)
            || cause.downcast_ref::<SourceError>().is_some_and(SourceError::is_transient)
    })
}

/// Whether the server ended a copy in favour of somebody else, who is done by the next attempt.
pub fn is_conflict(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| cause.downcast_ref::<CopyError>().is_some_and(CopyError::is_conflict))
}

/// The error with what mends it.
pub fn explained(error: ReplicationError) -> anyhow::Error {
    if !error.is_mismatch() {
        return error.into();
    }
    anyhow::anyhow!(
        "{error}. Nothing was changed here. Either let the database be again what it was (restore it, or point \
         --database-url at the one that the change log was made from), or start with `feedmill up --on-mismatch resync`: \
         it compares every row with the database as it is now and takes over the difference"
    )
}
