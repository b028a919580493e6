//! The server: what it is, how it is reached, what room it has.

use std::time::{Duration, SystemTime};

use tokio_postgres::Client;
use tokio_postgres::config::Host;

use super::super::tls::SslMode;
use super::super::{Source, schema};
use super::{Asked, Finding};

/// A clock that differs by more is told; by an hour, and no time is minted.
const CLOCK_WARN: Duration = Duration::from_secs(60);
const CLOCK_FAIL: Duration = Duration::from_secs(3_600);

/// What Feedmill connects beside the pool of the API: capture, copy, clocks, partitions, verify, popular accounts.
const CONNECTIONS_BESIDE: i64 = 10;

/// A walsender that hears nothing for so long is ended; we say something each second.
const WAL_SENDER_TIMEOUT_MIN_MS: i64 = 10_000;

/// Version, `wal_level`, primary or standby, encoding.
pub(super) async fn fitness(client: &Client) -> Asked {
    let row = client
        .query_one(
            "SELECT current_setting('server_version_num')::int / 10000, current_setting('server_version'), \
             current_setting('wal_level'), pg_is_in_recovery(), current_setting('server_encoding')",
            &[],
        )
        .await?;
    let (version, name): (i32, &str) = (row.get(0), row.get(1));
    let (wal_level, standby, encoding): (&str, bool, &str) = (row.get(2), row.get(3), row.get(4));
    let min = schema::VERSION_MIN;
    Ok(vec![
        if version >= min {
            Finding::ok("version", format!("PostgreSQL {name}"))
        } else {
            Finding::fail("version", format!("PostgreSQL {name}"), format!("upgrade it to PostgreSQL {min} or newer"))
        },
        if wal_level == "logical" {
            Finding::ok("wal_level", wal_level)
        } else {
            let mend = "ALTER SYSTEM SET wal_level = 'logical'; and restart the server";
            Finding::fail("wal_level", format!("wal_level is {wal_level}, not logical"), mend)
        },
        if standby {
            Finding::fail("primary", "it is a standby", "give the address of the primary")
        } else {
            Finding::ok("primary", "it is no standby")
        },
        if encoding == "UTF8" {
            Finding::ok("encoding", encoding)
        } else {
            let mend = "create the database with ENCODING 'UTF8' TEMPLATE template0";
            Finding::fail("encoding", format!("the database's encoding is {encoding}, not UTF8"), mend)
        },
    ])
}

/// Whether this connection is encrypted, and whether the server had to prove who it is.
pub(super) async fn encryption(client: &Client, source: &Source) -> Asked {
    const CHECK: &str = "encryption";
    let row =
        client.query_opt("SELECT ssl, version, cipher FROM pg_stat_ssl WHERE pid = pg_backend_pid()", &[]).await?;
    let cipher = row.filter(|row| row.get(0)).map(|row| format!("{} {}", row.get::<_, &str>(1), row.get::<_, &str>(2)));
    let mode = source.ssl_mode();
    let verify = "add sslmode=verify-full&sslrootcert=FILE to the address (FILE holds the authority's certificate)";
    Ok(vec![match cipher {
        Some(cipher) if mode >= SslMode::VerifyCa => Finding::ok(CHECK, format!("{cipher}, sslmode={mode}")),
        Some(cipher) => {
            let found = format!("{cipher}, sslmode={mode}: encrypted, but any server is believed to be the right one");
            Finding::warn(CHECK, found, verify)
        }
        None if stays_here(source) => Finding::ok(CHECK, "none; the connection does not leave this machine"),
        None => Finding::warn(CHECK, "none: whoever is on the way reads and changes what passes", verify),
    }])
}

/// Whether every host of the address is this machine.
fn stays_here(source: &Source) -> bool {
    let config = source.config();
    let here = |host: &Host| match host {
        Host::Unix(_) => true,
        Host::Tcp(name) => name == "localhost" || name.parse().is_ok_and(|ip: std::net::IpAddr| ip.is_loopback()),
    };
    match config.get_hostaddrs() {
        [] => config.get_hosts().iter().all(here),
        addresses => addresses.iter().all(std::net::IpAddr::is_loopback),
    }
}

/// Free replication slots, walsenders and connections.
pub(super) async fn room(client: &Client, slot: &str, pool_size: usize) -> Asked {
    // What a Feedmill that runs already holds is not taken from it.
    let row = client
        .query_one(
            "SELECT current_setting('max_replication_slots')::bigint, \
             (SELECT count(*) FROM pg_replication_slots WHERE slot_name <> $1), \
             current_setting('max_wal_senders')::bigint, \
             (SELECT count(*) FROM pg_stat_replication \
              WHERE coalesce(application_name, '') NOT LIKE 'feedmill-%'), \
             current_setting('max_connections')::bigint - current_setting('superuser_reserved_connections')::bigint, \
             (SELECT count(*) FROM pg_stat_activity WHERE backend_type = 'client backend' \
              AND coalesce(application_name, '') NOT LIKE 'feedmill-%'), \
             (SELECT rolconnlimit::bigint FROM pg_roles WHERE rolname = current_user), \
             (SELECT datconnlimit::bigint FROM pg_database WHERE datname = current_database())",
            &[&slot],
        )
        .await?;
    let number = |at: usize| row.get::<_, i64>(at);
    let mut findings = Vec::new();
    for (check, setting, max, used) in [
        ("replication slots", "max_replication_slots", number(0), number(1)),
        ("walsenders", "max_wal_senders", number(2), number(3)),
    ] {
        let found = format!("others use {used} of {max}");
        let grow = |by: i64| format!("ALTER SYSTEM SET {setting} = {}; and restart the server", max.max(used) + by);
        findings.push(match max - used {
            ..=0 => Finding::fail(check, found, grow(4)),
            // `verify` takes another for as long as it runs.
            1 => Finding::warn(check, format!("{found}: capture can run, verify cannot beside it"), grow(4)),
            _ => Finding::ok(check, found),
        });
    }
    let wanted = i64::try_from(pool_size).unwrap_or(i64::MAX).saturating_add(CONNECTIONS_BESIDE);
    let limits = [(number(4) - number(5), "the server"), (number(6), "the role"), (number(7), "the database")];
    // A limit of -1 is none.
    let limits = limits.into_iter().enumerate().filter(|(at, (limit, _))| *at == 0 || *limit >= 0);
    if let Some((_, (free, whose))) = limits.min_by_key(|(_, (limit, _))| *limit) {
        let found = format!("{whose} has {free} for us; the pool and the rest may take {wanted}");
        findings.push(if free >= wanted {
            Finding::ok("connections", found)
        } else {
            let mend = format!(
                "ALTER SYSTEM SET max_connections = {}; and restart the server, or start with --pool-size {}",
                number(4).saturating_add(wanted - free),
                (free - CONNECTIONS_BESIDE).max(1)
            );
            Finding::warn("connections", found, mend)
        });
    }
    Ok(findings)
}

/// Settings that end a connection or drop a slot.
pub(super) async fn settings(client: &Client) -> Asked {
    let row = client
        .query_one(
            "SELECT (SELECT setting::bigint FROM pg_settings WHERE name = 'wal_sender_timeout'), \
             (SELECT setting::bigint FROM pg_settings WHERE name = 'max_slot_wal_keep_size'), \
             (SELECT setting::bigint FROM pg_settings WHERE name = 'idle_replication_slot_timeout')",
            &[],
        )
        .await?;
    let timeout_ms: i64 = row.get(0);
    let (keep_mb, idle): (Option<i64>, Option<i64>) = (row.get(1), row.get(2));
    let reload = "SELECT pg_reload_conf();";
    let mut findings = vec![match timeout_ms {
        0 => Finding::warn(
            "wal_sender_timeout",
            "0: after a crash of this machine the server goes on holding the slot for a connection that is dead",
            format!("ALTER SYSTEM SET wal_sender_timeout = '60s'; {reload}"),
        ),
        1..WAL_SENDER_TIMEOUT_MIN_MS => Finding::warn(
            "wal_sender_timeout",
            format!("{timeout_ms} ms: a short pause of this machine ends the stream, which then starts again"),
            format!("ALTER SYSTEM SET wal_sender_timeout = '60s'; {reload}"),
        ),
        _ => Finding::ok("wal_sender_timeout", format!("{timeout_ms} ms")),
    }];
    if let Some(keep_mb) = keep_mb {
        findings.push(if keep_mb < 0 {
            let found = "unlimited: the server keeps its log for as long as Feedmill is away; watch its disk";
            Finding::ok("max_slot_wal_keep_size", found)
        } else {
            let found =
                format!("{keep_mb} MB: if Feedmill is further behind, the slot is lost and all is copied again");
            let mend = format!("ALTER SYSTEM SET max_slot_wal_keep_size = -1; {reload}");
            Finding::warn("max_slot_wal_keep_size", found, mend)
        });
    }
    if let Some(idle) = idle.filter(|idle| *idle > 0) {
        let found = format!("{idle} s: if Feedmill is away for longer, the slot is lost and all is copied again");
        let mend = format!("ALTER SYSTEM SET idle_replication_slot_timeout = 0; {reload}");
        findings.push(Finding::warn("idle_replication_slot_timeout", found, mend));
    }
    Ok(findings)
}

/// By how much the clocks differ.
pub(super) async fn clock(client: &Client) -> Asked {
    const CHECK: &str = "clock";
    let before = SystemTime::now();
    let theirs: SystemTime = client.query_one("SELECT clock_timestamp()", &[]).await?.get(0);
    let after = SystemTime::now();
    // The server answered at some moment in between.
    let ahead = before.duration_since(theirs).unwrap_or_default();
    let behind = theirs.duration_since(after).unwrap_or_default();
    let (by, word) = if ahead > behind { (ahead, "ahead of") } else { (behind, "behind") };
    let found = format!("this machine's clock is {:.3} s {word} the server's", by.as_secs_f64());
    let mend = "set both clocks by NTP: timedatectl set-ntp true";
    Ok(vec![match by {
        by if by >= CLOCK_FAIL => Finding::fail(CHECK, found, mend),
        by if by >= CLOCK_WARN => Finding::warn(CHECK, found, mend),
        by if by.is_zero() => Finding::ok(CHECK, "the clocks agree"),
        _ => Finding::ok(CHECK, found),
    }])
}
