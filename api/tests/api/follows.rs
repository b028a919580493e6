//! Follow, unfollow, and who may.

use futures::future::join;
use serde_json::{Value, json};

use crate::world::{Account, World};

#[tokio::test(flavor = "multi_thread")]
async fn a_follow_begins_once_and_ends_once() {
    let world = World::new("follow").await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    let first = world.follow(&ben, &ada).await;
    assert_eq!(first.is(201), &json!({ "userId": ada.id, "accepted": true }));
    assert!(!first.token().is_empty());
    assert_eq!(world.follow(&ben, &ada).await.is(200), first.is(201));
    world.catch_up().await;
    let listed = |list: &Value| list["users"].as_array().unwrap().iter().map(|u| u["id"].clone()).collect::<Vec<_>>();
    let followers = world.get(&format!("/api/follows/{}/followers", ada.id), None).await;
    assert_eq!(listed(followers.is(200)), [json!(ben.id)]);
    assert_eq!(followers.body["nextCursor"], Value::Null);
    let following = world.get(&format!("/api/follows/{}/following", ben.id), None).await;
    assert_eq!(listed(following.is(200)), [json!(ada.id)]);
    assert_eq!(world.get("/api/users/ADA", None).await.is(200)["counts"]["followers"], 1);

    let path = format!("/api/follows/{}", ada.id);
    for _ in 0..2 {
        let ended = world.delete(&path, Some(&ben)).await;
        ended.is(204);
        assert!(!ended.token().is_empty());
    }
    assert_eq!(world.count("SELECT count(*) FROM follows").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn not_everybody_can_be_followed() {
    let world = World::new("refuse_follow").await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    let gone = world.register("gone").await;
    world.run("UPDATE users SET deleted_at = now() WHERE username = 'gone'").await;
    let nobody = Account { id: "12345".to_owned(), ..ben.clone() };
    for whom in [&gone, &nobody] {
        world.follow(&ben, whom).await.is_problem(404, "user-not-found");
        world.delete(&format!("/api/follows/{}", whom.id), Some(&ben)).await.is_problem(404, "user-not-found");
    }
    world.follow(&ben, &ben).await.is_problem(422, "follows-oneself");
    world.delete(&format!("/api/follows/{}", ben.id), Some(&ben)).await.is_problem(422, "follows-oneself");
    world.delete(&format!("/api/follows/{}/follower", ben.id), Some(&ben)).await.is_problem(422, "oneself");
    world.post(&format!("/api/follows/{}", ada.id), None, Value::Null).await.is_problem(401, "unauthenticated");
    // The account is gone, and the views do not know it yet.
    world.follow(&gone, &ada).await.is_problem(401, "unauthenticated");
    for (blocker, blocked) in [(&ada, &ben), (&ben, &ada)] {
        world.run(&format!("TRUNCATE blocks; INSERT INTO blocks VALUES ({}, {})", blocker.id, blocked.id)).await;
        world.follow(&ben, &ada).await.is_problem(403, "blocked");
    }
    assert_eq!(world.count("SELECT count(*) FROM follows").await, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_account_is_asked() {
    let world = World::new("protected").await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    world.tweet(&ada, "for followers").await;
    world.run("UPDATE users SET protected = true WHERE username = 'ada'").await;
    for status in [201, 200] {
        assert_eq!(world.follow(&ben, &ada).await.is(status)["accepted"], false);
    }
    world.catch_up().await;
    for path in ["/api/users/ada/tweets".to_owned(), format!("/api/follows/{}/followers", ada.id)] {
        for viewer in [None, Some(&ben)] {
            world.get(&path, viewer).await.is_problem(403, "not-visible");
        }
        world.get(&path, Some(&ada)).await.is(200);
    }
    assert_eq!(world.get("/api/users/ada", None).await.is(200)["protected"], true);
    world.run("UPDATE follows SET accepted = true").await;
    world.catch_up().await;
    world.get("/api/users/ada/tweets", Some(&ben)).await.is(200);
    // To follow again asks for nothing anew.
    assert_eq!(world.follow(&ben, &ada).await.is(200)["accepted"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn no_follow_survives_a_block_that_is_made_at_the_same_time() {
    let world = World::new("race").await;
    let ada = world.register("ada").await;
    let blocker = world.source.connect("blocker").await.unwrap();
    let mut outcomes = [0, 0];
    for round in 0..60 {
        let ben = world.register_cheaply(round).await;
        let block = format!("INSERT INTO blocks VALUES ({}, {})", ada.id, ben.id);
        let (followed, blocked) = join(world.follow(&ben, &ada), blocker.batch_execute(&block)).await;
        blocked.unwrap();
        match followed.status {
            201 => outcomes[0] += 1,
            _ => {
                followed.is_problem(403, "blocked");
                outcomes[1] += 1;
            }
        }
        assert_eq!(world.count("SELECT count(*) FROM follows").await, 0, "round {round}: {followed:?}");
    }
    eprintln!("followed first {}, blocked first {}", outcomes[0], outcomes[1]);
}
