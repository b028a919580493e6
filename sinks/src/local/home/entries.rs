//! The pushed entries of one viewer, in order: a list of runs, the newest first.
//!
//! ```text
//!   Entries { tail: [e e e e · · · · · · ·] } ─older─► Block [11 entries] ─older─► Block [11 entries] ─older─► …
//! ```
//!
//! A delivery mostly appends. The newest run lies in the record itself, so that costs one miss of the cache. A run that
//! is full moves into a block of its own and is never copied again; blocks are made one after the other, so they lie
//! where the cache is warm, all have one size, and none has room that waits for entries to come.

use feedmill_model::PackedEntry;

/// Entries in a run: with the other fields a record has 128 bytes, and with the pointer a block has 96.
const RUN: usize = 11;

/// Marks what is free at the end of a run. No entry is as great as this.
const FREE: PackedEntry = PackedEntry(u64::MAX);

/// Ids in an era, as a power of two: 2²⁶ ms, about 19 hours.
const ERA_BITS: u32 = 26 + 16;

/// Up to [`RUN`] entries in ascending order, then [`FREE`].
#[derive(Clone, Copy)]
struct Run([PackedEntry; RUN]);

struct Block {
    older: Option<Box<Block>>,
    run: Run,
}

/// The entries of one viewer. Every entry is newer than those of the runs behind its own.
pub(super) struct Entries {
    older: Option<Box<Block>>,
    /// Entries in blocks.
    in_blocks: u32,
    /// No entry in blocks is of an earlier era.
    oldest: u16,
    in_tail: u8,
    /// How often an entry came in below the newest, or went, modulo 256.
    changed: u8,
    tail: Run,
}

/// The era of an id. What lies beyond the last one, in the year 2109, counts as of that.
fn era(id: i64) -> u16 {
    u16::try_from(id.max(0) >> ERA_BITS).unwrap_or(u16::MAX)
}

impl Run {
    const EMPTY: Run = Run([FREE; RUN]);

    fn entries(&self) -> &[PackedEntry] {
        self.0.get(..self.0.partition_point(|entry| *entry != FREE)).unwrap_or_default()
    }

    /// The run must have room.
    fn insert(&mut self, place: usize, entry: PackedEntry) {
        if let Some(from) = self.0.get_mut(place..) {
            from.rotate_right(1);
            if let Some(first) = from.first_mut() {
                *first = entry;
            }
        }
    }

    fn remove(&mut self, places: std::ops::Range<usize>) {
        if let Some(from) = self.0.get_mut(places.start..) {
            from.rotate_left(places.len());
            from.iter_mut().rev().take(places.len()).for_each(|entry| *entry = FREE);
        }
    }

    fn at_or_below(&self, floor: i64) -> usize {
        self.entries().partition_point(|entry| entry.id() <= floor)
    }
}

impl Block {
    fn is_newer_than(&self, entry: PackedEntry) -> bool {
        self.run.0.first().is_some_and(|oldest| *oldest > entry)
    }

    /// Moves the older half of a full run into a block of its own.
    fn split(&mut self) {
        let mut older = Run::EMPTY;
        let half = RUN / 2;
        older.0.iter_mut().zip(&self.run.0).take(half).for_each(|(to, from)| *to = *from);
        self.run.remove(0..half);
        self.older = Some(Box::new(Block { older: self.older.take(), run: older }));
    }
}

impl Drop for Block {
    /// One after the other: a long list would overflow the stack.
    fn drop(&mut self) {
        let mut older = self.older.take();
        while let Some(mut block) = older {
            older = block.older.take();
        }
    }
}

impl Entries {
    pub(super) const fn new() -> Self {
        Entries { older: None, in_blocks: 0, oldest: u16::MAX, in_tail: 0, changed: 0, tail: Run::EMPTY }
    }

    #[inline]
    pub(super) fn len(&self) -> usize {
        self.in_blocks as usize + usize::from(self.in_tail)
    }

    /// Other numbers when an entry has come or gone: of those that are appended the number and the newest tell.
    pub(super) fn stamp(&self) -> [u64; 3] {
        let newest = self.newest_first().next().map_or(0, |entry| entry.0);
        [newest, self.len() as u64, u64::from(self.changed)]
    }

    /// All entries, newest first.
    pub(super) fn newest_first(&self) -> impl Iterator<Item = PackedEntry> {
        let blocks = std::iter::successors(self.older.as_deref(), |block| block.older.as_deref());
        let runs = std::iter::once(&self.tail).chain(blocks.map(|block| &block.run));
        runs.flat_map(|run| run.entries().iter().rev().copied())
    }

    /// Appends an entry if it is newer than all others, and the newest run has one and has room.
    #[inline]
    pub(super) fn append(&mut self, entry: PackedEntry) -> bool {
        let in_tail = usize::from(self.in_tail);
        let newest = in_tail.checked_sub(1).and_then(|last| self.tail.0.get(last));
        if newest.is_none_or(|newest| *newest >= entry) {
            return false;
        }
        let Some(free) = self.tail.0.get_mut(in_tail) else { return false };
        *free = entry;
        self.in_tail += 1;
        true
    }

    /// Puts in an entry where it belongs; `false` if it is there already. Entries at or below `floor` may go.
    #[inline(never)]
    pub(super) fn insert(&mut self, entry: PackedEntry, floor: i64) -> bool {
        self.changed = self.changed.wrapping_add(1);
        if usize::from(self.in_tail) == RUN {
            self.spill(floor);
        }
        let belongs_in_tail = match (self.tail.entries().first(), self.older.as_deref()) {
            (Some(oldest), _) => entry >= *oldest,
            (None, Some(block)) => block.run.entries().last().is_none_or(|newest| *newest < entry),
            (None, None) => true,
        };
        if !belongs_in_tail {
            return self.insert_in_blocks(entry);
        }
        let Err(place) = self.tail.entries().binary_search(&entry) else { return false };
        self.tail.insert(place, entry);
        self.in_tail += 1;
        true
    }

    fn insert_in_blocks(&mut self, entry: PackedEntry) -> bool {
        self.oldest = self.oldest.min(era(entry.id()));
        let mut block = self.older.get_or_insert_with(|| Box::new(Block { older: None, run: Run::EMPTY }));
        while block.is_newer_than(entry) && block.older.is_some() {
            let Some(older) = &mut block.older else { return false };
            block = older;
        }
        let Err(place) = block.run.entries().binary_search(&entry) else { return false };
        if block.run.entries().len() < RUN {
            block.run.insert(place, entry);
        } else {
            block.split();
            match (place.checked_sub(RUN / 2), &mut block.older) {
                (None, Some(older)) => older.run.insert(place, entry),
                (place, _) => block.run.insert(place.unwrap_or_default(), entry),
            }
        }
        self.in_blocks += 1;
        true
    }

    /// Takes out an entry; `false` if it is not there.
    pub(super) fn remove(&mut self, entry: PackedEntry) -> bool {
        self.changed = self.changed.wrapping_add(1);
        if let Ok(place) = self.tail.entries().binary_search(&entry) {
            self.tail.remove(place..place + 1);
            self.in_tail -= 1;
            return true;
        }
        let mut link = &mut self.older;
        while link.as_ref().is_some_and(|block| block.is_newer_than(entry)) {
            let Some(block) = link else { break };
            link = &mut block.older;
        }
        let Some(block) = link else { return false };
        let Ok(place) = block.run.entries().binary_search(&entry) else { return false };
        block.run.remove(place..place + 1);
        self.in_blocks -= 1;
        if block.run.entries().is_empty() {
            *link = block.older.take();
        }
        true
    }

    /// Drops the entries at or below `floor`.
    pub(super) fn drop_to(&mut self, floor: i64) {
        self.oldest = era(floor);
        let gone = self.tail.at_or_below(floor);
        self.tail.remove(0..gone);
        self.in_tail -= gone as u8;
        let mut kept = 0;
        let mut link = &mut self.older;
        while let Some(block) = link {
            let gone = block.run.at_or_below(floor);
            block.run.remove(0..gone);
            let stays = block.run.entries().len();
            kept += stays as u32;
            if stays == 0 {
                *link = None;
                break;
            }
            let Some(block) = link else { break };
            link = &mut block.older;
        }
        self.in_blocks = kept;
    }

    /// Makes room in the full tail: it becomes a block. To look for blocks at or below `floor` is to miss the cache at each block, so that
    /// is done only when an era has passed: what has expired stays for less than one more.
    fn spill(&mut self, floor: i64) {
        if self.oldest < era(floor) {
            self.drop_to(floor);
            if usize::from(self.in_tail) < RUN {
                return;
            }
        }
        let oldest = self.tail.0.first().map_or(u16::MAX, |entry| era(entry.id()));
        self.oldest = self.oldest.min(oldest);
        self.older = Some(Box::new(Block { older: self.older.take(), run: self.tail }));
        self.in_blocks += RUN as u32;
        (self.tail, self.in_tail) = (Run::EMPTY, 0);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use proptest::prelude::*;

    use super::*;

    #[derive(Clone, Debug)]
    enum Step {
        Append(u64),
        Insert(u64),
        Remove(u64),
        DropTo(i64),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            20 => (1..4_u64).prop_map(Step::Append),
            10 => (0..300_u64).prop_map(Step::Insert),
            8 => (0..300_u64).prop_map(Step::Remove),
            1 => (0..60_i64).prop_map(Step::DropTo),
        ];
        prop::collection::vec(step, 0..400)
    }

    proptest! {
        #[test]
        fn entries_are_an_ordered_set(steps in steps()) {
            let (mut entries, mut expected) = (Entries::new(), BTreeSet::new());
            for step in steps {
                match step {
                    Step::Append(by) => {
                        let next = PackedEntry(expected.last().map_or(0, |newest: &PackedEntry| newest.0) + by);
                        let appended = entries.append(next) || entries.insert(next, -1);
                        prop_assert_eq!(appended, expected.insert(next));
                    }
                    Step::Insert(entry) => {
                        let entry = PackedEntry(entry);
                        prop_assert_eq!(entries.insert(entry, -1), expected.insert(entry));
                    }
                    Step::Remove(entry) => {
                        let entry = PackedEntry(entry);
                        prop_assert_eq!(entries.remove(entry), expected.remove(&entry));
                    }
                    Step::DropTo(floor) => {
                        entries.drop_to(floor);
                        expected.retain(|entry| entry.id() > floor);
                    }
                }
                prop_assert_eq!(entries.len(), expected.len());
            }
            prop_assert!(entries.newest_first().eq(expected.into_iter().rev()));
        }
    }

    #[test]
    fn a_record_fills_two_cache_lines_and_a_block_one_and_a_half() {
        assert_eq!(std::mem::size_of::<super::super::record::Record>(), 128);
        assert_eq!(std::mem::size_of::<Block>(), 96);
    }

    #[test]
    fn what_has_expired_goes_an_era_later_at_most() {
        let (per_era, live) = (1 << 8, 100);
        let id = |number: i64| number << (ERA_BITS - 8);
        let mut entries = Entries::new();
        for number in 0..100_000 {
            let entry = PackedEntry((id(number) as u64) << 1);
            if !entries.append(entry) {
                entries.insert(entry, id(number - live));
            }
        }
        let most = live + per_era + 2 * RUN as i64;
        assert!((live..=most).contains(&(entries.len() as i64)), "{}", entries.len());
    }
}
