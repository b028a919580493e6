//! Timestamps with a time zone as Debezium writes them: ISO 8601 in UTC, `2026-01-31T12:00:00.5Z`.
//!
//! Years beyond four digits have a sign, as Java writes them. PostgreSQL's infinities are the two instants that Debezium
//! makes of them.

use std::borrow::Cow;

use feedmill_model::Timestamp;
use serde::{Deserialize, Deserializer, Serializer};

const MICROS_OF_DAY: i64 = 86_400_000_000;
const INFINITY: &str = "+292278994-08-16T23:00:00Z";
const MINUS_INFINITY: &str = "-292275055-05-16T23:00:00Z";

pub(super) fn serialize<S: Serializer>(at: &Timestamp, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_str(Text::of(*at).as_str())
}

pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Timestamp, D::Error> {
    let text = Cow::<str>::deserialize(deserializer)?;
    read(&text).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no time")))
}

/// A timestamp that may be null.
pub(super) mod option {
    use super::{Cow, Deserialize, Deserializer, Serializer, Text, Timestamp, read};

    pub fn serialize<S: Serializer>(at: &Option<Timestamp>, serializer: S) -> Result<S::Ok, S::Error> {
        match at {
            Some(at) => serializer.serialize_str(Text::of(*at).as_str()),
            None => serializer.serialize_none(),
        }
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<Timestamp>, D::Error> {
        let Some(text) = Option::<Cow<'_, str>>::deserialize(deserializer)? else { return Ok(None) };
        read(&text).map(Some).ok_or_else(|| serde::de::Error::custom(format!("`{text}` is no time")))
    }
}

/// A timestamp as text. Each row has one at least, so it is made without what `write!` takes, which is most of the time that a
/// small row takes in all.
pub(super) struct Text {
    bytes: [u8; 40],
    length: usize,
}

impl Text {
    pub fn of(at: Timestamp) -> Text {
        let mut text = Text { bytes: [0; 40], length: 0 };
        match at {
            Timestamp::MAX => text.append(INFINITY.as_bytes()),
            Timestamp::MIN => text.append(MINUS_INFINITY.as_bytes()),
            _ => text.append_time(at),
        }
        text
    }

    pub fn as_str(&self) -> &str {
        self.bytes.get(..self.length).and_then(|bytes| str::from_utf8(bytes).ok()).unwrap_or_default()
    }

    fn append_time(&mut self, at: Timestamp) {
        let (days, micros) = (at.div_euclid(MICROS_OF_DAY), at.rem_euclid(MICROS_OF_DAY));
        let (year, month, day) = date_of(days);
        match year {
            0..=9_999 => {}
            10_000.. => self.append(b"+"),
            _ => self.append(b"-"),
        }
        let year = year.unsigned_abs();
        let digits = match year {
            0..=9_999 => 4,
            10_000..=99_999 => 5,
            _ => 6,
        };
        self.append_number(year, digits);
        for (before, number) in [(b"-", month), (b"-", day)] {
            self.append(before);
            self.append_number(number.unsigned_abs(), 2);
        }
        let seconds = micros.unsigned_abs() / 1_000_000;
        for (before, number) in [(b"T", seconds / 3_600), (b":", seconds / 60 % 60), (b":", seconds % 60)] {
            self.append(before);
            self.append_number(number, 2);
        }
        let (mut fraction, mut digits) = (micros.unsigned_abs() % 1_000_000, 6);
        if fraction > 0 {
            while fraction % 10 == 0 {
                (fraction, digits) = (fraction / 10, digits - 1);
            }
            self.append(b".");
            self.append_number(fraction, digits);
        }
        self.append(b"Z");
    }

    /// Appends a number that has at most so many digits, with zeros before them.
    fn append_number(&mut self, mut number: u64, digits: usize) {
        let places = self.bytes.get_mut(self.length..self.length + digits).unwrap_or_default();
        for place in places.iter_mut().rev() {
            *place = b'0' + u8::try_from(number % 10).unwrap_or(0);
            number /= 10;
        }
        self.length += digits;
    }

    fn append(&mut self, bytes: &[u8]) {
        if let Some(place) = self.bytes.get_mut(self.length..self.length + bytes.len()) {
            place.copy_from_slice(bytes);
            self.length += bytes.len();
        }
    }
}

fn read(text: &str) -> Option<Timestamp> {
    match text {
        INFINITY => return Some(Timestamp::MAX),
        MINUS_INFINITY => return Some(Timestamp::MIN),
        _ => {}
    }
    let (date, time) = text.strip_suffix('Z')?.split_once('T')?;
    let (negative, date) = match date.strip_prefix('-') {
        Some(date) => (true, date),
        None => (false, date.strip_prefix('+').unwrap_or(date)),
    };
    let mut date = date.split('-').map(|part| part.parse::<u32>().ok());
    let (year, month, day) = (date.next()??, date.next()??, date.next()??);
    let (time, fraction) = time.split_once('.').unwrap_or((time, ""));
    let mut time = time.split(':').map(|part| part.parse::<u32>().ok());
    let (hour, minute, second) = (time.next()??, time.next()??, time.next()??);
    let is_day = (1..=12).contains(&month) && (1..=31).contains(&day) && hour < 24 && minute < 60 && second < 60;
    if !is_day || fraction.len() > 6 || year > 300_000 {
        return None;
    }
    let micros = if fraction.is_empty() { 0 } else { format!("{fraction:0<6}").parse::<u32>().ok()? };
    let year = if negative { -i64::from(year) } else { i64::from(year) };
    let seconds = i64::from(hour * 3_600 + minute * 60 + second);
    Some(days_of(year, month, day) * MICROS_OF_DAY + seconds * 1_000_000 + i64::from(micros))
}

/// The date so many days after 1970-01-01, in the proleptic Gregorian calendar: years of 400 have 146,097 days, and begin
/// in March, so that leap days come last.
fn date_of(days: i64) -> (i64, i64, i64) {
    let days = days + 719_468;
    let (era, day) = (days.div_euclid(146_097), days.rem_euclid(146_097));
    let year = (day - day / 1_460 + day / 36_524 - day / 146_096) / 365;
    let of_year = day - (365 * year + year / 4 - year / 100);
    let march = (5 * of_year + 2) / 153;
    let month = if march < 10 { march + 3 } else { march - 9 };
    (year + era * 400 + i64::from(month <= 2), month, of_year - (153 * march + 2) / 5 + 1)
}

/// The reverse.
fn days_of(year: i64, month: u32, day: u32) -> i64 {
    let (month, day) = (i64::from(month), i64::from(day));
    let year = year - i64::from(month <= 2);
    let (era, of_era) = (year.div_euclid(400), year.rem_euclid(400));
    let march = if month > 2 { month - 3 } else { month + 9 };
    let of_year = (153 * march + 2) / 5 + day - 1;
    era * 146_097 + of_era * 365 + of_era / 4 - of_era / 100 + of_year - 719_468
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_look_as_debezium_writes_them() {
        for (at, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (-1, "1969-12-31T23:59:59.999999Z"),
            (1_582_934_400_500_000, "2020-02-29T00:00:00.5Z"),
            (1_700_000_000_123_456, "2023-11-14T22:13:20.123456Z"),
            (253_402_300_800_000_000, "+10000-01-01T00:00:00Z"),
            (-62_198_755_200_000_000, "-0001-01-01T00:00:00Z"),
            (9_223_371_331_199_999_999, "+294247-01-01T23:59:59.999999Z"),
            (Timestamp::MAX, INFINITY),
            (Timestamp::MIN, MINUS_INFINITY),
        ] {
            assert_eq!(Text::of(at).as_str(), text);
            assert_eq!(read(text), Some(at), "{text}");
        }
        for text in ["", "2020", "2020-13-01T00:00:00Z", "2020-01-01T25:00:00Z", "2020-01-01T00:00:00", "x-1-1T0:0:0Z"]
        {
            assert_eq!(read(text), None, "{text}");
        }
    }

    proptest! {
        /// As far as PostgreSQL's timestamps go: 4714 BC to AD 294276.
        #[test]
        fn what_is_written_is_read(at in -210_866_803_200_000_000_i64..9_223_371_331_200_000_000) {
            prop_assert_eq!(read(Text::of(at).as_str()), Some(at));
        }
    }
}
