//! A worker: builds the dataflow, feeds its share of what comes, and steps.
//!
//! ```text
//!   feeder ─ bounded channel ─► worker ─ share ─► dataflow
//!          ─ unpark ───────────►        ◄─ probe ─┘   (takes the next batch only while few are in flight)
//! ```
//!
//! All workers of a process receive every batch and feed the changes whose index is theirs, so the time of each is closed only when
//! all have fed it. None waits for another: the one that is furthest behind always has all earlier times fed by the
//! others, so what it has in flight ends, and it goes on.
//!
//! A large batch comes in pieces of one time, and so does the state to load. Such a time ends with the last of them, so
//! all of them are let in however many changes that are: waiting for room would wait for a time that cannot end. The
//! worker steps after each piece, so what one holds is on its way before the next is taken. The first batch is fed when
//! everything that was loaded is applied.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use crossbeam_channel::Receiver;
use feedmill_model::{Batch, Change, Parameters, Position, Row, Time, failpoint};
use timely::worker::Worker;

use crate::dataflow::{Inputs, Probes, build};
use crate::jobs::home::BulkTimes;
use crate::sink::Tick;
use crate::supervisor::Supervisor;
use crate::{OnApplied, Part, Profile, RuntimeError, Stores};

/// Batches that are fed and not yet applied: at most this many,
const BATCHES_IN_FLIGHT_MAX: usize = 64;
/// with at most this many changes, or one batch that has more, in however many pieces.
const CHANGES_IN_FLIGHT_MAX: usize = 20_000;
/// A worker is woken whenever there is something to do; this only bounds the wait.
const PARKED_MAX: Duration = Duration::from_secs(1);

/// What the feeder hands to every worker.
#[derive(Clone)]
pub(crate) enum Feed {
    /// A slice of the state to load; after the last of a time no more comes at it.
    Slice { rows: Arc<Vec<Row>>, time: Time, last: bool },
    /// The state is complete; home timelines begin above this floor.
    Loaded(i64),
    /// A batch.
    Batch(Arc<Batch>),
}

/// What a worker needs to know.
pub(crate) struct Plan {
    /// Workers of this process.
    pub(crate) workers: usize,
    pub(crate) part: Part,
    pub(crate) parameters: Parameters,
    pub(crate) profile: Option<Profile>,
    pub(crate) stores: Stores,
    pub(crate) load: Position,
    /// The load fills home timelines.
    pub(crate) fill: bool,
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
        if let Some(profile) = &plan.profile {
            profile.listen(worker);
        }
        let (inputs, probes) = worker.dataflow(|scope| build(scope, plan, known));
        let (index, peers) = (worker.index() % plan.workers, plan.workers);
        let share = share.insert(Share { index, peers, part: plan.part, load: plan.load, inputs, bulk });
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
            if in_flight.unfinished {
                break;
            }
        }
        if fed {
            share.inputs.flush();
        }
        failpoint!("dataflow_step_before");
        if fed && in_flight.unfinished {
            worker.step();
        } else {
            worker.step_or_park(Some(PARKED_MAX));
        }
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

/// A worker's part in the feeding of its process.
struct Share {
    index: usize,
    /// How many take part.
    peers: usize,
    part: Part,
    load: Position,
    inputs: Inputs,
    bulk: BulkTimes,
}

impl Share {
    /// Feeds its part of `feed`.
    fn take(&mut self, feed: Feed) -> Fed {
        match feed {
            Feed::Slice { rows, time, last } => {
                let changes = rows.len();
                let mut update = |row| self.inputs.update(row, time, 1);
                match Arc::try_unwrap(rows) {
                    Ok(rows) => rows.into_iter().skip(self.index).step_by(self.peers).for_each(update),
                    // Another worker has its part to take.
                    Err(rows) => rows.iter().skip(self.index).step_by(self.peers).cloned().for_each(&mut update),
                }
                if last {
                    self.inputs.advance_to(time + 1);
                }
                Fed { time, changes, last }
            }
            Feed::Loaded(floor) => {
                self.inputs.tick(Tick { position: self.load, floor: Some(floor) });
                self.inputs.advance_to(self.load.time + 1);
                // Leaves no room until all of the load is applied, on all workers: see `quiet_until`.
                Fed { time: self.load.time, changes: CHANGES_IN_FLIGHT_MAX, last: true }
            }
            Feed::Batch(batch) => {
                let time = batch.position.time;
                if batch.floor.is_some() {
                    self.bulk.borrow_mut().insert(time);
                }
                let relations = self.part.relations();
                let is_needed = |change: &&Change| {
                    change.old.as_ref().or(change.new.as_ref()).is_some_and(|row| relations.contains(&row.relation()))
                };
                for change in batch.changes.iter().filter(is_needed).skip(self.index).step_by(self.peers) {
                    for (row, diff) in
                        change.old.iter().map(|old| (old, -1)).chain(change.new.iter().map(|new| (new, 1)))
                    {
                        self.inputs.update(row.clone(), time, diff);
                    }
                }
                if batch.last {
                    self.inputs.tick(Tick { position: batch.position, floor: batch.floor });
                    self.inputs.advance_to(time + 1);
                }
                Fed { time, changes: batch.changes.len(), last: batch.last }
            }
        }
    }
}

/// What was fed.
struct Fed {
    time: Time,
    /// How many changes all workers feed.
    changes: usize,
    /// Nothing more comes at this time.
    last: bool,
}

/// What is fed and not yet applied.
#[derive(Default)]
struct InFlight {
    batches: VecDeque<(Time, usize)>,
    changes: usize,
    /// The newest batch lacks its last piece.
    unfinished: bool,
}

impl InFlight {
    fn has_room(&self) -> bool {
        self.unfinished || (self.batches.len() < BATCHES_IN_FLIGHT_MAX && self.changes < CHANGES_IN_FLIGHT_MAX)
    }

    fn add(&mut self, fed: Fed) {
        self.changes += fed.changes;
        match self.batches.back_mut() {
            Some((time, changes)) if *time == fed.time => *changes += fed.changes,
            _ => self.batches.push_back((fed.time, fed.changes)),
        }
        self.unfinished = !fed.last;
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
