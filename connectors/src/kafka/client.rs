//! Clients of librdkafka: their configuration, and where goes what they say.

use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_model::Time;
use parking_lot::Mutex;
use rdkafka::ClientConfig;
use rdkafka::ClientContext;
use rdkafka::config::RDKafkaLogLevel;
use rdkafka::consumer::{BaseConsumer, Consumer, ConsumerContext};
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode as Code};
use rdkafka::message::OwnedMessage;
use rdkafka::metadata::Metadata;
use rdkafka::{Offset, TopicPartitionList};

use super::Servers;
use super::error::{KafkaError, failed, is_denied, unusable_settings};

/// How long a question to brokers may take.
pub(super) const ANSWER_MAX: Duration = Duration::from_secs(10);
/// How long nothing may come of what is there to be read.
pub(super) const SILENCE_MAX: Duration = Duration::from_secs(30);
/// For how long a broker that has nothing for a reader waits until it says so. Who reads on and on asks seldom; who reads up to
/// an end, one partition after the other, waits for that answer each time.
const ON_AND_ON_MS: &str = "100";
const TO_AN_END_MS: &str = "5";
/// How often it is looked whether a commit has reached a partition.
const COMMITTED_POLL: Duration = Duration::from_millis(5);
/// For how long it is listened why a question has no answer.
const TOLD_MAX: Duration = Duration::from_millis(200);
/// What is fetched ahead of each partition that has a queue of its own.
const READ_AHEAD_KB: &str = "2048";

/// Takes what the library says: into our log, and the last of it for errors, which by themselves say little.
#[derive(Debug, Default)]
pub(super) struct Said(Mutex<Last>);

/// What was said last.
#[derive(Debug, Default)]
struct Last {
    code: Option<Code>,
    reason: Option<String>,
}

impl Said {
    /// What an error is, and what was said last before it.
    pub fn why(&self, error: &Native) -> String {
        match &self.0.lock().reason {
            Some(reason) => format!("{error}; {reason}"),
            None => error.to_string(),
        }
    }

    /// What was said last.
    pub fn last(&self) -> String {
        self.0.lock().reason.clone().unwrap_or_else(|| "there is no answer".to_owned())
    }

    /// That a client is not let in, if this was told last: whoever waits for an answer learns only that none came.
    pub fn denied(&self) -> Option<Code> {
        self.0.lock().code.filter(|code| is_denied(*code))
    }

    /// Something was told beside what was asked for.
    pub fn note(&self, error: &Native) {
        match error.rdkafka_error_code() {
            // That no broker is left follows from what was told of each.
            None | Some(Code::AllBrokersDown) => {}
            code => self.0.lock().code = code,
        }
    }
}

impl ClientContext for Said {
    fn log(&self, level: RDKafkaLogLevel, _: &str, message: &str) {
        match level {
            RDKafkaLogLevel::Emerg | RDKafkaLogLevel::Alert | RDKafkaLogLevel::Critical => {
                tracing::warn!("librdkafka: {message}");
            }
            // It tells of each attempt to connect; whoever waits for it says so once.
            _ => tracing::debug!("librdkafka: {message}"),
        }
        // A consumer is told its errors as numbers: why is only logged.
        if matches!(level, RDKafkaLogLevel::Error) {
            let reason = message.split_once("]: ").map_or(message, |(_, reason)| reason);
            self.0.lock().reason = Some(reason.to_owned());
        }
    }

    fn error(&self, error: Native, reason: &str) {
        tracing::debug!("librdkafka: {error}: {reason}");
        self.note(&error);
        if error.rdkafka_error_code() != Some(Code::AllBrokersDown) {
            self.0.lock().reason = Some(reason.to_owned());
        }
    }
}

impl ConsumerContext for Said {}

/// What all clients are configured with.
pub(super) fn config(servers: &Servers) -> ClientConfig {
    let mut config = ClientConfig::new();
    servers.configure(&mut config);
    config.set("client.id", "feedmill");
    config.set("reconnect.backoff.max.ms", "2000").set("socket.keepalive.enable", "true");
    config.set("allow.auto.create.topics", "false");
    config
}

/// A consumer of what is committed, which is told what to read.
pub(super) struct Client {
    pub consumer: Arc<BaseConsumer<Said>>,
    servers: Servers,
}

impl Client {
    /// For reading on and on.
    pub fn new(servers: &Servers) -> Result<Self, KafkaError> {
        Client::waiting(servers, ON_AND_ON_MS)
    }

    /// For reading up to an end, by [`Self::read`].
    pub fn to_an_end(servers: &Servers) -> Result<Self, KafkaError> {
        Client::waiting(servers, TO_AN_END_MS)
    }

    /// One that keeps no offsets: those are in `times`, and in the stores.
    fn waiting(servers: &Servers, wait_ms: &str) -> Result<Self, KafkaError> {
        let mut config = config(servers);
        config.set("group.id", "feedmill").set("enable.auto.commit", "false").set("enable.auto.offset.store", "false");
        config.set("isolation.level", "read_committed").set("enable.partition.eof", "true");
        config.set("auto.offset.reset", "error").set("queued.max.messages.kbytes", READ_AHEAD_KB);
        config.set("fetch.queue.backoff.ms", "10");
        // A quiet partition must not delay the others that the same broker has.
        config.set("fetch.wait.max.ms", wait_ms);
        let created = config.create_with_context(Said::default());
        let consumer = created.map_err(|error| unusable_settings(servers, &error))?;
        Ok(Client { consumer: Arc::new(consumer), servers: servers.clone() })
    }

    /// Reads a partition, and nothing else any more, from an offset up to its end. Fails with [`KafkaError::Gone`] when the
    /// offset is not there any more; `asked` is the time that it is of.
    pub fn read(
        &self,
        topic: &str,
        partition: i32,
        from: Offset,
        asked: Time,
        mut take: impl FnMut(OwnedMessage) -> Result<(), KafkaError>,
    ) -> Result<(), KafkaError> {
        let tried = || format!("read {topic}, partition {partition}");
        let failed = |error: &Native| self.failed(tried(), error);
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, from).map_err(|error| failed(&error))?;
        self.consumer.assign(&assignment).map_err(|error| failed(&error))?;
        let mut deadline = Instant::now() + SILENCE_MAX;
        while Instant::now() < deadline {
            match self.consumer.poll(deadline.saturating_duration_since(Instant::now())) {
                Some(Ok(message)) => {
                    take(message.detach())?;
                    deadline = Instant::now() + SILENCE_MAX;
                }
                Some(Err(Native::PartitionEOF(_))) => return Ok(()),
                Some(Err(error)) => self.check(&error, asked)?,
                None => {}
            }
        }
        Err(self.silent(tried()))
    }

    /// Waits until the record at an offset is there for who reads what is committed. A commit reaches one partition after the
    /// other, so that one may tell of it before another does.
    pub fn wait_for(&self, topic: &str, partition: i32, offset: i64) -> Result<(), KafkaError> {
        let deadline = Instant::now() + SILENCE_MAX;
        while self.watermarks(topic, partition)?.1 <= offset {
            if Instant::now() >= deadline {
                return Err(self.silent(format!("read {topic}, partition {partition}, up to what was committed")));
            }
            std::thread::sleep(COMMITTED_POLL);
        }
        Ok(())
    }

    /// What the library tells of while it goes on by itself is no error.
    pub fn check(&self, error: &Native, asked: Time) -> Result<(), KafkaError> {
        self.consumer.client().context().note(error);
        match error {
            Native::MessageConsumption(Code::AutoOffsetReset | Code::OffsetOutOfRange) => {
                Err(KafkaError::Gone { asked, found: "records that are needed were removed".to_owned() })
            }
            Native::MessageConsumptionFatal(_) => Err(self.failed("read the log", error)),
            _ => Ok(()),
        }
    }

    /// An error of ours.
    pub fn failed(&self, tried: impl Into<String>, error: &Native) -> KafkaError {
        let said = self.consumer.client().context();
        failed(tried, &self.servers, said.denied().or(error.rdkafka_error_code()), said.why(error))
    }

    /// An error of a question, whose reason is told to who reads. Nothing is being read then.
    fn unanswered(&self, tried: impl Into<String>, error: &Native) -> KafkaError {
        // What is logged comes the same way, and ends a poll that does not wait.
        let deadline = Instant::now() + TOLD_MAX;
        while Instant::now() < deadline {
            if let Some(Err(told)) = self.consumer.poll(deadline.saturating_duration_since(Instant::now())) {
                self.consumer.client().context().note(&told);
            }
        }
        self.failed(tried, error)
    }

    /// Nothing came for too long.
    pub fn silent(&self, tried: impl Into<String>) -> KafkaError {
        let said = self.consumer.client().context();
        failed(tried, &self.servers, said.denied(), said.last())
    }

    /// All topics, with their partitions.
    pub fn metadata(&self) -> Result<Metadata, KafkaError> {
        let asked = self.consumer.fetch_metadata(None, ANSWER_MAX);
        asked.map_err(|error| self.unanswered("ask for the topics", &error))
    }

    /// The first offset of a partition, and the one after the last that is committed.
    pub fn watermarks(&self, topic: &str, partition: i32) -> Result<(i64, i64), KafkaError> {
        let asked = self.consumer.fetch_watermarks(topic, partition, ANSWER_MAX);
        asked.map_err(|error| self.unanswered(format!("ask for the end of {topic}"), &error))
    }
}

/// How many partitions a topic has, if it is there.
pub(super) fn partitions(metadata: &Metadata, topic: &str) -> Option<i32> {
    let topic = metadata.topics().iter().find(|known| known.name() == topic)?;
    i32::try_from(topic.partitions().len()).ok().filter(|partitions| *partitions > 0)
}
