//! What the API is made of.

use std::sync::Arc;
use std::time::Duration;

use feedmill_model::{Parameters, SourceId};
use feedmill_sinks::Views;
use metrics_exporter_prometheus::PrometheusHandle;
use tokio::sync::watch;

use crate::activity::Activity;
use crate::consistency::ConsistencyTokens;
use crate::database::{Database, Pool};
use crate::health::Health;
use crate::keys::Keys;
use crate::password::Passwords;

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
    /// How long a sign-in holds.
    pub session: Duration,
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
            passwords_at_once: std::thread::available_parallelism().map_or(1, |cores| (cores.get() / 2).max(1)),
            passwords_waiting_max: 100,
            session: Duration::from_secs(24 * 60 * 60),
        }
    }
}

/// What the API is made of.
pub struct State {
    /// What is read.
    pub views: Arc<dyn Views>,
    /// Where writes go; see [`pool`](crate::pool).
    pub pool: Pool,
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
}

/// [`State`] as the handlers use it.
pub(crate) struct Context {
    pub views: Arc<dyn Views>,
    pub database: Database,
    pub keys: Keys,
    pub tokens: ConsistencyTokens,
    pub passwords: Passwords,
    pub activity: Activity,
    pub parameters: Parameters,
    pub settings: Settings,
    pub metrics: PrometheusHandle,
    pub health: Arc<dyn Health>,
}

/// What the handlers share.
pub(crate) type Shared = Arc<Context>;

impl State {
    /// Starts what works beside requests; must be called in a tokio runtime.
    pub(crate) fn share(self) -> Shared {
        let database = Database::new(self.pool);
        Arc::new(Context {
            views: self.views,
            tokens: ConsistencyTokens::new(self.keys.clone(), self.source),
            keys: self.keys,
            passwords: Passwords::new(self.settings.passwords_at_once, self.settings.passwords_waiting_max),
            activity: Activity::start(database.clone()),
            database,
            parameters: self.parameters,
            settings: self.settings,
            metrics: self.metrics,
            health: self.health,
        })
    }
}
