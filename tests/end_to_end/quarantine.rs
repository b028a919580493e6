//! Rows that cannot be used.

use serde_json::Value;

use crate::system::System;

/// What a command of `feedmill quarantine` prints, a row a line, and whether it succeeded.
async fn quarantine(system: &System, args: &[&str]) -> (bool, Vec<Value>) {
    let output = system.command(&[&["quarantine", "--format", "json"], args].concat()).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    let rows = printed.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    (output.status.success(), rows)
}

async fn until_held(system: &System, count: usize) {
    let what = format!("{count} rows are in quarantine");
    system.until(&what, async |system: &System| quarantine(system, &["list"]).await.1.len() == count).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_an_unusable_row_is_set_aside_and_the_stream_goes_on() {
    let mut system = System::start(&[]).await;
    let (ada, bea) = (system.register("ada").await, system.register("bea").await);
    let sql = system.sql().await;
    // The owner of the schema may do this; Feedmill has no use for a user without a name.
    sql.batch_execute("ALTER TABLE users ALTER display_name DROP NOT NULL").await.unwrap();
    let id: i64 = bea.id.parse().unwrap();
    sql.execute("UPDATE users SET display_name = NULL WHERE id = $1", &[&id]).await.unwrap();
    let (tweet, token) = system.tweet(&ada, "the stream goes on").await;
    assert_eq!(system.home(&ada, Some(&token)).await, std::slice::from_ref(&tweet));
    until_held(&system, 1).await;
    let (_, listed) = quarantine(&system, &["list"]).await;
    let named = format!("users/{id}");
    assert_eq!((listed[0]["id"].as_str(), listed[0]["operation"].as_str()), (Some(named.as_str()), Some("update")));
    assert!(listed[0]["reason"].as_str().unwrap().contains("display_name"), "{listed:?}");
    let (shown, row) = quarantine(&system, &["show", &named]).await;
    assert!(shown && row[0]["columns"]["username"] == "bea" && row[0]["columns"]["display_name"].is_null(), "{row:?}");
    assert_eq!(system.metric("feedmill_quarantine_rows").await, 1.0);
    assert_eq!(system.metric("feedmill_quarantined_total").await, 1.0);
    assert_eq!(system.get("/api/users/bea", None).await.status, 404, "what it is now cannot be shown");
    assert_eq!(system.get("/api/users/ada", None).await.status, 200);
    assert!(system.verified().await.contains("1 rows are in quarantine and not compared"));

    let (back, tried) = quarantine(&system, &["retry", "--all"]).await;
    assert!(!back && tried[0]["reason"].as_str().unwrap().contains("display_name"), "{tried:?}");
    system.kill();
    system.go().await;
    until_held(&system, 1).await;
    let sql = system.sql().await;
    sql.execute("UPDATE users SET display_name = 'Bea' WHERE id = $1", &[&id]).await.unwrap();
    until_held(&system, 0).await;
    system.until("she is shown again", async |system| system.get("/api/users/bea", None).await.status == 200).await;
    assert!(!quarantine(&system, &["show", &named]).await.0, "it is not in quarantine");
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c38_a_tweet_of_the_future_waits_in_quarantine() {
    let system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let author: i64 = ada.id.parse().unwrap();
    let sql = system.sql().await;
    sql.batch_execute("ALTER TABLE tweets DISABLE TRIGGER feedmill_refuse_future").await.unwrap();
    let insert = "INSERT INTO tweets (id, user_id, content, conversation_id)
                  SELECT id, $1, 'from the future', id FROM (SELECT (extract(epoch FROM now())::numeric * 1000 + $2::bigint)::bigint << 16) AS made (id)
                  RETURNING id";
    let hour_ms = 3_600_000_i64;
    let soon: i64 = sql.query_one(insert, &[&author, &(hour_ms + 5_000)]).await.unwrap().get(0);
    let tomorrow: i64 = sql.query_one(insert, &[&author, &(24 * hour_ms)]).await.unwrap().get(0);
    let (now, token) = system.tweet(&ada, "of today").await;
    assert_eq!(system.home(&ada, Some(&token)).await, std::slice::from_ref(&now));
    until_held(&system, 2).await;
    assert!(system.verified().await.contains("2 rows are in quarantine"));

    let (back, tried) = quarantine(&system, &["retry", &format!("tweets/{tomorrow}")]).await;
    assert!(!back && tried[0]["reason"].as_str().unwrap().contains("an hour ahead"), "{tried:?}");
    // The other one can be used as soon as it is no more than an hour ahead.
    let soon_named = format!("tweets/{soon}");
    system.until("its time has come", async |system| quarantine(system, &["retry", &soon_named]).await.0).await;
    let path = format!("/api/tweets/{soon}");
    system.until("it is shown", async |system| system.get(&path, None).await.status == 200).await;
    assert_eq!(system.home(&ada, None).await, [soon.to_string(), now.clone()]);
    assert!(system.verified().await.contains("1 rows are in quarantine"));

    let (dropped, _) = quarantine(&system, &["drop", &format!("tweets/{tomorrow}")]).await;
    assert!(dropped);
    until_held(&system, 0).await;
    sql.execute("DELETE FROM tweets WHERE id = $1", &[&tomorrow]).await.unwrap();
    system.verified().await;
}

/// A value that did not change is not sent when it is large, and here the row that has it is not known any more.
#[tokio::test(flavor = "multi_thread")]
async fn c38_a_row_that_was_dropped_and_changes_in_part_is_set_aside_again() {
    let mut system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let named = format!("users/{}", ada.id);
    let sql = system.sql().await;
    let run = async |set: &str| {
        sql.batch_execute(&format!("UPDATE users SET {set} WHERE id = {}", ada.id)).await.unwrap();
    };
    sql.batch_execute(
        "ALTER TABLE users ALTER display_name DROP NOT NULL; ALTER TABLE users_0 ALTER bio SET STORAGE EXTERNAL",
    )
    .await
    .unwrap();
    run("bio = (SELECT string_agg(md5(n::text), '') FROM generate_series(1, 300) AS n)").await;
    run("display_name = NULL").await;
    until_held(&system, 1).await;
    assert!(quarantine(&system, &["drop", &named]).await.0);
    until_held(&system, 0).await;
    run("display_name = 'Ada'").await;
    until_held(&system, 1).await;
    let (_, listed) = quarantine(&system, &["list"]).await;
    assert_eq!(listed[0]["id"].as_str(), Some(named.as_str()));
    assert!(listed[0]["reason"].as_str().unwrap().contains("were not sent"), "{listed:?}");
    assert!(system.verified().await.contains("1 rows are in quarantine"));
    system.kill();
    system.go().await;
    until_held(&system, 1).await;
    // The whole row comes with a comparison of the table.
    let output = system.command(&["resync", "--relation", "users"]).await;
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    until_held(&system, 0).await;
    system.until("she is shown again", async |system| system.get("/api/users/ada", None).await.status == 200).await;
    system.verified().await;
}
