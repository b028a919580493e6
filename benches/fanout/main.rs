//! Fan-out: posts × followers, through the real job into the real store of home timelines.
//!
//! A million users follow 20 accounts each, of 100,000 that post; a post has 200 followers, and comes in batches of 60.
//! In the same run stand what it is measured against: the bare differential join, the same join exchanged to the
//! worker of the viewer, and a pipelined Redis `LPUSH` loop. Each variant runs in a process of its own, so that its
//! memory can be told by RSS.
//!
//! ```text
//!   cargo bench --bench fanout                       all variants, the table
//!   cargo bench --bench fanout -- --users 100000     a smaller graph
//! ```

mod feedmill;
mod join;
mod redis;

use std::collections::BTreeMap;
use std::process::Command;
use std::time::{Duration, Instant};

use clap::Parser;

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
    /// Posts in a batch
    #[arg(long, default_value_t = 60)]
    posts: i64,
    /// Batches that are delivered
    #[arg(long, default_value_t = 4_000)]
    batches: u64,
    /// One variant only, in this process
    #[arg(long)]
    variant: Option<Variant>,
    /// Workers of that variant
    #[arg(long, default_value_t = 1)]
    workers: usize,
    /// Processes of that variant, of so many workers each
    #[arg(long, default_value_t = 1)]
    processes: usize,
    /// Load the users without their follows, and tell the memory: what is subtracted to know what follows take
    #[arg(long, hide = true)]
    users_only: bool,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// What delivers.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Variant {
    /// The job `home` into the local store.
    Feedmill,
    /// `join_core` of posts with follows, counted.
    Join,
    /// The same, exchanged to the worker of the viewer, counted.
    Exchanged,
    /// `LPUSH` of each delivery, pipelined by batch.
    Redis,
}

/// What a variant measured.
#[derive(Default)]
struct Figures {
    deliveries: u64,
    took: Duration,
    /// RSS before deliveries, once settled, in bytes.
    loaded_bytes: Option<f64>,
    /// Bytes of RSS that each delivered entry took.
    entry_bytes: Option<f64>,
}

impl Args {
    /// The account that `user` follows as its `n`th: every account that posts gets about the same number of followers.
    fn followed(&self, user: i64, n: i64) -> i64 {
        let mixed = ((user * self.follows + n) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 20;
        (mixed % self.authors() as u64) as i64
    }

    /// Accounts that post.
    fn authors(&self) -> i64 {
        (self.users * self.follows / self.followers).max(1)
    }

    /// The author of the `n`th post: spread over all who post.
    fn author(&self, n: i64) -> i64 {
        ((n as u64).wrapping_mul(0xD129_0D3F_57A1_1C5D) >> 20) as i64 % self.authors()
    }
}

/// Resident memory of this process in bytes.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4_096.0
}

/// Resident memory once it no longer falls: the allocator gives back what was freed while it is used, a second or so
/// after it was. `idle` keeps it in use.
fn settled(mut idle: impl FnMut() -> anyhow::Result<()>) -> anyhow::Result<f64> {
    let began = Instant::now();
    let (mut least, mut since) = (f64::MAX, Instant::now());
    while since.elapsed() < Duration::from_millis(1_500) && began.elapsed() < Duration::from_secs(20) {
        idle()?;
        let now = resident();
        if now < least * 0.998 {
            (least, since) = (now, Instant::now());
        }
    }
    Ok(least.min(resident()))
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    match args.variant {
        Some(variant) => {
            let figures = match variant {
                Variant::Feedmill => feedmill::run(&args)?,
                Variant::Join => join::run(&args, false)?,
                Variant::Exchanged => join::run(&args, true)?,
                Variant::Redis => redis::run(&args)?,
            };
            println!("deliveries {}", figures.deliveries);
            println!("seconds {}", figures.took.as_secs_f64());
            for (name, bytes) in [("loaded_bytes", figures.loaded_bytes), ("entry_bytes", figures.entry_bytes)] {
                if let Some(bytes) = bytes {
                    println!("{name} {bytes}");
                }
            }
            Ok(())
        }
        None => compare(&args),
    }
}

/// Runs every variant and prints the table.
fn compare(args: &Args) -> anyhow::Result<()> {
    println!(
        "{} users, {} follows, {} followers a post, batches of {} posts\n",
        args.users,
        args.users * args.follows,
        args.followers,
        args.posts
    );
    println!("{:<42} {:>14} {:>12}", "", "deliveries/s", "of exchanged");
    for workers in [1, 2] {
        let exchanged = measure(args, Variant::Exchanged, workers, false)?;
        let base = rate(&exchanged);
        let mut lines = vec![("differential join, bare", measure(args, Variant::Join, workers, false)?)];
        lines.push(("differential join, exchanged to the viewer", exchanged));
        lines.push(("Feedmill: home job into the local store", measure(args, Variant::Feedmill, workers, false)?));
        match workers {
            1 => lines.push(("Redis LPUSH, pipelined", measure(args, Variant::Redis, 1, false)?)),
            _ => {
                let args = Args { processes: workers, ..args.clone() };
                lines.push(("Feedmill: as many processes of one worker", measure(&args, Variant::Feedmill, 1, false)?));
            }
        }
        println!("{workers} worker{}", if workers == 1 { "" } else { "s" });
        for (name, figures) in lines {
            let rate = rate(&figures);
            println!("  {name:<40} {rate:>14.0} {:>12.2}", rate / base);
        }
    }
    memory(args)
}

/// What follows and entries take, as RSS, with an allocator that gives back at once what is freed.
fn memory(args: &Args) -> anyhow::Result<()> {
    println!("\n{:<42} {:>14} {:>14}", "Feedmill, one worker", "bytes/follow", "bytes/entry");
    let loaded = |args: &Args| measure(args, Variant::Feedmill, 1, true);
    let without = loaded(&Args { users_only: true, ..args.clone() })?;
    let with = loaded(args)?;
    let of = |figures: &BTreeMap<String, f64>, name| figures.get(name).copied().unwrap_or(f64::NAN);
    let follow_bytes = (of(&with, "loaded_bytes") - of(&without, "loaded_bytes")) / (args.users * args.follows) as f64;
    println!("{:<42} {follow_bytes:>14.1} {:>14.1}", "", of(&with, "entry_bytes"));
    Ok(())
}

fn rate(figures: &BTreeMap<String, f64>) -> f64 {
    let of = |name| figures.get(name).copied().unwrap_or(f64::NAN);
    of("deliveries") / of("seconds")
}

/// Runs one variant in a process of its own; with `purge` the allocator gives memory back at once, at the cost of time.
fn measure(args: &Args, variant: Variant, workers: usize, purge: bool) -> anyhow::Result<BTreeMap<String, f64>> {
    let name =
        clap::ValueEnum::to_possible_value(&variant).map(|value| value.get_name().to_owned()).unwrap_or_default();
    let numbers = [args.users, args.follows, args.followers, args.posts].map(|number| number.to_string());
    let [users, follows, followers, posts] = &numbers;
    let mut command = Command::new(std::env::current_exe()?);
    if purge {
        command.env("MIMALLOC_PURGE_DELAY", "0");
    }
    if args.users_only {
        command.arg("--users-only");
    }
    let output = command
        .args(["--users", users, "--follows", follows, "--followers", followers, "--posts", posts])
        .args(["--batches", &args.batches.to_string(), "--variant", &name, "--workers", &workers.to_string()])
        .args(["--processes", &args.processes.to_string()])
        .stderr(std::process::Stdio::inherit())
        .output()?;
    anyhow::ensure!(output.status.success(), "the variant {name} failed: {}", output.status);
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter_map(|(name, number)| Some((name.to_owned(), number.parse().ok()?)))
        .collect())
}
