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

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feedmill_connectors::postgres::{Event, ReplicationError, Source, Spilling, Stream, Transaction};
use feedmill_ingest::Incoming;
use feedmill_model::{Lsn, SourceId};
use tokio::sync::oneshot::error::TryRecvError;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until};
use tokio_util::sync::CancellationToken;

use super::stations::Stations;

/// How long capture waits for the position of a cut.
pub const CUT_PAUSE_MAX: Duration = Duration::from_secs(2);
/// Idle ticks, and the acknowledgement of other tables' log, come from keepalives at this interval.
const KEEPALIVE_INTERVAL: Duration = Duration::from_secs(1);
/// While a reader waits, the server is asked this often how far it is: a position may lie beyond the commit before it.
const POLL_INTERVAL: Duration = Duration::from_millis(5);
/// How long the server may take to send what lies before a cut.
const CUT_REACHED_MAX: Duration = Duration::from_secs(30);
/// Changes that may wait for the writer, so that a slow disk costs no memory.
const OUTSTANDING_CHANGES_MAX: usize = 200_000;
/// Waits between attempts to connect again grow from the first to the second.
const RECONNECT_MS: (u64, u64) = (100, 10_000);
/// While the database has to be mended, it is looked at this often.
const MENDED_POLL: Duration = Duration::from_secs(5);

/// A request to end a batch at a position.
pub struct Cut {
    /// Told once capture stands still.
    pub paused: oneshot::Sender<()>,
    /// Gives the position.
    pub position: oneshot::Receiver<Lsn>,
    /// Told once the batch's end is on its way to the log.
    pub done: oneshot::Sender<()>,
    /// Capture stands there until the other end is dropped.
    pub resume: oneshot::Receiver<()>,
}

/// What capture needs.
pub struct Capture<'a> {
    /// The database.
    pub source: Source,
    /// The source as the change log knows it, and with it the slot.
    pub known: SourceId,
    /// Where transactions go that are too large for memory.
    pub spilling: Spilling,
    /// To the writer of the change log.
    pub incoming: mpsc::Sender<Incoming>,
    /// What is durable in the change log.
    pub durable: watch::Receiver<Lsn>,
    /// The greatest position that a reader waits for.
    pub wanted: watch::Receiver<Lsn>,
    /// Requests to end a batch.
    pub cuts: &'a mut mpsc::Receiver<Cut>,
    /// Where it reports how far it is.
    pub stations: Arc<Stations>,
    /// Ends it.
    pub shutdown: CancellationToken,
}

/// What has been handed to the writer and is not durable yet.
#[derive(Default)]
struct Outstanding {
    transactions: VecDeque<(Lsn, usize)>,
    changes: usize,
    /// End of the newest transaction that was handed over. After a reconnect the server sends again what is not
    /// durable; what the writer has already must not reach it a second time, out of order.
    newest: Lsn,
}

impl Outstanding {
    fn add(&mut self, transaction: &Transaction) {
        self.changes += transaction.changes.len();
        self.newest = transaction.end_lsn;
        self.transactions.push_back((transaction.end_lsn, transaction.changes.len()));
    }

    fn remove_to(&mut self, durable: Lsn) {
        while let Some((_, changes)) = self.transactions.pop_front_if(|(end, _)| *end <= durable) {
            self.changes -= changes;
        }
    }
}

enum Step {
    Event(Event),
    Durable,
    Ask,
    Cut(Cut),
    Shutdown,
}

impl Capture<'_> {
    /// Captures until shutdown, connecting again whenever the connection is lost. What must be mended in the database, a
    /// column that is gone, say, is told and waited for, while what is there goes on being served. Fails on the rest.
    pub async fn run(mut self) -> anyhow::Result<()> {
        let mut wait = RECONNECT_MS.0;
        let mut outstanding = Outstanding::default();
        loop {
            let error = match self.session(&mut wait, &mut outstanding).await {
                Ok(()) => return Ok(()),
                Err(error) => error,
            };
            let Some(cause) = error.downcast_ref::<ReplicationError>() else { return Err(error) };
            let pause = if cause.is_transient() {
                let pause = Duration::from_millis(wait / 2 + rand::random_range(0..=wait / 2));
                tracing::warn!("the replication connection was lost ({error:#}); trying again in {pause:?}");
                wait = (wait * 2).min(RECONNECT_MS.1);
                pause
            } else if cause.is_mendable() {
                tracing::error!(
                    "nothing is captured until this is mended: {error:#}; looking again in {MENDED_POLL:?}"
                );
                MENDED_POLL
            } else {
                return Err(error);
            };
            self.stations.stream().waiting(format!("{error:#}; trying again"));
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.shutdown.cancelled() => return Ok(()),
            }
        }
    }

    /// One connection, from start to loss or shutdown.
    async fn session(&mut self, wait: &mut u64, outstanding: &mut Outstanding) -> anyhow::Result<()> {
        let from = *self.durable.borrow();
        let mut stream = tokio::select! {
            stream = Stream::start(&self.source, &self.known, from, self.spilling.clone()) => stream?,
            () = self.shutdown.cancelled() => return Ok(()),
        };
        tracing::info!("capturing from slot {} at {from}", self.known.slot);
        stream.acknowledge(from);
        self.stations.stream().goes_on();
        let mut tick = patient(KEEPALIVE_INTERVAL);
        let mut poll = patient(POLL_INTERVAL);
        let (mut seen, mut heard) = (from, stream.heard());
        loop {
            // In the middle of a large transaction the server says much, and nothing comes out of the stream.
            if heard != stream.heard() {
                heard = stream.heard();
                self.stations.stream().goes_on();
            }
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
                    self.forward(event, outstanding).await?;
                }
                Step::Durable => stream.acknowledge(*self.durable.borrow_and_update()),
                Step::Ask => stream.request_keepalive(),
                Step::Cut(cut) => self.cut(&mut stream, cut, outstanding).await?,
                Step::Shutdown => return Ok(stream.close().await?),
            }
        }
    }

    /// Hands over to the writer, which takes its time when the disk does: until then nothing more is read.
    async fn forward(&mut self, event: Event, outstanding: &mut Outstanding) -> anyhow::Result<()> {
        let station = self.stations.stream();
        station.goes_on();
        station.moved(end_of(&event));
        let incoming = match event {
            Event::Transaction(transaction) if transaction.end_lsn <= outstanding.newest => return Ok(()),
            Event::Transaction(transaction) => {
                outstanding.remove_to(*self.durable.borrow());
                while outstanding.changes > OUTSTANDING_CHANGES_MAX {
                    station.waiting("the change log takes no more");
                    tokio::select! {
                        changed = self.durable.changed() => changed.context("the change log takes no more")?,
                        () = self.shutdown.cancelled() => return Ok(()),
                    }
                    outstanding.remove_to(*self.durable.borrow());
                }
                station.goes_on();
                station.counted(1, transaction.changes.len() as u64);
                outstanding.add(&transaction);
                Incoming::Transaction(transaction)
            }
            Event::Keepalive { end } => Incoming::Covered(end),
        };
        tokio::select! {
            // The writer is gone only when it has failed, and it says why itself.
            sent = self.incoming.send(incoming) => sent.ok().context("the change log takes no more transactions"),
            () = self.shutdown.cancelled() => Ok(()),
        }
    }

    async fn cut(&mut self, stream: &mut Stream, mut cut: Cut, outstanding: &mut Outstanding) -> anyhow::Result<()> {
        let deadline = Instant::now() + CUT_PAUSE_MAX;
        if cut.paused.send(()).is_err() {
            return Ok(());
        }
        let position = tokio::select! {
            position = cut.position => match position {
                Ok(position) => position,
                // Given up by whoever asked, or by us below: capture goes on.
                Err(_) => return Ok(()),
            },
            () = sleep_until(deadline) => return Ok(()),
            () = self.shutdown.cancelled() => return Ok(()),
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
                self.forward(Event::Keepalive { end: position }, outstanding).await?;
                let _ = cut.done.send(());
                if cut.resume.try_recv().is_err_and(|error| error == TryRecvError::Empty) {
                    self.stations.stream().held("rows are being compared with the database (resync)");
                    tokio::select! {
                        _ = &mut cut.resume => self.stations.stream().goes_on(),
                        () = self.shutdown.cancelled() => return Ok(()),
                    }
                }
                return self.forward(event, outstanding).await;
            }
            self.forward(event, outstanding).await?;
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
