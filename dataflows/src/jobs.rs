//! The jobs: each a pure function from collections to collections, with the SQL of its views beside it.

pub(crate) mod active;
pub(crate) mod audience;
pub(crate) mod facts;
pub(crate) mod follows;
pub(crate) mod home;
pub(crate) mod hot;
pub(crate) mod profile;
pub(crate) mod retweets;
pub(crate) mod tweets;
pub(crate) mod user_timeline;
pub(crate) mod verified_following;
