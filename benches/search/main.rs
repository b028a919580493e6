//! How fast the search index takes tweets in, and answers.
//!
//! ```text
//!   tweets of words by Zipf's law ─► closed times ─► LocalSearch ─► two-word queries, one after the other on one thread
//!                                    at a rate                   ─► how long until each is found
//! ```
//!
//! Words of a query are drawn as those of tweets are, so that many queries have a word that is in a large part of them.
//! What is measured is the index alone, without the reads of counts, rows and facts that make a page.
//!
//! ```text
//!   cargo bench --bench search
//!   cargo bench --bench search -- --tweets 100000
//! ```

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use clap::Parser;
use feedmill_model::{Closed, Document, Keyed, Lsn, Op, Position, RowSink, id_at};
use feedmill_sinks::LocalSearch;
use feedmill_sinks::read::RANKED_MAX;
use feedmill_sinks::search::{Query, Search, SearchStore};
use hdrhistogram::Histogram;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use rand_distr::{Distribution, Zipf};

/// What is measured.
#[derive(Parser, Clone, Debug)]
struct Args {
    /// Tweets
    #[arg(long, default_value_t = 1_000_000)]
    tweets: u64,
    /// Different words
    #[arg(long, default_value_t = 100_000.0)]
    words: f64,
    /// Queries of each kind
    #[arg(long, default_value_t = 2_000)]
    queries: usize,
    /// Tweets a second, of which the time until they are found is measured
    #[arg(long, default_value_t = 2_000)]
    rate: u64,
    /// Given by `cargo bench`
    #[arg(long, hide = true)]
    bench: bool,
}

/// 2026-01-01, in milliseconds since 1970.
const START: i64 = 1_767_225_600_000;
/// Words of a tweet.
const LENGTH: std::ops::Range<usize> = 5..25;
/// Tweets of a closed time.
const AT_ONCE: u64 = 1_000;
/// How long tweets are brought at a rate, and how often a second.
const PACED: Duration = Duration::from_secs(20);
const TIMES_A_SECOND: u64 = 100;
/// Tweets of a page, and one more.
const PAGE: usize = 21;

#[tokio::main(flavor = "current_thread")]
async fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let folder = tempfile::Builder::new().prefix("feedmill-search-").tempdir()?;
    let search = LocalSearch::open(folder.path())?;
    let mut random = ChaCha8Rng::seed_from_u64(7);
    let zipf = Zipf::new(args.words, 1.0)?;
    let word = |random: &mut ChaCha8Rng| format!("word{}", zipf.sample(random));
    let mut asking = ChaCha8Rng::seed_from_u64(8);

    let mut tweets = |first: u64, count: u64| -> anyhow::Result<Closed<Document>> {
        let mut ops: Vec<_> = (first..first + count)
            .map(|n| {
                let content: Vec<String> = (0..random.random_range(LENGTH)).map(|_| word(&mut random)).collect();
                let (ms, user) = (START + n.cast_signed(), random.random_range(0..100_000));
                let (id, at) = (id_at(ms, 0), ms * 1_000);
                let tweet = Document::Tweet { id, user, content: content.join(" "), media: false, at };
                (tweet.shard(), Op::Put(tweet))
            })
            .collect();
        ops.sort_by_key(|(shard, _)| *shard);
        let position = Position { time: first + count, lsn: Lsn(first + 1) };
        Ok(Closed { position, shards: u64::MAX, loading: false, ops })
    };

    let began = Instant::now();
    for first in (0..args.tweets).step_by(usize::try_from(AT_ONCE)?) {
        search.apply(&tweets(first, AT_ONCE.min(args.tweets - first))?)?;
    }
    search.durable(Duration::MAX)?;
    let rate = args.tweets as f64 / began.elapsed().as_secs_f64();
    println!("{} tweets made and taken in, {rate:.0} a second", args.tweets);

    let mut delays = Histogram::<u64>::new(3)?;
    let (began, mut waiting, mut next) = (Instant::now(), VecDeque::new(), args.tweets);
    while began.elapsed() < PACED || !waiting.is_empty() {
        let at_once = (args.rate / TIMES_A_SECOND).max(1);
        let due = args.rate as f64 * began.elapsed().min(PACED).as_secs_f64();
        if (next - args.tweets + at_once) as f64 <= due {
            let closed = tweets(next, at_once)?;
            next += at_once;
            waiting.push_back((closed.position.time, Instant::now()));
            search.apply(&closed)?;
        } else {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        while let Some((_, handed)) = waiting.pop_front_if(|(time, _)| *time <= search.time()) {
            delays.record(u64::try_from(handed.elapsed().as_millis())?)?;
        }
    }
    println!(
        "{} a second, found after: p50 {} ms, p99 {} ms, max {} ms",
        args.rate,
        delays.value_at_quantile(0.5),
        delays.value_at_quantile(0.99),
        delays.max(),
    );

    for relevant in [false, true] {
        let mut times = Histogram::<u64>::new(3)?;
        let began = Instant::now();
        let mut hits = 0;
        for _ in 0..args.queries {
            let query = Query::parse(&format!("{} {}", word(&mut asking), word(&mut asking)))?;
            let asked = Instant::now();
            hits += match relevant {
                false => search.latest(&query, None, PAGE).await?.len(),
                true => search.relevant(&query, RANKED_MAX).await?.len(),
            };
            times.record(u64::try_from(asked.elapsed().as_micros())?)?;
        }
        println!(
            "two words by {}: p50 {:.2} ms, p99 {:.2} ms, max {:.2} ms, {:.0} searches/s one after the other, {:.1} hits each",
            if relevant { "relevance" } else { "time" },
            times.value_at_quantile(0.5) as f64 / 1e3,
            times.value_at_quantile(0.99) as f64 / 1e3,
            times.max() as f64 / 1e3,
            args.queries as f64 / began.elapsed().as_secs_f64(),
            hits as f64 / args.queries as f64,
        );
    }
    Ok(())
}
