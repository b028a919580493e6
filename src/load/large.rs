//! One large transaction beside the posts: what it takes, and what it does to them.
//!
//! ```text
//!   BEGIN; INSERT of all rows; COMMIT ──► committed ── /health, until the stores are past it ──► visible
//!   posts that are committed between BEGIN and COMMIT ──► their latency from commit to visible, apart
//!   posts that are committed after it, for a while ──► theirs, apart
//! ```

use std::sync::OnceLock;
use std::time::Duration;

use anyhow::{Context, ensure};
use feedmill_connectors::postgres::Source;
use feedmill_model::Lsn;
use serde::Serialize;
use tokio::time::{Instant, interval};

use super::client::Client;
use super::outcome::{Latencies, Summary};

/// Posts that are committed so long after the transaction count as those behind it.
const BEHIND: Duration = Duration::from_secs(10);
/// The stores are past it by then.
const VISIBLE_MAX: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(50);

/// What the transaction writes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum LargeOf {
    /// Likes of the newest tweets.
    Likes,
    /// Tweets of those who post.
    Tweets,
}

impl LargeOf {
    /// What they are called.
    pub const fn name(self) -> &'static str {
        match self {
            LargeOf::Likes => "likes",
            LargeOf::Tweets => "tweets",
        }
    }
}

/// The transaction of a run.
pub struct Large {
    source: Source,
    of: LargeOf,
    rows: u64,
    authors: u64,
    began: OnceLock<Instant>,
    committed: OnceLock<Instant>,
    beside: Latencies,
    behind: Latencies,
}

/// What was measured.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct LargeOutcome {
    /// What the rows are.
    pub of: LargeOf,
    /// Rows that were written.
    pub rows: u64,
    /// Seconds that PostgreSQL took for the statement and its commit.
    pub written_s: f64,
    /// Seconds from its commit until all stores were past it.
    pub visible_s: f64,
    /// Posts that were committed while it was written, from commit to visible.
    pub beside_ms: Option<Summary>,
    /// Posts that were committed within ten seconds after it, from commit to visible.
    pub behind_ms: Option<Summary>,
}

impl Large {
    /// One of `rows` rows; tweets are those of the users 1 to `authors`.
    pub fn new(source: Source, of: LargeOf, rows: u64, authors: u64) -> anyhow::Result<Self> {
        let (began, committed) = (OnceLock::new(), OnceLock::new());
        Ok(Large { source, of, rows, authors, began, committed, beside: Latencies::new()?, behind: Latencies::new()? })
    }

    /// Counts a post of the run that was committed at `committed`, if it is beside the transaction or behind it.
    pub fn record(&self, committed: Instant, visible_after: Duration) {
        let has_begun = self.began.get().is_some_and(|began| committed >= *began);
        match self.committed.get() {
            Some(large) if committed < *large + BEHIND && committed >= *large => self.behind.record(visible_after),
            None if has_begun => self.beside.record(visible_after),
            Some(large) if has_begun && committed < *large => self.beside.record(visible_after),
            _ => {}
        }
    }

    /// Writes it, and waits until it is visible.
    pub async fn run(&self, reads: &Client) -> anyhow::Result<Written> {
        let client = self.source.connect("feedmill load").await?;
        let rows = i64::try_from(self.rows)?;
        let began = *self.began.get_or_init(Instant::now);
        let written = match self.of {
            LargeOf::Likes => {
                // So many of the newest tweets that each user likes all of them.
                let newest = "
                    WITH users_there AS (SELECT count(*) AS n FROM users),
                         liked AS (SELECT id FROM tweets WHERE deleted_at IS NULL ORDER BY id DESC
                                   LIMIT (SELECT ($1::bigint + n - 1) / greatest(n, 1) FROM users_there))
                    INSERT INTO likes (user_id, tweet_id)
                    SELECT users.id, liked.id FROM liked CROSS JOIN users LIMIT $1
                    ON CONFLICT DO NOTHING";
                client.execute(newest, &[&rows]).await
            }
            LargeOf::Tweets => {
                let tweets = "
                    INSERT INTO tweets (id, user_id, content, conversation_id)
                    SELECT id, author, 'One of many', id
                    FROM (SELECT feedmill_id() AS id, 1 + n % $2::bigint AS author FROM generate_series(1, $1::bigint) AS n) AS made";
                client.execute(tweets, &[&rows, &i64::try_from(self.authors)?]).await
            }
        };
        let written = written.context("the large transaction failed")?;
        let committed = *self.committed.get_or_init(Instant::now);
        let end: String = client.query_one("SELECT pg_current_wal_insert_lsn()::text", &[]).await?.try_get(0)?;
        until_served(reads, end.parse()?).await?;
        Ok(Written { rows: written, took: committed - began, visible: committed.elapsed() })
    }

    /// All that was measured.
    pub fn outcome(&self, written: Written) -> LargeOutcome {
        LargeOutcome {
            of: self.of,
            rows: written.rows,
            written_s: written.took.as_secs_f64(),
            visible_s: written.visible.as_secs_f64(),
            beside_ms: self.beside.summary(),
            behind_ms: self.behind.summary(),
        }
    }
}

/// A transaction that is visible.
#[derive(Clone, Copy, Debug)]
pub struct Written {
    rows: u64,
    took: Duration,
    visible: Duration,
}

/// Waits until all stores are past `end`.
async fn until_served(client: &Client, end: Lsn) -> anyhow::Result<()> {
    let deadline = Instant::now() + VISIBLE_MAX;
    let mut poll = interval(POLL);
    loop {
        poll.tick().await;
        let answer = client.get("/health", None).await.context("could not read /health")?;
        let told: feedmill_api::Report = serde_json::from_slice(&answer.body).context("/health is not understood")?;
        let stores = told.stages.iter().skip_while(|stage| stage.name != "facts");
        let mut at = stores.map(|stage| stage.lsn.as_ref()?.parse::<Lsn>().ok());
        if at.all(|at| at.is_some_and(|at| at >= end)) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "the large transaction is not visible after {VISIBLE_MAX:?}");
    }
}
