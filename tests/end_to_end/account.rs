//! One's own account: changed, taken along, deleted.

use serde_json::{Value, json};

use crate::system::{Account, Answer, PASSWORD, System};

async fn change(system: &System, by: &Account, body: Value) -> Answer {
    system.ask("PATCH", "/api/users/me", Some(by), &[], body).await
}

async fn profile(system: &System, after: &Answer, name: &str) -> Answer {
    system.get_after(after.written(), &format!("/api/users/{name}"), None).await
}

fn etag(answer: &Answer) -> String {
    answer.headers["etag"].to_str().unwrap().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn an_account_is_changed_in_what_is_given() {
    let system = System::start(&[]).await;
    let (ada, ben) = (system.register("ada").await, system.register("ben").await);
    let me = system.get("/api/users/me", Some(&ada)).await;
    let body = me.is(200);
    assert_eq!(
        (&body["id"], &body["username"], &body["email"]),
        (&json!(ada.id), &json!("ada"), &json!("ada@example.com"))
    );
    let bio = "Writes\nprograms \u{1F30D}";
    let changed = json!({ "displayName": "Ada L.", "bio": bio, "avatarUrl": "https://a.b/c.png" });
    let answer = change(&system, &ada, changed).await;
    let body = answer.is(200);
    assert_eq!(
        (&body["displayName"], &body["bio"], &body["avatarUrl"]),
        (&json!("Ada L."), &json!(bio), &json!("https://a.b/c.png"))
    );
    let shown = profile(&system, &answer, "ada").await.is(200);
    assert_eq!((&shown["displayName"], &shown["bio"]), (&json!("Ada L."), &json!(bio)));
    assert!(shown.get("email").is_none());
    // What is null goes, what is left out stays.
    let body = change(&system, &ada, json!({ "bio": null })).await.is(200);
    assert_eq!((&body["bio"], &body["avatarUrl"]), (&Value::Null, &json!("https://a.b/c.png")));
    let body = change(&system, &ada, json!({})).await.is(200);
    assert_eq!(body["displayName"], "Ada L.");

    // A name goes to whoever takes it, and follows the account everywhere.
    let (id, _) = system.tweet(&ada, "hello").await;
    change(&system, &ada, json!({ "username": "BEN" })).await.is_problem(409, "taken");
    let renamed = change(&system, &ada, json!({ "username": "Ada_2", "displayName": "Ada" })).await;
    assert_eq!(renamed.is(200)["username"], "Ada_2");
    profile(&system, &renamed, "ada").await.is_problem(404, "user-not-found");
    assert_eq!(profile(&system, &renamed, "ada_2").await.is(200)["id"], ada.id.as_str());
    let tweet = system.get_after(renamed.written(), &format!("/api/tweets/{id}"), None).await.is(200);
    assert_eq!(tweet["author"]["username"], "Ada_2");
    let body = json!({ "username": "ada_2", "password": PASSWORD });
    system.post("/api/auth/login", None, body).await.is(200);
    assert_eq!(change(&system, &ben, json!({ "username": "ada" })).await.is(200)["username"], "ada");

    for (body, field) in [
        (json!({ "username": "me" }), "username"),
        (json!({ "username": "" }), "username"),
        (json!({ "displayName": " " }), "displayName"),
        (json!({ "bio": "x".repeat(161) }), "bio"),
        (json!({ "bio": "\u{0}" }), "bio"),
        (json!({ "avatarUrl": "http://a.b/c" }), "avatarUrl"),
        (json!({ "avatarUrl": "" }), "avatarUrl"),
    ] {
        let answer = change(&system, &ada, body).await;
        answer.is_problem(422, "invalid-field");
        assert_eq!(answer.body["field"], field);
    }
    for body in
        [json!({ "displayName": null, "x": 1 }), json!({ "protected": "yes" }), json!([]), json!({ "verified": true })]
    {
        change(&system, &ada, body).await.is_problem(422, "invalid-body");
    }
    system.get("/api/users/me", None).await.is_problem(401, "unauthenticated");
    let taken = json!({ "username": "Me", "email": "me@example.com", "password": PASSWORD, "displayName": "Me" });
    system.post("/api/auth/register", None, taken).await.is_problem(422, "invalid-field");
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_of_what_was_changed_meanwhile_is_refused() {
    let system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let patch = async |tag: &str, name: &str| {
        let body = json!({ "displayName": name });
        system.ask("PATCH", "/api/users/me", Some(&ada), &[("If-Match", tag)], body).await
    };
    let first = etag(&system.get("/api/users/me", Some(&ada)).await);
    let answer = patch(&first, "one").await;
    answer.is(200);
    let second = etag(&answer);
    assert_ne!(first, second);
    patch(&first, "two").await.is_problem(412, "precondition-failed");
    for never in ["\"0\"", "W/\"1\"", "1", ""] {
        patch(never, "two").await.is_problem(412, "precondition-failed");
    }
    let read = system.get("/api/users/me", Some(&ada)).await;
    assert_eq!((etag(&read), &read.is(200)["displayName"]), (second.clone(), &json!("one")));
    // Of many with the same version, one.
    let names: Vec<String> = (0..8).map(|n| format!("name {n}")).collect();
    let answers = futures::future::join_all(names.iter().map(|name| patch(&second, name))).await;
    assert_eq!(answers.iter().filter(|answer| answer.status == 200).count(), 1, "{answers:?}");
    patch(&format!("\"7\", {}", etag(&system.get("/api/users/me", Some(&ada)).await)), "list").await.is(200);
    patch("*", "any").await.is(200);
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_becomes_protected_is_hidden_when_that_is_answered() {
    let system = System::start(&[]).await;
    let (ada, ben) = (system.register("ada").await, system.register("ben").await);
    let (id, token) = system.tweet(&ada, "hello").await;
    let path = format!("/api/tweets/{id}");
    system.get_after(&token, &path, Some(&ben)).await.is(200);
    assert_eq!(change(&system, &ada, json!({ "protected": true })).await.is(200)["protected"], true);
    system.get(&path, Some(&ben)).await.is_problem(404, "tweet-not-found");
    let follow = format!("/api/follows/{}", ada.id);
    assert_eq!(system.post(&follow, Some(&ben), Value::Null).await.is(201)["accepted"], false);
    // A request stays one when the account is public again.
    let public = change(&system, &ada, json!({ "protected": false })).await;
    system.get_after(public.written(), &path, Some(&ben)).await.is(200);
    assert_eq!(system.post(&follow, Some(&ben), Value::Null).await.is(200)["accepted"], false);
    system.post(&format!("/api/follows/requests/{}/accept", ben.id), Some(&ada), Value::Null).await.is(204);
    system.verified().await;
}

/// The lines of an export, by their kinds.
async fn export(system: &System, by: &Account) -> Vec<Value> {
    let request = system.http.get(format!("{}/api/users/me/export", system.url)).bearer_auth(&by.token);
    let answer = request.send().await.unwrap();
    assert_eq!(answer.status(), 200);
    assert_eq!(answer.headers()["content-type"], "application/x-ndjson");
    let text = answer.text().await.unwrap();
    let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let end = lines.last().unwrap();
    assert_eq!((&end["kind"], &end["lines"]), (&json!("end"), &json!(lines.len() - 1)));
    lines
}

fn of_kind<'a>(lines: &'a [Value], kind: &str) -> Vec<&'a Value> {
    lines.iter().filter(|line| line["kind"] == kind).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn all_of_ones_own_is_exported_and_nothing_of_others() {
    let system = System::start(&[]).await;
    let (ada, ben) = (system.register("ada").await, system.register("ben").await);
    let (theirs, _) = system.tweet(&ben, "theirs").await;
    let answer =
        json!({ "content": "answer", "replyTo": theirs, "media": [{ "type": "gif", "url": "https://a.b/c" }] });
    system.post("/api/tweets", Some(&ada), answer).await.is(201);
    let (deleted, _) = system.tweet(&ada, "deleted").await;
    system.delete(&format!("/api/tweets/{deleted}"), Some(&ada)).await.is(204);
    for path in [
        format!("/api/tweets/{theirs}/like"),
        format!("/api/tweets/{theirs}/retweet"),
        format!("/api/follows/{}", ben.id),
    ] {
        assert!(system.post(&path, Some(&ada), Value::Null).await.status < 300);
    }
    system.put(&format!("/api/mutes/{}", ben.id), Some(&ada)).await.is(204);
    let lines = export(&system, &ada).await;
    let account = of_kind(&lines, "account");
    assert_eq!(
        (account.len(), &account[0]["email"], &account[0]["id"]),
        (1, &json!("ada@example.com"), &json!(ada.id))
    );
    let tweets = of_kind(&lines, "tweet");
    assert_eq!((tweets.len(), &tweets[0]["content"], &tweets[0]["replyTo"]), (1, &json!("answer"), &json!(theirs)));
    assert_eq!(tweets[0]["media"], json!([{ "type": "gif", "url": "https://a.b/c" }]));
    assert_eq!(of_kind(&lines, "like")[0]["tweetId"], theirs.as_str());
    assert_eq!(of_kind(&lines, "retweet")[0]["tweetId"], theirs.as_str());
    assert_eq!(
        (&of_kind(&lines, "follow")[0]["userId"], &of_kind(&lines, "mute")[0]["userId"]),
        (&json!(ben.id), &json!(ben.id))
    );
    assert_eq!(lines.len(), 7, "{lines:?}");

    // More than a page of each.
    let sql = system.sql().await;
    let many = format!(
        "INSERT INTO tweets (id, user_id, content, conversation_id)
             SELECT n, {ben}, 'tweet ' || n, n FROM generate_series(1, 1200) AS n;
         INSERT INTO likes (user_id, tweet_id) SELECT {ben}, n FROM generate_series(1, 1000) AS n",
        ben = ben.id
    );
    sql.batch_execute(&many).await.unwrap();
    let lines = export(&system, &ben).await;
    assert_eq!((of_kind(&lines, "tweet").len(), of_kind(&lines, "like").len()), (1_201, 1_000));
    assert!(!lines.iter().any(|line| line.to_string().contains("password") || line.to_string().contains("ada@")));
    system.get("/api/users/me/export", None).await.is_problem(401, "unauthenticated");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_account_leaves_places_and_nothing_to_read() {
    let mut system = System::start(&[]).await;
    let (ada, ben) = (system.register("ada").await, system.register("ben").await);
    let other = system.login("ada").await;
    let (id, _) = system.tweet(&ada, "hello").await;
    let (theirs, _) = system.tweet(&ben, "theirs").await;
    let reply = system.post("/api/tweets", Some(&ben), json!({ "content": "re", "replyTo": id })).await.is(201);
    system.post(&format!("/api/tweets/{theirs}/like"), Some(&ada), Value::Null).await.is(204);
    system.post(&format!("/api/tweets/{theirs}/retweet"), Some(&ada), Value::Null).await.is(204);
    for (by, whom) in [(&ada, &ben), (&ben, &ada)] {
        system.post(&format!("/api/follows/{}", whom.id), Some(by), Value::Null).await.is(201);
    }
    // More than one transaction takes.
    let sql = system.sql().await;
    let many = format!(
        "INSERT INTO tweets (id, user_id, content, conversation_id)
             SELECT n, {ada}, 'tweet ' || n, n FROM generate_series(1, 3500) AS n;
         INSERT INTO accounts (user_id, username) SELECT n, 'u' || n FROM generate_series(1, 2500) AS n;
         INSERT INTO users (id, username, display_name) SELECT n, 'u' || n, '' FROM generate_series(1, 2500) AS n;
         INSERT INTO follows (follower_id, following_id) SELECT n, {ada} FROM generate_series(1, 2500) AS n;
         INSERT INTO likes (user_id, tweet_id) SELECT {ada}, n FROM generate_series(1, 2500) AS n;
         INSERT INTO blocks SELECT {ada}, n FROM generate_series(1, 100) AS n;
         INSERT INTO mutes SELECT {ada}, n FROM generate_series(1, 100) AS n",
        ada = ada.id
    );
    sql.batch_execute(&many).await.unwrap();

    let delete = async |by: Option<&Account>, password: &str| {
        system.ask("DELETE", "/api/users/me", by, &[], json!({ "password": password })).await
    };
    delete(None, PASSWORD).await.is_problem(401, "unauthenticated");
    delete(Some(&ada), "wrong").await.is_problem(403, "wrong-password");
    system.delete("/api/users/me", Some(&ada)).await.is_problem(415, "unsupported-media-type");
    system.get("/api/auth/verify", Some(&ada)).await.is(200);
    delete(Some(&ada), PASSWORD).await.is(204);

    // From here on nobody reads any of it, and no token of it holds.
    system.get("/api/users/ada", None).await.is_problem(404, "user-not-found");
    for tweet in [&id, "1", "3500"] {
        system.get(&format!("/api/tweets/{tweet}"), Some(&ben)).await.is_problem(404, "tweet-not-found");
    }
    assert_eq!(system.home(&ben, None).await, std::slice::from_ref(&theirs));
    for token in [&ada, &other.account] {
        system.get("/api/auth/verify", Some(token)).await.is_problem(401, "unauthenticated");
        system.post("/api/tweets", Some(token), json!({ "content": "x" })).await.is_problem(401, "unauthenticated");
    }
    let body = json!({ "refreshToken": other.refresh });
    system.post("/api/auth/refresh", None, body).await.is_problem(401, "unauthenticated");
    for name in [json!({ "username": "ada" }), json!({ "email": "ada@example.com" })] {
        let mut credentials = name;
        credentials["password"] = json!(PASSWORD);
        system.post("/api/auth/login", None, credentials).await.is_problem(401, "invalid-credentials");
    }

    // A crash keeps nobody from removing the rest.
    system.kill();
    system.go().await;
    let left = format!(
        "SELECT (SELECT count(*) FROM tweets WHERE user_id = {ada} AND deleted_at IS NULL)
              + (SELECT count(*) FROM follows WHERE follower_id = {ada} OR following_id = {ada})
              + (SELECT count(*) FROM likes WHERE user_id = {ada}) + (SELECT count(*) FROM retweets WHERE user_id = {ada})
              + (SELECT count(*) FROM blocks WHERE blocker_id = {ada}) + (SELECT count(*) FROM mutes WHERE muter_id = {ada})
              + (SELECT count(*) FROM activity WHERE user_id = {ada})",
        ada = ada.id
    );
    let nothing = async |_: &System| sql.query_one(&left, &[]).await.unwrap().get::<_, i64>(0) == 0;
    system.until("nothing is left", nothing).await;
    let kept =
        format!("SELECT a::text || u::text FROM accounts a JOIN users u ON u.id = a.user_id WHERE u.id = {}", ada.id);
    let kept: String = sql.query_one(&kept, &[]).await.unwrap().get(0);
    assert!(!kept.contains("ada") && !kept.contains("argon2"), "{kept}");
    // Its answers keep their place, and its name is free.
    let reply = system.get(&format!("/api/tweets/{}", reply["id"].as_str().unwrap()), None).await.is(200);
    assert_eq!(reply["replyTo"], id.as_str());
    let again = system.register("ada").await;
    assert_ne!(again.id, ada.id);
    system.verified().await;
}
