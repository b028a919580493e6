//! The API, through its router, against a real PostgreSQL and views that mirror it.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod accounts;
mod conditional;
mod consistency;
mod follows;
mod hostile;
mod limits;
mod lists;
mod live;
mod mirror;
mod operations;
mod security;
mod tweets;
mod world;
