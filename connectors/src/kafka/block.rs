//! Records that are ready to be sent, in one piece of memory that is used again.

use std::ops::Range;

use feedmill_model::Time;

use super::times::TimesRecord;

/// Bits of a tag that are the number of the topic.
const TOPIC_BITS: u32 = 8;
/// Memory that a block keeps when it is empty: large rows are rare.
const KEPT_BYTES: usize = 1 << 20;

/// Records of a Kafka transaction, in the order in which they are sent.
#[derive(Debug, Default)]
pub(super) struct Block {
    bytes: Vec<u8>,
    places: Vec<Place>,
    /// Set on the last one of a transaction.
    pub end: Option<End>,
}

/// What ends a transaction.
#[derive(Debug)]
pub(super) struct End {
    /// The records of `times`, but for where the others are.
    pub closing: Vec<TimesRecord>,
    /// How many changes, or rows, the transaction has.
    pub changes: u64,
}

/// Where a record is in its block.
#[derive(Debug)]
struct Place {
    tag: Tag,
    time: Time,
    key: Range<usize>,
    value: Option<Range<usize>>,
}

/// A record.
pub(super) struct Record<'a> {
    pub tag: Tag,
    pub time: Time,
    pub key: &'a [u8],
    /// `None` for a tombstone.
    pub value: Option<&'a [u8]>,
}

/// By which record of `times` a record is closed, and of which topic it is: a number that goes with it through the library.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Tag(usize);

impl Tag {
    /// Of the records of `times` themselves, whose places nobody asks for.
    pub const TIMES: Tag = Tag(usize::MAX);

    pub fn new(number: usize, topic: usize) -> Self {
        Tag(number << TOPIC_BITS | topic)
    }

    /// The tag of this number.
    pub fn of(number: usize) -> Self {
        Tag(number)
    }

    /// As a number.
    pub fn get(self) -> usize {
        self.0
    }

    /// Which record of `times`, of those of the transaction.
    pub fn number(self) -> usize {
        self.0 >> TOPIC_BITS
    }

    /// Which topic.
    pub fn topic(self) -> usize {
        self.0 & ((1 << TOPIC_BITS) - 1)
    }
}

impl Block {
    /// The records, in order.
    pub fn records(&self) -> impl Iterator<Item = Record<'_>> {
        let bytes = |range: &Range<usize>| self.bytes.get(range.clone()).unwrap_or_default();
        self.places.iter().map(move |Place { tag, time, key, value }| Record {
            tag: *tag,
            time: *time,
            key: bytes(key),
            value: value.as_ref().map(bytes),
        })
    }

    /// How many bytes the records have.
    pub fn bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Appends what `write` appends, and says where that is.
    pub fn append<E>(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<Range<usize>, E> {
        let begin = self.bytes.len();
        write(&mut self.bytes)?;
        Ok(begin..self.bytes.len())
    }

    /// Appends a record whose key and value were appended.
    pub fn push(&mut self, tag: Tag, time: Time, key: Range<usize>, value: Option<Range<usize>>) {
        self.places.push(Place { tag, time, key, value });
    }

    /// Forgets what is in it, and keeps memory for as much.
    pub fn clear(&mut self) {
        self.bytes.clear();
        self.bytes.shrink_to(KEPT_BYTES);
        self.places.clear();
        self.end = None;
    }
}
