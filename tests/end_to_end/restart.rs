//! Coming back: what is served at once, and what is caught up with.

use std::time::{SystemTime, UNIX_EPOCH};

use crate::postgres::Postgres;
use crate::system::{Account, System, ids};

/// Milliseconds since 1970.
fn now_ms() -> u64 {
    u64::try_from(SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis()).unwrap()
}

/// Everything that home timelines have now is in a save.
async fn saved(system: &System) {
    let now = now_ms() as f64 / 1e3;
    // Idle ticks move the time on, so a later save is of a later time.
    system
        .until("home timelines are saved", async |system| system.metric("feedmill_home_saved_time").await > now)
        .await;
}

/// How many entries stand above floors, when all views are right.
async fn entries(system: &System) -> u64 {
    let printed = system.verified().await;
    let line = printed.lines().find(|line| line.contains("entries above floors")).expect("a line of home timelines");
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "entries").unwrap();
    words[at - 1].parse().unwrap()
}

/// A viewer's home timeline and the time that it is of; `None` while it is not served.
async fn home(system: &System, viewer: &Account) -> Option<(Vec<String>, u64)> {
    let request = system.http.get(format!("{}/api/timeline?limit=100", system.url)).bearer_auth(&viewer.token);
    let answer = request.send().await.ok()?;
    if answer.status() != 200 {
        assert_eq!(answer.status(), 503);
        assert!(answer.headers().contains_key("retry-after"));
        return None;
    }
    let number = |name: &str| answer.headers()[name].to_str().unwrap().parse::<u64>().unwrap();
    let (time, lag_ms) = (number("x-feedmill-time"), number("x-feedmill-lag-ms"));
    assert!((time..=now_ms()).contains(&(time + lag_ms)), "{time} is not {lag_ms} ms ago");
    let ids = ids(&serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap());
    Some((ids, time))
}

#[tokio::test(flavor = "multi_thread")]
async fn home_timelines_are_served_at_once_after_a_kill_and_after_a_stop() {
    let postgres = Postgres::new(&[]).await;
    let mut system = System::start_on(&postgres, &["--save-seconds", "1"]).await;
    let author = system.register("author").await;
    let mut viewers = Vec::new();
    for number in 0..3 {
        let viewer = system.register(&format!("viewer{number}")).await;
        let followed = system.post(&format!("/api/follows/{}", author.id), Some(&viewer), serde_json::json!({})).await;
        assert!((200..300).contains(&followed.status), "{followed:?}");
        viewers.push(viewer);
    }
    let (mut tweets, mut token) = (Vec::new(), String::new());
    for number in 0..5 {
        let (id, written) = system.tweet(&author, &format!("number {number}")).await;
        tweets.insert(0, id);
        token = written;
    }
    assert_eq!(system.home(&viewers[0], Some(&token)).await, tweets);
    let before = entries(&system).await;
    // The author's own, and those of each viewer.
    assert_eq!(before, 4 * 5);

    for killed in [true, false] {
        saved(&system).await;
        let stopped_at = now_ms();
        if killed {
            system.kill();
        } else {
            assert!(system.interrupt().0.success());
        }
        let changed = "UPDATE tweets SET content = content || '!', updated_at = now() WHERE content LIKE 'number %'";
        assert_eq!(system.sql().await.execute(changed, &[]).await.unwrap(), 5);
        // While PostgreSQL does not answer, what was derived is all that there is.
        let frozen = postgres.processes();
        postgres.freeze(&frozen);
        system.listen().await;
        let mut served = None;
        system
            .until("home timelines are served", async |system| {
                served = home(system, &viewers[0]).await;
                served.is_some()
            })
            .await;
        let (ids, time) = served.unwrap();
        assert_eq!(ids, tweets);
        assert!(time <= stopped_at + 10_000, "they are of {time}");
        for viewer in &viewers {
            assert_eq!(home(&system, viewer).await.expect("is served").0, tweets);
        }
        // What the write of the token made is in it, too.
        assert_eq!(system.home(&viewers[0], Some(&token)).await, tweets);
        assert_eq!(system.get("/ready", None).await.status, 503);
        let written = system.post("/api/tweets", Some(&author), serde_json::json!({ "content": "too early" })).await;
        assert_eq!(written.status, 503, "{written:?}");
        postgres.thaw(&frozen);

        system.until("it is ready", async |system| system.get("/ready", None).await.status == 200).await;
        assert_eq!(entries(&system).await, before, "pushed entries are above the floors as they were");
        let (newest, token) = system.tweet(&author, "after").await;
        assert_eq!(system.home(&viewers[2], Some(&token)).await.first(), Some(&newest));
        let gone = system.delete(&format!("/api/tweets/{newest}"), Some(&author)).await;
        assert_eq!(system.home(&viewers[2], gone.token.as_deref()).await, tweets);
        assert_eq!(entries(&system).await, before);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_save_that_is_damaged_or_lost_is_made_anew() {
    let mut system = System::start(&["--save-seconds", "1"]).await;
    let author = system.register("author").await;
    let (first, token) = system.tweet(&author, "one").await;
    assert_eq!(system.home(&author, Some(&token)).await, std::slice::from_ref(&first));
    assert_eq!(entries(&system).await, 1);
    saved(&system).await;
    system.kill();
    std::fs::write(system.data().join("home/manifest"), "garbage").unwrap();
    system.go().await;
    assert!(system.log().contains("is not used"), "{}", system.log());
    // It is merged, and right, until something is pushed again.
    assert_eq!(system.home(&author, None).await, std::slice::from_ref(&first));
    assert_eq!(entries(&system).await, 0);
    let (second, token) = system.tweet(&author, "two").await;
    assert_eq!(system.home(&author, Some(&token)).await, [second.clone(), first.clone()]);
    assert_eq!(entries(&system).await, 1);
    // Facts and rows are lost, home timelines are not.
    saved(&system).await;
    system.kill();
    std::fs::remove_dir_all(system.data().join("index")).unwrap();
    system.go().await;
    assert_eq!(system.home(&author, None).await, [second, first]);
    assert_eq!(entries(&system).await, 1);
}
