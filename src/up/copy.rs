//! Makes the change log ready: the first copy, or the proof that what it holds is of this source.
//!
//! ```text
//!   no slot ── create slot ── consistent point P, exported snapshot ── copy every relation ── log is ready at P
//! ```
//!
//! The snapshot holds what committed before P, and the slot gives what commits from P on, so each transaction is in
//! exactly one of the two. A copy that did not end leaves a log that says so: the slot is dropped and it starts over.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use feedmill_connectors::postgres::{Copied, Replication, Source, copy};
use feedmill_ingest::{Log, LogState};
use feedmill_model::{Lsn, Relation, SourceId};
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::stations::Stations;
use super::{SLOT, now_ms};

/// How connections of a copy call themselves.
const COPY_APPLICATION: &str = "feedmill-copy";
/// How long an earlier copy's server process may take to end, and how often it is looked at.
const HOLDER_ENDS_MAX: Duration = Duration::from_secs(5);
const HOLDER_POLL: Duration = Duration::from_millis(50);
/// Chunks of rows between the connection and the log.
const CHUNKS_MAX: usize = 8;

/// What mends a log that no longer fits its source.
const AGAIN: &str = "remove the folder `log` in the data folder and start again: everything is copied anew";

/// What a start finds.
pub struct Ready {
    /// The source.
    pub identity: SourceId,
    /// The end of its log at the start: what was written until then is to be served before anything is.
    pub end: Lsn,
}

/// Copies the source if the log is not ready; checks that it is the same source if it is. A copy begins by removing
/// `index`: what was derived from an earlier log is not valid any more.
pub async fn ready(source: &Source, log: &Log, index: &Path, stations: &Stations) -> anyhow::Result<Ready> {
    let mut replication = Replication::connect(source, COPY_APPLICATION).await?;
    let identity = replication.identify(SLOT).await?;
    let end = replication.wal_end().await?;
    let slot = replication.slot(SLOT).await?;
    if log.state() == LogState::Ready {
        let known = log.source().context("the change log does not say of which source it is")?;
        ensure!(
            known == identity,
            "the change log is of another source ({known}) than the database now is ({identity}): it was restored, promoted \
             or replaced. Point --database-url at the database that the log was made from, or {AGAIN}"
        );
        let position = log.position().map_or(Lsn(0), |position| position.lsn);
        let Some(slot) = slot else {
            bail!(
                "the replication slot {SLOT} is gone, and with it what was written since {position}. To go on, {AGAIN}"
            );
        };
        let confirmed = slot.confirmed_flush.unwrap_or_default();
        ensure!(
            confirmed <= position,
            "the replication slot {SLOT} has moved to {confirmed}, beyond the change log, which ends at {position}: another \
             program has read from it. To go on, {AGAIN}"
        );
        stations.copy().end(format!("the change log is at {position}"));
        return Ok(Ready { identity, end });
    }
    if let Some(slot) = slot {
        tracing::info!("a first copy did not end: starting over");
        if slot.active_pid.is_some() {
            end_copy_of_ours(source, &mut replication).await?;
        }
        replication.drop_slot(SLOT).await.context("could not drop the slot of a first copy that did not end")?;
    }
    if index.exists() {
        std::fs::remove_dir_all(index).with_context(|| format!("could not remove the old {}", index.display()))?;
    }
    // The snapshot lives until the next command on this connection.
    let start = replication.create_slot(SLOT, false).await.context("could not make the replication slot")?;
    log.begin_copy(&identity)?;
    stations.copy().begin(None, "tables into the change log");
    let mut rows = 0;
    for relation in Relation::ALL {
        rows += copy_relation(source, log, &start.snapshot, relation)
            .await
            .with_context(|| format!("could not copy the table {}", relation.table()))?;
        stations.copy().set(rows);
    }
    let (log, point) = (log.clone(), start.consistent_point);
    let position = tokio::task::spawn_blocking(move || log.finish_copy(point, now_ms())).await??;
    tracing::info!("copied {rows} rows as of {}", position.lsn);
    stations.copy().end(format!("{rows} rows as of {}", position.lsn));
    drop(replication);
    Ok(Ready { identity, end: point })
}

/// A process of ours that died while it made the slot leaves a server process that still waits for others' transactions
/// to end: it is ended. Whoever else holds the slot is left alone, and dropping it fails.
async fn end_copy_of_ours(source: &Source, replication: &mut Replication) -> anyhow::Result<()> {
    let client = source.connect(COPY_APPLICATION).await?;
    let end = "SELECT pg_terminate_backend(pid, $2) FROM pg_stat_activity JOIN pg_replication_slots ON pid = active_pid
               WHERE slot_name = $1 AND application_name = $3";
    let limit = i64::try_from(HOLDER_ENDS_MAX.as_millis())?;
    client.execute(end, &[&SLOT, &limit, &COPY_APPLICATION]).await.context("could not end an earlier copy")?;
    let deadline = Instant::now() + HOLDER_ENDS_MAX;
    while replication.slot(SLOT).await?.is_some_and(|slot| slot.active_pid.is_some()) && Instant::now() < deadline {
        tokio::time::sleep(HOLDER_POLL).await;
    }
    Ok(())
}

async fn copy_relation(source: &Source, log: &Log, snapshot: &str, relation: Relation) -> anyhow::Result<u64> {
    let (sender, mut chunks) = mpsc::channel(CHUNKS_MAX);
    let log = log.clone();
    let write = tokio::task::spawn_blocking(move || {
        while let Some(Copied { rows, unusable }) = chunks.blocking_recv() {
            for row in unusable {
                tracing::error!(key = ?row.key, "a row of {} cannot be read: {}", row.relation.table(), row.reason);
            }
            log.copy_rows(rows)?;
        }
        anyhow::Ok(())
    });
    let read = async {
        let rows = copy(source, snapshot, relation, &sender).await;
        drop(sender);
        rows
    };
    let (read, written) = tokio::join!(read, write);
    // When the log fails the reader only learns that nobody takes its rows.
    written??;
    Ok(read?)
}
