//! For whoever operates the system: is it alive, does it serve, how is it.

use axum::Json;
use axum::extract::State;
use axum::http::header;
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use crate::problem::Kind;
use crate::state::Shared;

/// `GET /health`: the process answers.
pub(crate) async fn health() -> Json<Value> {
    Json(json!({ "status": "alive" }))
}

/// `GET /ready`: the views may be read; until then 503. Either says how far each stage of the start is.
pub(crate) async fn ready(State(context): State<Shared>) -> Response {
    let stages = context.health.stages();
    let stages: Value =
        stages.iter().map(|stage| json!({ "name": stage.name, "done": stage.done, "detail": stage.detail })).collect();
    if context.health.serving() {
        return Json(json!({ "status": "serving", "stages": stages })).into_response();
    }
    Kind::Starting.because("The views are being loaded.").with("stages", stages).into_response()
}

/// `GET /metrics`: in Prometheus' text format.
pub(crate) async fn metrics(State(context): State<Shared>) -> Response {
    context.database.gauge();
    ([(header::CONTENT_TYPE, "text/plain; version=0.0.4")], context.metrics.render()).into_response()
}
