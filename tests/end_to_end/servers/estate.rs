//! All of it, as it runs on many machines: PostgreSQL, capture, Kafka, processes that derive, a CQL node, Elasticsearch.

use std::process::ExitStatus;
use std::time::{Duration, Instant};

use feedmill_api::Keys;
use feedmill_connectors::kafka::Layout;
use feedmill_test_servers::{Broker, Cassandra, CqlNode, Elasticsearch, Kafka, Mortal, SearchNode};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde_json::Value;

use super::processes::Processes;
use crate::crash::workload::{HOT_FOLLOWERS, HUGE, PEOPLE, Writer};
use crate::health::one_name_is_missing;
use crate::kafka::estate::Estate;
use crate::leaks::{hides_wherever_one_may_look, streams_end_with_what_one_may_see};
use crate::system::System;

/// Operations before and after each crash, unless `OPERATIONS` says how many.
const OPERATIONS: usize = 40;

/// All machines, of which a test may kill each.
pub struct Machines {
    kafka: Mortal<Broker>,
    node: Mortal<CqlNode>,
    search: Mortal<SearchNode>,
    pub estate: Estate,
    pub processes: Processes,
    pub writer: Writer,
}

/// One of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Machine {
    Node,
    Search,
    Kafka,
    Postgres,
    Capture,
    Process(usize),
}

impl Machines {
    /// They run, two processes among them, and have a few people to serve.
    pub async fn start(name: &str) -> Machines {
        // Always in this order, so that no two tests wait for each other.
        let (kafka, node, search) = (Kafka::mortal(), Cassandra::mortal(), Elasticsearch::mortal());
        let settings = ["--hot-followers", HOT_FOLLOWERS, "--bulk-rows", "2000"];
        let mut estate = Estate::new(&kafka, Layout::Tables, &settings).await;
        let mut processes = Processes::on(&node, &search, &estate.to, &estate.postgres, name);
        // It compares what they derive.
        estate.capture.settings.extend(processes.stores.clone());
        estate.capture.spawn().await.unwrap();
        processes.are(2, 1);
        processes.go().await;
        let mut writer = Writer::new(&estate.postgres);
        writer.run(PEOPLE).await;
        Machines { kafka, node, search, estate, processes, writer }
    }

    /// `kill -9`, or what it is for PostgreSQL.
    pub async fn kill(&mut self, machine: Machine) {
        match machine {
            Machine::Node => self.node.kill(),
            Machine::Search => self.search.kill(),
            Machine::Kafka => self.kafka.kill(),
            Machine::Postgres => self.estate.postgres.stop_immediate(),
            Machine::Capture => self.estate.capture.kill(),
            Machine::Process(victim) => self.processes.kill(victim).await,
        }
    }

    /// Starts what was killed.
    pub async fn start_again(&mut self, machine: Machine) {
        match machine {
            Machine::Node => self.node.start_again(),
            Machine::Search => self.search.start_again(),
            Machine::Kafka => self.kafka.start_again(),
            Machine::Postgres => self.estate.postgres.start().await,
            Machine::Capture => self.estate.capture.spawn().await.unwrap(),
            Machine::Process(_) => self.processes.go().await,
        }
    }

    /// `kill -9` of a process of ours, and of all that work together with it, unless they have ended; gives how it did.
    pub fn crash(&mut self, machine: Machine) -> ExitStatus {
        match machine {
            Machine::Capture => {
                self.estate.capture.crash();
                self.estate.capture.wait()
            }
            Machine::Process(number) => self.processes.crash()[number],
            _ => panic!("{machine:?} is not a process of ours"),
        }
    }

    /// Starts a process of ours, and all that work together with it, and waits for nothing.
    pub fn launch(&mut self, machine: Machine) {
        match machine {
            Machine::Capture => drop(self.estate.capture.launch()),
            Machine::Process(_) => self.processes.launch(),
            _ => panic!("{machine:?} is not a process of ours"),
        }
    }

    /// A process of ours.
    pub fn system(&mut self, machine: Machine) -> &mut System {
        match machine {
            Machine::Capture => &mut self.estate.capture,
            Machine::Process(number) => &mut self.processes.all[number],
            _ => panic!("{machine:?} is not a process of ours"),
        }
    }

    /// A server neither answers nor ends.
    pub fn freeze(&self, machine: Machine) {
        match machine {
            Machine::Node => self.node.freeze(),
            Machine::Search => self.search.freeze(),
            Machine::Kafka => self.kafka.freeze(),
            _ => panic!("{machine:?} is not a server of ours"),
        }
    }

    /// A server goes on.
    pub fn thaw(&self, machine: Machine) {
        match machine {
            Machine::Node => self.node.thaw(),
            Machine::Search => self.search.thaw(),
            Machine::Kafka => self.kafka.thaw(),
            _ => panic!("{machine:?} is not a server of ours"),
        }
    }

    /// Everything that was committed is derived, and equals its SQL; gives the last line of what `verify` printed.
    pub async fn verified(&self) -> String {
        self.estate.published().await;
        let printed = self.estate.capture.verified().await;
        printed.lines().last().unwrap().to_owned()
    }

    /// Ends what is not a server.
    pub fn stop(mut self) {
        assert!(self.estate.capture.interrupt().0.success());
        self.processes.stop();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn c43_c51_views_equal_their_sql_after_each_part_was_killed_while_every_kind_of_write_went_on() {
    let operations = std::env::var("OPERATIONS").map_or(OPERATIONS, |text| text.parse().unwrap());
    let seconds = Duration::from_secs(std::env::var("SECONDS").map_or(0, |text| text.parse().unwrap()));
    let mut machines = Machines::start("estate").await;
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    let (began, mut written) = (Instant::now(), 0);
    while written < operations || began.elapsed() < seconds {
        machines.writer.write_some(&mut rng, 10).await;
        written += 10;
    }
    println!("after {written} operations in {:.1} s: {}", began.elapsed().as_secs_f64(), machines.verified().await);

    let (node, search, kafka) = (Machine::Node, Machine::Search, Machine::Kafka);
    for machine in [node, search, kafka, Machine::Capture, Machine::Process(0), Machine::Process(1), Machine::Postgres]
    {
        machines.kill(machine).await;
        if machine != Machine::Postgres {
            machines.writer.write_some(&mut rng, operations).await;
        }
        machines.start_again(machine).await;
        machines.writer.write_some(&mut rng, operations).await;
        if machine == Machine::Capture {
            machines.writer.run(HUGE[0]).await;
        }
        println!("after {machine:?}: {}", machines.verified().await);
    }
    machines.stop();
}

/// Starts processes on servers that others use too.
async fn start(estate: &mut Estate, name: &str) -> Processes {
    let mut processes = Processes::new(&estate.to, &estate.postgres, name);
    estate.capture.settings.extend(processes.stores.clone());
    estate.capture.spawn().await.unwrap();
    processes.are(2, 1);
    processes.go().await;
    processes
}

#[tokio::test(flavor = "multi_thread")]
async fn c52_a_multiplicity_that_cannot_be_is_an_alarm_of_the_process_that_saw_it_and_not_a_row() {
    let mut estate = Estate::new(Kafka::shared(), Layout::Tables, &[]).await;
    let mut processes = start(&mut estate, "negative").await;
    let sql = estate.postgres.sql().await;
    // The owner gives up what makes names unique, and two users take the same name in one transaction.
    sql.batch_execute(
        "DROP INDEX accounts_username_key;
         INSERT INTO accounts (user_id, username) VALUES (901, 'twice'), (902, 'twice'), (903, 'once');
         INSERT INTO users (id, username, display_name) VALUES (901, 'twice', 'One'), (902, 'twice', 'Other'),
             (903, 'once', 'Third')",
    )
    .await
    .unwrap();
    let told = async |process: &System| process.metric("feedmill_dataflow_anomalies_total").await;
    processes.all[0]
        .until("one of them has counted it", async |_| {
            told(&processes.all[0]).await + told(&processes.all[1]).await >= 1.0
        })
        .await;
    let mut alarms = 0;
    for process in &processes.all {
        let health = process.get("/health", None).await.is(200);
        let raised = |alarm: &Value| alarm["alarm"] == "negative_multiplicity" && alarm["raised"] == true;
        let alarm = health["alarms"].as_array().unwrap().iter().any(raised);
        assert_eq!(alarm, told(process).await >= 1.0, "{health}");
        alarms += u32::from(alarm);
    }
    assert!(alarms >= 1, "no process raises the alarm");
    // `verify` says where, and only there. Both go, and everything is equal again.
    estate.published().await;
    one_name_is_missing(&estate.capture).await;
    sql.batch_execute("DELETE FROM users WHERE id IN (901, 902)").await.unwrap();
    estate.published().await;
    estate.capture.verified().await;
    assert!(estate.capture.interrupt().0.success());
    processes.stop();
}

#[tokio::test(flavor = "multi_thread")]
async fn c54_what_hides_an_account_hides_it_where_one_process_serves_what_others_derive() {
    let mut estate = Estate::new(Kafka::shared(), Layout::Tables, &[]).await;
    let mut processes = start(&mut estate, "leaks").await;
    let mut server = System::new(&["--drain-seconds", "0", "--read-wait-ms", "30000"]);
    server.mode = "serve";
    server.use_database(&estate.postgres);
    let keys = server.data().join("keys");
    Keys::load_or_create(&keys).unwrap();
    server.settings.extend(["--keys".to_owned(), keys.display().to_string()]);
    server.settings.extend(processes.stores.clone());
    server.go().await;
    hides_wherever_one_may_look(&server).await;
    streams_end_with_what_one_may_see(&server).await;
    estate.published().await;
    estate.capture.verified().await;
    assert!(server.interrupt().0.success());
    assert!(estate.capture.interrupt().0.success());
    processes.stop();
}

/// `feedmill replay` with the settings of a process; gives its exit code and what it printed.
async fn empty(process: &System, views: &[&str]) -> (Option<i32>, String) {
    let settings = process.settings.iter().map(String::as_str).take_while(|flag| *flag != "--process");
    let args: Vec<&str> = ["replay"].into_iter().chain(views.iter().copied()).chain(settings).collect();
    let output = process.command(&args).await;
    let printed = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&printed).into_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn stores_that_are_emptied_while_no_process_runs_are_filled_from_kafka() {
    let settings = ["--hot-followers", HOT_FOLLOWERS, "--bulk-rows", "2000"];
    let mut estate = Estate::new(Kafka::shared(), Layout::Tables, &settings).await;
    let mut processes = start(&mut estate, "again").await;
    let mut writer = Writer::new(&estate.postgres);
    let mut rng = ChaCha8Rng::seed_from_u64(7);
    writer.run(PEOPLE).await;
    writer.write_some(&mut rng, 60).await;
    estate.published().await;
    estate.capture.verified().await;
    // Those that run are not robbed of what they write.
    let (code, told) = empty(&processes.all[0], &["home"]).await;
    assert_eq!(code, Some(1), "{told}");
    assert!(told.contains("stop all of them first"), "{told}");
    let before = processes.dump().await;
    for views in [&["home", "search"][..], &[]] {
        processes.stop();
        let (code, told) = empty(&processes.all[0], views).await;
        assert!(code == Some(0) && told.contains("emptied; the next start of `feedmill run` fills them"), "{told}");
        let emptied = processes.dump().await;
        assert!(emptied["home"].is_empty() && !before["home"].is_empty(), "{told}");
        assert_eq!(emptied["rows"].is_empty(), views.is_empty(), "only what is named is emptied");
        writer.write_some(&mut rng, 20).await;
        processes.go().await;
        estate.published().await;
        estate.capture.verified().await;
    }
    // A capture that has lost its folder copies anew, and leaves alone what others derived.
    let before = processes.dump().await;
    estate.anew(Kafka::shared()).await;
    let sql = estate.postgres.sql().await;
    let drop_slot = "SELECT pg_drop_replication_slot('feedmill')";
    processes.all[0].until("the slot is let go of", async |_| sql.execute(drop_slot, &[]).await.is_ok()).await;
    std::fs::remove_dir_all(estate.capture.data().join("log")).unwrap();
    estate.capture.go().await;
    assert!(estate.capture.log().contains("copied "), "{}", estate.capture.log());
    assert!(processes.dump().await == before, "what is derived is as it was");
    assert!(estate.capture.interrupt().0.success());
    processes.stop();
}
