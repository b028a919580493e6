//! The whole system with stores on real servers.

mod compose;
mod estate;
pub mod processes;
mod search;
mod seeded;
mod serve;
mod store;
