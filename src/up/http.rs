//! The HTTP server: answers from the first moment on, and hands everything to the API once that is there.

use std::time::Duration;

use anyhow::Context;
use axum::Router;
use axum::extract::Request;
use axum::response::IntoResponse;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

/// `starting` until there is an `api`, and then the last one.
pub fn front(starting: Router, api: watch::Receiver<Option<Router>>) -> Router {
    Router::new().fallback(async move |request: Request| {
        let router = api.borrow().as_ref().unwrap_or(&starting).clone();
        // The error of a router's service is that there is none.
        router.oneshot(request).await.into_response()
    })
}

/// Serves HTTP until the end, then lets requests that are under way end for at most `drain`.
pub async fn serve(
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
