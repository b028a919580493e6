//! Users who follow each other, loaded; posts, delivered; and the API on top, with a PostgreSQL for logins.

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Request;
use feedmill_api::{Health, Keys, PoolLimits, RateLimits, Report, Settings, State, Status};
use feedmill_connectors::postgres::{Cluster, schema};
use feedmill_dataflows::{Config, Part, Runtime, Stores};
use feedmill_model::{
    Activity, Batch, Change, Fact, Follow, Lsn, Parameters, Position, Row, RowSink, SourceId, Time, Tweet, User,
    ViewRow, floor_of, id_at,
};
use feedmill_sinks::{LocalHome, LocalIndex, LocalSearch, LocalViews, Progress, Reactions};
use metrics_exporter_prometheus::{PrometheusBuilder, PrometheusHandle};
use tempfile::TempDir;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt;

use crate::Args;

/// A login with a wrong password: the same work as a right one.
pub const LOGIN: &str = r#"{"username":"ada","password":"not the right one"}"#;
/// Tweets before anything is measured, so that all pages are full.
const TWEETS: i64 = 30_000;
/// Tweets of a batch.
const BATCH: i64 = 20;
/// A run that stands still for so long has failed.
const LIMIT: Duration = Duration::from_secs(600);

/// The system without what brings changes.
pub struct World {
    views: Arc<LocalViews>,
    search: Arc<LocalSearch>,
    home: Arc<LocalHome>,
    keys: Keys,
    cluster: Cluster,
    metrics: PrometheusHandle,
    users: i64,
    authors: i64,
    writer: Option<Writer>,
    _dir: TempDir,
}

/// What brings changes.
pub struct Writer {
    runtime: Runtime,
    progress: Arc<Progress>,
    authors: i64,
    posted: i64,
    time: Time,
}

/// The stores serve.
struct Serves;

impl Health for Serves {
    fn serving(&self) -> bool {
        true
    }

    fn readable(&self) -> bool {
        true
    }

    fn writable(&self) -> bool {
        true
    }

    fn rebuilding(&self) -> Option<String> {
        None
    }

    fn report(&self) -> Report {
        Report {
            status: Status::Alive,
            serving: true,
            stands_still: None,
            steps: Vec::new(),
            stages: Vec::new(),
            slot: None,
            log: None,
            served_age_ms: None,
            alarms: Vec::new(),
        }
    }
}

fn now_ms() -> anyhow::Result<Time> {
    Ok(u64::try_from(SystemTime::now().duration_since(SystemTime::UNIX_EPOCH)?.as_millis())?)
}

/// A number below `bound` for each `n`.
fn spread(n: i64, bound: i64) -> i64 {
    ((n as u64).wrapping_mul(0xD129_0D3F_57A1_1C5D) >> 20) as i64 % bound.max(1)
}

fn new(row: Row) -> Change {
    Change { old: None, new: Some(row) }
}

impl World {
    pub async fn build(args: &Args) -> anyhow::Result<World> {
        let dir = tempfile::Builder::new().permissions(Permissions::from_mode(0o711)).tempdir()?;
        let cluster = Cluster::start(&dir.path().join("postgres"), LIMIT).await?;
        schema::prepare(cluster.source()).await?;
        let (users, authors) = (args.users, (args.users * args.follows / args.followers).max(1));
        let start = now_ms()?;
        let load = Position { time: start, lsn: Lsn(1) };
        let parameters = Parameters::default();
        let index = Arc::new(LocalIndex::open(&dir.path().join("index"))?);
        let home = Arc::new(LocalHome::new(parameters.clone()));
        let search = Arc::new(LocalSearch::open(&dir.path().join("search"))?);
        let progress = Arc::new(Progress::new([load; 5]));
        let (facts, rows): (Arc<dyn RowSink<Fact>>, Arc<dyn RowSink<ViewRow>>) = (index.clone(), index.clone());
        let rows_at_a_time = Config::ROWS_AT_A_TIME;
        let config = Config { workers: 1, part: Part::All, parameters, rows_at_a_time, profile: None };
        let reactions = Arc::new(Reactions(Arc::clone(&index)));
        let stores = Stores { facts, rows, home: home.clone(), search: search.clone(), reactions };
        let applied = Arc::clone(&progress);
        let runtime = Runtime::start(config, stores, load, Arc::new(move |now| applied.applied(now)))?;

        let (day, all) = (i32::try_from(start / 86_400_000)?, (0..users + 2).collect::<Vec<_>>());
        for users in all.chunks(10_000) {
            let active = users.iter().filter(|user| **user < args.users);
            runtime.load(active.map(|user| Row::Activity(Activity { user_id: *user, day })).collect())?;
            let row = |id: &i64| {
                let name = format!("user{id}");
                Row::User(Box::new(User { id: *id, username: name.clone(), display_name: name, ..User::default() }))
            };
            runtime.load(users.iter().map(row).collect())?;
        }
        for users in all.chunks(3_000) {
            let follows = users.iter().flat_map(|&user| {
                let count = match user - args.users {
                    0 => 200,
                    1 => 5_000,
                    _ => args.follows,
                };
                (0..count).map(move |n| {
                    let following_id = match count == args.follows {
                        true => spread(user * args.follows + n, authors),
                        // Each once.
                        false => n * (authors / count).max(1) % authors,
                    };
                    Row::Follow(Follow { follower_id: user, following_id, accepted: true, created_at: 0 })
                })
            });
            runtime.load(follows.collect())?;
        }
        runtime.loaded(floor_of(start))?;
        let mut writer = Writer { runtime, progress: Arc::clone(&progress), authors, posted: 0, time: start };
        while writer.posted < TWEETS {
            writer.post()?;
        }
        writer.wait()?;
        let keys = Keys::load_or_create(&dir.path().join("keys"))?;
        let views = Arc::new(LocalViews::new(index, home.clone(), progress));
        let metrics = PrometheusBuilder::new().install_recorder()?;
        let writer = Some(writer);
        Ok(World { views, search, home, keys, cluster, metrics, users, authors, writer, _dir: dir })
    }

    fn state(&self) -> anyhow::Result<State> {
        Ok(State {
            views: Arc::clone(&self.views) as _,
            search: Arc::clone(&self.search) as _,
            pool: feedmill_api::pool(self.cluster.source(), "bench", PoolLimits::default())?,
            replica: None,
            source: watch::channel(SourceId { system: 1, timeline: 1, slot: "bench".to_owned() }).1,
            keys: self.keys.clone(),
            parameters: Parameters::default(),
            settings: Settings { rate_limits: RateLimits::NONE, ..Settings::default() },
            metrics: self.metrics.clone(),
            health: Arc::new(Serves),
            shutdown: CancellationToken::new(),
        })
    }

    /// The API.
    pub fn app(&self) -> anyhow::Result<Router> {
        Ok(feedmill_api::app(self.state()?))
    }

    /// The API, of which the home timeline answers `page`.
    pub fn stored(&self, page: Bytes) -> anyhow::Result<Router> {
        Ok(feedmill_api::app_with_stored_timeline(self.state()?, page))
    }

    /// What a user sends as `Authorization`.
    pub fn token(&self, user: i64) -> anyhow::Result<String> {
        let token = self.keys.token_for(user, Duration::from_secs(3_600)).context("a token could not be signed")?;
        Ok(format!("Bearer {token}"))
    }

    /// Users without a record, and how many accounts they follow.
    pub fn mergers(&self) -> [(i64, i64); 2] {
        [(self.users, self.authors.min(200)), (self.users + 1, self.authors.min(5_000))]
    }

    pub fn deliveries(&self) -> u64 {
        self.home.deliveries()
    }

    /// Posts at a rate until it is over.
    pub fn post_in_the_background(
        &mut self,
        rate: u64,
        over: Arc<AtomicBool>,
    ) -> anyhow::Result<JoinHandle<anyhow::Result<Writer>>> {
        let mut writer = self.writer.take().context("somebody posts already")?;
        Ok(std::thread::spawn(move || {
            let (began, before) = (Instant::now(), writer.posted);
            while !over.load(Ordering::Relaxed) {
                let due = (began.elapsed().as_secs_f64() * rate as f64) as i64;
                match writer.posted - before < due {
                    true => writer.post()?,
                    false => std::thread::sleep(Duration::from_millis(1)),
                }
            }
            writer.wait()?;
            Ok(writer)
        }))
    }

    /// Nobody posts any more.
    pub fn goes_on_with(&mut self, writer: Writer) {
        self.writer = Some(writer);
    }

    /// Milliseconds of a login when nothing else is done.
    pub async fn login_ms(&self) -> anyhow::Result<f64> {
        let app = self.app()?;
        let began = Instant::now();
        for _ in 0..20 {
            let request = Request::post("/api/auth/login").header("content-type", "application/json");
            let status = app.clone().oneshot(request.body(Body::from(LOGIN))?).await?.status();
            ensure!(status == 401, "a login answered {status}");
        }
        Ok(began.elapsed().as_secs_f64() * 1_000.0 / 20.0)
    }

    pub async fn stop(self) -> anyhow::Result<()> {
        if let Some(writer) = self.writer {
            writer.runtime.stop();
            writer.runtime.join()?;
        }
        self.cluster.stop(Duration::from_secs(10)).await?;
        Ok(())
    }
}

impl Writer {
    /// A batch of posts.
    fn post(&mut self) -> anyhow::Result<()> {
        self.time = now_ms()?.max(self.time + 1);
        let (authors, posted, ms) = (self.authors, self.posted, self.time.cast_signed());
        let changes = (0..BATCH).map(|n| {
            let id = id_at(ms, u16::try_from(n).unwrap_or(0));
            new(Row::Tweet(Box::new(Tweet {
                id,
                user_id: (posted + n) * 7_919 % authors,
                content: format!("Post {} about nothing in particular, as long as what people write", posted + n),
                conversation_id: id,
                created_at: ms * 1_000,
                updated_at: ms * 1_000,
                ..Tweet::default()
            })))
        });
        let position = Position { time: self.time, lsn: Lsn(self.time) };
        self.progress.covers(position);
        self.runtime.feed(Arc::new(Batch { position, floor: None, changes: changes.collect(), last: true }))?;
        self.posted += BATCH;
        Ok(())
    }

    /// Waits until all that was posted is delivered.
    fn wait(&self) -> anyhow::Result<()> {
        let asked = Instant::now();
        while self.runtime.applied().home.min(self.runtime.applied().reactions) <= self.time {
            ensure!(asked.elapsed() < LIMIT, "the dataflows did not reach {} within {LIMIT:?}", self.time);
            std::thread::park_timeout(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// Milliseconds of the bare hash, with the parameters that passwords have here.
pub fn argon2_ms() -> anyhow::Result<f64> {
    let params = argon2::Params::new(19 * 1_024, 2, 1, None).map_err(|error| anyhow::anyhow!("{error}"))?;
    let argon2 = argon2::Argon2::new(argon2::Algorithm::Argon2id, argon2::Version::V0x13, params);
    let began = Instant::now();
    for _ in 0..20 {
        let mut hash = [0; 32];
        let hashed = argon2.hash_password_into(b"not the right one", b"sixteen bytes of", &mut hash);
        hashed.map_err(|error| anyhow::anyhow!("{error}"))?;
    }
    Ok(began.elapsed().as_secs_f64() * 1_000.0 / 20.0)
}
