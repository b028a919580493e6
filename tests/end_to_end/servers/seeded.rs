//! Rounds of writing, killing and slowing down on all machines, as a seed says.
//!
//! ```text
//!   one process starts, to be killed at a place ─┬─ writes of every kind
//!                                                ├─ a server is killed, or neither answers nor ends, in some rounds
//!                                                └─ the process is dead ─► all run, perhaps another number ─► verify
//! ```

use std::os::unix::process::ExitStatusExt;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use nix::sys::signal::Signal;
use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::estate::{Machine, Machines};
use crate::crash::number;
use crate::crash::points::{Kills, POINTS, Point};

/// Rounds, unless `ROUNDS` says how many.
const ROUNDS: u64 = 4;
/// How long a round waits until its place is reached.
const REACHED_MAX: Duration = Duration::from_secs(30);
/// Between writes, so that what derives is not left far behind.
const PAUSE: Duration = Duration::from_millis(10);
/// Before the place ends a process it is passed by at most so often.
const PASSES_MAX: u32 = 60;

/// The places in `feedmill capture`.
const OF_CAPTURE: [&str; 12] = [
    "log_append_before",
    "log_append_after",
    "large_parts_after",
    "large_rows_before",
    "large_rows_after",
    "position_write_before",
    "position_write_after",
    "acknowledge_before",
    "acknowledge_after",
    "publish_before",
    "publish_commit_before",
    "publish_commit_after",
];
/// The places in each process that derives.
const OF_PROCESSES: [&str; 8] = [
    "batch_handed_over_before",
    "batch_handed_over_after",
    "dataflow_step_before",
    "dataflow_step_after",
    "sink_write_before",
    "sink_write_after",
    "sink_progress_before",
    "sink_progress_after",
];
/// The places in the one of them that writes what search finds.
const OF_SEARCH: [&str; 2] = ["search_commit_before", "search_commit_after"];

/// What happens to a server beside.
#[derive(Clone, Copy, Debug)]
struct Trouble {
    server: Machine,
    /// It neither answers nor ends, instead of being killed.
    frozen: bool,
    /// After so many writes, for so many.
    after: usize,
    length: usize,
}

#[derive(Clone, Copy, Debug)]
struct Plan {
    victim: Machine,
    place: Point,
    passes: u32,
    trouble: Option<Trouble>,
    /// Processes, and workers of each, from then on.
    then: Option<(usize, usize)>,
}

impl Plan {
    fn of(rng: &mut ChaCha8Rng, turn: u64, processes: usize) -> Plan {
        let names: Vec<&str> = OF_CAPTURE.into_iter().chain(OF_PROCESSES).chain(OF_SEARCH).collect();
        // Each comes in its turn, and none beside the same every time.
        let name = names[usize::try_from(turn * 7).unwrap() % names.len()];
        let victim = match name {
            _ if OF_CAPTURE.contains(&name) => Machine::Capture,
            _ if OF_SEARCH.contains(&name) => Machine::Process(0),
            _ => Machine::Process(rng.random_range(0..processes)),
        };
        let place = *POINTS.iter().find(|point| point.name == name).unwrap();
        let servers = [Machine::Node, Machine::Search, Machine::Kafka, Machine::Postgres];
        let trouble = rng.random_bool(0.4).then(|| {
            let server = *servers.choose(rng).unwrap();
            let frozen = server != Machine::Postgres && rng.random_bool(0.4);
            Trouble { server, frozen, after: rng.random_range(0..30), length: rng.random_range(5..60) }
        });
        let then = rng.random_bool(0.3).then(|| *[(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)].choose(rng).unwrap());
        Plan { victim, place, passes: rng.random_range(0..=place.passes_max.min(PASSES_MAX)), trouble, then }
    }
}

/// Writes until the victim is dead; gives where it died.
async fn write_and_die(machines: &mut Machines, plan: &Plan, rng: &mut ChaCha8Rng) -> String {
    machines.crash(plan.victim);
    let failpoints = format!("{}={}*off->return", plan.place.name, plan.passes);
    let victim = machines.system(plan.victim);
    victim.failpoints = Some(failpoints);
    let logged = victim.log().len();
    machines.launch(plan.victim);
    let (began, mut writes) = (Instant::now(), 0);
    let mut pause = tokio::time::interval(PAUSE);
    let mut trouble = plan.trouble;
    let mut ends: Option<(Machine, bool, usize)> = None;
    let mut status = None;
    // A server that was taken away comes back before the round ends, and in some rounds after the death of the process.
    while status.is_none() || ends.is_some() {
        machines.writer.write_some(rng, 2).await;
        writes += 2;
        if let Some(begins) = trouble.take_if(|trouble| trouble.after <= writes) {
            match begins.frozen {
                true => machines.freeze(begins.server),
                false => machines.kill(begins.server).await,
            }
            ends = Some((begins.server, begins.frozen, writes + begins.length));
            if begins.server == Machine::Postgres {
                machines.start_again(begins.server).await;
                ends = None;
            }
        }
        if let Some((server, frozen, _)) = ends.take_if(|(_, _, at)| *at <= writes) {
            match frozen {
                true => machines.thaw(server),
                false => machines.start_again(server).await,
            }
        }
        if status.is_none() && (!machines.system(plan.victim).is_running() || began.elapsed() >= REACHED_MAX) {
            status = Some(machines.crash(plan.victim)).filter(|status| {
                let is_killed = status.signal() == Some(Signal::SIGKILL as i32);
                let log = machines.system(plan.victim).log();
                let said = log.get(logged..).unwrap_or_default();
                // One that begins while a server is away says so and ends, and whoever runs it starts it again.
                let may_end = plan.trouble.is_some() && trouble.is_none() && began.elapsed() < REACHED_MAX;
                assert!(is_killed || may_end, "it ended by itself ({status}):\n{said}");
                is_killed
            });
            if status.is_none() {
                machines.launch(plan.victim);
            }
        }
        pause.tick().await;
    }
    let victim = machines.system(plan.victim);
    victim.failpoints = None;
    let log = victim.log();
    let said = log.get(logged..).unwrap_or_default();
    let died = said.lines().find_map(|line| line.strip_prefix("failpoint ")?.strip_suffix(": kill -9"));
    died.map_or_else(|| format!("({} was not reached)", plan.place.name), str::to_owned)
}

#[tokio::test(flavor = "multi_thread")]
async fn c43_c45_c46_c51_seeded_kills_on_all_machines_leave_every_view_equal_to_its_sql() {
    let rounds = number("ROUNDS").unwrap_or(ROUNDS);
    let seed = number("SEED").unwrap_or_else(|| SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_secs());
    println!("SEED={seed} ROUNDS={rounds}");
    let mut machines = Machines::start("seeded").await;
    let (mut kills, mut processes) = (Kills::default(), 2);
    for round in 0..rounds {
        let mut rng = ChaCha8Rng::seed_from_u64(seed);
        rng.set_stream(round);
        let plan = Plan::of(&mut rng, seed % 1_000 + round, processes);
        let began = Instant::now();
        println!("  round {round}: {plan:?}");
        kills.count(&write_and_die(&mut machines, &plan, &mut rng).await);
        if let Some(Trouble { server, frozen, .. }) = plan.trouble {
            kills.count(&format!("({server:?} {})", if frozen { "frozen" } else { "killed" }));
        }
        if let (Some((count, workers)), Machine::Process(_)) = (plan.then, plan.victim) {
            machines.processes.are(count, workers);
            processes = count;
        }
        machines.start_again(plan.victim).await;
        machines.writer.write_some(&mut rng, 20).await;
        println!("    {} ({:.1} s)", machines.verified().await, began.elapsed().as_secs_f64());
    }
    machines.stop();
    println!("\n{rounds} rounds, 0 differences\n\n kills  where\n{kills}");
}
