//! Views that are derived from texts, threads and times: each equals its SQL, which a real PostgreSQL computes.

use rand::seq::IndexedRandom;
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;
use tokio_postgres::Client;

use crate::postgres::Postgres;
use crate::system::System;

/// A system with ten users, on a server of the test's own, and an owner's connection to it.
async fn start() -> (Postgres, System, Client) {
    let postgres = Postgres::new(&[]).await;
    let system = System::start_on(&postgres, &[]).await;
    let sql = postgres.sql().await;
    let people = "
        INSERT INTO accounts (user_id, username) SELECT n, 'User_' || n FROM generate_series(1, 10) AS n;
        INSERT INTO users (id, username, display_name) SELECT n, 'User_' || n, '' FROM generate_series(1, 10) AS n;
        INSERT INTO accounts (user_id, username) VALUES (11, '京子'), (12, 'Ärger');
        INSERT INTO users (id, username, display_name) VALUES (11, '京子', ''), (12, 'Ärger', '')";
    sql.batch_execute(people).await.unwrap();
    (postgres, system, sql)
}

async fn post(sql: &Client, author: i64, content: &str) {
    let insert = "INSERT INTO tweets (id, user_id, content, conversation_id)
                  SELECT id, $1, $2, id FROM feedmill_id() AS id";
    sql.execute(insert, &[&author, &content]).await.unwrap();
}

/// What texts are made of that decide what is a tag, a mention, a link.
const PARTS: [&str; 40] = [
    "#",
    "＃",
    "@",
    "＠",
    " ",
    "  ",
    "\n",
    "\u{3000}",
    "\u{a0}",
    "_",
    "-",
    "/",
    "&",
    ",",
    ".",
    "!",
    ")",
    "(",
    "\"",
    "<",
    "…",
    "http://",
    "https://",
    "HTTP://",
    "a.b",
    "User_1",
    "user_2",
    "京子",
    "ÄRGER",
    "a",
    "1",
    "٣",
    "Straße",
    "ẞ",
    "ΟΔΌΣ",
    "οδός",
    "e\u{301}",
    "\u{301}",
    "İi",
    "🏳️‍🌈",
];

#[tokio::test(flavor = "multi_thread")]
async fn c41_tags_and_mentions_in_every_script_are_the_same_in_sql_and_in_the_dataflow() {
    let (_postgres, system, sql) = start().await;
    let written = [
        "#Rust #rust #ПРИВЕТ #привет #日本語 #한국어 #العربية #हिन्दी #ไทย #ΟΔΌΣ #οδός ＃全角 #café #cafe\u{301} #a_b #9lives #_",
        "# #1 #2024 ## a#b &#x27; #1\u{fe0f}\u{20e3} #❤\u{fe0f} ##a http://a.b/#c HTTPS://a.b/c?d=#e,#f a.b/#c @#a #- é#b",
        "#a#b #a,#b;(#c)\"#d\"#e-#f\n#g. http://a.b #c http://a.b/c,#d",
        "@User_1 and @user_1, (@USER_2) ＠京子: @ärger @Ärger @nobody a@User_3.c @@User_4 http://a.b/@User_5",
    ];
    for text in written {
        post(&sql, 3, text).await;
    }
    // 100 characters, and as long as a tweet can be.
    for length in [100, 279] {
        post(&sql, 4, &format!("#{}", "ß".repeat(length))).await;
    }
    let seed = rand::random();
    println!("SEED={seed}");
    let mut rng = ChaCha8Rng::seed_from_u64(seed);
    for _ in 0..400 {
        let mut text = String::new();
        while text.chars().count() < 40 && rng.random_bool(0.97) {
            match rng.random_range(0..8) {
                // Any character that a text of PostgreSQL's can have.
                0 => text.extend(char::from_u32(rng.random_range(1..0x11_0000))),
                _ => text.push_str(PARTS.choose(&mut rng).unwrap()),
            }
        }
        post(&sql, rng.random_range(1..=10), &text).await;
    }
    sql.batch_execute("UPDATE users SET protected = true WHERE id = 4").await.unwrap();
    system.verified().await;
    let tags: i64 = sql.query_one("SELECT count(*) FROM tweets WHERE content ~ '[#＃]'", &[]).await.unwrap().get(0);
    assert!(tags > 100, "only {tags} texts have a sign");
}

#[tokio::test(flavor = "multi_thread")]
async fn threads_wide_and_deep_equal_their_sql() {
    let (_postgres, mut system, sql) = start().await;
    // A chain that is deeper than any path, and a thread with 10,000 answers to its first tweet and to each other.
    let threads = "
        INSERT INTO tweets (id, user_id, content, reply_to_id, conversation_id)
            SELECT 1000 + n, 1 + n % 10, 'chained', NULLIF(1000 + n - 1, 999), 1000 FROM generate_series(0, 1100) AS n;
        INSERT INTO tweets (id, user_id, content, conversation_id) VALUES (10000, 1, 'wide', 10000);
        INSERT INTO tweets (id, user_id, content, reply_to_id, conversation_id)
            SELECT 10000 + n, 1 + n % 10, 'wide', 10000 + CASE WHEN n % 3 = 0 THEN 0 ELSE n / 2 END, 10000
            FROM generate_series(1, 10000) AS n";
    sql.batch_execute(threads).await.unwrap();
    system.verified().await;
    // Deleted answers keep their place; those that go altogether take what lies below them along.
    let gone = "
        UPDATE tweets SET content = '', deleted_at = now() WHERE id IN (1500, 10003, 10010);
        DELETE FROM tweets WHERE id > 2050 AND id < 10000;
        DELETE FROM tweets WHERE id > 15000";
    sql.batch_execute(gone).await.unwrap();
    system.verified().await;
    system.kill();
    system.go().await;
    sql.batch_execute(
        "INSERT INTO tweets (id, user_id, content, reply_to_id, conversation_id)
        VALUES (2051, 1, 'again', 2050, 1000), (20001, 2, 'again', 14999, 10000)",
    )
    .await
    .unwrap();
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_happened_to_users_goes_with_its_cause() {
    let (_postgres, system, sql) = start().await;
    let causes = "
        INSERT INTO tweets (id, user_id, content, conversation_id)
            SELECT id, 1, 'for @user_2 and @User_3', id FROM feedmill_id() AS id;
        INSERT INTO likes (user_id, tweet_id, created_at)
            SELECT n, id, CASE n WHEN 8 THEN now() + interval '2 hours' WHEN 9 THEN '-infinity' WHEN 10 THEN 'infinity'
                          ELSE now() - n * interval '5 days' END::timestamptz
            FROM tweets, generate_series(1, 10) AS n;
        INSERT INTO retweets (user_id, tweet_id) SELECT n, id FROM tweets, generate_series(1, 5) AS n;
        INSERT INTO follows (follower_id, following_id, accepted, created_at)
            SELECT n, 1, n % 2 = 0, CASE n WHEN 9 THEN '-infinity' WHEN 10 THEN 'infinity' ELSE now() END::timestamptz
            FROM generate_series(2, 10) AS n;
        INSERT INTO read_marks SELECT 1, max(id) FROM tweets";
    sql.batch_execute(causes).await.unwrap();
    system.verified().await;
    for change in [
        "UPDATE accounts SET username = 'Renamed' WHERE user_id = 2",
        "UPDATE accounts SET username = 'User_2' WHERE user_id = 5",
        "UPDATE follows SET accepted = true WHERE follower_id = 3",
        "DELETE FROM likes WHERE user_id < 4",
        "UPDATE users SET deleted_at = now() WHERE id = 3",
        "UPDATE tweets SET content = '', deleted_at = now()",
    ] {
        sql.batch_execute(change).await.unwrap();
        system.verified().await;
    }
}
