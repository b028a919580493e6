//! What likes bring: it may come later than all else, and never earlier.

use serde_json::json;

use crate::postgres::Postgres;
use crate::system::{Account, System};

/// Users who like, and tweets that they like: more likes than a batch of the change log holds in memory.
const LIKERS: i64 = 1_000;
const TWEETS: i64 = 80;

async fn likes_of(system: &System, tweet: &str) -> i64 {
    let body = system.get(&format!("/api/tweets/{tweet}"), None).await.is(200);
    body["counts"]["likes"].as_i64().unwrap()
}

/// Makes users and tweets of `author`, and gives the ids of the first and the last tweet.
async fn fill(sql: &tokio_postgres::Client, author: &Account) -> [String; 2] {
    let users = format!(
        "SET session_replication_role = replica; \
         INSERT INTO accounts (user_id, username) SELECT n, 'u' || n FROM generate_series(1, {LIKERS}) AS n; \
         INSERT INTO users (id, username, display_name) SELECT n, 'u' || n, 'U' FROM generate_series(1, {LIKERS}) AS n; \
         INSERT INTO tweets (id, user_id, content, conversation_id) SELECT id, {}, 'liked', id \
         FROM (SELECT feedmill_id() AS id FROM generate_series(1, {TWEETS})) AS ids",
        author.id
    );
    sql.batch_execute(&users).await.unwrap();
    let row = sql.query_one("SELECT min(id), max(id) FROM tweets WHERE content = 'liked'", &[]).await.unwrap();
    [row.get::<_, i64>(0), row.get::<_, i64>(1)].map(|id| id.to_string())
}

async fn like_all(sql: &tokio_postgres::Client) {
    let likes = "INSERT INTO likes (user_id, tweet_id) SELECT u.id, t.id FROM users u, tweets t \
                 WHERE t.content = 'liked' AND u.username LIKE 'u%'";
    assert_eq!(sql.execute(likes, &[]).await.unwrap(), (LIKERS * TWEETS) as u64);
}

#[tokio::test(flavor = "multi_thread")]
async fn c26_posts_behind_a_large_transaction_of_likes_do_not_wait_for_what_it_brings() {
    let postgres = Postgres::new(&["logical_decoding_work_mem = 1MB"]).await;
    let mut system = System::start_on(&postgres, &["--read-wait-ms", "300"]).await;
    let (ada, ben) = (system.register("ada").await, system.register("ben").await);
    let followed = system.post(&format!("/api/follows/{}", ada.id), Some(&ben), json!({})).await;
    assert!((200..300).contains(&followed.status), "{followed:?}");
    let sql = postgres.superuser("feedmill").await;
    let [first, last] = fill(&sql, &ada).await;
    // What likes bring does not come in this process, which is therefore never ready.
    system.kill();
    system.failpoints = Some("reactions_handed_over_before=pause".to_owned());
    system.spawn().await.unwrap();
    like_all(&sql).await;

    // It was committed later, so all of the transaction has been passed by when it shows.
    let (post, token) = system.tweet(&ada, "behind it").await;
    system.until("the post shows", async |system| system.home(&ben, None).await.first() == Some(&post)).await;
    assert_eq!(likes_of(&system, &first).await, 0);
    assert_eq!(likes_of(&system, &last).await, 0);
    system.get_after(&token, &format!("/api/tweets/{post}"), Some(&ada)).await.is(200);
    system.delete(&format!("/api/tweets/{post}"), Some(&ada)).await.is(204);
    let is_gone = async |system: &System| system.get(&format!("/api/tweets/{post}"), None).await.status == 404;
    system.until("what is deleted is gone", is_gone).await;

    // Who has liked something meanwhile is told that it is late, wherever that would show.
    let path = format!("/api/tweets/{first}");
    let liked = system.post(&format!("{path}/like"), Some(&ben), json!({})).await;
    liked.is(204);
    for path in [&path, &format!("{path}/likes"), "/api/timeline"] {
        system.get_after(liked.written(), path, Some(&ben)).await.is_problem(503, "not-yet-visible");
    }
    // So it is with what is written next.
    let (_, next) = system.tweet(&ben, "after a like").await;
    system.get_after(&next, &path, Some(&ben)).await.is_problem(503, "not-yet-visible");
    // What happened to somebody comes with the likes.
    system.get_after(&token, "/api/notifications", Some(&ada)).await.is_problem(503, "not-yet-visible");
    // Nobody else waits.
    system.get(&path, None).await.is(200);

    system.kill();
    system.failpoints = None;
    system.go().await;
    assert_eq!(likes_of(&system, &first).await, LIKERS + 1);
    assert_eq!(likes_of(&system, &last).await, LIKERS);
    system.get_after(&next, &path, Some(&ben)).await.is(200);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c43_each_of_rows_and_reactions_may_be_ahead_of_the_other_when_the_process_is_killed() {
    let postgres = Postgres::new(&["logical_decoding_work_mem = 1MB"]).await;
    let mut system = System::start_on(&postgres, &[]).await;
    let ada = system.register("ada").await;
    let sql = postgres.superuser("feedmill").await;
    let [first, _] = fill(&sql, &ada).await;
    // The rows have the transaction, and the reactions a part of it in their tables.
    system.kill();
    system.failpoints = Some("sink_write_part_after=return".to_owned());
    system.go().await;
    like_all(&sql).await;
    system.wait();
    system.failpoints = None;
    system.go().await;
    assert_eq!(likes_of(&system, &first).await, LIKERS);
    system.verified().await;
    // The rows begin anew, and the reactions are where they were; and the other way round.
    let killed = [("counts", "emptied_after"), ("likers", "emptied_after"), ("likers", "done_before")];
    for (views, point) in killed {
        system.kill();
        system.failpoints = Some(format!("replay_{point}=return"));
        system.go().await;
        system.command(&["replay", views]).await;
        system.wait();
        system.failpoints = None;
        system.go().await;
        let ended = async |system: &System| !system.data().join("replay").exists();
        system.until("the replay has gone on to its end", ended).await;
        assert_eq!(likes_of(&system, &first).await, LIKERS, "{views} at {point}");
        system.verified().await;
    }
}
