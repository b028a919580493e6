//! Live updates, over server-sent events and over WebSocket: real clients of both.

mod client;
mod ends;

use serde_json::{Value, json};
use tokio_tungstenite::tungstenite::Message;

use client::Wire;
pub use client::{BOTH, Stream, Transport};

use crate::system::{Account, System};

async fn follow(system: &System, follower: &Account, following: &Account) {
    let answer = system.post(&format!("/api/follows/{}", following.id), Some(follower), Value::Null).await;
    assert!((200..300).contains(&answer.status), "{answer:?}");
}

async fn run(system: &System, sql: &str) {
    system.sql().await.batch_execute(sql).await.unwrap_or_else(|error| panic!("{sql}: {error:?}"));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_comes_into_the_timeline_is_sent_as_the_timeline_shows_it() {
    let system = System::start(&["--workers", "2"]).await;
    let [ada, bob, star, carol] = ["ada", "bob", "star", "carol"].map(async |name| system.register(name).await);
    let (ada, bob, star, carol) = (ada.await, bob.await, star.await, carol.await);
    let mut streams = Vec::new();
    for transport in BOTH {
        streams.push(Stream::open(&system, transport, &ada, "").await);
    }
    run(&system, &format!("UPDATE users SET verified = true WHERE id = {}", star.id)).await;
    for account in [&bob, &star] {
        follow(&system, &ada, account).await;
    }
    let mut expected = vec![
        system.tweet(&bob, "pushed").await.0,
        system.tweet(&star, "hot").await.0,
        system.tweet(&ada, "my own \u{1F980}\n\"quoted\"").await.0,
    ];
    let unseen = system.tweet(&carol, "of nobody whom ada follows").await.0;
    expected.push(system.tweet(&bob, "again").await.0);
    run(&system, &format!("INSERT INTO retweets (user_id, tweet_id) VALUES ({}, {unseen})", bob.id)).await;
    expected.push(unseen);
    let mut sent = Vec::new();
    for stream in &mut streams {
        let mut entries = Vec::new();
        for _ in &expected {
            entries.push(stream.next_of("entry").await.data);
        }
        sent.push(entries);
    }
    let token = system.tweet(&ada, "the end").await.1;
    let page = system.get_after(&token, "/api/timeline", Some(&ada)).await.body;
    let mut shown: Vec<Value> = page["tweets"].as_array().unwrap()[1..].to_vec();
    shown.reverse();
    let ids: Vec<&str> = shown.iter().map(|tweet| tweet["id"].as_str().unwrap()).collect();
    assert_eq!(ids, expected);
    for mut entries in sent {
        for (entry, shown) in entries.iter_mut().zip(&shown) {
            // It was counted since.
            entry["counts"] = shown["counts"].clone();
        }
        assert_eq!(entries, shown);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn notifications_are_sent_with_how_many_are_not_read() {
    let system = System::start(&[]).await;
    let (ada, bob) = (system.register("ada").await, system.register("bob").await);
    let (tweet, _) = system.tweet(&ada, "like this").await;
    let mut streams = Vec::new();
    for transport in BOTH {
        let mut stream = Stream::open(&system, transport, &ada, "").await;
        assert_eq!(stream.next_of("unread").await.data["count"], 0);
        streams.push(stream);
    }
    follow(&system, &bob, &ada).await;
    for stream in &mut streams {
        let notice = stream.next_of("notification").await.data;
        assert_eq!((&notice["kind"], &notice["users"][0]["username"]), (&json!("follow"), &json!("bob")));
        assert_eq!(stream.next_of("unread").await.data["count"], 1);
    }
    run(&system, &format!("INSERT INTO likes (user_id, tweet_id) VALUES ({}, {tweet})", bob.id)).await;
    let mut newest = Value::Null;
    for stream in &mut streams {
        let notice = stream.next_of("notification").await.data;
        assert_eq!((&notice["kind"], &notice["tweet"]["id"]), (&json!("like"), &json!(tweet)));
        assert_eq!(stream.next_of("unread").await.data["count"], 2);
        newest = notice["id"].clone();
    }
    let read = newest.as_str().unwrap();
    run(&system, &format!("INSERT INTO read_marks (user_id, notifications_id) VALUES ({}, {read})", ada.id)).await;
    for stream in &mut streams {
        assert_eq!(stream.next_of("unread").await.data["count"], 0);
    }
    // What a muted account does is not told, and neither how much of it there is.
    run(&system, &format!("INSERT INTO mutes (muter_id, muted_id) VALUES ({}, {})", ada.id, bob.id)).await;
    let (second, _) = system.tweet(&ada, "and this").await;
    run(&system, &format!("INSERT INTO likes (user_id, tweet_id) VALUES ({}, {second})", bob.id)).await;
    let carol = system.register("carol").await;
    follow(&system, &carol, &ada).await;
    for stream in &mut streams {
        let notice = stream.next_of("notification").await.data;
        assert_eq!((&notice["kind"], &notice["users"][0]["username"]), (&json!("follow"), &json!("carol")));
        assert_eq!(stream.next_of("unread").await.data["count"], 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_joins_late_or_leaves_makes_a_notification_of_several_new_or_not() {
    let system = System::start(&[]).await;
    let [ada, bob, carol, dora] = ["ada", "bob", "carol", "dora"].map(async |name| system.register(name).await);
    let (ada, bob, carol, dora) = (ada.await, bob.await, carol.await, dora.await);
    let (tweet, _) = system.tweet(&ada, "like this").await;
    let mut stream = Stream::open(&system, Transport::Socket, &ada, "").await;
    let mut sql = system.sql().await;
    let slow = sql.transaction().await.unwrap();
    let like = |by: &Account| format!("INSERT INTO likes (user_id, tweet_id) VALUES ({}, {tweet})", by.id);
    slow.batch_execute(&like(&carol)).await.unwrap();
    run(&system, &like(&bob)).await;
    assert_eq!(stream.next_of("notification").await.data["count"], 1);
    slow.commit().await.unwrap();
    let both = stream.next_of("notification").await.data;
    assert_eq!(
        (&both["kind"], &both["count"], &both["users"][0]["username"]),
        (&json!("like"), &json!(2), &json!("bob"))
    );
    // What is left of it was told.
    run(&system, &format!("DELETE FROM likes WHERE user_id = {}", bob.id)).await;
    follow(&system, &dora, &ada).await;
    assert_eq!(stream.next_of("notification").await.data["kind"], "follow");
}

#[tokio::test(flavor = "multi_thread")]
async fn counts_of_tweets_on_screen_are_sent_until_they_are_gone() {
    let system = System::start(&[]).await;
    let (ada, bob) = (system.register("ada").await, system.register("bob").await);
    let (one, _) = system.tweet(&bob, "one").await;
    let (other, token) = system.tweet(&bob, "other").await;
    assert_eq!(system.get_after(&token, &format!("/api/tweets/{other}"), Some(&ada)).await.status, 200);
    let mut events = Stream::open(&system, Transport::Events, &ada, &format!("?tweets={one},{other}")).await;
    let mut socket = Stream::open(&system, Transport::Socket, &ada, "").await;
    socket.say(Message::text(json!({ "watch": [one] }).to_string())).await;
    let counts = |id: &str, likes: i64| json!({ "id": id, "likes": likes, "retweets": 0, "replies": 0 });
    assert_eq!(events.next_of("counts").await.data["tweets"], json!([counts(&one, 0), counts(&other, 0)]));
    assert_eq!(socket.next_of("counts").await.data["tweets"], json!([counts(&one, 0)]));

    run(&system, &format!("INSERT INTO likes (user_id, tweet_id) VALUES ({}, {other})", ada.id)).await;
    assert_eq!(events.next_of("counts").await.data["tweets"], json!([counts(&other, 1)]));
    run(&system, &format!("INSERT INTO likes (user_id, tweet_id) VALUES ({}, {one})", ada.id)).await;
    for stream in [&mut events, &mut socket] {
        assert_eq!(stream.next_of("counts").await.data["tweets"], json!([counts(&one, 1)]));
    }
    // Another list takes the place of the first.
    socket.say(Message::text(json!({ "watch": [other] }).to_string())).await;
    assert_eq!(socket.next_of("counts").await.data["tweets"], json!([counts(&other, 1)]));

    assert_eq!(system.delete(&format!("/api/tweets/{one}"), Some(&bob)).await.status / 100, 2);
    assert_eq!(events.next_of("gone").await.data["tweets"], json!([one]));
    run(&system, &format!("UPDATE users SET protected = true WHERE id = {}", bob.id)).await;
    for stream in [&mut events, &mut socket] {
        assert_eq!(stream.next_of("gone").await.data["tweets"], json!([other]));
    }
    run(&system, &format!("INSERT INTO likes (user_id, tweet_id) VALUES ({}, {other})", bob.id)).await;
    // One that is not there yet is not gone, and neither is one that never was.
    let (own, _) = system.tweet(&ada, "mine").await;
    socket.say(Message::text(json!({ "watch": [own, other, "1"] }).to_string())).await;
    let (mut told, mut gone) = (Value::Null, Value::Null);
    while told.is_null() || gone.is_null() {
        let event = socket.next().await;
        match event.name.as_str() {
            "counts" => told = event.data["tweets"].clone(),
            "gone" => gone = event.data["tweets"].clone(),
            _ => {}
        }
    }
    assert_eq!((told, gone), (json!([counts(&own, 0)]), json!([other])));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_comes_back_misses_nothing_and_gets_nothing_twice() {
    let mut system = System::start(&[]).await;
    let (ada, bob) = (system.register("ada").await, system.register("bob").await);
    follow(&system, &ada, &bob).await;
    let mut transport = Transport::Events;
    let mut stream = Stream::open(&system, transport, &ada, "").await;
    for round in 0..3 {
        // It goes before anything was sent, in the middle, and at the end.
        let (first, _) = system.tweet(&bob, "first").await;
        if round > 0 {
            assert_eq!(stream.entries_to(&first).await, std::slice::from_ref(&first));
        }
        let mut expected: Vec<String> = (round == 0).then_some(first).into_iter().collect();
        transport = BOTH[round % 2];
        if round == 2 {
            // On another instance too: the id alone says where to go on.
            system.interrupt();
            system.go().await;
        }
        for text in ["second", "third"] {
            expected.push(system.tweet(&bob, text).await.0);
        }
        stream = stream.again(&system, &ada, transport).await;
        assert_eq!(stream.entries_to(&expected[expected.len() - 1]).await, expected);
        let (next, _) = system.tweet(&bob, "next").await;
        assert_eq!(stream.entries_to(&next).await, [next]);
    }
    // Whoever read only some of what was sent goes on after that.
    let ids = [system.tweet(&bob, "a").await.0, system.tweet(&bob, "b").await.0, system.tweet(&bob, "c").await.0];
    assert_eq!(stream.entries_to(&ids[0]).await, ids[..1]);
    let mut again = stream.again(&system, &ada, Transport::Events).await;
    assert_eq!(again.entries_to(&ids[2]).await, ids[1..]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_commits_late_is_sent_although_later_ids_were() {
    let system = System::start(&[]).await;
    let (ada, bob) = (system.register("ada").await, system.register("bob").await);
    follow(&system, &ada, &bob).await;
    let mut stream = Stream::open(&system, Transport::Socket, &ada, "").await;
    let mut sql = system.sql().await;
    let slow = sql.transaction().await.unwrap();
    let insert = format!(
        "INSERT INTO tweets (id, user_id, content, conversation_id)
         SELECT id, {}, 'late', id FROM (SELECT feedmill_id() AS id) AS made RETURNING id",
        bob.id
    );
    let late = slow.query_one(&insert, &[]).await.unwrap().get::<_, i64>(0).to_string();
    let (early, _) = system.tweet(&bob, "early").await;
    assert!(early.parse::<i64>().unwrap() > late.parse::<i64>().unwrap());
    assert_eq!(stream.entries_to(&early).await, [early]);
    slow.commit().await.unwrap();
    assert_eq!(stream.entries_to(&late).await, [late]);
    let mut stream = stream.again(&system, &ada, Transport::Events).await;
    let (next, _) = system.tweet(&bob, "next").await;
    assert_eq!(stream.entries_to(&next).await, [next]);
}

/// As after an outage: what was made long ago is applied now, in several batches, and none of it in the order of its ids.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_made_long_ago_and_is_applied_now_is_sent() {
    let system = System::start(&[]).await;
    let (ada, bob) = (system.register("ada").await, system.register("bob").await);
    follow(&system, &ada, &bob).await;
    let mut stream = Stream::open(&system, Transport::Events, &ada, "").await;
    let sql = system.sql().await;
    let post = async |seconds_ago: i64| {
        let insert = format!(
            "INSERT INTO tweets (id, user_id, content, conversation_id)
             SELECT id, {}, 'long ago', id
             FROM (SELECT (extract(epoch FROM now())::bigint - {seconds_ago}) * 1000 << 16 AS id) AS made RETURNING id",
            bob.id
        );
        sql.query_one(&insert, &[]).await.unwrap().get::<_, i64>(0).to_string()
    };
    for seconds_ago in [600, 500, 530, 300] {
        let tweet = post(seconds_ago).await;
        assert_eq!(stream.entries_to(&tweet).await, [tweet]);
    }
    // That long no transaction takes.
    post(480).await;
    let tweet = post(290).await;
    assert_eq!(stream.entries_to(&tweet).await, [tweet]);
    let mut stream = stream.again(&system, &ada, Transport::Socket).await;
    let tweet = post(280).await;
    assert_eq!(stream.entries_to(&tweet).await, [tweet]);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_missed_too_much_is_told_to_load_the_timeline() {
    let system = System::start(&[]).await;
    let (ada, bob) = (system.register("ada").await, system.register("bob").await);
    follow(&system, &ada, &bob).await;
    for transport in BOTH {
        let stream = Stream::open(&system, transport, &ada, "").await;
        let many = format!(
            "INSERT INTO tweets (id, user_id, content, conversation_id) SELECT id, {}, 'one of many', id
             FROM (SELECT feedmill_id() AS id FROM generate_series(1, 101)) AS made",
            bob.id
        );
        let (last, query) = (stream.last.clone().unwrap(), "?lastEventId=");
        drop(stream);
        run(&system, &many).await;
        let (_, token) = system.tweet(&ada, "after them").await;
        system.home(&ada, Some(&token)).await;
        for id in [last.as_str(), "nonsense", &"A".repeat(3_000)] {
            let mut stream = Stream::open(&system, transport, &ada, &format!("{query}{id}")).await;
            let mut resets = Vec::new();
            let (next, _) = system.tweet(&bob, "next").await;
            let entry = loop {
                let event = stream.next().await;
                match event.name.as_str() {
                    "reset" => resets.push(event.data["of"].as_str().unwrap().to_owned()),
                    "entry" => break event.data["id"].clone(),
                    _ => {}
                }
            };
            assert_eq!(entry, next);
            let expected: &[&str] = if id == last { &["timeline"] } else { &["timeline", "notifications"] };
            assert_eq!(resets, expected, "{id:.9}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_viewer_may_not_see_any_more_is_not_sent() {
    let system = System::start(&["--workers", "2"]).await;
    let ada = system.register("ada").await;
    let marker = system.register("marker").await;
    follow(&system, &ada, &marker).await;
    let mut streams = Vec::new();
    for transport in BOTH {
        streams.push(Stream::open(&system, transport, &ada, "").await);
    }
    let narrowings = ["block", "blocked", "mute", "unfollow", "protect", "delete"];
    for (round, narrowing) in narrowings.into_iter().enumerate() {
        let author = system.register(&format!("author{round}")).await;
        let verified = round % 2 == 0;
        run(&system, &format!("UPDATE users SET verified = {verified} WHERE id = {}", author.id)).await;
        follow(&system, &ada, &author).await;
        let (shown, _) = system.tweet(&author, "shown").await;
        for stream in &mut streams {
            assert_eq!(stream.entries_to(&shown).await, std::slice::from_ref(&shown), "{narrowing}");
        }
        for stream in &mut streams {
            if let Wire::Socket(_) = stream.wire {
                stream.say(Message::text(json!({ "watch": [shown] }).to_string())).await;
                stream.next_of("counts").await;
            }
        }
        let (one, other) = (&ada.id, &author.id);
        match narrowing {
            "block" => {
                run(&system, &format!("INSERT INTO blocks (blocker_id, blocked_id) VALUES ({one}, {other})")).await
            }
            "blocked" => {
                run(&system, &format!("INSERT INTO blocks (blocker_id, blocked_id) VALUES ({other}, {one})")).await
            }
            "mute" => run(&system, &format!("INSERT INTO mutes (muter_id, muted_id) VALUES ({one}, {other})")).await,
            "unfollow" => {
                assert_eq!(system.delete(&format!("/api/follows/{other}"), Some(&ada)).await.status / 100, 2);
            }
            // An accepted follower goes on reading, but no retweet of it by somebody else reaches others.
            "protect" => {
                assert_eq!(system.delete(&format!("/api/follows/{other}"), Some(&ada)).await.status / 100, 2);
                run(&system, &format!("UPDATE users SET protected = true WHERE id = {other}")).await;
            }
            _ => {
                assert_eq!(system.delete(&format!("/api/tweets/{shown}"), Some(&author)).await.status / 100, 2);
                run(
                    &system,
                    &format!(
                        "DELETE FROM follows WHERE following_id = {other};
                         UPDATE users SET deleted_at = now() WHERE id = {other}"
                    ),
                )
                .await;
            }
        }
        run(
            &system,
            &format!(
                "INSERT INTO tweets (id, user_id, content, conversation_id)
                     SELECT id, {other}, 'hidden', id FROM (SELECT feedmill_id() AS id) AS made;
                 INSERT INTO likes (user_id, tweet_id) VALUES ({other}, {shown});
                 INSERT INTO retweets (user_id, tweet_id) VALUES ({}, {shown})",
                marker.id
            ),
        )
        .await;
        let (seen, _) = system.tweet(&marker, "seen").await;
        // The marker's retweet is shown where the tweet itself may still be read: after an unfollow.
        let expected = if narrowing == "unfollow" { vec![shown.clone(), seen.clone()] } else { vec![seen.clone()] };
        for stream in &mut streams {
            let mut entries = Vec::new();
            let mut gone = Value::Null;
            while entries.last() != Some(&seen) {
                let event = stream.next().await;
                match event.name.as_str() {
                    "entry" => entries.push(event.data["id"].as_str().unwrap().to_owned()),
                    "gone" => gone = event.data["tweets"].clone(),
                    "notification" => panic!("{narrowing}: {event:?}"),
                    _ => {}
                }
            }
            assert_eq!(entries, expected, "{narrowing}");
            let stays = matches!(narrowing, "mute" | "unfollow") || !matches!(stream.wire, Wire::Socket(_));
            if !stays && gone.is_null() {
                gone = stream.next_of("gone").await.data["tweets"].clone();
            }
            assert_eq!(gone.is_null(), stays, "{narrowing}");
        }
    }
}
