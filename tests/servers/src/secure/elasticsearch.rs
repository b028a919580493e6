//! A node of Elasticsearch.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use nix::unistd::Pid;

use super::{Identity, PASSWORD, USER};
use crate::elasticsearch::{SearchNode, give_away};
use crate::server::{Kind, Server, Shared};

/// What Feedmill's user may do, as its documentation says.
const ROLES: &str = "feedmill:\n  cluster: [manage_index_templates, monitor]\n  indices:\n    - names: ['feedmill-search*']\n      privileges: [all]\n";

/// A node that is spoken to by TLS.
pub type SecureElasticsearch = Server<SecureNode>;

/// One to which a user signs in.
pub struct SecureNode {
    node: SearchNode,
    identity: Identity,
}

impl SecureElasticsearch {
    /// Who may sign in.
    pub const USER: &'static str = USER;
    /// The password.
    pub const PASSWORD: &'static str = PASSWORD;

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
    const NAME: &'static str = SearchNode::NAME;
    const GIVEN: &'static str = "FEEDMILL_TEST_SECURE_ELASTICSEARCH";

    fn new() -> Self {
        SecureNode { node: SearchNode::new(), identity: Identity::of("localhost") }
    }

    fn address(&self) -> String {
        format!("localhost:{}", self.node.http)
    }

    fn shared() -> &'static Shared<Self> {
        static SHARED: Shared<SecureNode> = Shared::new();
        &SHARED
    }

    fn prepare(&self, programs: &Path, folder: &Path) {
        let entrance = "xpack.security.enabled: true\n\
                        xpack.security.autoconfiguration.enabled: false\n\
                        xpack.security.http.ssl.enabled: true\n\
                        xpack.security.http.ssl.key: key.pem\n\
                        xpack.security.http.ssl.certificate: certificate.pem";
        self.node.write_settings(folder, entrance);
        let settings = folder.join("config");
        fs::write(settings.join("key.pem"), &self.identity.key).unwrap();
        fs::write(settings.join("certificate.pem"), &self.identity.certificate).unwrap();
        fs::write(settings.join("roles.yml"), ROLES).unwrap();
        ["users", "users_roles"].iter().for_each(|name| fs::write(settings.join(name), "").unwrap());
        give_away(folder);
        let mut add = self.node.program("elasticsearch-users", programs, folder);
        let added = add.args(["useradd", USER, "-p", PASSWORD, "-r", "feedmill"]).output().unwrap();
        assert!(added.status.success(), "{}", String::from_utf8_lossy(&added.stderr));
    }

    fn command(&self, programs: &Path, folder: &Path) -> Command {
        self.node.command(programs, folder)
    }

    fn answers(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.node.http)).is_ok()
    }

    fn process(&self, folder: &Path) -> Option<Pid> {
        self.node.process(folder)
    }
}
