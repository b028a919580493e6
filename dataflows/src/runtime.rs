//! Runs the dataflows on worker threads.
//!
//! ```text
//!   start ─► load* ─► loaded ─► feed* ─► stop ─► join
//! ```
//!
//! One thread feeds; the calls block while too much is in flight, and return an error once a worker has failed. The rows
//! of the first state get the times 1, 2, 3, … up to the load time, many rows a time; batches have their own.
//!
//! While the load fills home timelines few rows come at one time: each may be a follow, which brings a month of the
//! author's entries, and those of a time wait in memory until it is closed.

use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crossbeam_channel::{Receiver, Sender, bounded};
use differential_dataflow::trace::ExertionLogic;
use feedmill_model::{
    Applied, Batch, Document, Fact, HomeSink, Parameters, Phase, Position, Row, RowSink, SHARDS, StoreError, Time,
    ViewRow,
};
use timely::communication::WorkerGuards;
use timely::execute::execute_from;
use timely::{CommunicationConfig, WorkerConfig};

use crate::cluster::{Beginning, Meeting};
use crate::dataflow::{reached_by, reached_by_all};
use crate::supervisor::Supervisor;
use crate::worker::{Feed, Plan, work};
use crate::{Part, Profile};

/// Batches and slices that wait for each worker.
const QUEUED_MAX: usize = 16;
/// Rows of the state that are loaded at one time, where facts, rows, search or reactions are given what is loaded: their sinks hold all that
/// is derived until the time ends.
const ROWS_TO_STORES_AT_A_TIME: usize = 1 << 16;
/// The same while the load fills home timelines.
const ROWS_TO_FILL_AT_A_TIME: usize = 8_192;
/// How often the end of the load is looked at.
const LOADED_POLL: Duration = Duration::from_millis(2);
/// Records that an arrangement's merges move in one go beside what comes in, some tenths of a millisecond.
const MERGE_EFFORT: usize = 50_000;

/// How to run.
#[derive(Clone, Debug)]
pub struct Config {
    /// Worker threads of this process, 1 to 64 in all of them together.
    pub workers: usize,
    /// Which views are derived.
    pub part: Part,
    /// Settings of the views.
    pub parameters: Parameters,
    /// Rows of the state that are loaded at one time. What an arrangement takes in at one time is sorted and built at once,
    /// and what it takes in at many times is merged again and again; but until a time ends all of it is held.
    pub rows_at_a_time: usize,
    /// Told how long the parts of the dataflow run, if that is wanted: it costs a little at each step.
    pub profile: Option<Profile>,
}

impl Config {
    /// A good value: 20 million follows are loaded at 20 times, and some 100 MiB wait for the end of one.
    pub const ROWS_AT_A_TIME: usize = 1 << 20;
}

/// Where the views go.
#[derive(Clone)]
pub struct Stores {
    /// Visibility facts.
    pub facts: Arc<dyn RowSink<Fact>>,
    /// Rows and counts.
    pub rows: Arc<dyn RowSink<ViewRow>>,
    /// Home timelines.
    pub home: Arc<dyn HomeSink>,
    /// What search finds.
    pub search: Arc<dyn RowSink<Document>>,
    /// What likes bring.
    pub reactions: Arc<dyn RowSink<ViewRow>>,
}

impl Stores {
    /// The least that those of `part` have which are given what is loaded, by store.
    fn reached(&self, part: Part) -> [Time; 3] {
        [
            (Phase::Rows, reached_by_all(self)),
            (Phase::Search, reached_by(self.search.progress())),
            (Phase::Reactions, reached_by(self.reactions.progress())),
        ]
        .map(|(phase, reached)| if part.has(phase) { reached } else { Time::MAX })
    }
}

/// Called by one of the workers whenever a frontier of [`Applied`] has moved. It must not block.
pub type OnApplied = Arc<dyn Fn(Applied) + Send + Sync>;

/// Why the dataflows could not go on.
#[derive(Clone, Debug, thiserror::Error)]
pub enum RuntimeError {
    /// No worker could be started.
    #[error("could not start {workers} dataflow workers: {reason}")]
    Start {
        /// How many were asked for.
        workers: usize,
        /// What the system said.
        reason: String,
    },
    /// The processes of a cluster did not come together.
    #[error("could not start process {process} of the cluster: {reason}")]
    Meeting {
        /// Which this is.
        process: usize,
        /// Why not.
        reason: String,
    },
    /// Another process of the cluster has ended, or cannot be reached any more.
    #[error(
        "process {process} of the cluster, at {host}, is gone: {reason}. All processes end with it; start them again, and \
         they go on from what the stores have"
    )]
    Peer {
        /// Which.
        process: usize,
        /// Where it was.
        host: String,
        /// What was seen of its end.
        reason: String,
    },
    /// A store refused a closed time for good.
    #[error(transparent)]
    Store(Arc<StoreError>),
    /// A worker came to an end that is a defect of ours.
    #[error("a dataflow worker panicked: {0}")]
    Panic(String),
    /// A call that does not fit what was fed before.
    #[error("could not {tried}: {why}; it must be `load` any number of times, `loaded` once, and then `feed` in order")]
    Order {
        /// What was tried.
        tried: String,
        /// What stands against it.
        why: String,
    },
    /// Somebody stopped the dataflows.
    #[error("the dataflows have stopped")]
    Stopped,
}

/// Where the feeding stands.
#[derive(Clone, Copy)]
enum Fed {
    /// So many rows were loaded at this time, which is the last so far.
    Rows(Time, usize),
    /// The last time that was fed.
    Time(Time),
    /// Pieces of the batch of this time were fed, and not yet its last.
    Piece(Time),
}

/// The one that feeds.
struct Feeder {
    fed: Fed,
    workers: Vec<Sender<Feed>>,
}

/// The dataflows at work.
pub struct Runtime {
    load: Position,
    rows_at_a_time: usize,
    /// Home timelines are filled by the load, and complete above this id.
    filled_above: Option<i64>,
    feeder: Mutex<Feeder>,
    supervisor: Arc<Supervisor>,
    workers: Mutex<Option<WorkerGuards<()>>>,
}

impl Runtime {
    /// Starts the workers; the state of time `load.time` is to be given next.
    pub fn start(config: Config, stores: Stores, load: Position, on_applied: OnApplied) -> Result<Self, RuntimeError> {
        Runtime::begin(None, config, stores, load, on_applied)
    }

    /// The same for a process of several. What is loaded and fed here is this process's own share, at the same times and
    /// with the same floors everywhere. What search finds is given to process 0 alone; the others need its progress.
    pub fn start_in(
        meeting: Meeting,
        config: Config,
        stores: Stores,
        load: Position,
        on_applied: OnApplied,
    ) -> Result<Self, RuntimeError> {
        Runtime::begin(Some(meeting), config, stores, load, on_applied)
    }

    fn begin(
        meeting: Option<Meeting>,
        config: Config,
        stores: Stores,
        load: Position,
        on_applied: OnApplied,
    ) -> Result<Self, RuntimeError> {
        let (workers, part) = (config.workers, config.part);
        let failed = |reason: String| RuntimeError::Start { workers, reason };
        let processes = meeting.as_ref().map_or(1, Meeting::processes);
        if !(1..=SHARDS).contains(&workers.saturating_mul(processes)) {
            return Err(failed(format!("there must be 1 to {SHARDS}, so that each has a shard")));
        }
        let supervisor = Arc::new(Supervisor::new(part.begun()));
        let (senders, receivers): (Vec<_>, Vec<_>) = (0..workers).map(|_| bounded(QUEUED_MAX)).unzip();
        // Each worker takes its own end, so that it closes when that worker ends.
        let receivers: Mutex<Vec<Option<Receiver<Feed>>>> = Mutex::new(receivers.into_iter().map(Some).collect());
        let parameters = config.parameters;
        let reached = stores.reached(part);
        let to_stores = reached.iter().any(|reached| *reached < load.time);
        let fill = part.has(Phase::Home) && stores.home.is_to_be_filled();
        let filled_above = fill.then(|| parameters.horizon(load.time));
        let rows_max = match (fill, to_stores) {
            (true, _) => ROWS_TO_FILL_AT_A_TIME,
            (false, true) => ROWS_TO_STORES_AT_A_TIME,
            (false, false) => usize::MAX,
        };
        let rows_at_a_time = config.rows_at_a_time.min(rows_max);
        let mut worker_config = WorkerConfig::default();
        worker_config.set::<ExertionLogic>("differential/default_exert_logic".to_owned(), Arc::new(merge_effort));
        let (builders, links) = match meeting {
            Some(meeting) => {
                let beginning = Beginning { load, reached, fill };
                let (builders, links) = meeting.begin(&beginning, &supervisor)?;
                (builders, Box::new(links) as Box<dyn Any + Send>)
            }
            None => communication(workers).try_build().map_err(failed)?,
        };
        let plan = Plan {
            workers,
            part,
            parameters,
            profile: config.profile,
            stores,
            load,
            fill,
            on_applied,
            supervisor: Arc::clone(&supervisor),
        };
        let guards = execute_from(builders, links, worker_config, move |worker| {
            let mut receivers = receivers.lock().unwrap_or_else(PoisonError::into_inner);
            let feed = receivers.get_mut(worker.index() % workers).and_then(Option::take);
            drop(receivers);
            if let Some(feed) = feed {
                work(worker, &plan, &feed);
            }
        });
        let workers = Mutex::new(Some(guards.map_err(failed)?));
        let feeder = Mutex::new(Feeder { fed: Fed::Rows(1.min(load.time), 0), workers: senders });
        Ok(Runtime { load, filled_above, rows_at_a_time, feeder, supervisor, workers })
    }

    /// A slice of the state at the load time; some 10,000 rows, in the order of [`Part::relations`]. Blocks while too much is in
    /// flight.
    pub fn load(&self, rows: Vec<Row>) -> Result<(), RuntimeError> {
        let mut feeder = self.feeder();
        let Fed::Rows(time, before) = feeder.fed else {
            return Err(order("load rows", "the state was complete already"));
        };
        let loaded = before + rows.len();
        // The load time itself stays open until all is loaded.
        let last = loaded >= self.rows_at_a_time && time < self.load.time;
        feeder.fed = if last { Fed::Rows(time + 1, 0) } else { Fed::Rows(time, loaded) };
        self.give(&feeder, Feed::Slice { rows: Arc::new(rows), time, last })
    }

    /// Ends the load. `floor` is what home timelines start at, unless the load fills them: at least the greatest id of an
    /// entry loaded, whether it was deleted or not.
    pub fn loaded(&self, floor: i64) -> Result<(), RuntimeError> {
        let mut feeder = self.feeder();
        let Fed::Rows(..) = feeder.fed else {
            return Err(order("end the load", "it was ended already"));
        };
        feeder.fed = Fed::Time(self.load.time);
        self.give(&feeder, Feed::Loaded(self.filled_above.unwrap_or(floor)))
    }

    /// Blocks until the stores have all that was loaded.
    pub fn wait_until_loaded(&self) -> Result<(), RuntimeError> {
        while self.applied().by_all() <= self.load.time {
            self.check()?;
            std::thread::sleep(LOADED_POLL);
        }
        Ok(())
    }

    /// Feeds the next batch, or the next piece of one; blocks while too much is in flight.
    pub fn feed(&self, batch: Arc<Batch>) -> Result<(), RuntimeError> {
        let mut feeder = self.feeder();
        let time = batch.position.time;
        let tried = || format!("feed the batch of time {time}");
        match feeder.fed {
            Fed::Rows(..) => return Err(order(&tried(), "the state is not loaded yet")),
            Fed::Time(last) if time <= last => {
                return Err(order(&tried(), &format!("the dataflows are at {last} already")));
            }
            Fed::Piece(begun) if time != begun => {
                return Err(order(&tried(), &format!("the batch of time {begun} lacks its last piece")));
            }
            Fed::Time(_) | Fed::Piece(_) => {}
        }
        feeder.fed = if batch.last { Fed::Time(time) } else { Fed::Piece(time) };
        self.give(&feeder, Feed::Batch(batch))
    }

    /// How far the stores are; those of other parts are beyond all times.
    pub fn applied(&self) -> Applied {
        self.supervisor.applied()
    }

    /// How many rows had a multiplicity that cannot be. Each was logged; anything but 0 is a defect, of the source's
    /// keys or of ours.
    pub fn anomalies(&self) -> u64 {
        self.supervisor.anomalies()
    }

    /// Fails once the workers are to end, with what went wrong first.
    pub fn check(&self) -> Result<(), RuntimeError> {
        match self.supervisor.stopping() {
            true => Err(self.supervisor.failure().unwrap_or(RuntimeError::Stopped)),
            false => Ok(()),
        }
    }

    /// Asks the workers to end, at once: what is in flight is not applied, and is fed again after the next start.
    pub fn stop(&self) {
        self.supervisor.stop();
    }

    /// Stops, waits for the workers to end, and tells what went wrong first. Must not be called by `on_applied`.
    pub fn join(&self) -> Result<(), RuntimeError> {
        self.end();
        self.supervisor.failure().map_or(Ok(()), Err)
    }

    fn feeder(&self) -> MutexGuard<'_, Feeder> {
        self.feeder.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Hands `feed` to every worker.
    fn give(&self, feeder: &Feeder, feed: Feed) -> Result<(), RuntimeError> {
        let give = |worker: &Sender<Feed>, feed| {
            self.check()?;
            let ended = |_| self.supervisor.failure().unwrap_or(RuntimeError::Stopped);
            worker.send(feed).map_err(ended)
        };
        if let Some((last, others)) = feeder.workers.split_last() {
            others.iter().try_for_each(|worker| give(worker, feed.clone()))?;
            // Given away, a single worker's rows are its own.
            give(last, feed)?;
        }
        self.supervisor.wake();
        Ok(())
    }

    fn end(&self) {
        self.supervisor.stop();
        // Held until they have ended, so that all who join wait for them.
        let mut workers = self.workers.lock().unwrap_or_else(PoisonError::into_inner);
        // Threads of links that were cut in the middle of a message have panicked, and so does whoever waits for them.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            let guards = workers.take().into_iter();
            guards.flat_map(WorkerGuards::join).filter_map(Result::err).collect::<Vec<String>>()
        }));
        for panic in ended.unwrap_or_default() {
            self.supervisor.fail(RuntimeError::Panic(panic));
        }
    }
}

impl Drop for Runtime {
    fn drop(&mut self) {
        self.end();
    }
}

fn order(tried: &str, why: &str) -> RuntimeError {
    RuntimeError::Order { tried: tried.to_owned(), why: why.to_owned() }
}

/// How the workers of one process reach each other.
fn communication(workers: usize) -> CommunicationConfig {
    if workers == 1 { CommunicationConfig::Thread } else { CommunicationConfig::Process(workers) }
}

/// How much an arrangement merges beside what comes in, by its layers: index, batches, records. Merges that have begun go on.
/// What came since the largest batch is merged with it once it is an eighth as much: were it done whenever there is
/// something, as differential's own logic has it, each post would have arrangements of millions merged again.
fn merge_effort(layers: &[(usize, usize, usize)]) -> Option<usize> {
    let largest = layers.iter().map(|(_, _, records)| *records).max().unwrap_or(0);
    let all: usize = layers.iter().map(|(_, _, records)| records).sum();
    let merges = layers.iter().any(|(_, batches, _)| *batches > 1);
    (merges || (all - largest) * 8 > largest).then_some(MERGE_EFFORT)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_large_batch_is_not_merged_again_for_every_small_one() {
        let single = |records: [usize; 3]| records.map(|records| (0, usize::from(records > 0), records));
        for settled in [[0, 0, 0], [1_000, 0, 0], [1_000, 0, 100], [0, 1_000, 125]] {
            assert_eq!(merge_effort(&single(settled)), None, "{settled:?}");
        }
        for due in [[1_000, 100, 26], [1, 1, 0], [500, 500, 500]] {
            assert_eq!(merge_effort(&single(due)), Some(MERGE_EFFORT), "{due:?}");
        }
        // What has begun is ended.
        assert_eq!(merge_effort(&[(1, 1, 1_000), (0, 2, 4)]), Some(MERGE_EFFORT));
    }
}
