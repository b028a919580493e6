//! Makes rows leave at a time of their own, and come no earlier than so long before.
//!
//! ```text
//!   (until, row) at t ─┬─────────────────────────────► row at t
//!                      └─► bucket(until) ─ frontier ─► −row at until
//!
//!   of t < until − stay ─► bucket(until − stay) ─ frontier ─► row at until − stay, and to bucket(until)
//! ```
//!
//! The output at time `t` is the input at `t` restricted to rows with `until − stay ≤ t < until`. What must be retracted later waits
//! in buckets here, and never as a future time in an arrangement: there, every seal would walk all that is pending.
//!
//! Why it is correct: a row's `until` is a function of the row, so an insert and its delete see the same one. A change
//! at or after `until` is dropped, and so is, later, whatever undoes it. A change of multiplicity `d` before `until` is
//! passed on at once and undone by `−d` in the bucket; when the input can no longer change before `until`, the bucket
//! is the negation of the row's multiplicity, and is emitted at exactly `until`. A change before `until − stay` is passed
//! on at that time, by a bucket likewise. The operator holds one capability, for
//! the earliest bucket, so nothing downstream passes that time before it is emitted; times before it are not held up.

use std::collections::BTreeMap;

use differential_dataflow::{AsCollection, ExchangeData};
use feedmill_model::{Time, shard_of};
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;

use crate::collection::Rows;

/// Rows that leave at one time, or that come. A delete of a row that waits here is kept beside it until there are enough to be worth
/// a sort: inserts are the rule, so a row costs no more than itself.
struct Bucket<D> {
    rows: Vec<D>,
    cancelled: Vec<D>,
}

impl<D> Default for Bucket<D> {
    fn default() -> Self {
        Bucket { rows: Vec::new(), cancelled: Vec::new() }
    }
}

/// What happens at one time.
struct Turn<D> {
    coming: Bucket<D>,
    leaving: Bucket<D>,
}

impl<D> Default for Turn<D> {
    fn default() -> Self {
        Turn { coming: Bucket::default(), leaving: Bucket::default() }
    }
}

impl<D: Ord> Bucket<D> {
    fn change(&mut self, row: &D, diff: isize)
    where
        D: Clone,
    {
        let rows = if diff > 0 { &mut self.rows } else { &mut self.cancelled };
        rows.extend(std::iter::repeat_n(row, diff.unsigned_abs()).cloned());
        if self.cancelled.len() > 64 && self.cancelled.len() > self.rows.len() / 2 {
            self.settle();
        }
    }

    /// Takes out of both lists what is in both, and sorts them.
    fn settle(&mut self) {
        self.rows.sort_unstable();
        self.cancelled.sort_unstable();
        let mut cancelled = std::mem::take(&mut self.cancelled).into_iter().peekable();
        let mut left_over = Vec::new();
        self.rows.retain(|row| {
            while let Some(first) = cancelled.next_if(|first| first < row) {
                left_over.push(first);
            }
            cancelled.next_if_eq(row).is_none()
        });
        left_over.extend(cancelled);
        self.cancelled = left_over;
    }

    /// What is left of it.
    fn settled(mut self) -> impl Iterator<Item = (D, isize)> {
        self.settle();
        self.rows.into_iter().map(|row| (row, 1)).chain(self.cancelled.into_iter().map(|row| (row, -1)))
    }
}

/// `rows` without each from its `until` on and earlier than `stay` before that, and without those whose `until` is at or
/// before `start`.
///
/// `owner` says which user or tweet a row belongs to: it waits on the worker of that shard. A row that is inserted and
/// deleted waits in the same bucket, whichever worker took it in.
pub(crate) fn expire<'scope, D: ExchangeData>(
    rows: Rows<'scope, (Time, D)>,
    stay: Time,
    start: Time,
    name: &str,
    owner: fn(&D) -> i64,
) -> Rows<'scope, D> {
    // When something happens to a row next that changes at `time`, and whether that is that it comes.
    let next = move |until: Time, time: Time| {
        let comes = until.saturating_sub(stay);
        if comes > time.max(start) { (comes, true) } else { (until, false) }
    };
    let exchange = Exchange::new(move |((_, row), _, _): &((Time, D), Time, isize)| u64::from(shard_of(owner(row))));
    // What has left already is not sent to another worker first.
    rows.filter(move |(until, _)| *until > start)
        .inner
        .unary_frontier(exchange, name, move |initial, _info| {
            drop(initial);
            let mut buckets = BTreeMap::<Time, Turn<D>>::new();
            let mut earliest: Option<Capability<Time>> = None;
            move |(input, frontier), output| {
                input.for_each(|capability, changes| {
                    changes.retain(|((until, _), time, _)| *until > start.max(*time));
                    let least = changes.iter().map(|((until, _), time, _)| next(*until, *time).0).min();
                    let Some(least) = least else { return };
                    if earliest.as_ref().is_none_or(|earliest| least < *earliest.time()) {
                        earliest = Some(capability.delayed(&least, 0));
                    }
                    let mut session = output.session(&capability);
                    for ((until, row), time, diff) in changes.drain(..) {
                        let (turn, comes) = next(until, time);
                        let turn = buckets.entry(turn).or_default();
                        if comes {
                            turn.coming.change(&row, diff);
                        } else {
                            turn.leaving.change(&row, diff);
                            session.give((row, time, diff));
                        }
                    }
                });
                let Some(&reached) = frontier.frontier().first() else {
                    // The input has ended: no time will come at which anything could leave.
                    buckets.clear();
                    earliest = None;
                    return;
                };
                while let Some(turn) = buckets.first_entry().filter(|turn| *turn.key() <= reached) {
                    let (time, Turn { coming, leaving }) = turn.remove_entry();
                    let Some(held) = &mut earliest else { return };
                    held.downgrade(&time);
                    let mut session = output.session(&*held);
                    session.give_iterator(leaving.settled().map(|(row, diff)| (row, time, -diff)));
                    for (row, diff) in coming.settled() {
                        buckets.entry(time.saturating_add(stay)).or_default().leaving.change(&row, diff);
                        session.give((row, time, diff));
                    }
                }
                match (buckets.keys().next(), &mut earliest) {
                    (Some(next), Some(held)) => held.downgrade(next),
                    _ => earliest = None,
                }
            }
        })
        .as_collection()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{History, changes_of, run};

    const START: Time = 2;
    const END: Time = 40;
    const STAY: Time = 12;

    fn expired(workers: usize, history: &History<(Time, i64)>) -> BTreeMap<(Time, i64), isize> {
        run(workers, history, END, |rows| expire(rows, STAY, START, "Expire", |row| *row))
    }

    /// Rows that were inserted and not yet deleted, that are to come by now, and whose time to leave has not come.
    fn naive(history: &History<(Time, i64)>) -> BTreeMap<(Time, i64), isize> {
        changes_of(END, |time| {
            let mut rows = BTreeMap::new();
            for ((until, row), diff) in history.range(..=time).flat_map(|(_, changes)| changes) {
                let now = time.max(START);
                if *until > now && until.saturating_sub(STAY) <= now {
                    *rows.entry(*row).or_default() += diff;
                }
            }
            rows
        })
    }

    #[test]
    fn a_row_leaves_at_its_time_and_a_delete_comes_before() {
        let history = History::from([
            (3, vec![((10, 1), 1), ((10, 2), 1), ((3, 3), 1), ((2, 4), 1)]),
            (5, vec![((10, 2), -1)]),
            (12, vec![((10, 1), -1), ((3, 3), -1)]),
        ]);
        for workers in 1..=4 {
            let changes: Vec<_> = expired(workers, &history).into_iter().collect();
            assert_eq!(changes, [((3, 1), 1), ((3, 2), 1), ((5, 2), -1), ((10, 1), -1)]);
        }
    }

    #[test]
    fn a_row_comes_no_earlier_than_it_may_stay_and_not_if_it_was_deleted_before() {
        let history = History::from([
            (3, vec![((20, 1), 1), ((20, 2), 1), ((60, 3), 1)]),
            (5, vec![((20, 2), -1)]),
            (9, vec![((20, 4), 1)]),
            (12, vec![((20, 4), -1)]),
        ]);
        for workers in 1..=4 {
            let changes: Vec<_> = expired(workers, &history).into_iter().collect();
            assert_eq!(changes, [((8, 1), 1), ((9, 4), 1), ((12, 4), -1), ((20, 1), -1)]);
        }
    }

    #[test]
    fn many_deletes_are_settled_with_what_they_delete() {
        let mut bucket = Bucket::default();
        (0..1_000_i64).for_each(|row| bucket.change(&row, 1));
        (0..1_000_i64).filter(|row| row % 3 != 0).for_each(|row| bucket.change(&row, -1));
        assert!(bucket.rows.len() + bucket.cancelled.len() < 700, "deletes are kept");
        assert!(bucket.settled().eq((0..1_000).step_by(3).map(|row| (row, 1))));
    }

    proptest! {
        #[test]
        fn equals_the_oracle_on_any_number_of_workers(
            changes in prop::collection::vec((0..30_u64, 0..45_u64, 0..4_i64, prop::bool::weighted(0.7)), 0..40),
            workers in 1..=4_usize,
        ) {
            let mut history = History::new();
            for (time, until, row, inserted) in changes {
                let diff = if inserted { 1 } else { -1 };
                history.entry(time).or_insert_with(Vec::new).push(((until, row), diff));
            }
            prop_assert_eq!(expired(workers, &history), naive(&history));
        }
    }
}
