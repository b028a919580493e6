//! The whole system, from the outside: the binary with a real PostgreSQL, over HTTP.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod certificates;
mod copying;
#[cfg(feature = "failpoints")]
mod crash;
mod derived;
mod disk;
mod first_steps;
mod follow_graph;
mod health;
mod identity;
mod interruption;
mod load;
mod network;
mod partitions;
#[allow(dead_code, reason = "a part of the harness: tests that are being written use what no test uses yet")]
mod postgres;
mod proxy;
mod quarantine;
mod replay;
mod restart;
mod resync;
mod rows;
mod search;
mod security;
mod slot;
mod source_check;
#[allow(dead_code, reason = "a part of the harness: tests that are being written use what no test uses yet")]
mod system;
mod tls;
mod transactions;
mod values;
mod visibility;
