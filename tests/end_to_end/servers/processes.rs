//! Several processes that derive the views from Kafka, into a CQL cluster and Elasticsearch.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::process::ExitStatus;

use feedmill_connectors::kafka::{KafkaLog, Layout, Times};
use feedmill_test_servers::{Cassandra, Elasticsearch, Kafka};
use futures::TryStreamExt;
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use scylla::client::session_builder::SessionBuilder;
use scylla::statement::unprepared::Statement;
use scylla::value::Row;
use serde_json::Value;

use crate::crash::workload::{HOT_FOLLOWERS, HUGE, PEOPLE, Writer};
use crate::kafka::estate::{Estate, stage_lsn};
use crate::postgres::Postgres;
use crate::system::System;

/// Processes that work together, on a keyspace and an index of their own.
pub struct Processes {
    pub all: Vec<System>,
    pub name: String,
    /// The stores, as flags.
    pub stores: Vec<String>,
    node: String,
    search: String,
    settings: Vec<String>,
    database_url: String,
    hosts: tempfile::NamedTempFile,
}

impl Processes {
    /// None yet, which are to read `from`, on servers that others use too.
    pub fn new(from: &KafkaLog, postgres: &Postgres, name: &str) -> Processes {
        Processes::on(Cassandra::shared(), Elasticsearch::shared(), from, postgres, name)
    }

    /// The same on these servers.
    pub fn on(node: &Cassandra, search: &Elasticsearch, from: &KafkaLog, postgres: &Postgres, name: &str) -> Processes {
        let name = format!("{name}{}", std::process::id());
        let (node, search) = (node.address(), search.url());
        let (publish, layout) = (format!("kafka://{}", from.servers), format!("{:?}", from.layout).to_lowercase());
        let stores = ["--store", &format!("cql://{node}/{name}"), "--search", &format!("{search}/{name}")];
        let settings = [
            "--publish",
            &publish,
            "--topic-prefix",
            &from.prefix,
            "--topic-layout",
            &layout,
            "--hot-followers",
            HOT_FOLLOWERS,
        ];
        let owned = |flags: &[&str]| flags.iter().map(|flag| (*flag).to_owned()).collect::<Vec<_>>();
        Processes {
            all: Vec::new(),
            name,
            settings: [owned(&settings), owned(&stores)].concat(),
            stores: owned(&stores),
            node,
            search,
            database_url: postgres.url(),
            hosts: tempfile::NamedTempFile::new().unwrap(),
        }
    }

    /// Has so many of them, of so many workers each, from the next start on.
    pub fn are(&mut self, count: usize, workers: usize) {
        let listeners: Vec<TcpListener> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
        let hosts = listeners.iter().map(|listener| listener.local_addr().unwrap().to_string());
        std::fs::write(self.hosts.path(), hosts.collect::<Vec<_>>().join("\n")).unwrap();
        let process = |number: usize| {
            let mut system = System::new(&[]);
            system.mode = "run";
            system.database_url = Some(self.database_url.clone());
            let (number, workers) = (number.to_string(), workers.to_string());
            let hosts = self.hosts.path().to_str().unwrap();
            let place = ["--process", &number, "--workers", &workers, "--hosts", hosts];
            system.settings = self.settings.iter().cloned().chain(place.map(str::to_owned)).collect();
            system
        };
        self.all = (0..count).map(process).collect();
    }

    /// Starts them, and waits until they have what was published before.
    pub async fn go(&mut self) {
        for process in &mut self.all {
            process.listen().await;
        }
        for process in &self.all {
            process.until("it is ready", async |process| process.get("/ready", None).await.status == 200).await;
        }
    }

    /// Starts them, and waits for nothing.
    pub fn launch(&mut self) {
        for process in &mut self.all {
            process.launch();
        }
    }

    /// `kill -9` of all that have not ended; gives how each did.
    pub fn crash(&mut self) -> Vec<ExitStatus> {
        let end = |process: &mut System| {
            process.crash();
            process.wait()
        };
        self.all.iter_mut().map(end).collect()
    }

    /// `kill -9` of one, which has the others end with an error that names it.
    pub async fn kill(&mut self, victim: usize) {
        let host = std::fs::read_to_string(self.hosts.path()).unwrap().lines().nth(victim).unwrap().to_owned();
        self.all[victim].kill();
        for (number, process) in self.all.iter_mut().enumerate().filter(|(number, _)| *number != victim) {
            process.until("it has ended", async |process| !process.is_running()).await;
            let status = process.wait();
            assert_eq!(status.code(), Some(1), "process {number}\n{}", process.log());
            let told = format!("process {victim} of the cluster, at {host}, is gone");
            assert!(process.log().contains(&told), "{told}\n{}", process.log());
        }
    }

    /// Ctrl-C for all of them.
    pub fn stop(&mut self) {
        use nix::sys::signal::{Signal, kill};
        for process in &self.all {
            kill(process.pid(), Signal::SIGINT).unwrap();
        }
        for process in &mut self.all {
            // One that was told later than another has ended may take that for a failure.
            let status = process.wait();
            let told = || process.log().contains("of the cluster, at") && process.log().contains("is gone");
            assert!(status.success() || (status.code() == Some(1) && told()), "{status}\n{}", process.log());
        }
    }

    /// Waits until everything that is in Kafka is in the stores, and is found.
    pub async fn caught_up(&self, from: &KafkaLog) {
        let from = from.clone();
        let newest = tokio::task::spawn_blocking(move || Times::of(&from).unwrap().newest().unwrap()).await.unwrap();
        for process in &self.all {
            let what = format!("home of {} is at {}", self.name, newest.lsn);
            process.until(&what, async |process| stage_lsn(process, "home").await >= Some(newest.lsn)).await;
        }
        let what = format!("search of {} is at {}", self.name, newest.lsn);
        let standing = format!("{}/{}-search-progress/_doc/standing", self.search, self.name);
        self.all[0]
            .until(&what, async |process| {
                let standing = process.http.get(&standing).send().await.unwrap().bytes().await.unwrap();
                let standing: Value = serde_json::from_slice(&standing).unwrap();
                standing["_source"]["serving"]["position"]["time"].as_u64() >= Some(newest.time)
            })
            .await;
    }

    /// All rows of the keyspace with their write timestamps, by table; and all documents with their versions.
    pub async fn dump(&self) -> BTreeMap<String, BTreeMap<String, String>> {
        let session =
            SessionBuilder::new().known_node(&self.node).use_keyspace(&self.name, false).build().await.unwrap();
        let mut tables = BTreeMap::new();
        for (table, keys, values) in [
            ("facts", "kind, owner, part, key", "value, writetime(value)"),
            ("lists", "kind, owner, part, key", "value, writetime(value)"),
            ("rows", "owner, kind, key", "value, writetime(value)"),
            ("home", "viewer, kind, id", "floor, time, writetime(floor)"),
        ] {
            // Small pages: a node gives up where one has too many deletes between its rows.
            let statement = Statement::new(format!("SELECT {keys}, {values} FROM {table}")).with_page_size(200);
            let found = session.query_iter(statement, ()).await.unwrap().rows_stream::<Row>().unwrap();
            let row = |row: Row| {
                let (key, value) = row.columns.split_at(keys.split(", ").count());
                (format!("{key:?}"), format!("{value:?}"))
            };
            tables.insert(table.to_owned(), found.map_ok(row).try_collect().await.unwrap());
        }
        tables.insert("documents".to_owned(), self.documents().await);
        tables
    }

    async fn documents(&self) -> BTreeMap<String, String> {
        let (index, http) = (format!("{}/{}-search", self.search, self.name), reqwest::Client::new());
        let refreshed = http.post(format!("{index}/_refresh")).send().await.unwrap();
        assert!(refreshed.status().is_success());
        let found = http.get(format!("{index}/_search?version=true&size=10000")).send().await.unwrap();
        let found: Value = serde_json::from_slice(&found.bytes().await.unwrap()).unwrap();
        let hits = found["hits"]["hits"].as_array().unwrap();
        let document =
            |hit: &Value| (hit["_id"].as_str().unwrap().to_owned(), format!("{} {}", hit["_version"], hit["_source"]));
        hits.iter().map(document).collect()
    }
}

/// Compares what two groups hold, after the last that was published.
async fn equal(estate: &Estate, [one, other]: [&Processes; 2]) {
    for processes in [one, other] {
        processes.caught_up(&estate.to).await;
    }
    let (one, other) = (one.dump().await, other.dump().await);
    for (table, rows) in &one {
        let others = &other[table];
        assert!(rows.len() > 50, "{} rows of {table} are too few to say anything", rows.len());
        let differ = rows.iter().filter(|(key, value)| others.get(*key) != Some(value));
        let differ: Vec<_> = differ.map(|(key, value)| (key, value, others.get(key))).take(5).collect();
        assert!(differ.is_empty() && rows.len() == others.len(), "{table}: {differ:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c46_one_process_and_several_that_die_and_change_their_number_write_the_same_with_the_same_timestamps() {
    let settings = ["--hot-followers", HOT_FOLLOWERS, "--bulk-rows", "2000"];
    let mut estate = Estate::new(Kafka::shared(), Layout::Tables, &settings).await;
    let mut writer = Writer::new(&estate.postgres);
    let mut rng = ChaCha8Rng::seed_from_u64(11);
    estate.capture.spawn().await.unwrap();
    writer.run(PEOPLE).await;
    writer.write_some(&mut rng, 60).await;
    estate.published().await;
    // Both begin with the same state: nothing more is published before they have.
    assert!(estate.capture.interrupt().0.success());
    let [mut one, mut several] = ["one", "several"].map(|name| Processes::new(&estate.to, &estate.postgres, name));
    one.are(1, 1);
    several.are(2, 1);
    one.go().await;
    several.go().await;
    equal(&estate, [&one, &several]).await;

    estate.capture.go().await;
    writer.write_some(&mut rng, 100).await;
    several.kill(1).await;
    writer.write_some(&mut rng, 50).await;
    several.go().await;
    writer.run(HUGE[0]).await;
    writer.write_some(&mut rng, 50).await;
    several.kill(0).await;
    several.are(3, 2);
    several.go().await;
    writer.run(HUGE[1]).await;
    writer.write_some(&mut rng, 50).await;
    several.stop();
    several.are(1, 3);
    several.go().await;
    writer.write_some(&mut rng, 50).await;
    estate.published().await;
    assert!(estate.capture.interrupt().0.success());
    equal(&estate, [&one, &several]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn processes_that_cannot_work_together_say_so() {
    let postgres = Postgres::new(&[]).await;
    let kafka = Kafka::shared();
    let from = crate::kafka::estate::log_in(kafka, Layout::Tables);
    let mut processes = Processes::new(&from, &postgres, "wrong");
    processes.are(2, 1);
    let refused = |process: &mut System, flag: &str, value: &str| {
        let at = process.settings.iter().position(|setting| setting == flag).unwrap();
        std::mem::replace(&mut process.settings[at + 1], value.to_owned())
    };
    let process = &mut processes.all[1];
    for (flag, value, told) in [
        ("--process", "2", "--process is 2, but there are 2 processes"),
        ("--workers", "40", "must be at most 64"),
        ("--hosts", "/nowhere/hosts", "could not read /nowhere/hosts"),
        ("--search", "local", "--search http://"),
    ] {
        let before = refused(process, flag, value);
        let printed = process.expect_start_failure().await;
        assert!(printed.contains(told), "{printed}");
        refused(process, flag, &before);
    }
    for (flag, told) in [("--store", "--store cql://"), ("--publish", "--publish kafka://")] {
        let at = process.settings.iter().position(|setting| setting == flag).unwrap();
        let taken: Vec<String> = process.settings.drain(at..at + 2).collect();
        let printed = process.expect_start_failure().await;
        assert!(printed.contains(told), "{printed}");
        process.settings.extend(taken);
    }
    // Nothing is published, and nobody else comes.
    process.listen().await;
    process.until("it waits for the log", async |process| process.log().contains("waiting for the log")).await;
    process.interrupt();
}
