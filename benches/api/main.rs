//! What reading a home timeline costs, beside the same route and middleware answering stored bytes of an equal page.
//!
//! ```text
//!   batches ─► dataflows ─► stores ─► API ─► in the process: µs a read       over HTTP on this machine: reads/s, p50, p99
//!                                      └─ the same with `/api/timeline` answering stored bytes
//! ```
//!
//! The stores hold 100,000 viewers with 20 accounts followed each and full first pages. In the process there is nothing but
//! the read; over HTTP the client shares the cores. Then the same while 2,000 posts a second are delivered, what a page
//! costs that is merged from the accounts followed, and what logins do to reads.
//!
//! ```text
//!   cargo bench --bench api
//!   cargo bench --bench api -- --users 10000 --seconds 2
//! ```

mod client;
mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::ensure;
use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::Request;
use clap::Parser;
use hdrhistogram::Histogram;
use tower::ServiceExt;

use crate::client::{Client, closed_loop, open_loop};
use crate::world::World;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// What is built and read.
#[derive(Parser, Clone, Debug)]
struct Args {
    /// Users, all active
    #[arg(long, default_value_t = 100_000)]
    users: i64,
    /// Accounts that each user follows
    #[arg(long, default_value_t = 20)]
    follows: i64,
    /// Mean followers of an author
    #[arg(long, default_value_t = 200)]
    followers: i64,
    /// How long each part takes
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// Posts a second of the part with posts
    #[arg(long, default_value_t = 2_000)]
    posts: u64,
    /// Reads a second of the parts with posts and with logins
    #[arg(long, default_value_t = 500)]
    reads: u64,
    /// Connections of the client
    #[arg(long, default_value_t = 16)]
    connections: usize,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// Reads a second that a product at the scale of the largest has to answer.
const READS_WANTED: f64 = 600_000.0;
/// Where a home timeline is read.
const TIMELINE: &str = "/api/timeline?limit=20";

#[tokio::main]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let time = Duration::from_secs(args.seconds);
    let mut world = World::build(&args).await?;
    println!("{} users who follow {} accounts each", args.users, args.follows);

    let page = in_process(&world.app()?, &world.token(1)?).await?.1;
    println!("a page of 20 has {} bytes", page.len());
    let (timeline, stored) = (world.app()?, world.stored(page)?);

    println!("\n{:<44} {:>10} {:>10} {:>12}", "in the process, one thread", "µs a read", "reads/s", "of stored");
    let mut costs = Vec::new();
    for (name, app) in [("stored bytes", &stored), ("home timeline", &timeline)] {
        let cost = cost(app, &world, &args, time).await?;
        costs.push(cost);
        let of_stored = costs.first().map_or(1.0, |stored| stored / cost);
        println!("{name:<44} {cost:>10.1} {:>10.0} {of_stored:>12.2}", 1e6 / cost);
    }
    if let Some(cost) = costs.last() {
        println!("600,000 reads/s need {:.0} cores", READS_WANTED * cost / 1e6);
    }

    header("over HTTP, as fast as it goes");
    let mut rates = Vec::new();
    for (name, app) in [("stored bytes", stored), ("home timeline", timeline)] {
        let server = Client::serve(app).await?;
        let (rate, times) = closed_loop(&server, &world, &args, time).await?;
        row(name, rate, &times);
        rates.push(rate);
    }
    if let [stored, timeline] = rates[..] {
        println!("home timeline, of stored bytes: {:.2}", timeline / stored);
    }

    header(&format!("over HTTP, {} reads/s", args.reads));
    let server = Client::serve(world.app()?).await?;
    let (rate, times) = open_loop(&server, &world, &args, time).await?;
    row("alone", rate, &times);

    let over = Arc::new(AtomicBool::new(false));
    let before = world.deliveries();
    let writer = world.post_in_the_background(args.posts, Arc::clone(&over))?;
    let (rate, times) = open_loop(&server, &world, &args, time).await?;
    over.store(true, Ordering::Relaxed);
    world.goes_on_with(writer.join().map_err(|_| anyhow::anyhow!("the writer has panicked"))??);
    let delivered = (world.deliveries() - before) as f64 / time.as_secs_f64();
    row(&format!("beside {} posts/s, {delivered:.0} deliveries/s", args.posts), rate, &times);

    // Hashing takes a core for tens of milliseconds; as many logins as wait for one another.
    let (over, logins) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
    let asking = tokio::spawn(login_again_and_again(world.app()?, Arc::clone(&over), Arc::clone(&logins)));
    let (rate, times) = open_loop(&server, &world, &args, time).await?;
    over.store(true, Ordering::Relaxed);
    asking.await??;
    let a_second = logins.load(Ordering::Relaxed) as f64 / time.as_secs_f64();
    row(&format!("beside {a_second:.1} logins/s"), rate, &times);

    println!("\n{:<44} {:>10}", "a page that is merged, in the process", "µs");
    let app = world.app()?;
    for (viewer, follows) in world.mergers() {
        let token = world.token(viewer)?;
        let mut times = Histogram::<u64>::new(3)?;
        let began = Instant::now();
        while began.elapsed() < time / 4 || times.len() < 5 {
            let (took, _) = in_process(&app, &token).await?;
            times.record(u64::try_from(took.as_micros())?)?;
        }
        println!("{:<44} {:>10}", format!("of {follows} accounts followed"), times.value_at_quantile(0.5));
    }
    println!("\na login takes {:.1} ms, of which argon2 {:.1} ms", world.login_ms().await?, world::argon2_ms()?);
    world.stop().await
}

fn header(what: &str) {
    println!("\n{what:<44} {:>10} {:>10} {:>10} {:>10}", "reads/s", "p50 ms", "p99 ms", "max ms");
}

fn row(name: &str, rate: f64, times: &Histogram<u64>) {
    let ms = |micros: u64| micros as f64 / 1_000.0;
    println!(
        "{name:<44} {rate:>10.0} {:>10.2} {:>10.2} {:>10.2}",
        ms(times.value_at_quantile(0.5)),
        ms(times.value_at_quantile(0.99)),
        ms(times.max())
    );
}

/// One read, and what it gave.
async fn in_process(app: &Router, token: &str) -> anyhow::Result<(Duration, Bytes)> {
    let request = Request::get(TIMELINE).header("authorization", token).body(Body::empty())?;
    let asked = Instant::now();
    let response = app.clone().oneshot(request).await?;
    let status = response.status();
    let body = axum::body::to_bytes(response.into_body(), usize::MAX).await?;
    ensure!(status.is_success(), "{TIMELINE} answered {status}: {}", String::from_utf8_lossy(&body));
    Ok((asked.elapsed(), body))
}

/// Microseconds that a read takes when nothing else is done.
async fn cost(app: &Router, world: &World, args: &Args, time: Duration) -> anyhow::Result<f64> {
    let tokens = (1..=1_000).map(|n| world.token(n * 7 % args.users)).collect::<Result<Vec<_>, _>>()?;
    let (began, mut reads) = (Instant::now(), 0_u32);
    for token in tokens.iter().cycle() {
        in_process(app, token).await?;
        reads += 1;
        if reads % 64 == 0 && began.elapsed() > time {
            break;
        }
    }
    Ok(began.elapsed().as_secs_f64() * 1e6 / f64::from(reads))
}

/// Four clients who log in with a wrong password, each again when it is answered.
async fn login_again_and_again(app: Router, over: Arc<AtomicBool>, logins: Arc<AtomicU64>) -> anyhow::Result<()> {
    let mut clients = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let (app, over, logins) = (app.clone(), Arc::clone(&over), Arc::clone(&logins));
        clients.spawn(async move {
            while !over.load(Ordering::Relaxed) {
                let request = Request::post("/api/auth/login")
                    .header("content-type", "application/json")
                    .body(Body::from(world::LOGIN))?;
                let status = app.clone().oneshot(request).await?.status();
                ensure!(status == 401, "a login answered {status}");
                logins.fetch_add(1, Ordering::Relaxed);
            }
            anyhow::Ok(())
        });
    }
    while let Some(client) = clients.join_next().await {
        client??;
    }
    Ok(())
}
