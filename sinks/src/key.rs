//! Keys whose bytes are in the order of what they stand for, the shard first.

use feedmill_model::{Shard, shard_of};

/// A key as it is put together.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Key(Vec<u8>);

impl Key {
    pub(crate) fn in_shard(shard: Shard) -> Self {
        let mut bytes = Vec::with_capacity(28);
        bytes.push(shard);
        Key(bytes)
    }

    /// In the owner's shard.
    pub(crate) fn of(owner: i64) -> Self {
        Key::in_shard(shard_of(owner))
    }

    pub(crate) fn byte(mut self, byte: u8) -> Self {
        self.0.push(byte);
        self
    }

    pub(crate) fn text(mut self, text: &str) -> Self {
        self.0.extend_from_slice(text.as_bytes());
        self
    }

    /// Smaller numbers first.
    pub(crate) fn ascending(mut self, number: i64) -> Self {
        self.0.extend_from_slice(&ordered(number).to_be_bytes());
        self
    }

    /// Greater numbers first.
    pub(crate) fn descending(mut self, number: i64) -> Self {
        self.0.extend_from_slice(&(!ordered(number)).to_be_bytes());
        self
    }

    /// After every key that begins with this one: none goes on with 18 bytes of 0xFF.
    pub(crate) fn end(mut self) -> Self {
        self.0.extend_from_slice(&[0xFF; 18]);
        self
    }
}

impl AsRef<[u8]> for Key {
    fn as_ref(&self) -> &[u8] {
        &self.0
    }
}

impl From<Key> for fjall::UserKey {
    fn from(key: Key) -> Self {
        key.0.into()
    }
}

const fn ordered(number: i64) -> u64 {
    number as u64 ^ 1 << 63
}

/// A key or value as it is taken apart; `None` when it is too short.
pub(crate) struct Parts<'a>(&'a [u8]);

impl<'a> Parts<'a> {
    pub(crate) const fn new(bytes: &'a [u8]) -> Self {
        Parts(bytes)
    }

    pub(crate) fn byte(&mut self) -> Option<u8> {
        let (byte, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(*byte)
    }

    /// Eight bytes, most significant first.
    pub(crate) fn number(&mut self) -> Option<u64> {
        let (number, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u64::from_be_bytes(*number))
    }

    pub(crate) fn ascending(&mut self) -> Option<i64> {
        self.number().map(|number| ordered(number as i64) as i64)
    }

    pub(crate) fn descending(&mut self) -> Option<i64> {
        self.number().map(|number| ordered(!number as i64) as i64)
    }

    pub(crate) const fn rest(self) -> &'a [u8] {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_are_ordered_as_their_numbers_and_come_back() {
        let numbers = [i64::MIN, -2, -1, 0, 1, 1 << 40, i64::MAX];
        let ascending = numbers.map(|number| Key::in_shard(1).ascending(number));
        assert!(ascending.is_sorted());
        let descending = numbers.map(|number| Key::in_shard(1).descending(number));
        assert!(descending.iter().rev().is_sorted());
        for number in numbers {
            let key = Key::in_shard(9).descending(number).ascending(number);
            let mut parts = Parts::new(key.as_ref());
            assert_eq!((parts.byte(), parts.descending(), parts.ascending()), (Some(9), Some(number), Some(number)));
            assert!(parts.number().is_none() && parts.rest().is_empty());
        }
        let last = Key::in_shard(1).descending(i64::MIN).descending(i64::MIN);
        assert!(last < Key::in_shard(1).end() && Key::in_shard(1).end() < Key::in_shard(2));
    }
}
