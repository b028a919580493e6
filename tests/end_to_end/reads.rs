//! What is read of tweets, threads and accounts, and what a reader who is signed in is told beside it.

use serde_json::{Value, json};
use tokio_postgres::Client;

use crate::system::{Account, System, ids};

/// The id of an account, as SQL has it.
pub fn id(account: &Account) -> i64 {
    account.id.parse().unwrap()
}

/// Registers some people.
pub async fn people<const N: usize>(system: &System, names: [&str; N]) -> [Account; N] {
    let mut people = Vec::new();
    for name in names {
        people.push(system.register(name).await);
    }
    people.try_into().unwrap()
}

/// A token that holds what was written by SQL.
pub async fn token(system: &System, of: &Account) -> String {
    system.tweet(of, "written").await.1
}

/// Answers a tweet.
pub async fn reply(sql: &Client, author: &Account, to: i64, content: &str) -> i64 {
    let insert = "INSERT INTO tweets (id, user_id, content, reply_to_id, conversation_id)
                  SELECT fresh.id, $1, $2, answered.id, answered.conversation_id
                  FROM feedmill_id() AS fresh (id), tweets answered WHERE answered.id = $3 RETURNING id";
    sql.query_one(insert, &[&id(author), &content, &to]).await.unwrap().get(0)
}

/// All items of a list, read page by page, at least as new as `token`.
pub async fn all(system: &System, token: &str, path: &str, name: &str, reader: Option<&Account>) -> Vec<Value> {
    let (mut items, mut cursor) = (Vec::new(), String::new());
    loop {
        let page = system.get_after(token, &format!("{path}{cursor}"), reader).await;
        assert_eq!(page.status, 200, "{path}{cursor}: {page:?}");
        items.extend(page.body[name].as_array().unwrap().iter().cloned());
        let Some(next) = page.body["nextCursor"].as_str() else { return items };
        cursor = format!("&cursor={next}");
        assert!(items.len() < 1_000, "{path} does not end");
    }
}

/// The ids of items.
pub fn ids_of(items: &[Value]) -> Vec<&str> {
    items.iter().map(|item| item["id"].as_str().unwrap()).collect()
}

/// It is this problem.
#[track_caller]
pub fn is_problem(answer: &crate::system::Answer, status: u16, error: &str) {
    assert_eq!((answer.status, &answer.body["error"]), (status, &json!(error)), "{answer:?}");
}

/// Replies as (id, parent, depth, whether there is a tweet).
fn placed(replies: &[Value]) -> Vec<(i64, i64, u64, bool)> {
    let number = |value: &Value| value.as_str().unwrap().parse().unwrap();
    let place = |reply: &Value| {
        assert_eq!(reply["deleted"], reply["tweet"].is_null());
        let depth = reply["depth"].as_u64().unwrap();
        (number(&reply["id"]), number(&reply["parentId"]), depth, reply["tweet"].is_object())
    };
    replies.iter().map(place).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_thread_is_read_from_its_first_tweet_and_from_its_last() {
    let system = System::start(&[]).await;
    let sql = system.sql().await;
    let [ada, ben, eve] = people(&system, ["ada", "ben", "eve"]).await;
    let root: i64 = system.tweet(&ada, "root").await.0.parse().unwrap();
    let one = reply(&sql, &ben, root, "one").await;
    let two = reply(&sql, &ada, one, "two").await;
    let three = reply(&sql, &ben, root, "three").await;
    let four = reply(&sql, &eve, three, "four").await;
    let five = reply(&sql, &ada, root, "five").await;
    let now = token(&system, &eve).await;
    let below = [(one, root, 1), (two, one, 2), (three, root, 1), (four, three, 2), (five, root, 1)];
    let there = |(id, parent, depth): (i64, i64, u64)| (id, parent, depth, true);
    for limit in [1, 2, 100] {
        let path = format!("/api/tweets/{root}/conversation?limit={limit}");
        let replies = all(&system, &now, &path, "replies", None).await;
        assert_eq!(placed(&replies), below.map(there), "{limit}");
        assert_eq!(replies[1]["tweet"]["replyTo"], one.to_string());
        assert_eq!(replies[1]["tweet"]["conversationId"], root.to_string());
        let path = format!("/api/tweets/{root}/conversation?order=author-first&limit={limit}");
        let replies = all(&system, &now, &path, "replies", Some(&ben)).await;
        assert_eq!(placed(&replies), [below[4], below[0], below[1], below[2], below[3]].map(there), "{limit}");
        assert_eq!(replies[0]["tweet"]["liked"], false);
    }
    let path = format!("/api/tweets/{one}/conversation?limit=5");
    assert_eq!(placed(&all(&system, &now, &path, "replies", None).await), [there(below[1])]);
    let above = |answer: &Value| -> Vec<(String, String)> {
        let ancestors = answer["ancestors"].as_array().unwrap().iter();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        ancestors
            .map(|ancestor| {
                assert_eq!(ancestor["state"] == "shown", ancestor["tweet"].is_object(), "{ancestor}");
                (text(&ancestor["id"]), text(&ancestor["state"]))
            })
            .collect()
    };
    let ancestor = |id: i64, state: &str| (id.to_string(), state.to_owned());
    let path = format!("/api/tweets/{four}/ancestors");
    let ancestors = system.get(&path, None).await.body;
    assert_eq!(above(&ancestors), [ancestor(root, "shown"), ancestor(three, "shown")]);
    assert_eq!(ancestors["nextCursor"], Value::Null);
    let nearest = system.get(&format!("{path}?limit=1"), None).await.body;
    assert_eq!(above(&nearest), [ancestor(three, "shown")]);
    let cursor = nearest["nextCursor"].as_str().unwrap();
    let highest = system.get(&format!("{path}?limit=1&cursor={cursor}"), None).await.body;
    assert_eq!((above(&highest), &highest["nextCursor"]), (vec![ancestor(root, "shown")], &Value::Null));
    assert_eq!(above(&system.get(&format!("/api/tweets/{root}/ancestors"), None).await.body), []);

    // What was deleted keeps its place. What is not for the reader does not show it.
    sql.execute("UPDATE tweets SET content = '', deleted_at = now() WHERE id = $1", &[&three]).await.unwrap();
    sql.execute("UPDATE users SET protected = true WHERE id = $1", &[&id(&eve)]).await.unwrap();
    let now = token(&system, &eve).await;
    let path = format!("/api/tweets/{root}/conversation?limit=100");
    let deleted = (three, root, 1, false);
    let replies = all(&system, &now, &path, "replies", None).await;
    assert_eq!(placed(&replies), [there(below[0]), there(below[1]), deleted, there(below[4])]);
    let replies = all(&system, &now, &path, "replies", Some(&eve)).await;
    assert_eq!(placed(&replies), [there(below[0]), there(below[1]), deleted, there(below[3]), there(below[4])]);
    let path = format!("/api/tweets/{four}/ancestors");
    let ancestors = system.get(&path, Some(&eve)).await.body;
    assert_eq!(above(&ancestors), [ancestor(root, "shown"), ancestor(three, "deleted")]);
    for path in [path, format!("/api/tweets/{four}/conversation"), format!("/api/tweets/{four}/likes")] {
        is_problem(&system.get(&path, None).await, 404, "tweet-not-found");
    }
    sql.execute("UPDATE users SET protected = true WHERE id = $1", &[&id(&ada)]).await.unwrap();
    let now = token(&system, &ben).await;
    let ancestors = system.get_after(&now, &format!("/api/tweets/{one}/ancestors"), Some(&ben)).await.body;
    assert_eq!(above(&ancestors), [ancestor(root, "hidden")]);

    for what in ["conversation", "ancestors", "likes", "retweets"] {
        is_problem(&system.get(&format!("/api/tweets/1/{what}"), None).await, 404, "tweet-not-found");
        is_problem(&system.get(&format!("/api/tweets/x/{what}"), None).await, 400, "invalid-id");
        let path = format!("/api/tweets/{one}/{what}");
        is_problem(&system.get(&format!("{path}?limit=0"), Some(&ada)).await, 400, "invalid-limit");
        // A cursor of another list.
        is_problem(&system.get(&format!("{path}?cursor=AXo"), Some(&ada)).await, 400, "invalid-cursor");
    }
    let sideways = system.get(&format!("/api/tweets/{one}/conversation?order=sideways"), Some(&ada)).await;
    is_problem(&sideways, 400, "malformed-request");
}

/// The flags of a user.
fn flags(user: &Value) -> [Option<bool>; 5] {
    ["following", "followedBy", "requested", "blocking", "muting"].map(|flag| user[flag].as_bool())
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_of_accounts_say_what_the_reader_has_to_do_with_them() {
    let system = System::start(&[]).await;
    let sql = system.sql().await;
    let [ada, ben, eve, dan] = people(&system, ["ada", "ben", "eve", "dan"]).await;
    let (tweet, _) = system.tweet(&ada, "liked by many").await;
    let [a, b, e, d] = [&ada, &ben, &eve, &dan].map(id);
    sql.batch_execute(&format!(
        "INSERT INTO likes (user_id, tweet_id, created_at) VALUES ({b}, {tweet}, now() - interval '1 minute'), ({e}, {tweet}, now());
         INSERT INTO retweets (user_id, tweet_id) VALUES ({b}, {tweet});
         INSERT INTO retweets (user_id, tweet_id) VALUES ({e}, {tweet});
         INSERT INTO follows (follower_id, following_id, accepted) VALUES ({b}, {a}, true), ({a}, {e}, true), ({e}, {b}, false),
             ({d}, {b}, false);
         INSERT INTO mutes VALUES ({b}, {d}), ({b}, {e});
         INSERT INTO blocks VALUES ({d}, {e})"
    ))
    .await
    .unwrap();
    let now = token(&system, &dan).await;
    let list = async |path: &str, reader| all(&system, &now, &format!("{path}?limit=1"), "users", reader).await;
    let both = vec![&*eve.id, &ben.id];
    for what in ["likes", "retweets"] {
        let path = format!("/api/tweets/{tweet}/{what}");
        let everybody = list(&path, None).await;
        assert_eq!(ids_of(&everybody), both, "{what}");
        assert!(everybody.iter().all(|user| flags(user) == [None; 5]), "{everybody:?}");
        let by_ada = list(&path, Some(&ada)).await;
        assert_eq!(ids_of(&by_ada), both);
        let expected = [[true, false, false, false, false], [false, true, false, false, false]];
        assert_eq!(by_ada.iter().map(flags).collect::<Vec<_>>(), expected.map(|flags| flags.map(Some)));
        // Who blocks one of them does not find that one.
        assert_eq!(ids_of(&list(&path, Some(&dan)).await), [&*ben.id]);
    }
    let by_eve = system.get("/api/users/ben", Some(&eve)).await.body;
    assert_eq!(flags(&by_eve), [false, false, true, false, false].map(Some), "{by_eve}");
    let asking = list("/api/follows/requests", Some(&ben)).await;
    let mut asked: Vec<&str> = ids_of(&asking);
    asked.sort_unstable();
    let mut expected = [&*dan.id, &eve.id];
    expected.sort_unstable();
    assert_eq!(asked, expected);
    let muted = list("/api/mutes", Some(&ben)).await;
    assert_eq!(ids_of(&muted), expected);
    assert!(muted.iter().all(|user| flags(user) == [false, false, false, false, true].map(Some)), "{muted:?}");
    let blocked = list("/api/blocks", Some(&dan)).await;
    assert_eq!(ids_of(&blocked), [&*eve.id]);
    assert_eq!(flags(&blocked[0]), [false, false, false, true, false].map(Some));
    assert!(list("/api/blocks", Some(&eve)).await.is_empty());
    for path in ["/api/follows/requests", "/api/blocks", "/api/mutes"] {
        is_problem(&system.get(path, None).await, 401, "unauthenticated");
        is_problem(&system.get(&format!("{path}?limit=101"), Some(&ada)).await, 400, "invalid-limit");
        is_problem(&system.get(&format!("{path}?cursor=AXo"), Some(&ada)).await, 400, "invalid-cursor");
    }
    // A cursor of one list is none of another.
    let page = system.get("/api/mutes?limit=1", Some(&ben)).await.body;
    let cursor = page["nextCursor"].as_str().unwrap();
    is_problem(&system.get(&format!("/api/blocks?cursor={cursor}"), Some(&ben)).await, 400, "invalid-cursor");

    // Who is protected is not named to everybody as one who likes something.
    sql.execute("UPDATE users SET protected = true WHERE id = $1", &[&e]).await.unwrap();
    let now = token(&system, &dan).await;
    let path = format!("/api/tweets/{tweet}/likes?limit=5");
    assert_eq!(ids_of(&all(&system, &now, &path, "users", None).await), [&*ben.id]);
    assert_eq!(ids_of(&all(&system, &now, &path, "users", Some(&ada)).await), both);
}

#[tokio::test(flavor = "multi_thread")]
async fn tweets_say_what_they_name_and_what_the_reader_did_with_them() {
    let system = System::start(&[]).await;
    let sql = system.sql().await;
    let [ada, ben] = people(&system, ["ada", "ben"]).await;
    let content = "日本 #Tag, @Ben: https://example.org/#x! 😀 #end";
    let (tweet, _) = system.tweet(&ada, content).await;
    let [a, b] = [&ada, &ben].map(id);
    sql.batch_execute(&format!(
        "INSERT INTO follows (follower_id, following_id) VALUES ({b}, {a});
         INSERT INTO likes (user_id, tweet_id) VALUES ({b}, {tweet});
         INSERT INTO retweets (user_id, tweet_id) VALUES ({b}, {tweet});
         INSERT INTO tweets (id, user_id, content, conversation_id, media)
             SELECT id, {a}, 'with a picture', id, '[{{\"url\": \"https://example.org/1.png\", \"width\": 10.50}}]'
             FROM feedmill_id() AS id"
    ))
    .await
    .unwrap();
    let now = token(&system, &ben).await;
    // A token of a tweet holds likes in their lists; tweets show them as they come, not before the lists do.
    let likers = format!("/api/tweets/{tweet}/likes");
    assert_eq!(ids_of(&all(&system, &now, &format!("{likers}?limit=5"), "users", None).await), [&*ben.id]);
    let read = system.get_after(&now, &format!("/api/tweets/{tweet}"), None).await.body;
    let expected = json!({
        "hashtags": [{ "tag": "Tag", "start": 3, "end": 7 }, { "tag": "end", "start": 41, "end": 45 }],
        "mentions": [{ "username": "Ben", "start": 9, "end": 13 }],
        "urls": [{ "url": "https://example.org/#x", "start": 15, "end": 37 }],
    });
    let code_points: Vec<char> = content.chars().collect();
    for entity in ["hashtags", "mentions", "urls"].iter().flat_map(|kind| expected[*kind].as_array().unwrap()) {
        let place = |name: &str| usize::try_from(entity[name].as_u64().unwrap()).unwrap();
        let there: String = code_points[place("start")..place("end")].iter().collect();
        let named = ["tag", "username", "url"].iter().find_map(|name| entity[*name].as_str()).unwrap();
        assert!(there.ends_with(named), "{there}");
    }
    assert_eq!(read["entities"], expected);
    assert_eq!((&read["conversationId"], &read["media"]), (&json!(tweet), &Value::Null));
    for flag in ["liked", "retweeted"] {
        assert!(read.get(flag).is_none() && read["author"].get("following").is_none(), "{read}");
    }
    let home = system.get_after(&now, "/api/timeline", Some(&ben)).await.body;
    let pictured =
        home["tweets"].as_array().unwrap().iter().find(|tweet| tweet["content"] == "with a picture").unwrap();
    assert_eq!(pictured["media"], json!([{ "url": "https://example.org/1.png", "width": 10.50 }]));
    assert_eq!((&pictured["liked"], &pictured["retweeted"]), (&json!(false), &json!(false)));
    let paths =
        [format!("/api/tweets/{tweet}"), "/api/timeline?limit=50".to_owned(), "/api/users/ada/tweets".to_owned()];
    for path in paths {
        for (reader, did, follows) in [(&ben, true, true), (&ada, false, false)] {
            let body = system.get_after(&now, &path, Some(reader)).await.body;
            let found = match body.get("tweets") {
                Some(_) => &body["tweets"][ids(&body).iter().position(|id| *id == tweet).unwrap()],
                None => &body,
            };
            assert_eq!((&found["liked"], &found["retweeted"]), (&json!(did), &json!(did)), "{path}: {found}");
            assert_eq!(flags(&found["author"])[0], Some(follows), "{path}: {found}");
        }
    }
    assert_eq!(flags(&system.get("/api/users/ben", Some(&ada)).await.body)[1], Some(true));
}
