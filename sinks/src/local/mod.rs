//! The stores of one machine.

mod frozen;
mod home;
mod index;
mod search;
mod views;

pub use frozen::FrozenViews;
pub use home::{HomeCopy, LocalHome, Saved};
pub use index::{LocalIndex, OpenError};
pub use search::{LocalSearch, SearchOpenError};
pub use views::LocalViews;
