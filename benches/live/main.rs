//! What very many open streams cost: memory a client, processor time, and the delay from a commit to its clients.
//!
//! ```text
//!   feedmill up ── private PostgreSQL ◄── a tweet every 1/n s ◄── this process ── commits, by id
//!       ▲                                                             ▲
//!       └── 10,000 WebSockets, one a viewer ── clients, a process of their own ── arrivals, by id
//! ```
//!
//! Each viewer follows as many accounts as follow it, and some verified ones besides, which are merged at read. The clients
//! are idle but for what is delivered. Memory is the resident memory of `feedmill up` with them, less that without them,
//! after every timeline was read once, so that no cache grows for them.
//!
//! ```text
//!   cargo bench --bench live
//!   cargo bench --bench live -- --clients 1000 --deliveries 1000
//! ```

mod clients;
mod system;

use std::collections::HashMap;
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context, ensure};
use clap::Parser;
use hdrhistogram::Histogram;
use tokio::time::{MissedTickBehavior, interval, sleep, timeout};

use crate::clients::{Clients, Said};
use crate::system::System;

/// What is measured.
#[derive(Parser, Clone, Debug)]
struct Args {
    /// Clients, each of another viewer
    #[arg(long, default_value_t = 10_000)]
    clients: i64,
    /// Entries that reach clients, a second
    #[arg(long, default_value_t = 200)]
    deliveries: i64,
    /// Accounts that each viewer follows, and followers of each
    #[arg(long, default_value_t = 20)]
    follows: i64,
    /// Verified accounts that each viewer follows besides
    #[arg(long, default_value_t = 5)]
    hot: i64,
    /// Seconds of deliveries
    #[arg(long, default_value_t = 60)]
    seconds: u64,
    /// Be the clients of the system here
    #[arg(long, hide = true)]
    connect: Option<String>,
    /// Its folder
    #[arg(long, hide = true)]
    data: Option<PathBuf>,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// For how long idle clients are watched.
const IDLE: Duration = Duration::from_secs(30);
/// What was committed arrives in this time, or never.
const LATE: Duration = Duration::from_secs(10);

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    if let (Some(url), Some(data)) = (&args.connect, &args.data) {
        return clients::run(&args, url, data).await;
    }
    let mut folder = tempfile::Builder::new().prefix("feedmill-live-").tempdir()?;
    let outcome = streams(folder.path().to_owned(), &args).await;
    // An error names the log in it.
    folder.disable_cleanup(outcome.is_err());
    outcome
}

/// Microseconds since 1970, by the clock that all processes of this machine have.
fn now_us() -> u64 {
    SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_micros()).unwrap_or(u64::MAX))
}

async fn streams(folder: PathBuf, args: &Args) -> anyhow::Result<()> {
    let mut system = System::start(&folder).await?;
    system.fill(args).await?;
    system.read_all(args).await?;
    sleep(IDLE).await;
    let without = system.memory()?;
    println!("{} viewers, {:.0} MiB without clients", args.clients, without / 1_048_576.0);

    let began = Instant::now();
    let mut clients = Clients::start(args, system.url(), &folder)?;
    ensure!(matches!(clients.next().await?, Said::Open), "the clients began otherwise");
    println!("{} clients open after {:.1?}", args.clients, began.elapsed());
    sleep(IDLE).await;
    let (cpu, since) = (system.cpu()?, Instant::now());
    sleep(IDLE).await;
    let idle = (system.cpu()? - cpu) / since.elapsed().as_secs_f64();
    let with = system.memory()?;
    let each = (with - without) / args.clients as f64;
    println!("idle: {:.1} KiB a client ({:.0} MiB in all), {idle:.3} cores", each / 1_024.0, with / 1_048_576.0);

    let (cpu, since) = (system.cpu()?, Instant::now());
    let (commits, mut arrivals) = post(&mut system, &mut clients, args).await?;
    let busy = (system.cpu()? - cpu) / since.elapsed().as_secs_f64();
    // The author of a tweet listens too.
    let expected = commits.len() * usize::try_from(args.follows + 1)?;
    while arrivals.len() < expected {
        let Said::Arrived { tweet, at_us } = timeout(LATE, clients.next()).await.context("some never came")?? else {
            continue;
        };
        arrivals.push((tweet, at_us));
    }
    let mut delays = Histogram::<u64>::new(3)?;
    for (tweet, at_us) in &arrivals {
        let committed_us = commits.get(tweet).context("a tweet that nobody has posted")?;
        delays.record(at_us.saturating_sub(*committed_us))?;
    }
    ensure!(arrivals.len() == expected, "{} entries arrived, of {expected}", arrivals.len());
    let at = |quantile| delays.value_at_quantile(quantile) as f64 / 1e3;
    println!(
        "{} tweets, {:.0} deliveries/s: commit to client p50 {:.1} ms, p99 {:.1} ms, max {:.1} ms, {busy:.3} cores, \
         {:.1} KiB a client",
        commits.len(),
        expected as f64 / since.elapsed().as_secs_f64(),
        at(0.5),
        at(0.99),
        delays.max() as f64 / 1e3,
        (system.memory()? - without) / args.clients as f64 / 1_024.0,
    );
    clients.stop()?;
    system.stop()
}

/// Commits by tweet, and arrivals, in microseconds since 1970.
type Measured = (HashMap<i64, u64>, Vec<(i64, u64)>);

async fn post(system: &mut System, clients: &mut Clients, args: &Args) -> anyhow::Result<Measured> {
    let (mut commits, mut arrivals) = (HashMap::new(), Vec::new());
    let mut due = interval(Duration::from_secs_f64(args.follows as f64 / args.deliveries as f64));
    due.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let deadline = Instant::now() + Duration::from_secs(args.seconds);
    // Not neighbours, whose followers are neighbours too.
    let mut authors = (0..).map(|post: i64| 1 + post * 7_919 % args.clients);
    while Instant::now() < deadline {
        tokio::select! {
            _ = due.tick() => {
                let tweet = system.post(authors.next().unwrap_or(1)).await?;
                commits.insert(tweet, now_us());
            }
            said = clients.next() => if let Said::Arrived { tweet, at_us } = said? {
                arrivals.push((tweet, at_us));
            }
        }
    }
    Ok((commits, arrivals))
}
