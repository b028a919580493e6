//! `feedmill import`, from the outside: the binary, with a real PostgreSQL.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking"
)]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::{Arc, Weak};
use std::time::{Duration, Instant};

use feedmill_connectors::postgres::{Cluster, Source, schema};
use tokio::sync::Mutex;
use tokio_postgres::Client;
use tokio_postgres::config::Host;

/// Nothing that a test waits for takes longer, also on a busy machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Times on whole days of 2010, so that what is shifted is seen.
const USERS: &str = "id,username,display_name,email,created_at_ms
7,ada,Ada L.,ada@example.com,1262304000000
8,ben,\"Ben, \"\"B.\"\"\",,1262304000000
9,çelik,Çelik,c@example.com,1262390400000
";
const TWEETS: &str = "id,user_id,reply_to_id,content,created_at_ms
100,7,,first,1262390400000
90,8,80,a reply that stands before what it answers,1262476800000
80,7,100,a reply,1262476800000
70,9,,\"lines
and 🦀\",1262476800000
";
const FOLLOWS: &str = "follower,following,created_at_ms
8,7,1262390400000
9,7,1262390400000
8,7,1262476800000
";
const LIKES: &str = "user_id,tweet_id,created_at_ms
7,90,1262563200000
8,100,1262563200000
";

/// One cluster for all tests; stopped when the last one that uses it ends.
static SERVER: Mutex<Weak<Server>> = Mutex::const_new(Weak::new());

struct Server {
    cluster: Option<Cluster>,
    superuser: Source,
    source: Source,
    folder: tempfile::TempDir,
}

impl Server {
    async fn get() -> Arc<Server> {
        let mut shared = SERVER.lock().await;
        if let Some(server) = shared.upgrade() {
            return server;
        }
        // PostgreSQL may run as another user.
        let folder = tempfile::Builder::new().permissions(Permissions::from_mode(0o755)).tempdir().unwrap();
        let cluster = Cluster::start(&folder.path().join("postgres"), LIMIT).await.unwrap();
        let (source, superuser) = (cluster.source().clone(), cluster.superuser().clone());
        let server = Arc::new(Server { cluster: Some(cluster), superuser, source, folder });
        *shared = Arc::downgrade(&server);
        server
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let Some(cluster) = self.cluster.take() else { return };
        // The test's own runtime may be the one that is ending.
        let stop = move || tokio::runtime::Runtime::new().unwrap().block_on(cluster.stop(Duration::from_secs(10)));
        if std::thread::spawn(stop).join().is_err() {
            eprintln!("the cluster in {} could not be stopped", self.folder.path().display());
        }
    }
}

/// A prepared database of its own, and a folder for files.
struct World {
    server: Arc<Server>,
    source: Source,
    folder: PathBuf,
}

impl World {
    async fn new(name: &str) -> World {
        let server = Server::get().await;
        let superuser = server.superuser.connect("test").await.unwrap();
        superuser.batch_execute(&format!("CREATE DATABASE {name} OWNER feedmill")).await.unwrap();
        let source = server.source.with_database(name);
        schema::prepare(&source).await.unwrap();
        let folder = server.folder.path().join(name).join("net");
        std::fs::create_dir_all(&folder).unwrap();
        World { server, source, folder }
    }

    async fn sql(&self) -> Client {
        self.source.connect("test").await.unwrap()
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        let path = self.folder.join(name);
        std::fs::write(&path, text).unwrap();
        path
    }

    /// The network above, in the folder `net`.
    fn files(&self) -> Vec<(&'static str, PathBuf)> {
        vec![
            ("--users", self.file("users.csv", USERS)),
            ("--tweets", self.file("tweets.csv", TWEETS)),
            ("--follows", self.file("follows.csv", FOLLOWS)),
            ("--likes", self.file("likes.csv", LIKES)),
        ]
    }

    fn command(&self, files: &[(&str, PathBuf)], flags: &[&str]) -> Command {
        let config = self.source.config();
        let Some(Host::Unix(socket)) = config.get_hosts().first() else { panic!("no socket") };
        let (user, name) = (config.get_user().unwrap(), config.get_dbname().unwrap());
        let url = format!("host='{}' user={user} dbname={name}", socket.display());
        let mut command = Command::new(env!("CARGO_BIN_EXE_feedmill"));
        command.args(["import", "--database-url", &url, "--data"]).arg(self.server.folder.path());
        for (flag, path) in files {
            command.arg(flag).arg(path);
        }
        command.args(flags).stdin(Stdio::null());
        command
    }

    async fn import(&self, files: &[(&str, PathBuf)], flags: &[&str]) -> Printed {
        run(self.command(files, flags)).await
    }
}

#[derive(Debug)]
struct Printed {
    code: Option<i32>,
    out: String,
    error: String,
}

async fn run(mut command: Command) -> Printed {
    let Output { status, stdout, stderr } =
        tokio::task::spawn_blocking(move || command.output().unwrap()).await.unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    Printed { code: status.code(), out: text(stdout), error: text(stderr) }
}

impl Printed {
    #[track_caller]
    fn done(self) -> Self {
        assert_eq!(self.code, Some(0), "{self:?}");
        self
    }

    /// Read, inserted, already there, skipped.
    #[track_caller]
    fn counts(&self, kind: &str) -> [u64; 4] {
        let line = self.out.lines().find(|line| line.starts_with(kind)).unwrap_or_else(|| panic!("{self:?}"));
        let numbers: Vec<u64> = line.split_whitespace().skip(1).map(|number| number.parse().unwrap()).collect();
        numbers.try_into().unwrap()
    }
}

/// Every row of every table that an import writes, as text.
async fn rows(sql: &Client) -> Vec<String> {
    let mut all = Vec::new();
    for table in ["imports", "imported_tweets", "accounts", "users", "activity", "tweets", "follows", "likes"] {
        let query = format!("SELECT '{table} ' || t::text FROM {table} AS t ORDER BY 1");
        all.extend(sql.query(&query, &[]).await.unwrap().iter().map(|row| row.get::<_, String>(0)));
    }
    all
}

async fn number(sql: &Client, query: &str) -> i64 {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn an_import_keeps_what_the_files_say_and_a_second_one_changes_nothing() {
    let world = World::new("import_twice").await;
    let sql = world.sql().await;
    let printed = world.import(&world.files(), &[]).await.done();
    for (kind, counts) in
        [("users", [3, 3, 0, 0]), ("tweets", [4, 4, 0, 0]), ("follows", [3, 2, 1, 0]), ("likes", [2, 2, 0, 0])]
    {
        assert_eq!(printed.counts(kind), counts, "{printed:?}");
    }
    let ms = 1_262_476_800_000_i64;
    let first = (ms - 86_400_000) << 16;
    let query = "SELECT id, user_id, content, reply_to_id, conversation_id FROM tweets ORDER BY id";
    let tweets: Vec<(i64, i64, String, Option<i64>, i64)> = sql
        .query(query, &[])
        .await
        .unwrap()
        .iter()
        .map(|row| (row.get(0), row.get(1), row.get(2), row.get(3), row.get(4)))
        .collect();
    assert_eq!(
        tweets,
        [
            (first, 7, "first".to_owned(), None, first),
            (ms << 16, 7, "a reply".to_owned(), Some(first), first),
            (ms << 16 | 1, 8, "a reply that stands before what it answers".to_owned(), Some(ms << 16), first),
            (ms << 16 | 2, 9, "lines\nand 🦀".to_owned(), None, ms << 16 | 2),
        ]
    );
    assert_eq!(number(&sql, "SELECT tweet_id FROM likes WHERE user_id = 7").await, ms << 16 | 1);
    assert_eq!(number(&sql, "SELECT count(*) FROM ONLY tweets_default").await, 0, "the quarter has its partition");
    assert_eq!(
        number(&sql, "SELECT feedmill_micros(created_at) / 1000 FROM users WHERE id = 9").await,
        1_262_390_400_000
    );
    assert_eq!(number(&sql, "SELECT count(*) FROM activity WHERE day = (now() AT TIME ZONE 'UTC')::date").await, 3);
    let emails = "SELECT count(*) FROM accounts WHERE email IS NOT NULL AND password_hash IS NULL";
    assert_eq!(number(&sql, emails).await, 2);

    let before = rows(&sql).await;
    let printed = world.import(&world.files(), &[]).await.done();
    assert_eq!(printed.counts("follows"), [3, 0, 3, 0]);
    assert_eq!(rows(&sql).await, before);
    // Of the names, one changed later; and what an import leaves can be deleted: neither is undone, nor made a conflict.
    sql.batch_execute(
        "UPDATE accounts SET username = 'ada2' WHERE user_id = 7;
         UPDATE tweets SET content = '', deleted_at = now() WHERE user_id = 9",
    )
    .await
    .unwrap();
    let before = rows(&sql).await;
    world.import(&world.files(), &[]).await.done();
    assert_eq!(rows(&sql).await, before);
}

#[tokio::test]
async fn times_are_shifted_once_and_later_files_use_the_same_shift() {
    let world = World::new("import_until_now").await;
    let sql = world.sql().await;
    let files = world.files();
    // The likes, which are newest, come in a run of their own.
    let (likes, others) = files.split_last().unwrap();
    let newest = "SELECT (extract(epoch FROM now() - max(created_at)) * 1000)::bigint FROM tweets";
    world.import(others, &["--until-now"]).await.done();
    let ago = number(&sql, newest).await;
    assert!((0..LIMIT.as_millis() as i64).contains(&ago), "{ago}");
    let shift = number(&sql, "SELECT shift_ms FROM imports WHERE name = 'net'").await;
    let first = (1_262_390_400_000 + shift) << 16;
    assert_eq!(number(&sql, "SELECT min(id) FROM tweets").await, first);

    // A day later than now: these are refused, for the shift is kept.
    let printed = world.import(std::slice::from_ref(likes), &["--until-now"]).await;
    assert_eq!(printed.code, Some(1));
    assert!(printed.error.contains("likes.csv:2: its time") && printed.error.contains("2 bad lines"), "{printed:?}");
    let earlier = ("--likes", world.file("likes.csv", &LIKES.replace("1262563200000", "1262390400000")));
    world.import(&[earlier], &[]).await.done();
    assert_eq!(number(&sql, "SELECT min(tweet_id) FROM likes").await, first);
    let before = rows(&sql).await;
    world.import(&files[..3], &["--until-now"]).await.done();
    assert_eq!(rows(&sql).await, before);
    assert_eq!(number(&sql, "SELECT shift_ms FROM imports").await, shift);

    // What was begun without a shift does not get one.
    world.import(others, &["--name", "as it is", "--skip-bad"]).await.done();
    let printed = world.import(others, &["--name", "as it is", "--until-now"]).await;
    assert_eq!(printed.code, Some(1));
    assert!(printed.error.contains("without --until-now"), "{printed:?}");
}

#[tokio::test]
async fn bad_lines_are_told_with_file_line_and_reason_and_nothing_is_imported_with_them() {
    let world = World::new("import_bad").await;
    let sql = world.sql().await;
    sql.batch_execute(
        "INSERT INTO accounts (user_id, username, email) VALUES (1000, 'Taken', 'Taken@example.com');
         INSERT INTO users (id, username, display_name) VALUES (1000, 'Taken', 'Taken')",
    )
    .await
    .unwrap();
    let users = format!(
        "{USERS}10,a b,x,,1262304000000\n11,taken,x,,1262304000000\n12,new,x,taken@example.com,1262304000000\n\
         13,ADA,x,,1262304000000\n7,other,x,,1262304000000\n1000,thousand,x,,1262304000000\nx,y,x,,1\n14,late,x,,99999999999999\n"
    );
    let tweets = format!(
        "{TWEETS}1,7,,{},1262304000000\n2,70,,nobody,1262304000000\n3,7,4,unknown,1262304000000\n5,7,3,of a bad one,1262304000001\n\
         6,7,100,earlier,1262304000000\n7,7,,short\n",
        "x".repeat(281)
    );
    let follows = format!("{FOLLOWS}7,7,1262304000000\n7,11,1262304000000\n7,x,1262304000000\n9,8,1262304000000\n");
    let likes = format!("{LIKES}7,3,1262563200000\n9,90,1262563200000\n");
    let files = [
        ("--users", world.file("users.csv", &users)),
        ("--tweets", world.file("tweets.csv", &tweets)),
        ("--follows", world.file("follows.csv", &follows)),
        ("--likes", world.file("likes.csv", &likes)),
    ];
    let before = rows(&sql).await;
    let printed = world.import(&files, &[]).await;
    assert_eq!(printed.code, Some(1), "{printed:?}");
    assert!(printed.error.contains("18 bad lines, so nothing was imported"), "{printed:?}");
    for (line, reason) in [
        ("users.csv:5", "`a b`"),
        ("users.csv:6", "taken by user 1000"),
        ("users.csv:7", "e-mail address taken@example.com is taken by user 1000"),
        ("users.csv:8", "ADA is taken by line 2"),
        ("users.csv:9", "on line 2 already, and differs"),
        ("users.csv:10", "another user 1000, who is called Taken"),
        ("users.csv:11", "`x`"),
        ("users.csv:12", "ahead of now"),
        ("tweets.csv:7", "281 characters"),
        ("tweets.csv:8", "user 70 is neither"),
        ("tweets.csv:9", "tweet 4, which is neither"),
        ("tweets.csv:10", "tweet 3, which is later, or on a bad line"),
        ("tweets.csv:11", "tweet 100, which is later"),
        ("tweets.csv:12", "4 fields"),
        ("follows.csv:5", "user 7 follows themselves"),
        ("follows.csv:6", "user 11 is neither"),
        ("follows.csv:7", "following is `x`"),
        ("likes.csv:4", "tweet 3 is neither"),
    ] {
        let told = |told: &str| told.contains(&format!("/{line}: ")) && told.contains(reason);
        assert!(printed.error.lines().any(told), "{line} {reason}\n{}", printed.error);
    }
    assert_eq!(rows(&sql).await, before);

    let printed = world.import(&files, &["--skip-bad"]).await.done();
    assert_eq!(printed.error.lines().filter(|line| line.contains(".csv:")).count(), 18, "{printed:?}");
    for (kind, counts) in
        [("users", [11, 3, 0, 8]), ("tweets", [10, 4, 0, 6]), ("follows", [7, 3, 1, 3]), ("likes", [4, 3, 0, 1])]
    {
        assert_eq!(printed.counts(kind), counts, "{printed:?}");
    }
    let before = rows(&sql).await;
    world.import(&files, &["--skip-bad"]).await.done();
    assert_eq!(rows(&sql).await, before);
}

#[tokio::test]
async fn follows_alone_make_the_users_they_name() {
    let world = World::new("import_follows").await;
    let sql = world.sql().await;
    let follows = [("--follows", world.file("follows.csv", "follower,following\n1,2\n3,2\n2,1\n"))];
    let printed = world.import(&follows, &["--inactive"]).await.done();
    assert_eq!(printed.counts("users"), [0, 3, 0, 0]);
    assert_eq!(printed.counts("follows"), [3, 3, 0, 0]);
    let named = "SELECT count(*) FROM users JOIN accounts ON user_id = id AND 'u' || id = accounts.username";
    assert_eq!(number(&sql, named).await, 3);
    assert_eq!(number(&sql, "SELECT count(*) FROM activity").await, 0);
    let newest_first = "SELECT follower_id FROM follows WHERE following_id = 2 ORDER BY created_at DESC LIMIT 1";
    assert_eq!(number(&sql, newest_first).await, 3);
    let before = rows(&sql).await;
    world.import(&follows, &[]).await.done();
    assert_eq!(rows(&sql).await, before);

    let more = [("--follows", world.file("more.csv", "follower,following\n1,-5\n4,1\n"))];
    let printed = world.import(&more, &["--skip-bad"]).await.done();
    assert!(printed.error.contains("more.csv:2: user -5 cannot be named"), "{printed:?}");
    assert_eq!(number(&sql, "SELECT count(*) FROM follows WHERE follower_id = 4").await, 1);
}

#[tokio::test]
async fn wrong_files_and_flags_are_told() {
    let world = World::new("import_wrong").await;
    let missing = [("--users", world.folder.join("missing.csv"))];
    let no_column = [("--users", world.file("users.csv", "id,username\n1,a\n"))];
    for (files, flags, code, told) in [
        (&[][..], &[][..], 2, "required"),
        (&missing, &[], 1, "missing.csv"),
        (&no_column, &[], 1, "no column `display_name`"),
        (&no_column, &["--name", " "], 1, "--name is empty"),
    ] {
        let printed = world.import(files, flags).await;
        assert_eq!(printed.code, Some(code), "{printed:?}");
        assert!(printed.error.contains(told), "{printed:?}");
    }
    assert_eq!(rows(&world.sql().await).await, [""; 0]);
}

#[tokio::test]
async fn an_import_that_is_killed_is_completed_by_the_next_one() {
    let world = World::new("import_killed").await;
    let mut sql = world.sql().await;
    let watcher = world.sql().await;
    for table in ["tweets", "follows", "likes"] {
        // The import comes to a lock that it cannot have, and waits.
        let lock = sql.transaction().await.unwrap();
        lock.batch_execute(&format!("LOCK TABLE {table} IN EXCLUSIVE MODE")).await.unwrap();
        let mut command = world.command(&world.files(), &["--until-now"]);
        let mut import = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
        let waits = "SELECT count(*) FROM pg_stat_activity
                     WHERE datname = current_database() AND wait_event_type = 'Lock'
                       AND application_name = 'feedmill import'";
        let deadline = Instant::now() + LIMIT;
        while number(&watcher, waits).await == 0 {
            assert!(Instant::now() < deadline && import.try_wait().unwrap().is_none(), "it does not come to {table}");
            tokio::task::yield_now().await;
        }
        import.kill().unwrap();
        import.wait().unwrap();
        lock.rollback().await.unwrap();
        assert_eq!(number(&watcher, &format!("SELECT count(*) FROM {table}")).await, 0);
        assert_eq!(number(&watcher, "SELECT count(*) FROM users").await, 3);
    }
    world.import(&world.files(), &["--until-now"]).await.done();
    let completed = rows(&watcher).await;

    // Another system that is given the same shift, and is not disturbed, has the same rows.
    let undisturbed = World::new("import_undisturbed").await;
    let sql = undisturbed.sql().await;
    let record = watcher.query_one("SELECT shift_ms, created_at::text FROM imports", &[]).await.unwrap();
    let (shift, at): (i64, String) = (record.get(0), record.get(1));
    sql.execute("INSERT INTO imports VALUES ('net', $1, $2::text::timestamptz)", &[&shift, &at]).await.unwrap();
    undisturbed.import(&undisturbed.files(), &["--until-now"]).await.done();
    assert_eq!(rows(&sql).await, completed);
}

/// A file of the data that this project does not bring along; says so where it is absent.
fn shared_data(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared/data").join(name);
    if !path.exists() {
        eprintln!("skipped: {} is not on this machine", path.display());
        return None;
    }
    Some(path)
}

#[tokio::test]
async fn a_real_follow_graph_is_imported() {
    let Some(follows) = shared_data("twitter-follows.csv") else { return };
    let world = World::new("import_twitter").await;
    let sql = world.sql().await;
    let printed = world.import(&[("--follows", follows)], &[]).await.done();
    assert_eq!(printed.counts("users"), [0, 13_688, 0, 0]);
    assert_eq!(printed.counts("follows"), [68_328, 68_328, 0, 0]);
    let most = "SELECT max(n) FROM (SELECT count(*) AS n FROM follows GROUP BY following_id) AS f";
    assert_eq!(number(&sql, most).await, 567);
    assert_eq!(number(&sql, "SELECT count(DISTINCT created_at) FROM follows").await, 68_328);
}

#[tokio::test]
async fn a_network_with_text_is_imported_until_now() {
    let Some(folder) = shared_data("snb") else { return };
    let world = World::new("import_snb").await;
    let sql = world.sql().await;
    let files =
        [("--users", "users.csv"), ("--tweets", "tweets.csv"), ("--follows", "follows.csv"), ("--likes", "likes.csv")]
            .map(|(flag, file)| (flag, folder.join(file)));
    let printed = world.import(&files, &["--until-now"]).await.done();
    for (kind, count) in [("users", 222), ("tweets", 8_142), ("follows", 1_650), ("likes", 1_383)] {
        assert_eq!(printed.counts(kind), [count, count, 0, 0]);
    }
    assert_eq!(number(&sql, "SELECT count(*) FROM imports WHERE name = 'snb'").await, 1);
    assert_eq!(number(&sql, "SELECT count(*) FROM tweets WHERE reply_to_id IS NOT NULL").await, 2_218);
    assert_eq!(number(&sql, "SELECT count(*) FROM tweets_default").await, 0);
    let before = rows(&sql).await;
    // The likes alone know which tweets they mean.
    let printed = world.import(&files[3..], &["--until-now"]).await.done();
    assert_eq!(printed.counts("likes"), [1_383, 0, 1_383, 0]);
    world.import(&files, &[]).await.done();
    assert_eq!(rows(&sql).await, before);
}
