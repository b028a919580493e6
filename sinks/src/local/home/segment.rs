//! Records as bytes: what a save, or a copy, holds of a range of places.
//!
//! ```text
//!   record:  viewer, floor ± │ how many hot, first ±, then how much greater each │ newest entry + 1, then how much less each, 0
//! ```
//!
//! All are numbers of as many bytes as they need (LEB128, ± in zigzag). Entries at or below the floor are left out, and
//! the floor that is written is that above which the record is complete at the segment's time: so it need not be known
//! what the shard's floor and the horizon were.

use feedmill_model::PackedEntry;

use super::record::Record;

/// Places of a segment. Writing one down takes a few milliseconds at most, and for so long a closed time may wait. In unit
/// tests there are many small ones, so that a few viewers live in several.
pub(super) const SEGMENT_PLACES: usize = if cfg!(test) { 4 } else { 1_024 };

/// The bytes are not what was written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Damaged;

/// Appends the records that are not vacant, as they are above `bound` and their own floors; returns how many.
pub(super) fn encode(records: &[Record], bound: i64, bytes: &mut Vec<u8>) -> u32 {
    let mut count = 0;
    for record in records.iter().filter(|record| !record.is_vacant()) {
        count += 1;
        let floor = bound.max(record.floor());
        put(zigzag(record.viewer()), bytes);
        put(zigzag(floor), bytes);
        put(record.hot().len() as u64, bytes);
        let mut last = 0_i64;
        for (index, hot) in record.hot().iter().enumerate() {
            put(if index == 0 { zigzag(*hot) } else { hot.wrapping_sub(last) as u64 }, bytes);
            last = *hot;
        }
        let mut last = None;
        for entry in record.entries_above(floor) {
            put(last.map_or(entry.0 + 1, |last: u64| last - entry.0), bytes);
            last = Some(entry.0);
        }
        put(0, bytes);
    }
    count
}

/// Calls `each` with every record in `bytes`.
pub(super) fn decode(bytes: &[u8], mut each: impl FnMut(Record)) -> Result<(), Damaged> {
    let mut bytes = bytes.iter();
    let mut entries = Vec::new();
    while !bytes.as_slice().is_empty() {
        let (viewer, floor) = (unzigzag(take(&mut bytes)?), unzigzag(take(&mut bytes)?));
        let many = take(&mut bytes)?;
        let mut hot = Vec::new();
        for index in 0..many {
            let number = take(&mut bytes)?;
            let next = hot.last().map_or(unzigzag(number), |last: &i64| last.wrapping_add(number as i64));
            if index > 0 && hot.last().is_some_and(|last| *last >= next) {
                return Err(Damaged);
            }
            hot.push(next);
        }
        entries.clear();
        loop {
            let number = take(&mut bytes)?;
            let next = match entries.last() {
                _ if number == 0 => break,
                None => Some(number - 1),
                Some(PackedEntry(last)) => last.checked_sub(number),
            };
            entries.push(PackedEntry(next.ok_or(Damaged)?));
        }
        each(Record::restored(viewer, floor, hot, entries.iter().rev().copied()));
    }
    Ok(())
}

const fn zigzag(number: i64) -> u64 {
    ((number << 1) ^ (number >> 63)) as u64
}

const fn unzigzag(number: u64) -> i64 {
    (number >> 1) as i64 ^ -((number & 1) as i64)
}

fn put(mut number: u64, bytes: &mut Vec<u8>) {
    while number >= 0x80 {
        bytes.push(number as u8 | 0x80);
        number >>= 7;
    }
    bytes.push(number as u8);
}

fn take(bytes: &mut std::slice::Iter<'_, u8>) -> Result<u64, Damaged> {
    let mut number = 0_u64;
    for shift in (0..64).step_by(7) {
        let byte = bytes.next().ok_or(Damaged)?;
        number |= u64::from(byte & 0x7F) << shift;
        if byte & 0x80 == 0 {
            return Ok(number);
        }
    }
    Err(Damaged)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    type Told = (i64, i64, Vec<i64>, Vec<u64>);

    fn told(record: &Record, floor: i64) -> Told {
        let entries = record.entries_above(floor).map(|entry| entry.0).collect();
        (record.viewer(), floor, record.hot().to_vec(), entries)
    }

    fn decoded(bytes: &[u8]) -> Result<Vec<Told>, Damaged> {
        let mut records = Vec::new();
        decode(bytes, |record| records.push(told(&record, record.floor()))).map(|()| records)
    }

    fn any_records() -> impl Strategy<Value = Vec<Option<Told>>> {
        let hot = prop::collection::btree_set(any::<i64>(), 0..5).prop_map(|hot| hot.into_iter().collect());
        let entries = prop::collection::btree_set(0..u64::MAX / 2, 0..40).prop_map(|of| of.into_iter().collect());
        prop::collection::vec(prop::option::weighted(0.9, (any::<i64>(), any::<i64>(), hot, entries)), 0..6)
    }

    fn restored(told: Option<Told>) -> Record {
        told.map_or(Record::VACANT, |(viewer, floor, hot, entries)| {
            Record::restored(viewer, floor, hot, entries.into_iter().map(PackedEntry))
        })
    }

    proptest! {
        #[test]
        fn what_is_written_is_read(records in any_records(), bound in any::<i64>()) {
            let records: Vec<Record> = records.into_iter().map(restored).collect();
            let mut bytes = Vec::new();
            let count = encode(&records, bound, &mut bytes);
            let there = records.iter().filter(|record| !record.is_vacant());
            let expected: Vec<Told> = there.map(|record| told(record, record.floor().max(bound))).collect();
            prop_assert_eq!(count as usize, expected.len());
            prop_assert_eq!(decoded(&bytes), Ok(expected));
        }

        #[test]
        fn garbage_is_no_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = decoded(&bytes);
        }
    }

    #[test]
    fn what_is_cut_off_is_damaged() {
        let record = Record::restored(7, 3, vec![1, 9], [PackedEntry(100), PackedEntry(300)].into_iter());
        let mut bytes = Vec::new();
        encode(&[record], i64::MIN, &mut bytes);
        for end in 1..bytes.len() {
            assert_eq!(decoded(&bytes[..end]), Err(Damaged), "at {end}");
        }
    }
}
