//! The stream of committed transactions from a slot.
//!
//! ```text
//!   a thread       task of its own                                 the consumer
//!  socket ─> chunks ─> Decoder ─> open transactions ─> room? ─> queue ─> what came together ─> Stream::next
//!     ▲                        (memory, then disk)       │
//!     └── status each second, received and durable <─────┴──────── acknowledge, request_keepalive
//! ```
//!
//! Why it is right:
//! - Order. The server sends commits in their order; one task decodes them in that order into one queue. Large
//!   transactions are sent in parts while they are in progress, mixed with others: each is put together by itself.
//! - What was rolled back inside a transaction is not in it: the server tells it, and where it may have not it is asked
//!   ([`outcome`]).
//! - Whole transactions. A transaction is queued when its commit has come; a connection that breaks before drops it,
//!   and the next stream is sent it again, from its beginning.
//! - Nothing is lost. The status carries as durable only what the consumer acknowledged, so the slot never moves beyond
//!   it. The server sends again what it has not been told, so `start` at the consumer's own position is exactly once;
//!   a slot that is already beyond that position would skip silently, and is refused.
//! - A keepalive is queued behind what came before it, and not while a transaction is being sent whole, so everything
//!   that was committed before its `end` has been delivered when it is. Transactions in progress do not hold it back:
//!   what has come of them is not committed, and a slot keeps the log of what is not.
//! - A slow consumer costs neither memory nor the connection: the queue holds [`QUEUE_BYTES`]; when it is full the task
//!   stops reading but goes on sending statuses, which keeps `wal_sender_timeout` away. Nor does a large transaction:
//!   beyond [`Spilling::memory_bytes`] what is not yet committed goes to disk, and is handed over from there.
//! - A server that is gone without a word is noticed: the status asks for an answer, and one that says nothing at all
//!   for as long as it would wait for us is given up.

use std::collections::HashSet;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use std::vec;

use feedmill_model::{Lsn, SourceId, Timestamp, failpoint};
use tokio::runtime::Builder;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::{Instant, MissedTickBehavior};

use super::pgoutput::Decoder;
use super::replication::Frame;
use super::{Changes, Replication, ReplicationError, Source, Transaction};
use assembly::{Assembly, Committed};
use start::Opened;

mod assembly;
mod open;
mod outcome;
mod start;

pub use assembly::Spilling;
pub use start::CAPTURE_APPLICATION;

/// How much may wait for the consumer, counted as it lies in memory. A larger transaction waits alone.
const QUEUE_BYTES: u32 = 64 << 20;

/// What a transaction counts that lies on disk, so that the number of files is bounded.
const SPILLED_BYTES: u32 = QUEUE_BYTES / 16;

/// What an event counts besides its changes, so that the number of events is bounded too.
const EVENT_BYTES: u32 = 256;

/// Statuses pile up to this much if the server does not read; then they wait.
const UNSENT_BYTES_MAX: usize = 4 << 10;

/// How long the end of a stream may take.
const CLOSE_LIMIT: Duration = Duration::from_secs(2);

/// What a stream tells.
#[derive(Clone, Debug, PartialEq)]
pub enum Event {
    /// A transaction was committed.
    Transaction(Transaction),
    /// Everything that was committed before `end` has been delivered.
    Keepalive {
        /// How far the server has read its log.
        end: Lsn,
    },
}

/// A running stream. It ends when it is dropped; [`Self::close`] also tells the server the last acknowledgement.
pub struct Stream {
    events: mpsc::UnboundedReceiver<Vec<Queued>>,
    /// What came together with the last one that was told.
    here: vec::IntoIter<Queued>,
    durable: watch::Sender<Lsn>,
    wanted: Arc<Notify>,
    heard: Arc<AtomicU64>,
    /// `None` once its result has been told.
    task: Option<JoinHandle<Result<(), ReplicationError>>>,
}

impl Stream {
    /// Starts to read the slot of `known` at `from`, the position up to which everything is durable here: the slot's
    /// consistent point after a copy, later the `end_lsn` or `end` of the last event that was made durable.
    ///
    /// # Errors
    /// A source that does not continue what was read ([`Replication::check_continues`]); a slot that another process
    /// reads. One that a dead connection of ours still holds is taken over.
    pub async fn start(
        source: &Source,
        known: &SourceId,
        from: Lsn,
        spilling: Spilling,
    ) -> Result<Self, ReplicationError> {
        let Opened { connection, tables, tables_as_of, status_interval, silence_max } =
            open_on_a_thread(source, known, from).await?;
        let (sender, events) = mpsc::unbounded_channel();
        let (durable, acknowledged) = watch::channel(Lsn(0));
        let wanted = Arc::new(Notify::new());
        let heard = Arc::new(AtomicU64::new(0));
        let reader = Reader {
            source: source.clone(),
            connection,
            assembly: Assembly::new(Decoder::new(tables), spilling, from),
            tables_as_of,
            heard: Instant::now(),
            heard_count: Arc::clone(&heard),
            status_interval,
            silence_max,
            received: from,
            acknowledged,
            wanted: Arc::clone(&wanted),
            room: Arc::new(Semaphore::new(QUEUE_BYTES as usize)),
            together: Vec::new(),
            sender,
            stalled: None,
        };
        let task = Some(tokio::spawn(reader.run()));
        Ok(Stream { events, here: vec::IntoIter::default(), durable, wanted, heard, task })
    }

    /// The next event. A dropped call loses nothing.
    ///
    /// # Errors
    /// Why the stream ended, once, after everything that came before; then [`ReplicationError::Ended`].
    pub async fn next(&mut self) -> Result<Event, ReplicationError> {
        loop {
            if let Some(queued) = self.here.next() {
                return Ok(queued.event);
            }
            match self.events.recv().await {
                Some(together) => self.here = together.into_iter(),
                None => break,
            }
        }
        let Some(task) = &mut self.task else { return Err(ReplicationError::Ended) };
        let result = task.await;
        self.task = None;
        match result {
            Ok(Err(error)) => Err(error),
            _ => Err(ReplicationError::Ended),
        }
    }

    /// How often the server has said something. It grows also in the middle of a transaction, of which [`Self::next`]
    /// tells only the end.
    pub fn heard(&self) -> u64 {
        self.heard.load(Ordering::Relaxed)
    }

    /// Everything before `lsn` is durable: the slot may move there. The server hears it within a second. A smaller
    /// position than an earlier one changes nothing.
    pub fn acknowledge(&self, lsn: Lsn) {
        self.durable.send_if_modified(|durable| {
            let moved = lsn > *durable;
            *durable = lsn.max(*durable);
            moved
        });
    }

    /// Asks the server for a keepalive at once. One that arrives inside a transaction is not told: its end is.
    pub fn request_keepalive(&self) {
        self.wanted.notify_one();
    }

    /// Ends the stream: tells the server the last acknowledgement, and frees the slot.
    ///
    /// # Errors
    /// Why the stream ended, if it did so before.
    pub async fn close(self) -> Result<(), ReplicationError> {
        let Stream { events, task, .. } = self;
        drop(events);
        let Some(task) = task else { return Ok(()) };
        match tokio::time::timeout(CLOSE_LIMIT, task).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) | Err(_) => Err(ReplicationError::Ended),
        }
    }
}

/// Opens a connection that a thread of its own reads.
async fn open_on_a_thread(source: &Source, known: &SourceId, from: Lsn) -> Result<Opened, ReplicationError> {
    let failed = |error| ReplicationError::Lost { tried: "start a thread for the stream".to_owned(), error };
    let (opens, opened) = oneshot::channel();
    let (source, known) = (source.clone(), known.clone());
    let read = async move |mut opens: oneshot::Sender<Result<Opened, ReplicationError>>| {
        let opened = tokio::select! {
            opened = start::open(&source, &known, from) => opened,
            // Nobody waits for it any more.
            () = opens.closed() => return,
        };
        let (opened, pump) = match opened {
            Ok(opened) => {
                let (connection, pump) = opened.connection.paced();
                (Ok(Opened { connection, ..opened }), Some(pump))
            }
            Err(error) => (Err(error), None),
        };
        if opens.send(opened).is_ok()
            && let Some(pump) = pump
        {
            pump.run().await;
        }
    };
    let run = move || match Builder::new_current_thread().enable_all().build() {
        Ok(runtime) => {
            runtime.block_on(read(opens));
            // A name that is still being looked up holds nobody up.
            runtime.shutdown_background();
        }
        Err(error) => drop(opens.send(Err(failed(error)))),
    };
    std::thread::Builder::new().name("stream".to_owned()).spawn(run).map_err(failed)?;
    opened.await.map_err(|_| ReplicationError::Ended)?
}

/// An event that waits for the consumer, and the room that it takes.
struct Queued {
    event: Event,
    _room: OwnedSemaphorePermit,
}

/// The task that owns the connection.
struct Reader {
    /// Where outcomes of subtransactions are asked.
    source: Source,
    connection: Replication,
    assembly: Assembly,
    /// What was read of the tables counts up to here.
    tables_as_of: Lsn,
    /// When the server last said anything, and how often it has.
    heard: Instant,
    heard_count: Arc<AtomicU64>,
    /// How often the server hears how far we are, at least.
    status_interval: Duration,
    /// How long the server may be silent.
    silence_max: Duration,
    /// Everything before this has been received.
    received: Lsn,
    acknowledged: watch::Receiver<Lsn>,
    wanted: Arc<Notify>,
    room: Arc<Semaphore>,
    /// Events that the consumer is told of at once: being woken costs as much as a small transaction.
    together: Vec<Queued>,
    sender: mpsc::UnboundedSender<Vec<Queued>>,
    /// An event for which there is no room yet, and how much it takes.
    stalled: Option<(Event, u32)>,
}

impl Reader {
    async fn run(mut self) -> Result<(), ReplicationError> {
        let mut tick = tokio::time::interval(self.status_interval);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let delivered = self.deliver().await;
            self.tell();
            delivered?;
            let stalled = self.stalled.as_ref().map(|(_, bytes)| *bytes);
            let room = Arc::clone(&self.room);
            tokio::select! {
                () = self.sender.closed() => return self.end().await.map_err(lost),
                _ = tick.tick() => self.tick(stalled.is_some())?,
                () = self.wanted.notified() => self.push_status(true),
                exchanged = self.connection.exchange(stalled.is_none()) => {
                    if exchanged.map_err(lost)? {
                        self.heard = Instant::now();
                        self.heard_count.fetch_add(1, Ordering::Relaxed);
                    } else {
                        // What is sent in a stream is statuses.
                        failpoint!("acknowledge_after");
                    }
                }
                Ok(room) = room.acquire_many_owned(stalled.unwrap_or(0)), if stalled.is_some() => {
                    if let Some((event, _)) = self.stalled.take() {
                        self.queue(event, room);
                    }
                }
            }
        }
    }

    /// The status that is due; gives up a server that does not answer.
    fn tick(&mut self, stalled: bool) -> Result<(), ReplicationError> {
        if stalled {
            // Nothing is read, so nothing can be heard.
            self.heard = Instant::now();
        }
        let silence = self.heard.elapsed();
        if silence > self.silence_max {
            let problem = format!("the server has said nothing for {} s", silence.as_secs());
            return Err(lost(io::Error::new(io::ErrorKind::TimedOut, problem)));
        }
        self.assembly.measure();
        self.push_status(silence > self.silence_max / 4);
        Ok(())
    }

    /// Queues everything that has been received, up to an event for which there is no room.
    async fn deliver(&mut self) -> Result<(), ReplicationError> {
        loop {
            let (event, bytes) = match self.stalled.take() {
                Some(stalled) => stalled,
                None => match self.receive().await? {
                    Some(event) => event,
                    None => return Ok(()),
                },
            };
            match Arc::clone(&self.room).try_acquire_many_owned(bytes) {
                Ok(room) => self.queue(event, room),
                Err(_) => {
                    self.stalled = Some((event, bytes));
                    return Ok(());
                }
            }
        }
    }

    fn queue(&mut self, event: Event, room: OwnedSemaphorePermit) {
        self.together.push(Queued { event, _room: room });
    }

    /// Has the consumer take what is queued.
    fn tell(&mut self) {
        if !self.together.is_empty() {
            // A consumer that is gone is noticed by the loop.
            let _ = self.sender.send(std::mem::take(&mut self.together));
        }
    }

    /// The next event from the frames that have been received, and how much room it takes.
    async fn receive(&mut self) -> Result<Option<(Event, u32)>, ReplicationError> {
        while let Some(frame) = self.connection.frame()? {
            match frame {
                Frame::Data { start, message } => {
                    if start > self.tables_as_of {
                        self.assembly.forget_tables();
                    }
                    if let Some(committed) = self.assembly.add(&message)? {
                        let (transaction, held) = self.complete(committed).await?;
                        self.received = self.received.max(transaction.end_lsn);
                        let held = u32::try_from(held).unwrap_or(QUEUE_BYTES);
                        let bytes = match &transaction.changes {
                            Changes::Spilled(_) => SPILLED_BYTES,
                            Changes::Memory(_) => held.saturating_add(EVENT_BYTES).min(QUEUE_BYTES),
                        };
                        return Ok(Some((Event::Transaction(transaction), bytes)));
                    }
                }
                Frame::Keepalive { end, reply } => {
                    self.received = self.received.max(end);
                    if reply {
                        self.push_status(false);
                    }
                    if let Some(end) = self.assembly.keepalive(end) {
                        return Ok(Some((Event::Keepalive { end }, EVENT_BYTES)));
                    }
                }
                Frame::Done => return Err(lost(io::Error::other("the server ended the stream"))),
            }
        }
        Ok(None)
    }

    async fn complete(&mut self, committed: Committed) -> Result<(Transaction, usize), ReplicationError> {
        let subtransactions = committed.subtransactions();
        if committed.is_filed() || !subtransactions.is_empty() {
            // What came before it need not wait for the disk, or for an answer.
            self.tell();
        }
        if subtransactions.is_empty() {
            return self.assembly.complete(committed, &HashSet::new());
        }
        let rolled_back = tokio::select! {
            rolled_back = outcome::rolled_back(&self.source, &subtransactions) => rolled_back?,
            () = self.sender.closed() => return Err(ReplicationError::Ended),
        };
        if !rolled_back.is_empty() {
            let (untold, of) = (rolled_back.len(), subtransactions.len());
            tracing::info!(untold, of, "left out what was rolled back in a transaction, which the server had not told");
            metrics::counter!("feedmill_capture_untold_rollbacks_total").increment(untold as u64);
        }
        self.assembly.complete(committed, &rolled_back)
    }

    fn push_status(&mut self, reply: bool) {
        if self.connection.unsent() < UNSENT_BYTES_MAX {
            failpoint!("acknowledge_before");
            let durable = *self.acknowledged.borrow();
            self.connection.push_status(self.received, durable, now(), reply);
        }
    }

    /// The last status, and good-bye.
    async fn end(mut self) -> io::Result<()> {
        self.push_status(false);
        self.connection.push_terminate();
        tokio::time::timeout(CLOSE_LIMIT, self.connection.flush()).await?
    }
}

fn lost(error: io::Error) -> ReplicationError {
    ReplicationError::Lost { tried: "read the stream".to_owned(), error }
}

/// The clock of this machine, for the status only: the server shows it as `reply_time`.
fn now() -> Timestamp {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_micros()).unwrap_or(i64::MAX)
}
