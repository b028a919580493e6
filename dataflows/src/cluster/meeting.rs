//! How processes find each other.
//!
//! ```text
//!   process I ── connects to ──► 0 … I−1      again and again, until the limit
//!             ◄─ listens for ──  I+1 …
//!   on each connection:  hello ──►            who I am, and my terms
//!                        ◄── hello            likewise; both compare
//!   then, once each:     process 0 ── what it has found ──► the others
//!                        ◄── where each begins ──►          all pairs compare
//! ```
//!
//! Why a start is all or none: a process goes on only when it has compared with every other, and one that does not agree
//! closes its connections, which those that went on take for its end. Whoever connects and is no process of the cluster is
//! turned away without further ado. A process that is started again while others still wait takes the place of the former.

use std::io::{self, Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream, ToSocketAddrs};
use std::thread;
use std::time::{Duration, Instant};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::link::{LOOK, is_pause, watch};
use super::{Cluster, MeetingError, Terms};

/// What a message begins with.
const MAGIC: [u8; 8] = *b"feedmill";
/// More than any message has.
const MESSAGE_MAX: usize = 64 << 10;
/// How long whoever has connected may take to say who it is.
const HELLO_TIME_MAX: Duration = Duration::from_secs(5);
/// Between two looks at who has come, and between two attempts to connect.
const PAUSE: Duration = Duration::from_millis(20);
const CONNECT_MAX: Duration = Duration::from_secs(2);

#[derive(Serialize, Deserialize)]
struct Hello {
    process: usize,
    terms: Terms,
}

/// Why a connection is of no use.
enum Useless {
    /// Tried again.
    Broken,
    /// It never will be.
    Wrong(MeetingError),
}

impl From<io::Error> for Useless {
    fn from(_: io::Error) -> Self {
        Useless::Broken
    }
}

/// A connection to each of the other processes, in their order; `None` in this one's own place.
pub(super) fn meet(
    cluster: &Cluster,
    terms: &Terms,
    stop: &dyn Fn() -> bool,
) -> Result<Vec<Option<TcpStream>>, MeetingError> {
    let (process, hosts) = (cluster.process, &cluster.hosts);
    let own = hosts.get(process).ok_or(MeetingError::Place { process, hosts: hosts.len() })?;
    let listen = |source| MeetingError::Listen { address: own.clone(), source };
    let listener = TcpListener::bind(own).map_err(listen)?;
    listener.set_nonblocking(true).map_err(listen)?;
    let since = Instant::now();
    let mut met: Vec<Option<TcpStream>> = hosts.iter().map(|_| None).collect();
    loop {
        for (other, host) in hosts.iter().enumerate().take(process) {
            let Some(place) = met.get_mut(other).filter(|place| place.is_none()) else { continue };
            match call(host, other, process, terms) {
                Ok(socket) => *place = Some(socket),
                Err(Useless::Broken) => {}
                Err(Useless::Wrong(error)) => return Err(error),
            }
        }
        // Not for as long as somebody comes: the limit below is for all.
        if let Ok((socket, _)) = listener.accept() {
            match answer(socket, process, cluster, terms) {
                Ok((other, socket)) => {
                    if let Some(place) = met.get_mut(other) {
                        *place = Some(socket);
                    }
                }
                Err(Useless::Broken) => {}
                Err(Useless::Wrong(error)) => return Err(error),
            }
        }
        // One that has gone again while the rest is waited for has to come once more.
        met.iter_mut().for_each(|place| {
            place.take_if(|socket| has_gone(socket));
        });
        let missing =
            |(other, place): (usize, &Option<TcpStream>)| (other != process && place.is_none()).then_some(other);
        let missing: Vec<usize> = met.iter().enumerate().filter_map(missing).collect();
        if missing.is_empty() {
            return Ok(met);
        }
        if stop() {
            return Err(MeetingError::Stopped);
        }
        if since.elapsed() > cluster.meeting_max {
            let name = |other: &usize| format!("process {other} at {}", cluster.host(*other));
            let missing = missing.iter().map(name).collect::<Vec<_>>().join(", ");
            return Err(MeetingError::Late { missing, limit: cluster.meeting_max });
        }
        thread::sleep(PAUSE);
    }
}

/// Connects to a process of a lower number.
fn call(host: &str, other: usize, process: usize, terms: &Terms) -> Result<TcpStream, Useless> {
    let mut connected = Err(Useless::Broken);
    for address in host.to_socket_addrs()? {
        if let Ok(socket) = TcpStream::connect_timeout(&address, CONNECT_MAX) {
            connected = Ok(socket);
            break;
        }
    }
    let mut socket = connected?;
    prepare(&socket)?;
    say(&mut socket, &Hello { process, terms: terms.clone() })?;
    let hello = hello(&mut socket)?;
    if hello.process != other {
        return Err(Useless::Broken);
    }
    agree(other, host, hello.terms, terms)?;
    Ok(socket)
}

/// Hears who has connected, and says who this is.
fn answer(
    mut socket: TcpStream,
    process: usize,
    cluster: &Cluster,
    terms: &Terms,
) -> Result<(usize, TcpStream), Useless> {
    socket.set_nonblocking(false)?;
    prepare(&socket)?;
    let hello = hello(&mut socket)?;
    let Some(host) = cluster.hosts.get(hello.process).filter(|_| hello.process > process) else {
        tracing::warn!("somebody said to be process {}, which does not connect to this one", hello.process);
        return Err(Useless::Broken);
    };
    say(&mut socket, &Hello { process, terms: terms.clone() })?;
    agree(hello.process, host, hello.terms, terms)?;
    Ok((hello.process, socket))
}

fn prepare(socket: &TcpStream) -> io::Result<()> {
    watch(socket)?;
    socket.set_nodelay(true)?;
    socket.set_write_timeout(Some(HELLO_TIME_MAX))
}

/// Sends a message.
pub(super) fn say(socket: &mut TcpStream, message: &impl Serialize) -> io::Result<()> {
    let message = postcard::to_stdvec(message).map_err(io::Error::other)?;
    let length = u32::try_from(message.len()).map_err(io::Error::other)?;
    let message = [MAGIC.as_slice(), &length.to_be_bytes(), &message].concat();
    socket.write_all(&message)
}

fn hello(socket: &mut TcpStream) -> io::Result<Hello> {
    hear(socket, Instant::now() + HELLO_TIME_MAX)
}

/// Reads a message, all of which must be there at the deadline.
fn hear<T: DeserializeOwned>(socket: &mut TcpStream, deadline: Instant) -> io::Result<T> {
    let (mut magic, mut length) = (MAGIC, [0; 4]);
    read_by(socket, deadline, &mut magic)?;
    read_by(socket, deadline, &mut length)?;
    let length = u32::from_be_bytes(length) as usize;
    if magic != MAGIC || length > MESSAGE_MAX {
        return Err(io::ErrorKind::InvalidData.into());
    }
    let mut message = vec![0; length];
    read_by(socket, deadline, &mut message)?;
    postcard::from_bytes(&message).map_err(io::Error::other)
}

/// Waits for the next message of a process that was met.
pub(super) fn wait<T: DeserializeOwned>(
    socket: &mut TcpStream,
    process: usize,
    cluster: &Cluster,
    limit: Duration,
    stop: &dyn Fn() -> bool,
) -> Result<T, MeetingError> {
    let failed = |source| MeetingError::Link { process, source };
    let (host, since) = (cluster.host(process), Instant::now());
    socket.set_read_timeout(Some(LOOK)).map_err(failed)?;
    loop {
        match socket.peek(&mut [0]) {
            Ok(0) => return Err(MeetingError::Gone { process, host }),
            Ok(_) => return hear(socket, Instant::now() + HELLO_TIME_MAX).map_err(failed),
            Err(error) if !is_pause(&error) => return Err(failed(error)),
            Err(_) if stop() => return Err(MeetingError::Stopped),
            Err(_) if since.elapsed() > limit => return Err(MeetingError::Silent { process, host, limit }),
            Err(_) => {}
        }
    }
}

/// Fills `into` before the deadline, however slowly the bytes come.
fn read_by(socket: &mut TcpStream, deadline: Instant, mut into: &mut [u8]) -> io::Result<()> {
    while !into.is_empty() {
        let left = deadline.saturating_duration_since(Instant::now());
        // Fails when nothing is left.
        socket.set_read_timeout(Some(left))?;
        match socket.read(into)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            read => into = into.split_at_mut(read).1,
        }
    }
    Ok(())
}

fn agree(process: usize, host: &str, theirs: Terms, ours: &Terms) -> Result<(), Useless> {
    if theirs == *ours {
        return Ok(());
    }
    let (theirs, ours) = (format!("{theirs:?}"), format!("{ours:?}"));
    Err(Useless::Wrong(MeetingError::Terms { process, host: host.to_owned(), theirs, ours }))
}

/// Whether the other side has closed it.
fn has_gone(socket: &TcpStream) -> bool {
    let looked = socket.set_nonblocking(true).and_then(|()| socket.peek(&mut [0]));
    let back = socket.set_nonblocking(false);
    let gone = match looked {
        Ok(bytes) => bytes == 0,
        Err(error) => error.kind() != io::ErrorKind::WouldBlock,
    };
    if gone || back.is_err() {
        let _ = socket.shutdown(Shutdown::Both);
    }
    gone || back.is_err()
}
