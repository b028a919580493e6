//! What runs beside the way of the data: stores made durable, old log dropped, partitions made, clocks compared.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use feedmill_api::LogSize;
use feedmill_connectors::disk::free_bytes;
use feedmill_connectors::postgres::{Source, schema};
use feedmill_ingest::Log;
use feedmill_model::Time;
use feedmill_sinks::search::SearchStore;
use feedmill_sinks::{HomeStore, IndexStore};
use tokio::time::{MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::now_ms;
use super::stations::Stations;
use super::stores::Stores;
use crate::config::Settings;

/// How often the stores are made durable, and the tail of the log that they no longer need is dropped.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// A save of home timelines takes at most this part of the time.
const SAVING_PART: u32 = 10;
/// The log keeps its tail for a save of home timelines, unless it is older than this: then a restart begins them anew.
const SAVE_AGE_MS_MAX: u64 = 3_600_000;
/// The same for search, whose server may be away: older than this it is built again by a restart.
const SEARCH_AGE_MS_MAX: u64 = 6 * 3_600_000;
/// How long the last save may take: Ctrl-C ends within 5 seconds.
const LAST_SAVE_MAX: Duration = Duration::from_millis(1_500);
/// The same of the last tables, of the change log and of the stores.
const LAST_WRITE_MAX: Duration = Duration::from_millis(500);
/// How long that of search is waited for: what it has not made durable then is so next time.
const SEARCH_MAX: Duration = Duration::from_secs(2);
/// How often the partitions of coming quarters are made, when they are missing.
const PARTITIONS: Duration = Duration::from_secs(6 * 3_600);
/// How often the source's clock is asked.
const CLOCKS: Duration = Duration::from_secs(60);
/// How long a heartbeat may take, at least.
const HEARTBEAT_MAX: Duration = Duration::from_secs(10);

/// Makes the partitions of coming quarters, now and every few hours.
pub async fn keep_partitions(source: Source, end: CancellationToken) -> anyhow::Result<&'static str> {
    let mut again = interval(PARTITIONS);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        tokio::select! {
            _ = again.tick() => {}
            () = end.cancelled() => return Ok("the keeper of partitions"),
        }
        let made = async {
            let client = source.connect("feedmill-partitions").await?;
            anyhow::Ok(schema::ensure_partitions(&client, schema::QUARTERS_AHEAD).await?)
        };
        let made = tokio::select! {
            made = made => made,
            () = end.cancelled() => continue,
        };
        match made {
            Ok(0) => {}
            Ok(made) => tracing::info!("made {made} partitions of coming quarters"),
            // The default partition takes what has no other, so this can wait.
            Err(error) => tracing::warn!("could not make partitions of coming quarters: {error:#}"),
        }
    }
}

/// Tells the change log what the source's clock says: it mints no time while ours runs ahead of it.
pub async fn compare_clocks(source: &Source, log: &Log) -> anyhow::Result<()> {
    let asked_ms = now_ms();
    let client = source.connect("feedmill-clock").await?;
    let answer = client.query_one("SELECT feedmill_micros(clock_timestamp())", &[]).await?;
    log.compare_clocks(answer.try_get(0)?, asked_ms);
    Ok(())
}

/// Compares the clocks again every minute.
pub async fn keep_clocks(source: Source, log: Log, end: CancellationToken) -> anyhow::Result<&'static str> {
    let mut again = interval(CLOCKS);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let compare = async {
        loop {
            again.tick().await;
            match tokio::time::timeout(CLOCKS, compare_clocks(&source, &log)).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("the source's clock could not be read: {error:#}"),
                Err(_) => tracing::debug!("the source's clock was not read within {CLOCKS:?}"),
            }
        }
    };
    tokio::select! {
        () = compare => {}
        () = end.cancelled() => {}
    }
    Ok("the comparison of clocks")
}

/// Writes a message into PostgreSQL's log now and then, so that there is something to read and to acknowledge.
pub async fn keep_heart(source: Source, period: Duration, end: CancellationToken) -> anyhow::Result<&'static str> {
    let mut again = interval(period);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let beat = async || {
        let client = source.connect("feedmill-heartbeat").await?;
        client.batch_execute("SELECT pg_logical_emit_message(false, 'feedmill', '')").await?;
        anyhow::Ok(())
    };
    let keep = async {
        loop {
            again.tick().await;
            match tokio::time::timeout(period.max(HEARTBEAT_MAX), beat()).await {
                Ok(Ok(())) => {}
                Ok(Err(error)) => tracing::debug!("no heartbeat could be written: {error:#}"),
                Err(_) => tracing::debug!("no heartbeat was written in time"),
            }
        }
    };
    tokio::select! {
        () = keep => {}
        () = end.cancelled() => {}
    }
    Ok("the heartbeat")
}

/// What housekeeping looks after.
#[derive(Clone)]
pub struct House {
    /// The folder of everything.
    pub data: PathBuf,
    /// The change log.
    pub log: Log,
    /// Facts, rows and reactions.
    pub index: Arc<dyn IndexStore>,
    /// Home timelines.
    pub home: Arc<dyn HomeStore>,
    /// What search finds.
    pub search: Arc<dyn SearchStore>,
    /// How long the log keeps what every store has.
    pub tail: Duration,
    /// Bytes of the disk that saves leave free: the change log needs them.
    pub reserve: u64,
    /// Where sizes are reported.
    pub stations: Arc<Stations>,
}

impl House {
    /// Makes the stores durable and drops what the change log need not keep, every few seconds.
    pub async fn keep(self, end: CancellationToken) -> anyhow::Result<&'static str> {
        let mut again = interval(HOUSEKEEPING);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                _ = again.tick() => {}
                () = end.cancelled() => return Ok("housekeeping"),
            }
            let house = self.clone();
            tokio::task::spawn_blocking(move || house.clean()).await??;
        }
    }

    /// Saves home timelines every `pause`, and less often where a save takes long.
    pub async fn save_home(self, pause: Duration, end: CancellationToken) -> anyhow::Result<&'static str> {
        let mut wait = pause;
        loop {
            tokio::select! {
                () = tokio::time::sleep(wait) => {}
                () = end.cancelled() => return Ok("the saves of home timelines"),
            }
            let (house, end) = (self.clone(), end.clone());
            let started = Instant::now();
            tokio::task::spawn_blocking(move || house.save(&end)).await?;
            wait = pause.max(started.elapsed() * SAVING_PART);
        }
    }

    fn save(&self, end: &CancellationToken) {
        let has_room = || room(&self.data, self.reserve) > 0;
        match self.home.save(&mut || self.index.durable().map(drop), &mut || !end.is_cancelled() && has_room()) {
            Ok(Some(saved)) => self.stations.home().saved(saved.position.lsn),
            Ok(None) if !has_room() => tracing::warn!(
                "home timelines are not saved, because the disk is nearly full; they go on being served, and a restart \
                 begins at the save before"
            ),
            Ok(None) => {}
            Err(error) => tracing::warn!(
                "home timelines could not be saved: {error}. They go on being served; a restart begins at the save before, \
                 and the change log grows until one succeeds"
            ),
        }
    }

    fn clean(&self) -> anyhow::Result<()> {
        let index = self.index.durable().context("could not make the stores durable")?;
        let search = self.search.durable(SEARCH_MAX).context("could not make the search index durable")?;
        let mut needed = None;
        if let Some(index) = index {
            let searched = search.map_or(0, |search| search.time).max(index.time.saturating_sub(SEARCH_AGE_MS_MAX));
            let durable = index.time.min(searched);
            let saved = self.home.saved().map_or(durable, |saved| saved.time);
            let saved = saved.max(durable.saturating_sub(SAVE_AGE_MS_MAX));
            needed = Some(durable.min(saved));
            self.stations.facts().saved(index.lsn);
            self.stations.rows().saved(index.lsn);
            self.stations.reactions().saved(index.lsn);
        }
        if let Some(search) = search {
            self.stations.search().saved(search.lsn);
        }
        if let Some(viewers) = self.home.viewers() {
            metrics::gauge!("feedmill_home_viewers").set(viewers as f64);
        }
        look_after(&self.log, needed, self.tail, &self.data, &self.stations)
    }
}

/// Writes tables of the change log, drops what is older than `tail` and before the time that is `needed`, if it is known, and
/// reports what it takes.
fn look_after(log: &Log, needed: Option<Time>, tail: Duration, data: &Path, stations: &Stations) -> anyhow::Result<()> {
    log.relieve().context("could not write tables of the change log")?;
    if let Some(needed) = needed {
        let kept = now_ms().saturating_sub(u64::try_from(tail.as_millis()).unwrap_or(u64::MAX));
        log.compact(needed.min(kept)).context("could not drop the old tail of the change log")?;
    }
    let (rows_bytes, tail_bytes) = log.disk_bytes();
    let newest = log.position().map_or(0, |position| position.time);
    stations.log_size(LogSize { rows_bytes, tail_bytes, tail_ms: newest.saturating_sub(log.tail_after()) });
    if let Ok(free) = free_bytes(data) {
        stations.disk_free(free);
    }
    Ok(())
}

/// Looks after a change log beside which there are no stores, every few seconds; `needed` tells from which time on it is
/// needed, once that is known.
pub async fn keep_log(
    log: Log,
    settings: Settings,
    stations: Arc<Stations>,
    needed: impl Fn() -> Option<Time> + Clone + Send + 'static,
    end: CancellationToken,
) -> anyhow::Result<&'static str> {
    let mut again = interval(HOUSEKEEPING);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let settings = Arc::new(settings);
    loop {
        tokio::select! {
            _ = again.tick() => {}
            () = end.cancelled() => return Ok("housekeeping"),
        }
        let (log, settings, stations, needed) =
            (log.clone(), Arc::clone(&settings), Arc::clone(&stations), needed.clone());
        tokio::task::spawn_blocking(move || look_after(&log, needed(), settings.tail(), &settings.data, &stations))
            .await??;
    }
}

/// Writes what is in memory of the change log, so that the next start need not read it from a journal.
pub fn write_at_stop(log: &Log) -> anyhow::Result<()> {
    log.write_out(LAST_WRITE_MAX).context("could not write tables of the change log")
}

/// Makes the stores durable when nothing is applied any more. Home timelines that cannot be saved in time are brought up
/// to date from the last save by the next start. What is in no table yet is written into one, so that the next start need
/// not read it from a journal before it serves anything.
pub fn save_at_stop(log: &Log, Stores { index, home, search, .. }: &Stores) -> anyhow::Result<()> {
    let deadline = Instant::now() + LAST_SAVE_MAX;
    let saved = home.save(&mut || index.durable().map(drop), &mut || Instant::now() < deadline);
    if saved.context("could not save home timelines")?.is_none() {
        index.durable().context("could not make the stores durable")?;
    }
    search.durable(LAST_WRITE_MAX).context("could not make the search index durable")?;
    write_at_stop(log)?;
    index.write_out(LAST_WRITE_MAX).context("could not write tables of the stores")
}

/// Bytes that may be used where `folder` lies, when `reserve` is to stay free.
pub fn room(folder: &Path, reserve: u64) -> u64 {
    free_bytes(folder).unwrap_or(u64::MAX).saturating_sub(reserve)
}
