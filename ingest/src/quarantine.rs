//! Rows that cannot be used: set aside, so that the stream goes on.
//!
//! ```text
//!   a change that cannot be read ─────────────┐                       ┌─ a later change of the row that can be used
//!   a tweet or retweet of the future ─────────┼─► quarantine ─► gone ─┼─ retry, once it can be used
//!   columns that did not change of such a row,│                       └─ drop
//!   or of one that is not here ───────────────┘
//! ```
//!
//! An entry is written, and goes, together with the batch that sets it aside or mends it, so it is there exactly once
//! whatever happens. While a row is in quarantine the row store does not hold its key: whatever the row was before is
//! gone from every view, because what it is now is not known. So the views are those of the source without the rows that
//! are in quarantine, which is how they can be compared.

mod store;

use std::fmt;
use std::str::FromStr;

use feedmill_connectors::postgres::{Field, Operation, Unusable};
use feedmill_model::{Key, Position, Relation, Row, Time, Timestamp, floor_of, ms_of};
use serde::{Deserialize, Serialize};

use crate::LogError;
use crate::key::{RowKey, key_of, row_key};

pub(crate) use store::Count;
pub use store::Retried;

/// How far ahead of its batch a tweet or retweet may lie.
const AHEAD_MAX_MS: u64 = 3_600_000;

/// A row in quarantine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quarantined {
    /// The row as it was sent, what was done to it, and why it cannot be used.
    pub row: Unusable,
    /// The row, if all that is wrong with it is that it lies in the future.
    pub readable: Option<Row>,
    /// The batch that set it aside.
    pub position: Position,
}

impl Quarantined {
    /// Why, in a word: for metrics.
    pub(crate) fn kind(&self) -> &'static str {
        if self.readable.is_some() { "future" } else { "unreadable" }
    }
}

/// Names a row in quarantine: by its key, or by when it came if its key cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum QuarantineId {
    /// A row by its key; written `tweets/17` or `likes/3/17`.
    Key(Key),
    /// The row with this number among those without a readable key of the batch of this time; written
    /// `1700000000000.2`.
    Number(Time, u32),
}

/// Before the time and number of an entry without a key. No relation has this number.
const WITHOUT_KEY: u8 = 0xFF;

/// Under which key a row without a readable one stands among those of a batch that are sorted by key: after all others.
pub(crate) fn unnamed_key(number: u32) -> RowKey {
    let mut key = [0; 17];
    let (first, rest) = key.split_at_mut(1);
    first.fill(WITHOUT_KEY);
    if let Some(place) = rest.first_chunk_mut() {
        *place = number.to_be_bytes();
    }
    key
}

impl QuarantineId {
    /// Of a key among those of a batch of this time.
    pub(crate) fn of(key: &RowKey, time: Time) -> Result<Self, LogError> {
        match key.split_first() {
            Some((&WITHOUT_KEY, rest)) => {
                let number = rest.first_chunk().map_or(0, |number| u32::from_be_bytes(*number));
                Ok(QuarantineId::Number(time, number))
            }
            _ => Self::from_bytes(key),
        }
    }

    /// Where its entry lies.
    pub(crate) fn to_bytes(self) -> Vec<u8> {
        match self {
            QuarantineId::Key(key) => row_key(&key).to_vec(),
            QuarantineId::Number(time, number) => {
                let mut bytes = vec![WITHOUT_KEY];
                bytes.extend_from_slice(&time.to_be_bytes());
                bytes.extend_from_slice(&number.to_be_bytes());
                bytes
            }
        }
    }

    pub(crate) fn from_bytes(bytes: &[u8]) -> Result<Self, LogError> {
        let corrupt = || LogError::Corrupt { what: "a key of the quarantine".to_owned() };
        match bytes.split_first() {
            Some((&WITHOUT_KEY, rest)) => {
                let (time, number) = rest.split_first_chunk().ok_or_else(corrupt)?;
                let number = number.first_chunk().ok_or_else(corrupt)?;
                Ok(QuarantineId::Number(Time::from_be_bytes(*time), u32::from_be_bytes(*number)))
            }
            _ => {
                let key = RowKey::try_from(bytes).map_err(|_| corrupt())?;
                key_of(&key).map(QuarantineId::Key).ok_or_else(corrupt)
            }
        }
    }
}

impl fmt::Display for QuarantineId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            QuarantineId::Key(key) if key.relation.key_columns() == 1 => {
                write!(f, "{}/{}", key.relation.table(), key.first)
            }
            QuarantineId::Key(key) => write!(f, "{}/{}/{}", key.relation.table(), key.first, key.second),
            QuarantineId::Number(time, number) => write!(f, "{time}.{number}"),
        }
    }
}

/// A text that names no row in quarantine.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not the id of a row in quarantine; one looks like tweets/17, likes/3/17 or 1700000000000.2")]
pub struct ParseQuarantineIdError(pub String);

impl FromStr for QuarantineId {
    type Err = ParseQuarantineIdError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let refused = || ParseQuarantineIdError(text.to_owned());
        if let Some((time, number)) = text.split_once('.') {
            let (time, number) = (time.parse(), number.parse());
            return Ok(QuarantineId::Number(time.map_err(|_| refused())?, number.map_err(|_| refused())?));
        }
        let mut fields = text.split('/');
        let table = fields.next().unwrap_or_default();
        let relation = Relation::ALL.into_iter().find(|relation| relation.table() == table).ok_or_else(refused)?;
        let columns: Result<Vec<i64>, _> = fields.map(str::parse).collect();
        let columns = columns.map_err(|_| refused())?;
        match (relation.key_columns(), columns.as_slice()) {
            (1, &[first]) => Ok(QuarantineId::Key(Key { relation, first, second: 0 })),
            (2, &[first, second]) => Ok(QuarantineId::Key(Key { relation, first, second })),
            _ => Err(refused()),
        }
    }
}

/// What a batch does to the quarantine.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct Effect {
    /// Where the entry lies.
    pub id: Vec<u8>,
    /// What is there from now on.
    pub entry: Option<Box<Quarantined>>,
}

/// Why a row cannot be used in a batch of this time, if it lies too far in the future.
pub(crate) fn ahead(row: &Row, time: Time) -> Option<String> {
    let (id, created_at) = (row.key().first, dated(row)?);
    if id > last_id_at(time) {
        return Some(format!("its id lies more than an hour ahead: it says {} ms since 1970", ms_of(id)));
    }
    is_ahead(created_at, time)
        .then(|| format!("its created_at lies more than an hour ahead: it says {created_at} µs since 1970"))
}

/// The latest millisecond that is not too far ahead of a batch of this time.
fn latest_ms(time: Time) -> i64 {
    i64::try_from(time.saturating_add(AHEAD_MAX_MS)).unwrap_or(i64::MAX)
}

/// The greatest id that is not too far ahead.
pub(crate) fn last_id_at(time: Time) -> i64 {
    floor_of(time.saturating_add(AHEAD_MAX_MS))
}

/// When the row says it was made, if that can be in the future.
pub(crate) fn dated(row: &Row) -> Option<Timestamp> {
    match row {
        Row::Tweet(tweet) => Some(tweet.created_at),
        Row::Retweet(retweet) => Some(retweet.created_at),
        _ => None,
    }
}

fn is_ahead(created_at: Timestamp, time: Time) -> bool {
    created_at / 1_000 > latest_ms(time)
}

/// A row of the future, set aside.
pub(crate) fn of_the_future(row: Row, operation: Operation, reason: String, position: Position) -> Quarantined {
    let columns = [("id", row.key().first)].map(|(name, value)| (name.to_owned(), Field::Text(value.to_string())));
    let row_sent = Unusable {
        relation: row.relation(),
        operation,
        key: Some(row.key()),
        old_key: None,
        columns: columns.to_vec(),
        reason,
    };
    Quarantined { row: row_sent, readable: Some(row), position }
}

/// A row of which some columns were not sent, and the row that has them is in quarantine itself, or is not here.
pub(crate) fn without_columns(row: &Row, position: Position) -> Quarantined {
    let reason =
        "columns that did not change were not sent, and the row that has them is in quarantine itself, or was \
                  not published when the table was copied"
            .to_owned();
    let row_sent = Unusable {
        relation: row.relation(),
        operation: Operation::Update,
        key: Some(row.key()),
        old_key: None,
        columns: Vec::new(),
        reason,
    };
    Quarantined { row: row_sent, readable: None, position }
}

#[cfg(test)]
mod tests {
    use feedmill_model::{Retweet, Tweet, id_at};

    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_written() {
        let key = |relation, first, second| QuarantineId::Key(Key { relation, first, second });
        let ids = [
            (key(Relation::Tweets, -17, 0), "tweets/-17"),
            (key(Relation::Likes, 3, 17), "likes/3/17"),
            (QuarantineId::Number(1_700_000_000_000, 2), "1700000000000.2"),
        ];
        for (id, text) in ids {
            assert_eq!((id.to_string().as_str(), text.parse()), (text, Ok(id)));
            assert_eq!(QuarantineId::from_bytes(&id.to_bytes()).expect("is one"), id);
        }
        for text in ["", "tweets", "tweets/1/2", "likes/1", "accounts/1", "tweets/x", "1.x", "."] {
            assert!(text.parse::<QuarantineId>().is_err(), "{text}");
        }
    }

    #[test]
    fn more_than_an_hour_ahead_is_the_future() {
        let now = 1_700_000_000_000_u64;
        let hour = 3_600_000;
        let tweet =
            |ms: i64, created_at| Row::Tweet(Box::new(Tweet { id: id_at(ms, 0), created_at, ..Tweet::default() }));
        let at = i64::try_from(now).expect("fits");
        assert_eq!(ahead(&tweet(at + hour, (at + hour) * 1_000), now), None);
        assert!(ahead(&tweet(at + hour + 1, 0), now).is_some_and(|why| why.contains("its id")));
        assert!(ahead(&tweet(at, i64::MAX), now).is_some_and(|why| why.contains("created_at")));
        assert_eq!(ahead(&tweet(-at, i64::MIN), now), None);
        let retweet = Row::Retweet(Retweet { id: i64::MAX, user_id: 1, tweet_id: 1, created_at: 0 });
        assert!(ahead(&retweet, now).is_some());
    }
}
