//! A new snapshot of the source, or of a part of it, as a difference to what the log holds.
//!
//! ```text
//!   begin_resync ─► stage_rows, from several threads ─► sorted runs, in a file without a name
//!                                                          │ finish
//!   rows of the store in the ranges ───────── merge ◄──────┘
//!                                               └─► one large batch at a new time: what is new, changed and gone
//! ```
//!
//! Until it is finished nothing of it can be seen, and a process that ends before leaves the log as it was: the file is
//! gone with it. From then on it is a batch like any other (see [`crate::large`]): readers get the difference, the tail
//! goes on without a gap, times grow. Only the position in the source's log may go back, because it may be another source.

use std::sync::atomic::{AtomicUsize, Ordering};

use feedmill_connectors::postgres::Unusable;
use feedmill_model::{Key, Lsn, Position, Relation, Row, SourceId};
use parking_lot::Mutex;

use crate::effects::Effects;
use crate::key::{append_encoded, row_key};
use crate::merge::Cleared;
use crate::meta::Meta;
use crate::quarantine::{Effect, QuarantineId, Quarantined};
use crate::run::{Buffer, Op, Runs};
use crate::{Log, LogError, clock};

/// Rows of a relation whose key's first column lies between two numbers, both included.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct RelationRange {
    /// Of which table.
    pub relation: Relation,
    /// The least first column.
    pub first: i64,
    /// The greatest first column.
    pub last: i64,
}

impl RelationRange {
    /// All rows of a relation.
    pub const fn all(relation: Relation) -> Self {
        RelationRange { relation, first: i64::MIN, last: i64::MAX }
    }

    fn cleared(self) -> Cleared {
        let RelationRange { relation, first, last } = self;
        Cleared {
            first: row_key(&Key { relation, first, second: i64::MIN }),
            last: row_key(&Key { relation, first: last, second: i64::MAX }),
            from_run: 0,
        }
    }
}

/// A snapshot that is being staged. Dropping it leaves the log as it was.
pub struct Resync {
    log: Log,
    /// Where the log was when it was begun.
    begun: Position,
    source: SourceId,
    ranges: Vec<RelationRange>,
    runs: Runs,
    buffer: Mutex<Buffer>,
    next_run: AtomicUsize,
    unusable: Mutex<Vec<Unusable>>,
}

impl Log {
    /// Begins to take a new snapshot of `ranges`, which must not overlap, of `source`. Rows of the log that lie in them
    /// and are not staged are gone when it is finished; all others stay. The log must hold a finished copy.
    pub fn begin_resync(&self, source: &SourceId, ranges: &[RelationRange]) -> Result<Resync, LogError> {
        let begun = self.shared.current.lock().ready()?;
        Ok(Resync {
            log: self.clone(),
            begun,
            source: source.clone(),
            ranges: ranges.to_vec(),
            runs: Runs::create(&self.shared.dir)?,
            buffer: Mutex::default(),
            next_run: AtomicUsize::new(0),
            unusable: Mutex::default(),
        })
    }
}

impl Resync {
    /// Takes rows of the snapshot. They must lie in its ranges, and may come from several threads.
    pub fn stage_rows(&self, rows: &[Row]) -> Result<(), LogError> {
        self.log.shared.check_room(rows.len())?;
        let full = {
            let mut buffer = self.buffer.lock();
            for row in rows {
                buffer.add(row_key(&row.key()), Op::Set, |bytes| append_encoded(bytes, row, "a row"))?;
            }
            buffer.is_full().then(|| std::mem::take(&mut *buffer))
        };
        full.map_or(Ok(()), |buffer| self.write(buffer))
    }

    /// Takes rows of the snapshot that cannot be read: they go into quarantine when it is finished.
    pub fn stage_unusable(&self, rows: Vec<Unusable>) {
        self.unusable.lock().extend(rows);
    }

    /// Makes the difference one batch at a new time, durably. `lsn` is the position of the snapshot in the source's log,
    /// from which capture goes on; `None` for a snapshot as of where the log was when it was begun, and still is. `now_ms`
    /// is this machine's clock, in milliseconds since 1970.
    ///
    /// Fails when the clock cannot be right ([`LogError::ClockBack`], [`LogError::ClockAhead`]), and when the log went on
    /// meanwhile ([`LogError::MovedOn`]): the snapshot would undo what was written since.
    pub fn finish(self, lsn: Option<Lsn>, now_ms: u64) -> Result<Position, LogError> {
        let shared = &self.log.shared;
        let _turn = shared.turn()?;
        let before = shared.current.lock().clone();
        let last = before.ready()?;
        if lsn.is_none() && last.lsn != self.begun.lsn {
            return Err(LogError::MovedOn { from: self.begun.lsn, to: last.lsn });
        }
        let lsn = lsn.unwrap_or(last.lsn);
        let time = clock::mint(last.time, now_ms, shared.ahead_ms.load(Ordering::Relaxed), lsn)?;
        let position = Position { time, lsn };
        let effects = Effects::new(shared, time);
        let mut rest = std::mem::take(&mut *self.buffer.lock());
        for (number, row) in (0..).zip(std::mem::take(&mut *self.unusable.lock())) {
            let key = row.key;
            let entry = Quarantined { row, readable: None, position };
            match key {
                Some(key) => {
                    rest.add(row_key(&key), Op::Aside, |bytes| append_encoded(bytes, &entry, "a row in quarantine"))?
                }
                None => {
                    let id = QuarantineId::Number(time, number).to_bytes();
                    effects.push(Effect { id, entry: Some(Box::new(entry)) })?;
                }
            }
        }
        if !rest.is_empty() {
            self.write(rest)?;
        }
        let cleared = self.ranges.iter().map(|range| range.cleared()).collect();
        let meta = Meta { source: Some(self.source.clone()), position: Some(position), ..before };
        shared.append_runs(&self.runs, cleared, &effects, position, meta)?;
        Ok(position)
    }

    fn write(&self, buffer: Buffer) -> Result<(), LogError> {
        self.runs.write(self.next_run.fetch_add(1, Ordering::Relaxed), buffer)
    }
}
