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
    assert_eq!(system.metric("feedmill_log_sorted_early_total").await, 1.0, "it was sorted while it was received");
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c25_c27_a_large_transaction_is_sorted_without_what_was_rolled_back_or_lost() {
    let postgres = Postgres::new(&["logical_decoding_work_mem = 1MB"]).await;
    let system = System::start_on(&postgres, &[]).await;
    let (ada, superuser) = (system.register("ada").await, postgres.superuser("feedmill").await);
    run(&superuser, &tweets(&ada, "liked", 200)).await;
    let users = "SET session_replication_role = replica; \
                 INSERT INTO accounts (user_id, username) SELECT n, 'u' || n FROM generate_series(0, 4999) AS n; \
                 INSERT INTO users (id, username, display_name) SELECT n, 'u' || n, 'U' FROM generate_series(0, 4999) AS n";
    run(&superuser, users).await;
    // Pairs of users and tweets by number, 5,000 of each tweet.
    let likes = |from: u32, count: u32| {
        format!(
            "INSERT INTO likes (user_id, tweet_id) SELECT n % 5000, id FROM generate_series({from}, {from} + {count} - 1) AS n \
             JOIN (SELECT id, row_number() OVER (ORDER BY id) - 1 AS place FROM tweets) AS t ON place = n / 5000"
        )
    };
    let is_received = async |system: &System| system.metric("feedmill_capture_spilled_bytes").await > 0.0;
    // The connection is lost in the middle of it, and it comes again.
    run(&superuser, &format!("BEGIN; {}; SAVEPOINT a; {}", likes(0, 200_000), likes(500_000, 100_000))).await;
    system.until("it is being received", is_received).await;
    let other = postgres.superuser("feedmill").await;
    run(&other, "SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE active").await;
    system.until("it is being received again", is_received).await;
    run(&superuser, &format!("ROLLBACK TO a; {}; SAVEPOINT b", likes(200_000, 150_000))).await;
    run(&superuser, &format!("{}; ROLLBACK TO b; {}; COMMIT", likes(600_000, 100_000), likes(350_000, 7))).await;
    // One that comes to nothing.
    run(&superuser, &format!("BEGIN; {}; ROLLBACK", likes(800_000, 200_000))).await;
    let last: i64 =
        superuser.query_one("SELECT id FROM tweets ORDER BY id OFFSET 70 LIMIT 1", &[]).await.unwrap().get(0);
    let path = format!("/api/tweets/{last}");
    system
        .until("the last likes are counted", async |system| {
            let body = system.get(&path, None).await.body;
            body.get("tweet").unwrap_or(&body)["counts"]["likes"] == 7
        })
        .await;
    // Unless the server did not tell of the rollback: that depends on how far it was when the connection came again.
    let untold = system.metric("feedmill_capture_untold_rollbacks_total").await;
    let sorted = system.metric("feedmill_log_sorted_early_total").await;
    assert!(sorted == 1.0 || untold > 0.0, "it was sorted while it was received");
    system
        .until("nothing is left of it", async |system| system.metric("feedmill_capture_spilled_bytes").await == 0.0)
        .await;
    system.verified().await;
}

/// The server forgets to tell of a rollback when it had put the changes on its own disk before it sent them, more of them
/// than it reads again at once (4,096).
#[tokio::test(flavor = "multi_thread")]
async fn c27_a_rollback_that_the_server_does_not_tell_is_asked_for() {
    let postgres = Postgres::new(&STREAMS).await;
    let system = System::start_on(&postgres, &[]).await;
    let (ada, large, other) = (system.register("ada").await, postgres.sql().await, postgres.sql().await);
    let add = |content: &str, count| tweets(&ada, content, count);
    run(&large, &format!("BEGIN; {}; SAVEPOINT a; {}", add("kept 1", 10), add("gone 1", 10_000))).await;
    // What lies before this commit is not sent again but as part of what is committed later.
    run(&other, &add("other", 1)).await;
    system.until("the other's shows", async |system| count(system, "ada").await == 1).await;
    let ask = async |sql: &str| -> i64 { other.query_one(sql, &[]).await.unwrap().get(0) };
    let lost = ask("SELECT active_pid::bigint FROM pg_replication_slots").await;
    run(&other, &format!("SELECT pg_terminate_backend({lost})")).await;
    let again = format!("SELECT count(*) FROM pg_replication_slots WHERE active_pid <> {lost}");
    system.until("the connection came again", async |_| ask(&again).await == 1).await;
    let sent = "SELECT stream_count FROM pg_stat_replication_slots";
    let before = ask(sent).await;
    // Enough to be sent before the rollback, by a subtransaction inside, so that `a` has nothing in memory.
    run(&large, &format!("SAVEPOINT b; {}", add("gone 2", 2_000))).await;
    system.until("it is being sent again", async |_| ask(sent).await > before).await;
    run(&large, &format!("ROLLBACK TO a; {}; COMMIT", add("kept 2", 1_000))).await;
    system.until("what was kept shows", async |system| count(system, "ada").await == 1_011).await;
    assert!(system.metric("feedmill_capture_untold_rollbacks_total").await > 0.0, "the server has told it");
    system.verified().await;
}

/// A commit is sent as soon as it is in the server's log, before it is over for the server when it waits for a standby.
#[tokio::test(flavor = "multi_thread")]
async fn c27_what_was_rolled_back_is_known_while_the_commit_waits_for_a_standby() {
    let waits = [STREAMS[0], "synchronous_standby_names = 'nobody'", "synchronous_commit = local"];
    let postgres = Postgres::new(&waits).await;
    let system = System::start_on(&postgres, &[]).await;
    let (ada, large) = (system.register("ada").await, postgres.sql().await);
    let superuser = postgres.superuser("feedmill").await;
    let add = |content: &str| tweets(&ada, content, 1_000);
    run(&large, &format!("SET synchronous_commit = on; BEGIN; {}; SAVEPOINT a; {}", add("kept 1"), add("gone"))).await;
    // The newest transaction that there is.
    run(&large, &format!("ROLLBACK TO a; SAVEPOINT b; {}", add("kept 2"))).await;
    let commit = tokio::spawn(async move { run(&large, "COMMIT").await });
    system.until("what was kept shows", async |system| count(system, "ada").await == 2_000).await;
    assert!(!commit.is_finished(), "it did not wait for a standby");
    assert!(!system.log().contains("the replication connection was lost"), "{}", system.log());
    run(&superuser, "ALTER SYSTEM SET synchronous_standby_names = ''").await;
    run(&superuser, "SELECT pg_reload_conf()").await;
    commit.await.unwrap();
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
