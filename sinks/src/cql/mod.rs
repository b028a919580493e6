//! The stores of facts, rows, reactions and home timelines in a CQL cluster: ScyllaDB, or Apache Cassandra.
//!
//! ```text
//!   CqlIndex (facts, rows,  ┐   place: table, partition, key      ┌─ window: as many requests as are answered in time
//!             reactions)    │                                     │
//!   CqlHome ────────────────┴─► spread: which part of a list ─► cluster ─► batches of one partition ─► nodes
//!           ledger: progress, when all is acknowledged ────────────┘            │
//!   CqlViews ◄── read, lists: pages ◄───────────────────────────────────────────┘
//!   CqlReader: CqlViews ◄── follow: how far the stores are that other processes write
//! ```
//!
//! What it rests on, each part with its argument where it is:
//!
//! - Every write has the timestamp of its closed time, and says the same whenever it is made (`cluster`). So whatever comes
//!   twice, or late, changes nothing, and a replay of what a crash has cut short ends where it would have ended.
//! - A row has at most one operation a closed time: of two with one timestamp a cluster keeps the delete, or else the greater
//!   value (`index`).
//! - Progress comes after the acknowledgement of everything that it tells of (`ledger`).
//! - Partitions are bounded (`spread`), and lists that rows leave as fast as they come are one value each (`trends`).
//! - A shard is written by one process: sums and home timelines are changed by who knows what they are.

mod cache;
mod cluster;
mod copy;
mod fault;
mod follow;
mod home;
mod index;
mod ledger;
mod lists;
mod place;
mod read;
mod reader;
mod record;
mod schema;
mod settings;
mod spread;
mod state;
mod statement;
mod trends;
mod views;
mod window;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use feedmill_model::{Parameters, SourceId, StoreError};
use futures::future::join_all;
use tokio::time::timeout;

pub use self::cache::CacheAges;
use self::cluster::Cluster;
pub use self::fault::CqlError;
use self::fault::Fault;
pub use self::home::CqlHome;
pub use self::index::CqlIndex;
use self::ledger::{Ledger, TELL_EVERY};
use self::read::{FACTS, HOME, REACTIONS, ROWS};
pub use self::reader::CqlReader;
pub use self::settings::{Consistency, CqlSettings, ParseCqlError, Tls};
use self::spread::Table;
use self::state::State;
pub use self::views::CqlViews;

/// The stores of a keyspace.
#[derive(Clone)]
pub struct CqlStores {
    /// Facts, rows and reactions.
    pub index: Arc<CqlIndex>,
    /// Home timelines.
    pub home: Arc<CqlHome>,
}

impl CqlStores {
    /// Connects to the cluster; makes the keyspace and its tables if they are not there, and refuses those of another version
    /// or source. What a load has left that did not end stays until [`Self::clear_incomplete`].
    ///
    /// Requests are made on the runtime that this is called on, so it must have another thread than those that apply.
    pub async fn open(settings: CqlSettings, source: &SourceId, parameters: Parameters) -> Result<Self, CqlError> {
        let keyspace = settings.keyspace.clone();
        let failed =
            |source: Fault| CqlError::Engine { tried: "read the progress", keyspace, source: Box::new(source) };
        let cluster = Arc::new(Cluster::open(settings).await?);
        State::new(&cluster).check(source).await?;
        let opened = async {
            State::new(&cluster).keep_for(parameters.fanout_days).await?;
            let facts = Ledger::open(&cluster, FACTS, &["facts"], Some(Table::Facts)).await?;
            let rows = Ledger::open(&cluster, ROWS, &["rows", "lists"], Some(Table::Lists)).await?;
            // The tables of the rows, which go with theirs.
            let reactions = Ledger::open(&cluster, REACTIONS, &[], Some(Table::Lists)).await?;
            let home = Ledger::open(&cluster, HOME, &["home"], None).await?;
            Ok((CqlIndex::new(facts, rows, reactions), CqlHome::new(home, parameters)))
        };
        let (index, home) = opened.await.map_err(failed)?;
        let stores = CqlStores { index: Arc::new(index), home: Arc::new(home) };
        tokio::spawn(tell(Arc::downgrade(&stores.index), Arc::downgrade(&stores.home)));
        Ok(stores)
    }

    /// Requests that were tried again since the stores were opened.
    pub fn retries(&self) -> u64 {
        self.home.ledger.cluster.retries()
    }

    /// Empties all of them, for a source that was copied anew.
    pub async fn clear(&self) -> Result<(), StoreError> {
        for ledger in self.ledgers() {
            ledger.rebuild(0).await.map_err(|fault| fault.store(ledger.store, "begin anew"))?;
        }
        Ok(())
    }

    /// Those of reactions come before those of rows, in whose tables they are: what is emptied has no progress any more.
    fn ledgers(&self) -> [&Ledger; 4] {
        [&self.index.facts, &self.index.reactions, &self.index.rows, &self.home.ledger]
    }

    /// Has the keyspace name this process as the one that writes it: whoever did so before ends at its next closed time, within
    /// some seconds. Gives the name for the processes that write beside this one. To be called before anything is written.
    pub async fn claim(&self) -> Result<String, StoreError> {
        let writer = format!("{:016x}", RandomState::new().build_hasher().finish());
        let cluster = &self.index.rows.cluster;
        let told = State::new(cluster).begin_writer(&writer).await;
        told.map_err(|fault| fault.store("all stores", "say who writes them"))?;
        cluster.written_by(&writer);
        Ok(writer)
    }

    /// Writes beside the process that has claimed the keyspace by this name.
    pub fn join(&self, writer: &str) {
        self.index.rows.cluster.written_by(writer);
    }

    /// Empties each store of which a shard has no progress: its first load did not end, or has not begun. To be called before
    /// the first closed time, and by one process if there are several.
    pub async fn clear_incomplete(&self) -> Result<(), StoreError> {
        let CqlIndex { rows, reactions, .. } = &*self.index;
        let shared = rows.is_complete() && reactions.is_complete();
        for ledger in self.ledgers() {
            let is_complete = match ledger.store {
                ROWS | REACTIONS => shared,
                _ => ledger.is_complete(),
            };
            if !is_complete {
                let cleared = ledger.clear().await;
                cleared.map_err(|fault| fault.store(ledger.store, "clear what a load has left"))?;
            }
        }
        Ok(())
    }
}

/// How often it is looked whether the keyspace has another writer.
const LOOK_FOR_ANOTHER: Duration = Duration::from_secs(1);

/// Writes progress that was not written, for who reads in other processes, until the stores are gone. Where it cannot, or another
/// writes the stores, nothing more is applied.
async fn tell(index: Weak<CqlIndex>, home: Weak<CqlHome>) {
    let mut looked = Instant::now();
    loop {
        let Some(cluster) = index.upgrade().map(|index| Arc::clone(&index.rows.cluster)) else { return };
        // Whether or not anything has: for what came without rows.
        let _ = timeout(TELL_EVERY, cluster.progressed.notified()).await;
        let (Some(index), Some(home)) = (index.upgrade(), home.upgrade()) else { return };
        let told =
            join_all([&index.facts, &index.rows, &index.reactions, &home.ledger].map(Ledger::write_behind)).await;
        match told.into_iter().find_map(Result::err) {
            None | Some(Fault::Stopped) => {}
            Some(fault) => cluster.bar(fault),
        }
        if looked.elapsed() >= LOOK_FOR_ANOTHER {
            cluster.look_for_another().await;
            looked = Instant::now();
        }
    }
}
