//! A router with everything behind it, and how to ask it.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::{Body, to_bytes};
use axum::http::{HeaderMap, Request, header};
use feedmill_api::{Health, Keys, PoolLimits, RateLimits, Report, Settings, State, Status, Step, app, pool};
use feedmill_connectors::postgres::{Cluster, Source, schema};
use feedmill_model::{Parameters, SourceId};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::sync::{Mutex, watch};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::mirror::Mirror;

/// Nothing that a test waits for takes longer.
pub const LIMIT: Duration = Duration::from_secs(60);

pub const PASSWORD: &str = "correct horse battery";

static SERVER: Mutex<Weak<Server>> = Mutex::const_new(Weak::new());

/// One PostgreSQL for all tests; stopped when the last test that uses it ends.
struct Server {
    cluster: Option<Cluster>,
    source: Source,
    superuser: Source,
    _dir: TempDir,
}

impl Server {
    async fn get() -> Arc<Server> {
        let mut shared = SERVER.lock().await;
        if let Some(server) = shared.upgrade() {
            return server;
        }
        let dir = tempfile::Builder::new().permissions(Permissions::from_mode(0o711)).tempdir().unwrap();
        let cluster = Cluster::start(&dir.path().join("pg"), LIMIT).await.unwrap();
        let (source, superuser) = (cluster.source().clone(), cluster.superuser().clone());
        schema::prepare(&source).await.unwrap();
        let server = Arc::new(Server { cluster: Some(cluster), source, superuser, _dir: dir });
        *shared = Arc::downgrade(&server);
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(cluster) = self.cluster.take() else { return };
        // The test's own runtime may be the one that is ending.
        let stop = move || tokio::runtime::Runtime::new().unwrap().block_on(cluster.stop(Duration::from_secs(10)));
        if let Err(error) = std::thread::spawn(stop).join().unwrap() {
            eprintln!("{error}");
        }
    }
}

/// Whether the system serves, and whether it builds rows again, as the test says.
pub struct Switch(pub AtomicBool, pub AtomicBool);

impl Health for Switch {
    fn serving(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }

    fn readable(&self) -> bool {
        self.serving()
    }

    fn writable(&self) -> bool {
        self.serving()
    }

    fn rebuilding(&self) -> Option<String> {
        self.1.load(Ordering::SeqCst).then(|| "The rows are being built again: 41 %.".to_owned())
    }

    fn report(&self) -> Report {
        let step = |name: &str, done, detail: &str| Step {
            name: name.to_owned(),
            done,
            detail: detail.to_owned(),
            ..Step::default()
        };
        Report {
            status: Status::Alive,
            serving: self.serving(),
            stands_still: None,
            steps: vec![step("postgres", true, "takes connections"), step("load", self.serving(), "3 of 4 slices")],
            stages: Vec::new(),
            slot: None,
            log: None,
            served_age_ms: None,
            alarms: Vec::new(),
        }
    }
}

/// The router, and what is behind it.
pub struct World {
    pub router: Router,
    pub mirror: Arc<Mirror>,
    pub serving: Arc<Switch>,
    pub sql: Client,
    pub source: Source,
    keys: TempDir,
    _server: Arc<Server>,
}

/// A signed-in user.
#[derive(Clone, Debug)]
pub struct Account {
    pub id: String,
    pub token: String,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub body: Value,
}

impl Answer {
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name).map(|value| value.to_str().unwrap())
    }

    /// The consistency token of a write.
    pub fn token(&self) -> &str {
        self.header(feedmill_api::CONSISTENCY_TOKEN).unwrap_or_else(|| panic!("no token: {self:?}"))
    }

    /// It is this problem.
    #[track_caller]
    pub fn is_problem(&self, status: u16, error: &str) {
        assert_eq!((self.status, self.body["error"].as_str()), (status, Some(error)), "{}", self.text);
    }

    #[track_caller]
    pub fn is(&self, status: u16) -> &Value {
        assert_eq!(self.status, status, "{}", self.text);
        &self.body
    }
}

/// What the recorder of this process has.
pub fn metrics() -> PrometheusHandle {
    static METRICS: OnceLock<PrometheusHandle> = OnceLock::new();
    METRICS.get_or_init(|| PrometheusBuilder::new().install_recorder().unwrap()).clone()
}

/// Settings with limits that no test reaches unless it means to.
pub fn patient() -> Settings {
    Settings {
        read_wait: LIMIT,
        narrowing_wait: LIMIT,
        request_timeout: LIMIT,
        rate_limits: RateLimits::NONE,
        ..Settings::default()
    }
}

pub fn identity() -> SourceId {
    SourceId { system: 7_000_000_000_000_000_007, timeline: 1, slot: "feedmill".to_owned() }
}

impl World {
    /// A database of its own, with nothing in it. Nothing waits for the mirror.
    pub async fn new(name: &str) -> World {
        let settings = Settings { read_wait: Duration::ZERO, narrowing_wait: Duration::ZERO, ..patient() };
        World::with(name, settings).await
    }

    /// The same, and reads wait for the mirror.
    pub async fn where_reads_wait(name: &str) -> World {
        World::with(name, Settings { narrowing_wait: Duration::ZERO, ..patient() }).await
    }

    pub async fn with(name: &str, settings: Settings) -> World {
        let server = Server::get().await;
        let superuser = server.superuser.connect("test").await.unwrap();
        superuser.batch_execute(&format!("CREATE DATABASE {name} TEMPLATE feedmill OWNER feedmill")).await.unwrap();
        let source = server.source.with_database(name);
        let sql = source.connect("test").await.unwrap();
        let keys = tempfile::tempdir().unwrap();
        let mirror = Arc::new(Mirror::new());
        let serving = Arc::new(Switch(AtomicBool::new(true), AtomicBool::new(false)));
        let router = app(State {
            views: mirror.clone(),
            search: mirror.clone(),
            pool: pool(&source, "test", PoolLimits { size: 4, wait: LIMIT, ..PoolLimits::default() }).unwrap(),
            replica: None,
            source: watch::channel(identity()).1,
            keys: Keys::load_or_create(&keys.path().join("keys")).unwrap(),
            parameters: Parameters::default(),
            settings,
            metrics: metrics(),
            health: serving.clone(),
            shutdown: CancellationToken::new(),
        });
        World { router, mirror, serving, sql, source, keys, _server: server }
    }

    /// Another router on the same database, views and keys: another instance, with what `change` changes.
    pub fn instance(&self, change: impl FnOnce(&mut State)) -> Router {
        let mut state = State {
            views: self.mirror.clone(),
            search: self.mirror.clone(),
            pool: pool(&self.source, "test", PoolLimits { size: 2, ..PoolLimits::default() }).unwrap(),
            replica: None,
            source: watch::channel(identity()).1,
            keys: self.keys(),
            parameters: Parameters::default(),
            settings: Settings { narrowing_wait: Duration::ZERO, ..patient() },
            metrics: metrics(),
            health: self.serving.clone(),
            shutdown: CancellationToken::new(),
        };
        change(&mut state);
        app(state)
    }

    /// Another database, empty, in which letters are folded by the rules of `locale`.
    pub async fn in_locale(&self, name: &str, locale: &str) -> Source {
        let superuser = self._server.superuser.connect("test").await.unwrap();
        let create = format!("CREATE DATABASE {name} TEMPLATE template0 OWNER feedmill LC_CTYPE '{locale}'");
        superuser.batch_execute(&create).await.unwrap();
        let source = self._server.source.with_database(name);
        schema::prepare(&source).await.unwrap();
        source
    }

    fn keys(&self) -> Keys {
        Keys::load_or_create(&self.key_file()).unwrap()
    }

    /// The file of the keys that sign tokens.
    pub fn key_file(&self) -> PathBuf {
        self.keys.path().join("keys")
    }

    /// The views see what is committed.
    pub async fn catch_up(&self) {
        self.mirror.catch_up(&self.sql).await;
    }

    /// The same, but what likes bring is late.
    pub async fn catch_up_but_for_likes(&self) {
        self.mirror.catch_up_but_for_likes(&self.sql).await;
    }

    pub async fn run(&self, sql: &str) {
        self.sql.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
    }

    /// The number that a query gives.
    pub async fn count(&self, sql: &str) -> i64 {
        self.sql.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
    }

    /// Waits until a query gives `expected`.
    pub async fn until_count(&self, sql: &str, expected: i64) {
        let deadline = Instant::now() + LIMIT;
        while self.count(sql).await != expected {
            assert!(Instant::now() < deadline, "waited for {LIMIT:?} until {sql} gives {expected}");
            tokio::task::yield_now().await;
        }
    }

    pub async fn get(&self, path: &str, viewer: Option<&Account>) -> Answer {
        ask(&self.router, request("GET", path, viewer, None)).await
    }

    pub async fn get_after(&self, token: &str, path: &str, viewer: Option<&Account>) -> Answer {
        let mut request = request("GET", path, viewer, None);
        request.headers_mut().insert("x-consistency-token", token.parse().unwrap());
        ask(&self.router, request).await
    }

    pub async fn post(&self, path: &str, viewer: Option<&Account>, body: Value) -> Answer {
        ask(&self.router, request("POST", path, viewer, Some(body))).await
    }

    pub async fn delete(&self, path: &str, viewer: Option<&Account>) -> Answer {
        ask(&self.router, request("DELETE", path, viewer, None)).await
    }

    /// Registers a user, which the views do not see yet.
    pub async fn register(&self, name: &str) -> Account {
        let answer = self.post("/api/auth/register", None, registration(name)).await;
        let body = answer.is(201);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        Account { id: text(&body["user"]["id"]), token: text(&body["token"]) }
    }

    /// A user whose password nobody hashed, for tests that need many.
    pub async fn register_cheaply(&self, number: i64) -> Account {
        let id = 1_000 + number;
        self.run(&format!(
            "INSERT INTO accounts (user_id, username) VALUES ({id}, 'n{id}');
             INSERT INTO users (id, username, display_name) VALUES ({id}, 'n{id}', 'Number {id}')"
        ))
        .await;
        Account { id: id.to_string(), token: self.keys().token_for(id, LIMIT).unwrap() }
    }

    pub async fn tweet(&self, by: &Account, content: &str) -> String {
        let answer = self.post("/api/tweets", Some(by), json!({ "content": content })).await;
        answer.is(201)["id"].as_str().unwrap().to_owned()
    }

    pub async fn follow(&self, by: &Account, whom: &Account) -> Answer {
        self.post(&format!("/api/follows/{}", whom.id), Some(by), Value::Null).await
    }
}

pub fn registration(name: &str) -> Value {
    json!({
        "username": name, "email": format!("{name}@example.com"), "password": PASSWORD, "displayName": name,
    })
}

pub fn request(method: &str, path: &str, viewer: Option<&Account>, body: Option<Value>) -> Request<Body> {
    let mut request = Request::builder().method(method).uri(path);
    if let Some(viewer) = viewer {
        request = request.header(header::AUTHORIZATION, format!("Bearer {}", viewer.token));
    }
    match body {
        None | Some(Value::Null) => request.body(Body::empty()),
        Some(body) => request.header(header::CONTENT_TYPE, "application/json").body(Body::from(body.to_string())),
    }
    .unwrap()
}

/// Asks, and checks what holds for every answer.
pub async fn ask(router: &Router, request: Request<Body>) -> Answer {
    let asked = format!("{} {}", request.method(), request.uri());
    let response = router.clone().oneshot(request).await.unwrap();
    let (parts, body) = response.into_parts();
    let text = String::from_utf8(to_bytes(body, usize::MAX).await.unwrap().to_vec()).unwrap();
    let body = serde_json::from_str(&text).unwrap_or(Value::Null);
    let answer = Answer { status: parts.status.as_u16(), headers: parts.headers, text, body };
    assert_eq!(answer.header("x-content-type-options"), Some("nosniff"), "{asked}: {answer:?}");
    assert!(!answer.header("x-request-id").unwrap().is_empty(), "{asked}: {answer:?}");
    if answer.status >= 400 && !asked.starts_with("HEAD ") {
        assert_eq!(answer.header("content-type"), Some("application/problem+json"), "{asked}: {answer:?}");
        assert_eq!(answer.body["status"], answer.status, "{asked}: {answer:?}");
        let error = answer.body["error"].as_str().unwrap_or_else(|| panic!("{asked}: {answer:?}"));
        assert_eq!(answer.body["type"], format!("/problems/{error}"), "{asked}: {answer:?}");
        for member in ["title", "detail"] {
            assert!(answer.body[member].as_str().is_some_and(|text| !text.is_empty()), "{asked}: {answer:?}");
        }
    }
    match answer.status {
        401 => assert!(answer.header("www-authenticate").unwrap().starts_with("Bearer"), "{asked}: {answer:?}"),
        405 => assert!(answer.header("allow").is_some(), "{asked}: {answer:?}"),
        429 | 503 => assert!(answer.header("retry-after").is_some(), "{asked}: {answer:?}"),
        _ => {}
    }
    answer
}
