//! Publishes batches, one Kafka transaction after the other.
//!
//! ```text
//!   begin ─► records of the batches ─► all delivered: offsets are known ─► records of `times` ─► delivered ─► commit
//!                    │ anything fails: the producer is of no use any more
//!                    └─► Publisher::open again: take over the id, which ends the transaction; read `times`; go on there
//! ```
//!
//! Why a commit whose answer is lost does no harm: whoever takes over the transactional id waits until that commit has come
//! to its end, one way or the other, and only then is `times` read, as of what is committed.
//!
//! One transaction is under way at a time. Nothing waits longer than [`DELIVERY_MAX`] for brokers.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};
use std::time::{Duration, Instant};

use feedmill_model::{Change, Position, Relation, Row, SourceId, Time, failpoint};
use parking_lot::Mutex;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::message::Message;
use rdkafka::producer::{BaseProducer, BaseRecord, DeliveryResult, Producer, ProducerContext};
use serde_json::value::RawValue;

use super::client::{self, Said};
use super::envelope::{self, Of, Transaction, Written};
use super::error::{KafkaError, failed, is_fenced};
use super::times::{Times, TimesRecord, Touched};
use super::topics::{KafkaLog, RECORD_BYTES_MAX, TIMES_PARTITION, TopicOptions, Topics, check_empty};

/// How long brokers may take for what they were given, and to end a predecessor's transaction.
const DELIVERY_MAX: Duration = Duration::from_secs(30);
/// How long one attempt to begin or to commit may take before it is seen whether there is time for another.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How often deliveries are looked at while there is nothing else to do.
const POLL: Duration = Duration::from_millis(1);
/// After how many records deliveries are looked at.
const POLL_RECORDS: usize = 256;
/// What waits for brokers in memory, at most.
const QUEUE_KB: &str = "65536";
/// Tag of the records of `times`, whose places nobody asks for.
const TIMES: usize = usize::MAX;
/// Bits of a tag that are the number of the topic.
const TOPIC_BITS: u32 = 8;

/// What batches are of.
#[derive(Clone, Copy, Debug)]
pub struct Origin<'a> {
    /// The source.
    pub source: &'a SourceId,
    /// Since when its positions are of the present history.
    pub history: Time,
    /// The greatest id that an entry of it has had which a home timeline can hold.
    pub greatest_entry: i64,
    /// Name of the database.
    pub database: &'a str,
}

/// A batch, or a piece of one; or rows of the first state.
#[derive(Clone, Copy, Debug)]
pub struct Part<'a> {
    /// Of the batch.
    pub position: Position,
    /// Of the batch.
    pub floor: Option<i64>,
    /// What is in it.
    pub content: Content<'a>,
    /// Whether nothing more of this time comes.
    pub last: bool,
}

/// What is published.
#[derive(Clone, Copy, Debug)]
pub enum Content<'a> {
    /// Changes of a batch.
    Changes(&'a [Change]),
    /// Rows of the first state, which begins the log.
    Rows(&'a [Row]),
}

/// The one that may publish.
pub struct Publisher {
    producer: BaseProducer<Deliveries>,
    topics: Topics,
    servers: String,
    /// Where `times` ends.
    at: Option<TimesRecord>,
    /// How many changes of each relation were published of a batch that did not end yet.
    orders: Orders,
}

/// A number for each relation.
type Orders = [u64; Relation::ALL.len()];

impl Publisher {
    /// Takes over from whoever published before, which can do so no more. The topics must be there.
    pub fn open(log: &KafkaLog, options: &TopicOptions) -> Result<Self, KafkaError> {
        let topics = Topics::of(log);
        let servers = log.servers.to_string();
        let mut config = client::config(&log.servers);
        config.set("transactional.id", topics.transactional_id()).set("transaction.timeout.ms", "60000");
        config.set("compression.type", options.compression.codec()).set("partitioner", "murmur2_random");
        config.set("message.max.bytes", RECORD_BYTES_MAX).set("queue.buffering.max.kbytes", QUEUE_KB);
        // Each transaction waits for it twice; more gains nothing, since what comes while brokers are busy is sent together.
        config.set("linger.ms", "1");
        let producer = config.create_with_context(Deliveries::default());
        let producer: BaseProducer<Deliveries> =
            producer.map_err(|error| failed("make a client", &servers, None, error.to_string()))?;
        let mut publisher = Publisher { producer, topics, servers, at: None, orders: Orders::default() };
        publisher.again("take over the topics", |producer| producer.init_transactions(ATTEMPT))?;
        publisher.at = Times::of(log)?.last()?;
        if publisher.at.is_none() {
            check_empty(log)?;
        }
        Ok(publisher)
    }

    /// Where `times` ends; `None` if nothing was published.
    pub fn at(&self) -> Option<&TimesRecord> {
        self.at.as_ref()
    }

    /// These changes, the first ones of the batch of which [`Self::at`] is a part, were published by a predecessor.
    pub fn pass(&mut self, changes: &[Change]) {
        for relation in changes.iter().filter_map(relation_of) {
            count(&mut self.orders, relation);
        }
    }

    /// Publishes parts, in their order, as one Kafka transaction. They must follow [`Self::at`]. After an error this one is
    /// of no use any more: open another.
    pub fn publish(&mut self, origin: Origin<'_>, parts: &[Part<'_>]) -> Result<(), KafkaError> {
        failpoint!("publish_before");
        self.producer.begin_transaction().map_err(|error| self.failed("begin a transaction", &error))?;
        self.producer.context().begin();
        let mut closing: Vec<TimesRecord> = Vec::new();
        let mut orders = std::mem::take(&mut self.orders);
        for part in parts {
            let goes_on = closing.last().is_some_and(|record| record.time == part.position.time);
            if !goes_on {
                let next = self.next(closing.last().or(self.at.as_ref()), origin, part);
                closing.push(next);
            }
            let number = closing.len() - 1;
            let Some(record) = closing.last_mut() else { continue };
            self.send(origin, part, number, record.done, &mut orders)?;
            record.done += part.content.len();
            record.last = part.last;
            if part.last {
                orders = Orders::default();
            }
        }
        self.drain()?;
        self.close(&mut closing)?;
        self.drain()?;
        failpoint!("publish_commit_before");
        let started = Instant::now();
        self.again("commit a transaction", |producer| producer.commit_transaction(ATTEMPT))?;
        failpoint!("publish_commit_after");
        metrics::histogram!("feedmill_publish_commit_seconds").record(started.elapsed().as_secs_f64());
        metrics::counter!("feedmill_publish_transactions_total").increment(1);
        metrics::counter!("feedmill_publish_batches_total")
            .increment(closing.iter().filter(|record| record.last).count() as u64);
        self.at = closing.pop().or(self.at.take());
        self.orders = orders;
        Ok(())
    }

    /// The record of a part that follows `before`, of which nothing is published yet but what `before` tells.
    fn next(&self, before: Option<&TimesRecord>, origin: Origin<'_>, part: &Part<'_>) -> TimesRecord {
        let unfinished = before.filter(|before| !before.last);
        TimesRecord {
            time: part.position.time,
            previous: unfinished.map_or(before.map(|before| before.time), |unfinished| unfinished.previous),
            lsn: part.position.lsn,
            source: origin.source.into(),
            history: origin.history,
            snapshot: matches!(part.content, Content::Rows(_)),
            greatest_entry: origin.greatest_entry,
            floor: part.floor,
            done: unfinished.map_or(0, |unfinished| unfinished.done),
            last: false,
            partitions: Vec::new(),
        }
    }

    /// Sends what a part holds; `done` of its time are there.
    fn send(
        &self,
        origin: Origin<'_>,
        part: &Part<'_>,
        number: usize,
        done: u64,
        orders: &mut Orders,
    ) -> Result<(), KafkaError> {
        let of = Of { prefix: self.topics.prefix(), database: origin.database, position: part.position };
        let mut sender = Sender { publisher: self, time: part.position.time, number, key: Vec::new(), sent: 0 };
        let mut value = Vec::with_capacity(1_024);
        let unwritable = |error: serde_json::Error| self.unwritable(&error);
        // Half of a small value says where it comes from, as all of its relation do.
        let mut sources: HashMap<Relation, Written> = HashMap::new();
        match part.content {
            Content::Rows(rows) => {
                for row in rows {
                    let source = written(&mut sources, of, row.relation(), true).map_err(unwritable)?;
                    value.clear();
                    of.append_row(&mut value, &envelope::row(row).map_err(unwritable)?, source).map_err(unwritable)?;
                    sender.key(&row.key())?;
                    sender.send(self.topics.numbers(row.relation()).1, Some(&value))?;
                }
            }
            Content::Changes(changes) => {
                let id = format!("{}:{}", part.position.time, part.position.lsn);
                for (total_order, change) in (done + 1..).zip(changes) {
                    let (Some(relation), Some(row)) =
                        (relation_of(change), change.new.as_ref().or(change.old.as_ref()))
                    else {
                        continue;
                    };
                    let data_collection_order = count(orders, relation);
                    let transaction = Transaction { id: &id, total_order, data_collection_order };
                    let (changes, rows) = self.topics.numbers(relation);
                    let source = written(&mut sources, of, relation, false).map_err(unwritable)?;
                    let after = change.new.as_ref().map(envelope::row).transpose().map_err(unwritable)?;
                    value.clear();
                    of.append_change(&mut value, change, after.as_deref(), source, transaction).map_err(unwritable)?;
                    sender.key(&row.key())?;
                    sender.send(changes, Some(&value))?;
                    match &after {
                        Some(row) => {
                            value.clear();
                            of.append_row(&mut value, row, source).map_err(unwritable)?;
                            sender.send(rows, Some(&value))?;
                        }
                        None => sender.send(rows, None)?,
                    }
                }
            }
        }
        metrics::counter!("feedmill_publish_records_total").increment(sender.sent as u64);
        Ok(())
    }

    /// Sends the records of `times`, now that it is known where everything is.
    fn close(&self, closing: &mut [TimesRecord]) -> Result<(), KafkaError> {
        for ((tag, partition), place) in self.producer.context().places() {
            let Some(record) = closing.get_mut(tag >> TOPIC_BITS) else { continue };
            let topic = self.topics.name(tag & ((1 << TOPIC_BITS) - 1)).to_owned();
            record.partitions.push(Touched { topic, partition, offset: place.last, records: place.records });
        }
        let times = self.topics.times();
        for record in closing {
            let value = serde_json::to_vec(record).map_err(|error| self.unwritable(&error))?;
            let sent = BaseRecord::<(), [u8], usize>::with_opaque_to(&times, TIMES)
                .partition(TIMES_PARTITION)
                .timestamp(timestamp(record.time))
                .payload(&value);
            self.hand_over(sent)?;
        }
        Ok(())
    }

    /// Hands a record to the library, which takes no more than so many until brokers have taken some.
    fn hand_over<K: rdkafka::message::ToBytes + ?Sized>(
        &self,
        mut record: BaseRecord<'_, K, [u8], usize>,
    ) -> Result<(), KafkaError> {
        // A clock is not asked for each record.
        let mut since = None;
        loop {
            match self.producer.send(record) {
                Ok(()) => return Ok(()),
                Err((Native::MessageProduction(Code::QueueFull), again))
                    if since.get_or_insert_with(Instant::now).elapsed() < DELIVERY_MAX =>
                {
                    record = again;
                    self.producer.poll(POLL);
                    self.check()?;
                }
                Err((error, _)) => return Err(self.failed("publish a record", &error)),
            }
        }
    }

    /// Waits until everything is delivered.
    fn drain(&self) -> Result<(), KafkaError> {
        let deadline = Instant::now() + DELIVERY_MAX;
        while self.producer.in_flight_count() > 0 {
            if Instant::now() >= deadline {
                let why = self.producer.context().said.last();
                return Err(failed("publish records", &self.servers, None, why));
            }
            self.producer.poll(POLL);
            self.check()?;
        }
        self.check()
    }

    /// Whether everything was delivered so far.
    fn check(&self) -> Result<(), KafkaError> {
        match self.producer.context().failed() {
            Some(error) => Err(self.failed("publish records", &error)),
            None => Ok(()),
        }
    }

    /// Does what may have to be done again before it succeeds.
    fn again(
        &self,
        tried: &str,
        attempt: impl Fn(&BaseProducer<Deliveries>) -> Result<(), Native>,
    ) -> Result<(), KafkaError> {
        let deadline = Instant::now() + DELIVERY_MAX;
        loop {
            match attempt(&self.producer) {
                Ok(()) => return Ok(()),
                Err(Native::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {
                    tracing::debug!("could not {tried} yet: {error}");
                    self.producer.poll(POLL);
                }
                Err(error) => return Err(self.failed(tried, &error)),
            }
        }
    }

    fn failed(&self, tried: &str, error: &Native) -> KafkaError {
        let fatal = self.producer.client().fatal_error().map(|(code, _)| code);
        let codes = [error.rdkafka_error_code(), fatal];
        if codes.into_iter().flatten().any(is_fenced) {
            return KafkaError::Fenced { topics: self.topics.times(), id: self.topics.transactional_id() };
        }
        failed(tried, &self.servers, codes.into_iter().flatten().next(), self.producer.context().said.why(error))
    }

    fn unwritable(&self, error: &serde_json::Error) -> KafkaError {
        KafkaError::Refused {
            tried: "write a record".to_owned(),
            servers: self.servers.clone(),
            why: format!("it cannot be JSON: {error}"),
        }
    }
}

impl Content<'_> {
    fn len(&self) -> u64 {
        match self {
            Content::Changes(changes) => changes.len() as u64,
            Content::Rows(rows) => rows.len() as u64,
        }
    }
}

/// Sends the records of one part.
struct Sender<'a> {
    publisher: &'a Publisher,
    time: Time,
    /// Which record of `times` tells of them.
    number: usize,
    key: Vec<u8>,
    sent: usize,
}

impl Sender<'_> {
    /// What follows is of this key.
    fn key(&mut self, key: &feedmill_model::Key) -> Result<(), KafkaError> {
        self.key.clear();
        let table = self.publisher.topics.table_of_key(key.relation);
        envelope::append_key(&mut self.key, key, table.as_deref()).map_err(|error| self.publisher.unwritable(&error))
    }

    fn send(&mut self, topic: usize, value: Option<&[u8]>) -> Result<(), KafkaError> {
        let publisher = self.publisher;
        let record = BaseRecord::<[u8], [u8], usize>::with_opaque_to(
            publisher.topics.name(topic),
            self.number << TOPIC_BITS | topic,
        );
        let record = record.key(self.key.as_slice()).timestamp(timestamp(self.time));
        publisher.hand_over(match value {
            Some(value) => record.payload(value),
            None => record,
        })?;
        self.sent += 1;
        if self.sent.is_multiple_of(POLL_RECORDS) {
            publisher.producer.poll(Duration::ZERO);
            publisher.check()?;
        }
        Ok(())
    }
}

fn relation_of(change: &Change) -> Option<Relation> {
    change.new.as_ref().or(change.old.as_ref()).map(Row::relation)
}

/// What the values of a relation have in common, written once.
fn written<'a>(
    sources: &'a mut HashMap<Relation, Written>,
    of: Of<'_>,
    relation: Relation,
    snapshot: bool,
) -> Result<&'a RawValue, serde_json::Error> {
    match sources.entry(relation) {
        Entry::Occupied(source) => Ok(source.into_mut()),
        Entry::Vacant(place) => Ok(place.insert(of.source(relation, snapshot)?)),
    }
}

/// Counts one more of a relation, and says which one it is.
fn count(orders: &mut Orders, relation: Relation) -> u64 {
    let number = Relation::ALL.iter().position(|known| *known == relation);
    let Some(order) = number.and_then(|number| orders.get_mut(number)) else { return 0 };
    *order += 1;
    *order
}

fn timestamp(time: Time) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}

/// Where the records of a transaction are.
#[derive(Debug, Default)]
struct Deliveries {
    said: Said,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    failed: Option<Native>,
    /// By tag and partition.
    places: BTreeMap<(usize, i32), Place>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Place {
    last: i64,
    records: u64,
}

impl Deliveries {
    fn begin(&self) {
        *self.state.lock() = State::default();
    }

    fn failed(&self) -> Option<Native> {
        self.state.lock().failed.clone()
    }

    fn places(&self) -> BTreeMap<(usize, i32), Place> {
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
        let mut state = self.state.lock();
        match result {
            // The broker had it already, of an attempt whose answer was lost, and does not say where.
            Ok(message) if message.offset() < 0 => state.failed = Some(Native::MessageProduction(Code::Fail)),
            Ok(_) if tag == TIMES => {}
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
    }
}
