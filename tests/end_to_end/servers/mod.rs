//! The whole system with stores on real servers.

mod search;
mod store;
