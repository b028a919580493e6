//! What takes long and ends: a copy, a load.

use std::time::Instant;

use feedmill_api::Step;
use parking_lot::Mutex;

/// Progress of one work.
pub struct Work {
    name: &'static str,
    unit: &'static str,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    begun: Option<Instant>,
    ended: bool,
    completed: u64,
    total: Option<u64>,
    detail: String,
}

impl Work {
    /// A work that counts rows.
    pub(super) fn rows(name: &'static str) -> Self {
        Work { name, unit: "rows", inner: Mutex::default() }
    }

    /// A work that counts bytes.
    pub(super) fn bytes(name: &'static str) -> Self {
        Work { name, unit: "bytes", inner: Mutex::default() }
    }

    /// It begins, perhaps anew; `total` is how much there is, as far as it is known.
    pub fn begin(&self, total: Option<u64>, detail: impl Into<String>) {
        *self.inner.lock() =
            Inner { begun: Some(Instant::now()), ended: false, completed: 0, total, detail: detail.into() };
    }

    /// So much more is done.
    pub fn add(&self, completed: u64) {
        self.inner.lock().completed += completed;
    }

    /// So much is done in all.
    pub fn set(&self, completed: u64) {
        self.inner.lock().completed = completed;
    }

    /// It is completed.
    pub fn end(&self, detail: impl Into<String>) {
        let mut inner = self.inner.lock();
        inner.ended = true;
        inner.detail = detail.into();
    }

    /// Whether it has begun, and perhaps ended.
    pub(super) fn has_begun(&self) -> bool {
        self.inner.lock().begun.is_some()
    }

    /// How far it is now.
    pub fn told(&self) -> Step {
        self.step(Instant::now())
    }

    /// How far it is.
    pub(super) fn step(&self, now: Instant) -> Step {
        let inner = self.inner.lock();
        let share = inner.total.filter(|total| *total > 0).map(|total| inner.completed as f64 / total as f64);
        let took = inner.begun.map_or(0.0, |begun| now.saturating_duration_since(begun).as_secs_f64());
        let left =
            share.filter(|share| *share > 0.0 && !inner.ended).map(|share| took * (1.0 - share).max(0.0) / share);
        // A total is an estimate: only the end is all of it.
        let percent = share.map(|share| if inner.ended { 100.0 } else { (share * 100.0).min(99.0) });
        Step {
            name: self.name.to_owned(),
            begun: inner.begun.is_some() || inner.ended,
            done: inner.ended,
            detail: inner.detail.clone(),
            unit: self.unit.to_owned(),
            completed: inner.completed,
            total: inner.total,
            percent: percent.filter(|_| !inner.ended || inner.completed > 0),
            eta_seconds: left.map(|seconds| seconds.ceil() as u64),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn an_estimate_is_never_all_of_it() {
        let work = Work::rows("copy");
        let now = Instant::now();
        assert!(!work.step(now).begun);
        work.begin(Some(200), "8 connections");
        work.add(50);
        let step = work.step(Instant::now() + Duration::from_secs(10));
        assert_eq!((step.percent, step.done), (Some(25.0), false));
        assert!(step.eta_seconds.is_some_and(|seconds| (30..=31).contains(&seconds)), "{step:?}");
        work.add(200);
        assert_eq!(work.step(now).percent, Some(99.0));
        work.end("250 rows");
        let step = work.step(now);
        assert_eq!((step.percent, step.done, step.eta_seconds), (Some(100.0), true, None));
    }
}
