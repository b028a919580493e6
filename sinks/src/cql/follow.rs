//! How far the stores are, for a process that reads what others write.
//!
//! ```text
//!   state: generations, history ─┐  every 100 ms, and every 20 ms while somebody waits for a write
//!   progress: rows of shards ────┴──► Standing ──► Progress, Changes ──► who waits, who shows it live
//!                                         ▲
//!   a read: begins if the store can be read ┴ counts if it still can, and that was looked at lately
//! ```
//!
//! Why what is told is right: the writers record a closed time when all that it brings to a shard is acknowledged, facts before
//! rows before home timelines and reactions, so a read that begins after the least of the shards was found at a time has at least that time.
//!
//! Why nothing is read that was emptied, facts above all: a store that is built again gets another generation at least [`LEASE`]
//! before anything of it is truncated. What was read counts only if the generation was looked at after the reading had begun to
//! be that old, by this machine's clock alone: then it was that of a whole store when it was read. And a generation says before
//! which time it is not to be read, so that facts never judge what is newer than themselves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_model::{Lsn, Parameters, Phase, Position, SourceId};
use futures::future::try_join_all;
use parking_lot::{Mutex, RwLock};
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::cluster::Cluster;
use super::fault::{CqlError, Fault};
use super::ledger::{LEASE, ProgressRow, least, progress_in};
use super::read::{FACTS, HOME, REACTIONS, ROWS};
use super::state::{Generation, History, State, Told, is_same_system};
use super::statement::Statement;
use crate::{Changes, Progress, ReadError, Rebuilding};

/// Stores whose progress is followed, in the order of [`PHASES`].
const STORES: [&str; 4] = [FACTS, ROWS, HOME, REACTIONS];
const PHASES: [Phase; 4] = [Phase::Facts, Phase::Rows, Phase::Home, Phase::Reactions];
/// How often it is looked, and while somebody waits for more than is there.
const LOOK_EVERY: Duration = Duration::from_millis(100);
const LOOK_AWAITED: Duration = Duration::from_millis(20);
/// How long what nobody wrote may go untold.
const TOLD_EVERY: Duration = Duration::from_secs(60);
/// After a failure; it doubles with each.
const LOOK_AGAIN: Duration = Duration::from_millis(100);
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(1);
/// How old a look may be for what was read since to count. The writers wait longer.
const TRUSTED_FOR: Duration = LEASE.saturating_sub(Duration::from_secs(1));

/// What a look has found.
struct Standing {
    told: Told,
    /// Rows of progress of each store.
    rows: [Arc<[ProgressRow]>; 4],
    /// When it was begun.
    looked: Instant,
}

impl Standing {
    /// How far a store is, if it can be read.
    fn readable(&self, index: usize) -> Option<Position> {
        let (rows, generation) = (self.rows.get(index)?, self.told.generations.get(index)?);
        least(rows).filter(|least| least.time >= generation.due)
    }

    fn is_trusted(&self) -> bool {
        self.looked.elapsed() < TRUSTED_FOR
    }

    fn begin_read(&self, phase: Phase, what: &'static str) -> Result<Begun, ReadError> {
        let index = index(phase);
        // While home timelines are built again there are no records, and who reads merges.
        if phase != Phase::Home && self.readable(index).is_none() {
            return Err(ReadError { store: "CQL", what, source: Box::new(Rebuilding(phase)) });
        }
        if !self.is_trusted() {
            return Err(Fault::Unfollowed(self.looked.elapsed()).read(what));
        }
        Ok(Begun(phase, self.told.generations.get(index).copied().unwrap_or_default()))
    }
}

/// What is known of the stores of a keyspace that others write.
pub(super) struct Followed {
    pub(super) progress: Arc<Progress>,
    pub(super) changes: Changes,
    pub(super) parameters: Parameters,
    standing: RwLock<Standing>,
    /// The ends of what was told last, and when that was.
    told: Mutex<Option<([Lsn; 4], Instant)>>,
    source: watch::Sender<SourceId>,
    /// Why it cannot be looked at now.
    away: RwLock<Option<String>>,
    /// Why it is not followed any more.
    fault: watch::Sender<Option<Arc<CqlError>>>,
}

/// A read that has begun.
#[derive(Clone, Copy, Debug)]
pub(super) struct Begun(Phase, Generation);

/// Follows as long as it lives.
pub(super) struct Following {
    pub(super) followed: Arc<Followed>,
    task: AbortHandle,
}

impl Drop for Following {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Followed {
    /// Looks for the first time, and then again and again.
    pub(super) async fn begin(cluster: &Arc<Cluster>, parameters: Parameters) -> Result<Following, CqlError> {
        let standing = look(cluster, &parameters).await?;
        let progress = Progress::following();
        progress.begin_history(standing.told.history.since);
        let source = watch::Sender::new(standing.told.history.source.clone());
        let followed = Arc::new(Followed {
            progress: Arc::new(progress),
            changes: Changes::default(),
            parameters,
            standing: RwLock::new(standing),
            told: Mutex::default(),
            source,
            away: RwLock::default(),
            fault: watch::Sender::new(None),
        });
        followed.tell();
        let task = tokio::spawn(follow(Arc::clone(cluster), Arc::clone(&followed))).abort_handle();
        Ok(Following { followed, task })
    }

    /// A read of `phase` begins.
    pub(super) fn begin_read(&self, phase: Phase, what: &'static str) -> Result<Begun, ReadError> {
        self.standing.read().begin_read(phase, what)
    }

    /// A read of home timelines begins, which are so far.
    pub(super) fn begin_homes(&self, what: &'static str) -> Result<(Begun, Arc<[ProgressRow]>), ReadError> {
        let standing = self.standing.read();
        let [_, _, home, _] = &standing.rows;
        Ok((standing.begin_read(Phase::Home, what)?, Arc::clone(home)))
    }

    /// Whether what was read since counts.
    pub(super) fn end_read(&self, Begun(phase, generation): Begun, what: &'static str) -> Result<(), ReadError> {
        let standing = self.standing.read();
        if standing.told.generations.get(index(phase)) != Some(&generation) {
            return Err(ReadError { store: "CQL", what, source: Box::new(Rebuilding(phase)) });
        }
        if !standing.is_trusted() {
            return Err(Fault::Unfollowed(standing.looked.elapsed()).read(what));
        }
        Ok(())
    }

    /// The source of what is read. It changes when the database is restored or fails over.
    pub(super) fn source(&self) -> watch::Receiver<SourceId> {
        self.source.subscribe()
    }

    /// Stores that are not whole.
    pub(super) fn missing(&self) -> Vec<Phase> {
        let standing = self.standing.read();
        let missing = PHASES.iter().enumerate().filter(|(index, _)| standing.readable(*index).is_none());
        missing.map(|(_, phase)| *phase).collect()
    }

    pub(super) fn away(&self) -> Option<String> {
        self.away.read().clone()
    }

    /// Waits until it cannot be followed any more; gives why.
    pub(super) async fn fault(&self) -> Arc<CqlError> {
        let mut fault = self.fault.subscribe();
        match fault.wait_for(Option::is_some).await.ok().and_then(|fault| fault.clone()) {
            Some(fault) => fault,
            None => std::future::pending().await,
        }
    }

    /// Tells what the last look has found, which can be read now.
    fn tell(&self) {
        let [facts, rows, home, reactions] = {
            let standing = self.standing.read();
            [0, 1, 2, 3].map(|index| standing.readable(index))
        };
        // They were read side by side, while the writers went on: home timelines and reactions have a closed time after the rows,
        // and those after the facts.
        let later = |one: Option<Position>, other: Option<Position>| {
            one.map(|one| other.filter(|other| other.time > one.time).unwrap_or(one))
        };
        let rows = later(later(rows, home), reactions);
        let facts = later(facts, rows);
        let found = |position: Option<Position>| position.unwrap_or_default();
        let merged = found(facts).time.min(found(rows).time);
        let home = home.unwrap_or(Position { time: merged, lsn: Lsn(0) });
        let positions = [found(facts), found(rows), home, found(reactions)];
        // Whoever is woken by the progress knows that something may have changed. Where nothing was committed nothing has, but for
        // what changes with the time alone.
        let mut told = self.told.lock();
        let now = Instant::now();
        if told.is_none_or(|(lsns, at)| lsns != positions.map(|position| position.lsn) || at + TOLD_EVERY <= now) {
            *told = Some((positions.map(|position| position.lsn), now));
            self.changes.tell_unnamed();
        }
        drop(told);
        for (phase, position) in PHASES.into_iter().zip(positions) {
            self.progress.found(phase, position);
        }
    }

    /// Takes over what a look has found; an error is final.
    fn take(&self, found: Standing) -> Result<(), CqlError> {
        let mut standing = self.standing.write();
        let History { source, since } = &found.told.history;
        let before = &standing.told.history;
        if *before != found.told.history {
            if !is_same_system(&before.source, source) {
                return Err(CqlError::Replaced { found: source.to_string(), expected: before.source.to_string() });
            }
            tracing::warn!("what is read is of {source} from now on, and was of {}", before.source);
            self.progress.begin_history(*since);
            self.source.send_replace(source.clone());
        }
        *standing = found;
        drop(standing);
        self.tell();
        Ok(())
    }
}

const fn index(phase: Phase) -> usize {
    match phase {
        Phase::Facts => 0,
        Phase::Rows | Phase::Search => 1,
        Phase::Home => 2,
        Phase::Reactions => 3,
    }
}

async fn look(cluster: &Cluster, parameters: &Parameters) -> Result<Standing, CqlError> {
    let looked = Instant::now();
    let keyspace = &cluster.settings.keyspace;
    let empty = || CqlError::Empty { servers: cluster.settings.servers(), keyspace: keyspace.clone() };
    let told = State::new(cluster).told(STORES, parameters.fanout_days).await?.ok_or_else(empty)?;
    let stores = STORES.into_iter().zip(told.generations);
    let rows = try_join_all(stores.map(|(store, generation)| async move {
        let rows = progress_in(&cluster.page(Statement::ProgressRead, (store, generation.number)).await?)?;
        Ok::<Arc<[ProgressRow]>, Fault>(rows.into())
    }));
    let failed = |source: Fault| CqlError::Engine {
        tried: "read the progress",
        keyspace: keyspace.clone(),
        source: Box::new(source),
    };
    let rows = <[Arc<[ProgressRow]>; 4]>::try_from(rows.await.map_err(failed)?).unwrap_or_default();
    Ok(Standing { told, rows, looked })
}

async fn follow(cluster: Arc<Cluster>, followed: Arc<Followed>) {
    let mut wanted = followed.progress.wanted();
    let mut again = LOOK_AGAIN;
    loop {
        let pause = match (followed.away().is_some(), followed.progress.is_awaited()) {
            (true, _) => again,
            (false, true) => LOOK_AWAITED,
            (false, false) => LOOK_EVERY,
        };
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            changed = wanted.changed(), if followed.away().is_none() => {
                if changed.is_err() {
                    return;
                }
                tokio::time::sleep(LOOK_AWAITED).await;
            }
        }
        let taken = match look(&cluster, &followed.parameters).await {
            Ok(found) => followed.take(found),
            Err(error) => Err(error),
        };
        match taken {
            Ok(()) => {
                if followed.away.write().take().is_some() {
                    tracing::info!("how far the stores are can be read again");
                }
                again = LOOK_AGAIN;
            }
            Err(error) if error.may_pass() => {
                let told = error.to_string();
                metrics::counter!("feedmill_follow_failures_total").increment(1);
                if followed.away.write().replace(told.clone()).is_none() {
                    tracing::warn!("how far the stores are cannot be read, and is asked again: {told}");
                }
                again = (again * 2).min(LOOK_AGAIN_MAX);
            }
            Err(error) => {
                followed.fault.send_replace(Some(Arc::new(error)));
                return;
            }
        }
    }
}
