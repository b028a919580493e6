//! Rows and keys as JSON objects: the columns of the table by name, with the types that Debezium gives them.
//!
//! `bigint` and `integer` are numbers, `date` is days since 1970 (`io.debezium.time.Date`), `timestamptz` a text
//! (`io.debezium.time.ZonedTimestamp`), and `jsonb` a text that holds JSON (`io.debezium.data.Json`).

use feedmill_model::{
    Activity, Block, Follow, Key, Like, Mute, Popular, ReadMark, Relation, Retweet, Row, Timestamp, Tweet, User,
};
use serde::de::Error as _;
use serde::ser::SerializeMap;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::zoned;

/// Under which name a key says of which table it is, in a topic of several tables.
pub(super) const TABLE_OF_KEY: &str = "__dbz__physicalTableIdentifier";

#[derive(Serialize, Deserialize)]
#[serde(remote = "User")]
struct UserColumns {
    id: i64,
    username: String,
    display_name: String,
    bio: Option<String>,
    avatar_url: Option<String>,
    verified: bool,
    protected: bool,
    #[serde(with = "zoned")]
    created_at: Timestamp,
    #[serde(with = "zoned")]
    updated_at: Timestamp,
    #[serde(with = "zoned::option")]
    deleted_at: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Tweet")]
struct TweetColumns {
    id: i64,
    user_id: i64,
    content: String,
    reply_to_id: Option<i64>,
    conversation_id: i64,
    media: Option<String>,
    #[serde(with = "zoned")]
    created_at: Timestamp,
    #[serde(with = "zoned")]
    updated_at: Timestamp,
    #[serde(with = "zoned::option")]
    deleted_at: Option<Timestamp>,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Follow")]
struct FollowColumns {
    follower_id: i64,
    following_id: i64,
    accepted: bool,
    #[serde(with = "zoned")]
    created_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Like")]
struct LikeColumns {
    user_id: i64,
    tweet_id: i64,
    #[serde(with = "zoned")]
    created_at: Timestamp,
}

#[derive(Serialize, Deserialize)]
#[serde(remote = "Retweet")]
struct RetweetColumns {
    id: i64,
    user_id: i64,
    tweet_id: i64,
    #[serde(with = "zoned")]
    created_at: Timestamp,
}

/// A row as its columns. The other relations have none whose form differs.
pub(super) struct Columns<'a>(pub &'a Row);

impl Serialize for Columns<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Row::User(row) => UserColumns::serialize(row, serializer),
            Row::Tweet(row) => TweetColumns::serialize(row, serializer),
            Row::Follow(row) => FollowColumns::serialize(row, serializer),
            Row::Like(row) => LikeColumns::serialize(row, serializer),
            Row::Retweet(row) => RetweetColumns::serialize(row, serializer),
            Row::Block(row) => row.serialize(serializer),
            Row::Mute(row) => row.serialize(serializer),
            Row::Activity(row) => row.serialize(serializer),
            Row::Popular(row) => row.serialize(serializer),
            Row::ReadMark(row) => row.serialize(serializer),
        }
    }
}

/// The row of a relation whose columns these are.
pub(super) fn row<'de, D: Deserializer<'de>>(relation: Relation, json: D) -> Result<Row, D::Error> {
    Ok(match relation {
        Relation::Users => Row::User(Box::new(UserColumns::deserialize(json)?)),
        Relation::Tweets => Row::Tweet(Box::new(TweetColumns::deserialize(json)?)),
        Relation::Follows => Row::Follow(FollowColumns::deserialize(json)?),
        Relation::Likes => Row::Like(LikeColumns::deserialize(json)?),
        Relation::Retweets => Row::Retweet(RetweetColumns::deserialize(json)?),
        Relation::Blocks => Row::Block(Block::deserialize(json)?),
        Relation::Mutes => Row::Mute(Mute::deserialize(json)?),
        Relation::Activity => Row::Activity(Activity::deserialize(json)?),
        Relation::Popular => Row::Popular(Popular::deserialize(json)?),
        Relation::ReadMarks => Row::ReadMark(ReadMark::deserialize(json)?),
    })
}

/// A key as the columns of the primary key, and of which table it is where that is not told by the topic.
pub(super) struct KeyColumns<'a> {
    pub key: &'a Key,
    pub table: Option<&'a str>,
}

impl Serialize for KeyColumns<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let relation = self.key.relation;
        let mut columns = serializer.serialize_map(None)?;
        let values = [self.key.first, self.key.second];
        for (name, value) in relation.columns().iter().zip(values).take(relation.key_columns()) {
            columns.serialize_entry(name, &value)?;
        }
        if let Some(table) = self.table {
            columns.serialize_entry(TABLE_OF_KEY, table)?;
        }
        columns.end()
    }
}

/// The key whose columns these are; `relation` gives the relation of a table that the key names, or that of the topic.
pub(super) fn key(bytes: &[u8], relation: impl Fn(Option<&str>) -> Option<Relation>) -> Result<Key, serde_json::Error> {
    let columns: serde_json::Map<String, serde_json::Value> = serde_json::from_slice(bytes)?;
    let table = columns.get(TABLE_OF_KEY).and_then(|table| table.as_str());
    let relation = relation(table).ok_or_else(|| serde_json::Error::custom("it is of no table that is known"))?;
    let mut values = relation.columns().iter().take(relation.key_columns()).map(|name| {
        let value = columns.get(*name).and_then(serde_json::Value::as_i64);
        value.ok_or_else(|| serde_json::Error::custom(format!("the column {name} is missing")))
    });
    let first = values.next().unwrap_or(Ok(0))?;
    let second = values.next().unwrap_or(Ok(0))?;
    Ok(Key { relation, first, second })
}

/// JSON in bytes, appended.
pub(super) fn append<V: Serialize>(bytes: &mut Vec<u8>, value: &V) -> Result<(), serde_json::Error> {
    serde_json::to_writer(bytes, value)
}
