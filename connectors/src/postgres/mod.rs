//! PostgreSQL: replication, SQL, COPY, migrations, a private cluster.

mod transaction;

pub use transaction::{RowChange, Transaction};
