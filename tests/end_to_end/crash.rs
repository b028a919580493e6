//! Kills at every named place of the code, and at random moments: afterwards every view equals its SQL.

mod durability;
pub mod points;
mod sitting;
pub mod workload;

use std::path::Path;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use crate::system::TOP;
use points::{Kills, Needs, POINTS, Point, names_in};
use sitting::{End, Plan, Sitting};

/// Rounds on one PostgreSQL and data folder: to replay the last, those before it are replayed too.
const ROUNDS_OF_A_SITTING: u64 = 20;
const ROUNDS: u64 = 12;

/// Says how to repeat what failed.
struct Replay {
    seed: u64,
    rounds: u64,
}

impl Drop for Replay {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("\nRepeat it by: SEED={} make soak SOAK={}", self.seed, self.rounds);
        }
    }
}

/// The number that a variable says, if there is one.
pub fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is `{text}`, and must be a number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn c43_random_kills_leave_every_view_equal_to_its_sql() {
    let rounds = number("ROUNDS").unwrap_or(ROUNDS);
    let first = number("SEED").unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    let (mut kills, mut seeds) = (Kills::default(), Vec::new());
    // Each seed goes on in the turn of the points where the one before ends.
    for seed in (first..first + rounds).step_by(usize::try_from(ROUNDS_OF_A_SITTING).unwrap()) {
        println!("SEED={seed}");
        seeds.push(seed.to_string());
        let mut replay = Replay { seed, rounds: 0 };
        let mut sitting = Sitting::new(seed).await;
        for number in 0..ROUNDS_OF_A_SITTING.min(first + rounds - seed) {
            replay.rounds = number + 1;
            sitting.round(number).await;
        }
        kills.add(&sitting.kills);
    }
    // All come in turn. One whose moment passed in one round may still come in the next turn.
    let is_due = |point: &&Point| point.needs != Needs::Kafka && rounds >= 3 * POINTS.len() as u64;
    for point in POINTS.iter().filter(is_due) {
        assert!(kills.of(point.name) > 0, "{} was never reached\n{kills}", point.name);
    }
    println!("\n{rounds} rounds, 0 differences; seeds {}\n\n kills  where\n{kills}", seeds.join(" "));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_seeded_load_of_every_kind_of_write_leaves_every_view_equal_to_its_sql() {
    let seconds = number("SECONDS").unwrap_or(5);
    let seed = number("SEED").unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    println!("SEED={seed}");
    let mut sitting = Sitting::new(seed).await;
    let written = sitting.load(Duration::from_secs(seconds), &mut ChaCha8Rng::seed_from_u64(seed)).await;
    assert!(written > 20, "only {written} operations were written");
}

/// A kill at each point that is reached so.
async fn kill_at_each(needs: &[Needs]) {
    let mut sitting = Sitting::new(0).await;
    let mut rng = ChaCha8Rng::seed_from_u64(0);
    for (at, point) in (0..).zip(POINTS.iter().filter(|point| needs.contains(&point.needs))) {
        // A start reaches some of them; a few passes bring the kill among the writes.
        let passes = if point.needs == Needs::Writes { point.passes_max.min(5) } else { 0 };
        let workers = [1 + at % 3, 1 + at % 2];
        let end = End::At(*point, passes);
        let is_replayed = point.needs == Needs::Replay;
        let plan = Plan { end, workers, crash: None, resyncs: false, second_kill: None, is_replayed, is_asked: false };
        sitting.follow(&plan, &mut rng).await;
        assert_eq!(sitting.kills.of(point.name), 1, "{} was not reached:\n{}", point.name, sitting.kills);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c43_a_kill_at_each_failpoint_of_writes_leaves_every_view_equal_to_its_sql() {
    kill_at_each(&[Needs::Writes, Needs::Huge, Needs::Settling]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c43_a_kill_at_each_failpoint_of_copies_leaves_every_view_equal_to_its_sql() {
    kill_at_each(&[Needs::Copy]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c43_a_kill_at_each_failpoint_of_housekeeping_leaves_every_view_equal_to_its_sql() {
    kill_at_each(&[Needs::Housekeeping]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c43_a_kill_at_each_failpoint_of_replays_leaves_every_view_equal_to_its_sql() {
    kill_at_each(&[Needs::Replay]).await;
}

#[test]
fn every_failpoint_of_the_code_is_tested() {
    let top = Path::new(TOP);
    let mut found = Vec::new();
    for folder in ["connectors/src", "ingest/src", "dataflows/src", "sinks/src", "api/src", "src"] {
        names_in(&top.join(folder), &mut found);
    }
    found.sort();
    found.dedup();
    let mut known: Vec<_> = POINTS.iter().map(|point| point.name).collect();
    known.sort_unstable();
    assert_eq!(found, known);
}
