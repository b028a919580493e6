//! Ids of rows and entries, and the shard that a key belongs to.
//!
//! The ids of tweets and retweets are time-ordered: milliseconds since 1970, then 16 bits of a sequence. The id alone
//! says when an entry was made, so it orders timelines, and an age limit is a comparison of ids.

use serde::{Deserialize, Serialize};

use crate::Time;

/// The id of the `sequence`th row that was made in the millisecond `ms`.
pub const fn id_at(ms: i64, sequence: u16) -> i64 {
    (ms << 16) | sequence as i64
}

/// The millisecond in which the row with this id was made; before 1970 for a negative one.
pub const fn ms_of(id: i64) -> i64 {
    id >> 16
}

/// The greatest id that can have been made at or before `time`.
pub const fn floor_of(time: Time) -> i64 {
    let ms = if time > (i64::MAX >> 16) as u64 { i64::MAX >> 16 } else { time as i64 };
    (ms << 16) | 0xFFFF
}

/// What an entry of a timeline is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum EntryKind {
    /// A tweet; the entry's id is the tweet's.
    Tweet,
    /// A retweet; the entry's id is the retweet's own.
    Retweet,
}

/// The id of an entry of a timeline. Tweets and retweets draw their ids from one sequence, yet nothing in the database
/// forbids a tweet and a retweet with the same id, so the kind is part of the key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct EntryId {
    /// Id of the tweet or of the retweet: newer is greater.
    pub id: i64,
    /// Which of the two it is.
    pub kind: EntryKind,
}

impl EntryId {
    /// The entry of a tweet.
    pub const fn tweet(id: i64) -> Self {
        EntryId { id, kind: EntryKind::Tweet }
    }

    /// The entry of a retweet.
    pub const fn retweet(id: i64) -> Self {
        EntryId { id, kind: EntryKind::Retweet }
    }
}

/// An [`EntryId`] in 8 bytes, in the same order: what a home timeline holds a million times over.
///
/// Only ids from 0 up to 2⁶² − 1 fit. A negative one lies before 1970, so below every horizon; a greater one lies
/// tens of thousands of years ahead, and is refused where rows enter.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct PackedEntry(pub u64);

impl PackedEntry {
    /// `None` for an id that no home timeline can hold.
    pub const fn new(entry: EntryId) -> Option<Self> {
        if entry.id < 0 || entry.id >= 1 << 62 {
            return None;
        }
        Some(PackedEntry((entry.id as u64) << 1 | matches!(entry.kind, EntryKind::Retweet) as u64))
    }

    /// The greatest packed entry whose id is at most `floor`; entries above the floor are greater than this.
    pub const fn last_at(floor: i64) -> Option<Self> {
        if floor < 0 {
            return None;
        }
        Some(PackedEntry((floor as u64) << 1 | 1))
    }

    /// Id of the tweet or retweet.
    pub const fn id(self) -> i64 {
        (self.0 >> 1) as i64
    }

    /// The entry in full.
    pub const fn entry(self) -> EntryId {
        let kind = if self.0 & 1 == 1 { EntryKind::Retweet } else { EntryKind::Tweet };
        EntryId { id: self.id(), kind }
    }
}

/// One of the [`SHARDS`] parts of every store.
pub type Shard = u8;

/// Number of shards of every store, whatever the number of workers: a worker owns those congruent to its index.
pub const SHARDS: usize = 64;

/// The shard of what belongs to `owner`, a user or a tweet.
///
/// The multiplication spreads ids that share their low bits (time-ordered ids of a quiet system end in zeros).
pub const fn shard_of(owner: i64) -> Shard {
    ((owner as u64 ^ (owner as u64 >> 32)).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 58) as Shard
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_carries_its_millisecond() {
        let id = id_at(1_700_000_000_123, 7);
        assert_eq!(ms_of(id), 1_700_000_000_123);
        assert!(floor_of(1_700_000_000_123) >= id && floor_of(1_700_000_000_122) < id);
        assert_eq!(ms_of(-1), -1);
        assert_eq!(floor_of(u64::MAX), i64::MAX);
    }

    #[test]
    fn packed_entries_keep_the_order_and_come_back() {
        let entries = [EntryId::tweet(0), EntryId::retweet(0), EntryId::tweet(1), EntryId::retweet((1 << 62) - 1)];
        let packed = entries.map(|entry| PackedEntry::new(entry).expect("fits"));
        assert!(packed.is_sorted());
        assert_eq!(packed.map(PackedEntry::entry), entries);
        for id in [-1, i64::MIN, i64::MAX, 1 << 62] {
            assert_eq!(PackedEntry::new(EntryId::tweet(id)), None);
        }
        let floor = PackedEntry::last_at(0).expect("a floor of 0");
        assert!(packed[1] <= floor && packed[2] > floor);
    }

    #[test]
    fn ids_of_a_quiet_system_reach_every_shard() {
        let mut rows = [0; SHARDS];
        for minute in 0..64_000 {
            rows[usize::from(shard_of(id_at(1_700_000_000_000 + minute * 60_000, 0)))] += 1;
        }
        assert!(rows.iter().all(|rows| (500..2_000).contains(rows)), "{rows:?}");
    }
}
