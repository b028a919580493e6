//! A new snapshot of the source, or of a part of it, as a difference to what the log holds.
//!
//! ```text
//!   begin_resync ─► stage_rows, from several threads ─► sorted runs, in a file without a name
//!                                                          │ finish
//!   rows of the store of those relations ──── merge ◄──────┘
//!                                               └─► one large batch at a new time: what is new, changed and gone
//! ```
//!
//! Until it is finished nothing of it can be seen, and a process that ends before leaves the log as it was: the file is
//! gone with it. From then on it is a batch like any other (see [`crate::large`]): readers get the difference, the tail
//! goes on without a gap, times grow. Only the position in the source's log may go back, because it may be another source.

use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use feedmill_connectors::postgres::Unusable;
use feedmill_model::{Lsn, Position, Relation, Row, SourceId};
use parking_lot::Mutex;

use crate::intake::{RUN_BYTES, RUN_CHANGES};
use crate::key::{append_encoded, first_key, last_key, row_key};
use crate::merge::Cleared;
use crate::meta::Meta;
use crate::run::{Buffer, Op, Runs};
use crate::{Log, LogError, clock};

/// A snapshot that is being staged. Dropping it leaves the log as it was.
pub struct Resync {
    log: Log,
    /// Where the log was when it was begun.
    begun: Position,
    source: SourceId,
    relations: Vec<Relation>,
    runs: Runs,
    buffer: Mutex<Buffer>,
    next_run: AtomicUsize,
    /// Rows without a readable key so far.
    unnamed: AtomicU32,
}

impl Log {
    /// Begins to take a new snapshot of `relations`, each named once, of `source`. Rows of theirs that are not staged are
    /// gone when it is finished; those of other relations stay. The log must hold a finished copy.
    pub fn begin_resync(&self, source: &SourceId, relations: &[Relation]) -> Result<Resync, LogError> {
        let begun = self.shared.current.lock().ready()?;
        Ok(Resync {
            log: self.clone(),
            begun,
            source: source.clone(),
            relations: relations.to_vec(),
            runs: Runs::create(&self.shared.dir)?,
            buffer: Mutex::default(),
            next_run: AtomicUsize::new(0),
            unnamed: AtomicU32::new(0),
        })
    }
}

impl Resync {
    /// Takes rows of the snapshot. They must be of its relations, and may come from several threads.
    pub fn stage_rows(&self, rows: &[Row]) -> Result<(), LogError> {
        self.stage(rows, |buffer, row| {
            buffer.add(row_key(&row.key()), Op::Set, |bytes| append_encoded(bytes, row, "a row"))
        })
    }

    /// Takes rows of the snapshot that cannot be read: they go into quarantine when it is finished.
    pub fn stage_unusable(&self, rows: Vec<Unusable>) -> Result<(), LogError> {
        self.stage(rows, |buffer, row| buffer.add_aside(row, self.unnamed.fetch_add(1, Ordering::Relaxed)))
    }

    fn stage<R>(
        &self,
        rows: impl IntoIterator<Item = R, IntoIter: ExactSizeIterator>,
        add: impl Fn(&mut Buffer, R) -> Result<(), LogError>,
    ) -> Result<(), LogError> {
        let rows = rows.into_iter();
        self.log.shared.check_room(rows.len())?;
        let mut full = Vec::new();
        {
            let mut buffer = self.buffer.lock();
            for row in rows {
                add(&mut buffer, row)?;
                if buffer.is_full(RUN_CHANGES, RUN_BYTES) {
                    full.push(std::mem::take(&mut *buffer));
                }
            }
        }
        full.into_iter().try_for_each(|buffer| self.write(buffer))
    }

    /// Makes the difference one batch at a new time, durably. `lsn` is the position of the snapshot in the source's log,
    /// from which capture goes on; `None` for a snapshot as of where the log was when it was begun, and still is. `now_ms`
    /// is this machine's clock, in milliseconds since 1970.
    ///
    /// Fails when the clock cannot be right ([`LogError::ClockBack`], [`LogError::ClockAhead`]), and when the log went on
    /// meanwhile ([`LogError::MovedOn`]): the snapshot would undo what was written since. Without enough room on the disk
    /// ([`LogError::NoRoom`]) nothing is written.
    pub fn finish(self, lsn: Option<Lsn>, now_ms: u64) -> Result<Position, LogError> {
        let shared = &self.log.shared;
        let _turn = shared.turn()?;
        let before = shared.current.lock().clone();
        let last = before.ready()?;
        if lsn.is_none() && last.lsn != self.begun.lsn {
            return Err(LogError::MovedOn { from: self.begun.lsn, to: last.lsn });
        }
        let time = clock::mint(last.time, now_ms, shared.ahead_ms.load(Ordering::Relaxed), lsn.unwrap_or(last.lsn))?;
        let history = if lsn.is_some() { time } else { before.history };
        let lsn = lsn.unwrap_or(last.lsn);
        let position = Position { time, lsn };
        let rest = std::mem::take(&mut *self.buffer.lock());
        if !rest.is_empty() {
            self.write(rest)?;
        }
        let cleared =
            |relation: &Relation| Cleared { first: first_key(*relation), last: last_key(*relation), from_run: 0 };
        let cleared = self.relations.iter().map(cleared).collect();
        let meta = Meta { source: Some(self.source.clone()), position: Some(position), history, ..before };
        shared.append_runs(&self.runs, cleared, position, meta)?;
        Ok(position)
    }

    fn write(&self, buffer: Buffer) -> Result<(), LogError> {
        self.runs.write(self.next_run.fetch_add(1, Ordering::Relaxed), buffer)
    }
}
