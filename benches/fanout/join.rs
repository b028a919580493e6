//! The library's own loop: posts joined with follows, and nothing done with the result but counting it.

use std::cell::Cell;
use std::rc::Rc;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use anyhow::Context;
use differential_dataflow::input::InputSession;
use timely::container::CapacityContainerBuilder;
use timely::dataflow::ProbeHandle;
use timely::dataflow::StreamVec;
use timely::dataflow::channels::pact::{Exchange, Pipeline};
use timely::dataflow::operators::{Operator, Probe};

use crate::{Args, Figures};

/// Batches that may be under way at a time.
const IN_FLIGHT: u64 = 8;
/// Users whose follows are loaded at one time.
const SLICE: i64 = 5_000;

type Delivery = ((i64, i64), u64, isize);
type Counted = CapacityContainerBuilder<Vec<()>>;

pub fn run(args: &Args, exchanged: bool) -> anyhow::Result<Figures> {
    let figures = Arc::new(Mutex::new(Figures::default()));
    let (results, settings) = (Arc::clone(&figures), args.clone());
    let guards = timely::execute(timely::Config::process(args.workers), move |worker| {
        let args = &settings;
        let (index, peers) = (worker.index() as i64, worker.peers() as i64);
        let probe = ProbeHandle::new();
        let mut follows = InputSession::<u64, (i64, i64), isize>::new();
        let mut posts = InputSession::<u64, (i64, i64), isize>::new();
        let counted = Rc::new(Cell::new(0));
        let counter = Rc::clone(&counted);
        worker.dataflow(|scope| {
            let follows = follows.to_collection(scope).arrange_by_key();
            let posts = posts.to_collection(scope).arrange_by_key();
            let joined = posts.join_core(follows, |_author, id, viewer| Some((*viewer, *id))).inner;
            count(joined, counter, exchanged).probe_with(&probe);
        });
        let mut time = 0;
        for slice in 0..(args.users / SLICE).max(1) {
            for user in (slice * SLICE..(slice + 1) * SLICE).filter(|user| user % peers == index) {
                for n in 0..args.follows {
                    follows.update((args.followed(user, n), user), 1);
                }
            }
            time += 1;
            follows.advance_to(time);
            posts.advance_to(time);
            follows.flush();
            posts.flush();
            worker.step_while(|| probe.less_than(&time));
        }
        // The follows never change again, and may settle.
        let started = Instant::now();
        for batch in 0..args.batches {
            let numbers = batch as i64 * args.posts..(batch as i64 + 1) * args.posts;
            for number in numbers.filter(|number| number % peers == index) {
                posts.update((args.author(number), number), 1);
            }
            time += 1;
            follows.advance_to(time);
            posts.advance_to(time);
            follows.flush();
            posts.flush();
            worker.step_while(|| probe.less_than(&time.saturating_sub(IN_FLIGHT)));
        }
        worker.step_while(|| probe.less_than(&time));
        let took = started.elapsed();
        if let Ok(mut figures) = results.lock() {
            figures.deliveries += counted.get();
            figures.took = figures.took.max(took);
        }
    });
    let guards = guards.map_err(anyhow::Error::msg)?;
    for guard in guards.join() {
        guard.map_err(anyhow::Error::msg)?;
    }
    Arc::into_inner(figures).and_then(|figures| figures.into_inner().ok()).context("a worker still runs")
}

/// Counts deliveries, where they are or on the worker of their viewer.
fn count(joined: StreamVec<'_, u64, Delivery>, counter: Rc<Cell<u64>>, exchanged: bool) -> StreamVec<'_, u64, ()> {
    if exchanged {
        let pact = Exchange::new(|((viewer, _), _, _): &Delivery| *viewer as u64);
        joined.unary::<Counted, _, _, _>(pact, "Count", |_, _| {
            move |input, _output| {
                input.for_each(|_, data| counter.set(counter.get() + data.len() as u64));
            }
        })
    } else {
        joined.unary::<Counted, _, _, _>(Pipeline, "Count", |_, _| {
            move |input, _output| {
                input.for_each(|_, data| counter.set(counter.get() + data.len() as u64));
            }
        })
    }
}
