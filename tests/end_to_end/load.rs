//! Load, small, on a system of its own.

use std::process::Stdio;

use serde_json::Value;

use crate::system::System;

const GRAPH: [&str; 8] = ["--users", "2000", "--authors", "100", "--followers", "50", "--hot", "3"];

fn arguments<'a>(system: &'a System, more: &[&'a str]) -> Vec<&'a str> {
    let listen = system.url.strip_prefix("http://").unwrap();
    ["load", "--listen", listen, "--format", "json"].iter().chain(&GRAPH).chain(more).copied().collect()
}

async fn load(system: &System, more: &[&str]) -> Value {
    let output = system.command(&arguments(system, more)).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_json::from_slice(&output.stdout).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn load_fills_an_empty_system_and_counts_what_it_delivers() {
    let system = System::start(&[]).await;
    let mut sql = system.sql().await;
    let watcher = system.sql().await;

    // It is killed while it fills the system.
    let lock = sql.transaction().await.unwrap();
    lock.batch_execute("LOCK TABLE follows IN EXCLUSIVE MODE").await.unwrap();
    let mut command = system.prepare(&arguments(&system, &[]));
    let mut killed = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    system
        .until("it has come to the follows", async |_| {
            let waits = "SELECT count(*) FROM pg_stat_activity
                         WHERE wait_event_type = 'Lock' AND application_name = 'feedmill load'";
            watcher.query_one(waits, &[]).await.unwrap().get::<_, i64>(0) > 0
        })
        .await;
    killed.kill().unwrap();
    killed.wait().unwrap();
    lock.rollback().await.unwrap();

    for via in ["api", "sql"] {
        // Two rounds of the authors: each has posted twice, so the mean is exact.
        let outcome = load(&system, &["--rate", "100", "--for", "2s", "--read-rate", "20", "--via", via]).await;
        assert_eq!(outcome["errors"], 0, "{outcome}");
        assert_eq!(outcome["posts"], 200, "{outcome}");
        assert_eq!(outcome["followers_per_post"], 50.0, "{outcome}");
        // To the followers, and to the author.
        assert_eq!(outcome["deliveries"], 200 * 51, "{outcome}");
        for key in ["posts_per_s", "deliveries_per_s"] {
            assert!(outcome[key].as_f64().unwrap() > 0.0, "{outcome}");
        }
        for (histogram, keys) in [("visible_ms", &["p50", "p99", "max"][..]), ("read_ms", &["p50", "p99"])] {
            assert!(keys.iter().all(|key| outcome[histogram][key].as_f64().unwrap() > 0.0), "{outcome}");
        }
    }
    for (of, table) in [("likes", "likes"), ("tweets", "tweets WHERE content = 'One of many'")] {
        let large = ["--rate", "50", "--for", "2s", "--read-rate", "20", "--large", "6000", "--large-of", of];
        let outcome = load(&system, &large).await;
        assert_eq!((&outcome["errors"], &outcome["large"]["rows"]), (&0.into(), &6_000.into()), "{outcome}");
        let rows = watcher.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap();
        assert_eq!(rows.get::<_, i64>(0), 6_000);
    }
    let graph = watcher.query_one("SELECT count(*), count(DISTINCT following_id) FROM follows", &[]).await.unwrap();
    // Each of the three hot accounts has one user of 20 but itself.
    assert_eq!((graph.get::<_, i64>(0), graph.get::<_, i64>(1)), (100 * 50 + 3 * 99, 103));
    system.verified().await;

    let output = system.command(&arguments(&system, &["--seed", "2", "--for", "1s"])).await;
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("not those of the graph"), "{error}");
}
