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
//! They begin together or not at all: each pair compares what both must agree on before any dataflow is built (see
//! [`meeting`]). They end together too: a process that loses another stops with an error that names it, since what the
//! other had in flight is nowhere else. Nothing is lost by that: all go on from what the stores have. Links are neither
//! encrypted nor authenticated: they belong on a network of their own.

mod link;
mod meeting;

use std::net::TcpStream;
use std::sync::Arc;
use std::time::Duration;

use feedmill_model::{Parameters, Position, Time};
use serde::{Deserialize, Serialize};
use timely::communication::allocator::ProcessBuilder;
use timely::communication::allocator::zero_copy::initialize::{CommsGuard, initialize_networking_from_sockets};
use timely::communication::{AllocatorBuilder, Hooks};

use crate::supervisor::Supervisor;
use link::Link;

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
}

/// What all processes must agree on.
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
    /// Where the state is loaded.
    pub load: Position,
    /// What the stores had when each looked: nobody has applied anything since if it is the same for all.
    pub reached: [Time; 2],
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
    #[error("process {process} at {host} does not agree: it has {theirs:?}, this one has {ours:?}")]
    Terms { process: usize, host: String, theirs: Box<Terms>, ours: Box<Terms> },
    #[error("could not use the connection to process {process}: {source}")]
    Link { process: usize, source: std::io::Error },
    #[error("could not start the threads of the links: {0}")]
    Threads(std::io::Error),
}

/// Meets the other processes, and makes what workers are built from: `terms.workers` of them here.
pub(crate) fn join(
    cluster: &Cluster,
    terms: &Terms,
    supervisor: &Arc<Supervisor>,
) -> Result<(Vec<AllocatorBuilder>, CommsGuard), MeetingError> {
    let sockets = meeting::meet(cluster, terms)?;
    let link = |(process, socket): (usize, Option<TcpStream>)| {
        let host = cluster.hosts.get(process).cloned().unwrap_or_default();
        let link = socket.map(|socket| Link::new(socket, process, host, Arc::clone(supervisor)));
        link.transpose().map_err(|source| MeetingError::Link { process, source })
    };
    let links = sockets.into_iter().enumerate().map(link).collect::<Result<Vec<_>, _>>()?;
    let hooks = Hooks::default();
    let local = ProcessBuilder::new_typed_vector(terms.workers, hooks.refill.clone(), None);
    let (builders, guard) = initialize_networking_from_sockets(local, links, cluster.process, terms.workers, hooks)
        .map_err(MeetingError::Threads)?;
    Ok((builders.into_iter().map(AllocatorBuilder::Tcp).collect(), guard))
}
