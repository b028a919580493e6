//! The stream of committed transactions from a slot.
//!
//! ```text
//!           task of its own                                       the consumer
//!  socket ─> frames ─> Decoder ─> open transaction ─> room? ─> queue ─> Stream::next
//!     ▲                                                 │
//!     └── status each second, received and durable <────┴──────── acknowledge, request_keepalive
//! ```
//!
//! Why it is right:
//! - Order. The server sends whole transactions in commit order; one task decodes them in that order into one queue.
//! - Whole transactions. A transaction is queued when its Commit has come; a connection that breaks before drops it,
//!   and the next stream is sent it again.
//! - Nothing is lost. The status carries as durable only what the consumer acknowledged, so the slot never moves beyond
//!   it. The server sends again what it has not been told, so `start` at the consumer's own position is exactly once;
//!   a slot that is already beyond that position would skip silently, and is refused.
//! - A keepalive is queued behind what came before it and only between transactions, so everything that was committed
//!   before its `end` has been delivered when it is.
//! - A slow consumer costs neither memory nor the connection: the queue holds [`QUEUE_BYTES`]; when it is full the task
//!   stops reading but goes on sending statuses, which keeps `wal_sender_timeout` away. What a single transaction
//!   changes is in memory until it commits.

use std::io;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use feedmill_model::{Lsn, Timestamp, failpoint};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::MissedTickBehavior;

use super::pgoutput::{Decoder, Message};
use super::replication::Frame;
use super::{DecodeError, Replication, ReplicationError, RowChange, Source, Transaction};

mod start;

pub use start::CAPTURE_APPLICATION;

/// How often the server hears how far we are, at least.
const STATUS_INTERVAL: Duration = Duration::from_secs(1);

/// How much may wait for the consumer, counted as the server sent it. A larger transaction waits alone.
const QUEUE_BYTES: u32 = 64 << 20;

/// What an event counts besides what the server sent, so that the number of events is bounded too.
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
    events: mpsc::UnboundedReceiver<Queued>,
    control: StreamControl,
    /// `None` once its result has been told.
    task: Option<JoinHandle<Result<(), ReplicationError>>>,
}

/// What can be said to a stream from anywhere.
#[derive(Clone, Debug)]
pub struct StreamControl {
    durable: Arc<watch::Sender<Lsn>>,
    wanted: Arc<Notify>,
}

impl Stream {
    /// Starts to read the slot at `from`, the position up to which everything is durable here: the slot's consistent
    /// point after a copy, later the `end_lsn` or `end` of the last event that was made durable.
    ///
    /// # Errors
    /// A slot that is missing, was invalidated, or has moved beyond `from`; a source whose log ends before `from`; a
    /// slot that another process reads. One that a dead connection of ours still holds is taken over.
    pub async fn start(source: &Source, slot: &str, from: Lsn) -> Result<Self, ReplicationError> {
        let connection = start::open(source, slot, from).await?;
        let (sender, events) = mpsc::unbounded_channel();
        let (durable, acknowledged) = watch::channel(Lsn(0));
        let control = StreamControl { durable: Arc::new(durable), wanted: Arc::new(Notify::new()) };
        let reader = Reader {
            connection,
            assembly: Assembly { decoder: Decoder::default(), open: None, end: from },
            received: from,
            acknowledged,
            wanted: Arc::clone(&control.wanted),
            room: Arc::new(Semaphore::new(QUEUE_BYTES as usize)),
            sender,
            stalled: None,
        };
        Ok(Stream { events, control, task: Some(tokio::spawn(reader.run())) })
    }

    /// The next event. A dropped call loses nothing.
    ///
    /// # Errors
    /// Why the stream ended, once, after everything that came before; then [`ReplicationError::Ended`].
    pub async fn next(&mut self) -> Result<Event, ReplicationError> {
        if let Some(queued) = self.events.recv().await {
            return Ok(queued.event);
        }
        let Some(task) = &mut self.task else { return Err(ReplicationError::Ended) };
        let result = task.await;
        self.task = None;
        match result {
            Ok(Err(error)) => Err(error),
            _ => Err(ReplicationError::Ended),
        }
    }

    /// Everything before `lsn` is durable: the slot may move there. The server hears it within a second. A smaller
    /// position than an earlier one changes nothing.
    pub fn acknowledge(&self, lsn: Lsn) {
        self.control.acknowledge(lsn);
    }

    /// Asks the server for a keepalive at once. One that arrives inside a transaction is not told: its end is.
    pub fn request_keepalive(&self) {
        self.control.request_keepalive();
    }

    /// A handle to acknowledge and to ask for keepalives from elsewhere.
    pub fn control(&self) -> StreamControl {
        self.control.clone()
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

impl StreamControl {
    /// As [`Stream::acknowledge`].
    pub fn acknowledge(&self, lsn: Lsn) {
        self.durable.send_if_modified(|durable| {
            let moved = lsn > *durable;
            *durable = lsn.max(*durable);
            moved
        });
    }

    /// As [`Stream::request_keepalive`].
    pub fn request_keepalive(&self) {
        self.wanted.notify_one();
    }
}

/// An event that waits for the consumer, and the room that it takes.
struct Queued {
    event: Event,
    _room: OwnedSemaphorePermit,
}

/// The task that owns the connection.
struct Reader {
    connection: Replication,
    assembly: Assembly,
    /// Everything before this has been received.
    received: Lsn,
    acknowledged: watch::Receiver<Lsn>,
    wanted: Arc<Notify>,
    room: Arc<Semaphore>,
    sender: mpsc::UnboundedSender<Queued>,
    /// An event for which there is no room yet, and how much it takes.
    stalled: Option<(Event, u32)>,
}

impl Reader {
    async fn run(mut self) -> Result<(), ReplicationError> {
        let mut tick = tokio::time::interval(STATUS_INTERVAL);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            self.deliver()?;
            let stalled = self.stalled.as_ref().map(|(_, bytes)| *bytes);
            let room = Arc::clone(&self.room);
            tokio::select! {
                () = self.sender.closed() => return self.end().await.map_err(lost),
                _ = tick.tick() => self.push_status(false),
                () = self.wanted.notified() => self.push_status(true),
                exchanged = self.connection.exchange(stalled.is_none()) => {
                    let received = exchanged.map_err(lost)?;
                    // What is sent in a stream is statuses.
                    if !received {
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

    /// Queues everything that has been received, up to an event for which there is no room.
    fn deliver(&mut self) -> Result<(), ReplicationError> {
        loop {
            let (event, bytes) = match self.stalled.take() {
                Some(stalled) => stalled,
                None => match self.receive()? {
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

    fn queue(&self, event: Event, room: OwnedSemaphorePermit) {
        // A consumer that is gone is noticed by the loop.
        let _ = self.sender.send(Queued { event, _room: room });
    }

    /// The next event from the frames that have been received, and how much room it takes.
    fn receive(&mut self) -> Result<Option<(Event, u32)>, ReplicationError> {
        while let Some(frame) = self.connection.frame()? {
            match frame {
                Frame::Data(message) => {
                    if let Some((transaction, bytes)) = self.assembly.add(&message)? {
                        self.received = self.received.max(transaction.end_lsn);
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

/// Puts messages together to transactions.
struct Assembly {
    decoder: Decoder,
    open: Option<Open>,
    /// The end of the last transaction, or where the stream began.
    end: Lsn,
}

/// A transaction of which the Commit has not come yet.
struct Open {
    changes: Vec<RowChange>,
    bytes: u32,
}

impl Assembly {
    /// The transaction, and how much room it takes, if this message completes one.
    fn add(&mut self, message: &[u8]) -> Result<Option<(Transaction, u32)>, DecodeError> {
        let message_bytes = u32::try_from(message.len()).unwrap_or(QUEUE_BYTES);
        let change = match (self.decoder.decode(message)?, &mut self.open) {
            (Message::Other, _) => return Ok(None),
            (Message::Begin { .. }, open @ None) => {
                *open = Some(Open { changes: Vec::new(), bytes: EVENT_BYTES });
                return Ok(None);
            }
            (Message::Begin { .. }, Some(_)) => {
                return Err(DecodeError::Order("a transaction begins inside another"));
            }
            (_, None) => return Err(DecodeError::Order("a change stands outside a transaction")),
            (Message::Commit { end_lsn, committed_at }, open) => {
                let Open { changes, bytes } = open.take().unwrap_or(Open { changes: Vec::new(), bytes: EVENT_BYTES });
                self.end = end_lsn;
                return Ok(Some((
                    Transaction { end_lsn, committed_at, changes: changes.into() },
                    bytes.min(QUEUE_BYTES),
                )));
            }
            (Message::Truncate(relations), Some(open)) => {
                open.changes.extend(relations.into_iter().map(RowChange::Truncate));
                return Ok(None);
            }
            (Message::Insert(row), Some(open)) => (RowChange::Insert(row), open),
            (Message::Update { old_key, row, unchanged }, Some(open)) => {
                (RowChange::Update { old_key, row, unchanged }, open)
            }
            (Message::Delete(key), Some(open)) => (RowChange::Delete(key), open),
            (Message::Unusable(unusable), Some(open)) => (RowChange::Unusable(unusable), open),
        };
        let (change, open) = change;
        open.changes.push(change);
        open.bytes = open.bytes.saturating_add(message_bytes);
        Ok(None)
    }

    /// What a keepalive tells: nothing while a transaction is open, because part of what lies before its end is still
    /// to come. One that was sent while the last Commit was being written names a place before its end.
    fn keepalive(&self, end: Lsn) -> Option<Lsn> {
        self.open.is_none().then(|| end.max(self.end))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn begin() -> Vec<u8> {
        [vec![b'B'], vec![0; 20]].concat()
    }

    fn commit(end: u64) -> Vec<u8> {
        [vec![b'C', 0], 0_u64.to_be_bytes().to_vec(), end.to_be_bytes().to_vec(), vec![0; 8]].concat()
    }

    fn assembly() -> Assembly {
        Assembly { decoder: Decoder::default(), open: None, end: Lsn(100) }
    }

    #[test]
    fn a_keepalive_is_told_between_transactions_and_never_goes_back() {
        let mut assembly = assembly();
        assert_eq!(assembly.keepalive(Lsn(90)), Some(Lsn(100)));
        assert_eq!(assembly.add(&begin()), Ok(None));
        assert_eq!(assembly.keepalive(Lsn(110)), None);
        let (transaction, _) = assembly.add(&commit(120)).expect("a commit").expect("a transaction");
        assert_eq!((transaction.end_lsn, transaction.changes.len()), (Lsn(120), 0));
        assert_eq!(assembly.keepalive(Lsn(110)), Some(Lsn(120)));
        assert_eq!(assembly.keepalive(Lsn(130)), Some(Lsn(130)));
    }

    #[test]
    fn messages_out_of_order_are_refused() {
        assert!(matches!(assembly().add(&commit(1)), Err(DecodeError::Order(_))));
        let mut assembly = assembly();
        assert_eq!(assembly.add(&begin()), Ok(None));
        assert!(matches!(assembly.add(&begin()), Err(DecodeError::Order(_))));
    }
}
