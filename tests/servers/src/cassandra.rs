//! Apache Cassandra, which speaks ScyllaDB's protocol.

use std::fs;
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;

use crate::server::{Kind, Server, Shared, fill, free_ports, java};

/// What Cassandra opens of Java's own modules.
const OPENS: [&str; 14] = [
    "java.io",
    "java.lang",
    "java.lang.module",
    "java.lang.reflect",
    "java.net",
    "java.nio",
    "java.util",
    "jdk.internal.loader",
    "jdk.internal.ref",
    "jdk.internal.reflect",
    "jdk.internal.math",
    "jdk.internal.module",
    "jdk.internal.util.jar",
    "sun.nio.ch",
];
const EXPORTS: [&str; 8] = [
    "java.base/java.lang.ref",
    "java.base/jdk.internal.misc",
    "java.base/jdk.internal.ref",
    "java.base/sun.nio.ch",
    "java.management.rmi/com.sun.jmx.remote.internal.rmi",
    "java.rmi/sun.rmi.registry",
    "java.rmi/sun.rmi.server",
    "java.sql/java.sql",
];

/// A node of Apache Cassandra.
pub type Cassandra = Server<CqlNode>;

/// Its ports.
pub struct CqlNode {
    pub(crate) cql: u16,
    storage: u16,
    storage_tls: u16,
}

/// Whoever comes may do everything.
const OPEN: &str = "authenticator: AllowAllAuthenticator\nauthorizer: AllowAllAuthorizer\n";

impl Cassandra {
    /// Host and port.
    pub fn address(&self) -> String {
        self.place()
    }
}

impl CqlNode {
    /// Writes its settings; `entrance` says who may come in, and how.
    pub(crate) fn write_settings(&self, folder: &Path, entrance: &str) {
        let [cql, storage, storage_tls] = [self.cql, self.storage, self.storage_tls].map(|port| port.to_string());
        let place = folder.display().to_string();
        let marks = [
            ("FOLDER", place.as_str()),
            ("CQL", cql.as_str()),
            ("STORAGE", storage.as_str()),
            ("STORAGE_TLS", storage_tls.as_str()),
            ("ENTRANCE", entrance),
        ];
        fill(&folder.join("cassandra.yaml"), include_str!("../cassandra/cassandra.yaml"), &marks);
        fill(&folder.join("logback.xml"), include_str!("../cassandra/logback.xml"), &[]);
        fs::create_dir(folder.join("tmp")).unwrap();
    }
}

impl Kind for CqlNode {
    const NAME: &'static str = "cassandra";
    const GIVEN: &'static str = "FEEDMILL_TEST_CQL";

    fn new() -> Self {
        let [cql, storage, storage_tls] = free_ports();
        CqlNode { cql, storage, storage_tls }
    }

    fn address(&self) -> String {
        format!("127.0.0.1:{}", self.cql)
    }

    fn shared() -> &'static Shared<Self> {
        static SHARED: Shared<CqlNode> = Shared::new();
        &SHARED
    }

    fn prepare(&self, _programs: &Path, folder: &Path) {
        self.write_settings(folder, OPEN);
    }

    fn command(&self, programs: &Path, folder: &Path) -> Command {
        let libraries = programs.join("lib");
        let mut jars = fs::read_dir(&libraries).unwrap().map(|file| file.unwrap().path());
        let agent = jars.find(|jar| jar.file_name().is_some_and(|name| name.to_string_lossy().starts_with("jamm-")));
        let place = folder.display();
        // It locks its memory at the start where it may, which takes all of its heap at once: as root it may.
        let mut command = Command::new("setpriv");
        command.args(["--bounding-set", "-ipc_lock", "--inh-caps", "-ipc_lock", "prlimit", "--memlock=65536"]);
        command.arg(java());
        for module in OPENS {
            command.arg(format!("--add-opens=java.base/{module}=ALL-UNNAMED"));
        }
        command.arg("--add-opens=jdk.management/com.sun.management.internal=ALL-UNNAMED");
        for module in EXPORTS {
            command.arg(format!("--add-exports={module}=ALL-UNNAMED"));
        }
        command.arg(format!("-javaagent:{}", agent.expect("the agent jamm is among its jars").display()));
        command.args(["-Xms384m", "-Xmx512m", "-Xss512k", "-XX:MaxDirectMemorySize=512m", "-XX:+UseSerialGC"]);
        // Compiled simply: tests end before more would pay.
        command.args(["-XX:TieredStopAtLevel=1", "-XX:+PerfDisableSharedMem", "-XX:+ExitOnOutOfMemoryError"]);
        command.args(["-Djdk.attach.allowAttachSelf=true", "-Dio.netty.tryReflectionSetAccessible=true"]);
        command.arg("-Djava.net.preferIPv4Stack=true");
        command.args([format!("-Djava.io.tmpdir={place}/tmp"), format!("-Djna.tmpdir={place}/tmp")]);
        command.arg(format!("-Dlogback.configurationFile={place}/logback.xml"));
        command.arg(format!("-Dcassandra.config=file://{place}/cassandra.yaml"));
        command.args([format!("-Dcassandra.storagedir={place}"), format!("-Dcassandra.logdir={place}")]);
        command.args(["-Dcassandra-foreground=yes", "-Dcassandra.skip_wait_for_gossip_to_settle=0"]);
        command.args(["-Dcassandra.ring_delay_ms=1", "-Dcassandra.superuser_setup_delay_ms=0"]);
        command.arg("-cp").arg(libraries.join("*")).arg("org.apache.cassandra.service.CassandraDaemon");
        command
    }

    fn answers(&self) -> bool {
        TcpStream::connect(("127.0.0.1", self.cql)).is_ok()
    }
}
