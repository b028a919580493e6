//! From the replication stream into the change log.
//!
//! ```text
//!   Stream::next ── transaction ─► Incoming::Transaction ─┐  bounded
//!                └─ keepalive ───► Incoming::Covered ─────┴──────────► writer thread ── durable LSN ─► acknowledge
//!   every second, and when a reader waits ──► request a keepalive
//! ```
//!
//! A *cut* makes a batch end at a position: capture pauses (the stream's own task goes on answering the server) until
//! the position P is known, and then sends `Covered(P)` before the first thing that lies beyond it. Whatever was
//! committed before P has come before that, because the stream is in commit order, so the batch that ends at P is all
//! of it and nothing else. A cut that is not completed in time is given up, and capture goes on.

use std::time::Duration;

use anyhow::Context;
use feedmill_connectors::postgres::{Event, ReplicationError, Source, Stream};
use feedmill_ingest::Incoming;
use feedmill_model::Lsn;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

/// How long capture waits for the position of a cut.
pub const CUT_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Idle ticks, and the acknowledgement of other tables' log, come from keepalives at this interval.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// While a reader waits, the server is asked this often how far it is: a position may lie beyond the commit before it.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How long the server may take to send what lies before a cut.
const CUT_REACHED_MAX: Duration = Duration::from_secs(30);
/// Waits between attempts to connect again grow from the first to the second.
const RECONNECT_MS: (u64, u64) = (100, 10_000);

/// A request to end a batch at a position.
pub struct Cut {
    /// Told once capture stands still.
    pub paused: oneshot::Sender<()>,
    /// Gives the position.
    pub position: oneshot::Receiver<Lsn>,
    /// Told once the batch's end is on its way to the log.
    pub done: oneshot::Sender<()>,
}

/// What capture needs.
pub struct Capture {
    /// The database.
    pub source: Source,
    /// Its slot.
    pub slot: String,
    /// To the writer of the change log.
    pub incoming: mpsc::Sender<Incoming>,
    /// What is durable in the change log.
    pub durable: watch::Receiver<Lsn>,
    /// The greatest position that a reader waits for.
    pub wanted: watch::Receiver<Lsn>,
    /// Requests to end a batch.
    pub cuts: mpsc::Receiver<Cut>,
    /// Ends it.
    pub shutdown: CancellationToken,
}

enum Step {
    Event(Event),
    Durable,
    Ask,
    Cut(Cut),
    Shutdown,
}

impl Capture {
    /// Captures until shutdown, connecting again whenever the connection is lost; fails on what no retry can cure.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut wait = RECONNECT_MS.0;
        loop {
            let error = match self.session(&mut wait).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let cause = error.downcast_ref::<ReplicationError>();
            if !cause.is_some_and(ReplicationError::is_transient) {
                return Err(error);
            }
            let pause = Duration::from_millis(wait / 2 + rand::random_range(0..=wait / 2));
            tracing::warn!("the replication connection was lost ({error:#}); trying again in {pause:?}");
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return Ok(()),
            }
            wait = (wait * 2).min(RECONNECT_MS.1);
        }
    }

    /// One connection, from start to loss or shutdown.
    async fn session(&mut self, wait: &mut u64) -> anyhow::Result<()> {
        let from = *self.durable.borrow();
        let mut stream = tokio::select! {
            stream = Stream::start(&self.source, &self.slot, from) => stream?,
            () = self.shutdown.cancelled() => return Ok(()),
        };
        tracing::info!("capturing from slot {} at {from}", self.slot);
        stream.acknowledge(from);
        let mut tick = patient(KEEPALIVE_INTERVAL);
        let mut poll = patient(POLL_INTERVAL);
        let mut seen = from;
        loop {
            let waits = *self.wanted.borrow() > seen;
            let step = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => Step::Shutdown,
                Some(cut) = self.cuts.recv() => Step::Cut(cut),
                Ok(()) = self.durable.changed() => Step::Durable,
                Ok(()) = self.wanted.changed() => Step::Ask,
                _ = tick.tick() => Step::Ask,
                _ = poll.tick(), if waits => Step::Ask,
                event = stream.next() => Step::Event(event?),
            };
            match step {
                Step::Event(event) => {
                    *wait = RECONNECT_MS.0;
                    seen = end_of(&event);
                    self.forward(event).await?;
                }
                Step::Durable => stream.acknowledge(*self.durable.borrow_and_update()),
                Step::Ask => stream.request_keepalive(),
                Step::Cut(cut) => self.cut(&mut stream, cut).await?,
                Step::Shutdown => return Ok(stream.close().await?),
            }
        }
    }

    async fn forward(&self, event: Event) -> anyhow::Result<()> {
        let incoming = match event {
            Event::Transaction(transaction) => Incoming::Transaction(transaction),
            Event::Keepalive { end } => Incoming::Covered(end),
        };
        // The writer is gone only when it has failed, and it says why itself.
        self.incoming.send(incoming).await.ok().context("the change log takes no more transactions")
    }

    async fn cut(&self, stream: &mut Stream, cut: Cut) -> anyhow::Result<()> {
        let deadline = Instant::now() + CUT_PAUSE_MAX;
        if cut.paused.send(()).is_err() {
            return Ok(());
        }
        let position = tokio::select! {
            Ok(position) = cut.position => position,
            // Given up, by whoever asked or by us: capture goes on.
            () = sleep_until(deadline) => return Ok(()),
            else => return Ok(()),
        };
        let mut poll = patient(POLL_INTERVAL);
        let deadline = Instant::now() + CUT_REACHED_MAX;
        loop {
            let event = tokio::select! {
                biased;
                () = self.shutdown.cancelled() => return Ok(()),
                () = sleep_until(deadline) => return Ok(()),
                event = stream.next() => event?,
                _ = poll.tick() => {
                    stream.request_keepalive();
                    continue;
                }
            };
            let beyond = match &event {
                Event::Transaction(transaction) => transaction.end_lsn > position,
                Event::Keepalive { end } => *end >= position,
            };
            if beyond {
                self.forward(Event::Keepalive { end: position }).await?;
                let _ = cut.done.send(());
                return self.forward(event).await;
            }
            self.forward(event).await?;
        }
    }
}

/// The position up to which nothing more will come.
fn end_of(event: &Event) -> Lsn {
    match event {
        Event::Transaction(transaction) => transaction.end_lsn,
        Event::Keepalive { end } => *end,
    }
}

/// An interval that does not make up for ticks that it missed.
fn patient(period: Duration) -> Interval {
    let mut interval = interval(period);
    interval.set_missed_tick_behavior(MissedTickBehavior::Delay);
    interval
}
