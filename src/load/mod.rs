//! `feedmill load`: load on a running system, and what it does with it.
//!
//! ```text
//!   graph ── COPY ──► PostgreSQL            until the home timelines have it
//!   arrivals at --rate ──► post ──► commit answered ──┬─► latency of the post
//!                                                     └─► of some: follower's timeline until it shows ──► visible
//!   arrivals at --read-rate ──► timelines of random users ──► latency of reads
//!   one transaction of --large rows ──► commit ──► visible; the posts beside and behind it apart
//!   /metrics, ten times a second ──► deliveries
//! ```
//!
//! Both loops are open: see [`arrivals`]. Everything that goes wrong is counted by kind, and never tried again.

mod arrivals;
mod client;
mod deliveries;
mod fill;
mod graph;
mod large;
mod outcome;
mod post;
mod visible;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use feedmill_api::Keys;
use feedmill_connectors::postgres::Source;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::arrivals::Arrivals;
use self::client::Client;
use self::graph::{Graph, Plan, Rounds};
use self::large::{Large, LargeOf, Written};
use self::outcome::{Errors, Latencies, Outcome};
use self::post::Poster;
use crate::config::Settings;

/// Requests that may wait for their answers: those of so many seconds at the wanted rate. What comes on top is an error.
const WAITING_S: f64 = 5.0;
/// At least so many may wait.
const WAITING_MIN: u64 = 64;
/// The graph is in the home timelines by then.
const APPLIED_MAX: Duration = Duration::from_secs(600);

/// What `feedmill load` takes beside the settings.
#[derive(Args, Clone, Debug)]
pub struct LoadArgs {
    /// Users of the graph
    #[arg(long, value_name = "N", default_value_t = 100_000)]
    pub users: u64,

    /// Those of them who post
    #[arg(long, value_name = "N", default_value_t = 10_000)]
    pub authors: u64,

    /// Mean followers of an author, and so mean deliveries of a post
    #[arg(long, value_name = "N", default_value_t = 200)]
    pub followers: u64,

    /// Verified accounts beside, which each twentieth user follows
    #[arg(long, value_name = "N", default_value_t = 20)]
    pub hot: u64,

    /// Seed of the graph
    #[arg(long, default_value_t = 1)]
    pub seed: u64,

    /// Posts a second
    #[arg(long, value_name = "N", default_value_t = 1_000.0)]
    pub rate: f64,

    /// For how long: 30s, 2m
    #[arg(long = "for", value_name = "TIME", default_value = "60s", value_parser = humantime::parse_duration)]
    pub duration: Duration,

    /// Through what posts go
    #[arg(long, value_enum, default_value_t = Via::Api)]
    pub via: Via,

    /// Reads of home timelines a second
    #[arg(long, value_name = "N", default_value_t = 100.0)]
    pub read_rate: f64,

    /// Posts a second that are followed until they show in a follower's timeline
    #[arg(long, value_name = "N", default_value_t = 20.0)]
    pub sample_rate: f64,

    /// Rows of one large transaction, written when a third of the time has passed
    #[arg(long, value_name = "ROWS", default_value_t = 0)]
    pub large: u64,

    /// What they are
    #[arg(long, value_enum, default_value_t = LargeOf::Likes)]
    pub large_of: LargeOf,

    /// Connections for posts, and as many for reads
    #[arg(long, value_name = "N", default_value_t = 32)]
    pub connections: usize,

    /// File of the keys that sign tokens [default: that in the folder of --data]
    #[arg(long, value_name = "FILE")]
    pub jwt_key: Option<PathBuf>,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Through what posts go.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Via {
    /// The HTTP API.
    Api,
    /// Straight into PostgreSQL.
    Sql,
}

/// Form of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// One JSON object.
    Json,
}

impl LoadArgs {
    fn check(&self) -> anyhow::Result<()> {
        for (flag, rate) in [("rate", self.rate), ("read-rate", self.read_rate), ("sample-rate", self.sample_rate)] {
            ensure!((0.0..=1e6).contains(&rate), "--{flag} is {rate}, but must be from 0 to 1,000,000");
        }
        ensure!(self.rate > 0.0, "--rate is 0, but something must be posted");
        ensure!(!self.duration.is_zero(), "--for is 0, but load takes time");
        ensure!((1..=10_000).contains(&self.connections), "--connections must be from 1 to 10,000");
        Ok(())
    }
}

/// Fills the system if it is empty, puts load on it, and prints what was measured.
pub async fn run(args: LoadArgs, source: Source, settings: &Settings) -> anyhow::Result<()> {
    args.check()?;
    let graph = Graph::new(Plan {
        users: args.users,
        authors: args.authors,
        followers: args.followers,
        hot: args.hot,
        followers_max: settings.hot_followers - 1,
        seed: args.seed,
    })?;
    let key = args.jwt_key.clone().unwrap_or_else(|| settings.key_file());
    ensure!(
        key.exists(),
        "there is no key file {}: load signs in as its users with the keys of the running system; name its folder with \
         --data, or the file with --jwt-key",
        key.display()
    );
    let keys = Keys::load_or_create(&key)?;
    let reads = Arc::new(Client::new(settings.listen, keys.clone(), args.connections)?);
    reads.get("/ready", None).await.with_context(|| {
        format!(
            "no Feedmill is ready on {}: start one with `feedmill up`, or name its address with --listen",
            settings.listen
        )
    })?;
    let mut database = source.connect("feedmill load").await?;
    fill::fill(&mut database, &graph).await?;
    drop(database);
    let poster = match args.via {
        Via::Api => Poster::Api(Arc::new(Client::new(settings.listen, keys, args.connections)?)),
        Via::Sql => Poster::sql(&source, args.connections).await?,
    };
    eprintln!("waiting until the home timelines have the graph");
    until_applied(&reads, &graph).await?;

    eprintln!("posting {} a second for {}", args.rate, humantime::format_duration(args.duration));
    let large = match args.large {
        0 => None,
        rows => Some(Large::new(source, args.large_of, rows, args.authors)?),
    };
    let outcome = Run::new(&args, graph, poster, reads, large)?.measure(&args).await?;
    match args.format {
        Format::Table => outcome.print(),
        Format::Json => println!("{}", serde_json::to_string(&outcome).context("could not print the result")?),
    }
    Ok(())
}

/// One post, read with its token: when the timeline has it, it has everything that was committed before.
async fn until_applied(client: &Client, graph: &Graph) -> anyhow::Result<()> {
    let deadline = Instant::now() + APPLIED_MAX;
    let mut pause = tokio::time::interval(Duration::from_millis(500));
    let mut token = None;
    loop {
        pause.tick().await;
        let error = match &token {
            // Refused while the author is not yet known.
            None => match client.post("/api/tweets", graph.reader(), "{\"content\":\"Ready?\"}".to_owned()).await {
                Ok(answer) => {
                    token = Some(answer.token.context("the API's answer to a write has no X-Consistency-Token")?);
                    continue;
                }
                Err(error) => error,
            },
            Some(token) => match client.get_after("/api/timeline", graph.reader(), token).await {
                Ok(_) => return Ok(()),
                Err(error) => error,
            },
        };
        if Instant::now() > deadline {
            bail!("the home timelines do not have the graph after {APPLIED_MAX:?}: {error}");
        }
    }
}

/// What the tasks of a run share.
struct Run {
    graph: Graph,
    poster: Poster,
    reads: Arc<Client>,
    errors: Errors,
    visible: Latencies,
    read: Latencies,
    posted: Latencies,
    large: Option<Large>,
    /// Pushed followers of the committed posts.
    followers: AtomicU64,
    /// When the last post was committed, in microseconds after the start.
    last_commit: AtomicU64,
    tasks: TaskTracker,
    waiting_posts: AtomicU64,
    waiting_reads: AtomicU64,
    /// Each so many posts one is a sample; 0 for none.
    sample_every: u64,
    seed: u64,
}

impl Run {
    fn new(
        args: &LoadArgs,
        graph: Graph,
        poster: Poster,
        reads: Arc<Client>,
        large: Option<Large>,
    ) -> anyhow::Result<Arc<Self>> {
        let sample_every =
            if args.sample_rate > 0.0 { (args.rate / args.sample_rate).round().max(1.0) as u64 } else { 0 };
        Ok(Arc::new(Run {
            graph,
            poster,
            reads,
            errors: Errors::default(),
            visible: Latencies::new()?,
            read: Latencies::new()?,
            posted: Latencies::new()?,
            large,
            followers: AtomicU64::new(0),
            last_commit: AtomicU64::new(0),
            tasks: TaskTracker::new(),
            waiting_posts: AtomicU64::new(0),
            waiting_reads: AtomicU64::new(0),
            sample_every,
            seed: args.seed,
        }))
    }

    async fn measure(self: Arc<Self>, args: &LoadArgs) -> anyhow::Result<Outcome> {
        let ended = CancellationToken::new();
        ended.cancel();
        // Of what was written before, nothing is counted.
        deliveries::watch(Arc::clone(&self.reads), ended).await?;
        let ended = CancellationToken::new();
        let deliveries = tokio::spawn(deliveries::watch(Arc::clone(&self.reads), ended.clone()));
        let start = Instant::now();
        let posts = Arrivals::new(args.rate, args.duration);
        let reads = Arrivals::new(args.read_rate, args.duration);
        let (_, _, large) = tokio::join!(
            self.drive_posts(posts, start, args.rate),
            self.drive_reads(reads, start, args.read_rate),
            self.write_large(start + args.duration / 3)
        );
        // Each task is bounded by the limits of its requests.
        self.tasks.close();
        self.tasks.wait().await;
        ended.cancel();
        let delivered = deliveries.await.context("the watch over deliveries failed")??;
        if !delivered.drained {
            self.errors.count("deliveries", || "they did not come to rest after the last post".to_owned());
        }

        let post_ms = self.posted.summary();
        let posts = post_ms.map_or(0, |summary| summary.count);
        let posting_s = Duration::from_micros(self.last_commit.load(Ordering::Relaxed)).as_secs_f64();
        let seconds = delivered.last.saturating_duration_since(start).as_secs_f64();
        let errors_by_kind = self.errors.by_kind();
        let rate = |count: u64, seconds: f64| if seconds > 0.0 { count as f64 / seconds } else { 0.0 };
        Ok(Outcome {
            posts_per_s: rate(posts, posting_s.max(args.duration.as_secs_f64())),
            deliveries_per_s: rate(delivered.entries, seconds.max(args.duration.as_secs_f64())),
            visible_ms: self.visible.summary(),
            read_ms: self.read.summary(),
            post_ms,
            errors: errors_by_kind.values().map(|failures| failures.count).sum(),
            errors_by_kind,
            posts,
            large: self.large.as_ref().zip(large).map(|(large, written)| large.outcome(written)),
            deliveries: delivered.entries,
            followers_per_post: if posts == 0 {
                0.0
            } else {
                self.followers.load(Ordering::Relaxed) as f64 / posts as f64
            },
            seconds,
        })
    }

    async fn drive_posts(self: &Arc<Self>, arrivals: Arrivals, start: Instant, rate: f64) {
        let mut authors = Rounds::new(self.graph.plan());
        let waiting_max = waiting_max(rate);
        arrivals
            .drive(start, |n, due| {
                let Some(author) = authors.next() else { return };
                if self.waiting_posts.fetch_add(1, Ordering::Relaxed) >= waiting_max {
                    self.waiting_posts.fetch_sub(1, Ordering::Relaxed);
                    self.errors.count("post: overrun", || format!("{waiting_max} posts waited for their answers"));
                    return;
                }
                let run = Arc::clone(self);
                self.tasks.spawn(async move { run.post(n, author, start, due).await });
            })
            .await;
    }

    async fn post(&self, n: u64, author: i64, start: Instant, due: Instant) {
        let posted = self.poster.post(n, author).await;
        let committed = Instant::now();
        self.waiting_posts.fetch_sub(1, Ordering::Relaxed);
        let posted = match posted {
            Ok(posted) => posted,
            Err(error) => return self.errors.count(&format!("post: {}", error.kind()), || error.to_string()),
        };
        self.posted.record(committed - due);
        self.followers.fetch_add(self.graph.follower_count(author), Ordering::Relaxed);
        self.last_commit.fetch_max((committed - start).as_micros() as u64, Ordering::Relaxed);
        if self.sample_every == 0 || !n.is_multiple_of(self.sample_every) {
            return;
        }
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed ^ n);
        let (Some(tweet), Some(viewer)) = (posted.id(), self.graph.follower_of(author, &mut rng)) else {
            return self.errors.count("post: unreadable", || "the answer to a post has no id".to_owned());
        };
        match visible::seen(&self.reads, viewer, tweet, visible::minted_at(tweet)).await {
            Ok(after) => {
                self.visible.record(after);
                if let Some(large) = &self.large {
                    large.record(committed, after);
                }
            }
            Err(error) => self.errors.count(&format!("visible: {}", error.kind()), || error.to_string()),
        }
    }

    /// Writes the large transaction, if there is to be one, and waits until it is visible.
    async fn write_large(&self, at: Instant) -> Option<Written> {
        let large = self.large.as_ref()?;
        tokio::time::sleep_until(at).await;
        let written = large.run(&self.reads).await;
        written.map_err(|error| self.errors.count("large transaction", || format!("{error:#}"))).ok()
    }

    async fn drive_reads(self: &Arc<Self>, arrivals: Arrivals, start: Instant, rate: f64) {
        let mut rng = ChaCha8Rng::seed_from_u64(self.seed);
        let waiting_max = waiting_max(rate);
        arrivals
            .drive(start, |_, due| {
                let viewer = rng.random_range(1..=self.graph.reader());
                if self.waiting_reads.fetch_add(1, Ordering::Relaxed) >= waiting_max {
                    self.waiting_reads.fetch_sub(1, Ordering::Relaxed);
                    self.errors.count("read: overrun", || format!("{waiting_max} reads waited for their answers"));
                    return;
                }
                let run = Arc::clone(self);
                self.tasks.spawn(async move {
                    let answer = run.reads.get("/api/timeline", Some(viewer)).await;
                    run.waiting_reads.fetch_sub(1, Ordering::Relaxed);
                    match answer {
                        Ok(_) => run.read.record(due.elapsed()),
                        Err(error) => run.errors.count(&format!("read: {}", error.kind()), || error.to_string()),
                    }
                });
            })
            .await;
    }
}

fn waiting_max(rate: f64) -> u64 {
    ((rate * WAITING_S) as u64).max(WAITING_MIN)
}
