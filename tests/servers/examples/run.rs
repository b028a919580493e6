//! Runs one of each server until its standard input ends, and prints where they are, as a shell sets variables:
//!
//! ```text
//!   cargo run --release -p feedmill-test-servers --example run
//! ```

use std::io::Read;

use feedmill_test_servers::{Cassandra, Elasticsearch, Kafka, SchemaRegistry};

fn main() {
    let (cassandra, elasticsearch, kafka) = (Cassandra::start(), Elasticsearch::start(), Kafka::start());
    let registry = SchemaRegistry::start();
    println!("FEEDMILL_PUBLISH=kafka://{}", kafka.bootstrap());
    println!("FEEDMILL_REGISTRY={}", registry.url());
    println!("FEEDMILL_STORE=cql://{}/feedmill", cassandra.address());
    println!("FEEDMILL_SEARCH={}/feedmill", elasticsearch.url());
    // They end with this process.
    let _ = std::io::stdin().read_to_end(&mut Vec::new());
}
