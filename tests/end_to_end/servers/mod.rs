//! The whole system with stores on real servers.

mod search;
mod serve;
mod store;
