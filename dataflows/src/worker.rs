//! A worker: builds the dataflow, feeds its share of what comes, and steps.
//!
//! ```text
//!   feeder ─ bounded channel ─► worker ─ share ─► dataflow
//!          ─ unpark ───────────►        ◄─ probe ─┘   (takes the next batch only while few are in flight)
//! ```
//!
//! All workers receive every batch and feed the changes whose index is theirs, so the time of each is closed only when
//! all have fed it. None waits for another: the one that is furthest behind always has all earlier times fed by the
//! others, so what it has in flight ends, and it goes on.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use feedmill_model::{Batch, EntryId, PackedEntry, Parameters, Position, Row, Time, failpoint};
use timely::worker::Worker;

use crate::dataflow::{Inputs, Probes, build};
use crate::jobs::home::BulkTimes;
use crate::sink::Tick;
use crate::supervisor::Supervisor;
use crate::{OnApplied, RuntimeError, Stores};

/// Batches that are fed and not yet applied: at most this many,
const BATCHES_IN_FLIGHT_MAX: usize = 64;
/// with at most this many changes, or one batch that has more.
const CHANGES_IN_FLIGHT_MAX: usize = 20_000;
/// A worker is woken whenever there is something to do; this only bounds the wait.
const PARKED_MAX: Duration = Duration::from_secs(1);

/// What the feeder hands to every worker.
#[derive(Clone)]
pub(crate) enum Feed {
    /// A slice of the state to load, and its time.
    Slice(Arc<Vec<Row>>, Time),
    /// The state is complete; home timelines begin above this floor.
    Loaded(i64),
    /// A batch.
    Batch(Arc<Batch>),
}

/// What a worker needs to know.
pub(crate) struct Plan {
    pub(crate) parameters: Parameters,
    pub(crate) stores: Stores,
    pub(crate) load: Position,
    pub(crate) on_applied: OnApplied,
    pub(crate) supervisor: Arc<Supervisor>,
}

/// Works until it is told to stop. A panic ends all workers.
pub(crate) fn work(worker: &mut Worker, plan: &Plan, feed: &Receiver<Feed>) {
    let supervisor = &plan.supervisor;
    supervisor.enlist();
    let mut share = None;
    let outcome = catch_unwind(AssertUnwindSafe(|| {
        let bulk = BulkTimes::default();
        let known = Rc::clone(&bulk);
        let (inputs, probes) =
            worker.dataflow(|scope| build(scope, &plan.parameters, &plan.stores, plan.load, known, supervisor));
        let (index, peers) = (worker.index(), worker.peers());
        let share = share.insert(Share { index, peers, load: plan.load, inputs, bulk });
        run(worker, plan, feed, share, &probes);
    }));
    if let Err(panic) = outcome {
        let text = panic.downcast_ref::<&str>().map(|text| (*text).to_owned());
        let text = text.or_else(|| panic.downcast_ref::<String>().cloned());
        supervisor.fail(RuntimeError::Panic(text.unwrap_or_else(|| "no message".to_owned())));
    }
    // The dataflow goes before its inputs: if they closed first, it would take that for the end of time.
    for dataflow in worker.installed_dataflows() {
        worker.drop_dataflow(dataflow);
    }
    drop(share);
}

fn run(worker: &mut Worker, plan: &Plan, feed: &Receiver<Feed>, share: &mut Share, probes: &Probes) {
    let mut in_flight = InFlight::default();
    while !plan.supervisor.stopping() {
        let mut fed = false;
        while in_flight.has_room()
            && let Ok(next) = feed.try_recv()
        {
            in_flight.add(share.take(next));
            fed = true;
        }
        if fed {
            share.inputs.flush();
        }
        failpoint!("dataflow_step_before");
        worker.step_or_park(Some(PARKED_MAX));
        failpoint!("dataflow_step_after");
        if let Some(passed) = in_flight.retire(probes) {
            share.bulk.borrow_mut().retain(|time| *time > passed);
        }
        if share.index == 0
            && let Some(applied) = probes.applied()
            && plan.supervisor.advance(applied)
        {
            (plan.on_applied)(applied);
        }
    }
}

/// A worker's part in the feeding.
struct Share {
    index: usize,
    peers: usize,
    load: Position,
    inputs: Inputs,
    bulk: BulkTimes,
}

impl Share {
    /// Feeds its part of `feed`; returns the time, and how many changes all workers feed.
    fn take(&mut self, feed: Feed) -> (Time, usize) {
        match feed {
            Feed::Slice(rows, time) => {
                for row in rows.iter().skip(self.index).step_by(self.peers) {
                    self.inputs.update(row, time, 1);
                }
                // The load time itself stays open until all is loaded.
                self.inputs.advance_to((time + 1).min(self.load.time));
                (time, rows.len())
            }
            Feed::Loaded(floor) => {
                self.inputs.tick(Tick { position: self.load, floor: Some(floor) });
                self.inputs.advance_to(self.load.time + 1);
                (self.load.time, 0)
            }
            Feed::Batch(batch) => {
                let time = batch.position.time;
                if batch.floor.is_some() {
                    self.bulk.borrow_mut().insert(time);
                }
                for change in batch.changes.iter().skip(self.index).step_by(self.peers) {
                    for (row, diff) in
                        change.old.iter().map(|old| (old, -1)).chain(change.new.iter().map(|new| (new, 1)))
                    {
                        self.inputs.update(row, time, diff);
                    }
                }
                let floor = batch.floor.map(|floor| floor.max(last_touched(&batch)));
                self.inputs.tick(Tick { position: batch.position, floor });
                self.inputs.advance_to(time + 1);
                (time, batch.changes.len())
            }
        }
    }
}

/// The greatest id of a tweet or retweet that comes or goes with `batch`: its deliveries are suppressed too, and one
/// that goes is not among those that the log knows any more.
fn last_touched(batch: &Batch) -> i64 {
    let rows = batch.changes.iter().flat_map(|change| [&change.old, &change.new]).flatten();
    let entries = rows.filter_map(|row| match row {
        Row::Tweet(tweet) => PackedEntry::new(EntryId::tweet(tweet.id)),
        Row::Retweet(retweet) => PackedEntry::new(EntryId::retweet(retweet.id)),
        _ => None,
    });
    entries.map(PackedEntry::id).max().unwrap_or(i64::MIN)
}

/// What is fed and not yet applied.
#[derive(Default)]
struct InFlight {
    batches: VecDeque<(Time, usize)>,
    changes: usize,
}

impl InFlight {
    fn has_room(&self) -> bool {
        self.batches.len() < BATCHES_IN_FLIGHT_MAX && self.changes < CHANGES_IN_FLIGHT_MAX
    }

    fn add(&mut self, (time, changes): (Time, usize)) {
        self.batches.push_back((time, changes));
        self.changes += changes;
    }

    /// Forgets what is applied; returns the last time of it.
    fn retire(&mut self, probes: &Probes) -> Option<Time> {
        let mut last = None;
        while let Some((time, changes)) = self.batches.pop_front_if(|(time, _)| probes.passed(*time)) {
            self.changes -= changes;
            last = Some(time);
        }
        last
    }
}
