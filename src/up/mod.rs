//! `feedmill up`: everything on one machine.
//!
//! ```text
//!   folder (locked) ─ HTTP ─ change log, stores: reads ─ PostgreSQL ─ schema ─ identity, or first copy: writes
//!                                                         ─ dataflows (load) ─ capture ─ caught up: ready
//! ```
//!
//! What was derived is read as soon as the stores are open, as of the age that it is. Each part is started when what it
//! needs stands, and stopped in the reverse order. If one of them fails, all are
//! stopped and the process ends with its error: what is durable makes the next start go on from there.

mod banner;
mod capture;
pub mod copy;
pub mod cut;
mod feeder;
mod housekeeping;
mod http;
mod intake;
mod meter;
mod observer;
mod paced;
pub mod partitions;
mod pipeline;
mod places;
mod popular;
mod renew;
mod reporting;
mod requests;
pub mod stations;
mod stores;

use std::fs::{File, TryLockError};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context, bail};
use feedmill_connectors::postgres::{Cluster, Source, schema};
use feedmill_dataflows::Config;
use feedmill_ingest::Log;
use feedmill_model::{Lsn, Phase, SourceId};
use feedmill_sinks::{LocalSearch, LocalViews, Progress};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, oneshot, watch};
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

pub use capture::Cut;
pub use feeder::{Held, Hold};
pub use housekeeping::room;

use crate::config::Settings;
use crate::control;
use crate::replay::{Marker, Replayer};
use crate::resync::Resyncer;
use crate::verify::Verifier;
use copy::Ready;
use housekeeping::House;
use intake::Intake;
use pipeline::{Anomalies, Pipeline};
use popular::Watched;
use requests::Requests;
use stations::{Limits, Stations};
use stores::Stores;

/// Name of the replication slot.
pub const SLOT: &str = "feedmill";
/// A cluster that has to recover after a crash of the machine takes its time.
const CLUSTER_START_MAX: Duration = Duration::from_secs(300);
/// Pause before a database that is away is tried again, while what is here is served.
const PREPARE_RETRY: Duration = Duration::from_secs(2);
/// Ctrl-C ends within 5 seconds: HTTP requests and PostgreSQL share them.
const DRAIN_MAX: Duration = Duration::from_millis(1_500);
const PARTS_END_MAX: Duration = Duration::from_secs(2);
const CLUSTER_STOP_MAX: Duration = Duration::from_secs(2);

/// Milliseconds since 1970, by this machine's clock.
pub fn now_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Runs until Ctrl-C or SIGTERM, or until a part fails.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    let _lock = lock(&settings.data)?;
    let shutdown = CancellationToken::new();
    on_signal(shutdown.clone())?;
    let mut cluster = None;
    let outcome = serve(&settings, &mut cluster, shutdown).await;
    let stopped = match cluster {
        Some(cluster) => cluster.stop(CLUSTER_STOP_MAX).await.context("could not stop PostgreSQL"),
        None => Ok(()),
    };
    // What went wrong first says more.
    outcome.and(stopped)
}

/// The database of the system that runs, or last ran, on the folder.
pub fn running_source(settings: &Settings) -> anyhow::Result<Source> {
    match &settings.database_url {
        Some(url) => Ok(url.parse()?),
        None => private_source(&settings.data).with_context(|| {
            format!(
                "no PostgreSQL of Feedmill's runs under {data}: start one with `feedmill up --data {data}`, or name another \
                 folder with --data, or a database with --database-url",
                data = settings.data.display(),
            )
        }),
    }
}

/// The private cluster's database, if one runs or its end left the socket.
pub fn private_source(data: &Path) -> Option<Source> {
    let socket = data.join("postgres/socket");
    socket.join(".s.PGSQL.5432").exists().then(|| {
        let mut config = tokio_postgres::Config::new();
        config.host_path(socket).user("feedmill").dbname("feedmill");
        Source::local(config)
    })
}

/// One process a folder.
pub fn lock(data: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(data)
        .with_context(|| format!("could not make the folder {}; name another with --data", data.display()))?;
    let path = data.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("could not open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another Feedmill runs on {}: stop it first, or give this one a folder of its own with --data",
            data.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("could not lock {}", path.display())),
    }
}

fn on_signal(shutdown: CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for SIGTERM")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
        shutdown.cancel();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        // Asked twice: what is durable is enough for the next start.
        std::process::exit(130);
    });
    Ok(())
}

/// Everything; `cluster` is the private PostgreSQL, once it runs.
async fn serve(settings: &Settings, cluster: &mut Option<Cluster>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = observer::install_metrics()?;
    let listener = TcpListener::bind(settings.listen).await.with_context(|| {
        format!("could not listen on {}: is another program there? Name another address with --listen", settings.listen)
    })?;
    let stations = Arc::new(Stations::new(Limits {
        wal_bytes: settings.alarm_wal_bytes,
        lag_seconds: settings.alarm_lag_seconds,
    }));
    let requests = Requests::new(Arc::clone(&stations));
    let (front, api) = watch::channel(None);
    let mut parts: JoinSet<anyhow::Result<&'static str>> = JoinSet::new();
    let end = shutdown.child_token();
    let address = listener.local_addr()?;
    let starting = feedmill_api::starting(Arc::clone(&stations) as _, metrics.clone());
    let bounds = http::Bounds {
        connections: settings.connections_max,
        connections_of_address: settings.connections_per_address,
        proxies: settings.trusted_proxies.clone(),
        head: Duration::from_secs(settings.idle_seconds),
        drain: DRAIN_MAX,
    };
    http::allow_files(settings.connections_max.saturating_add(settings.streams_max));
    let front_door = http::front(starting, api, settings.trusted_proxies.clone().into());
    parts.spawn(http::serve(listener, front_door, bounds, end.clone()));
    parts.spawn(control::serve(settings.data.clone(), requests.handler(), end.clone()));
    parts.spawn(observer::observe(Arc::clone(&stations), end.clone()));
    tracing::info!("listening on http://{address}");

    let folder = settings.data.join("postgres");
    let source = &match &settings.database_url {
        Some(url) => url.parse::<Source>()?,
        None => Cluster::source_in(&folder)?,
    };
    let replica = settings.replica_url.as_deref().map(str::parse::<Source>).transpose()?;
    let parameters = settings.parameters();
    let app = |views: &Arc<LocalViews>, search: &Arc<LocalSearch>, identity: watch::Receiver<SourceId>| {
        anyhow::Ok(feedmill_api::app(feedmill_api::State {
            views: Arc::clone(views) as _,
            search: Arc::clone(search) as _,
            pool: feedmill_api::pool(
                source,
                "feedmill-api",
                feedmill_api::PoolLimits { size: settings.pool_size, ..feedmill_api::PoolLimits::default() },
            )?,
            replica: replica.as_ref().map(|replica| replica_pool(replica, settings.pool_size)).transpose()?,
            source: identity,
            keys: feedmill_api::Keys::load_or_create(&key_file(&settings.data))?,
            parameters: parameters.clone(),
            settings: settings.api()?,
            metrics: metrics.clone(),
            health: Arc::clone(&stations) as _,
            shutdown: end.clone(),
        }))
    };
    // What is here already is read from now on, while PostgreSQL and the dataflows start.
    let (log, opened) = tokio::select! {
        // A shutdown ends the parts too.
        biased;
        () = shutdown.cancelled() => return Ok(()),
        Some(ended) = parts.join_next() => return Err(failure(ended)),
        opened = stores::open(settings) => opened?,
    };
    requests.log(log.clone());
    let marker = Marker::in_folder(&settings.data);
    // What an earlier process was to build again, and did not complete.
    let marked = marker.stores()?;
    if !marked.is_empty() {
        stations.replaying(&marked, log.rows_about());
    }
    let opened = opened.map(|stores| Served::new(stores, &log, &marked)).transpose()?;
    if let Some(served) = &opened {
        front.send_replace(Some(app(
            &served.views,
            &served.stores.search,
            watch::channel(stores::source_of(&log)?).1,
        )?));
        if served.stores.are_filled(&marked) {
            stations.allow_reads();
        }
    }
    let (cluster_runs, is_cluster_running) = oneshot::channel();
    {
        let (source, stations, end) = (source.clone(), Arc::clone(&stations), end.clone());
        parts.spawn(async move {
            // Until then there is nothing to be asked.
            let _ = is_cluster_running.await;
            observer::watch_slot(source, SLOT, stations, end).await
        });
    }
    let start = async {
        if settings.database_url.is_none() {
            // Dropped half-way it leaves what the next start completes.
            *cluster = Some(Cluster::start(&folder, CLUSTER_START_MAX).await?);
        }
        let _ = cluster_runs.send(());
        let ready = loop {
            match prepare(source, &log, settings, &stations).await {
                // What is here is served meanwhile. Where nothing is, whoever starts it is told at once, but for what nobody
                // can mend.
                Err(error) if renew::is_conflict(&error) || (opened.is_some() && renew::is_transient(&error)) => {
                    tracing::warn!("PostgreSQL is not ready ({error:#}); trying again in {PREPARE_RETRY:?}");
                    stations.postgresql().waiting(format!("{error:#}"));
                    tokio::time::sleep(PREPARE_RETRY).await;
                }
                ready => break ready?,
            }
        };
        let served = match opened {
            Some(served) => served,
            None => Served::new(stores::open_stores(settings).await?, &log, &marked)?,
        };
        let home = Arc::clone(&served.stores.home);
        tokio::task::spawn_blocking(move || home.load()).await?;
        anyhow::Ok((ready, served))
    };
    let (ready, Served { stores, progress, views }) = tokio::select! {
        biased;
        () = shutdown.cancelled() => return Ok(()),
        Some(ended) = parts.join_next() => return Err(failure(ended)),
        started = start => started?,
    };
    // Its tokens are of the source, which a first copy has found, or a resync.
    let (identity, is_identity) = watch::channel(ready.identity);
    front.send_replace(Some(app(&views, &stores.search, is_identity)?));
    stations.allow_writes();
    let mut load = stores.start(&log)?;
    progress.begin_history(log.history());
    if load.time < log.history() {
        load.lsn = Lsn(0);
    }
    let Stores { index, home, search } = stores.clone();
    let at_stop = stores.clone();
    let watched = Arc::new(Watched::new(Arc::clone(&index)));
    let hold = Arc::new(Hold::default());
    let durable = Arc::new(watch::Sender::new(log.position().map_or(Lsn(0), |position| position.lsn)));
    let (cut, cuts) = mpsc::channel(1);

    let anomalies = Arc::new(Anomalies::default());
    let (loaded, is_loaded) = watch::channel(false);
    let pipeline = Pipeline {
        log: log.clone(),
        stores,
        watched: Arc::clone(&watched),
        progress: Arc::clone(&progress),
        hold: Arc::clone(&hold),
        stations: Arc::clone(&stations),
        config: Config {
            workers: settings.workers,
            parameters: parameters.clone(),
            rows_at_a_time: Config::ROWS_AT_A_TIME,
            profile: None,
            cluster: None,
        },
        loaded: Arc::new(loaded),
        marker,
        anomalies: Arc::clone(&anomalies),
    };
    let flow = pipeline.begin(load)?;
    observer::look_at(&stations, log.clone(), Arc::clone(&progress), Arc::clone(&home), anomalies);
    // Asks capture to come so far as soon as it can; `/ready` tells when it has.
    progress.reached(Phase::Home, ready.end, Duration::ZERO).await;
    let dataflows_loaded = is_loaded.clone();
    let caught_up = CatchUp {
        progress: Arc::clone(&progress),
        is_loaded,
        from: load.lsn,
        to: ready.end,
        log: log.clone(),
        stations: Arc::clone(&stations),
    };
    parts.spawn(caught_up.wait(end.clone()));

    let one_at_a_time = Arc::new(Mutex::new(()));
    let (replays, replays_asked) = mpsc::channel(1);
    let replayer =
        Replayer { one_at_a_time: Arc::clone(&one_at_a_time), asked: replays, stations: Arc::clone(&stations) };
    let replay = if marked.is_empty() { None } else { Some(replayer.resumed(marked)?) };
    parts.spawn(pipeline.keep(flow, replay, replays_asked, end.clone()));
    requests.replayer(replayer);
    let intake = Intake {
        source: source.clone(),
        log: log.clone(),
        settings: settings.clone(),
        durable: Arc::clone(&durable),
        identity,
        progress: Arc::clone(&progress),
        cuts,
        stations: Arc::clone(&stations),
        shutdown: end.clone(),
    };
    parts.spawn(intake.run());
    let resyncer = Arc::new(Resyncer {
        source: source.clone(),
        log: log.clone(),
        cuts: cut.clone(),
        durable: durable.subscribe(),
        data: settings.data.clone(),
        connections: settings.copy_connections,
        stations: Arc::clone(&stations),
        one_at_a_time: Mutex::default(),
    });
    parts.spawn(partitions::watch(source.clone(), settings.data.clone(), Arc::clone(&resyncer), end.clone()));
    requests.resyncer(resyncer);
    {
        let (source, views, end) = (source.clone(), Arc::clone(&views), end.clone());
        let hot_followers = parameters.hot_followers;
        parts.spawn(async move {
            popular::keep(source, views, watched, dataflows_loaded, hot_followers, end).await;
            Ok("the keeper of popular accounts")
        });
    }
    parts.spawn(housekeeping::keep_partitions(source.clone(), end.clone()));
    parts.spawn(housekeeping::keep_clocks(source.clone(), log.clone(), end.clone()));
    if settings.heartbeat_seconds > 0 {
        let period = Duration::from_secs(settings.heartbeat_seconds);
        parts.spawn(housekeeping::keep_heart(source.clone(), period, end.clone()));
    }
    let house = House {
        data: settings.data.clone(),
        log: log.clone(),
        index: Arc::clone(&index),
        home,
        search: Arc::clone(&search),
        tail: Duration::from_secs(settings.tail_minutes * 60),
        reserve: settings.disk_reserve_mb << 20,
        stations: Arc::clone(&stations),
    };
    parts.spawn(house.clone().save_home(Duration::from_secs(settings.save_seconds), end.clone()));
    parts.spawn(house.keep(end.clone()));
    requests.verifier(Verifier {
        source: source.clone(),
        cuts: cut,
        hold,
        views: Arc::clone(&views),
        search,
        log: log.clone(),
        parameters: parameters.clone(),
        folder: settings.data.join("verify"),
        reserve: settings.disk_reserve_mb << 20,
        one_at_a_time,
    });
    banner::print(settings, address, cluster.as_ref())?;
    let outcome = supervise(&mut parts, &shutdown, &end).await;
    let saved = tokio::task::spawn_blocking(move || housekeeping::save_at_stop(&log, &at_stop)).await?;
    outcome.and(saved)
}

/// Connections to the replica. The primary takes over from one that does not answer, so it is not waited for long.
fn replica_pool(replica: &Source, size: usize) -> anyhow::Result<feedmill_api::Pool> {
    let limit = Duration::from_millis(250);
    let limits = feedmill_api::PoolLimits { size, wait: limit, create: 2 * limit, recycle: limit };
    feedmill_api::pool(replica, "feedmill-replica", limits).context("could not make connections to the replica")
}

/// The stores as they are read.
struct Served {
    stores: Stores,
    progress: Arc<Progress>,
    views: Arc<LocalViews>,
}

impl Served {
    /// Reads `stores`, of which those that are `marked` begin anew.
    fn new(stores: Stores, log: &Log, marked: &[Phase]) -> anyhow::Result<Self> {
        stores.rebuild(marked, log.position().map_or(0, |newest| newest.time))?;
        let progress = Arc::new(Progress::new(stores.positions(log.position().unwrap_or_default())));
        progress.begin_history(log.history());
        let (index, home) = (Arc::clone(&stores.index), Arc::clone(&stores.home));
        let views = Arc::new(LocalViews::new(index, home, Arc::clone(&progress)));
        Ok(Served { stores, progress, views })
    }
}

/// Makes the source ready to be read: its schema, its clock, and that it is the one that the log is of, or a first copy.
async fn prepare(source: &Source, log: &Log, settings: &Settings, stations: &Arc<Stations>) -> anyhow::Result<Ready> {
    schema::prepare(source).await.context("could not prepare the schema")?;
    housekeeping::compare_clocks(source, log).await?;
    copy::ready(source, log, settings, stations).await
}

/// Waits until everything is served that was committed before this start.
struct CatchUp {
    progress: Arc<Progress>,
    is_loaded: watch::Receiver<bool>,
    from: Lsn,
    to: Lsn,
    log: Log,
    stations: Arc<Stations>,
}

impl CatchUp {
    async fn wait(self, end: CancellationToken) -> anyhow::Result<&'static str> {
        let CatchUp { progress, mut is_loaded, from, to, log, stations } = self;
        let history = log.history();
        let bytes = |lsn: Lsn| lsn.0.saturating_sub(from.0);
        stations.catch_up().begin(Some(bytes(to)), format!("up to {to}, which was the end of the log at the start"));
        let mut reached = progress.watch();
        let caught_up = async {
            // Stores that had it all already serve new writes only once the dataflows are loaded.
            is_loaded.wait_for(|loaded| *loaded).await.ok()?;
            let caught_up = reached.wait_for(|[_, _, home, _]| {
                stations.catch_up().set(bytes(home.lsn.min(to)));
                // After a resync meanwhile the end is of another history: what it took over is newer.
                home.lsn >= to || (log.history() > history && home.time >= log.history())
            });
            caught_up.await.ok().map(drop)
        };
        let caught_up = tokio::select! {
            caught_up = caught_up => caught_up.is_some(),
            () = end.cancelled() => false,
        };
        if caught_up {
            stations.catch_up().end(format!("at {to}, which was the end of the log at the start"));
            stations.serve();
        }
        end.cancelled().await;
        Ok("the catch up")
    }
}

/// Waits for shutdown or for the first part that ends by itself, then ends the others. The first error counts.
async fn supervise(
    parts: &mut JoinSet<anyhow::Result<&'static str>>,
    shutdown: &CancellationToken,
    end: &CancellationToken,
) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    let late = async {
        end.cancelled().await;
        tokio::time::sleep(PARTS_END_MAX).await;
    };
    tokio::pin!(late);
    loop {
        let part = tokio::select! {
            part = parts.join_next() => part,
            () = &mut late => {
                tracing::warn!("{} parts did not end within {PARTS_END_MAX:?}; the next start goes on from what is durable", parts.len());
                return outcome;
            }
            () = shutdown.cancelled(), if !end.is_cancelled() => {
                end.cancel();
                continue;
            }
        };
        let failed = match part {
            None => return outcome,
            Some(Ok(Ok(_))) if end.is_cancelled() => Ok(()),
            Some(ended) => Err(failure(ended)),
        };
        if let Err(error) = failed {
            tracing::error!("{error:#}");
            if outcome.is_ok() {
                outcome = Err(error);
            }
            end.cancel();
        }
    }
}

/// Why a part ended that was to go on.
fn failure(ended: Result<anyhow::Result<&'static str>, JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(name)) => anyhow::anyhow!("{name} ended by itself"),
        Ok(Err(error)) => error,
        Err(panic) => anyhow::anyhow!(panic).context("a part panicked"),
    }
}

/// The file of the keys that sign tokens.
pub fn key_file(data: &Path) -> PathBuf {
    data.join("keys")
}
