//! How much may be asked, from where, and in what form it is answered.

use std::task::Poll;
use std::time::Duration;

use axum::Router;
use axum::body::Body;
use axum::http::{HeaderMap, Request, header};
use feedmill_api::{PoolLimits, RateLimits, Settings, pool};
use futures::StreamExt;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::world::{Account, Answer, PASSWORD, World, ask, patient, registration, request};

/// Another instance with these settings.
fn limited(world: &World, limits: RateLimits) -> Router {
    world.instance(|state| state.settings.rate_limits = limits)
}

async fn log_in(router: &Router, name: &str, password: &str, from: Option<&str>) -> Answer {
    let body = json!({ "username": name, "password": password });
    let mut asked = request("POST", "/api/auth/login", None, Some(body));
    if let Some(from) = from {
        asked.headers_mut().insert("x-forwarded-for", from.parse().unwrap());
    }
    ask(router, asked).await
}

async fn get(router: &Router, path: &str, viewer: Option<&Account>) -> Answer {
    ask(router, request("GET", path, viewer, None)).await
}

#[tokio::test(flavor = "multi_thread")]
async fn c56_sign_ins_are_limited_by_name_and_by_address() {
    let world = World::new("sign_ins").await;
    world.register("ada").await;
    let router = limited(&world, RateLimits { login_user: 3, ..RateLimits::NONE });
    for _ in 0..3 {
        log_in(&router, "ada", "wrong password", None).await.is_problem(401, "invalid-credentials");
    }
    // The right password is no better, under no spelling of the name.
    for name in ["ada", "ADA", "aDa"] {
        let refused = log_in(&router, name, PASSWORD, None).await;
        refused.is_problem(429, "rate-limited");
        let seconds: u64 = refused.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=60).contains(&seconds), "{refused:?}");
    }
    // A name that nobody has is limited likewise, and others go on.
    for _ in 0..3 {
        log_in(&router, "nobody", PASSWORD, None).await.is_problem(401, "invalid-credentials");
    }
    log_in(&router, "nobody", PASSWORD, None).await.is_problem(429, "rate-limited");
    world.register("ben").await;
    log_in(&router, "ben", PASSWORD, None).await.is(200);

    let router = world.instance(|state| {
        state.settings.rate_limits = RateLimits { login_address: 3, ..RateLimits::NONE };
        state.settings.trusted_proxies = vec!["0.0.0.0/32".parse().unwrap()];
    });
    for name in ["ada", "ben", "nobody"] {
        log_in(&router, name, "wrong password", Some("192.0.2.7")).await.is_problem(401, "invalid-credentials");
    }
    let refused = log_in(&router, "ada", PASSWORD, Some("192.0.2.7")).await;
    refused.is_problem(429, "rate-limited");
    assert_eq!(refused.header("ratelimit-policy"), Some("\"login-address\";q=3;w=60"));
    // What stands before a trusted proxy's word is anybody's.
    log_in(&router, "ada", PASSWORD, Some("198.51.100.1, 192.0.2.7")).await.is_problem(429, "rate-limited");
    log_in(&router, "ada", PASSWORD, Some("192.0.2.8")).await.is(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn c56_nobody_is_kept_out_by_the_attempts_of_another() {
    let world = World::new("kept_out").await;
    let ada = world.register("ada").await;
    let router = world.instance(|state| {
        state.settings.rate_limits = RateLimits { login_user: 2, login_name: 5, ..RateLimits::NONE };
        state.settings.trusted_proxies = vec!["0.0.0.0/32".parse().unwrap()];
    });
    // Who tries from one address keeps out that address alone, however often.
    for attempt in 0..10 {
        let refused = log_in(&router, "ada", "wrong password", Some("192.0.2.1")).await;
        assert_eq!(refused.status, if attempt < 2 { 401 } else { 429 }, "{refused:?}");
    }
    log_in(&router, "ada", PASSWORD, Some("192.0.2.2")).await.is(200);
    // What comes from many addresses is bounded too.
    for (from, status) in [("192.0.2.2", 401), ("192.0.2.3", 401), ("192.0.2.3", 429), ("192.0.2.4", 429)] {
        assert_eq!(log_in(&router, "ada", "wrong password", Some(from)).await.status, status, "{from}");
    }

    // A password that confirms something is counted for who is signed in, and for nobody else.
    for _ in 0..4 {
        log_in(&router, &format!("#{}", ada.id), "wrong password", Some("192.0.2.5")).await;
    }
    let change = || {
        let body = json!({ "password": "wrong password", "newPassword": "staple battery" });
        ask(&router, request("POST", "/api/auth/password", Some(&ada), Some(body)))
    };
    for _ in 0..2 {
        change().await.is_problem(403, "wrong-password");
    }
    change().await.is_problem(429, "rate-limited");
}

#[tokio::test(flavor = "multi_thread")]
async fn c56_a_name_has_one_spelling_also_where_the_database_folds_more_letters() {
    let world = World::new("one_spelling").await;
    let source = world.in_locale("folding", "C.UTF-8").await;
    let folded = source.connect("test").await.unwrap().query_one("SELECT lower('İKN')", &[]).await.unwrap();
    assert_eq!(folded.get::<_, &str>(0), "ikn", "the database folds what is no letter A to Z");
    let router = world.instance(|state| {
        state.pool = pool(&source, "test", PoolLimits { size: 2, ..PoolLimits::default() }).unwrap();
    });
    ask(&router, request("POST", "/api/auth/register", None, Some(registration("ikn")))).await.is(201);
    log_in(&router, "IKN", PASSWORD, None).await.is(200);
    for name in ["İKN", "i\u{212a}n"] {
        log_in(&router, name, PASSWORD, None).await.is_problem(401, "invalid-credentials");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn exports_are_few_at_a_time_and_a_minute_and_their_pages_are_small() {
    let world = World::new("exports").await;
    let mut users = Vec::new();
    for number in 0..5 {
        users.push(world.register_cheaply(number).await);
    }
    let begin = |router: &Router, by: &Account| {
        let export = request("GET", "/api/users/me/export", Some(by), None);
        tower::ServiceExt::oneshot(router.clone(), export)
    };
    // They go on until they were taken.
    let mut under_way = Vec::new();
    for user in &users[..4] {
        let begun = begin(&world.router, user).await.unwrap();
        assert_eq!(begun.status(), 200);
        under_way.push(begun);
    }
    let refused = world.get("/api/users/me/export", Some(&users[4])).await;
    refused.is_problem(503, "overloaded");
    drop(under_way.pop());
    // A user has one.
    world.get("/api/users/me/export", Some(&users[0])).await.is_problem(503, "overloaded");
    let whole = world.get("/api/users/me/export", Some(&users[4])).await;
    assert!(whole.status == 200 && whole.text.ends_with("{\"kind\":\"end\",\"lines\":1}\n"), "{whole:?}");
    drop(under_way);

    let many = format!(
        "INSERT INTO tweets (id, user_id, content, conversation_id)
         SELECT n, {}, 'tweet ' || n, n FROM generate_series(1, 120) AS n",
        users[0].id
    );
    world.run(&many).await;
    let mut body = begin(&world.router, &users[0]).await.unwrap().into_body().into_data_stream();
    let mut tweets = Vec::new();
    while let Some(page) = body.next().await {
        let page = String::from_utf8(page.unwrap().to_vec()).unwrap();
        tweets.push(page.lines().filter(|line| line.contains("\"kind\":\"tweet\"")).count());
    }
    assert!(tweets.iter().sum::<usize>() == 120 && tweets.iter().all(|tweets| *tweets <= 50), "{tweets:?}");

    let router = limited(&world, RateLimits { export_user: 1, ..RateLimits::NONE });
    get(&router, "/api/users/me/export", Some(&users[0])).await.is(200);
    let refused = get(&router, "/api/users/me/export", Some(&users[0])).await;
    refused.is_problem(429, "rate-limited");
    assert_eq!(refused.header("ratelimit-policy"), Some("\"export-user\";q=1;w=60"));
    get(&router, "/api/users/me/export", Some(&users[1])).await.is(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_user_and_each_address_has_so_many_requests_a_minute() {
    let world = World::new("limits").await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    world.catch_up().await;
    let limits = RateLimits { read_user: 3, read_address: 2, write_user: 1, search_user: 1, ..RateLimits::NONE };
    let router = limited(&world, limits);
    for left in [2, 1, 0] {
        let answer = get(&router, "/api/timeline", Some(&ada)).await;
        answer.is(200);
        assert_eq!(answer.header("ratelimit-policy"), Some("\"read-user\";q=3;w=60"));
        let told = answer.header("ratelimit").unwrap();
        assert!(told.starts_with(&format!("\"read-user\";r={left};t=")), "{told}");
    }
    let refused = get(&router, "/api/users/ben", Some(&ada)).await;
    refused.is_problem(429, "rate-limited");
    assert!(refused.header("ratelimit").unwrap().starts_with("\"read-user\";r=0;t="), "{refused:?}");
    // Others, and whoever has not signed in, are counted apart; a token that is no good is nobody's.
    get(&router, "/api/timeline", Some(&ben)).await.is(200);
    get(&router, "/api/users/ben", None).await.is(200);
    let forged = Account { id: ben.id.clone(), token: format!("{}x", ben.token) };
    get(&router, "/api/timeline", Some(&forged)).await.is_problem(401, "unauthenticated");
    get(&router, "/api/users/ben", None).await.is_problem(429, "rate-limited");
    // Writes are counted apart from reads, and what is not below /api is not counted.
    let post = || request("POST", "/api/tweets", Some(&ada), Some(json!({ "content": "x" })));
    ask(&router, post()).await.is(201);
    ask(&router, post()).await.is_problem(429, "rate-limited");
    for _ in 0..5 {
        assert!(get(&router, "/health", None).await.header("ratelimit").is_none());
    }
    // Where users have no limit, that of their address is not theirs.
    let router = limited(&world, RateLimits { read_address: 1, ..RateLimits::NONE });
    for _ in 0..3 {
        get(&router, "/api/timeline", Some(&ada)).await.is(200);
    }
    let metrics = world.get("/metrics", None).await;
    assert!(metrics.text.contains("feedmill_http_rate_limited_total{limit=\"read-user\"}"), "{}", metrics.text);
}

/// A request whose body never comes; `begun` is told when it is waited for.
fn endless(account: &Account, begun: mpsc::UnboundedSender<()>) -> Request<Body> {
    let mut never = request("POST", "/api/tweets", Some(account), None);
    never.headers_mut().insert(header::CONTENT_TYPE, "application/json".parse().unwrap());
    *never.body_mut() = Body::from_stream(futures::stream::poll_fn(move |_| {
        begun.send(()).unwrap();
        Poll::<Option<Result<&[u8], std::io::Error>>>::Pending
    }));
    never
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_much_at_a_time_is_turned_away_and_takes_no_place_of_others() {
    let world = World::new("shed").await;
    let ada = world.register("ada").await;
    world.catch_up().await;
    let router = world.instance(|state| {
        state.settings = Settings { requests_max: 4, request_timeout: Duration::from_secs(10), ..patient() };
        state.settings.read_wait = Duration::ZERO;
        state.settings.narrowing_wait = Duration::ZERO;
    });
    // Half of four places for writes.
    let (begun, mut beginnings) = mpsc::unbounded_channel();
    let under_way: Vec<_> = (0..2)
        .map(|_| {
            let (router, request) = (router.clone(), endless(&ada, begun.clone()));
            tokio::spawn(async move { ask(&router, request).await })
        })
        .collect();
    for _ in &under_way {
        beginnings.recv().await.unwrap();
    }
    let posted = || request("POST", "/api/tweets", Some(&ada), Some(json!({ "content": "x" })));
    let shed = ask(&router, posted()).await;
    shed.is_problem(503, "overloaded");
    // Reads and sign-ins have places of their own.
    get(&router, "/api/timeline", Some(&ada)).await.is(200);
    log_in(&router, "ada", PASSWORD, None).await.is(200);
    for request in under_way {
        request.await.unwrap().is_problem(503, "timed-out");
    }
    ask(&router, posted()).await.is(201);
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_of_other_origins_may_ask_where_it_is_allowed() {
    let world = World::new("cors").await;
    world.register("ada").await;
    world.catch_up().await;
    let from = |method: &str, origin: &str| {
        let mut asked = request(method, "/api/users/ada", None, None);
        asked.headers_mut().insert(header::ORIGIN, origin.parse().unwrap());
        asked.headers_mut().insert(header::ACCESS_CONTROL_REQUEST_METHOD, "DELETE".parse().unwrap());
        asked
    };
    // Nobody, unless it is said.
    let answer = ask(&world.router, from("GET", "https://app.example")).await;
    assert!(answer.header("access-control-allow-origin").is_none(), "{answer:?}");

    let allowed = |origins: &'static [&'static str]| {
        world.instance(|state| {
            state.settings.cors_origins = origins.iter().map(|origin| origin.parse().unwrap()).collect();
        })
    };
    let router = allowed(&["https://app.example", "https://beta.example"]);
    let preflight = ask(&router, from("OPTIONS", "https://beta.example")).await;
    assert_eq!(preflight.status, 200, "{preflight:?}");
    assert_eq!(preflight.header("access-control-allow-origin"), Some("https://beta.example"));
    assert_eq!(preflight.header("access-control-allow-credentials"), Some("true"));
    assert!(preflight.header("access-control-allow-methods").unwrap().contains("DELETE"));
    for name in ["authorization", "x-consistency-token", "idempotency-key"] {
        assert!(preflight.header("access-control-allow-headers").unwrap().contains(name), "{preflight:?}");
    }
    let answer = ask(&router, from("GET", "https://app.example")).await;
    answer.is(200);
    assert_eq!(answer.header("access-control-allow-origin"), Some("https://app.example"));
    for name in ["x-consistency-token", "x-feedmill-time", "ratelimit", "retry-after"] {
        assert!(answer.header("access-control-expose-headers").unwrap().contains(name), "{answer:?}");
    }
    let stranger = ask(&router, from("GET", "https://evil.example")).await;
    assert!(stranger.header("access-control-allow-origin").is_none(), "{stranger:?}");

    let answer = ask(&allowed(&["*"]), from("GET", "https://evil.example")).await;
    assert_eq!(answer.header("access-control-allow-origin"), Some("*"));
    assert!(answer.header("access-control-allow-credentials").is_none(), "{answer:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_large_is_compressed_for_who_can_read_it() {
    let world = World::new("compressed").await;
    let ada = world.register("ada").await;
    for n in 0..20 {
        world.tweet(&ada, &format!("{n} and a text that is said again and again, and again, and again")).await;
    }
    world.catch_up().await;
    let plain = world.get("/api/timeline", Some(&ada)).await;
    assert!(plain.header("content-encoding").is_none() && plain.text.len() > 4_096, "{plain:?}");
    let accepting = async |path: &str, coding: &str| -> (HeaderMap, usize) {
        use tower::ServiceExt;
        let mut asked = request("GET", path, Some(&ada), None);
        asked.headers_mut().insert(header::ACCEPT_ENCODING, coding.parse().unwrap());
        let (head, body) = world.router.clone().oneshot(asked).await.unwrap().into_parts();
        (head.headers, axum::body::to_bytes(body, usize::MAX).await.unwrap().len())
    };
    for coding in ["gzip", "br"] {
        let (headers, bytes) = accepting("/api/timeline", coding).await;
        assert_eq!(headers[header::CONTENT_ENCODING], coding);
        assert!(headers.get_all(header::VARY).iter().any(|value| value == "accept-encoding"), "{headers:?}");
        assert!(bytes < plain.text.len() / 4, "{bytes} of {}", plain.text.len());
    }
    let (headers, _) = accepting("/api/users/ada", "gzip").await;
    assert!(!headers.contains_key(header::CONTENT_ENCODING), "small");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_is_told_to_use_https_alone_where_it_is_set() {
    let world = World::new("hsts").await;
    assert!(world.get("/health", None).await.header("strict-transport-security").is_none());
    let router = world.instance(|state| state.settings.hsts = Duration::from_secs(31_536_000));
    let answer = ask(&router, request("GET", "/health", None, None)).await;
    assert_eq!(answer.header("strict-transport-security"), Some("max-age=31536000"));
    assert_eq!(answer.body["status"], Value::from("alive"));
}
