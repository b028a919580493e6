//! What every request goes through: an id, a time limit, a net for panics, headers, metrics, the access log, CORS.
//!
//! The access log is told of the route, and of the path without its query: no header and no query gets there, and so no
//! token, no cookie and nothing that is searched for. Where that stands in the path, the route is told in its place.

use std::panic::AssertUnwindSafe;
use std::time::{Duration, Instant};

use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, Uri, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use futures::FutureExt;
use tower_http::CompressionLevel;
use tower_http::compression::CompressionLayer;
use tower_http::compression::predicate::{NotForContentType, Predicate, SizeAbove};
use tower_http::cors::{AllowOrigin, CorsLayer};
use tracing::Span;

use crate::address::note_address;
use crate::consistency::CONSISTENCY_TOKEN;
use crate::problem::{Kind, Problem};
use crate::state::{Context, Shared};

/// Histogram of requests in seconds, by `method`, `route` and `status`.
const REQUEST_SECONDS: &str = "feedmill_http_request_seconds";

const REQUEST_ID: HeaderName = HeaderName::from_static("x-request-id");
/// Bytes of a path with its query. A cursor of a home timeline takes 3 KiB.
const URI_BYTES_MAX: usize = 8 << 10;
/// Bytes of a path that the access log is told of: no path of ours is longer.
const LOGGED_PATH_BYTES_MAX: usize = 256;
/// What stands in a route for something that is searched for.
const SEARCHED: &str = "{tag}";
/// Answers of fewer bytes fit into a packet or two anyway.
const COMPRESSED_BYTES_MIN: u16 = 1_024;
/// Of 9 (gzip) or 11 (brotli): what is beyond costs more time than it saves bytes.
const COMPRESSION: i32 = 4;
/// For how long a browser may remember what CORS allows.
const CORS_AGE: Duration = Duration::from_secs(60 * 60);
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
pub(crate) async fn observe(State(context): State<Shared>, mut request: Request, next: Next) -> Response {
    let started = Instant::now();
    let id = request_id(request.headers());
    let method = method_name(request.method());
    let route = request.extensions().get::<MatchedPath>().cloned();
    let route = route.as_ref().map_or("none", MatchedPath::as_str).to_owned();
    let address = note_address(&mut request, &context.settings.trusted_proxies);
    let uri = request.uri().clone();

    let mut response = match length(request.uri()) {
        0..=URI_BYTES_MAX => bounded(&context, next.run(request)).await,
        _ => Kind::UriTooLong.because(format!("Path and query may have {URI_BYTES_MAX} bytes.")).into_response(),
    };

    let status = response.status().as_u16();
    let took = started.elapsed();
    tracing::info!(
        target: "access",
        method,
        path = logged_path(&route, &uri),
        route,
        status,
        took_us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX),
        %address,
        request_id = id.to_str().unwrap_or("")
    );
    let span = Span::current();
    if !span.is_disabled() {
        span.record("otel.name", format!("{method} {route}")).record("http.route", route.as_str());
        span.record("http.response.status_code", status);
        if status >= 500 {
            span.record("otel.status_code", "ERROR");
        }
    }
    metrics::histogram!(REQUEST_SECONDS, "method" => method, "route" => route, "status" => status.to_string())
        .record(took);
    let headers = response.headers_mut();
    headers.insert(REQUEST_ID, id);
    for (name, value) in SECURITY {
        headers.entry(name).or_insert(HeaderValue::from_static(value));
    }
    if let Some(value) = &context.strict_transport {
        headers.insert(header::STRICT_TRANSPORT_SECURITY, value.clone());
    }
    response
}

/// The path as the access log is told of it.
fn logged_path<'a>(route: &'a str, uri: &'a Uri) -> &'a str {
    let path = uri.path();
    match route.contains(SEARCHED) {
        true => route,
        false => path.get(..path.floor_char_boundary(LOGGED_PATH_BYTES_MAX)).unwrap_or_default(),
    }
}

/// Bytes of the path and the query.
fn length(uri: &Uri) -> usize {
    uri.path_and_query().map_or(0, |both| both.as_str().len())
}

/// What lets pages of `origins` use the API from a browser; `None` for no page.
pub(crate) fn cors(origins: &[HeaderValue]) -> Option<CorsLayer> {
    const EXPOSED: [&str; 11] = [
        CONSISTENCY_TOKEN,
        "etag",
        "link",
        "ratelimit",
        "ratelimit-policy",
        "retry-after",
        "x-feedmill-time",
        "x-feedmill-lag-ms",
        "x-feedmill-not-yet-visible",
        "x-request-id",
        "date",
    ];
    const ASKED: [&str; 8] = [
        CONSISTENCY_TOKEN,
        "authorization",
        "content-type",
        "idempotency-key",
        "if-match",
        "if-none-match",
        "last-event-id",
        "x-request-id",
    ];
    let first = origins.first()?;
    let methods = [Method::GET, Method::HEAD, Method::POST, Method::PUT, Method::PATCH, Method::DELETE];
    let cors = CorsLayer::new()
        .allow_methods(methods)
        .allow_headers(ASKED.map(HeaderName::from_static))
        .expose_headers(EXPOSED.map(HeaderName::from_static))
        .max_age(CORS_AGE);
    Some(match first == "*" {
        true => cors.allow_origin(AllowOrigin::any()),
        false => cors.allow_origin(AllowOrigin::list(origins.iter().cloned())).allow_credentials(true),
    })
}

/// Compresses what is worth it and may be: no streams, which have to arrive event by event, and nothing small.
pub(crate) fn compression() -> CompressionLayer<impl Predicate> {
    let predicate = SizeAbove::new(COMPRESSED_BYTES_MIN).and(NotForContentType::SSE).and(NotForContentType::IMAGES);
    CompressionLayer::new().quality(CompressionLevel::Precise(COMPRESSION)).compress_when(predicate)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_access_log_is_told_of_paths_that_are_short_and_name_nothing_that_is_searched_for() {
        let long = format!("/{}", "a".repeat(2 * LOGGED_PATH_BYTES_MAX));
        let tag = "/api/timeline/search/hashtag/{tag}";
        for (route, asked, told) in [
            ("/api/users/{username}", "/api/users/ada?secret=1", "/api/users/ada"),
            (tag, "/api/timeline/search/hashtag/illness", tag),
            ("none", "/api/nothing", "/api/nothing"),
            ("none", &long, &long[..LOGGED_PATH_BYTES_MAX]),
        ] {
            assert_eq!(logged_path(route, &asked.parse().unwrap()), told);
        }
    }
}
