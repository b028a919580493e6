//! The socket in the data folder by which other commands ask the running process.
//!
//! ```text
//!   client ── one line: Request ──►  control.sock  ── lines: Answer … ──► client, until the socket closes
//! ```
//!
//! The last line is `Done` or `Failed`; a socket that closes before it means that the process went away.

use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::future::BoxFuture;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::resync::Compared;
use crate::verify::Report;

/// What can be asked of the running process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Tell where everything stands.
    Status,
    /// Tell of rows in quarantine, or do something with them.
    Quarantine(crate::quarantine::Ask),
    /// Compare every view with its SQL.
    Verify {
        /// At most so many timelines are compared as served.
        sample: Option<usize>,
    },
    /// Compare the change log with the database and take over the difference.
    Resync {
        /// Only these; all if there is none.
        tables: Vec<String>,
    },
    /// Build stores again from the change log.
    Replay {
        /// Only those of these views; all if there is none.
        views: Vec<String>,
    },
}

/// What it answers, a line each.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Answer {
    /// Where everything stands.
    Status(Box<feedmill_api::Report>),
    /// A row in quarantine, or what became of it.
    Quarantined(Box<crate::quarantine::Told>),
    /// How one view compares.
    View(Report),
    /// For how long a comparison has held up what was written.
    Held {
        /// In seconds.
        seconds: f64,
    },
    /// How one table compares.
    Compared(Compared),
    /// How far a replay is.
    Replaying(Box<feedmill_api::Step>),
    /// All was done.
    Done,
    /// It could not be done.
    Failed(String),
}

/// A request is one line.
const REQUEST_BYTES_MAX: u64 = 1 << 20;
/// A client that connects and says nothing is dropped.
const REQUEST_WAIT: Duration = Duration::from_secs(5);
/// Pause after a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// Answers that wait for a slow client.
const ANSWERS_MAX: usize = 64;

/// Who answers requests: sends the views' reports, and returns when all is done.
pub type Handler = Arc<dyn Fn(Request, mpsc::Sender<Answer>) -> BoxFuture<'static, anyhow::Result<()>> + Send + Sync>;

/// Where the socket of a data folder is.
pub fn socket(data: &Path) -> PathBuf {
    data.join("control.sock")
}

/// Answers requests until the end.
pub async fn serve(data: PathBuf, handler: Handler, end: CancellationToken) -> anyhow::Result<&'static str> {
    let path = socket(&data);
    // The data folder is locked by this process, so a socket that is there was left by one that died.
    match std::fs::remove_file(&path) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(error).with_context(|| format!("could not remove the old socket {}", path.display()));
        }
        _ => {}
    }
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("could not listen on {} (a socket's path holds 107 bytes)", path.display()))?;
    std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600))?;
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = end.cancelled() => return Ok("the control socket"),
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            // Out of file descriptors, say: no reason to end what serves.
            Err(error) => {
                tracing::warn!("could not accept a request on the control socket: {error}");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let handler = Arc::clone(&handler);
        tokio::spawn(async move {
            if let Err(error) = answer(stream, handler).await {
                tracing::debug!("a request on the control socket ended early: {error:#}");
            }
        });
    }
}

async fn answer(stream: UnixStream, handler: Handler) -> anyhow::Result<()> {
    let (read, mut write) = stream.into_split();
    let mut line = String::new();
    let mut read = BufReader::new(read);
    tokio::time::timeout(REQUEST_WAIT, (&mut read).take(REQUEST_BYTES_MAX).read_line(&mut line)).await??;
    let (sender, mut answers) = mpsc::channel(ANSWERS_MAX);
    let work = async move {
        let outcome = match serde_json::from_str(&line) {
            Ok(request) => handler(request, sender.clone()).await,
            Err(_) if line.len() as u64 == REQUEST_BYTES_MAX => {
                Err(anyhow::anyhow!("the request has more than {REQUEST_BYTES_MAX} bytes: ask for less at once"))
            }
            Err(error) => Err(anyhow::anyhow!("this process does not know the request {}: {error}", line.trim())),
        };
        let last = match outcome {
            Ok(()) => Answer::Done,
            Err(error) => Answer::Failed(format!("{error:#}")),
        };
        // A client that went away needs no answer.
        let _ = sender.send(last).await;
    };
    let send = async {
        while let Some(answer) = answers.recv().await {
            let mut line = serde_json::to_vec(&answer)?;
            line.push(b'\n');
            write.write_all(&line).await?;
        }
        anyhow::Ok(())
    };
    tokio::pin!(work);
    tokio::pin!(send);
    // More than the request says nothing; its end says that the client went away.
    let gone = async {
        let mut rest = [0; 1_024];
        while matches!(read.read(&mut rest).await, Ok(1..)) {}
    };
    tokio::pin!(gone);
    let mut working = true;
    loop {
        tokio::select! {
            () = &mut work, if working => working = false,
            sent = &mut send => return sent,
            // The work is dropped with the client.
            () = &mut gone => return Ok(()),
        }
    }
}

/// Whether a process that runs on `data` takes requests.
pub async fn answers(data: &Path) -> bool {
    UnixStream::connect(socket(data)).await.is_ok()
}

/// Asks the process that runs on `data`, and hands each answer but the last on as it comes.
pub async fn ask(data: &Path, request: &Request, mut on_answer: impl FnMut(Answer)) -> anyhow::Result<()> {
    let path = socket(data);
    let stream = UnixStream::connect(&path).await.with_context(|| {
        format!(
            "no Feedmill answers on {}: start one with `feedmill up --data {}`, or name its folder with --data",
            path.display(),
            data.display()
        )
    })?;
    let (read, mut write) = stream.into_split();
    let mut line = serde_json::to_vec(request)?;
    line.push(b'\n');
    write.write_all(&line).await.context("could not send the request")?;
    let mut lines = BufReader::new(read).lines();
    while let Some(line) = lines.next_line().await.context("could not read the answer")? {
        match serde_json::from_str(&line).with_context(|| format!("an answer is not understood: {line}"))? {
            Answer::Done => return Ok(()),
            Answer::Failed(reason) => bail!(reason),
            answer => on_answer(answer),
        }
    }
    bail!("the process that runs on {} ended before it had answered", data.display())
}
