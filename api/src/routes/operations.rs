//! For whoever operates the system: is it alive, does it serve, how is it.

use std::sync::Arc;

use axum::extract::{FromRef, State};
use axum::http::header;
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::{Json, Router};
use metrics_exporter_prometheus::PrometheusHandle;
use serde::Serialize;
use serde_json::json;
use tokio::sync::Mutex;
use utoipa::ToSchema;

use crate::health::{Health, Report, StandsStill, Step};
use crate::problem::{Failed, Kind, Problem};
use crate::routes::not_found;
use crate::state::Shared;

/// What is known of the system before there is an API.
#[derive(Clone)]
pub(crate) struct Operations {
    health: Arc<dyn Health>,
    metrics: PrometheusHandle,
}

impl FromRef<Shared> for Operations {
    fn from_ref(context: &Shared) -> Self {
        Operations { health: Arc::clone(&context.health), metrics: context.metrics.clone() }
    }
}

/// The views have everything that was written before the start.
#[derive(Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
#[schema(as = Ready)]
struct ReadyBody {
    status: Serving,
    /// How far each step of the start has come.
    stages: Vec<Step>,
    /// The stage that holds the others back, if one stands still.
    stands_still: Option<StandsStill>,
}

#[derive(Serialize, ToSchema)]
#[serde(rename_all = "lowercase")]
enum Serving {
    Serving,
}

/// What answers while the system starts and [`app`](crate::app) cannot be made yet: how it stands, and to come again.
pub fn starting(health: Arc<dyn Health>, metrics: PrometheusHandle) -> Router {
    routes().fallback(come_again).with_state(Operations { health, metrics })
}

/// What answers of a system that has no API: how it stands.
pub fn without_api(health: Arc<dyn Health>, metrics: PrometheusHandle) -> Router {
    routes().fallback(not_found).with_state(Operations { health, metrics })
}

fn routes() -> Router<Operations> {
    Router::new().route("/health", get(self::health)).route("/ready", get(ready)).route("/metrics", get(plain_metrics))
}

async fn come_again() -> Problem {
    Kind::Starting.because("The system starts. /ready says how far that is.")
}

/// The process answers, and tells how each stage stands. It is 200 also when something stands still: the
/// process lives, and a restart of it would not mend a database that is away.
#[utoipa::path(
    get, path = "/health", tag = "operations",
    responses((status = 200, description = "How everything stands.", body = Report)), security(()),
)]
pub(crate) async fn health(State(operations): State<Operations>) -> Json<Report> {
    Json(operations.health.report())
}

/// The views have everything that was committed before the start; until then 503, while they may be read
/// already, as of their age; and 503 while facts or rows are being built again, and once the process is told to end. Each says how
/// far each step is. Of `feedmill serve` it is 200 once the stores can be read and PostgreSQL takes writes.
#[utoipa::path(
    get, path = "/ready", tag = "operations",
    responses((status = 200, description = "It serves.", body = ReadyBody), Failed), security(()),
)]
pub(crate) async fn ready(State(operations): State<Operations>) -> Response {
    let report = operations.health.report();
    let steps = json!(report.steps);
    if operations.health.leaving() {
        return Kind::Stopping.because("The process was told to end.").with("stages", steps).into_response();
    }
    if let Some(told) = operations.health.rebuilding() {
        return Kind::Rebuilding.because(told).with("stages", steps).into_response();
    }
    if operations.health.serving() {
        let Report { steps: stages, stands_still, .. } = report;
        return Json(ReadyBody { status: Serving::Serving, stages, stands_still }).into_response();
    }
    let still = json!(report.stands_still);
    Kind::Starting
        .because("What was committed before the start is not all served yet.")
        .with("stages", steps)
        .with("standsStill", still)
        .into_response()
}

/// Reads the metrics, in Prometheus' text format.
#[utoipa::path(
    get, path = "/metrics", tag = "operations",
    responses((status = 200, description = "The metrics.", body = String, content_type = "text/plain")), security(()),
)]
pub(crate) async fn metrics(State(context): State<Shared>) -> Response {
    context.database.gauge();
    context.gates.gauge();
    context.passwords.gauge();
    rendered(&context.metrics).await
}

async fn plain_metrics(State(operations): State<Operations>) -> Response {
    rendered(&operations.metrics).await
}

/// Anybody may ask for them, as often as they like: they are written for one at a time, and so take one core at most.
async fn rendered(metrics: &PrometheusHandle) -> Response {
    static RENDERING: Mutex<()> = Mutex::const_new(());
    let _alone = RENDERING.lock().await;
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], metrics.render()).into_response()
}
