//! The whole system, from the outside: the binary with a real PostgreSQL, over HTTP.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod account;
mod certificates;
mod copying;
#[cfg(feature = "failpoints")]
mod crash;
mod derived;
mod discovery;
mod disk;
mod first_steps;
mod follow_graph;
mod health;
mod hostile;
mod idempotency;
mod identity;
mod inbox;
mod interruption;
#[cfg(feature = "failpoints")]
mod kafka;
mod leaks;
#[cfg(feature = "failpoints")]
mod likes;
mod live;
mod load;
mod manual;
mod monitoring;
mod network;
mod partitions;
mod postgres;
mod proxy;
mod quarantine;
mod read_your_writes;
mod reads;
mod replay;
mod replica;
mod restart;
mod resync;
mod rows;
mod search;
mod secrets;
mod security;
mod servers;
mod sessions;
mod slot;
mod source_check;
mod system;
mod tls;
mod transactions;
mod values;
mod visibility;
mod writes;
