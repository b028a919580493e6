//! The clients, in a process of their own.

use std::path::Path;
use std::process::Stdio;
use std::time::Duration;

use anyhow::{Context, bail};
use futures::StreamExt;
use tokio::io::{AsyncBufReadExt, BufReader, Lines};
use tokio::process::{Child, ChildStdout, Command};
use tokio::sync::{Semaphore, mpsc};
use tokio_tungstenite::connect_async;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest;

use crate::{Args, now_us};

/// Clients that connect at a time.
const AT_ONCE: usize = 100;

/// What the clients tell.
#[derive(Clone, Copy, Debug)]
pub enum Said {
    /// All are open.
    Open,
    /// One of them has got a tweet.
    Arrived { tweet: i64, at_us: u64 },
}

/// The process of the clients, from outside.
pub struct Clients {
    process: Child,
    lines: Lines<BufReader<ChildStdout>>,
}

impl Clients {
    pub fn start(args: &Args, url: &str, data: &Path) -> anyhow::Result<Clients> {
        let mut command = Command::new(std::env::current_exe()?);
        command.args(["--connect", url, "--clients", &args.clients.to_string(), "--data"]).arg(data);
        let mut process = command.stdout(Stdio::piped()).kill_on_drop(true).spawn()?;
        let stdout = process.stdout.take().context("no output")?;
        Ok(Clients { process, lines: BufReader::new(stdout).lines() })
    }

    /// What they tell next. Nothing is lost if it is given up.
    pub async fn next(&mut self) -> anyhow::Result<Said> {
        let line = self.lines.next_line().await?.context("the clients have ended")?;
        let mut words = line.split(' ');
        match (words.next(), words.next()) {
            (Some("open"), None) => Ok(Said::Open),
            (Some(tweet), Some(at_us)) => Ok(Said::Arrived { tweet: tweet.parse()?, at_us: at_us.parse()? }),
            _ => bail!("the clients have said `{line}`"),
        }
    }

    pub fn stop(mut self) -> anyhow::Result<()> {
        Ok(self.process.start_kill()?)
    }
}

/// Is the clients.
pub async fn run(args: &Args, url: &str, data: &Path) -> anyhow::Result<()> {
    let keys = feedmill_api::Keys::load_or_create(&data.join("keys"))?;
    let places = std::sync::Arc::new(Semaphore::new(AT_ONCE));
    let (open, mut opened) = mpsc::unbounded_channel();
    for viewer in 1..=args.clients {
        let token = keys.token_for(viewer, Duration::from_secs(24 * 3_600)).context("no token")?;
        let mut request = format!("{}/api/stream", url.replace("http://", "ws://")).into_client_request()?;
        request.headers_mut().insert("authorization", format!("Bearer {token}").parse()?);
        let (places, open) = (std::sync::Arc::clone(&places), open.clone());
        tokio::spawn(async move {
            let place = places.acquire_owned().await?;
            let (mut socket, _) = connect_async(request).await?;
            let mut place = Some(place);
            while let Some(message) = socket.next().await {
                let at_us = now_us();
                let Message::Text(text) = message? else { continue };
                let event: serde_json::Value = serde_json::from_str(&text)?;
                let name = event.get("event").and_then(serde_json::Value::as_str);
                match name {
                    // The last of those with which it begins.
                    Some("unread") if place.take().is_some() => open.send(())?,
                    Some("entry") => {
                        let tweet = event.pointer("/data/id").and_then(serde_json::Value::as_str);
                        println!("{} {at_us}", tweet.context("an entry without id")?);
                    }
                    _ => {}
                }
            }
            eprintln!("the stream of {viewer} has ended");
            anyhow::Ok(())
        });
    }
    for _ in 1..=args.clients {
        opened.recv().await.context("a client has ended")?;
    }
    println!("open");
    std::future::pending().await
}
