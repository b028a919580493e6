//! How a stream starts: the slot is checked, and taken over from a dead connection of ours.
//!
//! ```text
//!  check slot ─ START_REPLICATION ─┬─ started
//!      ▲                           └─ 55006: somebody reads it ─ wait ─ who? ─┬─ ours, and silent: end it ─┐
//!      │                                                                     └─ alive, or not ours: refuse │
//!      └─────────────────────────────────────────────────────────────────────────────────────────────────--┘
//! ```
//!
//! After a crash the server may not know yet that the connection is dead. A stream that lives says so each second, so a
//! holder of the slot that bears our name and says nothing for [`PATIENCE`] is dead; one that goes on talking is a
//! second copy of us, which must not be fought for the slot.

use std::io;
use std::time::Duration;

use feedmill_model::{Lsn, Relation, SourceId};
use tokio::time::Instant;

use super::super::error::literal;
use super::super::pgoutput::Tables;
use super::super::schema::{PUBLICATION, SCHEMA};
use super::super::{Replication, ReplicationError, Source};

/// The `application_name` of a stream's connection.
pub const CAPTURE_APPLICATION: &str = "feedmill-capture";

/// How long a holder of the slot is watched before it is ended or given way to; several times the interval at which a
/// living stream sends statuses.
const PATIENCE: Duration = Duration::from_secs(5);

/// The longest pause between attempts.
const PAUSE_MAX: Duration = Duration::from_millis(500);

/// How long a start may take in all: a holder of the slot that is nowhere to be seen is waited for as long.
const START_MAX: Duration = Duration::from_secs(60);

/// SQLSTATE of a slot that another process reads.
const OBJECT_IN_USE: &str = "55006";

/// How often the server hears how far we are, at least.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// How long the server may be silent at least, and when it has no limit of its own. It is asked for an answer all the
/// time, but may be busy with a large transaction of which we see nothing.
const SILENCE: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(60));

/// A connection that streams.
pub(super) struct Opened {
    pub(super) connection: Replication,
    /// The tables as they are now.
    pub(super) tables: Tables,
    /// What was written before this was written before `tables` was read.
    pub(super) tables_as_of: Lsn,
    pub(super) status_interval: Duration,
    pub(super) silence_max: Duration,
}

/// Opens a connection that streams the slot from `from`.
pub(super) async fn open(source: &Source, known: &SourceId, from: Lsn) -> Result<Opened, ReplicationError> {
    let late = |_| {
        let problem = format!("it took longer than {} s", START_MAX.as_secs());
        let tried = format!("start to read slot {}", known.slot);
        ReplicationError::Lost { tried, error: io::Error::new(io::ErrorKind::TimedOut, problem) }
    };
    tokio::time::timeout(START_MAX, open_at(source, known, from)).await.map_err(late)?
}

async fn open_at(source: &Source, known: &SourceId, from: Lsn) -> Result<Opened, ReplicationError> {
    let mut connection = Replication::connect(source, CAPTURE_APPLICATION).await?;
    let slot = known.slot.as_str();
    let publication = super::super::error::identifier(PUBLICATION);
    let options =
        [("proto_version", "2"), ("streaming", "on"), ("binary", "true"), ("publication_names", publication.as_str())];
    let (status_interval, silence_max) = intervals(&mut connection).await?;
    let tables_as_of = connection.wal_end().await?;
    let tables = tables(&mut connection).await?;
    let mut pause = Duration::from_millis(50);
    let (mut holder, mut since, mut ended) = (None, Instant::now(), false);
    loop {
        connection.check_continues(known, from).await?;
        match connection.start(slot, from, &options).await {
            Err(ReplicationError::Server { error, .. }) if error.code == OBJECT_IN_USE => {}
            started => {
                started?;
                return Ok(Opened { connection, tables, tables_as_of, status_interval, silence_max });
            }
        }
        let now = Holder::find(&mut connection, slot).await?;
        if holder.is_none() {
            (holder, since) = (now, Instant::now());
        } else if since.elapsed() >= PATIENCE {
            if let (Some(before), Some(now)) = (&holder, now) {
                now.judge(before, slot, ended)?;
                tracing::warn!(slot, pid = now.pid, "ending a dead connection of ours that still reads the slot");
                connection.query(&format!("SELECT pg_terminate_backend({})", now.pid)).await?;
                ended = true;
            }
            (holder, since) = (None, Instant::now());
        }
        tokio::time::sleep(pause).await;
        pause = PAUSE_MAX.min(pause * 2);
    }
}

/// How often to send statuses, and how long the server may be silent: it ends a connection that is silent for
/// `wal_sender_timeout`, and says something itself after half of it.
async fn intervals(connection: &mut Replication) -> Result<(Duration, Duration), ReplicationError> {
    let rows = connection.query("SELECT setting FROM pg_settings WHERE name = 'wal_sender_timeout'").await?;
    let limit_ms = match rows.first().map(Vec::as_slice) {
        Some([Some(setting)]) => setting.parse().unwrap_or(0),
        _ => 0,
    };
    let limit = Duration::from_millis(limit_ms);
    if limit.is_zero() {
        return Ok((STATUS_INTERVAL, SILENCE.1));
    }
    Ok(((limit / 2).min(STATUS_INTERVAL), limit.max(SILENCE.0)))
}

/// The columns of our tables as they are now.
async fn tables(connection: &mut Replication) -> Result<Tables, ReplicationError> {
    let sql = format!(
        "SELECT c.relname, a.attname, a.atttypid FROM pg_class c JOIN pg_namespace n ON n.oid = c.relnamespace \
         JOIN pg_attribute a ON a.attrelid = c.oid \
         WHERE n.nspname = {} AND a.attnum > 0 AND NOT a.attisdropped AND a.attgenerated = '' \
         ORDER BY c.oid, a.attnum",
        literal(SCHEMA)
    );
    let mut tables = Tables::new();
    for row in connection.query(&sql).await? {
        let [Some(table), Some(column), Some(oid)] = row.as_slice() else { continue };
        let ours = Relation::ALL.into_iter().find(|relation| relation.table() == table);
        if let (Some(relation), Ok(oid)) = (ours, oid.parse()) {
            tables.entry(relation).or_default().push((column.clone(), oid));
        }
    }
    Ok(tables)
}

/// Who reads the slot.
#[derive(Debug)]
struct Holder {
    pid: i32,
    application: String,
    /// Whether the role may see how the connection fares.
    visible: bool,
    /// When it last said something.
    reply_time: Option<String>,
}

impl Holder {
    async fn find(connection: &mut Replication, slot: &str) -> Result<Option<Holder>, ReplicationError> {
        let sql = format!(
            "SELECT a.pid, coalesce(a.application_name, ''), r.state IS NOT NULL, r.reply_time \
             FROM pg_replication_slots s JOIN pg_stat_activity a ON a.pid = s.active_pid \
             LEFT JOIN pg_stat_replication r ON r.pid = a.pid WHERE s.slot_name = {}",
            literal(slot)
        );
        let rows = connection.query(&sql).await?;
        Ok(match rows.into_iter().next().as_deref() {
            Some([Some(pid), Some(application), visible, reply_time]) => pid.parse().ok().map(|pid| Holder {
                pid,
                application: application.clone(),
                visible: visible.as_deref() == Some("t"),
                reply_time: reply_time.clone(),
            }),
            _ => None,
        })
    }

    /// Whether this holder, which was `before` when the watch began, may be ended.
    fn judge(&self, before: &Holder, slot: &str, ended_one: bool) -> Result<(), ReplicationError> {
        let ours = self.application == CAPTURE_APPLICATION;
        let silent = self.visible && self.pid == before.pid && self.reply_time == before.reply_time;
        if ours && silent && !ended_one {
            return Ok(());
        }
        Err(ReplicationError::SlotInUse {
            slot: slot.to_owned(),
            pid: self.pid,
            application: self.application.clone(),
            perhaps_dead: ours && (silent || !self.visible),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn holder(application: &str, visible: bool, reply_time: Option<&str>) -> Holder {
        Holder { pid: 7, application: application.to_owned(), visible, reply_time: reply_time.map(str::to_owned) }
    }

    #[test]
    fn only_a_silent_connection_of_ours_is_ended() {
        let dead = |before: &Holder, now: &Holder, ended| match now.judge(before, "s", ended) {
            Ok(()) => None,
            Err(error) => Some(error.is_transient()),
        };
        let (early, late) = (Some("12:00:00"), Some("12:00:04"));
        let ours = |visible, reply| holder(CAPTURE_APPLICATION, visible, reply);
        assert_eq!(dead(&ours(true, early), &ours(true, early), false), None);
        assert_eq!(dead(&ours(true, None), &ours(true, None), false), None);
        assert_eq!(dead(&ours(true, early), &ours(true, early), true), Some(true));
        assert_eq!(dead(&ours(true, early), &ours(true, late), false), Some(false));
        assert_eq!(dead(&ours(false, None), &ours(false, None), false), Some(true));
        assert_eq!(dead(&holder("psql", true, early), &holder("psql", true, early), false), Some(false));
    }
}
