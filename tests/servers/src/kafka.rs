//! Apache Kafka, with its own controller.

use std::fs;
use std::io::Write;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::server::{Kind, Server, Shared, fill, free_ports, java};

/// A broker of Apache Kafka.
pub type Kafka = Server<Broker>;

/// Its ports.
pub struct Broker {
    clients: u16,
    controller: u16,
}

impl Kafka {
    /// Host and port by which clients find it.
    pub fn bootstrap(&self) -> String {
        self.place()
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

    /// Writes its settings, with `more` listeners.
    pub(crate) fn write_settings(&self, folder: &Path, more: &str) {
        let settings = folder.join("server.properties");
        fill(&settings, include_str!("../kafka/server.properties"), &[]);
        fill(&folder.join("log4j2.properties"), include_str!("../kafka/log4j2.properties"), &[]);
        let Broker { clients, controller } = self;
        let of_folder = format!(
            "listeners=PLAINTEXT://127.0.0.1:{clients},CONTROLLER://127.0.0.1:{controller}{more}\n\
             advertised.listeners=PLAINTEXT://127.0.0.1:{clients}{more}\n\
             controller.quorum.bootstrap.servers=127.0.0.1:{controller}\n\
             log.dirs={}/logs\n",
            folder.display()
        );
        let mut file = fs::OpenOptions::new().append(true).open(&settings).unwrap();
        file.write_all(of_folder.as_bytes()).unwrap();
    }

    /// Makes its folder that of a broker; `more` is told to who does it.
    pub(crate) fn format(&self, programs: &Path, folder: &Path, more: &[&str]) {
        let mut format = self.java(programs, folder, "128m");
        // The name of a cluster: 16 bytes in base 64.
        format.args(["kafka.tools.StorageTool", "format", "--standalone", "-t", "RmVlZG1pbGxUZXN0aW5nMQ", "-c"]);
        let formatted = format.arg(folder.join("server.properties")).args(more).output().unwrap();
        assert!(formatted.status.success(), "{}", String::from_utf8_lossy(&formatted.stderr));
    }
}

impl Kind for Broker {
    const NAME: &'static str = "kafka";
    const GIVEN: &'static str = "FEEDMILL_TEST_KAFKA";

    fn new() -> Self {
        let [clients, controller] = free_ports();
        Broker { clients, controller }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.clients)
    }

    fn shared() -> &'static Shared<Self> {
        static SHARED: Shared<Broker> = Shared::new();
        &SHARED
    }

    fn prepare(&self, programs: &Path, folder: &Path) {
        self.write_settings(folder, "");
        self.format(programs, folder, &[]);
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
