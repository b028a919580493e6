//! How a server is reached: host after host, encrypted or not, until one lets us in.
//!
//! ```text
//!   hosts ─ addresses of a host ─ socket ─┬─ plain ───────────────────┬─ log in ─> session
//!     ▲            ▲                      └─ SSLRequest ─ S ─ TLS ────┘    │
//!     │            │                            │                          │
//!     └────────────┴── not reached ─────────────┴── the other way, if sslmode allows it
//! ```
//!
//! Both kinds of session, the ordinary one and the one in replication mode, are made here, so that both mean the same by
//! an address. As in libpq the connect timeout is for each address, and a login that a server refuses is not tried at
//! other servers.
//!
//! Why nothing goes in the clear that must not: where `sslmode` demands TLS no attempt without it is ever made, and a
//! server that has none is refused before anything but the question was sent. Nothing is read beyond the server's one
//! byte of an answer, so nothing that somebody put behind it can pass for something encrypted.

use std::future::{Ready, ready};
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::BytesMut;
use postgres_protocol::message::frontend;
use rand::seq::SliceRandom;
use rustls::pki_types::ServerName;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::{TcpStream, UnixStream, lookup_host};
use tokio::time::{Instant, timeout_at};
use tokio_postgres::Config;
use tokio_postgres::config::{Host, LoadBalanceHosts};
use tokio_postgres::tls::{ChannelBinding, TlsConnect, TlsStream};
use tokio_rustls::TlsConnector;

use super::error::REFUSED_BY_RULES;
use super::paced::Paced;
use super::tls::{SslMode, TlsError, end_point};
use super::{Source, SourceError};

/// Seconds that an attempt may take where the address says nothing else.
pub(super) const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// Classes of SQLSTATE with which a server refuses a login for good.
const LOGIN_REFUSED: &str = "28";

/// What is done with a transport once it stands.
pub(super) trait LogIn: Sync {
    /// What comes of it.
    type Session: Send;
    /// Why nothing does.
    type Error: From<SourceError> + Send;

    /// Logs in as `config` says, which has the password for this server.
    fn log_in(
        &self,
        config: &Config,
        transport: Transport,
    ) -> impl Future<Output = Result<Self::Session, Self::Error>> + Send;

    /// The SQLSTATE with which the server has refused.
    fn sql_state(error: &Self::Error) -> Option<&str>;
}

/// Makes a session with the first host of the source that accepts.
pub(super) async fn connect<L: LogIn>(source: &Source, log_in: &L) -> Result<L::Session, L::Error> {
    let mut last = SourceError::Address("it names no host".to_owned()).into();
    for host in servers(source.config()) {
        let addresses = match host.addresses().await {
            Ok(addresses) => addresses,
            Err(error) => {
                last = source.unreachable(&host, error).into();
                continue;
            }
        };
        for address in addresses {
            match reach(source, &host, &address, log_in).await {
                Ok(session) => return Ok(session),
                Err(error) if L::sql_state(&error).is_some_and(|state| state.starts_with(LOGIN_REFUSED)) => {
                    return Err(error);
                }
                Err(error) => last = error,
            }
        }
    }
    Err(last)
}

/// Tries one address, both with and without encryption where `sslmode` leaves that open.
async fn reach<L: LogIn>(
    source: &Source,
    host: &Server,
    address: &Address,
    log_in: &L,
) -> Result<L::Session, L::Error> {
    let limit = source.config().get_connect_timeout().copied().unwrap_or(CONNECT_TIMEOUT);
    let late = || {
        let error = io::Error::new(io::ErrorKind::TimedOut, format!("no answer within {limit:?}"));
        L::Error::from(source.unreachable(host, error))
    };
    let mode = source.tls().mode;
    let local = matches!(address, Address::Unix(_));
    let config = source.login(&host.name, host.port);
    let mut encrypted = !local && mode.first();
    let mut fall_back = !local && mode.falls_back(encrypted);
    loop {
        let deadline = Instant::now() + limit;
        let opened = timeout_at(deadline, Transport::open(source, host, address, encrypted)).await;
        match opened.map_err(|_| late())? {
            Ok(transport) => match timeout_at(deadline, log_in.log_in(&config, transport)).await.map_err(|_| late())? {
                Err(error) if fall_back && L::sql_state(&error) == Some(REFUSED_BY_RULES) => {}
                outcome => return outcome,
            },
            Err(SourceError::Tls { error, .. }) if fall_back && !error.is_ours() => {
                tracing::warn!("going on without encryption, as sslmode={mode} allows: {error}");
            }
            Err(error) => return Err(error.into()),
        }
        (encrypted, fall_back) = (!encrypted, false);
    }
}

/// A server that the address names.
#[derive(Clone, Debug)]
pub(super) struct Server {
    /// Its host name or address, or the directory of its socket.
    pub name: String,
    pub port: u16,
    /// Where it is, if that was given beside the name, or instead of it.
    address: Option<IpAddr>,
    /// What its certificate must be for; an address that was given without a name says nothing about that.
    named: bool,
    local: bool,
}

/// Where a server listens.
enum Address {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// The servers of an address in the order in which they are tried. As in libpq an IP address, where there is one,
/// stands for where the host is.
fn servers(config: &Config) -> Vec<Server> {
    let (hosts, addresses) = (config.get_hosts(), config.get_hostaddrs());
    let server = |at: usize| {
        let port = config.get_ports().get(at).or(config.get_ports().first()).copied().unwrap_or(5432);
        let address = addresses.get(at).copied();
        let (name, local) = match (hosts.get(at), address) {
            (Some(Host::Tcp(name)), _) => (name.clone(), false),
            (Some(Host::Unix(path)), None) => (path.display().to_string(), true),
            (_, Some(address)) => (address.to_string(), false),
            (None, None) => return None,
        };
        Some(Server { name, port, address, named: hosts.get(at).is_some(), local })
    };
    let mut servers: Vec<Server> = (0..hosts.len().max(addresses.len())).filter_map(server).collect();
    if config.get_load_balance_hosts() == LoadBalanceHosts::Random {
        servers.shuffle(&mut rand::rng());
    }
    servers
}

impl Server {
    async fn addresses(&self) -> io::Result<Vec<Address>> {
        if self.local {
            return Ok(vec![Address::Unix(PathBuf::from(&self.name).join(format!(".s.PGSQL.{}", self.port)))]);
        }
        if let Some(address) = self.address {
            return Ok(vec![Address::Tcp(SocketAddr::new(address, self.port))]);
        }
        let found: Vec<Address> = lookup_host((self.name.as_str(), self.port)).await?.map(Address::Tcp).collect();
        if found.is_empty() {
            return Err(io::Error::new(io::ErrorKind::NotFound, "its name has no address"));
        }
        Ok(found)
    }
}

/// A connection to a server.
pub(super) enum Transport {
    /// Over a socket of this machine.
    Unix(UnixStream),
    /// Over the network, in the clear.
    Plain(TcpStream),
    /// Over the network, encrypted.
    Tls(Box<tokio_rustls::client::TlsStream<TcpStream>>),
    /// One of these, once logged in, that a thread of its own reads.
    Paced(Box<Paced>),
}

impl Transport {
    async fn open(
        source: &Source,
        server: &Server,
        address: &Address,
        encrypted: bool,
    ) -> Result<Transport, SourceError> {
        let unreachable = |error| source.unreachable(server, error);
        let mut tcp = match address {
            Address::Unix(path) => {
                return Ok(Transport::Unix(UnixStream::connect(path).await.map_err(unreachable)?));
            }
            Address::Tcp(address) => TcpStream::connect(address).await.map_err(unreachable)?,
        };
        tcp.set_nodelay(true).map_err(unreachable)?;
        notice_silence(&tcp, source.config().get_tcp_user_timeout().copied()).map_err(unreachable)?;
        if !encrypted {
            return Ok(Transport::Plain(tcp));
        }
        let (settings, mode) = (source.tls(), source.tls().mode);
        if !settings.direct && !offers_tls(&mut tcp).await.map_err(unreachable)? {
            if mode == SslMode::Prefer {
                return Ok(Transport::Plain(tcp));
            }
            return Err(source.not_encrypted(TlsError::NotOffered { host: server.name.clone(), mode }));
        }
        let reading = settings.clone();
        let client = tokio::task::spawn_blocking(move || reading.client()).await;
        let client = client.map_err(|error| unreachable(io::Error::other(error)))?;
        let client = client.map_err(|error| source.not_encrypted(error))?;
        let name = server.certified_name(mode).map_err(|error| source.not_encrypted(error))?;
        let stream = TlsConnector::from(Arc::new(client)).connect(name, tcp).await;
        let failed = |error| source.not_encrypted(TlsError::of_handshake(&server.name, settings, error));
        let stream = stream.map_err(failed)?;
        if settings.direct && stream.get_ref().1.alpn_protocol().is_none() {
            return Err(failed(io::Error::other("it speaks TLS, but does not say that it is PostgreSQL (by ALPN)")));
        }
        Ok(Transport::Tls(Box::new(stream)))
    }

    /// Whether nobody on the way can listen.
    pub(super) fn is_private(&self) -> bool {
        matches!(self, Transport::Unix(_) | Transport::Tls(_))
    }

    /// What a login over this connection is bound to.
    pub(super) fn end_point(&self) -> Option<Vec<u8>> {
        match self {
            Transport::Tls(stream) => end_point(stream.get_ref().1.peer_certificates()?.first()?),
            Transport::Unix(_) | Transport::Plain(_) | Transport::Paced(_) => None,
        }
    }
}

impl Server {
    /// The name that the certificate is for.
    fn certified_name(&self, mode: SslMode) -> Result<ServerName<'static>, TlsError> {
        if !self.named && mode == SslMode::VerifyFull {
            let problem = "sslmode=verify-full compares the certificate with the host's name, and there is none: give \
                           host= beside hostaddr=";
            return Err(TlsError::Settings(problem.to_owned()));
        }
        ServerName::try_from(self.name.clone())
            .map_err(|_| TlsError::Settings(format!("the host {} is no name that a certificate can hold", self.name)))
    }
}

/// Asks the server whether it speaks TLS.
async fn offers_tls(tcp: &mut TcpStream) -> io::Result<bool> {
    let mut request = BytesMut::new();
    frontend::ssl_request(&mut request);
    tcp.write_all(&request).await?;
    match tcp.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        // An error, before the server knows who asks: it cannot start a process, say.
        _ => Err(io::Error::other("the server did not say whether it speaks TLS; its log says why")),
    }
}

/// Lets the kernel end a connection whose other side is gone without a word within about a minute: idle, by keepalive
/// probes; with something under way, by the limit on what stays unconfirmed.
fn notice_silence(tcp: &TcpStream, unconfirmed: Option<Duration>) -> io::Result<()> {
    let socket = socket2::SockRef::from(tcp);
    let (idle, interval) = (Duration::from_secs(30), Duration::from_secs(10));
    socket.set_tcp_keepalive(&socket2::TcpKeepalive::new().with_time(idle).with_interval(interval).with_retries(3))?;
    #[cfg(target_os = "linux")]
    socket.set_tcp_user_timeout(Some(unconfirmed.unwrap_or(Duration::from_secs(60))))?;
    Ok(())
}

impl AsyncRead for Transport {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context<'_>, into: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Unix(socket) => Pin::new(socket).poll_read(context, into),
            Transport::Plain(socket) => Pin::new(socket).poll_read(context, into),
            Transport::Tls(stream) => Pin::new(stream).poll_read(context, into),
            Transport::Paced(paced) => Pin::new(paced).poll_read(context, into),
        }
    }
}

impl AsyncWrite for Transport {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Transport::Unix(socket) => Pin::new(socket).poll_write(context, bytes),
            Transport::Plain(socket) => Pin::new(socket).poll_write(context, bytes),
            Transport::Tls(stream) => Pin::new(stream).poll_write(context, bytes),
            Transport::Paced(paced) => Pin::new(paced).poll_write(context, bytes),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Unix(socket) => Pin::new(socket).poll_flush(context),
            Transport::Plain(socket) => Pin::new(socket).poll_flush(context),
            Transport::Tls(stream) => Pin::new(stream).poll_flush(context),
            Transport::Paced(paced) => Pin::new(paced).poll_flush(context),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Transport::Unix(socket) => Pin::new(socket).poll_shutdown(context),
            Transport::Plain(socket) => Pin::new(socket).poll_shutdown(context),
            Transport::Tls(stream) => Pin::new(stream).poll_shutdown(context),
            Transport::Paced(paced) => Pin::new(paced).poll_shutdown(context),
        }
    }
}

impl TlsStream for Transport {
    fn channel_binding(&self) -> ChannelBinding {
        self.end_point().map_or_else(ChannelBinding::none, ChannelBinding::tls_server_end_point)
    }
}

/// Hands a transport to tokio-postgres, which has nothing to encrypt any more but asks what a login is bound to.
pub(super) struct Established;

impl TlsConnect<Transport> for Established {
    type Stream = Transport;
    type Error = io::Error;
    type Future = Ready<io::Result<Transport>>;

    fn connect(self, transport: Transport) -> Self::Future {
        ready(Ok(transport))
    }
}
