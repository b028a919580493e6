//! Where the rows of a list lie, so that no partition grows without bound and a short list is one partition.
//!
//! ```text
//!   list (view, owner) ─► part 0 ─ full? no ─► here
//!                                   yes ─► part of its span, some 18 hours of it ─ full? no ─► here
//!                                                                                   yes ─► a minute ─ full? … ─► 64 parts
//! ```
//!
//! A part is a partition. Rows go into part 0 until it is *full*, and from then on into the part of the span of keys that
//! theirs lies in; that becomes full likewise, and is followed by shorter spans, and at last by parts by a hash of the key.
//! Nothing ever moves: what part 0 had stays there.
//!
//! A part becomes full with a row whose key has a hash that one in `partition_rows` has. So nobody counts rows, dead ones
//! neither: a part is full after `partition_rows` rows on average, put in it and perhaps deleted since, and after twelve times
//! as many but for one in 160,000. Few short lists are full early, of a hundred rows one in eighty; they cost a read or two more.
//!
//! Why it is correct:
//!
//! 1. *A key is found.* A row that is put at time t goes into the first part on the way of its key that is not full before
//!    it. Which parts those are is a function of what was put before, so a replay of t finds the same: that a part is
//!    full is remembered with the time since when, and rows of that time go by what was full before it and by the row of
//!    their own time that filled it, in the order of the keys. A list lies in one shard, so all of its rows of a closed time
//!    come together.
//! 2. *A key is deleted.* It lies in one of the full parts on its way, or in the one behind them. In a full one it is looked for,
//!    and deleted where it is: what was put before is acknowledged, so it is found. A full part that was told of every delete
//!    behind it would gather them: of a list that is read from its newest row on they lie before all of its own, which are old,
//!    and at 100,000 of them Cassandra refuses to read it.
//! 3. *A row that is put again* may lie in an earlier part too, with what it had before. The later part counts when they
//!    are read.
//! 4. *A page* is the first rows of part 0 and of the parts behind it, merged. What a part is followed by is known from a row
//!    at its beginning, its mark, which the first page reads anyway; the parts that there are from its directory, in the order
//!    of their keys. Marks and directories are written, and acknowledged, before the rows that need them.

use std::collections::{HashMap, HashSet};

use feedmill_model::{Shard, Time};
use xxhash_rust::xxh3::xxh3_64;

use super::statement::Write;

/// The key of the row that says that a part is full. It comes before all keys of rows: none has a first byte of 0 and no
/// other.
pub(super) const MARK: [u8; 1] = [0];
/// The list of all parts that are full, by shard: it is read at a start.
pub(super) const FULL: &str = "full";
/// The only part of a list that is never spread.
pub(super) const ONLY: i64 = 0;

/// Which table a list is in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) enum Table {
    /// That of the facts.
    Facts,
    /// That of the rows.
    Lists,
}

/// A kind of list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub(super) enum List {
    Facts = 1,
    Followers = 2,
    Following = 3,
    FollowRequests = 4,
    Likers = 5,
    Liked = 6,
    Retweeters = 7,
    Retweeted = 8,
    Timeline = 9,
    Replies = 10,
    Hashtag = 11,
    Conversation = 12,
    ConversationPaths = 13,
    Notifications = 14,
}

/// How the parts behind a full one are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Spread {
    /// By the first bits of the number that a key begins with: what is left is so many bits long.
    Spans(u32),
    /// By so many bits of a hash of the key.
    Hash(u32),
}

/// Of keys that begin with microseconds: 19 hours, a minute.
const BY_TIME: &[Spread] = &[Spread::Spans(36), Spread::Spans(26), Spread::Hash(6)];
/// Of keys that begin with an id, which has a millisecond in its upper 48 bits: 18 hours, a minute.
const BY_ID: &[Spread] = &[Spread::Spans(42), Spread::Spans(32), Spread::Hash(6)];
const BY_HASH: &[Spread] = &[Spread::Hash(8)];

impl List {
    const ALL: [List; 14] = [
        List::Facts,
        List::Followers,
        List::Following,
        List::FollowRequests,
        List::Likers,
        List::Liked,
        List::Retweeters,
        List::Retweeted,
        List::Timeline,
        List::Replies,
        List::Hashtag,
        List::Conversation,
        List::ConversationPaths,
        List::Notifications,
    ];

    /// The list that partitions name so.
    pub(super) fn named(name: &str) -> Option<Self> {
        List::ALL.into_iter().find(|list| list.name() == name)
    }

    /// What partitions name it by.
    pub(super) const fn name(self) -> &'static str {
        match self {
            List::Facts => "facts",
            List::Followers => "followers",
            List::Following => "following",
            List::FollowRequests => "follow_requests",
            List::Likers => "likers",
            List::Liked => "liked",
            List::Retweeters => "retweeters",
            List::Retweeted => "retweeted",
            List::Timeline => "user_timeline",
            List::Replies => "user_replies",
            List::Hashtag => "hashtag",
            List::Conversation => "conversation",
            List::ConversationPaths => "conversation_paths",
            List::Notifications => "notifications",
        }
    }

    pub(super) const fn table(self) -> Table {
        match self {
            List::Facts => Table::Facts,
            _ => Table::Lists,
        }
    }

    const fn spreads(self) -> &'static [Spread] {
        match self {
            List::Facts => BY_HASH,
            List::Followers | List::Following | List::FollowRequests | List::Likers => BY_TIME,
            _ => BY_ID,
        }
    }

    /// The number that a key begins with, in the order of the keys: after the tag, if there is one. Of a key that is shorter
    /// it is the least of those that begin so.
    fn number(self, key: &[u8]) -> u64 {
        let from = match self {
            List::Hashtag => key.iter().position(|byte| *byte == 0).map_or(key.len(), |end| end + 1),
            _ => 0,
        };
        let mut number = [0; 8];
        number.iter_mut().zip(key.iter().skip(from)).for_each(|(to, byte)| *to = *byte);
        u64::from_be_bytes(number)
    }
}

/// A part of a list.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub(super) struct Part(i64);

/// Where the depth stands in a part's number.
const DEPTH_SHIFT: u32 = 56;

impl Part {
    /// The part of a list that is not full.
    pub(super) const FIRST: Part = Part(ONLY);

    /// The part of this number.
    pub(super) const fn of_number(number: i64) -> Self {
        Part(number)
    }

    /// What its partition is named by.
    pub(super) const fn number(self) -> i64 {
        self.0
    }

    /// What the partition of its directory is named by.
    pub(super) const fn directory(self) -> i64 {
        -1 - self.0
    }

    /// How many full ones are before it.
    pub(super) const fn depth(self) -> usize {
        (self.0 >> DEPTH_SHIFT) as usize
    }

    /// How the parts behind it are told apart; none are behind the last.
    pub(super) fn spread(self, list: List) -> Option<Spread> {
        list.spreads().get(self.depth()).copied()
    }

    /// The part behind it that a key lies in.
    pub(super) fn behind(self, list: List, key: &[u8]) -> Option<Part> {
        let within = match self.spread(list)? {
            Spread::Spans(bits) => (list.number(key) >> bits) as i64,
            Spread::Hash(bits) => {
                let own = self.0 & ((1 << DEPTH_SHIFT) - 1);
                own << bits | (xxh3_64(key) >> (64 - bits)) as i64
            }
        };
        Some(Part((self.depth() as i64 + 1) << DEPTH_SHIFT | within))
    }
}

/// A row of a list, put or deleted.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Listed {
    pub(super) list: List,
    pub(super) owner: i64,
    pub(super) key: Vec<u8>,
    /// `None`: there is none any more.
    pub(super) value: Option<Vec<u8>>,
}

/// The parts of a shard's lists that are full, and since when.
#[derive(Debug, Default)]
pub(super) struct Full(HashMap<(List, i64, Part), Time>);

/// What a closed time writes.
#[derive(Debug, Default)]
pub(super) struct Laid {
    /// Marks and directories, which come first.
    pub(super) marks: Vec<Write>,
    /// The rows.
    pub(super) rows: Vec<Write>,
    /// Deletes of those that may be in a full part: of what is not there none is written.
    pub(super) perhaps: Vec<Write>,
}

impl Full {
    /// Learns of a row of the list of full parts.
    pub(super) fn learn(&mut self, key: &[u8], value: &[u8]) -> Option<()> {
        let (list, rest) = key.split_first()?;
        let list = List::ALL.into_iter().find(|known| *known as u8 == *list)?;
        let (owner, part) = rest.split_first_chunk::<8>()?;
        let part = Part(i64::from_be_bytes(part.try_into().ok()?));
        self.0.insert((list, i64::from_be_bytes(*owner), part), u64::from_be_bytes(value.try_into().ok()?));
        Some(())
    }

    fn is_full_before(&self, list: List, owner: i64, part: Part, time: Time) -> bool {
        self.0.get(&(list, owner, part)).is_some_and(|since| *since < time)
    }

    /// Lays out rows of a closed time, all of some lists of the shard.
    pub(super) fn lay_out(
        &mut self,
        shard: Shard,
        time: Time,
        mut listed: Vec<Listed>,
        partition_rows: u64,
        laid: &mut Laid,
    ) {
        listed.sort_unstable();
        for of_list in listed.chunk_by(|one, other| (one.list, one.owner) == (other.list, other.owner)) {
            self.lay_out_list(shard, time, of_list, partition_rows, laid);
        }
        for writes in [&mut laid.rows, &mut laid.perhaps] {
            writes.sort_by(|one, other| partition(one).cmp(&partition(other)));
        }
    }

    fn lay_out_list(&mut self, shard: Shard, time: Time, rows: &[Listed], partition_rows: u64, laid: &mut Laid) {
        let at = timestamp(time);
        let mut filled = HashSet::new();
        let mut directories = HashSet::new();
        for Listed { list, owner, key, value } in rows {
            let row = |part: Part, value| Write::Listed {
                table: list.table(),
                view: list.name(),
                owner: *owner,
                part: part.number(),
                key: key.clone(),
                value,
                at,
            };
            let mut part = Part::FIRST;
            while let Some(behind) = part.behind(*list, key) {
                let is_full = self.is_full_before(*list, *owner, part, time);
                if !is_full && (value.is_none() || !filled.contains(&part)) {
                    break;
                }
                if value.is_none() {
                    laid.perhaps.push(row(part, None));
                } else if directories.insert(behind) {
                    laid.marks.push(Write::Listed {
                        table: list.table(),
                        view: list.name(),
                        owner: *owner,
                        part: part.directory(),
                        key: behind.number().to_be_bytes().to_vec(),
                        value: Some(Vec::new()),
                        at,
                    });
                }
                part = behind;
            }
            laid.rows.push(row(part, value.clone()));
            let fills =
                value.is_some() && part.spread(*list).is_some() && xxh3_64(key).is_multiple_of(partition_rows.max(1));
            if fills && filled.insert(part) {
                self.0.entry((*list, *owner, part)).or_insert(time);
                laid.marks.extend(marks(shard, *list, *owner, part, time));
            }
        }
    }
}

/// What says that a part is full: to who reads it, and to who writes after a start.
fn marks(shard: Shard, list: List, owner: i64, part: Part, time: Time) -> [Write; 2] {
    let mark = |view, owner, part, key, value| Write::Listed {
        table: list.table(),
        view,
        owner,
        part,
        key,
        value: Some(value),
        at: timestamp(time),
    };
    let mut key = vec![list as u8];
    key.extend(owner.to_be_bytes());
    key.extend(part.number().to_be_bytes());
    [
        mark(FULL, i64::from(shard), ONLY, key, time.to_be_bytes().to_vec()),
        mark(list.name(), owner, part.number(), MARK.to_vec(), Vec::new()),
    ]
}

fn partition(write: &Write) -> Option<(&'static str, i64, i64)> {
    match write {
        Write::Listed { view, owner, part, .. } => Some((view, *owner, *part)),
        _ => None,
    }
}

/// The write timestamp of a closed time: microseconds since 1970.
pub(super) const fn timestamp(time: Time) -> i64 {
    time.saturating_mul(1_000) as i64
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use proptest::prelude::*;

    use super::*;

    /// Rows by partition: what a cluster has.
    type Stored = BTreeMap<(&'static str, i64, i64), BTreeMap<Vec<u8>, Vec<u8>>>;

    fn store(laid: &Laid, stored: &mut Stored) {
        for write in laid.marks.iter().chain(&laid.rows).chain(&laid.perhaps) {
            let Write::Listed { view, owner, part, key, value, .. } = write else { panic!("{write:?}") };
            let rows = stored.entry((view, *owner, *part)).or_default();
            match value {
                Some(value) => drop(rows.insert(key.clone(), value.clone())),
                None => drop(rows.remove(key)),
            }
        }
    }

    /// All rows of a list, found as a reader finds them.
    fn read(stored: &Stored, list: List, owner: i64, part: Part) -> BTreeMap<Vec<u8>, Vec<u8>> {
        let mut rows = stored.get(&(list.name(), owner, part.number())).cloned().unwrap_or_default();
        if rows.remove(MARK.as_slice()).is_none() {
            return rows;
        }
        let directory = stored.get(&(list.name(), owner, part.directory())).cloned().unwrap_or_default();
        for number in directory.keys() {
            let behind = Part::of_number(i64::from_be_bytes(number.as_slice().try_into().unwrap()));
            rows.extend(read(stored, list, owner, behind));
        }
        rows
    }

    /// What a start knows of what is full.
    fn learned(stored: &Stored) -> Full {
        let mut full = Full::default();
        let rows = stored.iter().filter(|((view, ..), _)| *view == FULL).flat_map(|(_, rows)| rows);
        rows.for_each(|(key, value)| full.learn(key, value).unwrap());
        full
    }

    fn lay(full: &mut Full, time: Time, rows: Vec<Listed>) -> Laid {
        let mut laid = Laid::default();
        full.lay_out(0, time, rows, 4, &mut laid);
        laid
    }

    proptest! {
        #[test]
        fn a_row_is_where_it_is_looked_for_and_a_replay_puts_it_there_again(
            history in prop::collection::vec(prop::collection::btree_map(0..400_u64, any::<bool>(), 0..40), 1..20),
            bits in 20..50_u32,
            list in prop::sample::select(vec![List::Followers, List::Notifications, List::Facts]),
        ) {
            let (mut full, mut stored, mut expected) = (Full::default(), Stored::new(), BTreeMap::new());
            for (time, rows) in (1..).zip(history) {
                let mut listed = Vec::new();
                for (number, put) in rows {
                    let key = [1 + (number >> 8) as u8; 1].into_iter().chain((number << bits).to_be_bytes()).collect::<Vec<u8>>();
                    let value = put.then(|| vec![time as u8]);
                    match &value {
                        Some(value) => drop(expected.insert(key.clone(), value.clone())),
                        None => drop(expected.remove(&key)),
                    }
                    listed.push(Listed { list, owner: 9, key, value });
                }
                let mut again = learned(&stored);
                let laid = lay(&mut full, time, listed.clone());
                prop_assert_eq!(&lay(&mut again, time, listed.clone()).rows, &laid.rows, "after a start");
                store(&laid, &mut stored);
                // A crash after all of it, and before the progress.
                let repeated = lay(&mut learned(&stored), time, listed.clone());
                prop_assert_eq!(&repeated.rows, &laid.rows, "again");
                prop_assert_eq!(repeated.marks.len(), laid.marks.len());
                prop_assert_eq!(read(&stored, list, 9, Part::FIRST), expected.clone());
            }
        }

        #[test]
        fn parts_come_in_the_order_of_their_keys(mut numbers in prop::collection::vec(any::<i64>(), 2..50)) {
            numbers.sort_unstable_by(|one, other| other.cmp(one));
            for list in [List::Followers, List::Timeline, List::Conversation] {
                let key = |number: &i64| (!(*number as u64 ^ 1 << 63)).to_be_bytes();
                let parts: Vec<Part> = numbers.iter().map(|number| Part::FIRST.behind(list, &key(number)).unwrap()).collect();
                prop_assert!(parts.is_sorted());
                let second = |(part, number): (&Part, &i64)| part.behind(list, &key(number)).unwrap();
                prop_assert!(parts.iter().zip(&numbers).map(second).collect::<Vec<_>>().is_sorted());
                prop_assert!(parts.iter().all(|part| part.number() > 0 && part.directory() < 0));
            }
        }
    }
}
