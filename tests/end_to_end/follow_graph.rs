//! A real follow graph: the most-followed user's post, and the two ways of delivering it.

use std::collections::{BTreeMap, BTreeSet};

use futures::StreamExt;
use serde_json::{Value, json};

use crate::system::{Account, System, shared_data};

/// Reads at a time.
const CONCURRENT: usize = 16;

struct Graph {
    file: String,
    /// Account followed → followers.
    followers: BTreeMap<i64, BTreeSet<i64>>,
    users: BTreeSet<i64>,
}

fn graph() -> Option<Graph> {
    let file = shared_data("twitter-follows.csv")?;
    let mut followers: BTreeMap<i64, BTreeSet<i64>> = BTreeMap::new();
    let mut users = BTreeSet::new();
    for line in std::fs::read_to_string(&file).unwrap().lines().skip(1) {
        let (follower, following) = line.split_once(',').unwrap();
        let (follower, following) = (follower.parse().unwrap(), following.parse().unwrap());
        followers.entry(following).or_default().insert(follower);
        users.extend([follower, following]);
    }
    Some(Graph { file, followers, users })
}

impl Graph {
    fn most_followed(&self) -> (i64, &BTreeSet<i64>) {
        self.followers.iter().map(|(user, followers)| (*user, followers)).max_by_key(|(_, f)| f.len()).unwrap()
    }

    async fn import(&self, system: &System) {
        let output = system.command(&["import", "--follows", &self.file]).await;
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        let (user, followers) = self.most_followed();
        system
            .until("the follows are in the indexes", async |system| {
                let answer = system.get(&format!("/api/users/u{user}"), None).await;
                let user = answer.body.get("user").unwrap_or(&answer.body);
                user["counts"]["followers"] == followers.len()
            })
            .await;
    }
}

async fn timelines(system: &System, viewers: impl IntoIterator<Item = i64>) -> BTreeMap<i64, Value> {
    futures::stream::iter(viewers)
        .map(async |viewer| {
            let answer = system.get("/api/timeline?limit=50", Some(&system.account(viewer))).await;
            assert_eq!(answer.status, 200, "{answer:?}");
            (viewer, answer.body["tweets"].clone())
        })
        .buffer_unordered(CONCURRENT)
        .collect()
        .await
}

fn tops(timelines: &BTreeMap<i64, Value>) -> Vec<&str> {
    timelines.values().map(|tweets| tweets[0]["id"].as_str().unwrap_or_default()).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_post_of_the_most_followed_user_is_pushed_to_all_567() {
    let Some(graph) = graph() else { return };
    let system = System::start(&[]).await;
    graph.import(&system).await;
    let (user, followers) = graph.most_followed();
    let author = system.account(user);
    let before = system.metric("feedmill_home_deliveries_total").await;
    let (first, _) = system.tweet(&author, "first").await;
    let (second, token) = system.tweet(&author, "second").await;
    assert_eq!(system.home(&author, Some(&token)).await, [second.clone(), first.clone()]);
    let read = timelines(&system, followers.iter().copied()).await;
    assert_eq!(read.len(), 567);
    assert!(tops(&read).iter().all(|top| *top == second), "newest first, for each of them");
    // Each of the two went to each follower and to the author: pushed, not merged at read.
    system
        .until("2 × 568 deliveries are counted", async |system| {
            system.metric("feedmill_home_deliveries_total").await - before == 2.0 * 568.0
        })
        .await;

    let leaver = system.account(*followers.first().unwrap());
    let unfollow = system.delete(&format!("/api/follows/{user}"), Some(&leaver)).await;
    assert_eq!(system.home(&leaver, Some(&unfollow.token.unwrap())).await, [""; 0]);
    let deleted = system.delete(&format!("/api/tweets/{second}"), Some(&author)).await.token.unwrap();
    assert_eq!(system.home(&author, Some(&deleted)).await, std::slice::from_ref(&first));

    let sql = system.sql().await;
    let others = || followers.iter().copied().skip(1);
    for verified in [true, false] {
        sql.execute("UPDATE users SET verified = $1 WHERE id = $2", &[&verified, &user]).await.unwrap();
        system
            .until("the change of `verified` shows", async |system| {
                let answer = system.get(&format!("/api/users/u{user}"), None).await;
                answer.body.get("user").unwrap_or(&answer.body)["verified"] == verified
            })
            .await;
        let read = timelines(&system, others()).await;
        assert!(tops(&read).iter().all(|top| *top == first), "verified is {verified}");
        let printed = system.verified().await;
        let hot = printed.lines().find(|line| line.starts_with("verified_following")).unwrap();
        let rows: usize = hot[20..].split_whitespace().next().unwrap().parse().unwrap();
        assert_eq!(rows, if verified { 566 } else { 0 }, "{printed}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_hot_changes_no_timeline_as_served() {
    let Some(graph) = graph() else { return };
    let mut served = Vec::new();
    // Ids of their own, the same in both systems.
    let now = i64::try_from(std::time::UNIX_EPOCH.elapsed().unwrap().as_millis()).unwrap() - 3_600_000;
    for hot_followers in [100_u64, 10_000] {
        let system = System::start(&["--hot-followers", &hot_followers.to_string()]).await;
        graph.import(&system).await;
        let hot = graph.followers.values().filter(|followers| followers.len() as u64 >= hot_followers).count();
        assert_eq!(hot > 0, hot_followers == 100);
        let sql = system.sql().await;
        let statement = "INSERT INTO tweets (id, user_id, content, conversation_id) VALUES ($1, $2, $3, $1)";
        let insert = sql.prepare(statement).await.unwrap();
        let posts_much = |user: &&i64| **user % 8 == 0 || graph.followers[user].len() >= 100;
        let authors: Vec<i64> = graph.followers.keys().filter(posts_much).copied().collect();
        let post = async |n: i64| {
            let author = authors[n as usize % authors.len()];
            sql.execute(&insert, &[&((now + n * 100) << 16), &author, &format!("tweet {n}")]).await.unwrap();
        };
        // A half before it is known who is hot, a half after: so entries change sides.
        let posts = authors.len() as i64;
        for n in 0..posts {
            post(n).await;
        }
        let is_written = async |_: &System| {
            let popular: i64 = sql.query_one("SELECT count(*) FROM popular", &[]).await.unwrap().get(0);
            popular as usize == hot
        };
        system.until("who is hot has been written", is_written).await;
        for n in posts..2 * posts {
            post(n).await;
        }
        let printed = system.verified().await;
        assert!(printed.contains("above floors"), "{printed}");
        let is_counted = async |system: &System| system.metric("feedmill_home_deliveries_total").await > 0.0;
        system.until("deliveries are counted", is_counted).await;
        let timelines = timelines(&system, graph.users.iter().copied()).await;
        assert_eq!(timelines.len(), 13_688);
        let lists: BTreeMap<i64, Vec<String>> = timelines
            .iter()
            .map(|(viewer, tweets)| {
                let tweets = tweets.as_array().unwrap();
                (*viewer, tweets.iter().map(|tweet| tweet["id"].as_str().unwrap().to_owned()).collect())
            })
            .collect();
        served.push(lists);
    }
    assert!(served[0] == served[1]);
    let entries: usize = served[0].values().map(Vec::len).sum();
    assert!(entries > 10_000, "{entries}");
}

#[tokio::test(flavor = "multi_thread")]
async fn follows_of_a_missing_user_and_of_oneself_are_refused() {
    let system = System::start(&[]).await;
    let ada: Account = system.register("ada").await;
    assert_eq!(system.post("/api/follows/123456", Some(&ada), json!({})).await.status, 404);
    assert_eq!(system.post(&format!("/api/follows/{}", ada.id), Some(&ada), json!({})).await.status, 422);
}
