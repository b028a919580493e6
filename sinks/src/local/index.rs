//! Facts, rows and reactions on this machine's disk, in fjall.
//!
//! ```text
//!   worker ─ Closed<Fact> ────► ledger of facts ───────┐                        ┌─► facts
//!   worker ─ Closed<ViewRow> ─► ledger of rows ────────┼─ one batch: rows, ─────┼─► profile, username, followers, …
//!   worker ─ Closed<ViewRow> ─► ledger of reactions ───┘  then the progress     ├─► likers, liked, notifications, …
//!                                                                               └─► state: format, progress
//!   reader ─► a snapshot for each call, or what is in memory ([`hot`])
//! ```
//!
//! Why it is correct: a closed time is one batch of fjall together with its progress, so after a crash a shard has both
//! or neither. (A closed time of more than [`BATCH_ROWS`] rows is several batches, or tables ([`bulk`]), progress in the
//! last: applied again, a put or a delete changes nothing, and a sum carries the time that it has.) fjall's journal loses at most its end,
//! and what it has on disk is never behind its progress there; what was lost the change log replays, since it
//! keeps its tail from [`LocalIndex::durable`] on. A first load has no progress until its end; if that never comes, the
//! next start finds shards without progress and clears the store.
//!
//! Rows may have a closed time that reactions do not have yet. They have keyspaces and progress of their own, so neither waits for
//! the other, and what a reader is given of both it takes from one snapshot.
//!
//! Facts, rows or reactions that are built again lose their progress first, durably, and then their keyspaces; new ones take their
//! place at once. Who began to read the old ones ends so: a keyspace that was deleted goes when nobody holds it. The new
//! ones cannot be read before they are whole.

mod bulk;
mod facts;
mod hot;
mod ledger;
mod read;
mod rows;
mod scan;

pub(super) use self::read::IndexReader;
pub(super) use self::scan::kind_text;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_model::{Closed, Fact, Position, RowSink, StoreError, Time, ViewRow};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::{Mutex, RwLock};

use self::facts::Facts;
use self::hot::HotRows;
use self::ledger::Ledger;
use self::rows::Rows;
use crate::{Changes, ReadError};

/// Version of what the keyspaces hold. Another version is refused: derived data is rebuilt rather than migrated.
const FORMAT: u32 = 5;
const FORMAT_KEY: &[u8] = b"format";
const STATE: &str = "state";
/// First bytes of the rows of `state` that hold progress.
const FACTS_PROGRESS: u8 = 1;
const ROWS_PROGRESS: u8 = 2;
const REACTIONS_PROGRESS: u8 = 3;

/// Threads that write and merge tables. Of several, fjall keeps one for writing, which looks without a pause for something to
/// write as long as the others merge: a core that does nothing.
const WORKERS: usize = 1;
/// Rows of a batch of fjall, which holds them all in memory.
const BATCH_ROWS: usize = 65_536;
/// Blocks of tables in memory, for all keyspaces. The file cache of the system holds more.
const CACHE_BYTES: u64 = 128 << 20;
/// A keyspace's rows in memory before they become a table; there are some twenty keyspaces.
const MEMTABLE_BYTES: u64 = 8 << 20;
/// All keyspaces' rows in memory above which [`LocalIndex::durable`] makes tables of them. A start puts what had not become
/// one into memory again, some 50 MB a second, before the first read.
const UNWRITTEN_BYTES: u64 = 16 << 20;
/// How often the end of the tables that are being written is looked at.
const WRITTEN_POLL: Duration = Duration::from_millis(5);
/// Journals on disk, which a start has to read; above it the keyspaces that hold the oldest back are written out.
const JOURNAL_BYTES: u64 = 64 << 20;

/// Why a local store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It was written by another version.
    #[error(
        "the index store in {path} has format {found}, this version of feedmill reads {expected}: \
         move the folder away, and it is built again from the change log"
    )]
    Format {
        /// Where.
        path: PathBuf,
        /// Its format.
        found: String,
        /// Ours.
        expected: u32,
    },
    /// Another process has it open.
    #[error("the index store in {path} is open in another process: stop that one, or use another --data")]
    Locked {
        /// Where.
        path: PathBuf,
    },
    /// The engine could not do it.
    #[error("could not {tried} in the index store in {path}: {source}")]
    Engine {
        /// What was tried.
        tried: &'static str,
        /// Where.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: fjall::Error,
    },
}

/// What goes wrong with a row.
#[derive(Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Engine(#[from] fjall::Error),
    #[error("a row of keyspace {keyspace} cannot be decoded; move the store away, and it is built again")]
    Undecodable { keyspace: &'static str },
    #[error("the view {view} is not in this store")]
    Elsewhere { view: &'static str },
    #[error("a row cannot be encoded: {0}")]
    Unencodable(#[from] postcard::Error),
}

impl Fault {
    fn store(self, store: &'static str, tried: impl Into<String>) -> StoreError {
        StoreError { store, tried: tried.into(), source: Box::new(self) }
    }
}

/// Facts, rows and reactions on this machine's disk.
pub struct LocalIndex {
    db: Database,
    facts: RwLock<Arc<Facts>>,
    tables: RwLock<Arc<Tables>>,
    /// Held while the stores are made durable, and while one is begun anew.
    keeping: Mutex<()>,
    changes: Changes,
}

/// Rows and reactions, and what is made of both.
struct Tables {
    rows: Arc<Rows>,
    reactions: Arc<Rows>,
    hot: HotRows,
}

impl Tables {
    fn of(rows: Arc<Rows>, reactions: Arc<Rows>) -> Arc<Self> {
        Arc::new(Tables { rows, reactions, hot: HotRows::new() })
    }
}

impl LocalIndex {
    /// Opens the store in the folder `dir`, or makes it. Facts, rows or reactions whose first load was not completed are cleared.
    pub fn open(dir: &Path) -> Result<Self, OpenError> {
        let failed = |tried| move |source| OpenError::Engine { tried, path: dir.to_path_buf(), source };
        let builder = Database::builder(dir).cache_size(CACHE_BYTES).max_journaling_size(JOURNAL_BYTES);
        let opened = builder.worker_threads(WORKERS).open();
        let db = opened.map_err(|source| match source {
            fjall::Error::Locked => OpenError::Locked { path: dir.to_path_buf() },
            source => failed("open the database")(source),
        })?;
        let state = db.keyspace(STATE, options).map_err(failed("open the state"))?;
        check_format(&state, dir)?;
        let failed = failed("open the keyspaces");
        let opened = || {
            let ledger = |store, prefix| Ledger::open(&db, &state, store, prefix);
            let facts = Facts::open(&db, ledger("facts", FACTS_PROGRESS)?)?;
            let rows = Rows::open(&db, ledger("rows", ROWS_PROGRESS)?)?;
            let reactions = Rows::open_reactions(&db, ledger("reactions", REACTIONS_PROGRESS)?)?;
            Ok((Arc::new(facts), Tables::of(Arc::new(rows), Arc::new(reactions))))
        };
        let (facts, tables) = opened().map_err(failed)?;
        let (facts, tables) = (RwLock::new(facts), RwLock::new(tables));
        Ok(LocalIndex { db, facts, tables, keeping: Mutex::new(()), changes: Changes::default() })
    }

    /// Begins the facts anew, empty and without progress. Until they have the closed time `due` on all shards, reads that
    /// need them fail with [`Rebuilding`](crate::Rebuilding). No closed time may be applied meanwhile. Whoever listens is told:
    /// what was wrong before is another row then, or none.
    pub fn rebuild_facts(&self, due: Time) -> Result<(), StoreError> {
        let _keeping = self.keeping.lock();
        let anew = self.facts().ledger.begun_anew(&self.db, due).and_then(|ledger| Facts::open(&self.db, ledger));
        *self.facts.write() = Arc::new(anew.map_err(|error| Fault::from(error).store("facts", "begin anew"))?);
        self.changes.tell_anything();
        Ok(())
    }

    /// The same for the rows.
    pub fn rebuild_rows(&self, due: Time) -> Result<(), StoreError> {
        let _keeping = self.keeping.lock();
        let before = self.tables();
        let anew = before.rows.ledger.begun_anew(&self.db, due).and_then(|ledger| Rows::open(&self.db, ledger));
        let anew = anew.map_err(|error| Fault::from(error).store("rows", "begin anew"))?;
        *self.tables.write() = Tables::of(Arc::new(anew), Arc::clone(&before.reactions));
        self.changes.tell_anything();
        Ok(())
    }

    /// The same for the reactions.
    pub fn rebuild_reactions(&self, due: Time) -> Result<(), StoreError> {
        let _keeping = self.keeping.lock();
        let before = self.tables();
        let ledger = before.reactions.ledger.begun_anew(&self.db, due);
        let anew = ledger.and_then(|ledger| Rows::open_reactions(&self.db, ledger));
        let anew = anew.map_err(|error| Fault::from(error).store("reactions", "begin anew"))?;
        *self.tables.write() = Tables::of(Arc::clone(&before.rows), Arc::new(anew));
        self.changes.tell_anything();
        Ok(())
    }

    /// Who tells what is applied.
    pub(super) fn changes(&self) -> &Changes {
        &self.changes
    }

    fn facts(&self) -> Arc<Facts> {
        Arc::clone(&self.facts.read())
    }

    fn tables(&self) -> Arc<Tables> {
        Arc::clone(&self.tables.read())
    }

    /// The last closed time of the reactions that each shard has; `None` for one that has never reached any.
    pub fn reactions_progress(&self) -> Vec<Option<Position>> {
        self.tables().reactions.ledger.progress()
    }

    /// Applies a closed time of the reactions.
    pub fn apply_reactions(&self, closed: &Closed<ViewRow>) -> Result<(), StoreError> {
        let tables = self.tables();
        let applied = tables.reactions.ledger.apply(&self.db, closed, &*tables.reactions);
        tables.hot.forget_likes(closed);
        applied?;
        self.changes.tell_rows(closed);
        Ok(())
    }

    /// Makes all that was applied before the call durable. Returns the least position that a shard of facts, rows or reactions
    /// has on disk, `None` while one has none: the change log must keep what came after it.
    ///
    /// To be called every few seconds; counts that have come down to zero are dropped here, and rows in memory that have
    /// become many begin to be written into tables.
    pub fn durable(&self) -> Result<Option<Position>, StoreError> {
        let _keeping = self.keeping.lock();
        let kept = self.tables();
        let facts = self.facts().ledger.record(&self.db)?;
        let rows = kept.rows.ledger.record(&self.db)?;
        let reactions = kept.reactions.ledger.record(&self.db)?;
        let persisted = self.db.persist(PersistMode::SyncData);
        persisted.map_err(|error| Fault::from(error).store("index", "make the journal durable"))?;
        kept.rows.drop_zeros(&self.db, &rows)?;
        kept.reactions.drop_zeros(&self.db, &reactions)?;
        // A journal that is full goes when all keyspaces that it has rows of are written.
        if self.db.write_buffer_size() > UNWRITTEN_BYTES || self.db.journal_count() > 1 {
            self.write_tables()?;
        }
        let positions: Option<Vec<Position>> = facts.into_iter().chain(rows).chain(reactions).collect();
        Ok(positions.and_then(|positions| positions.into_iter().min_by_key(|position| position.time)))
    }

    /// Writes all rows into tables, so that the next start has none to put into memory again; gives up after `limit`, which
    /// only makes that start slower.
    pub fn write_out(&self, limit: Duration) -> Result<(), StoreError> {
        let deadline = Instant::now() + limit;
        let _keeping = self.keeping.lock();
        let keyspaces = self.write_tables()?;
        let written = || keyspaces.iter().all(|keyspace| keyspace.sealed_memtable_count() == 0);
        while !written() && Instant::now() < deadline {
            std::thread::sleep(WRITTEN_POLL);
        }
        Ok(())
    }

    /// Begins to write what is in memory into tables; returns all keyspaces.
    fn write_tables(&self) -> Result<Vec<Keyspace>, StoreError> {
        let names = self.db.list_keyspace_names().into_iter();
        let begun = names.map(|name| {
            let keyspace = self.db.keyspace(&name, options)?;
            keyspace.rotate_memtable()?;
            Ok(keyspace)
        });
        let begun: Result<_, Fault> = begun.collect();
        begun.map_err(|fault| fault.store("index", "write tables"))
    }
}

/// All keyspaces are alike: short keys, short values, many of them.
fn options() -> KeyspaceCreateOptions {
    KeyspaceCreateOptions::default().max_memtable_size(MEMTABLE_BYTES)
}

fn check_format(state: &Keyspace, dir: &Path) -> Result<(), OpenError> {
    let failed = |source| OpenError::Engine { tried: "read the format", path: dir.to_path_buf(), source };
    let found = state.get(FORMAT_KEY).map_err(failed)?;
    match found {
        Some(found) if *found == *FORMAT.to_string().as_bytes() => Ok(()),
        Some(found) => Err(OpenError::Format {
            path: dir.to_path_buf(),
            found: String::from_utf8_lossy(&found).into_owned(),
            expected: FORMAT,
        }),
        None => state.insert(FORMAT_KEY, FORMAT.to_string()).map_err(failed),
    }
}

/// The keyspace `name`, without the rows of a load that was not completed. It is deleted rather than cleared: tables
/// that are still being written belong to the deleted one.
fn empty_keyspace(db: &Database, name: &'static str) -> fjall::Result<Keyspace> {
    let keyspace = db.keyspace(name, options)?;
    if keyspace.is_empty()? {
        return Ok(keyspace);
    }
    db.delete_keyspace(keyspace)?;
    db.keyspace(name, options)
}

fn open_keyspace(db: &Database, ledger: &Ledger, name: &'static str) -> fjall::Result<Keyspace> {
    if ledger.is_complete() { db.keyspace(name, options) } else { empty_keyspace(db, name) }
}

impl RowSink<Fact> for LocalIndex {
    fn progress(&self) -> Vec<Option<Position>> {
        self.facts().ledger.progress()
    }

    fn apply(&self, closed: &Closed<Fact>) -> Result<(), StoreError> {
        let facts = self.facts();
        let applied = facts.ledger.apply(&self.db, closed, &*facts);
        facts.hot.forget(closed);
        applied?;
        self.changes.tell_facts(closed);
        Ok(())
    }
}

impl RowSink<ViewRow> for LocalIndex {
    fn progress(&self) -> Vec<Option<Position>> {
        self.tables().rows.ledger.progress()
    }

    fn apply(&self, closed: &Closed<ViewRow>) -> Result<(), StoreError> {
        let tables = self.tables();
        let applied = tables.rows.ledger.apply(&self.db, closed, &*tables.rows);
        tables.hot.forget(closed);
        applied?;
        self.changes.tell_rows(closed);
        Ok(())
    }
}

/// Says which read failed.
trait OrRead<T> {
    fn or_read(self, what: &'static str) -> Result<T, ReadError>;
}

impl<T> OrRead<T> for Result<T, Fault> {
    fn or_read(self, what: &'static str) -> Result<T, ReadError> {
        self.map_err(|fault| ReadError { store: "local", what, source: Box::new(fault) })
    }
}
