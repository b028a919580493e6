//! Keys and values in the form in which a log has them.

use std::ops::Range;

use feedmill_model::{Change, Key, Relation, Row};

use super::avro::{self, Ids};
use super::envelope::{self, Of, Order};

/// How keys and values are written.
pub(super) enum Form {
    /// As JSON.
    Json,
    /// As Avro, with the schemas of these ids, by the number of the topic.
    Avro(Vec<Ids>),
}

/// Writes the values of a batch, and their keys.
pub(super) enum Values<'a> {
    Json(Box<envelope::Values<'a>>),
    Avro(avro::Values<'a>, &'a [Ids]),
}

impl<'a> Values<'a> {
    pub fn new(form: &'a Form, of: Of<'a>, is_snapshot: bool) -> Self {
        match form {
            Form::Json => Values::Json(Box::new(envelope::Values::new(of, is_snapshot))),
            Form::Avro(ids) => Values::Avro(avro::Values::new(of, is_snapshot), ids),
        }
    }

    /// Appends a key of a topic; `table` names the table where the topic has several.
    pub fn append_key(
        &self,
        bytes: &mut Vec<u8>,
        topic: usize,
        key: &Key,
        table: Option<&str>,
    ) -> Result<(), serde_json::Error> {
        match self {
            Values::Json(_) => envelope::append_key(bytes, key, table),
            Values::Avro(_, ids) => {
                avro::append_key(bytes, of(ids, topic).key, key);
                Ok(())
            }
        }
    }

    /// Whether keys of both topics are the same bytes.
    pub fn shares_keys(&self, one: usize, other: usize) -> bool {
        match self {
            Values::Json(_) => true,
            Values::Avro(_, ids) => of(ids, one).key == of(ids, other).key,
        }
    }

    /// Appends the value of a change, and says where in the bytes the new row is.
    pub fn append_change(
        &mut self,
        bytes: &mut Vec<u8>,
        topic: usize,
        relation: Relation,
        change: &Change,
        order: Order,
    ) -> Result<Option<Range<usize>>, serde_json::Error> {
        match self {
            Values::Json(values) => values.append_change(bytes, relation, change, order),
            Values::Avro(values, ids) => Ok(values.append_change(bytes, of(ids, topic).value, relation, change, order)),
        }
    }

    /// Appends the value of a row as it is.
    pub fn append_row(&mut self, bytes: &mut Vec<u8>, topic: usize, row: &Row) -> Result<(), serde_json::Error> {
        match self {
            Values::Json(values) => values.append_row(bytes, row),
            Values::Avro(values, ids) => {
                values.append_row(bytes, of(ids, topic).value, row);
                Ok(())
            }
        }
    }

    /// Appends the value of a row that is in the bytes already.
    pub fn append_row_again(
        &mut self,
        bytes: &mut Vec<u8>,
        topic: usize,
        relation: Relation,
        row: Range<usize>,
    ) -> Result<(), serde_json::Error> {
        match self {
            Values::Json(values) => values.append_row_again(bytes, relation, row),
            Values::Avro(values, ids) => {
                values.append_row_again(bytes, of(ids, topic).value, relation, row);
                Ok(())
            }
        }
    }
}

fn of(ids: &[Ids], topic: usize) -> Ids {
    ids.get(topic).copied().unwrap_or_default()
}
