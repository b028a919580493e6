//! The same envelope as Avro, in the wire format of Confluent's schema registry: a zero byte, the id of the schema, the datum.
//!
//! ```text
//!   key    Key { id }
//!   value  Envelope { before: Value?, after: Value?, source, transaction: block?, op, ts_ms }
//! ```
//!
//! Names and `connect.name`s are those of Debezium's converter. What may be null in the table may be null here, by default: so a
//! column that is added later, and may be null, makes a schema that is compatible with the one before.
//!
//! Data are written here, since a row is known at compile time; they are read by the schema that they were written with, which
//! may be of another version, column by column.

use std::ops::Range;

use apache_avro::Schema;
use apache_avro::types::Value;
use feedmill_model::{Change, Key, Relation, Row, Timestamp};
use serde_json::{Value as Json, json};

use super::columns;
use super::envelope::{CONNECTOR, Of, Order, SCHEMA, VERSION, op};
use super::zoned::Text;

/// What a value or a key begins with.
const MAGIC: u8 = 0;
/// The second of a union of null and something.
const SOME: i64 = 1;
const NONE: i64 = 0;

/// Names of `subject`'s schemas: parts of letters, digits and underscores.
fn namespace(prefix: &str, relation: Relation) -> String {
    let is_word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let part = |part: &str| {
        let word: String = part.chars().map(|c| if is_word(c) { c } else { '_' }).collect();
        if word.starts_with(|first: char| first.is_ascii_digit()) || word.is_empty() {
            format!("_{word}")
        } else {
            word
        }
    };
    let prefix = prefix.split('.').map(part).collect::<Vec<_>>().join(".");
    format!("{prefix}.public.{}", relation.table())
}

/// The schema of a relation's keys.
pub(super) fn key_schema(prefix: &str, relation: Relation) -> String {
    let namespace = namespace(prefix, relation);
    let columns = relation.columns().iter().take(relation.key_columns());
    let fields: Vec<Json> = columns.map(|column| field(column)).collect();
    json!({
        "type": "record",
        "name": "Key",
        "namespace": namespace,
        "fields": fields,
        "connect.name": format!("{namespace}.Key"),
    })
    .to_string()
}

/// The schema of a relation's values.
pub(super) fn value_schema(prefix: &str, relation: Relation) -> String {
    let namespace = namespace(prefix, relation);
    let fields: Vec<Json> = relation.columns().iter().map(|column| field(column)).collect();
    let row = json!({
        "type": "record",
        "name": "Value",
        "fields": fields,
        "connect.name": format!("{namespace}.Value"),
    });
    let optional = |name: &str, of: Json| json!({ "name": name, "type": ["null", of], "default": null });
    let plain = |name: &str, of: &str| json!({ "name": name, "type": of });
    let source = json!({
        "type": "record",
        "name": "Source",
        "namespace": "io.debezium.connector.postgresql",
        "fields": [
            plain("version", "string"),
            plain("connector", "string"),
            plain("name", "string"),
            plain("ts_ms", "long"),
            { "name": "snapshot", "type": ["string", "null"], "default": "false" },
            plain("db", "string"),
            plain("schema", "string"),
            plain("table", "string"),
            optional("txId", json!("long")),
            optional("lsn", json!("long")),
            optional("xmin", json!("long")),
        ],
        "connect.name": "io.debezium.connector.postgresql.Source",
    });
    let block = json!({
        "type": "record",
        "name": "block",
        "namespace": "event",
        "fields": [plain("id", "string"), plain("total_order", "long"), plain("data_collection_order", "long")],
        "connect.name": "event.block",
    });
    json!({
        "type": "record",
        "name": "Envelope",
        "namespace": namespace,
        "fields": [
            optional("before", row),
            optional("after", json!("Value")),
            { "name": "source", "type": source },
            optional("transaction", block),
            plain("op", "string"),
            optional("ts_ms", json!("long")),
        ],
        "connect.name": format!("{namespace}.Envelope"),
    })
    .to_string()
}

/// A column, by its name, which has one type in whatever table it is.
fn field(column: &str) -> Json {
    let named = |of: &str, name: &str| json!({ "type": of, "connect.version": 1, "connect.name": name });
    let time = || named("string", "io.debezium.time.ZonedTimestamp");
    let (of, is_optional) = match column {
        "username" | "display_name" | "content" => (json!("string"), false),
        "bio" | "avatar_url" => (json!("string"), true),
        "media" => (named("string", "io.debezium.data.Json"), true),
        "verified" | "protected" | "accepted" => (json!("boolean"), false),
        "created_at" | "updated_at" => (time(), false),
        "deleted_at" => (time(), true),
        "day" => (named("int", "io.debezium.time.Date"), false),
        "reply_to_id" => (json!("long"), true),
        _ => (json!("long"), false),
    };
    if is_optional {
        json!({ "name": column, "type": ["null", of], "default": null })
    } else {
        json!({ "name": column, "type": of })
    }
}

/// Numbers are shorter the nearer to zero they are.
fn long(bytes: &mut Vec<u8>, number: i64) {
    let mut rest = ((number << 1) ^ (number >> 63)).cast_unsigned();
    while rest >= 0x80 {
        bytes.push((rest & 0x7f) as u8 | 0x80);
        rest >>= 7;
    }
    bytes.push(rest as u8);
}

fn text(bytes: &mut Vec<u8>, text: &str) {
    long(bytes, i64::try_from(text.len()).unwrap_or(i64::MAX));
    bytes.extend_from_slice(text.as_bytes());
}

fn time(bytes: &mut Vec<u8>, at: Timestamp) {
    text(bytes, Text::of(at).as_str());
}

fn optional<V>(bytes: &mut Vec<u8>, value: Option<V>, write: impl FnOnce(&mut Vec<u8>, V)) {
    match value {
        Some(value) => {
            long(bytes, SOME);
            write(bytes, value);
        }
        None => long(bytes, NONE),
    }
}

/// Appends a row, column by column.
fn row(bytes: &mut Vec<u8>, row: &Row) {
    match row {
        Row::User(row) => {
            long(bytes, row.id);
            text(bytes, &row.username);
            text(bytes, &row.display_name);
            optional(bytes, row.bio.as_deref(), text);
            optional(bytes, row.avatar_url.as_deref(), text);
            bytes.extend([u8::from(row.verified), u8::from(row.protected)]);
            time(bytes, row.created_at);
            time(bytes, row.updated_at);
            optional(bytes, row.deleted_at, time);
        }
        Row::Tweet(row) => {
            long(bytes, row.id);
            long(bytes, row.user_id);
            text(bytes, &row.content);
            optional(bytes, row.reply_to_id, long);
            long(bytes, row.conversation_id);
            optional(bytes, row.media.as_deref(), text);
            time(bytes, row.created_at);
            time(bytes, row.updated_at);
            optional(bytes, row.deleted_at, time);
        }
        Row::Follow(row) => {
            long(bytes, row.follower_id);
            long(bytes, row.following_id);
            bytes.push(u8::from(row.accepted));
            time(bytes, row.created_at);
        }
        Row::Like(row) => {
            long(bytes, row.user_id);
            long(bytes, row.tweet_id);
            time(bytes, row.created_at);
        }
        Row::Retweet(row) => {
            long(bytes, row.id);
            long(bytes, row.user_id);
            long(bytes, row.tweet_id);
            time(bytes, row.created_at);
        }
        Row::Block(row) => {
            long(bytes, row.blocker_id);
            long(bytes, row.blocked_id);
        }
        Row::Mute(row) => {
            long(bytes, row.muter_id);
            long(bytes, row.muted_id);
        }
        Row::Activity(row) => {
            long(bytes, row.user_id);
            long(bytes, row.day.into());
        }
        Row::Popular(row) => long(bytes, row.user_id),
        Row::ReadMark(row) => {
            long(bytes, row.user_id);
            long(bytes, row.notifications_id);
        }
    }
}

/// The ids of the schemas of a topic.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Ids {
    pub key: u32,
    pub value: u32,
}

/// Writes the values of a batch.
pub(super) struct Values<'a> {
    of: Of<'a>,
    is_snapshot: bool,
    /// Names the batch.
    id: String,
}

impl<'a> Values<'a> {
    pub fn new(of: Of<'a>, is_snapshot: bool) -> Self {
        Values { of, is_snapshot, id: of.transaction_id() }
    }

    /// Appends the value of a change, and says where in the bytes the new row is.
    pub fn append_change(
        &self,
        bytes: &mut Vec<u8>,
        schema: u32,
        relation: Relation,
        change: &Change,
        order: Order,
    ) -> Option<Range<usize>> {
        begin(bytes, schema);
        optional(bytes, change.old.as_ref(), row);
        let after = match &change.new {
            Some(new) => {
                long(bytes, SOME);
                let begin = bytes.len();
                row(bytes, new);
                Some(begin..bytes.len())
            }
            None => {
                long(bytes, NONE);
                None
            }
        };
        self.source(bytes, relation);
        long(bytes, SOME);
        text(bytes, &self.id);
        for number in [order.total, order.data_collection] {
            long(bytes, number.cast_signed());
        }
        self.end(bytes, op(change));
        after
    }

    /// Appends the value of a row as it is.
    pub fn append_row(&self, bytes: &mut Vec<u8>, schema: u32, new: &Row) {
        begin(bytes, schema);
        long(bytes, NONE);
        long(bytes, SOME);
        row(bytes, new);
        self.end_row(bytes, new.relation());
    }

    /// Appends the value of a row that is in the bytes already.
    pub fn append_row_again(&self, bytes: &mut Vec<u8>, schema: u32, relation: Relation, row: Range<usize>) {
        begin(bytes, schema);
        long(bytes, NONE);
        long(bytes, SOME);
        bytes.extend_from_within(row);
        self.end_row(bytes, relation);
    }

    fn end_row(&self, bytes: &mut Vec<u8>, relation: Relation) {
        self.source(bytes, relation);
        long(bytes, NONE);
        self.end(bytes, "r");
    }

    fn source(&self, bytes: &mut Vec<u8>, relation: Relation) {
        text(bytes, VERSION);
        text(bytes, CONNECTOR);
        text(bytes, self.of.prefix);
        long(bytes, self.of.position.time.cast_signed());
        // The first of that union is the text.
        long(bytes, 0);
        text(bytes, if self.is_snapshot { "true" } else { "false" });
        text(bytes, self.of.database);
        text(bytes, SCHEMA);
        text(bytes, relation.table());
        long(bytes, NONE);
        optional(bytes, Some(self.of.position.lsn.0.cast_signed()), long);
        long(bytes, NONE);
    }

    fn end(&self, bytes: &mut Vec<u8>, op: &str) {
        text(bytes, op);
        optional(bytes, Some(self.of.position.time.cast_signed()), long);
    }
}

/// Appends a key.
pub(super) fn append_key(bytes: &mut Vec<u8>, schema: u32, key: &Key) {
    begin(bytes, schema);
    for number in [key.first, key.second].into_iter().take(key.relation.key_columns()) {
        long(bytes, number);
    }
}

fn begin(bytes: &mut Vec<u8>, schema: u32) {
    bytes.push(MAGIC);
    bytes.extend_from_slice(&schema.to_be_bytes());
}

/// The id of the schema of what is Avro, and the datum.
pub(super) fn parts(bytes: &[u8]) -> Option<(u32, &[u8])> {
    let (magic, rest) = bytes.split_first()?;
    let (id, datum) = rest.split_first_chunk::<4>()?;
    (*magic == MAGIC).then_some((u32::from_be_bytes(*id), datum))
}

/// The change that a value tells of, which was written with `schema`.
pub(super) fn change(schema: &Schema, mut datum: &[u8]) -> Result<Change, String> {
    let value = apache_avro::from_avro_datum(schema, &mut datum, None).map_err(|error| error.to_string())?;
    let Json::Object(mut envelope) = Json::try_from(value).map_err(|error| error.to_string())? else {
        return Err("it is no record".to_owned());
    };
    let table = envelope.get("source").and_then(|source| source.get("table")).and_then(Json::as_str);
    let relation = Relation::ALL.into_iter().find(|relation| table == Some(relation.table()));
    let relation = relation.ok_or_else(|| format!("there is no table {}", table.unwrap_or_default()))?;
    let mut row = |name: &str| match envelope.remove(name) {
        None | Some(Json::Null) => Ok(None),
        Some(row) => columns::row(relation, row).map(Some).map_err(|error| error.to_string()),
    };
    Ok(Change { old: row("before")?, new: row("after")? })
}

/// The key of a relation, which was written with `schema`.
pub(super) fn key(schema: &Schema, mut datum: &[u8], relation: Relation) -> Result<Key, String> {
    let value = apache_avro::from_avro_datum(schema, &mut datum, None).map_err(|error| error.to_string())?;
    let Value::Record(fields) = value else { return Err("it is no record".to_owned()) };
    let mut numbers = relation.columns().iter().take(relation.key_columns()).map(|column| {
        let found = fields.iter().find(|(name, _)| name == column);
        match found {
            Some((_, Value::Long(number))) => Ok(*number),
            Some((_, Value::Int(number))) => Ok(i64::from(*number)),
            _ => Err(format!("the column {column} is missing")),
        }
    });
    let first = numbers.next().unwrap_or(Ok(0))?;
    let second = numbers.next().unwrap_or(Ok(0))?;
    Ok(Key { relation, first, second })
}

#[cfg(test)]
mod tests {
    use apache_avro::schema_compatibility::SchemaCompatibility;
    use feedmill_model::{Follow, Lsn, Position, Tweet, User};

    use super::*;

    const OF: Of<'_> =
        Of { prefix: "feed-mill.1", database: "social", position: Position { time: 1_700_000_000_123, lsn: Lsn(24) } };

    fn schema(relation: Relation) -> Schema {
        Schema::parse_str(&value_schema(OF.prefix, relation)).expect("it is a schema")
    }

    fn rows() -> [Row; 3] {
        let tweet = Tweet { id: i64::MIN, media: Some("[1]".to_owned()), reply_to_id: Some(-1), ..Tweet::default() };
        let user = User { id: i64::MAX, bio: Some("\u{1F980}".to_owned()), verified: true, ..User::default() };
        let follow = Follow { follower_id: 1, following_id: -2, accepted: true, created_at: -1 };
        [Row::Tweet(Box::new(tweet)), Row::User(Box::new(user)), Row::Follow(follow)]
    }

    #[test]
    fn every_relation_has_schemas_and_what_is_written_is_read_by_them() {
        for relation in Relation::ALL {
            assert!(Schema::parse_str(&key_schema(OF.prefix, relation)).is_ok() && schema(relation).name().is_some());
        }
        for row in rows() {
            let relation = row.relation();
            for change in [
                Change { old: None, new: Some(row.clone()) },
                Change { old: Some(row.clone()), new: Some(row.clone()) },
                Change { old: Some(row.clone()), new: None },
            ] {
                let (values, mut bytes) = (Values::new(OF, false), Vec::new());
                let order = Order { total: 5, data_collection: 2 };
                let after = values.append_change(&mut bytes, 7, relation, &change, order);
                let (id, datum) = parts(&bytes).expect("it is Avro");
                assert_eq!((id, super::change(&schema(relation), datum)), (7, Ok(change.clone())));
                if let Some(after) = after {
                    let begin = bytes.len();
                    values.append_row_again(&mut bytes, 8, relation, after);
                    let (_, datum) = parts(&bytes[begin..]).expect("it is Avro");
                    let row = Change { old: None, new: change.new };
                    assert_eq!(super::change(&schema(relation), datum), Ok(row));
                }
            }
            let mut bytes = Vec::new();
            append_key(&mut bytes, 9, &row.key());
            let keys = Schema::parse_str(&key_schema(OF.prefix, relation)).expect("it is a schema");
            assert_eq!(key(&keys, parts(&bytes).expect("it is Avro").1, relation), Ok(row.key()));
        }
    }

    /// What an earlier version wrote, that did not know of a column which may be null, is read as if it were null.
    #[test]
    fn a_column_that_may_be_null_can_be_added() {
        let schema = schema(Relation::Tweets);
        let mut older: Json = serde_json::from_str(&value_schema(OF.prefix, Relation::Tweets)).expect("it is JSON");
        let columns = older["fields"][0]["type"][1]["fields"].as_array_mut().expect("it has columns");
        columns.retain(|column| column["name"] != "media");
        let older = Schema::parse(&older).expect("it is a schema");
        assert!(SchemaCompatibility::can_read(&older, &schema).is_ok());
        assert!(SchemaCompatibility::can_read(&schema, &older).is_ok());
    }
}
