//! A private PostgreSQL cluster under a directory.
//!
//! ```text
//!  DIR/data          the cluster                  owned by whom PostgreSQL runs as, 0700
//!  DIR/socket        its socket, and nothing else reaches it; 0700, so authentication is by the file system
//!  DIR/postgres.log  what it says
//!
//!  start ─ runs already? ──yes──────────────────────────┐
//!            └─ no ─ initdb (if empty) ─ spawn ─ ready ─┴─ role, database ─> Source
//! ```
//!
//! Why no crash of ours harms it: it is a process group of its own, no child that dies with us; the next start finds it
//! by its socket and takes it over. A kill during initdb leaves a directory of another name, which the next start
//! removes; `data` comes into being by one rename. Role and database are made when they are missing, at each start.
//! A crash of the machine is PostgreSQL's own business: it recovers, and it knows a stale `postmaster.pid`.
//!
//! Started by root it runs as another user, because PostgreSQL refuses root: as the owner of `data` if that exists,
//! else as `postgres`, else as `nobody`.

use std::fs;
use std::io;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ExitStatus, Stdio};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tokio::time::Instant;
use tokio_postgres::{Client, Config};

use super::error::with_causes;
use super::{Source, SourceError};

mod binaries;
mod owner;

use binaries::Binaries;
use owner::Owner;

/// Role and database of Feedmill.
const NAME: &str = "feedmill";

/// The longest path of a socket that every system takes (`sun_path` has 104 bytes on some, 108 on Linux).
const SOCKET_PATH_MAX: usize = 100;

/// How often a cluster that starts or stops is looked at.
const PAUSE: Duration = Duration::from_millis(30);

/// How often a server that ends at its start is started again, and after which pause.
const ATTEMPTS: u32 = 10;
const ATTEMPT_PAUSE: Duration = Duration::from_millis(200);

/// How long an immediate shutdown may take after a fast one took too long.
const QUIT_LIMIT: Duration = Duration::from_secs(5);

/// A log larger than this is set aside at the next start.
const LOG_BYTES_MAX: u64 = 16 << 20;

/// For speed, but never at the cost of a commit: `fsync` and `synchronous_commit` stay on.
const SETTINGS: [&str; 16] = [
    "listen_addresses=",
    "unix_socket_permissions=0700",
    "port=5432",
    "wal_level=logical",
    "max_replication_slots=16",
    "max_wal_senders=16",
    "max_connections=200",
    "shared_buffers=256MB",
    "wal_buffers=16MB",
    "max_wal_size=4GB",
    "min_wal_size=512MB",
    "checkpoint_timeout=15min",
    "random_page_cost=1.1",
    "jit=off",
    "cluster_name=feedmill",
    "log_line_prefix=%m [%p] ",
];

/// Why the cluster does not run, or goes on running.
#[derive(Debug, thiserror::Error)]
pub enum ClusterError {
    /// PostgreSQL is not installed, or too old.
    #[error(
        "found no PostgreSQL from version {min} on (in PATH, by pg_config, in /usr/lib/postgresql, in /usr/pgsql-*); \
         install it, for example by: apt-get install postgresql"
    )]
    NotInstalled {
        /// The oldest version that will do.
        min: u32,
    },
    /// The cluster was made by a version that is not installed.
    #[error(
        "the cluster in {} is of PostgreSQL {version}, which is not installed (found: {found}); install it, for \
         example by: apt-get install postgresql-{version}",
        .data.display()
    )]
    OtherVersion {
        /// The cluster.
        data: PathBuf,
        /// Its major version.
        version: u32,
        /// The versions that are installed.
        found: String,
    },
    /// Root runs us, and nobody else can run PostgreSQL.
    #[error(
        "PostgreSQL does not run as root, and there is neither a user postgres nor nobody; make one: adduser postgres"
    )]
    NoUser,
    /// The user that PostgreSQL runs as cannot get there.
    #[error(
        "PostgreSQL does not run as root but as {user}, who cannot enter {}; choose a directory that {user} can reach, \
         for example --data /var/lib/feedmill, or run: chmod o+x {}",
        .blocked.display(), .blocked.display()
    )]
    Unreachable {
        /// Who cannot.
        user: String,
        /// The first directory that refuses.
        blocked: PathBuf,
    },
    /// Sockets cannot have such a long path.
    #[error(
        "the path {} is too long for a socket ({} bytes; {SOCKET_PATH_MAX} will do); choose a shorter --data",
        .path.display(), .path.as_os_str().len()
    )]
    SocketPath {
        /// The socket.
        path: PathBuf,
    },
    /// There is something else in the directory.
    #[error("{} is not empty and holds no PostgreSQL cluster; choose another --data, or move it away", .data.display())]
    Foreign {
        /// The directory.
        data: PathBuf,
    },
    /// A file or a program could not be handled.
    #[error("could not {tried} {}: {error}", .path.display())]
    File {
        /// What was tried.
        tried: &'static str,
        /// On what.
        path: PathBuf,
        /// What went wrong.
        error: io::Error,
    },
    /// `initdb` failed.
    #[error("initdb failed ({status}): {output}")]
    Initialize {
        /// How it ended.
        status: ExitStatus,
        /// What it said.
        output: String,
    },
    /// PostgreSQL ended instead of starting.
    #[error("PostgreSQL ended at its start ({status}); the end of its log:\n{log}")]
    Exited {
        /// How it ended.
        status: ExitStatus,
        /// The end of its log.
        log: String,
    },
    /// PostgreSQL does not answer yet.
    #[error(
        "PostgreSQL did not answer within {limit:?} ({problem}). It goes on starting (a recovery takes a while): try \
         again. The end of its log:\n{log}"
    )]
    NotReady {
        /// How long it was waited for.
        limit: Duration,
        /// What the last attempt to connect gave.
        problem: String,
        /// The end of its log.
        log: String,
    },
    /// The cluster runs, but cannot be prepared.
    #[error("could not make the role and the database {NAME}: {}", with_causes(.0))]
    Prepare(tokio_postgres::Error),
    /// It cannot be told to stop.
    #[error("could not stop PostgreSQL (PID {pid}): {error}")]
    Signal {
        /// Its process.
        pid: i32,
        /// What went wrong.
        error: io::Error,
    },
    /// It does not stop.
    #[error("PostgreSQL (PID {pid}) did not stop within {limit:?}, nor at once when told to; look into its log")]
    StillRuns {
        /// Its process.
        pid: i32,
        /// How long it was waited for.
        limit: Duration,
    },
}

/// A running private cluster. Dropping it leaves it running; [`Self::stop`] stops it.
#[derive(Debug)]
pub struct Cluster {
    source: Source,
    superuser: Source,
    pid: i32,
    version: u32,
    /// `None` for a cluster that was running already.
    child: Option<Child>,
}

/// What [`Cluster::start`] would start.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Prospect {
    /// Major version of the PostgreSQL that it would use.
    pub version: u32,
    /// Whether there is a cluster; if not, one would be made.
    pub exists: bool,
}

impl Cluster {
    /// What [`Self::start`] would do with a directory in which no cluster runs. Changes nothing.
    pub async fn prospect(dir: &Path) -> Result<Prospect, ClusterError> {
        let dir = std::path::absolute(dir).unwrap_or_else(|_| dir.to_owned());
        let layout = Layout::of(dir.clone())?;
        let owner = Owner::of(&layout.data)?;
        let binaries = Binaries::find(&layout.data).await?;
        if let Some(there) = dir.ancestors().find(|dir| dir.exists()) {
            owner.check_reach(there, &binaries)?;
        }
        let exists = layout.holds_cluster()?;
        Ok(Prospect { version: binaries.version, exists })
    }

    /// Starts the cluster under `dir`, made anew if there is none, or takes over one that still runs, and waits until
    /// it answers, at most `limit`. Dropped half-way it asks the server to stop, and leaves what the next start completes.
    pub async fn start(dir: &Path, limit: Duration) -> Result<Cluster, ClusterError> {
        let deadline = Instant::now() + limit;
        let layout = Layout::new(dir)?;
        let owner = Owner::of(&layout.data)?;
        let binaries = Binaries::find(&layout.data).await?;
        let superuser = layout.source("postgres", "postgres");
        let (mut starting, mut attempts) = (Starting(None), 0);
        if !matches!(answer(&superuser).await, Answer::Ready(_)) {
            owner.check_reach(&layout.dir, &binaries)?;
            layout.prepare(&owner, &binaries).await?;
        }
        let client = loop {
            let problem = match answer(&superuser).await {
                Answer::Ready(client) => break client,
                Answer::NotNow(problem) => problem,
                Answer::Silence(problem) => {
                    if let Some(status) = exited(&mut starting.0) {
                        // Another server, or what a kill left of one, may hold the data directory for a moment.
                        if attempts == ATTEMPTS {
                            return Err(ClusterError::Exited { status, log: layout.log_tail() });
                        }
                        starting.0 = None;
                        tokio::time::sleep(ATTEMPT_PAUSE).await;
                    } else if starting.0.is_none() {
                        attempts += 1;
                        starting.0 = Some(layout.spawn(&owner, &binaries)?);
                    }
                    problem
                }
            };
            if Instant::now() > deadline {
                // It goes on with its recovery, and the next start finds it.
                starting.0 = None;
                return Err(ClusterError::NotReady { limit, problem, log: layout.log_tail() });
            }
            tokio::time::sleep(PAUSE).await;
        };
        ensure_database(&client).await.map_err(ClusterError::Prepare)?;
        let mut child = starting.0.take();
        let started = child.as_ref().and_then(|child| i32::try_from(child.id()).ok());
        let pid = layout.running_pid().or(started).unwrap_or_default();
        if started != Some(pid) {
            child = None;
        }
        let source = layout.source(NAME, NAME);
        tracing::info!(pid, taken_over = child.is_none(), %source, "PostgreSQL runs");
        Ok(Cluster { source, superuser, pid, version: binaries.version, child })
    }

    /// The database of the cluster under `dir`, whether it runs or not.
    pub fn source_in(dir: &Path) -> Result<Source, ClusterError> {
        Ok(Layout::new(dir)?.source(NAME, NAME))
    }

    /// Feedmill's database, as its role: it may log in and replicate, and owns its database, and is no superuser.
    pub fn source(&self) -> &Source {
        &self.source
    }

    /// The database `postgres`, as the superuser.
    pub fn superuser(&self) -> &Source {
        &self.superuser
    }

    /// The server's first process.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// The major version of the installed PostgreSQL that fits the cluster.
    pub fn version(&self) -> u32 {
        self.version
    }

    /// Whether it was running already.
    pub fn taken_over(&self) -> bool {
        self.child.is_none()
    }

    /// Stops the server: at first *fast* (open transactions are rolled back, a checkpoint is written), after `limit`
    /// at once (the next start recovers from the log). End streams before: a fast stop waits until each has
    /// acknowledged everything. One that has died meanwhile counts as stopped; stop it before starting it again, because
    /// PostgreSQL takes a child that nobody waited for as running.
    pub async fn stop(mut self, limit: Duration) -> Result<(), ClusterError> {
        let pid = Pid::from_raw(self.pid);
        for (signal, limit) in [(Signal::SIGINT, limit), (Signal::SIGQUIT, QUIT_LIMIT)] {
            match kill(pid, signal) {
                Ok(()) => {}
                Err(Errno::ESRCH) => return Ok(()),
                Err(error) => return Err(ClusterError::Signal { pid: self.pid, error: error.into() }),
            }
            let deadline = Instant::now() + limit;
            loop {
                if exited(&mut self.child).is_some() || !is_alive(pid) {
                    return Ok(());
                }
                if Instant::now() > deadline {
                    break;
                }
                tokio::time::sleep(PAUSE).await;
            }
            tracing::warn!(pid = self.pid, ?limit, %signal, "PostgreSQL did not stop in time");
        }
        Err(ClusterError::StillRuns { pid: self.pid, limit })
    }
}

/// How a cluster answers.
enum Answer {
    Ready(Client),
    /// It is there, but starts or stops.
    NotNow(String),
    /// Nobody listens.
    Silence(String),
}

async fn answer(superuser: &Source) -> Answer {
    match superuser.connect("feedmill-cluster").await {
        Ok(client) => Answer::Ready(client),
        Err(error @ SourceError::Connect { .. }) => {
            let answered = matches!(&error, SourceError::Connect { error, .. } if error.code().is_some());
            if answered { Answer::NotNow(error.to_string()) } else { Answer::Silence(error.to_string()) }
        }
        Err(error) => Answer::Silence(error.to_string()),
    }
}

/// A server that is starting; dropped before it runs, it is asked to stop.
struct Starting(Option<Child>);

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(pid) = self.0.as_ref().and_then(|child| i32::try_from(child.id()).ok()) {
            let _ = kill(Pid::from_raw(pid), Signal::SIGINT);
        }
    }
}

/// How the child ended, if it did.
fn exited(child: &mut Option<Child>) -> Option<ExitStatus> {
    child.as_mut().and_then(|child| child.try_wait().ok().flatten())
}

/// Whether the process runs. One that has ended and that nobody waits for does not.
fn is_alive(pid: Pid) -> bool {
    if kill(pid, None) == Err(Errno::ESRCH) {
        return false;
    }
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z'))
}

/// Role and database, where they are missing.
async fn ensure_database(superuser: &Client) -> Result<(), tokio_postgres::Error> {
    // To see whether a connection of its own that holds the slot is still alive the role reads the statistics.
    let role = format!(
        "DO $$ BEGIN IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = '{NAME}') THEN \
         CREATE ROLE {NAME} LOGIN REPLICATION; GRANT pg_read_all_stats TO {NAME}; END IF; END $$"
    );
    superuser.batch_execute(&role).await?;
    let database = superuser.query_opt("SELECT 1 FROM pg_database WHERE datname = $1", &[&NAME]).await?;
    if database.is_none() {
        superuser.batch_execute(&format!("CREATE DATABASE {NAME} OWNER {NAME}")).await?;
    }
    Ok(())
}

/// Where everything is.
struct Layout {
    dir: PathBuf,
    data: PathBuf,
    socket: PathBuf,
    log: PathBuf,
}

impl Layout {
    fn new(dir: &Path) -> Result<Layout, ClusterError> {
        let failed = |tried| move |error| ClusterError::File { tried, path: dir.to_owned(), error };
        if !dir.exists() {
            fs::create_dir_all(dir).map_err(failed("make the directory"))?;
            // Everybody may pass, nobody may look, whatever the umask: PostgreSQL may run as another user.
            fs::set_permissions(dir, fs::Permissions::from_mode(0o711)).map_err(failed("open the directory"))?;
        }
        Layout::of(dir.canonicalize().map_err(failed("find the directory"))?)
    }

    /// The same without making anything.
    fn of(dir: PathBuf) -> Result<Layout, ClusterError> {
        let (data, socket, log) = (dir.join("data"), dir.join("socket"), dir.join("postgres.log"));
        let path = socket.join(".s.PGSQL.5432");
        if path.as_os_str().len() > SOCKET_PATH_MAX {
            return Err(ClusterError::SocketPath { path });
        }
        Ok(Layout { dir, data, socket, log })
    }

    fn source(&self, user: &str, database: &str) -> Source {
        let mut config = Config::new();
        config.host_path(&self.socket).port(5432).user(user).dbname(database);
        Source::local(config)
    }

    /// The server's first process, if `postmaster.pid` names one that runs.
    fn running_pid(&self) -> Option<i32> {
        let file = fs::read_to_string(self.data.join("postmaster.pid")).ok()?;
        let pid = file.lines().next()?.trim().parse().ok()?;
        (pid > 1 && is_alive(Pid::from_raw(pid))).then_some(pid)
    }

    /// The socket's directory, and the cluster if there is none.
    async fn prepare(&self, owner: &Owner, binaries: &Binaries) -> Result<(), ClusterError> {
        owner.make_dir(&self.socket)?;
        if self.holds_cluster()? {
            return Ok(());
        }
        let data = self.data.clone();
        self.remove_leftovers();
        let new = self.dir.join(format!("data.new.{}", std::process::id()));
        owner.make_dir(&new)?;
        tracing::info!(data = %self.data.display(), "making a PostgreSQL cluster");
        let mut command = tokio::process::Command::from(owner.command(binaries.initdb()));
        command.arg("-D").arg(&new).args(["-U", "postgres", "-E", "UTF8", "--locale=C"]);
        command.args(["--auth-local=trust", "--auth-host=reject", "--no-instructions"]);
        let failed = |tried, path: &Path| {
            let path = path.to_owned();
            move |error| ClusterError::File { tried, path, error }
        };
        let output = command.output().await.map_err(failed("run", &binaries.initdb()))?;
        if !output.status.success() {
            let text = [output.stdout, output.stderr].concat();
            let output_text = String::from_utf8_lossy(&text).into_owned();
            return Err(ClusterError::Initialize { status: output.status, output: output_text });
        }
        // initdb has synced everything below; the rename is durable when the directory is.
        fs::rename(&new, &data).map_err(failed("make", &data))?;
        fs::File::open(&self.dir).and_then(|dir| dir.sync_all()).map_err(failed("sync", &self.dir))
    }

    /// Whether there is a cluster; nothing else may be there.
    fn holds_cluster(&self) -> Result<bool, ClusterError> {
        if self.data.join("PG_VERSION").exists() {
            return Ok(true);
        }
        if fs::read_dir(&self.data).is_ok_and(|mut entries| entries.next().is_some()) {
            return Err(ClusterError::Foreign { data: self.data.clone() });
        }
        Ok(false)
    }

    /// What a kill during initdb left. Nothing depends on it, so a failure only costs room.
    fn remove_leftovers(&self) {
        let entries = fs::read_dir(&self.dir).into_iter().flatten().flatten();
        for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with("data.new.")) {
            if let Err(error) = fs::remove_dir_all(entry.path()) {
                tracing::warn!(path = %entry.path().display(), %error, "could not remove what an initdb left");
            }
        }
    }

    fn spawn(&self, owner: &Owner, binaries: &Binaries) -> Result<Child, ClusterError> {
        let failed = |tried| move |error| ClusterError::File { tried, path: self.log.clone(), error };
        if fs::metadata(&self.log).is_ok_and(|log| log.len() > LOG_BYTES_MAX) {
            fs::rename(&self.log, self.log.with_extension("log.old")).map_err(failed("set aside the log"))?;
        }
        let log = fs::File::options().create(true).append(true).open(&self.log).map_err(failed("open the log"))?;
        let errors = log.try_clone().map_err(failed("open the log"))?;
        // The setting is a list: quoted, so that a comma in the path separates nothing.
        let socket = format!("\"{}\"", self.socket.display().to_string().replace('"', "\"\""));
        let program = binaries.postgres();
        let mut command = owner.command(&program);
        command.arg("-D").arg(&self.data).arg("-c").arg(format!("unix_socket_directories={socket}"));
        command.args(SETTINGS.iter().flat_map(|setting| ["-c", setting]));
        command.stdin(Stdio::null()).stdout(log).stderr(errors);
        command.spawn().map_err(|error| ClusterError::File { tried: "run", path: program, error })
    }

    /// The last lines of the log.
    fn log_tail(&self) -> String {
        let log = fs::read(&self.log).unwrap_or_default();
        let log = String::from_utf8_lossy(&log);
        let lines: Vec<&str> = log.lines().rev().take(12).collect();
        let lines: Vec<String> = lines.into_iter().rev().map(|line| format!("    {line}")).collect();
        lines.join("\n")
    }
}
