//! Rows: values that were not sent, keys that change, tables and columns that change.

use serde_json::Value;
use tokio_postgres::Client;

use crate::postgres::Postgres;
use crate::system::{Account, System, ids};

/// SQL for a text of some 4 kB that does not compress, so that it is stored out of line.
const LONG: &str = "(SELECT string_agg(sha512(n::text::bytea)::text, '') FROM generate_series(1, 32) AS n)";

/// A system with two users, Ada and Ben, on a server of the test's own, and an owner's connection to it.
async fn start() -> (Postgres, System, Account, Account, Client) {
    let postgres = Postgres::new(&[]).await;
    let system = System::start_on(&postgres, &[]).await;
    let (ada, ben) = (system.register("ada").await, system.register("ben").await);
    let sql = postgres.sql().await;
    (postgres, system, ada, ben, sql)
}

async fn run(sql: &Client, statements: &str) {
    sql.batch_execute(statements).await.unwrap_or_else(|error| panic!("{statements}: {error:?}"));
}

async fn text(sql: &Client, query: &str) -> String {
    sql.query_one(query, &[]).await.unwrap().get(0)
}

/// A user as served.
async fn profile(system: &System, name: &str) -> Value {
    let answer = system.get(&format!("/api/users/{name}"), None).await;
    answer.body.get("user").unwrap_or(&answer.body).clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn c29_a_value_that_was_not_sent_keeps_what_it_was() {
    let (_postgres, mut system, ada, _, sql) = start().await;
    run(&sql, "ALTER TABLE users_0 ALTER COLUMN bio SET STORAGE EXTERNAL").await;
    run(&sql, &format!("UPDATE users SET bio = {LONG} WHERE id = {}", ada.id)).await;
    let bio = text(&sql, &format!("SELECT bio FROM users WHERE id = {}", ada.id)).await;
    let media = format!("jsonb_build_array({LONG})");
    run(
        &sql,
        &format!(
            "INSERT INTO tweets (id, user_id, content, conversation_id, media) SELECT id, {}, 'old', id, {media} \
                        FROM feedmill_id() AS id",
            ada.id
        ),
    )
    .await;
    for round in 0..3 {
        let name = format!("Ada {round}");
        run(
            &sql,
            &format!(
                "BEGIN; UPDATE users SET display_name = 'x'; UPDATE users SET display_name = '{name}'; \
                            UPDATE tweets SET content = '{name}'; COMMIT"
            ),
        )
        .await;
        system.until("the new name shows", async |system| profile(system, "ada").await["displayName"] == *name).await;
        assert_eq!(profile(&system, "ada").await["bio"], *bio);
        system.verified().await;
        if round == 1 {
            system.kill();
            system.go().await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c30_null_in_an_old_key_means_not_sent() {
    let (_postgres, system, ada, ben, sql) = start().await;
    let eve = system.register("eve").await;
    run(&sql, &format!("INSERT INTO follows (follower_id, following_id) VALUES ({}, {})", ben.id, ada.id)).await;
    run(
        &sql,
        &format!(
            "INSERT INTO tweets (id, user_id, content, conversation_id) SELECT id, {}, 'here', id \
                        FROM feedmill_id() AS id",
            eve.id
        ),
    )
    .await;
    // The old key comes with NULL for `accepted` and `created_at`, for `content` and `user_id`.
    run(&sql, &format!("UPDATE follows SET following_id = {}", eve.id)).await;
    run(&sql, "UPDATE tweets SET id = id + 1, conversation_id = conversation_id + 1").await;
    let id = text(&sql, "SELECT id::text FROM tweets").await;
    system.until("the new keys show", async |system| system.home(&ben, None).await == [id.clone()]).await;
    let followers = system.get(&format!("/api/follows/{}/followers", ada.id), None).await;
    assert_eq!(followers.body["users"].as_array().unwrap().len(), 0, "{followers:?}");
    let served = system.get(&format!("/api/tweets/{id}"), None).await.body;
    assert_eq!(served.get("tweet").unwrap_or(&served)["content"], "here", "{served}");
    run(&sql, "DELETE FROM tweets").await;
    system.until("it is gone", async |system| system.home(&ben, None).await.is_empty()).await;
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c31_a_key_that_changes_is_a_delete_and_an_insert_with_what_was_not_sent() {
    let (_postgres, system, ada, _, sql) = start().await;
    run(
        &sql,
        &format!(
            "INSERT INTO tweets (id, user_id, content, conversation_id, media) SELECT id, {}, 'moves', id, \
                        jsonb_build_array({LONG}) FROM feedmill_id() AS id",
            ada.id
        ),
    )
    .await;
    let old = text(&sql, "SELECT id::text FROM tweets").await;
    system.until("it shows", async |system| system.home(&ada, None).await == [old.clone()]).await;
    run(&sql, "UPDATE tweets SET id = id + 7, conversation_id = conversation_id + 7").await;
    let new = text(&sql, "SELECT id::text FROM tweets").await;
    system.until("it has its new key", async |system| system.home(&ada, None).await == [new.clone()]).await;
    assert_eq!(system.get(&format!("/api/tweets/{old}"), None).await.status, 404);
    let of_ada = system.get("/api/users/ada/tweets", None).await;
    assert_eq!(ids(&of_ada.body), [new]);
    // The row store has the media, though they were not sent: verify compares them.
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c35_columns_that_nobody_reads_come_and_go() {
    let (_postgres, mut system, ada, _, sql) = start().await;
    let mut expected = Vec::new();
    for (round, statement) in [
        "ALTER TABLE tweets ADD COLUMN place point DEFAULT '(1,2)'",
        "ALTER TABLE tweets RENAME COLUMN place TO spot",
        "ALTER TABLE tweets ALTER COLUMN spot TYPE text USING spot::text",
        "ALTER TABLE tweets DROP COLUMN spot",
        "ALTER TABLE users ADD COLUMN shoe_size int NOT NULL DEFAULT 42",
    ]
    .into_iter()
    .enumerate()
    {
        run(&sql, statement).await;
        let (tweet, token) = system.tweet(&ada, statement).await;
        expected.insert(0, tweet);
        assert_eq!(system.home(&ada, Some(&token)).await, expected);
        if round == 1 {
            system.kill();
            system.go().await;
        }
    }
    run(&sql, "UPDATE users SET display_name = 'Ada L.', shoe_size = 36").await;
    system.until("the new name shows", async |system| profile(system, "ada").await["displayName"] == "Ada L.").await;
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c35_a_column_that_is_read_goes_away_and_comes_back() {
    let (postgres, mut system, ada, ben, sql) = start().await;
    let confirmed = "SELECT confirmed_flush_lsn::text FROM pg_replication_slots WHERE slot_name = 'feedmill'";
    let stalled = async |system: &System, column: &str| {
        let health = system.get("/health", None).await.body.to_string();
        health.contains(column) && health.contains("ALTER TABLE users")
    };
    let rename = |name: &str| format!("UPDATE users SET display_name = '{name}' WHERE id = {}", ada.id);
    run(&sql, "ALTER TABLE users RENAME COLUMN bio TO about").await;
    run(&sql, &format!("UPDATE users SET about = 'written meanwhile' WHERE id = {}", ada.id)).await;
    run(&sql, &rename("Ada L.")).await;
    system.until("the column is named", async |system| stalled(system, "bio").await).await;
    // What was there is served, and the slot stays where it is.
    assert_eq!(profile(&system, "ada").await["displayName"], "ada");
    let superuser = postgres.superuser("feedmill").await;
    let before = text(&superuser, confirmed).await;
    run(&sql, &rename("Ada M.")).await;
    run(&sql, "ALTER TABLE users RENAME COLUMN about TO bio").await;
    assert_eq!(text(&superuser, confirmed).await, before);
    system.until("it goes on", async |system| profile(system, "ada").await["displayName"] == "Ada M.").await;
    assert_eq!(profile(&system, "ada").await["bio"], "written meanwhile");
    let (tweet, token) = system.tweet(&ben, "all is well").await;
    assert_eq!(system.home(&ben, Some(&token)).await, [tweet]);
    system.verified().await;

    // A start refuses a table that is not as it is read, and goes on when it is mended.
    run(&sql, "ALTER TABLE users RENAME COLUMN display_name TO shown_as").await;
    run(&sql, &format!("UPDATE users SET shown_as = 'Ada N.' WHERE id = {}", ada.id)).await;
    system.until("the column is named", async |system| stalled(system, "display_name").await).await;
    system.kill();
    let printed = system.expect_start_failure().await;
    assert!(printed.contains("has no column display_name"), "{printed}");
    run(&sql, "ALTER TABLE users RENAME COLUMN shown_as TO display_name").await;
    system.go().await;
    system.until("it goes on", async |system| profile(system, "ada").await["displayName"] == "Ada N.").await;
    system.verified().await;

    // A type that changes, and changes back before a row needs it, disturbs nobody.
    run(&sql, "BEGIN; ALTER TABLE follows ALTER COLUMN accepted TYPE text USING accepted::text; COMMIT").await;
    run(
        &sql,
        "ALTER TABLE follows ALTER COLUMN accepted DROP DEFAULT, ALTER COLUMN accepted TYPE boolean \
               USING accepted::boolean",
    )
    .await;
    run(&sql, &format!("INSERT INTO follows VALUES ({}, {}, true, now())", ada.id, ben.id)).await;
    system.until("the follow shows", async |system| system.home(&ada, None).await.len() == 1).await;
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c36_names_of_other_tables_and_columns_may_be_anything() {
    let (_postgres, mut system, ada, _, sql) = start().await;
    run(
        &sql,
        r#"CREATE SCHEMA "Größe; DROP";
           CREATE TABLE "Größe; DROP"."select ""from"" 表" ("order" int PRIMARY KEY, "ключ ""q""" text, "a b" text);
           CREATE TABLE "Größe; DROP".users (id bigint PRIMARY KEY, username text);
           CREATE TABLE "Tweets" (id bigint PRIMARY KEY, content text);
           ALTER PUBLICATION feedmill ADD TABLE "Größe; DROP"."select ""from"" 表", "Größe; DROP".users, "Tweets";
           ALTER TABLE tweets ADD COLUMN "user" text DEFAULT 'x', ADD COLUMN "日本 ""語""" text, ADD COLUMN "Content" text"#,
    )
    .await;
    let mut expected = Vec::new();
    for round in 0..2 {
        run(
            &sql,
            &format!(
                r#"BEGIN;
                   INSERT INTO "Größe; DROP"."select ""from"" 表" VALUES ({round}, 'ж', ' ');
                   INSERT INTO "Größe; DROP".users VALUES ({0} + {round}, 'not ours');
                   INSERT INTO "Tweets" VALUES ({round}, 'not ours');
                   UPDATE tweets SET "user" = 'y', "日本 ""語""" = 'z', "Content" = 'not this';
                   INSERT INTO tweets (id, user_id, content, conversation_id, "Content") SELECT id, {0}, 'this', id, 'no'
                       FROM feedmill_id() AS id;
                   TRUNCATE "Tweets";
                   COMMIT"#,
                ada.id
            ),
        )
        .await;
        expected.insert(0, text(&sql, "SELECT max(id)::text FROM tweets").await);
        system.until("the post shows", async |system| system.home(&ada, None).await == expected).await;
        system.verified().await;
        system.kill();
        system.go().await;
    }
    let served = system.get(&format!("/api/tweets/{}", expected[0]), None).await.body;
    assert_eq!(served.get("tweet").unwrap_or(&served)["content"], "this", "{served}");
}
