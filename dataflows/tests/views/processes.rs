//! One or several processes' runtimes, driven as one: each is fed its share, as it would read it from its partitions.

use std::net::TcpListener;
use std::sync::{Arc, Mutex};
use std::thread;

use feedmill_dataflows::{Cluster, Config, Meeting, OnApplied, Part, Runtime, RuntimeError, Stores};
use feedmill_model::{Applied, Batch, Position, Row, Time};

/// Runtimes that work together.
pub struct Processes {
    runtimes: Vec<Runtime>,
    /// They are parts of one process, and each is fed all.
    apart: bool,
}

/// `count` places on this machine.
pub fn hosts(count: usize) -> Vec<String> {
    let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

impl Processes {
    /// Starts `count` of them with `config`, on the same stores. The first tells how far they are.
    pub fn start(count: usize, config: &Config, stores: &Stores, load: Position, on_applied: &OnApplied) -> Self {
        if count == 1 {
            let runtime = Runtime::start(config.clone(), stores.clone(), load, Arc::clone(on_applied));
            return Processes { runtimes: vec![runtime.unwrap()], apart: false };
        }
        let hosts = hosts(count);
        // They meet, so none has started before all have.
        thread::scope(|scope| {
            let start = |process| {
                let cluster = Cluster { process, hosts: hosts.clone(), meeting_max: Cluster::MEETING_MAX };
                let tell = if process == 0 { Arc::clone(on_applied) } else { Arc::new(|_| {}) as OnApplied };
                scope.spawn(move || {
                    let task = "the tests".to_owned();
                    let mut meeting =
                        Meeting::hold(cluster, config.workers, &config.parameters, task, || false).unwrap();
                    let load = meeting.lead(|| Ok::<_, RuntimeError>(load)).unwrap();
                    Runtime::start_in(meeting, config.clone(), stores.clone(), load, tell).unwrap()
                })
            };
            let starting: Vec<_> = (0..count).map(start).collect();
            let runtimes = starting.into_iter().map(|process| process.join().unwrap()).collect();
            Processes { runtimes, apart: false }
        })
    }

    /// One process, in which what likes bring is derived apart.
    pub fn apart(config: &Config, stores: &Stores, load: Position, on_applied: &OnApplied) -> Self {
        let parts = [Part::Main, Part::Reactions];
        let reached = Arc::new(Mutex::new(parts.map(Part::begun)));
        let start = |(number, part): (usize, Part)| {
            let (reached, on_applied) = (Arc::clone(&reached), Arc::clone(on_applied));
            let tell = move |applied| {
                let mut reached = reached.lock().unwrap();
                reached[number] = applied;
                on_applied(reached[0].met(reached[1]));
            };
            Runtime::start(Config { part, ..config.clone() }, stores.clone(), load, Arc::new(tell)).unwrap()
        };
        Processes { runtimes: parts.into_iter().enumerate().map(start).collect(), apart: true }
    }

    /// The part of `all` that process `number` has.
    fn share<T: Clone>(&self, number: usize, all: &[T]) -> Vec<T> {
        if self.apart {
            return all.to_vec();
        }
        all.iter().skip(number).step_by(self.runtimes.len()).cloned().collect()
    }

    pub fn load(&self, rows: &[Row]) {
        for (number, runtime) in self.runtimes.iter().enumerate() {
            runtime.load(self.share(number, rows)).unwrap();
        }
    }

    pub fn loaded(&self, floor: i64) {
        self.runtimes.iter().for_each(|runtime| runtime.loaded(floor).unwrap());
    }

    pub fn feed(&self, batch: &Batch) {
        for (number, runtime) in self.runtimes.iter().enumerate() {
            let changes = self.share(number, &batch.changes);
            runtime.feed(Arc::new(Batch { changes, ..batch.clone() })).unwrap();
        }
    }

    /// Every time before this is applied by all of them, as the first knows.
    pub fn applied(&self) -> Time {
        let others = if self.apart { &self.runtimes[1..] } else { &[] };
        let applied = |applied: Applied, runtime: &Runtime| applied.met(runtime.applied());
        others.iter().fold(self.runtimes[0].applied(), applied).by_all()
    }

    /// Ends them. One that is told later than another has ended may take that for a failure.
    pub fn end(&self) {
        self.runtimes.iter().for_each(Runtime::stop);
        for runtime in &self.runtimes {
            let ended = runtime.join();
            assert!(matches!(ended, Ok(()) | Err(RuntimeError::Peer { .. })), "{ended:?}");
            assert_eq!(runtime.anomalies(), 0);
        }
    }
}
