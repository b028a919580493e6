//! Keys and values as bytes: keys in the order of their numbers, values as postcard.
//!
//! Neither has a checksum of its own: the storage engine keeps one for each batch in its journal and for each block in
//! its tables, and checks it at every read.

use feedmill_model::{Key, Relation, Row, Time};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::LogError;

/// A row's key as bytes.
pub(crate) type RowKey = [u8; 17];

/// Relation, then both columns of the key, big-endian with the sign flipped so that negative numbers come first.
pub(crate) fn row_key(key: &Key) -> RowKey {
    let mut bytes = [0; 17];
    let (relation, columns) = bytes.split_at_mut(1);
    relation.copy_from_slice(&relation_prefix(key.relation));
    let (first, second) = columns.split_at_mut(8);
    first.copy_from_slice(&ordered(key.first));
    second.copy_from_slice(&ordered(key.second));
    bytes
}

/// The least key of a relation's rows.
pub(crate) fn first_key(relation: Relation) -> RowKey {
    row_key(&Key { relation, first: i64::MIN, second: i64::MIN })
}

/// The greatest key of a relation's rows.
pub(crate) fn last_key(relation: Relation) -> RowKey {
    row_key(&Key { relation, first: i64::MAX, second: i64::MAX })
}

/// What the keys of all rows of a relation begin with.
pub(crate) const fn relation_prefix(relation: Relation) -> [u8; 1] {
    [relation as u8]
}

/// The least key of a relation whose first column, as [`first_number`] tells it, is at least `number`.
pub(crate) fn key_from(relation: Relation, number: u64) -> RowKey {
    let mut bytes = [0; 17];
    let (prefix, columns) = bytes.split_at_mut(1);
    prefix.copy_from_slice(&relation_prefix(relation));
    columns.split_at_mut(8).0.copy_from_slice(&number.to_be_bytes());
    bytes
}

/// The first column of the key of a row as a number without a sign, in the order of the keys.
pub(crate) fn first_number(key: &[u8]) -> Option<u64> {
    key.get(1..)?.first_chunk().map(|number| u64::from_be_bytes(*number))
}

fn ordered(number: i64) -> [u8; 8] {
    ((number as u64) ^ (1 << 63)).to_be_bytes()
}

/// The key that these bytes are, if they are one.
pub(crate) fn key_of(bytes: &RowKey) -> Option<Key> {
    let (relation, columns) = bytes.split_first()?;
    let relation = Relation::ALL.into_iter().find(|known| *known as u8 == *relation)?;
    let (first, second) = columns.split_first_chunk()?;
    let number = |bytes: &[u8; 8]| (u64::from_be_bytes(*bytes) ^ (1 << 63)) as i64;
    Some(Key { relation, first: number(first), second: number(second.first_chunk()?) })
}

/// Key of one part of a batch in the tail: the batch's time, then the number of the part, both big-endian.
pub(crate) fn tail_key(time: Time, part: u32) -> [u8; 12] {
    let mut bytes = [0; 12];
    let (first, second) = bytes.split_at_mut(8);
    first.copy_from_slice(&time.to_be_bytes());
    second.copy_from_slice(&part.to_be_bytes());
    bytes
}

/// The time in the key of a part.
pub(crate) fn time_of(key: &[u8]) -> Result<Time, LogError> {
    let time = key.first_chunk().filter(|_| key.len() == 12);
    time.map(|time| Time::from_be_bytes(*time))
        .ok_or_else(|| LogError::Corrupt { what: "a key of the tail".to_owned() })
}

/// A value as it is stored; `what` names it in an error.
pub(crate) fn encode<V: Serialize>(value: &V, what: &'static str) -> Result<Vec<u8>, LogError> {
    postcard::to_extend(value, Vec::with_capacity(64)).map_err(|source| LogError::Encode { what, source })
}

/// Appends a value as it is stored; `what` names it in an error.
pub(crate) fn append_encoded<V: Serialize>(bytes: &mut Vec<u8>, value: &V, what: &'static str) -> Result<(), LogError> {
    *bytes = postcard::to_extend(value, std::mem::take(bytes)).map_err(|source| LogError::Encode { what, source })?;
    Ok(())
}

/// A value as it was stored; `what` names it in an error.
pub(crate) fn decode<V: DeserializeOwned>(bytes: &[u8], what: impl Fn() -> String) -> Result<V, LogError> {
    match postcard::take_from_bytes(bytes) {
        Ok((value, [])) => Ok(value),
        _ => Err(LogError::Corrupt { what: what() }),
    }
}

/// A row of the row store.
pub(crate) fn decode_row(bytes: &[u8], relation: Relation) -> Result<Row, LogError> {
    decode(bytes, || format!("a row of {}", relation.table()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn keys_as_bytes_keep_their_order() {
        let numbers = [i64::MIN, -256, -1, 0, 1, 255, 256, i64::MAX];
        let keys = [Relation::Users, Relation::Likes].into_iter().flat_map(|relation| {
            numbers.into_iter().flat_map(move |first| numbers.map(|second| Key { relation, first, second }))
        });
        let keys: Vec<Key> = keys.collect();
        assert!(keys.is_sorted());
        assert!(keys.iter().map(row_key).is_sorted());
        assert!(keys.iter().all(|key| key_of(&row_key(key)) == Some(*key)));
        assert!([(0, 1), (1, 0), (255, 7), (256, 0)].map(|(time, part)| tail_key(time, part)).is_sorted());
        assert_eq!(time_of(&tail_key(77, 3)).expect("a key"), 77);
    }

    #[test]
    fn a_value_that_is_cut_or_too_long_is_recognised() {
        let bytes = encode(&(1_u32, "text".to_owned()), "a test").expect("can be stored");
        let read = |bytes: &[u8]| decode::<(u32, String)>(bytes, || "a test".to_owned());
        assert_eq!(read(&bytes).expect("whole"), (1, "text".to_owned()));
        assert!(matches!(read(&bytes[..3]), Err(LogError::Corrupt { .. })));
        assert!(matches!(read(&[&bytes[..], &[0]].concat()), Err(LogError::Corrupt { .. })));
    }
}
