//! The copy of a relation as it was at an exported snapshot.
//!
//! ```text
//!  slot's connection: consistent point + snapshot (held open, idle)
//!  this connection:   BEGIN repeatable read, read only ─ SET TRANSACTION SNAPSHOT ─ COPY (SELECT …) binary ─> rows
//! ```
//!
//! Why it is right: the transaction sees exactly what committed before the slot's consistent point, and the slot sends
//! exactly what committed after it, so each change is in one of the two and in no other. The rows pass the same decoder
//! as those of the stream.

use std::error::Error as StdError;

use feedmill_model::{Relation, Row};
use futures::TryStreamExt;
use tokio::sync::mpsc;
use tokio_postgres::Client;
use tokio_postgres::binary_copy::{BinaryCopyOutRow, BinaryCopyOutStream};
use tokio_postgres::types::{FromSql, Type};

use super::error::{is_transient, literal, with_causes};
use super::schema::SCHEMA;
use super::tuple::{self, COLUMNS_MAX, Value};
use super::{DecodeError, Operation, Source, SourceError, Unusable};

/// Rows in each chunk but the last.
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

/// Why a copy failed. Nothing of it counts then: it has to be made again, from a new snapshot.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The database cannot be reached.
    #[error("table {table} was not copied: {error}")]
    Connect {
        /// The table.
        table: &'static str,
        /// What went wrong.
        error: SourceError,
    },
    /// A statement failed. A snapshot that is gone is one of the reasons: it lives as long as the connection that made
    /// it is idle.
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
            CopyError::Connect { error, .. } => error.is_transient(),
            CopyError::Statement { error, .. } => is_transient(error),
            CopyError::Decode(_) | CopyError::Abandoned { .. } => false,
        }
    }
}

/// Sends all rows that `relation` had at the exported `snapshot`, in chunks of [`COPY_ROWS`], in no order, and returns
/// how many there were.
pub async fn copy(
    source: &Source,
    snapshot: &str,
    relation: Relation,
    sender: &mpsc::Sender<Copied>,
) -> Result<u64, CopyError> {
    let table = relation.table();
    let client = source.connect("feedmill-copy").await.map_err(|error| CopyError::Connect { table, error })?;
    let failed = |tried: &'static str| move |error| CopyError::Statement { tried, table, error };
    let begin = format!(
        "BEGIN ISOLATION LEVEL REPEATABLE READ READ ONLY; SET TRANSACTION SNAPSHOT {}; \
         SET LOCAL statement_timeout = 0; SET LOCAL idle_in_transaction_session_timeout = 0",
        literal(snapshot)
    );
    client.batch_execute(&begin).await.map_err(failed("open the snapshot"))?;
    let select = format!("SELECT {} FROM {SCHEMA}.{table}", relation.columns().join(", "));
    let types = column_types(&client, relation, &select).await?;
    let copy = format!("COPY ({select}) TO STDOUT (FORMAT binary)");
    let rows = client.copy_out(&copy).await.map_err(failed("begin the copy"))?;
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
    client.batch_execute("COMMIT").await.map_err(failed("end the copy"))?;
    Ok(copied)
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
