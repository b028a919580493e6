//! Runs one job over a history, for the tests of operators.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};

use differential_dataflow::Data;
use differential_dataflow::input::InputSession;
use feedmill_model::Time;
use timely::dataflow::operators::probe::Handle as ProbeHandle;

use crate::collection::Rows;

/// Changes of a collection by time.
pub(crate) type History<D> = BTreeMap<Time, Vec<(D, isize)>>;

/// What `job` makes of `history` up to and including the time `end`, summed by time and row. The frontier goes to each
/// time of the history, and then at once to the end.
pub(crate) fn run<D, E>(
    workers: usize,
    history: &History<D>,
    end: Time,
    job: impl for<'scope> Fn(Rows<'scope, D>) -> Rows<'scope, E> + Send + Sync + 'static,
) -> BTreeMap<(Time, E), isize>
where
    D: Data + Send + Sync,
    E: Data + Send,
{
    let (history, emitted) = (history.clone(), Arc::new(Mutex::new(Vec::new())));
    let sink = Arc::clone(&emitted);
    let workers = timely::execute(timely::Config::process(workers), move |worker| {
        let (mut input, probe, sink) = (InputSession::new(), ProbeHandle::new(), Arc::clone(&sink));
        worker.dataflow(|scope| {
            let rows = job(input.to_collection(scope));
            rows.inspect(move |(row, time, diff)| sink.lock().unwrap().push((*time, row.clone(), *diff)))
                .probe_with(&probe);
        });
        let (index, peers) = (worker.index(), worker.peers());
        for (time, changes) in &history {
            for (row, diff) in changes.iter().skip(index).step_by(peers) {
                input.update_at(row.clone(), *time, *diff);
            }
            input.advance_to(time + 1);
            input.flush();
            worker.step_or_park_while(None, || probe.less_equal(time));
        }
        input.advance_to(end + 1);
        input.flush();
        worker.step_or_park_while(None, || probe.less_equal(&end));
    });
    for worker in workers.expect("workers start").join() {
        worker.expect("no worker panics");
    }
    let mut sums = BTreeMap::new();
    for (time, row, diff) in emitted.lock().unwrap().drain(..).filter(|(time, ..)| *time <= end) {
        *sums.entry((time, row)).or_default() += diff;
    }
    sums.retain(|_, diff| *diff != 0);
    sums
}

/// The differences between what `rows` says is there at each time from 0 through `end`.
pub(crate) fn changes_of<E: Data>(end: Time, rows: impl Fn(Time) -> BTreeMap<E, isize>) -> BTreeMap<(Time, E), isize> {
    let (mut changes, mut before) = (BTreeMap::new(), BTreeMap::new());
    for time in 0..=end {
        let now = rows(time);
        for (row, diff) in &now {
            *changes.entry((time, row.clone())).or_default() += diff;
        }
        for (row, diff) in before {
            *changes.entry((time, row)).or_default() -= diff;
        }
        before = now;
    }
    changes.retain(|_, diff| *diff != 0);
    changes
}
