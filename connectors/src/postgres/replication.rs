//! A connection in replication mode: slots, and the frames of a stream.
//!
//! ```text
//!  connect ── startup(replication=database) ── authentication ── ready
//!     │
//!     ├─ query: IDENTIFY_SYSTEM, CREATE_REPLICATION_SLOT, SQL … ── rows of text
//!     │
//!     └─ start: START_REPLICATION ──> frames: XLogData, Keepalive     server -> us
//!                                <── status: how far we are durable   us -> server
//! ```
//!
//! tokio-postgres has no replication mode, so this speaks the protocol itself, by the messages of postgres-protocol.
//! That crate does not know CopyBothResponse, so after START_REPLICATION frames are cut here: a byte, a length, a body.
//!
//! Why a dropped future loses nothing: bytes are only ever moved from the transport to the end of `input` and from the
//! front of `output` to the transport, each in one step that either happens or does not; what an encrypting transport
//! holds back is flushed before anybody waits for an answer. A frame leaves `input` when all of it is there.

use std::io;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use fallible_iterator::FallibleIterator;
use feedmill_model::{Lsn, ParseLsnError, SourceId};
use postgres_protocol::message::{backend, frontend};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio_postgres::Config;
use tokio_postgres::config::TargetSessionAttrs;

use super::error::{is_transient, with_causes};
use super::paced::{Pump, paced};
use super::transport::{self, LogIn, Transport};
use super::{DecodeError, ServerError, Source, SourceError, SpillError};

mod authentication;

/// How much is read at once.
const READ_BYTES: usize = 256 * 1024;

/// PostgreSQL sends no message longer than this.
const MESSAGE_BYTES_MAX: usize = 0x4000_0000;

/// Why replication failed.
#[derive(Debug, thiserror::Error)]
pub enum ReplicationError {
    /// The server cannot be reached.
    #[error(transparent)]
    Source(#[from] SourceError),
    /// A statement on an ordinary connection failed.
    #[error("could not {tried}: {}", with_causes(.error))]
    Statement {
        /// What was tried.
        tried: &'static str,
        /// What went wrong.
        error: tokio_postgres::Error,
    },
    /// The server cannot log us in.
    #[error("could not log in to {source_name}: {problem}")]
    Authentication {
        /// The source.
        source_name: String,
        /// What is wrong.
        problem: String,
    },
    /// The server refused.
    #[error("could not {tried}: {error}")]
    Server {
        /// What was tried.
        tried: String,
        /// What the server says.
        error: ServerError,
    },
    /// The connection broke.
    #[error("the replication connection was lost while trying to {tried}: {error}")]
    Lost {
        /// What was tried.
        tried: String,
        /// How it broke.
        error: io::Error,
    },
    /// The server sent what nobody understands.
    #[error("the server's answer is not understood: {0}")]
    Protocol(String),
    /// A large transaction cannot be kept on disk.
    #[error(transparent)]
    Spill(#[from] SpillError),
    /// A change cannot be decoded.
    #[error(transparent)]
    Decode(#[from] DecodeError),
    /// There is no such slot.
    #[error("the replication slot {slot} is gone, and with it what was written since it was read last")]
    SlotMissing {
        /// The slot.
        slot: String,
    },
    /// The server has given the slot up.
    #[error("the replication slot {slot} is lost: {reason}")]
    SlotLost {
        /// The slot.
        slot: String,
        /// Why.
        reason: String,
    },
    /// The slot cannot be read by us.
    #[error("replication slot {slot} cannot be used: {problem}")]
    SlotUnusable {
        /// The slot.
        slot: String,
        /// What is wrong with it.
        problem: String,
    },
    /// Somebody else reads the slot.
    #[error(
        "replication slot {slot} is in use by {application} (PID {pid} on the server): only one process can capture; \
         stop the other, or run SELECT pg_terminate_backend({pid})"
    )]
    SlotInUse {
        /// The slot.
        slot: String,
        /// The server's process.
        pid: i32,
        /// What its client calls itself.
        application: String,
        /// Whether it may well be a dead connection, which the server ends by itself after `wal_sender_timeout`.
        perhaps_dead: bool,
    },
    /// The slot has moved on beyond what we have: the server would skip what lies between.
    #[error(
        "the replication slot {slot} stands at {confirmed}, beyond {ours}, where the change log ends: it was dropped and \
         made again, or another program has read from it, or this data folder is an old copy"
    )]
    Behind {
        /// The slot.
        slot: String,
        /// Where the slot is.
        confirmed: Lsn,
        /// Where we are.
        ours: Lsn,
    },
    /// The source's log ends before what we have.
    #[error(
        "the database's log ends at {end}, before {ours}, where the change log ends: the database was restored from an older \
         backup"
    )]
    Ahead {
        /// Where the source's log ends.
        end: Lsn,
        /// Where we are.
        ours: Lsn,
    },
    /// The database is not the one that the change log was made from.
    #[error(
        "the database is another one ({found}) than the change log was made from ({known}): it was restored, promoted or \
         replaced"
    )]
    OtherSource {
        /// Where the change log comes from.
        known: SourceId,
        /// What answers.
        found: SourceId,
    },
    /// The task that reads the stream is gone.
    #[error("the stream has ended; start a new one")]
    Ended,
}

impl ReplicationError {
    /// Whether a later attempt may succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            ReplicationError::Spill(SpillError::NoRoom { .. }) => false,
            ReplicationError::Lost { .. } | ReplicationError::Spill(_) | ReplicationError::Ended => true,
            ReplicationError::Server { error, .. } => error.is_transient(),
            ReplicationError::Source(error) => error.is_transient(),
            ReplicationError::Statement { error, .. } => is_transient(error),
            ReplicationError::SlotInUse { perhaps_dead, .. } => *perhaps_dead,
            ReplicationError::Authentication { .. }
            | ReplicationError::Protocol(_)
            | ReplicationError::Decode(_)
            | ReplicationError::SlotUnusable { .. }
            | ReplicationError::SlotMissing { .. }
            | ReplicationError::SlotLost { .. }
            | ReplicationError::Behind { .. }
            | ReplicationError::Ahead { .. }
            | ReplicationError::OtherSource { .. } => false,
        }
    }

    /// Whether the source, or its slot, no longer continues what was read from it: nothing but a new snapshot brings the
    /// two together again.
    pub fn is_mismatch(&self) -> bool {
        matches!(
            self,
            ReplicationError::SlotMissing { .. }
                | ReplicationError::SlotLost { .. }
                | ReplicationError::Behind { .. }
                | ReplicationError::Ahead { .. }
                | ReplicationError::OtherSource { .. }
        )
    }
}

impl ReplicationError {
    /// Whether somebody can mend it while we wait: a table that is not as we read it, a right or an object that the server
    /// misses, a certificate that has expired, a way to log in that was changed, a disk that is full. What tells another
    /// source, or another reader of the slot, is none of these.
    pub fn is_mendable(&self) -> bool {
        match self {
            ReplicationError::Decode(error) => error.is_mendable(),
            ReplicationError::Server { error, .. } => !error.is_transient(),
            ReplicationError::Source(error) => !error.is_transient(),
            ReplicationError::Statement { error, .. } => !is_transient(error),
            ReplicationError::Spill(SpillError::NoRoom { .. })
            | ReplicationError::Authentication { .. }
            | ReplicationError::SlotUnusable { .. } => true,
            _ => false,
        }
    }
}

impl From<ParseLsnError> for ReplicationError {
    fn from(error: ParseLsnError) -> Self {
        ReplicationError::Protocol(error.to_string())
    }
}

/// A frame of a stream.
#[derive(Debug)]
pub(super) enum Frame {
    /// A message of the output plugin.
    Data {
        /// Where in the server's log what it tells of begins.
        start: Lsn,
        /// The message.
        message: Bytes,
    },
    /// How far the server has read its log for us.
    Keepalive {
        /// Everything committed before this was sent.
        end: Lsn,
        /// The server wants a status at once.
        reply: bool,
    },
    /// The server has ended the stream.
    Done,
}

/// A connection in replication mode.
pub struct Replication {
    transport: Transport,
    /// Received, and not yet looked at.
    input: BytesMut,
    /// To be sent.
    output: BytesMut,
    /// Whether the transport may still hold back some of what was written to it, as one that encrypts does.
    unflushed: bool,
    /// The server's process that serves this connection.
    pid: i32,
}

impl Replication {
    /// Connects to the first host of the source that accepts, within its connect timeout.
    pub async fn connect(source: &Source, application_name: &str) -> Result<Self, ReplicationError> {
        transport::connect(source, &ReplicationMode { source, application_name }).await
    }

    /// A simple query: a replication command, or SQL. Rows of values in text form. A connection of which a query was
    /// dropped half-way is of no more use.
    pub async fn query(&mut self, sql: &str) -> Result<Vec<Vec<Option<String>>>, ReplicationError> {
        use backend::Message;
        let malformed = |error: io::Error| ReplicationError::Protocol(error.to_string());
        frontend::query(sql, &mut self.output).map_err(malformed)?;
        self.flush().await.map_err(|error| lost(sql, error))?;
        let (mut rows, mut refused) = (Vec::new(), None);
        loop {
            // A refusal that ends the session is followed by the end of the connection.
            let message = match self.message().await {
                Ok(message) => message,
                Err(error) => return Err(refused.unwrap_or_else(|| lost(sql, error))),
            };
            match message {
                Message::DataRow(body) => {
                    let text = |range: std::ops::Range<usize>| {
                        String::from_utf8_lossy(body.buffer().get(range).unwrap_or_default()).into_owned()
                    };
                    let row = body.ranges().map(|range| Ok(range.map(text))).collect().map_err(malformed)?;
                    rows.push(row);
                }
                Message::ErrorResponse(body) => {
                    let error = ServerError::from_body(&body);
                    refused = Some(ReplicationError::Server { tried: format!("run {sql}"), error });
                }
                Message::ReadyForQuery(_) => return refused.map_or(Ok(rows), Err),
                _ => {}
            }
        }
    }

    /// Which history of which database this is, together with the slot's name.
    pub async fn identify(&mut self, slot: &str) -> Result<SourceId, ReplicationError> {
        let rows = self.query("IDENTIFY_SYSTEM").await?;
        let source = match rows.first().map(Vec::as_slice) {
            Some([Some(system), Some(timeline), ..]) => system.parse().ok().zip(timeline.parse().ok()),
            _ => None,
        };
        match source {
            Some((system, timeline)) => Ok(SourceId { system, timeline, slot: slot.to_owned() }),
            None => Err(ReplicationError::Protocol(format!("IDENTIFY_SYSTEM gave {rows:?}"))),
        }
    }

    /// Where the source's log ends: everything that was committed so far lies before it.
    pub async fn wal_end(&mut self) -> Result<Lsn, ReplicationError> {
        let rows = self.query("SELECT pg_current_wal_flush_lsn()").await?;
        match rows.first().map(Vec::as_slice) {
            Some([Some(lsn)]) => Ok(lsn.parse()?),
            _ => Err(ReplicationError::Protocol(format!("pg_current_wal_flush_lsn gave {rows:?}"))),
        }
    }

    /// The server's process that serves this connection, as `pg_cancel_backend` takes it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Starts streaming. From here on there are only [`Self::frame`], [`Self::push_status`], [`Self::exchange`].
    pub(super) async fn start(
        &mut self,
        slot: &str,
        from: Lsn,
        options: &[(&str, &str)],
    ) -> Result<(), ReplicationError> {
        let tried = || format!("start replication from slot {slot} at {from}");
        let options: Vec<String> = options
            .iter()
            .map(|(name, value)| format!("{} {}", super::error::identifier(name), super::error::literal(value)))
            .collect();
        let (slot, options) = (super::error::identifier(slot), options.join(", "));
        frontend::query(&format!("START_REPLICATION SLOT {slot} LOGICAL {from} ({options})"), &mut self.output)
            .map_err(|error| ReplicationError::Protocol(error.to_string()))?;
        self.flush().await.map_err(|error| lost(tried(), error))?;
        let mut refused = None;
        loop {
            let Some((kind, body)) = self.cut()? else {
                match self.fill().await {
                    Ok(()) => continue,
                    Err(error) => return Err(refused.unwrap_or_else(|| lost(tried(), error))),
                }
            };
            match kind {
                // CopyBothResponse
                b'W' => return Ok(()),
                b'E' => {
                    let error = ServerError::from_frame(&body);
                    refused = Some(ReplicationError::Server { tried: tried(), error });
                }
                // ReadyForQuery: after a refusal the connection can be used again.
                b'Z' => {
                    let silent = || ReplicationError::Protocol("START_REPLICATION was not answered".to_owned());
                    return Err(refused.unwrap_or_else(silent));
                }
                _ => {}
            }
        }
    }

    /// The same connection, read by a thread of its own, which must run what is returned beside it.
    pub(super) fn paced(self) -> (Self, Pump) {
        let (paced, pump) = paced(self.transport);
        (Replication { transport: Transport::Paced(Box::new(paced)), ..self }, pump)
    }

    /// The next frame that has been received whole.
    pub(super) fn frame(&mut self) -> Result<Option<Frame>, ReplicationError> {
        while let Some((kind, mut body)) = self.cut()? {
            match (kind, body.first()) {
                // CopyData holding XLogData: start, end and time stand before the payload.
                (b'd', Some(b'w')) if body.len() >= 25 => {
                    body.advance(1);
                    let start = Lsn(body.get_u64());
                    body.advance(16);
                    return Ok(Some(Frame::Data { start, message: body }));
                }
                (b'd', Some(b'k')) if body.len() >= 18 => {
                    body.advance(1);
                    let (end, _time, reply) = (Lsn(body.get_u64()), body.get_i64(), body.get_u8() != 0);
                    return Ok(Some(Frame::Keepalive { end, reply }));
                }
                (b'c', _) => return Ok(Some(Frame::Done)),
                (b'E', _) => {
                    let (tried, error) = ("read the stream".to_owned(), ServerError::from_frame(&body));
                    return Err(ReplicationError::Server { tried, error });
                }
                // Notices, parameters, the end of the command.
                (b'N' | b'S' | b'C' | b'Z', _) => {}
                (kind, _) => {
                    let problem = format!("a frame of kind {:?} in a stream", char::from(kind));
                    return Err(ReplicationError::Protocol(problem));
                }
            }
        }
        Ok(None)
    }

    /// Puts a status into the output: everything before `received` has arrived, everything before `durable` is safe
    /// and need not be sent again. A `durable` of 0 leaves the slot where it is.
    pub(super) fn push_status(&mut self, received: Lsn, durable: Lsn, now_micros: i64, reply: bool) {
        let output = &mut self.output;
        output.put_u8(b'd');
        output.put_u32(4 + 34);
        output.put_u8(b'r');
        output.put_u64(received.0);
        output.put_u64(durable.0);
        output.put_u64(durable.0);
        output.put_i64(super::tuple::server_time(now_micros));
        output.put_u8(u8::from(reply));
    }

    /// Puts the end of the session into the output.
    pub(super) fn push_terminate(&mut self) {
        frontend::terminate(&mut self.output);
    }

    /// How many bytes wait to be sent: more than a few mean that the server does not read.
    pub(super) fn unsent(&self) -> usize {
        self.output.len()
    }

    /// Writes what is in the output, and reads if `reading`, whichever goes first. A dropped call loses nothing.
    /// Pending for ever if there is nothing to do. Returns whether bytes were received.
    pub(super) async fn exchange(&mut self, reading: bool) -> io::Result<bool> {
        if reading && self.input.capacity() - self.input.len() < READ_BYTES / 8 {
            self.input.reserve(READ_BYTES);
        }
        let (mut reader, mut writer) = tokio::io::split(&mut self.transport);
        let (output, unflushed) = (&mut self.output, &mut self.unflushed);
        let sending = !output.is_empty() || *unflushed;
        let send = async {
            if output.is_empty() {
                writer.flush().await?;
                *unflushed = false;
                return Ok(());
            }
            *unflushed = true;
            match writer.write_buf(output).await? {
                0 => Err(io::Error::from(io::ErrorKind::WriteZero)),
                _ => Ok(()),
            }
        };
        tokio::select! {
            read = reader.read_buf(&mut self.input), if reading => match read? {
                0 => Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the server closed the connection")),
                _ => Ok(true),
            },
            sent = send, if sending => sent.map(|()| false),
            () = std::future::pending() => Ok(false),
        }
    }

    /// Sends everything.
    pub(super) async fn flush(&mut self) -> io::Result<()> {
        while !self.output.is_empty() || self.unflushed {
            self.exchange(false).await?;
        }
        Ok(())
    }

    async fn fill(&mut self) -> io::Result<()> {
        while !self.exchange(true).await? {}
        Ok(())
    }

    /// Cuts the next frame from the input if all of it is there.
    fn cut(&mut self) -> Result<Option<(u8, Bytes)>, ReplicationError> {
        let mut header = self.input.as_ref();
        if header.len() < 5 {
            return Ok(None);
        }
        let (kind, length) = (header.get_u8(), header.get_u32() as usize);
        if !(4..=MESSAGE_BYTES_MAX).contains(&length) {
            return Err(ReplicationError::Protocol(format!("a frame of {length} bytes")));
        }
        if self.input.len() <= length {
            return Ok(None);
        }
        let mut frame = self.input.split_to(length + 1).freeze();
        frame.advance(5);
        Ok(Some((kind, frame)))
    }

    async fn message(&mut self) -> io::Result<backend::Message> {
        loop {
            if let Some(message) = backend::Message::parse(&mut self.input)? {
                return Ok(message);
            }
            self.fill().await?;
        }
    }
}

fn lost(tried: impl Into<String>, error: io::Error) -> ReplicationError {
    ReplicationError::Lost { tried: tried.into(), error }
}

/// Logs in to a session in replication mode.
struct ReplicationMode<'a> {
    source: &'a Source,
    application_name: &'a str,
}

impl LogIn for ReplicationMode<'_> {
    type Session = Replication;
    type Error = ReplicationError;

    async fn log_in(&self, config: &Config, transport: Transport) -> Result<Replication, ReplicationError> {
        let (input, output) = (BytesMut::new(), BytesMut::new());
        let mut connection = Replication { transport, input, output, unflushed: false, pid: 0 };
        connection.log_in(self.source, config, self.application_name).await?;
        if config.get_target_session_attrs() == TargetSessionAttrs::ReadWrite {
            let standby = connection.query("SELECT pg_is_in_recovery()").await?;
            if standby.first().and_then(|row| row.first()) == Some(&Some("t".to_owned())) {
                return Err(lost("find the primary", io::Error::other("the server is a standby")));
            }
        }
        Ok(connection)
    }

    fn sql_state(error: &ReplicationError) -> Option<&str> {
        match error {
            ReplicationError::Server { error, .. } => Some(&error.code),
            _ => None,
        }
    }
}
