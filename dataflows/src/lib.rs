//! Defines the views and the jobs, and is the only place that runs timely.
//!
//! A [`Runtime`] keeps the dataflows at work: it is given the state of the source at one time and then batch after
//! batch, and hands closed times of view changes to the stores. [`definition`](fn@definition) is the SQL that says what each view
//! holds: the jobs compute the same, incrementally.

mod closed;
mod cluster;
mod collection;
mod dataflow;
mod definition;
mod expire;
mod jobs;
mod part;
mod profile;
mod runtime;
mod sink;
mod supervisor;
#[cfg(test)]
mod testing;
mod worker;

pub use cluster::{Cluster, Meeting};
pub use definition::definition;
pub use part::Part;
pub use profile::Profile;
pub use runtime::{Config, OnApplied, Runtime, RuntimeError, Stores};
pub use sink::shards_of_process;
