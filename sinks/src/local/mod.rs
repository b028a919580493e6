//! The stores of one machine.

mod frozen;
mod home;
mod index;
mod search;
mod views;

pub(crate) use frozen::Folder;
pub use frozen::FrozenViews;
pub(crate) use home::Copying;
pub use home::{HomeCopy, LocalHome, Saved};
pub use index::{LocalIndex, OpenError};
pub use search::{LocalSearch, SearchOpenError};
pub use views::LocalViews;
