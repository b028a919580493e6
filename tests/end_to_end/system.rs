//! A whole Feedmill, as a user starts it: the binary, its private PostgreSQL, its HTTP API.

use std::fs::Permissions;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::sync::mpsc;
use std::time::{Duration, Instant};

use feedmill_connectors::postgres::Cluster;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use reqwest::header::HeaderMap;
use serde_json::{Value, json};
use tokio::sync::OnceCell;

use crate::postgres::Postgres;

/// Nothing that a test waits for takes longer, also on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(120);

/// Tests ask as fast as they can, all from one address, unless they set a limit by its flag.
const UNLIMITED: [(&str, &str); 12] = [
    ("FEEDMILL_CONNECTIONS_PER_ADDRESS", "0"),
    ("FEEDMILL_LIMIT_LOGIN_USER", "0"),
    ("FEEDMILL_LIMIT_LOGIN_NAME", "0"),
    ("FEEDMILL_LIMIT_LOGIN_ADDRESS", "0"),
    ("FEEDMILL_LIMIT_REGISTER_ADDRESS", "0"),
    ("FEEDMILL_LIMIT_WRITE_USER", "0"),
    ("FEEDMILL_LIMIT_WRITE_ADDRESS", "0"),
    ("FEEDMILL_LIMIT_READ_USER", "0"),
    ("FEEDMILL_LIMIT_READ_ADDRESS", "0"),
    ("FEEDMILL_LIMIT_SEARCH_USER", "0"),
    ("FEEDMILL_LIMIT_SEARCH_ADDRESS", "0"),
    ("FEEDMILL_LIMIT_EXPORT_USER", "0"),
];

/// A system in a folder of its own, which is stopped and removed at the end.
pub struct System {
    data: PathBuf,
    /// The command that runs: `up`, or what else runs until it is stopped.
    pub mode: &'static str,
    /// Its flags; a change counts from the next start.
    pub settings: Vec<String>,
    /// The PostgreSQL that it uses, where that is not its private one; a change counts from the next start.
    pub database_url: Option<String>,
    /// What happens at which failpoint, as the variable `FAILPOINTS` says it; from the next start.
    pub failpoints: Option<String>,
    /// Other variables; from the next start.
    pub variables: Vec<(String, String)>,
    process: Option<Child>,
    listen: String,
    /// Where it listens.
    pub url: String,
    pub http: reqwest::Client,
}

/// A signed-in user.
#[derive(Clone, Debug)]
pub struct Account {
    pub id: String,
    pub token: String,
}

/// The password of every account that a test registers.
pub const PASSWORD: &str = "correct horse battery";

/// A session of a user, with what renews it.
#[derive(Clone, Debug)]
pub struct Session {
    pub account: Account,
    pub refresh: String,
}

impl Session {
    /// What registration or login answered.
    pub fn of(body: &Value) -> Session {
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let account = Account { id: text(&body["user"]["id"]), token: text(&body["token"]) };
        Session { account, refresh: text(&body["refreshToken"]) }
    }
}

/// An HTTP answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub headers: HeaderMap,
    pub token: Option<String>,
    pub body: Value,
}

impl System {
    /// Starts a system in a new folder, whose PostgreSQL cluster was made before and has nothing in it yet.
    pub async fn start(settings: &[&str]) -> System {
        let mut system = System::new(settings);
        copy_cluster(&system.data).await;
        system.go().await;
        system
    }

    /// Starts a system in a new folder on the database `feedmill` of a server.
    pub async fn start_on(postgres: &Postgres, settings: &[&str]) -> System {
        let mut system = System::new(settings);
        system.use_database(postgres);
        system.go().await;
        system
    }

    /// A system in a new folder that has not been started yet: [`Self::go`], or [`Self::expect_start_failure`].
    pub fn new(settings: &[&str]) -> System {
        System {
            mode: "up",
            data: tempfile::Builder::new().prefix("feedmill-").tempdir().unwrap().keep(),
            settings: settings.iter().map(ToString::to_string).collect(),
            database_url: None,
            failpoints: None,
            variables: Vec::new(),
            process: None,
            listen: "127.0.0.1:0".to_owned(),
            url: String::new(),
            http: reqwest::Client::new(),
        }
    }

    /// Has it run on the database `feedmill` of a server.
    pub fn use_database(&mut self, postgres: &Postgres) {
        self.database_url = Some(postgres.url());
    }

    /// Starts it (again, after it was stopped or killed), and waits until it is ready.
    pub async fn go(&mut self) {
        match self.spawn().await {
            Ok(()) => {}
            Err(seen) => panic!("it did not say where it listens, but {seen:?} and\n{}", self.log()),
        }
        self.until("it is ready", async |system: &System| system.get("/ready", None).await.status == 200).await;
    }

    /// Starts it, and waits until it says where it listens; gives what it printed instead if it ends before. It is not
    /// yet ready.
    pub async fn spawn(&mut self) -> Result<(), Vec<String>> {
        self.launch();
        let stdout = self.process.as_mut().unwrap().stdout.take().unwrap();
        let lines = BufReader::new(stdout).lines();
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || lines.map_while(Result::ok).for_each(|line| drop(sender.send(line))));
        let deadline = Instant::now() + LIMIT;
        let url = tokio::task::spawn_blocking(move || {
            let mut seen = Vec::new();
            while let Ok(line) = receiver.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                if let Some(at) = line.find("http://") {
                    let url = line[at..].split_whitespace().next().unwrap().trim_end_matches('/').to_owned();
                    // Keep the pipe open, or the process would be told that nobody reads.
                    std::thread::spawn(move || receiver.iter().for_each(drop));
                    return Ok(url);
                }
                seen.push(line);
            }
            Err(seen)
        });
        self.url = url.await.unwrap()?;
        Ok(())
    }

    /// Starts it, and waits only until it answers at all: it may still be copying.
    #[cfg(feature = "failpoints")]
    pub async fn listen_at_once(&mut self) {
        let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        self.listen = free.to_string();
        self.url = format!("http://{free}");
        self.launch();
        self.until("it answers", async |system| system.get("/health", None).await.status == 200).await;
    }

    /// Starts the process, and waits for nothing.
    pub fn launch(&mut self) -> Pid {
        assert!(self.process.is_none(), "it runs already");
        let log = std::fs::File::options().create(true).append(true).open(self.data.join("test.log")).unwrap();
        let mut command = self.prepare(&[self.mode, "--listen", &self.listen]);
        command.envs(UNLIMITED);
        if let Some(failpoints) = &self.failpoints {
            command.env("FAILPOINTS", failpoints);
        }
        let child = command.args(&self.settings).stdout(Stdio::piped()).stderr(log).spawn().unwrap();
        self.process = Some(child);
        self.pid()
    }

    /// Starts it, and waits until it listens. It may not answer anything yet but that.
    pub async fn listen(&mut self) {
        let logged = self.log().len();
        self.launch();
        let mut url = None;
        self.until("it listens", async |system: &System| {
            let log = system.log();
            let line = log.get(logged..).and_then(|log| log.split("listening on ").nth(1));
            // It goes on where lines are of JSON.
            url = line.and_then(|line| line.split_once(['\n', '"'])).map(|(url, _)| url.to_owned());
            url.is_some()
        })
        .await;
        self.url = url.unwrap();
    }

    /// Starts it, where it must refuse: it ends with exit code 1, and this gives what it printed to standard error.
    pub async fn expect_start_failure(&self) -> String {
        assert!(self.process.is_none(), "it runs already");
        let mut command = self.prepare(&[self.mode, "--listen", "127.0.0.1:0"]);
        let mut child = command.args(&self.settings).stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stderr = child.stderr.take().unwrap();
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || {
            let mut printed = String::new();
            let _ = stderr.read_to_string(&mut printed);
            let _ = sender.send(printed);
        });
        let printed = tokio::task::spawn_blocking(move || receiver.recv_timeout(LIMIT)).await.unwrap();
        if printed.is_err() {
            child.kill().unwrap();
        }
        let status = child.wait().unwrap();
        let printed = printed.unwrap_or_else(|_| panic!("it goes on, and was to refuse to start"));
        assert_eq!(status.code(), Some(1), "{printed}");
        printed
    }

    /// What it has logged since the first start.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.data.join("test.log")).unwrap_or_default()
    }

    /// Its folder.
    pub fn data(&self) -> &Path {
        &self.data
    }

    /// Whether the process lives: not from the moment on at which it was killed, or ended by itself.
    pub fn is_running(&self) -> bool {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).unwrap_or_default();
        stat.rsplit_once(')').is_some_and(|(_, rest)| !rest.trim_start().starts_with(['Z', 'X']))
    }

    /// `kill -9`, which need not be the first.
    pub fn crash(&self) {
        kill(self.pid(), Signal::SIGKILL).unwrap();
    }

    /// Waits until the process has ended; then it can be started again.
    pub fn wait(&mut self) -> ExitStatus {
        self.process.take().unwrap().wait().unwrap()
    }

    /// Its process.
    pub fn pid(&self) -> Pid {
        Pid::from_raw(self.process.as_ref().unwrap().id().try_into().unwrap())
    }

    /// `kill -9`. PostgreSQL goes on.
    pub fn kill(&mut self) {
        self.crash();
        self.wait();
    }

    /// Ctrl-C, and waits for the end.
    pub fn interrupt(&mut self) -> (ExitStatus, Duration) {
        let asked = Instant::now();
        kill(self.pid(), Signal::SIGINT).unwrap();
        let status = self.process.take().unwrap().wait().unwrap();
        (status, asked.elapsed())
    }

    /// A connection to its PostgreSQL, as the owner of the schema.
    pub async fn sql(&self) -> tokio_postgres::Client {
        let config = match &self.database_url {
            Some(url) => url.parse().unwrap(),
            None => {
                let mut config = tokio_postgres::Config::new();
                config.host_path(self.data.join("postgres/socket")).user("feedmill").dbname("feedmill");
                config
            }
        };
        let (client, connection) = config.connect(tokio_postgres::NoTls).await.unwrap();
        tokio::spawn(connection);
        client
    }

    /// Runs another command of the binary on the same folder.
    pub async fn command(&self, args: &[&str]) -> Output {
        let mut command = self.prepare(args);
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap()
    }

    /// Another command of the binary on the same folder, not yet started.
    pub fn prepare(&self, args: &[&str]) -> Command {
        let mut command = Command::new(binary());
        command.args(args).arg("--data").arg(&self.data).stdin(Stdio::null());
        command.envs(self.variables.iter().cloned());
        if let Some(url) = &self.database_url {
            command.env("FEEDMILL_DATABASE_URL", url);
        }
        command
    }

    /// `feedmill verify` finds no difference; gives what it printed.
    pub async fn verified(&self) -> String {
        let output = self.command(&["verify"]).await;
        let printed = String::from_utf8(output.stdout).unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert!(output.status.success(), "{printed}\n{error}\n{}", self.log());
        assert!(printed.ends_with(" 0 differences\n"), "{printed}");
        printed
    }

    /// Waits until `holds`; fails after [`LIMIT`].
    pub async fn until(&self, what: &str, mut holds: impl AsyncFnMut(&System) -> bool) {
        let deadline = Instant::now() + LIMIT;
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        while !holds(self).await {
            assert!(Instant::now() < deadline, "waited for {LIMIT:?} until {what}\n{}", self.log());
            pause.tick().await;
        }
    }

    async fn send(&self, request: reqwest::RequestBuilder, as_user: Option<&Account>) -> Answer {
        let request = match as_user {
            Some(account) => request.bearer_auth(&account.token),
            None => request,
        };
        let Ok(answer) = request.timeout(LIMIT).send().await else {
            return Answer { status: 0, headers: HeaderMap::new(), token: None, body: Value::Null };
        };
        let status = answer.status().as_u16();
        let headers = answer.headers().clone();
        let token = headers.get("x-consistency-token").map(|token| token.to_str().unwrap().to_owned());
        let body = answer.bytes().await.unwrap();
        Answer { status, headers, token, body: serde_json::from_slice(&body).unwrap_or(Value::Null) }
    }

    /// Signs in with the password of [`Self::register`].
    pub async fn login(&self, name: &str) -> Session {
        let body = json!({ "username": name, "password": PASSWORD });
        Session::of(&self.post("/api/auth/login", None, body).await.is(200))
    }

    /// GET.
    pub async fn get(&self, path: &str, as_user: Option<&Account>) -> Answer {
        self.send(self.http.get(format!("{}{path}", self.url)), as_user).await
    }

    /// GET of what is at least as new as the write that gave `token`.
    pub async fn get_after(&self, token: &str, path: &str, as_user: Option<&Account>) -> Answer {
        let request = self.http.get(format!("{}{path}", self.url)).header("X-Consistency-Token", token);
        self.send(request, as_user).await
    }

    /// POST of a JSON body.
    pub async fn post(&self, path: &str, as_user: Option<&Account>, body: Value) -> Answer {
        self.send(self.http.post(format!("{}{path}", self.url)).json(&body), as_user).await
    }

    /// PUT without a body.
    pub async fn put(&self, path: &str, as_user: Option<&Account>) -> Answer {
        self.send(self.http.put(format!("{}{path}", self.url)), as_user).await
    }

    /// Any request: headers, and a JSON body unless it is null.
    pub async fn ask(
        &self,
        method: &str,
        path: &str,
        as_user: Option<&Account>,
        headers: &[(&str, &str)],
        body: Value,
    ) -> Answer {
        let mut request = self.http.request(method.parse().unwrap(), format!("{}{path}", self.url));
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_null() {
            request = request.json(&body);
        }
        self.send(request, as_user).await
    }

    /// DELETE.
    pub async fn delete(&self, path: &str, as_user: Option<&Account>) -> Answer {
        self.send(self.http.delete(format!("{}{path}", self.url)), as_user).await
    }

    /// Registers a user.
    pub async fn register(&self, name: &str) -> Account {
        let body = json!({
            "username": name, "email": format!("{name}@example.com"),
            "password": PASSWORD, "displayName": name,
        });
        let answer = self.post("/api/auth/register", None, body).await;
        assert!((200..300).contains(&answer.status), "{answer:?}");
        Account {
            id: answer.body["user"]["id"].as_str().unwrap().to_owned(),
            token: answer.body["token"].as_str().unwrap().to_owned(),
        }
    }

    /// Signs in as a user who has no password: an imported one.
    pub fn account(&self, id: i64) -> Account {
        let keys = feedmill_api::Keys::load_or_create(&self.data.join("keys")).unwrap();
        Account { id: id.to_string(), token: keys.token_for(id, Duration::from_secs(3_600)).unwrap() }
    }

    /// Posts a tweet; gives its id and the token of the write.
    pub async fn tweet(&self, by: &Account, content: &str) -> (String, String) {
        let answer = self.post("/api/tweets", Some(by), json!({ "content": content })).await;
        assert_eq!(answer.status, 201, "{answer:?}");
        let id = answer.body.get("tweet").unwrap_or(&answer.body)["id"].as_str().unwrap().to_owned();
        (id, answer.token.unwrap())
    }

    /// Ids of the tweets on the first page of a viewer's home timeline, at least as new as `token`.
    pub async fn home(&self, viewer: &Account, token: Option<&str>) -> Vec<String> {
        let path = "/api/timeline?limit=100";
        let answer = match token {
            Some(token) => self.get_after(token, path, Some(viewer)).await,
            None => self.get(path, Some(viewer)).await,
        };
        assert_eq!(answer.status, 200, "{answer:?}");
        ids(&answer.body)
    }

    /// The value of a metric, summed over its labels; 0 before it is first told of, which must be one that the manual has.
    pub async fn metric(&self, name: &str) -> f64 {
        let manual = include_str!("../../docs/operations.md");
        let documented = ["_count", "_sum", ""]
            .iter()
            .any(|end| name.strip_suffix(end).is_some_and(|name| manual.contains(&format!("`{name}`"))));
        assert!(documented, "docs/operations.md has no metric {name}");
        let text = self.http.get(format!("{}/metrics", self.url)).send().await.unwrap().text().await.unwrap();
        text.lines()
            .filter(|line| line.split(['{', ' ']).next() == Some(name))
            .map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap())
            .sum()
    }
}

impl Answer {
    /// It has this status; gives its body.
    #[track_caller]
    pub fn is(&self, status: u16) -> Value {
        assert_eq!(self.status, status, "{self:?}");
        self.body.clone()
    }

    /// It is this problem.
    #[track_caller]
    pub fn is_problem(&self, status: u16, error: &str) {
        assert_eq!((self.status, self.body["error"].as_str()), (status, Some(error)), "{self:?}");
        assert_eq!(self.headers["content-type"], "application/problem+json", "{self:?}");
    }

    /// The consistency token of a write.
    #[track_caller]
    pub fn written(&self) -> &str {
        self.token.as_deref().unwrap_or_else(|| panic!("no consistency token: {self:?}"))
    }
}

/// Ids of the tweets in a list.
pub fn ids(list: &Value) -> Vec<String> {
    list["tweets"].as_array().unwrap().iter().map(|tweet| tweet["id"].as_str().unwrap().to_owned()).collect()
}

impl Drop for System {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.interrupt();
        } else if let Ok(pid) = std::fs::read_to_string(self.data.join("postgres/data/postmaster.pid")) {
            // The process was killed and PostgreSQL, rightly, went on.
            if let Some(pid) = pid.lines().next().and_then(|line| line.parse().ok()) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGQUIT);
            }
        }
        if std::thread::panicking() {
            eprintln!("the data stay in {}", self.data.display());
        } else {
            let _ = std::fs::remove_dir_all(&self.data);
        }
    }
}

/// Copies an empty cluster into a data folder. `initdb` takes more of a processor's time than most tests do, so it is run
/// once for all of them; what it leaves behind is tested where systems are begun with [`System::new`].
async fn copy_cluster(data: &Path) {
    static MADE: OnceCell<PathBuf> = OnceCell::const_new();
    let make = async || {
        // Made where its user can enter, and kept where it is replaced by the next run's.
        let folder = tempfile::Builder::new().prefix("cluster-").permissions(Permissions::from_mode(0o711)).tempdir();
        let (made, kept) = (folder.as_ref().unwrap().path().join("postgres"), Path::new(env!("CARGO_TARGET_TMPDIR")));
        let cluster = Cluster::start(&made, LIMIT).await.unwrap();
        cluster.stop(LIMIT).await.unwrap();
        let _ = std::fs::remove_dir_all(kept.join("postgres"));
        copy(&made, kept).await;
        kept.join("postgres")
    };
    copy(MADE.get_or_init(make).await, data).await;
}

async fn copy(from: &Path, into: &Path) {
    let copied = tokio::process::Command::new("cp").arg("-a").args([from, into]).status().await.unwrap();
    assert!(copied.success());
}

/// The folder of the project.
pub const TOP: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/..");

/// The binary, which lies beside the folder of this test: whoever tests the workspace has built it too.
pub fn binary() -> PathBuf {
    let test = std::env::current_exe().unwrap();
    let binary = test.ancestors().nth(2).unwrap().join("feedmill");
    assert!(binary.exists(), "{} is not built: test the whole workspace", binary.display());
    binary
}

/// A file or folder of the data that this project does not bring along; says so where it is absent.
pub fn shared_data(name: &str) -> Option<String> {
    let path = Path::new(TOP).join("../shared/data").join(name);
    if path.exists() {
        return Some(path.to_str().unwrap().to_owned());
    }
    eprintln!("skipped: {} is not on this machine", path.display());
    None
}
