//! A node of Apache Cassandra.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use super::Identity;
use crate::cassandra::CqlNode;
use crate::server::{Kind, Server, Shared};

/// A node that is spoken to by TLS.
pub type SecureCassandra = Server<SecureNode>;

/// One to which the user who may do everything signs in, and whom that one makes.
pub struct SecureNode {
    node: CqlNode,
    identity: Identity,
}

impl SecureCassandra {
    /// Who may do everything, once the node has found its first moment.
    pub const SUPERUSER: (&'static str, &'static str) = ("cassandra", "cassandra");

    /// Host and port.
    pub fn address(&self) -> String {
        self.place()
    }

    /// The authority that has signed its certificate, as PEM.
    pub fn authority(&self) -> &str {
        &self.kind().identity.authority
    }
}

impl Kind for SecureNode {
    const NAME: &'static str = CqlNode::NAME;
    const GIVEN: &'static str = "FEEDMILL_TEST_SECURE_CQL";

    fn new() -> Self {
        SecureNode { node: CqlNode::new(), identity: Identity::of("127.0.0.1") }
    }

    fn address(&self) -> String {
        self.node.address()
    }

    fn shared() -> &'static Shared<Self> {
        static SHARED: Shared<SecureNode> = Shared::new();
        &SHARED
    }

    fn prepare(&self, _programs: &Path, folder: &Path) {
        let keys = folder.join("keys.pem");
        fs::write(&keys, format!("{}{}", self.identity.key, self.identity.certificate)).unwrap();
        let entrance = format!(
            "authenticator: PasswordAuthenticator\n\
             authorizer: CassandraAuthorizer\n\
             client_encryption_options:\n  \
               enabled: true\n  \
               optional: false\n  \
               keystore: {}\n  \
               require_client_auth: false\n  \
               ssl_context_factory:\n    \
                 class_name: org.apache.cassandra.security.PEMBasedSslContextFactory\n",
            keys.display()
        );
        self.node.write_settings(folder, &entrance);
    }

    fn command(&self, programs: &Path, folder: &Path) -> Command {
        self.node.command(programs, folder)
    }

    fn answers(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.node.cql)).is_ok()
    }
}
