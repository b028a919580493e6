//! A server of a test: its folder, its process, its guardian; or the address of somebody else's.

use std::fs::{self, File, Permissions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::net::TcpListener;
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid};

/// Java starts slowly beside other tests.
const START_MAX: Duration = Duration::from_secs(180);
const PAUSE: Duration = Duration::from_millis(50);
/// The last of what a server said, for who asks why it did not start.
const TOLD: i64 = 4_000;

/// Reads ids of processes, and at the end of its input ends the last of them and removes the folder.
const GUARDIAN: &str = r#"
trap '' INT TERM HUP
while read -r pid; do last=$pid; done
if [ -n "$last" ] && kill -9 "$last" 2>/dev/null; then
    while kill -0 "$last" 2>/dev/null; do sleep 0.05; done
fi
rm -rf "$1"
"#;

/// How one kind of server is run, and found.
pub trait Kind: Sized + Send + Sync + 'static {
    /// Its name, which is that of its folder of programs.
    const NAME: &'static str;
    /// The variable that tells where one runs that is not ours.
    const GIVEN: &'static str;

    /// One on free ports.
    fn new() -> Self;

    /// Where clients find it.
    fn address(&self) -> String;

    /// Writes what it needs into its folder; once.
    fn prepare(&self, programs: &Path, folder: &Path);

    /// What starts it.
    fn command(&self, programs: &Path, folder: &Path) -> Command;

    /// Whether it answers.
    fn answers(&self) -> bool;

    /// The process to be killed, where that is not the one that was started.
    fn process(&self, _folder: &Path) -> Option<Pid> {
        None
    }

    /// Where those are that the tests of the process share.
    fn shared() -> &'static Shared<Self>;
}

/// Servers that the tests of a process share: starting one takes longer than most tests do.
pub struct Shared<K> {
    /// It lasts as long as the process.
    lasting: OnceLock<Server<K>>,
    /// It is killed, by one test after the other.
    mortal: Mutex<Option<Server<K>>>,
}

impl<K> Shared<K> {
    pub(crate) const fn new() -> Self {
        Shared { lasting: OnceLock::new(), mortal: Mutex::new(None) }
    }
}

/// A server for one test at a time, which may kill it.
pub struct Mortal<K: 'static>(MutexGuard<'static, Option<Server<K>>>);

impl<K> Deref for Mortal<K> {
    type Target = Server<K>;

    fn deref(&self) -> &Server<K> {
        self.0.as_ref().expect("it was started")
    }
}

/// A server that a test uses: its own, or one that runs already.
pub struct Server<K>(Place<K>);

enum Place<K> {
    Own(Own<K>),
    /// Somebody else's.
    Given(String),
}

/// A server that a test owns, or shares with the other tests of its process.
struct Own<K> {
    kind: K,
    folder: PathBuf,
    programs: PathBuf,
    running: Mutex<Option<Child>>,
    guardian: Mutex<Child>,
}

/// Where what runs was put.
fn programs(name: &str) -> PathBuf {
    let folder = std::env::var_os("FEEDMILL_SERVERS")
        .map_or_else(|| PathBuf::from(format!("/var/tmp/feedmill-servers-{}", geteuid())), PathBuf::from);
    let folder = folder.join(name);
    assert!(folder.join("complete").exists(), "there is no {name} in {}: run `make servers` first", folder.display());
    folder
}

/// As many ports that nobody listens on.
pub(crate) fn free_ports<const N: usize>() -> [u16; N] {
    let listeners = [(); N].map(|()| TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap().port())
}

/// Writes `template` with its marks filled in.
pub(crate) fn fill(path: &Path, template: &str, marks: &[(&str, &str)]) {
    let filled = marks.iter().fold(template.to_owned(), |text, (mark, with)| text.replace(&format!("@{mark}@"), with));
    fs::write(path, filled).unwrap();
}

/// The program `java`, and that this machine has it.
pub(crate) fn java() -> PathBuf {
    let of_home = std::env::var_os("JAVA_HOME").map(|home| Path::new(&home).join("bin/java"));
    of_home.filter(|java| java.exists()).unwrap_or_else(|| PathBuf::from("java"))
}

impl<K: Kind> Server<K> {
    /// One of the test's own, which answers.
    pub fn start() -> Self {
        Server(Place::Own(Own::start(K::new())))
    }

    /// The one of all tests of the process, or the one that the kind's variable names.
    pub fn shared() -> &'static Self {
        K::shared().lasting.get_or_init(|| match std::env::var(K::GIVEN) {
            Ok(address) => Server(Place::Given(address)),
            Err(_) => Server::start(),
        })
    }

    /// The one of the tests of the process that kill it, or make it slow: they take turns. It runs, with what others have left.
    pub fn mortal() -> Mortal<K> {
        let mut server = K::shared().mortal.lock().unwrap_or_else(PoisonError::into_inner);
        match &*server {
            None => *server = Some(Server::start()),
            // A test that failed has left it as it was at that moment.
            Some(server) if !server.own().is_running() => server.start_again(),
            Some(server) => server.thaw(),
        }
        Mortal(server)
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
        self.own().signal(Signal::SIGSTOP);
    }

    /// It goes on.
    pub fn thaw(&self) {
        self.own().signal(Signal::SIGCONT);
    }

    /// Where clients find it.
    pub(crate) fn place(&self) -> String {
        match &self.0 {
            Place::Own(own) => own.kind.address(),
            Place::Given(address) => address.clone(),
        }
    }

    /// What it is.
    pub(crate) fn kind(&self) -> &K {
        &self.own().kind
    }

    fn own(&self) -> &Own<K> {
        match &self.0 {
            Place::Own(own) => own,
            Place::Given(address) => panic!("the server at {address} is not the test's own"),
        }
    }
}

impl<K: Kind> Own<K> {
    /// Starts a new one, and waits until it answers.
    fn start(kind: K) -> Self {
        let programs = programs(K::NAME);
        let folder = tempfile::Builder::new().prefix("feedmill-server-").tempdir().unwrap().keep();
        // Some refuse to run as root, and are run as somebody else.
        fs::set_permissions(&folder, Permissions::from_mode(0o755)).unwrap();
        let guardian = Command::new("sh")
            .args(["-c", GUARDIAN, "guardian"])
            .arg(&folder)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .unwrap();
        kind.prepare(&programs, &folder);
        let own = Own { kind, folder, programs, running: Mutex::default(), guardian: Mutex::new(guardian) };
        own.start_again();
        own
    }

    /// Starts it on what it left.
    fn start_again(&self) {
        let mut running = self.running();
        assert!(running.is_none(), "{} runs already", K::NAME);
        let log = File::options().create(true).append(true).open(self.log()).unwrap();
        let mut command = self.kind.command(&self.programs, &self.folder);
        command.stdin(Stdio::null()).stdout(log.try_clone().unwrap()).stderr(log).process_group(0);
        let child = running.insert(command.spawn().unwrap());
        self.guard(child.id());
        let since = Instant::now();
        while !self.kind.answers() {
            let ended = child.try_wait().unwrap();
            let waits = ended.is_none() && since.elapsed() < START_MAX;
            assert!(waits, "{} does not answer ({ended:?}); it said: …{}", K::NAME, self.told());
            std::thread::sleep(PAUSE);
        }
        // Now it is known, where it is not the one that was started.
        self.guard(self.pid(child).as_raw().unsigned_abs());
    }

    /// Ends it as a crash does.
    fn kill(&self) {
        let mut running = self.running();
        let mut child = running.take().expect("it runs");
        let _ = kill(self.pid(&child), Signal::SIGKILL);
        child.wait().unwrap();
    }

    fn signal(&self, signal: Signal) {
        let running = self.running();
        kill(self.pid(running.as_ref().expect("it runs")), signal).unwrap();
    }

    fn pid(&self, child: &Child) -> Pid {
        self.kind.process(&self.folder).unwrap_or_else(|| Pid::from_raw(child.id().cast_signed()))
    }

    fn guard(&self, pid: u32) {
        let mut guardian = self.guardian.lock().unwrap_or_else(PoisonError::into_inner);
        writeln!(guardian.stdin.as_mut().unwrap(), "{pid}").unwrap();
    }

    /// Whether it runs; one that has ended by itself is let go of.
    fn is_running(&self) -> bool {
        let mut running = self.running();
        running.take_if(|child| child.try_wait().unwrap().is_some());
        running.is_some()
    }

    fn running(&self) -> MutexGuard<'_, Option<Child>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn log(&self) -> PathBuf {
        self.folder.join("log")
    }

    fn told(&self) -> String {
        let mut log = File::open(self.log()).unwrap();
        let _ = log.seek(SeekFrom::End(-TOLD)).or_else(|_| log.rewind().map(|()| 0));
        let mut told = Vec::new();
        log.read_to_end(&mut told).unwrap();
        String::from_utf8_lossy(&told).into_owned()
    }
}

impl<K> Drop for Own<K> {
    fn drop(&mut self) {
        let mut guardian = self.guardian.lock().unwrap_or_else(PoisonError::into_inner);
        drop(guardian.stdin.take());
        // It is our child until it is waited for, and a guardian waits until it is gone.
        if let Some(mut child) = self.running.lock().unwrap_or_else(PoisonError::into_inner).take() {
            let _ = child.wait();
        }
        let _ = guardian.wait();
    }
}
