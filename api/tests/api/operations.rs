//! What operators see, and how the API stands when something else does not.

use std::sync::atomic::Ordering;
use std::time::Duration;

use axum::body::Body;
use axum::http::{Request, header};
use feedmill_api::{PoolLimits, pool};
use serde_json::{Value, json};

use crate::mirror::Mood;
use crate::world::{PASSWORD, World, ask, request};

#[tokio::test(flavor = "multi_thread")]
async fn it_says_whether_it_lives_and_serves() {
    let world = World::new("ready").await;
    world.get("/health", None).await.is(200);
    assert_eq!(world.get("/ready", None).await.is(200)["status"], "serving");
    world.serving.0.store(false, Ordering::SeqCst);
    assert_eq!(world.get("/health", None).await.is(200)["status"], "alive");
    let starting = world.get("/ready", None).await;
    starting.is_problem(503, "starting");
    let load = &starting.body["stages"][1];
    assert_eq!(
        (&load["name"], &load["done"], &load["detail"]),
        (&json!("load"), &json!(false), &json!("3 of 4 slices"))
    );
    for path in ["/api/users/ada", "/api/timeline"] {
        world.get(path, None).await.is_problem(503, "starting");
    }
    world.post("/api/auth/login", None, json!({})).await.is_problem(503, "starting");
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_told_to_come_again_while_views_are_built_again_and_writes_go_on() {
    let world = World::new("rebuilding").await;
    let ada = world.register("ada").await;
    world.serving.1.store(true, Ordering::SeqCst);
    for path in ["/ready", "/api/users/ada", "/api/timeline", "/api/auth/verify"] {
        let answer = world.get(path, Some(&ada)).await;
        answer.is_problem(503, "rebuilding");
        assert_eq!(answer.headers["retry-after"], "1");
        assert_eq!(answer.body["detail"], "The rows are being built again: 41 %.");
    }
    world.get("/health", None).await.is(200);
    world.mirror.set_mood(Mood::Rebuilding);
    let posted = world.post("/api/tweets", Some(&ada), json!({ "content": "meanwhile" })).await;
    assert_eq!(posted.is(201)["author"]["username"], "ada");
    let login = || world.post("/api/auth/login", None, json!({ "username": "ada", "password": PASSWORD }));
    assert_eq!(login().await.is(200)["user"]["username"], "ada");
    world.serving.1.store(false, Ordering::SeqCst);
    // A read that had begun before.
    world.get("/api/timeline", Some(&ada)).await.is_problem(503, "rebuilding");
    world.run("UPDATE users SET deleted_at = now() WHERE username = 'ada'").await;
    world.post("/api/tweets", Some(&ada), json!({ "content": "too late" })).await.is_problem(401, "unauthenticated");
    world.run("UPDATE users SET deleted_at = NULL WHERE username = 'ada'").await;
    world.mirror.set_mood(Mood::Well);
    world.get("/api/timeline", Some(&ada)).await.is(200);
    world.get("/ready", None).await.is(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_by_route_and_not_by_path() {
    let world = World::new("metrics").await;
    world.get("/api/tweets/998877665544", None).await.is_problem(404, "tweet-not-found");
    world.get("/nothing/here/998877665544", None).await.is_problem(404, "not-found");
    let odd = request("BREW", "/api/timeline", None, None);
    ask(&world.router, odd).await.is_problem(405, "method-not-allowed");
    let metrics = world.get("/metrics", None).await;
    assert_eq!(metrics.status, 200);
    for line in [
        "method=\"GET\",route=\"/api/tweets/{id}\",status=\"404\"",
        "method=\"GET\",route=\"none\",status=\"404\"",
        "method=\"other\",route=\"/api/timeline\",status=\"405\"",
        "feedmill_pool_connections_max{pool=\"primary\"} 4",
    ] {
        assert!(metrics.text.contains(line), "{line} is not in\n{}", metrics.text);
    }
    assert!(!metrics.text.contains("998877665544"));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_signed_in_user_is_noted_as_active_once_a_day() {
    let world = World::new("activity").await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    world.run("TRUNCATE activity").await;
    world.get("/api/users/ada", None).await;
    for _ in 0..3 {
        world.get("/api/timeline", Some(&ada)).await.is(200);
    }
    let noted = "SELECT count(*) FROM activity WHERE day = (now() AT TIME ZONE 'UTC')::date AND user_id = ";
    world.until_count(&format!("{noted}{}", ada.id), 1).await;
    world.post("/api/auth/login", None, json!({ "username": "ben", "password": PASSWORD })).await.is(200);
    world.until_count(&format!("{noted}{}", ben.id), 1).await;
    assert_eq!(world.count("SELECT count(*) FROM activity").await, 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_go_on_without_postgresql() {
    let world = World::new("away").await;
    let ada = world.register("ada").await;
    world.tweet(&ada, "still there").await;
    world.catch_up().await;
    let away = world.instance(|state| {
        let source = "host=/nowhere user=feedmill dbname=feedmill".parse().unwrap();
        let limit = Duration::from_millis(100);
        let limits = PoolLimits { size: 2, wait: limit, create: limit, recycle: limit };
        state.pool = pool(&source, "test", limits).unwrap();
    });
    for path in ["/api/timeline", "/api/users/ada", "/api/users/ada/tweets", "/api/auth/verify"] {
        ask(&away, request("GET", path, Some(&ada), None)).await.is(200);
    }
    for (method, path, body) in [
        ("POST", "/api/tweets", json!({ "content": "x" })),
        ("POST", "/api/follows/1", Value::Null),
        ("DELETE", "/api/follows/1", Value::Null),
        ("DELETE", "/api/tweets/1", Value::Null),
        ("POST", "/api/auth/login", json!({ "username": "ada", "password": PASSWORD })),
        ("POST", "/api/auth/register", crate::world::registration("ben")),
    ] {
        let answer = ask(&away, request(method, path, Some(&ada), Some(body))).await;
        answer.is_problem(503, "database-unavailable");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_comes_back_when_connections_were_lost() {
    let world = World::new("lost").await;
    let ada = world.register("ada").await;
    world
        .run(
            "SELECT pg_terminate_backend(pid) FROM pg_stat_activity
               WHERE datname = current_database() AND pid <> pg_backend_pid()",
        )
        .await;
    // A connection that was lost is noticed by its use at the latest.
    let mut last = world.post("/api/tweets", Some(&ada), json!({ "content": "x" })).await;
    for _ in 0..4 {
        if last.status == 201 {
            break;
        }
        last.is_problem(503, "database-unavailable");
        last = world.post("/api/tweets", Some(&ada), json!({ "content": "x" })).await;
    }
    last.is(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_holds_its_write_also_where_commits_are_not_flushed_by_default() {
    let world = World::new("asynchronous").await;
    world.run("ALTER DATABASE asynchronous SET synchronous_commit = off").await;
    let ada = world.register("ada").await;
    world.catch_up().await;
    let written = world.post("/api/tweets", Some(&ada), json!({ "content": "x" })).await;
    let impatient = world.instance(|state| state.settings.read_wait = Duration::ZERO);
    let mut after = request("GET", "/api/users/ada/tweets", None, None);
    after.headers_mut().insert("x-consistency-token", written.token().parse().unwrap());
    ask(&impatient, after).await.is_problem(503, "not-yet-visible");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_store_that_fails_and_a_defect_are_answered() {
    let world = World::new("broken").await;
    let ada = world.register("ada").await;
    world.mirror.set_mood(Mood::Broken);
    // Who signs in or writes is known to the database.
    let login = json!({ "username": "ada", "password": PASSWORD });
    let signed_in = world.post("/api/auth/login", None, login).await;
    assert_eq!(signed_in.is(200)["user"]["username"], "ada");
    world.post("/api/tweets", Some(&ada), json!({ "content": "x" })).await.is(201);
    world.get("/api/users/ada", None).await.is_problem(503, "views-unavailable");
    world.get("/api/timeline", Some(&ada)).await.is_problem(503, "views-unavailable");
    world.mirror.set_mood(Mood::Defective);
    world.get("/api/users/ada", None).await.is_problem(500, "internal");
    world.mirror.set_mood(Mood::Well);
    world.catch_up().await;
    world.get("/api/users/ada", None).await.is(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_that_takes_too_long_is_given_up() {
    let world = World::new("slow").await;
    let ada = world.register("ada").await;
    let hurried = world.instance(|state| {
        state.settings.request_timeout = Duration::from_millis(50);
        state.settings.read_wait = Duration::ZERO;
    });
    let mut never = request("POST", "/api/tweets", Some(&ada), None);
    never.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    *never.body_mut() = Body::from_stream(futures::stream::pending::<Result<&[u8], std::io::Error>>());
    ask(&hurried, never).await.is_problem(503, "timed-out");
}

#[tokio::test(flavor = "multi_thread")]
async fn bodies_are_bounded_and_must_be_json() {
    let world = World::new("bodies").await;
    let ada = world.register("ada").await;
    let post = |content_type: &str, body: Vec<u8>| {
        let mut request = request("POST", "/api/tweets", Some(&ada), None);
        request.headers_mut().insert(header::CONTENT_TYPE, content_type.parse().unwrap());
        *request.body_mut() = Body::from(body);
        request
    };
    let large = json!({ "content": "x".repeat(70_000) }).to_string().into_bytes();
    let refused = ask(&world.router, post("application/json", large)).await;
    refused.is_problem(413, "body-too-large");
    assert_eq!(refused.body["detail"], "The body may have 65536 bytes.");
    // One that says so at its beginning is refused before it comes.
    let mut announced = post("application/json", Vec::new());
    announced.headers_mut().insert(header::CONTENT_LENGTH, 65_537.into());
    *announced.body_mut() = Body::from_stream(futures::stream::pending::<Result<&[u8], std::io::Error>>());
    ask(&world.router, announced).await.is_problem(413, "body-too-large");
    for text in ["", "{", "{\"content\":", "nonsense", "{\"content\":\"\\ud800\"}", "{\"content\":\"a\"} b"] {
        ask(&world.router, post("application/json", text.into())).await.is_problem(400, "malformed-body");
    }
    ask(&world.router, post("application/json", vec![0xFF, 0xFE])).await.is_problem(400, "malformed-body");
    let deep = [vec![b'['; 30_000], vec![b']'; 30_000]].concat();
    assert!(ask(&world.router, post("application/json", deep)).await.status < 500);
    let form = ask(&world.router, post("application/x-www-form-urlencoded", b"content=x".into())).await;
    form.is_problem(415, "unsupported-media-type");
    world.post("/api/tweets", Some(&ada), Value::Null).await.is_problem(415, "unsupported-media-type");
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_and_methods_that_are_not_there_are_problems_too() {
    let world = World::new("paths").await;
    for path in ["/", "/api", "/api/", "/api/timeline/", "/api/users/", "/API/timeline", "/api//timeline", "/%00"] {
        world.get(path, None).await.is_problem(404, "not-found");
    }
    for (path, allow) in
        [("/api/timeline", "GET,HEAD"), ("/api/auth/login", "POST"), ("/api/tweets/1", "GET,HEAD,DELETE")]
    {
        let answer = ask(&world.router, request("PUT", path, None, None)).await;
        answer.is_problem(405, "method-not-allowed");
        assert_eq!(answer.header("allow"), Some(allow));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_keeps_a_harmless_id_and_is_given_one_otherwise() {
    let world = World::new("request_ids").await;
    let ask = async |id: &[u8]| {
        let request = Request::get("/health").header("x-request-id", id).body(Body::empty()).unwrap();
        ask(&world.router, request).await.header("x-request-id").unwrap().to_owned()
    };
    assert_eq!(ask(b"client-7.1_a").await, "client-7.1_a");
    for id in [&b""[..], b"two words", b"\xFF", b"<script>", &[b'x'; 65]] {
        let given = ask(id).await;
        assert!(given.len() == 32 && given.bytes().all(|byte| byte.is_ascii_hexdigit()), "{given}");
    }
}
