//! Hands the changes of closed times to a function that has a state: what a job of ours is made of where joins and counts
//! would keep more than it needs.
//!
//! ```text
//!   changes of any time ─► pending ── frontier ─► those of one time ─► function ─► changes at that time
//! ```
//!
//! Why it is correct: a time is handed over once no more of it can come, after all earlier ones, and with all that this
//! worker owns of it; so what the function gives is a function of the collection at that time and at the one before. The
//! operator holds a capability for the earliest time that is pending, so nothing downstream passes it before.

use differential_dataflow::{AsCollection, Data, ExchangeData};
use feedmill_model::Time;
use timely::dataflow::channels::pact::Exchange;
use timely::dataflow::operators::Capability;
use timely::dataflow::operators::generic::Operator;

use crate::collection::Rows;

/// What the function gives: a row, and how often it comes or goes.
pub(crate) type Emit<'a, E> = dyn FnMut(E, isize) + 'a;

/// Calls `change` once for each closed time that has changes, with the time: in the order of rows, equal rows summed, none of them zero.
/// A row goes to the worker that owns `route` of it.
pub(crate) fn each_time<'scope, D: ExchangeData, E: Data>(
    rows: Rows<'scope, D>,
    name: &str,
    route: impl Fn(&D) -> u64 + 'static,
    mut change: impl FnMut(Time, &[(D, isize)], &mut Emit<'_, E>) + 'static,
) -> Rows<'scope, E> {
    let exchange = Exchange::new(move |(row, _, _): &(D, Time, isize)| route(row));
    rows.inner
        .unary_frontier(exchange, name, move |initial, _info| {
            drop(initial);
            let mut pending = Vec::<(D, Time, isize)>::new();
            let mut earliest: Option<Capability<Time>> = None;
            move |(input, frontier), output| {
                input.for_each(|capability, changes| {
                    if earliest.as_ref().is_none_or(|earliest| capability.time() < earliest.time()) {
                        earliest = Some(capability.retain(0));
                    }
                    pending.append(changes);
                });
                let open = |time: &Time| frontier.less_equal(time);
                let Some(held) = earliest.as_mut().filter(|held| !open(held.time())) else { return };
                pending.sort_unstable_by(|(one, t, _), (other, u, _)| (t, one).cmp(&(u, other)));
                let closed = pending.partition_point(|(_, time, _)| !open(time));
                let mut session = output.session(&*held);
                let mut summed = Vec::<(D, isize)>::new();
                let mut of_closed = pending.drain(..closed).peekable();
                while let Some((row, time, diff)) = of_closed.next() {
                    summed.push((row, diff));
                    while let Some((row, _, diff)) = of_closed.next_if(|(_, next, _)| *next == time) {
                        match summed.last_mut().filter(|(last, _)| *last == row) {
                            Some((_, sum)) => *sum += diff,
                            None => summed.push((row, diff)),
                        }
                    }
                    summed.retain(|(_, diff)| *diff != 0);
                    if !summed.is_empty() {
                        change(time, &summed, &mut |row, diff| session.give((row, time, diff)));
                    }
                    summed.clear();
                }
                drop(of_closed);
                drop(session);
                // What comes next is likely to be as much.
                pending.shrink_to(2 * closed.max(pending.len()) + 1024);
                match pending.first() {
                    Some((_, next, _)) => held.downgrade(next),
                    None => earliest = None,
                }
            }
        })
        .as_collection()
}
