//! Makes closed times of view changes durable and readable, idempotently.

mod local;
mod progress;
pub mod read;
pub mod search;
mod views;

pub use local::{
    FrozenViews, HomeCopy, LocalHome, LocalIndex, LocalSearch, LocalViews, OpenError, Saved, SearchOpenError,
    SearchReader,
};
pub use progress::Progress;
pub use views::{
    CountedTweet, Edge, HomeRecord, List, Profile, ReadError, Rebuilding, Relationship, Reply, TimelineItem,
    TrendingTag, TrendingTweet, Views,
};
