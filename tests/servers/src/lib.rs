//! Real servers for tests: Apache Cassandra, Apache Kafka, a schema registry and Elasticsearch, without containers.
//!
//! ```text
//!   make servers ─► /var/tmp/feedmill-servers-UID/{cassandra,kafka,…}                 what runs, from Maven Central
//!   a test ─► Server ─┬─► java …                  on free ports, with a folder of its own below TMPDIR
//!                     └─► guardian: a shell that ends the one and removes the other when the test process has ended
//! ```
//!
//! A guardian learns the end of the test process from its standard input, which closes with it, however it ends: a test
//! that is killed leaves no server behind.
//!
//! Where the address of a server is given (`FEEDMILL_TEST_CQL`, `FEEDMILL_TEST_KAFKA`, `FEEDMILL_TEST_ELASTICSEARCH`,
//! `FEEDMILL_TEST_REGISTRY`), tests that need no more than one that runs take it; those that kill it or make it slow take turns with one that is ours.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "tests that have no server shall say so"
)]

mod cassandra;
mod elasticsearch;
mod kafka;
mod registry;
mod secure;
mod server;

pub use cassandra::{Cassandra, CqlNode};
pub use elasticsearch::{Elasticsearch, SearchNode};
pub use kafka::{Broker, Kafka};
pub use registry::SchemaRegistry;
pub use secure::{SecureCassandra, SecureElasticsearch, SecureKafka};
pub use server::Mortal;
