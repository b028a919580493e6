//! The system, as a process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::StreamExt;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio_postgres::{Client, Statement};

use crate::Args;

/// Nothing takes longer.
const LIMIT: Duration = Duration::from_secs(600);
const POLL: Duration = Duration::from_millis(20);
const URL: &str = "http://127.0.0.1:18233";
/// Follows of a transaction: fewer than make it a bulk batch.
const TRANSACTION: i64 = 50_000;
/// What Linux tells times in, whatever the kernel's own clock is.
const TICKS_PER_SECOND: f64 = 100.0;
/// Timelines that are read at a time.
const READS: usize = 16;

/// `feedmill up`.
pub struct System {
    process: Child,
    folder: PathBuf,
    http: reqwest::Client,
    sql: Option<(Client, Statement)>,
}

impl System {
    pub async fn start(folder: &Path) -> anyhow::Result<System> {
        let log = std::fs::File::options().create(true).append(true).open(folder.join("bench.log"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_feedmill"));
        command.args(["up", "--listen", URL.trim_start_matches("http://"), "--data"]).arg(folder);
        let process = command.stdout(Stdio::null()).stderr(log).spawn()?;
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        let mut system = System { process, folder: folder.to_owned(), http, sql: None };
        system
            .until("it is ready", async |http| {
                http.get(format!("{URL}/ready")).send().await.ok()?.status().is_success().then_some(())
            })
            .await?;
        let mut config = tokio_postgres::Config::new();
        config.host_path(folder.join("postgres/socket")).user("feedmill").dbname("feedmill");
        let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
        tokio::spawn(connection);
        let post = "INSERT INTO tweets (id, user_id, content, conversation_id)
                    SELECT id, $1, repeat('live ', 20), id FROM (SELECT feedmill_id() AS id) AS made RETURNING id";
        let post = client.prepare(post).await?;
        system.sql = Some((client, post));
        Ok(system)
    }

    pub fn url(&self) -> &'static str {
        URL
    }

    async fn until(&mut self, what: &str, ask: impl AsyncFn(&reqwest::Client) -> Option<()>) -> anyhow::Result<()> {
        let began = Instant::now();
        while ask(&self.http).await.is_none() {
            if let Some(status) = self.process.try_wait()? {
                bail!("it ended: {status}; {} says why", self.folder.join("bench.log").display());
            }
            ensure!(began.elapsed() < LIMIT, "it took longer than {LIMIT:?} until {what}");
            tokio::time::sleep(POLL).await;
        }
        Ok(())
    }

    fn sql(&self) -> anyhow::Result<&(Client, Statement)> {
        self.sql.as_ref().context("not connected")
    }

    /// Makes the viewers, who follow one another, and the verified accounts.
    pub async fn fill(&mut self, args: &Args) -> anyhow::Result<()> {
        let (viewers, hot) = (args.clients, 10 * args.hot);
        let (client, _) = self.sql()?;
        client
            .batch_execute(&format!(
                "INSERT INTO accounts (user_id, username) SELECT n, 'u' || n FROM generate_series(1, {all}) AS n;
                 INSERT INTO users (id, username, display_name, verified)
                     SELECT n, 'u' || n, 'User ' || n, n > {viewers} FROM generate_series(1, {all}) AS n;
                 INSERT INTO activity (user_id, day)
                     SELECT n, (now() AT TIME ZONE 'UTC')::date FROM generate_series(1, {viewers}) AS n",
                all = viewers + hot
            ))
            .await?;
        let step = (TRANSACTION / (args.follows + args.hot).max(1)).max(1);
        for first in (1..=viewers).step_by(usize::try_from(step)?) {
            let last = (first + step - 1).min(viewers);
            client
                .batch_execute(&format!(
                    "INSERT INTO follows (follower_id, following_id)
                         SELECT n, 1 + (n - 1 + nth * 37) % {viewers}
                         FROM generate_series({first}, {last}) AS n, generate_series(1, {follows}) AS nth;
                     INSERT INTO follows (follower_id, following_id)
                         SELECT n, {viewers} + 1 + (n + nth) % {hot_users}
                         FROM generate_series({first}, {last}) AS n, generate_series(1, {hot}) AS nth",
                    follows = args.follows,
                    hot = args.hot,
                    hot_users = hot.max(1),
                ))
                .await?;
        }
        let posts = format!(
            "INSERT INTO tweets (id, user_id, content, conversation_id)
             SELECT id, 1 + n % {}, 'before', id FROM (SELECT n, feedmill_id() AS id FROM generate_series(1, {}) AS n) AS made",
            viewers + hot,
            2 * viewers
        );
        client.batch_execute(&posts).await?;
        let token = self.token(viewers)?;
        let follows = args.follows + args.hot;
        self.until("all is there", async |http| {
            let profile = http.get(format!("{URL}/api/users/u{viewers}")).send().await.ok()?;
            let profile: serde_json::Value = profile.json().await.ok()?;
            let count = profile.pointer("/counts/following").or(profile.pointer("/user/counts/following"))?.as_i64()?;
            let timeline = http.get(format!("{URL}/api/timeline")).bearer_auth(&token).send().await.ok()?;
            let timeline: serde_json::Value = timeline.json().await.ok()?;
            (count == follows && !timeline.get("tweets")?.as_array()?.is_empty()).then_some(())
        })
        .await
    }

    fn token(&self, viewer: i64) -> anyhow::Result<String> {
        feedmill_api::Keys::load_or_create(&self.folder.join("keys"))?.token_for(viewer, LIMIT).context("no token")
    }

    /// Reads every viewer's timeline once.
    pub async fn read_all(&mut self, args: &Args) -> anyhow::Result<()> {
        let keys = feedmill_api::Keys::load_or_create(&self.folder.join("keys"))?;
        let (http, keys) = (&self.http, &keys);
        let read = async |viewer: i64| {
            let token = keys.token_for(viewer, LIMIT).context("no token")?;
            for list in ["timeline", "notifications"] {
                http.get(format!("{URL}/api/{list}")).bearer_auth(&token).send().await?.bytes().await?;
            }
            anyhow::Ok(())
        };
        let mut reads = futures::stream::iter(1..=args.clients).map(read).buffer_unordered(READS);
        while let Some(read) = reads.next().await {
            read?;
        }
        Ok(())
    }

    /// Posts a tweet; it is committed when this returns.
    pub async fn post(&self, author: i64) -> anyhow::Result<i64> {
        let (client, post) = self.sql()?;
        Ok(client.query_one(post, &[&author]).await?.get(0))
    }

    /// Resident memory, in bytes.
    pub fn memory(&self) -> anyhow::Result<f64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("no memory in /proc")?;
        Ok(line.split_whitespace().next().context("no number")?.parse::<f64>()? * 1_024.0)
    }

    /// Seconds of a processor since it began.
    pub fn cpu(&self) -> anyhow::Result<f64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.id()))?;
        let fields = stat.rsplit_once(')').context("no name in /proc")?.1;
        // After the name: utime and stime are the 12th and 13th.
        let ticks: f64 = fields.split_whitespace().skip(11).take(2).filter_map(|field| field.parse::<f64>().ok()).sum();
        Ok(ticks / TICKS_PER_SECOND)
    }

    pub fn stop(&mut self) -> anyhow::Result<()> {
        kill(Pid::from_raw(i32::try_from(self.process.id())?), Signal::SIGINT)?;
        let status = self.process.wait()?;
        ensure!(status.success(), "it ended with {status}; {} says why", self.folder.join("bench.log").display());
        Ok(())
    }
}

impl Drop for System {
    /// What is left when the bench fails.
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = kill(Pid::from_raw(self.process.id() as i32), Signal::SIGINT);
            let _ = self.process.wait();
        }
    }
}
