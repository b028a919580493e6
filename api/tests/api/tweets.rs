//! Post, read, delete.

use serde_json::json;

use crate::world::World;

#[tokio::test(flavor = "multi_thread")]
async fn a_tweet_is_posted_and_read() {
    let world = World::new("tweet").await;
    let ada = world.register("ada").await;
    let answer = world.post("/api/tweets", Some(&ada), json!({ "content": "Hello, \u{1F30D}\n\"world\"" })).await;
    let posted = answer.is(201);
    assert!(!answer.token().is_empty());
    assert_eq!(posted["content"], "Hello, \u{1F30D}\n\"world\"");
    assert_eq!(posted["counts"], json!({ "likes": 0, "retweets": 0, "replies": 0 }));
    assert_eq!(
        posted["author"],
        json!({
            "id": ada.id, "username": "ada", "displayName": "ada", "avatarUrl": null, "verified": false, "protected": false,
            "following": false, "followedBy": false, "requested": false, "blocking": false, "muting": false,
        })
    );
    assert_eq!((&posted["liked"], &posted["retweeted"]), (&json!(false), &json!(false)));
    assert!(posted.get("retweetedBy").is_none() && posted.get("replyTo").is_none());
    assert_eq!(posted["createdAt"].as_str().unwrap().len(), 27);

    let path = format!("/api/tweets/{}", posted["id"].as_str().unwrap());
    world.get(&path, None).await.is_problem(404, "tweet-not-found");
    world.catch_up().await;
    for viewer in [None, Some(&ada)] {
        let read = world.get(&path, viewer).await;
        let mut expected = posted.clone();
        if viewer.is_none() {
            for flag in ["liked", "retweeted"] {
                expected.as_object_mut().unwrap().remove(flag);
            }
            for flag in ["following", "followedBy", "requested", "blocking", "muting"] {
                expected["author"].as_object_mut().unwrap().remove(flag);
            }
        }
        assert_eq!(read.is(200), &expected);
        let (time, lag) = (read.header("x-feedmill-time").unwrap(), read.header("x-feedmill-lag-ms").unwrap());
        assert!(time.parse::<u64>().unwrap() > 1_600_000_000_000 && lag.parse::<u64>().is_ok(), "{time} {lag}");
    }
    // Posted again, now that the views know the author.
    assert_eq!(
        world.post("/api/tweets", Some(&ada), json!({ "content": "again" })).await.is(201)["author"],
        posted["author"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn content_has_1_to_280_characters_as_postgresql_counts_them() {
    let world = World::new("content").await;
    let ada = world.register("ada").await;
    for content in
        ["x".repeat(280), "\u{1F468}\u{200D}".repeat(140), "é".repeat(280), "e\u{301}".repeat(140), " x ".into()]
    {
        world.tweet(&ada, &content).await;
        assert_eq!(world.count("SELECT count(*) FROM tweets WHERE char_length(content) > 280").await, 0);
    }
    for content in ["", " \n\u{3000}", "nul\0", &"x".repeat(281), &"\u{1F30D}".repeat(281)] {
        let answer = world.post("/api/tweets", Some(&ada), json!({ "content": content })).await;
        answer.is_problem(422, "invalid-content");
    }
    for body in [json!({}), json!({ "content": 1 }), json!({ "content": "x", "verified": true }), json!(["x"])] {
        world.post("/api/tweets", Some(&ada), body).await.is_problem(422, "invalid-body");
    }
    assert_eq!(world.count("SELECT count(*) FROM tweets").await, 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_its_author_deletes_a_tweet_and_it_leaves_nothing_behind() {
    let world = World::new("delete_tweet").await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    let path = format!("/api/tweets/{}", world.tweet(&ada, "mine").await);
    world.catch_up().await;
    world.delete(&path, None).await.is_problem(401, "unauthenticated");
    world.delete(&path, Some(&ben)).await.is_problem(403, "not-yours");
    world.delete("/api/tweets/12345", Some(&ben)).await.is_problem(404, "tweet-not-found");

    // Who may not see it is not told that it is there.
    world.run("UPDATE users SET protected = true WHERE username = 'ada'").await;
    world.catch_up().await;
    world.delete(&path, Some(&ben)).await.is_problem(404, "tweet-not-found");
    world.get(&path, Some(&ben)).await.is_problem(404, "tweet-not-found");
    world.get(&path, Some(&ada)).await.is(200);

    let deleted = world.delete(&path, Some(&ada)).await;
    deleted.is(204);
    assert!(!deleted.token().is_empty() && deleted.text.is_empty());
    assert_eq!(
        world
            .count("SELECT count(*) FROM tweets WHERE content = '' AND media IS NULL AND deleted_at IS NOT NULL")
            .await,
        1
    );
    world.delete(&path, Some(&ada)).await.is_problem(404, "tweet-not-found");
    world.catch_up().await;
    world.get(&path, Some(&ada)).await.is_problem(404, "tweet-not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_reply_and_a_retweet_say_so() {
    let world = World::new("reply").await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    let id = world.tweet(&ada, "question").await;
    world.run(&format!(
        "INSERT INTO tweets (id, user_id, content, reply_to_id, conversation_id) VALUES ({id} + 1, {}, 'answer', {id}, {id});
         INSERT INTO retweets (user_id, tweet_id) VALUES ({}, {id})",
        ben.id, ben.id
    )).await;
    world.catch_up().await;
    let tweets = world.get("/api/users/ben/tweets", None).await;
    let tweets = tweets.is(200)["tweets"].as_array().unwrap();
    assert_eq!(tweets.len(), 1);
    assert_eq!((&tweets[0]["id"], &tweets[0]["retweetedBy"]["username"]), (&json!(id), &json!("ben")));
    assert_eq!(tweets[0]["counts"], json!({ "likes": 0, "retweets": 1, "replies": 1 }));
    let with_replies = world.get("/api/users/ben/tweets?replies=true", None).await;
    let reply = &with_replies.is(200)["tweets"][1];
    assert_eq!((&reply["content"], &reply["replyTo"]), (&json!("answer"), &json!(id)));
}
