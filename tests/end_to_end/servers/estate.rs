//! All of it, as it runs on many machines: PostgreSQL, capture, Kafka, two processes that derive, a CQL node, Elasticsearch.

use feedmill_connectors::kafka::Layout;
use feedmill_test_servers::{Cassandra, Elasticsearch, Kafka};
use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;

use super::processes::Processes;
use crate::crash::workload::{HOT_FOLLOWERS, HUGE, PEOPLE, Writer};
use crate::kafka::estate::Estate;

/// Operations before and after each crash, unless `OPERATIONS` says how many.
const OPERATIONS: usize = 40;

#[tokio::test(flavor = "multi_thread")]
async fn c43_c51_views_equal_their_sql_after_each_part_was_killed_while_every_kind_of_write_went_on() {
    let operations = std::env::var("OPERATIONS").map_or(OPERATIONS, |text| text.parse().unwrap());
    let (kafka, node, search) = (Kafka::start(), Cassandra::start(), Elasticsearch::start());
    let mut estate =
        Estate::new(&kafka, Layout::Tables, &["--hot-followers", HOT_FOLLOWERS, "--bulk-rows", "2000"]).await;
    let mut processes = Processes::on(&node, &search, &estate.to, &estate.postgres, "estate");
    // It compares what they derive.
    estate.capture.settings.extend(processes.stores.clone());
    estate.capture.spawn().await.unwrap();
    processes.are(2, 1);
    processes.go().await;
    let mut writer = Writer::new(&estate.postgres);
    let mut rng = ChaCha8Rng::seed_from_u64(5);
    writer.run(PEOPLE).await;
    writer.write_some(&mut rng, operations).await;
    estate.capture.verified().await;

    for part in ["the CQL node", "Elasticsearch", "Kafka", "capture", "process 0", "process 1", "PostgreSQL"] {
        match part {
            "the CQL node" => node.kill(),
            "Elasticsearch" => search.kill(),
            "Kafka" => kafka.kill(),
            "capture" => estate.capture.kill(),
            "process 0" => processes.kill(0).await,
            "process 1" => processes.kill(1).await,
            _ => estate.postgres.stop_immediate(),
        }
        if part != "PostgreSQL" {
            writer.write_some(&mut rng, operations).await;
        }
        match part {
            "the CQL node" => node.start_again(),
            "Elasticsearch" => search.start_again(),
            "Kafka" => kafka.start_again(),
            "capture" => estate.capture.spawn().await.unwrap(),
            "PostgreSQL" => estate.postgres.start().await,
            _ => processes.go().await,
        }
        writer.write_some(&mut rng, operations).await;
        if part == "capture" {
            writer.run(HUGE[0]).await;
        }
        estate.published().await;
        let printed = estate.capture.verified().await;
        println!("after {part}: {}", printed.lines().last().unwrap());
    }
    assert!(estate.capture.interrupt().0.success());
    processes.stop();
}
