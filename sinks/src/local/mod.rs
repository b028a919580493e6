//! The stores of one machine.

mod frozen;
mod home;
mod index;
mod views;

pub use frozen::FrozenViews;
pub use home::{HomeCopy, LocalHome, Saved};
pub use index::{LocalIndex, OpenError};
pub use views::LocalViews;
