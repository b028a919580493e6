//! Stores that are built again from the log.

use std::process::Output;

use crate::system::{Account, System, ids};

/// A viewer follows an author, and sees what the author has written.
struct Scene {
    author: Account,
    viewer: Account,
    /// Newest first.
    tweets: Vec<String>,
}

impl Scene {
    async fn new(system: &System, tweets: usize) -> Scene {
        let (author, viewer) = (system.register("author").await, system.register("viewer").await);
        let followed = system.post(&format!("/api/follows/{}", author.id), Some(&viewer), serde_json::json!({})).await;
        assert!((200..300).contains(&followed.status), "{followed:?}");
        let mut scene = Scene { author, viewer, tweets: Vec::new() };
        for _ in 0..tweets {
            scene.tweet(system).await;
        }
        let token = scene.tweet(system).await;
        assert_eq!(system.home(&scene.viewer, Some(&token)).await, scene.tweets);
        scene
    }

    /// Gives the token of the write.
    async fn tweet(&mut self, system: &System) -> String {
        let (id, token) = system.tweet(&self.author, &format!("number {}", self.tweets.len())).await;
        self.tweets.insert(0, id);
        token
    }

    /// The viewer's first page as it should be.
    fn page(&self) -> &[String] {
        &self.tweets[..self.tweets.len().min(100)]
    }
}

/// How many entries stand above floors, when all views are right.
async fn entries(system: &System) -> usize {
    let printed = system.verified().await;
    let line = printed.lines().find(|line| line.contains("entries above floors")).expect("a line of home timelines");
    let words: Vec<&str> = line.split_whitespace().collect();
    let at = words.iter().position(|word| *word == "entries").unwrap();
    words[at - 1].parse().unwrap()
}

fn text(bytes: &[u8]) -> &str {
    std::str::from_utf8(bytes).unwrap()
}

fn done(output: &Output) -> &str {
    assert!(output.status.success(), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stdout)
}

/// What it says when it refuses.
fn refused(output: &Output, code: i32) -> &str {
    assert_eq!(output.status.code(), Some(code), "{}{}", text(&output.stdout), text(&output.stderr));
    text(&output.stderr)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replay_of_home_fills_timelines_with_the_month_and_is_saved() {
    let mut system = System::start(&["--save-seconds", "3600"]).await;
    let scene = Scene::new(&system, 4).await;
    assert_eq!(entries(&system).await, 2 * 5);
    // Home timelines live in memory: without a save they begin above what was loaded.
    system.kill();
    system.go().await;
    assert_eq!(entries(&system).await, 0);
    let printed = system.command(&["replay", "home"]).await;
    let last = done(&printed).lines().last().unwrap();
    assert!(last.starts_with("home: ") && last.contains(" rows in "), "{last}");
    assert_eq!(entries(&system).await, 2 * 5);
    assert_eq!(system.home(&scene.viewer, None).await, scene.page());
    system.kill();
    system.go().await;
    assert_eq!(entries(&system).await, 2 * 5, "what was filled is saved");
    // What is pushed from now on is pushed once.
    let mut scene = scene;
    let token = scene.tweet(&system).await;
    assert_eq!(system.home(&scene.viewer, Some(&token)).await, scene.page());
    assert_eq!(entries(&system).await, 2 * 6);
}

#[tokio::test(flavor = "multi_thread")]
async fn each_store_can_be_built_again_by_itself_with_any_number_of_workers() {
    let mut system = System::start(&["--save-seconds", "1", "--workers", "1"]).await;
    let mut scene = Scene::new(&system, 4).await;
    for (views, workers) in [
        (&["facts"][..], "1"),
        (&["tweet", "counts"], "2"),
        (&["home"], "3"),
        (&["rows", "active"], "2"),
        (&["search"], "3"),
        (&["notifications"], "2"),
        (&["blocks", "home"], "1"),
        (&[], "4"),
    ] {
        // A stop saves home timelines, which most of these leave alone.
        assert!(system.interrupt().0.success());
        workers.clone_into(&mut system.settings[3]);
        system.go().await;
        let token = scene.tweet(&system).await;
        assert_eq!(system.home(&scene.viewer, Some(&token)).await, scene.page());
        let command: Vec<&str> = ["replay"].iter().chain(views).copied().collect();
        done(&system.command(&command).await);
        assert_eq!(system.home(&scene.viewer, None).await, scene.page(), "after {command:?}");
        let token = scene.tweet(&system).await;
        assert_eq!(system.home(&scene.viewer, Some(&token)).await, scene.page(), "after {command:?}");
        assert_eq!(entries(&system).await, 2 * scene.tweets.len(), "after {command:?}");
        assert!(!system.data().join("replay").exists(), "a marker is left of {command:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn names_that_are_no_views_and_folders_without_a_process_are_refused() {
    let mut system = System::start(&[]).await;
    let output = system.command(&["replay", "rows", "nonsense"]).await;
    let error = refused(&output, 2);
    for name in ["nonsense", "facts", "rows", "home", "follow_facts", "user_timeline", "verified_following"] {
        assert!(error.contains(name), "{name} is not in {error}");
    }
    assert!(!system.data().join("replay").exists());
    system.interrupt();
    let output = system.command(&["replay", "home"]).await;
    let error = refused(&output, 1);
    assert!(error.contains("no Feedmill answers") && error.contains("feedmill up"), "{error}");
}

/// One look at the viewer's home timeline: `true` if it is being built again.
#[cfg(feature = "failpoints")]
async fn is_told_to_come_again(system: &System, scene: &Scene) -> bool {
    let request = system.http.get(format!("{}/api/timeline?limit=100", system.url)).bearer_auth(&scene.viewer.token);
    let answer = request.send().await.unwrap();
    let (status, headers) = (answer.status().as_u16(), answer.headers().clone());
    let body: serde_json::Value = serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap();
    if status == 200 {
        // As of some moment: what was written then, without a gap.
        let served = ids(&body);
        let at = scene.tweets.iter().position(|tweet| *tweet == served[0]).unwrap();
        let then = &scene.tweets[at..];
        assert_eq!(served, then[..then.len().min(100)]);
        return false;
    }
    assert_eq!((status, &body["error"]), (503, &"rebuilding".into()), "{body}");
    assert!(headers.contains_key("retry-after"));
    assert!(body["detail"].as_str().unwrap().contains("built again from the change log"), "{body}");
    true
}

#[cfg(feature = "failpoints")]
async fn while_others_write(views: &[&str]) -> usize {
    let mut system = System::new(&["--save-seconds", "1"]);
    // Long enough to look at.
    system.failpoints = Some("replay_emptied_after=1*sleep(3000)".to_owned());
    system.go().await;
    let mut scene = Scene::new(&system, 4).await;
    let mut command = system.prepare(&["replay"]);
    command.args(views);
    let mut replay = tokio::task::spawn_blocking(move || command.output().unwrap());
    let (mut told, mut refusals) = (0, 0);
    let mut pace = tokio::time::interval(std::time::Duration::from_millis(30));
    while !replay.is_finished() {
        scene.tweet(&system).await;
        told += usize::from(is_told_to_come_again(&system, &scene).await);
        let health = system.get("/health", None).await.body;
        let steps = health["steps"].as_array().unwrap();
        if refusals == 0 && steps.iter().any(|step| step["name"] == "replay" && step["done"] == false) {
            for command in [&["verify"][..], &["replay", "home"]] {
                let output = system.command(command).await;
                let error = refused(&output, 1);
                assert!(error.contains("replay") && error.contains("try again when it has ended"), "{error}");
                refusals += 1;
            }
            let status = system.command(&["status"]).await;
            assert!(text(&status.stdout).contains("replay"), "{}", text(&status.stdout));
        }
        pace.tick().await;
    }
    let output = (&mut replay).await.unwrap();
    done(&output);
    assert_eq!(refusals, 2, "nobody was refused, so nothing was seen of the replay");
    let token = scene.tweet(&system).await;
    assert_eq!(system.home(&scene.viewer, Some(&token)).await, scene.page());
    assert_eq!(entries(&system).await, 2 * scene.tweets.len());
    told
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn while_all_is_built_again_reads_come_again_and_writes_go_on() {
    assert!(while_others_write(&[]).await > 0, "no read was told to come again");
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn while_home_is_built_again_it_is_merged_and_writes_go_on() {
    assert_eq!(while_others_write(&["home"]).await, 0, "a read was told to come again");
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn a_replay_that_was_killed_goes_on_at_the_next_start() {
    let mut system = System::start(&["--save-seconds", "1"]).await;
    let mut scene = Scene::new(&system, 4).await;
    for (point, views) in [
        ("replay_marked_after", &["rows", "home"][..]),
        ("replay_emptied_after", &[]),
        ("replay_emptied_after", &["home"]),
        ("replay_done_before", &["facts", "home"]),
        ("replay_emptied_after", &["rows", "likers"]),
    ] {
        system.kill();
        system.failpoints = Some(format!("{point}=return"));
        system.go().await;
        let command: Vec<&str> = ["replay"].iter().chain(views).copied().collect();
        let output = system.command(&command).await;
        assert!(refused(&output, 1).contains("ended before it had answered"), "{output:?}");
        system.wait();
        assert!(system.data().join("replay").exists(), "{point}");
        system.failpoints = None;
        system.go().await;
        let ended = async |system: &System| !system.data().join("replay").exists();
        system.until("the replay has gone on to its end", ended).await;
        assert_eq!(system.home(&scene.viewer, None).await, scene.page(), "{point}");
        let token = scene.tweet(&system).await;
        assert_eq!(system.home(&scene.viewer, Some(&token)).await, scene.page(), "{point}");
        system
            .until("the replay is over", async |system: &System| system.command(&["verify"]).await.status.success())
            .await;
        assert_eq!(entries(&system).await, 2 * scene.tweets.len(), "{point} of {views:?}");
    }
}
