//! The change log in Kafka: published by one process, read by many.
//!
//! ```text
//!   batch ─► Encoder ─► Publisher ─┬─► change topics  envelope: before, after        kept for a while   ─┐
//!                                  ├─► row topics     envelope: after, or tombstone  compacted by key    ├ one Kafka transaction
//!                                  └─► times          Time, position, last offsets   one record a batch ─┘
//!
//!   times ─────► BatchReader ◄───── a share of the partitions of the change topics ─► batches, in order
//!   row topics ─► Hydration  ◄───── the changes after T, undone                    ─► rows as of T
//! ```
//!
//! Why nothing is published twice, lost, or told differently: a batch's records and its record in `times` are one Kafka
//! transaction, and `times` is where a publisher finds out how far its predecessor came. It looks there only after it has
//! taken over the transactional id, which ends whatever that one had begun and lets it begin no more. Times come from the
//! change log, and nothing that is published depends on a clock or on the process. Whatever goes wrong in a transaction, the
//! producer is dropped with it and the next one begins at `times`: there is no other way of recovery.
//!
//! A batch that is larger than one transaction should be is published in several, each with a record in `times` that says how
//! many of the changes are there and that it is not the last: so a restart goes on in the middle of it, and readers hand it on
//! in pieces of one time, as the change log itself does.
//!
//! Why a reader knows that its share is complete: `times` names for each partition the last offset of a batch and how many
//! records it has there. A reader takes from a partition up to that offset, and counts. What retention took away, or a
//! topic that was tampered with, makes the numbers differ, which is a definite error.
//!
//! Records carry the Time as their Kafka timestamp, so a reader that begins at T has brokers look up where that is.

mod address;
mod avro;
mod block;
mod client;
mod columns;
mod deliveries;
mod encoder;
mod envelope;
mod error;
mod hydration;
mod publisher;
mod reader;
mod registry;
mod times;
mod topics;
mod values;
mod zoned;

pub use address::{ParseServersError, Servers};
pub use encoder::{Content, Encoded, Encoder, Origin, Part};
pub use error::KafkaError;
pub use hydration::Hydration;
pub use publisher::{Published, Publisher};
pub use reader::{BatchReader, Share};
pub use registry::{ParseRegistryError, RegistryAddress};
pub use times::{Times, TimesRecord, Touched};
pub use topics::{Compression, Format, KafkaLog, Layout, TopicOptions, Topics, prepare};
