//! Reading one's own writes.

use std::time::Duration;

use feedmill_api::Settings;
use feedmill_model::SourceId;
use futures::future::join;
use serde_json::json;
use tokio::sync::watch;

use crate::world::{World, ask, identity, patient, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_given_a_token_waits_for_its_write() {
    let world = World::new("own_writes").await;
    let ada = world.register("ada").await;
    let written = world.post("/api/tweets", Some(&ada), json!({ "content": "mine" })).await;
    let id = written.is(201)["id"].as_str().unwrap();
    for path in [format!("/api/tweets/{id}"), "/api/users/ada/tweets".into(), "/api/timeline".into()] {
        let (read, ()) = join(world.get_after(written.token(), &path, Some(&ada)), world.catch_up()).await;
        assert!(read.is(200).to_string().contains(id), "{path}: {read:?}");
        // Views that lose everything would be the reader's problem; those that were reached stay so.
        world.get_after(written.token(), &path, Some(&ada)).await.is(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_gives_a_token_that_holds_it() {
    let world = World::new("every_write").await;
    let registered = world.post("/api/auth/register", None, crate::world::registration("ada")).await;
    let ada = world.register("ben").await;
    let other = registered.is(201)["user"]["id"].as_str().unwrap().to_owned();
    let tweet = world.tweet(&ada, "mine").await;
    let follow = world.post(&format!("/api/follows/{other}"), Some(&ada), json!({})).await;
    let unfollow = world.delete(&format!("/api/follows/{other}"), Some(&ada)).await;
    let delete = world.delete(&format!("/api/tweets/{tweet}"), Some(&ada)).await;
    let tokens = [registered.token(), follow.token(), unfollow.token(), delete.token()];
    // The views stand before all of it.
    let impatient = world.instance(|state| state.settings.read_wait = Duration::ZERO);
    let after = |token: &str| {
        let mut request = request("GET", "/api/users/ada", None, None);
        request.headers_mut().insert("x-consistency-token", token.parse().unwrap());
        request
    };
    for token in tokens {
        ask(&impatient, after(token)).await.is_problem(503, "not-yet-visible");
    }
    world.catch_up().await;
    for token in tokens {
        ask(&impatient, after(token)).await.is(200);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_that_was_not_given_out_for_this_database_is_refused() {
    let world = World::new("forged").await;
    let ada = world.register("ada").await;
    let written = world.post("/api/tweets", Some(&ada), json!({ "content": "mine" })).await;
    world.catch_up().await;
    let token = written.token();
    for forged in ["", "x", "16/B374D848", &token[1..], &format!("{token}x"), &token.replace('.', ""), &ada.token] {
        world.get_after(forged, "/api/users/ada", None).await.is_problem(400, "invalid-consistency-token");
    }
    let restored = world.instance(|state| state.source = watch::channel(SourceId { timeline: 2, ..identity() }).1);
    let mut request = request("GET", "/api/users/ada", None, None);
    request.headers_mut().insert("x-consistency-token", token.parse().unwrap());
    ask(&restored, request).await.is_problem(400, "invalid-consistency-token");
    world.get_after(token, "/api/users/ada", None).await.is(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_that_narrows_who_may_read_is_answered_once_the_facts_have_it() {
    let world = World::with("narrow", patient()).await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    let tweet = world.tweet(&ada, "mine").await;
    world.follow(&ben, &ada).await.is(201);
    world.catch_up().await;
    for (path, by, done) in [
        (format!("/api/tweets/{tweet}"), &ada, "SELECT count(*) FROM tweets WHERE deleted_at IS NULL"),
        (format!("/api/follows/{}", ada.id), &ben, "SELECT count(*) FROM follows"),
    ] {
        let router = world.router.clone();
        let request = request("DELETE", &path, Some(by), None);
        let write = tokio::spawn(async move { ask(&router, request).await });
        world.until_count(done, 0).await;
        assert!(!write.is_finished(), "{path} was answered before the facts had it");
        world.catch_up().await;
        write.await.unwrap().is(204);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_answered_anyway_when_the_facts_are_late() {
    let world = World::with("late", Settings { narrowing_wait: Duration::from_millis(1), ..patient() }).await;
    let ada = world.register("ada").await;
    let tweet = world.tweet(&ada, "mine").await;
    world.delete(&format!("/api/tweets/{tweet}"), Some(&ada)).await.is(204);
}
