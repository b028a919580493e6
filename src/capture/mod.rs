//! `feedmill capture`: PostgreSQL's log into a change log, and that into Kafka.
//!
//! ```text
//!   folder (locked) ─ HTTP: health, metrics ─ change log ─ PostgreSQL: schema, identity, or first copy ─ capture
//!                                                  └────── publisher, as soon as there is a finished copy
//! ```
//!
//! It is the first half of `feedmill up`, by the same parts. The change log takes what PostgreSQL commits whether Kafka is
//! there or not, so PostgreSQL keeps nothing for it; and keeps its tail for the publisher, on disk.
//!
//! `feedmill verify` asks it, where it knows of stores that others fill from what it publishes (`--store`, `--search`): it alone
//! can have the source and all of them stand at one position.

mod publish;
mod topics;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use feedmill_connectors::postgres::Cluster;
use feedmill_ingest::LogState;
use feedmill_model::{Lsn, Phase};
use feedmill_sinks::Progress;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use crate::config::Settings;
use crate::control;
use crate::resync::Resyncer;
use crate::up::Hold;
use crate::up::catch_up::CatchUp;
use crate::up::intake::Intake;
use crate::up::process::{self, Parts, failure, supervise};
use crate::up::requests::Requests;
use crate::up::source::{self, Preparation};
use crate::up::stations::{Limits, Role, Stations};
use crate::up::{banner, housekeeping, http, observer, partitions, stores};
use crate::verify::{Compared, Verifier};
use publish::Publishing;

/// Runs until Ctrl-C or SIGTERM, or until a part fails.
pub async fn run(settings: Settings) -> anyhow::Result<()> {
    // Before anything is begun.
    settings.kafka_log()?;
    process::run(&settings, capture).await
}

/// All of it; `cluster` is the private PostgreSQL, once it runs.
async fn capture(
    settings: &Settings,
    cluster: &mut Option<Cluster>,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let to = settings.kafka_log()?;
    let metrics = observer::install_metrics()?;
    let listener = http::listen(settings).await?;
    let stations = Arc::new(Stations::new(Role::Capture, Limits::of(settings)));
    let requests = Requests::new(Arc::clone(&stations));
    let mut parts = Parts::new();
    let end = shutdown.child_token();
    let address = listener.local_addr()?;
    let app = feedmill_api::without_api(Arc::clone(&stations) as _, metrics);
    parts.spawn(http::serve(listener, app, http::Bounds::of(settings), end.clone()));
    parts.spawn(control::serve(settings.data.clone(), requests.handler(), end.clone()));
    parts.spawn(observer::observe(Arc::clone(&stations), end.clone()));
    tracing::info!("listening on http://{address}");

    let source = &source::configured(settings)?;
    let log = stores::open_log(settings).await?;
    requests.log(log.clone());
    observer::look_at_log(&stations, log.clone());
    let cluster_runs = source::watch_slot(&mut parts, source, &stations, &end);
    let ready = {
        let preparation = Preparation { source, log: &log, settings, derives: false, stations: &stations };
        let is_copied = log.state() == LogState::Ready;
        tokio::select! {
            // A shutdown ends the parts too.
            biased;
            () = shutdown.cancelled() => return Ok(()),
            Some(ended) = parts.join_next() => return Err(failure(ended)),
            ready = preparation.complete(cluster, cluster_runs, is_copied) => ready?,
        }
    };
    // Whoever publishes reports here as stores do, so that the rest of the process need not know which it is.
    let position = log.position().unwrap_or_default();
    let progress = Arc::new(Progress::new([feedmill_model::Position { lsn: Lsn(0), ..position }; 5]));
    progress.begin_history(log.history());
    let (identity, _) = watch::channel(ready.identity);
    let durable = Arc::new(watch::Sender::new(position.lsn));
    let (cut, cuts) = mpsc::channel(1);
    // Asks capture to come so far as soon as it can; `/ready` tells when it is published.
    progress.reached(Phase::Home, ready.end, Duration::ZERO).await;
    let published = Arc::new(AtomicU64::new(0));
    let hold = Arc::new(Hold::default());
    let publishing = Publishing {
        to: to.clone(),
        options: settings.topic_options(),
        log: log.clone(),
        database: source.config().get_dbname().unwrap_or("feedmill").to_owned(),
        stations: Arc::clone(&stations),
        progress: Arc::clone(&progress),
        needed: Arc::clone(&published),
        hold: Arc::clone(&hold),
        shutdown: end.clone(),
    };
    parts.spawn(publishing.run());
    let caught_up = CatchUp {
        progress: Arc::clone(&progress),
        is_loaded: watch::channel(true).1,
        from: position.lsn,
        to: ready.end,
        log: log.clone(),
        stations: Arc::clone(&stations),
    };
    parts.spawn(caught_up.wait(end.clone()));
    let resyncer = Resyncer::new(source, settings, &log, &cut, durable.subscribe(), &stations);
    if let Some((store, search)) = settings.others_stores()? {
        requests.verifier(Verifier {
            source: source.clone(),
            cuts: cut,
            hold,
            stores: Compared::Others { store, search },
            log: log.clone(),
            parameters: settings.parameters(),
            folder: settings.data.join("verify"),
            reserve: settings.disk_reserve_mb << 20,
            one_at_a_time: Arc::default(),
        });
    }
    parts.spawn(partitions::watch(source.clone(), settings.data.clone(), Arc::clone(&resyncer), end.clone()));
    requests.resyncer(resyncer);
    let intake = Intake {
        source: source.clone(),
        log: log.clone(),
        settings: settings.clone(),
        durable,
        identity,
        progress,
        cuts,
        stations: Arc::clone(&stations),
        shutdown: end.clone(),
    };
    parts.spawn(intake.run());
    source::keep(&mut parts, source, &log, settings, &end);
    let needed = move || Some(published.load(Ordering::Relaxed)).filter(|time| *time > 0);
    parts.spawn(housekeeping::keep_log(log.clone(), settings.clone(), stations, needed, end.clone()));
    banner::print_capture(settings, address, cluster.as_ref(), &to)?;
    let outcome = supervise(&mut parts, &shutdown, &end).await;
    let written = tokio::task::spawn_blocking(move || housekeeping::write_at_stop(&log)).await?;
    outcome.and(written)
}
