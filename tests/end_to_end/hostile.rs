//! Clients that mean harm, on the wire: slow, endless, too large, too many; and who tries passwords.

use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use crate::system::{LIMIT, System};

async fn connect(system: &System) -> TcpStream {
    TcpStream::connect(system.url.strip_prefix("http://").unwrap()).await.unwrap()
}

/// What comes back until the server closes, however it does so.
async fn until_closed(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let read = async {
        let mut bytes = [0; 4_096];
        while let Ok(count @ 1..) = stream.read(&mut bytes).await {
            answer.extend_from_slice(&bytes[..count]);
        }
    };
    timeout(LIMIT, read).await.expect("the server closes the connection");
    String::from_utf8_lossy(&answer).into_owned()
}

/// Sends bytes, as many as the server takes, and gives what comes back until it closes.
async fn send(system: &System, bytes: &[u8]) -> String {
    let mut stream = connect(system).await;
    let _ = stream.write_all(bytes).await;
    until_closed(&mut stream).await
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("")
}

#[tokio::test(flavor = "multi_thread")]
async fn c58_the_head_of_a_request_is_bounded_in_bytes_fields_and_time() {
    let system = System::start(&["--idle-seconds", "2"]).await;
    let get = |path: &str, fields: &str| format!("GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{fields}\r\n");
    let fine = send(&system, get("/health", "X-Field: y\r\n").as_bytes()).await;
    assert_eq!(status(&fine), "200", "{fine}");

    let long = send(&system, get(&format!("/api/users/{}", "a".repeat(9_000)), "").as_bytes()).await;
    assert_eq!(status(&long), "414", "{long}");
    assert!(long.contains("uri-too-long"), "{long}");
    let longer = send(&system, get(&format!("/api/users/{}", "a".repeat(200_000)), "").as_bytes()).await;
    assert!(["414", "431", ""].contains(&status(&longer)), "{longer}");
    let large = send(&system, get("/health", &format!("X-Field: {}\r\n", "y".repeat(60_000))).as_bytes()).await;
    assert!(["431", ""].contains(&status(&large)), "{large}");
    let many: String = (0..100).map(|n| format!("X-Field-{n}: y\r\n")).collect();
    let many = send(&system, get("/health", &many).as_bytes()).await;
    assert_eq!(status(&many), "431", "{many}");
    for nonsense in ["\u{0}\u{1}\u{2}\r\n\r\n", "GET /health\r\n\r\n", "GET /health HTTP/9.9\r\n\r\n"] {
        let refused = send(&system, nonsense.as_bytes()).await;
        assert!(["400", ""].contains(&status(&refused)), "{refused}");
    }

    // A byte now and then, as slow as it likes: the connection does not live longer for it.
    let mut slow = connect(&system).await;
    slow.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n").await.unwrap();
    let (mut from, mut to) = slow.into_split();
    let drip = tokio::spawn(async move {
        let mut pause = tokio::time::interval(Duration::from_millis(100));
        loop {
            pause.tick().await;
            if to.write_all(b"X-Field: y\r\n").await.is_err() {
                return;
            }
        }
    });
    let mut answer = Vec::new();
    // It may be reset, since there is something that it did not read.
    let _ = timeout(LIMIT, from.read_to_end(&mut answer)).await.expect("it is cut");
    timeout(LIMIT, drip).await.expect("it is cut for the writer too").unwrap();
    assert!(!String::from_utf8_lossy(&answer).contains(" 200 "), "{answer:?}");

    // So is one that sends nothing, at the beginning or after an answer.
    assert!(["", "408"].contains(&status(&send(&system, b"").await)));
    let kept = send(&system, b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await;
    assert_eq!(status(&kept), "200", "{kept}");
    assert_eq!(system.get("/ready", None).await.status, 200);
}

#[tokio::test(flavor = "multi_thread")]
async fn c58_bodies_are_bounded_also_when_they_do_not_say_how_long_they_are() {
    let system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let post = |fields: &str| {
        format!(
            "POST /api/tweets HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Type: application/json\r\n\
             Authorization: Bearer {}\r\n{fields}\r\n\r\n",
            ada.token
        )
    };
    let announced = send(&system, post("Content-Length: 100000000").as_bytes()).await;
    assert_eq!(status(&announced), "413", "{announced}");
    let mut chunked = post("Transfer-Encoding: chunked").into_bytes();
    for _ in 0..100 {
        chunked.extend_from_slice(format!("1000\r\n{}\r\n", " ".repeat(4_096)).as_bytes());
    }
    let refused = send(&system, &chunked).await;
    // The rest of the body is in the way of the answer.
    assert!(["413", ""].contains(&status(&refused)), "{refused}");
    for fields in ["Content-Length: 5\r\nContent-Length: 6", "Content-Length: -1", "Transfer-Encoding: gzip"] {
        let refused = send(&system, post(fields).as_bytes()).await;
        assert!(["400", "501", ""].contains(&status(&refused)), "{fields}: {refused}");
    }
    let (tweet, token) = system.tweet(&ada, "still here").await;
    assert_eq!(system.home(&ada, Some(&token)).await, [tweet]);
}

#[tokio::test(flavor = "multi_thread")]
async fn c58_connections_are_bounded_and_one_that_finds_no_place_is_told() {
    for bound in ["--connections-max", "--connections-per-address"] {
        connections_are_bounded(System::start(&[bound, "8"]).await).await;
    }
}

async fn connections_are_bounded(system: System) {
    let mut held = Vec::new();
    // The harness has one or more of its own.
    let refused = loop {
        let mut stream = connect(&system).await;
        stream.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").await.unwrap();
        let mut bytes = [0; 16];
        let count = timeout(LIMIT, stream.read(&mut bytes)).await.expect("an answer").unwrap();
        match String::from_utf8_lossy(&bytes[..count]).contains("503") {
            true => break String::from_utf8_lossy(&bytes[..count]).into_owned() + &until_closed(&mut stream).await,
            false => held.push(stream),
        }
        assert!(held.len() <= 8, "they are not bounded");
    };
    assert!(refused.contains("Retry-After: 1") && refused.contains("overloaded"), "{refused}");
    drop(held);
    system.until("there are places again", async |system| system.get("/ready", None).await.status == 200).await;
    assert!(system.metric("feedmill_http_shed_total").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn c56_an_unknown_name_costs_the_work_of_a_wrong_password_and_has_its_answer() {
    let system = System::start(&[]).await;
    system.register("ada").await;
    let gone = system.register("gone").await;
    let sql = system.sql().await;
    sql.batch_execute(
        "INSERT INTO accounts (user_id, username) VALUES (1, 'imported');
         INSERT INTO users (id, username, display_name) VALUES (1, 'imported', 'Imported')",
    )
    .await
    .unwrap();
    let id: i64 = gone.id.parse().unwrap();
    sql.execute("UPDATE users SET deleted_at = now() WHERE id = $1", &[&id]).await.unwrap();
    let mut answers = Vec::new();
    for (name, password) in [
        ("ada", "wrong password"),
        ("nobody", "correct horse battery"),
        ("imported", "correct horse battery"),
        ("gone", "correct horse battery"),
        ("ada", ""),
    ] {
        let before = system.metric("feedmill_password_seconds_count").await;
        let answer = system.http.post(format!("{}/api/auth/login", system.url));
        let answer = answer.json(&json!({ "username": name, "password": password })).send().await.unwrap();
        // Whatever differs would tell the two apart.
        let mut fields: Vec<String> =
            answer.headers().iter().map(|(name, value)| format!("{name}: {value:?}")).collect();
        fields.retain(|field| !field.starts_with("x-request-id") && !field.starts_with("date"));
        fields.sort();
        answers.push((answer.status().as_u16(), fields, answer.text().await.unwrap()));
        let hashed = system.metric("feedmill_password_seconds_count").await - before;
        assert_eq!(hashed, 1.0, "{name}: one hash, as for each other");
    }
    assert_eq!(answers[0].0, 401);
    answers.dedup();
    assert_eq!(answers.len(), 1, "{answers:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c56_a_flood_of_sign_ins_takes_nothing_from_reads() {
    let system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let flood: Vec<_> = (0..400)
        .map(|n| {
            let login = system.http.post(format!("{}/api/auth/login", system.url));
            let login = login.json(&json!({ "username": format!("n{n}"), "password": "wrong password" }));
            tokio::spawn(async move { login.send().await.unwrap().status().as_u16() })
        })
        .collect();
    system.until("passwords wait", async |system| system.metric("feedmill_passwords_waiting").await > 0.0).await;
    // While it lasts, each read is answered; the flood is answered too, or turned away, and nothing is lost.
    let mut reads = 0;
    while !flood.iter().all(tokio::task::JoinHandle::is_finished) {
        assert_eq!(system.get("/api/timeline", Some(&ada)).await.status, 200);
        reads += 1;
    }
    assert!(reads > 0);
    let mut turned_away = 0;
    for login in flood {
        match login.await.unwrap() {
            401 => {}
            503 => turned_away += 1,
            other => panic!("{other}"),
        }
    }
    assert!(turned_away > 0, "as many as wait are bounded");
    let login = system.post("/api/auth/login", None, json!({ "username": "ada", "password": "correct horse battery" }));
    assert_eq!(login.await.status, 200);
    let limited = System::start(&["--limit-login-user", "2"]).await;
    let wrong = json!({ "username": "ada", "password": "wrong password" });
    let statuses: Vec<u16> = [
        limited.post("/api/auth/login", None, wrong.clone()).await.status,
        limited.post("/api/auth/login", None, wrong.clone()).await.status,
        limited.post("/api/auth/login", None, wrong).await.status,
    ]
    .into();
    assert_eq!(statuses, [401, 401, 429]);
    assert_eq!(limited.metric("feedmill_http_rate_limited_total").await, 1.0);
    assert_eq!(limited.get("/api/users/nobody", None).await.body["error"], Value::from("user-not-found"));
}
