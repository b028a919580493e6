//! Values in PostgreSQL's binary format, and the rows that they make. Copy and stream both decode by this.
//!
//! ```text
//!  columns of Relation::columns:   0        1         2      …
//!  Tuple:                       [ Value ][ Value ][ Value ] …       borrowed from the message
//!                                   └───────── row() ─────────┘
//!                                   Row + bits of the columns that were not sent
//! ```
//!
//! Each value is checked for its length and, where it is text, for UTF-8; nothing here trusts the server.

use feedmill_model::{
    Activity, Block, Follow, Key, Like, Mute, Popular, ReadMark, Relation, Retweet, Row, Timestamp, Tweet, User,
};
use tokio_postgres::types::Type;

use super::{Field, Operation, Unusable};

/// The most columns that a relation has.
pub(super) const COLUMNS_MAX: usize = 10;

/// PostgreSQL counts from 2000-01-01; Feedmill from 1970-01-01.
const EPOCH_MICROS: i64 = 946_684_800_000_000;
const EPOCH_DAYS: i32 = 10_957;

/// Why bytes of the server are not what they should be. No retry cures it.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// A message ends too early.
    #[error("a replication message of kind {kind:?} ends too early")]
    Truncated {
        /// The byte that names the kind.
        kind: char,
    },
    /// A message, or a part of one, is of no known kind.
    #[error("a replication message holds the unknown {what} {byte:#04x}")]
    Unknown {
        /// What the byte names.
        what: &'static str,
        /// The byte.
        byte: u8,
    },
    /// Messages come in an order that the protocol does not allow.
    #[error("replication messages are out of order: {0}")]
    Order(&'static str),
    /// A name is no UTF-8.
    #[error("the name of a table or column is no UTF-8")]
    Name,
    /// A column that Feedmill reads is not there.
    #[error(
        "table {table} has, or had when the next change was made, no column {column}, which Feedmill reads. If it was \
         renamed, rename it back: ALTER TABLE {table} RENAME COLUMN … TO {column}; and it goes on. If it was dropped, add \
         it again: ALTER TABLE {table} ADD COLUMN {column} {expected}; and run `feedmill resync`, because its values are gone"
    )]
    MissingColumn {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// Its type.
        expected: &'static str,
    },
    /// A column that Feedmill reads has another type.
    #[error(
        "column {table}.{column} has, or had when the next change was made, the type with oid {oid}, but Feedmill reads \
         {expected}. Change it back: ALTER TABLE {table} ALTER COLUMN {column} TYPE {expected}; and run `feedmill resync`, \
         which copies what was written meanwhile"
    )]
    ColumnType {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// What it should be.
        expected: &'static str,
        /// What it is: `pg_type.oid`.
        oid: u32,
    },
    /// Changes cannot be told apart by the primary key.
    #[error(
        "the replica identity of table {table} does not cover its primary key; run ALTER TABLE {table} REPLICA \
         IDENTITY DEFAULT"
    )]
    ReplicaIdentity {
        /// The table.
        table: &'static str,
    },
    /// A value cannot be read.
    #[error("a value of {table}.{column} {problem}")]
    Value {
        /// The table.
        table: &'static str,
        /// The column.
        column: &'static str,
        /// What is wrong with it.
        problem: &'static str,
    },
}

impl DecodeError {
    /// Whether it is a table that is not as we read it, which its owner can change.
    pub fn is_mendable(&self) -> bool {
        match self {
            DecodeError::MissingColumn { .. }
            | DecodeError::ColumnType { .. }
            | DecodeError::ReplicaIdentity { .. } => true,
            DecodeError::Truncated { .. }
            | DecodeError::Unknown { .. }
            | DecodeError::Order(_)
            | DecodeError::Name
            | DecodeError::Value { .. } => false,
        }
    }
}

/// A value of a tuple, borrowed from the message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Value<'a> {
    /// NULL, or no part of the tuple.
    Null,
    /// Stored out of line and unchanged, so not sent.
    Unchanged,
    /// In text format, which is never asked for.
    Text(&'a [u8]),
    /// In binary format.
    Binary(&'a [u8]),
}

/// The values of a row in the order of [`Relation::columns`].
pub(super) type Tuple<'a> = [Value<'a>; COLUMNS_MAX];

/// What a column holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    Int8,
    Text,
    Bool,
    Timestamp,
    Date,
    Json,
}

impl Kind {
    /// Its name in SQL.
    pub(super) const fn name(self) -> &'static str {
        match self {
            Kind::Int8 => "bigint",
            Kind::Text => "text",
            Kind::Bool => "boolean",
            Kind::Timestamp => "timestamp with time zone",
            Kind::Date => "date",
            Kind::Json => "jsonb",
        }
    }

    /// Whether the type with this oid is read as this kind.
    pub(super) fn accepts(self, oid: u32) -> bool {
        let types: &[Type] = match self {
            Kind::Int8 => &[Type::INT8],
            Kind::Text => &[Type::TEXT, Type::VARCHAR],
            Kind::Bool => &[Type::BOOL],
            Kind::Timestamp => &[Type::TIMESTAMPTZ],
            Kind::Date => &[Type::DATE],
            Kind::Json => &[Type::JSONB],
        };
        types.iter().any(|accepted| accepted.oid() == oid)
    }
}

/// What the [`Relation::columns`] hold.
pub(super) const fn kinds(relation: Relation) -> &'static [Kind] {
    use Kind::{Bool, Date, Int8, Json, Text, Timestamp};
    match relation {
        Relation::Users => &[Int8, Text, Text, Text, Text, Bool, Bool, Timestamp, Timestamp, Timestamp],
        Relation::Tweets => &[Int8, Int8, Text, Int8, Int8, Json, Timestamp, Timestamp, Timestamp],
        Relation::Follows => &[Int8, Int8, Bool, Timestamp],
        Relation::Likes => &[Int8, Int8, Timestamp],
        Relation::Retweets => &[Int8, Int8, Int8, Timestamp],
        Relation::Blocks | Relation::Mutes | Relation::ReadMarks => &[Int8, Int8],
        Relation::Activity => &[Int8, Date],
        Relation::Popular => &[Int8],
    }
}

/// The row, and a bit for each column that was not sent because it is stored out of line and unchanged.
pub(super) fn row(relation: Relation, tuple: &Tuple<'_>) -> Result<(Row, u32), DecodeError> {
    let mut columns = Columns { relation, tuple, unchanged: 0 };
    let row = match relation {
        Relation::Users => Row::User(Box::new(user(&mut columns)?)),
        Relation::Tweets => Row::Tweet(Box::new(tweet(&mut columns)?)),
        Relation::Follows => Row::Follow(Follow {
            follower_id: columns.int8(0)?,
            following_id: columns.int8(1)?,
            accepted: columns.bool(2)?,
            created_at: columns.timestamp(3)?,
        }),
        Relation::Likes => {
            Row::Like(Like { user_id: columns.int8(0)?, tweet_id: columns.int8(1)?, created_at: columns.timestamp(2)? })
        }
        Relation::Retweets => Row::Retweet(Retweet {
            id: columns.int8(0)?,
            user_id: columns.int8(1)?,
            tweet_id: columns.int8(2)?,
            created_at: columns.timestamp(3)?,
        }),
        Relation::Blocks => Row::Block(Block { blocker_id: columns.int8(0)?, blocked_id: columns.int8(1)? }),
        Relation::Mutes => Row::Mute(Mute { muter_id: columns.int8(0)?, muted_id: columns.int8(1)? }),
        Relation::Activity => Row::Activity(Activity { user_id: columns.int8(0)?, day: columns.date(1)? }),
        Relation::Popular => Row::Popular(Popular { user_id: columns.int8(0)? }),
        Relation::ReadMarks => {
            Row::ReadMark(ReadMark { user_id: columns.int8(0)?, notifications_id: columns.int8(1)? })
        }
    };
    Ok((row, columns.unchanged))
}

/// The primary key, from a tuple that may hold nothing else.
pub(super) fn key(relation: Relation, tuple: &Tuple<'_>) -> Result<Key, DecodeError> {
    let columns = Columns { relation, tuple, unchanged: 0 };
    let second = match (relation, relation.key_columns()) {
        (Relation::Activity, _) => i64::from(columns.date(1)?),
        (_, 2) => columns.int8(1)?,
        _ => 0,
    };
    Ok(Key { relation, first: columns.int8(0)?, second })
}

/// The row that cannot be read for the reason that `error` gives. Its key is looked for in the same tuple.
pub(super) fn unusable(relation: Relation, operation: Operation, tuple: &Tuple<'_>, error: &DecodeError) -> Unusable {
    let columns = relation.columns().iter().zip(kinds(relation)).zip(tuple);
    Unusable {
        relation,
        operation,
        key: key(relation, tuple).ok(),
        old_key: None,
        columns: columns.map(|((name, kind), value)| ((*name).to_owned(), field(*kind, *value))).collect(),
        reason: error.to_string(),
    }
}

/// What was sent of a value, in words where that is possible.
fn field(kind: Kind, value: Value<'_>) -> Field {
    let (bytes, words) = match value {
        Value::Null => return Field::Null,
        Value::Unchanged => return Field::Unsent,
        Value::Text(bytes) => (bytes, std::str::from_utf8(bytes).ok().map(str::to_owned)),
        Value::Binary(bytes) => (bytes, words(kind, bytes)),
    };
    words.map_or_else(|| Field::Bytes(bytes.to_vec()), Field::Text)
}

fn words(kind: Kind, bytes: &[u8]) -> Option<String> {
    let int8 = || bytes.try_into().ok().map(i64::from_be_bytes);
    let text = |bytes| std::str::from_utf8(bytes).ok().map(str::to_owned);
    match (kind, bytes) {
        (Kind::Int8, _) => int8().map(|value| value.to_string()),
        (Kind::Timestamp, _) => int8().map(|value| timestamp(value).to_string()),
        (Kind::Date, _) => bytes.try_into().ok().map(|value| date(i32::from_be_bytes(value)).to_string()),
        (Kind::Bool, [value]) => Some((*value != 0).to_string()),
        (Kind::Text, _) => text(bytes),
        (Kind::Json, [1, json @ ..]) => text(json),
        (Kind::Bool | Kind::Json, _) => None,
    }
}

fn user(columns: &mut Columns<'_>) -> Result<User, DecodeError> {
    Ok(User {
        id: columns.int8(0)?,
        username: columns.text(1)?,
        display_name: columns.text(2)?,
        bio: columns.optional_text(3)?,
        avatar_url: columns.optional_text(4)?,
        verified: columns.bool(5)?,
        protected: columns.bool(6)?,
        created_at: columns.timestamp(7)?,
        updated_at: columns.timestamp(8)?,
        deleted_at: columns.optional_timestamp(9)?,
    })
}

fn tweet(columns: &mut Columns<'_>) -> Result<Tweet, DecodeError> {
    Ok(Tweet {
        id: columns.int8(0)?,
        user_id: columns.int8(1)?,
        content: columns.text(2)?,
        reply_to_id: columns.optional_int8(3)?,
        conversation_id: columns.int8(4)?,
        media: columns.optional_json(5)?,
        created_at: columns.timestamp(6)?,
        updated_at: columns.timestamp(7)?,
        deleted_at: columns.optional_timestamp(8)?,
    })
}

/// The values of one tuple, read by column.
struct Columns<'a> {
    relation: Relation,
    tuple: &'a Tuple<'a>,
    unchanged: u32,
}

impl<'a> Columns<'a> {
    fn problem(&self, column: usize, problem: &'static str) -> DecodeError {
        let name = self.relation.columns().get(column).copied().unwrap_or("?");
        DecodeError::Value { table: self.relation.table(), column: name, problem }
    }

    fn bytes(&self, column: usize) -> Result<Option<&'a [u8]>, DecodeError> {
        match self.tuple.get(column) {
            Some(Value::Binary(bytes)) => Ok(Some(bytes)),
            Some(Value::Null) | None => Ok(None),
            Some(Value::Unchanged) => Err(self.problem(column, "was not sent, though it is never stored out of line")),
            Some(Value::Text(_)) => Err(self.problem(column, "was sent as text, though binary was asked for")),
        }
    }

    fn fixed<const N: usize>(&self, column: usize) -> Result<Option<[u8; N]>, DecodeError> {
        let Some(bytes) = self.bytes(column)? else { return Ok(None) };
        bytes.try_into().map(Some).map_err(|_| self.problem(column, "has the wrong length"))
    }

    fn required<T>(&self, column: usize, value: Option<T>) -> Result<T, DecodeError> {
        value.ok_or_else(|| self.problem(column, "is NULL, which Feedmill cannot take there"))
    }

    fn optional_int8(&self, column: usize) -> Result<Option<i64>, DecodeError> {
        Ok(self.fixed(column)?.map(i64::from_be_bytes))
    }

    fn int8(&self, column: usize) -> Result<i64, DecodeError> {
        self.required(column, self.optional_int8(column)?)
    }

    fn bool(&self, column: usize) -> Result<bool, DecodeError> {
        let [byte] = self.required(column, self.fixed(column)?)?;
        Ok(byte != 0)
    }

    fn optional_timestamp(&self, column: usize) -> Result<Option<Timestamp>, DecodeError> {
        Ok(self.fixed(column)?.map(i64::from_be_bytes).map(timestamp))
    }

    fn timestamp(&self, column: usize) -> Result<Timestamp, DecodeError> {
        self.required(column, self.optional_timestamp(column)?)
    }

    fn date(&self, column: usize) -> Result<i32, DecodeError> {
        Ok(date(i32::from_be_bytes(self.required(column, self.fixed(column)?)?)))
    }

    /// The text's bytes, or `None` for NULL and, with its bit set, for one that was not sent.
    fn text_bytes(&mut self, column: usize) -> Result<Option<&'a [u8]>, DecodeError> {
        if self.tuple.get(column) == Some(&Value::Unchanged) {
            self.unchanged |= 1 << column;
            return Ok(None);
        }
        self.bytes(column)
    }

    fn owned(&self, column: usize, bytes: &[u8]) -> Result<String, DecodeError> {
        let text = std::str::from_utf8(bytes).map_err(|_| self.problem(column, "is no UTF-8"))?;
        Ok(text.to_owned())
    }

    fn optional_text(&mut self, column: usize) -> Result<Option<String>, DecodeError> {
        let bytes = self.text_bytes(column)?;
        bytes.map(|bytes| self.owned(column, bytes)).transpose()
    }

    fn text(&mut self, column: usize) -> Result<String, DecodeError> {
        let text = self.optional_text(column)?;
        if text.is_none() && self.unchanged & 1 << column != 0 {
            return Ok(String::new());
        }
        self.required(column, text)
    }

    /// `jsonb` is sent as a version and its text, as PostgreSQL prints it.
    fn optional_json(&mut self, column: usize) -> Result<Option<String>, DecodeError> {
        match self.text_bytes(column)? {
            None => Ok(None),
            Some([1, text @ ..]) => self.owned(column, text).map(Some),
            Some(_) => Err(self.problem(column, "is jsonb of an unknown version")),
        }
    }
}

/// Microseconds since 2000 to microseconds since 1970. Infinities stay what they are; a finite time beyond year 294246
/// becomes the last finite one, as `feedmill_micros` in the migrations says it too.
pub(super) fn timestamp(micros: i64) -> Timestamp {
    match micros {
        i64::MAX | i64::MIN => micros,
        _ => micros.saturating_add(EPOCH_MICROS).min(i64::MAX - 1),
    }
}

/// Days since 2000 to days since 1970. Infinities stay what they are. No finite date reaches the limits: the last one is
/// in the year 5874897.
fn date(days: i32) -> i32 {
    if days == i32::MAX || days == i32::MIN { days } else { days.saturating_add(EPOCH_DAYS) }
}

/// Microseconds since 1970 to microseconds since 2000.
pub(super) fn server_time(micros: Timestamp) -> i64 {
    micros.saturating_sub(EPOCH_MICROS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_relation_fits_and_every_column_has_a_kind() {
        for relation in Relation::ALL {
            assert_eq!(relation.columns().len(), kinds(relation).len(), "{relation:?}");
            assert!(relation.columns().len() <= COLUMNS_MAX);
        }
    }

    #[test]
    fn times_far_away_stay_in_order() {
        let times = [i64::MIN, -211_813_488_000_000_000, 0, 9_223_371_331_199_999_999, i64::MAX].map(timestamp);
        assert_eq!(times, [i64::MIN, -210_866_803_200_000_000, EPOCH_MICROS, i64::MAX - 1, i64::MAX]);
        assert_eq!(server_time(timestamp(42)), 42);
    }

    #[test]
    fn what_is_not_a_value_is_named() {
        let mut tuple = [Value::Null; COLUMNS_MAX];
        let problem = |tuple: &Tuple<'_>| row(Relation::Popular, tuple).expect_err("no row").to_string();
        assert!(problem(&tuple).contains("popular.user_id is NULL"));
        tuple[0] = Value::Binary(&[0; 4]);
        assert!(problem(&tuple).contains("wrong length"));
        tuple[0] = Value::Unchanged;
        assert!(problem(&tuple).contains("never stored out of line"));
        tuple[0] = Value::Text(b"1");
        assert!(problem(&tuple).contains("as text"));
    }

    #[test]
    fn a_key_needs_only_its_columns() {
        let mut tuple = [Value::Null; COLUMNS_MAX];
        tuple[0] = Value::Binary(&[0xFF; 8]);
        tuple[1] = Value::Binary(&[0, 0, 0, 1]);
        let expected = Key { relation: Relation::Activity, first: -1, second: 10_958 };
        assert_eq!(key(Relation::Activity, &tuple), Ok(expected));
        assert_eq!(key(Relation::Users, &tuple).map(|key| key.second), Ok(0));
    }
}
