//! TLS to the server, as libpq means it.
//!
//! ```text
//!   sslmode       first try   then, if that fails   the certificate must be …
//!   disable       plain       –                     –
//!   allow         plain       TLS                   by an authority of sslrootcert, if there is one
//!   prefer        TLS         plain                 by an authority of sslrootcert, if there is one
//!   require       TLS         –                     by an authority of sslrootcert, if there is one
//!   verify-ca     TLS         –                     by an authority of sslrootcert
//!   verify-full   TLS         –                     by an authority of sslrootcert, for the host's name
//! ```
//!
//! Files that the address does not name are looked for in `~/.postgresql`, as libpq does: `root.crt`, `postgresql.crt`,
//! `postgresql.key`. One difference: a file that the address names and that is not there is an error in every mode,
//! because whoever names an authority wants it to be asked. Files are read for each connection, so that one that was
//! renewed is used without a restart. Sockets of this machine carry no TLS.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{CertificateError, ClientConfig, RootCertStore};

mod end_point;
mod verifier;

pub(super) use end_point::end_point;
use verifier::{Authorities, Verifier};

/// Whether a connection is encrypted, and how the server proves who it is: libpq's `sslmode`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum SslMode {
    /// Never encrypted.
    Disable,
    /// Encrypted if the server refuses otherwise.
    Allow,
    /// Encrypted if the server can.
    Prefer,
    /// Always encrypted.
    Require,
    /// Always encrypted, and the server's certificate is by a known authority.
    VerifyCa,
    /// The same, and the certificate is for the name that was connected to.
    VerifyFull,
}

impl SslMode {
    /// Whether the first attempt is encrypted.
    pub(super) fn first(self) -> bool {
        self >= SslMode::Prefer
    }

    /// Whether another attempt may be made the other way, after one that was `encrypted` has failed.
    pub(super) fn falls_back(self, encrypted: bool) -> bool {
        match self {
            SslMode::Allow => !encrypted,
            SslMode::Prefer => encrypted,
            _ => false,
        }
    }
}

impl FromStr for SslMode {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(match text {
            "disable" => SslMode::Disable,
            "allow" => SslMode::Allow,
            "prefer" => SslMode::Prefer,
            "require" => SslMode::Require,
            "verify-ca" => SslMode::VerifyCa,
            "verify-full" => SslMode::VerifyFull,
            _ => return Err("sslmode is none of disable, allow, prefer, require, verify-ca, verify-full".to_owned()),
        })
    }
}

impl fmt::Display for SslMode {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            SslMode::Disable => "disable",
            SslMode::Allow => "allow",
            SslMode::Prefer => "prefer",
            SslMode::Require => "require",
            SslMode::VerifyCa => "verify-ca",
            SslMode::VerifyFull => "verify-full",
        })
    }
}

/// Whose word is taken for the server's certificate.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Root {
    /// `root.crt` of the default folder, if it is there.
    Default,
    /// The authorities that this machine trusts.
    System,
    /// Those in a file.
    File(PathBuf),
}

/// What an address says about TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct TlsSettings {
    pub mode: SslMode,
    pub root: Root,
    pub certificate: Option<PathBuf>,
    pub key: Option<PathBuf>,
    /// Folder of the files that are used where the address names none.
    pub defaults: Option<PathBuf>,
    /// TLS begins at once, without asking the server before (`sslnegotiation=direct`).
    pub direct: bool,
}

/// Why a connection is not encrypted as it should be.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    /// A file cannot be used.
    #[error("the {what} {} {problem}", .path.display())]
    File {
        /// Which file.
        what: &'static str,
        /// Its path.
        path: PathBuf,
        /// What is wrong, and what mends it.
        problem: String,
    },
    /// What the address says does not fit together, or this machine lacks something.
    #[error("{0}")]
    Settings(String),
    /// The server has no TLS.
    #[error(
        "{host} does not offer TLS, which sslmode={mode} demands; switch it on at the server (ssl = on, with \
         ssl_cert_file and ssl_key_file), or name a weaker sslmode if the network in between is yours alone"
    )]
    NotOffered {
        /// The server.
        host: String,
        /// What was demanded.
        mode: SslMode,
    },
    /// Nobody whom we trust vouches for the certificate.
    #[error(
        "the certificate of {host} is not by an authority in {authorities}: this is another server, or another \
         authority; name the right one's file with sslrootcert=FILE, or sslrootcert=system for a public one"
    )]
    UnknownAuthority {
        /// The server.
        host: String,
        /// Where the authorities come from.
        authorities: String,
    },
    /// The certificate is another server's.
    #[error(
        "the certificate of {host} is for {presented}, not for {host}; connect by a name that it holds, or give the \
         server a certificate with subjectAltName {host}; sslmode=verify-ca would not look at the name"
    )]
    OtherName {
        /// The name that was connected to.
        host: String,
        /// The names that it holds.
        presented: String,
    },
    /// The certificate cannot be accepted.
    #[error(
        "the certificate of {host} cannot be accepted ({problem}); give the server a valid one (X.509 version 3, with \
         a subjectAltName), and see that the clock of this machine is right"
    )]
    Certificate {
        /// The server.
        host: String,
        /// What is wrong with it.
        problem: String,
    },
    /// The server broke the handshake off.
    #[error(
        "the server refused TLS as we speak it ({0}); if it demands a certificate of ours, name it with sslcert=FILE \
         and sslkey=FILE, signed by an authority in the server's ssl_ca_file"
    )]
    Refused(String),
    /// The handshake failed otherwise.
    #[error("the TLS handshake with {host} failed: {error}")]
    Handshake {
        /// The server.
        host: String,
        /// How.
        error: io::Error,
    },
}

impl TlsError {
    /// Whether a later attempt may succeed without anybody changing anything.
    pub fn is_transient(&self) -> bool {
        matches!(self, TlsError::Handshake { error, .. } if rustls_error(error).is_none())
    }

    /// Whether it lies in what the address says, whatever the server does.
    pub(super) fn is_ours(&self) -> bool {
        matches!(self, TlsError::File { .. } | TlsError::Settings(_))
    }

    /// Reads the error of a handshake with `host`.
    pub(super) fn of_handshake(host: &str, settings: &TlsSettings, error: io::Error) -> TlsError {
        let host = host.to_owned();
        match rustls_error(&error) {
            Some(rustls::Error::InvalidCertificate(problem)) => match problem {
                CertificateError::UnknownIssuer | CertificateError::BadSignature => {
                    TlsError::UnknownAuthority { host, authorities: settings.authorities() }
                }
                CertificateError::NotValidForNameContext { presented, .. } => {
                    TlsError::OtherName { host, presented: presented.join(", ") }
                }
                problem => TlsError::Certificate { host, problem: problem.to_string() },
            },
            Some(rustls::Error::AlertReceived(alert)) => TlsError::Refused(format!("{alert:?}")),
            _ => TlsError::Handshake { host, error },
        }
    }

    /// The server's word that it refuses us, where it comes after the handshake: from TLS 1.3 on that is when a server
    /// says that it does not accept our certificate.
    pub(super) fn after_handshake(error: &(dyn std::error::Error + 'static)) -> Option<TlsError> {
        let mut cause = Some(error);
        while let Some(error) = cause {
            if let Some(rustls::Error::AlertReceived(alert)) = error.downcast_ref().and_then(rustls_error) {
                return Some(TlsError::Refused(format!("{alert:?}")));
            }
            cause = error.source();
        }
        None
    }
}

/// The error of rustls within one of a socket.
fn rustls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

impl TlsSettings {
    /// No TLS.
    pub(super) fn off() -> Self {
        TlsSettings {
            mode: SslMode::Disable,
            root: Root::Default,
            certificate: None,
            key: None,
            defaults: None,
            direct: false,
        }
    }

    /// Reads the files and puts together how a handshake is made. Blocks.
    pub(super) fn client(&self) -> Result<ClientConfig, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = Verifier::new(Arc::clone(&provider), self.trusted()?, self.mode == SslMode::VerifyFull);
        let unusable = |error: rustls::Error| TlsError::Settings(format!("TLS cannot be set up: {error}"));
        let builder = ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(unusable)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(verifier));
        let mut client = match self.identity()? {
            None => builder.with_no_client_auth(),
            Some((certificate, chain, key)) => {
                builder.with_client_auth_cert(chain, key).map_err(|error| TlsError::File {
                    what: "client certificate",
                    path: certificate,
                    problem: format!("does not go with its key ({error}); name those of one pair"),
                })?
            }
        };
        if self.direct {
            client.alpn_protocols = vec![b"postgresql".to_vec()];
        }
        Ok(client)
    }

    /// The file of the authorities, if one is used.
    fn root_file(&self) -> Option<PathBuf> {
        match &self.root {
            Root::File(file) => Some(file.clone()),
            Root::System => None,
            Root::Default => self.default_file("root.crt").filter(|file| file.exists()),
        }
    }

    fn default_file(&self, name: &str) -> Option<PathBuf> {
        self.defaults.as_ref().map(|folder| folder.join(name))
    }

    /// Where the authorities come from, for people.
    fn authorities(&self) -> String {
        match self.root_file() {
            Some(file) => file.display().to_string(),
            None => "the certificates that this machine trusts".to_owned(),
        }
    }

    /// Whom we trust to vouch for the server; `None` is anybody.
    fn trusted(&self) -> Result<Option<Authorities>, TlsError> {
        if self.root == Root::System {
            let found = rustls_native_certs::load_native_certs();
            let mut roots = RootCertStore::empty();
            roots.add_parsable_certificates(found.certs);
            if roots.is_empty() {
                let problem = "sslrootcert=system, but this machine has no trusted certificates; install them, for \
                               example by: apt-get install ca-certificates";
                return Err(TlsError::Settings(problem.to_owned()));
            }
            return Ok(Some(Authorities { roots, certificates: Vec::new() }));
        }
        let Some(file) = self.root_file() else {
            if self.mode < SslMode::VerifyCa {
                return Ok(None);
            }
            let default = self.default_file("root.crt").unwrap_or_else(|| "~/.postgresql/root.crt".into());
            return Err(TlsError::Settings(format!(
                "sslmode={} needs to know an authority, but sslrootcert is not given and {} does not exist; name the \
                 authority's file with sslrootcert=FILE, or sslrootcert=system for a public one",
                self.mode,
                default.display()
            )));
        };
        const WHAT: &str = "root certificate (sslrootcert)";
        let certificates = certificates(WHAT, &file)?;
        let mut roots = RootCertStore::empty();
        let (added, _) = roots.add_parsable_certificates(certificates.iter().cloned());
        if added == 0 {
            let problem = "holds no certificate that can be read".to_owned();
            return Err(TlsError::File { what: WHAT, path: file, problem });
        }
        Ok(Some(Authorities { roots, certificates }))
    }

    /// Our own certificate with the chain to its authority, and its key.
    #[allow(clippy::type_complexity, reason = "a tuple that one caller takes apart")]
    fn identity(&self) -> Result<Option<(PathBuf, Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>, TlsError> {
        let default = || self.default_file("postgresql.crt").filter(|file| file.exists());
        let Some(certificate) = self.certificate.clone().or_else(default) else { return Ok(None) };
        let chain = certificates("client certificate (sslcert)", &certificate)?;
        let key = self.key.clone().or_else(|| self.default_file("postgresql.key"));
        let Some(key) = key else {
            let problem = "has no key: name it with sslkey=FILE".to_owned();
            return Err(TlsError::File { what: "client certificate (sslcert)", path: certificate, problem });
        };
        Ok(Some((certificate, chain, private_key(&key)?)))
    }
}

fn certificates(what: &'static str, file: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let failed = |problem: String| TlsError::File { what, path: file.to_owned(), problem };
    let text = fs::read(file).map_err(|error| failed(format!("cannot be read: {error}")))?;
    let certificates: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&text).collect();
    let certificates = certificates.map_err(|error| failed(format!("is no PEM file: {error}")))?;
    if certificates.is_empty() {
        return Err(failed("holds no certificate in PEM form (-----BEGIN CERTIFICATE-----)".to_owned()));
    }
    Ok(certificates)
}

/// Reads a key that nobody else may read; root's may be read by a group, as libpq has it.
fn private_key(file: &Path) -> Result<PrivateKeyDer<'static>, TlsError> {
    let failed = |problem: String| TlsError::File { what: "private key (sslkey)", path: file.to_owned(), problem };
    let about = fs::metadata(file).map_err(|error| failed(format!("cannot be read: {error}")))?;
    if !about.is_file() {
        return Err(failed("is not a regular file".to_owned()));
    }
    let (forbidden, allowed) = if about.uid() == 0 { (0o037, "0640") } else { (0o077, "0600") };
    if about.mode() & forbidden != 0 {
        return Err(failed(format!("may be read by others: run chmod {allowed} {}", file.display())));
    }
    let text = fs::read(file).map_err(|error| failed(format!("cannot be read: {error}")))?;
    if String::from_utf8_lossy(&text).contains("ENCRYPTED") {
        let name = file.display();
        return Err(failed(format!("is encrypted, which is not supported: openssl pkey -in {name} -out {name}.plain")));
    }
    PrivateKeyDer::from_pem_slice(&text).map_err(|error| failed(format!("holds no private key in PEM form: {error}")))
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_that_others_may_read_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("key");
        fs::write(&file, rcgen::KeyPair::generate().unwrap().serialize_pem()).unwrap();
        let root = fs::metadata(&file).unwrap().uid() == 0;
        for (mode, accepted) in [(0o600, true), (0o400, true), (0o640, root), (0o644, false), (0o660, false)] {
            fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
            let read = private_key(&file);
            assert_eq!(read.is_ok(), accepted, "{mode:o}");
            assert!(read.err().is_none_or(|error| error.to_string().contains("chmod 06")));
        }
    }

    #[test]
    fn what_is_verified_needs_an_authority() {
        let dir = tempfile::tempdir().unwrap();
        let with = |mode, root| TlsSettings { mode, root, defaults: Some(dir.path().to_owned()), ..TlsSettings::off() };
        assert!(with(SslMode::Require, Root::Default).trusted().unwrap().is_none());
        let error = with(SslMode::VerifyCa, Root::Default).trusted().err().unwrap().to_string();
        assert!(error.contains("sslrootcert=FILE"), "{error}");
        let missing = Root::File(dir.path().join("missing"));
        let error = with(SslMode::Prefer, missing).trusted().err().unwrap().to_string();
        assert!(error.contains("missing cannot be read"), "{error}");
        let empty = dir.path().join("root.crt");
        fs::write(&empty, "nothing").unwrap();
        let error = with(SslMode::Require, Root::Default).trusted().err().unwrap().to_string();
        assert!(error.contains("root.crt holds no certificate"), "{error}");
    }
}
