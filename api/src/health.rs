//! How the system stands: what `/health`, `/ready` and `feedmill status` say, in one form.

use std::fmt;

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// Whether the system serves, and how it stands.
pub trait Health: Send + Sync {
    /// Whether the views have everything that was written before the start: what `/ready` says.
    fn serving(&self) -> bool;

    /// Whether the views may be read, as of whatever time they are. Until then every request below `/api` is told to
    /// come again. Asked at each request, as is [`Self::writable`], so they must be cheap.
    fn readable(&self) -> bool;

    /// Whether PostgreSQL may be written to. Until then every request below `/api` that is no read is told to come again.
    fn writable(&self) -> bool;

    /// Whether the process was told to end, and answers for a while so that whoever sends requests to it can send them elsewhere.
    fn leaving(&self) -> bool {
        false
    }

    /// What is being built again from the change log, and how far that is, while a read of the views has to wait for it.
    /// Asked at each read.
    fn rebuilding(&self) -> Option<String>;

    /// How everything stands now. It must not wait for anything that may itself stand still.
    fn report(&self) -> Report;
}

/// How everything stands.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Report {
    /// In one word.
    pub status: Status,
    /// Whether the views have everything that was written before the start.
    pub serving: bool,
    /// The stage that holds the others back, if one stands still.
    pub stands_still: Option<StandsStill>,
    /// How far a start, or what else takes long, has come.
    pub steps: Vec<Step>,
    /// The way of a commit, in its order.
    pub stages: Vec<Stage>,
    /// The replication slot, once it was looked at.
    pub slot: Option<Slot>,
    /// What the change log takes.
    pub log: Option<LogSize>,
    /// Age of what is served, in milliseconds.
    pub served_age_ms: Option<u64>,
    /// All alarms, raised or not.
    pub alarms: Vec<Alarm>,
}

/// The whole system in one word.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing stands still, and no alarm is raised.
    Alive,
    /// Something does, or one is. The process itself is well: restarting it would not mend that.
    Degraded,
}

/// Which stage holds the others back.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct StandsStill {
    /// Name of the stage.
    pub stage: String,
    /// Since when, as RFC 3339.
    pub since: String,
    /// For how long, in milliseconds.
    pub for_ms: u64,
    /// Why, as far as it is known.
    pub reason: String,
}

/// What a stage does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "kebab-case")]
pub enum StageState {
    /// It goes on.
    Moving,
    /// It has all that the stage before it has.
    Idle,
    /// It waits for something, or for another stage that stands still.
    Waiting,
    /// It could go on, and does not.
    StandsStill,
}

impl fmt::Display for StageState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            StageState::Moving => "moving",
            StageState::Idle => "idle",
            StageState::Waiting => "waiting",
            StageState::StandsStill => "stands still",
        })
    }
}

/// One stage of the way of a commit.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Stage {
    /// `postgresql`, `stream`, `log`, `dataflows`, `facts`, `rows`, `home`, `search` or `reactions`; `kafka` where the log is published.
    pub name: String,
    /// What it does.
    pub state: StageState,
    /// Since when, as RFC 3339.
    pub since: Option<String>,
    /// Why it waits or stands still.
    pub reason: Option<String>,
    /// Where it stands in the source's log; `None` before it has begun.
    pub lsn: Option<String>,
    /// The time of the batch that it stands at, in milliseconds since 1970, from the change log on.
    pub time_ms: Option<u64>,
    /// How far it is on disk, where that is behind [`Self::lsn`].
    pub saved: Option<String>,
    /// How far it is behind the stage before it.
    pub behind_bytes: u64,
    /// The same as time.
    pub behind_ms: u64,
    /// How fast it moves, over the last seconds.
    pub bytes_per_second: f64,
    /// Transactions that went through it.
    pub transactions_per_second: Option<f64>,
    /// Changes of rows that went through it.
    pub changes_per_second: Option<f64>,
    /// Entries that entered or left home timelines.
    pub deliveries_per_second: Option<f64>,
}

/// One step of a start, or another work that takes long and ends.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Step {
    /// Its name: `copy`, `load`, `catch up`, …
    pub name: String,
    /// Whether it has begun.
    pub begun: bool,
    /// Whether it is completed.
    pub done: bool,
    /// How far it is, for people.
    pub detail: String,
    /// What its numbers count: `rows` or `bytes`.
    pub unit: String,
    /// How many are done.
    pub completed: u64,
    /// How many there are, if that is known.
    pub total: Option<u64>,
    /// The same in percent.
    pub percent: Option<f64>,
    /// Seconds that it will take yet, at the speed so far.
    pub eta_seconds: Option<u64>,
}

/// The replication slot, as PostgreSQL has it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Slot {
    /// What its reader has acknowledged.
    pub confirmed: Option<String>,
    /// From where PostgreSQL keeps its log for it.
    pub restart: Option<String>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
    /// How much log PostgreSQL keeps for it.
    pub retained_bytes: u64,
    /// Whether a server process reads it.
    pub active: bool,
}

/// What the change log takes.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct LogSize {
    /// Bytes on disk of the rows, without what the journal holds.
    pub rows_bytes: u64,
    /// Bytes on disk of the recent batches, likewise.
    pub tail_bytes: u64,
    /// What time the recent batches span.
    pub tail_ms: u64,
}

/// Something that an operator has to look at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Alarm {
    /// `wal_retained`, `lag`, `quarantine`, `negative_multiplicity`, `disk` or `stage`.
    pub alarm: String,
    /// Whether it is raised.
    pub raised: bool,
    /// Since when, as RFC 3339.
    pub since: Option<String>,
    /// What was found.
    pub detail: String,
}
