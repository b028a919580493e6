//! Closed times of very many operations, written as tables.
//!
//! ```text
//!   operations, by shard ─► for each keyspace: shard by shard ─► changes, sorted by key ─► tables ─► linked in
//! ```
//!
//! A batch goes through the journal and through memory, and becomes tables afterwards: of millions of rows that is most of
//! the work, and whatever comes behind them waits for it. Keys begin with their shard, so a keyspace's changes are in order
//! when those of each shard are, and no more than a shard's are held.
//!
//! Why it is correct: a keyspace's tables become visible at once and durable, keyspace by keyspace, and the progress comes
//! after all of them. A crash before it leaves some that are ahead; what is applied again from the older progress ends at
//! the same rows, as for a closed time of several batches.

use feedmill_model::{Op, Shard};
use fjall::{Keyspace, OwnedWriteBatch, UserValue};
use parking_lot::MutexGuard;

use super::Fault;
use super::ledger::Progressed;
use crate::key::Key;

/// Operations of a closed time from which on it is written as tables.
pub(super) const BULK_OPS: usize = 100_000;

/// A key and its value from now on, or that it is gone.
pub(super) type Change = (Key, Option<UserValue>);

/// The shards of a closed time that do not have it yet, each at its index.
pub(super) type Due<'a> = [Option<MutexGuard<'a, Progressed>>];

/// Puts a change into a batch.
pub(super) fn put(batch: &mut OwnedWriteBatch, keyspace: &Keyspace, (key, value): Change) {
    match value {
        Some(value) => batch.insert(keyspace, key, value),
        None => batch.remove(keyspace, key),
    }
}

/// The shards that are due, as bits.
pub(super) fn bits(due: &Due<'_>) -> u64 {
    due.iter().zip(0..).filter(|(due, _)| due.is_some()).map(|(_, shard)| 1 << shard).sum()
}

/// Writes what `change` makes of the operations of `shards`, as bits, into tables of `keyspace`.
pub(super) fn ingest<R>(
    keyspace: &Keyspace,
    ops: &[(Shard, Op<R>)],
    shards: u64,
    mut change: impl FnMut(Shard, &Op<R>) -> Result<Option<Change>, Fault>,
) -> Result<(), Fault> {
    let mut tables = keyspace.start_ingestion()?;
    let mut changes = Vec::<Change>::new();
    for of_shard in ops.chunk_by(|(one, _), (other, _)| one == other) {
        let Some((shard, _)) = of_shard.first().filter(|(shard, _)| shards & (1 << shard) != 0) else { continue };
        for (_, op) in of_shard {
            changes.extend(change(*shard, op)?);
        }
        changes.sort_unstable_by(|(one, _), (other, _)| one.cmp(other));
        // A closed time has one operation a key; the engine would panic at a second.
        changes.dedup_by(|(one, _), (other, _)| one == other);
        for (key, value) in changes.drain(..) {
            match value {
                Some(value) => tables.write(key, value)?,
                None => tables.write_tombstone(key)?,
            }
        }
    }
    Ok(tables.finish()?)
}
