//! Makes closed times of view changes durable and readable, idempotently.

mod changes;
pub mod cql;
mod elastic;
mod key;
mod layout;
mod local;
mod progress;
pub mod read;
pub mod search;
mod stores;
mod views;

pub use changes::{Changed, Changes, Listener};
pub use elastic::{ElasticAddress, ElasticOpenError, ElasticReader, ElasticSearch, ElasticSettings, ParseAddressError};
pub use local::{
    FrozenViews, HomeCopy, LocalHome, LocalIndex, LocalSearch, LocalViews, OpenError, Saved, SearchOpenError,
};
pub use progress::Progress;
pub use stores::{HomeStore, IndexStore, Reactions, StoreViews};
pub use views::{
    CountedTweet, Edge, HomeHead, HomeRecord, List, Profile, ReadError, Rebuilding, Relationship, Reply, TimelineItem,
    TrendingTag, TrendingTweet, Views,
};
