//! What happened to a user, and how much of it is not read yet.

use serde_json::{Value, json};

use crate::reads::{all, id, is_problem, people, reply, token};
use crate::system::System;

/// A notification in short: kind, who, how many, whether it is new.
fn short(notification: &Value) -> Value {
    let users = notification["users"].as_array().unwrap().iter().map(|user| &user["username"]);
    json!([notification["kind"], users.collect::<Vec<_>>(), notification["count"], notification["unread"]])
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_are_grouped_and_counted_until_they_are_read() {
    let system = System::start(&[]).await;
    let sql = system.sql().await;
    let [ada, ben, eve] = people(&system, ["ada", "ben", "eve"]).await;
    let tweet: i64 = system.tweet(&ada, "liked").await.0.parse().unwrap();
    let [a, b, e] = [&ada, &ben, &eve].map(id);
    sql.batch_execute(&format!(
        "INSERT INTO likes (user_id, tweet_id, created_at)
             VALUES ({b}, {tweet}, now() - interval '5 minutes'), ({e}, {tweet}, now() - interval '4 minutes');
         INSERT INTO follows (follower_id, following_id, created_at) VALUES ({b}, {a}, now() - interval '3 minutes');
         INSERT INTO follows (follower_id, following_id, accepted, created_at)
             VALUES ({e}, {a}, false, now() - interval '2 minutes')"
    ))
    .await
    .unwrap();
    let answer = reply(&sql, &eve, tweet, "an answer to @ada").await;
    let (mention, _) = system.tweet(&ben, "hello @Ada").await;
    let now = token(&system, &eve).await;
    let of = |unread: bool| {
        json!([
            ["mention", ["ben"], 1, unread],
            ["reply", ["eve"], 1, unread],
            ["follow_request", ["eve"], 1, unread],
            ["follow", ["ben"], 1, unread],
            ["like", ["eve", "ben"], 2, unread],
        ])
    };
    let read = async |token: &str, path: &str| system.get_after(token, path, Some(&ada)).await.body;
    let page = read(&now, "/api/notifications").await;
    let notifications = page["notifications"].as_array().unwrap();
    assert_eq!(Value::Array(notifications.iter().map(short).collect()), of(true));
    assert_eq!((&page["unread"], &page["nextCursor"]), (&json!({ "count": 6, "more": false }), &Value::Null));
    let tweets: Vec<&Value> = notifications.iter().map(|notification| &notification["tweet"]).collect();
    assert_eq!(tweets[0]["id"], mention);
    assert_eq!(tweets[1]["id"], answer.to_string());
    assert!(tweets[2].is_null() && tweets[3].is_null());
    assert_eq!((&tweets[4]["id"], &tweets[4]["liked"]), (&json!(tweet.to_string()), &json!(false)));
    assert_eq!(notifications[3]["users"][0]["followedBy"], true);
    assert!(notifications[4]["createdAt"].as_str().unwrap().ends_with('Z'));
    for limit in [1, 2, 3] {
        let path = format!("/api/notifications?limit={limit}");
        let paged = all(&system, &now, &path, "notifications", Some(&ada)).await;
        let (kinds, expected): (Vec<&Value>, _) = (paged.iter().map(|one| &one["kind"]).collect(), of(true));
        // What is of one kind may be on two pages.
        let mut kinds = kinds;
        kinds.dedup();
        assert_eq!(kinds, expected.as_array().unwrap().iter().map(|one| &one[0]).collect::<Vec<_>>(), "{limit}");
    }
    assert_eq!(read(&now, "/api/notifications/unread").await, json!({ "count": 6, "more": false }));

    // Up to the follow it was read.
    let mark: i64 = notifications[3]["id"].as_str().unwrap().parse().unwrap();
    sql.execute("INSERT INTO read_marks VALUES ($1, $2)", &[&a, &mark]).await.unwrap();
    let now = token(&system, &eve).await;
    assert_eq!(read(&now, "/api/notifications/unread").await, json!({ "count": 3, "more": false }));
    let page = read(&now, "/api/notifications").await;
    let unread: Vec<&Value> = page["notifications"].as_array().unwrap().iter().map(|one| &one["unread"]).collect();
    assert_eq!(unread, [true, true, true, false, false]);

    sql.execute("INSERT INTO mutes VALUES ($1, $2)", &[&a, &e]).await.unwrap();
    let now = token(&system, &eve).await;
    let page = read(&now, "/api/notifications").await;
    let left: Vec<Value> = page["notifications"].as_array().unwrap().iter().map(short).collect();
    let expected = json!([["mention", ["ben"], 1, true], ["follow", ["ben"], 1, false], ["like", ["ben"], 1, false]]);
    assert_eq!(Value::Array(left), expected);
    assert_eq!(page["unread"]["count"], 1);
    let none = system.get("/api/notifications", Some(&ben)).await.body;
    assert_eq!(none, json!({ "notifications": [], "unread": { "count": 0, "more": false }, "nextCursor": null }));

    for path in ["/api/notifications", "/api/notifications/unread"] {
        is_problem(&system.get(path, None).await, 401, "unauthenticated");
    }
    is_problem(&system.get("/api/notifications?limit=0", Some(&ada)).await, 400, "invalid-limit");
    is_problem(&system.get("/api/notifications?cursor=AXo", Some(&ada)).await, 400, "invalid-cursor");
}
