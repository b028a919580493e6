//! The failpoints, what brings the process to each, and how often each has ended one.

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;

/// What has to happen for a point to be reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Needs {
    /// Writes.
    Writes,
    /// A transaction that is more than one write of a store.
    Huge,
    /// A start after a crash that left a large transaction without its rows.
    Settling,
    /// That the stores are made durable, home timelines are saved, and the tail of the log is dropped, which happens every
    /// few seconds.
    Housekeeping,
    /// A first copy.
    Copy,
    /// A replay.
    Replay,
    /// `feedmill capture`, which is killed beside a Kafka: see [`crate::kafka`].
    Kafka,
}

/// A failpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Point {
    pub name: &'static str,
    /// It is passed by at most so often before it ends the process: what a round is sure to reach.
    pub passes_max: u32,
    pub needs: Needs,
}

const fn point(name: &'static str, passes_max: u32, needs: Needs) -> Point {
    Point { name, passes_max, needs }
}

/// Each failpoint that the code has.
pub const POINTS: &[Point] = &[
    point("log_append_before", 80, Needs::Writes),
    point("log_append_after", 80, Needs::Writes),
    point("large_parts_after", 1, Needs::Writes),
    point("large_rows_before", 1, Needs::Writes),
    point("large_rows_after", 1, Needs::Writes),
    point("large_settle_before", 0, Needs::Settling),
    point("position_write_before", 80, Needs::Writes),
    point("position_write_after", 80, Needs::Writes),
    point("acknowledge_before", 10, Needs::Writes),
    point("acknowledge_after", 10, Needs::Writes),
    point("batch_handed_over_before", 80, Needs::Writes),
    point("batch_handed_over_after", 80, Needs::Writes),
    point("reactions_handed_over_before", 40, Needs::Writes),
    point("reactions_handed_over_after", 40, Needs::Writes),
    point("dataflow_step_before", 2_000, Needs::Writes),
    point("dataflow_step_after", 2_000, Needs::Writes),
    point("sink_write_before", 300, Needs::Writes),
    point("sink_write_after", 300, Needs::Writes),
    point("sink_write_part_after", 0, Needs::Huge),
    point("sink_progress_before", 2, Needs::Housekeeping),
    point("sink_progress_after", 2, Needs::Housekeeping),
    point("search_commit_before", 2, Needs::Housekeeping),
    point("search_commit_after", 2, Needs::Housekeeping),
    point("home_save_segment_after", 40, Needs::Housekeeping),
    point("home_save_before", 1, Needs::Housekeeping),
    point("home_save_after", 1, Needs::Housekeeping),
    point("compaction_before", 0, Needs::Housekeeping),
    point("compaction_after", 0, Needs::Housekeeping),
    point("copy_slot_after", 0, Needs::Copy),
    point("copy_chunk_before", 3, Needs::Copy),
    point("copy_chunk_after", 3, Needs::Copy),
    point("copy_done_before", 0, Needs::Copy),
    point("copy_done_after", 0, Needs::Copy),
    point("replay_marked_after", 0, Needs::Replay),
    point("replay_emptied_after", 0, Needs::Replay),
    point("replay_done_before", 0, Needs::Replay),
    point("publish_before", 8, Needs::Kafka),
    point("publish_commit_before", 8, Needs::Kafka),
    point("publish_commit_after", 8, Needs::Kafka),
];

/// How often what has ended a process.
#[derive(Clone, Debug, Default)]
pub struct Kills(BTreeMap<String, u32>);

impl Kills {
    pub fn count(&mut self, what: &str) {
        *self.0.entry(what.to_owned()).or_default() += 1;
    }

    pub fn add(&mut self, other: &Kills) {
        other.0.iter().for_each(|(what, kills)| *self.0.entry(what.clone()).or_default() += kills);
    }

    pub fn of(&self, what: &str) -> u32 {
        self.0.get(what).copied().unwrap_or_default()
    }
}

impl fmt::Display for Kills {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let never = POINTS.iter().map(|point| point.name).filter(|name| !self.0.contains_key(*name));
        let never = never.map(|name| (name, 0));
        let counted = self.0.iter().map(|(what, kills)| (what.as_str(), *kills));
        for (what, kills) in counted.chain(never) {
            writeln!(f, "{kills:>6}  {what}")?;
        }
        Ok(())
    }
}

/// The names of all failpoints in the code of a folder.
pub fn names_in(folder: &Path, names: &mut Vec<String>) {
    for entry in std::fs::read_dir(folder).unwrap().flatten() {
        let path = entry.path();
        if path.is_dir() {
            names_in(&path, names);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = std::fs::read_to_string(&path).unwrap();
            let code = text.lines().filter(|line| !line.trim_start().starts_with("//"));
            let calls = code.flat_map(|line| line.split("failpoint!(\"").skip(1));
            names.extend(calls.map(|rest| rest.split('"').next().unwrap().to_owned()));
        }
    }
}
