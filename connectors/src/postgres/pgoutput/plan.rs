//! How the tuples of a table become rows.
//!
//! A row of the past is described by the names that its columns had then. So a column that was renamed and renamed back
//! still has the wrong name in the rows between; its place tells what it is, if nothing but names has changed since. Only
//! rows that are older than what was read of the tables are judged by it: a name that changes now is an error.

use feedmill_model::Relation;
use hashbrown::HashMap;

use super::super::schema::SCHEMA;
use super::super::tuple::{self, COLUMNS_MAX, DecodeError, Tuple, Value};
use super::reader::Reader;

/// Names and types (`pg_type.oid`) of the columns of our tables as they are now, in the order of the table.
pub(in super::super) type Tables = HashMap<Relation, Vec<(String, u32)>>;

/// How the tuples of a relation become rows: for each position the column of [`Relation::columns`] that stands there.
#[derive(Clone, Debug)]
pub(super) struct Plan {
    pub(super) relation: Relation,
    columns: Result<Vec<Option<usize>>, DecodeError>,
}

/// A column as a description has it.
struct Column<'a> {
    is_key: bool,
    name: &'a str,
    oid: u32,
}

impl Plan {
    /// Reads the rest of a description; `None` for a table that is not ours.
    pub(super) fn read(bytes: &mut Reader<'_>, tables: &Tables) -> Result<Option<Plan>, DecodeError> {
        let (schema, table) = (bytes.name()?, bytes.name()?);
        let _replica_identity = bytes.u8()?;
        let ours = Relation::ALL.into_iter().find(|relation| schema == SCHEMA && relation.table() == table);
        let Some(relation) = ours else { return Ok(None) };
        let mut columns = Vec::new();
        for _ in 0..bytes.u16()? {
            let (flags, name, oid, _modifier) = (bytes.u8()?, bytes.name()?, bytes.u32()?, bytes.u32()?);
            columns.push(Column { is_key: flags & 1 != 0, name, oid });
        }
        let plan = match find(relation, &columns) {
            Err(error) => match tables.get(&relation).and_then(|now| renamed(relation, &columns, now)) {
                Some(columns) => find(relation, &columns),
                None => Err(error),
            },
            found => found,
        };
        Ok(Some(Plan { relation, columns: plan }))
    }

    /// The column at each position, or why the table cannot be read.
    pub(super) fn columns(&self) -> Result<&[Option<usize>], &DecodeError> {
        self.columns.as_deref()
    }
}

/// The place of each column among those that we read, by its name.
fn find(relation: Relation, columns: &[Column<'_>]) -> Result<Vec<Option<usize>>, DecodeError> {
    let table = relation.table();
    let mut places = Vec::with_capacity(columns.len());
    let mut found = [false; COLUMNS_MAX];
    for Column { is_key, name, oid } in columns {
        let ours = relation.columns().iter().zip(tuple::kinds(relation)).enumerate();
        let ours = ours.into_iter().find(|(_, (column, _))| *column == name);
        places.push(ours.map(|(at, _)| at));
        let Some((at, (column, kind))) = ours else { continue };
        if !kind.accepts(*oid) {
            return Err(DecodeError::ColumnType { table, column, expected: kind.name(), oid: *oid });
        }
        if at < relation.key_columns() && !is_key {
            return Err(DecodeError::ReplicaIdentity { table });
        }
        if let Some(found) = found.get_mut(at) {
            *found = true;
        }
    }
    match relation.columns().iter().zip(tuple::kinds(relation)).zip(found).find(|(_, found)| !found) {
        Some(((column, kind), _)) => Err(DecodeError::MissingColumn { table, column, expected: kind.name() }),
        None => Ok(places),
    }
}

/// The columns by the names that they have now, if since then columns that we read were only renamed.
fn renamed<'a>(relation: Relation, then: &[Column<'a>], now: &'a [(String, u32)]) -> Option<Vec<Column<'a>>> {
    let was_there = |name: &str| then.iter().any(|column| column.name == name);
    let is_ours = |name: &str| relation.columns().contains(&name);
    let only_renamed = then.len() == now.len()
        && then.iter().zip(now).all(|(column, (name, oid))| {
            column.oid == *oid && (column.name == name || is_ours(name) && !was_there(name) && !is_ours(column.name))
        });
    let column = |(column, (name, _)): (&Column<'a>, &'a (String, u32))| Column { name, ..*column };
    only_renamed.then(|| then.iter().zip(now).map(column).collect())
}

/// The values of a tuple, in the order of [`Relation::columns`].
pub(super) fn tuple<'a>(columns: &[Option<usize>], bytes: &mut Reader<'a>) -> Result<Tuple<'a>, DecodeError> {
    let mut tuple = [Value::Null; COLUMNS_MAX];
    if usize::from(bytes.u16()?) != columns.len() {
        return Err(DecodeError::Order("a row has another number of columns than its table's description"));
    }
    for column in columns {
        let value = match bytes.u8()? {
            b'n' => Value::Null,
            b'u' => Value::Unchanged,
            kind @ (b'b' | b't') => {
                let length = bytes.u32()?;
                let value = bytes.take(length as usize)?;
                if kind == b'b' { Value::Binary(value) } else { Value::Text(value) }
            }
            byte => return Err(DecodeError::Unknown { what: "kind of a value", byte }),
        };
        if let Some(slot) = column.and_then(|column| tuple.get_mut(column)) {
            *slot = value;
        }
    }
    Ok(tuple)
}
