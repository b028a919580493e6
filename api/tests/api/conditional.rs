//! Answers that a client has already.

use axum::http::Request;
use serde_json::{Value, json};

use crate::world::{Account, Answer, World, ask, request};

async fn read(world: &World, method: &str, path: &str, reader: Option<&Account>, known: Option<&str>) -> Answer {
    let mut request: Request<_> = request(method, path, reader, None);
    if let Some(known) = known {
        request.headers_mut().insert("if-none-match", known.parse().unwrap());
    }
    ask(&world.router, request).await
}

#[tokio::test(flavor = "multi_thread")]
async fn who_has_the_answer_is_told_so_until_it_is_another() {
    let world = World::new("conditional").await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    let tweet = world.tweet(&ada, "hello #world").await;
    world.catch_up().await;
    let paths = [
        "/api/timeline".to_owned(),
        "/api/users/ada".to_owned(),
        "/api/users/ada/tweets?limit=1".to_owned(),
        format!("/api/tweets/{tweet}"),
        format!("/api/tweets/{tweet}/conversation"),
        format!("/api/follows/{}/followers", ada.id),
        "/api/timeline/search/hashtag/world".to_owned(),
        "/api/search?q=hello".to_owned(),
        "/api/notifications".to_owned(),
    ];
    let mut tags = Vec::new();
    for path in &paths {
        let first = read(&world, "GET", path, Some(&ada), None).await;
        first.is(200);
        let tag = first.header("etag").unwrap().to_owned();
        assert!(tag.starts_with("W/\"") && tag.ends_with('"'), "{tag}");
        assert_eq!(first.header("cache-control"), Some("private, no-cache"));
        assert!(first.headers.get_all("vary").iter().any(|vary| vary == "authorization"), "{first:?}");
        assert_eq!(read(&world, "HEAD", path, Some(&ada), None).await.header("etag"), Some(&*tag), "{path}");
        for known in [tag.clone(), tag.trim_start_matches("W/").to_owned(), format!("\"x\", {tag}"), "*".to_owned()] {
            let same = read(&world, "GET", path, Some(&ada), Some(&known)).await;
            assert_eq!((same.status, &*same.text), (304, ""), "{path} {known}");
            assert_eq!(same.header("etag"), Some(&*tag));
            assert!(same.header("content-type").is_none() && same.header("x-feedmill-time").is_some(), "{same:?}");
        }
        assert_eq!(read(&world, "GET", path, Some(&ada), Some("\"x\"")).await.status, 200);
        tags.push(tag);
    }
    // Another reader, another answer: the flags differ.
    let path = format!("/api/tweets/{tweet}");
    assert_eq!(read(&world, "GET", &path, None, Some(&tags[3])).await.status, 200);
    let like = format!("INSERT INTO likes (user_id, tweet_id) VALUES ({}, {tweet})", ben.id);
    world.run(&like).await;
    world.catch_up().await;
    let changed = read(&world, "GET", &path, Some(&ada), Some(&tags[3])).await;
    assert_eq!(changed.is(200)["counts"]["likes"], 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_that_was_changed_behind_the_api_has_another_tag_and_the_same_version() {
    let world = World::new("versions").await;
    let ada = world.register("ada").await;
    let first = world.get("/api/users/me", Some(&ada)).await;
    first.is(200);
    let tag = first.header("etag").unwrap();
    assert_eq!(read(&world, "GET", "/api/users/me", Some(&ada), Some(tag)).await.status, 304);
    world.run("UPDATE users SET verified = true").await;
    let changed = read(&world, "GET", "/api/users/me", Some(&ada), Some(tag)).await;
    assert_eq!(changed.is(200)["verified"], true);
    assert_ne!(changed.header("etag"), Some(tag));
    let change = async |tag: &str, bio: &str| {
        let mut request = request("PATCH", "/api/users/me", Some(&ada), Some(json!({ "bio": bio })));
        request.headers_mut().insert("if-match", tag.parse().unwrap());
        ask(&world.router, request).await
    };
    // Nobody has changed it through the API.
    let mine = change(tag, "one").await;
    mine.is(200);
    change(tag, "two").await.is_problem(412, "precondition-failed");
    change(mine.header("etag").unwrap(), "three").await.is(200);
}

/// What every answer to a read has is in the description, and what the description has is in the answer.
#[tokio::test(flavor = "multi_thread")]
async fn the_description_says_which_answers_have_tags_times_and_links() {
    let world = World::new("described").await;
    let ada = world.register("ada").await;
    let tweet = world.tweet(&ada, "hello #world").await;
    world.catch_up().await;
    let document = world.get("/openapi.json", None).await.body;
    let names = |operation: &Value, part: &str| -> Vec<String> {
        let found = operation[part].as_array().into_iter().flatten();
        found.filter_map(|one| Some(one["$ref"].as_str()?.rsplit('/').next()?.to_owned())).collect()
    };
    let mut described = 0;
    for (path, methods) in document["paths"].as_object().unwrap() {
        let operation = &methods["get"];
        // What a stream answers has no end.
        if operation.is_null() || path == "/api/stream" || !path.starts_with("/api/") {
            continue;
        }
        let filled = path.replace("{username}", "ada").replace("{userId}", &ada.id).replace("{id}", &tweet);
        let filled = filled.replace("{tag}", "world");
        let query = if path == "/api/search" { "?q=hello" } else { "" };
        let answer = world.get(&format!("{filled}{query}"), Some(&ada)).await;
        assert_eq!(answer.status, 200, "{path}");
        let has = |header: &str| operation["responses"]["200"]["headers"].get(header).is_some();
        for header in ["ETag", "X-Feedmill-Time", "X-Feedmill-Lag-Ms"] {
            assert_eq!(answer.header(&header.to_lowercase()).is_some(), has(header), "{path} {header}");
        }
        let asks = names(operation, "parameters");
        assert_eq!(has("ETag"), operation["responses"].get("304").is_some(), "{path}");
        assert_eq!(has("ETag"), asks.contains(&"If-None-Match".to_owned()), "{path}");
        assert_eq!(has("X-Feedmill-Time"), asks.contains(&"X-Consistency-Token".to_owned()), "{path}");
        assert_eq!(has("Link"), answer.body.get("nextCursor").is_some(), "{path}");
        described += usize::from(has("ETag"));
    }
    assert!(described > 20, "{described}");
    for (path, name) in [("/api/tweets", "X-Consistency-Token"), ("/api/tweets", "RateLimit")] {
        assert!(document["paths"][path]["post"]["responses"]["201"]["headers"].get(name).is_some(), "{path} {name}");
    }
    for part in ["headers", "parameters", "responses"] {
        assert!(document["components"][part].as_object().is_some_and(|named| !named.is_empty()), "{part}");
    }
    let ways = &document["paths"]["/api/stream"]["get"]["security"];
    assert_eq!(ways, &json!([{ "token": [] }, { "ticket": [] }]));
    assert_eq!(document["components"]["securitySchemes"]["ticket"]["name"], "ticket");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_nobody_is_to_keep_has_no_tag() {
    let world = World::new("unconditional").await;
    let ada = world.register("ada").await;
    world.catch_up().await;
    let answers = [
        world.get("/api/auth/verify", Some(&ada)).await,
        world.get("/api/tweets/1", None).await,
        world.get("/api/timeline", None).await,
        world.post("/api/tweets", Some(&ada), json!({ "content": "x" })).await,
    ];
    for answer in answers {
        assert_eq!((answer.header("etag"), answer.header("cache-control")), (None, Some("no-store")), "{answer:?}");
    }
}
