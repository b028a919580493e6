//! How a connection in replication mode logs in: trust, a certificate, a password (never in the clear over a network),
//! MD5, SCRAM-SHA-256, and SCRAM-SHA-256-PLUS, which is bound to the server's certificate.
//!
//! `channel_binding=require` accepts the last alone, whatever the server asks for: a server that lets us in otherwise
//! may be one that stands in between.

use std::io;

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::{backend, frontend};
use tokio_postgres::Config;
use tokio_postgres::config::ChannelBinding;

use super::super::tls::TlsError;
use super::super::{ServerError, Source};
use super::{Replication, ReplicationError, lost};

/// How far a login by SCRAM is.
#[derive(Default)]
enum Scram {
    /// The server has not asked for it.
    #[default]
    None,
    Begun {
        exchange: sasl::ScramSha256,
        /// Whether it is bound to the server's certificate.
        bound: bool,
    },
    /// The server has proved that it knows the password too.
    Finished { bound: bool },
}

impl Replication {
    /// Sends the startup message and answers what the server asks until it is ready.
    pub(super) async fn log_in(
        &mut self,
        source: &Source,
        config: &Config,
        application_name: &str,
    ) -> Result<(), ReplicationError> {
        use backend::Message;
        let user = source.user();
        let parameters = [
            ("user", user.as_str()),
            ("database", config.get_dbname().unwrap_or(&user)),
            ("replication", "database"),
            ("client_encoding", "UTF8"),
            ("application_name", application_name),
            ("options", config.get_options().unwrap_or_default()),
        ];
        let refused = |problem: String| ReplicationError::Authentication { source_name: source.to_string(), problem };
        let tried = || format!("log in to {source}");
        let broken = |error: io::Error| match TlsError::after_handshake(&error) {
            Some(error) => source.not_encrypted(error).into(),
            None => lost(tried(), error),
        };
        frontend::startup_message(parameters, &mut self.output).map_err(|error| refused(error.to_string()))?;
        let mut scram = Scram::None;
        loop {
            self.flush().await.map_err(broken)?;
            let answered = match self.message().await.map_err(broken)? {
                Message::AuthenticationOk => scram.is_enough(config),
                Message::ParameterStatus(_) | Message::NoticeResponse(_) => Ok(()),
                Message::BackendKeyData(body) => {
                    self.pid = body.process_id();
                    Ok(())
                }
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ErrorResponse(body) => {
                    return Err(ReplicationError::Server { tried: tried(), error: ServerError::from_body(&body) });
                }
                request => self.answer(&request, user.as_bytes(), config, &mut scram),
            };
            answered.map_err(|error| refused(error.to_string()))?;
        }
    }

    fn answer(
        &mut self,
        request: &backend::Message,
        user: &[u8],
        config: &Config,
        scram: &mut Scram,
    ) -> io::Result<()> {
        use backend::Message;
        let password = || {
            config.get_password().ok_or_else(|| {
                io::Error::other("the server asks for a password; the address has none, nor has ~/.pgpass")
            })
        };
        let unexpected = || io::Error::other("the server answers a question that was not asked");
        match request {
            Message::AuthenticationCleartextPassword | Message::AuthenticationMd5Password(_) if requires(config) => {
                Err(unbound("the server asks for the password without it"))
            }
            Message::AuthenticationCleartextPassword if self.transport.is_private() => {
                frontend::password_message(password()?, &mut self.output)
            }
            Message::AuthenticationCleartextPassword => Err(io::Error::other(
                "the server asks for the password in the clear, which needs TLS; add sslmode=require to the address, or \
                 let pg_hba.conf demand scram-sha-256",
            )),
            Message::AuthenticationMd5Password(body) => {
                let hash = md5_hash(user, password()?, body.salt());
                frontend::password_message(hash.as_bytes(), &mut self.output)
            }
            Message::AuthenticationSasl(body) => {
                let mechanisms: Vec<String> = body.mechanisms().map(|name| Ok(name.to_owned())).collect()?;
                *scram = self.begin_scram(&mechanisms, password()?, config)?;
                Ok(())
            }
            Message::AuthenticationSaslContinue(body) => {
                let Scram::Begun { exchange, .. } = scram else { return Err(unexpected()) };
                exchange.update(body.data())?;
                frontend::sasl_response(exchange.message(), &mut self.output)
            }
            Message::AuthenticationSaslFinal(body) => {
                let Scram::Begun { exchange, bound } = scram else { return Err(unexpected()) };
                exchange.finish(body.data())?;
                *scram = Scram::Finished { bound: *bound };
                Ok(())
            }
            _ => Err(io::Error::other(
                "the server asks for a way of logging in that is not supported; supported are trust, cert, password, \
                 md5 and scram-sha-256",
            )),
        }
    }

    /// Chooses among what the server offers; bound to its certificate whenever that can be.
    fn begin_scram(&mut self, offered: &[String], password: &[u8], config: &Config) -> io::Result<Scram> {
        let offers = |mechanism: &str| offered.iter().any(|name| name == mechanism);
        let wanted = config.get_channel_binding() != ChannelBinding::Disable;
        let end_point = wanted.then(|| self.transport.end_point()).flatten();
        let (mechanism, binding, bound) = match end_point {
            Some(end_point) if offers(sasl::SCRAM_SHA_256_PLUS) => {
                (sasl::SCRAM_SHA_256_PLUS, sasl::ChannelBinding::tls_server_end_point(end_point), true)
            }
            // Says that we would have: a server that can bind knows then that somebody took its offer away.
            Some(_) => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unrequested(), false),
            None => (sasl::SCRAM_SHA_256, sasl::ChannelBinding::unsupported(), false),
        };
        if !bound && requires(config) {
            return Err(unbound("the server offers none, or the connection is not encrypted"));
        }
        if !offers(mechanism) {
            return Err(io::Error::other(format!("the server offers no {mechanism}, but {}", offered.join(", "))));
        }
        let exchange = sasl::ScramSha256::new(password, binding);
        frontend::sasl_initial_response(mechanism, exchange.message(), &mut self.output)?;
        Ok(Scram::Begun { exchange, bound })
    }
}

impl Scram {
    /// Whether the server may let us in now.
    fn is_enough(&self, config: &Config) -> io::Result<()> {
        match self {
            Scram::Finished { bound: true } => Ok(()),
            Scram::Begun { .. } => Err(io::Error::other("the server did not prove that it knows the password")),
            Scram::None | Scram::Finished { .. } if requires(config) => Err(unbound("the server let us in without it")),
            Scram::None | Scram::Finished { .. } => Ok(()),
        }
    }
}

fn requires(config: &Config) -> bool {
    config.get_channel_binding() == ChannelBinding::Require
}

fn unbound(problem: &str) -> io::Error {
    io::Error::other(format!(
        "channel_binding=require, but {problem}; let pg_hba.conf demand scram-sha-256 by hostssl, or use \
         channel_binding=prefer"
    ))
}
