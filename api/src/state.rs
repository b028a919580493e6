//! What the API is made of.

use std::sync::Arc;
use std::time::Duration;

use axum::http::HeaderValue;
use feedmill_model::{Parameters, SourceId};
use feedmill_sinks::Views;
use feedmill_sinks::search::Search;
use ipnet::IpNet;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::activity::Activity;
use crate::consistency::ConsistencyTokens;
use crate::database::{Database, Pool};
use crate::gates::Gates;
use crate::health::Health;
use crate::keys::Keys;
use crate::limits::{Limits, RateLimits};
use crate::live::{Limits as StreamLimits, Live, Tickets};
use crate::own_writes::OwnWrites;
use crate::password::Passwords;
use crate::routes::Exporting;
use crate::sessions::Revoked;
use crate::upkeep::Upkeep;

/// Limits and sizes of the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Settings {
    /// How long a read waits for the write of its consistency token.
    pub read_wait: Duration,
    /// How long a write that narrows who may read waits until the visibility facts have it.
    pub narrowing_wait: Duration,
    /// How long a request may take, beside [`Self::read_wait`].
    pub request_timeout: Duration,
    /// Items of a page for which no limit is asked.
    pub page_default: usize,
    /// The most items that a page may be asked for.
    pub page_max: usize,
    /// The most bytes that a request's body may have.
    pub body_bytes_max: usize,
    /// Passwords that are hashed at a time. Each takes a core for tens of milliseconds, and 19 MiB.
    pub passwords_at_once: usize,
    /// Passwords that may wait to be hashed; more are told to come again.
    pub passwords_waiting_max: usize,
    /// How long an access token holds.
    pub access: Duration,
    /// How long one stays signed in without refreshing.
    pub session: Duration,
    /// Whether cookies are for TLS alone, also where no proxy says that a client came by it.
    pub secure_cookies: bool,
    /// How much one user, and one address, may ask.
    pub rate_limits: RateLimits,
    /// Reads that may be under way; of writes half as many, of searches and sign-ins a quarter.
    pub requests_max: usize,
    /// Proxies whose `X-Forwarded-For` is believed.
    pub trusted_proxies: Vec<IpNet>,
    /// Origins whose pages may use the API from a browser; `*` for all, then without cookies.
    pub cors_origins: Vec<HeaderValue>,
    /// For how long browsers are told to use HTTPS alone; zero for not.
    pub hsts: Duration,
    /// Streams of live updates at a time.
    pub streams_max: usize,
    /// Of one user.
    pub streams_per_user_max: usize,
    /// After how much silence a stream gives a sign of life.
    pub stream_heartbeat: Duration,
    /// How long the client of a stream may take nothing of what is sent.
    pub stream_stall: Duration,
    /// How what is new for streams is looked for.
    pub stream_looks: Looks,
}

/// How what is new for streams is looked for: often where reading is cheap, seldom where it asks another server.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Looks {
    /// Between two looks at the heads of all timelines, at least.
    pub every: Duration,
    /// That takes at most one part in so many of the time.
    pub part: u32,
    /// Clients that read what is new for them at a time.
    pub readers: usize,
}

impl Looks {
    /// Where the views are in this process: rounds take a part of a core, and readers no more than half of the cores.
    pub fn local() -> Self {
        Looks { every: Duration::from_millis(20), part: 25, readers: (cores() / 2).max(1) }
    }

    /// Where reading is to wait for another server.
    pub fn remote() -> Self {
        Looks { every: Duration::from_secs(1), part: 1, readers: cores() * 4 }
    }
}

fn cores() -> usize {
    std::thread::available_parallelism().map_or(1, usize::from)
}

impl Default for Settings {
    fn default() -> Self {
        Settings {
            read_wait: Duration::from_secs(2),
            narrowing_wait: Duration::from_secs(1),
            request_timeout: Duration::from_secs(15),
            page_default: 20,
            page_max: 100,
            body_bytes_max: 64 * 1024,
            passwords_at_once: (cores() / 2).max(1),
            passwords_waiting_max: 100,
            access: Duration::from_secs(15 * 60),
            session: Duration::from_secs(30 * 24 * 60 * 60),
            secure_cookies: false,
            rate_limits: RateLimits::default(),
            requests_max: 1_024,
            trusted_proxies: Vec::new(),
            cors_origins: Vec::new(),
            hsts: Duration::ZERO,
            streams_max: 20_000,
            streams_per_user_max: 10,
            stream_heartbeat: Duration::from_secs(15),
            stream_stall: Duration::from_secs(10),
            stream_looks: Looks::local(),
        }
    }
}

/// What the API is made of.
pub struct State {
    /// What is read.
    pub views: Arc<dyn Views>,
    /// What is searched.
    pub search: Arc<dyn Search>,
    /// Where writes go; see [`pool`](crate::pool).
    pub pool: Pool,
    /// A streaming replica of it, likewise, for what is only read.
    pub replica: Option<Pool>,
    /// The source that the views follow. It changes when the database is restored or fails over.
    pub source: watch::Receiver<SourceId>,
    /// What signs tokens.
    pub keys: Keys,
    /// The settings that define the views.
    pub parameters: Parameters,
    /// Limits and sizes.
    pub settings: Settings,
    /// What `/metrics` renders.
    pub metrics: PrometheusHandle,
    /// What `/health` and `/ready` say.
    pub health: Arc<dyn Health>,
    /// Ends the streams.
    pub shutdown: CancellationToken,
}

/// [`State`] as the handlers use it.
pub(crate) struct Context {
    pub views: Arc<dyn Views>,
    pub search: Arc<dyn Search>,
    pub database: Database,
    pub keys: Keys,
    pub tokens: ConsistencyTokens,
    pub own_writes: OwnWrites,
    pub passwords: Passwords,
    pub revoked: Arc<Revoked>,
    pub upkeep: Upkeep,
    pub activity: Activity,
    pub limits: Limits,
    pub gates: Gates,
    pub exporting: Exporting,
    /// Value of `Strict-Transport-Security`, if it is sent.
    pub strict_transport: Option<HeaderValue>,
    pub parameters: Parameters,
    pub settings: Settings,
    pub metrics: PrometheusHandle,
    pub health: Arc<dyn Health>,
    pub live: Arc<Live>,
    pub tickets: Tickets,
}

/// What the handlers share.
pub(crate) type Shared = Arc<Context>;

impl State {
    /// Starts what works beside requests; must be called in a tokio runtime.
    pub(crate) fn share(self) -> Shared {
        let database = Database::new(self.pool, self.replica);
        let own_writes = OwnWrites::new(self.source.borrow().clone());
        let streams = StreamLimits { streams: self.settings.streams_max, of_user: self.settings.streams_per_user_max };
        let revoked = Arc::new(Revoked::new(self.settings.access));
        Arc::new(Context {
            live: Live::start(Arc::clone(&self.views), streams, self.settings.stream_looks, self.shutdown),
            tickets: Tickets::new(self.keys.clone()),
            views: self.views,
            search: self.search,
            own_writes,
            tokens: ConsistencyTokens::new(self.keys.clone(), self.source),
            upkeep: Upkeep::start(&database, &self.keys, &revoked),
            revoked,
            keys: self.keys,
            passwords: Passwords::new(self.settings.passwords_at_once, self.settings.passwords_waiting_max),
            activity: Activity::start(database.clone()),
            database,
            limits: Limits::new(self.settings.rate_limits),
            gates: Gates::new(self.settings.requests_max),
            exporting: Exporting::default(),
            strict_transport: strict_transport(self.settings.hsts),
            parameters: self.parameters,
            settings: self.settings,
            metrics: self.metrics,
            health: self.health,
        })
    }
}

fn strict_transport(hsts: Duration) -> Option<HeaderValue> {
    let value = HeaderValue::try_from(format!("max-age={}", hsts.as_secs())).ok();
    value.filter(|_| !hsts.is_zero())
}
