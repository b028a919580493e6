//! Apache Kafka, with its own controller.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use crate::server::{Kind, Server, fill, free_ports, java};

struct Broker {
    clients: u16,
    controller: u16,
}

/// A broker of Apache Kafka.
pub struct Kafka(Place);

enum Place {
    Own(Server<Broker>),
    /// Somebody else's.
    Given(String),
}

impl Kafka {
    /// A broker of the test's own.
    pub fn start() -> Self {
        let [clients, controller] = free_ports();
        Kafka(Place::Own(Server::start(Broker { clients, controller })))
    }

    /// The broker of all tests of the process, or the one that `FEEDMILL_TEST_KAFKA` names.
    pub fn shared() -> &'static Self {
        static SHARED: OnceLock<Kafka> = OnceLock::new();
        SHARED.get_or_init(|| {
            let given = std::env::var("FEEDMILL_TEST_KAFKA").ok();
            given.map_or_else(Kafka::start, |address| Kafka(Place::Given(address)))
        })
    }

    /// Host and port by which clients find it.
    pub fn bootstrap(&self) -> String {
        match &self.0 {
            Place::Own(server) => format!("127.0.0.1:{}", server.kind.clients),
            Place::Given(address) => address.clone(),
        }
    }

    /// Ends it as a crash does.
    pub fn kill(&self) {
        self.own().kill();
    }

    /// Starts it on what it left.
    pub fn start_again(&self) {
        self.own().start_again();
    }

    /// It neither answers nor ends.
    pub fn freeze(&self) {
        self.own().freeze();
    }

    /// It goes on.
    pub fn thaw(&self) {
        self.own().thaw();
    }

    fn own(&self) -> &Server<Broker> {
        match &self.0 {
            Place::Own(server) => server,
            Place::Given(address) => panic!("the server at {address} is not the test's own"),
        }
    }
}

impl Broker {
    fn java(&self, programs: &Path, folder: &Path, memory: &str) -> Command {
        let mut command = Command::new(java());
        command.args([&format!("-Xmx{memory}"), "-XX:TieredStopAtLevel=1", "-Djava.awt.headless=true"]);
        command.arg(format!("-Dlog4j2.configurationFile={}/log4j2.properties", folder.display()));
        command.arg("-cp").arg(programs.join("lib/*"));
        command
    }
}

impl Kind for Broker {
    const NAME: &'static str = "kafka";

    fn prepare(&self, programs: &Path, folder: &Path) {
        let settings = folder.join("server.properties");
        fill(&settings, include_str!("../kafka/server.properties"), &[]);
        fill(&folder.join("log4j2.properties"), include_str!("../kafka/log4j2.properties"), &[]);
        let Broker { clients, controller } = self;
        let of_folder = format!(
            "listeners=PLAINTEXT://127.0.0.1:{clients},CONTROLLER://127.0.0.1:{controller}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{clients}\n\
             controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
             log.dirs={}/logs\n",
            folder.display()
        );
        let mut file = fs::OpenOptions::new().append(true).open(&settings).unwrap();
        file.write_all(of_folder.as_bytes()).unwrap();
        let mut format = self.java(programs, folder, "128m");
        // The name of a cluster: 16 bytes in base 64.
        format.args(["kafka.tools.StorageTool", "format", "--standalone", "-t", "RmVlZG1pbGxUZXN0aW5nMQ", "-c"]);
        let formatted = format.arg(&settings).output().unwrap();
        assert!(formatted.status.success(), "{}", String::from_utf8_lossy(&formatted.stderr));
    }

    fn command(&self, programs: &Path, folder: &Path) -> Command {
        let mut command = self.java(programs, folder, "512m");
        command.arg("kafka.Kafka").arg(folder.join("server.properties"));
        command
    }

    fn answers(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.clients)).is_ok()
    }
}
