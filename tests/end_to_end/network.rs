//! A small social network with text, imported; and the same when processes die in the middle of it.

use std::process::{Command, Stdio};

use crate::system::{System, shared_data};

const FILES: [(&str, &str); 4] =
    [("--users", "users.csv"), ("--follows", "follows.csv"), ("--tweets", "tweets.csv"), ("--likes", "likes.csv")];

fn import(system: &System, folder: &str) -> Command {
    let mut command = system.prepare(&["import", "--until-now"]);
    for (flag, file) in FILES {
        command.arg(flag).arg(format!("{folder}/{file}"));
    }
    command.stdout(Stdio::null()).stderr(Stdio::null());
    command
}

async fn run(mut command: Command) {
    let status = tokio::task::spawn_blocking(move || command.status().unwrap()).await.unwrap();
    assert!(status.success(), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_imported_network_equals_its_sql_before_and_after_a_kill() {
    let Some(folder) = shared_data("snb") else { return };
    let mut system = System::start(&["--workers", "2"]).await;
    run(import(&system, &folder)).await;
    let printed = system.verified().await;
    for (view, rows) in [("profile", 222), ("followers", 1_650), ("tweet", 8_142), ("home ", 1)] {
        let line = printed.lines().find(|line| line.starts_with(view)).unwrap();
        let compared: u64 = line[20..].split_whitespace().next().unwrap().parse().unwrap();
        assert!(compared >= rows, "{printed}");
    }
    system.kill();
    system.go().await;
    system.verified().await;
}

/// Keeps an import waiting when it comes to the likes, and not before.
async fn lock_likes(sql: &mut tokio_postgres::Client) -> tokio_postgres::Transaction<'_> {
    let lock = sql.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE likes IN EXCLUSIVE MODE").await.unwrap();
    lock
}

async fn until_import_waits(system: &System, watcher: &tokio_postgres::Client) {
    let query =
        "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND backend_type = 'client backend'";
    let waits = async |_: &System| watcher.query_one(query, &[]).await.unwrap().get::<_, i64>(0) > 0;
    system.until("the import has come to the likes", waits).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_goes_on_while_feedmill_is_killed_and_started_again() {
    let Some(folder) = shared_data("snb") else { return };
    let mut system = System::start(&[]).await;
    let mut sql = system.sql().await;
    let watcher = system.sql().await;
    let lock = lock_likes(&mut sql).await;
    let mut importing = import(&system, &folder).spawn().unwrap();
    until_import_waits(&system, &watcher).await;
    system.kill();
    lock.rollback().await.unwrap();
    system.go().await;
    let status = tokio::task::spawn_blocking(move || importing.wait().unwrap()).await.unwrap();
    assert!(status.success(), "{status}");
    let printed = system.verified().await;
    assert!(printed.lines().any(|line| line.starts_with("tweet ") && line.contains(" 8142 ")), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_import_that_was_killed_is_completed_by_the_next_one() {
    let Some(folder) = shared_data("snb") else { return };
    let mut system = System::start(&[]).await;
    let mut sql = system.sql().await;
    let watcher = system.sql().await;
    let lock = lock_likes(&mut sql).await;
    let mut first = import(&system, &folder).spawn().unwrap();
    until_import_waits(&system, &watcher).await;
    first.kill().unwrap();
    first.wait().unwrap();
    system.kill();
    lock.rollback().await.unwrap();
    let likes = "SELECT count(*) FROM likes";
    assert_eq!(watcher.query_one(likes, &[]).await.unwrap().get::<_, i64>(0), 0);
    let shift = "SELECT shift_ms FROM imports";
    let shifted: i64 = watcher.query_one(shift, &[]).await.unwrap().get(0);

    system.go().await;
    run(import(&system, &folder)).await;
    assert_eq!(watcher.query_one(likes, &[]).await.unwrap().get::<_, i64>(0), 1_383);
    assert_eq!(watcher.query_one(shift, &[]).await.unwrap().get::<_, i64>(0), shifted);
    system.verified().await;
}
