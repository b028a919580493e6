//! Times, texts and ids at their limits, by the first copy and by the stream: served as they were written.

use serde_json::{Value, json};

use crate::postgres::Postgres;
use crate::system::{Account, System, ids};

/// What may be written as a time of a row, and how it is served. RFC 3339 has the years 0000 to 9999, and on the last day
/// of that it is 10000 already in some zones.
const TIMES: [(&str, Option<&str>); 12] = [
    ("infinity", None),
    ("-infinity", None),
    ("4714-11-24 00:00:00+00 BC", None),
    ("0002-12-31 23:59:59.999999+00 BC", None),
    ("0001-01-01 00:00:00+00 BC", Some("0000-01-01T00:00:00.000000Z")),
    ("0001-01-01 00:00:00+00", Some("0001-01-01T00:00:00.000000Z")),
    ("1999-12-31 24:00:00+00", Some("2000-01-01T00:00:00.000000Z")),
    ("2001-09-09 07:16:40.123456+05:30", Some("2001-09-09T01:46:40.123456Z")),
    ("2016-12-31 23:59:60+00", Some("2017-01-01T00:00:00.000000Z")),
    ("9999-12-30 21:59:59.999999+00", Some("9999-12-30T21:59:59.999999Z")),
    ("10000-01-01 00:00:00+00", None),
    ("294276-12-31 23:59:59.999999+00", None),
];

/// Those of them at which no tweet can be made.
const FUTURE: [&str; 4] =
    ["infinity", "9999-12-30 21:59:59.999999+00", "10000-01-01 00:00:00+00", "294276-12-31 23:59:59.999999+00"];

const TEXTS: [&str; 14] = [
    "",
    " ",
    "\\N",
    "NULL",
    "\u{1}\u{2}\t\n\u{b}\u{c}\r\u{1b}\u{1f}\u{7f}",
    "e\u{301}\u{323} \u{1e0b}\u{323}",
    "שלום \u{202e}abc\u{202c} مرحبا",
    "👩\u{200d}👩\u{200d}👧\u{200d}👦 \u{200b}\u{feff}",
    "\u{fffd}\u{fffe}\u{10ffff}\u{e000}",
    "'; DROP TABLE users; --",
    "{\"json\": \"\\u0000\"}",
    "<script>alert(1)</script>&amp;",
    "İıſßΣς",
    "\u{2028}\u{2029}\u{85}",
];

/// Each name with its number.
fn numbered<T>(values: &[T]) -> impl Iterator<Item = (i64, &T)> {
    (1..).zip(values)
}

async fn user(system: &System, name: &str) -> Value {
    let body = system.get(&format!("/api/users/{name}"), None).await.body;
    body.get("user").cloned().unwrap_or(body)
}

async fn until_user(system: &System, name: &str) {
    let path = format!("/api/users/{name}");
    system.until("the last user is there", async |system| system.get(&path, None).await.status == 200).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c39_times_at_their_limits_are_served_and_no_session_setting_changes_them() {
    let postgres = Postgres::new(&["timezone = 'Asia/Kathmandu'", "datestyle = 'SQL, DMY'"]).await;
    let superuser = postgres.superuser("postgres").await;
    superuser
        .batch_execute(
            "ALTER ROLE feedmill SET timezone = 'America/St_Johns'; ALTER ROLE feedmill SET datestyle = 'German';
             ALTER ROLE feedmill SET intervalstyle = 'sql_standard'; ALTER ROLE feedmill SET extra_float_digits = 0;
             ALTER DATABASE feedmill SET bytea_output = 'escape'",
        )
        .await
        .unwrap();
    let mut system = System::start_on(&postgres, &[]).await;
    let sql = postgres.sql().await;
    for (from, start_again) in [(0, true), (1_000, false)] {
        let mut statements = format!(
            "SET datestyle = 'ISO'; SET timezone = 'UTC';
             INSERT INTO accounts (user_id, username) SELECT {from} + n, 'u' || {from} + n FROM generate_series(1, {}) AS n;",
            TIMES.len()
        );
        for (n, (time, _)) in numbered(&TIMES) {
            let id = from + n;
            statements += &format!(
                "INSERT INTO users (id, username, display_name, created_at, updated_at)
                     VALUES ({id}, 'u{id}', '', '{time}', '{time}');
                 INSERT INTO follows (follower_id, following_id, created_at)
                     VALUES ({id}, {first}, '{time}') ON CONFLICT DO NOTHING;",
                first = if n == 1 { from + 2 } else { from + 1 },
            );
            // Tweets from the future are refused.
            if !FUTURE.contains(time) {
                statements += &format!(
                    "INSERT INTO tweets (id, user_id, content, conversation_id, created_at, updated_at)
                         VALUES ({id}, {id}, '', {id}, '{time}', '{time}');
                     INSERT INTO likes (user_id, tweet_id, created_at) VALUES ({id}, {id}, '{time}');
                     INSERT INTO retweets (id, user_id, tweet_id, created_at) VALUES ({id}, {id}, {id}, '{time}');"
                );
            }
        }
        statements += &format!(
            "INSERT INTO activity (user_id, day) VALUES ({one}, 'infinity'), ({two}, '-infinity'),
                 ({three}, '4714-11-24 BC'), ({three}, '5874897-12-31'), ({four}, '2000-02-29')",
            one = from + 1,
            two = from + 2,
            three = from + 3,
            four = from + 4,
        );
        sql.batch_execute(&statements).await.unwrap();
        if start_again {
            // What was streamed is copied as well.
            system.interrupt();
            std::fs::remove_dir_all(system.data().join("log")).unwrap();
            system.go().await;
        }
        until_user(&system, &format!("u{}", from + i64::try_from(TIMES.len()).unwrap())).await;
        for (n, (time, served)) in numbered(&TIMES) {
            let user = user(&system, &format!("u{}", from + n)).await;
            assert_eq!(user["createdAt"], json!(served), "{time}");
        }
        // Newest first, and among equals the greater id.
        let followers = system.get(&format!("/api/follows/{}/followers?limit=100", from + 1), None).await.body;
        let order: Vec<String> = followers["users"]
            .as_array()
            .unwrap()
            .iter()
            .map(|user| user["username"].as_str().unwrap().to_owned())
            .collect();
        let rows = sql
            .query("SELECT 'u' || follower_id FROM follows WHERE following_id = $1 ORDER BY created_at DESC, follower_id DESC",
                &[&(from + 1)])
            .await
            .unwrap();
        assert_eq!(order, rows.iter().map(|row| row.get::<_, String>(0)).collect::<Vec<_>>());
        system.verified().await;
    }
    for time in FUTURE {
        let refused = sql
            .batch_execute(&format!(
                "INSERT INTO tweets (id, user_id, content, conversation_id, created_at) VALUES (5, 1, '', 5, '{time}')"
            ))
            .await
            .unwrap_err();
        assert!(refused.as_db_error().unwrap().message().contains("more than an hour ahead"), "{refused}");
    }
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c40_every_text_is_served_byte_for_byte() {
    let mut system = System::start(&[]).await;
    let mut sql = system.sql().await;
    let long = "𝕏".repeat(280);
    let texts: Vec<&str> = TEXTS.iter().copied().chain([long.as_str()]).collect();
    for (from, start_again) in [(0, true), (1_000, false)] {
        for (n, text) in numbered(&texts) {
            let id = from + n;
            let name = format!("u{id}");
            sql.execute("INSERT INTO accounts (user_id, username) VALUES ($1, $2)", &[&id, &name]).await.unwrap();
            let insert = "INSERT INTO users (id, username, display_name, bio, avatar_url) VALUES ($1, $2, $3, $3, $3)";
            sql.execute(insert, &[&id, &name, text]).await.unwrap();
            let insert = "INSERT INTO tweets (id, user_id, content, conversation_id) VALUES ($1, $1, $2, $1)";
            sql.execute(insert, &[&id, text]).await.unwrap();
        }
        if start_again {
            system.interrupt();
            std::fs::remove_dir_all(system.data().join("log")).unwrap();
            system.go().await;
            sql = system.sql().await;
        }
        let last = format!("u{}", from + i64::try_from(texts.len()).unwrap());
        system
            .until("the last text is there", async |system| {
                let tweets = system.get(&format!("/api/users/{last}/tweets"), None).await;
                tweets.status == 200 && !ids(&tweets.body).is_empty()
            })
            .await;
        for (n, text) in numbered(&texts) {
            let id = from + n;
            let user = user(&system, &format!("u{id}")).await;
            assert_eq!([&user["displayName"], &user["bio"], &user["avatarUrl"]], [*text; 3]);
            let tweets = system.get(&format!("/api/users/u{id}/tweets"), None).await.body;
            assert_eq!(tweets["tweets"][0]["content"], *text);
            let tweet = system.get(&format!("/api/tweets/{id}"), None).await.body;
            assert_eq!(tweet.get("tweet").unwrap_or(&tweet)["content"], *text);
        }
        system.verified().await;
    }
    // And in at the front door, where nothing but blanks is no tweet.
    let ada = system.register("ada").await;
    for text in texts.iter().filter(|text| !text.trim().is_empty()) {
        let (id, token) = system.tweet(&ada, text).await;
        let tweet = system.get_after(&token, &format!("/api/tweets/{id}"), None).await.body;
        assert_eq!(tweet.get("tweet").unwrap_or(&tweet)["content"], *text);
    }
    let too_long = "𝕏".repeat(281);
    for text in ["", " \n", &too_long, "a\0b"] {
        let answer = system.post("/api/tweets", Some(&ada), json!({ "content": text })).await;
        assert_eq!(answer.status, 422, "{answer:?}");
    }
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c42_ids_at_their_limits_are_ids_like_others() {
    let mut system = System::start(&["--workers", "2"]).await;
    let sql = system.sql().await;
    let users = [0, -1, 1, i64::MAX, i64::MIN];
    let name = |at: usize| format!("limit{at}");
    let path = |id: i64, list: &str| format!("/api/follows/{id}/{list}?limit=100");
    for (at, id) in users.iter().enumerate() {
        sql.execute("INSERT INTO accounts (user_id, username) VALUES ($1, $2)", &[id, &name(at)]).await.unwrap();
        let insert = "INSERT INTO users (id, username, display_name) VALUES ($1, $2, $2)";
        sql.execute(insert, &[id, &name(at)]).await.unwrap();
        let insert = "INSERT INTO activity (user_id, day) VALUES ($1, (now() AT TIME ZONE 'UTC')::date)";
        sql.execute(insert, &[id]).await.unwrap();
    }
    sql.batch_execute(
        "INSERT INTO follows (follower_id, following_id) SELECT one.id, other.id FROM users AS one, users AS other
             WHERE one.id <> other.id;
         INSERT INTO tweets (id, user_id, content, conversation_id)
             SELECT n, id, 'old', n FROM (VALUES (0, 0), (-1, -1), (1, 9223372036854775807),
                 (-9223372036854775808, -9223372036854775808)) AS limits (n, id);
         INSERT INTO tweets (id, user_id, content, reply_to_id, conversation_id) VALUES (2, 1, 'reply', -1, -1);
         INSERT INTO likes (user_id, tweet_id) SELECT users.id, tweets.id FROM users, tweets;
         INSERT INTO retweets (id, user_id, tweet_id) SELECT id, user_id, id FROM tweets WHERE id < 1;
         INSERT INTO read_marks (user_id, notifications_id) SELECT id, id FROM users",
    )
    .await
    .unwrap();
    for id in [i64::MAX, i64::MAX - 1] {
        let insert = "INSERT INTO tweets (id, user_id, content, conversation_id) VALUES ($1, 0, 'future', $1)";
        let refused = sql.execute(insert, &[&id]).await.unwrap_err();
        assert!(refused.as_db_error().unwrap().message().contains("more than an hour ahead"), "{refused}");
    }
    for start_again in [false, true] {
        if start_again {
            system.interrupt();
            std::fs::remove_dir_all(system.data().join("log")).unwrap();
            system.go().await;
        }
        let all = async |system: &System| {
            let body = system.get("/api/tweets/-9223372036854775808", None).await.body;
            body.get("tweet").unwrap_or(&body)["counts"]["likes"] == 5
        };
        system.until("likes of the least id are counted", all).await;
        for (at, id) in users.into_iter().enumerate() {
            let shown = user(&system, &name(at)).await;
            assert_eq!((&shown["id"], &shown["counts"]["followers"]), (&json!(id.to_string()), &json!(4)), "{shown}");
            for list in ["followers", "following"] {
                let list = system.get(&path(id, list), None).await;
                assert_eq!(list.body["users"].as_array().map(Vec::len), Some(4), "{list:?}");
            }
        }
        system.verified().await;
    }
    // Who has such an id posts, and is read by the others.
    for id in users {
        let author: Account = system.account(id);
        let (tweet, token) = system.tweet(&author, "new").await;
        for viewer in users {
            assert_eq!(system.home(&system.account(viewer), Some(&token)).await[0], tweet, "{viewer} reads {id}");
        }
    }
    system.verified().await;
}
