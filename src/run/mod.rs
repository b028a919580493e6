//! `feedmill run`: one process of those that derive the views from the log in Kafka, into a CQL cluster and Elasticsearch.
//!
//! ```text
//!   folder (locked) ─ HTTP ─ the log is there ─ all processes meet ─ process 0 makes the stores ready, and says where to begin
//!                                                                 └─ each opens them, and builds its part of the dataflows
//!   rows, then batches, of its share of the partitions ─► dataflows of all processes ─┬─► its shards of the CQL store
//!                                                                                     └─► process 0: documents of search
//! ```
//!
//! Why any number of processes gives the same stores: each reads all of `times` and a share of the partitions, so all are fed
//! the same times, and a time is closed when none of them can change it any more. A shard has one writer, and what it writes
//! of a closed time is a function of the log alone.
//!
//! Why a crash loses nothing: a process that ends takes the others with it, and each shard says how far it is. The next
//! start begins at the least of that, on however many processes, and shards leave out what they have.
//!
//! Search has one writer, because a bulk is as fast from one process as from several, and its progress is one document.

mod feed;
mod place;
mod stores;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feedmill_connectors::kafka::{KafkaError, KafkaLog, Times, TimesRecord};
use feedmill_dataflows::{Config, Meeting, Part, Runtime};
use feedmill_model::{Lsn, Position};
use feedmill_sinks::cql::CqlViews;
use feedmill_sinks::search::SearchStore;
use feedmill_sinks::{Progress, Reactions};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;

pub use place::{Place, RunArgs};
pub use stores::empty;

use crate::config::Settings;
use crate::control;
use crate::up::popular::{self, Watched};
use crate::up::process::{self, Parts, failure, supervise};
use crate::up::reporting::Reporting;
use crate::up::requests::Requests;
use crate::up::stations::{Limits, Role, Stations};
use crate::up::{banner, http, observer};
use feed::Feeding;
use stores::{Beginning, Stores};

/// Pause before Kafka is asked again for what is not there yet.
const RETRY: Duration = Duration::from_secs(1);
/// How often it is looked how far the log goes.
const LOOK: Duration = Duration::from_secs(1);
/// How often search notes how far it is where no document changes.
const COMMIT: Duration = Duration::from_secs(1);

/// Runs until Ctrl-C or SIGTERM, or until a part fails.
pub async fn run(args: RunArgs, settings: Settings) -> anyhow::Result<()> {
    // Before anything is begun.
    let place = Place::new(&args, &settings)?;
    process::run(&settings, async |settings, _, shutdown| derive(settings, &place, shutdown).await).await
}

/// All of it.
async fn derive(settings: &Settings, place: &Place, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = observer::install_metrics()?;
    let listener = http::listen(settings).await?;
    let stations = Arc::new(Stations::new(Role::Run { searches: place.process == 0 }, Limits::of(settings)));
    let requests = Requests::new(Arc::clone(&stations));
    let mut parts = Parts::new();
    let end = shutdown.child_token();
    let address = listener.local_addr()?;
    let app = feedmill_api::without_api(Arc::clone(&stations) as _, metrics);
    parts.spawn(http::serve(listener, app, http::Bounds::of(settings), end.clone()));
    parts.spawn(control::serve(settings.data.clone(), requests.handler(), end.clone()));
    parts.spawn(observer::observe(Arc::clone(&stations), end.clone()));
    tracing::info!("listening on http://{address}");

    let started = tokio::select! {
        // A shutdown ends the parts too.
        biased;
        () = shutdown.cancelled() => return Ok(()),
        Some(ended) = parts.join_next() => return Err(failure(ended)),
        started = start(settings, place, &stations, &end) => started?,
    };
    let Started { runtime, stores, beginning, progress, watched } = started;
    let (loaded, is_loaded) = watch::channel(false);
    observer::look_at_stores(&stations, Arc::clone(&progress), Arc::clone(&stores.home) as _, stores.search.clone(), {
        let runtime = Arc::clone(&runtime);
        move || runtime.anomalies()
    });
    parts.spawn(watch_log(place.estate.log.clone(), Arc::clone(&stations), end.clone()));
    let feeding = Feeding {
        log: place.estate.log.clone(),
        share: place.share(),
        beginning: beginning.clone(),
        runtime: Arc::clone(&runtime),
        progress: Arc::clone(&progress),
        index: (place.process == 0).then(|| Arc::clone(&stores.index)),
        loaded,
        stations: Arc::clone(&stations),
        end: end.clone(),
    };
    parts.spawn(async move {
        spawn_blocking(move || feeding.run()).await??;
        Ok("the feeder of the dataflows")
    });
    parts.spawn(serving(Arc::clone(&progress), is_loaded.clone(), beginning, Arc::clone(&stations), end.clone()));
    if let Some(search) = &stores.search {
        parts.spawn(commit(Arc::clone(search), end.clone()));
    }
    {
        let views = Arc::new(CqlViews::new(Arc::clone(&stores.index), Arc::clone(&stores.home), progress));
        let (source, owned) = (place.source.clone(), place.owned());
        let (hot_followers, end) = (settings.hot_followers, end.clone());
        parts.spawn(async move {
            popular::keep(source, views, watched, owned, is_loaded, hot_followers, end).await;
            Ok("the keeper of popular accounts")
        });
    }
    {
        let (stores, end) = (stores.clone(), end.clone());
        parts.spawn(async move {
            end.cancelled().await;
            // Whoever feeds the dataflows may wait for room in them, and they for the stores: this lets go.
            runtime.stop();
            stores.end();
            Ok("the end of the stores")
        });
    }
    banner::print_run(settings, address, place)?;
    supervise(&mut parts, &shutdown, &end).await
}

/// A process that has begun.
struct Started {
    runtime: Arc<Runtime>,
    stores: Stores,
    beginning: Beginning,
    progress: Arc<Progress>,
    watched: Arc<Watched>,
}

/// Waits for the log and the other processes, opens the stores, and builds the dataflows.
async fn start(
    settings: &Settings,
    place: &Place,
    stations: &Arc<Stations>,
    end: &CancellationToken,
) -> anyhow::Result<Started> {
    let newest = published(&place.estate.log, stations).await?;
    let (settings, place, stations, end) = (settings.clone(), place.clone(), Arc::clone(stations), end.clone());
    spawn_blocking(move || {
        let parameters = settings.parameters();
        let stop = move || end.is_cancelled();
        let mut meeting = match place.cluster() {
            Some(cluster) => {
                tracing::info!("waiting for the other {} processes", place.processes() - 1);
                Some(Meeting::hold(cluster, settings.workers, &parameters, place.estate.task(), stop)?)
            }
            None => None,
        };
        let mut own = None;
        let mut prepare = || {
            let (stores, beginning) = stores::prepare(&settings, &place, &newest)?;
            own = Some(stores);
            anyhow::Ok(beginning)
        };
        let beginning = match &mut meeting {
            Some(meeting) => meeting.lead(prepare)?,
            None => prepare()?,
        };
        let stores = match own {
            Some(stores) => stores,
            None => stores::open(&settings, &place, &newest, &beginning.writer)?,
        };
        if beginning.fill {
            stores.home.fill_with_load();
        }
        let progress = Arc::new(Progress::new(beginning.positions()));
        let watched = Arc::new(Watched::new(Arc::clone(&stores.index) as _));
        let config = Config {
            workers: settings.workers,
            part: Part::All,
            parameters,
            rows_at_a_time: Config::ROWS_AT_A_TIME,
            profile: None,
        };
        let given = feedmill_dataflows::Stores {
            facts: Arc::new(Reporting::new(Arc::clone(&stores.index), &stations, Stations::facts)),
            rows: Arc::new(Reporting::new(Arc::clone(&watched), &stations, Stations::rows)),
            home: Arc::new(Reporting::new(Arc::clone(&stores.home), &stations, Stations::home)),
            search: Arc::new(Reporting::new(stores.documents(&beginning), &stations, Stations::search)),
            reactions: Arc::new(Reporting::new(
                Arc::new(Reactions(Arc::clone(&stores.index))),
                &stations,
                Stations::reactions,
            )),
        };
        let load = beginning.load;
        let on_applied = {
            let progress = Arc::clone(&progress);
            Arc::new(move |reached| progress.applied(reached))
        };
        let runtime = match meeting {
            Some(meeting) => Runtime::start_in(meeting, config, given, load, on_applied)?,
            None => Runtime::start(config, given, load, on_applied)?,
        };
        progress.covers(load);
        anyhow::Ok(Started { runtime: Arc::new(runtime), stores, beginning, progress, watched })
    })
    .await?
}

/// The newest batch of the log, once there is one.
async fn published(log: &KafkaLog, stations: &Stations) -> anyhow::Result<TimesRecord> {
    loop {
        let log = log.clone();
        match spawn_blocking(move || Times::of(&log)?.newest()).await? {
            Err(error) if error.is_transient() => {
                tracing::warn!("waiting for the log: {error}");
                stations.kafka().waiting(error.to_string());
            }
            newest => return newest.context("could not find out how far the log in Kafka goes"),
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Tells the end of the log as it grows.
async fn watch_log(log: KafkaLog, stations: Arc<Stations>, end: CancellationToken) -> anyhow::Result<&'static str> {
    let mut times: Option<Times> = None;
    while !end.is_cancelled() {
        let (log, opened) = (log.clone(), times.take());
        let asked = spawn_blocking(move || {
            let times = opened.map_or_else(|| Times::of(&log), Ok)?;
            let newest = times.newest()?;
            Ok::<_, KafkaError>((times, newest))
        });
        match asked.await? {
            Ok((asked, newest)) => {
                stations.kafka().reached(newest.position());
                stations.kafka().goes_on();
                times = Some(asked);
            }
            Err(error) => stations.kafka().waiting(error.to_string()),
        }
        let _ = timeout(LOOK, end.cancelled()).await;
    }
    Ok("the watch of the log")
}

/// Says that it serves once the stores have what was published before the start.
async fn serving(
    progress: Arc<Progress>,
    mut is_loaded: watch::Receiver<bool>,
    beginning: Beginning,
    stations: Arc<Stations>,
    end: CancellationToken,
) -> anyhow::Result<&'static str> {
    let Position { time: to, lsn } = beginning.newest;
    let of = to.saturating_sub(beginning.load.time);
    stations.catch_up().begin(None, format!("{of} ms of batches, up to {lsn}, the end of the log at the start"));
    let mut reached = progress.watch();
    let caught_up = async {
        is_loaded.wait_for(|loaded| *loaded).await.ok()?;
        reached.wait_for(|positions| positions.iter().all(|position| position.time >= to)).await.ok().map(drop)
    };
    let caught_up = tokio::select! {
        caught_up = caught_up => caught_up.is_some(),
        () = end.cancelled() => false,
    };
    if caught_up {
        stations.catch_up().end(format!("at {lsn}, which was the end of the log at the start"));
        stations.allow_writes();
        stations.serve();
    }
    end.cancelled().await;
    Ok("the catch up")
}

/// Has search note now and then how far it is, of whom the other stores tell by themselves. A server that is away is not waited
/// for.
async fn commit(search: Arc<dyn SearchStore>, end: CancellationToken) -> anyhow::Result<&'static str> {
    while timeout(COMMIT, end.cancelled()).await.is_err() {
        let search = Arc::clone(&search);
        spawn_blocking(move || search.durable(Duration::ZERO)).await??;
    }
    Ok("the commits of search")
}

impl Beginning {
    /// Where the stores are: nobody waits for a position of them before the dataflows are loaded.
    fn positions(&self) -> [Position; 5] {
        [Position { lsn: Lsn(0), ..self.load }; 5]
    }
}
