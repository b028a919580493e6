//! The status for people.

use std::fmt::Write;

use feedmill_api::{Report, Stage, StageState, Step};

/// Everything, a line each.
pub fn of(report: &Report) -> String {
    let mut text = String::new();
    // Writing to a string does not fail.
    let _ = write(&mut text, report);
    text
}

fn write(text: &mut String, report: &Report) -> std::fmt::Result {
    let age = report.served_age_ms.map_or(String::new(), |age| format!(", what is served is {} old", millis(age)));
    match (&report.stands_still, report.serving) {
        (Some(still), _) => {
            let since = millis(still.for_ms);
            writeln!(text, "{} STANDS STILL for {since}, since {}: {}{age}", still.stage, still.since, still.reason)?;
        }
        (None, true) => writeln!(text, "serving{age}")?,
        (None, false) => writeln!(text, "starting{age}")?,
    }
    let under_way = report.steps.iter().filter(|step| (step.begun || !report.serving) && !step.done);
    for step in under_way {
        writeln!(text, "  {}", progress(step))?;
    }
    writeln!(text, "\n{:<11} {:<13} {:>14}  {:>20}  speed", "stage", "state", "at", "behind")?;
    for stage in &report.stages {
        writeln!(text, "{}", line(stage))?;
        match stage.name.as_str() {
            "postgresql" => slot(text, report)?,
            "log" => log(text, report)?,
            _ => {}
        }
    }
    writeln!(text)?;
    let mut raised = report.alarms.iter().filter(|alarm| alarm.raised).peekable();
    if raised.peek().is_none() {
        writeln!(text, "no alarms")?;
    }
    for alarm in raised {
        writeln!(text, "ALARM {} since {}: {}", alarm.alarm, alarm.since.as_deref().unwrap_or("now"), alarm.detail)?;
    }
    Ok(())
}

fn line(stage: &Stage) -> String {
    let behind = match (stage.behind_bytes, stage.behind_ms) {
        (0, 0) => "–".to_owned(),
        (behind, ms) => format!("{}, {}", bytes(behind), millis(ms)),
    };
    let mut speeds = vec![format!("{}/s", bytes(stage.bytes_per_second as u64))];
    let counted = [
        (stage.transactions_per_second, "transactions/s"),
        (stage.changes_per_second, "changes/s"),
        (stage.deliveries_per_second, "deliveries/s"),
    ];
    speeds.extend(counted.iter().filter_map(|(speed, unit)| speed.map(|speed| format!("{speed:.0} {unit}"))));
    let reason = match (&stage.reason, stage.state) {
        (Some(reason), StageState::Waiting | StageState::StandsStill) => format!("  ({reason})"),
        _ => String::new(),
    };
    let saved = match &stage.saved {
        Some(saved) if stage.lsn.as_ref() != Some(saved) => format!(", on disk to {saved}"),
        _ => String::new(),
    };
    format!(
        "{:<11} {:<13} {:>14}  {behind:>20}  {}{saved}{reason}",
        stage.name,
        stage.state,
        stage.lsn.as_deref().unwrap_or("–"),
        speeds.join(", "),
    )
}

fn slot(text: &mut String, report: &Report) -> std::fmt::Result {
    let unknown = || "unknown".to_owned();
    match &report.slot {
        Some(slot) => writeln!(
            text,
            "  slot      confirmed {}, restart {}, WAL {} ({} kept), {}",
            slot.confirmed.clone().unwrap_or_else(unknown),
            slot.restart.clone().unwrap_or_else(unknown),
            slot.wal_status.clone().unwrap_or_else(unknown),
            bytes(slot.retained_bytes),
            if slot.active { "being read" } else { "read by nobody" },
        ),
        None => writeln!(text, "  slot      none is known"),
    }
}

fn log(text: &mut String, report: &Report) -> std::fmt::Result {
    let Some(log) = &report.log else { return Ok(()) };
    let quarantine = report.alarms.iter().find(|alarm| alarm.alarm == "quarantine");
    let quarantine = quarantine.map_or(String::new(), |alarm| format!("; {}", alarm.detail));
    let (rows, tail, span) = (bytes(log.rows_bytes), bytes(log.tail_bytes), millis(log.tail_ms));
    writeln!(text, "  on disk   rows {rows}, recent batches {tail} over {span}{quarantine}")
}

fn progress(step: &Step) -> String {
    if !step.begun {
        return format!("{:<9} not begun", step.name);
    }
    let number = |count: u64| if step.unit == "bytes" { bytes(count) } else { format!("{count} {}", step.unit) };
    let mut text = format!("{:<9} {}", step.name, number(step.completed));
    if let Some(total) = step.total {
        text += &format!(" of {}", number(total));
    }
    if let Some(percent) = step.percent {
        text += &format!(", {percent:.0} %");
    }
    if let Some(seconds) = step.eta_seconds {
        text += &format!(", {} to go", millis(seconds * 1_000));
    }
    format!("{text}  ({})", step.detail)
}

/// A number of bytes in the largest unit of which there is at least one.
pub fn bytes(count: u64) -> String {
    const UNITS: [&str; 6] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let unit = (count.max(1).ilog2() / 10).min(5);
    let name = UNITS.get(unit as usize).copied().unwrap_or_default();
    match unit {
        0 => format!("{count} {name}"),
        _ => format!("{:.1} {name}", count as f64 / (1_u64 << (10 * unit)) as f64),
    }
}

/// A duration, rounded.
fn millis(ms: u64) -> String {
    match ms {
        0..1_000 => format!("{ms} ms"),
        1_000..120_000 => format!("{:.1} s", ms as f64 / 1e3),
        120_000..7_200_000 => format!("{} min", ms / 60_000),
        _ => format!("{} h", ms / 3_600_000),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_short() {
        let shown = [0, 1_023, 1_024, 1_536 << 10, 3 << 40].map(bytes);
        assert_eq!(shown, ["0 B", "1023 B", "1.0 KiB", "1.5 MiB", "3.0 TiB"]);
        assert_eq!([7, 1_500, 120_000, 7_200_000].map(millis), ["7 ms", "1.5 s", "2 min", "2 h"]);
    }
}
