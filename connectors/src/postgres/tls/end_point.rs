//! What a login is bound to: the channel binding `tls-server-end-point` of RFC 5929.
//!
//! It is the server's certificate, hashed with the hash function of the certificate's signature; where that is MD5 or
//! SHA-1, with SHA-256. Who stands in between has another certificate, so that a login by SCRAM which names this one
//! fails there. A signature without a hash of its own (Ed25519) defines none, and then there is no binding.

use ring::digest::{Algorithm, SHA256, SHA384, SHA512, digest};
use x509_cert::Certificate;
use x509_cert::der::{Decode, Encode};

/// The binding to a server with this certificate (DER), if it has one.
pub(in super::super) fn end_point(certificate: &[u8]) -> Option<Vec<u8>> {
    Some(digest(hash_of(certificate)?, certificate).as_ref().to_vec())
}

fn hash_of(certificate: &[u8]) -> Option<&'static Algorithm> {
    let certificate = Certificate::from_der(certificate).ok()?;
    let signature = certificate.signature_algorithm();
    match signature.oid.to_string().as_str() {
        // RSA and ECDSA with MD5, SHA-1 or SHA-256.
        "1.2.840.113549.1.1.4" | "1.2.840.113549.1.1.5" | "1.2.840.113549.1.1.11" => Some(&SHA256),
        "1.2.840.10045.4.1" | "1.2.840.10045.4.3.2" => Some(&SHA256),
        "1.2.840.113549.1.1.12" | "1.2.840.10045.4.3.3" => Some(&SHA384),
        "1.2.840.113549.1.1.13" | "1.2.840.10045.4.3.4" => Some(&SHA512),
        "1.2.840.113549.1.1.10" => hash_of_pss(&signature.parameters.as_ref()?.to_der().ok()?),
        _ => None,
    }
}

/// RSASSA-PSS names its hash first among its parameters; the default, if it names none, is SHA-1.
fn hash_of_pss(parameters: &[u8]) -> Option<&'static Algorithm> {
    /// 2.16.840.1.101.3.4.2, the hash functions of NIST, up to the number of one.
    const SHA2: [u8; 10] = [0x06, 0x09, 0x60, 0x86, 0x48, 0x01, 0x65, 0x03, 0x04, 0x02];
    let named = parameters.windows(SHA2.len() + 1).find_map(|part| part.strip_prefix(&SHA2));
    match named {
        None | Some([1]) => Some(&SHA256),
        Some([2]) => Some(&SHA384),
        Some([3]) => Some(&SHA512),
        Some(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, KeyPair, PKCS_ECDSA_P256_SHA256, PKCS_ECDSA_P384_SHA384, PKCS_ED25519};

    use super::*;

    #[test]
    fn the_hash_is_that_of_the_signature() {
        for (algorithm, length) in
            [(&PKCS_ECDSA_P256_SHA256, Some(32)), (&PKCS_ECDSA_P384_SHA384, Some(48)), (&PKCS_ED25519, None)]
        {
            let key = KeyPair::generate_for(algorithm).unwrap();
            let certificate = CertificateParams::new(vec!["db".to_owned()]).unwrap().self_signed(&key).unwrap();
            assert_eq!(end_point(certificate.der()).map(|hash| hash.len()), length);
        }
        assert_eq!(end_point(b"no certificate"), None);
    }
}
