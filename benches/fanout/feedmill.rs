//! The real job into the real store of home timelines, as `feedmill up` runs them, expiry included.
//!
//! Several processes are fed a share each, and exchange what belongs elsewhere through sockets, as on several machines. Here
//! they are threads of one process, so that one store has what all of them deliver.
//!
//! Time runs fast: the batches are spread over twice the days that an entry lives, so that from the middle on as many
//! entries expire as are posted. The facts, the rows of an index and search have no part in this: their stores take everything
//! and do nothing.

use std::net::TcpListener;
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_dataflows::{Cluster, Config, Meeting, Part, Runtime, RuntimeError, Stores};
use feedmill_model::{
    Activity, Batch, Change, Closed, Document, Fact, Follow, Lsn, Parameters, Position, Row, RowSink, SHARDS,
    StoreError, Tweet, ViewRow, floor_of, id_at,
};
use feedmill_sinks::LocalHome;

use crate::{Args, Figures, resident, settled};

/// 2026-01-01, in milliseconds since 1970.
const START: u64 = 1_767_225_600_000;
/// Users whose follows are loaded as one slice.
const SLICE: i64 = 3_000;
/// A run that stands still for so long has failed.
const LIMIT: Duration = Duration::from_secs(300);

/// Has what it starts with and takes the rest.
struct Discard(Position);

impl<R> RowSink<R> for Discard {
    fn progress(&self) -> Vec<Option<Position>> {
        vec![Some(self.0); SHARDS]
    }

    fn apply(&self, _closed: &Closed<R>) -> Result<(), StoreError> {
        Ok(())
    }
}

pub fn run(args: &Args) -> anyhow::Result<Figures> {
    let parameters = Parameters { active_days: 365, ..Parameters::default() };
    let step = 2 * parameters.fanout_ms() / args.batches.max(1);
    let load = Position { time: START, lsn: Lsn(1) };
    let home = Arc::new(LocalHome::new(parameters.clone()));
    let discard = Arc::new(Discard(load));
    let facts: Arc<dyn RowSink<Fact>> = discard.clone();
    let rows: Arc<dyn RowSink<ViewRow>> = discard.clone();
    let reactions = Arc::clone(&rows);
    let search: Arc<dyn RowSink<Document>> = discard;
    let rows_at_a_time = Config::ROWS_AT_A_TIME;
    let config = Config { workers: args.workers, part: Part::All, parameters, rows_at_a_time, profile: None };
    let stores = Stores { facts, rows, home: home.clone(), search, reactions };
    let runtime = Group::start(args.processes, &config, &stores, load)?;
    let day = i32::try_from(START / 86_400_000)?;
    let users: Vec<i64> = (0..args.users).collect();
    for users in users.chunks(65_536) {
        runtime.load(users.iter().map(|user| Row::Activity(Activity { user_id: *user, day })))?;
    }
    let follows = if args.users_only { 0 } else { args.follows };
    for users in users.chunks(usize::try_from(SLICE)?) {
        let follows = users.iter().flat_map(|user| {
            (0..follows).map(move |n| {
                let following_id = args.followed(*user, n);
                Row::Follow(Follow { follower_id: *user, following_id, accepted: true, created_at: 0 })
            })
        });
        runtime.load(follows)?;
    }
    runtime.loaded(floor_of(START))?;
    let mut clock = START;
    let mut idle = || {
        clock += 1;
        runtime.feed(clock, Vec::new())?;
        wait(&runtime, clock)
    };
    let loaded_bytes = settled(&mut idle)?;
    if args.users_only {
        return Ok(Figures { loaded_bytes: Some(loaded_bytes), ..Figures::default() });
    }

    let before = (loaded_bytes, home.deliveries());
    let mut took = Duration::ZERO;
    let mut entry_bytes = None;
    let mut started = Instant::now();
    for batch in 1..=args.batches {
        let time = clock + batch * step;
        let numbers = (batch as i64 - 1) * args.posts..batch as i64 * args.posts;
        runtime.feed(time, numbers.map(|number| post(args, time, number)).collect())?;
        if batch == args.batches / 2 {
            // Before the first entry expires: what has been delivered is what is held.
            wait(&runtime, time)?;
            took += started.elapsed();
            entry_bytes = Some((resident() - before.0) / (home.deliveries() - before.1) as f64);
            started = Instant::now();
        }
    }
    wait(&runtime, clock + args.batches * step)?;
    let figures = Figures {
        deliveries: home.deliveries() - before.1,
        took: took + started.elapsed(),
        loaded_bytes: Some(loaded_bytes),
        entry_bytes,
    };
    runtime.end()?;
    Ok(figures)
}

/// One process, or several that work together.
struct Group(Vec<Runtime>);

impl Group {
    fn start(count: usize, config: &Config, stores: &Stores, load: Position) -> anyhow::Result<Self> {
        if count == 1 {
            return Ok(Group(vec![Runtime::start(config.clone(), stores.clone(), load, Arc::new(|_| {}))?]));
        }
        let free = (0..count).map(|_| TcpListener::bind("127.0.0.1:0")).collect::<Result<Vec<_>, _>>()?;
        let hosts = free.iter().map(|listener| Ok(listener.local_addr()?.to_string()));
        let hosts = hosts.collect::<anyhow::Result<Vec<String>>>()?;
        drop(free);
        let start = |process: usize| {
            let cluster = Cluster { process, hosts: hosts.clone(), meeting_max: Cluster::MEETING_MAX };
            let task = "fan-out".to_owned();
            let meeting = Meeting::hold(cluster, config.workers, &config.parameters, task, || false)?;
            Ok(Runtime::start_in(meeting, config.clone(), stores.clone(), load, Arc::new(|_| {}))?)
        };
        let start = &start;
        let started: anyhow::Result<Vec<Runtime>> = std::thread::scope(|scope| {
            let starting: Vec<_> = (0..count).map(|process| scope.spawn(move || start(process))).collect();
            let ended = |thread: std::thread::ScopedJoinHandle<'_, anyhow::Result<Runtime>>| {
                thread.join().unwrap_or_else(|_| anyhow::bail!("a process panicked"))
            };
            starting.into_iter().map(ended).collect()
        });
        Ok(Group(started?))
    }

    /// The parts of `all` that the processes have.
    fn shares<T>(&self, all: impl Iterator<Item = T>) -> Vec<Vec<T>> {
        let mut shares: Vec<Vec<T>> = self.0.iter().map(|_| Vec::new()).collect();
        let count = shares.len();
        for (number, one) in all.enumerate() {
            if let Some(share) = shares.get_mut(number % count) {
                share.push(one);
            }
        }
        shares
    }

    fn load(&self, rows: impl Iterator<Item = Row>) -> anyhow::Result<()> {
        let shares = self.shares(rows);
        self.0.iter().zip(shares).try_for_each(|(runtime, rows)| Ok(runtime.load(rows)?))
    }

    fn loaded(&self, floor: i64) -> anyhow::Result<()> {
        self.0.iter().try_for_each(|runtime| Ok(runtime.loaded(floor)?))
    }

    fn feed(&self, time: u64, changes: Vec<Change>) -> anyhow::Result<()> {
        let position = Position { time, lsn: Lsn(time) };
        let shares = self.shares(changes.into_iter());
        self.0.iter().zip(shares).try_for_each(|(runtime, changes)| {
            Ok(runtime.feed(Arc::new(Batch { position, floor: None, changes, last: true }))?)
        })
    }

    /// Every time before this is applied by all.
    fn applied(&self) -> u64 {
        self.0.first().map_or(0, |runtime| runtime.applied().home)
    }

    fn end(self) -> anyhow::Result<()> {
        self.0.iter().for_each(Runtime::stop);
        for runtime in self.0 {
            match runtime.join() {
                // One was told later than another had ended.
                Ok(()) | Err(RuntimeError::Peer { .. }) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }
}

fn post(args: &Args, time: u64, number: i64) -> Change {
    let id = id_at(time as i64, (number % 65_536) as u16);
    let tweet = Tweet {
        id,
        user_id: args.author(number),
        content: format!("post number {number}"),
        conversation_id: id,
        created_at: time as i64 * 1_000,
        updated_at: time as i64 * 1_000,
        ..Tweet::default()
    };
    Change { old: None, new: Some(Row::Tweet(Box::new(tweet))) }
}

fn wait(runtime: &Group, time: u64) -> anyhow::Result<()> {
    let asked = Instant::now();
    while runtime.applied() <= time {
        anyhow::ensure!(asked.elapsed() < LIMIT, "the dataflows did not reach {time} within {LIMIT:?}");
        std::thread::park_timeout(Duration::from_millis(1));
    }
    Ok(())
}
