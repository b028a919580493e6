//! From the change log through the dataflows into the stores: begun at the start, and anew for each replay.
//!
//! ```text
//!                 ┌───────── stores begun anew ◄── dataflows end ◄── marker ◄── asked for a replay
//!                 ▼                                                                     ▲
//!   where the stores stand ─► load ─► batches … ─► stores ─► at what the log had? ─ no marker any more
//! ```
//!
//! Why a replay is correct: it is a start. The marker is on disk before anything is emptied, and each store loses its
//! progress before what it holds, so whatever ends the process leaves a state from which the next start begins the same
//! stores anew. Stores that are kept say where they stand, as they do after a crash, and ignore what they have; those that
//! have nothing are given the whole state. The change log keeps its tail for all of them: it drops none while facts or
//! rows have nothing, and home timelines are loaded where the others stand.
//!
//! Why nobody reads what is not whole: facts and rows refuse to be read until they stand where the log stood when they
//! were emptied, which is as far as any other store can be, so facts are as new as what they judge. Home timelines give no
//! record before they are filled, and are merged.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feedmill_dataflows::{Config, Runtime};
use feedmill_ingest::Log;
use feedmill_model::{Lsn, Phase, Position, Time, failpoint};
use feedmill_sinks::Progress;
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::feeder::{self, Hold};
use super::popular::Watched;
use super::reporting::Reporting;
use super::stations::Stations;
use super::stores::Stores;
use crate::replay::{self, Marker, Replay};

/// How often a load shows that it goes on.
const GOES_ON: Duration = Duration::from_millis(500);

/// What stays the same when the dataflows begin anew.
pub struct Pipeline {
    /// Where batches come from.
    pub log: Log,
    /// Where they lead to.
    pub stores: Stores,
    /// The rows among them, watched.
    pub watched: Arc<Watched>,
    /// Told how far the stores are.
    pub progress: Arc<Progress>,
    /// Keeps batches back.
    pub hold: Arc<Hold>,
    /// Where it reports how far it is.
    pub stations: Arc<Stations>,
    /// How to run the dataflows.
    pub config: Config,
    /// Told once the first load is done.
    pub loaded: Arc<watch::Sender<bool>>,
    /// Marks a replay.
    pub marker: Marker,
    /// Rows that cannot be, in the dataflows.
    pub anomalies: Arc<Anomalies>,
}

/// Dataflows that run.
pub struct Flow {
    runtime: Arc<Runtime>,
    load: Position,
    /// What the log had when they began.
    due: Time,
    /// Every time before this is applied.
    applied: watch::Receiver<Time>,
}

/// Rows that had a multiplicity that cannot be, since the start of the process.
#[derive(Default)]
pub struct Anomalies(Mutex<(u64, Option<Arc<Runtime>>)>);

impl Anomalies {
    /// How many.
    pub fn count(&self) -> u64 {
        let (before, runtime) = &*self.0.lock();
        before + runtime.as_ref().map_or(0, |runtime| runtime.anomalies())
    }

    fn go_on_with(&self, next: Option<Arc<Runtime>>) {
        let (before, runtime) = &mut *self.0.lock();
        *before += std::mem::replace(runtime, next).map_or(0, |ended| ended.anomalies());
    }
}

impl Pipeline {
    /// Starts the dataflows, which are to be loaded with the state at `load`.
    pub fn begin(&self, load: Position) -> anyhow::Result<Flow> {
        let due = self.log.position().map_or(load.time, |newest| newest.time);
        let (applied, is_applied) = watch::channel(0);
        let progress = Arc::clone(&self.progress);
        let runtime = Arc::new(Runtime::start(
            self.config.clone(),
            feedmill_dataflows::Stores {
                facts: Arc::new(Reporting::new(Arc::clone(&self.stores.index), &self.stations, Stations::facts)),
                rows: Arc::new(Reporting::new(Arc::clone(&self.watched), &self.stations, Stations::rows)),
                home: Arc::new(Reporting::new(Arc::clone(&self.stores.home), &self.stations, Stations::home)),
                search: Arc::new(Reporting::new(Arc::clone(&self.stores.search), &self.stations, Stations::search)),
            },
            load,
            Arc::new(move |reached| {
                progress.applied(reached);
                applied.send_replace(reached.by_all());
            }),
        )?);
        self.progress.covers(load);
        self.anomalies.go_on_with(Some(Arc::clone(&runtime)));
        Ok(Flow { runtime, load, due, applied: is_applied })
    }

    /// Feeds `flow` until shutdown, and begins anew for each replay that is asked for. `replay` is one that is under way.
    pub async fn keep(
        self,
        mut flow: Flow,
        mut replay: Option<Replay>,
        mut asked: mpsc::Receiver<Replay>,
        end: CancellationToken,
    ) -> anyhow::Result<&'static str> {
        loop {
            let stop = end.child_token();
            let mut feeding = self.feed(&flow, &stop);
            let next = tokio::select! {
                fed = &mut feeding => return fed?.map(|()| "the feeder of the dataflows"),
                next = self.next(&flow, &mut replay, &mut asked, &end) => next?,
                () = end.cancelled() => None,
            };
            stop.cancel();
            // Whoever feeds the dataflows may wait for room in them: this lets go.
            flow.runtime.stop();
            feeding.await??;
            let Some(next) = next else { return Ok("the feeder of the dataflows") };
            flow = self.begin_anew(flow, &next).await?;
            replay = Some(next);
        }
    }

    /// Loads and feeds, on a thread of its own, until `stop`.
    fn feed(&self, flow: &Flow, stop: &CancellationToken) -> JoinHandle<anyhow::Result<()>> {
        let (log, runtime, load) = (self.log.clone(), Arc::clone(&flow.runtime), flow.load);
        let (progress, hold, stations) =
            (Arc::clone(&self.progress), Arc::clone(&self.hold), Arc::clone(&self.stations));
        let (loaded, stop) = (Arc::clone(&self.loaded), stop.clone());
        spawn_blocking(move || {
            let fed = feeder::load(&log, &runtime, load, &stations)
                .inspect(|()| {
                    loaded.send_replace(true);
                })
                .and_then(|()| feeder::feed(&log, &runtime, &progress, &hold, load, &stations, &stop));
            // The dataflows know best why they took no more.
            runtime.join()?;
            match fed {
                Err(_) if stop.is_cancelled() => Ok(()),
                fed => fed,
            }
        })
    }

    /// Completes the replay that is under way, if one is. Then waits for the next one, and marks it.
    async fn next(
        &self,
        flow: &Flow,
        replay: &mut Option<Replay>,
        asked: &mut mpsc::Receiver<Replay>,
        end: &CancellationToken,
    ) -> anyhow::Result<Option<Replay>> {
        if let Some(replay) = replay.take() {
            self.complete(flow, replay, end).await?;
        }
        while let Some(next) = asked.recv().await {
            let (marker, stores) = (self.marker.clone(), next.stores.clone());
            match spawn_blocking(move || marker.write(&stores)).await? {
                Ok(()) => return Ok(Some(next)),
                // Nothing was touched.
                Err(error) => next.end(Err(error)),
            }
        }
        Ok(None)
    }

    /// Empties the stores of `replay`, and begins with what the others have.
    async fn begin_anew(&self, ended: Flow, replay: &Replay) -> anyhow::Result<Flow> {
        tracing::info!("the stores {} are built again from the change log", replay::told(&replay.stores));
        self.stations.replaying(&replay.stores, self.log.rows_about());
        self.progress.rebuild(&replay.stores);
        // Its memory goes before that of the next is needed.
        self.anomalies.go_on_with(None);
        drop(ended);
        let newest = self.log.position().context("the change log is empty; this is a defect of Feedmill's")?;
        let (stores, phases) = (self.stores.clone(), replay.stores.clone());
        spawn_blocking(move || {
            failpoint!("replay_marked_after");
            stores.rebuild(&phases, newest.time)?;
            failpoint!("replay_emptied_after");
            anyhow::Ok(())
        })
        .await??;
        let load = self.stores.start(&self.log)?;
        // What the stores say of positions may be of the history before the last resync: times are enough.
        self.begin(Position { lsn: Lsn(0), ..load })
    }

    /// Waits until the stores of `replay` have what the log had when it began, saves what lives in memory, and takes the
    /// marker away.
    async fn complete(&self, flow: &Flow, mut replay: Replay, end: &CancellationToken) -> anyhow::Result<()> {
        let mut applied = flow.applied.clone();
        loop {
            let reached = *applied.borrow_and_update();
            if reached > flow.due {
                break;
            }
            if reached <= flow.load.time {
                self.stations.dataflows().midway();
            }
            if let Ok(Err(_)) = timeout(GOES_ON, applied.changed()).await {
                // The dataflows have ended, and whoever feeds them says why.
                std::future::pending::<()>().await;
            }
        }
        let (stores, marker, phases) = (self.stores.clone(), self.marker.clone(), replay.stores.clone());
        let (end, due) = (end.clone(), flow.due);
        let completed = spawn_blocking(move || {
            if phases.contains(&Phase::Home) {
                match stores.home.save(&mut || stores.index.durable().map(drop), &mut || !end.is_cancelled()) {
                    Ok(Some(_)) => {}
                    // Shutdown came first: the next start fills them again.
                    Ok(None) => return Ok(false),
                    Err(error) => tracing::warn!(
                        "home timelines were filled, and could not be saved: {error}. They go on being served"
                    ),
                }
            }
            // From here on it can be read. A server of search that is away is waited for: what was begun there is not whole.
            while phases.contains(&Phase::Search)
                && stores.search.durable(GOES_ON)?.is_none_or(|durable| durable.time < due)
            {
                if end.is_cancelled() {
                    return Ok(false);
                }
            }
            failpoint!("replay_done_before");
            marker.remove().map(|()| true)
        });
        if !completed.await?? {
            return Ok(());
        }
        replay.let_others();
        let told = self.stations.replayed();
        tracing::info!("the stores {} were built again: {told}", replay::told(&replay.stores));
        replay.end(Ok(()));
        Ok(())
    }
}
