//! Authorities and certificates that a test makes.

use std::fs::{self, Permissions};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

use crate::postgres::Postgres;

/// An authority, and the certificate that clients name with `sslrootcert`.
pub struct Authority {
    issuer: Issuer<'static, KeyPair>,
    pub certificate: String,
}

/// A certificate with its key, in PEM form.
pub struct Identity {
    pub certificate: String,
    pub key: String,
}

impl Authority {
    /// A new one. All have the same name: what tells them apart is their key.
    pub fn new() -> Authority {
        let mut about = CertificateParams::new(Vec::new()).unwrap();
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        let certificate = about.self_signed(&key).unwrap().pem();
        Authority { issuer: Issuer::new(about, key), certificate }
    }

    /// Signs a certificate with this common name, for these hosts.
    pub fn sign(&self, common_name: &str, hosts: &[&str]) -> Identity {
        let hosts: Vec<String> = hosts.iter().map(ToString::to_string).collect();
        let mut about = CertificateParams::new(hosts).unwrap();
        about.distinguished_name.push(DnType::CommonName, common_name);
        let key = KeyPair::generate().unwrap();
        let certificate = about.signed_by(&key, &self.issuer).unwrap().pem();
        Identity { certificate, key: key.serialize_pem() }
    }
}

/// A file with this text that nobody else reads.
pub fn file(folder: &Path, name: &str, text: &str) -> PathBuf {
    let path = folder.join(name);
    fs::write(&path, text).unwrap();
    fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    path
}

/// Switches TLS on at a server, which accepts clients' certificates by `clients`.
pub fn switch_on(postgres: &Postgres, server: &Identity, clients: &Authority) {
    postgres.put("server.crt", &server.certificate);
    postgres.put("server.key", &server.key);
    postgres.put("clients.crt", &clients.certificate);
    postgres.configure(&["ssl = on", "ssl_ca_file = 'clients.crt'"]);
}
