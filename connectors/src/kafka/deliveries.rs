//! What the library tells of records that were handed to it.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use parking_lot::{Condvar, Mutex, MutexGuard};
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::message::Message;
use rdkafka::producer::{DeliveryResult, ProducerContext};

use super::block::Tag;
use super::client::Said;

/// Where the records of a transaction are.
#[derive(Debug, Default)]
pub(super) struct Deliveries {
    pub said: Said,
    state: Mutex<State>,
    /// Told when as much is delivered as is waited for, or something failed.
    changed: Condvar,
}

#[derive(Debug, Default)]
struct State {
    failed: Option<Native>,
    /// How many records were delivered, or failed.
    told: u64,
    /// How many somebody waits for.
    awaited: Option<u64>,
    places: Places,
}

#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    pub last: i64,
    pub records: u64,
}

/// By tag and partition.
pub(super) type Places = BTreeMap<(Tag, i32), Place>;

impl Deliveries {
    /// Forgets what was delivered before.
    pub fn begin(&self) {
        *self.state.lock() = State::default();
    }

    /// What failed first.
    pub fn failed(&self) -> Option<Native> {
        self.state.lock().failed.clone()
    }

    /// Waits until so many records are delivered, or one has failed; `false` when not within `limit`.
    pub fn wait_for(&self, records: u64, limit: Duration) -> bool {
        self.wait(&mut self.state.lock(), records, limit)
    }

    /// Waits until another record is delivered, or `limit` has passed.
    pub fn wait_for_more(&self, limit: Duration) {
        let mut state = self.state.lock();
        let more = state.told + 1;
        self.wait(&mut state, more, limit);
    }

    fn wait(&self, state: &mut MutexGuard<'_, State>, records: u64, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        state.awaited = Some(records);
        let mut in_time = true;
        while in_time && state.failed.is_none() && state.told < records {
            in_time = !self.changed.wait_until(state, deadline).timed_out();
        }
        state.awaited = None;
        state.failed.is_none() && state.told >= records
    }

    /// Where the records are that were delivered.
    pub fn places(&self) -> Places {
        std::mem::take(&mut self.state.lock().places)
    }
}

impl ClientContext for Deliveries {
    fn log(&self, level: RDKafkaLogLevel, facility: &str, message: &str) {
        self.said.log(level, facility, message);
    }

    fn error(&self, error: Native, reason: &str) {
        self.said.error(error, reason);
    }
}

impl ProducerContext for Deliveries {
    type DeliveryOpaque = usize;

    fn delivery(&self, result: &DeliveryResult<'_>, tag: usize) {
        let tag = Tag::of(tag);
        let mut state = self.state.lock();
        match result {
            // The broker had it already, of an attempt whose answer was lost, and does not say where.
            Ok(message) if message.offset() < 0 => state.failed = Some(Native::MessageProduction(Code::Fail)),
            Ok(_) if tag == Tag::TIMES => {}
            Ok(message) => {
                let place = state.places.entry((tag, message.partition())).or_default();
                place.last = place.last.max(message.offset());
                place.records += 1;
            }
            Err((error, _)) => {
                // The first error says why; what follows was purged because of it.
                state.failed.get_or_insert_with(|| error.clone());
            }
        }
        state.told += 1;
        let is_awaited = state.awaited.is_some_and(|records| state.told >= records || state.failed.is_some());
        if is_awaited {
            self.changed.notify_all();
        }
    }
}
