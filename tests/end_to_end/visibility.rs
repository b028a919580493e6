//! What of a transaction is visible, and when.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::postgres::Postgres;
use crate::system::{Account, System, ids};

/// Transactions, each of which changes two things of every view.
const PAIRS: usize = 40;

/// Each transaction leaves every view even: two posts, two followers, two accounts followed, two likes, and texts that say how
/// many.
fn pair(n: usize) -> String {
    let (one, other) = (100 + 2 * n, 101 + 2 * n);
    format!(
        "BEGIN;
         INSERT INTO tweets (id, user_id, content, conversation_id)
             SELECT id, 1, 'pair {n}', id FROM (SELECT feedmill_id() AS id FROM generate_series(1, 2)) AS made;
         INSERT INTO follows (follower_id, following_id) VALUES ({one}, 1), ({other}, 1), (2, {one}), (2, {other});
         UPDATE users SET display_name = '{tweets}' WHERE id = 1;
         UPDATE tweets SET content = '{n}' WHERE id = 7;
         INSERT INTO tweets (id, user_id, content, reply_to_id, conversation_id)
             SELECT feedmill_id(), 9, 'answer {n}', 7, 7;
         INSERT INTO likes (user_id, tweet_id) VALUES ({one}, 7), ({other}, 7);
         UPDATE follows SET following_id = 7 - following_id WHERE follower_id = 5;
         COMMIT",
        tweets = 2 * n
    )
}

fn user(body: &Value) -> &Value {
    body.get("user").unwrap_or(body)
}

fn usernames(list: &Value) -> Vec<&str> {
    list["users"].as_array().unwrap().iter().map(|user| user["username"].as_str().unwrap()).collect()
}

/// Reads every view once, and checks that none shows half a transaction.
async fn check_all(system: &System, viewer: &Account) {
    let home = ids(&system.get("/api/timeline?limit=100", Some(viewer)).await.body).len();
    let timeline = ids(&system.get("/api/users/u1/tweets?limit=100", None).await.body).len();
    let followers = system.get("/api/follows/1/followers?limit=100", None).await.body;
    let following = system.get("/api/follows/2/following?limit=100", None).await.body;
    let (followers, following) = (usernames(&followers).len(), usernames(&following).len());
    // The viewer follows the author besides the pairs.
    assert_eq!([home % 2, timeline % 2, followers % 2, following % 2], [0, 0, 1, 1]);
    let profile = system.get("/api/users/u1", None).await.body;
    let profile = user(&profile);
    assert_eq!(profile["displayName"], profile["counts"]["tweets"].to_string(), "{profile}");
    let counted = system.get("/api/tweets/7", None).await.body;
    let tweet = counted.get("tweet").unwrap_or(&counted);
    assert_eq!(tweet["content"], tweet["counts"]["replies"].to_string(), "{tweet}");
    // Likes may come later than the rest, and then all of a transaction.
    let likes = tweet["counts"]["likes"].as_u64().unwrap();
    let answers = tweet["counts"]["replies"].as_u64().unwrap();
    assert!(likes % 2 == 0 && likes <= 2 * answers, "{tweet}");
    let swapped = system.get("/api/follows/5/following", None).await.body;
    assert_eq!(usernames(&swapped).len(), 1, "{swapped}");
}

#[tokio::test(flavor = "multi_thread")]
async fn c23_a_transaction_is_visible_in_full_or_not_at_all_in_every_view() {
    let system = System::start(&["--workers", "2"]).await;
    let sql = system.sql().await;
    sql.batch_execute(
        "INSERT INTO accounts (user_id, username) SELECT n, 'u' || n FROM generate_series(1, 200) AS n;
         INSERT INTO users (id, username, display_name) SELECT n, 'u' || n, '0' FROM generate_series(1, 200) AS n;
         INSERT INTO activity (user_id, day) SELECT n, (now() AT TIME ZONE 'UTC')::date FROM generate_series(1, 5) AS n;
         INSERT INTO tweets (id, user_id, content, conversation_id) VALUES (7, 9, '0', 7);
         INSERT INTO follows (follower_id, following_id) VALUES (2, 1), (5, 3)",
    )
    .await
    .unwrap();
    let viewer = system.account(2);
    let is_there =
        async |system: &System| system.get("/api/follows/5/following", None).await.body["users"][0].is_object();
    system.until("the people are there", is_there).await;
    let (over, reads) = (AtomicBool::new(false), AtomicUsize::new(0));
    let write = async {
        for n in 1..=PAIRS {
            sql.batch_execute(&pair(n)).await.unwrap();
            // However slow the reads are, each sees a few pairs come.
            let enough = async |_: &System| reads.load(Ordering::Relaxed) >= n / 5;
            system.until("what is written is read", enough).await;
        }
        let likes = async |system: &System| {
            let body = system.get("/api/tweets/7", None).await.body;
            body.get("tweet").unwrap_or(&body)["counts"]["likes"] == 2 * PAIRS
        };
        system.until("all pairs show", likes).await;
        over.store(true, Ordering::Relaxed);
    };
    let read = async {
        while !over.load(Ordering::Relaxed) {
            check_all(&system, &viewer).await;
            reads.fetch_add(1, Ordering::Relaxed);
        }
    };
    tokio::join!(write, read);
    let token = system.tweet(&viewer, "last").await.1;
    assert_eq!(system.home(&viewer, Some(&token)).await.len(), 2 * PAIRS + 1);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c24_all_rows_of_a_transaction_survive_a_restart_at_its_position() {
    let mut system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let sql = system.sql().await;
    let many = "INSERT INTO tweets (id, user_id, content, conversation_id) SELECT id, $1, 'one of many', id
                FROM (SELECT feedmill_id() AS id FROM generate_series(1, 10000)) AS made";
    let id: i64 = ada.id.parse().unwrap();
    for round in 1..=2 {
        assert_eq!(sql.execute(many, &[&id]).await.unwrap(), 10_000);
        let end: String = sql.query_one("SELECT pg_current_wal_lsn()::text", &[]).await.unwrap().get(0);
        let end = end.parse::<feedmill_model::Lsn>().unwrap().0 as f64;
        if round == 2 {
            // Durable in the log, and perhaps not yet in a store.
            system.until("the log has it", async |system| system.metric("feedmill_log_lsn").await >= end).await;
        }
        system.kill();
        system.go().await;
        let counted = async |system: &System| {
            let profile = system.get("/api/users/ada", None).await.body;
            user(&profile)["counts"]["tweets"] == round * 10_000
        };
        system.until("all rows are there, once", counted).await;
        system.verified().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c25_a_kill_in_the_middle_of_a_transaction_leaves_all_or_nothing() {
    // So little memory for decoding that the transaction leaves it long before it ends.
    let postgres = Postgres::new(&["logical_decoding_work_mem = 64kB"]).await;
    let mut system = System::start_on(&postgres, &[]).await;
    let ada = system.register("ada").await;
    let watcher = system.sql().await;
    let decoded = "SELECT coalesce(sum(spill_txns + stream_txns), 0)::bigint FROM pg_stat_replication_slots
                   WHERE slot_name = 'feedmill'";
    let mut expected = 0;
    for end in ["ROLLBACK", "COMMIT"] {
        let before: i64 = watcher.query_one(decoded, &[]).await.unwrap().get(0);
        let sql = system.sql().await;
        sql.batch_execute(&format!(
            "BEGIN;
             INSERT INTO tweets (id, user_id, content, conversation_id) SELECT id, {ada}, 'all or nothing', id
                 FROM (SELECT feedmill_id() AS id FROM generate_series(1, 5000)) AS made;
             UPDATE users SET display_name = '{end}' WHERE id = {ada}",
            ada = ada.id
        ))
        .await
        .unwrap();
        let is_decoded = async |_: &System| watcher.query_one(decoded, &[]).await.unwrap().get::<_, i64>(0) > before;
        system.until("a part of it was decoded", is_decoded).await;
        let shown = async |system: &System| {
            let profile = system.get("/api/users/ada", None).await.body;
            let profile = user(&profile).clone();
            (profile["counts"]["tweets"].clone(), profile["displayName"].clone())
        };
        let untouched = (json!(expected), json!("ada"));
        assert_eq!(shown(&system).await, untouched);
        system.kill();
        system.go().await;
        assert_eq!(shown(&system).await, untouched);
        sql.batch_execute(end).await.unwrap();
        if end == "COMMIT" {
            expected += 5_000;
            let all = (json!(expected), json!(end));
            system.until("all of it shows", async |system| shown(system).await == all).await;
        } else {
            assert_eq!(shown(&system).await, untouched);
        }
        system.verified().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c33_a_truncate_of_one_table_or_several_empties_what_depends_on_it() {
    let system = System::start(&["--hot-followers", "3", "--workers", "2"]).await;
    let sql = system.sql().await;
    sql.batch_execute(include_str!("every_relation.sql")).await.unwrap();
    let viewer = system.account(2);
    let read = async |system: &System, path: &str| system.get(path, Some(&viewer)).await.body;
    let is_there = async |system: &System| !ids(&read(system, "/api/timeline").await).is_empty();
    system.until("the views are there", is_there).await;
    // One's own retweet of one's own tweet shows it twice.
    let likes = async |system: &System| -> i64 {
        let tweets = read(system, "/api/users/u2/tweets?limit=100").await;
        let counts = tweets["tweets"].as_array().unwrap().iter().map(|tweet| (tweet["id"].as_str(), &tweet["counts"]));
        counts.collect::<BTreeMap<_, _>>().values().map(|counts| counts["likes"].as_i64().unwrap()).sum()
    };
    system.until("likes are counted", async |system| likes(system).await > 0).await;

    // In the middle of a transaction: what is written after it stays.
    sql.batch_execute(
        "BEGIN; INSERT INTO likes (user_id, tweet_id) SELECT 5, id FROM tweets ON CONFLICT DO NOTHING; TRUNCATE likes;
         INSERT INTO likes (user_id, tweet_id) SELECT 4, id FROM tweets WHERE user_id = 2 ORDER BY id LIMIT 1; COMMIT",
    )
    .await
    .unwrap();
    system.until("one like is left", async |system| likes(system).await == 1).await;
    system.verified().await;

    sql.batch_execute("TRUNCATE follows, mutes, blocks").await.unwrap();
    let followers = async |system: &System| read(system, "/api/follows/1/followers").await["users"] == json!([]);
    system.until("nobody follows", followers).await;
    let own = async |system: &System| {
        let home = read(system, "/api/timeline?limit=100").await;
        home["tweets"]
            .as_array()
            .unwrap()
            .iter()
            .all(|tweet| tweet["author"]["id"] == "2" || tweet["retweetedBy"]["id"] == "2")
    };
    system.until("timelines hold what is one's own", own).await;
    system.verified().await;

    sql.batch_execute("TRUNCATE tweets, likes, retweets").await.unwrap();
    let empty = async |system: &System| ids(&read(system, "/api/timeline").await).is_empty();
    system.until("timelines are empty", empty).await;
    for user in 1..=5 {
        assert_eq!(ids(&read(&system, &format!("/api/users/u{user}/tweets?replies=true")).await), [""; 0]);
    }
    system.verified().await;

    sql.batch_execute("TRUNCATE users, activity, popular, read_marks").await.unwrap();
    let gone = async |system: &System| system.get("/api/users/u1", None).await.status == 404;
    system.until("profiles are gone", gone).await;
    system.verified().await;
}
