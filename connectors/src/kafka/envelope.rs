//! A change in Debezium's envelope, as its PostgreSQL connector with `schemas.enable=false` writes it.
//!
//! ```text
//!   key    {"id": 7}
//!   value  {"before": {…}, "after": {…}, "source": {… "table": "tweets", "lsn": 123 …}, "op": "u", "ts_ms": Time,
//!           "transaction": {"id": "Time:LSN", "total_order": 5, "data_collection_order": 2}}
//! ```
//!
//! What differs: `transaction` is the batch, which may be several transactions of the source, of which a row's change is the
//! sum; `ts_ms` is the batch's Time in both places. In a row topic each value is a read (`r`) of the row as it is, and a row
//! that is gone has a tombstone.

use std::borrow::Cow;
use std::ops::Range;

use feedmill_model::{Change, Key, Position, Relation, Row};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::columns::{self, Columns, KeyColumns};

/// What the records of a batch have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Of<'a> {
    pub prefix: &'a str,
    pub database: &'a str,
    pub position: Position,
}

/// What every source says of itself.
pub(super) const VERSION: &str = env!("CARGO_PKG_VERSION");
pub(super) const CONNECTOR: &str = "postgresql";
pub(super) const SCHEMA: &str = "public";

impl Of<'_> {
    /// Names the batch, as one transaction.
    pub fn transaction_id(&self) -> String {
        format!("{}:{}", self.position.time, self.position.lsn)
    }
}

/// What a change does to its row.
pub(super) fn op(change: &Change) -> &'static str {
    match (&change.old, &change.new) {
        (None, _) => "c",
        (Some(_), Some(_)) => "u",
        (Some(_), None) => "d",
    }
}

/// Which place a change has in its batch, and of those of its relation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Order {
    pub total: u64,
    pub data_collection: u64,
}

#[derive(Serialize)]
struct Source<'a> {
    version: &'static str,
    connector: &'static str,
    name: &'a str,
    ts_ms: u64,
    snapshot: &'static str,
    db: &'a str,
    schema: &'static str,
    table: &'static str,
    #[serde(rename = "txId")]
    transaction_id: Option<u64>,
    lsn: u64,
    xmin: Option<u64>,
}

/// Writes the values of a batch. Most of a small one is the same for all of a relation, and is written once.
pub(super) struct Values<'a> {
    of: Of<'a>,
    is_snapshot: bool,
    /// For each relation, what comes between the rows and the operation.
    sources: [Vec<u8>; Relation::ALL.len()],
    /// What comes between the operation and the numbers of a change.
    transaction: Vec<u8>,
}

impl<'a> Values<'a> {
    pub fn new(of: Of<'a>, is_snapshot: bool) -> Self {
        let (time, id) = (of.position.time, of.transaction_id());
        let transaction = format!(r#"","ts_ms":{time},"transaction":{{"id":"{id}","total_order":"#);
        Values { of, is_snapshot, sources: Default::default(), transaction: transaction.into_bytes() }
    }

    /// Appends the value of a change, and says where in the bytes the new row is.
    pub fn append_change(
        &mut self,
        bytes: &mut Vec<u8>,
        relation: Relation,
        change: &Change,
        order: Order,
    ) -> Result<Option<Range<usize>>, serde_json::Error> {
        bytes.extend_from_slice(br#"{"before":"#);
        columns::append(bytes, &change.old.as_ref().map(Columns))?;
        bytes.extend_from_slice(br#","after":"#);
        let begin = bytes.len();
        columns::append(bytes, &change.new.as_ref().map(Columns))?;
        let after = begin..bytes.len();
        bytes.extend_from_slice(self.source(relation)?);
        bytes.extend_from_slice(op(change).as_bytes());
        bytes.extend_from_slice(&self.transaction);
        columns::append(bytes, &order.total)?;
        bytes.extend_from_slice(br#","data_collection_order":"#);
        columns::append(bytes, &order.data_collection)?;
        bytes.extend_from_slice(b"}}");
        Ok(change.new.is_some().then_some(after))
    }

    /// Appends the value of a row as it is.
    pub fn append_row(&mut self, bytes: &mut Vec<u8>, row: &Row) -> Result<(), serde_json::Error> {
        bytes.extend_from_slice(br#"{"before":null,"after":"#);
        columns::append(bytes, &Columns(row))?;
        self.end_row(bytes, row.relation())
    }

    /// Appends the value of a row that is in the bytes already.
    pub fn append_row_again(
        &mut self,
        bytes: &mut Vec<u8>,
        relation: Relation,
        row: Range<usize>,
    ) -> Result<(), serde_json::Error> {
        bytes.extend_from_slice(br#"{"before":null,"after":"#);
        bytes.extend_from_within(row);
        self.end_row(bytes, relation)
    }

    fn end_row(&mut self, bytes: &mut Vec<u8>, relation: Relation) -> Result<(), serde_json::Error> {
        bytes.extend_from_slice(self.source(relation)?);
        bytes.extend_from_slice(br#"r","ts_ms":"#);
        columns::append(bytes, &self.of.position.time)?;
        bytes.extend_from_slice(br#","transaction":null}"#);
        Ok(())
    }

    fn source(&mut self, relation: Relation) -> Result<&[u8], serde_json::Error> {
        let Values { of, is_snapshot, sources, .. } = self;
        let number = Relation::ALL.iter().position(|known| *known == relation);
        let Some(written) = number.and_then(|number| sources.get_mut(number)) else { return Ok(&[]) };
        if written.is_empty() {
            let source = Source {
                version: VERSION,
                connector: CONNECTOR,
                name: of.prefix,
                ts_ms: of.position.time,
                snapshot: if *is_snapshot { "true" } else { "false" },
                db: of.database,
                schema: SCHEMA,
                table: relation.table(),
                transaction_id: None,
                lsn: of.position.lsn.0,
                xmin: None,
            };
            written.extend_from_slice(br#","source":"#);
            columns::append(written, &source)?;
            written.extend_from_slice(br#","op":""#);
        }
        Ok(written)
    }
}

/// Appends a key; `table` names it in a topic of several tables.
pub(super) fn append_key(bytes: &mut Vec<u8>, key: &Key, table: Option<&str>) -> Result<(), serde_json::Error> {
    columns::append(bytes, &KeyColumns { key, table })
}

/// What is read of a value.
#[derive(Deserialize)]
struct Read<'a> {
    #[serde(borrow)]
    before: Option<&'a RawValue>,
    #[serde(borrow)]
    after: Option<&'a RawValue>,
    #[serde(borrow)]
    source: ReadSource<'a>,
}

#[derive(Deserialize)]
struct ReadSource<'a> {
    #[serde(borrow)]
    table: Cow<'a, str>,
}

/// The change that a value tells of, which for a row as it is has no old row.
pub(super) fn change(value: &[u8]) -> Result<Change, serde_json::Error> {
    let Read { before, after, source } = serde_json::from_slice(value)?;
    let relation = Relation::ALL.into_iter().find(|relation| relation.table() == source.table);
    let unknown = || serde::de::Error::custom(format!("there is no table {}", source.table));
    let relation = relation.ok_or_else(unknown)?;
    let row = |columns: Option<&RawValue>| {
        let columns = columns.map(|columns| serde_json::Deserializer::from_str(columns.get()));
        columns.map(|mut columns| columns::row(relation, &mut columns)).transpose()
    };
    Ok(Change { old: row(before)?, new: row(after)? })
}

#[cfg(test)]
mod tests {
    use feedmill_model::{
        Activity, Block, Follow, Like, Lsn, Mute, Popular, ReadMark, Retweet, Timestamp, Tweet, User,
    };
    use serde_json::{Value, json};

    use super::*;

    const OF: Of<'_> = Of {
        prefix: "feedmill",
        database: "social",
        position: Position { time: 1_700_000_000_123, lsn: Lsn(24_023_128) },
    };

    /// A row of each relation, with what can be odd in it.
    fn rows() -> [Row; 10] {
        [
            Row::User(Box::new(User {
                id: i64::MAX,
                username: "ada".to_owned(),
                display_name: "Ada \"L.\" \u{1F980}\n".to_owned(),
                bio: Some(String::new()),
                avatar_url: None,
                verified: true,
                protected: false,
                created_at: 1_700_000_000_123_456,
                updated_at: Timestamp::MAX,
                deleted_at: Some(Timestamp::MIN),
            })),
            Row::Tweet(Box::new(Tweet {
                id: i64::MIN,
                content: "null".to_owned(),
                media: Some("[{\"url\": \"x\"}]".to_owned()),
                reply_to_id: Some(-1),
                ..Tweet::default()
            })),
            Row::Follow(Follow { follower_id: 1, following_id: 2, accepted: false, created_at: -1 }),
            Row::Like(Like { user_id: 1, tweet_id: 2, created_at: 0 }),
            Row::Retweet(Retweet { id: 3, user_id: 1, tweet_id: 2, created_at: 5 }),
            Row::Block(Block { blocker_id: 1, blocked_id: 2 }),
            Row::Mute(Mute { muter_id: 1, muted_id: 2 }),
            Row::Activity(Activity { user_id: 1, day: -7 }),
            Row::Popular(Popular { user_id: 1 }),
            Row::ReadMark(ReadMark { user_id: 1, notifications_id: 1 << 60 }),
        ]
    }

    /// The value of a change, and that of its row, which has it from there.
    fn encoded(change: &Change, relation: Relation) -> (Vec<u8>, Option<Vec<u8>>) {
        let mut values = Values::new(OF, false);
        let mut bytes = Vec::new();
        let order = Order { total: 5, data_collection: 2 };
        let after = values.append_change(&mut bytes, relation, change, order).expect("it can be written");
        let end = bytes.len();
        let row = after.map(|after| {
            values.append_row_again(&mut bytes, relation, after).expect("it can be written");
            bytes.split_off(end)
        });
        (bytes, row)
    }

    #[test]
    fn every_row_comes_back_as_it_was() {
        for row in rows() {
            for change in [
                Change { old: None, new: Some(row.clone()) },
                Change { old: Some(row.clone()), new: Some(row.clone()) },
                Change { old: Some(row.clone()), new: None },
            ] {
                let (value, after) = encoded(&change, row.relation());
                assert_eq!(super::change(&value).expect("it is read"), change);
                let after = after.map(|after| super::change(&after).expect("it is read"));
                let expected = change.new.map(|row| Change { old: None, new: Some(row) });
                assert_eq!(after, expected);
            }
            let mut value = Vec::new();
            Values::new(OF, true).append_row(&mut value, &row).expect("it can be written");
            assert_eq!(super::change(&value).expect("it is read"), Change { old: None, new: Some(row) });
        }
    }

    #[test]
    fn keys_come_back_and_name_their_table_where_the_topic_does_not() {
        for row in rows() {
            let key = row.key();
            for table in [None, Some("feedmill.public.likes")] {
                let mut bytes = Vec::new();
                append_key(&mut bytes, &key, table).expect("it can be written");
                let read = columns::key(&bytes, |named| {
                    assert_eq!(named, table);
                    Some(key.relation)
                });
                assert_eq!(read.expect("it is read"), key);
            }
        }
        let mut bytes = Vec::new();
        append_key(&mut bytes, &rows()[2].key(), None).expect("it can be written");
        assert_eq!(bytes, br#"{"follower_id":1,"following_id":2}"#);
        assert!(columns::key(br#"{"id":1}"#, |_| Some(Relation::Follows)).is_err());
    }

    /// By the documentation of Debezium's PostgreSQL connector, "change events".
    #[test]
    fn a_value_has_what_debezium_documents() {
        let row = rows()[4].clone();
        let (value, as_it_is) = encoded(&Change { old: None, new: Some(row) }, Relation::Retweets);
        let value: Value = serde_json::from_slice(&value).expect("it is JSON");
        let expected = json!({
            "before": null,
            "after": { "id": 3, "user_id": 1, "tweet_id": 2, "created_at": "1970-01-01T00:00:00.000005Z" },
            "source": {
                "version": env!("CARGO_PKG_VERSION"),
                "connector": "postgresql",
                "name": "feedmill",
                "ts_ms": 1_700_000_000_123_u64,
                "snapshot": "false",
                "db": "social",
                "schema": "public",
                "table": "retweets",
                "txId": null,
                "lsn": 24_023_128,
                "xmin": null
            },
            "op": "c",
            "ts_ms": 1_700_000_000_123_u64,
            "transaction": {
                "id": format!("{}:{}", OF.position.time, OF.position.lsn),
                "total_order": 5,
                "data_collection_order": 2
            }
        });
        assert_eq!(value, expected);
        let mut row = expected;
        row["op"] = "r".into();
        row["transaction"] = Value::Null;
        let as_it_is: Value = serde_json::from_slice(&as_it_is.expect("there is a row")).expect("it is JSON");
        assert_eq!(as_it_is, row);
    }

    #[test]
    fn what_is_no_envelope_is_refused() {
        for value in ["", "{}", r#"{"before":null,"after":{"id":1},"source":{"table":"users"}}"#] {
            assert!(change(value.as_bytes()).is_err(), "{value}");
        }
        assert!(change(br#"{"before":null,"after":null,"source":{"table":"other"}}"#).is_err());
    }
}
