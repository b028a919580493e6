//! What every request goes through: an id, a time limit, a net for panics, headers, metrics, the access log.

use std::panic::AssertUnwindSafe;
use std::time::Instant;

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;

use crate::problem::{Kind, Problem};
use crate::state::{Context, Shared};

/// Histogram of requests in seconds, by `method`, `route` and `status`.
const REQUEST_SECONDS: &str = "feedmill_http_request_seconds";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// The longest id that is taken over from a client.
const REQUEST_ID_BYTES_MAX: usize = 64;

/// Headers of every answer: nothing of ours is a page, a frame or a script.
const SECURITY: [(HeaderName, &str); 5] = [
    (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
    (header::X_FRAME_OPTIONS, "DENY"),
    (header::REFERRER_POLICY, "no-referrer"),
    (header::CONTENT_SECURITY_POLICY, "default-src 'none'; frame-ancestors 'none'"),
    (header::CACHE_CONTROL, "no-store"),
];

/// Runs the request and observes it.
pub(crate) async fn observe(State(context): State<Shared>, request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let method = method_name(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str).to_owned();

    let mut response = bounded(&context, next.run(request)).await;

    let status = response.status().as_u16();
    let took = started.elapsed();
    tracing::debug!(
        method,
        route,
        status,
        took_us = took.as_micros(),
        request_id = id.to_str().unwrap_or(""),
        "answered"
    );
    metrics::histogram!(REQUEST_SECONDS, "method" => method, "route" => route, "status" => status.to_string())
        .record(took);
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    for (name, value) in SECURITY {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    response
}

/// Limits the time of `response`, and makes an answer of a panic.
async fn bounded(context: &Context, response: impl Future<Output = Response>) -> Response {
    let limit = context.settings.request_timeout + context.settings.read_wait;
    let caught = AssertUnwindSafe(response).catch_unwind();
    match tokio::time::timeout(limit, caught).await {
        Ok(Ok(response)) => response,
        Ok(Err(_)) => {
            Kind::Internal.because("The request met a defect. The log of the server says which.").into_response()
        }
        Err(_) => Kind::TimedOut.because("The request was given up. A write may have been done.").into_response(),
    }
}

/// Turns reads away until the views may be read, and while they are being built again, and everything else until PostgreSQL may be written to.
pub(crate) async fn once_serving(
    State(context): State<Shared>,
    request: Request,
    next: Next,
) -> Result<Response, Problem> {
    let reads = matches!(*request.method(), Method::GET | Method::HEAD);
    if let Some(told) = context.health.rebuilding().filter(|_| reads) {
        return Err(Kind::Rebuilding.because(told));
    }
    if if reads { context.health.readable() } else { context.health.writable() } {
        return Ok(next.run(request).await);
    }
    Err(Kind::Starting.because("The system starts. /ready says how far it is."))
}

/// The client's id of the request if it has a harmless one, so that its log and ours can be joined; else a new one.
fn request_id(headers: &HeaderMap) -> HeaderValue {
    let harmless = |id: &&HeaderValue| {
        let id = id.as_bytes();
        let plain = |byte: &u8| byte.is_ascii_alphanumeric() || b"-_.".contains(byte);
        !id.is_empty() && id.len() <= REQUEST_ID_BYTES_MAX && id.iter().all(plain)
    };
    if let Some(id) = headers.get(REQUEST_ID).filter(harmless) {
        return id.clone();
    }
    HeaderValue::try_from(format!("{:032x}", rand::random::<u128>())).unwrap_or(HeaderValue::from_static("none"))
}

/// A client may make up methods, but not labels.
fn method_name(method: &Method) -> &'static str {
    const KNOWN: [(Method, &str); 7] = [
        (Method::GET, "GET"),
        (Method::POST, "POST"),
        (Method::DELETE, "DELETE"),
        (Method::PUT, "PUT"),
        (Method::PATCH, "PATCH"),
        (Method::HEAD, "HEAD"),
        (Method::OPTIONS, "OPTIONS"),
    ];
    KNOWN.iter().find(|(known, _)| known == method).map_or("other", |(_, name)| name)
}
