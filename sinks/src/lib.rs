//! Makes closed times of view changes durable and readable, idempotently.

mod local;
mod progress;
pub mod read;
mod views;

pub use local::{FrozenViews, HomeCopy, LocalHome, LocalIndex, LocalViews, OpenError, Saved};
pub use progress::Progress;
pub use views::{
    CountedTweet, Edge, HomeRecord, List, Profile, ReadError, Rebuilding, Relationship, Reply, TimelineItem,
    TrendingTag, TrendingTweet, Views,
};
