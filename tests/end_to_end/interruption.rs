//! PostgreSQL restarts, connections die or stall, another process holds the slot.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::json;

use crate::postgres::Postgres;
use crate::proxy::Proxy;
use crate::system::{Account, System};

/// Waits until writes go through again: a pooled connection may find out only at its use that its server died.
async fn until_writable(system: &System, user: &Account) {
    let writes = async |system: &System| system.post("/api/follows/1", Some(user), json!({})).await.status == 404;
    system.until("a write goes through", writes).await;
}

/// The server process that streams the slot.
async fn walsender(postgres: &Postgres) -> Vec<i32> {
    postgres.backends("backend_type = 'walsender' AND application_name = 'feedmill-capture'").await
}

#[tokio::test(flavor = "multi_thread")]
async fn c10_a_stale_walsender_is_ended_and_the_stream_goes_on() {
    let postgres = Postgres::new(&[]).await;
    let proxy = Proxy::to(postgres.port).await;
    let mut system = System::new(&[]);
    system.database_url = Some(postgres.url_at("feedmill", "127.0.0.1", proxy.port, "feedmill"));
    system.go().await;
    let ada = system.register("ada").await;
    let (before, token) = system.tweet(&ada, "before").await;
    // It has come by the stream, so a walsender is there.
    assert_eq!(system.home(&ada, Some(&token)).await, std::slice::from_ref(&before));
    let stale = walsender(&postgres).await;
    assert_eq!(stale.len(), 1);
    // The network goes first, so the server is never told that the process has died.
    proxy.stall();
    system.kill();
    system.database_url = Some(postgres.url());
    assert_eq!(walsender(&postgres).await, stale);

    system.go().await;
    let (after, token) = system.tweet(&ada, "after").await;
    // It takes its time to see that the holder of the slot says nothing; until then what was there is served.
    let expected = [after, before];
    let shows = async |system: &System| system.get_after(&token, "/api/timeline", Some(&ada)).await.status == 200;
    system.until("the new post shows", shows).await;
    assert_eq!(system.home(&ada, Some(&token)).await, expected);
    let now = walsender(&postgres).await;
    assert!(now.len() == 1 && now != stale, "{stale:?}, then {now:?}");
    assert!(system.log().contains("ending a dead connection of ours"), "{}", system.log());
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c11_a_second_copy_on_the_same_slot_is_refused() {
    let postgres = Postgres::new(&[]).await;
    let mut first = System::start_on(&postgres, &[]).await;
    let ada = first.register("ada").await;
    let (one, _) = first.tweet(&ada, "one").await;
    first.interrupt();
    // The folder, copied: it has the same position in the same slot.
    let mut twin = System::new(&[]);
    twin.database_url.clone_from(&first.database_url);
    let copied = Command::new("cp").arg("-a").arg(first.data().join(".")).arg(twin.data()).status().unwrap();
    assert!(copied.success());
    first.go().await;
    // And a folder of its own, which knows nothing of the slot.
    let mut stranger = System::new(&[]);
    stranger.database_url.clone_from(&first.database_url);

    let printed = twin.expect_start_failure().await;
    // The other reads the slot, and perhaps has acknowledged more by now than was copied.
    assert!(printed.contains("is in use by feedmill-capture") || printed.contains("is an old copy"), "{printed}");
    let printed = stranger.expect_start_failure().await;
    assert!(printed.contains("the replication slot feedmill is there already"), "{printed}");
    assert!(printed.contains("reads the slot now"), "{printed}");
    let (two, token) = first.tweet(&ada, "two").await;
    assert_eq!(first.home(&ada, Some(&token)).await, [two, one]);
    first.verified().await;

    // Another program that reads the slot is named, and not ended; when it goes, all is well.
    first.interrupt();
    let mut other = postgres.command("pg_recvlogical");
    other.args(["--start", "--slot=feedmill", "--file=-", "--no-loop", "--status-interval=0", "--fsync-interval=0"]);
    other.args(["-o", "proto_version=1", "-o", "publication_names=feedmill", "-d", &postgres.url()]);
    let mut other = other.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    let reads = "application_name = 'pg_recvlogical' AND backend_type = 'walsender'";
    first.until("it reads the slot", async |_| !postgres.backends(reads).await.is_empty()).await;
    let printed = first.expect_start_failure().await;
    assert!(printed.contains("slot feedmill") && printed.contains("pg_recvlogical"), "{printed}");
    assert!(other.try_wait().unwrap().is_none(), "it was ended");
    other.kill().unwrap();
    other.wait().unwrap();
    first.go().await;
    first.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c12_a_crash_of_postgres_applies_nothing_twice() {
    let mut postgres = Postgres::new(&[]).await;
    let mut system = System::start_on(&postgres, &[]).await;
    let ada = system.register("ada").await;
    let mut expected = Vec::new();
    for round in 0..3 {
        for n in 0..5 {
            expected.insert(0, system.tweet(&ada, &format!("tweet {round}.{n}")).await.0);
        }
        postgres.stop_immediate();
        // On every second crash we are killed as well, so each side must recognise what it has.
        if round % 2 == 1 {
            system.kill();
        }
        postgres.start().await;
        if round % 2 == 1 {
            system.go().await;
        }
        until_writable(&system, &ada).await;
        system.until("all posts show, each once", async |system| system.home(&ada, None).await == expected).await;
        let profile = system.get("/api/users/ada", None).await.body;
        assert_eq!(profile.get("user").unwrap_or(&profile)["counts"]["tweets"], expected.len(), "{profile}");
        system.verified().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c14_restarts_and_stalls_of_the_network_are_outlived_and_the_lag_is_visible() {
    let mut postgres = Postgres::new(&[]).await;
    let proxy = Proxy::to(postgres.port).await;
    let mut system = System::new(&[]);
    system.database_url = Some(postgres.url_at("feedmill", "127.0.0.1", proxy.port, "feedmill"));
    system.go().await;
    let ada = system.register("ada").await;
    let id: i64 = ada.id.parse().unwrap();
    let (first, token) = system.tweet(&ada, "first").await;
    let mut expected = vec![first];
    assert_eq!(system.home(&ada, Some(&token)).await, expected);
    let post = async |postgres: &Postgres| {
        let insert = "INSERT INTO tweets (id, user_id, content, conversation_id)
                      SELECT n, $1, 'meanwhile', n FROM feedmill_id() AS n RETURNING id";
        postgres.sql().await.query_one(insert, &[&id]).await.unwrap().get::<_, i64>(0).to_string()
    };

    // Connections stay open, and nothing arrives.
    proxy.stall();
    expected.insert(0, post(&postgres).await);
    let is_late = async |system: &System| system.metric("feedmill_served_age_seconds").await > 2.5;
    system.until("the lag shows", is_late).await;
    // What is served is old, and served.
    assert_eq!(system.home(&ada, None).await, expected[1..]);
    proxy.go_on();
    let shows = async |system: &System| system.home(&ada, None).await == expected;
    system.until("what was written meanwhile shows", shows).await;
    let is_in_time = async |system: &System| system.metric("feedmill_served_age_seconds").await < 2.5;
    system.until("the lag is over", is_in_time).await;

    // The server goes away for longer than the first attempts to connect again.
    postgres.stop_immediate();
    let tries = async |system: &System| system.log().matches("trying again in").count() >= 4;
    system.until("it has tried to connect again, and again", tries).await;
    assert_eq!(system.home(&ada, None).await, expected);
    postgres.start().await;
    expected.insert(0, post(&postgres).await);
    let shows = async |system: &System| system.home(&ada, None).await == expected;
    system.until("what was written after the restart shows", shows).await;
    until_writable(&system, &ada).await;
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_postgres_says_what_it_tried() {
    let mut postgres = Postgres::new(&[]).await;
    postgres.stop_fast();
    let mut system = System::new(&[]);
    system.database_url = Some(postgres.url());
    let printed = system.expect_start_failure().await;
    assert!(printed.contains("could not connect to postgres://feedmill@127.0.0.1"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_while_postgres_is_away_serves_what_is_here_and_waits() {
    let mut postgres = Postgres::new(&[]).await;
    let mut system = System::start_on(&postgres, &[]).await;
    let ada = system.register("ada").await;
    let (before, token) = system.tweet(&ada, "before").await;
    assert_eq!(system.home(&ada, Some(&token)).await, std::slice::from_ref(&before));
    system.interrupt();
    postgres.stop_fast();
    system.listen().await;
    let tries = async |system: &System| system.log().matches("PostgreSQL is not ready").count() >= 2;
    system.until("it has tried again", tries).await;
    assert_eq!(system.home(&ada, None).await, std::slice::from_ref(&before));
    assert_eq!(system.get("/ready", None).await.status, 503);
    postgres.start().await;
    system.until("it is ready", async |system| system.get("/ready", None).await.status == 200).await;
    let (after, token) = system.tweet(&ada, "after").await;
    assert_eq!(system.home(&ada, Some(&token)).await, [after, before]);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_way_to_log_in_that_was_changed_is_waited_for_while_reads_go_on() {
    let postgres = Postgres::new(&[]).await;
    let system = System::start_on(&postgres, &[]).await;
    let ada = system.register("ada").await;
    let (before, token) = system.tweet(&ada, "before").await;
    assert_eq!(system.home(&ada, Some(&token)).await, std::slice::from_ref(&before));
    let superuser = postgres.superuser("postgres").await;
    // The address has no password.
    postgres.authenticate(&["host all all 127.0.0.1/32 scram-sha-256"]);
    postgres.reload();
    let end = "SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name LIKE 'feedmill-%'";
    system
        .until("it is told that a password is missing", async |system| {
            superuser.batch_execute(end).await.unwrap();
            system.log().contains("nothing is captured until this is mended")
        })
        .await;
    assert!(system.log().contains("password"), "{}", system.log());
    assert_eq!(system.home(&ada, None).await, std::slice::from_ref(&before), "what is there is served");
    postgres.authenticate(&["host all all 127.0.0.1/32 trust"]);
    postgres.reload();
    until_writable(&system, &ada).await;
    let (after, token) = system.tweet(&ada, "after").await;
    let shows = async |system: &System| system.get_after(&token, "/api/timeline", Some(&ada)).await.status == 200;
    system.until("the new post shows", shows).await;
    assert_eq!(system.home(&ada, Some(&token)).await, [after, before]);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_that_is_interrupted_leaves_no_postgresql_behind() {
    let mut system = System::start(&[]).await;
    system.interrupt();
    let pid_file = system.data().join("postgres/data/postmaster.pid");
    assert!(!pid_file.exists());
    system.listen().await;
    system.until("its PostgreSQL is starting", async |_| pid_file.exists()).await;
    assert!(system.interrupt().0.success());
    let ended = |pid_file: &Path| {
        let text = std::fs::read_to_string(pid_file).unwrap_or_default();
        text.lines().next().is_none_or(|pid| !Path::new("/proc").join(pid).exists())
    };
    system.until("its PostgreSQL has ended", async |_| ended(&pid_file)).await;
}
