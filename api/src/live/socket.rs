//! A client by WebSocket (RFC 6455).
//!
//! Before the next look all that was sent before has gone to the kernel, so what is judged is written at once.

use std::convert::Infallible;
use std::time::Duration;

use axum::extract::ws::{CloseFrame, Message, WebSocket, WebSocketUpgrade};
use axum::response::Response;
use futures::SinkExt;
use tokio::time::timeout;

use super::client::Client;
use super::event::{Event, ended};
use super::{End, FAREWELL_MAX};

/// Bytes of a message: a hundred ids are 2,300.
const MESSAGE_BYTES_MAX: usize = 4_096;
/// Bytes that are read at once: a client has little to say, and each has such a buffer.
const READ_BYTES: usize = 1_024;
/// Bytes that are put together before they are written. A page is flushed at its end anyway.
const WRITE_BYTES: usize = 4_096;

/// The answer that makes the connection a WebSocket.
pub(crate) fn serve(upgrade: WebSocketUpgrade, client: Client) -> Response {
    upgrade
        .read_buffer_size(READ_BYTES)
        .write_buffer_size(WRITE_BYTES)
        .max_message_size(MESSAGE_BYTES_MAX)
        .max_frame_size(MESSAGE_BYTES_MAX)
        .on_upgrade(|socket| run(socket, client))
}

async fn run(mut socket: WebSocket, mut client: Client) {
    let Err(end) = talk(&mut socket, &mut client).await;
    drop(client);
    ended(end);
    let close = CloseFrame { code: end.code(), reason: end.name().into() };
    let farewell = async {
        socket.send(Message::Close(Some(close))).await?;
        // The handshake is complete when the other side has closed too.
        while let Some(Ok(_)) = socket.recv().await {}
        Ok::<_, axum::Error>(())
    };
    let _ = timeout(FAREWELL_MAX, farewell).await;
}

async fn talk(socket: &mut WebSocket, client: &mut Client) -> Result<Infallible, End> {
    let stall = client.stall();
    loop {
        if let Some(end) = client.end() {
            return Err(end);
        }
        let events = client.news().await;
        deliver(socket, &events, stall).await?;
        if client.is_silent() {
            return Err(End::Silent);
        }
        // What was found may be that the account is gone.
        if let Some(end) = client.end() {
            return Err(end);
        }
        if client.is_heartbeat_due() {
            within(stall, socket.send(Message::Ping(Default::default()))).await?;
        }
        tokio::select! {
            message = socket.recv() => {
                let Some(Ok(message)) = message else { return Err(End::Left) };
                client.heard();
                match message {
                    Message::Pong(_) => continue,
                    Message::Close(_) => return Err(End::Left),
                    Message::Binary(_) => return Err(End::BadMessage),
                    Message::Text(_) | Message::Ping(_) => client.count_message()?,
                }
                if let Message::Text(text) = message {
                    client.message(&text)?;
                }
            }
            () = client.turn() => {}
        }
    }
}

async fn deliver(socket: &mut WebSocket, events: &[Event], stall: Duration) -> Result<(), End> {
    for event in events {
        within(stall, socket.feed(Message::Text(event.message().into()))).await?;
    }
    if events.is_empty() { Ok(()) } else { within(stall, socket.flush()).await }
}

async fn within(stall: Duration, sent: impl Future<Output = Result<(), axum::Error>>) -> Result<(), End> {
    match timeout(stall, sent).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(End::Left),
        Err(_) => Err(End::Slow),
    }
}
