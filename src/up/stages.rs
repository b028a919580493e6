//! What runs beside the way of the data: HTTP, metrics, housekeeping, and the word on how far each stage is.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use axum::extract::Request;
use axum::http::{StatusCode, header};
use axum::response::IntoResponse;
use axum::{Json, Router};
use feedmill_api::{Health, Stage};
use feedmill_connectors::postgres::{Cluster, Source, schema};
use feedmill_ingest::Log;
use feedmill_model::{Lsn, Phase};
use feedmill_sinks::{LocalHome, LocalIndex, LocalViews, Views};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::json;
use tokio::net::TcpListener;
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::config::Settings;

/// How often the stores are made durable, and the tail of the log that they no longer need is dropped.
const HOUSEKEEPING: Duration = Duration::from_secs(5);
/// How often gauges are brought up to date.
const OBSERVE: Duration = Duration::from_millis(200);
/// How often the partitions of coming quarters are made, when they are missing.
const PARTITIONS: Duration = Duration::from_secs(6 * 3_600);
/// How often the source's clock is asked.
const CLOCKS: Duration = Duration::from_secs(60);

/// Milliseconds since 1970, by this machine's clock.
pub fn now_ms() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}

/// Metrics of all crates go here.
pub fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    let seconds = [0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0];
    PrometheusBuilder::new()
        .set_buckets(&seconds)
        .and_then(PrometheusBuilder::install_recorder)
        .context("could not set up metrics")
}

/// How far the start is: what `/ready` says.
pub struct Stages {
    log: Log,
    views: Arc<LocalViews>,
    /// The end of the source's log when this process started.
    start: Lsn,
    loaded: AtomicU64,
    serving: AtomicBool,
}

/// Nothing is loaded yet.
const NOT_LOADED: u64 = u64::MAX;

impl Stages {
    /// A start that is over when the views have reached `start`.
    pub fn new(log: Log, views: Arc<LocalViews>, start: Lsn) -> Self {
        Stages { log, views, start, loaded: AtomicU64::new(NOT_LOADED), serving: AtomicBool::new(false) }
    }

    /// The dataflows have been given the state.
    pub fn loaded(&self, rows: u64) {
        self.loaded.store(rows, Ordering::Relaxed);
    }
}

impl Health for Stages {
    fn serving(&self) -> bool {
        if self.serving.load(Ordering::Relaxed) {
            return true;
        }
        let serving = self.views.progress().position(Phase::Home).lsn >= self.start;
        if serving && !self.serving.swap(true, Ordering::Relaxed) {
            tracing::info!("serving");
        }
        serving
    }

    fn stages(&self) -> Vec<Stage> {
        let rows = self.loaded.load(Ordering::Relaxed);
        let loaded = rows != NOT_LOADED;
        let newest = self.log.position().unwrap_or_default();
        let reached = self.views.progress().position(Phase::Home);
        let detail = |done, text| if done { text } else { "under way".to_owned() };
        vec![
            Stage { name: "copy".to_owned(), done: true, detail: format!("the change log is at {}", newest.lsn) },
            Stage { name: "load".to_owned(), done: loaded, detail: detail(loaded, format!("{rows} rows")) },
            Stage {
                name: "catch up".to_owned(),
                done: self.serving(),
                detail: format!("at {} of {}, which was the end at the start", reached.lsn, self.start),
            },
        ]
    }
}

/// Answers while the system starts, and hands everything to the API once that is there.
pub fn front(api: Arc<OnceLock<Router>>) -> Router {
    Router::new().fallback(async move |request: Request| match api.get() {
        // The error of a router's service is that there is none.
        Some(api) => api.clone().oneshot(request).await.into_response(),
        None if request.uri().path() == "/health" => Json(json!({ "status": "alive" })).into_response(),
        None => {
            let problem = json!({
                "type": "/problems/starting", "title": "The system is starting", "status": 503, "error": "starting",
                "detail": "PostgreSQL is being started or copied; /ready says when the views are served.",
            });
            let headers = [(header::CONTENT_TYPE, "application/problem+json"), (header::RETRY_AFTER, "1")];
            (StatusCode::SERVICE_UNAVAILABLE, headers, problem.to_string()).into_response()
        }
    })
}

/// Serves HTTP until the end, then lets requests that are under way end for at most `drain`.
pub async fn serve_http(
    listener: TcpListener,
    app: Router,
    drain: Duration,
    end: CancellationToken,
) -> anyhow::Result<&'static str> {
    let over = end.clone();
    let served = axum::serve(listener, app).with_graceful_shutdown(async move { over.cancelled().await });
    tokio::select! {
        served = served => served.context("could not go on serving HTTP")?,
        () = async { end.cancelled().await; tokio::time::sleep(drain).await } => {
            tracing::info!("requests that were under way for more than {drain:?} were broken off");
        }
    }
    Ok("the HTTP server")
}

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

/// Makes the stores durable, drops what the change log need not keep, and keeps gauges up to date.
pub async fn keep_house(
    log: Log,
    index: Arc<LocalIndex>,
    home: Arc<LocalHome>,
    views: Arc<LocalViews>,
    tail: Duration,
    end: CancellationToken,
) -> anyhow::Result<&'static str> {
    let mut observe = interval(OBSERVE);
    observe.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut cleaned = Instant::now();
    loop {
        tokio::select! {
            _ = observe.tick() => observe_once(&log, &home, &views),
            () = end.cancelled() => return Ok("housekeeping"),
        }
        if cleaned.elapsed() >= HOUSEKEEPING {
            let (log, index) = (log.clone(), Arc::clone(&index));
            tokio::task::spawn_blocking(move || clean(&log, &index, tail)).await??;
            cleaned = Instant::now();
        }
    }
}

fn clean(log: &Log, index: &LocalIndex, tail: Duration) -> anyhow::Result<()> {
    let durable = index.durable().context("could not make the stores durable")?;
    let kept = now_ms().saturating_sub(u64::try_from(tail.as_millis()).unwrap_or(u64::MAX));
    if let Some(durable) = durable {
        log.compact(durable.time.min(kept)).context("could not drop the old tail of the change log")?;
    }
    Ok(())
}

fn observe_once(log: &Log, home: &LocalHome, views: &LocalViews) {
    metrics::counter!("feedmill_home_deliveries_total").absolute(home.deliveries());
    metrics::gauge!("feedmill_home_viewers").set(home.viewers() as f64);
    let Some(newest) = log.position() else { return };
    for (phase, name) in [(Phase::Facts, "facts"), (Phase::Rows, "rows"), (Phase::Home, "home")] {
        let reached = views.progress().position(phase);
        let behind_ms = newest.time.saturating_sub(reached.time);
        metrics::gauge!("feedmill_behind_log_seconds", "phase" => name).set(behind_ms as f64 / 1e3);
        metrics::gauge!("feedmill_behind_log_bytes", "phase" => name)
            .set(newest.lsn.0.saturating_sub(reached.lsn.0) as f64);
    }
    metrics::gauge!("feedmill_log_age_seconds").set(now_ms().saturating_sub(newest.time) as f64 / 1e3);
}

/// Says on standard output what runs where.
pub fn banner(settings: &Settings, listen: SocketAddr, cluster: Option<&Cluster>) -> anyhow::Result<()> {
    use std::io::Write;
    let postgres = match cluster {
        Some(_) => format!(
            "psql -h {} -U feedmill feedmill",
            settings.data.join("postgres/socket").canonicalize().unwrap_or_default().display()
        ),
        None => "the one of --database-url".to_owned(),
    };
    let mut out = std::io::stdout().lock();
    writeln!(
        out,
        "
  Feedmill {version}
    API         http://{listen}/
    PostgreSQL  {postgres}
    data        {data}
    workers     {workers}

  Register the first user:

    curl -s http://{listen}/api/auth/register -H 'content-type: application/json' \\
      -d '{{\"username\":\"ada\",\"email\":\"ada@example.com\",\"password\":\"correct horse\",\"displayName\":\"Ada\"}}'

  Ctrl-C stops everything; the next start goes on from there.
",
        version = env!("CARGO_PKG_VERSION"),
        data = settings.data.display(),
        workers = settings.workers,
    )?;
    Ok(out.flush()?)
}
