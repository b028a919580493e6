//! A PostgreSQL server that a test owns: its settings, its end and its start.
//!
//! ```text
//!  FOLDER/data            the cluster, of the user that PostgreSQL runs as
//!  FOLDER/socket          its Unix socket, for the superuser, without a password
//!  127.0.0.1:port         a free port, the same at each start
//!  FOLDER/postgres.log    what it says
//! ```
//!
//! There is a role `feedmill` (LOGIN REPLICATION, and it reads the statistics) that owns a database `feedmill`, as in
//! the cluster that Feedmill makes itself. What a test sets goes behind the defaults and so wins. `fsync` is off: the
//! server is killed here, the machine is not.

use std::fs::{self, Permissions};
use std::net::TcpListener;
use std::os::unix::fs::{PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, User, geteuid};
use tempfile::TempDir;
use tokio::sync::OnceCell;
use tokio_postgres::{Client, NoTls};

use crate::system::LIMIT;

/// How often a server that starts is asked.
const PAUSE: Duration = Duration::from_millis(20);

const DEFAULTS: [&str; 9] = [
    "wal_level = logical",
    "fsync = off",
    "shared_buffers = 32MB",
    "max_replication_slots = 16",
    "max_wal_senders = 16",
    "max_connections = 100",
    "log_line_prefix = '%m [%p] %q%a '",
    "listen_addresses = '127.0.0.1'",
    "jit = off",
];

/// A running server, which is stopped and removed at the end.
pub struct Postgres {
    folder: TempDir,
    binaries: PathBuf,
    /// As whom it runs, where that is not ourselves.
    owner: Option<User>,
    process: Option<Child>,
    /// Its port on 127.0.0.1.
    pub port: u16,
}

/// A copy of a server's data.
pub struct Backup(TempDir);

impl Postgres {
    /// Starts a new server, a copy of one that all tests have: making one takes more of a processor's time than most tests do.
    /// `settings` are lines of `postgresql.conf`.
    pub async fn new(settings: &[&str]) -> Postgres {
        static MADE: OnceCell<PathBuf> = OnceCell::const_new();
        let make = async || {
            let mut made = Postgres::unlike_others(&[]).await;
            made.stop_fast();
            let kept = Path::new(env!("CARGO_TARGET_TMPDIR")).join("server");
            let _ = fs::remove_dir_all(&kept);
            copy(&made.data(), &kept);
            kept
        };
        let made = MADE.get_or_init(make).await;
        let mut server = Postgres::empty();
        fs::remove_dir(server.data()).unwrap();
        copy(made, &server.data());
        server.take_place();
        server.configure(settings);
        server.start().await;
        server
    }

    /// Starts a new server that has a system identifier of its own.
    pub async fn unlike_others(settings: &[&str]) -> Postgres {
        let mut server = Postgres::empty();
        let mut initdb = server.command("initdb");
        initdb.args(["-U", "postgres", "-E", "UTF8", "--locale=C", "--auth=trust", "--no-sync", "-D"]);
        let output = initdb.arg(server.data()).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        server.configure(&DEFAULTS);
        server.take_place();
        server.configure(settings);
        server.start().await;
        server.role("feedmill", "LOGIN REPLICATION IN ROLE pg_read_all_stats").await;
        server.database("feedmill", "feedmill").await;
        server
    }

    /// Starts a streaming replica of it, on a port of its own.
    pub async fn standby(&self) -> Postgres {
        let mut standby = Postgres::empty();
        let mut backup = standby.command("pg_basebackup");
        backup.args(["-U", "postgres", "-p", &self.port.to_string(), "-h"]).arg(self.socket());
        backup.args(["--write-recovery-conf", "--checkpoint=fast", "--no-sync", "-D"]).arg(standby.data());
        let output = backup.output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        standby.take_place();
        standby.start().await;
        standby
    }

    /// Folders for a server that is not there yet.
    fn empty() -> Postgres {
        // Everybody may pass: PostgreSQL may run as another user.
        let folder = tempfile::Builder::new().prefix("pg-").permissions(Permissions::from_mode(0o711)).tempdir();
        let root = || User::from_name("postgres").unwrap().expect("root runs the tests, so there is a user postgres");
        let server = Postgres {
            folder: folder.unwrap(),
            binaries: binaries(),
            owner: geteuid().is_root().then(root),
            process: None,
            port: 0,
        };
        for folder in [server.data(), server.socket()] {
            fs::create_dir(&folder).unwrap();
            server.give(&folder);
            fs::set_permissions(&folder, Permissions::from_mode(0o700)).unwrap();
        }
        server
    }

    /// Has it listen on a port of its own and in its own folder. It is started next, before others take the port.
    fn take_place(&mut self) {
        self.port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().port();
        let socket = format!("unix_socket_directories = '{}'", self.socket().display());
        self.configure(&[&format!("port = {}", self.port), &socket]);
    }

    /// The folder of the cluster.
    pub fn data(&self) -> PathBuf {
        self.folder.path().join("data")
    }

    /// The folder of its Unix socket.
    pub fn socket(&self) -> PathBuf {
        self.folder.path().join("socket")
    }

    /// What it has said.
    pub fn log(&self) -> String {
        fs::read_to_string(self.folder.path().join("postgres.log")).unwrap_or_default()
    }

    /// The address of the database `feedmill` as the role `feedmill`, by TCP.
    pub fn url(&self) -> String {
        self.url_at("feedmill", "127.0.0.1", self.port, "feedmill")
    }

    /// An address by TCP, perhaps through a proxy on another port. `role` may hold a password: `ada:secret`.
    pub fn url_at(&self, role: &str, host: &str, port: u16, database: &str) -> String {
        format!("postgresql://{role}@{host}:{port}/{database}")
    }

    /// Lines for `postgresql.conf`; a later one wins. They count from the next start, or [`Self::reload`].
    pub fn configure(&self, lines: &[&str]) {
        let path = self.data().join("postgresql.conf");
        let text = fs::read_to_string(&path).unwrap() + &lines.join("\n") + "\n";
        fs::write(path, text).unwrap();
    }

    /// The lines of `pg_hba.conf`; the superuser gets in by the socket whatever they say. From the next start or reload.
    pub fn authenticate(&self, lines: &[&str]) {
        let text = format!("local all postgres trust\n{}\n", lines.join("\n"));
        fs::write(self.data().join("pg_hba.conf"), text).unwrap();
    }

    /// Makes it read its configuration again.
    pub fn reload(&self) {
        kill(self.pid(), Signal::SIGHUP).unwrap();
    }

    /// Makes a file in the folder of the cluster that only PostgreSQL reads: a key, a certificate.
    pub fn put(&self, name: &str, text: &str) {
        let path = self.data().join(name);
        fs::write(&path, text).unwrap();
        self.give(&path);
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    }

    /// Starts it after a stop, and waits until it answers.
    pub async fn start(&mut self) {
        assert!(self.process.is_none(), "it runs already");
        let log = fs::File::options().create(true).append(true).open(self.folder.path().join("postgres.log")).unwrap();
        let mut command = self.command("postgres");
        command.arg("-D").arg(self.data()).stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log);
        self.process = Some(command.spawn().unwrap());
        let deadline = Instant::now() + LIMIT;
        let mut pause = tokio::time::interval(PAUSE);
        while self.connect("postgres", "postgres").await.is_err() {
            let ended = self.process.as_mut().unwrap().try_wait().unwrap();
            assert!(ended.is_none() && Instant::now() < deadline, "it does not start ({ended:?}):\n{}", self.log());
            pause.tick().await;
        }
    }

    /// Ends it as a crash does: nothing is written, and the next start recovers.
    pub fn stop_immediate(&mut self) {
        self.end(Signal::SIGQUIT);
    }

    /// Ends it in order. It waits for readers of slots: end or freeze none of them before.
    pub fn stop_fast(&mut self) {
        self.end(Signal::SIGINT);
    }

    fn end(&mut self, signal: Signal) {
        let mut process = self.process.take().expect("it runs");
        kill(pid(&process), signal).unwrap();
        let deadline = Instant::now() + LIMIT;
        while process.try_wait().unwrap().is_none() {
            assert!(Instant::now() < deadline, "it does not end by {signal}:\n{}", self.log());
            std::thread::sleep(PAUSE);
        }
    }

    /// A connection as the superuser.
    pub async fn superuser(&self, database: &str) -> Client {
        self.connect("postgres", database).await.unwrap()
    }

    /// A connection to the database `feedmill` as the role that owns it.
    pub async fn sql(&self) -> Client {
        self.connect("feedmill", "feedmill").await.unwrap()
    }

    async fn connect(&self, role: &str, database: &str) -> Result<Client, tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config.host_path(self.socket()).port(self.port).user(role).dbname(database);
        let (client, connection) = config.connect(NoTls).await?;
        tokio::spawn(connection);
        Ok(client)
    }

    /// Makes a role: `LOGIN REPLICATION PASSWORD 'secret'`, say.
    pub async fn role(&self, name: &str, attributes: &str) {
        let statement = format!("CREATE ROLE {name} {attributes}");
        self.superuser("postgres").await.batch_execute(&statement).await.unwrap();
    }

    /// Makes a database.
    pub async fn database(&self, name: &str, owner: &str) {
        let statement = format!("CREATE DATABASE {name} OWNER {owner}");
        self.superuser("postgres").await.batch_execute(&statement).await.unwrap();
    }

    /// The server processes of sessions for which `condition` on `pg_stat_activity` holds.
    pub async fn backends(&self, condition: &str) -> Vec<i32> {
        let query = format!("SELECT pid FROM pg_stat_activity WHERE pid <> pg_backend_pid() AND ({condition})");
        self.superuser("postgres").await.query(&query, &[]).await.unwrap().iter().map(|row| row.get(0)).collect()
    }

    /// Freezes server processes, those of [`Self::backends`] or all ([`Self::processes`]): they answer nothing, and
    /// their connections stay open. One that has ended meanwhile is left alone.
    pub fn freeze(&self, processes: &[i32]) {
        for process in processes {
            match kill(Pid::from_raw(*process), Signal::SIGSTOP) {
                Ok(()) | Err(Errno::ESRCH) => {}
                Err(error) => panic!("could not freeze {process}: {error}"),
            }
        }
    }

    /// Lets frozen processes go on, likewise.
    pub fn thaw(&self, processes: &[i32]) {
        for process in processes {
            let _ = kill(Pid::from_raw(*process), Signal::SIGCONT);
        }
    }

    /// All its processes.
    pub fn processes(&self) -> Vec<i32> {
        let first = self.pid().as_raw();
        let all = fs::read_dir("/proc").unwrap().flatten();
        let all = all.filter_map(|entry| entry.file_name().to_str()?.parse::<i32>().ok());
        all.filter(|pid| *pid == first || parent(*pid) == Some(first)).collect()
    }

    fn pid(&self) -> Pid {
        pid(self.process.as_ref().expect("it runs"))
    }

    /// Copies the data of a stopped server.
    pub fn backup(&self) -> Backup {
        assert!(self.process.is_none(), "stop it before");
        let backup = TempDir::new().unwrap();
        copy(&self.data(), &backup.path().join("data"));
        Backup(backup)
    }

    /// Puts a copy in the place of the data of a stopped server.
    pub fn restore(&self, backup: &Backup) {
        assert!(self.process.is_none(), "stop it before");
        fs::remove_dir_all(self.data()).unwrap();
        copy(&backup.0.path().join("data"), &self.data());
    }

    /// One of PostgreSQL's programs, as the user that the server runs as.
    pub fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.join(program));
        command.current_dir("/").env("LC_ALL", "C").process_group(0);
        if let Some(owner) = &self.owner {
            command.uid(owner.uid.as_raw()).gid(owner.gid.as_raw());
        }
        command
    }

    fn give(&self, path: &Path) {
        if let Some(owner) = &self.owner {
            chown(path, Some(owner.uid.as_raw()), Some(owner.gid.as_raw())).unwrap();
        }
    }
}

impl Drop for Postgres {
    fn drop(&mut self) {
        if self.process.is_some() {
            self.thaw(&self.processes());
            let mut process = self.process.take().expect("it runs");
            let _ = kill(pid(&process), Signal::SIGQUIT);
            let _ = process.wait();
        }
        if std::thread::panicking() {
            eprintln!("PostgreSQL's data stay in {}", self.folder.path().display());
            self.folder.disable_cleanup(true);
        }
    }
}

fn pid(process: &Child) -> Pid {
    Pid::from_raw(process.id().try_into().unwrap())
}

/// The parent of a process, if that still runs.
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
}

/// Copies a folder with the owners and permissions of its files.
fn copy(from: &Path, to: &Path) {
    let status = Command::new("cp").arg("-a").arg(from).arg(to).status().unwrap();
    assert!(status.success(), "{status}");
}

/// The folder of the newest PostgreSQL that is installed.
fn binaries() -> PathBuf {
    let configured = Command::new("pg_config").arg("--bindir").output().ok();
    let configured = configured.map(|output| PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    let mut installed: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .collect();
    installed.sort();
    let path = std::env::split_paths(&std::env::var_os("PATH").unwrap_or_default()).collect::<Vec<_>>();
    let candidates = installed.into_iter().rev().map(|(_, folder)| folder).chain(configured).chain(path);
    candidates.into_iter().find(|folder| folder.join("initdb").is_file()).expect("PostgreSQL is installed: make setup")
}
