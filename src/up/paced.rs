//! A connection whose peer has to take what is sent to it.
//!
//! ```text
//!   write ─┬─ all taken ─────────────────────► nothing waits
//!          └─ some, or none ─► waits: so many bytes within each such time, or the connection ends
//! ```
//!
//! What is sent waits in this process until the peer makes room, as an answer as a whole. TCP gives up a peer that confirms
//! nothing; this gives up one that takes a byte now and then, and would keep megabytes for days. A peer that has taken all
//! that there was may be as slow as it likes: a stream that says little is never hurried.

use std::io::{self, IoSlice};
use std::pin::Pin;
use std::task::{Context, Poll, ready};
use std::time::{Duration, Instant};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Sleep, sleep_until};

/// How fast a peer has to be at least.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// Bytes that it takes.
    pub bytes: usize,
    /// Within which time.
    pub within: Duration,
}

/// What a peer has taken since something waits for it.
#[derive(Default)]
struct Taking {
    since: Option<Instant>,
    bytes: usize,
}

impl Taking {
    /// The peer took some of what there was, or all.
    fn took(&mut self, bytes: usize, all: bool, pace: Pace) {
        self.bytes += bytes;
        if all || self.bytes >= pace.bytes {
            *self = Taking::default();
        }
    }

    /// Something waits; gives until when more has to be taken.
    fn waits(&mut self, now: Instant, pace: Pace) -> Instant {
        *self.since.get_or_insert(now) + pace.within
    }
}

/// A connection with a [`Pace`].
pub struct Paced<S> {
    stream: S,
    pace: Pace,
    taking: Taking,
    /// Until when more has to be taken, once something has waited.
    timer: Option<Pin<Box<Sleep>>>,
}

impl<S> Paced<S> {
    /// A peer that keeps `pace`, or is given up.
    pub fn new(stream: S, pace: Pace) -> Self {
        Paced { stream, pace, taking: Taking::default(), timer: None }
    }

    /// What became of a write of so many bytes.
    fn paced(
        &mut self,
        written: Poll<io::Result<usize>>,
        bytes: usize,
        context: &mut Context<'_>,
    ) -> Poll<io::Result<usize>> {
        match written {
            Poll::Ready(Ok(taken)) => self.taking.took(taken, taken == bytes, self.pace),
            Poll::Ready(Err(_)) => {}
            Poll::Pending => {
                let deadline = self.taking.waits(Instant::now(), self.pace).into();
                let timer = self.timer.get_or_insert_with(|| Box::pin(sleep_until(deadline)));
                if timer.deadline() != deadline {
                    timer.as_mut().reset(deadline);
                }
                ready!(timer.as_mut().poll(context));
                return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
            }
        }
        written
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Paced<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Paced<S> {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write(context, bytes);
        self.paced(written, bytes.len(), context)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let written = Pin::new(&mut self.stream).poll_write_vectored(context, bytes);
        self.paced(written, bytes.iter().map(|slice| slice.len()).sum(), context)
    }

    fn is_write_vectored(&self) -> bool {
        self.stream.is_write_vectored()
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    const PACE: Pace = Pace { bytes: 100, within: Duration::from_secs(30) };

    #[test]
    fn time_runs_while_something_waits_and_from_each_time_that_enough_was_taken() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut taking = Taking::default();
        assert_eq!(taking.waits(at(0), PACE), at(30));
        // A little now and then is no pace.
        taking.took(99, false, PACE);
        assert_eq!(taking.waits(at(20), PACE), at(30));
        taking.took(1, false, PACE);
        assert_eq!(taking.waits(at(25), PACE), at(55));
        // All that there was is enough, be it little.
        taking.took(1, true, PACE);
        assert_eq!(taking.waits(at(1_000), PACE), at(1_030));
    }

    #[tokio::test]
    async fn a_peer_that_takes_a_byte_now_and_then_is_given_up_and_one_that_takes_all_is_not() {
        let hurried = Pace { bytes: 1_000, within: Duration::from_millis(50) };
        let (ours, mut theirs) = duplex(64);
        let mut paced = Paced::new(ours, hurried);
        let taking = tokio::spawn(async move {
            let mut pause = tokio::time::interval(Duration::from_millis(5));
            while theirs.read_u8().await.is_ok() {
                pause.tick().await;
            }
        });
        let error = paced.write_all(&[7; 100_000]).await.unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::TimedOut);
        drop(paced);
        taking.await.unwrap();

        let (ours, mut theirs) = duplex(64);
        let mut paced = Paced::new(ours, PACE);
        let taking = tokio::spawn(async move { theirs.read_to_end(&mut Vec::new()).await.unwrap() });
        paced.write_all(&[7; 100_000]).await.unwrap();
        drop(paced);
        assert_eq!(taking.await.unwrap(), 100_000);
    }
}
