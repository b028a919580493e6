//! Documents a second into Elasticsearch.
//!
//! ```text
//!   tweets of words ─┬─ closed times ─► ElasticSearch, until all are durable and found ─┐
//!                    └─ lines, made before ─► _bulk, a thousand a request, and a refresh ─┴─► documents a second
//! ```
//!
//! Both have the same fields and settings. The plain loop is given its lines ready made; ours folds and cuts the words,
//! encodes, and writes progress.

use std::fmt::Write;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use feedmill_model::{Closed, Document, Keyed, Lsn, Op, Position, RowSink};
use feedmill_sinks::search::{SearchIndex, SearchStore};
use feedmill_sinks::{ElasticSearch, ElasticSettings};
use feedmill_test_servers::Elasticsearch;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use serde_json::{Value, json};

use super::{Args, pairs};

/// Documents of a closed time, and of a request of the plain loop.
const AT_ONCE: usize = 1_000;
/// Different words.
const WORDS: u32 = 50_000;
/// Words of a tweet.
const LENGTH: std::ops::Range<usize> = 5..20;

fn tweets(args: &Args, number: u32) -> Vec<Document> {
    let mut random = ChaCha8Rng::seed_from_u64(number.into());
    let one = |n: u64| {
        let count = random.random_range(LENGTH);
        let words: Vec<String> = (0..count).map(|_| format!("word{}", random.random_range(0..WORDS))).collect();
        let (id, user) = ((n + 1).cast_signed(), random.random_range(0..100_000));
        Document::Tweet { id, user, content: words.join(" "), media: false, at: id * 1_000 }
    };
    (0..args.documents).map(one).collect()
}

/// The lines of a bulk, as the store makes them of these tweets.
fn lines(documents: &[Document]) -> anyhow::Result<String> {
    let mut lines = String::new();
    for document in documents {
        let Document::Tweet { id, user, content, media, at } = document else { continue };
        let action = json!({ "index": { "_id": format!("t{id}"), "version": 1, "version_type": "external" } });
        let source = json!({
            "tweet": id, "author": user, "at": at, "media": media, "words": content, "tags": [], "mentions": [],
            "text": { "content": content },
        });
        write!(lines, "{action}\n{source}\n")?;
    }
    Ok(lines)
}

/// A server, asked by hand.
struct Plain {
    http: reqwest::Client,
    url: String,
}

impl Plain {
    async fn ask(&self, method: reqwest::Method, path: &str, body: Option<String>) -> anyhow::Result<Value> {
        let mut request = self.http.request(method, format!("{}/{path}", self.url));
        if let Some(body) = body {
            request = request.header("Content-Type", "application/x-ndjson").body(body);
        }
        let answer = request.send().await?.error_for_status()?.bytes().await?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Documents a second of a loop of bulks.
    async fn measured(&self, index: &str, documents: &[Document]) -> anyhow::Result<f64> {
        let bodies = documents.chunks(AT_ONCE).map(lines).collect::<anyhow::Result<Vec<String>>>()?;
        self.ask(reqwest::Method::PUT, index, None).await?;
        let began = Instant::now();
        for body in bodies {
            let answer =
                self.ask(reqwest::Method::POST, &format!("{index}/_bulk?filter_path=errors"), Some(body)).await?;
            ensure!(answer.get("errors") == Some(&Value::Bool(false)), "a bulk had errors: {answer}");
        }
        self.ask(reqwest::Method::POST, &format!("{index}/_refresh"), None).await?;
        let rate = documents.len() as f64 / began.elapsed().as_secs_f64();
        self.ask(reqwest::Method::DELETE, index, None).await?;
        Ok(rate)
    }
}

/// Documents a second of the store.
fn measured(settings: ElasticSettings, documents: &[Document]) -> anyhow::Result<f64> {
    let folder = tempfile::tempdir()?;
    let search = ElasticSearch::open(settings, folder.path(), None)?;
    let began = Instant::now();
    for (time, chunk) in (1..).zip(documents.chunks(AT_ONCE)) {
        let mut ops: Vec<_> = chunk.iter().map(|document| (document.shard(), Op::Put(document.clone()))).collect();
        ops.sort_by_key(|(shard, _)| *shard);
        search.apply(&Closed { position: Position { time, lsn: Lsn(time) }, shards: u64::MAX, loading: false, ops })?;
    }
    let durable = search.durable(Duration::from_secs(600))?.context("nothing is durable")?;
    ensure!(search.found() == Some(durable), "what is durable is not found");
    let rate = documents.len() as f64 / began.elapsed().as_secs_f64();
    Ok(rate)
}

/// Measures pairs.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let server = Elasticsearch::shared();
    let settings = ElasticSettings::new(format!("{}/benchdocs", server.url()).parse()?);
    let plain = Plain { http: reqwest::Client::builder().no_proxy().build()?, url: server.url() };
    let ours = |number| measured(settings.clone(), &tweets(args, number));
    pairs(args, "documents into Elasticsearch", ours, |number| {
        // Of the template that the store has made.
        let index = format!("benchdocs-search-gplain{number}");
        runtime.block_on(plain.measured(&index, &tweets(args, number)))
    })
}
