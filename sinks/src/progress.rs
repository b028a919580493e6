//! How far the stores are, for whoever waits for a write to become visible.
//!
//! ```text
//!   feeder ── covers(position) ──► [ (time, lsn) … ]
//!   worker ── applied(frontiers) ──► the newest position before each frontier ──► watch ──► readers
//!   reader ── reached(phase, lsn) ──► wanted ──► capture asks PostgreSQL for a keepalive
//! ```
//!
//! A process that only reads what others write is told by `found` instead, of each phase for itself, and knows nothing of what
//! they have begun.
//!
//! A reader that holds a token waits for the position of the phase that it reads last needed; since phases follow one
//! another, a time that home or reactions have reached is in facts and rows too. Reactions may be seconds behind the others: what
//! is remembered of batches meanwhile are two numbers each.

use std::collections::VecDeque;
use std::time::{Duration, SystemTime};

use feedmill_model::{Applied, Lsn, Phase, Position, Time};
use parking_lot::Mutex;
use tokio::sync::watch;

/// For how long batches are remembered that every store has applied: a commit of search, and some more.
const REMEMBERED_MS: Time = 5_000;
/// By how much the clock of whoever mints times may run ahead of ours, where that is another process.
const CLOCK_AHEAD_MS: Time = 1_000;

/// Positions that the stores have reached, by phase.
#[derive(Debug)]
pub struct Progress {
    batches: Mutex<VecDeque<Position>>,
    /// Others write the stores.
    follows: bool,
    /// Positions of times before it are of another history.
    history: Mutex<Time>,
    reached: watch::Sender<[Position; 5]>,
    wanted: watch::Sender<Lsn>,
}

impl Progress {
    /// Facts, rows, home timelines, search and reactions start where they are: at these positions, whose `lsn` is 0 where there is
    /// nothing.
    pub fn new(reached: [Position; 5]) -> Self {
        Progress {
            batches: Mutex::default(),
            follows: false,
            history: Mutex::default(),
            reached: watch::Sender::new(reached),
            wanted: watch::Sender::new(Lsn(0)),
        }
    }

    /// Others write the stores: nothing is known yet of how far they are.
    pub fn following() -> Self {
        Progress { follows: true, ..Progress::new([Position::default(); 5]) }
    }

    /// The stores of `phase` were found to be at `position`, which is what a read from now on has at least. It may be less than
    /// before where they are built again.
    pub fn found(&self, phase: Phase, mut position: Position) {
        let history = self.history.lock();
        if position.time < *history {
            position.lsn = Lsn(0);
        }
        self.reached.send_if_modified(|reached| {
            let Some(reached) = reached.get_mut(phase as usize) else { return false };
            std::mem::replace(reached, position) != position
        });
    }

    /// Whether others write the stores: then it is not known what they are applying.
    pub(crate) const fn follows(&self) -> bool {
        self.follows
    }

    /// A batch is about to be handed to the dataflows, or to a part of them: several may hand over the same, and one may be behind
    /// the others.
    pub fn covers(&self, position: Position) {
        let mut batches = self.batches.lock();
        let at = batches.partition_point(|batch| batch.time < position.time);
        match batches.get_mut(at).filter(|batch| batch.time == position.time) {
            Some(batch) => batch.lsn = batch.lsn.max(position.lsn),
            None => batches.insert(at, position),
        }
    }

    /// The stores have applied every time before these frontiers. One that started later has more: it does not go back.
    pub fn applied(&self, applied: Applied) {
        let mut batches = self.batches.lock();
        let newest_before = |frontier: Time| {
            let end = batches.partition_point(|position| position.time < frontier);
            end.checked_sub(1).and_then(|index| batches.get(index)).copied()
        };
        let found = [applied.facts, applied.rows, applied.home, applied.search, applied.reactions].map(newest_before);
        self.reached.send_if_modified(|reached| {
            let before = *reached;
            for (reached, found) in reached.iter_mut().zip(found) {
                let order = |position: Position| (position.time, position.lsn);
                *reached = found.filter(|found| order(*found) > order(*reached)).unwrap_or(*reached);
            }
            before != *reached
        });
        let least = self.reached.borrow().map(|position| position.time).into_iter().min().unwrap_or(0);
        let least = least.saturating_sub(REMEMBERED_MS);
        while batches.get(1).is_some_and(|next| next.time <= least) {
            batches.pop_front();
        }
    }

    /// The stores of `phases` are built again: they have nothing of what anybody waits for. Home timelines are merged
    /// meanwhile from rows, so they are of the time that these are. Nothing is being applied now; what is handed to the
    /// dataflows from now on is handed to them anew.
    pub fn rebuild(&self, phases: &[Phase]) {
        let mut batches = self.batches.lock();
        batches.clear();
        self.reached.send_modify(|[facts, rows, home, search, reactions]| {
            let nothing = |time| Position { time, lsn: Lsn(0) };
            for phase in phases {
                match phase {
                    Phase::Facts => *facts = nothing(0),
                    Phase::Rows => *rows = nothing(0),
                    Phase::Home => *home = nothing(0),
                    Phase::Search => *search = nothing(0),
                    Phase::Reactions => *reactions = nothing(0),
                }
            }
            if phases.contains(&Phase::Home) {
                *home = nothing(rows.time.min(facts.time));
            }
        });
    }

    /// The newest position whose batch is applied in `phase`.
    pub fn position(&self, phase: Phase) -> Position {
        let reached = self.reached.borrow();
        let [facts, rows, home, search, reactions] = *reached;
        match phase {
            Phase::Facts => facts,
            Phase::Rows => rows,
            Phase::Home => home,
            Phase::Search => search,
            Phase::Reactions => reactions,
        }
    }

    /// The last time of which a store may have something: whatever was read before this call is of it or of an earlier one.
    pub fn begun(&self) -> Time {
        if self.follows {
            let now = SystemTime::UNIX_EPOCH.elapsed().unwrap_or_default();
            return u64::try_from(now.as_millis()).unwrap_or(u64::MAX).saturating_add(CLOCK_AHEAD_MS);
        }
        let handed_over = self.batches.lock().back().map_or(0, |position| position.time);
        self.reached.borrow().iter().map(|position| position.time).fold(handed_over, Time::max)
    }

    /// The time of the batch that covers what was committed before `lsn`, which a store has applied; of what lies further
    /// back than a few seconds, a later time. `None` if nothing is known of it.
    pub fn time_of(&self, lsn: Lsn) -> Option<Time> {
        let batches = self.batches.lock();
        let covers = batches.partition_point(|position| position.lsn < lsn);
        batches.get(covers).map(|position| position.time)
    }

    /// Waits until `phase` has everything that was committed before `lsn`; `false` when `limit` passes first.
    pub async fn reached(&self, phase: Phase, lsn: Lsn, limit: Duration) -> bool {
        if self.position(phase).lsn >= lsn {
            return true;
        }
        self.wanted.send_if_modified(|wanted| {
            let more = lsn > *wanted;
            *wanted = (*wanted).max(lsn);
            more
        });
        let mut reached = self.reached.subscribe();
        let index = phase as usize;
        let wait = reached.wait_for(|reached| reached.get(index).is_some_and(|position| position.lsn >= lsn));
        matches!(tokio::time::timeout(limit, wait).await, Ok(Ok(_)))
    }

    /// Positions in the source's log before the time `since` are of another history: they lie before all that come, and
    /// nobody waits for one any more.
    pub fn begin_history(&self, since: Time) {
        *self.history.lock() = since;
        let mut batches = self.batches.lock();
        let before = |position: &mut Position| {
            if position.time < since {
                position.lsn = Lsn(0);
            }
        };
        batches.iter_mut().for_each(before);
        self.reached.send_modify(|reached| reached.iter_mut().for_each(before));
        self.wanted.send_replace(Lsn(0));
    }

    /// Whether somebody has waited for more than facts, rows, home timelines and reactions have.
    pub(crate) fn is_awaited(&self) -> bool {
        let wanted = *self.wanted.borrow();
        let [facts, rows, home, _, reactions] = *self.reached.borrow();
        [facts, rows, home, reactions].iter().any(|position| position.lsn < wanted)
    }

    /// Changes whenever a store has reached a new position: facts, rows, home, search, reactions.
    pub fn watch(&self) -> watch::Receiver<[Position; 5]> {
        self.reached.subscribe()
    }

    /// The greatest position that a reader waits for; capture asks for a keepalive when it grows.
    pub fn wanted(&self) -> watch::Receiver<Lsn> {
        self.wanted.subscribe()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(time: Time, lsn: u64) -> Position {
        Position { time, lsn: Lsn(lsn) }
    }

    #[tokio::test]
    async fn a_phase_has_reached_the_newest_batch_before_its_frontier() {
        let progress = Progress::new([at(10, 100); 5]);
        progress.covers(at(10, 100));
        progress.covers(at(20, 200));
        progress.covers(at(30, 300));
        progress.applied(Applied { facts: 31, rows: 30, home: 20, search: 20, reactions: 20 });
        assert_eq!(progress.position(Phase::Facts), at(30, 300));
        assert_eq!(progress.position(Phase::Rows), at(20, 200));
        assert_eq!(progress.position(Phase::Home), at(10, 100));
        assert!(progress.reached(Phase::Facts, Lsn(300), Duration::ZERO).await);
        assert!(!progress.reached(Phase::Home, Lsn(101), Duration::ZERO).await);
        assert_eq!(*progress.wanted().borrow(), Lsn(101));
        progress.applied(Applied::at(31));
        assert!(progress.reached(Phase::Home, Lsn(300), Duration::ZERO).await);
    }

    #[test]
    fn a_position_has_the_time_of_its_batch_while_that_is_remembered() {
        let progress = Progress::new([at(0, 0); 5]);
        let times = [10, 20, 10_000, 20_000];
        times.into_iter().for_each(|time| progress.covers(at(time, time * 10)));
        let time_of = |lsn| progress.time_of(Lsn(lsn));
        assert_eq!([1, 100, 101, 200_000, 200_001].map(time_of), [Some(10), Some(10), Some(20), Some(20_000), None]);
        assert_eq!(progress.begun(), 20_000);
        progress.applied(Applied::at(20_001));
        assert_eq!([1, 200_000].map(time_of), [Some(10_000), Some(20_000)]);
    }

    #[test]
    fn a_store_that_is_built_again_has_nothing_and_the_others_what_they_had() {
        let progress = Progress::new([at(30, 300), at(20, 200), at(20, 200), at(30, 300), at(20, 200)]);
        progress.covers(at(30, 300));
        progress.rebuild(&[Phase::Home]);
        let reached = || Phase::ALL.map(|phase| progress.position(phase));
        assert_eq!(reached(), [at(30, 300), at(20, 200), at(20, 0), at(30, 300), at(20, 200)]);
        progress.rebuild(&[Phase::Rows, Phase::Home, Phase::Search, Phase::Reactions]);
        assert_eq!(reached(), [at(30, 300), at(0, 0), at(0, 0), at(0, 0), at(0, 0)]);
        // What was handed over before is handed over again, from the load on.
        progress.covers(at(20, 0));
        progress.applied(Applied::at(21));
        assert_eq!(reached(), [at(30, 300), at(20, 0), at(20, 0), at(20, 0), at(20, 0)]);
        progress.covers(at(30, 300));
        progress.applied(Applied::at(31));
        assert_eq!(reached(), [at(30, 300); 5]);
    }

    #[test]
    fn positions_of_another_history_come_before_all() {
        let progress = Progress::new([at(10, 900), at(10, 900), at(20, 120), at(20, 120), at(10, 900)]);
        progress.covers(at(10, 900));
        progress.covers(at(20, 120));
        progress.begin_history(20);
        progress.applied(Applied { facts: 11, rows: 21, home: 21, search: 21, reactions: 21 });
        let reached = Phase::ALL.map(|phase| progress.position(phase));
        assert_eq!(reached, [at(10, 0), at(20, 120), at(20, 120), at(20, 120), at(20, 120)]);
    }

    #[test]
    fn what_a_store_had_at_the_start_counts_until_the_dataflows_pass_it() {
        let progress = Progress::new([at(20, 200), at(30, 300), at(10, 0), at(10, 0), at(10, 0)]);
        progress.covers(at(10, 100));
        progress.applied(Applied::at(11));
        let reached = || Phase::ALL.map(|phase| progress.position(phase));
        assert_eq!(reached(), [at(20, 200), at(30, 300), at(10, 100), at(10, 100), at(10, 100)]);
        progress.covers(at(25, 250));
        progress.applied(Applied::at(26));
        assert_eq!(reached(), [at(25, 250), at(30, 300), at(25, 250), at(25, 250), at(25, 250)]);
    }

    #[tokio::test]
    async fn what_others_write_is_as_far_as_it_is_found_to_be() {
        let progress = Progress::following();
        assert!(progress.begun() > 1_700_000_000_000, "they may have begun anything up to now");
        progress.found(Phase::Rows, at(20, 200));
        assert!(progress.reached(Phase::Rows, Lsn(200), Duration::ZERO).await);
        assert!(!progress.reached(Phase::Facts, Lsn(200), Duration::ZERO).await);
        // It is built again, and then of another history.
        progress.found(Phase::Rows, at(10, 100));
        assert_eq!(progress.position(Phase::Rows), at(10, 100));
        progress.begin_history(30);
        assert_eq!(progress.position(Phase::Rows), at(10, 0));
        progress.found(Phase::Rows, at(29, 290));
        assert!(!progress.reached(Phase::Rows, Lsn(1), Duration::ZERO).await);
        progress.found(Phase::Rows, at(30, 5));
        assert!(progress.reached(Phase::Rows, Lsn(5), Duration::ZERO).await);
    }
}
