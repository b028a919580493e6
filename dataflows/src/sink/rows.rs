//! The sink of a store of rows: one operation a key and closed time.
//!
//! ```text
//!   changes of a time ─┬─ few:  all shards ─► sorted, one operation a key ─► the store
//!                      └─ many: some shards ─► sorted, one operation a key ─┐ on a thread of its own
//!                                                   the store ◄─────────────┘ while the next are sorted
//! ```
//!
//! Millions of changes of one time, which a large transaction brings, are kept in chunks that never move, and given to the
//! store by sets of shards: what is held twice is a set's share of them, and memory of the first serves the last. Why that
//! is correct: progress is one of each shard, so a crash in between leaves shards that have the time and shards that come
//! to it again; the time's tick goes on when the last set is applied.

use std::collections::BTreeMap;
use std::panic::resume_unwind;
use std::sync::{Arc, mpsc};
use std::thread;

use differential_dataflow::ExchangeData;
use feedmill_model::{Closed, Keyed, Op, Position, RowSink, SHARDS, Shard, Time};
use timely::container::CapacityContainerBuilder;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::generic::OutputBuilder;
use timely::dataflow::operators::generic::builder_rc::OperatorBuilder;

use super::{Held, Tick, open_from, route, shards_of};
use crate::collection::Rows;
use crate::supervisor::Supervisor;

/// A change, with its shard.
type Change<R> = (Shard, R, isize);

/// Changes of one time from which on they are kept in parts.
const MANY: usize = 65_536;
/// Parts, of as many shards each.
const PARTS: usize = 16;
/// Shards of a part.
const PART: usize = SHARDS / PARTS;
/// Changes in a chunk of a part.
const CHUNK: usize = 4_096;
/// Changes that are at least given to the store together, unless no more are left.
const TOGETHER: usize = 500_000;

/// Changes of one time.
struct Changes<R> {
    /// Those that are in no part: all of them while they are few.
    few: Vec<Change<R>>,
    /// The others; nothing while they are few.
    parts: Vec<Part<R>>,
}

/// Changes of some shards.
struct Part<R> {
    chunks: Vec<Vec<(R, isize)>>,
    /// What is added to sums, of which some have very many changes.
    sums: BTreeMap<R, isize>,
}

impl<R> Default for Changes<R> {
    fn default() -> Self {
        Changes { few: Vec::new(), parts: Vec::new() }
    }
}

impl<R: Keyed> Part<R> {
    fn push(&mut self, row: R, diff: isize) {
        if row.is_sum() {
            *self.sums.entry(row).or_default() += diff;
            return;
        }
        match self.chunks.last_mut().filter(|chunk| chunk.len() < CHUNK) {
            Some(chunk) => chunk.push((row, diff)),
            None => {
                let mut chunk = Vec::with_capacity(CHUNK);
                chunk.push((row, diff));
                self.chunks.push(chunk);
            }
        }
    }

    fn len(&self) -> usize {
        self.sums.len() + self.chunks.iter().map(Vec::len).sum::<usize>()
    }

    fn into_changes(self) -> impl Iterator<Item = Change<R>> {
        self.sums.into_iter().chain(self.chunks.into_iter().flatten()).map(|(row, diff)| (row.shard(), row, diff))
    }
}

impl<R: Keyed> Changes<R> {
    fn push(&mut self, change: Change<R>) {
        self.few.push(change);
        if self.few.len() == MANY {
            self.scatter();
        }
    }

    /// Moves the few to the others.
    fn scatter(&mut self) {
        if self.parts.is_empty() {
            self.parts.resize_with(PARTS, || Part { chunks: Vec::new(), sums: BTreeMap::new() });
        }
        for (shard, row, diff) in self.few.drain(..) {
            let Some(part) = self.parts.get_mut(usize::from(shard) / PART) else { continue };
            part.push(row, diff);
        }
    }

    /// The changes by sets of shards, as bits; every shard is in one set.
    fn sets(mut self) -> impl Iterator<Item = (u64, Vec<Change<R>>)> {
        self.scatter();
        let shards = (0..PARTS).map(|part| ((1_u64 << PART) - 1) << (part * PART));
        let mut parts = self.parts.into_iter().zip(shards).peekable();
        std::iter::from_fn(move || {
            let (mut set, mut together, mut len) = (0, Vec::new(), 0);
            while let Some((part, shards)) = parts.next_if(|_| len < TOGETHER) {
                set |= shards;
                len += part.len();
                together.push(part);
            }
            let mut changes = Vec::with_capacity(len);
            together.into_iter().for_each(|part| changes.extend(part.into_changes()));
            (set != 0).then_some((set, changes))
        })
    }
}

/// What a sink of rows has received and not applied.
struct Waiting<R> {
    name: &'static str,
    store: Arc<dyn RowSink<R>>,
    supervisor: Arc<Supervisor>,
    /// The shards of this worker.
    shards: u64,
    /// Changes at or before these are not needed, by shard.
    reached: [Option<Time>; SHARDS],
    /// The state at this position is loaded in slices at smaller times.
    load: Position,
    changes: BTreeMap<Time, Changes<R>>,
    ticks: BTreeMap<Time, Tick>,
    /// The newest tick that was applied.
    newest: Position,
}

/// Applies `rows` to `store`; gives on each tick once its time is applied. The first `owners` of the workers have the shards.
pub(crate) fn row_sink<'scope, R: Keyed + ExchangeData + Send>(
    name: &'static str,
    rows: Rows<'scope, R>,
    ticks: StreamVec<'scope, Time, Tick>,
    store: Arc<dyn RowSink<R>>,
    owners: usize,
    load: Position,
    supervisor: Arc<Supervisor>,
) -> StreamVec<'scope, Time, Tick> {
    let scope = ticks.scope();
    let mut builder = OperatorBuilder::new(name.to_owned(), scope);
    let by_shard = Exchange::new(move |(row, _, _): &(R, Time, isize)| route(row.shard()) % owners as u64);
    let mut rows = builder.new_input(rows.inner, by_shard);
    let mut ticks = builder.new_input(ticks, Pipeline);
    let (output, applied) = builder.new_output();
    let mut output = OutputBuilder::<_, CapacityContainerBuilder<Vec<Tick>>>::from(output);
    let shards = shards_of(scope.index(), owners);
    builder.build(move |initial| {
        drop(initial);
        let mut waiting = Waiting::new(name, store, supervisor, shards, load);
        let mut held = Held::default();
        move |frontiers| {
            rows.for_each(|capability, rows| {
                if waiting.receive(rows) {
                    held.keep(*capability.time(), || capability.retain(0));
                }
            });
            ticks.for_each(|capability, ticks| {
                waiting.ticks.extend(ticks.drain(..).map(|tick| (tick.position.time, tick)));
                held.keep(*capability.time(), || capability.retain(0));
            });
            let Some(open) = open_from(frontiers) else { return };
            let Ok(done) = waiting.apply_before(open) else { return };
            if let Some(capability) = held.0.as_ref().filter(|_| !done.is_empty()) {
                output.activate().session(capability).give_iterator(done.into_iter());
            }
            held.release(waiting.first());
        }
    });
    applied
}

/// The store refused a time, and the workers are told to end; or they were told to before.
struct Refused;

impl<R: Keyed + Send> Waiting<R> {
    fn new(
        name: &'static str,
        store: Arc<dyn RowSink<R>>,
        supervisor: Arc<Supervisor>,
        shards: u64,
        load: Position,
    ) -> Self {
        let mut reached = [None; SHARDS];
        for (reached, position) in reached.iter_mut().zip(store.progress()) {
            *reached = position.map(|position| position.time);
        }
        let (changes, ticks) = (BTreeMap::new(), BTreeMap::new());
        Waiting { name, store, supervisor, shards, reached, load, changes, ticks, newest: Position::default() }
    }

    /// Takes in changes; `false` if none is needed.
    fn receive(&mut self, rows: &mut Vec<(R, Time, isize)>) -> bool {
        let reached = &self.reached;
        rows.retain(|(row, time, _)| {
            reached.get(usize::from(row.shard())).copied().flatten().is_none_or(|reached| reached < *time)
        });
        let mut rows = rows.drain(..).peekable();
        let any = rows.peek().is_some();
        while let Some(&(_, time, _)) = rows.peek() {
            let changes = self.changes.entry(time).or_default();
            while let Some((row, _, diff)) = rows.next_if(|(_, other, _)| *other == time) {
                changes.push((row.shard(), row, diff));
            }
        }
        any
    }

    /// The first time that waits.
    fn first(&self) -> Option<Time> {
        self.changes.keys().next().into_iter().chain(self.ticks.keys().next()).copied().min()
    }

    /// Applies every time before `open`, in order, and returns their ticks.
    fn apply_before(&mut self, open: Time) -> Result<Vec<Tick>, Refused> {
        let mut done = Vec::new();
        let mut last = None;
        while let Some(time) = self.first().filter(|time| *time < open) {
            if let Some(tick) = self.ticks.remove(&time) {
                self.newest = tick.position;
                done.push(tick);
            }
            if let Some(changes) = self.changes.remove(&time) {
                let loading = time < self.load.time;
                let lsn = if loading { self.load.lsn } else { self.newest.lsn };
                self.apply(Position { time, lsn }, loading, changes)?;
                last = Some(time);
            }
        }
        // A time without changes moves the progress, unless a later one has.
        if let Some(tick) = done.last().filter(|tick| last.is_none_or(|last| last < tick.position.time)) {
            self.apply(tick.position, false, Changes::default())?;
        }
        Ok(done)
    }

    fn apply(&mut self, position: Position, loading: bool, changes: Changes<R>) -> Result<(), Refused> {
        if changes.parts.is_empty() {
            return self.apply_set(position, loading, u64::MAX, operations(changes.few));
        }
        // The thread ends when nobody receives any more: the store has refused.
        let (sender, sorted) = mpsc::sync_channel(0);
        thread::scope(|scope| {
            let sorting = scope.spawn(move || {
                let mut sets = changes.sets().map(|(set, changes)| (set, operations(changes)));
                let _ = sets.try_for_each(|set| sender.send(set));
            });
            sorted.into_iter().try_for_each(|(set, sorted)| self.apply_set(position, loading, set, sorted))?;
            sorting.join().unwrap_or_else(|panic| resume_unwind(panic));
            Ok(())
        })
    }

    fn apply_set(&self, position: Position, loading: bool, set: u64, sorted: Sorted<R>) -> Result<(), Refused> {
        let (ops, anomalies) = sorted;
        self.supervisor.anomaly(self.name, position.time, anomalies);
        let shards = self.shards & set;
        if shards == 0 || (loading && ops.is_empty()) {
            return Ok(());
        }
        // Sets that are not applied come again: progress is one of each shard.
        if self.supervisor.stopping() {
            return Err(Refused);
        }
        self.store.apply(&Closed { position, shards, loading, ops }).map_err(|error| {
            self.supervisor.refused(error);
            Refused
        })
    }
}

/// Operations, and how many keys had a multiplicity that cannot be.
type Sorted<R> = (Vec<(Shard, Op<R>)>, u64);

/// One operation a key, ordered by shard.
fn operations<R: Keyed>(mut changes: Vec<Change<R>>) -> Sorted<R> {
    changes
        .sort_unstable_by(|(one_shard, one, _), (other_shard, other, _)| (one_shard, one).cmp(&(other_shard, other)));
    // Equal rows become one, with the sum of their differences.
    changes.dedup_by(|(_, row, diff), (_, kept, sum)| {
        let same = row == kept;
        if same {
            *sum += *diff;
        }
        same
    });
    changes.retain(|(_, _, diff)| *diff != 0);
    let mut anomalies = 0;
    let mut ops: Vec<(Shard, Op<R>)> = Vec::with_capacity(changes.len());
    for (shard, row, diff) in changes {
        if row.is_sum() {
            ops.push((shard, Op::Add(row, diff as i64)));
            continue;
        }
        anomalies += u64::from(diff.abs() > 1);
        // Rows of one key are neighbours: a put stands against deletes, whichever comes first.
        let same_key = ops.last_mut().map(|(_, op)| op).filter(|op| match op {
            Op::Put(other) | Op::Delete(other) => other.same_key(&row),
            Op::Add(..) => false,
        });
        match same_key {
            None if diff > 0 => ops.push((shard, Op::Put(row))),
            None => ops.push((shard, Op::Delete(row))),
            Some(op @ Op::Delete(_)) if diff > 0 => *op = Op::Put(row),
            Some(Op::Put(_)) if diff < 0 => {}
            Some(op) => {
                anomalies += 1;
                *op = if diff > 0 { Op::Put(row) } else { Op::Delete(row) };
            }
        }
    }
    (ops, anomalies)
}

#[cfg(test)]
mod tests {
    use feedmill_model::{Counter, Fact, ViewRow};

    use super::*;

    fn of<R: Keyed>(changes: impl IntoIterator<Item = (R, isize)>) -> (Vec<Op<R>>, u64) {
        let (ops, anomalies) = operations(changes.into_iter().map(|(row, diff)| (row.shard(), row, diff)).collect());
        assert!(ops.is_sorted_by_key(|(shard, _)| *shard));
        (ops.into_iter().map(|(_, op)| op).collect(), anomalies)
    }

    fn follow(accepted: bool) -> Fact {
        Fact::Follow { follower: 1, following: 2, accepted }
    }

    #[test]
    fn a_key_has_one_operation_and_put_wins() {
        for (old, new) in [(false, true), (true, false)] {
            assert_eq!(of([(follow(old), -1), (follow(new), 1)]), (vec![Op::Put(follow(new))], 0));
        }
        assert_eq!(of([(follow(true), -1), (follow(true), 1)]), (vec![], 0));
        assert_eq!(
            of([(follow(true), -1), (follow(true), 1), (follow(true), -1)]),
            (vec![Op::Delete(follow(true))], 0)
        );
        let block = Fact::Block { blocker: 1, blocked: 2 };
        assert_eq!(of([(block, 1), (follow(true), -1)]), (vec![Op::Delete(follow(true)), Op::Put(block)], 0));
    }

    #[test]
    fn many_changes_come_by_sets_of_all_shards() {
        const ROWS: i64 = 3 * TOGETHER as i64;
        let mut changes = Changes::default();
        for id in 0..ROWS {
            let row = Fact::Protected(id);
            changes.push((row.shard(), row, 1));
        }
        let (mut shards, mut sets, mut ids) = (0, 0, Vec::new());
        for (set, changes) in changes.sets() {
            assert_eq!(shards & set, 0);
            (shards, sets) = (shards | set, sets + 1);
            for (shard, row, _) in changes {
                assert_ne!(set & (1 << shard), 0);
                let Fact::Protected(id) = row else { unreachable!() };
                ids.push(id);
            }
        }
        ids.sort_unstable();
        assert!(sets > 2 && shards == u64::MAX && ids.into_iter().eq(0..ROWS));
    }

    #[test]
    fn sets_without_changes_come_too() {
        let first = (0..).map(Fact::Protected).filter(|row| row.shard() == 0);
        let mut changes = Changes::default();
        first.take(TOGETHER).for_each(|row| changes.push((0, row, 1)));
        let sets: Vec<_> = changes.sets().map(|(set, changes)| (set, changes.len())).collect();
        let of_the_first = (1 << PART) - 1;
        assert_eq!(sets, [(of_the_first, TOGETHER), (!of_the_first, 0)]);
    }

    #[test]
    fn many_changes_of_sums_are_added_up_as_they_come() {
        let count = |of| ViewRow::Count { counter: Counter::Likes, of };
        let mut changes = Changes::default();
        (0..3 * MANY as i64).for_each(|n| changes.push((count(n % 7).shard(), count(n % 7), 1 + n as isize % 2)));
        let sums = changes.sets().flat_map(|(_, changes)| changes).map(|(_, row, sum)| (row, sum));
        let added_up = |of| (0..3 * MANY as i64).filter(|n| n % 7 == of).map(|n| 1 + n as isize % 2).sum();
        assert!(sums.collect::<BTreeMap<_, _>>().into_iter().eq((0..7).map(|of| (count(of), added_up(of)))));
    }

    #[test]
    fn counts_are_added_up() {
        let count = ViewRow::Count { counter: Counter::Likes, of: 7 };
        let changes = [(count.clone(), 1), (count.clone(), 1), (count.clone(), -5)];
        assert_eq!(of(changes), (vec![Op::Add(count.clone(), -3)], 0));
        assert_eq!(of([(count.clone(), 1), (count, -1)]), (vec![], 0));
    }

    #[test]
    fn what_cannot_be_is_counted_and_does_not_panic() {
        assert_eq!(of([(follow(true), 2)]), (vec![Op::Put(follow(true))], 1));
        assert_eq!(of([(follow(true), -2)]), (vec![Op::Delete(follow(true))], 1));
        let (ops, anomalies) = of([(follow(true), 1), (follow(false), 1)]);
        assert!(matches!(&ops[..], [Op::Put(_)]) && anomalies == 1);
    }
}
