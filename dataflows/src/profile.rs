//! Where the workers' time goes: how long each part of the dataflow has run.
//!
//! Timely says when an operator starts and stops. Only the parts that the dataflow itself is made of are counted: a job in
//! a region of its own is one, with all operators in it.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use timely::logging::{StartStop, TimelyEvent, TimelyEventBuilder};
use timely::worker::Worker;

/// How long the parts of the dataflow have run, over all workers; to be given to the runtime, and read at any time.
#[derive(Clone, Debug, Default)]
pub struct Profile(Arc<Mutex<BTreeMap<String, Duration>>>);

impl Profile {
    /// Part by part, parts of the same name together.
    pub fn elapsed(&self) -> BTreeMap<String, Duration> {
        self.0.lock().clone()
    }

    /// Listens to a worker, whose dataflow is not built yet.
    pub(crate) fn listen(&self, worker: &Worker) {
        let (total, mut names, mut began) = (Arc::clone(&self.0), HashMap::new(), HashMap::new());
        let Some(mut register) = worker.log_register() else { return };
        register.insert::<TimelyEventBuilder, _>("timely", move |_, events| {
            for (at, event) in events.iter().flat_map(|events| events.iter()) {
                match event {
                    // The dataflow, and what it is made of.
                    TimelyEvent::Operates(operator) if operator.addr.len() == 2 => {
                        names.insert(operator.id, operator.name.clone());
                    }
                    TimelyEvent::Schedule(scheduled) => match scheduled.start_stop {
                        StartStop::Start => drop(began.insert(scheduled.id, *at)),
                        StartStop::Stop => {
                            let name = names.get(&scheduled.id);
                            if let Some((name, began)) = name.zip(began.remove(&scheduled.id)) {
                                *total.lock().entry(name.clone()).or_default() += at.saturating_sub(began);
                            }
                        }
                    },
                    _ => {}
                }
            }
        });
    }
}
