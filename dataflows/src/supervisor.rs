//! What the workers, the feeder and the owner of the dataflows share: how far the stores are, and whether to go on.
//!
//! The first failure of any worker stops all: those that wait are woken, and each leaves its loop.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::Thread;

use feedmill_model::{Applied, StoreError};

use crate::RuntimeError;

/// Shared by all threads of one runtime.
pub(crate) struct Supervisor {
    stopping: AtomicBool,
    anomalies: AtomicU64,
    applied: Mutex<Applied>,
    failure: Mutex<Option<RuntimeError>>,
    workers: Mutex<Vec<Thread>>,
}

/// What these locks guard is whole at every instant, so a panic elsewhere does not spoil it.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Supervisor {
    /// Of a runtime whose stores are this far before it has begun.
    pub(crate) fn new(applied: Applied) -> Self {
        Supervisor {
            stopping: AtomicBool::new(false),
            anomalies: AtomicU64::new(0),
            applied: Mutex::new(applied),
            failure: Mutex::new(None),
            workers: Mutex::new(Vec::new()),
        }
    }

    /// The current thread is a worker, to be woken when there is something to do.
    pub(crate) fn enlist(&self) {
        lock(&self.workers).push(std::thread::current());
    }

    /// Wakes all workers.
    pub(crate) fn wake(&self) {
        lock(&self.workers).iter().for_each(Thread::unpark);
    }

    /// Asks all workers to end.
    pub(crate) fn stop(&self) {
        self.stopping.store(true, Ordering::Release);
        self.wake();
    }

    /// Whether the workers are to end.
    pub(crate) fn stopping(&self) -> bool {
        self.stopping.load(Ordering::Acquire)
    }

    /// Ends all workers because of `failure`, unless another came first.
    pub(crate) fn fail(&self, failure: RuntimeError) {
        tracing::error!(error = %failure, "the dataflows stop");
        lock(&self.failure).get_or_insert(failure);
        self.stop();
    }

    /// A store refused a closed time.
    pub(crate) fn refused(&self, error: StoreError) {
        self.fail(RuntimeError::Store(Arc::new(error)));
    }

    /// What went wrong first.
    pub(crate) fn failure(&self) -> Option<RuntimeError> {
        lock(&self.failure).clone()
    }

    /// Something that cannot be was seen in changes of a view, `count` times; the stores were given the likeliest.
    pub(crate) fn anomaly(&self, view: &str, time: feedmill_model::Time, count: u64) {
        if count > 0 {
            self.anomalies.fetch_add(count, Ordering::Relaxed);
            tracing::error!(view, time, count, "rows with a multiplicity other than one: run `feedmill verify`");
        }
    }

    /// How many anomalies there were.
    pub(crate) fn anomalies(&self) -> u64 {
        self.anomalies.load(Ordering::Relaxed)
    }

    /// How far the stores are.
    pub(crate) fn applied(&self) -> Applied {
        *lock(&self.applied)
    }

    /// The stores are this far; `false` if they were before.
    pub(crate) fn advance(&self, applied: Applied) -> bool {
        let before = std::mem::replace(&mut *lock(&self.applied), applied);
        before != applied
    }
}
