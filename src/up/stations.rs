//! How far each part of the process is: the one place that all parts report to, and that `/health`, `/ready`, `/metrics`
//! and `feedmill status` read.
//!
//! ```text
//!   postgresql ─► stream ─► log ─┬─► dataflows ─► facts ─► rows ─► home, search   a Station each: where it stands
//!                                │               └─► reactions, after the rows
//!                                └─► kafka ─► dataflows …                         (of one that only captures, and one that runs)
//!   copy, load, catch up, replay …                                                a Work each: rows done of rows in all
//!
//!   part ── reached, waiting, at_work ──► Stations ◄── looks (what is read when somebody asks)
//!                                            └── report ──► judge: who stands still ──► Report
//! ```
//!
//! How to report:
//! - `stations.stream().moved(lsn)` where a part stands in the source's log, `.reached(position)` where it knows the time
//!   too, `.counted(transactions, changes)` or `.changed(changes)` what went through it. An equal position is no movement.
//! - `stations.stream().waiting("connection refused; trying again in 2 s")` when it cannot go on: it names the reason until
//!   the station moves, or says `.goes_on()`.
//! - `stations.stream().held("a resync compares rows")` when it was asked to wait, and will be told to go on.
//! - `stations.dataflows().midway()` in a large transaction: it moves only at the end of it, and does not stand still.
//! - `let _work = stations.home().at_work("applying time 7")` around what may take long; it ends with the guard.
//! - `stations.copy().begin(Some(rows), "…")`, `.add(rows)`, `.end("…")` for what takes long and ends.
//! - `stations.quarantined(rows)`, `.anomalies(count)`, `.disk_free(bytes)` for what raises an alarm.
//! - A library crate does not know this registry: it offers a getter, and the binary reads that in a *look*
//!   (`stations.look(move |stations| stations.log().reached(…))`). A look runs at each report, so it must neither wait nor
//!   take a lock that is held during I/O: a stage that stands still must not keep others from saying so.

mod alarm;
mod judge;
mod station;
mod work;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use feedmill_api::{Health, LogSize, Report, Slot, StageState, StandsStill, Status};
use feedmill_model::Phase;
use parking_lot::{Mutex, RwLock};

pub use alarm::Limits;
use alarm::{Alarms, Findings};
pub use station::Station;
pub use work::Work;

use super::now_ms;

/// Reads what a part does not push.
type Look = Box<dyn Fn(&Stations) + Send + Sync>;

/// What a process does with the change log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// It derives and serves the views.
    Everything,
    /// It publishes it.
    Capture,
    /// It serves what others derived from it.
    Serve,
    /// It derives the views from what was published.
    Run {
        /// It writes what search finds.
        searches: bool,
    },
}

/// Where everything stands.
pub struct Stations {
    role: Role,
    postgresql: Station,
    stream: Station,
    log: Station,
    dataflows: Station,
    facts: Station,
    rows: Station,
    home: Station,
    search: Station,
    reactions: Station,
    kafka: Station,
    copy: Work,
    publish: Work,
    load: Work,
    catch_up: Work,
    replay: Work,
    /// The stores that are being built again.
    replaying: RwLock<Vec<Phase>>,
    looks: RwLock<Vec<Look>>,
    slot: Mutex<Option<Slot>>,
    log_size: Mutex<Option<LogSize>>,
    quarantined: AtomicU64,
    anomalies: AtomicU64,
    disk_free: AtomicU64,
    unsearchable: AtomicU64,
    alarms: Alarms,
    readable: AtomicBool,
    writable: AtomicBool,
    serving: AtomicBool,
    leaving: AtomicBool,
}

impl Stations {
    /// Nothing has begun.
    pub fn new(role: Role, limits: Limits) -> Self {
        Stations {
            role,
            postgresql: Station::answering("postgresql"),
            stream: Station::answering("stream"),
            log: Station::new("log"),
            dataflows: Station::new("dataflows"),
            facts: Station::new("facts"),
            rows: Station::new("rows"),
            home: Station::new("home"),
            search: Station::new("search"),
            reactions: Station::new("reactions"),
            kafka: match role {
                // Whoever reads asks it for its end again and again.
                Role::Run { .. } => Station::answering("kafka"),
                Role::Everything | Role::Capture | Role::Serve => Station::new("kafka"),
            },
            copy: Work::rows("copy"),
            publish: Work::rows("publish"),
            load: Work::rows("load"),
            catch_up: Work::bytes("catch up"),
            replay: Work::rows("replay"),
            replaying: RwLock::default(),
            looks: RwLock::default(),
            slot: Mutex::default(),
            log_size: Mutex::default(),
            quarantined: AtomicU64::new(0),
            anomalies: AtomicU64::new(0),
            disk_free: AtomicU64::new(u64::MAX),
            unsearchable: AtomicU64::new(0),
            alarms: Alarms::new(limits),
            readable: AtomicBool::new(false),
            writable: AtomicBool::new(false),
            serving: AtomicBool::new(false),
            leaving: AtomicBool::new(false),
        }
    }

    /// What the process does.
    pub fn role(&self) -> Role {
        self.role
    }

    /// The end of the source's log.
    pub fn postgresql(&self) -> &Station {
        &self.postgresql
    }

    /// What was received from the slot.
    pub fn stream(&self) -> &Station {
        &self.stream
    }

    /// What is durable in the change log.
    pub fn log(&self) -> &Station {
        &self.log
    }

    /// What was given to the dataflows.
    pub fn dataflows(&self) -> &Station {
        &self.dataflows
    }

    /// What the visibility facts have.
    pub fn facts(&self) -> &Station {
        &self.facts
    }

    /// What rows, counts and user timelines have.
    pub fn rows(&self) -> &Station {
        &self.rows
    }

    /// What home timelines have: what is served.
    pub fn home(&self) -> &Station {
        &self.home
    }

    /// What search was handed, and finds when it has committed it.
    pub fn search(&self) -> &Station {
        &self.search
    }

    /// What lists and counts of likes, tweets that trend and notifications have.
    pub fn reactions(&self) -> &Station {
        &self.reactions
    }

    /// What is published in Kafka.
    pub fn kafka(&self) -> &Station {
        &self.kafka
    }

    /// The first state, as it is published.
    pub fn publish(&self) -> &Work {
        &self.publish
    }

    /// The copy of the source into the change log.
    pub fn copy(&self) -> &Work {
        &self.copy
    }

    /// The load of the state into the dataflows.
    pub fn load(&self) -> &Work {
        &self.load
    }

    /// The replay of what was written while nothing ran.
    pub fn catch_up(&self) -> &Work {
        &self.catch_up
    }

    /// The stores that are built again from the change log.
    pub fn replay(&self) -> &Work {
        &self.replay
    }

    /// `stores` are built again from now on, from about so many rows.
    pub fn replaying(&self, stores: &[Phase], rows: u64) {
        self.replay.begin(Some(rows), format!("{} from the change log", crate::replay::told(stores)));
        *self.replaying.write() = stores.to_vec();
    }

    /// `stores` are being built again by those who write them; none if there are none.
    pub fn rebuilt_by_others(&self, stores: Vec<Phase>) {
        *self.replaying.write() = stores;
    }

    /// Whether stores are being built again.
    pub fn is_replaying(&self) -> bool {
        !self.replaying.read().is_empty()
    }

    /// They are whole. Gives what there is to say of it.
    pub fn replayed(&self) -> String {
        self.replaying.write().clear();
        let told = format!("{} rows", self.replay.told().completed);
        self.replay.end(told.clone());
        told
    }

    /// Calls `look` before each report, and several times a second.
    pub fn look(&self, look: impl Fn(&Stations) + Send + Sync + 'static) {
        self.looks.write().push(Box::new(look));
    }

    /// The slot, as PostgreSQL has it; `None` when there is none.
    pub fn slot(&self, slot: Option<Slot>) {
        *self.slot.lock() = slot;
    }

    /// What the change log takes.
    pub fn log_size(&self, size: LogSize) {
        *self.log_size.lock() = Some(size);
    }

    /// How many rows are in quarantine.
    pub fn quarantined(&self, rows: u64) {
        self.quarantined.store(rows, Ordering::Relaxed);
    }

    /// How many rows had a multiplicity that cannot be, since the start.
    pub fn anomalies(&self, count: u64) {
        self.anomalies.store(count, Ordering::Relaxed);
    }

    /// Bytes that are free where the data lie.
    pub fn disk_free(&self, bytes: u64) {
        self.disk_free.store(bytes, Ordering::Relaxed);
    }

    /// How many documents search does not take.
    pub fn unsearchable(&self, documents: u64) {
        self.unsearchable.store(documents, Ordering::Relaxed);
    }

    /// From now on the views may be read, whatever their age.
    pub fn allow_reads(&self) {
        self.readable.store(true, Ordering::Relaxed);
    }

    /// From now on PostgreSQL takes writes.
    pub fn allow_writes(&self) {
        self.writable.store(true, Ordering::Relaxed);
    }

    /// From now on the views have what was written before the start.
    pub fn serve(&self) {
        self.allow_reads();
        if !self.serving.swap(true, Ordering::Relaxed) {
            tracing::info!("serving");
        }
    }

    /// The process was told to end.
    pub fn leave(&self) {
        self.leaving.store(true, Ordering::Relaxed);
    }

    /// The way of a commit, in its order.
    fn way(&self) -> Vec<&Station> {
        let Stations { postgresql, stream, log, dataflows, facts, rows, home, search, reactions, kafka, .. } = self;
        match self.role {
            Role::Everything => vec![postgresql, stream, log, dataflows, facts, rows, home, search, reactions],
            Role::Capture => vec![postgresql, stream, log, kafka],
            Role::Serve => vec![postgresql, facts, rows, home, search, reactions],
            Role::Run { searches: true } => vec![kafka, dataflows, facts, rows, home, search, reactions],
            Role::Run { searches: false } => vec![kafka, dataflows, facts, rows, home, reactions],
        }
    }

    /// What others read: home timelines, for which all else is there but reactions, or the topics.
    fn served(&self) -> &Station {
        match self.role {
            Role::Everything | Role::Serve | Role::Run { .. } => &self.home,
            Role::Capture => &self.kafka,
        }
    }

    /// What takes long and ends: the steps of a start, and a replay once one was asked for.
    fn works(&self) -> impl Iterator<Item = &Work> {
        let replay = Some(&self.replay).filter(|replay| replay.has_begun());
        let begin = match self.role {
            Role::Everything => vec![&self.copy, &self.load, &self.catch_up],
            Role::Capture => vec![&self.copy, &self.publish, &self.catch_up],
            Role::Run { .. } => vec![&self.load, &self.catch_up],
            Role::Serve => vec![&self.load],
        };
        begin.into_iter().chain(replay)
    }

    /// Reads everything, remembers where it was for the speeds, and tells.
    pub(super) fn observe(&self) -> Report {
        self.looks.read().iter().for_each(|look| look(self));
        let now = Instant::now();
        let seen: Vec<_> = self.way().into_iter().map(|station| station.seen(now)).collect();
        let stages = judge::stages(&seen, now);
        let served = self.served().seen(now).position;
        let served_age_ms = served.filter(|at| at.time > 0).map(|at| now_ms().saturating_sub(at.time));
        let stands_still = stages.iter().find_map(|(stage, since)| {
            let still = stage.state == StageState::StandsStill;
            let since = since.filter(|_| still)?;
            Some(StandsStill {
                stage: stage.name.clone(),
                since: timestamp(since, now),
                for_ms: millis(now.saturating_duration_since(since)),
                reason: stage.reason.clone().unwrap_or_default(),
            })
        });
        let slot = self.slot.lock().clone();
        let alarms = self.alarms.judge(
            &Findings {
                slot: slot.as_ref(),
                served_age_ms: served_age_ms.filter(|_| self.serving()),
                quarantined: self.quarantined.load(Ordering::Relaxed),
                anomalies: self.anomalies.load(Ordering::Relaxed),
                disk_free: self.disk_free.load(Ordering::Relaxed),
                unsearchable: self.unsearchable.load(Ordering::Relaxed),
                stands_still: stands_still.as_ref(),
            },
            now,
        );
        let well = stands_still.is_none() && !alarms.iter().any(|alarm| alarm.raised);
        Report {
            status: if well { Status::Alive } else { Status::Degraded },
            serving: self.serving(),
            stands_still,
            steps: self.works().map(|work| work.step(now)).collect(),
            stages: stages.into_iter().map(|(stage, _)| stage).collect(),
            slot,
            log: self.log_size.lock().clone(),
            served_age_ms,
            alarms,
        }
    }
}

impl Health for Stations {
    fn serving(&self) -> bool {
        self.serving.load(Ordering::Relaxed)
    }

    fn readable(&self) -> bool {
        self.readable.load(Ordering::Relaxed)
    }

    fn writable(&self) -> bool {
        self.writable.load(Ordering::Relaxed)
    }

    fn leaving(&self) -> bool {
        self.leaving.load(Ordering::Relaxed)
    }

    fn rebuilding(&self) -> Option<String> {
        let replaying = self.replaying.read();
        let missing: Vec<&str> = replaying
            .iter()
            .filter(|phase| matches!(phase, Phase::Facts | Phase::Rows | Phase::Reactions))
            .map(|phase| phase.name())
            .collect();
        if missing.is_empty() {
            return None;
        }
        let step = self.replay.told();
        let percent = step.percent.map_or(String::new(), |percent| format!(", {percent:.0} % are done"));
        let left = step.eta_seconds.map_or(String::new(), |seconds| format!(", about {seconds} s to go"));
        Some(format!("The {} are being built again from the change log{percent}{left}.", missing.join(" and ")))
    }

    fn report(&self) -> Report {
        self.observe()
    }
}

/// When `at` was, as RFC 3339 by this machine's clock.
fn timestamp(at: Instant, now: Instant) -> String {
    let ms = now_ms().saturating_sub(millis(now.saturating_duration_since(at)));
    let at = jiff::Timestamp::from_millisecond(i64::try_from(ms).unwrap_or(i64::MAX));
    at.map(|at| format!("{at:.3}")).unwrap_or_default()
}

fn millis(duration: std::time::Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
