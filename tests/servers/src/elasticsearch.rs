//! Elasticsearch, in the build that its makers test with.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::os::unix::fs::chown;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use nix::unistd::{Pid, User, geteuid};

use crate::server::{Kind, Server, Shared, fill, free_ports, java};

/// As whom it runs where the tests run as root, which it refuses.
const SOMEBODY: &str = "nobody";
/// What it writes to.
const FOLDERS: [&str; 4] = ["config", "data", "logs", "tmp"];
const ANSWER_MAX: Duration = Duration::from_secs(2);

/// A node of Elasticsearch.
pub type Elasticsearch = Server<SearchNode>;

/// Its ports.
pub struct SearchNode {
    pub(crate) http: u16,
    transport: u16,
}

impl Elasticsearch {
    /// Where it is asked.
    pub fn url(&self) -> String {
        self.place()
    }
}

/// As whom it runs, where that is somebody else.
fn somebody() -> Option<User> {
    geteuid().is_root().then(|| User::from_name(SOMEBODY).unwrap().expect("there is a user `nobody`"))
}

/// Gives the folder to as whom it runs.
pub(crate) fn give_away(folder: &Path) {
    let Some(user) = somebody() else { return };
    let folders = FOLDERS.map(|name| folder.join(name));
    let inside = folders.iter().flat_map(|folder| fs::read_dir(folder).unwrap()).map(|file| file.unwrap().path());
    let owned = inside.chain(folders.iter().cloned()).chain([folder.to_path_buf()]);
    owned.for_each(|path| chown(path, Some(user.uid.as_raw()), Some(user.gid.as_raw())).unwrap());
}

impl SearchNode {
    /// Writes its settings; `entrance` says who may come in, and how.
    pub(crate) fn write_settings(&self, folder: &Path, entrance: &str) {
        let [http, transport] = [self.http, self.transport].map(|port| port.to_string());
        let place = folder.display().to_string();
        let settings = folder.join("config");
        FOLDERS.iter().for_each(|name| fs::create_dir(folder.join(name)).unwrap());
        let marks = [
            ("FOLDER", place.as_str()),
            ("HTTP", http.as_str()),
            ("TRANSPORT", transport.as_str()),
            ("ENTRANCE", entrance),
        ];
        fill(&settings.join("elasticsearch.yml"), include_str!("../elasticsearch/elasticsearch.yml"), &marks);
        fill(&settings.join("jvm.options"), include_str!("../elasticsearch/jvm.options"), &[]);
        fill(&settings.join("log4j2.properties"), include_str!("../elasticsearch/log4j2.properties"), &[]);
    }

    /// A program of the distribution, with what all of them need.
    pub(crate) fn program(&self, name: &str, programs: &Path, folder: &Path) -> Command {
        let program =
            fs::read_dir(programs.join("dist")).unwrap().map(|file| file.unwrap().path().join("bin").join(name));
        let program = program.into_iter().find(|program| program.exists()).expect("the distribution has it");
        let mut command = match somebody() {
            Some(user) => {
                let mut command = Command::new("setpriv");
                command.args([format!("--reuid={}", user.uid), format!("--regid={}", user.gid)]);
                command.args(["--clear-groups", "--"]).arg(program);
                command
            }
            None => Command::new(program),
        };
        let java = fs::canonicalize(which(&java())).unwrap();
        let home = java.parent().and_then(Path::parent).expect("java lies in a folder `bin`");
        for name in ["JAVA_HOME", "JAVA_TOOL_OPTIONS", "_JAVA_OPTIONS", "JAVA_OPTS"] {
            command.env_remove(name);
        }
        command
            .env("ES_JAVA_HOME", home)
            .env("ES_PATH_CONF", folder.join("config"))
            .env("ES_TMPDIR", folder.join("tmp"));
        command.env("CLI_JAVA_OPTS", "-XX:TieredStopAtLevel=1").current_dir(folder);
        command
    }
}

impl Kind for SearchNode {
    const NAME: &'static str = "elasticsearch";
    const GIVEN: &'static str = "FEEDMILL_TEST_ELASTICSEARCH";

    fn new() -> Self {
        let [http, transport] = free_ports();
        SearchNode { http, transport }
    }

    fn address(&self) -> String {
        format!("http://127.0.0.1:{}", self.http)
    }

    fn shared() -> &'static Shared<Self> {
        static SHARED: Shared<SearchNode> = Shared::new();
        &SHARED
    }

    fn prepare(&self, _programs: &Path, folder: &Path) {
        self.write_settings(folder, "xpack.security.enabled: false");
        give_away(folder);
    }

    fn command(&self, programs: &Path, folder: &Path) -> Command {
        let mut command = self.program("elasticsearch", programs, folder);
        // What is started is a launcher.
        let pid = folder.join("tmp/pid");
        let _ = fs::remove_file(&pid);
        command.arg("-p").arg(pid);
        command
    }

    fn answers(&self) -> bool {
        let ask = || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.http))?;
            stream.set_read_timeout(Some(ANSWER_MAX))?;
            stream.write_all(
                b"GET /_cluster/health?wait_for_status=green&timeout=1s HTTP/1.0\r\nHost: localhost\r\n\r\n",
            )?;
            let mut answer = String::new();
            stream
                .read_to_string(&mut answer)
                .map(|_| answer.split("\r\n").next().is_some_and(|line| line.contains(" 200 ")))
        };
        ask().unwrap_or(false)
    }

    fn process(&self, folder: &Path) -> Option<Pid> {
        fs::read_to_string(folder.join("tmp/pid")).ok()?.trim().parse().ok().map(Pid::from_raw)
    }
}

fn which(program: &Path) -> std::path::PathBuf {
    let paths = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&paths).map(|folder| folder.join(program)).find(|path| path.exists());
    found.unwrap_or_else(|| program.to_owned())
}
