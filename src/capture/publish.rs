//! From the change log into Kafka.
//!
//! ```text
//!   topics are there ─ `times` is of this log ─ Publisher::open (fences) ─ `times` again ─┬─ first state ─┐
//!      ▲                                                                                  └───────────────┴─ batches …
//!      └── wait ◄── Kafka is away, or lost a transaction                                        one transaction each
//!
//!   change log ─► written: one thread ─► a bounded queue ─► sent, committed, reported: another
//! ```
//!
//! `times` is looked at before anybody is fenced too: a publisher that was started with the settings of another one is
//! refused, and the other one goes on.
//!
//! The change log keeps its tail from the last batch that is published in full, which is told to housekeeping. It is not kept
//! anywhere: `times` has it. Until that was read nothing is dropped.
//!
//! What was written ahead and not committed is dropped when either thread fails, and at the end: both begin anew at `times`.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context;
use feedmill_connectors::kafka::{
    Content, Encoded, Encoder, KafkaError, KafkaLog, Origin, Part, Published, Publisher, Times, TimesRecord,
    TopicOptions, Topics, prepare,
};
use feedmill_ingest::Log;
use feedmill_model::{Applied, Batch, Lsn, Position, Row, SourceId};
use feedmill_sinks::Progress;
use tokio_util::sync::CancellationToken;

use crate::up::Hold;
use crate::up::stations::Stations;

/// How long is waited for a batch before it is seen whether this should end.
const WAIT: Duration = Duration::from_millis(100);
/// Changes of one Kafka transaction; a batch that is one piece may be larger.
const TRANSACTION_CHANGES: usize = 16_384;
/// Waits between attempts grow from the first to the second.
const RETRY_MS: (u64, u64) = (250, 5_000);

/// What publishes.
pub struct Publishing {
    /// Where to.
    pub to: KafkaLog,
    /// How topics are made and written.
    pub options: TopicOptions,
    /// What.
    pub log: Log,
    /// Name of the database.
    pub database: String,
    /// Where it reports how far it is.
    pub stations: Arc<Stations>,
    /// Told what is published.
    pub progress: Arc<Progress>,
    /// From which time on the change log is needed; 0 while that is not known.
    pub needed: Arc<AtomicU64>,
    /// Keeps batches back.
    pub hold: Arc<Hold>,
    /// Ends it.
    pub shutdown: CancellationToken,
}

impl Publishing {
    /// Publishes until shutdown, on a thread of its own.
    pub async fn run(self) -> anyhow::Result<&'static str> {
        tokio::task::spawn_blocking(move || self.keep()).await??;
        Ok("the publisher")
    }

    /// Begins anew after whatever passes; fails on the rest.
    fn keep(&self) -> anyhow::Result<()> {
        let mut wait = RETRY_MS.0;
        while !self.shutdown.is_cancelled() {
            let begun = Instant::now();
            let Err(error) = self.session() else { return Ok(()) };
            if !error.downcast_ref::<KafkaError>().is_some_and(KafkaError::is_transient) {
                return Err(error);
            }
            if begun.elapsed() > Duration::from_millis(RETRY_MS.1) {
                wait = RETRY_MS.0;
            }
            let pause = Duration::from_millis(wait / 2 + rand::random_range(0..=wait / 2));
            tracing::warn!("nothing is published ({error:#}); trying again in {pause:?}");
            metrics::counter!("feedmill_publish_failures_total").increment(1);
            self.stations.kafka().waiting(format!("{error:#}; trying again"));
            self.pause(pause);
            wait = (wait * 2).min(RETRY_MS.1);
        }
        Ok(())
    }

    /// Sleeps, unless it is to end.
    fn pause(&self, pause: Duration) {
        let deadline = Instant::now() + pause;
        while !self.shutdown.is_cancelled() && Instant::now() < deadline {
            std::thread::sleep(WAIT.min(deadline.saturating_duration_since(Instant::now())));
        }
    }

    /// Publishes until shutdown, or until something goes wrong.
    fn session(&self) -> anyhow::Result<()> {
        prepare(&self.to, &self.options)?;
        self.check(Times::of(&self.to)?.last()?.as_ref())?;
        if self.shutdown.is_cancelled() {
            return Ok(());
        }
        let mut publisher = Publisher::open(&self.to, &self.options)?;
        self.check(publisher.at())?;
        let (encoder, encoded) = Encoder::new(&self.to, &self.database, publisher.at())?;
        self.stations.kafka().goes_on();
        tracing::info!("publishing to {}, from {}", self.to.servers, told(publisher.at()));
        self.published(publisher.at());
        let at = publisher.at().cloned();
        let end = self.shutdown.child_token();
        std::thread::scope(|scope| {
            let writing = Writing { publishing: self, encoder, end: &end };
            let writer = std::thread::Builder::new().name("encoder".to_owned());
            let writer = writer.spawn_scoped(scope, || writing.run(at)).context("could not start a thread")?;
            // It ends when the queue does; and the queue ends, for who writes, with this call.
            let sent = self.send(&mut publisher, encoded);
            end.cancel();
            let written = writer.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
            sent.and(written)
        })
    }

    /// Whether what was published is of this log.
    fn check(&self, at: Option<&TimesRecord>) -> anyhow::Result<()> {
        let Some(at) = at else { return Ok(()) };
        at.check_format(&self.to)?;
        let is_of_this_log = match self.log.position_of(at.time)? {
            Some(position) => position.lsn == at.lsn,
            // The first copy, of which the tail has no batch.
            None => at.time == self.log.tail_after() && self.log.source() == Some(SourceId::from(&at.source)),
        };
        if is_of_this_log {
            return Ok(());
        }
        let known = match (self.log.position(), self.log.source()) {
            (Some(position), Some(source)) => {
                format!("times {} to {} of {source}", self.log.tail_after(), position.time)
            }
            _ => "nothing yet".to_owned(),
        };
        let topics = Topics::of(&self.to).times();
        Err(KafkaError::Foreign { topics, time: at.time, found: SourceId::from(&at.source), known }.into())
    }

    /// Sends what is written, until shutdown or until nothing is written any more.
    fn send(&self, publisher: &mut Publisher, encoded: Encoded) -> anyhow::Result<()> {
        while !self.shutdown.is_cancelled() {
            let changes = match publisher.publish(&encoded, WAIT)? {
                Published::Changes(changes) => changes,
                Published::Nothing => continue,
                Published::Ended => break,
            };
            let Some(at) = publisher.at() else { continue };
            if at.snapshot {
                self.stations.publish().add(changes);
                if at.last {
                    self.stations.publish().end(format!("{} rows", at.done));
                    tracing::info!("published {} rows as of {}", at.done, at.lsn);
                }
            } else {
                self.stations.kafka().changed(changes);
            }
            self.published(Some(at));
        }
        Ok(())
    }

    /// Tells how far it is.
    fn published(&self, at: Option<&TimesRecord>) {
        let Some(at) = at else { return };
        if !at.last {
            self.needed.store(at.previous.unwrap_or(at.time), Ordering::Relaxed);
            self.stations.kafka().midway();
            return;
        }
        self.needed.store(at.time, Ordering::Relaxed);
        let mut position = at.position();
        self.stations.kafka().reached(position);
        self.stations.kafka().saved(position.lsn);
        if position.time < self.log.history() {
            // A position of another history says nothing to who waits for one of this.
            position.lsn = Lsn(0);
        }
        self.progress.covers(position);
        let next = position.time + 1;
        self.progress.applied(Applied::at(next));
    }
}

/// The thread that reads the change log and writes what is to be sent.
struct Writing<'a> {
    publishing: &'a Publishing,
    encoder: Encoder,
    end: &'a CancellationToken,
}

impl Writing<'_> {
    /// Writes until shutdown, what follows `at`.
    fn run(mut self, at: Option<TimesRecord>) -> anyhow::Result<()> {
        // What comes after the first state: the batch before, and how many changes of the next one are published.
        let (after, done) = match &at {
            None => (self.write_state(None)?, 0),
            Some(at) if at.snapshot && !at.last => (self.write_state(Some((at.position(), at.done)))?, 0),
            Some(at) if at.last => (Some(at.position()), 0),
            // Of a batch that was not published in full, the first changes are not published again.
            Some(at) => (Some(Position { time: at.previous.unwrap_or(0), lsn: Lsn(0) }), at.done),
        };
        match after {
            Some(after) => self.write_batches(after, done),
            None => Ok(()),
        }
    }

    /// Writes the rows as they are, but for so many that were published. Gives as of when they are; nothing at the end.
    fn write_state(&mut self, begun: Option<(Position, u64)>) -> anyhow::Result<Option<Position>> {
        let Publishing { log, stations, .. } = self.publishing;
        let (position, done) = match begun {
            Some(begun) => begun,
            None => (log.position().context("there is no finished copy to publish")?, 0),
        };
        let work = stations.publish();
        work.begin(Some(log.rows_about()), "rows of the change log into Kafka");
        work.set(done);
        let (mut seen, mut rows) = (0, Vec::new());
        for slice in log.state_at(position.time).context("could not read the state of the change log")? {
            let mut slice = slice.context("could not read the state of the change log")?;
            let passed = usize::try_from(done.saturating_sub(seen)).unwrap_or(usize::MAX).min(slice.len());
            seen += slice.len() as u64;
            rows.extend(slice.drain(passed..));
            if self.end.is_cancelled() {
                return Ok(None);
            }
            if rows.len() >= TRANSACTION_CHANGES {
                if !self.write_rows(position, &rows, false)? {
                    return Ok(None);
                }
                rows.clear();
            }
        }
        Ok(self.write_rows(position, &rows, true)?.then_some(position))
    }

    fn write_rows(&mut self, position: Position, rows: &[Row], last: bool) -> anyhow::Result<bool> {
        self.write(&[Part { position, floor: None, content: Content::Rows(rows), last }])
    }

    /// Writes batches until shutdown; `done` changes of the first were published.
    fn write_batches(&mut self, after: Position, mut done: u64) -> anyhow::Result<()> {
        let Publishing { log, hold, stations, .. } = self.publishing;
        let mut last = if done == 0 { after } else { Position::default() };
        let mut reader = log.reader(after.time).context("could not read the change log")?;
        while !self.end.is_cancelled() {
            // A batch of which a piece is published must be published to its end: nothing is held in between.
            hold.wait(last, stations.kafka(), self.end);
            let Some(first) = reader.next(WAIT).context("could not read the change log")? else { continue };
            let mut changes = first.changes.len();
            self.note(&mut last, &first);
            let mut batches = vec![first];
            while changes < TRANSACTION_CHANGES && !hold.is_at(last) {
                let Some(next) = reader.next(Duration::ZERO).context("could not read the change log")? else { break };
                changes += next.changes.len();
                self.note(&mut last, &next);
                batches.push(next);
            }
            let mut parts = Vec::with_capacity(batches.len());
            for batch in &batches {
                let Batch { position, floor, changes, last } = &**batch;
                let passed = usize::try_from(done).unwrap_or(usize::MAX).min(changes.len());
                done -= passed as u64;
                let (passed, rest) = changes.split_at(passed);
                self.encoder.pass(passed);
                if *last || !rest.is_empty() {
                    let content = Content::Changes(rest);
                    parts.push(Part { position: *position, floor: *floor, content, last: *last });
                }
            }
            if !parts.is_empty() && !self.write(&parts)? {
                return Ok(());
            }
        }
        Ok(())
    }

    /// The last batch that is whole is this one, if it is.
    fn note(&self, last: &mut Position, batch: &Batch) {
        if batch.last {
            *last = batch.position;
            if last.time < self.publishing.log.history() {
                // A position of another history says nothing to who holds at one of this.
                last.lsn = Lsn(0);
            }
        }
    }

    /// Writes a transaction; `false` when nobody sends it.
    fn write(&mut self, parts: &[Part<'_>]) -> anyhow::Result<bool> {
        let log = &self.publishing.log;
        let source = log.source().context("the change log does not say of which source it is")?;
        let origin = Origin { source: &source, history: log.history(), greatest_entry: log.greatest_entry() };
        Ok(self.encoder.write(origin, parts)?)
    }
}

/// Where a publisher goes on.
fn told(at: Option<&TimesRecord>) -> String {
    match at {
        None => "the rows as they are".to_owned(),
        Some(at) if at.snapshot && !at.last => format!("the {}th row of the first state", at.done + 1),
        Some(at) if at.last => format!("the batch after time {}", at.time),
        Some(at) => format!("change {} of the batch of time {}", at.done + 1, at.time),
    }
}
