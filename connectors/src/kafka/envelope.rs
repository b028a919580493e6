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

use feedmill_model::{Change, Key, Position, Relation, Row};
use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::columns::{self, Columns, KeyColumns};

/// A part of a value as it is written, for the values that have it in common.
pub(super) type Written = Box<RawValue>;

/// What the records of a batch have in common.
#[derive(Clone, Copy, Debug)]
pub(super) struct Of<'a> {
    pub prefix: &'a str,
    pub database: &'a str,
    pub position: Position,
}

#[derive(Serialize)]
struct Envelope<'a> {
    before: Option<Columns<'a>>,
    after: Option<&'a RawValue>,
    source: &'a RawValue,
    op: &'static str,
    ts_ms: u64,
    transaction: Option<Transaction<'a>>,
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

/// Which place a change has in its batch.
#[derive(Clone, Copy, Debug, Serialize)]
pub(super) struct Transaction<'a> {
    pub id: &'a str,
    pub total_order: u64,
    pub data_collection_order: u64,
}

impl<'a> Of<'a> {
    /// What the values of a relation's changes, or of its rows, have in common.
    pub fn source(&self, relation: Relation, snapshot: bool) -> Result<Written, serde_json::Error> {
        to_raw_value(&Source {
            version: env!("CARGO_PKG_VERSION"),
            connector: "postgresql",
            name: self.prefix,
            ts_ms: self.position.time,
            snapshot: if snapshot { "true" } else { "false" },
            db: self.database,
            schema: "public",
            table: relation.table(),
            transaction_id: None,
            lsn: self.position.lsn.0,
            xmin: None,
        })
    }

    /// Appends the value of a change, of which `after` is the new row.
    pub fn append_change(
        &self,
        bytes: &mut Vec<u8>,
        change: &Change,
        after: Option<&RawValue>,
        source: &RawValue,
        transaction: Transaction<'_>,
    ) -> Result<(), serde_json::Error> {
        let op = match (&change.old, &change.new) {
            (None, _) => "c",
            (Some(_), Some(_)) => "u",
            (Some(_), None) => "d",
        };
        let envelope = Envelope {
            before: change.old.as_ref().map(Columns),
            after,
            source,
            op,
            ts_ms: self.position.time,
            transaction: Some(transaction),
        };
        columns::append(bytes, &envelope)
    }

    /// Appends the value of a row as it is.
    pub fn append_row(&self, bytes: &mut Vec<u8>, row: &RawValue, source: &RawValue) -> Result<(), serde_json::Error> {
        let envelope =
            Envelope { before: None, after: Some(row), source, op: "r", ts_ms: self.position.time, transaction: None };
        columns::append(bytes, &envelope)
    }
}

/// A row, for the values that have it.
pub(super) fn row(row: &Row) -> Result<Written, serde_json::Error> {
    to_raw_value(&Columns(row))
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
    let row = |columns: Option<&RawValue>| columns.map(|columns| columns::row(relation, columns)).transpose();
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

    fn encoded(change: &Change, relation: Relation) -> Vec<u8> {
        let mut bytes = Vec::new();
        let transaction = Transaction { id: "1:0/1", total_order: 5, data_collection_order: 2 };
        let after = change.new.as_ref().map(|row| super::row(row).expect("it can be written"));
        let source = OF.source(relation, false).expect("it can be written");
        OF.append_change(&mut bytes, change, after.as_deref(), &source, transaction).expect("it can be written");
        bytes
    }

    #[test]
    fn every_row_comes_back_as_it_was() {
        for row in rows() {
            for change in [
                Change { old: None, new: Some(row.clone()) },
                Change { old: Some(row.clone()), new: Some(row.clone()) },
                Change { old: Some(row.clone()), new: None },
            ] {
                let value = encoded(&change, row.relation());
                assert_eq!(super::change(&value).expect("it is read"), change);
            }
            let mut value = Vec::new();
            let source = OF.source(row.relation(), true).expect("it can be written");
            let written = super::row(&row).expect("it can be written");
            OF.append_row(&mut value, &written, &source).expect("it can be written");
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
        let value: Value = serde_json::from_slice(&encoded(&Change { old: None, new: Some(row) }, Relation::Retweets))
            .expect("it is JSON");
        assert_eq!(
            value,
            json!({
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
                "transaction": { "id": "1:0/1", "total_order": 5, "data_collection_order": 2 }
            })
        );
    }

    #[test]
    fn what_is_no_envelope_is_refused() {
        for value in ["", "{}", r#"{"before":null,"after":{"id":1},"source":{"table":"users"}}"#] {
            assert!(change(value.as_bytes()).is_err(), "{value}");
        }
        assert!(change(br#"{"before":null,"after":null,"source":{"table":"other"}}"#).is_err());
    }
}
