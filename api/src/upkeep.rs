//! What an instance does beside requests: it learns which sessions ended elsewhere and which keys are new, and removes
//! what nobody needs any more.
//!
//! ```text
//!   each second   sessions revoked lately ──► Revoked        key file, if it was written ──► Keys
//!   each minute   sessions and idempotency keys that expired, a thousand a statement
//!   when asked    what is left of accounts that were deleted, a thousand rows of each relation a transaction
//! ```
//!
//! Whatever fails is tried again at its next time. Instances side by side take different rows, because each skips those
//! that another has locked.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{MissedTickBehavior, interval};

use crate::database::{Database, DatabaseError, column};
use crate::erasure;
use crate::keys::Keys;
use crate::sessions::Revoked;

/// How often sessions and keys are looked at.
const WATCH: Duration = Duration::from_secs(1);
/// How often what has expired is removed.
const SWEEP: Duration = Duration::from_secs(60);
/// Statements of one kind that a sweep sends at most; what is left waits for the next.
const STATEMENTS_MAX: usize = 100;
/// The pause between two, so that others come in between.
const PAUSE: Duration = Duration::from_millis(20);
/// Rows that a statement removes.
const ROWS_MAX: i64 = 1_000;

/// What can be renewed no more. One that was revoked is kept a day: no access token holds longer.
const SESSIONS: &str = "
    WITH gone AS (
        DELETE FROM sessions WHERE id IN (
            SELECT id FROM sessions WHERE expires_at < now() OR revoked_at < now() - interval '1 day'
            LIMIT $1 FOR UPDATE SKIP LOCKED)
        RETURNING true
    )
    SELECT count(*) FROM gone";

/// Answers of requests that nobody sends again.
const IDEMPOTENCY_KEYS: &str = "
    WITH old AS (
        SELECT user_id, key FROM idempotency_keys WHERE created_at < now() - interval '24 hours'
        LIMIT $1 FOR UPDATE SKIP LOCKED
    ), gone AS (
        DELETE FROM idempotency_keys k USING old WHERE k.user_id = old.user_id AND k.key = old.key RETURNING true
    )
    SELECT count(*) FROM gone";

/// The tasks; they end with this.
pub(crate) struct Upkeep {
    tasks: [AbortHandle; 2],
    /// Somebody deleted an account.
    erase: Arc<Notify>,
}

impl Upkeep {
    pub fn start(database: &Database, keys: &Keys, revoked: &Arc<Revoked>) -> Self {
        let erase = Arc::new(Notify::new());
        let watching = tokio::spawn(watch(database.clone(), keys.clone(), Arc::clone(revoked)));
        let sweeping = tokio::spawn(sweep(database.clone(), Arc::clone(&erase)));
        Upkeep { tasks: [watching.abort_handle(), sweeping.abort_handle()], erase }
    }

    /// An account was deleted of which something is left.
    pub fn erase(&self) {
        self.erase.notify_one();
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.tasks.iter().for_each(AbortHandle::abort);
    }
}

/// Says when something that worked begins to fail, or has not worked yet for long, and when it works; not each time.
struct Trouble {
    what: &'static str,
    worked: bool,
    failures: u32,
}

/// So often something fails that never worked before that is told: PostgreSQL may be starting.
const FIRST_FAILURES: u32 = 10;

impl Trouble {
    fn with(what: &'static str) -> Self {
        Trouble { what, worked: false, failures: 0 }
    }

    fn saw<T>(&mut self, outcome: Result<T, impl std::fmt::Display>) {
        let told_at = if self.worked { 1 } else { FIRST_FAILURES };
        match outcome {
            Err(error) => {
                self.failures = self.failures.saturating_add(1);
                if self.failures == told_at {
                    tracing::warn!(%error, "{} does not work, and is tried again", self.what);
                }
            }
            Ok(_) => {
                if self.failures >= told_at {
                    tracing::info!("{} works again", self.what);
                }
                (self.worked, self.failures) = (true, 0);
            }
        }
    }
}

async fn watch(database: Database, keys: Keys, revoked: Arc<Revoked>) {
    let mut again = interval(WATCH);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut asking = Trouble::with("asking which sessions have ended");
    let mut reading = Trouble::with("reading the keys that sign tokens");
    loop {
        again.tick().await;
        asking.saw(revoked.ask(&database).await);
        let refreshed = keys.refresh();
        if matches!(refreshed, Ok(true)) {
            tracing::info!(?keys, "the keys that sign tokens were read again");
        }
        reading.saw(refreshed);
    }
}

async fn sweep(database: Database, erase: Arc<Notify>) {
    let mut sweeping = Trouble::with("removing what has expired");
    let mut erasing = Trouble::with("removing what is left of deleted accounts");
    let mut time = interval(SWEEP);
    time.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        let is_time = tokio::select! {
            _ = time.tick() => true,
            () = erase.notified() => false,
        };
        erasing.saw(erase_all(&database).await);
        if is_time {
            for sql in [SESSIONS, IDEMPOTENCY_KEYS] {
                sweeping.saw(remove(&database, sql).await);
            }
        }
    }
}

async fn remove(database: &Database, sql: &str) -> Result<(), DatabaseError> {
    for _ in 0..STATEMENTS_MAX {
        let rows = database.query(sql, &[&ROWS_MAX]).await?;
        let removed: i64 = rows.first().map_or(Ok(0), |row| column(row, 0))?;
        if removed < ROWS_MAX {
            break;
        }
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}

async fn erase_all(database: &Database) -> Result<(), DatabaseError> {
    while erasure::go_on(database).await? {
        tokio::time::sleep(PAUSE).await;
    }
    Ok(())
}
