//! Keeps gauges up to date, and watches what PostgreSQL keeps for the slot.
//!
//! ```text
//!   every 200 ms ── Stations::observe ──► gauges, log lines of works under way
//!   every second ── pg_replication_slots, end of the log (one connection, kept) ──► postgresql, slot
//! ```

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use feedmill_api::{Report, Slot, StageState};
use feedmill_connectors::postgres::Source;
use feedmill_ingest::Log;
use feedmill_model::{Lsn, Phase, Position};
use feedmill_sinks::search::SearchStore;
use feedmill_sinks::{HomeStore, Progress};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use super::stations::Stations;

/// How often gauges are brought up to date.
const OBSERVE: Duration = Duration::from_millis(200);
/// How often a work that is under way says in the log how far it is.
const SAY: Duration = Duration::from_secs(10);
/// How often PostgreSQL is asked, and how long it may take to answer.
const ASK: Duration = Duration::from_secs(1);
const ANSWER_MAX: Duration = Duration::from_secs(5);

/// The end of PostgreSQL's log that a slot can be sent, and what it keeps for the slot.
const SLOT: &str = "SELECT pg_current_wal_flush_lsn()::text, confirmed_flush_lsn::text, restart_lsn::text, wal_status,
                           coalesce(pg_wal_lsn_diff(pg_current_wal_lsn(), restart_lsn), 0)::bigint,
                           coalesce(active, false), slot_name IS NOT NULL
                    FROM (SELECT) AS one LEFT JOIN pg_replication_slots ON slot_name = $1";

/// Metrics of all crates go here.
pub fn install_metrics() -> anyhow::Result<PrometheusHandle> {
    let seconds =
        [0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];
    PrometheusBuilder::new()
        .set_buckets(&seconds)
        .and_then(PrometheusBuilder::install_recorder)
        .context("could not set up metrics")
}

/// Reads where the change log stands whenever somebody asks.
pub fn look_at_log(stations: &Stations, log: Log) {
    let waited = AtomicBool::new(false);
    stations.look(move |stations| {
        if let Some(position) = log.position() {
            stations.log().reached(position);
        }
        if let Some(waits) = log.waits_for() {
            stations.log().waiting(waits.to_string());
            waited.store(true, Ordering::Relaxed);
        } else if waited.swap(false, Ordering::Relaxed) {
            stations.log().goes_on();
        }
        stations.quarantined(log.quarantine_len());
    });
}

/// Reads where stores and dataflows stand whenever somebody asks; `anomalies` are those of the dataflows.
pub fn look_at_stores(
    stations: &Stations,
    progress: Arc<Progress>,
    home: Arc<dyn HomeStore>,
    search: Option<Arc<dyn SearchStore>>,
    anomalies: impl Fn() -> u64 + Send + Sync + 'static,
) {
    stations.look(move |stations| {
        for (phase, station) in [
            (Phase::Facts, stations.facts()),
            (Phase::Rows, stations.rows()),
            (Phase::Home, stations.home()),
            (Phase::Reactions, stations.reactions()),
        ] {
            let position: Position = progress.position(phase);
            // Before the load has ended a store stands nowhere.
            if position.lsn > Lsn(0) {
                station.reached(position);
            }
        }
        if let Some(search) = &search {
            let handed_over = progress.position(Phase::Search);
            match search.waits() {
                // What it was handed meanwhile waits with it.
                Some(reason) => stations.search().waiting(reason),
                None => {
                    stations.search().goes_on();
                    if handed_over.lsn > Lsn(0) {
                        stations.search().reached(handed_over);
                    }
                }
            }
            stations.unsearchable(search.refused());
        }
        stations.home().delivered(home.deliveries());
        metrics::counter!("feedmill_home_deliveries_total").absolute(home.deliveries());
        let of_dataflows = anomalies();
        metrics::counter!("feedmill_dataflow_anomalies_total").absolute(of_dataflows);
        stations.anomalies(of_dataflows + home.anomalies());
    });
}

/// Observes until the end.
pub async fn observe(stations: Arc<Stations>, end: CancellationToken) -> anyhow::Result<&'static str> {
    let mut again = interval(OBSERVE);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut said = Instant::now();
    loop {
        tokio::select! {
            _ = again.tick() => {}
            () = end.cancelled() => return Ok("the observer"),
        }
        let report = stations.observe();
        gauges(&report);
        if said.elapsed() >= SAY {
            say(&report);
            said = Instant::now();
        }
    }
}

fn gauges(report: &Report) {
    for stage in &report.stages {
        let name = stage.name.clone();
        metrics::gauge!("feedmill_stage_behind_bytes", "stage" => name.clone()).set(stage.behind_bytes as f64);
        metrics::gauge!("feedmill_stage_behind_seconds", "stage" => name.clone()).set(stage.behind_ms as f64 / 1e3);
        let still = report.stands_still.as_ref().filter(|still| still.stage == name).map_or(0, |still| still.for_ms);
        metrics::gauge!("feedmill_stage_still_seconds", "stage" => name).set(still as f64 / 1e3);
    }
    for alarm in &report.alarms {
        metrics::gauge!("feedmill_alarm", "alarm" => alarm.alarm.clone()).set(f64::from(u8::from(alarm.raised)));
    }
    for step in report.steps.iter().filter(|step| step.begun) {
        metrics::gauge!("feedmill_step_completed", "step" => step.name.clone()).set(step.completed as f64);
        metrics::gauge!("feedmill_step_total", "step" => step.name.clone()).set(step.total.unwrap_or(0) as f64);
    }
    if let Some(slot) = &report.slot {
        metrics::gauge!("feedmill_slot_retained_bytes").set(slot.retained_bytes as f64);
    }
    if let Some(age) = report.served_age_ms {
        metrics::gauge!("feedmill_served_age_seconds").set(age as f64 / 1e3);
    }
}

/// Says how far works are that are under way.
fn say(report: &Report) {
    for step in report.steps.iter().filter(|step| step.begun && !step.done) {
        let total = step.total.map_or(String::new(), |total| format!(" of {total}"));
        let percent = step.percent.map_or(String::new(), |percent| format!(", {percent:.0} %"));
        let eta = step.eta_seconds.map_or(String::new(), |seconds| format!(", {seconds} s to go"));
        tracing::info!("{}: {}{total} {}{percent}{eta}", step.name, step.completed, step.unit);
    }
    for stage in report.stages.iter().filter(|stage| stage.state == StageState::StandsStill) {
        tracing::warn!("{} stands still: {}", stage.name, stage.reason.as_deref().unwrap_or("nobody knows why"));
    }
}

/// Asks PostgreSQL every second how far its log is and what it keeps for the slot, until the end.
pub async fn watch_slot(
    source: Source,
    slot: &'static str,
    stations: Arc<Stations>,
    end: CancellationToken,
) -> anyhow::Result<&'static str> {
    let mut again = interval(ASK);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut connection: Option<Client> = None;
    loop {
        tokio::select! {
            _ = again.tick() => {}
            () = end.cancelled() => return Ok("the watch of the slot"),
        }
        let asked = async {
            let client = match connection.take() {
                Some(client) => client,
                None => source.connect("feedmill-status").await?,
            };
            ask(&client, slot, &stations).await?;
            anyhow::Ok(client)
        };
        let asked = tokio::select! {
            asked = timeout(ANSWER_MAX, asked) => asked,
            () = end.cancelled() => continue,
        };
        match asked {
            Ok(Ok(client)) => {
                connection = Some(client);
                stations.postgresql().goes_on();
            }
            Ok(Err(error)) => stations.postgresql().waiting(format!("{error:#}")),
            Err(_) => stations.postgresql().waiting(format!("it has not answered within {ANSWER_MAX:?}")),
        }
    }
}

async fn ask(client: &Client, slot: &str, stations: &Stations) -> anyhow::Result<()> {
    let row = client.query_one(SLOT, &[&slot]).await.context("could not ask for the replication slot")?;
    stations.postgresql().moved(row.try_get::<_, &str>(0)?.parse()?);
    let exists: bool = row.try_get(6)?;
    stations.slot(if exists {
        Some(Slot {
            confirmed: row.try_get(1)?,
            restart: row.try_get(2)?,
            wal_status: row.try_get(3)?,
            retained_bytes: u64::try_from(row.try_get::<_, i64>(4)?).unwrap_or(0),
            active: row.try_get(5)?,
        })
    } else {
        None
    });
    Ok(())
}
