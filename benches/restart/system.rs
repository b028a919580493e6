//! The system, as a process.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::Args;

/// Nothing takes longer.
const LIMIT: Duration = Duration::from_secs(900);
const POLL: Duration = Duration::from_millis(5);
const LISTEN: &str = "127.0.0.1:18231";

/// `feedmill up`.
pub struct System {
    process: Child,
    folder: PathBuf,
    http: reqwest::Client,
}

/// A page of a home timeline.
pub struct Page {
    pub tweets: usize,
    pub age: Duration,
}

/// Resident memory, in bytes.
pub struct Memory {
    pub peak: f64,
    pub settled: f64,
}

impl System {
    pub async fn start(folder: &Path) -> anyhow::Result<System> {
        let log = std::fs::File::options().create(true).append(true).open(folder.join("bench.log"))?;
        let mut command = Command::new(env!("CARGO_BIN_EXE_feedmill"));
        command.args(["up", "--listen", LISTEN, "--data"]).arg(folder).stdout(Stdio::null()).stderr(log);
        // One user asks again and again until it is served.
        command.env("FEEDMILL_LIMIT_READ_USER", "0");
        let http = reqwest::Client::builder().timeout(Duration::from_secs(10)).build()?;
        Ok(System { process: command.spawn()?, folder: folder.to_owned(), http })
    }

    /// Waits until `/ready` says so.
    pub async fn ready(&mut self) -> anyhow::Result<()> {
        let url = format!("http://{LISTEN}/ready");
        self.until(async |http: &reqwest::Client| {
            let answer = http.get(&url).send().await.ok()?;
            answer.status().is_success().then_some(())
        })
        .await
    }

    async fn until<T>(&mut self, ask: impl AsyncFn(&reqwest::Client) -> Option<T>) -> anyhow::Result<T> {
        let began = Instant::now();
        loop {
            if let Some(answer) = ask(&self.http).await {
                return Ok(answer);
            }
            if let Some(status) = self.process.try_wait()? {
                bail!("it ended: {status}; {} says why", self.folder.join("bench.log").display());
            }
            ensure!(began.elapsed() < LIMIT, "it took longer than {LIMIT:?}");
            tokio::time::sleep(POLL).await;
        }
    }

    /// The first page of a viewer's home timeline, as soon as it is served.
    pub async fn home(&mut self, viewer: i64) -> anyhow::Result<Page> {
        let keys = feedmill_api::Keys::load_or_create(&self.folder.join("keys"))?;
        let token = keys.token_for(viewer, LIMIT).context("no token")?;
        let url = format!("http://{LISTEN}/api/timeline?limit=100");
        self.until(async |http: &reqwest::Client| {
            let answer = http.get(&url).bearer_auth(&token).send().await.ok()?;
            let lag = answer.headers().get("x-feedmill-lag-ms")?.to_str().ok()?.parse().ok()?;
            let body: serde_json::Value = answer.json().await.ok()?;
            Some(Page { tweets: body.get("tweets")?.as_array()?.len(), age: Duration::from_millis(lag) })
        })
        .await
    }

    /// Waits until all tweets are delivered, and saved.
    pub async fn settled(&mut self, args: &Args) -> anyhow::Result<()> {
        let url = format!("http://{LISTEN}/metrics");
        let metric = async |http: &reqwest::Client, name: &str| {
            let text = http.get(&url).send().await.ok()?.text().await.ok()?;
            let line = text.lines().find(|line| line.split([' ', '{']).next() == Some(name))?;
            line.rsplit(' ').next()?.parse::<f64>().ok()
        };
        // To each follower, and to the author.
        let expected = (args.tweets * (args.follows + 1)) as f64;
        self.until(async |http: &reqwest::Client| {
            metric(http, "feedmill_home_deliveries_total").await.filter(|delivered| *delivered >= expected)
        })
        .await?;
        let now = std::time::SystemTime::UNIX_EPOCH.elapsed()?.as_secs_f64();
        self.until(async |http: &reqwest::Client| {
            metric(http, "feedmill_home_saved_time").await.filter(|saved| *saved > now)
        })
        .await
        .map(drop)
    }

    pub fn memory(&self) -> anyhow::Result<Memory> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let of = |name: &str| {
            let line = status.lines().find_map(|line| line.strip_prefix(name)).context("no memory in /proc")?;
            anyhow::Ok(line.split_whitespace().next().context("no number")?.parse::<f64>()? * 1_024.0)
        };
        Ok(Memory { peak: of("VmHWM:")?, settled: of("VmRSS:")? })
    }

    fn signal(&self, signal: Signal) -> anyhow::Result<()> {
        Ok(kill(Pid::from_raw(i32::try_from(self.process.id())?), signal)?)
    }

    pub fn kill(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGKILL)?;
        self.process.wait()?;
        Ok(())
    }

    pub fn stop(&mut self) -> anyhow::Result<()> {
        self.signal(Signal::SIGINT)?;
        let status = self.process.wait()?;
        ensure!(status.success(), "it ended with {status}; {} says why", self.folder.join("bench.log").display());
        Ok(())
    }
}

impl Drop for System {
    /// What is left when the bench fails.
    fn drop(&mut self) {
        if matches!(self.process.try_wait(), Ok(None)) {
            let _ = self.signal(Signal::SIGINT);
            let _ = self.process.wait();
        }
    }
}
