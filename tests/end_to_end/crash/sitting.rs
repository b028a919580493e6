//! Rounds of writing and killing on one PostgreSQL and one data folder.
//!
//! ```text
//!   start, to be killed at a place ─┬─ writes by SQL ───────────────┐
//!                                   ├─ writes by HTTP ──────────────┤   PostgreSQL crashes in some rounds,
//!                                   ├─ resyncs, in some rounds ─────┤   where it is not resynced
//!                                   └─ killed, there or at a moment ┴─► more writes ─► start ─► verify
//! ```

use std::fmt;
use std::os::unix::process::ExitStatusExt;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use nix::sys::signal::Signal;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

use super::points::{Kills, Needs, POINTS, Point};
use super::workload::{HOT_FOLLOWERS, HUGE, PEOPLE, Pace, Writer, write_by_http};
use crate::postgres::Postgres;
use crate::system::System;

/// How long a round waits until its point is reached.
const REACHED_MAX: Duration = Duration::from_secs(20);
const PAUSE: Duration = Duration::from_millis(3);

/// A PostgreSQL, and a system on it, that rounds wear out.
pub struct Sitting {
    seed: u64,
    postgres: Postgres,
    system: System,
    writer: Writer,
    pub kills: Kills,
}

/// How a process ends.
#[derive(Clone, Copy, Debug)]
pub enum End {
    /// When it comes to the point after so many passes.
    At(Point, u32),
    /// After so many operations.
    Moment(usize),
}

/// What happens in a round.
#[derive(Clone, Copy)]
pub struct Plan {
    pub end: End,
    /// Dataflow workers of the process that is killed, and of the one that goes on.
    pub workers: [u32; 2],
    /// PostgreSQL crashes after so many operations.
    pub crash: Option<usize>,
    /// Rows are compared with the database (`feedmill resync`) again and again meanwhile.
    pub resyncs: bool,
    /// The start after the kill is killed too, after so long.
    pub second_kill: Option<Duration>,
    /// The stores are built again while the process is written to.
    pub is_replayed: bool,
    /// Whether the system is asked to stop at the end, or killed.
    pub is_asked: bool,
}

impl Plan {
    /// What the seed says of a round. Points come in turn, so that each has its kills.
    fn of(rng: &mut ChaCha8Rng, turn: u64) -> Plan {
        let points: Vec<&Point> = POINTS.iter().filter(|point| point.needs != Needs::Kafka).collect();
        let end = match points.get(usize::try_from(turn).unwrap() % (points.len() + 2)) {
            Some(point) => End::At(**point, rng.random_range(0..=point.passes_max)),
            None => End::Moment(rng.random_range(0..150)),
        };
        let resyncs = rng.random_bool(0.2);
        let crashes = !resyncs && rng.random_bool(0.3);
        Plan {
            end,
            workers: [rng.random_range(1..=4), rng.random_range(1..=4)],
            crash: crashes.then(|| rng.random_range(0..60)),
            resyncs,
            second_kill: rng.random_bool(0.3).then(|| Duration::from_millis(rng.random_range(0..400))),
            is_replayed: rng.random_bool(0.15) || matches!(end, End::At(Point { needs: Needs::Replay, .. }, _)),
            is_asked: rng.random_bool(0.3),
        }
    }
}

impl fmt::Display for Plan {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.end {
            End::At(point, passes) => write!(f, "{} after {passes} passes", point.name)?,
            End::Moment(operations) => write!(f, "killed after {operations} operations")?,
        }
        let [before, after] = self.workers;
        write!(f, ", {before} then {after} workers")?;
        if let Some(operations) = self.crash {
            write!(f, ", PostgreSQL crashes after {operations} operations")?;
        }
        if self.resyncs {
            write!(f, ", resynced meanwhile")?;
        }
        if self.is_replayed {
            write!(f, ", a replay")?;
        }
        if let Some(after) = self.second_kill {
            write!(f, ", killed again {after:?} into the start")?;
        }
        Ok(())
    }
}

impl Sitting {
    pub async fn new(seed: u64) -> Sitting {
        // Little memory for decoding, so that large transactions are streamed.
        let postgres = Postgres::new(&["logical_decoding_work_mem = 64kB"]).await;
        let mut system = System::new(&[
            "--hot-followers",
            HOT_FOLLOWERS,
            "--home-max",
            "60",
            "--home-keep",
            "40",
            "--bulk-rows",
            "1500",
            "--tail-minutes",
            "0",
            "--save-seconds",
            "1",
        ]);
        system.database_url = Some(postgres.url());
        system.go().await;
        let mut writer = Writer::new(&postgres);
        writer.run(PEOPLE).await;
        system.kill();
        Sitting { seed, postgres, system, writer, kills: Kills::default() }
    }

    /// A round as the seed says.
    pub async fn round(&mut self, number: u64) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        rng.set_stream(number);
        let plan = Plan::of(&mut rng, self.seed.wrapping_add(number));
        let started = Instant::now();
        print!("  round {number}: {plan}");
        self.follow(&plan, &mut rng).await;
        println!(" ({:.1} s)", started.elapsed().as_secs_f64());
    }

    /// A round by plan: at its end every view equals its SQL, and the process does not run.
    pub async fn follow(&mut self, plan: &Plan, rng: &mut ChaCha8Rng) {
        if matches!(plan.end, End::At(Point { needs: Needs::Copy, .. }, _)) {
            // As the manual says: whoever removes it gets a new copy.
            std::fs::remove_dir_all(self.system.data().join("log")).unwrap();
        }
        if matches!(plan.end, End::At(Point { needs: Needs::Settling, .. }, _)) {
            let before = POINTS.iter().find(|point| point.name == "large_rows_before").unwrap();
            let before = Plan {
                end: End::At(*before, 0),
                crash: None,
                resyncs: false,
                second_kill: None,
                is_replayed: false,
                ..*plan
            };
            self.write_and_die(&before, rng).await;
        }
        self.write_and_die(plan, rng).await;
        // PostgreSQL takes writes meanwhile.
        let operations = rng.random_range(0..20);
        self.writer.write_some(rng, operations).await;
        self.system.failpoints = None;
        self.workers(plan.workers[1]);
        if let Some(after) = plan.second_kill {
            // It may be so early that there was no time to say where it listens.
            let system = &mut self.system;
            let pid = system.launch();
            tokio::time::sleep(after).await;
            nix::sys::signal::kill(pid, Signal::SIGKILL).unwrap();
            system.wait();
            self.kills.count("(at a moment of the start)");
        }
        self.system.go().await;
        let operations = rng.random_range(5..40);
        self.writer.write_some(rng, operations).await;
        self.system.verified().await;
        if plan.is_asked {
            self.system.interrupt();
        } else {
            self.system.kill();
        }
    }

    /// Writes for so long, without a kill: at its end every view equals its SQL.
    pub async fn load(&mut self, length: Duration, rng: &mut ChaCha8Rng) -> usize {
        self.system.go().await;
        let (began, mut operations) = (Instant::now(), 0);
        while began.elapsed() < length {
            self.writer.write_some(rng, 10).await;
            operations += 10;
        }
        println!("{}", self.system.verified().await);
        operations
    }

    fn workers(&mut self, workers: u32) {
        let settings = &mut self.system.settings;
        if let Some(at) = settings.iter().position(|setting| setting == "--workers") {
            settings.truncate(at);
        }
        settings.extend(["--workers".to_owned(), workers.to_string()]);
    }

    /// Starts, writes, and comes back when the process is dead.
    async fn write_and_die(&mut self, plan: &Plan, rng: &mut ChaCha8Rng) {
        let (mut sql_rng, mut http_rng) = (ChaCha8Rng::from_rng(rng), ChaCha8Rng::from_rng(rng));
        let is_huge = matches!(plan.end, End::At(Point { needs: Needs::Huge, .. }, _));
        // Workers share a closed time, and the part of each is to be more than one write.
        self.workers(if is_huge { 1 } else { plan.workers[0] });
        self.system.failpoints = match plan.end {
            End::At(point, passes) => Some(format!("{}={passes}*off->return", point.name)),
            End::Moment(_) => None,
        };
        let logged = self.system.log().len();
        let pace = Pace::default();
        let Sitting { postgres, system, writer, .. } = self;
        let write = async {
            if is_huge {
                writer.run(HUGE[0]).await;
            }
            writer.write(&mut sql_rng, &pace).await;
        };
        let live_and_die = async {
            // It may die before it says where it listens.
            if system.spawn().await.is_ok() {
                let system = &*system;
                tokio::join!(
                    write_by_http(system, &mut http_rng, &pace),
                    resync(plan, system, &pace),
                    replay(plan, system),
                    end(plan, postgres, system, &pace)
                );
            }
            pace.stop.store(true, Ordering::Relaxed);
        };
        tokio::join!(write, live_and_die);
        if is_huge {
            writer.run(HUGE[1]).await;
        }
        let status = system.wait();
        let log = system.log();
        let said = log.get(logged..).unwrap_or_default();
        assert_eq!(status.signal(), Some(Signal::SIGKILL as i32), "it ended by itself ({status}):\n{said}");
        let place = said.lines().find_map(|line| line.strip_prefix("failpoint ")?.strip_suffix(": kill -9"));
        match (place, plan.end) {
            (Some(place), _) => self.kills.count(place),
            (None, End::Moment(_)) => self.kills.count("(at a moment)"),
            (None, End::At(point, _)) => self.kills.count(&format!("({} was not reached)", point.name)),
        }
        if plan.crash.is_some() {
            self.kills.count("(PostgreSQL)");
        }
    }
}

/// Resyncs where that is planned, once after the other, until the process is dead.
async fn resync(plan: &Plan, system: &System, pace: &Pace) {
    while plan.resyncs && !pace.stop.load(Ordering::Relaxed) {
        let output = system.command(&["resync"]).await;
        let error = String::from_utf8_lossy(&output.stderr);
        // The process dies in the middle of the last one.
        let died =
            ["ended before it had answered", "no Feedmill answers", "could not read the answer", "could not send"];
        assert!(output.status.success() || died.iter().any(|died| error.contains(died)), "{output:?}");
    }
}

/// Has all stores built again where that is planned. It ends when the process does, at the latest.
async fn replay(plan: &Plan, system: &System) {
    if plan.is_replayed {
        system.command(&["replay"]).await;
    }
}

/// Crashes PostgreSQL where that is planned, and waits until the process is dead, or kills it at its moment.
async fn end(plan: &Plan, postgres: &mut Postgres, system: &System, pace: &Pace) {
    let deadline = Instant::now() + REACHED_MAX;
    let mut crash = plan.crash;
    let mut pause = tokio::time::interval(PAUSE);
    while system.is_running() && Instant::now() < deadline {
        let done = pace.done.load(Ordering::Relaxed);
        if crash.take_if(|operations| *operations <= done).is_some() {
            postgres.stop_immediate();
            postgres.start().await;
        }
        if matches!(plan.end, End::Moment(operations) if operations <= done && crash.is_none()) {
            break;
        }
        pause.tick().await;
    }
    system.crash();
    pace.stop.store(true, Ordering::Relaxed);
}
