//! All jobs together, into the local stores: what they keep up with, what one write costs, and the most skewed cases.
//!
//! A million users follow 20 accounts each and are all active. Each part runs in a process of its own.
//!
//! ```text
//!   cargo bench --bench views                                  all parts
//!   cargo bench --bench views -- --users 100000 --part skew    one, on a smaller graph
//! ```

mod memory;
mod single;
mod skew;
mod together;
mod world;

use std::process::Command;
use std::time::Duration;

use anyhow::ensure;
use clap::{Parser, ValueEnum};
use nix::sys::resource::{UsageWho, getrusage};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is measured, and on what.
#[derive(Parser, Clone, Debug)]
struct Args {
    /// Users, each of whom follows --follows accounts
    #[arg(long, default_value_t = 1_000_000)]
    users: i64,
    /// Accounts that each user follows
    #[arg(long, default_value_t = 20)]
    follows: i64,
    /// Followers of each account that posts
    #[arg(long, default_value_t = 200)]
    followers: i64,
    /// Seconds of load
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// Workers
    #[arg(long, default_value_t = 2)]
    workers: usize,
    /// One part only, in this process
    #[arg(long)]
    part: Option<Part>,
    /// Rows of which the memory is told
    #[arg(long, value_enum, hide = true)]
    rows: Option<memory::Rows>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// A part of the bench.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Part {
    /// 6,000 tweets, 3,000 likes and 500 follows a second, with the share of each job.
    Together,
    /// One write at a time.
    Single,
    /// One account, tweet, tag or thread that has it all.
    Skew,
    /// What a row takes.
    Memory,
}

/// Time on a processor that this process has spent.
fn cpu() -> anyhow::Result<Duration> {
    let usage = getrusage(UsageWho::RUSAGE_SELF)?;
    let spent = |time: nix::sys::time::TimeVal| {
        Duration::from_secs(time.tv_sec().unsigned_abs()) + Duration::from_micros(time.tv_usec().unsigned_abs())
    };
    Ok(spent(usage.user_time()) + spent(usage.system_time()))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match (args.part, args.rows) {
        (Some(Part::Together), _) => together::run(&args),
        (Some(Part::Single), _) => single::run(&args),
        (Some(Part::Skew), _) => skew::run(&args),
        (Some(Part::Memory), Some(rows)) => memory::of(&args, rows),
        (Some(Part::Memory), None) => memory::run(&args),
        (None, _) => {
            for part in Part::value_variants() {
                let name = part.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
                let status = Command::new(std::env::current_exe()?)
                    .args(std::env::args_os().skip(1))
                    .args(["--part", &name])
                    .status()?;
                ensure!(status.success(), "the part {name} failed: {status}");
            }
            Ok(())
        }
    }
}
