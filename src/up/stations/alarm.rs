//! What an operator has to look at.

use std::collections::BTreeMap;
use std::time::Instant;

use feedmill_api::{Alarm, Slot, StandsStill};
use parking_lot::Mutex;

use super::timestamp;
use crate::config::Settings;

/// Below so many free bytes the disk alarm is raised: some minutes of log at full speed.
const DISK_FREE_MIN: u64 = 1 << 30;

/// Above what an alarm is raised.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Bytes of log that PostgreSQL keeps for the slot.
    pub wal_bytes: u64,
    /// Age of what is served.
    pub lag_seconds: u64,
}

impl Limits {
    /// Those of the settings.
    pub fn of(settings: &Settings) -> Self {
        Limits { wal_bytes: settings.alarm_wal_bytes, lag_seconds: settings.alarm_lag_seconds }
    }
}

/// What there is to judge.
pub(super) struct Findings<'a> {
    pub slot: Option<&'a Slot>,
    pub served_age_ms: Option<u64>,
    pub quarantined: u64,
    pub anomalies: u64,
    pub disk_free: u64,
    pub unsearchable: u64,
    pub stands_still: Option<&'a StandsStill>,
}

/// Remembers since when each alarm is raised.
pub(super) struct Alarms {
    limits: Limits,
    raised: Mutex<BTreeMap<&'static str, Instant>>,
}

impl Alarms {
    pub fn new(limits: Limits) -> Self {
        Alarms { limits, raised: Mutex::default() }
    }

    /// Every alarm; logs those that change.
    pub fn judge(&self, findings: &Findings<'_>, now: Instant) -> Vec<Alarm> {
        let mut known = self.raised.lock();
        let found = self.found(findings).into_iter().map(|(name, raised, detail)| {
            let since = match raised {
                true => Some(*known.entry(name).or_insert_with(|| {
                    tracing::warn!("alarm {name}: {detail}");
                    now
                })),
                false => {
                    if known.remove(name).is_some() {
                        tracing::info!("alarm {name} is over: {detail}");
                    }
                    None
                }
            };
            Alarm { alarm: name.to_owned(), raised, since: since.map(|since| timestamp(since, now)), detail }
        });
        found.collect()
    }

    fn found(&self, findings: &Findings<'_>) -> [(&'static str, bool, String); 7] {
        let limits = &self.limits;
        let retained = findings.slot.map_or(0, |slot| slot.retained_bytes);
        let wal_status = findings.slot.and_then(|slot| slot.wal_status.as_deref()).unwrap_or("unknown");
        let pressed = ["unreserved", "lost"].contains(&wal_status);
        let age = findings.served_age_ms.unwrap_or(0) / 1_000;
        let still = findings.stands_still;
        [
            (
                "wal_retained",
                retained > limits.wal_bytes || pressed,
                format!("PostgreSQL keeps {retained} bytes of log for the slot, whose WAL status is {wal_status}"),
            ),
            ("lag", age > limits.lag_seconds, format!("what is served is {age} s old")),
            ("quarantine", findings.quarantined > 0, format!("{} rows are in quarantine", findings.quarantined)),
            (
                "negative_multiplicity",
                findings.anomalies > 0,
                format!("{} changes had a multiplicity that cannot be, and were not applied", findings.anomalies),
            ),
            (
                "disk",
                findings.disk_free < DISK_FREE_MIN,
                match findings.disk_free {
                    u64::MAX => "the disk was not looked at yet".to_owned(),
                    free => format!("{} MiB are free where the data lie", free >> 20),
                },
            ),
            (
                "search_refused",
                findings.unsearchable > 0,
                format!("{} documents are not found, because search does not take them", findings.unsearchable),
            ),
            (
                "stage",
                still.is_some(),
                still.map_or_else(
                    || "no stage stands still".to_owned(),
                    |still| format!("{} stands still since {}: {}", still.stage, still.since, still.reason),
                ),
            ),
        ]
    }
}
