//! Several processes that keep the same views.
//!
//! ```text
//!   process 0: workers 0 … n−1  ◄──── link ────►  process 1: workers n … 2n−1  ◄──── link ────►  …
//!      its share of each batch, all ticks            its share of each batch, all ticks
//! ```
//!
//! Each process is fed its own share of the state and of every batch, at the same times, and writes its own shards; what
//! belongs elsewhere goes there through a link. A time is closed when no worker of any process can still change it, so
//! what the stores hold does not depend on how many there are.
//!
//! They begin together or not at all: they meet (see [`meeting`]), the first tells the others what it has found and where
//! to begin, and each pair compares what both must agree on before any dataflow is built. They end together too: a process
//! that loses another stops with an error that names it, since what the other had in flight is nowhere else. Nothing is lost
//! by that: all go on from what the stores have. Links are neither encrypted nor authenticated: they belong on a network of
//! their own.

mod link;
mod meeting;

use std::net::TcpStream;
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_model::{Parameters, Position, Time};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use timely::communication::allocator::ProcessBuilder;
use timely::communication::allocator::zero_copy::initialize::{CommsGuard, initialize_networking_from_sockets};
use timely::communication::{AllocatorBuilder, Hooks};

use crate::RuntimeError;
use crate::supervisor::Supervisor;
use link::Link;

/// How long the first may take to find out where to begin, in which it may empty stores.
const LEAD_MAX: Duration = Duration::from_secs(600);
/// How long the others may take after that until they begin, in which they open their stores.
const BEGIN_MAX: Duration = Duration::from_secs(300);

/// A process's place among those that work together.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Cluster {
    /// Which of `hosts` this is.
    pub process: usize,
    /// `host:port` of every process, in the same order for all of them. This one listens on its own.
    pub hosts: Vec<String>,
    /// For how long the others are waited for at the start.
    pub meeting_max: Duration,
}

impl Cluster {
    /// A good value for [`Self::meeting_max`].
    pub const MEETING_MAX: Duration = Duration::from_secs(120);

    fn host(&self, process: usize) -> String {
        self.hosts.get(process).cloned().unwrap_or_default()
    }
}

/// What all processes must agree on when they meet.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Terms {
    /// Version of the program: what goes through a link has the types of the program.
    pub version: String,
    /// All of them, in order.
    pub hosts: Vec<String>,
    /// Worker threads of each.
    pub workers: usize,
    /// Settings of the views.
    pub parameters: Parameters,
    /// What they read, and where they write to.
    pub task: String,
}

/// What all processes must agree on when they begin.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Beginning {
    /// Where the state is loaded.
    pub load: Position,
    /// What the stores had when each looked: nobody has applied anything since if it is the same for all.
    pub reached: [Time; 3],
    /// Whether the load fills home timelines.
    pub fill: bool,
}

/// Why the processes did not come together.
#[derive(Debug, thiserror::Error)]
pub(crate) enum MeetingError {
    #[error("there is no process {process}: {hosts} hosts are named, and the first is number 0")]
    Place { process: usize, hosts: usize },
    #[error("could not listen on {address}: {source}; it must be this machine's own, and free")]
    Listen { address: String, source: std::io::Error },
    #[error("{missing} did not come within {limit:?}: start all processes, with the same hosts")]
    Late { missing: String, limit: Duration },
    #[error("process {process} at {host} does not agree: it has {theirs}, this one has {ours}")]
    Terms { process: usize, host: String, theirs: String, ours: String },
    #[error("process {process} at {host} has ended")]
    Gone { process: usize, host: String },
    #[error("process {process} at {host} said nothing for {limit:?}")]
    Silent { process: usize, host: String, limit: Duration },
    #[error("it was stopped")]
    Stopped,
    #[error("could not use the connection to process {process}: {source}")]
    Link { process: usize, source: std::io::Error },
    #[error("could not start the threads of the links: {0}")]
    Threads(std::io::Error),
}

/// Processes that have met: each knows that the others are there, and none has begun.
pub struct Meeting {
    cluster: Cluster,
    terms: Terms,
    sockets: Vec<Option<TcpStream>>,
    stop: Box<dyn Fn() -> bool + Send>,
}

impl Meeting {
    /// Waits for the others, of which each must have as many workers, the same settings, and the same `task`: what they read
    /// and where they write to. Gives up when `stop` says so.
    pub fn hold(
        cluster: Cluster,
        workers: usize,
        parameters: &Parameters,
        task: String,
        stop: impl Fn() -> bool + Send + 'static,
    ) -> Result<Self, RuntimeError> {
        let (version, hosts) = (env!("CARGO_PKG_VERSION").to_owned(), cluster.hosts.clone());
        let terms = Terms { version, hosts, workers, parameters: parameters.clone(), task };
        let met = meeting::meet(&cluster, &terms, &stop);
        let sockets = met.map_err(|error| error.of(cluster.process))?;
        Ok(Meeting { cluster, terms, sockets, stop: Box::new(stop) })
    }

    /// Which of the processes this is.
    pub fn process(&self) -> usize {
        self.cluster.process
    }

    /// Process 0 finds out something, and all have it.
    pub fn lead<T: Serialize + DeserializeOwned, E: From<RuntimeError>>(
        &mut self,
        find: impl FnOnce() -> Result<T, E>,
    ) -> Result<T, E> {
        let failed = |error: MeetingError| E::from(error.of(self.cluster.process));
        if self.cluster.process == 0 {
            let found = find()?;
            for (other, socket) in others(&mut self.sockets) {
                meeting::say(socket, &found).map_err(|source| failed(MeetingError::Link { process: other, source }))?;
            }
            return Ok(found);
        }
        let mut first = others(&mut self.sockets).filter(|(other, _)| *other == 0);
        let found = first.next().map(|(_, socket)| meeting::wait(socket, 0, &self.cluster, LEAD_MAX, &self.stop));
        found.unwrap_or(Err(MeetingError::Stopped)).map_err(failed)
    }

    /// Compares where each begins.
    fn agree(&mut self, ours: &Beginning) -> Result<(), MeetingError> {
        for (process, socket) in others(&mut self.sockets) {
            meeting::say(socket, ours).map_err(|source| MeetingError::Link { process, source })?;
        }
        let until = Instant::now() + BEGIN_MAX;
        for (process, socket) in others(&mut self.sockets) {
            let left = until.saturating_duration_since(Instant::now());
            let theirs: Beginning = meeting::wait(socket, process, &self.cluster, left, &self.stop)?;
            if theirs != *ours {
                let host = self.cluster.host(process);
                return Err(MeetingError::Terms {
                    process,
                    host,
                    theirs: format!("{theirs:?}"),
                    ours: format!("{ours:?}"),
                });
            }
        }
        Ok(())
    }

    /// Makes what workers are built from: those of this process.
    pub(crate) fn begin(
        mut self,
        ours: &Beginning,
        supervisor: &Arc<Supervisor>,
    ) -> Result<(Vec<AllocatorBuilder>, CommsGuard), RuntimeError> {
        let process = self.cluster.process;
        self.agree(ours).map_err(|error| error.of(process))?;
        self.link(supervisor).map_err(|error| error.of(process))
    }

    fn link(self, supervisor: &Arc<Supervisor>) -> Result<(Vec<AllocatorBuilder>, CommsGuard), MeetingError> {
        let Meeting { cluster, terms, sockets, .. } = self;
        let link = |(process, socket): (usize, Option<TcpStream>)| {
            let link = socket.map(|socket| Link::new(socket, process, cluster.host(process), Arc::clone(supervisor)));
            link.transpose().map_err(|source| MeetingError::Link { process, source })
        };
        let links = sockets.into_iter().enumerate().map(link).collect::<Result<Vec<_>, _>>()?;
        let (hooks, workers) = (Hooks::default(), terms.workers);
        let local = ProcessBuilder::new_typed_vector(workers, hooks.refill.clone(), None);
        let (builders, guard) = initialize_networking_from_sockets(local, links, cluster.process, workers, hooks)
            .map_err(MeetingError::Threads)?;
        Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), guard))
    }

    /// How many processes there are.
    pub(crate) fn processes(&self) -> usize {
        self.cluster.hosts.len()
    }
}

impl MeetingError {
    /// Of this process.
    fn of(self, process: usize) -> RuntimeError {
        match self {
            MeetingError::Stopped => RuntimeError::Stopped,
            error => RuntimeError::Meeting { process, reason: error.to_string() },
        }
    }
}

fn others(sockets: &mut [Option<TcpStream>]) -> impl Iterator<Item = (usize, &mut TcpStream)> {
    sockets.iter_mut().enumerate().filter_map(|(process, socket)| Some((process, socket.as_mut()?)))
}
