//! How a connection in replication mode logs in: trust, password (never in the clear over a network), MD5,
//! SCRAM-SHA-256.

use std::io;

use fallible_iterator::FallibleIterator;
use postgres_protocol::authentication::{md5_hash, sasl};
use postgres_protocol::message::{backend, frontend};

use super::super::{ServerError, Source};
use super::{Replication, ReplicationError, lost};

impl Replication {
    /// Sends the startup message and answers what the server asks until it is ready.
    pub(super) async fn log_in(&mut self, source: &Source, application_name: &str) -> Result<(), ReplicationError> {
        use backend::Message;
        let config = source.config();
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
        frontend::startup_message(parameters, &mut self.output).map_err(|error| refused(error.to_string()))?;
        let mut scram = None;
        loop {
            self.flush().await.map_err(|error| lost(tried(), error))?;
            let answered = match self.message().await.map_err(|error| lost(tried(), error))? {
                Message::AuthenticationOk | Message::ParameterStatus(_) | Message::NoticeResponse(_) => Ok(()),
                Message::BackendKeyData(body) => {
                    self.pid = body.process_id();
                    Ok(())
                }
                Message::ReadyForQuery(_) => return Ok(()),
                Message::ErrorResponse(body) => {
                    return Err(ReplicationError::Server { tried: tried(), error: ServerError::from_body(&body) });
                }
                request => self.answer(&request, user.as_bytes(), config.get_password(), &mut scram),
            };
            answered.map_err(|error| refused(error.to_string()))?;
        }
    }

    fn answer(
        &mut self,
        request: &backend::Message,
        user: &[u8],
        password: Option<&[u8]>,
        scram: &mut Option<sasl::ScramSha256>,
    ) -> io::Result<()> {
        use backend::Message;
        let password =
            || password.ok_or_else(|| io::Error::other("the server asks for a password; the address has none"));
        let unexpected = || io::Error::other("the server answers a question that was not asked");
        match request {
            Message::AuthenticationCleartextPassword if self.local => {
                frontend::password_message(password()?, &mut self.output)
            }
            Message::AuthenticationCleartextPassword => Err(io::Error::other(
                "the server asks for the password in the clear, which needs TLS; let pg_hba.conf demand scram-sha-256",
            )),
            Message::AuthenticationMd5Password(body) => {
                let hash = md5_hash(user, password()?, body.salt());
                frontend::password_message(hash.as_bytes(), &mut self.output)
            }
            Message::AuthenticationSasl(body) => {
                if !body.mechanisms().any(|mechanism| Ok(mechanism == sasl::SCRAM_SHA_256))? {
                    return Err(io::Error::other("the server offers no SCRAM-SHA-256"));
                }
                let exchange = sasl::ScramSha256::new(password()?, sasl::ChannelBinding::unsupported());
                frontend::sasl_initial_response(sasl::SCRAM_SHA_256, exchange.message(), &mut self.output)?;
                *scram = Some(exchange);
                Ok(())
            }
            Message::AuthenticationSaslContinue(body) => {
                let exchange = scram.as_mut().ok_or_else(unexpected)?;
                exchange.update(body.data())?;
                frontend::sasl_response(exchange.message(), &mut self.output)
            }
            // The server proves that it knows the password too.
            Message::AuthenticationSaslFinal(body) => scram.as_mut().ok_or_else(unexpected)?.finish(body.data()),
            _ => Err(io::Error::other(
                "the server asks for a way of logging in that is not supported; supported are trust, md5 and \
                 scram-sha-256",
            )),
        }
    }
}
