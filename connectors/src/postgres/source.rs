//! Which database, and how to reach it.

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use tokio::task::JoinHandle;
use tokio_postgres::config::{Host, SslNegotiation, TargetSessionAttrs};
use tokio_postgres::{Client, Config, SimpleQueryMessage};

use super::error::{is_transient, with_causes};
use super::tls::{SslMode, TlsError, TlsSettings};
use super::transport::{CONNECT_TIMEOUT, Established, LogIn, Server, Transport, connect};

mod address;
mod passfile;

/// What every session is pinned to, so that text forms never vary with the server's, the role's or the database's
/// settings. `client_encoding` is UTF8 by the protocol library.
const SESSION: &str = "-c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=postgres -c extra_float_digits=3 \
                       -c standard_conforming_strings=on";

/// A PostgreSQL database: hosts or socket directories, user, password, database name, and how the way there is secured.
///
/// Neither `Debug` nor `Display` shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    config: Config,
    tls: TlsSettings,
    /// Where the password is looked up if the address has none.
    passfile: Option<PathBuf>,
}

/// Why a source cannot be used or reached.
#[derive(Debug, thiserror::Error)]
pub enum SourceError {
    /// The text is no address of a database. It may hold a password, so it is not repeated.
    #[error(
        "the database address cannot be read ({0}); it looks like postgres://user:password@host:5432/dbname or \
         host=/run/postgresql user=… dbname=…"
    )]
    Address(String),
    /// The connection is not as secure as it should be.
    #[error("could not connect to {source_name}: {error}")]
    Tls {
        /// The source.
        source_name: String,
        /// What is wrong.
        error: TlsError,
    },
    /// Nobody answers there.
    #[error("could not connect to {source_name}: {server}: {error}")]
    Unreachable {
        /// The source.
        source_name: String,
        /// The server that was tried last.
        server: String,
        /// What went wrong.
        error: io::Error,
    },
    /// The server did not let us in.
    #[error("could not connect to {source_name}: {}", with_causes(.error))]
    Connect {
        /// The source.
        source_name: String,
        /// What went wrong.
        error: tokio_postgres::Error,
    },
}

impl SourceError {
    /// Whether a later attempt may succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        match self {
            SourceError::Address(_) => false,
            SourceError::Tls { error, .. } => error.is_transient(),
            SourceError::Unreachable { .. } => true,
            SourceError::Connect { error, .. } => is_transient(error),
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let address = address::read(text, |name| std::env::var(name).ok()).map_err(SourceError::Address)?;
        Ok(Source { tls: address.tls, passfile: address.passfile, config: pinned(address.config) })
    }
}

/// The same with every session pinned to the settings that Feedmill relies on.
fn pinned(mut config: Config) -> Config {
    if config.get_connect_timeout().is_none_or(Duration::is_zero) {
        config.connect_timeout(CONNECT_TIMEOUT);
    }
    let options = match config.get_options() {
        Some(options) if options.contains(SESSION) => options.to_owned(),
        Some(options) => format!("{options} {SESSION}"),
        None => SESSION.to_owned(),
    };
    config.options(options);
    config
}

impl Source {
    /// The database that `config` describes, on this machine: without TLS.
    pub fn local(config: Config) -> Self {
        Source { config: pinned(config), tls: TlsSettings::off(), passfile: None }
    }

    /// Opens an ordinary connection. It lives in a task of its own, which ends when the client is dropped; a
    /// connection that breaks is seen by the client's next use.
    pub async fn connect(&self, application_name: &str) -> Result<Client, SourceError> {
        Ok(self.session(application_name).await?.0)
    }

    /// The same together with the task.
    pub async fn session(&self, application_name: &str) -> Result<(Client, JoinHandle<()>), SourceError> {
        connect(self, &Session { source: self, application_name }).await
    }

    /// What the address says, but for what concerns TLS.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// How the way to the server is secured.
    pub fn ssl_mode(&self) -> SslMode {
        self.tls.mode
    }

    pub(super) fn tls(&self) -> &TlsSettings {
        &self.tls
    }

    /// The configuration with which to log in at this server, over a transport that stands.
    pub(super) fn login(&self, host: &str, port: u16) -> Config {
        let mut config = self.config.clone();
        config.ssl_mode(tokio_postgres::config::SslMode::Require).ssl_negotiation(SslNegotiation::Direct);
        if let (None, Some(file)) = (config.get_password(), &self.passfile) {
            let (port, user) = (port.to_string(), self.user());
            let database = config.get_dbname().unwrap_or(&user).to_owned();
            // As in libpq; there a socket's directory is `localhost` only if it is the usual one.
            let names = [host, "localhost"].into_iter().take(if host.starts_with('/') { 2 } else { 1 });
            let found = names.filter_map(|name| passfile::password(file, [name, &port, &database, &user])).next();
            if let Some(password) = found {
                config.password(password);
            }
        }
        config
    }

    pub(super) fn unreachable(&self, server: &Server, error: io::Error) -> SourceError {
        let server = format!("{} port {}", server.name, server.port);
        SourceError::Unreachable { source_name: self.to_string(), server, error }
    }

    pub(super) fn not_encrypted(&self, error: TlsError) -> SourceError {
        SourceError::Tls { source_name: self.to_string(), error }
    }

    /// The role that connects: the user of the address, or as libpq does it, the one who runs the process.
    pub fn user(&self) -> String {
        let user = self.config.get_user().map(str::to_owned);
        user.or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| "postgres".to_owned())
    }

    /// The same server and role, another database of it.
    pub fn with_database(&self, name: &str) -> Source {
        let mut source = self.clone();
        source.config.dbname(name);
        source
    }

    /// The same server and database, as another role.
    pub fn with_user(&self, name: &str, password: &str) -> Source {
        let mut source = self.clone();
        source.config.user(name).password(password);
        source
    }

    /// The same, and these options of a session besides (`-c name=value …`).
    pub fn with_options(&self, options: &str) -> Source {
        let mut source = self.clone();
        let all = format!("{} {options}", source.config.get_options().unwrap_or_default());
        source.config.options(all);
        source
    }
}

/// Logs in to an ordinary session.
struct Session<'a> {
    source: &'a Source,
    application_name: &'a str,
}

impl LogIn for Session<'_> {
    type Session = (Client, JoinHandle<()>);
    type Error = SourceError;

    async fn log_in(&self, config: &Config, transport: Transport) -> Result<Self::Session, SourceError> {
        let mut config = config.clone();
        config.application_name(self.application_name);
        let failed = |error: tokio_postgres::Error| match TlsError::after_handshake(&error) {
            Some(error) => self.source.not_encrypted(error),
            None => SourceError::Connect { source_name: self.source.to_string(), error },
        };
        let (client, connection) = config.connect_raw(transport, Established).await.map_err(failed)?;
        let name = self.application_name.to_owned();
        let task = tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(application_name = name, error = with_causes(&error), "a connection ended");
            }
        });
        let wanted = match config.get_target_session_attrs() {
            TargetSessionAttrs::ReadWrite => "off",
            TargetSessionAttrs::ReadOnly => "on",
            _ => return Ok((client, task)),
        };
        let answer = client.simple_query("SHOW transaction_read_only").await.map_err(failed)?;
        let fits = answer.iter().any(|line| matches!(line, SimpleQueryMessage::Row(row) if row.get(0) == Some(wanted)));
        if fits {
            return Ok((client, task));
        }
        let error = io::Error::other("the server is not of the kind that target_session_attrs asks for");
        let source_name = self.source.to_string();
        Err(SourceError::Unreachable { source_name, server: "it is reached, but".to_owned(), error })
    }

    fn sql_state(error: &SourceError) -> Option<&str> {
        match error {
            SourceError::Connect { error, .. } => error.code().map(|code| code.code()),
            _ => None,
        }
    }
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "postgres://{}@", self.user())?;
        let ports = self.config.get_ports();
        for (at, host) in self.config.get_hosts().iter().enumerate() {
            let separator = if at == 0 { "" } else { "," };
            let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
            match host {
                Host::Tcp(name) => write!(f, "{separator}{name}:{port}")?,
                Host::Unix(path) => write!(f, "{separator}{}:{port}", path.display())?,
            }
        }
        if self.config.get_hosts().is_empty() {
            for (at, address) in self.config.get_hostaddrs().iter().enumerate() {
                let separator = if at == 0 { "" } else { "," };
                let port = ports.get(at).or(ports.first()).copied().unwrap_or(5432);
                write!(f, "{separator}{address}:{port}")?;
            }
        }
        write!(f, "/{}", self.config.get_dbname().unwrap_or_default())?;
        match self.tls.mode {
            // What is meant where nothing is said, and what a socket of this machine has anyway.
            SslMode::Prefer | SslMode::Disable => Ok(()),
            mode => write!(f, "?sslmode={mode}"),
        }
    }
}

impl fmt::Debug for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Source({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_read_and_shown_without_its_password() {
        for (text, shown) in [
            ("postgres://ada:s3cret@db.example:6543/feeds", "postgres://ada@db.example:6543/feeds"),
            ("host=/run/postgresql user=ada password=s3cret dbname=feeds", "postgres://ada@/run/postgresql:5432/feeds"),
            ("postgres://ada:s3cret@a,b:1/feeds?sslmode=prefer", "postgres://ada@a:5432,b:1/feeds"),
        ] {
            let source: Source = text.parse().expect(text);
            assert_eq!(source.to_string(), shown);
            assert!(!format!("{source:?}").contains("s3cret"));
            assert_eq!(source.config().get_password(), Some(b"s3cret".as_slice()));
        }
    }

    #[test]
    fn the_mode_is_shown() {
        let source: Source =
            "host=db user=ada dbname=feeds sslmode=verify-ca sslrootcert=/ca".parse().expect("an address");
        assert_eq!(source.to_string(), "postgres://ada@db:5432/feeds?sslmode=verify-ca");
        assert_eq!(source.with_database("other").ssl_mode(), SslMode::VerifyCa);
    }

    #[test]
    fn an_address_that_cannot_be_read_is_not_repeated() {
        let text = "postgres://ada:s3cret@h/d?nonsense=1";
        let error = text.parse::<Source>().expect_err(text).to_string();
        assert!(!error.contains("s3cret"), "{error}");
        assert!("user=ada".parse::<Source>().is_err());
    }

    #[test]
    fn sessions_are_pinned_once() {
        let source: Source = "host=h user=a options='-c work_mem=1MB'".parse().expect("an address");
        let again = Source::local(source.config().clone());
        assert_eq!(source.config().get_options(), again.config().get_options());
        assert!(
            source.config().get_options().is_some_and(|options| options.starts_with("-c work_mem=1MB -c TimeZone"))
        );
    }
}
