//! Replication slots: what the server keeps for a reader of its log.

use feedmill_model::{Lsn, SourceId};

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
    /// Why the server has invalidated it, as servers from version 17 on tell.
    pub invalidation_reason: Option<String>,
}

impl Slot {
    /// Why the server will never send anything from this slot again; `None` while it may.
    pub fn lost(&self) -> Option<String> {
        let reason = match self.invalidation_reason.as_deref() {
            Some("wal_removed") => "the server has removed log that it still needed (see max_slot_wal_keep_size)",
            Some("rows_removed") => "the server has removed catalogue rows that it still needed",
            Some("wal_level_insufficient") => "wal_level was set below logical",
            Some("idle_timeout") => "nobody read it for longer than idle_replication_slot_timeout",
            Some(other) => return Some(format!("the server has invalidated it: {other}")),
            None if self.wal_status.as_deref() == Some("lost") => {
                "the server has removed log that it still needed (see max_slot_wal_keep_size)"
            }
            None => return None,
        };
        Some(reason.to_owned())
    }
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

    /// Whether the server and its slot continue what was read from `known` up to `from`: the same history of the same
    /// database, a slot that is there, is ours to read and has not moved beyond `from`, and a log that reaches there.
    ///
    /// A slot that was dropped and made again stands beyond `from`, because a new one begins at the end of the log. What
    /// positions cannot tell is a server that went back before `from` on the same timeline, and has come beyond it again:
    /// the data directory of a stopped server was put back, and others wrote before this looked; or a resync after that
    /// was killed when it had made the slot, and the next start came late. Whoever restores so begins with
    /// `--on-mismatch resync`, before others write.
    pub async fn check_continues(&mut self, known: &SourceId, from: Lsn) -> Result<(), ReplicationError> {
        let found = self.identify(&known.slot).await?;
        if found != *known {
            return Err(ReplicationError::OtherSource { known: known.clone(), found });
        }
        let name = &known.slot;
        let Some(slot) = self.slot(name).await? else {
            return Err(ReplicationError::SlotMissing { slot: name.clone() });
        };
        let unusable = |problem: String| Err(ReplicationError::SlotUnusable { slot: name.clone(), problem });
        if slot.plugin.as_deref() != Some("pgoutput") {
            return unusable(format!("its plugin is {}, not pgoutput", slot.plugin.as_deref().unwrap_or("none")));
        }
        let database = self.query("SELECT current_database()").await?;
        if database.first().and_then(|row| row.first()) != Some(&slot.database) {
            return unusable(format!("it reads the database {}", slot.database.as_deref().unwrap_or("none")));
        }
        if let Some(reason) = slot.lost() {
            return Err(ReplicationError::SlotLost { slot: name.clone(), reason });
        }
        // A server that went back has a slot that went back with it, and says so less clearly.
        let end = self.wal_end().await?;
        if from > end {
            return Err(ReplicationError::Ahead { end, ours: from });
        }
        match slot.confirmed_flush {
            Some(confirmed) if confirmed > from => {
                Err(ReplicationError::Behind { slot: name.clone(), confirmed, ours: from })
            }
            _ => Ok(()),
        }
    }

    /// The slot with this name, if there is one.
    pub async fn slot(&mut self, name: &str) -> Result<Option<Slot>, ReplicationError> {
        let sql = format!(
            "SELECT slot_name, plugin, database, temporary, active_pid, confirmed_flush_lsn, wal_status, \
             to_jsonb(slots) ->> 'invalidation_reason' FROM pg_replication_slots AS slots WHERE slot_name = {}",
            literal(name)
        );
        let mut rows = self.query(&sql).await?;
        let Some(row) = rows.pop() else { return Ok(None) };
        let [Some(name), plugin, database, temporary, active_pid, confirmed_flush, wal_status, reason] = row.as_slice()
        else {
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
            invalidation_reason: reason.clone(),
        }))
    }
}

/// SQLSTATE of a slot that does not exist.
const UNDEFINED_OBJECT: &str = "42704";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_lost_slot_says_why_on_old_and_new_servers() {
        let slot = |wal_status: &str, reason: Option<&str>| Slot {
            name: "s".to_owned(),
            plugin: None,
            database: None,
            temporary: false,
            active_pid: None,
            confirmed_flush: None,
            wal_status: Some(wal_status.to_owned()),
            invalidation_reason: reason.map(str::to_owned),
        };
        assert_eq!(slot("reserved", None).lost(), None);
        assert_eq!(slot("unreserved", None).lost(), None);
        for (slot, told) in [
            (slot("lost", None), "max_slot_wal_keep_size"),
            (slot("lost", Some("wal_removed")), "max_slot_wal_keep_size"),
            (slot("reserved", Some("idle_timeout")), "idle_replication_slot_timeout"),
            (slot("lost", Some("something_new")), "something_new"),
        ] {
            assert!(slot.lost().is_some_and(|reason| reason.contains(told)), "{slot:?}");
        }
    }
}
