//! The same servers, which speak by TLS alone, and let nobody in who does not sign in.

mod cassandra;
mod elasticsearch;
mod kafka;

use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};

pub use cassandra::SecureCassandra;
pub use elasticsearch::SecureElasticsearch;
pub use kafka::SecureKafka;

/// Who may sign in.
const USER: &str = "publisher";
/// The password: no address holds it as it is.
const PASSWORD: &str = "Br@ker/s3cret?12";

/// What a server shows to its clients, and an authority of its own that vouches for it.
struct Identity {
    authority: String,
    certificate: String,
    key: String,
}

impl Identity {
    /// Of a server that is reached by this name, or address, alone.
    fn of(host: &str) -> Self {
        let mut about = CertificateParams::new(Vec::new()).unwrap();
        about.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        about.distinguished_name.push(DnType::CommonName, "authority of a server");
        let key = KeyPair::generate().unwrap();
        let authority = about.self_signed(&key).unwrap().pem();
        let issuer = Issuer::new(about, key);
        let key = KeyPair::generate().unwrap();
        let mut of_host = CertificateParams::new(vec![host.to_owned()]).unwrap();
        // One of the same name as its authority would be taken for one that signs itself.
        of_host.distinguished_name.push(DnType::CommonName, host);
        let certificate = of_host.signed_by(&key, &issuer).unwrap().pem();
        Identity { authority, certificate, key: key.serialize_pem() }
    }
}
