//! The statements, prepared once, and the values of those that write.

use scylla::client::execution_profile::ExecutionProfileHandle;
use scylla::client::session::Session;
use scylla::serialize::SerializationError;
use scylla::serialize::row::{RowSerializationContext, SerializeRow};
use scylla::serialize::writers::RowWriter;
use scylla::statement::Consistency;
use scylla::statement::prepared::PreparedStatement;

use super::spread::Table;

/// Kinds of the rows of a home timeline.
pub(super) const RECORD: i8 = 0;
pub(super) const HOT: i8 = 1;
pub(super) const ENTRY: i8 = 2;

/// Keys that one statement may name: ScyllaDB refuses more, unless somebody has raised
/// `max_clustering_key_restrictions_per_query`.
pub(super) const KEYS_MAX: usize = 100;

/// What a statement does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[repr(usize)]
pub(super) enum Statement {
    FactPut,
    FactDelete,
    ListPut,
    ListDelete,
    RowPut,
    RowDelete,
    RecordPut,
    HomePut,
    HomeDelete,
    HomeCut,
    HomeDrop,
    ProgressPut,
    FloorPut,
    FactPage,
    FactKeys,
    ListPage,
    ListKeys,
    RowsOf,
    RowKeys,
    RecordRead,
    HomeHead,
    HomeKeys,
    HomeNewest,
    ProgressRead,
    StateRead,
}

impl Statement {
    /// All of them, each at its number, with their texts.
    const ALL: [(Statement, &'static str); 25] = [
        (Self::FactPut, "INSERT INTO facts (kind, owner, part, key, value) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?"),
        (Self::FactDelete, "DELETE FROM facts USING TIMESTAMP ? WHERE kind = ? AND owner = ? AND part = ? AND key = ?"),
        (Self::ListPut, "INSERT INTO lists (kind, owner, part, key, value) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?"),
        (Self::ListDelete, "DELETE FROM lists USING TIMESTAMP ? WHERE kind = ? AND owner = ? AND part = ? AND key = ?"),
        (Self::RowPut, "INSERT INTO rows (owner, kind, key, value) VALUES (?, ?, ?, ?) USING TIMESTAMP ?"),
        (Self::RowDelete, "DELETE FROM rows USING TIMESTAMP ? WHERE owner = ? AND kind = ? AND key = ?"),
        (Self::RecordPut, "INSERT INTO home (viewer, kind, id, floor, time) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?"),
        (Self::HomePut, "INSERT INTO home (viewer, kind, id) VALUES (?, ?, ?) USING TIMESTAMP ?"),
        (Self::HomeDelete, "DELETE FROM home USING TIMESTAMP ? WHERE viewer = ? AND kind = ? AND id = ?"),
        (Self::HomeCut, "DELETE FROM home USING TIMESTAMP ? WHERE viewer = ? AND kind = ? AND id <= ?"),
        (Self::HomeDrop, "DELETE FROM home USING TIMESTAMP ? WHERE viewer = ?"),
        (
            Self::ProgressPut,
            "INSERT INTO progress (store, generation, shards, time, lsn) VALUES (?, ?, ?, ?, ?) USING TIMESTAMP ?",
        ),
        (
            Self::FloorPut,
            "INSERT INTO progress (store, generation, shards, floor) VALUES (?, ?, ?, ?) USING TIMESTAMP ?",
        ),
        (
            Self::FactPage,
            "SELECT key, value FROM facts WHERE kind = ? AND owner = ? AND part = ? AND key > ? AND key < ? LIMIT ?",
        ),
        (Self::FactKeys, "SELECT key, value FROM facts WHERE kind = ? AND owner = ? AND part = ? AND key IN ?"),
        (
            Self::ListPage,
            "SELECT key, value FROM lists WHERE kind = ? AND owner = ? AND part = ? AND key > ? AND key < ? LIMIT ?",
        ),
        (Self::ListKeys, "SELECT key, value FROM lists WHERE kind = ? AND owner = ? AND part = ? AND key IN ?"),
        (Self::RowsOf, "SELECT kind, key, value FROM rows WHERE owner = ? AND kind IN ?"),
        (Self::RowKeys, "SELECT key, value FROM rows WHERE owner = ? AND kind = ? AND key IN ?"),
        (Self::RecordRead, "SELECT kind, id, floor, time FROM home WHERE viewer = ?"),
        (Self::HomeHead, "SELECT kind, id, floor, time FROM home WHERE viewer = ? AND kind < ?"),
        (Self::HomeKeys, "SELECT id FROM home WHERE viewer = ? AND kind = ? AND id IN ?"),
        (Self::HomeNewest, "SELECT id FROM home WHERE viewer = ? AND kind = ? AND id > ? LIMIT ?"),
        (Self::ProgressRead, "SELECT shards, time, lsn, floor FROM progress WHERE store = ? AND generation = ?"),
        (Self::StateRead, "SELECT name, value FROM state WHERE name IN ?"),
    ];

    pub(super) const fn put(table: Table) -> Self {
        match table {
            Table::Facts => Self::FactPut,
            Table::Lists => Self::ListPut,
        }
    }

    pub(super) const fn delete(table: Table) -> Self {
        match table {
            Table::Facts => Self::FactDelete,
            Table::Lists => Self::ListDelete,
        }
    }

    pub(super) const fn page(table: Table) -> Self {
        match table {
            Table::Facts => Self::FactPage,
            Table::Lists => Self::ListPage,
        }
    }

    pub(super) const fn keys(table: Table) -> Self {
        match table {
            Table::Facts => Self::FactKeys,
            Table::Lists => Self::ListKeys,
        }
    }
}

/// All statements, prepared.
pub(super) struct Statements(Vec<PreparedStatement>);

impl Statements {
    pub(super) async fn prepare(
        session: &Session,
        consistency: Consistency,
        profile: Option<ExecutionProfileHandle>,
    ) -> Result<Self, scylla::errors::PrepareError> {
        let mut prepared = Vec::with_capacity(Statement::ALL.len());
        for (number, (statement, text)) in Statement::ALL.into_iter().enumerate() {
            debug_assert_eq!(statement as usize, number);
            let mut statement = session.prepare(text).await?;
            statement.set_consistency(consistency);
            // A write says the same each time, with the same timestamp.
            statement.set_is_idempotent(true);
            statement.set_execution_profile_handle(profile.clone());
            prepared.push(statement);
        }
        Ok(Statements(prepared))
    }

    pub(super) fn get(&self, statement: Statement) -> Option<&PreparedStatement> {
        self.0.get(statement as usize)
    }
}

/// A statement that writes, with its values.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Write {
    /// A row of a part of a list, or that it is gone.
    Listed { table: Table, view: &'static str, owner: i64, part: i64, key: Vec<u8>, value: Option<Vec<u8>>, at: i64 },
    /// A row beside others of its owner, or that it is gone.
    Row { owner: i64, view: &'static str, key: Vec<u8>, value: Option<Vec<u8>>, at: i64 },
    /// The record of a viewer.
    Record { viewer: i64, floor: i64, time: i64, at: i64 },
    /// A hot account or an entry is there.
    HomePut { viewer: i64, kind: i8, id: i64, at: i64 },
    /// It is not.
    HomeDelete { viewer: i64, kind: i8, id: i64, at: i64 },
    /// No entry up to `id` is.
    HomeCut { viewer: i64, id: i64, at: i64 },
    /// The viewer has no record.
    HomeDrop { viewer: i64, at: i64 },
    /// Shards have reached a closed time.
    Progress { store: &'static str, generation: i64, shards: i64, time: i64, lsn: i64, at: i64 },
    /// Floors of shards.
    Floor { store: &'static str, generation: i64, shards: i64, floor: i64, at: i64 },
}

impl Write {
    pub(super) const fn statement(&self) -> Statement {
        match self {
            Write::Listed { table, value: Some(_), .. } => Statement::put(*table),
            Write::Listed { table, value: None, .. } => Statement::delete(*table),
            Write::Row { value: Some(_), .. } => Statement::RowPut,
            Write::Row { value: None, .. } => Statement::RowDelete,
            Write::Record { .. } => Statement::RecordPut,
            Write::HomePut { .. } => Statement::HomePut,
            Write::HomeDelete { .. } => Statement::HomeDelete,
            Write::HomeCut { .. } => Statement::HomeCut,
            Write::HomeDrop { .. } => Statement::HomeDrop,
            Write::Progress { .. } => Statement::ProgressPut,
            Write::Floor { .. } => Statement::FloorPut,
        }
    }

    /// Whether both are of one partition.
    pub(super) fn is_beside(&self, other: &Write) -> bool {
        match (self, other) {
            (
                Write::Listed { table, view, owner, part, .. },
                Write::Listed { table: other_table, view: other_view, owner: other_owner, part: other_part, .. },
            ) => (table, view, owner, part) == (other_table, other_view, other_owner, other_part),
            (Write::Row { owner, .. }, Write::Row { owner: other, .. }) => owner == other,
            (Write::Listed { .. } | Write::Row { .. }, _) | (_, Write::Listed { .. } | Write::Row { .. }) => false,
            _ => self.viewer().is_some() && self.viewer() == other.viewer(),
        }
    }

    const fn viewer(&self) -> Option<i64> {
        match *self {
            Write::Record { viewer, .. }
            | Write::HomePut { viewer, .. }
            | Write::HomeDelete { viewer, .. }
            | Write::HomeCut { viewer, .. }
            | Write::HomeDrop { viewer, .. } => Some(viewer),
            _ => None,
        }
    }

    /// What it takes in a request, about.
    pub(super) fn bytes(&self) -> usize {
        let row = |key: &[u8], value: &Option<Vec<u8>>| 60 + key.len() + value.as_ref().map_or(0, Vec::len);
        match self {
            Write::Listed { key, value, .. } | Write::Row { key, value, .. } => row(key, value),
            _ => 60,
        }
    }
}

impl SerializeRow for Write {
    fn serialize(
        &self,
        context: &RowSerializationContext<'_>,
        to: &mut RowWriter<'_>,
    ) -> Result<(), SerializationError> {
        match self {
            Write::Listed { view, owner, part, key, value: Some(value), at, .. } => {
                (view, owner, part, key, value, at).serialize(context, to)
            }
            Write::Listed { view, owner, part, key, value: None, at, .. } => {
                (at, view, owner, part, key).serialize(context, to)
            }
            Write::Row { owner, view, key, value: Some(value), at } => {
                (owner, view, key, value, at).serialize(context, to)
            }
            Write::Row { owner, view, key, value: None, at } => (at, owner, view, key).serialize(context, to),
            Write::Record { viewer, floor, time, at } => {
                (viewer, RECORD, 0_i64, floor, time, at).serialize(context, to)
            }
            Write::HomePut { viewer, kind, id, at } => (viewer, kind, id, at).serialize(context, to),
            Write::HomeDelete { viewer, kind, id, at } => (at, viewer, kind, id).serialize(context, to),
            Write::HomeCut { viewer, id, at } => (at, viewer, ENTRY, id).serialize(context, to),
            Write::HomeDrop { viewer, at } => (at, viewer).serialize(context, to),
            Write::Progress { store, generation, shards, time, lsn, at } => {
                (store, generation, shards, time, lsn, at).serialize(context, to)
            }
            Write::Floor { store, generation, shards, floor, at } => {
                (store, generation, shards, floor, at).serialize(context, to)
            }
        }
    }

    fn is_empty(&self) -> bool {
        false
    }
}
