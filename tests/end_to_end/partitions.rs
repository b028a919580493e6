//! Partitions that are attached, detached, dropped or truncated: the stream says nothing of it.

use crate::system::System;

/// Ids of January 2001 and of February 2001.
const JANUARY: (i64, i64) = (978_307_200_000 << 16, 980_985_600_000 << 16);
const FEBRUARY: (i64, i64) = (980_985_600_000 << 16, 983_404_800_000 << 16);

/// Makes a table like `tweets`, with `count` tweets of user 1 from `range` in it.
async fn table(sql: &tokio_postgres::Client, name: &str, range: (i64, i64), count: i64) {
    sql.batch_execute(&format!(
        "CREATE TABLE {name} (LIKE tweets INCLUDING ALL);
         INSERT INTO {name} (id, user_id, content, conversation_id)
             SELECT {from} + n, 1, '{name} ' || n, {from} + n FROM generate_series(1, {count}) AS n",
        from = range.0
    ))
    .await
    .unwrap();
}

fn attach(name: &str, (from, to): (i64, i64)) -> String {
    format!("ALTER TABLE tweets ATTACH PARTITION {name} FOR VALUES FROM ({from}) TO ({to})")
}

/// Waits until user 1 has so many tweets, by the counts and by the list.
async fn until_tweets(system: &System, count: usize) {
    system
        .until(&format!("{count} tweets show"), async |system| {
            let profile = system.get("/api/users/one", None).await.body;
            let counted = &profile.get("user").unwrap_or(&profile)["counts"]["tweets"];
            let list = system.get("/api/users/one/tweets?limit=100", None).await.body;
            *counted == count && list["tweets"].as_array().is_some_and(|tweets| tweets.len() == count)
        })
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c34_attached_detached_dropped_and_truncated_partitions_are_followed() {
    let mut system = System::start(&[]).await;
    let sql = system.sql().await;
    sql.batch_execute(
        "INSERT INTO accounts (user_id, username) VALUES (1, 'one');
         INSERT INTO users (id, username, display_name) VALUES (1, 'one', 'One')",
    )
    .await
    .unwrap();
    table(&sql, "january", JANUARY, 7).await;
    table(&sql, "february", FEBRUARY, 5).await;
    sql.batch_execute(&attach("january", JANUARY)).await.unwrap();
    until_tweets(&system, 7).await;
    sql.batch_execute(&attach("february", FEBRUARY)).await.unwrap();
    until_tweets(&system, 12).await;
    system.verified().await;

    sql.batch_execute("ALTER TABLE tweets DETACH PARTITION january").await.unwrap();
    until_tweets(&system, 5).await;
    // Attached again with fewer rows before anybody has looked, it is the same table in the same place.
    sql.batch_execute(&attach("january", JANUARY)).await.unwrap();
    until_tweets(&system, 12).await;
    sql.batch_execute(&format!(
        "BEGIN; ALTER TABLE tweets DETACH PARTITION january; DELETE FROM january WHERE id % 2 = 0; {}; COMMIT",
        attach("january", JANUARY)
    ))
    .await
    .unwrap();
    until_tweets(&system, 9).await;
    system.verified().await;

    // What happens while nobody looks is seen at the next start.
    system.kill();
    sql.batch_execute("ALTER TABLE tweets DETACH PARTITION february; DROP TABLE february").await.unwrap();
    system.go().await;
    until_tweets(&system, 4).await;
    system.verified().await;

    // A partition that is truncated alone is not published either.
    let partition = "SELECT tableoid::regclass::text FROM users WHERE id = 1";
    let partition: String = sql.query_one(partition, &[]).await.unwrap().get(0);
    sql.batch_execute(&format!("TRUNCATE {partition}")).await.unwrap();
    system.until("the user is gone", async |system| system.get("/api/users/one", None).await.status == 404).await;
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c34_a_partition_that_feedmill_made_is_not_compared() {
    let system = System::start(&[]).await;
    let sql = system.sql().await;
    sql.batch_execute(
        "INSERT INTO accounts (user_id, username) VALUES (1, 'one');
         INSERT INTO users (id, username, display_name) VALUES (1, 'one', 'One')",
    )
    .await
    .unwrap();
    let known = || std::fs::read_to_string(system.data().join("partitions.json")).unwrap();
    let before = known();
    // The partition, and rows in it, at once.
    sql.batch_execute(&format!(
        "SELECT feedmill_ensure_partitions({ms}, {ms});
         INSERT INTO tweets (id, user_id, content, conversation_id) VALUES ({id}, 1, 'old', {id})",
        ms = JANUARY.0 >> 16,
        id = JANUARY.0 + 1
    ))
    .await
    .unwrap();
    system.until("the partition is known", async |_| known() != before).await;
    until_tweets(&system, 1).await;
    assert!(!system.log().contains("comparing the table"), "{}", system.log());
    system.verified().await;
}
