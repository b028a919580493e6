//! Which database, and how to reach it.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use tokio_postgres::config::{Host, SslMode};
use tokio_postgres::{Client, Config, NoTls};

use super::error::{is_transient, with_causes};

/// Seconds that a connection attempt may take where the address says nothing else.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

/// What every session is pinned to, so that text forms never vary with the server's, the role's or the database's
/// settings. `client_encoding` is UTF8 by the protocol library.
const SESSION: &str = "-c TimeZone=UTC -c DateStyle=ISO -c IntervalStyle=postgres -c extra_float_digits=3 \
                       -c standard_conforming_strings=on";

/// A PostgreSQL database: hosts or socket directories, user, password, database name.
///
/// Neither `Debug` nor `Display` shows the password.
#[derive(Clone, PartialEq, Eq)]
pub struct Source {
    config: Config,
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
    /// The address demands what this version cannot do.
    #[error("the database address demands sslmode={0}, but TLS is not available yet; use sslmode=prefer or disable")]
    Tls(String),
    /// No host accepted the connection.
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
            SourceError::Address(_) | SourceError::Tls(_) => false,
            SourceError::Connect { error, .. } => is_transient(error),
        }
    }
}

impl FromStr for Source {
    type Err = SourceError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(mode) = ["verify-ca", "verify-full", "allow"].iter().find(|mode| has_sslmode(text, mode)) {
            return Err(SourceError::Tls((*mode).to_owned()));
        }
        let config: Config = text.parse().map_err(|error| SourceError::Address(with_causes(&error)))?;
        Source::from_config(config)
    }
}

impl Source {
    /// The database that `config` describes, with every session pinned to the settings that Feedmill relies on.
    pub fn from_config(mut config: Config) -> Result<Self, SourceError> {
        match config.get_ssl_mode() {
            SslMode::Disable | SslMode::Prefer => config.ssl_mode(SslMode::Disable),
            mode => return Err(SourceError::Tls(format!("{mode:?}").to_lowercase())),
        };
        if config.get_hosts().is_empty() && config.get_hostaddrs().is_empty() {
            return Err(SourceError::Address("it names no host".to_owned()));
        }
        Ok(Source::local(config))
    }

    /// The same for a configuration that names its host and demands nothing, as that of a private cluster.
    pub(super) fn local(mut config: Config) -> Self {
        if config.get_connect_timeout().is_none_or(Duration::is_zero) {
            config.connect_timeout(CONNECT_TIMEOUT);
        }
        let options = match config.get_options() {
            Some(options) if options.contains(SESSION) => options.to_owned(),
            Some(options) => format!("{options} {SESSION}"),
            None => SESSION.to_owned(),
        };
        config
            .options(options)
            .keepalives(true)
            .keepalives_idle(Duration::from_secs(30))
            .keepalives_interval(Duration::from_secs(10))
            .keepalives_retries(3);
        Source { config }
    }

    /// Opens an ordinary connection. It lives in a task of its own, which ends when the client is dropped; a
    /// connection that breaks is seen by the client's next use.
    pub async fn connect(&self, application_name: &str) -> Result<Client, SourceError> {
        let (client, connection) = self
            .pool_config(application_name)
            .connect(NoTls)
            .await
            .map_err(|error| SourceError::Connect { source_name: self.to_string(), error })?;
        let name = application_name.to_owned();
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(application_name = name, error = with_causes(&error), "a connection ended");
            }
        });
        Ok(client)
    }

    /// The configuration with the session settings, for a pool to connect with.
    pub fn pool_config(&self, application_name: &str) -> Config {
        let mut config = self.config.clone();
        config.application_name(application_name);
        config
    }

    /// The configuration.
    pub fn config(&self) -> &Config {
        &self.config
    }

    /// The role that connects: the user of the address, or as libpq does it, the one who runs the process.
    pub fn user(&self) -> String {
        let user = self.config.get_user().map(str::to_owned);
        user.or_else(|| std::env::var("USER").ok()).unwrap_or_else(|| "postgres".to_owned())
    }

    /// The same server and role, another database of it.
    pub fn with_database(&self, name: &str) -> Source {
        let mut config = self.config.clone();
        config.dbname(name);
        Source { config }
    }
}

/// Whether the address holds `sslmode=mode`, in either form: tokio-postgres says only that the value is invalid.
fn has_sslmode(text: &str, mode: &str) -> bool {
    text.split("sslmode").skip(1).any(|rest| {
        let value = rest.trim_start().strip_prefix('=').unwrap_or_default();
        value.trim_start_matches([' ', '\'']).starts_with(mode)
    })
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
        write!(f, "/{}", self.config.get_dbname().unwrap_or_default())
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
    fn what_needs_tls_is_refused_by_name() {
        for (text, mode) in [
            ("postgres://a@h/d?sslmode=require", "require"),
            ("postgres://a@h/d?connect_timeout=3&sslmode=verify-full", "verify-full"),
            ("host=h user=a sslmode = 'verify-ca'", "verify-ca"),
        ] {
            let error = text.parse::<Source>().expect_err(text);
            assert!(matches!(&error, SourceError::Tls(found) if found == mode), "{error}");
        }
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
        let again = Source::from_config(source.config().clone()).expect("the same");
        assert_eq!(source.config().get_options(), again.config().get_options());
        assert!(
            source.config().get_options().is_some_and(|options| options.starts_with("-c work_mem=1MB -c TimeZone"))
        );
    }
}
