//! The copy of relations as they were at an exported snapshot, in parts that several connections take side by side.
//!
//! ```text
//!  slot's connection: consistent point + snapshot (held open, idle)
//!  each Copier:       BEGIN repeatable read, read only ─ SET TRANSACTION SNAPSHOT ─ LOCK all of them, ACCESS SHARE
//!                       │
//!                       ├─ parts(relation):   pages 0 … 2047 │ 2048 … 4095 │ … │ 6144 … the end
//!                       └─ copy(part):        COPY (SELECT … WHERE ctid within the pages) binary ─> chunks of rows
//! ```
//!
//! Why it is right: the transaction sees exactly what committed before the slot's consistent point, and the slot sends
//! exactly what committed after it, so each change is in one of the two and in no other. Every row lies on one page of one
//! partition, the parts of a relation cover all pages without overlap (the last has no end), and each part is read from the
//! root with the same range of pages in every partition: so the parts together are the root, whoever may read the root
//! may read them, and no partition need be known by name. PostgreSQL reads such a range without touching other pages (a
//! TID range scan). The rows pass the same decoder as those of the stream.
//!
//! The locks are those that reading takes anyway, but taken before there are rows: whoever truncates several tables, in an
//! order that is not ours, may deadlock with that, and then nothing has been copied yet.

use std::error::Error as StdError;

use feedmill_model::{Relation, Row};
use futures::TryStreamExt;
use tokio::sync::mpsc;
use tokio_postgres::binary_copy::{BinaryCopyOutRow, BinaryCopyOutStream};
use tokio_postgres::types::{FromSql, Type};
use tokio_postgres::{Client, SimpleQueryMessage};

use super::error::{is_transient, literal, with_causes};
use super::schema::SCHEMA;
use super::tuple::{self, COLUMNS_MAX, Value};
use super::{DecodeError, Operation, Source, SourceError, Unusable};

/// Rows in each chunk but the last of a part.
pub const COPY_ROWS: usize = 4_096;

/// Some rows of a copy.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Copied {
    /// Those that can be read.
    pub rows: Vec<Row>,
    /// Those that cannot.
    pub unusable: Vec<Unusable>,
}

impl Copied {
    fn with_room() -> Self {
        Copied { rows: Vec::with_capacity(COPY_ROWS), unusable: Vec::new() }
    }

    fn len(&self) -> usize {
        self.rows.len() + self.unusable.len()
    }
}

/// How connections of a copy call themselves.
pub const COPY_APPLICATION: &str = "feedmill-copy";

/// Why a copy failed. Nothing of it counts then: it has to be made again, from a new snapshot.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The database cannot be reached.
    #[error("nothing was copied: {0}")]
    Connect(#[from] SourceError),
    /// The snapshot is gone: it lives as long as the connection that made it is idle.
    #[error("could not open the exported snapshot: {}", with_causes(.0))]
    Snapshot(tokio_postgres::Error),
    /// A statement failed.
    #[error("could not {tried} of table {table}: {}", with_causes(.error))]
    Statement {
        /// What was tried.
        tried: &'static str,
        /// The table.
        table: &'static str,
        /// What went wrong.
        error: tokio_postgres::Error,
    },
    /// The table cannot be read.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// Nobody takes the rows any more.
    #[error("the copy of table {table} was given up by its receiver")]
    Abandoned {
        /// The table.
        table: &'static str,
    },
}

impl CopyError {
    /// Whether a new copy may succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            CopyError::Connect(error) => error.is_transient(),
            CopyError::Snapshot(error) | CopyError::Statement { error, .. } => is_transient(error),
            CopyError::Decode(_) | CopyError::Abandoned { .. } => false,
        }
    }

    /// Whether the server ended it in favour of somebody else (SQLSTATE class 40): who truncates tables or changes their
    /// partitions locks them, in an order that may be another than ours.
    pub fn is_conflict(&self) -> bool {
        match self {
            CopyError::Snapshot(error) | CopyError::Statement { error, .. } => {
                error.code().is_some_and(|code| code.code().starts_with("40"))
            }
            CopyError::Connect(_) | CopyError::Decode(_) | CopyError::Abandoned { .. } => false,
        }
    }
}

/// The rows of a relation that lie in a range of pages, in the table or in any of its partitions.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CopyPart {
    /// The relation.
    pub relation: Relation,
    /// About how many rows there are, by the server's statistics.
    pub rows: u64,
    first_page: u32,
    /// `None`: to the end, also if the table has grown since the parts were cut.
    end_page: Option<u32>,
}

/// A connection that reads one exported snapshot.
pub struct Copier {
    client: Client,
}

impl Copier {
    /// Connects, opens `snapshot`, and locks `relations` against whoever would truncate or change them.
    pub async fn open(source: &Source, snapshot: &str, relations: &[Relation]) -> Result<Copier, CopyError> {
        let client = source.connect(COPY_APPLICATION).await?;
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; \
             SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0",
            literal(snapshot)
        );
        client.batch_execute(&begin).await.map_err(CopyError::Snapshot)?;
        for table in relations.iter().map(|relation| relation.table()) {
            let lock = format!("LOCK TABLE {SCHEMA}.{table} IN ACCESS SHARE MODE");
            let failed = |error| CopyError::Statement { tried: "lock the rows", table, error };
            client.batch_execute(&lock).await.map_err(failed)?;
        }
        Ok(Copier { client })
    }

    /// Cuts a relation into parts of about `pages` pages each (8 KiB a page as PostgreSQL is mostly built).
    pub async fn parts(&self, relation: Relation, pages: u32) -> Result<Vec<CopyPart>, CopyError> {
        let table = relation.table();
        let failed = |error| CopyError::Statement { tried: "find the size", table, error };
        let sizes = "SELECT pg_relation_size(relid) / current_setting('block_size')::bigint FROM (
                         SELECT oid AS relid FROM pg_class WHERE oid = $1::text::regclass AND relkind = 'r'
                         UNION ALL SELECT relid::oid FROM pg_partition_tree($1::text::regclass) WHERE isleaf
                     ) AS leaves";
        let name = format!("{SCHEMA}.{table}");
        let sizes = self.client.query(sizes, &[&name]).await.map_err(failed)?;
        let sizes: Vec<u64> = sizes.iter().map(|row| row.get::<_, i64>(0).unsigned_abs()).collect();
        // The planner's estimate takes into account what the statistics do not know yet: the table's present size.
        let plan = self.client.simple_query(&format!("EXPLAIN (FORMAT JSON) SELECT FROM {name}")).await;
        let rows = plan.map_err(failed)?.iter().find_map(planned_rows).unwrap_or(0);
        Ok(cut(relation, &sizes, rows, pages.max(1)))
    }

    /// Sends all rows of a part, in chunks of [`COPY_ROWS`], in no order, and returns how many there were.
    pub async fn copy(&self, part: CopyPart, sender: &mpsc::Sender<Copied>) -> Result<u64, CopyError> {
        let CopyPart { relation, first_page, end_page, .. } = part;
        let table = relation.table();
        let failed = |tried: &'static str| move |error| CopyError::Statement { tried, table, error };
        let end = end_page.map(|page| format!(" AND ctid < '({page},0)'")).unwrap_or_default();
        let columns = relation.columns().join(", ");
        let select = format!("SELECT {columns} FROM {SCHEMA}.{table} WHERE ctid >= '({first_page},0)'{end}");
        let types = column_types(&self.client, relation, &select).await?;
        let copy = format!("COPY ({select}) TO STDOUT (FORMAT binary)");
        let rows = self.client.copy_out(&copy).await.map_err(failed("begin the copy"))?;
        let rows = BinaryCopyOutStream::new(rows, &types);
        futures::pin_mut!(rows);
        let (mut copied, mut chunk) = (0, Copied::with_room());
        while let Some(row) = rows.try_next().await.map_err(failed("read the copy"))? {
            decode(relation, types.len(), &row, &mut chunk).map_err(failed("read a row"))?;
            copied += 1;
            if chunk.len() == COPY_ROWS {
                let full = std::mem::replace(&mut chunk, Copied::with_room());
                sender.send(full).await.map_err(|_| CopyError::Abandoned { table })?;
            }
        }
        if chunk.len() > 0 {
            sender.send(chunk).await.map_err(|_| CopyError::Abandoned { table })?;
        }
        Ok(copied)
    }

    /// The connection, to read more at the snapshot.
    pub fn client(&self) -> &Client {
        &self.client
    }
}

/// The estimate of all rows in an answer of EXPLAIN.
fn planned_rows(message: &SimpleQueryMessage) -> Option<u64> {
    let SimpleQueryMessage::Row(row) = message else { return None };
    let plan: serde_json::Value = serde_json::from_str(row.get(0)?).ok()?;
    plan.get(0)?.get("Plan")?.get("Plan Rows")?.as_u64()
}

/// Parts of about `pages` pages, counted over all partitions, whose sizes are given in pages.
fn cut(relation: Relation, sizes: &[u64], rows: u64, pages: u32) -> Vec<CopyPart> {
    let total: u64 = sizes.iter().sum();
    let longest = sizes.iter().copied().max().unwrap_or(0).min(u64::from(u32::MAX));
    let (mut parts, mut first) = (Vec::new(), 0);
    loop {
        // A range of pages is read in each partition that is as long.
        let alive = sizes.iter().filter(|size| **size > first).count().max(1) as u64;
        let end = first + (u64::from(pages) / alive).max(1);
        let within: u64 = sizes.iter().map(|size| size.min(&end).saturating_sub(first)).sum();
        let rows = (u128::from(rows) * u128::from(within) / u128::from(total.max(1))) as u64;
        let page = |page: u64| u32::try_from(page).unwrap_or(u32::MAX);
        let end_page = (end < longest).then(|| page(end));
        parts.push(CopyPart { relation, rows, first_page: page(first), end_page });
        if end_page.is_none() {
            return parts;
        }
        first = end;
    }
}

/// The types of the columns, which must be those that the decoder reads.
async fn column_types(client: &Client, relation: Relation, select: &str) -> Result<Vec<Type>, CopyError> {
    let table = relation.table();
    let statement = client.prepare(select).await.map_err(|error| CopyError::Statement {
        tried: "find the columns",
        table,
        error,
    })?;
    let columns = statement.columns().iter().zip(relation.columns()).zip(tuple::kinds(relation));
    for ((found, column), kind) in columns {
        let oid = found.type_().oid();
        if !kind.accepts(oid) {
            return Err(DecodeError::ColumnType { table, column, expected: kind.name(), oid }.into());
        }
    }
    Ok(statement.columns().iter().map(|column| column.type_().clone()).collect())
}

/// A value's bytes as they are.
struct Raw<'a>(&'a [u8]);

impl<'a> FromSql<'a> for Raw<'a> {
    fn from_sql(_: &Type, bytes: &'a [u8]) -> Result<Self, Box<dyn StdError + Sync + Send>> {
        Ok(Raw(bytes))
    }

    fn accepts(_: &Type) -> bool {
        true
    }
}

fn decode(
    relation: Relation,
    columns: usize,
    row: &BinaryCopyOutRow,
    into: &mut Copied,
) -> Result<(), tokio_postgres::Error> {
    let mut values = [Value::Null; COLUMNS_MAX];
    for (at, value) in values.iter_mut().enumerate().take(columns) {
        if let Some(Raw(bytes)) = row.try_get(at)? {
            *value = Value::Binary(bytes);
        }
    }
    match tuple::row(relation, &values) {
        Ok((row, _)) => into.rows.push(row),
        Err(error) => into.unusable.push(tuple::unusable(relation, Operation::Copy, &values, &error)),
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parts_cover_every_page_once_and_share_the_rows() {
        let ranges = |sizes: &[u64], pages| {
            let parts = cut(Relation::Users, sizes, 1_000, pages);
            assert!(parts.iter().map(|part| part.rows).sum::<u64>() <= 1_000);
            parts.iter().map(|part| (part.first_page, part.end_page)).collect::<Vec<_>>()
        };
        assert_eq!(ranges(&[], 10), [(0, None)]);
        assert_eq!(ranges(&[7], 10), [(0, None)]);
        assert_eq!(ranges(&[25], 10), [(0, Some(10)), (10, Some(20)), (20, None)]);
        // Two partitions share a part until the shorter one ends.
        assert_eq!(ranges(&[10, 25], 10), [(0, Some(5)), (5, Some(10)), (10, Some(20)), (20, None)]);
        assert_eq!(ranges(&[3, 3, 3], 1), [(0, Some(1)), (1, Some(2)), (2, None)]);
    }

    #[test]
    fn rows_are_expected_where_the_pages_are() {
        let parts = cut(Relation::Users, &[10, 30], 400, 20);
        let rows: Vec<u64> = parts.iter().map(|part| part.rows).collect();
        assert_eq!(rows, [200, 200]);
    }
}
