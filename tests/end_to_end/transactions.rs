//! Transactions: in commit order, whole, however large.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use tokio_postgres::Client;

use crate::postgres::Postgres;
use crate::system::{Account, System};

/// A server that streams every transaction of more than a few rows while it is in progress.
const STREAMS: [&str; 1] = ["logical_decoding_work_mem = 64kB"];

/// SQL that inserts so many tweets of a user, all with the same content, one by one as far as the log is concerned.
fn tweets(by: &Account, content: &str, count: u32) -> String {
    format!(
        "INSERT INTO tweets (id, user_id, content, conversation_id) SELECT id, {}, '{content}', id \
         FROM (SELECT feedmill_id() AS id FROM generate_series(1, {count})) AS ids",
        by.id
    )
}

async fn run(sql: &Client, statements: &str) {
    sql.batch_execute(statements).await.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
}

/// How many tweets the user has, as served.
async fn count(system: &System, name: &str) -> u64 {
    let profile = system.get(&format!("/api/users/{name}"), None).await.body;
    profile.get("user").unwrap_or(&profile)["counts"]["tweets"].as_u64().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn c22_transactions_apply_in_commit_order() {
    let postgres = Postgres::new(&STREAMS).await;
    let system = System::start_on(&postgres, &[]).await;
    let (ada, ben, eve) = (system.register("ada").await, system.register("ben").await, system.register("eve").await);
    let (first, second) = (postgres.sql().await, postgres.sql().await);
    let follow = format!("({}, {})", eve.id, ada.id);
    run(&second, &format!("INSERT INTO follows (follower_id, following_id) VALUES {follow}")).await;
    // It begins first, and much of it is sent before the other one begins.
    run(&first, &format!("BEGIN; {}", tweets(&ada, "early", 2_000))).await;
    system
        .until("it is in progress", async |system| system.metric("feedmill_capture_open_transactions").await >= 1.0)
        .await;
    run(&second, &format!("BEGIN; {}", tweets(&ben, "late", 2_000))).await;
    run(&second, &format!("DELETE FROM follows WHERE (follower_id, following_id) = {follow}; COMMIT")).await;
    system.until("what committed first shows", async |system| count(system, "ben").await == 2_000).await;
    // The open one does not hold up others, and nothing of it shows.
    assert_eq!(count(&system, "ada").await, 0);
    assert!(!system.home(&eve, None).await.is_empty() || count(&system, "eve").await == 0);
    // The same row again: had its transaction been applied when it began, the deletion would have come after this.
    run(&first, &format!("INSERT INTO follows (follower_id, following_id) VALUES {follow}; COMMIT")).await;
    system.until("the last commit shows", async |system| count(system, "ada").await == 2_000).await;
    let following = system.get(&format!("/api/follows/{}/following", eve.id), None).await;
    assert_eq!(following.body["users"][0]["username"], "ada", "{following:?}");
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c26_a_huge_transaction_keeps_memory_bounded_and_others_readable() {
    const LIKES: i64 = 500_000;
    let postgres = Postgres::new(&["logical_decoding_work_mem = 1MB", "max_wal_size = 4GB"]).await;
    let system = Arc::new(System::start_on(&postgres, &[]).await);
    let (ada, superuser) = (system.register("ada").await, postgres.superuser("feedmill").await);
    run(&superuser, &tweets(&ada, "liked", 100)).await;
    let users = format!(
        "SET session_replication_role = replica; \
         INSERT INTO accounts (user_id, username) SELECT n, 'u' || n FROM generate_series(1, {0}) AS n; \
         INSERT INTO users (id, username, display_name) SELECT n, 'u' || n, 'U' FROM generate_series(1, {0}) AS n",
        LIKES / 100
    );
    run(&superuser, &users).await;
    let done = Arc::new(AtomicBool::new(false));
    let reader = {
        let (system, ada, done) = (Arc::clone(&system), ada.clone(), Arc::clone(&done));
        tokio::spawn(async move {
            let (mut memory, mut spilled, mut posts) = (0.0_f64, 0.0_f64, Vec::new());
            let mut pause = tokio::time::interval(Duration::from_millis(50));
            while !done.load(Ordering::Relaxed) {
                posts.push(system.tweet(&ada, "meanwhile").await.0);
                // Every read is answered, as old as it may be.
                assert_eq!(system.get("/api/timeline", Some(&ada)).await.status, 200);
                assert_eq!(system.get("/api/users/ada/tweets", None).await.status, 200);
                memory = memory.max(system.metric("feedmill_capture_memory_bytes").await);
                spilled = spilled.max(system.metric("feedmill_capture_spilled_bytes").await);
                pause.tick().await;
            }
            (memory, spilled, posts)
        })
    };
    let likes = "INSERT INTO likes (user_id, tweet_id) SELECT u.id, t.id FROM users u, tweets t \
                 WHERE t.content = 'liked' AND u.username LIKE 'u%'";
    assert_eq!(superuser.execute(likes, &[]).await.unwrap(), LIKES as u64);
    let tweet: i64 =
        superuser.query_one("SELECT min(id) FROM tweets WHERE content = 'liked'", &[]).await.unwrap().get(0);
    let path = format!("/api/tweets/{tweet}");
    system
        .until("all likes are counted", async |system| {
            let body = system.get(&path, None).await.body;
            body.get("tweet").unwrap_or(&body)["counts"]["likes"] == LIKES / 100
        })
        .await;
    done.store(true, Ordering::Relaxed);
    let (memory, spilled, posts) = reader.await.unwrap();
    assert!(memory <= f64::from(9 << 20), "{memory} bytes of open transactions in memory");
    assert!(spilled > 0.0, "nothing went to disk");
    system
        .until("every post shows", async |system| {
            let home = system.home(&ada, None).await;
            posts.iter().rev().take(100).eq(home.iter().take(posts.len().min(100)))
        })
        .await;
    assert_eq!(system.metric("feedmill_capture_spilled_bytes").await, 0.0);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c27_what_is_rolled_back_inside_a_transaction_never_shows() {
    let postgres = Postgres::new(&STREAMS).await;
    let mut system = System::start_on(&postgres, &[]).await;
    let (ada, sql) = (system.register("ada").await, postgres.sql().await);
    let large = |content: &str| tweets(&ada, content, 1_000);
    let steps = [
        "BEGIN".to_owned(),
        large("kept 1"),
        "SAVEPOINT a".to_owned(),
        large("gone 1"),
        "SAVEPOINT b".to_owned(),
        large("gone 2"),
        "RELEASE b".to_owned(),
        // A table that we could not read, had this been committed.
        "ALTER TABLE tweets RENAME COLUMN content TO words".to_owned(),
        large("gone 3").replace("content,", "words,"),
        "ROLLBACK TO a".to_owned(),
        large("kept 2"),
        "SAVEPOINT c; ALTER TABLE tweets ADD COLUMN mood text DEFAULT 'glad'".to_owned(),
        large("kept 3"),
        "RELEASE c; SAVEPOINT d; ALTER TABLE tweets DROP COLUMN mood".to_owned(),
        large("gone 4"),
        "ROLLBACK TO d".to_owned(),
        large("kept 4"),
        "COMMIT".to_owned(),
    ];
    for step in &steps {
        run(&sql, step).await;
    }
    system.until("what was kept shows", async |system| count(system, "ada").await == 4_000).await;
    // A transaction that is rolled back whole, with all that it did to the table, and one after it.
    run(&sql, "BEGIN; ALTER TABLE tweets RENAME COLUMN content TO words").await;
    run(&sql, &large("gone 5").replace("content,", "words,")).await;
    run(&sql, "ROLLBACK").await;
    run(&sql, &large("kept 5")).await;
    system.until("what was kept shows", async |system| count(system, "ada").await == 5_000).await;
    system.verified().await;
    system.kill();
    system.go().await;
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c28_messages_of_others_do_not_disturb() {
    let postgres = Postgres::new(&STREAMS).await;
    let mut system = System::start_on(&postgres, &[]).await;
    let (ada, sql) = (system.register("ada").await, postgres.sql().await);
    let mut expected = Vec::new();
    for round in 0..3 {
        run(&sql, "SELECT pg_logical_emit_message(false, 'other', repeat('x', 100000))").await;
        let large = tweets(&ada, "x", 500);
        run(
            &sql,
            &format!(
                "BEGIN; SELECT pg_logical_emit_message(true, 'other', 'a'); {large}; \
                            SELECT pg_logical_emit_message(true, 'other', repeat('b', 100000)); ROLLBACK"
            ),
        )
        .await;
        run(
            &sql,
            &format!("BEGIN; SELECT pg_logical_emit_message(true, 'other', 'c'); {}; COMMIT", tweets(&ada, "y", 1)),
        )
        .await;
        run(&sql, "SELECT pg_logical_emit_message(true, 'other', 'alone')").await;
        let newest: i64 = sql.query_one("SELECT max(id) FROM tweets", &[]).await.unwrap().get(0);
        expected.insert(0, newest.to_string());
        system.until("the post shows", async |system| system.home(&ada, None).await == expected).await;
        if round == 1 {
            system.kill();
            system.go().await;
        }
    }
    assert_eq!(system.home(&ada, None).await, expected);
    system.verified().await;
}
