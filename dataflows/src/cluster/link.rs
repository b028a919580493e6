//! A connection to another process, as timely's threads use it.
//!
//! ```text
//!   timely's sender ──► Link ──► socket ──►  other process
//!   timely's receiver ◄─ Link ◄─ socket ◄──
//!                          └──► supervisor: process N is gone
//! ```
//!
//! Timely's threads panic when a connection ends or fails. Here the end of one is an error like others: it is reported,
//! which stops the workers, and then the thread is given what ends it: the receiver a farewell, as if the other had said it,
//! the sender nothing to complain about. What is sent to a process that is gone is thrown away; no time can close any more,
//! so nothing that lacks it is ever applied. Only where a message ends in its middle the receiver is told so and panics:
//! nothing can be put in place of the rest.
//!
//! Why an end is always seen: a process that dies closes its socket; a machine that dies answers no keepalive, and
//! acknowledges nothing. Reads and writes come back every second, so a process that is to stop is not held by another that
//! hangs.

use std::io::{self, ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::Arc;
use std::time::{Duration, Instant};

use socket2::{SockRef, TcpKeepalive};
use timely::communication::allocator::zero_copy::stream::Stream;

use crate::RuntimeError;
use crate::supervisor::Supervisor;

/// A machine that says nothing is asked after this,
const KEEPALIVE_AFTER: Duration = Duration::from_secs(3);
/// this often,
const KEEPALIVE_EVERY: Duration = Duration::from_secs(1);
/// and so many times.
const KEEPALIVES: u32 = 4;
/// What was sent is to be acknowledged within.
const ACKNOWLEDGED_MAX: Duration = Duration::from_secs(8);
/// Reads and writes come back after this to see whether to go on.
pub(super) const LOOK: Duration = Duration::from_secs(1);
/// A process that stops waits for this long until the others have taken leave.
const LEAVE_MAX: Duration = Duration::from_secs(3);

/// Bytes of the header of a message, six numbers,
const HEADER: usize = 48;
/// of which the fifth is how many come after it.
const LENGTH: std::ops::Range<usize> = 32..40;

/// One end of a connection.
pub(super) struct Link {
    socket: TcpStream,
    process: usize,
    host: String,
    supervisor: Arc<Supervisor>,
    frames: Frames,
    stopping_since: Option<Instant>,
}

/// Where in its messages what is received stands.
#[derive(Clone, Default)]
struct Frames {
    /// The beginning of a header.
    header: Vec<u8>,
    /// What is still to come of a message after its header.
    body: usize,
    /// The last message, which has a header alone, has come.
    said_goodbye: bool,
    /// What is left of the farewell that is given in its place.
    farewell: Vec<u8>,
}

impl Frames {
    /// `bytes` have come.
    fn follow(&mut self, mut bytes: &[u8]) {
        while !bytes.is_empty() {
            let of_body = self.body.min(bytes.len());
            self.body -= of_body;
            let of_header = if self.body == 0 { (HEADER - self.header.len()).min(bytes.len() - of_body) } else { 0 };
            let (_, rest) = bytes.split_at(of_body);
            let (header, rest) = rest.split_at(of_header);
            self.header.extend_from_slice(header);
            if self.header.len() == HEADER {
                self.body = self
                    .header
                    .get(LENGTH)
                    .and_then(|length| length.try_into().ok())
                    .map_or(0, |length| usize::try_from(u64::from_be_bytes(length)).unwrap_or(usize::MAX));
                self.said_goodbye = self.body == 0;
                self.header.clear();
            }
            bytes = rest;
        }
    }

    /// Nothing more comes: what the receiver is given instead.
    fn end(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.body > 0 || !self.header.is_empty() {
            return Err(ErrorKind::UnexpectedEof.into());
        }
        if !self.said_goodbye {
            self.said_goodbye = true;
            // Of no channel, and with no bytes to come.
            self.farewell = vec![0; HEADER];
        }
        let taken = self.farewell.len().min(into.len());
        for (to, byte) in into.iter_mut().zip(self.farewell.drain(..taken)) {
            *to = byte;
        }
        Ok(taken)
    }
}

impl Link {
    /// To process number `process`.
    pub(super) fn new(
        socket: TcpStream,
        process: usize,
        host: String,
        supervisor: Arc<Supervisor>,
    ) -> io::Result<Self> {
        socket.set_read_timeout(Some(LOOK))?;
        socket.set_write_timeout(Some(LOOK))?;
        Ok(Link { socket, process, host, supervisor, frames: Frames::default(), stopping_since: None })
    }

    /// The other is gone, whether or not this process is about to go too.
    fn lost(&self, reason: &str) {
        if !self.supervisor.stopping() {
            let (process, host, reason) = (self.process, self.host.clone(), reason.to_owned());
            self.supervisor.fail(RuntimeError::Peer { process, host, reason });
        }
    }

    /// Whether this process stops, and has waited long enough for the other.
    fn gives_up(&mut self) -> bool {
        self.supervisor.stopping() && self.stopping_since.get_or_insert_with(Instant::now).elapsed() > LEAVE_MAX
    }
}

/// Has the end of a machine seen.
pub(super) fn watch(socket: &TcpStream) -> io::Result<()> {
    let keepalive =
        TcpKeepalive::new().with_time(KEEPALIVE_AFTER).with_interval(KEEPALIVE_EVERY).with_retries(KEEPALIVES);
    let options = SockRef::from(socket);
    options.set_tcp_keepalive(&keepalive)?;
    options.set_tcp_user_timeout(Some(ACKNOWLEDGED_MAX))
}

/// Whether it is only time to look around. A connection that has timed out is another error.
pub(super) fn is_pause(error: &io::Error) -> bool {
    matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::Interrupted)
}

impl Read for Link {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        while !self.frames.said_goodbye || self.frames.farewell.is_empty() {
            match self.socket.read(into) {
                Ok(0) => self.lost("it has closed the connection"),
                Ok(read) => {
                    self.frames.follow(into.get(..read).unwrap_or_default());
                    return Ok(read);
                }
                Err(error) if is_pause(&error) => {
                    if !self.gives_up() {
                        continue;
                    }
                }
                Err(error) => self.lost(&error.to_string()),
            }
            break;
        }
        self.frames.end(into)
    }
}

impl Write for Link {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            match self.socket.write(bytes) {
                Ok(written) if written > 0 || bytes.is_empty() => return Ok(written),
                Ok(_) => self.lost("it takes nothing"),
                Err(error) if is_pause(&error) => {
                    if !self.gives_up() {
                        continue;
                    }
                }
                Err(error) => self.lost(&error.to_string()),
            }
            return Ok(bytes.len());
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl Stream for Link {
    fn try_clone(&self) -> io::Result<Self> {
        Ok(Link {
            socket: self.socket.try_clone()?,
            process: self.process,
            host: self.host.clone(),
            supervisor: Arc::clone(&self.supervisor),
            frames: self.frames.clone(),
            stopping_since: None,
        })
    }

    fn set_nonblocking(&self, nonblocking: bool) -> io::Result<()> {
        self.socket.set_nonblocking(nonblocking)
    }

    fn shutdown(&self, how: Shutdown) -> io::Result<()> {
        // It may be gone already.
        let _ = self.socket.shutdown(how);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use timely::communication::networking::MessageHeader;

    use super::*;

    fn message(length: usize) -> Vec<u8> {
        let mut bytes = Vec::new();
        let header = MessageHeader { channel: 7, source: 1, target_lower: 2, target_upper: 3, length, seqno: 9 };
        header.write_to(&mut bytes).unwrap();
        bytes.resize(bytes.len() + length, 0xff);
        bytes
    }

    fn rest(frames: &mut Frames) -> io::Result<Vec<u8>> {
        let (mut all, mut part) = (Vec::new(), [0; 20]);
        loop {
            match frames.end(&mut part)? {
                0 => return Ok(all),
                taken => all.extend_from_slice(&part[..taken]),
            }
        }
    }

    #[test]
    fn an_end_is_completed_by_a_farewell_between_messages_alone() {
        let bytes = [message(5), message(100), message(1)].concat();
        for step in [1, 7, 48, 60, 1_000] {
            for end in 0..=bytes.len() {
                let mut frames = Frames::default();
                bytes[..end].chunks(step).for_each(|part| frames.follow(part));
                match rest(&mut frames) {
                    Ok(farewell) => {
                        assert!([0, 53, 201, 250].contains(&end), "{step} {end}");
                        assert_eq!(MessageHeader::try_read(&farewell).map(|header| header.length), Some(0));
                        assert_eq!(farewell.len(), HEADER);
                    }
                    Err(error) => assert_eq!(error.kind(), ErrorKind::UnexpectedEof, "{step} {end}"),
                }
            }
        }
        let mut frames = Frames::default();
        frames.follow(&[message(5), message(0)].concat());
        assert_eq!(rest(&mut frames).unwrap(), []);
    }
}
