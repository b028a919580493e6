//! The whole system on servers of others.

use feedmill_test_servers::Cassandra;
use serde_json::json;

use crate::system::{Account, System, ids};

/// A viewer follows an author, and sees what the author has written.
struct Scene {
    author: Account,
    viewer: Account,
    /// Newest first.
    tweets: Vec<String>,
}

impl Scene {
    async fn new(system: &System) -> Scene {
        let (author, viewer) = (system.register("author").await, system.register("viewer").await);
        system.post(&format!("/api/follows/{}", author.id), Some(&viewer), json!({})).await;
        Scene { author, viewer, tweets: Vec::new() }
    }

    /// Writes tweets, a reply and a like, of which the viewer sees what there is to be seen.
    async fn go_on(&mut self, system: &System, tweets: usize) {
        for _ in 0..tweets {
            let (id, _) = system.tweet(&self.author, &format!("#number {}", self.tweets.len())).await;
            self.tweets.insert(0, id);
        }
        let last = &self.tweets[0];
        let answer = json!({ "content": "@author well said", "replyTo": last });
        assert!(system.post("/api/tweets", Some(&self.viewer), answer).await.status < 300);
        let liked = system.post(&format!("/api/tweets/{last}/like"), Some(&self.viewer), json!(null)).await;
        assert!(liked.status < 300, "{liked:?}");
        let home = system.home(&self.viewer, liked.token.as_deref()).await;
        assert_eq!(home, self.tweets);
    }
}

/// A folder of the test's own for PostgreSQL and the log, and a keyspace for what is derived.
async fn start(node: &Cassandra, keyspace: &str) -> System {
    let store = format!("cql://{}/{keyspace}?partition_rows=4", node.address());
    System::start(&["--store", &store]).await
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_cql_cluster_holds_equals_its_sql_whatever_dies() {
    let node = Cassandra::mortal();
    let mut system = start(&node, "whole").await;
    let mut scene = Scene::new(&system).await;
    scene.go_on(&system, 6).await;
    system.verified().await;
    // A start goes on with what is there.
    system.kill();
    system.go().await;
    scene.go_on(&system, 2).await;
    system.verified().await;
    // What is written while the node is away comes when it is there again.
    node.kill();
    let insert = "INSERT INTO tweets (id, user_id, content, conversation_id)
                  SELECT id, $1, 'nobody sees it yet', id FROM feedmill_id() AS id RETURNING id";
    let author: i64 = scene.author.id.parse().unwrap();
    let id: i64 = system.sql().await.query_one(insert, &[&author]).await.unwrap().get(0);
    scene.tweets.insert(0, id.to_string());
    node.start_again();
    system
        .until("the tweet is seen", async |system: &System| {
            let answer = system.get("/api/timeline?limit=100", Some(&scene.viewer)).await;
            answer.status == 200 && ids(&answer.body) == scene.tweets
        })
        .await;
    scene.go_on(&system, 2).await;
    system.verified().await;
    // Built again, it is the same.
    let replayed = system.command(&["replay", "facts", "rows", "home"]).await;
    assert!(replayed.status.success(), "{}", String::from_utf8_lossy(&replayed.stderr));
    scene.go_on(&system, 2).await;
    system.verified().await;
    let (status, _) = system.interrupt();
    assert!(status.success(), "{}", system.log());
    system.go().await;
    scene.go_on(&system, 1).await;
    system.verified().await;
    assert!(!system.data().join("index").exists(), "nothing of it is on this machine");
}
