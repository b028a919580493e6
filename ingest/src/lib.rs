//! Makes transactions durable in the change log, gives them times, and acknowledges only what is durable.
//!
//! ```text
//!   Incoming ─► run_writer ─► Log::append ─► one atomic, fsynced write: rows, tail, position ─► durable LSN
//!                                  │
//!                                  └─► ring of recent batches ─► Reader ─► dataflows
//! ```

mod bulk;
mod clock;
mod copy;
mod effects;
mod error;
mod intake;
mod key;
mod large;
mod log;
mod merge;
mod meta;
mod quarantine;
mod reader;
mod remains;
mod resolve;
mod resync;
mod ring;
mod room;
mod run;
mod sorter;
mod state;
mod tail;
mod writer;

pub use error::LogError;
pub use log::{Log, Options};
pub use meta::LogState;
pub use quarantine::{ParseQuarantineIdError, QuarantineId, Quarantined, Retried};
pub use reader::Reader;
pub use resync::Resync;
pub use room::Waits;
pub use state::StateAt;
pub use writer::{Incoming, run_writer};
