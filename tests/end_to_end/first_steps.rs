//! What a new user does on the first day, and what must survive a restart.

use std::time::Duration;

use serde_json::json;

use crate::system::{System, ids};

#[tokio::test(flavor = "multi_thread")]
async fn a_post_reaches_its_followers_and_leaves_them_again() {
    let system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let ben = system.register("Ben").await;
    let (before, _) = system.tweet(&ada, "before anyone follows").await;

    let follow = system.post(&format!("/api/follows/{}", ada.id), Some(&ben), json!({})).await;
    assert!((200..300).contains(&follow.status), "{follow:?}");
    let token = follow.token.unwrap();
    assert_eq!(system.home(&ben, Some(&token)).await, std::slice::from_ref(&before));

    let (second, token) = system.tweet(&ada, "second").await;
    let (own, _) = system.tweet(&ben, "my own").await;
    let (third, last) = system.tweet(&ada, "third").await;
    assert_eq!(system.home(&ben, Some(&last)).await, [third.clone(), own.clone(), second.clone(), before.clone()]);
    assert_eq!(system.home(&ada, Some(&token)).await, [third.clone(), second.clone(), before.clone()]);

    let followers = system.get(&format!("/api/follows/{}/followers", ada.id), None).await;
    assert_eq!(followers.body["users"][0]["username"], "Ben");
    let following = system.get(&format!("/api/follows/{}/following", ben.id), None).await;
    assert_eq!(following.body["users"][0]["username"], "ada");
    let profile = system.get("/api/users/ADA", None).await;
    assert_eq!(profile.body.get("user").unwrap_or(&profile.body)["counts"]["followers"], 1, "{profile:?}");
    assert_eq!(ids(&system.get("/api/users/ada/tweets", None).await.body), [&*third, &*second, &*before]);

    let deleted = system.delete(&format!("/api/tweets/{second}"), Some(&ada)).await;
    let token = deleted.token.unwrap();
    assert_eq!(system.home(&ben, Some(&token)).await, [third.clone(), own.clone(), before.clone()]);
    assert_eq!(system.get_after(&token, &format!("/api/tweets/{second}"), None).await.status, 404);

    let unfollow = system.delete(&format!("/api/follows/{}", ada.id), Some(&ben)).await;
    assert_eq!(system.home(&ben, Some(&unfollow.token.unwrap())).await, [own]);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn it_goes_on_where_it_stopped_whether_asked_to_stop_or_killed() {
    let mut system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let ben = system.register("ben").await;
    system.post(&format!("/api/follows/{}", ada.id), Some(&ben), json!({})).await;
    let mut expected = vec![system.tweet(&ada, "one").await.0];

    let (status, took) = system.interrupt();
    assert!(status.success(), "{status}");
    assert!(took < Duration::from_secs(60), "it hung for {took:?}");
    system.go().await;
    assert_eq!(system.home(&ben, None).await, expected);

    let (two, token) = system.tweet(&ada, "two").await;
    expected.insert(0, two);
    assert_eq!(system.home(&ben, Some(&token)).await, expected);
    system.kill();

    // PostgreSQL goes on without us, and takes writes that we have not seen.
    let sql = system.sql().await;
    let id: i64 = sql
        .query_one(
            "INSERT INTO tweets (user_id, content, conversation_id, id) SELECT id, 'three', n, n
                    FROM users, feedmill_id() AS n WHERE username = 'ada' RETURNING id",
            &[],
        )
        .await
        .unwrap()
        .get(0);
    expected.insert(0, id.to_string());
    system.go().await;
    system
        .until("the post that was written meanwhile shows", async |system| system.home(&ben, None).await == expected)
        .await;
    let printed = system.verified().await;
    assert!(printed.contains("home as served"), "{printed}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_second_process_on_the_same_folder_is_refused() {
    let system = System::start(&[]).await;
    let output = system.command(&["up", "--listen", "127.0.0.1:0"]).await;
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("another"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn every_relation_reaches_its_view_and_leaves_it() {
    let system = System::start(&["--hot-followers", "2", "--workers", "2"]).await;
    let sql = system.sql().await;
    sql.batch_execute(include_str!("every_relation.sql")).await.unwrap();
    system.until("all views are there", async |system| system.get("/api/users/u5", None).await.status == 200).await;
    system.verified().await;
    for statement in [
        "UPDATE users SET verified = true WHERE id = 3",
        "UPDATE users SET protected = true WHERE id = 4",
        "UPDATE follows SET accepted = NOT accepted WHERE follower_id = 1",
        "DELETE FROM follows WHERE follower_id = 5",
        "UPDATE tweets SET content = '', media = NULL, deleted_at = now() WHERE user_id = 2",
        "INSERT INTO blocks VALUES (1, 3)",
        "DELETE FROM mutes",
        "UPDATE users SET verified = false WHERE id = 3",
        "DELETE FROM activity WHERE user_id = 1",
        "DELETE FROM blocks",
        "UPDATE accounts SET username = 'renamed' WHERE user_id = 5",
        "TRUNCATE likes, retweets",
    ] {
        sql.batch_execute(statement).await.unwrap_or_else(|error| panic!("{statement}: {error:?}"));
        system.verified().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn verify_tells_what_the_log_did_not() {
    let system = System::start(&[]).await;
    let (ada, ben) = (system.register("ada").await, system.register("ben").await);
    system.verified().await;
    // A row that the source has and its log never told of.
    let sql = system.sql().await;
    sql.batch_execute("ALTER PUBLICATION feedmill DROP TABLE mutes").await.unwrap();
    let (muter, muted): (i64, i64) = (ada.id.parse().unwrap(), ben.id.parse().unwrap());
    sql.execute("INSERT INTO mutes VALUES ($1, $2)", &[&muter, &muted]).await.unwrap();
    sql.batch_execute("ALTER PUBLICATION feedmill ADD TABLE mutes").await.unwrap();
    let output = system.command(&["verify", "--format", "json"]).await;
    assert_eq!(output.status.code(), Some(1));
    let printed = String::from_utf8(output.stdout).unwrap();
    let differing: Vec<serde_json::Value> = printed
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .filter(|report: &serde_json::Value| report["missing"].as_u64() > Some(0) || report["extra"].as_u64() > Some(0))
        .collect();
    assert_eq!(differing.len(), 1, "{printed}");
    assert_eq!((&differing[0]["view"], &differing[0]["missing"]), (&json!("mutes"), &json!(1)));
    assert!(differing[0]["examples"][0].as_str().unwrap().contains(&ben.id), "{printed}");
}
