//! Search on Elasticsearch: what is posted is found, and a server that is away holds nothing else up.

use feedmill_test_servers::Elasticsearch;
use serde_json::Value;

use crate::postgres::Postgres;
use crate::system::{Account, System, ids};

/// Ids of the tweets that a search finds, newest first; none while it cannot be asked.
async fn found(system: &System, query: &str) -> Vec<String> {
    let answer = system.get(&format!("/api/search?q={query}"), None).await;
    if answer.status == 200 { ids(&answer.body) } else { Vec::new() }
}

async fn until_found(system: &System, query: &str, expected: &[&str]) {
    system.until(&format!("{query} finds {expected:?}"), async |system| found(system, query).await == expected).await;
}

async fn health(system: &System) -> Value {
    system.get("/health", None).await.is(200)
}

/// What is posted is seen in the home timeline of its author.
async fn post(system: &System, by: &Account, text: &str) -> String {
    let (id, token) = system.tweet(by, text).await;
    assert!(system.home(by, Some(&token)).await.contains(&id), "{text} is not visible");
    id
}

fn documents_of(printed: &str) -> u64 {
    let line = printed.lines().find(|line| line.starts_with("search ")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn c51_what_is_posted_is_found_after_every_kind_of_end_of_either_side() {
    let server = Elasticsearch::mortal();
    let address = format!("{}/feeds", server.url());
    let postgres = Postgres::new(&[]).await;
    let mut system =
        System::start_on(&postgres, &["--search", &address, "--save-seconds", "1", "--read-wait-ms", "30000"]).await;
    let ada = system.register("ada").await;
    let first = post(&system, &ada, "Grüße an #Feedmill").await;
    let second = post(&system, &ada, "noch ein Gruß an feedmill").await;
    until_found(&system, "gruss", &[&second]).await;
    until_found(&system, "feedmill", &[&second, &first]).await;
    let users = system.get("/api/search?q=AD&type=users", None).await.is(200);
    assert_eq!(users["users"][0]["username"], "ada", "{users}");
    assert_eq!(documents_of(&system.verified().await), 3);

    // The server dies: all else goes on, and it is told.
    server.kill();
    let third = post(&system, &ada, "feedmill without search").await;
    system
        .until("search is said to stand still", async |system| {
            let told = health(system).await;
            told["standsStill"]["stage"] == "search" && told["status"] == "degraded"
        })
        .await;
    assert_eq!(system.get("/api/search?q=feedmill", None).await.status, 503);
    assert_eq!(system.get("/ready", None).await.status, 200);

    // So it does for a process that starts meanwhile.
    system.kill();
    system.go().await;
    let fourth = post(&system, &ada, "feedmill started without search").await;
    server.start_again();
    until_found(&system, "feedmill", &[&fourth, &third, &second, &first]).await;
    system.until("all is well", async |system| health(system).await["status"] == "alive").await;
    assert_eq!(documents_of(&system.verified().await), 5);

    // A reader sees its own write, also when both have just died.
    system.kill();
    server.kill();
    server.start_again();
    system.go().await;
    let (fifth, token) = system.tweet(&ada, "feedmill again").await;
    let answer = system.get_after(&token, "/api/search?q=feedmill", Some(&ada)).await.is(200);
    assert_eq!(ids(&answer), [&fifth, &fourth, &third, &second, &first].map(String::clone));
    let deleted = system.delete(&format!("/api/tweets/{second}"), Some(&ada)).await;
    assert!((200..300).contains(&deleted.status), "{deleted:?}");
    until_found(&system, "feedmill", &[&fifth, &fourth, &third, &first]).await;
    assert_eq!(documents_of(&system.verified().await), 5);

    // Built again beside what is read.
    let printed = system.command(&["replay", "search"]).await;
    assert!(printed.status.success(), "{}", String::from_utf8_lossy(&printed.stderr));
    assert_eq!(found(&system, "feedmill").await, [&fifth, &fourth, &third, &first].map(String::clone));
    assert_eq!(documents_of(&system.verified().await), 5);

    // Another folder, or none: another index is begun, and filled from the change log.
    assert!(system.interrupt().0.success());
    std::fs::remove_dir_all(system.data().join("search")).unwrap();
    system.go().await;
    until_found(&system, "feedmill", &[&fifth, &fourth, &third, &first]).await;
    system.verified().await;
    // And back to the one in the folder.
    assert!(system.interrupt().0.success());
    system.settings.drain(..2);
    system.go().await;
    until_found(&system, "feedmill", &[&fifth, &fourth, &third, &first]).await;
    system.verified().await;
}

/// What was in no commit, and what was, is found after it once.
#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn c43_a_process_that_dies_at_a_commit_of_search_goes_on() {
    let server = Elasticsearch::mortal();
    let address = format!("{}/dies", server.url());
    let postgres = Postgres::new(&[]).await;
    let mut system = System::start_on(&postgres, &["--search", &address]).await;
    let ada = system.register("ada").await;
    for point in ["search_commit_before", "search_commit_after"] {
        assert!(system.interrupt().0.success());
        system.failpoints = Some(format!("{point}=2*off->return"));
        system.listen().await;
        let mut posted = 0;
        system
            .until(&format!("it ends at {point}"), async |system| {
                posted += 1;
                let body = serde_json::json!({ "content": format!("{point} {posted}") });
                // What is not answered may have been written.
                system.post("/api/tweets", Some(&ada), body).await;
                !system.is_running()
            })
            .await;
        system.wait();
        system.failpoints = None;
        system.go().await;
        let last = post(&system, &ada, &format!("after {point}")).await;
        until_found(&system, &format!("after%20{point}"), &[&last]).await;
        system.verified().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_server_that_is_not_there_is_told_at_the_first_start() {
    let free = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let postgres = Postgres::new(&[]).await;
    let mut system = System::new(&["--search", &format!("http://ada:s3cret-password@{free}/feeds")]);
    system.use_database(&postgres);
    let printed = system.expect_start_failure().await;
    assert!(printed.contains(&format!("http://{free}/feeds")) && printed.contains("--search"), "{printed}");
    assert!(!printed.contains("s3cret-password"), "{printed}");
}
