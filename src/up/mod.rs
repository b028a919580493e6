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

pub mod banner;
mod capture;
pub mod catch_up;
pub mod copy;
pub mod cut;
mod feeder;
pub mod housekeeping;
pub mod http;
pub mod intake;
mod meter;
pub mod observer;
mod paced;
pub mod partitions;
mod pipeline;
mod places;
pub mod popular;
pub mod process;
mod renew;
pub mod reporting;
pub mod requests;
pub mod source;
pub mod stations;
pub mod stores;

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use feedmill_connectors::postgres::{Cluster, Source};
use feedmill_dataflows::{Config, Part};
use feedmill_ingest::Log;
use feedmill_model::{Lsn, Phase, SourceId};
use feedmill_sinks::search::SearchStore;
use feedmill_sinks::{Progress, StoreViews};
use tokio::sync::{Mutex, mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use capture::Cut;
pub use feeder::{Held, Hold};
pub use housekeeping::room;

use crate::config::Settings;
use crate::control;
use crate::replay::{Marker, Replayer};
use crate::resync::Resyncer;
use crate::verify::{Compared, Verifier};
use catch_up::CatchUp;
use housekeeping::House;
use intake::Intake;
use pipeline::{Anomalies, Pipeline};
use popular::Watched;
use process::{Parts, failure, supervise};
use requests::Requests;
use source::Preparation;
use stations::{Limits, Role, Stations};
use stores::Stores;

/// Name of the replication slot.
pub const SLOT: &str = "feedmill";

/// Milliseconds since 1970, by this machine's clock.
pub fn now_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Runs until Ctrl-C or SIGTERM, or until a part fails.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    process::run(&settings, serve).await
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

/// Everything; `cluster` is the private PostgreSQL, once it runs.
async fn serve(settings: &Settings, cluster: &mut Option<Cluster>, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = observer::install_metrics()?;
    let listener = http::listen(settings).await?;
    let stations = Arc::new(Stations::new(Role::Everything, Limits::of(settings)));
    let requests = Requests::new(Arc::clone(&stations));
    let (front, api) = watch::channel(None);
    let mut parts = Parts::new();
    let end = shutdown.child_token();
    let address = listener.local_addr()?;
    let starting = feedmill_api::starting(Arc::clone(&stations) as _, metrics.clone());
    let front_door = http::front(starting, api, settings.trusted_proxies.clone().into());
    parts.spawn(http::serve(listener, front_door, http::Bounds::of(settings), end.clone()));
    parts.spawn(control::serve(settings.data.clone(), requests.handler(), end.clone()));
    parts.spawn(observer::observe(Arc::clone(&stations), end.clone()));
    tracing::info!("listening on http://{address}");

    let source = &source::configured(settings)?;
    let replica = settings.replica_url.as_deref().map(str::parse::<Source>).transpose()?;
    let parameters = settings.parameters();
    let app = |views: &Arc<dyn StoreViews>, search: &Arc<dyn SearchStore>, identity: watch::Receiver<SourceId>| {
        anyhow::Ok(feedmill_api::app(feedmill_api::State {
            views: Arc::clone(views) as _,
            search: Arc::clone(search) as _,
            pool: pool(source, settings.pool_size)?,
            replica: replica.as_ref().map(|replica| replica_pool(replica, settings.pool_size)).transpose()?,
            source: identity,
            keys: feedmill_api::Keys::load_or_create(&settings.key_file())?,
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
    let cluster_runs = source::watch_slot(&mut parts, source, &stations, &end);
    let start = async {
        let preparation = Preparation { source, log: &log, settings, derives: true, stations: &stations };
        let ready = preparation.complete(cluster, cluster_runs, opened.is_some()).await?;
        let served = match opened {
            Some(served) => served,
            None => Served::new(stores::open_stores(settings, &log).await?, &log, &marked)?,
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
    front.send_replace(Some(app(&views, &stores.search, is_identity.clone())?));
    parts.spawn(stores::tell_history(Arc::clone(&stores.index), log.clone(), is_identity, end.clone()));
    stations.allow_writes();
    progress.begin_history(log.history());
    let starts = stores.start(&log)?.of_history(log.history());
    let Stores { index, home, search, .. } = stores.clone();
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
            part: Part::All,
            parameters: parameters.clone(),
            rows_at_a_time: Config::ROWS_AT_A_TIME,
            profile: None,
        },
        loaded: Arc::new(loaded),
        marker,
        anomalies: Arc::clone(&anomalies),
    };
    let flow = pipeline.begin(starts)?;
    observer::look_at_log(&stations, log.clone());
    let found = Some(Arc::clone(&search));
    observer::look_at_stores(&stations, Arc::clone(&progress), Arc::clone(&home), found, move || anomalies.count());
    // Asks capture to come so far as soon as it can; `/ready` tells when it has.
    progress.reached(Phase::Home, ready.end, Duration::ZERO).await;
    let dataflows_loaded = is_loaded.clone();
    let caught_up = CatchUp {
        progress: Arc::clone(&progress),
        is_loaded,
        from: starts.earlier().lsn,
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
    let resyncer = Resyncer::new(source, settings, &log, &cut, durable.subscribe(), &stations);
    parts.spawn(partitions::watch(source.clone(), settings.data.clone(), Arc::clone(&resyncer), end.clone()));
    requests.resyncer(resyncer);
    {
        let (source, views, end) = (source.clone(), Arc::clone(&views), end.clone());
        let hot_followers = parameters.hot_followers;
        parts.spawn(async move {
            popular::keep(source, views, watched, u64::MAX, dataflows_loaded, hot_followers, end).await;
            Ok("the keeper of popular accounts")
        });
    }
    source::keep(&mut parts, source, &log, settings, &end);
    {
        let (index, end) = (Arc::clone(&index), end.clone());
        parts.spawn(async move {
            end.cancelled().await;
            index.end();
            Ok("the end of the stores")
        });
    }
    let house = House {
        data: settings.data.clone(),
        log: log.clone(),
        index: Arc::clone(&index),
        home,
        search: Arc::clone(&search),
        tail: settings.tail(),
        reserve: settings.disk_reserve_mb << 20,
        stations: Arc::clone(&stations),
    };
    parts.spawn(house.clone().save_home(Duration::from_secs(settings.save_seconds), end.clone()));
    parts.spawn(house.keep(end.clone()));
    requests.verifier(Verifier {
        source: source.clone(),
        cuts: cut,
        hold,
        stores: Compared::Own { views: Arc::clone(&views), search },
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

/// Connections to the database for the API.
pub fn pool(source: &Source, size: usize) -> anyhow::Result<feedmill_api::Pool> {
    Ok(feedmill_api::pool(source, "feedmill-api", feedmill_api::PoolLimits { size, ..Default::default() })?)
}

/// Connections to the replica. The primary takes over from one that does not answer, so it is not waited for long.
pub fn replica_pool(replica: &Source, size: usize) -> anyhow::Result<feedmill_api::Pool> {
    let limit = Duration::from_millis(250);
    let limits = feedmill_api::PoolLimits { size, wait: limit, create: 2 * limit, recycle: limit };
    feedmill_api::pool(replica, "feedmill-replica", limits).context("could not make connections to the replica")
}

/// The stores as they are read.
struct Served {
    stores: Stores,
    progress: Arc<Progress>,
    views: Arc<dyn StoreViews>,
}

impl Served {
    /// Reads `stores`, of which those that are `marked` begin anew.
    fn new(stores: Stores, log: &Log, marked: &[Phase]) -> anyhow::Result<Self> {
        stores.rebuild(marked, log.position().map_or(0, |newest| newest.time))?;
        let progress = Arc::new(Progress::new(stores.positions(log.position().unwrap_or_default())));
        progress.begin_history(log.history());
        let views = stores.views(&progress);
        Ok(Served { stores, progress, views })
    }
}
