//! Where each viewer's record is.

use std::hash::BuildHasher;

use hashbrown::{DefaultHashBuilder, HashTable};

use super::record::Record;

/// Where each viewer's record is. Apart from the records, so that these lie side by side and a table of 5 bytes a
/// viewer, which the cache can hold, has the gaps.
pub(super) struct Places {
    places: HashTable<u32>,
    hasher: DefaultHashBuilder,
}

impl Places {
    pub(super) const fn new(hasher: DefaultHashBuilder) -> Self {
        Places { places: HashTable::new(), hasher }
    }

    pub(super) fn len(&self) -> usize {
        self.places.len()
    }

    #[inline]
    pub(super) fn find(&self, viewer: i64, records: &[Record]) -> Option<usize> {
        let is = |place: &u32| records.get(*place as usize).is_some_and(|record| record.viewer() == viewer);
        self.places.find(self.hasher.hash_one(viewer), is).map(|place| *place as usize)
    }

    /// The record of `viewer`, who has none here yet, is at `place`.
    pub(super) fn insert(&mut self, viewer: i64, place: usize, records: &[Record]) {
        let hash = |place: &u32| {
            let viewer = records.get(*place as usize).map_or(viewer, Record::viewer);
            self.hasher.hash_one(viewer)
        };
        // 2³² records of 128 bytes fit no memory.
        self.places.insert_unique(self.hasher.hash_one(viewer), place as u32, hash);
    }

    /// There is no record of `viewer` at `place` any more.
    pub(super) fn remove(&mut self, viewer: i64, place: usize) {
        if let Ok(found) = self.places.find_entry(self.hasher.hash_one(viewer), |found| *found as usize == place) {
            found.remove();
        }
    }
}
