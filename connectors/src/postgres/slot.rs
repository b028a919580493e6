//! Replication slots: what the server keeps for a reader of its log.

use feedmill_model::Lsn;

use super::error::{identifier, literal};
use super::{Replication, ReplicationError};

/// A replication slot, as `pg_replication_slots` has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Its name.
    pub name: String,
    /// Output plugin; `None` for a physical slot.
    pub plugin: Option<String>,
    /// Database that it reads; `None` for a physical slot.
    pub database: Option<String>,
    /// Whether it ends with the session that made it.
    pub temporary: bool,
    /// The server's process that reads it now.
    pub active_pid: Option<i32>,
    /// Up to where its reader has acknowledged. It sends nothing that was committed before this.
    pub confirmed_flush: Option<Lsn>,
    /// `reserved`, `extended`, `unreserved` or `lost`.
    pub wal_status: Option<String>,
}

/// Where a new slot begins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SlotStart {
    /// What commits after this is in the slot; what committed before it is in the snapshot.
    pub consistent_point: Lsn,
    /// Name of the exported snapshot. It lives until the next command on the connection that made the slot.
    pub snapshot: String,
}

impl Replication {
    /// Makes a slot for pgoutput and exports the snapshot of its consistent point. It waits until all transactions that
    /// run now have ended; to give up, end the server's process [`Self::pid`] (dropping the connection does not).
    pub async fn create_slot(&mut self, name: &str, temporary: bool) -> Result<SlotStart, ReplicationError> {
        let kind = if temporary { "TEMPORARY LOGICAL" } else { "LOGICAL" };
        let name = identifier(name);
        let rows = self.query(&format!("CREATE_REPLICATION_SLOT {name} {kind} pgoutput (SNAPSHOT 'export')")).await?;
        match rows.first().map(Vec::as_slice) {
            Some([_, Some(point), Some(snapshot), ..]) => {
                Ok(SlotStart { consistent_point: point.parse()?, snapshot: snapshot.clone() })
            }
            _ => Err(ReplicationError::Protocol(format!("CREATE_REPLICATION_SLOT gave {rows:?}"))),
        }
    }

    /// Drops a slot that nobody reads.
    pub async fn drop_slot(&mut self, name: &str) -> Result<(), ReplicationError> {
        let dropped = self.query(&format!("DROP_REPLICATION_SLOT {}", identifier(name))).await;
        match dropped {
            Err(ReplicationError::Server { error, .. }) if error.code == UNDEFINED_OBJECT => {
                Err(ReplicationError::SlotMissing { slot: name.to_owned() })
            }
            dropped => dropped.map(drop),
        }
    }

    /// The slot with this name, if there is one.
    pub async fn slot(&mut self, name: &str) -> Result<Option<Slot>, ReplicationError> {
        let sql = format!(
            "SELECT slot_name, plugin, database, temporary, active_pid, confirmed_flush_lsn, wal_status \
             FROM pg_replication_slots WHERE slot_name = {}",
            literal(name)
        );
        let mut rows = self.query(&sql).await?;
        let Some(row) = rows.pop() else { return Ok(None) };
        let [Some(name), plugin, database, temporary, active_pid, confirmed_flush, wal_status] = row.as_slice() else {
            return Err(ReplicationError::Protocol(format!("pg_replication_slots gave {row:?}")));
        };
        Ok(Some(Slot {
            name: name.clone(),
            plugin: plugin.clone(),
            database: database.clone(),
            temporary: temporary.as_deref() == Some("t"),
            active_pid: active_pid.as_deref().and_then(|pid| pid.parse().ok()),
            confirmed_flush: confirmed_flush.as_deref().map(str::parse).transpose()?,
            wal_status: wal_status.clone(),
        }))
    }
}

/// SQLSTATE of a slot that does not exist.
const UNDEFINED_OBJECT: &str = "42704";
