//! Hands closed times to the stores, phase by phase.
//!
//! ```text
//!   ticks ─► facts sink ─ ticks ─► rows sink ─ ticks ─► home sink ─ ticks ─► probe
//!               ▲                     ▲                    ▲
//!             facts                  rows        deliveries, records
//! ```
//!
//! A tick a batch, on every worker, says where the batch stands in the source's log. The ticks go through the sinks one
//! after the other: a sink passes a tick on when it has applied its time, and until then holds a capability for it. So
//! the frontier of the ticks that a sink receives says which times *all* workers have applied in the phase before, and
//! a time is applied when neither that frontier nor the one of the changes can still reach it.
//!
//! What a sink receives waits by time. A time that no shard needs (it has reached it, see
//! [`RowSink::progress`](feedmill_model::RowSink::progress)) is dropped on arrival. A closed time without changes is
//! handed on only when it is the newest: it moves the shards' progress, and nothing else.

mod home;
mod rows;

use feedmill_model::{Position, SHARDS, Shard, Time};
use timely::dataflow::operators::Capability;
use timely::progress::Antichain;
use timely::progress::frontier::MutableAntichain;

pub(crate) use home::home_sink;
pub(crate) use rows::row_sink;

/// A batch as the sinks see it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Tick {
    /// The batch's time, and where it ends in the source's log.
    pub(crate) position: Position,
    /// All home timelines' floors rise to this id.
    pub(crate) floor: Option<i64>,
}

/// The capability of a sink: for the earliest time that it has received and not applied.
#[derive(Default)]
struct Held(Option<Capability<Time>>);

impl Held {
    /// Keeps the earlier of what it has and `other`.
    fn keep(&mut self, time: Time, other: impl FnOnce() -> Capability<Time>) {
        if self.0.as_ref().is_none_or(|held| time < *held.time()) {
            self.0 = Some(other());
        }
    }

    /// Everything before `next` is applied; `None` when nothing waits.
    fn release(&mut self, next: Option<Time>) {
        match (next, &mut self.0) {
            (Some(next), Some(held)) if *held.time() < next => held.downgrade(&next),
            (Some(_), _) => {}
            (None, held) => *held = None,
        }
    }
}

/// The first time that may still come on any of `frontiers`; `None` when they are all at their end.
fn open_from(frontiers: &[MutableAntichain<Time>]) -> Option<Time> {
    let mut open = Antichain::new();
    for frontier in frontiers {
        open.extend(frontier.frontier().iter().copied());
    }
    open.into_option()
}

/// The shards of worker `index`, of which the first `owners` workers have all, as a set of bits.
fn shards_of(index: usize, owners: usize) -> u64 {
    (0..SHARDS).filter(|shard| shard % owners == index).fold(0, |shards, shard| shards | 1 << shard)
}

/// The shards of all workers of a process, of so many processes with so many workers each, as a set of bits.
pub fn shards_of_process(process: usize, workers: usize, processes: usize) -> u64 {
    let own = process * workers..(process + 1) * workers;
    own.fold(0, |shards, worker| shards | shards_of(worker, workers * processes))
}

/// Where exchange sends what belongs to `shard`: timely takes it modulo the number of workers.
fn route(shard: Shard) -> u64 {
    u64::from(shard)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_shard_belongs_to_the_worker_that_exchange_sends_it_to() {
        for (peers, owners) in (1..=SHARDS).flat_map(|peers| (1..=peers).map(move |owners| (peers, owners))) {
            let all = (0..peers).map(|index| shards_of(index, owners));
            assert_eq!(all.clone().fold(0, |union, shards| union | shards), u64::MAX);
            assert_eq!(all.map(u64::count_ones).sum::<u32>(), u64::BITS);
            for shard in 0..SHARDS {
                // As timely's exchange does: a mask where it can, a remainder otherwise.
                let hash = route(shard as Shard) % owners as u64;
                let worker = if peers.is_power_of_two() { hash & (peers as u64 - 1) } else { hash % peers as u64 };
                assert_eq!(shards_of(worker as usize, owners) >> shard & 1, 1);
            }
        }
    }
}
