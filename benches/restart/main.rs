//! How fast a system of 20 million follows comes back, after a kill and after a clean stop.
//!
//! ```text
//!   feedmill up, stop        a private PostgreSQL, its slot, an empty change log
//!   follows, users, activity into the change log, as a first copy would put them
//!   feedmill up              fills the stores; then a million tweets by COPY: capture, log, dataflows, home timelines
//!   kill -9, feedmill up     the first read served, and its age; caught up; peak and settled memory
//!   Ctrl-C, feedmill up      the same
//! ```
//!
//! Users and follows are in the change log alone: PostgreSQL has nothing to do with a restart but its end of the log, and
//! filling it too would take longer than all the rest. Everything else is the real system, over HTTP.
//!
//! ```text
//!   cargo bench --bench restart
//!   cargo bench --bench restart -- --users 100000 --tweets 100000
//! ```

mod fill;
mod system;

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::ensure;
use clap::Parser;

use crate::system::{Memory, System};

/// What is built.
#[derive(Parser, Clone, Debug)]
struct Args {
    /// Users, all active
    #[arg(long, default_value_t = 1_000_000)]
    users: i64,
    /// Accounts that each user follows
    #[arg(long, default_value_t = 20)]
    follows: i64,
    /// Tweets, pushed to the followers of their authors
    #[arg(long, default_value_t = 1_000_000)]
    tweets: i64,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// Memory counts as settled when the system has been ready for so long.
const SETTLE: Duration = Duration::from_secs(20);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let mut folder = tempfile::Builder::new().prefix("feedmill-restart-").tempdir()?;
    let outcome = restarts(folder.path(), &args).await;
    // An error names the log in it.
    folder.disable_cleanup(outcome.is_err());
    outcome
}

async fn restarts(folder: &Path, args: &Args) -> anyhow::Result<()> {
    println!("{} follows, {} users, {} tweets", args.users * args.follows, args.users, args.tweets);

    let began = Instant::now();
    let mut system = System::start(folder).await?;
    system.ready().await?;
    system.stop()?;
    fill::graph(folder, args)?;
    println!("change log filled after {:.1?}", began.elapsed());

    let mut system = System::start(folder).await?;
    system.ready().await?;
    println!("stores filled after {:.1?}", began.elapsed());
    fill::tweets(folder, args).await?;
    system.settled(args).await?;
    println!("tweets delivered and saved after {:.1?}", began.elapsed());
    let before = system.home(fill::user(7)).await?;
    ensure!(before.tweets > 0 || args.tweets < args.users, "the viewer's timeline is empty");

    println!(
        "{:<12} {:>12} {:>10} {:>12} {:>10} {:>10} {:>7}",
        "after", "first read", "its age", "caught up", "peak", "settled", "ratio"
    );
    for how in ["kill -9", "clean stop"] {
        let stopped = Instant::now();
        if how == "kill -9" {
            system.kill()?;
        } else {
            system.stop()?;
            println!("the clean stop took {:.1?}", stopped.elapsed());
        }
        let began = Instant::now();
        system = System::start(folder).await?;
        let read = system.home(fill::user(7)).await?;
        let first_read = began.elapsed();
        ensure!(read.tweets == before.tweets, "{} tweets were served, {} before", read.tweets, before.tweets);
        system.ready().await?;
        let caught_up = began.elapsed();
        tokio::time::sleep(SETTLE).await;
        let Memory { peak, settled } = system.memory()?;
        println!(
            "{how:<12} {:>10.2} s {:>8.1} s {:>10.2} s {:>6.0} MiB {:>6.0} MiB {:>7.2}",
            first_read.as_secs_f64(),
            read.age.as_secs_f64(),
            caught_up.as_secs_f64(),
            peak / 1_048_576.0,
            settled / 1_048_576.0,
            peak / settled,
        );
    }
    system.stop()
}
