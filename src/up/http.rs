//! The HTTP server: answers from the first moment on, and hands everything to the API once that is there.
//!
//! ```text
//!   accept ─► place (bounded) ─► head of the request (bounded: time, bytes, fields) ─► starting, or API ─► answer
//!                │ none left                  ▲                                                         │
//!                └─► 503, closed              └──── kept alive: the next head, within the same time ◄────┘
//! ```
//!
//! A client can hold a place, a few buffers of [`HEAD_BYTES_MAX`], and nothing else: what a request's body and its
//! handler may take, in bytes and time, is the API's to bound. A peer that takes too little of what is sent to it is given
//! up, and the kernel gives up one that is gone without a word.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::body::Body;
use axum::extract::{ConnectInfo, Request};
use axum::response::{IntoResponse, Response};
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use ipnet::IpNet;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use opentelemetry_http::HeaderExtractor;
use socket2::{SockRef, TcpKeepalive};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, watch};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tower::ServiceExt;
use tracing::field::Empty;
use tracing::{Instrument, Span};
use tracing_opentelemetry::OpenTelemetrySpanExt;

use super::paced::{Pace, Paced};
use super::places::Places;
use crate::config::Settings;
use crate::log::TRACE;

/// Bytes of a request's line and header fields; more are answered 431. It bounds the other buffers of a connection too.
const HEAD_BYTES_MAX: usize = 32 << 10;
/// Fields of a request's header, likewise.
const HEAD_FIELDS_MAX: usize = 64;
/// Bytes that may wait in the kernel until they can be sent: a stream that its client does not read takes no more.
const UNSENT_MAX: u32 = 64 << 10;
/// How long a peer may take nothing of what was sent to it.
const UNTAKEN_MAX: Duration = Duration::from_secs(30);
/// How much of an answer it has to take in that time.
const PACE: Pace = Pace { bytes: 64 << 10, within: UNTAKEN_MAX };
/// After how much silence a peer is asked whether it is still there.
const SILENCE_MAX: Duration = Duration::from_secs(60);
/// Pause when no connection can be accepted: descriptors are short.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// How long a client that finds no place may take to read that.
const REFUSAL_MAX: Duration = Duration::from_secs(1);
/// How many are told at a time.
const REFUSALS_MAX: usize = 64;
/// Ctrl-C ends within 5 seconds, of which requests that are under way have so much.
const DRAIN_MAX: Duration = Duration::from_millis(1_500);
/// Files that are open beside connections of clients.
const OTHER_FILES: u64 = 1_024;

/// What a client that finds no place is told.
const REFUSAL: &str = concat!(
    "HTTP/1.1 503 Service Unavailable\r\nContent-Type: application/problem+json\r\nRetry-After: 1\r\n",
    "Connection: close\r\nContent-Length: 173\r\n\r\n",
    r#"{"type":"/problems/overloaded","title":"Too many requests are under way","status":503,"#,
    r#""detail":"There are too many connections. Try again in a moment.","error":"overloaded"}"#,
);

/// Bounds of the server.
#[derive(Clone, Debug)]
pub struct Bounds {
    /// Connections that may be open. Those that became a WebSocket are counted by the API.
    pub connections: usize,
    /// Of one address, unless it is one of `proxies`; 0 for any number.
    pub connections_of_address: usize,
    /// Networks of proxies that are trusted.
    pub proxies: Vec<IpNet>,
    /// Within what time the head of a request has to be there: from the connection's beginning, or from the end of the
    /// answer before it, so it is also how long a connection may be idle.
    pub head: Duration,
    /// How long requests that are under way at the end may take.
    pub drain: Duration,
}

impl Bounds {
    /// Those of the settings.
    pub fn of(settings: &Settings) -> Self {
        Bounds {
            connections: settings.connections_max,
            connections_of_address: settings.connections_per_address,
            proxies: settings.trusted_proxies.clone(),
            head: Duration::from_secs(settings.idle_seconds),
            drain: DRAIN_MAX,
        }
    }

    /// The same, where requests that are under way at the end may take `limit`.
    pub fn draining(self, limit: Duration) -> Self {
        Bounds { drain: limit, ..self }
    }
}

/// Listens where the settings say, and raises the number of files that may be open to what they need.
pub async fn listen(settings: &Settings) -> anyhow::Result<TcpListener> {
    let listener = TcpListener::bind(settings.listen).await.with_context(|| {
        format!("could not listen on {}: is another program there? Name another address with --listen", settings.listen)
    })?;
    allow_files(settings.connections_max.saturating_add(settings.streams_max));
    Ok(listener)
}

/// `starting` until there is an `api`, and then the last one. Of `proxies` it is believed what trace a request is of.
pub fn front(starting: Router, api: watch::Receiver<Option<Router>>, proxies: Arc<[IpNet]>) -> Router {
    Router::new().fallback(async move |request: Request| {
        let router = api.borrow().as_ref().unwrap_or(&starting).clone();
        let span = span(&request, &proxies);
        // The error of a router's service is that there is none.
        router.oneshot(request).instrument(span).await.into_response()
    })
}

/// The span of a request, a part of the trace that a proxy which is trusted tells of. Others would choose what is traced. The
/// API adds what it finds out.
fn span(request: &Request, proxies: &[IpNet]) -> Span {
    let span = tracing::trace_span!(
        target: TRACE,
        "request",
        otel.name = Empty,
        otel.kind = "server",
        otel.status_code = Empty,
        http.request.method = request.method().as_str(),
        http.route = Empty,
        http.response.status_code = Empty,
    );
    let peer = request.extensions().get().map(|ConnectInfo(peer): &ConnectInfo<SocketAddr>| peer.ip().to_canonical());
    let is_trusted = peer.is_some_and(|peer| proxies.iter().any(|network| network.contains(&peer)));
    if is_trusted && !span.is_disabled() {
        let headers = HeaderExtractor(request.headers());
        let parent = opentelemetry::global::get_text_map_propagator(|propagator| propagator.extract(&headers));
        // It fails for a span that has begun, or that nobody collects.
        let _ = span.set_parent(parent);
    }
    span
}

/// Serves HTTP until the end, then lets requests that are under way end.
pub async fn serve(
    listener: TcpListener,
    app: Router,
    bounds: Bounds,
    end: CancellationToken,
) -> anyhow::Result<&'static str> {
    let places = Places::new(bounds.connections, bounds.connections_of_address, bounds.proxies);
    let refusals = Arc::new(Semaphore::new(REFUSALS_MAX));
    let connections = TaskTracker::new();
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new())
        .header_read_timeout(bounds.head)
        .max_buf_size(HEAD_BYTES_MAX)
        .max_headers(HEAD_FIELDS_MAX);
    let open = metrics::gauge!("feedmill_http_connections");
    let shed = metrics::counter!("feedmill_http_shed_total", "class" => "connection");
    open.set(0.0);
    shed.increment(0);
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => break,
        };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = places.take(peer.ip()) else {
            shed.increment(1);
            // Of a flood of connections most are just closed.
            if let Ok(place) = Arc::clone(&refusals).try_acquire_owned() {
                connections.spawn(refuse(stream, place));
            }
            continue;
        };
        if let Err(error) = prepare(&stream) {
            tracing::debug!(%error, %peer, "a connection was lost at its beginning");
            continue;
        }
        let app = app.clone();
        let service = service_fn(move |request| answer(app.clone(), peer, request));
        let stream = TokioIo::new(Paced::new(stream, PACE));
        let connection = http.serve_connection(stream, service).with_upgrades();
        let (open, end) = (open.clone(), end.clone());
        connections.spawn(async move {
            open.increment(1.0);
            let mut connection = pin!(connection);
            let ended = tokio::select! {
                ended = &mut connection => ended,
                () = end.cancelled() => {
                    connection.as_mut().graceful_shutdown();
                    connection.await
                }
            };
            if let Err(error) = ended {
                tracing::debug!(%error, %peer, "a connection broke, or was too slow");
            }
            open.decrement(1.0);
            drop(place);
        });
    }
    drop(listener);
    connections.close();
    tokio::select! {
        () = connections.wait() => {}
        () = tokio::time::sleep(bounds.drain) => {
            tracing::info!("requests that were under way for more than {:?} were broken off", bounds.drain);
        }
    }
    Ok("the HTTP server")
}

async fn answer(app: Router, peer: SocketAddr, request: Request<Incoming>) -> Result<Response, Infallible> {
    let mut request = request.map(Body::new);
    request.extensions_mut().insert(ConnectInfo(peer));
    app.oneshot(request).await
}

/// What is sent goes out at once; who is gone is noticed.
fn prepare(stream: &TcpStream) -> std::io::Result<()> {
    let socket = SockRef::from(stream);
    socket.set_tcp_nodelay(true)?;
    socket.set_tcp_notsent_lowat(UNSENT_MAX)?;
    socket.set_tcp_user_timeout(Some(UNTAKEN_MAX))?;
    socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(SILENCE_MAX))
}

/// Tells a client to come again.
async fn refuse(mut stream: TcpStream, _place: OwnedSemaphorePermit) {
    let _ = tokio::time::timeout(REFUSAL_MAX, async {
        stream.write_all(REFUSAL.as_bytes()).await?;
        stream.shutdown().await?;
        // Closed before its request is taken, the client would see a connection that was reset, and not the answer.
        let mut taken = [0; 1_024];
        while stream.read(&mut taken).await? > 0 {}
        std::io::Result::Ok(())
    })
    .await;
}

/// Raises the number of files that may be open, as far as the machine allows, to what so many connections need.
fn allow_files(connections: usize) {
    let needed = connections as u64 + OTHER_FILES;
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(soft, hard)| {
        let raised = needed.clamp(soft, hard.max(soft));
        setrlimit(Resource::RLIMIT_NOFILE, raised, hard).map(|()| raised)
    });
    match raised {
        Ok(raised) if raised >= needed => {}
        Ok(raised) => tracing::warn!(
            "this process may open {raised} files, but --connections-max and --streams-max may need {needed}: raise the \
             limit (`ulimit -Hn`, LimitNOFILE=), or lower them"
        ),
        Err(error) => tracing::warn!(%error, "could not raise the number of files that may be open"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_refusal_is_as_long_as_it_says() {
        let (head, body) = REFUSAL.split_once("\r\n\r\n").unwrap();
        assert!(head.ends_with(&format!("Content-Length: {}", body.len())), "{}", body.len());
        assert_eq!(serde_json::from_str::<serde_json::Value>(body).unwrap()["error"], "overloaded");
    }
}
