//! Keeps the table `popular`: who has so many followers that their entries are merged at read instead of pushed.
//!
//! ```text
//!   closed follower counts ── users whose count changed ─► keeper ── INSERT/DELETE ─► PostgreSQL ─► log ─► hot
//! ```
//!
//! It goes through PostgreSQL, and so through the log, so that a replay sees the same accounts become popular at the
//! same times. In at `hot_followers`, out below 0.8 of it, so that a count that moves around the limit does not move
//! timelines. Of the processes that may derive an account's shard the one that holds an advisory lock writes; when it takes
//! the lock it compares all its accounts.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feedmill_connectors::postgres::Source;
use feedmill_model::{Closed, Counter, Lsn, Op, Position, RowSink, StoreError, ViewRow, shard_of};
use feedmill_sinks::{IndexStore, StoreViews};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

/// Users of changed count that are remembered; beyond it all are compared.
const CHANGED_MAX: usize = 1 << 20;
/// Rows that one statement writes, and with [`ROUND`] the rate at which accounts become popular or stop being so.
const ROWS_A_ROUND: usize = 1_000;
/// Pause between rounds.
const ROUND: Duration = Duration::from_millis(200);
/// Pause before another attempt to take the lock, or to connect again.
const RETRY: Duration = Duration::from_secs(5);
/// Key of the advisory lock of whoever has the first shard: "feedmill" in ASCII. Of the others the shard's number is added.
const LOCK: i64 = 0x6665_6564_6d69_6c6c;

/// The store of rows, watched for changes of follower counts.
pub struct Watched {
    index: Arc<dyn IndexStore>,
    changed: Mutex<Changed>,
}

#[derive(Default)]
struct Changed {
    users: HashSet<i64>,
    all: bool,
}

impl Watched {
    /// Watches `index`.
    pub fn new(index: Arc<dyn IndexStore>) -> Self {
        Watched { index, changed: Mutex::default() }
    }

    fn take(&self) -> Changed {
        std::mem::take(&mut self.changed.lock())
    }

    fn give_back(&self, users: impl IntoIterator<Item = i64>) {
        self.changed.lock().users.extend(users);
    }
}

impl RowSink<ViewRow> for Watched {
    fn progress(&self) -> Vec<Option<Position>> {
        RowSink::<ViewRow>::progress(&*self.index)
    }

    fn apply(&self, closed: &Closed<ViewRow>) -> Result<(), StoreError> {
        RowSink::<ViewRow>::apply(&*self.index, closed)?;
        let users = closed.ops.iter().filter_map(|(_, op)| match op {
            Op::Add(ViewRow::Count { counter: Counter::Followers, of }, _) => Some(*of),
            _ => None,
        });
        let mut users = users.peekable();
        if users.peek().is_some() {
            let mut changed = self.changed.lock();
            if !changed.all {
                changed.users.extend(users);
            }
            if changed.users.len() > CHANGED_MAX {
                *changed = Changed { users: HashSet::new(), all: true };
            }
        }
        Ok(())
    }
}

/// Keeps `popular` until shutdown, of the accounts in the shards `owned`, as bits.
pub async fn keep(
    source: Source,
    views: Arc<dyn StoreViews>,
    watched: Arc<Watched>,
    owned: u64,
    mut dataflows_loaded: watch::Receiver<bool>,
    hot_followers: u64,
    shutdown: CancellationToken,
) {
    // All accounts are compared at the beginning, and a start has better things to do.
    tokio::select! {
        loaded = dataflows_loaded.wait_for(|loaded| *loaded) => if loaded.is_err() { return },
        () = shutdown.cancelled() => return,
    }
    let mut reached = views.progress().watch();
    let keeper = Keeper { views, watched, owned, hot: i64::try_from(hot_followers).unwrap_or(i64::MAX) };
    loop {
        // Until the counts are loaded, everyone would seem to have no followers; while they are loaded again, as a replay
        // does, reads of them fail and the session ends.
        tokio::select! {
            loaded = reached.wait_for(|[_, rows, ..]| rows.lsn > Lsn(0)) => if loaded.is_err() { return },
            () = shutdown.cancelled() => return,
        }
        let outcome = tokio::select! {
            outcome = keeper.session(&source) => outcome,
            () = shutdown.cancelled() => return,
        };
        if let Err(error) = outcome {
            tracing::warn!("popular accounts are not being kept: {error:#}; trying again in {RETRY:?}");
        }
        tokio::select! {
            () = tokio::time::sleep(RETRY) => {}
            () = shutdown.cancelled() => return,
        }
    }
}

struct Keeper {
    views: Arc<dyn StoreViews>,
    watched: Arc<Watched>,
    owned: u64,
    hot: i64,
}

impl Keeper {
    /// One connection: returns when another process holds the lock, fails when the connection is lost.
    async fn session(&self, source: &Source) -> anyhow::Result<()> {
        let client = source.connect("feedmill-popular").await?;
        let lock = LOCK + i64::from(self.owned.trailing_zeros());
        if !client.query_one("SELECT pg_try_advisory_lock($1)", &[&lock]).await?.try_get::<_, bool>(0)? {
            return Ok(());
        }
        let rows = client.query("SELECT user_id FROM popular", &[]).await.context("could not read popular accounts")?;
        let mut popular = rows.iter().map(|row| row.try_get(0)).collect::<Result<HashSet<i64>, _>>()?;
        popular.retain(|user| self.owns(*user));
        self.watched.changed.lock().all = true;
        let mut rounds = interval(ROUND);
        rounds.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            rounds.tick().await;
            let changed = self.watched.take();
            let candidates: Vec<i64> = if changed.all {
                let views = Arc::clone(&self.views);
                let limit = self.limit();
                let mut all =
                    tokio::task::spawn_blocking(move || followed_by_at_least(views.as_ref(), limit)).await??;
                all.extend(&popular);
                all.into_iter().filter(|user| self.owns(*user)).collect()
            } else {
                changed.users.into_iter().collect()
            };
            let done = self.round(&client, &mut popular, &candidates).await;
            if done.is_err() {
                self.watched.give_back(candidates);
            }
            done?;
        }
    }

    fn owns(&self, user: i64) -> bool {
        self.owned & 1 << shard_of(user) != 0
    }

    /// The least count with which an account stays popular: 0.8 of the limit, rounded up.
    fn limit(&self) -> i64 {
        (self.hot.saturating_mul(4)).div_euclid(5) + i64::from(self.hot % 5 != 0)
    }

    async fn round(&self, client: &Client, popular: &mut HashSet<i64>, candidates: &[i64]) -> anyhow::Result<()> {
        for users in candidates.chunks(ROWS_A_ROUND) {
            let (mut enter, mut leave) = (Vec::new(), Vec::new());
            for (user, profile) in users.iter().zip(self.views.profiles(users).await?) {
                let exists = profile.is_some();
                let followers = profile.map_or(0, |profile| profile.followers);
                match popular.contains(user) {
                    false if exists && followers >= self.hot => enter.push(*user),
                    true if followers < self.limit() => leave.push(*user),
                    _ => {}
                }
            }
            if enter.is_empty() && leave.is_empty() {
                continue;
            }
            // Whoever was deleted meanwhile is left out: the table refers to users.
            let statement = "WITH gone AS (DELETE FROM popular WHERE user_id = ANY($2))
                 INSERT INTO popular (user_id) SELECT id FROM users WHERE id = ANY($1) ON CONFLICT DO NOTHING";
            client.execute(statement, &[&enter, &leave]).await.context("could not write popular accounts")?;
            tracing::debug!("{} accounts became popular, {} stopped being so", enter.len(), leave.len());
            popular.retain(|user| !leave.contains(user));
            popular.extend(enter);
            tokio::time::sleep(ROUND).await;
        }
        Ok(())
    }
}

/// Users with at least `limit` followers, by the counts.
fn followed_by_at_least(views: &dyn StoreViews, limit: i64) -> anyhow::Result<HashSet<i64>> {
    let mut users = HashSet::new();
    views.counts(Counter::Followers, &mut |user, count| {
        if count >= limit {
            users.insert(user);
        }
    })?;
    Ok(users)
}
