//! The comparison itself, in the running process.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use feedmill_connectors::postgres::{Copied, Source};
use feedmill_ingest::Log;
use feedmill_model::{Change, Lsn, Position, Relation, Row, SourceId, Time};
use parking_lot::Mutex as SyncMutex;
use tokio::sync::{Mutex, mpsc, watch};
use tokio::time::timeout;

use super::Compared;
use crate::config::Settings;
use crate::control::Answer;
use crate::up::copy::{Copy, copy};
use crate::up::cut::{self, Beyond};
use crate::up::partitions::Partitions;
use crate::up::stations::Stations;
use crate::up::{Cut, now_ms};

/// How long the change log may take to reach the position of the snapshot.
const REACH_MAX: Duration = Duration::from_secs(120);
/// How long reading the difference back from the change log may take for each piece.
const READ_MAX: Duration = Duration::from_secs(60);

/// A snapshot of the source to compare with.
pub struct Snapshot<'a> {
    /// Of which source.
    pub source: &'a SourceId,
    /// Its name.
    pub name: &'a str,
    /// Where capture goes on after it; `None` where the change log stands.
    pub goes_on_at: Option<Lsn>,
}

/// What a comparison came to.
pub struct Outcome {
    /// The batch that holds the difference.
    pub position: Position,
    /// By table.
    pub compared: Vec<Compared>,
    /// The partitions that there were.
    pub partitions: Partitions,
}

/// Compares `relations` with `snapshot`, and makes the difference a batch. The change log must not go on meanwhile.
pub async fn compare(
    source: &Source,
    log: &Log,
    snapshot: &Snapshot<'_>,
    relations: &[Relation],
    connections: usize,
    stations: &Arc<Stations>,
) -> anyhow::Result<Outcome> {
    let before = log.position().context("the change log is empty")?;
    let resync = Arc::new(log.begin_resync(snapshot.source, relations)?);
    let rows = Arc::new(SyncMutex::new(BTreeMap::<Relation, u64>::new()));
    let take = {
        let (resync, rows) = (Arc::clone(&resync), Arc::clone(&rows));
        move |chunk: Copied| {
            if let Some(relation) = chunk.rows.first().map(Row::relation) {
                *rows.lock().entry(relation).or_default() += chunk.rows.len() as u64;
            }
            resync.stage_rows(&chunk.rows)?;
            Ok(resync.stage_unusable(chunk.unusable)?)
        }
    };
    let Copy { rows: copied, partitions } = copy(source, snapshot.name, relations, connections, stations, take).await?;
    let resync =
        Arc::into_inner(resync).context("the snapshot is still being staged; this is a defect of Feedmill's")?;
    let goes_on_at = snapshot.goes_on_at;
    let (log, rows) = (log.clone(), std::mem::take(&mut *rows.lock()));
    let relations = relations.to_vec();
    let (position, compared) = tokio::task::spawn_blocking(move || {
        let position = resync.finish(goes_on_at, now_ms())?;
        anyhow::Ok((position, difference(&log, before.time, position.time, &relations, &rows)?))
    })
    .await??;
    let differences: u64 = compared.iter().map(|table| table.inserted + table.updated + table.deleted).sum();
    let told = format!("{copied} rows compared as of {}, {differences} differences taken over", position.lsn);
    tracing::info!("{told}");
    stations.copy().end(told);
    Ok(Outcome { position, compared, partitions })
}

/// What the batch of `time`, which follows `before`, holds of each relation.
fn difference(
    log: &Log,
    before: Time,
    time: Time,
    relations: &[Relation],
    rows: &BTreeMap<Relation, u64>,
) -> anyhow::Result<Vec<Compared>> {
    let begun = |relation: &Relation| {
        let rows = rows.get(relation).copied().unwrap_or(0);
        (*relation, Compared { table: relation.table().to_owned(), rows, ..Compared::default() })
    };
    let mut compared: BTreeMap<Relation, Compared> = relations.iter().map(begun).collect();
    let mut reader = log.reader(before)?;
    loop {
        let batch = reader.next(READ_MAX)?.context("the difference cannot be read from the change log")?;
        for Change { old, new } in &batch.changes {
            let Some(row) = new.as_ref().or(old.as_ref()) else { continue };
            let Some(table) = compared.get_mut(&row.relation()) else { continue };
            match (old, new) {
                (None, _) => table.inserted += 1,
                (Some(_), Some(_)) => table.updated += 1,
                (Some(_), None) => table.deleted += 1,
            }
        }
        if batch.position.time >= time && batch.last {
            return Ok(compared.into_values().collect());
        }
    }
}

/// Compares the change log of this process with its source.
pub struct Resyncer {
    /// The database.
    source: Source,
    /// What is compared with it.
    log: Log,
    /// To make the log stand at a position.
    cuts: mpsc::Sender<Cut>,
    /// How far it is.
    durable: watch::Receiver<Lsn>,
    /// Where the known partitions are kept.
    data: PathBuf,
    /// Connections of a copy.
    connections: usize,
    /// Where it reports how far it is.
    stations: Arc<Stations>,
    /// One comparison after the other.
    one_at_a_time: Mutex<()>,
}

impl Resyncer {
    /// One of this log, which `cuts` make stand.
    pub fn new(
        source: &Source,
        settings: &Settings,
        log: &Log,
        cuts: &mpsc::Sender<Cut>,
        durable: watch::Receiver<Lsn>,
        stations: &Arc<Stations>,
    ) -> Arc<Self> {
        Arc::new(Resyncer {
            source: source.clone(),
            log: log.clone(),
            cuts: cuts.clone(),
            durable,
            data: settings.data.clone(),
            connections: settings.copy_connections,
            stations: Arc::clone(stations),
            one_at_a_time: Mutex::default(),
        })
    }

    /// Compares `relations`, and takes over the difference.
    pub async fn run(&self, relations: &[Relation]) -> anyhow::Result<Vec<Compared>> {
        let _one = self.one_at_a_time.lock().await;
        let snapshot = cut::take(&self.source, &self.cuts, "resync", Beyond::Waits, |_| ()).await?;
        let mut durable = self.durable.clone();
        let reached = async { durable.wait_for(|durable| *durable >= snapshot.position).await.is_ok() };
        ensure!(
            timeout(REACH_MAX, reached).await == Ok(true),
            "the change log has not reached {} within {REACH_MAX:?}; `/health` says what stands still",
            snapshot.position
        );
        let known = self.log.source().context("the change log does not say of which source it is")?;
        let of = Snapshot { source: &known, name: &snapshot.name, goes_on_at: None };
        let outcome = compare(&self.source, &self.log, &of, relations, self.connections, &self.stations).await?;
        for relation in relations {
            Partitions::update(&self.data, *relation, &outcome.partitions)?;
        }
        Ok(outcome.compared)
    }

    /// The same for the tables of these names, or for all if there is none; sends a report for each.
    pub async fn answer(&self, tables: &[String], answers: mpsc::Sender<Answer>) -> anyhow::Result<()> {
        let named = |relation: &Relation| tables.is_empty() || tables.iter().any(|table| table == relation.table());
        let relations: Vec<Relation> = Relation::ALL.into_iter().filter(named).collect();
        for compared in self.run(&relations).await? {
            answers.send(Answer::Compared(compared)).await.context("whoever asked has gone away")?;
        }
        Ok(())
    }
}
