//! The change log: the current row of every key, a tail of recent batches, and the position.
//!
//! ```text
//!   rows   relation, key ─► row            current as of `position`
//!   tail   time          ─► batch          old and new row of each change
//!   meta   format, source, state, position, greatest entry id
//! ```
//!
//! Why nothing is lost or half done: a batch changes rows, tail and position in one write of the storage engine, which
//! is atomic and fsynced before [`Log::append`] returns, and only then is the slot acknowledged. What the source sends
//! again after a crash lies at or before the position and is skipped.
//!
//! The state at an earlier time T of the tail is the rows with each change after T undone, newest first: see
//! [`StateAt`].

use std::collections::VecDeque;
use std::path::Path;
use std::sync::Arc;

use feedmill_connectors::postgres::Transaction;
use feedmill_model::{Batch, Change, Key, Lsn, PackedEntry, EntryId, Position, Relation, Row, SourceId, Time, floor_of};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, PersistMode};
use parking_lot::{Condvar, Mutex};
use serde::{Deserialize, Serialize};

use crate::error::storage;
use crate::key::{decode, encode, relation_prefix, row_key, tail_key};
use crate::resolve::{self, resolve};
use crate::{LogError, Reader, StateAt};

/// Grows when what is stored changes in a way that an older version cannot read.
const FORMAT: u32 = 1;
/// A clock that is further ahead than this is wrong.
const AHEAD_MAX_MS: u64 = 3_600_000;
/// Batches, and changes in them, that stay in memory for readers that keep up.
const RING_BATCHES_MAX: usize = 1_024;
const RING_CHANGES_MAX: usize = 200_000;

const META: &[u8] = b"meta";

/// Sizes and limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// Changes of entries or follows in one batch above which it is marked as bulk.
    pub bulk_rows: usize,
    /// Bytes of memory for blocks of the row store.
    pub cache_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options { bulk_rows: 100_000, cache_bytes: 64 << 20 }
    }
}

/// What the log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogState {
    /// Nothing.
    Empty,
    /// A first copy that has not ended.
    Copying,
    /// A source as of a position.
    Ready,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Meta {
    format: u32,
    state: LogState,
    source: Option<SourceId>,
    position: Option<Position>,
    /// The tail has every batch after this time.
    tail_after: Time,
    greatest_entry: i64,
}

/// The change log of one folder. A clone is another handle of the same.
#[derive(Clone)]
pub struct Log {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub db: Database,
    pub rows: Keyspace,
    pub tail: Keyspace,
    meta: Keyspace,
    options: Options,
    current: Mutex<Meta>,
    /// Held while a batch is written, so that batches enter one after the other.
    writing: Mutex<()>,
    pub ring: Mutex<Ring>,
    pub appended: Condvar,
}

/// The newest batches.
#[derive(Default)]
pub(crate) struct Ring {
    pub batches: VecDeque<Arc<Batch>>,
    changes: usize,
}

impl Ring {
    fn push(&mut self, batch: Arc<Batch>) {
        self.changes += batch.changes.len();
        self.batches.push_back(batch);
        while self.batches.len() > RING_BATCHES_MAX || (self.changes > RING_CHANGES_MAX && self.batches.len() > 1) {
            if let Some(oldest) = self.batches.pop_front() {
                self.changes -= oldest.changes.len();
            }
        }
    }
}

impl Log {
    /// Opens the log in `dir`, or makes an empty one.
    pub fn open(dir: &Path, options: Options) -> Result<Self, LogError> {
        let open = |source| LogError::Open { path: dir.to_owned(), source };
        let db = Database::builder(dir).cache_size(options.cache_bytes).open().map_err(open)?;
        let keyspace = |name| db.keyspace(name, KeyspaceCreateOptions::default).map_err(open);
        let (rows, tail, meta) = (keyspace("rows")?, keyspace("tail")?, keyspace("meta")?);
        let current = match meta.get(META).map_err(open)? {
            None => Meta {
                format: FORMAT,
                state: LogState::Empty,
                source: None,
                position: None,
                tail_after: 0,
                greatest_entry: 0,
            },
            Some(bytes) => {
                let format = postcard::from_bytes::<u32>(&bytes).unwrap_or_default();
                if format != FORMAT {
                    return Err(LogError::Format { path: dir.to_owned(), found: format, known: FORMAT });
                }
                decode(&bytes, || "the header".to_owned())?
            }
        };
        let shared = Shared {
            db,
            rows,
            tail,
            meta,
            options,
            current: Mutex::new(current),
            writing: Mutex::new(()),
            ring: Mutex::default(),
            appended: Condvar::new(),
        };
        Ok(Log { shared: Arc::new(shared) })
    }

    /// What it holds.
    pub fn state(&self) -> LogState {
        self.shared.current.lock().state
    }

    /// The source that it was copied from.
    pub fn source(&self) -> Option<SourceId> {
        self.shared.current.lock().source.clone()
    }

    /// The newest batch, once there is a finished copy.
    pub fn position(&self) -> Option<Position> {
        self.shared.current.lock().position
    }

    /// The greatest id of a tweet or retweet that was ever in the log and that a home timeline can hold.
    pub fn greatest_entry(&self) -> i64 {
        self.shared.current.lock().greatest_entry
    }

    /// Begins a first copy: what was there is gone.
    pub fn begin_copy(&self, source: &SourceId) -> Result<(), LogError> {
        let _writing = self.shared.writing.lock();
        let meta = Meta {
            format: FORMAT,
            state: LogState::Copying,
            source: Some(source.clone()),
            position: None,
            tail_after: 0,
            greatest_entry: 0,
        };
        // The state first: a crash after it finds a copy that did not end.
        self.write_meta(meta)?;
        self.shared.rows.clear().map_err(storage("clear the rows of"))?;
        self.shared.tail.clear().map_err(storage("clear the tail of"))?;
        *self.shared.ring.lock() = Ring::default();
        Ok(())
    }

    /// Takes rows of the first copy. They may come from several threads.
    pub fn copy_rows(&self, rows: Vec<Row>) -> Result<(), LogError> {
        let mut batch = self.shared.db.batch();
        let mut greatest = 0;
        for row in &rows {
            greatest = greatest.max(entry_id(row));
            batch.insert(&self.shared.rows, row_key(&row.key()), encode(row)?);
        }
        batch.commit().map_err(storage("copy rows into"))?;
        let mut meta = self.shared.current.lock();
        meta.greatest_entry = meta.greatest_entry.max(greatest);
        Ok(())
    }

    /// Ends the first copy: the log holds the source as of `lsn`.
    pub fn finish_copy(&self, lsn: Lsn, now_ms: u64) -> Result<Position, LogError> {
        let _writing = self.shared.writing.lock();
        self.shared.db.persist(PersistMode::SyncAll).map_err(storage("make the copy durable in"))?;
        let position = Position { time: now_ms, lsn };
        let copying = self.shared.current.lock().clone();
        let meta = Meta { state: LogState::Ready, position: Some(position), tail_after: now_ms, ..copying };
        self.write_meta(meta)?;
        Ok(position)
    }

    fn write_meta(&self, meta: Meta) -> Result<(), LogError> {
        let mut batch = self.shared.db.batch().durability(Some(PersistMode::SyncData));
        batch.insert(&self.shared.meta, META, encode(&meta)?);
        batch.commit().map_err(storage("write the header of"))?;
        *self.shared.current.lock() = meta;
        Ok(())
    }

    /// Makes whole transactions durable as one batch, or an idle tick when there are none. `covers` is the end of the
    /// source's log that the batch covers, and `now_ms` this machine's clock.
    ///
    /// Transactions at or before the log's position are held already, and skipped.
    pub fn append(&self, transactions: &[Transaction], covers: Lsn, now_ms: u64) -> Result<Arc<Batch>, LogError> {
        let _writing = self.shared.writing.lock();
        let before = self.shared.current.lock().clone();
        let last = before.position.filter(|_| before.state == LogState::Ready).ok_or(LogError::NotReady)?;
        let known = transactions.iter().take_while(|transaction| transaction.end_lsn <= last.lsn).count();
        let transactions = transactions.get(known..).unwrap_or_default();
        let lsn = transactions.last().map_or(covers, |newest| newest.end_lsn.max(covers)).max(last.lsn);
        let time = mint(last.time, now_ms, lsn)?;
        let changes = resolve(&*self.shared, transactions)?;
        let greatest_entry = changes.iter().filter_map(|change| change.new.as_ref()).map(entry_id).max().unwrap_or(0);
        let greatest_entry = greatest_entry.max(before.greatest_entry);
        let bulk = is_bulk(&changes, self.shared.options.bulk_rows);
        let position = Position { time, lsn };
        let batch = Batch { position, floor: bulk.then(|| floor_of(time).max(greatest_entry)), changes };
        let meta = Meta { position: Some(position), greatest_entry, ..before };
        self.write(&batch, &meta)?;
        let batch = Arc::new(batch);
        *self.shared.current.lock() = meta;
        self.shared.ring.lock().push(Arc::clone(&batch));
        self.shared.appended.notify_all();
        Ok(batch)
    }

    fn write(&self, batch: &Batch, meta: &Meta) -> Result<(), LogError> {
        let shared = &self.shared;
        let mut write = shared.db.batch().durability(Some(PersistMode::SyncData));
        for change in &batch.changes {
            match (&change.old, &change.new) {
                (_, Some(row)) => write.insert(&shared.rows, row_key(&row.key()), encode(row)?),
                (Some(row), None) => write.remove(&shared.rows, row_key(&row.key())),
                (None, None) => {}
            }
        }
        write.insert(&shared.tail, tail_key(batch.position.time), encode(batch)?);
        write.insert(&shared.meta, META, encode(meta)?);
        write.commit().map_err(storage("append a batch to"))
    }

    /// Reads the batches after `after`, in order.
    pub fn reader(&self, after: Time) -> Result<Reader, LogError> {
        Reader::new(self.clone(), after)
    }

    /// The rows as of `time`, which must be in the tail or the log's own.
    pub fn state_at(&self, time: Time) -> Result<StateAt, LogError> {
        StateAt::new(self, time)
    }

    /// Drops batches before `before`, but for the newest.
    pub fn compact(&self, before: Time) -> Result<(), LogError> {
        let _writing = self.shared.writing.lock();
        let meta = self.shared.current.lock().clone();
        let Some(newest) = meta.position else { return Ok(()) };
        let before = before.min(newest.time);
        if before <= meta.tail_after.saturating_add(1) {
            return Ok(());
        }
        let meta = Meta { tail_after: before - 1, ..meta };
        let mut write = self.shared.db.batch();
        for entry in self.shared.tail.range(..tail_key(before)) {
            write.remove(&self.shared.tail, entry.key().map_err(storage("read the tail of"))?);
        }
        write.insert(&self.shared.meta, META, encode(&meta)?);
        write.commit().map_err(storage("drop the old tail of"))?;
        *self.shared.current.lock() = meta;
        Ok(())
    }

    /// The tail has every batch after this time.
    pub fn tail_after(&self) -> Time {
        self.shared.current.lock().tail_after
    }
}

impl resolve::Rows for Shared {
    fn row(&self, key: &Key) -> Result<Option<Row>, LogError> {
        let bytes = self.rows.get(row_key(key)).map_err(storage("read a row of"))?;
        bytes.map(|bytes| decode(&bytes, || format!("the row {key:?}"))).transpose()
    }

    fn keys(&self, relation: Relation) -> Result<Vec<Key>, LogError> {
        let rows = self.rows.prefix(relation_prefix(relation)).map(|entry| {
            let bytes = entry.value().map_err(storage("read the rows of"))?;
            Ok(decode::<Row>(&bytes, || format!("a row of {}", relation.table()))?.key())
        });
        rows.collect()
    }
}

/// The next time: later than the last, and now if that is later still. A clock that was set back by more than an hour
/// leaves the last time so far in the future that windows and floors would be wrong for as long: nothing is minted.
fn mint(last: Time, now_ms: u64, lsn: Lsn) -> Result<Time, LogError> {
    let time = now_ms.max(last + 1);
    if time > now_ms.saturating_add(AHEAD_MAX_MS) {
        return Err(LogError::ClockBack { lsn, time, now_ms });
    }
    Ok(time)
}

/// The id of the entry that a row may be, or 0.
fn entry_id(row: &Row) -> i64 {
    let entry = match row {
        Row::Tweet(tweet) if tweet.reply_to_id.is_none() => EntryId::tweet(tweet.id),
        Row::Retweet(retweet) => EntryId::retweet(retweet.id),
        _ => return 0,
    };
    PackedEntry::new(entry).map_or(0, PackedEntry::id)
}

fn is_bulk(changes: &[Change], bulk_rows: usize) -> bool {
    let fanned_out = |change: &&Change| {
        let row = change.new.as_ref().or(change.old.as_ref());
        row.is_some_and(|row| matches!(row, Row::Tweet(_) | Row::Retweet(_) | Row::Follow(_)))
    };
    changes.len() > bulk_rows && changes.iter().filter(fanned_out).count() > bulk_rows
}
