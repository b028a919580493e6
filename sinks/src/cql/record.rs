//! A viewer's record as it is stored, and what is remembered of it.

use feedmill_model::{PackedEntry, Time};
use scylla::response::query_result::QueryRowsResult;

use super::fault::Fault;
use super::statement::{ENTRY, HOT, RECORD};

/// What the writer knows of a viewer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Known {
    /// `None`: there is no record.
    pub(super) record: Option<Record>,
    /// Closed times at or before it are applied.
    pub(super) time: Time,
}

/// A record without what is in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Record {
    /// Nothing at or below it is complete.
    pub(super) floor: i64,
    /// There are no more entries than so many; some may have expired.
    pub(super) entries_max: usize,
}

/// A partition of the table `home`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct StoredRecord {
    /// Floor, and time of the last change; `None` where there is no record, whatever else there is.
    pub(super) record: Option<(i64, Time)>,
    /// Hot accounts, in ascending order.
    pub(super) hot: Vec<i64>,
    /// Entries, newest first.
    pub(super) entries: Vec<PackedEntry>,
}

impl StoredRecord {
    pub(super) fn known(&self) -> Known {
        let record = self.record.map(|(floor, _)| Record { floor, entries_max: self.entries.len() });
        Known { record, time: self.record.map_or(0, |(_, time)| time) }
    }
}

/// Reads rows of kind, id, floor and time.
pub(super) fn stored(found: &QueryRowsResult) -> Result<StoredRecord, Fault> {
    let undecodable = || Fault::Undecodable { of: "home timelines" };
    let mut stored = StoredRecord::default();
    for row in found.rows::<(i8, i64, Option<i64>, Option<i64>)>().map_err(|_| undecodable())? {
        let (kind, id, floor, time) = row.map_err(|_| undecodable())?;
        add(&mut stored, kind, id, floor, time)?;
    }
    stored.hot.sort_unstable();
    Ok(stored)
}

/// Adds the next row of a viewer's.
pub(super) fn add(
    stored: &mut StoredRecord,
    kind: i8,
    id: i64,
    floor: Option<i64>,
    time: Option<i64>,
) -> Result<(), Fault> {
    match kind {
        RECORD => stored.record = floor.zip(time).map(|(floor, time)| (floor, time as Time)),
        HOT => stored.hot.push(id),
        ENTRY => stored.entries.push(PackedEntry(id as u64)),
        _ => return Err(Fault::Undecodable { of: "home timelines" }),
    }
    Ok(())
}
