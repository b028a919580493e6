//! The search index on a server, in Elasticsearch.
//!
//! ```text
//!   worker ─ Closed<Document> ─► backlog: memory, then disk ─► one task ─► bulks ─► generation ─► alias ─► readers
//!                                                                 └─► progress, after what it covers
//! ```
//!
//! Why it is correct: a document's version is the closed time that changed it, and the server keeps the greatest, so a bulk
//! that was sent twice, or came late, changes nothing. A deletion is a document of that version too, which searches leave
//! out: the server forgets the versions of documents that are gone after a flush and a restart, and then a late older write
//! would bring one back. Progress is written after what it covers (`writer`), and names the generation that it is of
//! (`standing`); what lies after it is replayed by the change log, which keeps its tail from [`SearchStore::durable`] on.
//! The documents of a first load have the small times of its slices as versions, and a generation is loaded once: if the
//! load does not end, the generation is left and another begun.
//!
//! Why it holds nobody up: what the server does not take waits in memory, and then on disk; a worker waits only when that
//! is full too. A server that is away, busy or refuses us is asked again for ever, in pauses that grow, and `waits` says
//! why. A document that it refuses is kept beside the progress, counted, and not found.
//!
//! A process that starts while the server is away goes on from the copy of its standing in the data folder, and compares
//! the two when the server is there again.

mod address;
mod backlog;
mod bulk;
mod client;
mod follow;
mod layout;
mod read;
mod standing;
mod state;
mod writer;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use feedmill_model::{Closed, Document, Op, Position, RowSink, SHARDS, StoreError, Time};
use tokio::runtime::Runtime;

use self::backlog::{Backlog, Change, Piece};
use self::client::{Client, Failure};
use self::standing::{FolderCopy, Names, Server, Standing, Version, new_owner};
use self::state::{Fault, Shared, State};
use self::writer::Writer;
use crate::search::{Reached, Search, SearchIndex, SearchSnapshot, SearchStore, least, reaches};
use crate::{ReadError, Rebuilding};

pub use address::{ElasticAddress, ElasticSettings, ParseAddressError};
pub use follow::ElasticReader;

/// Changes of a closed time that wait together.
const PIECE: usize = 512;
/// How long a start waits for the server: where nothing is known of how far it is, and where there is a copy.
const OPEN_MAX: Duration = Duration::from_secs(30);
const OPEN_WITH_COPY_MAX: Duration = Duration::from_secs(3);
const OPEN_RETRY: Duration = Duration::from_millis(250);
/// Threads that talk to the server.
const THREADS: usize = 2;

/// Why the search index on a server could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum ElasticOpenError {
    /// The key cannot be sent.
    #[error("--search-api-key has characters that no key has: give it as the server encoded it")]
    ApiKey,
    /// The file of authorities cannot be used.
    #[error("the authorities in {file}, which --search-authority names, cannot be used: {reason}", file = file.display())]
    Authority {
        /// Which file.
        file: PathBuf,
        /// What went wrong.
        reason: String,
    },
    /// Nothing could be asked.
    #[error("could not make a client for the search server: {reason}")]
    Client {
        /// What went wrong.
        reason: String,
    },
    /// The folder could not be read or written.
    #[error("could not {tried} of search, {path}: {source}", path = path.display())]
    Folder {
        /// What was tried.
        tried: &'static str,
        /// Where.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// The server does not answer as it must.
    #[error(
        "the search server at {address} cannot be used: {reason}. Start it, or name the right one with --search; it needs \
         Elasticsearch 8.7 or newer, and a user who may manage indices and templates of this prefix"
    )]
    Server {
        /// Where.
        address: String,
        /// What it said last.
        reason: String,
    },
}

/// The search index on a server.
pub struct ElasticSearch {
    shared: Arc<Shared>,
    server: Server,
    /// Its end does not wait for what is under way: all of it may be sent again.
    runtime: Option<Runtime>,
}

/// Where a start found the server.
struct Opened {
    standing: Standing,
    version: Option<Version>,
}

impl ElasticSearch {
    /// Opens the index at the server, or begins one. The folder `dir` keeps who writes it, and a copy of how far it is: in
    /// another folder, or when it is lost, another index is begun, unless `owner` says who writes it.
    pub fn open(settings: ElasticSettings, dir: &Path, owner: Option<&str>) -> Result<Self, ElasticOpenError> {
        let failed = |tried| move |source| ElasticOpenError::Folder { tried, path: dir.to_path_buf(), source };
        std::fs::create_dir_all(dir).map_err(failed("make the folder"))?;
        let copy = FolderCopy::in_folder(dir);
        let known = copy
            .read()
            .map_err(failed("read the folder"))?
            .filter(|known| known.format == layout::FORMAT && owner.is_none_or(|owner| owner == known.owner));
        let owner = owner.or(known.as_ref().map(|known| known.owner.as_str())).map_or_else(new_owner, str::to_owned);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(THREADS)
            .thread_name("search")
            .enable_all()
            .build()
            .map_err(failed("start the threads"))?;
        let client = Client::new(&settings)?;
        let server = Server { client, names: Names::new(&settings.address.prefix) };
        let Opened { standing, version } = runtime.block_on(opened(&settings, &server, &owner, known.as_ref()))?;
        copy.write(&standing).map_err(failed("write the folder"))?;

        let reached = standing.reached();
        let state = State {
            backlog: Backlog::new(dir.to_path_buf(), settings.queued_operations, settings.queued_bytes),
            accepted: reached,
            committed: least(&reached),
            begin: None,
            pushed: 0,
            taken: 0,
            asked: 0,
            durable: 0,
            fault: None,
            end: false,
        };
        let found = standing.serving.as_ref().map(|serving| serving.position);
        let shared = Arc::new(Shared::new(state, found));
        let writer = Writer {
            shared: Arc::clone(&shared),
            server: server.clone(),
            settings,
            copy,
            standing,
            version,
            reached,
            due: 0,
            refused: BTreeMap::new(),
        };
        runtime.spawn(writer.run());
        Ok(ElasticSearch { shared, server, runtime: Some(runtime) })
    }
}

/// Where the server stands; begins an index for this folder if there is none, or if it is another's or not complete.
async fn opened(
    settings: &ElasticSettings,
    server: &Server,
    owner: &str,
    known: Option<&Standing>,
) -> Result<Opened, ElasticOpenError> {
    let copy = known.filter(|known| least(&known.reached()).is_some());
    let until = Instant::now() + if copy.is_some() { OPEN_WITH_COPY_MAX } else { OPEN_MAX };
    let mut said = None;
    loop {
        let left = until.saturating_duration_since(Instant::now());
        let reason = match tokio::time::timeout(left, look_or_begin(server, owner)).await {
            Ok(Ok(opened)) => return Ok(opened),
            Ok(Err(failure @ (Failure::Refused(_) | Failure::TooLarge(_)))) => {
                return Err(ElasticOpenError::Server {
                    address: settings.address.to_string(),
                    reason: failure.to_string(),
                });
            }
            Ok(Err(failure)) => failure.to_string(),
            // The last attempt may have had no time: what was said to the one before says more.
            Err(_) => said.unwrap_or_else(|| format!("it did not answer within {left:?}")),
        };
        if Instant::now() + OPEN_RETRY >= until {
            let Some(copy) = copy else {
                return Err(ElasticOpenError::Server { address: settings.address.to_string(), reason });
            };
            tracing::warn!("the search server does not answer ({reason}); search goes on when it does");
            return Ok(Opened { standing: copy.clone(), version: None });
        }
        said = Some(reason);
        tokio::time::sleep(OPEN_RETRY).await;
    }
}

async fn look_or_begin(server: &Server, owner: &str) -> Result<Opened, Failure> {
    server.prepare().await?;
    let (found, generations) = (server.look().await?, server.generations().await?);
    let version = found.as_ref().map(|(_, version)| *version);
    let found = found.map(|(standing, _)| standing);
    let ours = found.filter(|standing| standing.format == layout::FORMAT && standing.owner == owner);
    if let Some(standing) = &ours
        && generations.contains(&standing.writing)
        && least(&standing.reached()).is_some()
    {
        return Ok(Opened { standing: standing.clone(), version });
    }
    // What another owner filled may be of another database.
    let serving = ours.and_then(|standing| standing.serving).filter(|serving| generations.contains(&serving.index));
    let standing = Standing::new(owner, server.make().await?, serving);
    let version = server.write(&standing, version).await?;
    server.tidy(&standing).await?;
    Ok(Opened { standing, version: Some(version) })
}

impl Drop for ElasticSearch {
    fn drop(&mut self) {
        self.shared.state.lock().end = true;
        self.shared.work.notify_one();
        self.shared.moved.notify_all();
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// What becomes of the document of `op`.
fn change(op: &Op<Document>) -> Option<Change> {
    match op {
        Op::Put(document) => Some(Change::Put(document.clone())),
        Op::Delete(document) => Some(Change::Delete(layout::key(document))),
        // Documents are never added up.
        Op::Add(..) => None,
    }
}

impl ElasticSearch {
    /// Hands `piece` over; waits while there is no room, neither in memory nor on disk.
    fn hand_over(&self, mut piece: Piece, accepted: impl FnOnce(&mut Reached)) -> Result<(), Fault> {
        let mut state = self.shared.state.lock();
        let mut told = false;
        loop {
            if let Some(fault) = state.fault.clone() {
                return Err(fault);
            }
            if state.end {
                return Err(Fault::Ended);
            }
            match state.backlog.push(piece) {
                Ok(()) => break,
                Err((back, reason)) => {
                    if !told {
                        tracing::warn!("search keeps the dataflows waiting: {reason}");
                        told = true;
                    }
                    piece = back;
                    self.shared.moved.wait(&mut state);
                }
            }
        }
        state.pushed += 1;
        accepted(&mut state.accepted);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }
}

impl RowSink<Document> for ElasticSearch {
    fn progress(&self) -> Vec<Option<Position>> {
        self.shared.state.lock().accepted.to_vec()
    }

    fn apply(&self, closed: &Closed<Document>) -> Result<(), StoreError> {
        let (position, time) = (closed.position, closed.position.time);
        let failed = |fault: Fault| fault.store(format!("apply the closed time {time}"));
        // A shard is of one worker, which comes once at a time: what is due stays so.
        let accepted = self.shared.state.lock().accepted;
        let due = |shard: usize| accepted.get(shard).is_some_and(|own| own.is_none_or(|own| own.time < time));
        let ops = closed.ops.iter().filter(|(shard, _)| due(usize::from(*shard)));
        let mut changes = Vec::new();
        for change in ops.filter_map(|(_, op)| change(op)) {
            changes.push(change);
            if changes.len() == PIECE {
                let changes = std::mem::take(&mut changes);
                self.hand_over(Piece { time, changes, reaches: None }, |_| {}).map_err(failed)?;
            }
        }
        let shards = (0..SHARDS).filter(|shard| due(*shard)).fold(0, |bits, shard| bits | 1 << shard) & closed.shards;
        let reaches_it = (!closed.loading && shards != 0).then_some((position, shards));
        if changes.is_empty() && reaches_it.is_none() {
            return Ok(());
        }
        let accept = |accepted: &mut Reached| {
            if reaches_it.is_some() {
                reaches(accepted, shards, position);
            }
        };
        self.hand_over(Piece { time, changes, reaches: reaches_it }, accept).map_err(failed)
    }
}

impl SearchStore for ElasticSearch {
    fn rebuild(&self, due: Time) -> Result<(), StoreError> {
        let mut state = self.shared.state.lock();
        if let Some(fault) = state.fault.clone() {
            return Err(fault.store("begin anew"));
        }
        state.backlog.clear();
        (state.accepted, state.committed, state.begin) = ([None; SHARDS], None, Some(due));
        (state.taken, state.pushed) = (state.pushed, state.pushed + 1);
        drop(state);
        self.shared.work.notify_one();
        Ok(())
    }

    fn durable(&self, limit: Duration) -> Result<Option<Position>, StoreError> {
        let until = Instant::now() + limit;
        let mut state = self.shared.state.lock();
        let pushed = state.pushed;
        state.asked = state.asked.max(pushed);
        self.shared.work.notify_one();
        loop {
            if let Some(fault) = state.fault.clone() {
                return Err(fault.store("commit"));
            }
            if state.durable >= pushed || self.shared.moved.wait_until(&mut state, until).timed_out() {
                return Ok(state.committed);
            }
        }
    }

    fn refused(&self) -> u64 {
        self.shared.refused.load(Ordering::Relaxed)
    }
}

impl SearchIndex for ElasticSearch {
    fn found(&self) -> Option<Position> {
        *self.shared.found.borrow()
    }

    fn snapshot(&self) -> Result<Box<dyn SearchSnapshot>, ReadError> {
        self.index()?.snapshot()
    }

    fn waits(&self) -> Option<String> {
        self.shared.waiting()
    }
}
