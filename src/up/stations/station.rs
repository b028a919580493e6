//! Where one part stands, and how it got there.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use feedmill_model::{Lsn, Position};
use parking_lot::Mutex;

/// Speeds are over so much of the past.
const SPEED_WINDOW: Duration = Duration::from_secs(5);
/// When a station passed a position is known for so long.
const REMEMBERED: Duration = Duration::from_secs(60);
/// Positions are remembered at most so often.
const SAMPLE: Duration = Duration::from_millis(150);

/// Where one part of the process stands. Reporting takes a lock that nobody holds for long.
pub struct Station {
    name: &'static str,
    /// It shows signs of life also when it does not move: it is asked every second.
    answers: bool,
    inner: Mutex<Inner>,
}

#[derive(Default)]
struct Inner {
    position: Option<Position>,
    saved: Option<Lsn>,
    counts: Counts,
    moved: Option<Instant>,
    moved_in_log: Option<Instant>,
    heard: Option<Instant>,
    midway: Option<Instant>,
    waits: Option<(Instant, String)>,
    /// Whether it waits because it was asked to.
    held: bool,
    at_work: BTreeMap<u64, (Instant, String)>,
    works_begun: u64,
    samples: VecDeque<Sample>,
}

/// What went through a station since the start.
#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    transactions: Option<u64>,
    changes: Option<u64>,
    deliveries: Option<u64>,
}

/// Where a station was.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sample {
    pub at: Instant,
    pub position: Position,
    counts: Counts,
}

/// While this lives, the station is at work on one thing.
pub struct AtWork<'a> {
    station: &'a Station,
    number: u64,
}

impl Drop for AtWork<'_> {
    fn drop(&mut self) {
        self.station.inner.lock().at_work.remove(&self.number);
    }
}

impl Station {
    /// A part that moves when the one before it has more.
    pub(super) fn new(name: &'static str) -> Self {
        Station { name, answers: false, inner: Mutex::default() }
    }

    /// A part that also shows signs of life when there is nothing to do, at least every second.
    pub(super) fn answering(name: &'static str) -> Self {
        Station { name, answers: true, inner: Mutex::default() }
    }

    /// It stands at `lsn`.
    pub fn moved(&self, lsn: Lsn) {
        self.reached(Position { time: 0, lsn });
    }

    /// It stands at `position`. One that is no other than before is no movement.
    pub fn reached(&self, position: Position) {
        let mut inner = self.inner.lock();
        if inner.position == Some(position) {
            return;
        }
        let now = Instant::now();
        if inner.position.is_none_or(|before| before.lsn != position.lsn) {
            inner.moved_in_log = Some(now);
        }
        inner.position = Some(position);
        inner.moved = Some(now);
        inner.heard = Some(now);
        inner.midway = None;
        inner.waits = None;
    }

    /// It shows a sign of life, whether it has moved or not; it does not wait any more.
    pub fn goes_on(&self) {
        let mut inner = self.inner.lock();
        inner.heard = Some(Instant::now());
        inner.waits = None;
    }

    /// It cannot go on, and why. While it says so again and again it has waited since the first time.
    pub fn waiting(&self, reason: impl Into<String>) {
        let mut inner = self.inner.lock();
        let since = inner.waits.take().map_or_else(Instant::now, |(since, _)| since);
        inner.waits = Some((since, reason.into()));
        inner.held = false;
    }

    /// It was asked to wait, for what, and will be told to go on: no standstill, however long it takes.
    pub fn held(&self, reason: impl Into<String>) {
        self.waiting(reason);
        self.inner.lock().held = true;
    }

    /// It has taken a part of a large transaction, at whose end it will move.
    pub fn midway(&self) {
        self.inner.lock().midway = Some(Instant::now());
    }

    /// Transactions and changes of rows went through it.
    pub fn counted(&self, transactions: u64, changes: u64) {
        let counts = &mut self.inner.lock().counts;
        *counts.transactions.get_or_insert(0) += transactions;
        *counts.changes.get_or_insert(0) += changes;
    }

    /// Changes of rows went through it, and it does not know of how many transactions.
    pub fn changed(&self, changes: u64) {
        *self.inner.lock().counts.changes.get_or_insert(0) += changes;
    }

    /// So many entries have entered or left home timelines since the start.
    pub fn delivered(&self, deliveries: u64) {
        self.inner.lock().counts.deliveries = Some(deliveries);
    }

    /// So far it is on disk.
    pub fn saved(&self, lsn: Lsn) {
        self.inner.lock().saved = Some(lsn);
    }

    /// It begins something that it may take long for, or never end.
    pub fn at_work(&self, what: impl Into<String>) -> AtWork<'_> {
        let mut inner = self.inner.lock();
        inner.works_begun += 1;
        let number = inner.works_begun;
        inner.at_work.insert(number, (Instant::now(), what.into()));
        AtWork { station: self, number }
    }

    /// Everything that is known now; remembers the position for the speeds.
    pub(super) fn seen(&self, now: Instant) -> Seen {
        let mut inner = self.inner.lock();
        if let Some(position) = inner.position
            && inner.samples.back().is_none_or(|last| now.saturating_duration_since(last.at) >= SAMPLE)
        {
            let counts = inner.counts;
            inner.samples.push_back(Sample { at: now, position, counts });
            while inner.samples.front().is_some_and(|oldest| now.saturating_duration_since(oldest.at) > REMEMBERED) {
                inner.samples.pop_front();
            }
        }
        let oldest_work = inner.at_work.values().min_by_key(|(since, _)| *since).cloned();
        Seen {
            name: self.name,
            answers: self.answers,
            position: inner.position,
            saved: inner.saved,
            moved: inner.moved,
            moved_in_log: inner.moved_in_log,
            heard: inner.heard,
            midway: inner.midway,
            waits: inner.waits.clone(),
            held: inner.held && inner.waits.is_some(),
            at_work: oldest_work,
            speeds: speeds(&inner, now),
            samples: inner.samples.iter().copied().collect(),
        }
    }
}

/// A station at one moment.
pub(super) struct Seen {
    pub name: &'static str,
    pub answers: bool,
    pub position: Option<Position>,
    pub saved: Option<Lsn>,
    pub moved: Option<Instant>,
    pub moved_in_log: Option<Instant>,
    pub heard: Option<Instant>,
    pub midway: Option<Instant>,
    pub waits: Option<(Instant, String)>,
    pub held: bool,
    pub at_work: Option<(Instant, String)>,
    pub speeds: Speeds,
    pub samples: Vec<Sample>,
}

/// How fast a station moves, in units a second.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Speeds {
    pub bytes: f64,
    pub transactions: Option<f64>,
    pub changes: Option<f64>,
    pub deliveries: Option<f64>,
}

fn speeds(inner: &Inner, now: Instant) -> Speeds {
    let recent = |sample: &&Sample| now.saturating_duration_since(sample.at) <= SPEED_WINDOW;
    let (Some(then), Some(position)) = (inner.samples.iter().find(recent), inner.position) else {
        return Speeds::default();
    };
    let seconds = now.saturating_duration_since(then.at).as_secs_f64();
    if seconds < SAMPLE.as_secs_f64() {
        return Speeds::default();
    }
    let of = |before: u64, after: u64| after.saturating_sub(before) as f64 / seconds;
    let counted = |before: Option<u64>, after: Option<u64>| after.map(|after| of(before.unwrap_or(0), after));
    Speeds {
        bytes: of(then.position.lsn.0, position.lsn.0),
        transactions: counted(then.counts.transactions, inner.counts.transactions),
        changes: counted(then.counts.changes, inner.counts.changes),
        deliveries: counted(then.counts.deliveries, inner.counts.deliveries),
    }
}
