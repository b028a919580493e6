//! Makes the change log ready: the first copy, or the proof that what it holds is of this source.
//!
//! ```text
//!   no slot ── create slot ── consistent point P, exported snapshot ── copy every relation ── log is ready at P
//!                                                    │
//!            parts of all relations ─► connection ─► chunks, bounded ─► log      as many as --copy-connections
//!                                   └► connection ─► chunks, bounded ─► log
//! ```
//!
//! The snapshot holds what committed before P, and the slot gives what commits from P on, so each transaction is in
//! exactly one of the two. A copy that did not end leaves a log that says so: the slot is dropped and it starts over. A
//! slot of which the data folder knows nothing may be another Feedmill's, and is left alone.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use feedmill_connectors::postgres::{COPY_APPLICATION, Copied, Copier, CopyPart, Replication, Source};
use feedmill_ingest::{Log, LogState};
use feedmill_model::{Lsn, Relation, SourceId, failpoint};
use parking_lot::Mutex;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::meter::Meter;
use super::partitions::Partitions;
use super::stations::Stations;
use super::{SLOT, now_ms, renew, stores};
use crate::config::{OnMismatch, Settings};

/// How long an earlier copy's server process may take to end, and how often it is looked at.
const HOLDER_ENDS_MAX: Duration = Duration::from_secs(5);
const HOLDER_POLL: Duration = Duration::from_millis(50);
/// Chunks of rows between a connection and the log.
const CHUNKS_MAX: usize = 4;
/// Pages of a part: 16 MiB, so that the connections end at about the same time.
const PART_PAGES: u32 = 2_048;

/// What a start finds.
pub struct Ready {
    /// The source.
    pub identity: SourceId,
    /// The end of its log at the start: what was written until then is to be served before anything is.
    pub end: Lsn,
}

/// Copies the source if the log is not ready. If it is, checks that it is the same source, and else does what
/// `--on-mismatch` says. A copy begins by removing the stores: what was derived from an earlier log is not valid any more.
/// Stores in a cluster are those of others where this process does not derive, and stay.
pub async fn ready(
    source: &Source,
    log: &Log,
    settings: &Settings,
    derives: bool,
    stations: &Arc<Stations>,
) -> anyhow::Result<Ready> {
    let mut replication = Replication::connect(source, COPY_APPLICATION).await?;
    if log.state() == LogState::Ready {
        let known = log.source().context("the change log does not say of which source it is")?;
        let position = log.position().map_or(Lsn(0), |position| position.lsn);
        match replication.check_continues(&known, position).await {
            Ok(()) => {
                stations.copy().end(format!("the change log is at {position}"));
                return Ok(Ready { identity: known, end: replication.wal_end().await? });
            }
            Err(error) if error.is_mismatch() && settings.on_mismatch == OnMismatch::Resync => {
                let renewed = renew::renew(source, log, settings, stations, &error).await?;
                return Ok(Ready { identity: renewed.identity, end: renewed.position.lsn });
            }
            Err(error) => return Err(renew::explained(error)),
        }
    }
    let identity = replication.identify(SLOT).await?;
    if log.state() == LogState::Copying {
        tracing::info!("a first copy did not end: starting over");
    }
    if let Some(slot) = replication.slot(SLOT).await? {
        ensure!(
            is_of_this_folder(log, &identity, settings),
            "the replication slot {SLOT} is there already, and this data folder, {}, knows nothing of it. If another \
             Feedmill uses this database{}, stop here: is --data right? If the slot is left of a folder that is gone: \
             SELECT pg_drop_replication_slot('{SLOT}')",
            settings.data.display(),
            slot.active_pid.map_or(String::new(), |pid| format!(" (the server's process {pid} reads the slot now)")),
        );
        drop_slot(source, &mut replication).await?;
    }
    if derives {
        stores::empty_cluster(settings, &identity).await?;
    }
    stores::remove(settings)?;
    // Before the slot is there: from now on it is known to be ours.
    log.begin_copy(&identity)?;
    // The snapshot lives until the next command on this connection.
    let start = replication.create_slot(SLOT, false).await.context("could not make the replication slot")?;
    failpoint!("copy_slot_after");
    let take = {
        let log = log.clone();
        move |Copied { rows, unusable }| {
            log.copy_rows(rows)?;
            Ok(log.copy_unusable(unusable)?)
        }
    };
    let copied = copy(source, &start.snapshot, &Relation::ALL, settings.copy_connections, stations, take).await?;
    let (log, point) = (log.clone(), start.consistent_point);
    let position = tokio::task::spawn_blocking(move || log.finish_copy(point, now_ms())).await??;
    copied.partitions.save(&settings.data)?;
    tracing::info!("copied {} rows as of {}", copied.rows, position.lsn);
    stations.copy().end(format!("{} rows as of {}", copied.rows, position.lsn));
    drop(replication);
    Ok(Ready { identity, end: point })
}

/// Whether a slot that is there, while the log is not ready, was made for this folder: by a copy of this database that did
/// not end, for a log that was removed from beside its stores, or in a cluster of our own.
fn is_of_this_folder(log: &Log, identity: &SourceId, settings: &Settings) -> bool {
    let copied = log.source().is_some_and(|begun| begun.system == identity.system);
    copied || stores::are_there(settings) || settings.database_url.is_none()
}

/// Drops the slot, which must be one of ours that nobody reads.
pub async fn drop_slot(source: &Source, replication: &mut Replication) -> anyhow::Result<()> {
    let Some(slot) = replication.slot(SLOT).await? else { return Ok(()) };
    ensure!(
        slot.plugin.as_deref() == Some("pgoutput"),
        "the replication slot {SLOT} is not Feedmill's: its plugin is {}. Drop it if nobody needs it: SELECT \
         pg_drop_replication_slot('{SLOT}')",
        slot.plugin.as_deref().unwrap_or("none")
    );
    if slot.active_pid.is_some() {
        end_copy_of_ours(source, replication).await?;
    }
    replication.drop_slot(SLOT).await.context("could not drop the replication slot to make it anew")
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

/// What the connections of a copy share.
struct Shared<T> {
    parts: Mutex<std::vec::IntoIter<CopyPart>>,
    /// No part is left.
    all_taken: CancellationToken,
    meter: Meter,
    take: T,
}

/// What was copied.
pub struct Copy {
    /// How many rows.
    pub rows: u64,
    /// The partitions that there were.
    pub partitions: Partitions,
}

/// Copies `relations` as they were at `snapshot` over several connections. `take` is given their rows, on as many threads,
/// and may block.
pub async fn copy<T>(
    source: &Source,
    snapshot: &str,
    relations: &[Relation],
    connections: usize,
    stations: &Arc<Stations>,
    take: T,
) -> anyhow::Result<Copy>
where
    T: Fn(Copied) -> anyhow::Result<()> + Send + Sync + 'static,
{
    let first = Copier::open(source, snapshot, relations).await?;
    let partitions = Partitions::read(first.client()).await?;
    let mut parts = Vec::new();
    for relation in relations {
        parts.extend(first.parts(*relation, PART_PAGES).await?);
    }
    // The large ones first: what is left at the end is small.
    parts.sort_by_key(|part| std::cmp::Reverse(part.rows));
    let connections = connections.clamp(1, parts.len().max(1));
    let meter = Meter::begin(parts.iter().map(|part| part.rows).sum(), connections, stations);
    let (parts, all_taken) = (Mutex::new(parts.into_iter()), CancellationToken::new());
    let shared = Arc::new(Shared { parts, all_taken, meter, take });
    let mut workers = JoinSet::new();
    workers.spawn(work(first, Arc::clone(&shared)));
    for _ in 1..connections {
        let (source, snapshot, relations) = (source.clone(), snapshot.to_owned(), relations.to_vec());
        let shared = Arc::clone(&shared);
        workers.spawn(async move {
            // Whoever truncates a table may keep it waiting for long after the others have copied everything.
            let all_taken = shared.all_taken.clone();
            let opened = all_taken.run_until_cancelled(Copier::open(&source, &snapshot, &relations)).await;
            match opened.transpose() {
                Ok(None) => Ok(0),
                Ok(Some(copier)) => work(copier, shared).await,
                // The first has all it needs, and rows of it are in the log: to begin again would be to lose them.
                Err(error) if error.is_conflict() => {
                    tracing::warn!("the copy goes on with a connection less: {error}");
                    Ok(0)
                }
                Err(error) => Err(error.into()),
            }
        });
    }
    let mut rows = 0;
    loop {
        tokio::select! {
            ended = workers.join_next() => match ended {
                Some(copied) => rows += copied??,
                None => break,
            },
            () = shared.meter.interval() => shared.meter.tell(),
        }
    }
    shared.meter.end();
    Ok(Copy { rows, partitions })
}

/// One connection: copies parts until there are no more.
async fn work<T>(copier: Copier, shared: Arc<Shared<T>>) -> anyhow::Result<u64>
where
    T: Fn(Copied) -> anyhow::Result<()> + Send + Sync + 'static,
{
    let (sender, mut chunks) = mpsc::channel::<Copied>(CHUNKS_MAX);
    let write = {
        let shared = Arc::clone(&shared);
        tokio::task::spawn_blocking(move || {
            while let Some(chunk) = chunks.blocking_recv() {
                let rows = chunk.rows.len() + chunk.unusable.len();
                (shared.take)(chunk)?;
                shared.meter.add(rows);
            }
            anyhow::Ok(())
        })
    };
    let read = async {
        let sender = sender;
        let mut rows = 0;
        loop {
            let Some(part) = shared.parts.lock().next() else {
                shared.all_taken.cancel();
                return anyhow::Ok(rows);
            };
            let copied = copier.copy(part, &sender).await;
            rows += copied.with_context(|| format!("could not copy the table {}", part.relation.table()))?;
        }
    };
    let (read, written) = tokio::join!(read, write);
    // When the log fails the reader only learns that nobody takes its rows.
    written??;
    read
}
