//! Whatever is sent: an answer below 500, and no panic.

use axum::body::Body;
use axum::http::{HeaderName, HeaderValue, Method, Request, Uri};
use proptest::prelude::*;
use proptest::test_runner::{Config, TestCaseError, TestRunner};

use crate::world::{Account, World, ask};

#[derive(Clone, Debug)]
struct Hostile {
    method: String,
    path: String,
    query: String,
    signed_in: bool,
    headers: Vec<(&'static str, Vec<u8>)>,
    body: Vec<u8>,
}

/// A part of a path: what belongs there, what nearly does, and anything.
fn segment() -> impl Strategy<Value = String> {
    prop_oneof![
        any::<i64>().prop_map(|id| id.to_string()),
        (0..5_i64).prop_map(|id| id.to_string()),
        prop_oneof![Just("ada"), Just("u1"), Just("-"), Just("%ff"), Just("%00"), Just("%"), Just("..")]
            .prop_map(str::to_owned),
        "[!-~]{0,12}",
        any::<String>().prop_map(|text| encoded(&text)),
    ]
}

fn encoded(text: &str) -> String {
    text.bytes().map(|byte| format!("%{byte:02X}")).collect()
}

fn path() -> impl Strategy<Value = String> {
    let known = prop_oneof![
        Just("/api/auth/register"),
        Just("/api/auth/login"),
        Just("/api/auth/verify"),
        Just("/api/auth/refresh"),
        Just("/api/notifications/read"),
        Just("/api/tweets"),
        Just("/api/timeline"),
        Just("/api/timeline/trending/hashtags"),
        Just("/api/timeline/trending/tweets"),
        Just("/api/search"),
        Just("/api/suggestions"),
        Just("/api/follows/requests"),
        Just("/api/blocks"),
        Just("/api/mutes"),
        Just("/api/notifications"),
        Just("/api/notifications/unread"),
        Just("/health"),
        Just("/ready"),
        Just("/metrics"),
    ]
    .prop_map(str::to_owned);
    prop_oneof![
        2 => known,
        2 => segment().prop_map(|id| format!("/api/tweets/{id}")),
        3 => (segment(), prop_oneof![Just("conversation"), Just("ancestors"), Just("likes"), Just("retweets")])
            .prop_map(|(id, list)| format!("/api/tweets/{id}/{list}")),
        1 => segment().prop_map(|tag| format!("/api/timeline/search/hashtag/{tag}")),
        2 => segment().prop_map(|id| format!("/api/follows/{id}")),
        2 => (segment(), prop_oneof![Just("like"), Just("retweet")]).prop_map(|(id, what)| format!("/api/tweets/{id}/{what}")),
        2 => (prop_oneof![Just("blocks"), Just("mutes")], segment()).prop_map(|(list, id)| format!("/api/{list}/{id}")),
        1 => (segment(), prop_oneof![Just("accept"), Just("reject")])
            .prop_map(|(id, what)| format!("/api/follows/requests/{id}/{what}")),
        2 => (segment(), prop_oneof![Just("followers"), Just("following")])
            .prop_map(|(id, list)| format!("/api/follows/{id}/{list}")),
        2 => segment().prop_map(|name| format!("/api/users/{name}")),
        2 => segment().prop_map(|name| format!("/api/users/{name}/tweets")),
        1 => proptest::collection::vec(segment(), 0..5).prop_map(|parts| format!("/{}", parts.join("/"))),
    ]
}

fn query() -> impl Strategy<Value = String> {
    let value = prop_oneof![
        (0..200_u32).prop_map(|number| number.to_string()),
        "[A-Za-z0-9_-]{0,64}",
        "AW[a-zA-Z][A-Za-z0-9_-]{0,40}",
        prop_oneof![Just("1h"), Just("users"), Just("relevance"), Just("author-first"), Just("a"), Just("from:a%20b")]
            .prop_map(str::to_owned),
        any::<String>().prop_map(|text| encoded(&text)),
        "[!-~]{0,12}",
    ];
    let name = prop_oneof![
        Just("limit"),
        Just("cursor"),
        Just("replies"),
        Just("order"),
        Just("window"),
        Just("q"),
        Just("type"),
        Just("sort"),
        Just("x"),
        Just("")
    ];
    proptest::collection::vec((name, value), 0..4)
        .prop_map(|all| all.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join("&"))
}

fn body() -> impl Strategy<Value = Vec<u8>> {
    let value = prop_oneof![
        any::<String>().prop_map(|text| serde_json::json!(text)),
        any::<i64>().prop_map(|number| serde_json::json!(number)),
        Just(serde_json::Value::Null),
        ".{270,290}".prop_map(|text| serde_json::json!(text)),
        Just(serde_json::json!("correct horse battery")),
        Just(serde_json::json!("a@b.example")),
    ];
    let names = ["content", "username", "email", "password", "displayName", "replyTo", "upTo", "refreshToken", "media"];
    prop_oneof![
        3 => proptest::collection::vec(proptest::option::weighted(0.8, value), names.len()).prop_map(move |values| {
            let members = names.iter().zip(values).filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
            serde_json::Value::Object(members.collect()).to_string().into_bytes()
        }),
        1 => proptest::collection::vec(any::<u8>(), 0..200),
        1 => Just(Vec::new()),
    ]
}

fn requests() -> impl Strategy<Value = Hostile> {
    let method = prop_oneof![
        5 => Just("GET"), 5 => Just("POST"), 3 => Just("DELETE"), 1 => Just("PUT"), 1 => Just("PATCH"), 1 => Just("HEAD"),
        1 => Just("OPTIONS"), 1 => Just("TRACE"), 1 => Just("BREW"),
    ]
    .prop_map(str::to_owned);
    let name = prop_oneof![
        5 => Just("content-type"), 2 => Just("authorization"), 2 => Just("x-consistency-token"), 1 => Just("content-length"),
        1 => Just("x-request-id"), 1 => Just("accept"), 1 => Just("expect"), 1 => Just("transfer-encoding"), 1 => Just("cookie"), 1 => Just("if-none-match"),
        1 => Just("idempotency-key"),
    ];
    let value = prop_oneof![
        4 => Just(b"application/json".to_vec()),
        1 => Just(b"Bearer eyJhbGciOiJub25lIn0.e30.".to_vec()),
        1 => proptest::collection::vec(any::<u8>(), 0..64),
    ];
    let headers = proptest::collection::vec((name, value), 0..4);
    (method, path(), query(), any::<bool>(), headers, body()).prop_map(
        |(method, path, query, signed_in, headers, body)| Hostile { method, path, query, signed_in, headers, body },
    )
}

impl Hostile {
    /// The request, if HTTP has such a one at all.
    fn request(&self, account: &Account) -> Option<Request<Body>> {
        let uri: Uri = format!("{}?{}", self.path, self.query).parse().ok()?;
        let mut request = Request::new(Body::from(self.body.clone()));
        *request.method_mut() = Method::from_bytes(self.method.as_bytes()).ok()?;
        *request.uri_mut() = uri;
        if self.signed_in {
            request.headers_mut().insert("authorization", format!("Bearer {}", account.token).parse().ok()?);
        }
        for (name, value) in &self.headers {
            request.headers_mut().append(HeaderName::from_static(name), HeaderValue::from_bytes(value).ok()?);
        }
        Some(request)
    }
}

#[test]
fn nothing_that_can_be_sent_gives_a_5xx() {
    let runtime = tokio::runtime::Runtime::new().unwrap();
    let (world, ada) = runtime.block_on(async {
        let world = World::new("hostile").await;
        let ada = world.register("ada").await;
        world
            .run(
                "INSERT INTO accounts (user_id, username) SELECT n, 'u' || n FROM generate_series(0, 4) n;
                   INSERT INTO users (id, username, display_name, protected)
                   SELECT n, 'u' || n, 'u', n = 4 FROM generate_series(0, 4) n;
                   INSERT INTO blocks VALUES (3, 2)",
            )
            .await;
        world.catch_up().await;
        (world, ada)
    });
    let mut runner = TestRunner::new(Config { cases: 3_000, failure_persistence: None, ..Config::default() });
    let outcome = runner.run(&requests(), |hostile| {
        let Some(request) = hostile.request(&ada) else { return Ok(()) };
        let answer = runtime.block_on(ask(&world.router, request));
        if answer.status >= 500 {
            return Err(TestCaseError::fail(format!("{answer:?}")));
        }
        Ok(())
    });
    outcome.unwrap_or_else(|error| panic!("{error}"));
}
