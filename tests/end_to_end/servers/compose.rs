//! The services of `docker-compose.yml`, with the very commands and variables that it gives them, but without Docker: only where
//! the others are is replaced.

use std::net::TcpListener;
use std::path::Path;
use std::process::Command;

use feedmill_test_servers::{Cassandra, Elasticsearch, Kafka, SchemaRegistry};
use serde_json::{Value, json};

use crate::postgres::Postgres;
use crate::system::{System, ids};

/// What the file has of a service, with anchors and merges resolved.
struct Compose(Value);

impl Compose {
    fn read() -> Compose {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../docker-compose.yml");
        let mut all: serde_norway::Value = serde_norway::from_str(&std::fs::read_to_string(file).unwrap()).unwrap();
        all.apply_merge().unwrap();
        Compose(serde_json::to_value(&all).unwrap())
    }

    fn service(&self, name: &str) -> &Value {
        &self.0["services"][name]
    }

    /// The command of a service of ours.
    fn command(&self, name: &str) -> &'static str {
        let command = self.service(name)["command"].as_array().unwrap();
        assert_eq!(command.len(), 1, "{name} takes its settings from variables");
        ["capture", "run", "serve"].into_iter().find(|known| command[0] == *known).unwrap()
    }

    fn variables(&self, name: &str) -> Vec<(String, String)> {
        let variables = self.service(name)["environment"].as_object().unwrap();
        let text = |value: &Value| value.as_str().map_or_else(|| value.to_string(), str::to_owned);
        variables.iter().map(|(name, value)| (name.clone(), text(value))).collect()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_services_of_the_compose_file_work_together() {
    let compose = Compose::read();
    let (kafka, node, search) = (Kafka::shared(), Cassandra::shared(), Elasticsearch::shared());
    let registry = SchemaRegistry::shared();
    let postgres = Postgres::new(&[]).await;
    let replica = postgres.standby().await;
    let folder = tempfile::tempdir().unwrap();
    let [hosts, keys] = ["hosts", "keys"].map(|name| folder.path().join(name).display().to_string());
    // One port here for each host there.
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("..");
    let named = std::fs::read_to_string(root.join("deploy/hosts")).unwrap();
    let places = named.lines().map(|line| match line.split_once(':') {
        Some((host, _)) if host.starts_with("run-") => {
            TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap().to_string()
        }
        _ => line.to_owned(),
    });
    std::fs::write(&hosts, places.collect::<Vec<_>>().join("\n")).unwrap();
    let replaced = |text: &str| {
        let number = std::process::id();
        text.replace("postgresql://feedmill:feedmill@postgres:5432/feedmill", &postgres.url())
            .replace("postgresql://feedmill:feedmill@replica:5432/feedmill", &replica.url())
            .replace("kafka:9092", &kafka.bootstrap())
            .replace("http://registry:8080/apis/ccompat/v7", &registry.url())
            .replace("scylla:9042/feedmill", &format!("{}/compose{number}", node.address()))
            .replace("http://elasticsearch:9200/feedmill", &format!("{}/compose{number}", search.url()))
            .replace("/etc/feedmill/hosts", &hosts)
            .replace("/etc/feedmill/keys/keys", &keys)
    };
    let service = |name: &str| {
        let mut service = System::new(&[]);
        service.mode = compose.command(name);
        let variables = compose.variables(name);
        service.variables = variables.iter().map(|(name, value)| (name.clone(), replaced(value))).collect();
        service
    };

    let shell: Vec<String> = ["entrypoint", "command"]
        .into_iter()
        .flat_map(|part| compose.service("keys")[part].as_array().unwrap())
        .map(|word| replaced(word.as_str().unwrap()).replace("$$", "$"))
        .collect();
    for _ in 0..2 {
        // The second finds the keys of the first.
        let made = Command::new(&shell[0]).args(&shell[1..]).output().unwrap();
        assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
    }
    assert_eq!(std::fs::read_to_string(&keys).unwrap().lines().count(), 1);

    let mut capture = service("capture");
    let mut others = ["run-0", "run-1", "serve-0", "serve-1"].map(&service);
    capture.listen().await;
    for other in &mut others {
        other.listen().await;
    }
    for system in std::iter::once(&capture).chain(&others) {
        system.until("it is ready", async |system| system.get("/ready", None).await.status == 200).await;
    }
    let [.., one, other] = &others;
    let (author, viewer) = (one.register("author").await, other.register("viewer").await);
    let followed = other.post(&format!("/api/follows/{}", author.id), Some(&viewer), json!({})).await;
    assert!(followed.status < 300, "{followed:?}");
    let (tweet, token) = one.tweet(&author, "out of many, one").await;
    other
        .until("the other instance has it", async |other| {
            let answer = other.get_after(&token, "/api/timeline", Some(&viewer)).await;
            answer.status == 200 && ids(&answer.body).contains(&tweet)
        })
        .await;
    other
        .until("it is found", async |other| {
            let found = other.get("/api/search?q=many", Some(&viewer)).await;
            found.status == 200 && ids(&found.body) == [tweet.clone()]
        })
        .await;
    capture.verified().await;
    for system in &others {
        let metrics = system.http.get(format!("{}/metrics", system.url)).send().await.unwrap();
        assert!(metrics.status().is_success());
    }
}
