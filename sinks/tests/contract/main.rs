//! What every store of Feedmill must do, and the pages that are read from it.
//!
//! `index`, `home` and `search` are suites over any store: a store is put through them by a [`index::Subject`], a
//! [`home::Subject`] or a [`search::Subject`], and one line of [`index_suite`], [`home_suite`] or [`search_suite`]. `pages` and
//! `social` compare the read side with a model that knows everything; `world` is that model, and `served` says what it must
//! serve. What is under `servers` needs servers of others (`make test-servers`).

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test that fails shall say so"
)]

mod beside;
mod bounds;
mod bulk;
mod home;
mod index;
mod leaks;
mod live;
mod local;
mod pages;
mod saves;
mod search;
mod served;
mod servers;
mod social;
mod world;
