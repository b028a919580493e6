//! What those who hand over, those who read and the task that writes share.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use feedmill_model::{Position, StoreError, Time};
use parking_lot::{Condvar, Mutex};
use tokio::sync::{Notify, watch};

use super::backlog::Backlog;
use super::bulk::Pause;
use super::client::Failure;
use crate::search::Reached;

/// A wait that is shorter is not logged.
const WAIT_LOGGED: Duration = Duration::from_secs(1);

/// What ends the writing for good.
#[derive(Clone, Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(
        "a Feedmill with another data folder writes to {0} now: give each a prefix of its own in --search, or stop one of them"
    )]
    Another(String),
    #[error("{0} is not on the server any more, or was put back from a backup: start again, and it is built again")]
    Gone(String),
    #[error("the server refuses what an index of search needs: {0}")]
    Refused(String),
    #[error(
        "{count} documents do not fit, the last because of: {last}. Look whether a template of yours changes the fields of \
         the index, mend it, and have search built again by `feedmill replay search`"
    )]
    TooManyRefused { count: usize, last: String },
    #[error("what waits on disk could not be read: {0}")]
    Backlog(String),
    #[error("the task that writes it has ended")]
    Ended,
}

impl Fault {
    pub fn store(self, tried: impl Into<String>) -> StoreError {
        StoreError { store: "search", tried: tried.into(), source: Box::new(self) }
    }
}

/// What is handed over, and what became of it.
pub(super) struct State {
    /// What the task has not taken.
    pub backlog: Backlog,
    /// What was handed over, once all of the backlog is taken.
    pub accepted: Reached,
    /// The least of what is durable; `None` while something is missing.
    pub committed: Option<Position>,
    /// The index is to be begun anew, and to be read from this time on.
    pub begin: Option<Time>,
    /// Pieces that were handed over (to begin anew is one), and that were taken; up to which of them it is asked that all
    /// is durable, and up to which it is.
    pub pushed: u64,
    pub taken: u64,
    pub asked: u64,
    pub durable: u64,
    /// Why nothing is taken any more.
    pub fault: Option<Fault>,
    pub end: bool,
}

/// Shared by all.
pub(super) struct Shared {
    pub state: Mutex<State>,
    /// Something to do for the task.
    pub work: Notify,
    /// Something was taken or has become durable.
    pub moved: Condvar,
    /// What is found, for who waits for it; `None` while nothing can be read.
    pub found: watch::Sender<Option<Position>>,
    /// Documents that were refused.
    pub refused: AtomicU64,
    waiting: Mutex<Option<Waiting>>,
}

struct Waiting {
    since: Instant,
    reason: String,
    logged: bool,
}

impl Shared {
    pub fn new(state: State, found: Option<Position>) -> Self {
        Shared {
            state: Mutex::new(state),
            work: Notify::new(),
            moved: Condvar::new(),
            found: watch::Sender::new(found),
            refused: AtomicU64::new(0),
            waiting: Mutex::new(None),
        }
    }

    /// The server does not take something now, and it is tried again.
    pub fn waits(&self, reason: String) {
        let mut waiting = self.waiting.lock();
        let now =
            waiting.get_or_insert_with(|| Waiting { since: Instant::now(), reason: String::new(), logged: false });
        now.reason = reason;
        if !now.logged && now.since.elapsed() >= WAIT_LOGGED {
            now.logged = true;
            tracing::warn!("search waits for its server, and tries again: {}", now.reason);
        }
    }

    /// The server has taken something.
    pub fn goes_on(&self) {
        if let Some(waited) = self.waiting.lock().take().filter(|waited| waited.logged) {
            tracing::info!("search goes on after {:?}", waited.since.elapsed());
        }
    }

    /// Why it waits, if it does.
    pub fn waiting(&self) -> Option<String> {
        self.waiting.lock().as_ref().map(|waiting| waiting.reason.clone())
    }

    pub fn refused(&self, count: usize) {
        self.refused.store(count as u64, Ordering::Relaxed);
        metrics::gauge!("feedmill_search_refused_documents").set(count as f64);
    }

    /// Nothing more is taken, because of `fault`.
    pub fn fail(&self, fault: Fault) {
        self.state.lock().fault.get_or_insert(fault);
        self.moved.notify_all();
    }
}

/// Asks until it is answered. What asking again cannot cure is a fault.
pub(super) async fn insist<T, F>(shared: &Shared, mut ask: impl FnMut() -> F) -> Result<T, Fault>
where
    F: Future<Output = Result<T, Failure>>,
{
    let mut pause = Pause::default();
    loop {
        match ask().await {
            Ok(answer) => {
                shared.goes_on();
                return Ok(answer);
            }
            Err(Failure::Passing(reason)) => pause.wait(shared, reason).await,
            Err(Failure::Missing(told)) => return Err(Fault::Gone(told)),
            Err(Failure::Conflict(told)) => return Err(Fault::Another(told)),
            Err(Failure::Refused(told) | Failure::TooLarge(told)) => return Err(Fault::Refused(told)),
        }
    }
}
