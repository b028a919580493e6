//! Keys and values as bytes: keys in the order of their numbers, values with a checksum.

use feedmill_model::{Key, Relation, Time};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::LogError;

/// Relation, then both columns of the key, big-endian with the sign flipped so that negative numbers come first.
pub(crate) fn row_key(key: &Key) -> [u8; 17] {
    let mut bytes = [0; 17];
    let (relation, columns) = bytes.split_at_mut(1);
    relation.copy_from_slice(&[key.relation as u8]);
    let (first, second) = columns.split_at_mut(8);
    first.copy_from_slice(&ordered(key.first));
    second.copy_from_slice(&ordered(key.second));
    bytes
}

/// What the keys of all rows of a relation begin with.
pub(crate) const fn relation_prefix(relation: Relation) -> [u8; 1] {
    [relation as u8]
}

fn ordered(number: i64) -> [u8; 8] {
    ((number as u64) ^ (1 << 63)).to_be_bytes()
}

/// Key of a batch in the tail.
pub(crate) const fn tail_key(time: Time) -> [u8; 8] {
    time.to_be_bytes()
}

const SUM_BYTES: usize = 4;

/// A value as it is stored.
pub(crate) fn encode<V: Serialize>(value: &V) -> Result<Vec<u8>, LogError> {
    let corrupt = |error: postcard::Error| LogError::Corrupt { what: format!("a value to be written ({error})") };
    let mut bytes = postcard::to_extend(value, Vec::with_capacity(64)).map_err(corrupt)?;
    let sum = crc32fast::hash(&bytes);
    bytes.extend_from_slice(&sum.to_be_bytes());
    Ok(bytes)
}

/// A value as it was stored; `what` names it in an error.
pub(crate) fn decode<V: DeserializeOwned>(bytes: &[u8], what: impl Fn() -> String) -> Result<V, LogError> {
    let corrupt = || LogError::Corrupt { what: what() };
    let end = bytes.len().checked_sub(SUM_BYTES).ok_or_else(corrupt)?;
    let (value, sum) = bytes.split_at_checked(end).ok_or_else(corrupt)?;
    if crc32fast::hash(value).to_be_bytes() != sum {
        return Err(corrupt());
    }
    postcard::from_bytes(value).map_err(|_| corrupt())
}
