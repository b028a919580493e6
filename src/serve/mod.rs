//! `feedmill serve`: the API, from stores that others write.
//!
//! ```text
//!   folder (locked) ─ HTTP ─┬─ CQL: how far the stores are ─► whole: reads ─┐
//!                           ├─ Elasticsearch: how far search is             ├─► ready
//!                           └─ PostgreSQL: the database of the stores ─► writes ─┘
//!   SIGTERM ─► /ready 503, all else goes on ─ --drain-seconds ─► streams are told, requests under way end
//! ```
//!
//! It writes PostgreSQL and no store, so any number of them can run side by side. What they share is in PostgreSQL (sessions,
//! answers that are kept for `Idempotency-Key`) and in the file of keys (tokens); what each has for itself may be lost at any time.
//!
//! While the keyspace is not made or not filled, or the cluster is away, it waits and says why; what cannot become right by
//! itself ends it.

mod database;
mod place;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feedmill_api::{Looks, State};
use feedmill_model::{Lsn, Phase};
use feedmill_sinks::ElasticReader;
use feedmill_sinks::cql::{CqlError, CqlReader};
use feedmill_sinks::search::SearchIndex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

pub use place::Place;

use crate::config::Settings;
use crate::control;
use crate::up::process::{self, Parts, failure, supervise_for};
use crate::up::requests::Requests;
use crate::up::stations::{Limits, Role, Stations};
use crate::up::{banner, http, observer, pool, replica_pool};

/// Pause before what is not there is asked for again.
const RETRY: Duration = Duration::from_secs(1);
/// How long requests that are under way at the end may take.
const UNDER_WAY_MAX: Duration = Duration::from_secs(10);
/// How long parts may take to end beside that.
const PARTS_END_MAX: Duration = Duration::from_secs(2);

/// Runs until Ctrl-C or SIGTERM, or until a part fails.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    // Before anything is begun.
    let place = Place::of(&settings)?;
    process::run(&settings, async |settings, _, shutdown| serve(settings, &place, shutdown).await).await
}

/// All of it.
async fn serve(settings: &Settings, place: &Place, shutdown: CancellationToken) -> anyhow::Result<()> {
    let metrics = observer::install_metrics()?;
    let listener = http::listen(settings).await?;
    let stations = Arc::new(Stations::new(Role::Serve, Limits::of(settings)));
    let requests = Requests::new(Arc::clone(&stations));
    let (front, api) = watch::channel(None);
    let mut parts = Parts::new();
    let (drained, end) = (CancellationToken::new(), CancellationToken::new());
    let address = listener.local_addr()?;
    let starting = feedmill_api::starting(Arc::clone(&stations) as _, metrics.clone());
    let front_door = http::front(starting, api, settings.trusted_proxies.clone().into());
    let bounds = http::Bounds::of(settings).draining(UNDER_WAY_MAX);
    parts.spawn(http::serve(listener, front_door, bounds, end.clone()));
    parts.spawn(control::serve(settings.data.clone(), requests.handler(), end.clone()));
    parts.spawn(observer::observe(Arc::clone(&stations), end.clone()));
    tokio::spawn(drain(
        shutdown.clone(),
        Duration::from_secs(settings.drain_seconds),
        Arc::clone(&stations),
        drained.clone(),
    ));
    tracing::info!("listening on http://{address}");

    let reader = tokio::select! {
        biased;
        () = shutdown.cancelled() => {
            // There is nothing that would have to be drained.
            drained.cancel();
            return supervise_for(&mut parts, &drained, &end, PARTS_END_MAX).await;
        }
        Some(ended) = parts.join_next() => return Err(failure(ended)),
        reader = open(settings, place, &stations) => reader?,
    };
    let search = Arc::new(ElasticReader::open(&place.search, reader.progress())?);
    let views = Arc::new(reader.views());
    look_at(&stations, reader.clone(), Arc::clone(&search));
    front.send_replace(Some(feedmill_api::app(State {
        views: Arc::clone(&views) as _,
        search: search as _,
        pool: pool(&place.source, settings.pool_size)?,
        replica: place.replica.as_ref().map(|replica| replica_pool(replica, settings.pool_size)).transpose()?,
        source: reader.source(),
        keys: place.keys.clone(),
        parameters: settings.parameters(),
        settings: feedmill_api::Settings { stream_looks: Looks::remote(), ..settings.api()? },
        metrics,
        health: Arc::clone(&stations) as _,
        shutdown: end.clone(),
    })));
    parts.spawn(database::watch(
        place.source.clone(),
        Arc::clone(&views) as _,
        reader.source(),
        Arc::clone(&stations),
        end.clone(),
    ));
    parts.spawn(begin(place.clone(), reader.clone(), Arc::clone(&stations), end.clone()));
    {
        let end = end.clone();
        parts.spawn(async move {
            tokio::select! {
                fault = reader.fault() => Err(fault.into()),
                () = end.cancelled() => Ok("the progress of the stores"),
            }
        });
    }
    banner::print_serve(settings, address, place)?;
    supervise_for(&mut parts, &drained, &end, UNDER_WAY_MAX + PARTS_END_MAX).await
}

/// Says that the process leaves, and ends it a while later.
async fn drain(shutdown: CancellationToken, pause: Duration, stations: Arc<Stations>, drained: CancellationToken) {
    shutdown.cancelled().await;
    stations.leave();
    tokio::time::sleep(pause).await;
    drained.cancel();
}

/// Waits until there is a keyspace that can be read.
async fn open(settings: &Settings, place: &Place, stations: &Stations) -> Result<CqlReader, CqlError> {
    let mut told = String::new();
    loop {
        let opened = CqlReader::open(place.store.clone(), settings.parameters(), settings.cache_ages()).await;
        match opened {
            Err(error) if error.may_pass() => {
                let reason = error.to_string();
                stations.facts().waiting(reason.clone());
                stations.load().begin(None, reason.clone());
                if told != reason {
                    tracing::warn!("waiting for the stores: {reason}");
                    told = reason;
                }
            }
            opened => {
                stations.facts().goes_on();
                return opened;
            }
        }
        tokio::time::sleep(RETRY).await;
    }
}

/// Reads where the stores stand whenever somebody asks.
fn look_at(stations: &Stations, reader: CqlReader, search: Arc<ElasticReader>) {
    stations.look(move |stations| {
        let progress = reader.progress();
        for (phase, station) in [
            (Phase::Facts, stations.facts()),
            (Phase::Rows, stations.rows()),
            (Phase::Home, stations.home()),
            (Phase::Search, stations.search()),
            (Phase::Reactions, stations.reactions()),
        ] {
            let position = progress.position(phase);
            if position.lsn > Lsn(0) {
                station.reached(position);
            }
        }
        match reader.away() {
            Some(reason) => stations.facts().waiting(reason),
            None => stations.facts().goes_on(),
        }
        match search.waits() {
            Some(reason) => stations.search().waiting(reason),
            None => stations.search().goes_on(),
        }
        if stations.load().told().done {
            stations.rebuilt_by_others(reader.missing());
        }
    });
}

/// Lets reads in when the stores are whole, writes when the database is the one that they are of, and then says that it serves.
async fn begin(
    place: Place,
    reader: CqlReader,
    stations: Arc<Stations>,
    end: CancellationToken,
) -> anyhow::Result<&'static str> {
    let filled = async {
        let mut moved = reader.progress().watch();
        while reader.missing().iter().any(|store| matches!(store, Phase::Facts | Phase::Rows | Phase::Reactions)) {
            stations.load().begin(None, "the keyspace is being filled by those who write it");
            moved.changed().await.context("nobody looks how far the stores are")?;
        }
        stations.load().end("the stores can be read");
        stations.allow_reads();
        anyhow::Ok(())
    };
    let checked = async {
        loop {
            let of = reader.source().borrow().clone();
            match database::check(&place.source, &of).await {
                Err(error) if database::is_transient(&error) => {
                    stations.postgresql().waiting(format!("{error:#}"));
                    tokio::time::sleep(RETRY).await;
                }
                checked => break checked?,
            }
        }
        stations.allow_writes();
        anyhow::Ok(())
    };
    tokio::select! {
        begun = async { tokio::try_join!(filled, checked) } => {
            begun?;
            stations.serve();
        }
        () = end.cancelled() => {}
    }
    end.cancelled().await;
    Ok("the begin")
}
