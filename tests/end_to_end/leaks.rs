//! Who may not see something does not see it anywhere: every path by which an account or what it wrote can be read, after
//! everything that hides it, read at once after the answer to what hides it.

use serde_json::{Value, json};

use crate::live::{Stream, Transport};
use crate::system::{Account, PASSWORD, System};

/// Who looks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Viewer {
    /// Follows the author, and is followed.
    Follower,
    /// Follows who follows the author, and not the author.
    Stranger,
}

use Viewer::{Follower, Stranger};

/// What hides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Blocks,
    IsBlocked,
    Mutes,
    Unfollows,
    Protects,
    DeletesTweets,
    DeletesAccount,
}

const EVENTS: [Event; 7] = [
    Event::Blocks,
    Event::IsBlocked,
    Event::Mutes,
    Event::Unfollows,
    Event::Protects,
    Event::DeletesTweets,
    Event::DeletesAccount,
];

/// A path, and what in its answer is the author's.
struct Place {
    name: &'static str,
    viewer: Viewer,
    path: String,
    /// Stands in the answer as long as the viewer may see it.
    mark: String,
}

/// An author, what it wrote and did, and who looks at it.
struct World<'a> {
    system: &'a System,
    /// The word that only the author writes, which is a tag too.
    word: String,
    author: Account,
    follower: Account,
    stranger: Account,
    friend: Account,
    /// The author's tweets.
    written: Vec<String>,
    places: Vec<Place>,
}

impl<'a> World<'a> {
    async fn new(system: &'a System, number: usize) -> World<'a> {
        let handle = format!("author{number}");
        let (friend_name, word) = (format!("friend{number}"), format!("zanzibar{number}"));
        let author = system.register(&handle).await;
        let follower = system.register(&format!("follower{number}")).await;
        let stranger = system.register(&format!("stranger{number}")).await;
        let friend = system.register(&friend_name).await;
        let other = system.register(&format!("other{number}")).await;
        for (who, whom) in
            [(&follower, &author), (&follower, &friend), (&author, &follower), (&friend, &author), (&stranger, &friend)]
        {
            system.post(&format!("/api/follows/{}", whom.id), Some(who), Value::Null).await.is(201);
        }
        let post = async |by: &Account, content: String, reply_to: Option<&str>| {
            let mut body = json!({ "content": content });
            if let Some(tweet) = reply_to {
                body["replyTo"] = tweet.into();
            }
            let answer = system.post("/api/tweets", Some(by), body).await.is(201);
            answer["id"].as_str().unwrap().to_owned()
        };
        let act = async |by: &Account, tweet: &str, what: &str| {
            let answer = system.post(&format!("/api/tweets/{tweet}/{what}"), Some(by), Value::Null).await;
            assert!((200..300).contains(&answer.status), "{answer:?}");
            answer.token.unwrap()
        };
        let that_is_shared = format!("{word} that is shared");
        let (in_thread, to_follower) = (format!("{word} in a thread"), format!("{word} to a follower"));
        let pushed = post(&author, format!("{word} to all #{word} @follower{number}"), None).await;
        let shared = post(&author, that_is_shared.clone(), None).await;
        let question = post(&friend, "What do you think?".to_owned(), None).await;
        let answer = post(&author, in_thread.clone(), Some(&question)).await;
        let doubt = post(&follower, "Is that so?".to_owned(), Some(&shared)).await;
        let far = post(&other, format!("kilimanjaro{number}"), None).await;
        let own = post(&follower, "It rains".to_owned(), None).await;
        let reply = post(&author, to_follower.clone(), Some(&own)).await;
        act(&friend, &shared, "retweet").await;
        act(&author, &far, "retweet").await;
        act(&author, &own, "retweet").await;
        act(&friend, &pushed, "like").await;
        let token = act(&author, &own, "like").await;
        // Everything is there before anything goes.
        system.get_after(&token, "/api/timeline", Some(&follower)).await.is(200);

        let mut places = Vec::new();
        let mut place = |viewers: &[Viewer], name: &'static str, path: String, mark: &str| {
            let places_of = viewers.iter().map(|viewer| Place {
                name,
                viewer: *viewer,
                path: path.clone(),
                mark: format!("\"{mark}\""),
            });
            places.extend(places_of);
        };
        let (both, page) = ([Follower, Stranger], "limit=100");
        place(&[Follower], "home", format!("/api/timeline?{page}"), &pushed);
        place(&both, "home: retweeted by a friend", format!("/api/timeline?{page}"), &shared);
        place(&[Follower], "home: what it retweeted", format!("/api/timeline?{page}"), &far);
        place(&both, "user timeline", format!("/api/users/{handle}/tweets?{page}"), &pushed);
        place(&both, "user timeline with replies", format!("/api/users/{handle}/tweets?replies=true&{page}"), &answer);
        place(&both, "a friend's timeline", format!("/api/users/{friend_name}/tweets?{page}"), &shared);
        place(&both, "tweet", format!("/api/tweets/{pushed}"), &pushed);
        // Of what is gone a thread keeps the place, and names it by its id alone.
        place(&both, "thread", format!("/api/tweets/{question}/conversation?{page}"), &in_thread);
        place(&[Follower], "thread of one's own", format!("/api/tweets/{own}/conversation?{page}"), &to_follower);
        place(&both, "ancestors", format!("/api/tweets/{doubt}/ancestors"), &that_is_shared);
        place(&both, "search", format!("/api/search?q={word}&{page}"), &pushed);
        place(&both, "search by relevance", format!("/api/search?q={word}&sort=relevance&{page}"), &pushed);
        place(&both, "search of accounts", format!("/api/search?q={handle}&type=users&{page}"), &handle);
        place(&both, "hashtag", format!("/api/timeline/search/hashtag/{word}?{page}"), &pushed);
        place(&both, "trending tweets", format!("/api/timeline/trending/tweets?{page}"), &pushed);
        place(&[Follower], "notifications: mention", format!("/api/notifications?{page}"), &pushed);
        place(&[Follower], "notifications: reply", format!("/api/notifications?{page}"), &reply);
        place(&[Follower], "notifications: who", format!("/api/notifications?{page}"), &handle);
        place(&both, "likes", format!("/api/tweets/{own}/likes?{page}"), &handle);
        place(&both, "retweets", format!("/api/tweets/{own}/retweets?{page}"), &handle);
        place(&both, "followers", format!("/api/follows/{}/followers?{page}", follower.id), &handle);
        place(&both, "following", format!("/api/follows/{}/following?{page}", friend.id), &handle);
        place(&[Stranger], "suggestions", format!("/api/suggestions?{page}"), &handle);
        place(&both, "profile", format!("/api/users/{handle}"), &handle);
        place(&both, "its followers", format!("/api/follows/{}/followers?{page}", author.id), &friend_name);
        let written = vec![pushed, shared, answer, reply];
        World { system, word, author, follower, stranger, friend, written, places }
    }

    fn account(&self, viewer: Viewer) -> &Account {
        match viewer {
            Follower => &self.follower,
            Stranger => &self.stranger,
        }
    }

    /// Whether the mark stands where it did.
    async fn shows(&self, place: &Place) -> bool {
        let answer = self.system.get(&place.path, Some(self.account(place.viewer))).await;
        let denied = [403, 404].contains(&answer.status);
        assert!(denied || answer.status == 200, "{}: {answer:?}", place.name);
        !denied && answer.body.to_string().contains(&place.mark)
    }

    /// Makes it happen; it is answered when nobody can see any more what it hides.
    async fn happens(&self, event: Event) {
        let (system, author, follower) = (self.system, &self.author, &self.follower);
        let answers = match event {
            Event::Blocks => vec![system.put(&format!("/api/blocks/{}", author.id), Some(follower)).await],
            Event::IsBlocked => vec![system.put(&format!("/api/blocks/{}", follower.id), Some(author)).await],
            Event::Mutes => {
                let path = format!("/api/mutes/{}", author.id);
                vec![system.put(&path, Some(follower)).await, system.put(&path, Some(&self.stranger)).await]
            }
            Event::Unfollows => vec![system.delete(&format!("/api/follows/{}", author.id), Some(follower)).await],
            Event::Protects => {
                let body = json!({ "protected": true });
                vec![system.ask("PATCH", "/api/users/me", Some(author), &[], body).await]
            }
            Event::DeletesTweets => {
                let mut answers = Vec::new();
                for tweet in &self.written {
                    answers.push(system.delete(&format!("/api/tweets/{tweet}"), Some(author)).await);
                }
                answers
            }
            Event::DeletesAccount => {
                let body = json!({ "password": PASSWORD });
                vec![system.ask("DELETE", "/api/users/me", Some(author), &[], body).await]
            }
        };
        for answer in answers {
            assert!((200..300).contains(&answer.status), "{event:?}: {answer:?}");
            // It says so if it could not wait.
            if answer.headers.contains_key("x-feedmill-not-yet-visible") {
                let path = "/api/timeline?limit=1";
                system
                    .until("it is visible", async |_| {
                        system.get_after(answer.written(), path, Some(&self.friend)).await.status == 200
                    })
                    .await;
            }
        }
    }
}

/// Whether `event` hides the author's mark in a place.
fn hides(event: Event, place: &Place) -> bool {
    let people = ["search of accounts", "likes", "retweets", "followers", "following", "suggestions", "profile"];
    match (event, place.viewer, place.name) {
        // Anyone may read a profile, so that a block can be taken back.
        (Event::Blocks | Event::IsBlocked, Follower, name) => name != "profile",
        (Event::Blocks | Event::IsBlocked, Stranger, "followers") => true,
        (Event::Blocks | Event::IsBlocked, Stranger, _) => false,
        // What is asked for by name is shown.
        (Event::Mutes, _, name) => {
            name.starts_with("home")
                || name.starts_with("notifications")
                || ["search", "search by relevance", "search of accounts", "hashtag", "trending tweets", "suggestions"]
                    .contains(&name)
        }
        (Event::Unfollows, Follower, name) => ["home", "home: what it retweeted"].contains(&name),
        (Event::Unfollows, Stranger, _) => false,
        (Event::Protects, Follower, _) => false,
        // What it likes and retweets is for those to know who may read it.
        (Event::Protects, Stranger, name) => !people.contains(&name) || ["likes", "retweets"].contains(&name),
        (Event::DeletesTweets, _, name) => {
            !people.contains(&name)
                && !["home: what it retweeted", "notifications: who", "its followers"].contains(&name)
        }
        (Event::DeletesAccount, ..) => true,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c54_what_hides_an_account_hides_it_wherever_one_may_look() {
    let system = System::start(&[]).await;
    hides_wherever_one_may_look(&system).await;
    system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c54_open_streams_end_with_what_one_may_see() {
    let system = System::start(&[]).await;
    streams_end_with_what_one_may_see(&system).await;
    system.verified().await;
}

/// After everything that hides an account, each path by which it could be read.
pub async fn hides_wherever_one_may_look(system: &System) {
    let mut wrong = Vec::new();
    for (number, event) in EVENTS.into_iter().enumerate() {
        let world = World::new(system, number).await;
        for place in &world.places {
            let what = format!("{} shows it to the {:?}", place.name, place.viewer);
            system.until(&what, async |_| world.shows(place).await).await;
        }
        world.happens(event).await;
        for place in &world.places {
            let (shown, hidden) = (world.shows(place).await, hides(event, place));
            if shown == hidden {
                let what = if hidden { "still shows" } else { "does not show any more" };
                wrong.push(format!("{event:?}: {} {what} it to the {:?}", place.name, place.viewer));
            }
        }
        // What names nobody follows with the views: the tags that trend.
        let path = "/api/timeline/trending/hashtags?window=1h&limit=100";
        let gone = matches!(event, Event::Protects | Event::DeletesTweets | Event::DeletesAccount);
        let trends = async |_: &System| system.get(path, None).await.body.to_string().contains(&world.word) != gone;
        system.until("the tag trends or does not", trends).await;
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

/// The same of streams that are open.
pub async fn streams_end_with_what_one_may_see(system: &System) {
    for (number, event) in EVENTS.into_iter().enumerate() {
        // The system may be one that has been looked through.
        let world = World::new(system, EVENTS.len() + number).await;
        let mut streams = Vec::new();
        for viewer in [Follower, Stranger] {
            for transport in [Transport::Events, Transport::Socket] {
                let query = format!("?tweets={}", world.written.join(","));
                streams.push((viewer, Stream::open(system, transport, world.account(viewer), &query).await));
            }
        }
        world.happens(event).await;
        // The author goes on, if it still can, and then a friend whom all follow says that this was it.
        let content = format!("{} afterwards", world.word);
        let after = system.post("/api/tweets", Some(&world.author), json!({ "content": content })).await;
        if event == Event::DeletesAccount {
            after.is_problem(401, "unauthenticated");
        } else {
            after.is(201);
        }
        let (end, _) = system.tweet(&world.friend, "That was it").await;
        for (viewer, mut stream) in streams {
            let mut seen = String::new();
            loop {
                let event = stream.next().await;
                let data = event.data.to_string();
                if event.name == "entry" && data.contains(&end) {
                    break;
                }
                seen.push_str(&format!("{} {data}\n", event.name));
            }
            let may = match event {
                Event::DeletesTweets | Event::Protects => viewer == Follower,
                _ => false,
            };
            assert_eq!(seen.contains("afterwards"), may, "{event:?}, {viewer:?}:\n{seen}");
            // Of what is not there any more the client is told that it went, and nothing else.
            for line in seen.lines().filter(|line| !line.starts_with("gone ")) {
                let old = line.contains(&format!("{} ", world.word)) && !line.contains("afterwards");
                assert!(!old, "{event:?}, {viewer:?}: {line}");
            }
        }
    }
}
