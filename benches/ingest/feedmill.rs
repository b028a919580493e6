//! What is measured: the stream, the writer and the change log, put together as capture does.

use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::Context;
use feedmill_connectors::postgres::{Event, Replication, Source, Spilling, Stream};
use feedmill_ingest::{Incoming, Log, Options, run_writer};
use nix::sys::resource::{UsageWho, getrusage};
use tokio::sync::{mpsc, watch};
use tokio::time::MissedTickBehavior;

use crate::{Figures, Work, cpu};

/// Transactions and keepalives between the stream and the writer, as in `feedmill up`.
const INCOMING_MAX: usize = 4_096;
/// How often the server is asked how far it is.
const KEEPALIVE: Duration = Duration::from_millis(50);

/// Reads `slot` until all of the work is durable in a new change log.
pub async fn run(source: &Source, slot: &str, work: &Work, dir: &Path) -> anyhow::Result<Figures> {
    let known = Replication::connect(source, "ingest-bench").await?.identify(slot).await?;
    let folder = dir.join(slot);
    let log = Log::open(&folder.join("log"), Options::default())?;
    log.begin_copy(&known)?;
    log.finish_copy(work.from, now_ms())?;
    let (incoming, received) = mpsc::channel(INCOMING_MAX);
    let (durable, mut is_durable) = watch::channel(work.from);
    let writer = {
        let log = log.clone();
        std::thread::spawn(move || run_writer(&log, received, &durable, now_ms))
    };

    let (before, began) = (cpu(&getrusage(UsageWho::RUSAGE_SELF)?), Instant::now());
    let spilling = Spilling { follower: Some(log.sorter()), ..Spilling::to(folder.join("spill")) };
    let mut stream = Stream::start(source, &known, work.from, spilling).await?;
    let mut ask = tokio::time::interval(KEEPALIVE);
    ask.set_missed_tick_behavior(MissedTickBehavior::Delay);
    while *is_durable.borrow_and_update() < work.to {
        tokio::select! {
            event = stream.next() => {
                let next = match event? {
                    Event::Transaction(transaction) => Incoming::Transaction(transaction),
                    Event::Keepalive { end } => Incoming::Covered(end),
                };
                incoming.send(next).await.ok().context("the writer has ended")?;
            }
            changed = is_durable.changed() => {
                changed.context("the writer has ended")?;
                stream.acknowledge(*is_durable.borrow());
            }
            _ = ask.tick() => stream.request_keepalive(),
        }
    }
    let figures = Figures { took: began.elapsed(), cpu: cpu(&getrusage(UsageWho::RUSAGE_SELF)?) - before };

    stream.close().await?;
    drop(incoming);
    writer.join().ok().context("the writer panicked")??;
    drop(log);
    std::fs::remove_dir_all(folder)?;
    Ok(figures)
}

fn now_ms() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| u64::try_from(since.as_millis()).unwrap_or(u64::MAX))
}
