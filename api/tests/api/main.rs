//! The API, through its router, against a real PostgreSQL and views that mirror it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod accounts;
mod consistency;
mod follows;
mod hostile;
mod lists;
mod mirror;
mod operations;
mod tweets;
mod world;
