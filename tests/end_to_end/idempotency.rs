//! A request that is sent again is done once.

use std::collections::BTreeSet;
use std::time::Duration;

use futures::future::join_all;
use serde_json::{Value, json};

use crate::system::{Account, Answer, PASSWORD, System};

async fn post(system: &System, by: &Account, key: &str, path: &str, body: Value) -> Answer {
    system.ask("POST", path, Some(by), &[("Idempotency-Key", key)], body).await
}

async fn count(system: &System, table: &str) -> i64 {
    let sql = system.sql().await;
    sql.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await.unwrap().get(0)
}

#[tokio::test(flavor = "multi_thread")]
async fn the_same_request_has_the_same_answer_and_is_done_once() {
    let mut system = System::start(&[]).await;
    let (ada, ben) = (system.register("ada").await, system.register("ben").await);
    let tweet = json!({ "content": "once, \"ü\"" });
    let first = post(&system, &ada, "key-1", "/api/tweets", tweet.clone()).await;
    let posted = first.is(201);
    let path = format!("/api/tweets/{}", posted["id"].as_str().unwrap());
    // Also after a crash, and with the token of a write.
    for crash in [false, true] {
        if crash {
            system.kill();
            system.go().await;
        }
        let again = post(&system, &ada, "key-1", "/api/tweets", tweet.clone()).await;
        assert_eq!(again.is(201), posted);
        assert_eq!(again.headers["content-type"], first.headers["content-type"]);
        assert_eq!(system.get_after(again.written(), &path, None).await.is(200)["content"], "once, \"ü\"");
    }
    assert_eq!(count(&system, "tweets").await, 1);

    // The key is of this user, this path and this body.
    for (path, body) in [
        ("/api/tweets".to_owned(), json!({ "content": "twice" })),
        ("/api/notifications/read".to_owned(), json!({ "upTo": "1" })),
        (format!("{path}/like"), Value::Null),
        (format!("/api/follows/{}", ben.id), Value::Null),
    ] {
        post(&system, &ada, "key-1", &path, body).await.is_problem(422, "idempotency-key-reused");
    }
    assert_ne!(post(&system, &ben, "key-1", "/api/tweets", tweet.clone()).await.is(201)["id"], posted["id"]);
    assert_ne!(post(&system, &ada, "key-2", "/api/tweets", tweet).await.is(201)["id"], posted["id"]);

    // Every POST of a user takes one.
    let follow = format!("/api/follows/{}", ada.id);
    let followed = post(&system, &ben, "f", &follow, Value::Null).await.is(201);
    system.delete(&follow, Some(&ben)).await.is(204);
    assert_eq!(post(&system, &ben, "f", &follow, Value::Null).await.is(201), followed);
    assert_eq!(count(&system, "follows").await, 0);
    for (key, path, body, table) in [
        ("l", format!("{path}/like"), Value::Null, "likes"),
        ("r", format!("{path}/retweet"), Value::Null, "retweets"),
        ("n", "/api/notifications/read".to_owned(), json!({ "upTo": "1" }), "read_marks"),
    ] {
        for _ in 0..2 {
            let done = post(&system, &ben, key, &path, body.clone()).await;
            assert_eq!(done.is(204), Value::Null);
            assert!(!done.written().is_empty());
        }
        assert_eq!(count(&system, table).await, 1, "{table}");
    }
    let change = json!({ "password": PASSWORD, "newPassword": "staple battery" });
    for _ in 0..2 {
        post(&system, &ben, "p", "/api/auth/password", change.clone()).await.is(204);
    }
    let other = json!({ "password": "staple battery", "newPassword": "another battery" });
    let reused = post(&system, &ben, "p", "/api/auth/password", other.clone()).await;
    reused.is_problem(422, "idempotency-key-reused");
    // Also where both are sent before either is answered: one of the two is done, and only that is told so.
    let another = json!({ "password": "staple battery", "newPassword": "a third battery" });
    let both = [other, another].map(|change| post(&system, &ben, "q", "/api/auth/password", change));
    let mut statuses: Vec<u16> = join_all(both).await.iter().map(|answer| answer.status).collect();
    statuses.sort_unstable();
    // To the one that comes late the old password may be none any more.
    assert!(statuses[0] == 204 && [403, 422].contains(&statuses[1]), "{statuses:?}");
    let kept = "SELECT string_agg(k::text, ' ') FROM idempotency_keys AS k";
    let kept: String = system.sql().await.query_one(kept, &[]).await.unwrap().get(0);
    assert!(!kept.contains(PASSWORD) && !kept.contains("staple"));

    for key in ["", " ", "two words", &"x".repeat(256)] {
        post(&system, &ada, key, "/api/tweets", json!({ "content": "x" }))
            .await
            .is_problem(400, "invalid-idempotency-key");
    }
    let twice = [("Idempotency-Key", "a"), ("Idempotency-Key", "b")];
    let answer = system.ask("POST", "/api/tweets", Some(&ada), &twice, json!({ "content": "x" })).await;
    answer.is_problem(400, "invalid-idempotency-key");
    post(&system, &ada, &"x".repeat(255), "/api/tweets", json!({ "content": "x" })).await.is(201);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_not_kept() {
    let system = System::start(&[]).await;
    let (ada, ben) = (system.register("ada").await, system.register("ben").await);
    let follow = format!("/api/follows/{}", ada.id);
    system.put(&format!("/api/blocks/{}", ben.id), Some(&ada)).await.is(204);
    post(&system, &ben, "k", &follow, Value::Null).await.is_problem(403, "blocked");
    system.delete(&format!("/api/blocks/{}", ben.id), Some(&ada)).await.is(204);
    post(&system, &ben, "k", &follow, Value::Null).await.is(201);
    post(&system, &ben, "t", "/api/tweets", json!({ "content": "" })).await.is_problem(422, "invalid-content");
    post(&system, &ben, "t", "/api/tweets", json!({ "content": "x" })).await.is(201);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_many_at_the_same_time_one_is_done() {
    let system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let mut ids = BTreeSet::new();
    for round in 0..5 {
        let key = format!("round-{round}");
        let tweet = || json!({ "content": format!("round {round}") });
        let answers = join_all((0..8).map(|_| post(&system, &ada, &key, "/api/tweets", tweet()))).await;
        let done: BTreeSet<String> = answers.iter().map(|answer| answer.is(201)["id"].to_string()).collect();
        assert_eq!(done.len(), 1, "{answers:?}");
        ids.extend(done);
    }
    assert_eq!((ids.len(), count(&system, "tweets").await), (5, 5));

    // One that takes too long keeps the others from waiting for ever.
    let mut sql = system.sql().await;
    let held = sql.transaction().await.unwrap();
    let claim = "INSERT INTO idempotency_keys (user_id, key, request_hash) VALUES ($1, 'held', '')";
    held.execute(claim, &[&ada.id.parse::<i64>().unwrap()]).await.unwrap();
    let tweet = json!({ "content": "held" });
    post(&system, &ada, "held", "/api/tweets", tweet.clone()).await.is_problem(409, "idempotency-key-in-use");

    // A request that is given up while it waits leaves no transaction and no key behind.
    let given_up = system.http.post(format!("{}/api/tweets", system.url)).bearer_auth(&ada.token).json(&tweet);
    let given_up = given_up.header("Idempotency-Key", "held").timeout(Duration::from_millis(300)).send().await;
    assert!(given_up.unwrap_err().is_timeout());
    held.rollback().await.unwrap();
    let open =
        "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'feedmill-api' AND xact_start IS NOT NULL";
    let is_closed = async |_: &System| sql.query_one(open, &[]).await.unwrap().get::<_, i64>(0) == 0;
    system.until("no transaction is open", is_closed).await;
    post(&system, &ada, "held", "/api/tweets", tweet).await.is(201);
    assert_eq!(count(&system, "tweets").await, 6);
    system.verified().await;
}
