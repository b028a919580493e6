//! The private cluster: made, taken over, stopped, recovered; and how connections log in.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    dead_code,
    reason = "a test fails by panicking; fixtures serve several tests"
)]

mod fixture;

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use feedmill_connectors::postgres::{Cluster, ClusterError, Replication, Source};
use fixture::{LIMIT, directory, within};
use nix::errno::Errno;
use nix::sys::signal::{Signal, kill};
use nix::unistd::{Pid, geteuid, getpgid};

const STOP: Duration = Duration::from_secs(20);

async fn start(dir: &Path) -> Cluster {
    Cluster::start(dir, LIMIT).await.unwrap_or_else(|error| panic!("{error}"))
}

async fn count(cluster: &Cluster) -> i64 {
    let client = cluster.source().connect("test").await.unwrap();
    client.query_one("SELECT count(*) FROM kept", &[]).await.unwrap().get(0)
}

#[tokio::test]
async fn a_cluster_is_made_taken_over_recovered_and_stopped() {
    let dir = directory();
    let dir = dir.path().join("a dir, \"quoted\"");
    fs::create_dir_all(dir.join("data.new.1/base")).unwrap();
    fs::set_permissions(&dir, fs::Permissions::from_mode(0o711)).unwrap();
    let cluster = start(&dir).await;
    assert!(!cluster.taken_over());
    assert!(!dir.join("data.new.1").exists(), "what a killed initdb left is gone");
    let client = cluster.source().connect("test").await.unwrap();
    client.batch_execute("CREATE TABLE kept AS SELECT 1 AS n").await.unwrap();
    let settings = client
        .query_one(
            "SELECT current_setting('wal_level'), current_setting('fsync'), current_setting('synchronous_commit'), \
             current_setting('listen_addresses'), current_setting('TimeZone'), current_user::text",
            &[],
        )
        .await
        .unwrap();
    let settings: Vec<String> = (0..6).map(|at| settings.get(at)).collect();
    assert_eq!(settings, ["logical", "on", "on", "", "UTC", "feedmill"]);
    // Nobody but its user reaches the socket, and the terminal's Ctrl-C is not for it.
    assert_eq!(fs::metadata(dir.join("socket")).unwrap().permissions().mode() & 0o777, 0o700);
    let pid = Pid::from_raw(cluster.pid());
    assert_eq!(getpgid(Some(pid)), Ok(pid));

    drop(cluster);
    let cluster = start(&dir).await;
    assert_eq!((cluster.taken_over(), cluster.pid()), (true, pid.as_raw()));
    client.query_one("SELECT n FROM kept", &[]).await.expect("it never went away");
    let (one, other) = tokio::join!(start(&dir), start(&dir));
    assert_eq!((one.pid(), other.pid()), (pid.as_raw(), pid.as_raw()));
    cluster.stop(STOP).await.unwrap();
    one.stop(STOP).await.expect("one that is stopped already");
    assert!(client.query_one("SELECT 1", &[]).await.is_err());

    let cluster = start(&dir).await;
    assert!(!cluster.taken_over());
    assert_eq!(count(&cluster).await, 1);
    let killed = cluster.pid();
    kill(Pid::from_raw(killed), Signal::SIGKILL).unwrap();
    cluster.stop(STOP).await.expect("one that is dead is stopped");
    let recovered = start(&dir).await;
    assert_eq!(count(&recovered).await, 1);
    assert_ne!(recovered.pid(), killed);

    // A session in a transaction does not hold up a stop.
    let open = recovered.source().connect("test").await.unwrap();
    open.batch_execute("BEGIN; INSERT INTO kept VALUES (2)").await.unwrap();
    recovered.stop(STOP).await.unwrap();
    let cluster = start(&dir).await;
    assert_eq!(count(&cluster).await, 1);
    // No time at all for a fast stop: at once then, and the next start recovers.
    cluster.stop(Duration::ZERO).await.unwrap();
    let cluster = start(&dir).await;
    assert_eq!(count(&cluster).await, 1);
    cluster.stop(STOP).await.unwrap();
}

#[tokio::test]
async fn starts_at_the_same_time_end_at_one_server() {
    let dir = directory();
    let dir = dir.path().join("pg");
    start(&dir).await.stop(STOP).await.unwrap();
    let (one, other) = tokio::join!(start(&dir), start(&dir));
    assert_eq!(one.pid(), other.pid());
    assert_eq!([&one, &other].iter().filter(|cluster| cluster.taken_over()).count(), 1);
    one.stop(STOP).await.unwrap();
    let pid = Pid::from_raw(other.pid());
    other.stop(STOP).await.unwrap();
    assert_eq!(kill(pid, None), Err(Errno::ESRCH));
}

#[tokio::test]
async fn a_directory_that_will_not_do_is_refused_with_advice() {
    let dir = directory();
    let refused = async |dir: &Path| match Cluster::start(dir, LIMIT).await {
        Ok(_) => panic!("started in {}", dir.display()),
        Err(error) => error,
    };
    let long = dir.path().join("x".repeat(90));
    assert!(matches!(refused(&long).await, ClusterError::SocketPath { .. }));

    let foreign = dir.path().join("foreign");
    fs::create_dir_all(foreign.join("data/photos")).unwrap();
    assert!(matches!(refused(&foreign).await, ClusterError::Foreign { .. }));

    let newer = dir.path().join("newer");
    fs::create_dir_all(newer.join("data")).unwrap();
    fs::write(newer.join("data/PG_VERSION"), "99\n").unwrap();
    let error = refused(&newer).await;
    assert!(matches!(error, ClusterError::OtherVersion { version: 99, .. }), "{error}");

    if geteuid().is_root() {
        let closed = dir.path().join("closed");
        fs::create_dir(&closed).unwrap();
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
        let error = refused(&closed.join("pg")).await;
        let closed = closed.canonicalize().unwrap();
        assert!(matches!(&error, ClusterError::Unreachable { blocked, .. } if *blocked == closed), "{error}");
        assert!(error.to_string().contains("--data /var/lib/feedmill"), "{error}");
    }
}

#[tokio::test]
async fn a_server_that_cannot_start_says_why() {
    let dir = directory();
    let dir = dir.path().join("pg");
    start(&dir).await.stop(STOP).await.unwrap();
    fs::write(dir.join("data/postgresql.auto.conf"), "no_such_setting = on\n").unwrap();
    let error = Cluster::start(&dir, LIMIT).await.err().unwrap();
    assert!(matches!(error, ClusterError::Exited { .. }), "{error}");
    assert!(error.to_string().contains("no_such_setting"), "{error}");
}

#[tokio::test]
async fn logging_in() {
    // Normalized before it is hashed (SASLprep): the no-break space becomes a space, the ligature its letters.
    const PASSWORD: &str = "pä\u{a0}ss ﬁ 'quoted'";
    let dir = directory();
    let dir = dir.path().join("pg");
    let cluster = start(&dir).await;
    let superuser = cluster.superuser().connect("test").await.unwrap();
    let quoted = PASSWORD.replace('\'', "''");
    let mut rules = String::new();
    for (role, encryption, method) in [
        ("by_scram", "scram-sha-256", "scram-sha-256"),
        ("by_md5", "md5", "md5"),
        ("in_the_clear", "scram-sha-256", "password"),
        ("nobody", "scram-sha-256", "reject"),
    ] {
        superuser
            .batch_execute(&format!(
                "SET password_encryption = '{encryption}'; CREATE ROLE {role} LOGIN REPLICATION PASSWORD '{quoted}'"
            ))
            .await
            .unwrap();
        rules += &format!("local all {role} {method}\n");
    }
    let file = dir.join("data/pg_hba.conf");
    fs::write(&file, rules + &fs::read_to_string(&file).unwrap()).unwrap();
    superuser.batch_execute("SELECT pg_reload_conf()").await.unwrap();
    within("the new rules", async {
        let mut pause = tokio::time::interval(Duration::from_millis(20));
        while Replication::connect(&cluster.source().with_user("nobody", PASSWORD), "test").await.is_ok() {
            pause.tick().await;
        }
    })
    .await;
    for role in ["by_scram", "by_md5", "in_the_clear"] {
        let source = cluster.source().with_user(role, PASSWORD);
        let mut replication = Replication::connect(&source, "test").await.unwrap_or_else(|error| panic!("{error}"));
        let user = replication.query("SELECT current_user").await.unwrap();
        assert_eq!(user, [[Some(role.to_owned())]]);
        source.connect("test").await.unwrap();
        let wrong = cluster.source().with_user(role, "s3cret");
        let error = Replication::connect(&wrong, "test").await.err().unwrap();
        assert!(!error.is_transient() && !error.to_string().contains("s3cret"), "{error}");
        assert!(!wrong.connect("test").await.unwrap_err().is_transient());
    }
    cluster.stop(STOP).await.unwrap();
    // Nobody listens any more: that may pass.
    let source: Source = format!("host='{}' user=feedmill", dir.join("socket").display()).parse().unwrap();
    assert!(Replication::connect(&source, "test").await.err().unwrap().is_transient());
    assert!(source.connect("test").await.unwrap_err().is_transient());
}
