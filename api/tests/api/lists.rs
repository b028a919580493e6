//! Pages, cursors, limits.

use serde_json::{Value, json};

use crate::world::{Account, World};

fn ids(list: &Value, name: &str) -> Vec<String> {
    list[name].as_array().unwrap().iter().map(|item| item["id"].as_str().unwrap().to_owned()).collect()
}

/// All of a list, by its links; each page is also where its cursor says.
async fn all(world: &World, path: &str, name: &str, viewer: Option<&Account>) -> Vec<String> {
    let mut found = Vec::new();
    let mut next = Some(path.to_owned());
    while let Some(path) = next {
        let page = world.get(&path, viewer).await;
        found.extend(ids(page.is(200), name));
        next = page.header("link").map(|link| {
            let (path, rel) = link.strip_prefix('<').unwrap().split_once('>').unwrap();
            assert_eq!(rel, "; rel=\"next\"");
            assert!(path.ends_with(&format!("cursor={}", page.body["nextCursor"].as_str().unwrap())), "{link}");
            path.to_owned()
        });
        assert_eq!(next.is_none(), page.body["nextCursor"].is_null());
        assert!(found.len() <= 1_000, "it does not end");
    }
    found
}

#[tokio::test(flavor = "multi_thread")]
async fn pages_join_to_the_whole_list() {
    let world = World::new("pages").await;
    let (ada, ben) = (world.register("ada").await, world.register("ben").await);
    let mut tweets = Vec::new();
    for number in 0..25 {
        tweets.insert(0, world.tweet(&ada, &format!("number {number}")).await);
    }
    world.follow(&ben, &ada).await.is(201);
    let mut followers = vec![ben.id.clone()];
    for number in 0..7 {
        let follower = world.register_cheaply(number).await;
        world.follow(&follower, &ada).await.is(201);
        followers.insert(0, follower.id);
    }
    world.catch_up().await;
    for limit in ["", "?limit=1", "?limit=7", "?limit=25", "?limit=100"] {
        assert_eq!(all(&world, &format!("/api/users/ada/tweets{limit}"), "tweets", None).await, tweets, "{limit}");
        assert_eq!(all(&world, &format!("/api/timeline{limit}"), "tweets", Some(&ben)).await, tweets, "{limit}");
        let path = format!("/api/follows/{}/followers{limit}", ada.id);
        assert_eq!(all(&world, &path, "users", Some(&ben)).await, followers, "{limit}");
    }
    assert_eq!(ids(world.get("/api/timeline", Some(&ben)).await.is(200), "tweets").len(), 20);
    assert_eq!(all(&world, &format!("/api/follows/{}/following", ben.id), "users", None).await, [&*ada.id]);
    let page = world.get("/api/users/ada/tweets?replies=true&limit=3", None).await;
    assert!(page.header("link").unwrap().contains("replies=true"), "{page:?}");
    // Whatever was asked is asked again, and the cursor once.
    let cursor = page.body["nextCursor"].as_str().unwrap();
    let again = world.get(&format!("/api/users/ada/tweets?x=%3E&%63ursor={cursor}&replies=true&limit=3"), None).await;
    let next = again.body["nextCursor"].as_str().unwrap();
    let link = format!("</api/users/ada/tweets?x=%3E&replies=true&limit=3&cursor={next}>; rel=\"next\"");
    assert_eq!(again.header("link"), Some(&*link));
    assert_eq!(ids(again.is(200), "tweets"), tweets[3..6]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_wrong_with_a_list_is_said() {
    let world = World::new("wrong_lists").await;
    let ada = world.register("ada").await;
    for number in 0..3 {
        world.tweet(&ada, &format!("number {number}")).await;
    }
    world.catch_up().await;
    let paths = ["/api/timeline", "/api/users/ada/tweets", &format!("/api/follows/{}/followers", ada.id)];
    for path in paths {
        for limit in ["0", "101", "-1", "1e1", "", "%20", "99999999999999999999", "1.0", "ten"] {
            world.get(&format!("{path}?limit={limit}"), Some(&ada)).await.is_problem(400, "invalid-limit");
        }
        for cursor in ["", "A", "AAAA", "AWg", "%00", "!!!!", "AWgAAAA", "AmgAAA", &"A".repeat(4_000), "é"] {
            let cursor = cursor.replace('é', "%C3%A9");
            world.get(&format!("{path}?cursor={cursor}"), Some(&ada)).await.is_problem(400, "invalid-cursor");
        }
        world.get(&format!("{path}?limit=1&limit=2"), Some(&ada)).await.is_problem(400, "malformed-request");
    }
    for query in ["replies=maybe", "replies=true&replies=true", "replies"] {
        let path = format!("/api/users/ada/tweets?{query}");
        world.get(&path, Some(&ada)).await.is_problem(400, "malformed-request");
    }
    for path in [
        "/api/timeline/trending/hashtags?window=2h",
        "/api/timeline/trending/hashtags?window=",
        "/api/tweets/1/conversation?order=sideways",
        "/api/search",
        "/api/search?q=a&type=lists",
        "/api/search?q=a&sort=oldest",
        "/api/search?q=a&type=users&sort=latest",
        "/api/search?q=a&q=b",
        "/api/timeline/search/hashtag/1",
        "/api/timeline/search/hashtag/%23a",
        "/api/timeline/search/hashtag/a%20b",
        &format!("/api/timeline/search/hashtag/{}!", "a".repeat(5_000)),
    ] {
        world.get(path, Some(&ada)).await.is_problem(400, "malformed-request");
    }
    for limit in ["0", "101", "ten"] {
        for path in ["timeline/trending/tweets", "timeline/trending/hashtags", "suggestions"] {
            world.get(&format!("/api/{path}?limit={limit}"), Some(&ada)).await.is_problem(400, "invalid-limit");
        }
    }
    for (query, position) in [("", 0), ("a%20-", 2), ("-a", 0), ("a%20%22b", 2), ("since:soon", 6)] {
        let answer = world.get(&format!("/api/search?q={query}"), None).await;
        answer.is_problem(400, "invalid-query");
        assert_eq!(answer.body["position"], position, "{query}");
    }
    world.get("/api/search?type=users&q=%40", None).await.is_problem(400, "invalid-query");
    // A cursor of another list.
    let page = world.get("/api/users/ada/tweets?limit=1", None).await;
    let cursor = page.is(200)["nextCursor"].as_str().unwrap();
    world.get(&format!("/api/timeline?cursor={cursor}"), Some(&ada)).await.is_problem(400, "invalid-cursor");
}

#[tokio::test(flavor = "multi_thread")]
async fn ids_and_names_that_cannot_be_are_refused_or_not_found() {
    let world = World::new("wrong_ids").await;
    let ada = world.register("ada").await;
    for id in ["x", "+1", "01", "1.0", "9223372036854775808", "-0", "%20", "1%00", "1e3", "0x1"] {
        world.get(&format!("/api/tweets/{id}"), None).await.is_problem(400, "invalid-id");
        world.delete(&format!("/api/tweets/{id}"), Some(&ada)).await.is_problem(400, "invalid-id");
        world.get(&format!("/api/follows/{id}/followers"), None).await.is_problem(400, "invalid-id");
        world.post(&format!("/api/follows/{id}"), Some(&ada), json!({})).await.is_problem(400, "invalid-id");
    }
    for id in ["0", "-1", "9223372036854775807", "-9223372036854775808"] {
        world.get(&format!("/api/tweets/{id}"), None).await.is_problem(404, "tweet-not-found");
        world.get(&format!("/api/follows/{id}/followers"), None).await.is_problem(404, "user-not-found");
    }
    world.get("/api/tweets/%ff", None).await.is_problem(400, "malformed-request");
    for name in ["nobody", "%20", "a%00b", "%F0%9F%8C%8D", "..%2f..%2fetc%2fpasswd", &"x".repeat(5_000)] {
        world.get(&format!("/api/users/{name}"), None).await.is_problem(404, "user-not-found");
        world.get(&format!("/api/users/{name}/tweets"), None).await.is_problem(404, "user-not-found");
    }
}
