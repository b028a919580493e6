//! The first copy: rows go into the row store directly, and are nothing until the copy is finished.

use std::sync::atomic::Ordering;

use feedmill_model::{Lsn, Position, Row, SourceId, failpoint};
use fjall::OwnedWriteBatch;

use crate::error::storage;
use crate::key::{RowKey, encode, row_key};
use crate::log::ROWS_TIME;
use crate::meta::{LogState, Meta};
use crate::ring::Ring;
use crate::{Log, LogError, bulk, clock, quarantine};

impl Log {
    /// Begins a first copy, durably. The log must be empty; one of which a copy was cut short is so once it is opened
    /// again.
    pub fn begin_copy(&self, source: &SourceId) -> Result<(), LogError> {
        let shared = &self.shared;
        let _turn = shared.turn()?;
        if shared.holds_anything()? {
            return Err(LogError::NotEmpty { path: shared.dir.clone() });
        }
        let meta = Meta { state: LogState::Copying, source: Some(source.clone()), ..Meta::EMPTY };
        // The state first: a crash after it finds a copy that did not end.
        shared.commit(shared.durable_write(), meta, "begin a copy into")
    }

    /// Takes rows of the first copy. They may come from several threads, and need not be durable when this returns.
    pub fn copy_rows(&self, rows: Vec<Row>) -> Result<(), LogError> {
        let shared = &self.shared;
        shared.check_room(rows.len())?;
        let encoded = |row: &Row| Ok((row_key(&row.key()), encode(row, "a row")?));
        let mut encoded: Vec<(RowKey, Vec<u8>)> = rows.iter().map(encoded).collect::<Result<_, LogError>>()?;
        // The engine inserts neighbours much faster than strangers.
        encoded.sort_unstable_by_key(|(key, _)| *key);
        let mut write = OwnedWriteBatch::with_capacity(shared.db.clone(), encoded.len());
        for (key, value) in encoded {
            write.insert(&shared.rows, key, value);
        }
        let greatest = rows.iter().map(bulk::entry_id).max().unwrap_or(0);
        let latest = rows.iter().filter_map(quarantine::dated).max().unwrap_or(i64::MIN);
        shared.latest_copied.fetch_max(latest, Ordering::Relaxed);
        {
            let mut meta = shared.current.lock();
            if meta.state != LogState::Copying {
                return Err(LogError::NotCopying);
            }
            meta.greatest_entry = meta.greatest_entry.max(greatest);
        }
        failpoint!("copy_chunk_before");
        write.commit().map_err(storage("copy rows into"))?;
        failpoint!("copy_chunk_after");
        Ok(())
    }

    /// Ends the first copy, durably: the log holds the source as of `lsn`. Rows that lie in the future go into
    /// quarantine. Every call of [`Self::copy_rows`] must have returned.
    pub fn finish_copy(&self, lsn: Lsn, now_ms: u64) -> Result<Position, LogError> {
        let shared = &self.shared;
        let _turn = shared.turn()?;
        let copied = shared.current.lock().clone();
        if copied.state != LogState::Copying {
            return Err(LogError::NotCopying);
        }
        let time = clock::mint(copied.tail_after, now_ms, shared.ahead_ms.load(Ordering::Relaxed), lsn)?;
        let position = Position { time, lsn };
        // Entries of the future are not in the log, and must not count as known.
        let greatest_entry = copied.greatest_entry.min(quarantine::last_id_at(time));
        let meta =
            Meta { state: LogState::Ready, position: Some(position), tail_after: time, greatest_entry, ..copied };
        // Rows and this lie in one journal, so what makes this durable makes the rows durable.
        let mut write = shared.durable_write();
        write.insert(&shared.rows, ROWS_TIME, time.to_be_bytes());
        let latest = shared.latest_copied.load(Ordering::Relaxed);
        let set_aside = shared.set_aside_copied(&mut write, position, latest)?;
        failpoint!("copy_done_before");
        shared.commit(write, meta, "end a copy into")?;
        failpoint!("copy_done_after");
        shared.count_quarantined(&set_aside);
        set_aside.tell();
        *shared.ring.lock() = Ring::new(time);
        Ok(position)
    }
}
