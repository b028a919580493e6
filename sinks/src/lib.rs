//! Makes closed times of view changes durable and readable, idempotently.

mod local;
mod progress;
pub mod read;
mod views;

pub use local::{LocalHome, LocalIndex, LocalViews, OpenError};
pub use progress::Progress;
pub use views::{CountedTweet, Edge, HomeRecord, Profile, ReadError, Relationship, TimelineItem, Views};
