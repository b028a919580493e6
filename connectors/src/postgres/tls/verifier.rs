//! Whether the server is who it claims to be.
//!
//! The chain from its certificate to an authority, and the names in it, are checked by webpki. Two rules of libpq and
//! OpenSSL are added, because certificates that PostgreSQL's manual shows how to make rely on them: one that is signed
//! by itself and stands in the file of authorities is trusted as it is, and the subject's common name counts where
//! there is no subjectAltName.

use std::net::IpAddr;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, DigitallySignedStruct, Error, RootCertStore, SignatureScheme};
use x509_cert::Certificate;
use x509_cert::der::Decode;
use x509_cert::ext::pkix::SubjectAltName;
use x509_cert::ext::pkix::name::GeneralName;

/// Who may vouch for a server.
#[derive(Debug)]
pub(super) struct Authorities {
    pub roots: RootCertStore,
    /// All certificates of the file.
    pub certificates: Vec<CertificateDer<'static>>,
}

/// Checks the server's certificate.
#[derive(Debug)]
pub(super) struct Verifier {
    provider: Arc<CryptoProvider>,
    /// `None` trusts every certificate.
    authorities: Option<Authorities>,
    names: bool,
}

impl Verifier {
    /// By these authorities, or by none at all; `names` checks the name too.
    pub(super) fn new(provider: Arc<CryptoProvider>, authorities: Option<Authorities>, names: bool) -> Self {
        Verifier { provider, authorities, names }
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server: &ServerName<'_>,
        _ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        let Some(authorities) = &self.authorities else { return Ok(ServerCertVerified::assertion()) };
        let itself = authorities.certificates.iter().any(|known| known == certificate) && is_by_itself(certificate)?;
        if itself {
            check_time(certificate, now)?;
        } else {
            let algorithms = self.provider.signature_verification_algorithms.all;
            let parsed = ParsedCertificate::try_from(certificate)?;
            verify_server_cert_signed_by_trust_anchor(&parsed, &authorities.roots, intermediates, now, algorithms)?;
        }
        if self.names {
            check_name(certificate, server)?;
        }
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls12_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        verify_tls13_signature(message, certificate, signature, &self.provider.signature_verification_algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}

fn parse(certificate: &CertificateDer<'_>) -> Result<Certificate, Error> {
    Certificate::from_der(certificate).map_err(|_| Error::InvalidCertificate(CertificateError::BadEncoding))
}

fn is_by_itself(certificate: &CertificateDer<'_>) -> Result<bool, Error> {
    let certificate = parse(certificate)?;
    let body = certificate.tbs_certificate();
    Ok(body.issuer() == body.subject())
}

fn check_time(certificate: &CertificateDer<'_>, now: UnixTime) -> Result<(), Error> {
    let certificate = parse(certificate)?;
    let validity = certificate.tbs_certificate().validity();
    if now.as_secs() < validity.not_before.to_unix_duration().as_secs() {
        return Err(Error::InvalidCertificate(CertificateError::NotValidYet));
    }
    if now.as_secs() > validity.not_after.to_unix_duration().as_secs() {
        return Err(Error::InvalidCertificate(CertificateError::Expired));
    }
    Ok(())
}

fn check_name(certificate: &CertificateDer<'_>, server: &ServerName<'_>) -> Result<(), Error> {
    let Err(error) = verify_server_name(&ParsedCertificate::try_from(certificate)?, server) else { return Ok(()) };
    let presented = match names(&parse(certificate)?) {
        Names::Alternative(names) => names,
        Names::Common(name) if fits(&name, &server.to_str()) => return Ok(()),
        Names::Common(name) => vec![name],
        Names::None => return Err(error),
    };
    let expected = server.to_owned();
    Err(Error::InvalidCertificate(CertificateError::NotValidForNameContext { expected, presented }))
}

/// The names that a certificate holds.
enum Names {
    /// In its subjectAltName; then the common name does not count.
    Alternative(Vec<String>),
    /// In its subject.
    Common(String),
    None,
}

fn names(certificate: &Certificate) -> Names {
    let body = certificate.tbs_certificate();
    let alternative = body.get_extension::<SubjectAltName>().ok().flatten();
    let names: Vec<String> = alternative.iter().flat_map(|(_, names)| &names.0).filter_map(text_of).collect();
    if !names.is_empty() {
        return Names::Alternative(names);
    }
    match body.subject().common_name() {
        Ok(Some(name)) => Names::Common(name.value().into_owned()),
        _ => Names::None,
    }
}

fn text_of(name: &GeneralName) -> Option<String> {
    match name {
        GeneralName::DnsName(name) => Some(name.to_string()),
        GeneralName::IpAddress(address) => match *address.as_bytes() {
            [a, b, c, d] => Some(IpAddr::from([a, b, c, d]).to_string()),
            ref long => <[u8; 16]>::try_from(long).ok().map(|long| IpAddr::from(long).to_string()),
        },
        _ => None,
    }
}

/// Whether a common name, perhaps one that begins with `*.`, is that of the host.
fn fits(name: &str, host: &str) -> bool {
    let tail = |host: &str| host.split_once('.').map(|(_, tail)| tail.to_owned());
    match name.strip_prefix("*.") {
        Some(pattern) => tail(host).is_some_and(|tail| tail.eq_ignore_ascii_case(pattern)),
        None => name.eq_ignore_ascii_case(host),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_common_name_fits_its_host() {
        for (name, host, expected) in [
            ("db.example", "DB.example", true),
            ("db.example", "db.example.org", false),
            ("*.example", "db.example", true),
            ("*.example", "a.db.example", false),
            ("*.example", "example", false),
            ("*", "db", false),
        ] {
            assert_eq!(fits(name, host), expected, "{name} {host}");
        }
    }
}
