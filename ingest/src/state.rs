//! The rows as of a time in the tail.
//!
//! ```text
//!   rows of a range of keys ──┐
//!                             ├─ merge ─► slices ─ bounded channel ─┐   of a key that is in both, the row as it was
//!   rows as they were before  │                                     ├─► range after range
//!   their first change after T┘                                     │
//!   … as many ranges at once as there are threads ──────────────────┘
//! ```
//!
//! Only the relations that are asked for are read. The row store is as of the newest batch. Each change after the time asked for is undone: of a key that changed
//! several times, the first of these changes knows the row as it was. Rows, tail and its extent are read from one
//! snapshot of the storage engine, so appends and compaction go on meanwhile. What must be undone is held in memory: one
//! row for each key that has changed since.
//!
//! A range is a part of a relation's keys, and the ranges of a relation are all of its keys, so each row is in one of
//! them. Threads take the ranges in their order, and are a bounded number of ranges and of slices ahead of whoever asks for
//! them; they are given out in the order of the keys whatever thread was faster.

use std::any::Any;
use std::collections::{BTreeMap, HashMap, VecDeque, btree_map};
use std::iter::Peekable;
use std::num::NonZero;
use std::ops::Bound;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use feedmill_model::{Change, Relation, Row, Time};
use fjall::{Readable, UserValue};
use parking_lot::{Condvar, Mutex};

use crate::error::storage;
use crate::key::{RowKey, decode_row, first_key, first_number, key_from, last_key, row_key, tail_key};
use crate::tail::{Batches, Stored};
use crate::{Log, LogError, tail};

/// Rows of a slice, at most.
const SLICE_ROWS: usize = 8_192;
/// Slices of a range that wait to be asked for.
const SLICES_AHEAD: usize = 4;
/// Ranges that are begun before the one that is given out has ended: so many more than there are threads.
const RANGES_AHEAD: usize = 1;
/// Ranges of a relation, at most.
const RANGES_MAX: usize = 1_024;
/// Threads that read, at most.
const READERS_MAX: usize = 4;

/// Rows as they were, of keys that have changed since.
type Undo = BTreeMap<RowKey, Option<Row>>;

/// Gives all rows, in slices of bounded size, relation by relation and in the order of their keys.
pub struct StateAt {
    /// What comes of each range, in their order.
    ranges: VecDeque<Receiver<Part>>,
    jobs: Arc<Jobs>,
    readers: Vec<JoinHandle<()>>,
}

/// What a reader hands over.
enum Part {
    /// Rows of a range, and whether they are its last.
    Slice { rows: Vec<Row>, last: bool },
    /// The range could not be read.
    Failed(LogError),
}

/// What is read.
struct Source {
    snapshot: fjall::Snapshot,
    rows: fjall::Keyspace,
    undo: HashMap<Relation, Undo>,
}

/// Keys of a relation.
struct Range {
    relation: Relation,
    from: RowKey,
    to: Bound<RowKey>,
}

/// What is to be read.
struct Jobs {
    jobs: Mutex<Waiting>,
    /// Told when more may be begun, and when no more is wanted.
    changed: Condvar,
}

struct Waiting {
    ranges: std::vec::IntoIter<(Range, SyncSender<Part>)>,
    /// How many of them may be begun now.
    allowed: usize,
}

impl Jobs {
    /// The next range, once it may be begun; `None` when there is none, or none is wanted.
    fn next(&self) -> Option<(Range, SyncSender<Part>)> {
        let mut waiting = self.jobs.lock();
        while waiting.allowed == 0 && waiting.ranges.len() > 0 {
            self.changed.wait(&mut waiting);
        }
        waiting.allowed = waiting.allowed.saturating_sub(1);
        waiting.ranges.next()
    }

    fn allow_one_more(&self) {
        self.jobs.lock().allowed += 1;
        self.changed.notify_one();
    }

    fn end(&self) {
        self.jobs.lock().ranges = Vec::new().into_iter();
        self.changed.notify_all();
    }
}

impl StateAt {
    pub(crate) fn new(log: &Log, time: Time, relations: &[Relation]) -> Result<Self, LogError> {
        let source = Arc::new(Source::new(log, time, relations)?);
        let wanted = (log.rows_about() as usize / log.shared.range_rows.max(1)).clamp(1, RANGES_MAX);
        let mut ranges = VecDeque::new();
        let mut jobs = Vec::new();
        for relation in relations {
            for range in source.ranges(*relation, wanted)? {
                let (sender, receiver) = sync_channel(SLICES_AHEAD);
                jobs.push((range, sender));
                ranges.push_back(receiver);
            }
        }
        let readers = std::thread::available_parallelism().map_or(1, NonZero::get).min(READERS_MAX).min(wanted);
        let waiting = Waiting { ranges: jobs.into_iter(), allowed: readers + RANGES_AHEAD };
        let jobs = Arc::new(Jobs { jobs: Mutex::new(waiting), changed: Condvar::new() });
        let start = |number| {
            let (source, jobs) = (Arc::clone(&source), Arc::clone(&jobs));
            std::thread::Builder::new().name(format!("state:{number}")).spawn(move || source.read_all(&jobs))
        };
        let mut state = StateAt { ranges, jobs: Arc::clone(&jobs), readers: Vec::with_capacity(readers) };
        for number in 0..readers {
            state.readers.push(start(number).map_err(|source| LogError::Thread { source })?);
        }
        Ok(state)
    }

    /// Ends the readers, which have the log open until they end; returns what one of them panicked with.
    fn end(&mut self) -> Result<(), Box<dyn Any + Send>> {
        self.ranges.clear();
        self.jobs.end();
        let mut ended = Ok(());
        for reader in self.readers.drain(..) {
            ended = ended.and(reader.join());
        }
        ended
    }
}

impl Iterator for StateAt {
    type Item = Result<Vec<Row>, LogError>;

    fn next(&mut self) -> Option<Self::Item> {
        while let Some(range) = self.ranges.front() {
            match range.recv() {
                Ok(Part::Slice { rows, last }) => {
                    if last {
                        self.ranges.pop_front();
                        self.jobs.allow_one_more();
                    }
                    if !rows.is_empty() {
                        return Some(Ok(rows));
                    }
                }
                Ok(Part::Failed(error)) => {
                    self.ranges.clear();
                    return Some(Err(error));
                }
                // Its reader ended before the range did.
                Err(_) => match self.end() {
                    Err(panic) => std::panic::resume_unwind(panic),
                    Ok(()) => return Some(Err(LogError::Corrupt { what: "a range of rows".to_owned() })),
                },
            }
        }
        None
    }
}

impl Drop for StateAt {
    fn drop(&mut self) {
        let _ = self.end();
    }
}

impl Source {
    fn new(log: &Log, time: Time, relations: &[Relation]) -> Result<Self, LogError> {
        let shared = &log.shared;
        let snapshot = shared.settled_snapshot()?;
        let meta = shared.meta_in(&snapshot)?;
        meta.check_is_held(time)?;
        let newest = meta.ready()?.time;
        let mut undo: HashMap<Relation, Undo> = HashMap::new();
        let mut previous = time;
        let mut undo_all = |changes: Vec<Change>| {
            for change in changes {
                let key = change.old.as_ref().or(change.new.as_ref()).map(Row::key);
                if let Some(key) = key.filter(|key| relations.contains(&key.relation)) {
                    undo.entry(key.relation).or_default().entry(row_key(&key)).or_insert(change.old);
                }
            }
        };
        let end = tail_key(newest, u32::MAX);
        for stored in Batches::after(time, |from| snapshot.range(&shared.tail, from..=end.max(from))) {
            let stored = stored?;
            let head = *stored.head();
            if head.previous > previous {
                return Err(LogError::Corrupt { what: format!("the batch after time {previous}") });
            }
            previous = head.position.time;
            match stored {
                Stored::Whole(_, batch) => undo_all(batch.changes),
                Stored::Large(head) => {
                    let read = |number| {
                        let part = snapshot.get(&shared.tail, tail_key(previous, number));
                        let lost = || LogError::Corrupt { what: format!("the batch of time {previous}") };
                        part.map_err(storage("read the tail of"))?.ok_or_else(lost)
                    };
                    let mut number = tail::next_of(relations, &head, 1, read)?;
                    while number < head.parts {
                        undo_all(tail::changes(&read(number)?, previous)?);
                        number = tail::next_of(relations, &head, number + 1, read)?;
                    }
                }
            }
        }
        Ok(Source { snapshot, rows: shared.rows.clone(), undo })
    }

    /// Cuts the keys of a relation into up to `wanted` ranges, as if its rows were spread evenly between the first and the
    /// last: where they are not, some ranges have few rows and others many, which costs no more than some waiting.
    fn ranges(&self, relation: Relation, wanted: usize) -> Result<Vec<Range>, LogError> {
        let mut rows = self.snapshot.range(&self.rows, first_key(relation)..=last_key(relation));
        let number = |entry: Option<fjall::Guard>| {
            let key = entry.map(fjall::Guard::key).transpose().map_err(storage("read the rows of"))?;
            Ok::<_, LogError>(key.and_then(|key| first_number(&key)))
        };
        let (first, last) = (number(rows.next())?, number(rows.next_back())?);
        let inner = first.zip(last).into_iter().flat_map(|(first, last)| {
            let step = (last.saturating_sub(first) / wanted as u64).max(1);
            (1..wanted as u64).map_while(move |nth| first.checked_add(nth * step).filter(|from| *from <= last))
        });
        let starts: Vec<RowKey> =
            std::iter::once(first_key(relation)).chain(inner.map(|number| key_from(relation, number))).collect();
        let ends = starts.iter().skip(1).map(|start| Bound::Excluded(*start));
        let ends = ends.chain(std::iter::once(Bound::Included(last_key(relation))));
        Ok(starts.iter().zip(ends).map(|(from, to)| Range { relation, from: *from, to }).collect())
    }

    /// Reads ranges until there are no more, or until nobody wants them.
    fn read_all(&self, jobs: &Jobs) {
        loop {
            let Some((range, sender)) = jobs.next() else { return };
            let read = self.read(&range, &sender);
            if read.unwrap_or_else(|error| sender.send(Part::Failed(error)).map_err(|_| Unwanted)).is_err() {
                return;
            }
        }
    }

    fn read(&self, range: &Range, sender: &SyncSender<Part>) -> Result<Result<(), Unwanted>, LogError> {
        let bounds = (Bound::Included(range.from), range.to);
        let none = Undo::new();
        let undo = self.undo.get(&range.relation).unwrap_or(&none).range(bounds);
        let rows = self.snapshot.range(&self.rows, bounds);
        let mut reading = Reading { relation: range.relation, rows, stored: None, undo: undo.peekable() };
        let mut last = false;
        while !last {
            let mut rows = Vec::new();
            while rows.len() < SLICE_ROWS && !last {
                match reading.next()? {
                    Some(row) => {
                        rows.reserve_exact(SLICE_ROWS - rows.len());
                        rows.push(row);
                    }
                    None => last = true,
                }
            }
            if sender.send(Part::Slice { rows, last }).is_err() {
                return Ok(Err(Unwanted));
            }
        }
        Ok(Ok(()))
    }
}

/// Nobody asks for the state any more.
struct Unwanted;

/// The merge of one range.
struct Reading<'a> {
    relation: Relation,
    rows: fjall::Iter,
    /// The next row of the store, if it is known.
    stored: Option<(RowKey, UserValue)>,
    undo: Peekable<btree_map::Range<'a, RowKey, Option<Row>>>,
}

impl Reading<'_> {
    fn next(&mut self) -> Result<Option<Row>, LogError> {
        loop {
            if self.stored.is_none() {
                self.stored = self.next_stored()?;
            }
            let undone = match (&self.stored, self.undo.peek()) {
                (None, None) => return Ok(None),
                (Some((stored, _)), Some((undone, _))) if stored == *undone => {
                    self.stored = None;
                    true
                }
                (Some((stored, _)), Some((undone, _))) => *undone < stored,
                (stored, _) => stored.is_none(),
            };
            let row = match undone {
                true => self.undo.next().and_then(|(_, row)| row.clone()),
                false => self.stored.take().map(|(_, value)| decode_row(&value, self.relation)).transpose()?,
            };
            if row.is_some() {
                return Ok(row);
            }
        }
    }

    fn next_stored(&mut self) -> Result<Option<(RowKey, UserValue)>, LogError> {
        let Some(entry) = self.rows.next() else { return Ok(None) };
        let (key, value) = entry.into_inner().map_err(storage("read the rows of"))?;
        let corrupt = |_| LogError::Corrupt { what: format!("a key of {}", self.relation.table()) };
        Ok(Some((RowKey::try_from(&*key).map_err(corrupt)?, value)))
    }
}
