//! What users do: like, retweet, answer, block, mute, accept, read; and what they may not.

use serde_json::{Value, json};

use crate::system::{Account, Answer, System};

/// Users named ada, ben, … in this order.
async fn people<const N: usize>(system: &System, names: [&str; N]) -> [Account; N] {
    let mut people = Vec::new();
    for name in names {
        people.push(system.register(name).await);
    }
    people.try_into().unwrap()
}

/// What a tweet says of itself, at least as new as a write.
async fn tweet(system: &System, after: &Answer, id: &str) -> Value {
    system.get_after(after.written(), &format!("/api/tweets/{id}"), None).await.is(200)
}

async fn protect(system: &System, name: &str) {
    let sql = system.sql().await;
    sql.execute("UPDATE users SET protected = true WHERE username = $1", &[&name]).await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_like_and_a_retweet_count_once_and_can_be_taken_back() {
    let system = System::start(&[]).await;
    let [ada, ben] = people(&system, ["ada", "ben"]).await;
    let (id, _) = system.tweet(&ada, "hello").await;
    for (what, count) in [("like", "likes"), ("retweet", "retweets")] {
        let path = format!("/api/tweets/{id}/{what}");
        for by in [&ada, &ben, &ben] {
            let done = system.post(&path, Some(by), Value::Null).await;
            assert_eq!(done.is(204), Value::Null);
        }
        let done = system.post(&path, Some(&ben), Value::Null).await;
        assert_eq!(tweet(&system, &done, &id).await["counts"][count], 2);
        for _ in 0..2 {
            let undone = system.delete(&path, Some(&ben)).await;
            undone.is(204);
            assert_eq!(tweet(&system, &undone, &id).await["counts"][count], 1);
        }
        system.post(&path, None, Value::Null).await.is_problem(401, "unauthenticated");
        system.delete(&path, None).await.is_problem(401, "unauthenticated");
        for wrong in ["x", "00", "9223372036854775808"] {
            let path = format!("/api/tweets/{wrong}/{what}");
            system.post(&path, Some(&ben), Value::Null).await.is_problem(400, "invalid-id");
        }
        for missing in ["1", "-1", "9223372036854775807"] {
            let path = format!("/api/tweets/{missing}/{what}");
            system.post(&path, Some(&ben), Value::Null).await.is_problem(404, "tweet-not-found");
            system.delete(&path, Some(&ben)).await.is_problem(404, "tweet-not-found");
        }
    }
    // A retweet comes to the timelines of those who follow.
    let [cyd] = people(&system, ["cyd"]).await;
    system.post(&format!("/api/follows/{}", ben.id), Some(&cyd), Value::Null).await.is(201);
    let done = system.post(&format!("/api/tweets/{id}/retweet"), Some(&ben), Value::Null).await;
    assert_eq!(system.home(&cyd, done.token.as_deref()).await, std::slice::from_ref(&id));
    let undone = system.delete(&format!("/api/tweets/{id}/retweet"), Some(&ben)).await;
    assert_eq!(system.home(&cyd, undone.token.as_deref()).await, [""; 0]);

    // What is deleted is not there, and one's own like of it goes without a word about it.
    system.post(&format!("/api/tweets/{id}/like"), Some(&ben), Value::Null).await.is(204);
    system.delete(&format!("/api/tweets/{id}"), Some(&ada)).await.is(204);
    system.post(&format!("/api/tweets/{id}/retweet"), Some(&ben), Value::Null).await.is_problem(404, "tweet-not-found");
    system.delete(&format!("/api/tweets/{id}/like"), Some(&ben)).await.is(204);
    system.delete(&format!("/api/tweets/{id}/like"), Some(&ben)).await.is_problem(404, "tweet-not-found");
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_likes_retweets_or_answers_what_they_may_not_read() {
    let system = System::start(&[]).await;
    let [ada, ben, cyd, dan] = people(&system, ["ada", "ben", "cyd", "dan"]).await;
    let (id, _) = system.tweet(&ada, "hello").await;
    let refused = async |by: &Account| {
        for what in ["like", "retweet"] {
            let path = format!("/api/tweets/{id}/{what}");
            system.post(&path, Some(by), Value::Null).await.is_problem(404, "tweet-not-found");
            system.delete(&path, Some(by)).await.is_problem(404, "tweet-not-found");
        }
        let answer = system.post("/api/tweets", Some(by), json!({ "content": "re", "replyTo": id })).await;
        answer.is_problem(404, "tweet-not-found");
        assert_eq!(answer.body["field"], "replyTo");
    };
    // Blocked, and blocking.
    system.put(&format!("/api/blocks/{}", ben.id), Some(&ada)).await.is(204);
    refused(&ben).await;
    system.put(&format!("/api/blocks/{}", ada.id), Some(&cyd)).await.is(204);
    refused(&cyd).await;
    // Protected: for who is not accepted, and retweeted by nobody else.
    protect(&system, "ada").await;
    system.post(&format!("/api/follows/{}", ada.id), Some(&dan), Value::Null).await.is(201);
    refused(&dan).await;
    system.post(&format!("/api/follows/requests/{}/accept", dan.id), Some(&ada), Value::Null).await.is(204);
    system.post(&format!("/api/tweets/{id}/like"), Some(&dan), Value::Null).await.is(204);
    system.post("/api/tweets", Some(&dan), json!({ "content": "re", "replyTo": id })).await.is(201);
    let path = format!("/api/tweets/{id}/retweet");
    system.post(&path, Some(&dan), Value::Null).await.is_problem(403, "author-protected");
    system.post(&path, Some(&ada), Value::Null).await.is(204);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_make_a_thread_and_media_are_kept() {
    let system = System::start(&[]).await;
    let [ada, ben] = people(&system, ["ada", "ben"]).await;
    let (root, _) = system.tweet(&ada, "question").await;
    let mut parent = root.clone();
    for n in 0..3 {
        let body = json!({ "content": format!("answer {n}"), "replyTo": parent });
        let answer = system.post("/api/tweets", Some(if n % 2 == 0 { &ben } else { &ada }), body).await;
        let posted = answer.is(201);
        assert_eq!(posted["replyTo"], parent);
        let read = tweet(&system, &answer, posted["id"].as_str().unwrap()).await;
        assert_eq!((&read["replyTo"], &read["content"]), (&posted["replyTo"], &posted["content"]));
        parent = posted["id"].as_str().unwrap().to_owned();
    }
    let sql = system.sql().await;
    let threads = "SELECT count(*) FROM tweets WHERE conversation_id = $1";
    let replies: i64 = sql.query_one(threads, &[&root.parse::<i64>().unwrap()]).await.unwrap().get(0);
    assert_eq!(replies, 4);

    let media = json!([
        { "type": "image", "url": "https://media.example.org/1.jpg", "alt": "A cat \"on\" a keyboard" },
        { "type": "gif", "url": "https://media.example.org/2.gif" },
    ]);
    let answer = system.post("/api/tweets", Some(&ada), json!({ "content": "look", "media": media })).await;
    let posted = answer.is(201);
    assert_eq!(posted["media"], media);
    assert_eq!(tweet(&system, &answer, posted["id"].as_str().unwrap()).await["media"], media);
    let stored: Value = sql.query_one("SELECT media FROM tweets WHERE media IS NOT NULL", &[]).await.unwrap().get(0);
    assert_eq!(stored, media);
    // No media are none.
    system.post("/api/tweets", Some(&ada), json!({ "content": "x", "media": [] })).await.is(201);
    let with: i64 = sql.query_one("SELECT count(media) FROM tweets", &[]).await.unwrap().get(0);
    assert_eq!(with, 1);

    let picture = json!({ "type": "image", "url": "https://a.b/c" });
    for (body, status, error) in [
        (json!({ "content": "x", "replyTo": "1" }), 404, "tweet-not-found"),
        (json!({ "content": "x", "replyTo": "one" }), 422, "invalid-field"),
        (json!({ "content": "x", "replyTo": 1 }), 422, "invalid-body"),
        (json!({ "content": "x", "media": vec![picture.clone(); 5] }), 422, "invalid-field"),
        (json!({ "content": "x", "media": [{ "type": "image", "url": "http://a.b/c" }] }), 422, "invalid-field"),
        (
            json!({ "content": "x", "media": [{ "type": "image", "url": "https://a.b/c", "alt": "\u{0}" }] }),
            422,
            "invalid-field",
        ),
        (json!({ "content": "x", "media": [{ "type": "sound", "url": "https://a.b/c" }] }), 422, "invalid-body"),
        (
            json!({ "content": "x", "media": [{ "type": "image", "url": "https://a.b/c", "size": 1 }] }),
            422,
            "invalid-body",
        ),
        (json!({ "content": "x", "media": picture }), 422, "invalid-body"),
        (json!({ "content": "", "media": [picture] }), 422, "invalid-content"),
    ] {
        system.post("/api/tweets", Some(&ada), body).await.is_problem(status, error);
    }
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_block_ends_follows_and_hides_both_and_a_mute_hides_one() {
    let system = System::start(&[]).await;
    let [ada, ben] = people(&system, ["ada", "ben"]).await;
    let follow = async |by: &Account, whom: &Account| {
        system.post(&format!("/api/follows/{}", whom.id), Some(by), Value::Null).await.is(201);
    };
    follow(&ada, &ben).await;
    follow(&ben, &ada).await;
    let (id, token) = system.tweet(&ada, "hello").await;
    assert_eq!(system.home(&ben, Some(&token)).await, std::slice::from_ref(&id));

    let mute = format!("/api/mutes/{}", ada.id);
    for _ in 0..2 {
        system.put(&mute, Some(&ben)).await.is(204);
        // It is answered once nothing shows any more.
        assert_eq!(system.home(&ben, None).await, [""; 0]);
    }
    system.get(&format!("/api/tweets/{id}"), Some(&ben)).await.is(200);
    for _ in 0..2 {
        let unmuted = system.delete(&mute, Some(&ben)).await;
        unmuted.is(204);
        assert_eq!(system.home(&ben, unmuted.token.as_deref()).await, std::slice::from_ref(&id));
    }

    let block = format!("/api/blocks/{}", ben.id);
    for _ in 0..2 {
        system.put(&block, Some(&ada)).await.is(204);
        assert_eq!(system.home(&ben, None).await, [""; 0]);
        system.get(&format!("/api/tweets/{id}"), Some(&ben)).await.is_problem(404, "tweet-not-found");
        system.post(&format!("/api/follows/{}", ada.id), Some(&ben), Value::Null).await.is_problem(403, "blocked");
    }
    let sql = system.sql().await;
    let follows: i64 = sql.query_one("SELECT count(*) FROM follows", &[]).await.unwrap().get(0);
    assert_eq!(follows, 0);
    for _ in 0..2 {
        let unblocked = system.delete(&block, Some(&ada)).await;
        unblocked.is(204);
        let path = format!("/api/tweets/{id}");
        system.get_after(unblocked.written(), &path, Some(&ben)).await.is(200);
    }

    for list in ["blocks", "mutes"] {
        system.put(&format!("/api/{list}/{}", ada.id), None).await.is_problem(401, "unauthenticated");
        system.put(&format!("/api/{list}/{}", ada.id), Some(&ada)).await.is_problem(422, "oneself");
        system.put(&format!("/api/{list}/1"), Some(&ada)).await.is_problem(404, "user-not-found");
        system.delete(&format!("/api/{list}/1"), Some(&ada)).await.is_problem(404, "user-not-found");
        system.put(&format!("/api/{list}/+1"), Some(&ada)).await.is_problem(400, "invalid-id");
    }
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_protected_account_accepts_rejects_and_removes_followers() {
    let system = System::start(&[]).await;
    let [ada, ben, cyd] = people(&system, ["ada", "ben", "cyd"]).await;
    protect(&system, "ada").await;
    let (id, _) = system.tweet(&ada, "for followers").await;
    let path = format!("/api/tweets/{id}");
    for who in [&ben, &cyd] {
        let asked = system.post(&format!("/api/follows/{}", ada.id), Some(who), Value::Null).await;
        assert_eq!(asked.is(201)["accepted"], false);
    }
    let request = |who: &Account, what: &str| format!("/api/follows/requests/{}/{what}", who.id);
    for _ in 0..2 {
        let accepted = system.post(&request(&ben, "accept"), Some(&ada), Value::Null).await;
        accepted.is(204);
        system.get_after(accepted.written(), &path, Some(&ben)).await.is(200);
    }
    system.post(&request(&cyd, "reject"), Some(&ada), Value::Null).await.is(204);
    for what in ["accept", "reject"] {
        system.post(&request(&cyd, what), Some(&ada), Value::Null).await.is_problem(404, "follow-request-not-found");
        system.post(&request(&cyd, what), None, Value::Null).await.is_problem(401, "unauthenticated");
    }
    // Who was accepted is no request any more.
    system.post(&request(&ben, "reject"), Some(&ada), Value::Null).await.is_problem(404, "follow-request-not-found");

    let follower = format!("/api/follows/{}/follower", ben.id);
    for _ in 0..2 {
        system.delete(&follower, Some(&ada)).await.is(204);
        system.get(&path, Some(&ben)).await.is_problem(404, "tweet-not-found");
    }
    system.delete("/api/follows/1/follower", Some(&ada)).await.is_problem(404, "user-not-found");
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_mark_goes_forward_and_never_beyond_now() {
    let system = System::start(&[]).await;
    let [ada] = people(&system, ["ada"]).await;
    let (id, _) = system.tweet(&ada, "hello").await;
    let id: i64 = id.parse().unwrap();
    let sql = system.sql().await;
    let mark = async || -> i64 { sql.query_one("SELECT notifications_id FROM read_marks", &[]).await.unwrap().get(0) };
    let read = async |up_to: i64| {
        system.post("/api/notifications/read", Some(&ada), json!({ "upTo": up_to.to_string() })).await.is(204);
        mark().await
    };
    assert_eq!(read(id - 5).await, id - 5);
    assert_eq!(read(id).await, id);
    assert_eq!(read(id - 1).await, id);
    assert_eq!(read(i64::MIN).await, id);
    let now = read(i64::MAX).await;
    assert!(now > id && now < id + (600_000 << 16), "{now} {id}");
    for (body, error) in [
        (json!({}), "invalid-body"),
        (json!({ "upTo": 5 }), "invalid-body"),
        (json!({ "upTo": "x" }), "invalid-field"),
        (json!({ "upTo": "5", "userId": "1" }), "invalid-body"),
    ] {
        system.post("/api/notifications/read", Some(&ada), body).await.is_problem(422, error);
    }
    system.post("/api/notifications/read", None, json!({ "upTo": "5" })).await.is_problem(401, "unauthenticated");
    system.verified().await;
}

/// Eve tries to do in Ada's name whatever a request can say.
#[tokio::test(flavor = "multi_thread")]
async fn c57_nobody_acts_in_anothers_name() {
    let system = System::start(&[]).await;
    let [ada, ben, eve] = people(&system, ["ada", "ben", "eve"]).await;
    let (id, _) = system.tweet(&ada, "mine").await;
    protect(&system, "ada").await;
    system.post(&format!("/api/follows/{}", ada.id), Some(&ben), Value::Null).await.is(201);
    let sql = system.sql().await;
    let everything = "
        SELECT md5(string_agg(line, ' ' ORDER BY line)) FROM (
            SELECT users::text FROM users UNION ALL SELECT accounts::text FROM accounts
            UNION ALL SELECT tweets::text FROM tweets UNION ALL SELECT follows::text FROM follows
            UNION ALL SELECT likes::text FROM likes UNION ALL SELECT retweets::text FROM retweets
            UNION ALL SELECT blocks::text FROM blocks UNION ALL SELECT mutes::text FROM mutes
            UNION ALL SELECT read_marks::text FROM read_marks UNION ALL SELECT sessions::text FROM sessions
        ) AS all_of_it (line)";
    let state = async || -> String { sql.query_one(everything, &[]).await.unwrap().get(0) };
    let before = state().await;

    // Another's tweet: it is hidden from Eve, so it is not there.
    system.delete(&format!("/api/tweets/{id}"), Some(&eve)).await.is_problem(404, "tweet-not-found");
    // Another's requests and followers.
    for what in ["accept", "reject"] {
        for by in [&eve, &ben] {
            let path = format!("/api/follows/requests/{}/{what}", ben.id);
            let answer = system.post(&path, Some(by), Value::Null).await;
            answer.is_problem(404, "follow-request-not-found");
        }
    }
    system.delete(&format!("/api/follows/{}/follower", ben.id), Some(&eve)).await.is(204);
    system.delete(&format!("/api/follows/{}", ada.id), Some(&eve)).await.is(204);
    system.delete(&format!("/api/blocks/{}", ben.id), Some(&eve)).await.is(204);
    system.delete(&format!("/api/mutes/{}", ben.id), Some(&eve)).await.is(204);
    // As another, by a member of the body, a parameter, or a header.
    for (method, path, body) in [
        ("POST", "/api/tweets", json!({ "content": "x", "userId": ada.id })),
        ("POST", "/api/tweets", json!({ "content": "x", "author": { "id": ada.id } })),
        ("POST", "/api/notifications/read", json!({ "upTo": "1", "userId": ada.id })),
        ("PATCH", "/api/users/me", json!({ "id": ada.id, "displayName": "x" })),
        ("PATCH", "/api/users/me", json!({ "verified": true })),
        ("PATCH", "/api/users/me", json!({ "email": "eve@example.org" })),
        ("DELETE", "/api/users/me", json!({ "password": "correct horse battery", "userId": ada.id })),
    ] {
        let headers = [("X-User-Id", ada.id.as_str())];
        system.ask(method, path, Some(&eve), &headers, body).await.is_problem(422, "invalid-body");
    }
    for (method, path) in [("PATCH", "/api/users/ada"), ("DELETE", "/api/users/ada")] {
        let body = json!({ "displayName": "x" });
        system.ask(method, path, Some(&eve), &[], body).await.is_problem(405, "method-not-allowed");
    }
    assert_eq!(state().await, before);

    // What is done for Eve is done for Eve.
    system
        .post(&format!("/api/notifications/read?userId={}", ada.id), Some(&eve), json!({ "upTo": "1" }))
        .await
        .is(204);
    let marked: i64 = sql.query_one("SELECT user_id FROM read_marks", &[]).await.unwrap().get(0);
    assert_eq!(marked.to_string(), eve.id);
    // A tweet that Eve may read says whose it is.
    let (public, _) = system.tweet(&ben, "public").await;
    system
        .until("it shows", async |system| system.get(&format!("/api/tweets/{public}"), Some(&eve)).await.status == 200)
        .await;
    system.delete(&format!("/api/tweets/{public}"), Some(&eve)).await.is_problem(403, "not-yours");
    system.verified().await;
}
