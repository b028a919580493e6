//! A source that lacks something is refused with what mends it.

use std::process::Output;

use serde_json::{Value, json};

use crate::postgres::Postgres;
use crate::system::System;

/// What `feedmill validate` finds, and whether it succeeds.
async fn validate(system: &System) -> (bool, Vec<Value>) {
    let Output { status, stdout, stderr } = system.command(&["validate", "--format", "json"]).await;
    let printed = String::from_utf8(stdout).unwrap();
    assert!(!printed.is_empty(), "{}", String::from_utf8_lossy(&stderr));
    (status.success(), printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect())
}

/// What is not as it should be.
fn failed(findings: &[Value]) -> Vec<&Value> {
    findings.iter().filter(|finding| finding["outcome"] == "fail").collect()
}

fn of<'a>(findings: &'a [Value], check: &str) -> &'a Value {
    findings.iter().find(|finding| finding["check"] == check).unwrap_or_else(|| panic!("no {check} in {findings:?}"))
}

/// Sets the replica identity of every relation and partition.
async fn identify_by(sql: &tokio_postgres::Client, identity: &str) {
    let statement = format!(
        "DO $$ DECLARE part record; BEGIN
             FOR part IN SELECT c.oid::regclass AS name, index.relname AS index
                 FROM pg_publication_rel p CROSS JOIN LATERAL
                      (SELECT p.prrelid UNION SELECT relid FROM pg_partition_tree(p.prrelid)) AS tree(oid)
                 JOIN pg_class c ON c.oid = tree.oid
                 JOIN pg_index i ON i.indrelid = c.oid AND i.indisprimary JOIN pg_class index ON index.oid = i.indexrelid
             LOOP EXECUTE format('ALTER TABLE %s REPLICA IDENTITY {identity}', part.name, part.index); END LOOP;
         END $$"
    );
    sql.batch_execute(&statement).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn c32_every_identity_that_tells_the_row_works_also_when_switched_live_and_nothing_is_refused() {
    let postgres = Postgres::new(&[]).await;
    let mut system = System::start_on(&postgres, &[]).await;
    let sql = postgres.sql().await;
    let (ada, ben, eve) = (system.register("ada").await, system.register("ben").await, system.register("eve").await);
    for (round, identity) in ["FULL", "USING INDEX %2$I", "DEFAULT"].into_iter().enumerate() {
        // While somebody writes: what is under way has one identity or the other.
        let (tweet, _) = system.tweet(&ada, &format!("before {identity}")).await;
        identify_by(&sql, identity).await;
        let (by, tweet): (i64, i64) = (ben.id.parse().unwrap(), tweet.parse().unwrap());
        sql.execute("INSERT INTO likes (user_id, tweet_id) VALUES ($1, $2)", &[&by, &tweet]).await.unwrap();
        for viewer in [&ben, &eve] {
            let follow = system.post(&format!("/api/follows/{}", ada.id), Some(viewer), Value::Null).await;
            assert!((200..300).contains(&follow.status), "{follow:?}");
        }
        let (kept, token) = system.tweet(&ada, &format!("kept {identity}")).await;
        assert!(system.home(&ben, Some(&token)).await.contains(&kept));
        // Rows are updated, change their key, and go.
        let name = format!("Ada {round}");
        sql.execute("UPDATE users SET display_name = $1 WHERE username = 'ada'", &[&name]).await.unwrap();
        let (from, to): (i64, i64) = (eve.id.parse().unwrap(), ben.id.parse().unwrap());
        let moved = "UPDATE follows SET following_id = $2 WHERE follower_id = $1";
        assert_eq!(sql.execute(moved, &[&from, &to]).await.unwrap(), 1);
        let unfollow = system.delete(&format!("/api/follows/{}", ada.id), Some(&ben)).await;
        let token = unfollow.token.unwrap();
        assert!(!system.home(&ben, Some(&token)).await.contains(&kept));
        let profile = system.get_after(&token, "/api/users/ada", None).await;
        assert_eq!(profile.body["displayName"], json!(name), "{profile:?}");
        system.verified().await;
        assert_eq!(sql.execute("DELETE FROM likes", &[]).await.unwrap(), 1);
        let unfollow = system.delete(&format!("/api/follows/{}", ben.id), Some(&eve)).await;
        assert!(unfollow.token.is_some(), "{unfollow:?}");
    }
    system.interrupt();

    // One table, one partition, and an index that does not hold the key.
    for (spoil, table) in [
        ("ALTER TABLE follows REPLICA IDENTITY NOTHING", "follows"),
        ("ALTER TABLE users_3 REPLICA IDENTITY NOTHING", "users_3"),
        ("ALTER TABLE retweets REPLICA IDENTITY USING INDEX retweets_user_id_tweet_id_key", "retweets"),
    ] {
        sql.batch_execute(spoil).await.unwrap();
        let mend = format!("ALTER TABLE {table} REPLICA IDENTITY DEFAULT;");
        let printed = system.expect_start_failure().await;
        assert!(printed.contains(&mend), "{printed}");
        let (success, findings) = validate(&system).await;
        assert!(!success);
        let [finding] = failed(&findings)[..] else { panic!("{findings:?}") };
        assert!(finding["found"].as_str().unwrap().starts_with(&format!("{table} has REPLICA IDENTITY")), "{finding}");
        assert_eq!(finding["mend"], json!(mend));
        sql.batch_execute(&mend).await.unwrap();
    }
    system.go().await;
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c37_a_publication_that_lacks_something_is_refused_and_the_sql_that_is_told_mends_it() {
    let postgres = Postgres::new(&[]).await;
    let mut system = System::start_on(&postgres, &[]).await;
    system.register("ada").await;
    system.interrupt();
    let sql = postgres.sql().await;
    let newer: bool =
        sql.query_one("SELECT current_setting('server_version_num')::int >= 150000", &[]).await.unwrap().get(0);
    for (spoil, lack, from_15) in [
        ("DROP TABLE likes, mutes", "lacks the table likes, lacks the table mutes", false),
        ("SET (publish = 'insert, truncate')", "does not publish updates, does not publish deletes", false),
        ("SET (publish_via_partition_root = false)", "does not publish through the partition root", false),
        ("SET TABLE users (id, username)", "lacks the column users.display_name", true),
        ("SET TABLE follows WHERE (follower_id > 7)", "leaves out rows of follows by the filter", true),
    ] {
        if from_15 && !newer {
            continue;
        }
        sql.batch_execute(&format!("ALTER PUBLICATION feedmill {spoil}")).await.unwrap();
        let printed = system.expect_start_failure().await;
        let (success, findings) = validate(&system).await;
        assert!(!success);
        let [finding] = failed(&findings)[..] else { panic!("{findings:?}") };
        assert!(finding["found"].as_str().unwrap().contains(lack), "{finding}");
        let mend = finding["mend"].as_str().unwrap();
        assert!(printed.contains(lack) && printed.contains(mend), "{printed}");
        sql.batch_execute(mend).await.unwrap();
        assert!(validate(&system).await.0);
    }
    system.go().await;
    system.register("ben").await;
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn validate_says_of_an_unfit_server_what_mends_it_and_the_mends_suffice() {
    let mut postgres = Postgres::new(&["wal_level = replica", "max_replication_slots = 0"]).await;
    postgres.role("plain", "LOGIN").await;
    postgres.database("social", "postgres").await;
    let mut system = System::new(&[]);
    system.database_url = Some(postgres.url_at("plain", "127.0.0.1", postgres.port, "social"));
    let (success, findings) = validate(&system).await;
    assert!(!success);
    let checks: Vec<&str> = failed(&findings).iter().map(|finding| finding["check"].as_str().unwrap()).collect();
    assert_eq!(checks, ["wal_level", "role", "replication", "schema", "replication slots"]);
    let superuser = postgres.superuser("social").await;
    for finding in &findings {
        let Some(mend) = finding["mend"].as_str() else { continue };
        for statement in mend.split_inclusive(';').map(str::trim) {
            if statement.starts_with("ALTER") || statement.starts_with("GRANT") {
                superuser.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
            }
        }
    }
    drop(superuser);
    postgres.stop_fast();
    postgres.start().await;
    let (success, findings) = validate(&system).await;
    assert!(success, "{findings:?}");
    assert_eq!(of(&findings, "schema")["found"], "empty; the first start makes it");
    assert_eq!(of(&findings, "change log")["outcome"], "ok");

    system.go().await;
    system.register("ada").await;
    system.verified().await;
    // Beside the running system.
    let (success, findings) = validate(&system).await;
    assert!(success, "{findings:?}");
    let slot = of(&findings, "slot")["found"].as_str().unwrap();
    assert!(slot.starts_with("feedmill is read by a running Feedmill"), "{slot}");
    assert_eq!(of(&findings, "change log")["found"], "a running Feedmill has it open");
    system.interrupt();

    // What was there and is gone.
    postgres.superuser("social").await.execute("SELECT pg_drop_replication_slot('feedmill')", &[]).await.unwrap();
    let (success, findings) = validate(&system).await;
    assert!(!success);
    assert_eq!(failed(&findings).len(), 1, "{findings:?}");
    assert!(of(&findings, "slot")["found"].as_str().unwrap().starts_with("feedmill is gone"));
    postgres.stop_fast();
    let (success, findings) = validate(&system).await;
    assert!(!success);
    assert!(of(&findings, "connection")["found"].as_str().unwrap().contains("could not connect to"), "{findings:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn validate_says_what_a_first_start_would_do_and_checks_the_private_cluster_once_it_runs() {
    let mut system = System::new(&[]);
    let (success, findings) = validate(&system).await;
    assert!(success, "{findings:?}");
    let found = of(&findings, "private cluster")["found"].as_str().unwrap();
    assert!(found.contains("`feedmill up` will make a new one in"), "{found}");
    system.go().await;
    let (success, findings) = validate(&system).await;
    assert!(success, "{findings:?}");
    assert!(findings.iter().all(|finding| finding["outcome"] == "ok"), "{findings:?}");
}
