//! Which stage stands still, and since when; what raises an alarm; what `status` says.

use std::time::Duration;

use serde_json::Value;

use crate::postgres::Postgres;
use crate::system::System;

/// `/health`, which is 200 whatever stands still.
async fn health(system: &System) -> Value {
    let answer = system.get("/health", None).await;
    assert_eq!(answer.status, 200, "{answer:?}");
    answer.body
}

/// Waits until `/health` names `stage`, and gives what it says of it.
async fn until_named(system: &System, stage: &str) -> Value {
    let mut told = Value::Null;
    system
        .until(&format!("{stage} is named"), async |system| {
            told = health(system).await;
            told["standsStill"]["stage"] == stage
        })
        .await;
    assert_eq!(told["status"], "degraded", "{told}");
    assert!(alarm(&told, "stage"), "{told}");
    // Whatever else waits or stands, a reason and a time are given.
    let still = &told["standsStill"];
    assert!(still["since"].as_str().is_some_and(|since| since.ends_with('Z')), "{told}");
    assert!(still["reason"].as_str().is_some_and(|reason| !reason.is_empty()), "{told}");
    told
}

async fn until_well(system: &System) {
    system.until("all goes on", async |system| health(system).await["status"] == "alive").await;
}

fn alarm(told: &Value, name: &str) -> bool {
    let alarms = told["alarms"].as_array().unwrap();
    alarms.iter().find(|alarm| alarm["alarm"] == name).unwrap()["raised"] == true
}

fn state<'a>(told: &'a Value, stage: &str) -> &'a Value {
    &told["stages"].as_array().unwrap().iter().find(|one| one["name"] == stage).unwrap()["state"]
}

#[tokio::test(flavor = "multi_thread")]
async fn c53_a_stage_that_stops_is_named_and_goes_on() {
    let postgres = Postgres::new(&[]).await;
    let system = System::start_on(&postgres, &["--alarm-lag-seconds", "2"]).await;
    let ada = system.register("ada").await;
    until_well(&system).await;

    // The server's sender is there, and sends nothing.
    let senders = postgres.backends("backend_type = 'walsender'").await;
    assert_eq!(senders.len(), 1);
    postgres.freeze(&senders);
    let (behind, token) = system.tweet(&ada, "nobody sees this yet").await;
    let told = until_named(&system, "stream").await;
    assert_ne!(state(&told, "postgresql"), "stands-still", "{told}");
    system.until("what is served is too old", async |system| alarm(&health(system).await, "lag")).await;
    postgres.thaw(&senders);
    until_well(&system).await;
    assert_eq!(system.home(&ada, Some(&token)).await, [behind]);

    // The whole server stops answering.
    let all = postgres.processes();
    postgres.freeze(&all);
    let told = until_named(&system, "postgresql").await;
    assert_ne!(state(&told, "stream"), "stands-still", "one is named: {told}");
    assert_eq!(system.get("/ready", None).await.status, 200, "what is there is still served");
    system.until("metrics tell stage and lag", async |system| system.metric("feedmill_alarm").await == 2.0).await;
    postgres.thaw(&all);
    until_well(&system).await;
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c53_a_database_that_is_away_is_named() {
    let mut postgres = Postgres::new(&[]).await;
    let system = System::start_on(&postgres, &[]).await;
    let ada = system.register("ada").await;
    let (tweet, _) = system.tweet(&ada, "before").await;
    system.until("it is served", async |system| !system.home(&ada, None).await.is_empty()).await;
    postgres.stop_immediate();
    let told = until_named(&system, "postgresql").await;
    assert_eq!(system.home(&ada, None).await, [tweet], "reads go on: {told}");
    let status = system.command(&["status"]).await;
    let printed = String::from_utf8(status.stdout).unwrap();
    assert!(status.status.success() && printed.starts_with("postgresql STANDS STILL"), "{printed}");
    postgres.start().await;
    until_well(&system).await;
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn status_tells_where_everything_stands_and_when_nothing_runs() {
    let mut system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let (_, token) = system.tweet(&ada, "one").await;
    assert_eq!(system.home(&ada, Some(&token)).await.len(), 1);
    until_well(&system).await;
    system.until("the slot was looked at", async |system| health(system).await["slot"]["active"] == true).await;
    let printed = async |args: &[&str], code| {
        let output = system.command(args).await;
        assert_eq!(output.status.code(), Some(code), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let told: Value = serde_json::from_str(&printed(&["status", "--format", "json"], 0).await).unwrap();
    let names: Vec<&str> =
        told["stages"].as_array().unwrap().iter().map(|stage| stage["name"].as_str().unwrap()).collect();
    assert_eq!(names, ["postgresql", "stream", "log", "dataflows", "facts", "rows", "home", "search", "reactions"]);
    for stage in told["stages"].as_array().unwrap() {
        assert!(stage["lsn"].as_str().is_some_and(|lsn| lsn.contains('/')), "{stage}");
    }
    for step in ["copy", "load", "catch up"] {
        let found = told["steps"].as_array().unwrap().iter().find(|found| found["name"] == step).unwrap();
        assert_eq!(found["done"], true, "{found}");
    }
    assert_eq!(told["slot"]["walStatus"], "reserved", "{told}");
    let text = printed(&["status"], 0).await;
    assert!(text.starts_with("serving, ") && text.contains("no alarms"), "{text}");

    // It shows it again and again until whoever reads goes away.
    let mut watch = system.prepare(&["status", "--watch"]);
    let mut watching = watch.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let lines = std::io::BufRead::lines(std::io::BufReader::new(watching.stdout.take().unwrap()));
    assert_eq!(lines.map_while(Result::ok).filter(|line| line.starts_with("serving, ")).take(2).count(), 2);
    assert!(watching.wait().unwrap().success());

    let (status, took) = system.interrupt();
    assert!(status.success() && took < Duration::from_secs(60));
    let output = system.command(&["status"]).await;
    let text = String::from_utf8(output.stdout).unwrap();
    assert_eq!(output.status.code(), Some(1), "{text}");
    assert!(text.starts_with("No Feedmill runs on") && text.contains("the change log"), "{text}");
}

#[tokio::test(flavor = "multi_thread")]
async fn log_that_postgresql_keeps_raises_an_alarm() {
    let postgres = Postgres::new(&[]).await;
    let system = System::start_on(&postgres, &["--alarm-wal-bytes", "20000000"]).await;
    until_well(&system).await;
    let senders = postgres.backends("backend_type = 'walsender'").await;
    postgres.freeze(&senders);
    let sql = postgres.superuser("postgres").await;
    // Enough for the limit, in another database, so that it is nothing to us once we go on.
    sql.batch_execute(
        "SELECT pg_logical_emit_message(false, 'filler', repeat('x', 3000000)) FROM generate_series(1, 8)",
    )
    .await
    .unwrap();
    system.until("the alarm is raised", async |system| alarm(&health(system).await, "wal_retained")).await;
    postgres.thaw(&senders);
    // The slot lets go of log once PostgreSQL has told which transactions run, which it does at a checkpoint.
    system
        .until("the alarm is over", async |system| {
            sql.batch_execute("CHECKPOINT").await.unwrap();
            !alarm(&health(system).await, "wal_retained")
        })
        .await;
    until_well(&system).await;
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn c53_a_store_that_does_not_come_to_an_end_is_named() {
    // Applying one closed time takes longer than a stage may stand still.
    let mut system = System::new(&[]);
    system.failpoints = Some("sink_write_before=30*off->1*sleep(8000)->off".to_owned());
    system.go().await;
    let ada = system.register("ada").await;
    let mut told = Value::Null;
    // Each post is at least one write of each store.
    system
        .until("a store is named", async |system| {
            let posted = system.post("/api/tweets", Some(&ada), serde_json::json!({ "content": "on" })).await;
            assert_eq!(posted.status, 201, "writes go on: {posted:?}");
            told = health(system).await;
            told["standsStill"].is_object()
        })
        .await;
    let named = told["standsStill"]["stage"].as_str().unwrap();
    assert!(["facts", "rows", "reactions"].contains(&named), "{told}");
    let reason = told["standsStill"]["reason"].as_str().unwrap();
    assert!(reason.starts_with("it is still applying time "), "{told}");
    let standing = told["stages"].as_array().unwrap().iter().filter(|stage| stage["state"] == "stands-still").count();
    assert_eq!(standing, 1, "the others wait for it: {told}");
    until_well(&system).await;
    system.verified().await;
}

/// `verify` finds that one of two users of a name is not found by it, and no other difference.
pub async fn one_name_is_missing(system: &System) {
    let verified = system.command(&["verify", "--format", "json"]).await;
    assert_eq!(verified.status.code(), Some(1));
    let reports = String::from_utf8(verified.stdout).unwrap();
    let reports = reports.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let different: Vec<Value> =
        reports.filter(|report| report["missing"].as_u64() > Some(0) || report["extra"].as_u64() > Some(0)).collect();
    assert_eq!(different.len(), 1, "{different:?}");
    assert_eq!((&different[0]["view"], &different[0]["missing"]), (&"username".into(), &1.into()), "{different:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c52_a_multiplicity_that_cannot_be_is_an_alarm_and_not_a_row() {
    let system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let (tweet, token) = system.tweet(&ada, "one").await;
    assert_eq!(system.home(&ada, Some(&token)).await, std::slice::from_ref(&tweet));
    until_well(&system).await;
    assert!(!alarm(&health(&system).await, "negative_multiplicity"));

    // The owner gives up what makes names unique, and two users take the same name in one transaction.
    let sql = system.sql().await;
    sql.batch_execute(
        "DROP INDEX accounts_username_key;
         INSERT INTO accounts (user_id, username) VALUES (901, 'twice'), (902, 'twice');
         INSERT INTO users (id, username, display_name) VALUES (901, 'twice', 'One'), (902, 'twice', 'Other')",
    )
    .await
    .unwrap();
    system.until("the alarm is raised", async |system| alarm(&health(system).await, "negative_multiplicity")).await;
    system.until("and counted", async |system| system.metric("feedmill_dataflow_anomalies_total").await >= 1.0).await;
    let status = String::from_utf8(system.command(&["status"]).await.stdout).unwrap();
    assert!(status.contains("ALARM negative_multiplicity since "), "{status}");

    // The name is one of the two, and whatever else is served is as it was.
    let found = system.get("/api/users/twice", None).await;
    assert_eq!(found.status, 200, "{found:?}");
    let name = &found.body.get("user").unwrap_or(&found.body)["displayName"];
    assert!(name == "One" || name == "Other", "{found:?}");
    assert_eq!(system.home(&ada, None).await, [tweet]);
    let (second, token) = system.tweet(&ada, "two").await;
    assert_eq!(system.home(&ada, Some(&token)).await[0], second);

    // `verify` says where, and only there. Both go, and everything is equal again; the alarm stays until a restart.
    one_name_is_missing(&system).await;
    sql.batch_execute("DELETE FROM users WHERE id IN (901, 902)").await.unwrap();
    system.verified().await;
    assert_eq!(system.get("/api/users/twice", None).await.status, 404);
    assert!(alarm(&health(&system).await, "negative_multiplicity"));
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_compares_while_what_is_written_becomes_visible() {
    let postgres = Postgres::new(&[]).await;
    let system = System::start_on(&postgres, &[]).await;
    let (ada, ben) = (system.register("ada").await, system.register("ben").await);
    let follow = system.post(&format!("/api/follows/{}", ada.id), Some(&ben), Value::Null).await;
    assert!((200..300).contains(&follow.status), "{follow:?}");
    let mut expected = vec![system.tweet(&ada, "before").await.0];

    // Its SQL is frozen in the middle. It may have ended before that: then it is tried again.
    let comparing = "application_name = 'feedmill-verify' AND backend_type = 'client backend'";
    let (mut verify, frozen) = loop {
        let mut verify = system.prepare(&["verify"]).stdout(std::process::Stdio::piped()).spawn().unwrap();
        let mut backends = Vec::new();
        while backends.is_empty() && verify.try_wait().unwrap().is_none() {
            backends = postgres.backends(comparing).await;
        }
        postgres.freeze(&backends);
        if !backends.is_empty() && verify.try_wait().unwrap().is_none() {
            break (verify, backends);
        }
        postgres.thaw(&backends);
        verify.wait().unwrap();
    };
    for content in ["meanwhile", "and again"] {
        let (tweet, token) = system.tweet(&ada, content).await;
        expected.insert(0, tweet);
        for viewer in [&ada, &ben] {
            assert_eq!(system.home(viewer, Some(&token)).await, expected);
        }
    }
    until_well(&system).await;
    assert!(verify.try_wait().unwrap().is_none(), "it is still comparing");
    postgres.thaw(&frozen);
    let output = tokio::task::spawn_blocking(move || verify.wait_with_output().unwrap()).await.unwrap();
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && printed.ends_with(" 0 differences\n"), "{printed}");
    assert!(printed.lines().last().unwrap().starts_with("writes were held for 0."), "{printed}");
    assert!(system.metric("feedmill_verify_hold_seconds_count").await >= 1.0);
    assert!(system.verified().await.contains("home as served"));
}
