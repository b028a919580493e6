//! The slot and its acknowledgement: nothing is retained without need, nothing acknowledged too early.

use feedmill_model::Lsn;
use tokio_postgres::Client;

use crate::postgres::Postgres;
use crate::system::System;

/// A position that PostgreSQL tells.
async fn lsn(sql: &Client, what: &str) -> Lsn {
    let row = sql.query_one(&format!("SELECT ({what})::text"), &[]).await.unwrap();
    row.get::<_, String>(0).parse().unwrap()
}

async fn confirmed(sql: &Client) -> Lsn {
    lsn(sql, "SELECT confirmed_flush_lsn FROM pg_replication_slots WHERE slot_name = 'feedmill'").await
}

/// Waits until the slot keeps no log from before this moment.
async fn slot_moves_on(system: &System, sql: &Client) {
    let target = lsn(sql, "pg_current_wal_lsn()").await;
    system.until("the slot has moved on", async |_| confirmed(sql).await >= target).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c01_the_slot_moves_on_while_only_others_write() {
    let postgres = Postgres::new(&[]).await;
    let system = System::start_on(&postgres, &[]).await;
    let (ada, sql) = (system.register("ada").await, postgres.superuser("feedmill").await);
    sql.batch_execute("CREATE TABLE audit (n int, note text)").await.unwrap();
    for _ in 0..3 {
        let rows = "INSERT INTO audit SELECT n, repeat('x', 100) FROM generate_series(1, 20000) AS n";
        sql.batch_execute(rows).await.unwrap();
        slot_moves_on(&system, &sql).await;
    }
    let (tweet, token) = system.tweet(&ada, "after the others").await;
    assert_eq!(system.home(&ada, Some(&token)).await, [tweet]);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c02_a_quiet_database_beside_a_busy_one_retains_no_log() {
    let postgres = Postgres::new(&[]).await;
    let mut system = System::start_on(&postgres, &[]).await;
    let ada = system.register("ada").await;
    postgres.database("busy", "postgres").await;
    let busy = postgres.superuser("busy").await;
    busy.batch_execute("CREATE TABLE orders (n int, note text)").await.unwrap();
    let write = "INSERT INTO orders SELECT n, repeat('x', 100) FROM generate_series(1, 20000) AS n";
    busy.batch_execute(write).await.unwrap();
    // What the server says of its own accord is enough.
    slot_moves_on(&system, &busy).await;

    system.interrupt();
    system.settings.extend(["--heartbeat-seconds", "1"].map(str::to_owned));
    system.go().await;
    let sql = postgres.superuser("feedmill").await;
    sql.batch_execute("SELECT pg_create_logical_replication_slot('observer', 'pgoutput')").await.unwrap();
    let heartbeats = "SELECT count(*) FROM pg_logical_slot_peek_binary_changes('observer', NULL, NULL, \
                      'proto_version', '1', 'publication_names', 'feedmill', 'messages', 'true') \
                      WHERE position('feedmill'::bytea IN data) > 0 AND get_byte(data, 0) = ascii('M')";
    system
        .until("heartbeats come", async |_| sql.query_one(heartbeats, &[]).await.unwrap().get::<_, i64>(0) >= 2)
        .await;
    busy.batch_execute(write).await.unwrap();
    slot_moves_on(&system, &busy).await;
    let (tweet, token) = system.tweet(&ada, "heartbeats are no posts").await;
    assert_eq!(system.home(&ada, Some(&token)).await, [tweet]);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c03_nothing_is_acknowledged_before_it_is_durable() {
    let postgres = Postgres::new(&[]).await;
    let mut system = System::start_on(&postgres, &[]).await;
    let (ada, sql) = (system.register("ada").await, postgres.superuser("feedmill").await);
    let mut expected = Vec::new();
    for round in 0..3 {
        for n in 0..20 {
            let (tweet, token) = system.tweet(&ada, &format!("tweet {round}.{n}")).await;
            expected.insert(0, tweet);
            // The log is asked after the slot, and only grows; it tells where it is from its first batch on.
            assert_eq!(system.get_after(&token, "/api/timeline", Some(&ada)).await.status, 200);
            let confirmed = confirmed(&sql).await;
            let durable = system.metric("feedmill_log_lsn").await;
            assert!(confirmed.0 as f64 <= durable, "{confirmed} is acknowledged, but only {durable} is durable");
        }
        system.kill();
        system.go().await;
        system.until("all posts show", async |system| system.home(&ada, None).await == expected).await;
    }
    system.verified().await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn c04_what_was_received_and_is_not_durable_is_not_acknowledged() {
    let postgres = Postgres::new(&[]).await;
    let mut system = System::start_on(&postgres, &[]).await;
    let (ada, sql) = (system.register("ada").await, postgres.superuser("feedmill").await);
    let (first, token) = system.tweet(&ada, "first").await;
    assert_eq!(system.home(&ada, Some(&token)).await, std::slice::from_ref(&first));
    system.interrupt();
    // The stream goes on, and the change log does not.
    system.failpoints = Some("log_append_before=sleep(120000)".to_owned());
    system.spawn().await.unwrap();
    let mut expected = vec![first];
    for n in 0..10 {
        let insert = format!(
            "INSERT INTO tweets (id, user_id, content, conversation_id)
                SELECT id, {}, 'number {n}', id FROM feedmill_id() AS id RETURNING id",
            ada.id
        );
        expected.insert(0, sql.query_one(&insert, &[]).await.unwrap().get::<_, i64>(0).to_string());
    }
    let end = lsn(&sql, "pg_current_wal_flush_lsn()").await;
    let stage = async |system: &System, name: &str| {
        let health = system.get("/health", None).await.body;
        let stages = health["stages"].as_array().unwrap().clone();
        let stage = stages.into_iter().find(|stage| stage["name"] == name).unwrap();
        stage["lsn"].as_str().and_then(|lsn| lsn.parse::<Lsn>().ok())
    };
    system.until("all is received", async |system| stage(system, "stream").await >= Some(end)).await;
    let (acknowledged, durable) = (confirmed(&sql).await, stage(&system, "log").await);
    assert!(Some(acknowledged) <= durable && acknowledged < end, "{acknowledged} of {durable:?}, {end} is received");
    system.kill();
    system.failpoints = None;
    system.go().await;
    assert_eq!(system.home(&ada, None).await, expected);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c05_statuses_go_out_in_the_middle_of_a_large_transaction() {
    let settings = ["wal_sender_timeout = 1500ms", "logical_decoding_work_mem = 64kB"];
    let postgres = Postgres::new(&settings).await;
    let system = System::start_on(&postgres, &[]).await;
    let (ada, sql) = (system.register("ada").await, postgres.superuser("feedmill").await);
    let walsender = "SELECT active_pid FROM pg_replication_slots WHERE slot_name = 'feedmill'";
    // What a token asks for has come by the stream, so it is there.
    let (first, token) = system.tweet(&ada, "before it").await;
    assert_eq!(system.home(&ada, Some(&token)).await, std::slice::from_ref(&first));
    let before: Option<i32> = sql.query_one(walsender, &[]).await.unwrap().get(0);
    let rows = "SET session_replication_role = replica; \
                INSERT INTO blocks SELECT 1000000 + n, 2000000 + n % 7 FROM generate_series(1, 200000) AS n";
    sql.batch_execute(rows).await.unwrap();
    slot_moves_on(&system, &sql).await;
    // One connection from end to end, though it does not live long without a status.
    let after: Option<i32> = sql.query_one(walsender, &[]).await.unwrap().get(0);
    assert!(before.is_some() && before == after, "{before:?} {after:?}\n{}", postgres.log());
    let (tweet, token) = system.tweet(&ada, "after it").await;
    assert_eq!(system.home(&ada, Some(&token)).await, [tweet, first]);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c06_a_slot_that_has_moved_on_without_us_is_refused() {
    let postgres = Postgres::new(&[]).await;
    let mut system = System::start_on(&postgres, &[]).await;
    let ada = system.register("ada").await;
    system.interrupt();
    let sql = postgres.superuser("feedmill").await;
    let lost = format!(
        "INSERT INTO tweets (id, user_id, content, conversation_id) SELECT id, {}, 'lost', id FROM feedmill_id() AS id",
        ada.id
    );
    sql.batch_execute(&lost).await.unwrap();
    sql.batch_execute("SELECT pg_replication_slot_advance('feedmill', pg_current_wal_lsn())").await.unwrap();
    let printed = system.expect_start_failure().await;
    assert!(printed.contains("slot feedmill") && printed.contains("beyond"), "{printed}");
}
