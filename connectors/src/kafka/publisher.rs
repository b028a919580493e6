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

use std::time::{Duration, Instant};

use feedmill_model::{Time, failpoint};
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};

use super::block::{Block, Tag};
use super::client;
use super::deliveries::Deliveries;
use super::encoder::{Encoded, Next};
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

/// The one that may publish.
pub struct Publisher {
    producer: BaseProducer<Deliveries>,
    topics: Topics,
    servers: String,
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
            sent += self.send(&block)?;
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
        self.drain()?;
        self.close(&mut closing)?;
        self.drain()?;
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

    /// Sends the records of a block; gives how many.
    fn send(&self, block: &Block) -> Result<u64, KafkaError> {
        let mut sent = 0_usize;
        for record in block.records() {
            let (topic, tag) = (self.topics.name(record.tag.topic()), record.tag.get());
            let next = BaseRecord::<[u8], [u8], usize>::with_opaque_to(topic, tag);
            let next = next.key(record.key).timestamp(timestamp(record.time));
            self.hand_over(match record.value {
                Some(value) => next.payload(value),
                None => next,
            })?;
            sent += 1;
            if sent.is_multiple_of(POLL_RECORDS) {
                self.producer.poll(Duration::ZERO);
                self.check()?;
            }
        }
        Ok(sent as u64)
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
                servers: self.servers.clone(),
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
                return Err(self.timed_out("publish records"));
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

    fn timed_out(&self, tried: &str) -> KafkaError {
        failed(tried, &self.servers, None, self.producer.context().said.last())
    }

    fn failed(&self, tried: &str, error: &Native) -> KafkaError {
        let fatal = self.producer.client().fatal_error().map(|(code, _)| code);
        let codes = [error.rdkafka_error_code(), fatal];
        if codes.into_iter().flatten().any(is_fenced) {
            return KafkaError::Fenced { topics: self.topics.times(), id: self.topics.transactional_id() };
        }
        failed(tried, &self.servers, codes.into_iter().flatten().next(), self.producer.context().said.why(error))
    }
}

fn timestamp(time: Time) -> i64 {
    i64::try_from(time).unwrap_or(i64::MAX)
}
