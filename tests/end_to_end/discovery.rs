//! Trends, tags, search, suggestions: what one did not ask anybody in particular for.

use serde_json::{Value, json};

use crate::reads::{all, id, ids_of, is_problem, people, token};
use crate::system::{System, ids};

#[tokio::test(flavor = "multi_thread")]
async fn tags_and_tweets_trend_and_tags_are_read() {
    let system = System::start(&[]).await;
    let sql = system.sql().await;
    let [ada, ben, eve] = people(&system, ["ada", "ben", "eve"]).await;
    let mut tagged = Vec::new();
    for (by, content) in [(&ada, "#Rust"), (&ada, "#rust and #Go"), (&ben, "more #RUST")] {
        tagged.insert(0, system.tweet(by, content).await.0);
    }
    let [a, b, e] = [&ada, &ben, &eve].map(id);
    sql.batch_execute(&format!(
        "INSERT INTO tweets (id, user_id, content, conversation_id, created_at)
             SELECT id, {a}, '#old', id, now() - interval '2 hours' FROM feedmill_id() AS id;
         INSERT INTO likes (user_id, tweet_id) VALUES ({b}, {first}), ({e}, {first}), ({b}, {second})",
        first = tagged[2],
        second = tagged[0],
    ))
    .await
    .unwrap();
    let now = token(&system, &eve).await;
    let trends = async |query: &str| {
        let answer = system.get_after(&now, &format!("/api/timeline/trending/hashtags{query}"), None).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        answer.body
    };
    let [rust, go, old] = [("rust", 2, 3), ("go", 1, 1), ("old", 1, 1)]
        .map(|(tag, authors, uses)| json!({ "tag": tag, "authors": authors, "uses": uses }));
    let hour = trends("?window=1h").await;
    assert_eq!(hour, json!({ "window": "1h", "hashtags": [rust, go] }));
    let day = json!({ "window": "24h", "hashtags": [rust, go, old] });
    assert_eq!((trends("?window=24h").await, trends("").await), (day.clone(), day));
    assert_eq!(trends("?window=1h&limit=1").await["hashtags"], json!([rust]));
    for query in ["window=2h", "window=", "window=1h&window=1h"] {
        let answer = system.get(&format!("/api/timeline/trending/hashtags?{query}"), None).await;
        is_problem(&answer, 400, "malformed-request");
    }

    let liked = system.get_after(&now, "/api/timeline/trending/tweets", Some(&eve)).await.body;
    assert_eq!(ids(&liked), [&*tagged[2], &tagged[0]]);
    assert_eq!((&liked["tweets"][0]["likesInWindow"], &liked["tweets"][0]["liked"]), (&json!(2), &json!(true)));
    assert_eq!((&liked["tweets"][1]["likesInWindow"], &liked["tweets"][1]["liked"]), (&json!(1), &json!(false)));
    assert_eq!(ids(&system.get("/api/timeline/trending/tweets?limit=1", None).await.body), [&*tagged[2]]);
    is_problem(&system.get("/api/timeline/trending/tweets?limit=0", None).await, 400, "invalid-limit");

    for (tag, limit) in [("rust", 1), ("RUST", 2), ("Rust", 100)] {
        let path = format!("/api/timeline/search/hashtag/{tag}?limit={limit}");
        assert_eq!(ids_of(&all(&system, &now, &path, "tweets", None).await), tagged, "{tag}");
    }
    let nothing = system.get("/api/timeline/search/hashtag/nobody", None).await.body;
    assert_eq!(nothing, json!({ "tweets": [], "nextCursor": null }));
    for tag in ["1", "%23rust", "a%20b", "a!", "%00"] {
        let answer = system.get(&format!("/api/timeline/search/hashtag/{tag}"), None).await;
        is_problem(&answer, 400, "malformed-request");
    }
    is_problem(&system.get("/api/timeline/search/hashtag/rust?cursor=AXo", None).await, 400, "invalid-cursor");

    // Whom the reader mutes or may not read is in none of it.
    sql.execute("INSERT INTO mutes VALUES ($1, $2)", &[&e, &a]).await.unwrap();
    let now = token(&system, &eve).await;
    for path in ["/api/timeline/trending/tweets", "/api/timeline/search/hashtag/rust"] {
        assert_eq!(ids(&system.get_after(&now, path, Some(&eve)).await.body), [&*tagged[0]], "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tweets_and_accounts_are_searched() {
    let system = System::start(&[]).await;
    let sql = system.sql().await;
    let [ada, adam, eve] = people(&system, ["ada", "adam", "eve"]).await;
    let mut found = Vec::new();
    for (by, content) in [(&ada, "Grüße aus Köln"), (&adam, "grusse, noch einmal grusse"), (&ada, "GRÜSSE #end")] {
        found.insert(0, system.tweet(by, content).await.0);
    }
    let like = format!("INSERT INTO likes (user_id, tweet_id) SELECT id, {} FROM users", found[2]);
    sql.batch_execute(&like).await.unwrap();
    let now = token(&system, &eve).await;
    let search = async |query: &str| all(&system, &now, &format!("/api/search?{query}"), "tweets", None).await;
    for limit in [1, 2, 100] {
        assert_eq!(ids_of(&search(&format!("q=gr%C3%BCsse&limit={limit}")).await), found);
        assert_eq!(ids_of(&search(&format!("limit={limit}&q=grusse&sort=latest&type=tweets")).await), found);
        let relevant = search(&format!("q=grusse&sort=relevance&limit={limit}")).await;
        assert_eq!(ids_of(&relevant).first(), Some(&&*found[2]), "the one that is liked: {relevant:?}");
        assert_eq!(relevant.len(), 3);
    }
    assert_eq!(ids_of(&search("q=gr%C3%BC%C3%9Fe%20-from:ada&limit=9").await), [&*found[1]]);
    assert_eq!(ids_of(&search("q=%23end&limit=9").await), [&*found[0]]);
    assert!(search("q=nothing&limit=9").await.is_empty());
    let mine = system.get("/api/search?q=k%C3%B6ln", Some(&ada)).await.body;
    assert_eq!(mine["tweets"][0]["liked"], true, "{mine}");

    let people = all(&system, &now, "/api/search?type=users&q=ADA&limit=1", "users", Some(&eve)).await;
    assert_eq!(ids_of(&people), [&*ada.id, &adam.id]);
    assert_eq!(people[0]["following"], false);

    for (query, position) in
        [("q=", 0), ("q=a%20-", 2), ("q=-a", 0), ("q=%E6%97%A5%20%22b", 2), ("q=a%20since:soon", 8)]
    {
        let answer = system.get(&format!("/api/search?{query}"), None).await;
        is_problem(&answer, 400, "invalid-query");
        assert_eq!(answer.body["position"], position, "{query}");
        assert!(answer.body["detail"].as_str().unwrap().contains(&format!("character {position}")), "{answer:?}");
    }
    is_problem(&system.get("/api/search?type=users&q=!", None).await, 400, "invalid-query");
    let long = format!("/api/search?q={}", "a".repeat(501));
    is_problem(&system.get(&long, None).await, 400, "invalid-query");
    for query in ["", "q=a&type=lists", "q=a&sort=oldest", "q=a&type=users&sort=latest", "q=a&q=b", "q=%FF&type=%FF"] {
        let answer = system.get(&format!("/api/search?{query}"), None).await;
        is_problem(&answer, 400, "malformed-request");
    }
    // A cursor goes on in the order that it came from, and of what it came from.
    let page = system.get("/api/search?q=grusse&limit=1", None).await.body;
    let cursor = page["nextCursor"].as_str().unwrap();
    for other in ["q=grusse&sort=relevance", "q=ada&type=users"] {
        let answer = system.get(&format!("/api/search?{other}&cursor={cursor}"), None).await;
        is_problem(&answer, 400, "invalid-cursor");
    }

    sql.execute("INSERT INTO blocks VALUES ($1, $2)", &[&id(&adam), &id(&eve)]).await.unwrap();
    let now = token(&system, &ada).await;
    let path = "/api/search?q=grusse&limit=1";
    assert_eq!(ids_of(&all(&system, &now, path, "tweets", Some(&eve)).await), [&*found[0], &found[2]]);
    let people = all(&system, &now, "/api/search?type=users&q=ada&limit=1", "users", Some(&eve)).await;
    assert_eq!(ids_of(&people), [&*ada.id]);
}

#[tokio::test(flavor = "multi_thread")]
async fn accounts_are_suggested_that_those_followed_follow() {
    let system = System::start(&[]).await;
    let sql = system.sql().await;
    let [ada, ben, eve, dan, gil, joe] = people(&system, ["ada", "ben", "eve", "dan", "gil", "joe"]).await;
    let [a, b, e, d, g, j] = [&ada, &ben, &eve, &dan, &gil, &joe].map(id);
    let follow = format!(
        "INSERT INTO follows (follower_id, following_id) VALUES
             ({a}, {b}), ({a}, {e}), ({b}, {d}), ({e}, {d}), ({b}, {g}), ({e}, {j}), ({b}, {a}), ({b}, {e})"
    );
    sql.batch_execute(&follow).await.unwrap();
    let now = token(&system, &joe).await;
    let suggested = async |token: &str, query: &str| -> Vec<(String, Value)> {
        let answer = system.get_after(token, &format!("/api/suggestions{query}"), Some(&ada)).await;
        assert_eq!(answer.status, 200, "{answer:?}");
        let suggestions = answer.body["suggestions"].as_array().unwrap().iter();
        suggestions
            .map(|of| {
                assert_eq!(of["user"]["following"], false, "{of}");
                (of["user"]["username"].as_str().unwrap().to_owned(), of["mutual"].clone())
            })
            .collect()
    };
    let expected =
        |names: &[(&str, u64)]| names.iter().map(|(name, n)| ((*name).to_owned(), json!(n))).collect::<Vec<_>>();
    assert_eq!(suggested(&now, "").await, expected(&[("dan", 2), ("joe", 1), ("gil", 1)]));
    assert_eq!(suggested(&now, "?limit=1").await, expected(&[("dan", 2)]));
    sql.batch_execute(&format!("INSERT INTO mutes VALUES ({a}, {j}); INSERT INTO blocks VALUES ({g}, {a})"))
        .await
        .unwrap();
    let now = token(&system, &joe).await;
    assert_eq!(suggested(&now, "").await, expected(&[("dan", 2)]));
    is_problem(&system.get("/api/suggestions", None).await, 401, "unauthenticated");
    is_problem(&system.get("/api/suggestions?limit=101", Some(&ada)).await, 400, "invalid-limit");
}
