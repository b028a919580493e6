//! Publishes what an encoder has written, one Kafka transaction after the other.
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
//!
//! Deliveries are told on a thread of the library: its `poll` takes all of the time that it is given, and for the last
//! millisecond of it never sleeps, so that who sends would wait too long, and take the time of others.

use std::time::{Duration, Instant};

use feedmill_model::{Time, failpoint};
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseRecord, Producer, ThreadedProducer};

use super::Servers;
use super::block::{Block, Tag};
use super::client;
use super::deliveries::Deliveries;
use super::encoder::{Encoded, Next};
use super::error::{KafkaError, failed, is_fenced, unusable_settings};
use super::times::{Times, TimesRecord, Touched};
use super::topics::{KafkaLog, RECORD_BYTES_MAX, TIMES_PARTITION, TopicOptions, Topics, check_empty};

/// How long brokers may take for what they were given, and to end a predecessor's transaction.
const DELIVERY_MAX: Duration = Duration::from_secs(30);
/// How long one attempt to begin or to commit may take before it is seen whether there is time for another.
const ATTEMPT: Duration = Duration::from_secs(5);
/// How long is waited before brokers are asked again.
const RETRY: Duration = Duration::from_millis(1);
/// How often it is looked whether the library has let go of what is delivered.
const LET_GO_POLL: Duration = Duration::from_micros(50);
/// After how many records it is looked whether one of them failed.
const CHECK_RECORDS: u64 = 256;
/// What waits for brokers in memory, at most.
const QUEUE_KB: &str = "65536";

/// The one that may publish.
pub struct Publisher {
    producer: ThreadedProducer<Deliveries>,
    topics: Topics,
    servers: Servers,
    /// Where `times` ends.
    at: Option<TimesRecord>,
}

/// What came of publishing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Published {
    /// A transaction of so many changes, or rows.
    Changes(u64),
    /// There was nothing to publish yet.
    Nothing,
    /// There will be nothing any more: the encoder is gone.
    Ended,
}

impl Publisher {
    /// Takes over from whoever published before, which can do so no more. The topics must be there.
    pub fn open(log: &KafkaLog, options: &TopicOptions) -> Result<Self, KafkaError> {
        let topics = Topics::of(log);
        let servers = log.servers.clone();
        let mut config = client::config(&servers);
        config.set("transactional.id", topics.transactional_id()).set("transaction.timeout.ms", "60000");
        config.set("compression.type", options.compression.codec()).set("partitioner", "murmur2_random");
        config.set("message.max.bytes", RECORD_BYTES_MAX).set("queue.buffering.max.kbytes", QUEUE_KB);
        // Each transaction waits for it twice; more gains nothing, since what comes while brokers are busy is sent together.
        config.set("linger.ms", "1");
        let producer = config.create_with_context(Deliveries::default());
        let producer: ThreadedProducer<Deliveries> = producer.map_err(|error| unusable_settings(&servers, &error))?;
        let mut publisher = Publisher { producer, topics, servers, at: None };
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

    /// Publishes the next transaction, if there is one within `limit`. Its encoder must have begun with [`Self::at`]. After an
    /// error, and at the end, this one is of no use any more: open another.
    pub fn publish(&mut self, encoded: &Encoded, limit: Duration) -> Result<Published, KafkaError> {
        let mut block = match encoded.next(limit) {
            Next::Block(block) => block,
            Next::Nothing => return Ok(Published::Nothing),
            Next::Ended => return Ok(Published::Ended),
        };
        failpoint!("publish_before");
        self.producer.begin_transaction().map_err(|error| self.failed("begin a transaction", &error))?;
        self.producer.context().begin();
        let mut sent = 0;
        let end = loop {
            self.send(&block, &mut sent)?;
            let end = block.end.take();
            encoded.is_sent(block);
            if let Some(end) = end {
                break end;
            }
            block = match encoded.next(DELIVERY_MAX) {
                Next::Block(block) => block,
                // Why it has not written all of it, it says itself.
                Next::Ended => return Ok(Published::Ended),
                Next::Nothing => return Err(self.timed_out("write the records of a transaction")),
            };
        };
        let mut closing = end.closing;
        self.drain(sent)?;
        self.close(&mut closing)?;
        self.drain(sent + closing.len() as u64)?;
        self.let_go()?;
        failpoint!("publish_commit_before");
        let started = Instant::now();
        self.again("commit a transaction", |producer| producer.commit_transaction(ATTEMPT))?;
        failpoint!("publish_commit_after");
        metrics::histogram!("feedmill_publish_commit_seconds").record(started.elapsed().as_secs_f64());
        metrics::counter!("feedmill_publish_transactions_total").increment(1);
        metrics::counter!("feedmill_publish_records_total").increment(sent);
        metrics::counter!("feedmill_publish_batches_total")
            .increment(closing.iter().filter(|record| record.last).count() as u64);
        self.at = closing.pop().or(self.at.take());
        Ok(Published::Changes(end.changes))
    }

    /// Sends the records of a block, and counts them.
    fn send(&self, block: &Block, sent: &mut u64) -> Result<(), KafkaError> {
        for record in block.records() {
            let (topic, tag) = (self.topics.name(record.tag.topic()), record.tag.get());
            let next = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, tag);
            let next = next.key(record.key).timestamp(timestamp(record.time));
            self.hand_over(match record.value {
                Some(value) => next.payload(value),
                None => next,
            })?;
            *sent += 1;
            if sent.is_multiple_of(CHECK_RECORDS) {
                self.check()?;
            }
        }
        Ok(())
    }

    /// Sends the records of `times`, now that it is known where everything is.
    fn close(&self, closing: &mut [TimesRecord]) -> Result<(), KafkaError> {
        for ((tag, partition), place) in self.producer.context().places() {
            let Some(record) = closing.get_mut(tag.number()) else { continue };
            let topic = self.topics.name(tag.topic()).to_owned();
            record.partitions.push(Touched { topic, partition, offset: place.last, records: place.records });
        }
        let times = self.topics.times();
        for record in closing {
            let value = serde_json::to_vec(record).map_err(|error| KafkaError::Refused {
                tried: format!("write a record of {times}"),
                servers: self.servers.to_string(),
                why: error.to_string(),
            })?;
            let sent = BaseRecord::<(), [u8], usize>::with_opaque_to(&times, Tag::TIMES.get())
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
                    self.producer.context().wait_for_more(RETRY);
                    self.check()?;
                }
                Err((error, _)) => return Err(self.failed("publish a record", &error)),
            }
        }
    }

    /// Waits until so many records of the transaction are delivered.
    fn drain(&self, sent: u64) -> Result<(), KafkaError> {
        let is_delivered = self.producer.context().wait_for(sent, DELIVERY_MAX);
        self.check()?;
        if is_delivered { Ok(()) } else { Err(self.timed_out("publish records")) }
    }

    /// Waits until the library has nothing in hand of what is delivered: a commit that finds something waits long for it.
    fn let_go(&self) -> Result<(), KafkaError> {
        let deadline = Instant::now() + DELIVERY_MAX;
        while self.producer.in_flight_count() > 0 {
            if Instant::now() >= deadline {
                return Err(self.timed_out("publish records"));
            }
            std::thread::sleep(LET_GO_POLL);
        }
        Ok(())
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
        attempt: impl Fn(&ThreadedProducer<Deliveries>) -> Result<(), Native>,
    ) -> Result<(), KafkaError> {
        let deadline = Instant::now() + DELIVERY_MAX;
        loop {
            match attempt(&self.producer) {
                Ok(()) => return Ok(()),
                Err(Native::Transaction(error)) if error.is_retriable() && Instant::now() < deadline => {
                    tracing::debug!("could not {tried} yet: {error}");
                    std::thread::sleep(RETRY);
                }
                Err(error) => return Err(self.failed(tried, &error)),
            }
        }
    }

    fn timed_out(&self, tried: &str) -> KafkaError {
        let said = &self.producer.context().said;
        failed(tried, &self.servers, said.denied(), said.last())
    }

    fn failed(&self, tried: &str, error: &Native) -> KafkaError {
        let fatal = self.producer.client().fatal_error().map(|(code, _)| code);
        let codes = [error.rdkafka_error_code(), fatal];
        if codes.into_iter().flatten().any(is_fenced) {
            return KafkaError::Fenced { topics: self.topics.times(), id: self.topics.transactional_id() };
        }
        let said = &self.producer.context().said;
        failed(tried, &self.servers, said.denied().or(codes.into_iter().flatten().next()), said.why(error))
    }
}

fn timestamp(time: Time) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}
