//! A client of live updates, over server-sent events or over WebSocket.

use futures::{SinkExt, StreamExt};
use serde_json::Value;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;
use tokio_tungstenite::tungstenite::handshake::client::Request;
use tokio_tungstenite::tungstenite::{Error, Message};
use tokio_tungstenite::{MaybeTlsStream, WebSocketStream, connect_async};

use crate::system::{Account, LIMIT, System};

/// How a client listens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Transport {
    Events,
    Socket,
}

pub const BOTH: [Transport; 2] = [Transport::Events, Transport::Socket];

/// What a client gets.
#[derive(Clone, Debug)]
pub struct Event {
    pub name: String,
    pub id: Option<String>,
    pub data: Value,
}

pub enum Wire {
    Events { response: reqwest::Response, text: String },
    Socket(Box<WebSocketStream<MaybeTlsStream<TcpStream>>>),
}

/// A client.
pub struct Stream {
    pub wire: Wire,
    /// The id of the last event that had one.
    pub last: Option<String>,
}

pub fn socket_request(system: &System, query: &str, account: Option<&Account>) -> Request {
    let url = format!("{}/api/stream{query}", system.url.replace("http://", "ws://"));
    let mut request = url.into_client_request().unwrap();
    if let Some(account) = account {
        request.headers_mut().insert("authorization", format!("Bearer {}", account.token).parse().unwrap());
    }
    request
}

impl Stream {
    pub async fn open(system: &System, transport: Transport, account: &Account, query: &str) -> Stream {
        let mut stream = Stream::connect(system, transport, Some(account), query).await.unwrap();
        assert_eq!(stream.next().await.name, "open");
        stream
    }

    /// The stream, or the status and problem that came instead.
    pub async fn connect(
        system: &System,
        transport: Transport,
        account: Option<&Account>,
        query: &str,
    ) -> Result<Stream, (u16, Value)> {
        let wire = match transport {
            Transport::Events => {
                let mut request = system.http.get(format!("{}/api/stream{query}", system.url));
                if let Some(account) = account {
                    request = request.bearer_auth(&account.token);
                }
                let response = request.send().await.unwrap();
                if response.status() != 200 {
                    return Err((response.status().as_u16(), response.json().await.unwrap()));
                }
                assert_eq!(response.headers()["content-type"], "text/event-stream");
                assert!(response.headers().get("content-encoding").is_none());
                Wire::Events { response, text: String::new() }
            }
            Transport::Socket => match connect_async(socket_request(system, query, account)).await {
                Ok((socket, _)) => Wire::Socket(Box::new(socket)),
                Err(Error::Http(response)) => {
                    let problem = response.body().as_deref().unwrap_or_default();
                    return Err((response.status().as_u16(), serde_json::from_slice(problem).unwrap()));
                }
                Err(error) => panic!("{error}"),
            },
        };
        Ok(Stream { wire, last: None })
    }

    /// Goes on after the last event.
    pub async fn again(self, system: &System, account: &Account, transport: Transport) -> Stream {
        let query = format!("?lastEventId={}", self.last.as_deref().unwrap());
        drop(self.wire);
        Stream::open(system, transport, account, &query).await
    }

    /// The next event; `Err` with the reason when the stream has ended.
    pub async fn try_next(&mut self) -> Result<Event, String> {
        let event = timeout(LIMIT, self.wire.next()).await.expect("no event came")?;
        if event.id.is_some() {
            self.last.clone_from(&event.id);
        }
        Ok(event)
    }

    pub async fn next(&mut self) -> Event {
        self.try_next().await.unwrap_or_else(|reason| panic!("it has ended: {reason}"))
    }

    /// The next event of this name; what comes before it is left out.
    pub async fn next_of(&mut self, name: &str) -> Event {
        loop {
            let event = self.next().await;
            if event.name == name {
                return event;
            }
        }
    }

    /// Ids of the tweets of all entries up to that of `tweet`.
    pub async fn entries_to(&mut self, tweet: &str) -> Vec<String> {
        let mut entries = Vec::new();
        loop {
            let entry = self.next_of("entry").await;
            entries.push(entry.data["id"].as_str().unwrap().to_owned());
            if entries.last().is_some_and(|last| last == tweet) {
                return entries;
            }
        }
    }

    /// Waits for the end, and gives its reason.
    pub async fn reason(&mut self) -> String {
        loop {
            match self.try_next().await {
                Ok(event) if event.name == "closed" => return event.data["reason"].as_str().unwrap().to_owned(),
                Ok(_) => {}
                Err(reason) => return reason,
            }
        }
    }

    pub async fn say(&mut self, message: Message) {
        let Wire::Socket(socket) = &mut self.wire else { panic!("only a socket takes messages") };
        // It may be closed already, for what was said before.
        let _ = socket.send(message).await;
    }
}

impl Wire {
    pub async fn next(&mut self) -> Result<Event, String> {
        match self {
            Wire::Events { response, text } => loop {
                if let Some((event, rest)) = text.split_once("\n\n") {
                    let (event, rest) = (event.to_owned(), rest.to_owned());
                    *text = rest;
                    let field = |name: &str| {
                        event.lines().find_map(|line| line.strip_prefix(name)).map(|value| value.trim().to_owned())
                    };
                    // Otherwise a comment, or the pause before the client comes again.
                    if let Some(name) = field("event:") {
                        let data = serde_json::from_str(&field("data:").unwrap()).unwrap();
                        return Ok(Event { name, id: field("id:"), data });
                    }
                    continue;
                }
                match response.chunk().await {
                    Ok(Some(chunk)) => text.push_str(std::str::from_utf8(&chunk).unwrap()),
                    ended => return Err(format!("{ended:?}")),
                }
            },
            Wire::Socket(socket) => loop {
                match socket.next().await {
                    Some(Ok(Message::Text(text))) => {
                        let mut event: Value = serde_json::from_str(&text).unwrap();
                        return Ok(Event {
                            name: event["event"].as_str().unwrap().to_owned(),
                            id: event["id"].as_str().map(ToOwned::to_owned),
                            data: event["data"].take(),
                        });
                    }
                    Some(Ok(Message::Close(Some(frame)))) => return Err(frame.reason.to_string()),
                    Some(Ok(_)) => {}
                    ended => return Err(format!("{ended:?}")),
                }
            },
        }
    }
}
