//! The words that all of Feedmill's crates speak.
//!
//! A [`Row`] of a [`Relation`] changes in the source database. The change log puts whole transactions into a [`Batch`]
//! and gives it a [`Time`]. The dataflows turn batches into changes of views: a [`Fact`] about who may see what, a
//! [`ViewRow`] of an index, a delivery into a home timeline. Stores receive them as closed times ([`Closed`],
//! [`HomeClosed`]), split into [`SHARDS`] shards.
//!
//! Nothing here does I/O, and nothing here reads a clock; but for [`failpoint!`], by which tests end a process.

mod batch;
mod delivery;
mod document;
mod fact;
#[cfg(feature = "failpoints")]
pub mod failpoint;
mod id;
mod keyed;
mod notice;
mod parameters;
mod relation;
mod store;
pub mod text;
mod time;
mod view;
mod view_row;

pub use batch::{Batch, Change};
pub use delivery::{Delivery, HomeRecordChange};
pub use document::Document;
pub use fact::Fact;
pub use id::{EntryId, EntryKind, PackedEntry, SHARDS, Shard, floor_of, id_at, ms_of, shard_of};
pub use keyed::{Keyed, name_owner};
pub use notice::{Notice, NoticeKind};
pub use parameters::Parameters;
pub use relation::{
    Activity, Block, Follow, Key, Like, Mute, Popular, ReadMark, Relation, Retweet, Row, Timestamp, Tweet, User,
};
pub use store::{Applied, Closed, HomeClosed, HomeSink, Op, Phase, RowSink, StoreError};
pub use time::{Lsn, ParseLsnError, Position, SourceId, Time, minute_of};
pub use view::View;
pub use view_row::{Counter, PATH_MAX, TrendWindow, ViewRow};

/// A place at which tests can make the process end, wait or go on: `failpoint!("log_append_before")`. Compiles to nothing
/// without the feature `failpoints`.
#[cfg(feature = "failpoints")]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {
        $crate::failpoint::reach($name)
    };
}

/// A place at which tests can make the process end, wait or go on: `failpoint!("log_append_before")`. Compiles to nothing
/// without the feature `failpoints`.
#[cfg(not(feature = "failpoints"))]
#[macro_export]
macro_rules! failpoint {
    ($name:literal) => {};
}
