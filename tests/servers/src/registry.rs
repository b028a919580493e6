//! Apicurio Registry, which speaks as Confluent's schema registry does, too.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use crate::server::{Kind, Server, Shared, free_ports, java};

const ANSWER_MAX: Duration = Duration::from_secs(2);
/// Under which path it speaks so.
const PATH: &str = "/apis/ccompat/v7";

/// A registry of schemas.
pub type SchemaRegistry = Server<Registry>;

/// Its port.
pub struct Registry {
    http: u16,
}

impl SchemaRegistry {
    /// Where it is asked.
    pub fn url(&self) -> String {
        self.place()
    }
}

impl Kind for Registry {
    const NAME: &'static str = "registry";
    const GIVEN: &'static str = "FEEDMILL_TEST_REGISTRY";

    fn new() -> Self {
        let [http] = free_ports();
        Registry { http }
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}{PATH}", self.http)
    }

    fn shared() -> &'static Shared<Self> {
        static SHARED: Shared<Registry> = Shared::new();
        &SHARED
    }

    fn prepare(&self, _programs: &Path, folder: &Path) {
        fs::create_dir(folder.join("data")).unwrap();
    }

    fn command(&self, programs: &Path, folder: &Path) -> Command {
        let is_it = |path: &Path| path.to_string_lossy().ends_with("-runner.jar");
        let files = fs::read_dir(programs.join("dist")).unwrap().map(|file| file.unwrap().path());
        let program = files.into_iter().find(|path| is_it(path)).expect("the distribution has a runner");
        let mut command = Command::new(java());
        command.args(["-Xmx256m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1", "-jar"]).arg(program);
        command.env("QUARKUS_HTTP_HOST", "127.0.0.1").env("QUARKUS_HTTP_PORT", self.http.to_string());
        // Confluent's default; its own is to take whatever comes.
        command.env("APICURIO_RULES_GLOBAL_COMPATIBILITY", "BACKWARD");
        command.env("APICURIO_DATASOURCE_URL", format!("jdbc:h2:file:{}/data/registry", folder.display()));
        command.current_dir(folder);
        command
    }

    fn answers(&self) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.http))?;
            stream.set_read_timeout(Some(ANSWER_MAX))?;
            stream.write_all(format!("GET {PATH}/subjects HTTP/1.0\r\nHost: localhost\r\n\r\n").as_bytes())?;
            let mut answer = String::new();
            stream
                .read_to_string(&mut answer)
                .map(|_| answer.split("\r\n").next().is_some_and(|line| line.contains(" 200 ")))
        };
        ask().unwrap_or(false)
    }
}
