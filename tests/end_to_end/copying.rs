//! The first copy: while others write, cut short, not made twice, without traffic, in parallel.

#[cfg(feature = "failpoints")]
use serde_json::{Value, json};

use crate::postgres::Postgres;
use crate::system::System;

/// A server with the schema and some users and tweets in it, which no Feedmill reads.
async fn filled(settings: &[&str]) -> Postgres {
    let postgres = Postgres::new(settings).await;
    let mut system = System::start_on(&postgres, &[]).await;
    system.interrupt();
    let sql = postgres.sql().await;
    sql.batch_execute(
        "SELECT pg_drop_replication_slot('feedmill');
         INSERT INTO accounts (user_id, username) SELECT n, 'user' || n FROM generate_series(1, 2000) AS n;
         INSERT INTO users (id, username, display_name)
             SELECT n, 'user' || n, 'User ' || n FROM generate_series(1, 2000) AS n;
         INSERT INTO activity (user_id, day) SELECT n, now()::date FROM generate_series(1, 50) AS n;
         INSERT INTO follows (follower_id, following_id) SELECT n, n % 7 + 100 FROM generate_series(1, 50) AS n;
         INSERT INTO tweets (id, user_id, content, conversation_id)
             SELECT id, n % 40 + 80, 'tweet ' || n, id
             FROM (SELECT n, feedmill_id() AS id FROM generate_series(1, 10000) AS n) AS numbered",
    )
    .await
    .unwrap();
    postgres
}

/// A system in a new folder on the server; not started yet.
fn on(postgres: &Postgres, settings: &[&str]) -> System {
    let mut system = System::new(settings);
    system.database_url = Some(postgres.url());
    system
}

/// The step `copy` of `/ready`.
#[cfg(feature = "failpoints")]
async fn copy_step(system: &System) -> serde_json::Value {
    let ready = system.get("/ready", None).await.body;
    let steps = ready["stages"].as_array().unwrap();
    steps.iter().find(|step| step["name"] == "copy").unwrap().clone()
}

/// Starts a system without waiting for it to be ready, and gives it back when its copy has rows.
#[cfg(feature = "failpoints")]
async fn copying(system: &mut System) {
    system.listen_at_once().await;
    system.until("rows are being copied", async |system| copy_step(system).await["completed"] != 0).await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn c16_a_transaction_that_commits_during_the_copy_appears_once() {
    let postgres = filled(&[]).await;
    let mut system = on(&postgres, &["--copy-connections", "1"]);
    // The first chunk is taken, the second waits while the transaction commits.
    system.failpoints = Some("copy_chunk_before=1*off->1*sleep(5000)->off".to_owned());
    copying(&mut system).await;
    let sql = postgres.sql().await;
    sql.batch_execute(
        "BEGIN;
         INSERT INTO tweets (id, user_id, content, conversation_id)
             SELECT id, 1, 'while the copy runs', id FROM (SELECT feedmill_id() AS id) AS one;
         INSERT INTO follows (follower_id, following_id) VALUES (1, 2), (2, 1);
         INSERT INTO likes (user_id, tweet_id) SELECT 3, id FROM tweets WHERE user_id = 1;
         COMMIT",
    )
    .await
    .unwrap();
    assert_eq!(copy_step(&system).await["done"], false, "the transaction was to commit before the copy ends");
    system.until("it is ready", async |system| system.get("/ready", None).await.status == 200).await;
    // Ready is at the copy's position or later: what committed since may come by the stream.
    let mut tweets = Value::Null;
    let shown = "what committed during the copy is shown";
    system
        .until(shown, async |system| {
            tweets = system.get("/api/users/user1/tweets", None).await.body;
            tweets["tweets"] != json!([])
        })
        .await;
    assert_eq!(tweets["tweets"].as_array().unwrap().len(), 1, "{tweets}");
    let profile = system.get("/api/users/user1", None).await.body;
    let counts = &profile.get("user").unwrap_or(&profile)["counts"];
    assert_eq!((&counts["tweets"], &counts["followers"]), (&1.into(), &1.into()), "{profile}");
    let liked = async |system: &System| {
        let tweets = system.get("/api/users/user1/tweets", None).await.body;
        tweets["tweets"][0]["counts"]["likes"] == 1
    };
    system.until("its like is counted", liked).await;
    system.verified().await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_copy_that_is_ended_by_a_deadlock_begins_again() {
    // Who waits longest is ended: the copy, which waits when the other begins to.
    let postgres = filled(&["deadlock_timeout=3s"]).await;
    let mut system = on(&postgres, &[]);
    // Between the slot, which waits for whoever has locked a table so, and the copy's own locks.
    system.failpoints = Some("copy_slot_after=1*sleep(2000)->off".to_owned());
    system.listen_at_once().await;
    let (sql, truncating) = (postgres.sql().await, postgres.superuser("feedmill").await);
    let is = async |what: &str| sql.query_one(&format!("SELECT EXISTS ({what})"), &[]).await.unwrap().get::<_, bool>(0);
    let made = "SELECT FROM pg_replication_slots WHERE slot_name = 'feedmill' AND confirmed_flush_lsn IS NOT NULL";
    system.until("the slot is there", async |_| is(made).await).await;
    truncating.batch_execute("SET deadlock_timeout = '1h'; BEGIN; TRUNCATE retweets").await.unwrap();
    let waits =
        "SELECT FROM pg_locks WHERE relation = 'retweets'::regclass AND mode = 'AccessShareLock' AND NOT granted";
    system.until("the copy waits", async |_| is(waits).await).await;
    // It has locked what comes before.
    truncating.batch_execute("TRUNCATE likes; COMMIT").await.unwrap();
    system.until("it is ready", async |system| system.get("/ready", None).await.status == 200).await;
    assert!(system.log().contains("deadlock detected"), "{}", system.log());
    system.verified().await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn c17_rows_changed_during_copy_appear_once() {
    let postgres = filled(&[]).await;
    let mut system = on(&postgres, &["--copy-connections", "2"]);
    // Each chunk takes its time, so that many writes fall into the copy.
    system.failpoints = Some("copy_chunk_before=sleep(150)".to_owned());
    system.listen_at_once().await;
    let sql = postgres.sql().await;
    let mut during = 0;
    for round in 0.. {
        sql.batch_execute(&format!(
            "INSERT INTO tweets (id, user_id, content, conversation_id)
                 SELECT id, 5, 'new {round}', id FROM (SELECT feedmill_id() AS id) AS one;
             UPDATE tweets SET content = 'changed {round}'
                 WHERE id IN (SELECT id FROM tweets ORDER BY hashint8(id + {round}) LIMIT 3);
             DELETE FROM tweets WHERE id IN (SELECT id FROM tweets ORDER BY hashint8(id - {round}) LIMIT 2);
             UPDATE follows SET following_id = following_id + 10 WHERE follower_id = {round} % 50 + 1
                 AND following_id < 1900"
        ))
        .await
        .unwrap();
        let step = copy_step(&system).await;
        during += i32::from(step["completed"] != 0 && step["done"] == false);
        if step["done"] == true {
            break;
        }
    }
    assert!(during > 2, "only {during} rounds of writes fell into the copy");
    system.until("it is ready", async |system| system.get("/ready", None).await.status == 200).await;
    system.verified().await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn c18_a_copy_that_was_killed_starts_over_and_shows_nothing() {
    let postgres = filled(&[]).await;
    let mut system = on(&postgres, &["--copy-connections", "1"]);
    system.failpoints = Some("copy_chunk_after=1*off->pause".to_owned());
    copying(&mut system).await;
    // Something is copied, and nothing is served.
    assert_eq!(system.get("/api/users/user1", None).await.status, 503);
    assert_eq!(system.get("/ready", None).await.status, 503);
    // What was copied is gone when it starts over, and something else is there.
    let sql = postgres.sql().await;
    sql.batch_execute(
        "DELETE FROM tweets WHERE user_id = 81; UPDATE users SET display_name = 'Somebody else' WHERE id = 2",
    )
    .await
    .unwrap();
    system.kill();
    system.failpoints = None;
    system.go().await;
    assert!(system.log().contains("a first copy did not end: starting over"), "{}", system.log());
    let tweets = system.get("/api/users/user81/tweets", None).await.body;
    assert_eq!(tweets["tweets"].as_array().unwrap().len(), 0, "{tweets}");
    let profile = system.get("/api/users/user2", None).await.body;
    assert_eq!(profile.get("user").unwrap_or(&profile)["displayName"], "Somebody else");
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c19_a_finished_copy_is_not_made_again() {
    let postgres = filled(&[]).await;
    let mut system = on(&postgres, &[]);
    system.go().await;
    system.interrupt();
    // To copy it would have to read the tables.
    let tables = "users, tweets, follows, likes, retweets, blocks, mutes, activity, read_marks";
    let superuser = postgres.superuser("feedmill").await;
    superuser.batch_execute(&format!("REVOKE SELECT ON {tables} FROM feedmill")).await.unwrap();
    let denied = postgres.sql().await.query_one("SELECT count(*) FROM tweets", &[]).await.unwrap_err();
    assert_eq!(denied.code(), Some(&tokio_postgres::error::SqlState::INSUFFICIENT_PRIVILEGE));
    system.go().await;
    let insert = "INSERT INTO tweets (id, user_id, content, conversation_id)
                      SELECT id, 1, 'after the restart', id FROM (SELECT feedmill_id() AS id) AS one";
    superuser.batch_execute(insert).await.unwrap();
    system
        .until("what is written after the restart shows", async |system| {
            let tweets = system.get("/api/users/user1/tweets", None).await.body;
            tweets["tweets"].as_array().is_some_and(|tweets| tweets.len() == 1)
        })
        .await;
    superuser.batch_execute(&format!("GRANT SELECT ON {tables} TO feedmill")).await.unwrap();
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c20_copy_hands_over_to_the_stream_without_any_traffic() {
    // Nothing but what Feedmill itself does, which is to read.
    let postgres = filled(&["autovacuum = off"]).await;
    let mut system = on(&postgres, &[]);
    system.go().await;
    let served = async |system: &System| {
        let health = system.get("/health", None).await.body;
        let home = health["stages"].as_array()?.iter().find(|stage| stage["name"] == "home")?;
        home["timeMs"].as_u64()
    };
    let first = served(&system).await.expect("it has a time");
    system.until("idle ticks come", async |system| served(system).await >= Some(first + 2_000)).await;
    system.verified().await;
    system.kill();
    system.go().await;
    system.verified().await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn c21_large_tables_are_copied_in_parallel_with_progress() {
    const FOLLOWS: usize = 400_000;
    let postgres = filled(&[]).await;
    let superuser = postgres.superuser("feedmill").await;
    superuser
        .batch_execute(&format!(
            "SET session_replication_role = replica;
             INSERT INTO follows (follower_id, following_id)
                 SELECT n / 1000 + 100, n % 1000 + 1000 FROM generate_series(0, {FOLLOWS} - 1) AS n
                 ON CONFLICT DO NOTHING"
        ))
        .await
        .unwrap();
    let mut system = on(&postgres, &["--copy-connections", "3", "--workers", "2"]);
    system.failpoints = Some("copy_chunk_before=sleep(30)".to_owned());
    system.listen_at_once().await;
    let (mut seen, mut connections) = (Vec::new(), 0);
    loop {
        let step = copy_step(&system).await;
        if step["done"] == true {
            break;
        }
        if let Some(percent) = step["percent"].as_f64() {
            seen.push((percent, step["etaSeconds"].as_u64()));
        }
        connections =
            connections.max(postgres.backends("application_name = 'feedmill-copy' AND query LIKE 'COPY%'").await.len());
    }
    assert!(connections >= 2, "only {connections} connections copied at a time");
    assert!(seen.is_sorted_by(|one, other| one.0 <= other.0), "{seen:?}");
    assert!(seen.iter().any(|(percent, eta)| (1.0..100.0).contains(percent) && eta.is_some()), "{seen:?}");
    system.until("it is ready", async |system| system.get("/ready", None).await.status == 200).await;
    let (expected, copied) =
        (system.metric("feedmill_copy_rows_expected").await, system.metric("feedmill_copy_rows_total").await);
    assert!(copied > FOLLOWS as f64, "{copied}");
    assert!((expected - copied).abs() < copied / 4.0, "{expected} rows were expected, {copied} came");
    system.verified().await;
}

/// A folder that was named by mistake, while the system that the slot belongs to does not run.
#[tokio::test(flavor = "multi_thread")]
async fn a_slot_that_the_folder_knows_nothing_of_is_left_alone() {
    let postgres = filled(&[]).await;
    let mut system = on(&postgres, &[]);
    system.go().await;
    system.interrupt();
    let mistyped = on(&postgres, &[]);
    let printed = mistyped.expect_start_failure().await;
    assert!(printed.contains("the replication slot feedmill is there already"), "{printed}");
    assert!(printed.contains("pg_drop_replication_slot('feedmill')"), "{printed}");
    system.go().await;
    system.verified().await;
    // A log that was removed from its folder is copied again, and the slot made anew.
    system.interrupt();
    std::fs::remove_dir_all(system.data().join("log")).unwrap();
    system.go().await;
    system.verified().await;
}
