//! What every process that captures does with the database: makes it ready, watches its slot, and keeps it in order.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feedmill_connectors::postgres::{Cluster, Source, schema};
use feedmill_ingest::Log;
use tokio::sync::oneshot;
use tokio_util::sync::CancellationToken;

use super::copy::{self, Ready};
use super::process::Parts;
use super::stations::Stations;
use super::{SLOT, housekeeping, observer, renew};
use crate::config::Settings;

/// A cluster that has to recover after a crash of the machine takes its time.
const CLUSTER_START_MAX: Duration = Duration::from_secs(300);
/// Pause before a database that is away is tried again, while what is here is served.
const PREPARE_RETRY: Duration = Duration::from_secs(2);

/// The database that the settings name, or else that of the private cluster, which need not run yet.
pub fn configured(settings: &Settings) -> anyhow::Result<Source> {
    match &settings.database_url {
        Some(url) => Ok(url.parse()?),
        None => Ok(Cluster::source_in(&settings.data.join("postgres"))?),
    }
}

/// Watches the slot from when it is told that there is something to be asked.
pub fn watch_slot(
    parts: &mut Parts,
    source: &Source,
    stations: &Arc<Stations>,
    end: &CancellationToken,
) -> oneshot::Sender<()> {
    let (runs, is_running) = oneshot::channel();
    let (source, stations, end) = (source.clone(), Arc::clone(stations), end.clone());
    parts.spawn(async move {
        let _ = is_running.await;
        observer::watch_slot(source, SLOT, stations, end).await
    });
    runs
}

/// A database that is to be made ready.
pub struct Preparation<'a> {
    /// It.
    pub source: &'a Source,
    /// What was read of it.
    pub log: &'a Log,
    /// How to copy it, and whether it is a private cluster.
    pub settings: &'a Settings,
    /// Whether this process writes the stores that the settings name, or only compares them.
    pub derives: bool,
    /// Where it reports how far it is.
    pub stations: &'a Arc<Stations>,
}

impl Preparation<'_> {
    /// Starts the private cluster, if there is to be one, and prepares schema and log. If `waits`, a database that is away is
    /// waited for, because what is here is of use meanwhile; else whoever starts this is told at once, but of what nobody can
    /// mend.
    pub async fn complete(
        self,
        cluster: &mut Option<Cluster>,
        runs: oneshot::Sender<()>,
        waits: bool,
    ) -> anyhow::Result<Ready> {
        if self.settings.database_url.is_none() {
            // Dropped half-way it leaves what the next start completes.
            *cluster = Some(Cluster::start(&self.settings.data.join("postgres"), CLUSTER_START_MAX).await?);
        }
        let _ = runs.send(());
        loop {
            match self.attempt().await {
                Err(error) if renew::is_conflict(&error) || (waits && renew::is_transient(&error)) => {
                    tracing::warn!("PostgreSQL is not ready ({error:#}); trying again in {PREPARE_RETRY:?}");
                    self.stations.postgresql().waiting(format!("{error:#}"));
                    tokio::time::sleep(PREPARE_RETRY).await;
                }
                ready => return ready,
            }
        }
    }

    /// Its schema, its clock, and that it is the one that the log is of, or a first copy.
    async fn attempt(&self) -> anyhow::Result<Ready> {
        schema::prepare(self.source).await.context("could not prepare the schema")?;
        housekeeping::compare_clocks(self.source, self.log).await?;
        copy::ready(self.source, self.log, self.settings, self.derives, self.stations).await
    }
}

/// Makes partitions of coming quarters, compares clocks, and writes now and then where that is wanted.
pub fn keep(parts: &mut Parts, source: &Source, log: &Log, settings: &Settings, end: &CancellationToken) {
    parts.spawn(housekeeping::keep_partitions(source.clone(), end.clone()));
    parts.spawn(housekeeping::keep_clocks(source.clone(), log.clone(), end.clone()));
    if settings.heartbeat_seconds > 0 {
        let period = Duration::from_secs(settings.heartbeat_seconds);
        parts.spawn(housekeeping::keep_heart(source.clone(), period, end.clone()));
    }
}
