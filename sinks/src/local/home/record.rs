//! One viewer's record.

use feedmill_model::{PackedEntry, Parameters};

use super::entries::Entries;

/// What became of a change.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Change {
    /// It is in the record now.
    Applied,
    /// It lies at or below a floor.
    Below,
    /// It did not fit: the entry was there already, or was not there.
    Anomaly,
}

/// Floor, hot accounts and pushed entries of a viewer.
#[repr(align(128))]
pub(super) struct Record {
    viewer: i64,
    /// Nothing at or below it is complete: the greatest id that was cut, or where the record began.
    floor: i64,
    /// Ascending.
    #[expect(clippy::box_collection, reason = "most viewers have none, and one word more would be a third cache line")]
    hot: Option<Box<Vec<i64>>>,
    entries: Entries,
}

impl Record {
    /// What lies at a place that no viewer has.
    pub(super) const VACANT: Record = Record::new(i64::MIN, i64::MAX);

    /// Whether no viewer has it: a record of a viewer is complete above some id.
    pub(super) const fn is_vacant(&self) -> bool {
        self.floor == i64::MAX
    }

    /// A record as it was saved; `entries` are in ascending order.
    pub(super) fn restored(viewer: i64, floor: i64, hot: Vec<i64>, entries: impl Iterator<Item = PackedEntry>) -> Self {
        let mut record = Record::new(viewer, floor);
        record.hot = Some(hot).filter(|hot| !hot.is_empty()).map(Box::new);
        for entry in entries {
            if !record.entries.append(entry) {
                record.entries.insert(entry, floor);
            }
        }
        record
    }

    pub(super) const fn new(viewer: i64, floor: i64) -> Self {
        Record { viewer, floor, hot: None, entries: Entries::new() }
    }

    pub(super) const fn viewer(&self) -> i64 {
        self.viewer
    }

    pub(super) const fn floor(&self) -> i64 {
        self.floor
    }

    pub(super) fn hot(&self) -> &[i64] {
        self.hot.as_deref().map(Vec::as_slice).unwrap_or_default()
    }

    /// The entries with an id above `floor`, newest first.
    pub(super) fn entries_above(&self, floor: i64) -> impl Iterator<Item = PackedEntry> {
        self.entries.newest_first().take_while(move |entry| entry.id() > floor)
    }

    /// Another number when the entries or the hot accounts have changed.
    pub(super) fn stamp(&self) -> u64 {
        let entries = self.entries.stamp().into_iter();
        let hot = self.hot().iter().map(|author| *author as u64);
        entries.chain(hot).fold(0, |stamp, word| (stamp.rotate_left(5) ^ word).wrapping_mul(0x9E37_79B9_7F4A_7C15))
    }

    /// Adds or takes away hot accounts, each with its multiplicity; returns how many of the changes did not fit.
    pub(super) fn change_hot(&mut self, changes: impl Iterator<Item = (i64, i64)>) -> u64 {
        let mut hot = self.hot.take().unwrap_or_default();
        let mut anomalies = 0;
        for (author, diff) in changes {
            match (hot.binary_search(&author), diff) {
                (Err(place), 1) => hot.insert(place, author),
                (Ok(place), -1) => {
                    hot.remove(place);
                }
                _ => anomalies += 1,
            }
        }
        hot.shrink_to_fit();
        self.hot = Some(hot).filter(|hot| !hot.is_empty());
        anomalies
    }

    /// Puts in an entry, unless it lies at or below `bound` or the record's own floor.
    #[inline]
    pub(super) fn insert(&mut self, entry: PackedEntry, bound: i64, parameters: &Parameters) -> Change {
        let floor = bound.max(self.floor);
        if entry.id() <= floor {
            return Change::Below;
        }
        if !self.entries.append(entry) && !self.entries.insert(entry, floor) {
            return Change::Anomaly;
        }
        if self.entries.len() > parameters.home_max {
            self.cut(floor, parameters);
        }
        Change::Applied
    }

    /// Takes out an entry, unless it lies at or below `bound` or the record's own floor.
    pub(super) fn remove(&mut self, entry: PackedEntry, bound: i64) -> Change {
        if entry.id() <= bound.max(self.floor) {
            Change::Below
        } else if self.entries.remove(entry) {
            Change::Applied
        } else {
            Change::Anomaly
        }
    }

    /// Drops what lies below the floor. If that is not enough the newest `home_keep` stay, and the floor rises to the
    /// greatest entry that goes.
    #[cold]
    fn cut(&mut self, floor: i64, parameters: &Parameters) {
        self.entries.drop_to(floor);
        if self.entries.len() <= parameters.home_max {
            return;
        }
        let cut = self.entries.newest_first().nth(parameters.home_keep.min(parameters.home_max));
        if let Some(cut) = cut {
            // A floor is an id: of a tweet and a retweet with one id both go.
            self.floor = self.floor.max(cut.id());
            self.entries.drop_to(self.floor);
        }
    }
}
