//! Who may open a stream, how many there may be, and how one ends.

use std::time::Duration;

use futures::StreamExt;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpSocket, TcpStream};
use tokio::time::timeout;
use tokio_tungstenite::client_async;
use tokio_tungstenite::tungstenite::Message;

use super::client::{BOTH, Stream, Transport, Wire, socket_request};
use super::{follow, run};
use crate::system::{Account, LIMIT, System};

#[tokio::test(flavor = "multi_thread")]
async fn a_ticket_opens_streams_and_nothing_else() {
    let system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let answer = system.post("/api/stream/ticket", Some(&ada), Value::Null).await;
    assert_eq!((answer.status, &answer.body["expiresIn"]), (201, &json!(30)), "{answer:?}");
    let ticket = answer.body["ticket"].as_str().unwrap();
    for transport in BOTH {
        let mut stream = Stream::connect(&system, transport, None, &format!("?ticket={ticket}")).await.unwrap();
        assert_eq!(stream.next().await.name, "open");
        let (tweet, _) = system.tweet(&ada, "mine").await;
        assert_eq!(stream.entries_to(&tweet).await, [tweet]);
        // Its last character stands for four bits of the signature: both are possible, and one is another.
        let (rest, last) = ticket.split_at(ticket.len() - 1);
        let altered = format!("?ticket={rest}{}", if last == "A" { "E" } else { "A" });
        for query in ["", "?ticket=", "?ticket=x", altered.as_str(), &format!("?ticket={}", ada.token)] {
            let refused = Stream::connect(&system, transport, None, query).await;
            let (status, problem) = refused.err().unwrap_or_else(|| panic!("{query} opened a stream"));
            assert_eq!((status, &problem["error"]), (401, &json!("unauthenticated")), "{query}");
        }
    }
    let as_token = Account { token: ticket.to_owned(), ..ada.clone() };
    assert_eq!(system.get("/api/timeline", Some(&as_token)).await.status, 401);
    assert_eq!(system.post("/api/stream/ticket", None, Value::Null).await.status, 401);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_ends_with_its_token_and_with_its_account() {
    let system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let keys = feedmill_api::Keys::load_or_create(&system.data().join("keys")).unwrap();
    for transport in BOTH {
        let token = keys.token_for(ada.id.parse().unwrap(), Duration::from_secs(2)).unwrap();
        let short = Account { token, ..ada.clone() };
        let mut stream = Stream::open(&system, transport, &short, "").await;
        assert_eq!(stream.reason().await, "expired", "{transport:?}");
    }
    let session = system.login("ada").await.account;
    let ticket = system.post("/api/stream/ticket", Some(&session), Value::Null).await.is(201);
    let by_ticket = format!("?ticket={}", ticket["ticket"].as_str().unwrap());
    let mut streams = vec![Stream::connect(&system, Transport::Events, None, &by_ticket).await.unwrap()];
    for transport in BOTH {
        streams.push(Stream::open(&system, transport, &session, "").await);
    }
    system.post("/api/auth/logout", Some(&session), Value::Null).await.is(204);
    // Something to tell, which is not told any more.
    let (tweet, _) = system.tweet(&ada, "Who listens?").await;
    for stream in &mut streams {
        let mut told = Vec::new();
        let reason = loop {
            match stream.try_next().await {
                Ok(event) if event.name == "closed" => break event.data["reason"].clone(),
                Ok(event) => told.push(event.data.to_string()),
                Err(reason) => break reason.into(),
            }
        };
        assert_eq!(reason, "signed-out");
        assert!(!told.iter().any(|data| data.contains(&tweet)), "{told:?}");
    }
    let mut streams = Vec::new();
    for transport in BOTH {
        streams.push(Stream::open(&system, transport, &ada, "").await);
    }
    run(&system, &format!("UPDATE users SET deleted_at = now() WHERE id = {}", ada.id)).await;
    for stream in &mut streams {
        assert_eq!(stream.reason().await, "account-deleted");
    }
    system.until("nobody listens", async |system| system.metric("feedmill_stream_clients").await == 0.0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_no_message_ends_a_socket_and_nothing_more() {
    let system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let many: Vec<String> = (0..101).map(|id| id.to_string()).collect();
    let bad = [
        Message::text("nonsense"),
        Message::text("[]"),
        Message::text(json!({ "watch": ["x"] }).to_string()),
        Message::text(json!({ "watch": ["01"] }).to_string()),
        Message::text(json!({ "watch": [1] }).to_string()),
        Message::text(json!({ "watch": [], "more": 1 }).to_string()),
        Message::text(json!({ "watch": many }).to_string()),
        Message::binary(vec![0xFF; 16]),
    ];
    for message in bad {
        let mut stream = Stream::open(&system, Transport::Socket, &ada, "").await;
        stream.say(message.clone()).await;
        assert_eq!(stream.reason().await, "bad-message", "{message:?}");
    }
    let mut stream = Stream::open(&system, Transport::Socket, &ada, "").await;
    for _ in 0..20 {
        stream.say(Message::text(json!({ "watch": [] }).to_string())).await;
    }
    assert_eq!(stream.reason().await, "too-many-messages");
    let mut stream = Stream::open(&system, Transport::Socket, &ada, "").await;
    stream.say(Message::text(" ".repeat(100_000))).await;
    stream.reason().await;
    // No frame at all, where frames are expected.
    let host = system.url.trim_start_matches("http://");
    let mut raw = TcpStream::connect(host).await.unwrap();
    let head = format!(
        "GET /api/stream HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\nConnection: Upgrade\r\n\
         Upgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n",
        ada.token
    );
    raw.write_all(head.as_bytes()).await.unwrap();
    raw.write_all(&[0xFF; 64]).await.unwrap();
    let mut answer = Vec::new();
    let _ = timeout(LIMIT, raw.read_to_end(&mut answer)).await.expect("it is closed");
    assert!(answer.starts_with(b"HTTP/1.1 101 "), "{}", String::from_utf8_lossy(&answer));

    for query in ["?tweets=x", &format!("?tweets={}", many.join(",")), "?tweets=1&tweets=2"] {
        let (status, _) = Stream::connect(&system, Transport::Events, Some(&ada), query).await.err().unwrap();
        assert_eq!(status, 400, "{query}");
    }
    let half = system.http.get(format!("{}/api/stream", system.url)).bearer_auth(&ada.token);
    assert_eq!(half.header("upgrade", "websocket").send().await.unwrap().status(), 400);
    system.until("nobody listens", async |system| system.metric("feedmill_stream_clients").await == 0.0).await;
    assert_eq!(system.get("/health", None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn there_are_only_so_many_streams() {
    let system = System::start(&["--streams-max", "3", "--streams-per-user", "2"]).await;
    let (ada, bob) = (system.register("ada").await, system.register("bob").await);
    let refused = async |account: &Account, transport| {
        let (status, problem) = Stream::connect(&system, transport, Some(account), "").await.err().unwrap();
        (status, problem["error"].as_str().unwrap().to_owned())
    };
    let one = Stream::open(&system, Transport::Events, &ada, "").await;
    let _other = Stream::open(&system, Transport::Socket, &ada, "").await;
    for transport in BOTH {
        assert_eq!(refused(&ada, transport).await, (429, "too-many-streams".to_owned()));
    }
    let _third = Stream::open(&system, Transport::Socket, &bob, "").await;
    for transport in BOTH {
        assert_eq!(refused(&bob, transport).await, (503, "no-stream-left".to_owned()));
    }
    drop(one);
    let opens = async |system: &System| Stream::connect(system, Transport::Events, Some(&bob), "").await.is_ok();
    system.until("the place is free again", opens).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_shutdown_says_so_and_does_not_wait() {
    let mut system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let mut streams = Vec::new();
    for transport in BOTH {
        streams.push(Stream::open(&system, transport, &ada, "").await);
    }
    let reasons = tokio::spawn(async move {
        let mut reasons = Vec::new();
        for stream in &mut streams {
            reasons.push(stream.reason().await);
        }
        reasons
    });
    let (status, took) = system.interrupt();
    assert!(status.success() && took < Duration::from_secs(5), "{status} after {took:?}");
    assert_eq!(reasons.await.unwrap(), ["shutdown", "shutdown"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn silence_is_broken_and_a_client_that_does_not_answer_is_given_up() {
    let system = System::start(&["--stream-heartbeat-ms", "50"]).await;
    let ada = system.register("ada").await;
    let mut events = Stream::open(&system, Transport::Events, &ada, "").await;
    let Wire::Events { response, text } = &mut events.wire else { panic!() };
    while !text.contains(": alive\n\n") {
        text.push_str(std::str::from_utf8(&timeout(LIMIT, response.chunk()).await.unwrap().unwrap().unwrap()).unwrap());
    }
    let mut socket = Stream::open(&system, Transport::Socket, &ada, "").await;
    let Wire::Socket(listening) = &mut socket.wire else { panic!() };
    for _ in 0..5 {
        while !matches!(timeout(LIMIT, listening.next()).await.unwrap(), Some(Ok(Message::Ping(_)))) {}
    }
    // From now on nobody reads, so no ping is answered.
    system.until("it is given up", async |system| system.metric("feedmill_stream_closed_total").await == 1.0).await;
    assert_eq!(socket.reason().await, "silent");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_takes_nothing_is_dropped() {
    let system = System::start(&["--stream-stall-ms", "300"]).await;
    let (ada, bob) = (system.register("ada").await, system.register("bob").await);
    follow(&system, &ada, &bob).await;
    let host = system.url.trim_start_matches("http://");
    let connect = async || {
        let socket = TcpSocket::new_v4().unwrap();
        socket.set_recv_buffer_size(4_096).unwrap();
        socket.connect(host.parse().unwrap()).await.unwrap()
    };
    let mut events = connect().await;
    let head = format!("GET /api/stream HTTP/1.1\r\nHost: {host}\r\nAuthorization: Bearer {}\r\n\r\n", ada.token);
    events.write_all(head.as_bytes()).await.unwrap();
    let (_socket, _) = client_async(socket_request(&system, "", Some(&ada)), connect().await).await.unwrap();
    system.until("both listen", async |system| system.metric("feedmill_stream_clients").await == 2.0).await;
    let mut quick = Stream::open(&system, Transport::Socket, &ada, "").await;
    let sql = system.sql().await;
    let many = format!(
        "INSERT INTO tweets (id, user_id, content, conversation_id)
         SELECT id, {}, repeat('\u{1F980}', 280), id FROM (SELECT feedmill_id() AS id FROM generate_series(1, 90)) AS made",
        bob.id
    );
    // A client that takes what comes goes on as if nothing were the matter.
    while system.metric("feedmill_stream_closed_total").await < 2.0 {
        sql.batch_execute(&many).await.unwrap();
        for _ in 0..90 {
            quick.next_of("entry").await;
        }
    }
    assert_eq!(system.metric("feedmill_stream_clients").await, 1.0);
    let text = system.http.get(format!("{}/metrics", system.url)).send().await.unwrap().text().await.unwrap();
    assert!(text.contains("feedmill_stream_closed_total{reason=\"slow\"} 2"), "{text}");
    let (last, _) = system.tweet(&bob, "last").await;
    quick.entries_to(&last).await;
}
