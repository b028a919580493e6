//! Reads a socket at a pace of its own.
//!
//! ```text
//!   socket ─► thread: read, rest, read … ─► chunks, bounded ─► AsyncRead
//!      ▲                                                          of whoever has the connection
//!      └────────────────────────────────────── AsyncWrite ────────┘
//! ```
//!
//! A walsender sends row by row, and each row wakes whoever waits for the socket, on a core that the server could use.
//! So nobody waits for it while much is coming: the thread reads what is there, and sleeps. It has nothing else to do, so
//! the server need not stop either while what came is being decoded, or written to disk. Where little comes it is read at
//! once.
//!
//! The thread and its runtime, which the socket belongs to, live as long as the connection.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use bytes::{Buf, Bytes, BytesMut};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, ReadBuf, ReadHalf, WriteHalf};
use tokio::sync::mpsc;

use super::transport::Transport;

/// How often the socket is read while there is much in it, and how many reads may come earlier than that. What a server
/// sends meanwhile fits into the buffer of a socket.
const READ_INTERVAL: Duration = Duration::from_micros(300);
const READS_EARLY: u32 = 16;

/// How much is read at once, and how many such chunks may wait.
const CHUNK_BYTES: usize = 64 << 10;
const CHUNKS_MAX: usize = 64;

/// The side of a connection that has it.
pub(super) struct Paced {
    chunks: mpsc::Receiver<io::Result<Bytes>>,
    current: Bytes,
    writer: WriteHalf<Transport>,
}

/// The side that reads the socket.
pub(super) struct Pump {
    chunks: mpsc::Sender<io::Result<Bytes>>,
    reader: ReadHalf<Transport>,
}

/// Takes a connection apart into what is used in its place, and what must run on a thread of its own meanwhile.
pub(super) fn paced(transport: Transport) -> (Paced, Pump) {
    let (reader, writer) = tokio::io::split(transport);
    let (sender, chunks) = mpsc::channel(CHUNKS_MAX);
    (Paced { chunks, current: Bytes::new(), writer }, Pump { chunks: sender, reader })
}

impl Pump {
    /// Reads until the connection ends, or nobody has it any more. Blocks the thread for a moment at a time.
    pub(super) async fn run(mut self) {
        let mut due = Instant::now();
        let mut buffer = BytesMut::new();
        loop {
            buffer.reserve(CHUNK_BYTES);
            let read = tokio::select! {
                read = self.reader.read_buf(&mut buffer) => read,
                () = self.chunks.closed() => return,
            };
            let (chunk, ended) = match read {
                // An empty chunk is the end for whoever reads.
                Ok(0) => (Ok(Bytes::new()), true),
                Ok(_) => (Ok(buffer.split().freeze()), false),
                Err(error) => (Err(error), true),
            };
            if self.chunks.send(chunk).await.is_err() {
                return;
            }
            if ended {
                // What was received is still to be read, and the socket lives as long as this runtime.
                return self.chunks.closed().await;
            }
            let now = Instant::now();
            due = due.max(now) + READ_INTERVAL;
            if due > now + READ_INTERVAL * READS_EARLY {
                // Not the runtime's sleep, which takes a millisecond at least.
                std::thread::sleep(READ_INTERVAL);
            }
        }
    }
}

impl AsyncRead for Paced {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let paced = self.get_mut();
        if paced.current.is_empty() {
            match ready!(paced.chunks.poll_recv(context)) {
                Some(chunk) => paced.current = chunk?,
                None => return Poll::Ready(Ok(())),
            }
        }
        let taken = paced.current.len().min(into.remaining());
        into.put_slice(paced.current.get(..taken).unwrap_or_default());
        paced.current.advance(taken);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Paced {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().writer).poll_write(context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().writer).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().writer).poll_shutdown(context)
    }
}
