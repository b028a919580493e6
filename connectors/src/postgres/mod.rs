//! PostgreSQL: replication, SQL, COPY, migrations, a private cluster.
//!
//! ```text
//!  Cluster ── starts or takes over ──> PostgreSQL <── connects ── Source
//!                                          │
//!        schema::prepare: migrations, partitions, publication
//!                                          │
//!        Replication::create_slot ─────────┤ consistent point + exported snapshot
//!                                          │
//!        Copier::copy(part of a relation) ─┤ rows that committed before the consistent point
//!        Stream::start(source, point) ─────┘ transactions that commit after it, whole and in order
//! ```

mod changes;
mod cluster;
mod copy;
mod error;
mod growing;
mod paced;
mod pgoutput;
mod replication;
pub mod schema;
mod slot;
mod source;
mod spill;
mod stream;
mod tls;
mod transaction;
mod transport;
mod tuple;
mod unusable;
pub mod validate;

pub use changes::{CHUNK_CHANGES, Changes};
pub use cluster::{Cluster, ClusterError, Prospect};
pub use copy::{COPY_APPLICATION, COPY_ROWS, Copied, Copier, CopyError, CopyPart};
pub use error::ServerError;
pub use growing::{Follow, Growing, Grown};
pub use replication::{Replication, ReplicationError};
pub use slot::{Slot, SlotStart};
pub use source::{Source, SourceError};
pub use spill::{Spill, SpillError, SpillId, SpillWriter};
pub use stream::{CAPTURE_APPLICATION, Event, Spilling, Stream};
pub use tls::{SslMode, TlsError};
pub use transaction::{RowChange, Transaction};
pub use tuple::DecodeError;
pub use unusable::{Field, Operation, Unusable};
