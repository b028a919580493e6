//! The jobs: each a pure function from collections to collections, with the SQL of its views beside it.

pub(crate) mod active;
pub(crate) mod audience;
pub(crate) mod conversation;
pub(crate) mod facts;
pub(crate) mod follows;
pub(crate) mod hashtags;
pub(crate) mod home;
pub(crate) mod hot;
pub(crate) mod likes;
pub(crate) mod notifications;
pub(crate) mod profile;
pub(crate) mod read_marks;
pub(crate) mod retweets;
pub(crate) mod search;
pub(crate) mod trends;
pub(crate) mod tweets;
pub(crate) mod user_timeline;
pub(crate) mod verified_following;
