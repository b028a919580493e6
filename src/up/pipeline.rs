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
//! have nothing are given the whole state. The change log keeps its tail for all of them: it drops none while facts, rows or
//! reactions have nothing, and home timelines are loaded where the others stand.
//!
//! Why nobody reads what is not whole: facts, rows and reactions refuse to be read until they stand where the log stood when they
//! were emptied, which is as far as any other store can be, so facts are as new as what they judge. Home timelines give no
//! record before they are filled, and are merged.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feedmill_dataflows::{Config, Part, Runtime};
use feedmill_ingest::Log;
use feedmill_model::{Applied, Phase, Position, Time, failpoint};
use feedmill_sinks::{Progress, Reactions};
use parking_lot::Mutex;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, spawn_blocking};
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

use super::feeder::{Feeder, Hold, Loading};
use super::popular::Watched;
use super::reporting::Reporting;
use super::stations::Stations;
use super::stores::{Starts, Stores};
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
    /// How to run each part of the dataflows.
    pub config: Config,
    /// Told once the first load is done.
    pub loaded: Arc<watch::Sender<bool>>,
    /// Marks a replay.
    pub marker: Marker,
    /// Rows that cannot be, in the dataflows.
    pub anomalies: Arc<Anomalies>,
}

/// The parts of the dataflows, each with threads of its own.
const PARTS: [Part; 2] = [Part::Main, Part::Reactions];

/// A part of the dataflows that runs.
#[derive(Clone)]
struct Strand {
    part: Part,
    runtime: Arc<Runtime>,
    load: Position,
}

/// Dataflows that run.
pub struct Flow {
    strands: Vec<Strand>,
    /// All of them are loaded when everything up to it is applied.
    load: Time,
    /// What the log had when they began.
    due: Time,
    /// How far all parts are.
    applied: watch::Receiver<Applied>,
}

impl Flow {
    /// Whoever feeds the dataflows may wait for room in them: this lets go.
    fn stop(&self) {
        self.strands.iter().for_each(|strand| strand.runtime.stop());
    }
}

/// Rows that had a multiplicity that cannot be, since the start of the process.
#[derive(Default)]
pub struct Anomalies(Mutex<(u64, Vec<Arc<Runtime>>)>);

impl Anomalies {
    /// How many.
    pub fn count(&self) -> u64 {
        let (before, runtimes) = &*self.0.lock();
        before + runtimes.iter().map(|runtime| runtime.anomalies()).sum::<u64>()
    }

    fn go_on_with(&self, next: Vec<Arc<Runtime>>) {
        let (before, runtimes) = &mut *self.0.lock();
        *before += std::mem::replace(runtimes, next).iter().map(|ended| ended.anomalies()).sum::<u64>();
    }
}

impl Pipeline {
    /// Starts the dataflows, which are to be loaded with the state at `starts`.
    pub fn begin(&self, starts: Starts) -> anyhow::Result<Flow> {
        let due = self.log.position().map_or(starts.earlier().time, |newest| newest.time);
        let (applied, is_applied) = watch::channel(Applied::NOTHING);
        let together = Arc::new(Mutex::new((PARTS.map(Part::begun), applied)));
        let start = |(number, part): (usize, Part)| {
            let (progress, together) = (Arc::clone(&self.progress), Arc::clone(&together));
            let on_applied = move |reached| {
                let (parts, applied) = &mut *together.lock();
                if let Some(part) = parts.get_mut(number) {
                    *part = reached;
                }
                let [main, reactions] = *parts;
                let reached: Applied = main.met(reactions);
                progress.applied(reached);
                applied.send_replace(reached);
            };
            let load = if part == Part::Reactions { starts.reactions } else { starts.main };
            let config = Config { part, ..self.config.clone() };
            let runtime = Arc::new(Runtime::start(config, self.given(), load, Arc::new(on_applied))?);
            Ok(Strand { part, runtime, load })
        };
        let strands = PARTS.into_iter().enumerate().map(start).collect::<anyhow::Result<Vec<Strand>>>()?;
        self.progress.covers(starts.main);
        self.anomalies.go_on_with(strands.iter().map(|strand| Arc::clone(&strand.runtime)).collect());
        let load = starts.main.time.max(starts.reactions.time);
        Ok(Flow { strands, load, due, applied: is_applied })
    }

    /// The stores as the dataflows are given them.
    fn given(&self) -> feedmill_dataflows::Stores {
        let Stores { index, home, search, .. } = &self.stores;
        let stations = &self.stations;
        let reactions = Arc::new(Reactions(Arc::clone(index)));
        feedmill_dataflows::Stores {
            facts: Arc::new(Reporting::new(Arc::clone(index), stations, Stations::facts)),
            rows: Arc::new(Reporting::new(Arc::clone(&self.watched), stations, Stations::rows)),
            home: Arc::new(Reporting::new(Arc::clone(home), stations, Stations::home)),
            search: Arc::new(Reporting::new(Arc::clone(search), stations, Stations::search)),
            reactions: Arc::new(Reporting::new(reactions, stations, Stations::reactions)),
        }
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
            let mut outcome = Ok(());
            let next = tokio::select! {
                Some(ended) = feeding.join_next() => {
                    outcome = ended?;
                    None
                }
                next = self.next(&flow, &mut replay, &mut asked, &end) => next?,
                () = end.cancelled() => None,
            };
            stop.cancel();
            flow.stop();
            while let Some(ended) = feeding.join_next().await {
                // What went wrong first is told.
                let ended = ended?;
                outcome = outcome.and(ended);
            }
            outcome?;
            let Some(next) = next else { return Ok("the feeder of the dataflows") };
            flow = self.begin_anew(flow, &next).await?;
            replay = Some(next);
        }
    }

    /// Loads and feeds each part, on a thread of its own, until `stop`.
    fn feed(&self, flow: &Flow, stop: &CancellationToken) -> JoinSet<anyhow::Result<()>> {
        let loading = Loading::begin(flow.strands.len(), &self.log, &self.stations, &self.loaded);
        let mut feeding = JoinSet::new();
        for Strand { part, runtime, load } in flow.strands.clone() {
            let feeder = Feeder {
                log: self.log.clone(),
                part,
                runtime,
                load,
                progress: Arc::clone(&self.progress),
                applied: flow.applied.clone(),
                hold: Arc::clone(&self.hold),
                stations: Arc::clone(&self.stations),
                loading: Arc::clone(&loading),
            };
            let stop = stop.clone();
            feeding.spawn_blocking(move || feeder.run(&stop));
        }
        feeding
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
        while let Some(mut next) = asked.recv().await {
            next.stores = self.stores.begun_with(&next.stores);
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
        self.anomalies.go_on_with(Vec::new());
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
        // What the stores say of positions may be of the history before the last resync: times are enough.
        self.begin(self.stores.start(&self.log)?.without_lsn())
    }

    /// Waits until the stores of `replay` have what the log had when it began, saves what lives in memory, and takes the
    /// marker away.
    async fn complete(&self, flow: &Flow, mut replay: Replay, end: &CancellationToken) -> anyhow::Result<()> {
        let mut applied = flow.applied.clone();
        loop {
            let all = *applied.borrow_and_update();
            // Others may be behind, for which nobody waits who reads these.
            let reached = replay.stores.iter().map(|phase| all.of(*phase)).min().unwrap_or_else(|| all.by_all());
            if reached > flow.due {
                break;
            }
            if reached <= flow.load {
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
