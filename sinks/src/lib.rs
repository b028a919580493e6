//! Makes closed times of view changes durable and readable, idempotently.

mod progress;
pub mod read;
mod views;

pub use progress::Progress;
pub use views::{CountedTweet, Edge, HomeRecord, Profile, ReadError, Relationship, TimelineItem, Views};
