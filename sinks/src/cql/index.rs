//! Facts, rows and reactions in a CQL cluster.
//!
//! ```text
//!   worker ─ Closed ─┬─ shard ─► place of each row ─┬─ marks of lists ─► acknowledged ─┐
//!                    │                              ├─ counts: what they are, + ───────┤
//!                    │                              ├─ trends: what they are, ± ───────┤
//!                    │                              └─ rows ───────────────────────────┴─► acknowledged ─┐
//!                    └─ shard ─► … some at a time ───────────────────────────────────────────────────────┴─► progress ─► told
//! ```
//!
//! At most one operation of a closed time is of one row, since a cluster keeps of two with one timestamp the delete, or the
//! greater value, and not the later. A row that is replaced is one put. Rows and reactions share tables, and no row is of both.
//!
//! A count is written as what it is, not as what is added, with the time of its last change as part of the value. It has one
//! writer, who knows it or reads it: a time at or below its own adds nothing. So an answer that was lost, a request that is
//! sent twice, or a closed time of which a crash has left a part, all end at the same value. One that comes down to zero stays:
//! it means the same as none. A list of trends likewise (`trends`).

use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

use feedmill_model::{
    Closed, Counter, Fact, Op, Position, RowSink, Shard, SourceId, StoreError, Time, View, ViewRow, failpoint,
};
use futures::{TryStreamExt, stream};
use quick_cache::sync::Cache;

use super::cluster::Cluster;
use super::fault::Fault;
use super::ledger::{Due, Ledger};
use super::place::{Place, count_key, counter, fact, place, place_by_reply};
use super::spread::{Laid, Listed, timestamp};
use super::state::State;
use super::statement::{KEYS_MAX, Statement, Write};
use super::trends::{KnownTrends, Of, Ranked};
use crate::{Changes, IndexStore, layout};

/// Counts that are known without being read.
const COUNTS_MAX: usize = 200_000;
/// Shards of a closed time that are written at once: each waits for the marks of its lists before it goes on,
const SHARDS_AT_ONCE: usize = 16;
/// and the operations of all of them, unless one has more.
const OPS_AT_ONCE: usize = 50_000;

/// Facts, rows and reactions in a CQL cluster.
pub struct CqlIndex {
    pub(super) facts: Ledger,
    pub(super) rows: Ledger,
    pub(super) reactions: Ledger,
    counts: Cache<(Counter, i64), Count>,
    pub(super) changes: Changes,
}

/// A count, and the time of its last change.
type Count = (i64, Time);

/// What some shards write.
#[derive(Default)]
struct Writes {
    laid: Laid,
    rows: Vec<Write>,
    sums: Vec<(Counter, i64, i64)>,
    trends: BTreeMap<Of, Vec<Ranked>>,
}

impl CqlIndex {
    pub(super) fn new(facts: Ledger, rows: Ledger, reactions: Ledger) -> Self {
        CqlIndex { facts, rows, reactions, counts: Cache::new(COUNTS_MAX), changes: Changes::default() }
    }

    fn cluster(&self) -> &Cluster {
        &self.rows.cluster
    }

    /// Begins the facts anew, empty and without progress. Until they have the closed time `due` on all shards, reads that
    /// need them fail with [`Rebuilding`](crate::Rebuilding). No closed time may be applied meanwhile, by any process.
    pub fn rebuild_facts(&self, due: Time) -> Result<(), StoreError> {
        let anew = self.cluster().wait(self.facts.rebuild(due));
        self.changes.tell_anything();
        anew.map_err(|fault| fault.store("facts", "begin anew"))
    }

    /// The same for the rows, and for the reactions, which are in the same tables.
    pub fn rebuild_rows(&self, due: Time) -> Result<(), StoreError> {
        let anew = self.cluster().wait(async {
            // They have no progress any more when the tables of both are emptied.
            self.reactions.rebuild(due).await?;
            self.rows.rebuild(due).await
        });
        self.counts.clear();
        self.changes.tell_anything();
        anew.map_err(|fault| fault.store("rows", "begin anew"))
    }

    /// Records how far the stores are also where nothing changed. Returns the least position that a shard of facts, rows or
    /// reactions has, `None` while one has none: the change log must keep what came after it.
    pub fn durable(&self) -> Result<Option<Position>, StoreError> {
        let recorded = |ledger: &Ledger| {
            let recorded = self.cluster().wait(ledger.record_idle());
            recorded.map_err(|fault| fault.store(ledger.store, "record its progress"))
        };
        let mut positions = recorded(&self.facts)?;
        positions.extend(recorded(&self.rows)?);
        positions.extend(recorded(&self.reactions)?);
        let positions: Option<Vec<Position>> = positions.into_iter().collect();
        Ok(positions.and_then(|positions| positions.into_iter().min_by_key(|position| position.time)))
    }

    /// Applies a closed time to the shards that do not have it yet. `take` adds what an operation writes.
    fn apply<R>(
        &self,
        ledger: &Ledger,
        closed: &Closed<R>,
        take: impl Fn(&Op<R>, &mut Vec<Listed>, &mut Writes) -> Result<(), Fault>,
    ) -> Result<(), StoreError> {
        let position = closed.position;
        let mut due = ledger.lock_due(position.time, closed.shards);
        let applied = ledger.cluster.wait(async {
            ledger.cluster.check()?;
            let has_rows = self.write(&mut due, closed, take).await?;
            if !closed.loading {
                // Beside what comes next: nothing depends on it but where another process, or the next start, goes on.
                if ledger.record(&mut due, closed.shards, position, has_rows) {
                    ledger.cluster.progressed.notify_one();
                }
            }
            Ok(())
        });
        applied.map_err(|fault: Fault| fault.store(ledger.store, format!("apply the closed time {}", position.time)))
    }

    /// Returns whether it brings anything.
    async fn write<R>(
        &self,
        due: &mut Due<'_>,
        closed: &Closed<R>,
        take: impl Fn(&Op<R>, &mut Vec<Listed>, &mut Writes) -> Result<(), Fault>,
    ) -> Result<bool, Fault> {
        let (time, take) = (closed.position.time, &take);
        let by_shard = closed.ops.chunk_by(|(one, _), (other, _)| one == other);
        let mut brings: HashMap<Shard, _> = by_shard.filter_map(|ops| Some((ops.first()?.0, ops))).collect();
        let most = brings.values().map(|ops| ops.len()).max().unwrap_or(0);
        let at_once = (OPS_AT_ONCE / most.max(1)).clamp(1, SHARDS_AT_ONCE);
        let mut has_rows = false;
        let shards = due.iter_mut().zip(0..).filter_map(|(known, shard)| {
            let (known, ops) = (known.as_mut()?, brings.remove(&shard)?);
            has_rows = true;
            Some(Ok::<_, Fault>((shard, known, ops)))
        });
        // A shard is laid out when another has ended, so the cluster has always something to do.
        let written = stream::iter(shards).try_for_each_concurrent(at_once, |(shard, known, ops)| async move {
            let (mut listed, mut writes) = (Vec::new(), Writes::default());
            for (_, op) in ops {
                take(op, &mut listed, &mut writes)?;
            }
            let partition_rows = self.cluster().settings.partition_rows;
            known.full.lay_out(shard, time, listed, partition_rows, &mut writes.laid);
            self.flush(time, writes, &mut known.trends).await?;
            failpoint!("sink_write_part_after");
            Ok(())
        });
        written.await?;
        Ok(has_rows)
    }

    async fn flush(&self, time: Time, writes: Writes, known: &mut KnownTrends) -> Result<(), Fault> {
        let Writes { laid, mut rows, sums, trends } = writes;
        let counts = self.summed(time, sums).await?;
        rows.extend(counts.iter().map(|(key, count)| count_row(*key, *count)));
        let trends = known.after(self.cluster(), time, trends).await?;
        for (of, list) in &trends {
            rows.push(list.put(*of)?);
        }
        rows.sort_by_key(|row| match row {
            Write::Row { owner, .. } => *owner,
            _ => 0,
        });
        let cluster = self.cluster();
        rows.extend(laid.rows);
        rows.extend(self.there(&laid.perhaps).await?);
        cluster.write(&laid.marks).await?;
        failpoint!("sink_write_before");
        cluster.write(&rows).await?;
        failpoint!("sink_write_after");
        for (key, count) in counts {
            self.counts.insert(key, count);
        }
        known.learn(trends);
        Ok(())
    }

    /// Those of the deletes that have a row in their part.
    async fn there(&self, deletes: &[Write]) -> Result<Vec<Write>, Fault> {
        let of_parts = deletes.chunk_by(Write::is_beside).flat_map(|of_part| of_part.chunks(KEYS_MAX));
        let read = |of_part| async move {
            let keyed = keyed(of_part);
            let Some((Write::Listed { table, view, owner, part, .. }, _)) = keyed.first() else {
                return Ok(Vec::new());
            };
            let keys: Vec<&[u8]> = keyed.iter().map(|(_, key)| *key).collect();
            let found = self.cluster().read(Statement::keys(*table), (view, owner, part, keys)).await?;
            let undecodable = || Fault::Undecodable { of: view };
            let found = found.rows::<(&[u8], &[u8])>().map_err(|_| undecodable())?;
            let found: HashSet<&[u8]> =
                found.map(|row| row.map(|(key, _)| key)).collect::<Result<_, _>>().map_err(|_| undecodable())?;
            let there = keyed.into_iter().filter(|(_, key)| found.contains(key));
            Ok(there.map(|(delete, _)| delete.clone()).collect())
        };
        let there: Vec<Vec<Write>> = self.cluster().each(of_parts, read).await?;
        Ok(there.concat())
    }

    /// What counts are after `time`: those that do not have it yet.
    async fn summed(&self, time: Time, sums: Vec<(Counter, i64, i64)>) -> Result<Vec<((Counter, i64), Count)>, Fault> {
        let mut unknown: BTreeMap<(i64, View), Vec<Vec<u8>>> = BTreeMap::new();
        let mut known: BTreeMap<(Counter, i64), Count> = BTreeMap::new();
        for (counter, of, _) in &sums {
            match self.counts.get(&(*counter, *of)) {
                Some(count) => drop(known.insert((*counter, *of), count)),
                None => unknown.entry((*of, counter.view())).or_default().push(count_key(*counter, *of)),
            }
        }
        let read = |((of, view), keys): ((i64, View), Vec<Vec<u8>>)| async move {
            let found = self.cluster().read(Statement::RowKeys, (of, view.name(), keys)).await?;
            counts_in(&found).map(|counts| counts.into_iter().map(|(counter, count)| ((counter, of), count)).collect())
        };
        let found: Vec<Vec<_>> = self.cluster().each(unknown, read).await?;
        known.extend(found.into_iter().flatten());
        let add = |(counter, of, diff): (Counter, i64, i64)| {
            let (count, last) = known.get(&(counter, of)).copied().unwrap_or((0, 0));
            (last < time).then(|| ((counter, of), (count.wrapping_add(diff), time)))
        };
        Ok(sums.into_iter().filter_map(add).collect())
    }
}

/// Writes of lists, each with its key.
fn keyed(writes: &[Write]) -> Vec<(&Write, &[u8])> {
    let keyed = writes.iter().filter_map(|write| match write {
        Write::Listed { key, .. } => Some((write, key.as_slice())),
        _ => None,
    });
    keyed.collect()
}

fn count_row((counter, of): (Counter, i64), (count, time): Count) -> Write {
    Write::Row {
        owner: of,
        view: counter.view().name(),
        key: count_key(counter, of),
        value: Some(layout::two(count as u64, time).to_vec()),
        at: timestamp(time),
    }
}

/// The counts in an answer of keys and values, with their times.
fn counts_in(found: &scylla::response::query_result::QueryRowsResult) -> Result<Vec<(Counter, Count)>, Fault> {
    let undecodable = || Fault::Undecodable { of: View::Counts.name() };
    let rows = found.rows::<(&[u8], &[u8])>().map_err(|_| undecodable())?;
    let count = |row: Result<(&[u8], &[u8]), _>| {
        let (key, value) = row.map_err(|_: scylla::deserialize::DeserializationError| undecodable())?;
        let (count, time) = layout::of_two(value).ok_or_else(undecodable)?;
        Ok((counter(key).ok_or_else(undecodable)?, (count as i64, time)))
    };
    rows.map(count).collect()
}

/// What an operation on a fact writes. No fact is a sum: one that is added is there, one that is taken away is not.
fn take_fact(op: &Op<Fact>, listed: &mut Vec<Listed>) {
    listed.push(match op {
        Op::Put(row) | Op::Add(row, 1..) => fact(row, true),
        Op::Delete(row) | Op::Add(row, _) => fact(row, false),
    });
}

/// What an operation on a row writes.
fn take_row(time: Time, op: &Op<ViewRow>, listed: &mut Vec<Listed>, writes: &mut Writes) -> Result<(), Fault> {
    let (row, value) = match op {
        Op::Add(ViewRow::Count { counter, of }, diff) => {
            writes.sums.push((*counter, *of, *diff));
            return Ok(());
        }
        Op::Put(row) | Op::Add(row, 1..) => (row, Some(layout::value(row, time)?.to_vec())),
        Op::Delete(row) | Op::Add(row, _) => (row, None),
    };
    for place in [Some(place(row)), place_by_reply(row)].into_iter().flatten() {
        let value = value.clone();
        match place {
            Place::Row { owner, view, key } => {
                writes.rows.push(Write::Row { owner, view: view.name(), key, value, at: timestamp(time) });
            }
            Place::Listed { list, owner, key } => listed.push(Listed { list, owner, key, value }),
            Place::Trend { of, key } => writes.trends.entry(of).or_default().push((key, value)),
        }
    }
    Ok(())
}

impl RowSink<Fact> for CqlIndex {
    fn progress(&self) -> Vec<Option<Position>> {
        self.facts.progress()
    }

    fn apply(&self, closed: &Closed<Fact>) -> Result<(), StoreError> {
        self.apply(&self.facts, closed, |op, listed, _| {
            take_fact(op, listed);
            Ok(())
        })?;
        self.changes.tell_facts(closed);
        Ok(())
    }
}

impl RowSink<ViewRow> for CqlIndex {
    fn progress(&self) -> Vec<Option<Position>> {
        self.rows.progress()
    }

    fn apply(&self, closed: &Closed<ViewRow>) -> Result<(), StoreError> {
        let time = closed.position.time;
        self.apply(&self.rows, closed, |op, listed, writes| take_row(time, op, listed, writes))?;
        self.changes.tell_rows(closed);
        Ok(())
    }
}

impl IndexStore for CqlIndex {
    fn reactions_progress(&self) -> Vec<Option<Position>> {
        self.reactions.progress()
    }

    fn apply_reactions(&self, closed: &Closed<ViewRow>) -> Result<(), StoreError> {
        let time = closed.position.time;
        self.apply(&self.reactions, closed, |op, listed, writes| take_row(time, op, listed, writes))?;
        self.changes.tell_rows(closed);
        Ok(())
    }

    fn shares_tables(&self) -> bool {
        true
    }

    fn rebuild_reactions(&self, due: Time) -> Result<(), StoreError> {
        CqlIndex::rebuild_rows(self, due)
    }

    fn rebuild_facts(&self, due: Time) -> Result<(), StoreError> {
        CqlIndex::rebuild_facts(self, due)
    }

    fn rebuild_rows(&self, due: Time) -> Result<(), StoreError> {
        CqlIndex::rebuild_rows(self, due)
    }

    fn durable(&self) -> Result<Option<Position>, StoreError> {
        CqlIndex::durable(self)
    }

    fn begin_history(&self, source: &SourceId, since: Time) -> Result<(), StoreError> {
        let told = self.cluster().wait(State::new(self.cluster()).begin_history(source, since));
        told.map_err(|fault| fault.store("facts and rows", "say of which source they are"))
    }

    fn end(&self) {
        self.cluster().end();
    }

    /// What was acknowledged is where the next start finds it.
    fn write_out(&self, _: Duration) -> Result<(), StoreError> {
        Ok(())
    }
}
