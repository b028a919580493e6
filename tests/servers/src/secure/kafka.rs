//! Apache Kafka that lets nobody in who does not sign in, by TLS.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use nix::unistd::Pid;

use super::{Identity, PASSWORD, USER};
use crate::kafka::Broker;
use crate::server::{Kind, Server, Shared, free_ports};

/// A broker that is spoken to by TLS.
pub type SecureKafka = Server<SecureBroker>;

/// A broker with two more listeners.
pub struct SecureBroker {
    broker: Broker,
    /// By TLS, with a user and a password.
    users: u16,
    /// By TLS alone.
    anybody: u16,
    identity: Identity,
}

impl SecureKafka {
    /// Who may sign in, by SCRAM and by PLAIN.
    pub const USER: &'static str = USER;
    /// The password.
    pub const PASSWORD: &'static str = PASSWORD;

    /// Host and port where one signs in.
    pub fn bootstrap(&self) -> String {
        format!("localhost:{}", self.kind().users)
    }

    /// Host and port where it is enough to speak TLS.
    pub fn bootstrap_for_anybody(&self) -> String {
        format!("localhost:{}", self.kind().anybody)
    }

    /// The authority that has signed its certificate, as PEM.
    pub fn authority(&self) -> &str {
        &self.kind().identity.authority
    }
}

impl Kind for SecureBroker {
    const NAME: &'static str = Broker::NAME;
    const GIVEN: &'static str = "FEEDMILL_TEST_SECURE_KAFKA";

    fn new() -> Self {
        let [users, anybody] = free_ports();
        SecureBroker { broker: Broker::new(), users, anybody, identity: Identity::of("localhost") }
    }

    fn address(&self) -> String {
        self.broker.address()
    }

    fn shared() -> &'static Shared<Self> {
        static SHARED: Shared<SecureBroker> = Shared::new();
        &SHARED
    }

    fn prepare(&self, programs: &Path, folder: &Path) {
        let SecureBroker { broker, users, anybody, identity, .. } = self;
        let (user, password) = (USER, PASSWORD);
        broker.write_settings(folder, &format!(",USERS://localhost:{users},ANYBODY://localhost:{anybody}"));
        let mut settings = fs::OpenOptions::new().append(true).open(folder.join("server.properties")).unwrap();
        let keys = folder.join("keys.pem");
        fs::write(&keys, format!("{}{}", identity.key, identity.certificate)).unwrap();
        let modules = "org.apache.kafka.common.security";
        write!(
            settings,
            "listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT,USERS:SASL_SSL,ANYBODY:SSL\n\
             ssl.keystore.type=PEM\n\
             ssl.keystore.location={}\n\
             sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512\n\
             listener.name.users.plain.sasl.jaas.config={modules}.plain.PlainLoginModule required user_{user}=\"{password}\";\n\
             listener.name.users.scram-sha-256.sasl.jaas.config={modules}.scram.ScramLoginModule required;\n\
             listener.name.users.scram-sha-512.sasl.jaas.config={modules}.scram.ScramLoginModule required;\n",
            keys.display()
        )
        .unwrap();
        let scram = |mechanism: &str| format!("{mechanism}=[name={user},password={password}]");
        let users = ["SCRAM-SHA-256", "SCRAM-SHA-512"].map(scram);
        broker.format(programs, folder, &["--add-scram", &users[0], "--add-scram", &users[1]]);
    }

    fn command(&self, programs: &Path, folder: &Path) -> Command {
        self.broker.command(programs, folder)
    }

    fn answers(&self) -> bool {
        self.broker.answers() && TcpStream::connect(("localhost", self.users)).is_ok()
    }

    fn process(&self, folder: &Path) -> Option<Pid> {
        self.broker.process(folder)
    }
}
