//! The whole system, from the outside: the binary with a real PostgreSQL, over HTTP.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    reason = "a test fails by panicking"
)]

mod first_steps;
mod follow_graph;
mod load;
mod network;
mod system;
