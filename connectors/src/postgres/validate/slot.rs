//! The replication slot.

use tokio_postgres::Client;

use super::super::CAPTURE_APPLICATION;
use super::super::error::literal;
use super::{Asked, Finding};

/// The slot is there if it should be, is ours, has lost nothing, and is read by nobody else.
pub(super) async fn slot(client: &Client, name: &str, copied: bool) -> Asked {
    const CHECK: &str = "slot";
    let row = client
        .query_opt(
            "SELECT coalesce(s.plugin, 'none')::text, coalesce(s.database, 'none')::text, \
                    s.database = current_database(), s.active_pid, coalesce(s.wal_status, 'reserved'), \
                    coalesce(to_jsonb(s) ->> 'invalidation_reason', ''), \
                    pg_size_pretty(CASE WHEN pg_is_in_recovery() THEN 0 \
                                   ELSE pg_current_wal_lsn() - coalesce(s.restart_lsn, pg_current_wal_lsn()) END), \
                    coalesce(a.application_name, '')::text \
             FROM pg_replication_slots s LEFT JOIN pg_stat_activity a ON a.pid = s.active_pid \
             WHERE s.slot_name = $1",
            &[&name],
        )
        .await?;
    let Some(row) = row else {
        return Ok(vec![if copied {
            let found = format!("{name} is gone, and with it what was written since");
            Finding::fail(CHECK, found, "start over with a new copy: feedmill resync")
        } else {
            Finding::ok(CHECK, format!("{name} is not there yet; the first start makes it"))
        }]);
    };
    let (plugin, database, same): (&str, &str, Option<bool>) = (row.get(0), row.get(1), row.get(2));
    let (pid, status, reason): (Option<i32>, &str, &str) = (row.get(3), row.get(4), row.get(5));
    let (behind, application): (&str, &str) = (row.get(6), row.get(7));
    let drop = format!("SELECT pg_drop_replication_slot({});", literal(name));
    if plugin != "pgoutput" || same != Some(true) {
        let found = format!("{name} is another program's: it reads the database {database} by {plugin}");
        return Ok(vec![Finding::fail(CHECK, found, drop)]);
    }
    if status == "lost" {
        let why = if reason.is_empty() { String::new() } else { format!(" ({reason})") };
        let found = format!("{name} is lost{why}: the server has removed log that it still needed");
        return Ok(vec![Finding::fail(CHECK, found, format!("{drop} and copy anew: feedmill resync"))]);
    }
    let mut findings = vec![match pid {
        None => Finding::ok(CHECK, format!("{name} is free; the server keeps {behind} of log for it")),
        Some(pid) if application == CAPTURE_APPLICATION => {
            let found = format!("{name} is read by a running Feedmill (PID {pid} on the server), {behind} behind");
            Finding::ok(CHECK, found)
        }
        Some(pid) => {
            let found = format!("{name} is in use by {application} (PID {pid} on the server)");
            Finding::fail(CHECK, found, format!("SELECT pg_terminate_backend({pid});"))
        }
    }];
    if status == "unreserved" {
        let found = format!("{name} is about to be lost: the server has marked log that it needs for removal");
        let mend = "start Feedmill now, and ALTER SYSTEM SET max_slot_wal_keep_size = -1; SELECT pg_reload_conf();";
        findings.push(Finding::warn(CHECK, found, mend));
    }
    Ok(findings)
}
