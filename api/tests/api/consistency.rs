//! Reading one's own writes.

use std::time::Duration;

use axum::body::Body;
use feedmill_api::Settings;
use feedmill_model::SourceId;
use futures::StreamExt;
use futures::future::join;
use serde_json::json;
use tokio::sync::watch;

use crate::world::{World, ask, identity, patient, registration, request};

#[tokio::test(flavor = "multi_thread")]
async fn a_read_that_is_given_a_token_waits_for_its_write() {
    let world = World::where_reads_wait("own_writes").await;
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
async fn a_client_that_knows_nothing_of_tokens_waits_for_its_own_writes_alone() {
    let world = World::where_reads_wait("courtesy").await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    world.catch_up().await;
    let id = world.tweet(&ada, "mine").await;
    // Who wrote nothing does not wait.
    let path = "/api/users/ada/tweets";
    for reader in [None, Some(&ben)] {
        assert!(!world.get(path, reader).await.is(200).to_string().contains(&id));
    }
    let (read, ()) = join(world.get(path, Some(&ada)), world.catch_up()).await;
    assert!(read.is(200).to_string().contains(&id), "{read:?}");
    // An account that was made a moment ago is there for its owner.
    let eve = world.register("eve").await;
    let (read, ()) = join(world.get("/api/users/eve", Some(&eve)), world.catch_up()).await;
    assert_eq!(read.is(200)["id"], eve.id);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_cannot_be_waited_for_is_served_as_it_is() {
    let world = World::new("late_courtesy").await;
    let ada = world.register("ada").await;
    world.catch_up().await;
    let written = world.post("/api/tweets", Some(&ada), json!({ "content": "mine" })).await;
    assert_eq!(world.get("/api/users/ada/tweets", Some(&ada)).await.is(200)["tweets"], json!([]));
    // Only who asks for it is told that it is not there yet.
    world.get_after(written.token(), "/api/users/ada/tweets", Some(&ada)).await.is_problem(503, "not-yet-visible");
}

#[tokio::test(flavor = "multi_thread")]
async fn only_who_has_liked_something_waits_for_likes() {
    let world = World::new("late_likes").await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    let tweet = world.tweet(&ada, "liked").await;
    world.catch_up().await;
    let path = format!("/api/tweets/{tweet}");
    let post = async |user| world.post("/api/tweets", Some(user), json!({ "content": "mine" })).await;
    let liked = world.post(&format!("{path}/like"), Some(&ben), json!({})).await;
    let posted = post(&ada).await;
    world.catch_up_but_for_likes().await;
    for path in [&path, &format!("{path}/likes"), "/api/timeline"] {
        world.get_after(liked.token(), path, Some(&ben)).await.is_problem(503, "not-yet-visible");
    }
    world.get_after(posted.token(), &path, Some(&ada)).await.is(200);
    // Profiles and lists of accounts show none.
    for path in ["/api/users/ben", &format!("{path}/retweets"), "/api/search?type=users&q=ben"] {
        world.get_after(liked.token(), path, Some(&ben)).await.is(200);
    }
    world.get_after(posted.token(), "/api/notifications", Some(&ada)).await.is_problem(503, "not-yet-visible");
    // What is written next waits for the like before it.
    let next = post(&ben).await;
    world.catch_up_but_for_likes().await;
    world.get_after(next.token(), &path, Some(&ben)).await.is_problem(503, "not-yet-visible");
    world.catch_up().await;
    for token in [liked.token(), next.token()] {
        assert_eq!(world.get_after(token, &path, Some(&ben)).await.is(200)["counts"]["likes"], 1);
    }
    let last = post(&ben).await;
    world.catch_up_but_for_likes().await;
    world.get_after(last.token(), &path, Some(&ben)).await.is(200);
}

#[tokio::test(flavor = "multi_thread")]
async fn positions_of_another_source_are_waited_for_by_nobody() {
    let world = World::new("moved").await;
    let (now, is) = watch::channel(identity());
    let router = world.instance(|state| state.source = is);
    let ada = world.register("ada").await;
    world.catch_up().await;
    let post = || request("POST", "/api/tweets", Some(&ada), Some(json!({ "content": "mine" })));
    let written = ask(&router, post()).await;
    let cookie = written.header("set-cookie").unwrap().split(';').next().unwrap().to_owned();
    now.send_replace(SourceId { timeline: 2, ..identity() });
    // It would take as long as a test may.
    let read = || {
        let mut request = request("GET", "/api/users/ada/tweets", Some(&ada), None);
        request.headers_mut().insert("cookie", cookie.parse().unwrap());
        tokio::time::timeout(crate::world::LIMIT / 2, ask(&router, request))
    };
    assert_eq!(read().await.expect("it waits for nothing").is(200)["tweets"], json!([]));
    now.send_replace(identity());
    let (read, ()) = join(read(), world.catch_up()).await;
    assert_eq!(read.unwrap().is(200)["tweets"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_write_during_which_the_source_changed_has_no_token() {
    let world = World::new("changing").await;
    let (now, is) = watch::channel(identity());
    let router = world.instance(|state| state.source = is);
    let ada = world.register("ada").await;
    // The source changes while the request is being read.
    let mut post = request("POST", "/api/tweets", Some(&ada), Some(json!({ "content": "mine" })));
    let body = std::mem::take(post.body_mut());
    *post.body_mut() = Body::from_stream(body.into_data_stream().inspect(move |_| {
        now.send_replace(SourceId { timeline: 2, ..identity() });
    }));
    let written = ask(&router, post).await;
    written.is(201);
    assert_eq!((written.header("x-consistency-token"), written.header("set-cookie")), (None, None));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_browser_carries_the_position_to_other_instances() {
    let world = World::where_reads_wait("cookie").await;
    let ada = world.register("ada").await;
    world.catch_up().await;
    let written = world.post("/api/tweets", Some(&ada), json!({ "content": "mine" })).await;
    let id = written.is(201)["id"].as_str().unwrap();
    let cookie = written.header("set-cookie").unwrap();
    let (pair, attributes) = cookie.split_once("; ").unwrap();
    assert_eq!(pair.split_once('='), Some(("feedmill-consistency", written.token())));
    assert_eq!(attributes, "Path=/api; Max-Age=30; HttpOnly; SameSite=Lax");
    let other = world.instance(|_| ());
    let read = |cookie: &str| {
        let mut request = request("GET", "/api/users/ada/tweets", None, None);
        request.headers_mut().insert("cookie", cookie.parse().unwrap());
        ask(&other, request)
    };
    for garbage in ["", "feedmill-consistency", "feedmill-consistency=", "feedmill-consistency=x; a", &ada.token, ";=;"]
    {
        assert_eq!(read(garbage).await.is(200)["tweets"], json!([]), "{garbage}");
    }
    let jar = format!("theme=dark; {pair}; a=b");
    let (seen, ()) = join(read(&jar), world.catch_up()).await;
    assert!(seen.is(200).to_string().contains(id), "{seen:?}");
    // It signs nobody in.
    let mut home = request("GET", "/api/timeline", None, None);
    home.headers_mut().insert("cookie", jar.parse().unwrap());
    ask(&other, home).await.is_problem(401, "unauthenticated");

    let over_tls = |router| {
        let mut request = request("POST", "/api/tweets", Some(&ada), Some(json!({ "content": "again" })));
        request.headers_mut().insert("x-forwarded-proto", "https".parse().unwrap());
        ask(router, request)
    };
    assert!(over_tls(&other).await.header("set-cookie").unwrap().ends_with("; SameSite=Lax; Secure"));
    let secure = world.instance(|state| state.settings.secure_cookies = true);
    let plain = request("POST", "/api/tweets", Some(&ada), Some(json!({ "content": "again" })));
    assert!(ask(&secure, plain).await.header("set-cookie").unwrap().ends_with("; Secure"));
    // What writes nothing, or fails, gives none.
    for (path, body) in [("/api/auth/login", registration("x")), ("/api/tweets", json!({ "content": "" }))] {
        assert_eq!(world.post(path, Some(&ada), body).await.header("set-cookie"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_write_gives_a_token_that_holds_it() {
    let world = World::new("every_write").await;
    let registered = world.post("/api/auth/register", None, registration("ada")).await;
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
        let written = write.await.unwrap();
        written.is(204);
        assert_eq!(written.header("x-feedmill-not-yet-visible"), None);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn it_is_answered_anyway_when_the_facts_are_late() {
    let world = World::with("late", Settings { narrowing_wait: Duration::from_millis(1), ..patient() }).await;
    let ada = world.register("ada").await;
    let tweet = world.tweet(&ada, "mine").await;
    let written = world.delete(&format!("/api/tweets/{tweet}"), Some(&ada)).await;
    written.is(204);
    assert_eq!(written.header("x-feedmill-not-yet-visible"), Some("true"));
    assert!(!written.token().is_empty());
}
