//! The schema holds what it promises: constraints, triggers, partitions, publication.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    dead_code,
    reason = "a test fails by panicking; fixtures serve several tests"
)]

mod fixture;

use feedmill_connectors::postgres::schema::{self, SchemaError};
use feedmill_connectors::postgres::validate::Unfit;
use feedmill_model::{Relation, id_at, ms_of};
use fixture::Fixture;
use tokio_postgres::error::SqlState;

/// The SQLSTATE and the constraint with which the statement fails.
async fn refused(fixture: &Fixture, sql: &str) -> (SqlState, String) {
    let error = fixture.client.batch_execute(sql).await.expect_err(sql);
    let error = error.as_db_error().unwrap();
    let named = error.constraint().unwrap_or(error.message());
    (error.code().clone(), named.to_owned())
}

async fn integer(fixture: &Fixture, sql: &str) -> i64 {
    fixture.client.query_one(sql, &[]).await.unwrap_or_else(|error| panic!("{sql}: {error:?}")).get(0)
}

#[tokio::test]
async fn preparing_twice_changes_nothing() {
    let fixture = Fixture::new("schema_twice").await;
    let catalogue = "SELECT string_agg(c::text, E'\\n' ORDER BY c::text) FROM ( \
                     SELECT relname || relkind::text || oid FROM pg_class WHERE relnamespace = 'public'::regnamespace \
                     UNION ALL SELECT proname || oid FROM pg_proc WHERE pronamespace = 'public'::regnamespace \
                     UNION ALL SELECT pubname || oid FROM pg_publication \
                     UNION ALL SELECT version || checksum FROM refinery_schema_history) AS c";
    let before: String = fixture.client.query_one(catalogue, &[]).await.unwrap().get(0);
    let (one, other) = tokio::join!(schema::prepare(&fixture.source), schema::prepare(&fixture.source));
    one.unwrap();
    other.unwrap();
    let after: String = fixture.client.query_one(catalogue, &[]).await.unwrap().get(0);
    assert_eq!(before, after);
    for relation in Relation::ALL {
        let sql = format!("SELECT {} FROM {} WHERE false", relation.columns().join(", "), relation.table());
        fixture.run(&sql).await;
    }
}

#[tokio::test]
async fn names_are_unique_and_follow_the_account() {
    let fixture = Fixture::new("schema_names").await;
    fixture.users(&[1, 2]).await;
    let insert = |values: &str| format!("INSERT INTO accounts (user_id, username, email) VALUES {values}");
    fixture.run(&insert("(3, 'Ada_1', 'ada@example.org')")).await;
    assert_eq!(refused(&fixture, &insert("(4, 'aDA_1', NULL)")).await.1, "accounts_username_key");
    assert_eq!(refused(&fixture, &insert("(4, 'bob', 'ADA@example.org')")).await.1, "accounts_email_key");
    for name in ["", "with space", "a-b", "@ada", "a23456789012345678901234567890x"] {
        assert_eq!(refused(&fixture, &insert(&format!("(4, '{name}', NULL)"))).await.0, SqlState::CHECK_VIOLATION);
    }
    let other = "INSERT INTO users (id, username, display_name) VALUES (3, 'other', '')";
    assert_eq!(refused(&fixture, other).await.0, SqlState::FOREIGN_KEY_VIOLATION);
    fixture.run("UPDATE accounts SET username = 'renamed' WHERE user_id = 1").await;
    let name: String = fixture.client.query_one("SELECT username FROM users WHERE id = 1", &[]).await.unwrap().get(0);
    assert_eq!(name, "renamed");
    assert_eq!(integer(&fixture, "SELECT count(*) FROM pg_inherits WHERE inhparent = 'users'::regclass").await, 8);
}

#[tokio::test]
async fn tweets_are_checked() {
    let fixture = Fixture::new("schema_tweets").await;
    fixture.users(&[1]).await;
    let tweet = |values: &str| {
        format!("INSERT INTO tweets (id, user_id, content, reply_to_id, conversation_id, deleted_at) VALUES ({values})")
    };
    fixture.run(&tweet("10, 1, repeat('😀', 280), NULL, 10, NULL")).await;
    fixture.run(&tweet("11, 1, 're', 10, 10, NULL")).await;
    for (values, constraint) in [
        ("12, 1, repeat('x', 281), NULL, 12, NULL", "tweets_content_length"),
        ("9, 1, 're', 10, 9, NULL", "tweets_reply_is_later"),
        ("12, 1, 're', 10, 12, NULL", "tweets_conversation_is_a_thread"),
        ("12, 1, 'x', NULL, 11, NULL", "tweets_conversation_is_a_thread"),
        ("12, 1, 'x', NULL, 12, now()", "tweets_deleted_is_empty"),
        ("12, 7, 'x', NULL, 12, NULL", "tweets_user_id_fkey"),
        ("12, 1, 're', 8, 8, NULL", "tweets_reply_to_id_fkey"),
    ] {
        assert_eq!(refused(&fixture, &tweet(values)).await.1, constraint, "{values}");
    }
    fixture.run("UPDATE tweets SET content = '', media = NULL, deleted_at = now() WHERE id = 10").await;
}

#[tokio::test]
async fn the_future_is_refused() {
    let fixture = Fixture::new("schema_future").await;
    fixture.users(&[1]).await;
    fixture.run("INSERT INTO tweets (id, user_id, content, conversation_id) VALUES (10, 1, '', 10)").await;
    let now = integer(&fixture, "SELECT feedmill_micros(now()) / 1000").await;
    let (soon, later) = (id_at(now + 3_540_000, 0), id_at(now + 3_660_000, 0));
    let tweet = |id: i64, at: &str| {
        format!(
            "INSERT INTO tweets (id, user_id, content, conversation_id, created_at) VALUES ({id}, 1, '', {id}, {at})"
        )
    };
    let retweet = |id: i64, at: &str| {
        format!("INSERT INTO retweets (id, user_id, tweet_id, created_at) VALUES ({id}, 1, 10, {at})")
    };
    for sql in [
        tweet(later, "now()"),
        tweet(1, "now() + interval '61 minutes'"),
        tweet(1, "'infinity'"),
        retweet(later, "now()"),
        retweet(1, "now() + interval '61 minutes'"),
        "UPDATE tweets SET created_at = now() + interval '61 minutes'".to_owned(),
    ] {
        let (code, message) = refused(&fixture, &sql).await;
        assert_eq!(code, SqlState::CHECK_VIOLATION, "{sql}");
        assert!(message.contains("more than an hour ahead"), "{message}");
    }
    fixture.run(&tweet(soon, "now() + interval '59 minutes'")).await;
    fixture.run(&retweet(soon, "'-infinity'")).await;
}

#[tokio::test]
async fn a_block_ends_follows_both_ways() {
    let fixture = Fixture::new("schema_blocks").await;
    fixture.users(&[1, 2, 3]).await;
    fixture.run("INSERT INTO follows (follower_id, following_id) VALUES (1, 2), (2, 1), (1, 3), (3, 1)").await;
    fixture.run("INSERT INTO blocks VALUES (1, 2)").await;
    let left = "SELECT sum(follower_id * 10 + following_id)::bigint FROM follows";
    assert_eq!(integer(&fixture, left).await, 13 + 31);
    assert_eq!(refused(&fixture, "INSERT INTO follows VALUES (1, 1)").await.1, "follows_not_oneself");
    assert_eq!(refused(&fixture, "INSERT INTO blocks VALUES (1, 1)").await.1, "blocks_not_oneself");
    assert_eq!(refused(&fixture, "INSERT INTO mutes VALUES (1, 1)").await.1, "mutes_not_oneself");
    assert_eq!(refused(&fixture, "INSERT INTO mutes VALUES (1, 9)").await.1, "mutes_muted_id_fkey");
}

#[tokio::test]
async fn ids_are_ordered_by_time_and_unique() {
    let fixture = Fixture::new("schema_ids").await;
    let clock = "SELECT feedmill_micros(clock_timestamp()) / 1000";
    let before = integer(&fixture, clock).await;
    let ids = fixture.client.query("SELECT feedmill_id() FROM generate_series(1, 60000)", &[]).await.unwrap();
    let after = integer(&fixture, clock).await;
    let ids: Vec<i64> = ids.iter().map(|row| row.get(0)).collect();
    assert!(ids.iter().all(|id| (before..=after).contains(&ms_of(*id))));
    assert_eq!(ids.iter().collect::<std::collections::HashSet<_>>().len(), 60_000);
    assert!(ids.is_sorted_by_key(|id| ms_of(*id)));
    // Inlined where it is a default: the plan names the sequence, not the function.
    let plan =
        fixture.client.query("EXPLAIN (VERBOSE) SELECT feedmill_id(), feedmill_micros(now())", &[]).await.unwrap();
    let plan: String = plan.iter().map(|row| row.get::<_, String>(0)).collect();
    assert!(plan.contains("nextval") && !plan.contains("feedmill_id") && !plan.contains("feedmill_micros"), "{plan}");
}

#[tokio::test]
async fn micros_have_no_gaps() {
    let fixture = Fixture::new("schema_micros").await;
    for (time, micros) in [
        ("'1970-01-01 00:00:00+00'", 0),
        ("'2024-02-29 23:59:59.999999+00'", 1_709_251_199_999_999),
        ("'4714-11-24 00:00:00+00 BC'", -210_866_803_200_000_000),
        ("'infinity'", i64::MAX),
        ("'-infinity'", i64::MIN),
        ("'294247-01-10 04:00:54.775805+00'", i64::MAX - 2),
        ("'294276-12-31 23:59:59.999999+00'", i64::MAX - 1),
    ] {
        assert_eq!(integer(&fixture, &format!("SELECT feedmill_micros({time})")).await, micros, "{time}");
    }
    assert_eq!(integer(&fixture, "SELECT coalesce(feedmill_micros(NULL), 7)").await, 7);
}

#[tokio::test]
async fn partitions_are_quarters_and_made_once() {
    let fixture = Fixture::new("schema_partitions").await;
    fixture.users(&[1]).await;
    let count = "SELECT count(*) FROM pg_inherits WHERE inhparent = 'tweets'::regclass";
    // The default partition, this quarter, and those ahead.
    assert_eq!(integer(&fixture, count).await, 2 + i64::from(schema::QUARTERS_AHEAD));
    assert_eq!(schema::ensure_partitions(&fixture.client, schema::QUARTERS_AHEAD).await.unwrap(), 0);
    let made = "SELECT feedmill_ensure_partitions(feedmill_micros('2019-12-31 23:59:59.999+00') / 1000, \
                feedmill_micros('2020-04-01 00:00+00') / 1000)::bigint";
    let other = fixture.source.connect("test").await.unwrap();
    let (one, two) =
        tokio::join!(integer(&fixture, made), async { other.query_one(made, &[]).await.unwrap().get::<_, i64>(0) });
    assert_eq!(one + two, 3, "{one} {two}");
    let insert = |at: &str| {
        format!(
            "INSERT INTO tweets (id, user_id, content, conversation_id, created_at) \
             SELECT id, 1, '', id, now() FROM (SELECT (feedmill_micros('{at}') / 1000) << 16 AS id) AS ids \
             RETURNING tableoid::regclass::text"
        )
    };
    for (at, partition) in [
        ("2019-12-31 23:59:59.999+00", "tweets_2019_q4"),
        ("2020-01-01 00:00+00", "tweets_2020_q1"),
        ("2020-04-01 00:00+00", "tweets_2020_q2"),
        ("2018-05-05 00:00+00", "tweets_default"),
        ("1969-12-31 23:59:59+00", "tweets_default"),
    ] {
        let row = fixture.client.query_one(&insert(at), &[]).await.unwrap();
        assert_eq!(row.get::<_, &str>(0), partition);
    }
    // A quarter of which the default partition holds rows is left to it; its neighbour is made.
    let around = "SELECT feedmill_ensure_partitions(feedmill_micros('2018-04-01') / 1000, \
                  feedmill_micros('2018-07-01') / 1000)::bigint";
    assert_eq!(integer(&fixture, around).await, 1);
    let century = "SELECT feedmill_ensure_partitions(0, feedmill_micros('2090-01-01') / 1000)";
    assert_eq!(refused(&fixture, century).await.0, SqlState::PROGRAM_LIMIT_EXCEEDED);
}

#[tokio::test]
async fn a_reader_does_not_let_partitions_stop_the_writers() {
    let fixture = Fixture::new("schema_locks").await;
    let mut reader = fixture.source.connect("test").await.unwrap();
    let transaction = reader.transaction().await.unwrap();
    transaction.query("SELECT FROM tweets", &[]).await.unwrap();
    let ahead = schema::QUARTERS_AHEAD + 1;
    let error = schema::ensure_partitions(&fixture.client, ahead).await.unwrap_err();
    assert!(error.is_transient(), "{error}");
    transaction.rollback().await.unwrap();
    assert_eq!(schema::ensure_partitions(&fixture.client, ahead).await.unwrap(), 1);
}

#[tokio::test]
async fn c37_a_publication_that_lacks_something_is_refused_with_what_mends_it() {
    let fixture = Fixture::new("schema_publication").await;
    for (spoil, word) in [
        ("ALTER PUBLICATION feedmill DROP TABLE likes", "likes"),
        ("ALTER PUBLICATION feedmill SET (publish_via_partition_root = false)", "partition root"),
        ("ALTER PUBLICATION feedmill SET (publish = 'insert')", "does not publish updates"),
    ] {
        fixture.run(spoil).await;
        let error = schema::prepare(&fixture.source).await.unwrap_err();
        assert!(!error.is_transient());
        let SchemaError::Unfit(Unfit(findings)) = error else { panic!("{error}") };
        let [finding] = findings.as_slice() else { panic!("{findings:?}") };
        assert!(finding.found.contains(word), "{finding}");
        fixture.run(finding.mend.as_ref().unwrap()).await;
        schema::prepare(&fixture.source).await.unwrap();
    }
    let version = "SELECT current_setting('server_version_num')::bigint / 10000";
    if integer(&fixture, version).await >= 15 {
        fixture.run("ALTER PUBLICATION feedmill SET TABLE users (id, username)").await;
        let error = schema::prepare(&fixture.source).await.unwrap_err().to_string();
        assert!(error.contains("users.display_name"), "{error}");
    }
}

#[tokio::test]
async fn c59_the_role_is_no_superuser() {
    let fixture = Fixture::new("schema_role").await;
    let role = "SELECT rolsuper, rolreplication, rolcreaterole FROM pg_roles WHERE rolname = current_user";
    let row = fixture.client.query_one(role, &[]).await.unwrap();
    assert_eq!((row.get(0), row.get(1), row.get(2)), (false, true, false));
}
