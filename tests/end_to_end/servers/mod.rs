//! The whole system with stores on real servers.

mod estate;
mod processes;
mod search;
mod serve;
mod store;
