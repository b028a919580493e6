//! A client by server-sent events (the HTML standard, 9.2).
//!
//! ```text
//!   connection ─ polls the body, finds nothing ─► wanted ─► client looks ─► text ─► the body, to the connection
//! ```
//!
//! The connection polls the body when it can take something. Only then the client looks, so what is judged is written at
//! once.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, header};
use axum::response::Response;
use futures::Stream;
use parking_lot::Mutex;
use tokio::sync::{Notify, mpsc};
use tokio::time::timeout;

use super::End;
use super::client::Client;
use super::event::{closed, ended};

/// Proxies that buffer answers are asked not to.
const BUFFERING: HeaderName = HeaderName::from_static("x-accel-buffering");

/// What tells browsers after how many milliseconds to come again when the connection was lost.
const RETRY: &str = "retry: 2000\n\n";

/// The answer that goes on as long as the client listens.
pub(crate) fn serve(client: Client) -> Response {
    // One text on its way, and the last word.
    let (texts, incoming) = mpsc::channel(2);
    let wanted = Arc::new(Wanted::default());
    let pipe = Pipe { texts, wanted: Arc::clone(&wanted) };
    tokio::spawn(run(pipe, client));
    let mut response = Response::new(Body::from_stream(Texts { incoming, wanted }));
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(BUFFERING, HeaderValue::from_static("no"));
    response
}

async fn run(mut pipe: Pipe, mut client: Client) {
    let Err(end) = talk(&mut pipe, &mut client).await;
    drop(client);
    ended(end);
    let mut text = String::new();
    closed(end).write_sse(&mut text);
    // Who takes nothing does not take this either.
    let _ = pipe.texts.try_send(text);
}

async fn talk(pipe: &mut Pipe, client: &mut Client) -> Result<Infallible, End> {
    let stall = client.stall();
    let mut text = RETRY.to_owned();
    loop {
        if let Some(end) = client.end() {
            return Err(end);
        }
        timeout(stall, pipe.wanted()).await.map_err(|_| End::Slow)??;
        let events = client.news().await;
        events.iter().for_each(|event| event.write_sse(&mut text));
        if client.is_heartbeat_due() && text.is_empty() {
            text.push_str(": alive\n\n");
        }
        if !text.is_empty() {
            pipe.send(std::mem::take(&mut text))?;
        }
        // What was found may be that the account is gone.
        if let Some(end) = client.end() {
            return Err(end);
        }
        tokio::select! {
            () = pipe.texts.closed() => return Err(End::Left),
            () = client.turn() => {}
        }
    }
}

/// Whether the connection waits for the next text. It does from when it found none until one is sent, and both are one step
/// with the lock held; else it might be said of a text that was just sent, and another be made that waits behind it.
#[derive(Default)]
struct Wanted {
    is: Mutex<bool>,
    changed: Notify,
}

/// Where the client writes.
struct Pipe {
    texts: mpsc::Sender<String>,
    wanted: Arc<Wanted>,
}

impl Pipe {
    /// Waits until the connection can take a text.
    async fn wanted(&self) -> Result<(), End> {
        while !*self.wanted.is.lock() {
            tokio::select! {
                () = self.wanted.changed.notified() => {}
                () = self.texts.closed() => return Err(End::Left),
            }
        }
        Ok(())
    }

    /// Sends a text, which must be wanted: so there is room for it.
    fn send(&self, text: String) -> Result<(), End> {
        let mut wanted = self.wanted.is.lock();
        *wanted = false;
        self.texts.try_send(text).map_err(|_| End::Left)
    }
}

/// What the connection reads.
struct Texts {
    incoming: mpsc::Receiver<String>,
    wanted: Arc<Wanted>,
}

impl Stream for Texts {
    type Item = Result<String, Infallible>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let wanted = Arc::clone(&self.wanted);
        let mut is_wanted = wanted.is.lock();
        let polled = self.incoming.poll_recv(context);
        *is_wanted = polled.is_pending();
        if *is_wanted {
            wanted.changed.notify_one();
        }
        polled.map(|text| text.map(Ok))
    }
}
