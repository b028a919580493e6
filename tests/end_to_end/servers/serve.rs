//! Processes that serve what another derives: any of them, as if there were one.

use std::time::Duration;

use feedmill_test_servers::{Cassandra, Elasticsearch};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::leaks::{hides_wherever_one_may_look, streams_end_with_what_one_may_see};
use crate::live::{BOTH, Stream, Transport};
use crate::postgres::Postgres;
use crate::system::{Session, System, ids};

/// Where the stores are.
struct Place {
    postgres: Postgres,
    store: String,
    search: String,
}

impl Place {
    async fn new(node: &Cassandra, server: &Elasticsearch, name: &str) -> Place {
        let postgres = Postgres::new(&[]).await;
        let store = format!("cql://{}/{name}", node.address());
        Place { postgres, store, search: format!("{}/{name}", server.url()) }
    }

    /// Who writes the stores; not started yet.
    fn writer(&self, settings: &[&str]) -> System {
        let mut writer = System::new(&[&["--store", &self.store, "--search", &self.search], settings].concat());
        writer.use_database(&self.postgres);
        writer
    }

    /// Who reads them, with the keys in the folder of `keys`; not started yet.
    fn reader(&self, keys: &System, settings: &[&str]) -> System {
        let keys = keys.data().join("keys").display().to_string();
        let of_place = ["--store", &self.store, "--search", &self.search, "--keys", &keys];
        let mut reader = System::new(&[&of_place, settings].concat());
        reader.mode = "serve";
        reader.use_database(&self.postgres);
        reader
    }
}

/// Leaves at once when it is stopped, and waits for writes as long as a busy machine takes.
const AT_ONCE: [&str; 4] = ["--drain-seconds", "0", "--read-wait-ms", "30000"];

/// A writer, and two who serve.
async fn start(place: &Place, settings: &[&str]) -> (System, System, System) {
    let mut writer = place.writer(settings);
    writer.go().await;
    let (mut one, mut other) = (place.reader(&writer, &AT_ONCE), place.reader(&writer, &AT_ONCE));
    one.go().await;
    other.go().await;
    (writer, one, other)
}

async fn ready(system: &System) -> (u16, Value) {
    let answer = system.get("/ready", None).await;
    (answer.status, answer.body)
}

#[tokio::test(flavor = "multi_thread")]
async fn what_one_writes_the_other_serves() {
    let place = Place::new(Cassandra::shared(), Elasticsearch::shared(), "serve_two").await;
    let (writer, one, other) = start(&place, &["--hot-followers", "2"]).await;
    let (ada, bob, eve) = (one.register("ada").await, other.register("bob").await, one.register("eve").await);
    // Sessions and tokens are good at each; what one ends the others refuse soon.
    let session = other.login("ada").await;
    let renewed = one.post("/api/auth/refresh", None, json!({ "refreshToken": session.refresh })).await.is(200);
    let renewed = Session::of(
        &json!({ "user": { "id": ada.id }, "token": renewed["token"], "refreshToken": renewed["refreshToken"] }),
    );
    other.get("/api/users/me", Some(&renewed.account)).await.is(200);
    one.post("/api/auth/logout", Some(&renewed.account), json!({ "refreshToken": renewed.refresh })).await;
    other
        .until("the session has ended", async |system| {
            system.get("/api/users/me", Some(&renewed.account)).await.status == 401
        })
        .await;

    // A write through one is read through the other by who has its token.
    other.post(&format!("/api/follows/{}", ada.id), Some(&bob), Value::Null).await.is(201);
    let mut posted = Vec::new();
    for n in 0..5 {
        let (id, token) = one.tweet(&ada, &format!("#marmots number {n}")).await;
        posted.insert(0, id);
        assert_eq!(other.home(&bob, Some(&token)).await, posted);
        let own = other.get_after(&token, "/api/users/ada/tweets", None).await.is(200);
        assert_eq!(ids(&own), posted);
        let profile = other.get_after(&token, "/api/users/ada", None).await.is(200);
        assert_eq!(profile["counts"]["tweets"], n + 1, "{profile}");
        let found = other.get_after(&token, "/api/search?q=marmots", Some(&bob)).await.is(200);
        assert_eq!(ids(&found), posted);
    }
    // So is the same request, once.
    let key = [("Idempotency-Key", "once")];
    let first = one.ask("POST", "/api/tweets", Some(&ada), &key, json!({ "content": "only once" })).await.is(201);
    let again = other.ask("POST", "/api/tweets", Some(&ada), &key, json!({ "content": "only once" })).await.is(201);
    assert_eq!(first, again);
    posted.insert(0, first["id"].as_str().unwrap().to_owned());

    // Streams of the one tell what is written through the other.
    let query = format!("?tweets={}", posted[0]);
    let mut streams = Vec::new();
    for transport in BOTH {
        streams.push(Stream::open(&other, transport, &bob, &query).await);
    }
    let (next, _) = one.tweet(&ada, "@bob look").await;
    posted.insert(0, next.clone());
    one.post(&format!("/api/tweets/{}/like", posted[1]), Some(&eve), Value::Null).await;
    for stream in &mut streams {
        let (mut entry, mut notice, mut counts) = (false, false, false);
        while !(entry && notice && counts) {
            let event = stream.next().await;
            entry |= event.name == "entry" && event.data["id"] == next;
            notice |= event.name == "notification" && event.data.to_string().contains(&next);
            counts |= event.name == "counts" && event.data["tweets"][0]["likes"] == 1;
        }
    }
    // An account that has become hot is in nobody's record.
    let followed = other.post(&format!("/api/follows/{}", ada.id), Some(&eve), Value::Null).await;
    let sql = writer.sql().await;
    writer
        .until("ada is hot", async |_| {
            sql.query_one("SELECT count(*) FROM popular", &[]).await.unwrap().get::<_, i64>(0) == 1
        })
        .await;
    let (_, token) = one.tweet(&eve, "she is hot").await;
    other.home(&eve, Some(&token)).await;
    other.get_after(followed.written(), "/api/timeline", Some(&eve)).await.is(200);
    let (hot, _) = one.tweet(&ada, "from a hot account").await;
    posted.insert(0, hot.clone());
    for stream in &mut streams {
        stream.entries_to(&hot).await;
    }
    // What was missed by who was away comes to who goes on elsewhere.
    let stream = streams.pop().unwrap();
    let (missed, token) = one.tweet(&ada, "missed").await;
    posted.insert(0, missed.clone());
    let mut stream = stream.again(&one, &bob, Transport::Socket).await;
    assert_eq!(stream.entries_to(&missed).await, std::slice::from_ref(&missed));
    assert_eq!(other.home(&bob, Some(&token)).await, posted);

    assert!(other.metric("feedmill_cache_reads_total").await > 0.0);
    let status = other.command(&["status"]).await;
    let printed = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.success() && printed.starts_with("serving"), "{printed}");
    for (asked, who) in
        [("verify", "writes the stores"), ("replay", "writes the stores"), ("resync", "writes the stores")]
    {
        let refused = other.command(&[asked]).await;
        let told = String::from_utf8_lossy(&refused.stderr).into_owned();
        assert!(refused.status.code() == Some(1) && told.contains(who), "{told}");
    }
    writer.verified().await;
    // Told to stop it goes on for a while, and says that it leaves.
    let mut leaving = place.reader(&writer, &["--drain-seconds", "3600"]);
    leaving.go().await;
    let mut stream = Stream::open(&leaving, Transport::Events, &bob, "").await;
    kill(leaving.pid(), Signal::SIGTERM).unwrap();
    leaving.until("it leaves", async |system| ready(system).await.0 == 503).await;
    assert_eq!(ready(&leaving).await.1["error"], "stopping");
    assert_eq!(leaving.home(&bob, None).await, posted);
    let (last, _) = one.tweet(&ada, "while it leaves").await;
    stream.entries_to(&last).await;
    leaving.crash();
    leaving.wait();
    let mut streams = Vec::new();
    for transport in BOTH {
        streams.push(Stream::open(&other, transport, &bob, "").await);
    }
    let mut other = other;
    let reasons = async {
        for stream in &mut streams {
            assert_eq!(stream.reason().await, "shutdown");
        }
    };
    let stopped = async { tokio::task::spawn_blocking(move || (other.interrupt(), other.log())).await.unwrap() };
    let ((), ((status, took), log)) = tokio::join!(reasons, stopped);
    assert!(status.success() && took < Duration::from_secs(10), "{status} after {took:?}\n{log}");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_serves_waits_for_the_stores_and_goes_on_when_they_are_back() {
    let node = Cassandra::start();
    let place = Place::new(&node, Elasticsearch::shared(), "serve_waits").await;
    // Nobody has filled them: it starts, and says what it waits for.
    let mut writer = place.writer(&[]);
    feedmill_api::Keys::load_or_create(&writer.data().join("keys")).unwrap();
    let mut reader = place.reader(&writer, &AT_ONCE);
    reader.listen().await;
    reader
        .until("it says that there is nothing", async |system| {
            let (status, body) = ready(system).await;
            status == 503 && body.to_string().contains("nothing to read yet")
        })
        .await;
    reader.get("/api/timeline/trending/tweets", None).await.is_problem(503, "starting");
    writer.go().await;
    reader.until("it is ready", async |system| ready(system).await.0 == 200).await;
    let ada = reader.register("ada").await;
    let (first, token) = reader.tweet(&ada, "first").await;
    assert_eq!(reader.home(&ada, Some(&token)).await, std::slice::from_ref(&first));
    // The node dies: reads fail, writes go on, and all is served when it is back.
    node.kill();
    let (second, _) = reader.tweet(&ada, "second").await;
    reader.until("reads fail", async |system| system.get("/api/timeline", Some(&ada)).await.status == 503).await;
    reader
        .until("it is said that facts stand still", async |system| {
            let told = system.get("/health", None).await.is(200);
            told["standsStill"]["stage"] == "facts" && told["status"] == "degraded"
        })
        .await;
    node.start_again();
    reader
        .until("both are served", async |system| {
            let answer = system.get("/api/timeline", Some(&ada)).await;
            answer.status == 200 && ids(&answer.body) == [second.clone(), first.clone()]
        })
        .await;
    // Built again, they cannot be read for a while.
    let replayed = writer.command(&["replay", "facts", "rows", "home"]);
    let refused = reader.until("reads are refused", async |system| {
        let answer = system.get("/api/timeline", Some(&ada)).await;
        assert!(answer.status == 503 || ids(&answer.body) == [second.clone(), first.clone()], "{answer:?}");
        answer.body["error"] == "rebuilding"
    });
    let (replayed, ()) = tokio::join!(replayed, refused);
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    let (third, token) = reader.tweet(&ada, "third").await;
    reader
        .until("the third is served", async |system| {
            let answer = system.get_after(&token, "/api/timeline", Some(&ada)).await;
            answer.status == 200 && ids(&answer.body) == [third.clone(), second.clone(), first.clone()]
        })
        .await;
    writer.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_not_told_enough_or_something_else_does_not_serve() {
    let mut reader = System::new(&["--store", "cql://127.0.0.1:1/feeds"]);
    reader.mode = "serve";
    let told = reader.expect_start_failure().await;
    for flag in ["--search http", "--database-url", "--keys FILE"] {
        assert!(told.contains(flag), "{told}");
    }
    assert!(!told.contains("--store cql://…"), "{told}");
    let place = Place::new(Cassandra::shared(), Elasticsearch::shared(), "serve_refuses").await;
    let mut writer = place.writer(&[]);
    let mut reader = place.reader(&writer, &AT_ONCE);
    let told = reader.expect_start_failure().await;
    assert!(told.contains("there is no key file"), "{told}");
    writer.go().await;
    // A database that the stores are not of.
    let other = Postgres::unlike_others(&[]).await;
    reader.use_database(&other);
    let told = reader.expect_start_failure().await;
    assert!(told.contains("was derived from system"), "{told}");
    reader.use_database(&place.postgres);
    reader.settings.extend(["--fanout-days", "7"].map(str::to_owned));
    let told = reader.expect_start_failure().await;
    assert!(told.contains("--fanout-days 30"), "{told}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c54_what_hides_an_account_hides_it_through_who_serves() {
    let place = Place::new(Cassandra::shared(), Elasticsearch::shared(), "serve_leaks").await;
    let (writer, one, _other) = start(&place, &[]).await;
    hides_wherever_one_may_look(&one).await;
    streams_end_with_what_one_may_see(&one).await;
    writer.verified().await;
}
