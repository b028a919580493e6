//! The change log: the current row of every key, a tail of recent batches, and the position.
//!
//! ```text
//!   rows   relation, key ─► row            current as of the position
//!          0             ─► time           of the batch that they are as of
//!   tail   time, part    ─► batch          old and new row of each change
//!   quarantine  id       ─► row            that cannot be used, and why
//!   meta                 ─► format, source, state, position, extent of the tail, greatest entry id
//! ```
//!
//! Why nothing is lost or half done: a batch changes rows, tail, quarantine and position in one write of the storage
//! engine; one that is too large for that has a way of its own, see [`crate::large`]. That
//! write has a checksum, is in the engine's journal whole or not at all, and is fsynced before [`Log::append`] returns
//! and before a reader sees any of it; only then is the slot acknowledged. What the source sends again after a crash lies
//! at or before the position and is skipped. A copy is marked as begun, durably, before its first row, and as ready in
//! the write that follows its last one in the same journal, so a half copy is never taken for a whole one. After a failed
//! write the engine refuses all others, because nobody knows what reached the disk; the next start does.
//!
//! A disk that loses the end of the journal although it was synced leaves rows, tail and position that do not agree, which
//! is an error when the log is opened, or all three at an earlier position: then slot and stores are beyond the log, which
//! is an error of whoever opens them together.
//!
//! The state at an earlier time T of the tail is the rows with each change after T undone: see [`StateAt`].

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use feedmill_connectors::postgres::{Changes, Follow, RowChange, Transaction};
use feedmill_model::{Batch, Change, Key, Lsn, Position, Relation, Row, SourceId, Time, Timestamp, failpoint};
use fjall::{Database, Keyspace, KeyspaceCreateOptions, OwnedWriteBatch, PersistMode, Readable, Snapshot};
use parking_lot::{Condvar, Mutex, MutexGuard};

use crate::bulk::Tally;
use crate::error::storage;
use crate::intake::RUN_CHANGES;
use crate::key::{decode_row, encode, relation_prefix, row_key, tail_key, time_of};
use crate::meta::{LogState, Meta};
use crate::quarantine::Effect;
use crate::resolve::{Resolved, resolve};
use crate::ring::Ring;
use crate::room::Waits;
use crate::sorter::Sorter;
use crate::{LogError, Reader, StateAt, clock, remains, tail};

/// Under which key the meta keyspace holds its value.
const META: &[u8] = b"meta";
/// Under which key the rows tell the time that they are of. No relation has this number.
pub(crate) const ROWS_TIME: &[u8] = &[0];
/// What a start has to read again: at the default of the engine, 512 MiB, it takes ten seconds.
const JOURNAL_BYTES_MAX: u64 = 64 << 20;
/// Bytes of batches in memory before they are written as a table.
const TAIL_MEMTABLE_BYTES: u64 = 16 << 20;
/// Rows and batches in memory above which [`Log::relieve`] makes tables of them.
const UNWRITTEN_BYTES: u64 = 16 << 20;
/// How often the end of the tables that are being written is looked at.
const WRITTEN_POLL: Duration = Duration::from_millis(5);
/// Parts of the tail that are dropped in one write.
const DROP_AT_A_TIME: usize = 1_024;

/// Sizes and limits.
#[derive(Clone, Debug)]
pub struct Options {
    /// Changes of entries or follows in one batch above which it is marked as bulk.
    pub bulk_rows: usize,
    /// Bytes of memory for what was read of the row store.
    pub cache_bytes: u64,
    /// Bytes of rows that are gathered in memory before they are written as a table; fixed when a log is made.
    pub memtable_bytes: u64,
    /// Changes above which a batch goes over the disk, and is read in pieces.
    pub large_changes: usize,
    /// Rows that one thread reads in one go when the state is loaded, about.
    pub range_rows: usize,
    /// Bytes of the disk that are kept free: below that nothing more is taken.
    pub reserve_bytes: u64,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            bulk_rows: 100_000,
            cache_bytes: 64 << 20,
            memtable_bytes: 16 << 20,
            large_changes: 65_536,
            range_rows: 32_768,
            reserve_bytes: 256 << 20,
        }
    }
}

/// The change log of one folder. A clone is another handle of the same. All calls block.
#[derive(Clone)]
pub struct Log {
    pub(crate) shared: Arc<Shared>,
}

pub(crate) struct Shared {
    pub db: Database,
    pub rows: Keyspace,
    pub tail: Keyspace,
    pub quarantine: Keyspace,
    meta: Keyspace,
    pub dir: PathBuf,
    pub bulk_rows: usize,
    pub large_changes: usize,
    /// Changes of one run at most.
    pub run_changes: usize,
    pub sorter: Arc<Sorter>,
    pub range_rows: usize,
    pub reserve_bytes: u64,
    /// What the writer waits for.
    pub waits: Mutex<Option<Waits>>,
    /// Rows in quarantine.
    pub quarantined: AtomicU64,
    /// The latest time that a row of the copy under way says it was made.
    pub latest_copied: AtomicI64,
    /// By how much, at the least, this machine's clock is ahead of the source's.
    pub ahead_ms: AtomicU64,
    pub current: Mutex<Meta>,
    /// Held while something is written, so that one write follows the other.
    pub writing: Mutex<()>,
    /// Held while a batch is published and its rows are not in the row store, and `true` as long: whoever reads rows as
    /// of a time waits. It stays `true` when they could not be written, until the next open writes them.
    pub unsettled: Mutex<bool>,
    /// Held while the engine takes a write, and while a snapshot is taken: when the engine flushes a table at that moment,
    /// it moves its snapshots on past a write of which it has only a part.
    pub visible: Mutex<()>,
    pub ring: Mutex<Ring>,
    /// Told after each change of the ring.
    pub appended: Condvar,
}

impl Log {
    /// Opens the log in `dir`, or makes an empty one. What a copy that was cut short has left is removed.
    pub fn open(dir: &Path, options: Options) -> Result<Self, LogError> {
        let cut_short = remains::remove_marked(dir)?;
        let shared = Shared::open(dir, &options)?;
        if let Some(meta) = cut_short {
            shared.commit(shared.durable_write(), meta, "begin a copy into")?;
            remains::unmark(dir)?;
        }
        let meta = shared.meta_in(&shared.snapshot())?;
        if meta.state == LogState::Copying && shared.holds_anything()? {
            drop(shared);
            remains::mark(dir, &meta)?;
            return Self::open(dir, options);
        }
        shared.recount_quarantined()?;
        if let Some(position) = meta.position {
            shared.settle(position)?;
            shared.check_is_of_one_time(position.time, meta.tail_after)?;
            *shared.ring.lock() = Ring::new(position.time);
        }
        *shared.current.lock() = meta;
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

    /// The position of the batch of `time`, if it is the newest or in the tail.
    pub fn position_of(&self, time: Time) -> Result<Option<Position>, LogError> {
        match self.position().filter(|newest| newest.time == time) {
            Some(newest) => Ok(Some(newest)),
            None => Ok(tail::head(&self.shared.tail, time)?.map(|head| head.position)),
        }
    }

    /// The tail has every batch after this time, so readers and [`Self::state_at`] can begin at it or later.
    pub fn tail_after(&self) -> Time {
        self.shared.current.lock().tail_after
    }

    /// The time since which positions in the source's log are of the present history: that of the batch which took over
    /// another source, or the same one restored; 0 if there was none.
    pub fn history(&self) -> Time {
        self.shared.current.lock().history
    }

    /// The greatest id of a tweet or retweet that was ever in the log and that a home timeline can hold.
    pub fn greatest_entry(&self) -> i64 {
        self.shared.current.lock().greatest_entry
    }

    /// Bytes that rows and tail take on disk, without what the journal still holds.
    pub fn disk_bytes(&self) -> (u64, u64) {
        (self.shared.rows.disk_space(), self.shared.tail.disk_space())
    }

    /// About how many rows there are: what was replaced and not compacted yet counts too.
    pub fn rows_about(&self) -> u64 {
        self.shared.rows.approximate_len() as u64
    }

    /// Tells what the source's clock said, and what this machine's clock (in milliseconds since 1970) said before the
    /// source was asked. While ours is known to be more than an hour ahead, no time is minted.
    pub fn compare_clocks(&self, source: Timestamp, asked_ms: u64) {
        let ahead_ms = clock::ahead_ms(source, asked_ms);
        self.shared.ahead_ms.store(ahead_ms, Ordering::Relaxed);
        metrics::gauge!("feedmill_log_clock_ahead_seconds").set(ahead_ms as f64 / 1e3);
    }

    /// Makes whole transactions durable as one batch, or an idle tick when there are none. `covers` is the end of the
    /// source's log that the batch covers, if that is beyond the transactions, and `now_ms` this machine's clock in
    /// milliseconds since 1970.
    ///
    /// Transactions at or before the log's position are held already, and skipped. Fails when the clock cannot be right
    /// ([`LogError::ClockBack`], [`LogError::ClockAhead`]). A row of which columns were not sent, and that is not here to
    /// take them from, goes into quarantine.
    pub fn append(&self, transactions: &[Transaction], covers: Lsn, now_ms: u64) -> Result<Position, LogError> {
        let shared = &self.shared;
        let _turn = shared.turn()?;
        shared.sorter.forget_gone();
        failpoint!("log_append_before");
        let before = shared.current.lock().clone();
        let last = before.ready()?;
        let known = transactions.partition_point(|transaction| transaction.end_lsn <= last.lsn);
        let transactions = transactions.get(known..).unwrap_or_default();
        let lsn = transactions.last().map_or(covers, |newest| newest.end_lsn.max(covers)).max(last.lsn);
        let time = clock::mint(last.time, now_ms, shared.ahead_ms.load(Ordering::Relaxed), lsn)?;
        let position = Position { time, lsn };
        if shared.are_large(transactions) {
            shared.append_large(transactions, position, before)?;
        } else {
            shared.append_small(transactions, position, before)?;
        }
        Ok(position)
    }

    /// Sorts large transactions while they are received, so that little is left to do when they are appended. To be given
    /// to the stream that receives them.
    pub fn sorter(&self) -> Arc<dyn Follow> {
        Arc::clone(&self.shared.sorter) as Arc<dyn Follow>
    }

    /// Reads the batches after `after`, in order.
    pub fn reader(&self, after: Time) -> Result<Reader, LogError> {
        self.reader_of(after, &Relation::ALL)
    }

    /// The same for who needs nothing but what is of `relations`: of a large batch parts that have nothing of them are left out.
    pub fn reader_of(&self, after: Time, relations: &'static [Relation]) -> Result<Reader, LogError> {
        Reader::new(self.clone(), after, relations)
    }

    /// The rows as of `time`, which must not lie before the tail nor after the newest batch.
    pub fn state_at(&self, time: Time) -> Result<StateAt, LogError> {
        self.state_of(time, &Relation::LOAD_ORDER)
    }

    /// Those of them that are of `relations`, relation by relation.
    pub fn state_of(&self, time: Time, relations: &[Relation]) -> Result<StateAt, LogError> {
        StateAt::new(self, time, relations)
    }

    /// Drops batches before `before`, but never the newest.
    pub fn compact(&self, before: Time) -> Result<(), LogError> {
        while self.shared.drop_some(before)? {}
        Ok(())
    }

    /// Begins to write what is in memory into tables, once it is much: a start has to put it there again, from the
    /// journal, before anything is served. To be called every few seconds.
    pub fn relieve(&self) -> Result<(), LogError> {
        let db = &self.shared.db;
        // A journal that is full goes when all keyspaces that it has something of are written.
        let much = db.write_buffer_size() > UNWRITTEN_BYTES || db.journal_count() > 1;
        if much { self.shared.write_tables() } else { Ok(()) }
    }

    /// Writes all that is in memory into tables; gives up after `limit`, which only makes the next start slower.
    pub fn write_out(&self, limit: Duration) -> Result<(), LogError> {
        let deadline = Instant::now() + limit;
        self.shared.write_tables()?;
        let written = || self.shared.keyspaces().iter().all(|keyspace| keyspace.sealed_memtable_count() == 0);
        while !written() && Instant::now() < deadline {
            std::thread::sleep(WRITTEN_POLL);
        }
        Ok(())
    }

    pub(crate) fn bulk_rows(&self) -> usize {
        self.shared.bulk_rows
    }

    pub(crate) fn check_is_held(&self, time: Time) -> Result<(), LogError> {
        self.shared.current.lock().check_is_held(time)
    }
}

impl Shared {
    fn open(dir: &Path, options: &Options) -> Result<Self, LogError> {
        let open = |source| match source {
            fjall::Error::Locked => LogError::Locked { path: dir.to_owned() },
            source => LogError::Open { path: dir.to_owned(), source },
        };
        let builder = Database::builder(dir).cache_size(options.cache_bytes).max_journaling_size(JOURNAL_BYTES_MAX);
        let db = builder.open().map_err(open)?;
        let rows = || KeyspaceCreateOptions::default().max_memtable_size(options.memtable_bytes);
        let tail = || KeyspaceCreateOptions::default().max_memtable_size(TAIL_MEMTABLE_BYTES);
        let run_changes = RUN_CHANGES.min(options.large_changes.saturating_mul(4));
        Ok(Shared {
            rows: db.keyspace("rows", rows).map_err(open)?,
            tail: db.keyspace("tail", tail).map_err(open)?,
            quarantine: db.keyspace("quarantine", KeyspaceCreateOptions::default).map_err(open)?,
            meta: db.keyspace("meta", KeyspaceCreateOptions::default).map_err(open)?,
            db,
            dir: dir.to_owned(),
            bulk_rows: options.bulk_rows,
            large_changes: options.large_changes,
            run_changes,
            sorter: Arc::new(Sorter::new(dir, options.reserve_bytes, run_changes)),
            range_rows: options.range_rows,
            reserve_bytes: options.reserve_bytes,
            waits: Mutex::new(None),
            ahead_ms: AtomicU64::new(0),
            current: Mutex::new(Meta::EMPTY),
            writing: Mutex::new(()),
            unsettled: Mutex::new(false),
            quarantined: AtomicU64::new(0),
            latest_copied: AtomicI64::new(i64::MIN),
            visible: Mutex::new(()),
            ring: Mutex::new(Ring::new(0)),
            appended: Condvar::new(),
        })
    }

    /// The right to write, one after the other. There is none any more once the rows of a published batch could not be
    /// written: whatever came next would rest on those before.
    pub fn turn(&self) -> Result<MutexGuard<'_, ()>, LogError> {
        let turn = self.writing.lock();
        if *self.unsettled.lock() { Err(LogError::Unsettled) } else { Ok(turn) }
    }

    /// Whether there are rows, batches, or rows in quarantine.
    pub fn holds_anything(&self) -> Result<bool, LogError> {
        for keyspace in [&self.rows, &self.tail, &self.quarantine] {
            if !keyspace.is_empty().map_err(storage("read the rows of"))? {
                return Ok(true);
            }
        }
        Ok(false)
    }

    /// Everything as of one moment at which the rows are those of the newest batch.
    pub fn settled_snapshot(&self) -> Result<Snapshot, LogError> {
        let unsettled = self.unsettled.lock();
        if *unsettled { Err(LogError::Unsettled) } else { Ok(self.snapshot()) }
    }

    /// Everything as of one moment between two writes.
    pub fn snapshot(&self) -> Snapshot {
        let _visible = self.visible.lock();
        self.db.snapshot()
    }

    /// What the log knew of itself at the moment of a snapshot.
    pub fn meta_in(&self, snapshot: &Snapshot) -> Result<Meta, LogError> {
        let bytes = snapshot.get(&self.meta, META).map_err(storage("read the header of"))?;
        bytes.map_or(Ok(Meta::EMPTY), |bytes| Meta::from_bytes(&bytes, &self.dir))
    }

    /// Whether rows and tail are as of the newest batch.
    fn check_is_of_one_time(&self, newest: Time, tail_after: Time) -> Result<(), LogError> {
        let corrupt = |what: &str| Err(LogError::Corrupt { what: format!("{what} of time {newest}") });
        let rows = self.rows.get(ROWS_TIME).map_err(storage("read the rows of"))?;
        if rows.as_deref() != Some(&newest.to_be_bytes()[..]) {
            return corrupt("the row store");
        }
        let last =
            self.tail.last_key_value().map(|part| part.key()).transpose().map_err(storage("read the tail of"))?;
        let last = last.map_or(Ok(tail_after), |key| time_of(&key))?;
        if last == newest { Ok(()) } else { corrupt("the newest batch") }
    }

    /// A write that is fsynced before it is visible.
    pub fn durable_write(&self) -> OwnedWriteBatch {
        self.db.batch().durability(Some(PersistMode::SyncData))
    }

    /// Writes, and what is known of the log with it.
    pub fn commit(&self, mut write: OwnedWriteBatch, meta: Meta, tried: &'static str) -> Result<(), LogError> {
        write.insert(&self.meta, META, meta.to_bytes()?);
        {
            let _visible = self.visible.lock();
            failpoint!("position_write_before");
            write.commit().map_err(storage(tried))?;
            failpoint!("position_write_after");
        }
        *self.current.lock() = meta;
        Ok(())
    }

    fn keyspaces(&self) -> [&Keyspace; 4] {
        [&self.rows, &self.tail, &self.quarantine, &self.meta]
    }

    /// Begins to write what is in memory into tables.
    fn write_tables(&self) -> Result<(), LogError> {
        let begin = |keyspace: &Keyspace| keyspace.rotate_memtable().map(drop);
        self.keyspaces().into_iter().try_for_each(begin).map_err(storage("write a table of"))
    }

    /// Whether what the transactions come to may be too much for memory. A TRUNCATE changes any number of rows.
    fn are_large(&self, transactions: &[Transaction]) -> bool {
        let changes: usize = transactions.iter().map(|transaction| transaction.changes.len()).sum();
        changes > self.large_changes
            || transactions.iter().any(|transaction| match &transaction.changes {
                Changes::Memory(changes) => changes.iter().any(|change| matches!(change, RowChange::Truncate(_))),
                Changes::Spilled(_) => true,
            })
    }

    /// Appends transactions as one batch at `position`, in one write. Whoever calls holds the right to write.
    pub fn append_small(&self, transactions: &[Transaction], position: Position, before: Meta) -> Result<(), LogError> {
        let last = before.ready()?;
        let Resolved { changes, effects } = resolve(self, transactions, position)?;
        let effects: Vec<Effect> = effects.into_iter().map(|(id, entry)| Effect { id, entry }).collect();
        let tally = Tally::of(&changes);
        let greatest_entry = before.greatest_entry.max(tally.greatest_entry);
        let floor = tally.floor(self.bulk_rows, position.time, greatest_entry);
        let batch = Batch { position, floor, changes, last: true };
        self.write(last.time, &batch, &effects, Meta { position: Some(position), greatest_entry, ..before })?;
        failpoint!("log_append_after");
        self.ring.lock().push(Arc::new(batch));
        self.appended.notify_all();
        Ok(())
    }

    fn write(&self, previous: Time, batch: &Batch, effects: &[Effect], meta: Meta) -> Result<(), LogError> {
        let mut write = self.durable_write();
        let quarantined = self.write_effects(&mut write, effects)?;
        let mut bytes = 0;
        for change in &batch.changes {
            match change {
                Change { new: Some(row), .. } => {
                    let value = encode(row, "a row")?;
                    bytes += value.len();
                    write.insert(&self.rows, row_key(&row.key()), value);
                }
                Change { old: Some(row), new: None } => write.remove(&self.rows, row_key(&row.key())),
                Change { old: None, new: None } => {}
            }
        }
        write.insert(&self.rows, ROWS_TIME, batch.position.time.to_be_bytes());
        bytes += tail::write(&mut write, &self.tail, previous, batch)?;
        let started = Instant::now();
        self.commit(write, meta, "append a batch to")?;
        metrics::histogram!("feedmill_log_fsync_seconds").record(started.elapsed().as_secs_f64());
        self.count_quarantined(&quarantined);
        quarantined.tell();
        self.observe(batch.position, batch.changes.len() as u64, bytes as u64);
        Ok(())
    }

    /// A batch of so many changes, which take so many bytes of the tail and the rows, was appended.
    pub fn observe(&self, position: Position, changes: u64, bytes: u64) {
        metrics::counter!("feedmill_log_batches_total").increment(1);
        metrics::counter!("feedmill_log_changes_total").increment(changes);
        metrics::counter!("feedmill_log_bytes_total").increment(bytes);
        metrics::gauge!("feedmill_log_lsn").set(position.lsn.0 as f64);
        metrics::gauge!("feedmill_log_time_seconds").set(position.time as f64 / 1e3);
    }

    /// Drops a bounded number of the oldest batches before `before`; `false` when there are no more.
    fn drop_some(&self, before: Time) -> Result<bool, LogError> {
        let _turn = self.turn()?;
        let meta = self.current.lock().clone();
        let Some(newest) = meta.position else { return Ok(false) };
        let Some(first) = meta.tail_after.checked_add(1).filter(|first| *first < before.min(newest.time)) else {
            return Ok(false);
        };
        // Need not be durable: after a crash it is dropped again.
        let mut write = self.db.batch();
        let (mut tail_after, mut more) = (meta.tail_after, false);
        for part in self.tail.range(tail_key(first, 0)..tail_key(before.min(newest.time), 0)) {
            let key = part.key().map_err(storage("read the tail of"))?;
            let time = time_of(&key)?;
            // A batch is dropped whole.
            if write.len() >= DROP_AT_A_TIME && time != tail_after {
                more = true;
                break;
            }
            tail_after = time;
            write.remove(&self.tail, key);
        }
        if write.is_empty() {
            return Ok(false);
        }
        failpoint!("compaction_before");
        self.commit(write, Meta { tail_after, ..meta }, "drop the old tail of")?;
        failpoint!("compaction_after");
        Ok(more)
    }
}

impl Shared {
    /// The row of a key.
    pub fn row(&self, key: &Key) -> Result<Option<Row>, LogError> {
        let bytes = self.rows.get(row_key(key)).map_err(storage("read a row of"))?;
        bytes.map(|bytes| decode_row(&bytes, key.relation)).transpose()
    }

    /// Every row of a relation.
    pub fn each(&self, relation: Relation, take: &mut dyn FnMut(Row)) -> Result<(), LogError> {
        for entry in self.rows.prefix(relation_prefix(relation)) {
            take(decode_row(&entry.value().map_err(storage("read the rows of"))?, relation)?);
        }
        Ok(())
    }
}
