//! Messages a second into Kafka.
//!
//! ```text
//!   batches ─► Encoder ─► Publisher ──────────────────► topics: envelopes are written, offsets known, `times` closed
//!                             │ its records, read back
//!                             └──► BaseProducer::send, commit ────► other topics: nothing but that
//! ```
//!
//! Both commit as many records at a time. The plain loop drains what it has sent before it commits, since the crate's commit
//! waits for 100 ms where it finds something to wait for; what it does without that is told too.

use std::time::{Duration, Instant};

use feedmill_connectors::kafka::{
    Compression, Content, Encoder, Format, KafkaLog, Layout, Origin, Part, Published, Publisher, TopicOptions, Topics,
    prepare,
};
use feedmill_model::{Change, Like, Lsn, Position, Row, SourceId, Tweet};
use feedmill_test_servers::Kafka;
use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::{KafkaError, RDKafkaErrorCode};
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::producer::{BaseProducer, BaseRecord, Producer};
use rdkafka::{Offset, TopicPartitionList};

use super::{Args, pairs};

/// Changes of a batch.
const CHANGES: i64 = 1_000;
/// Batches of a Kafka transaction, as many as the publisher takes together.
const TOGETHER: usize = 16;
/// 2026-01-01, in milliseconds since 1970.
const START: u64 = 1_767_225_600_000;
const OPTIONS: TopicOptions = TopicOptions {
    partitions: 4,
    replication: 1,
    retention: Duration::from_secs(100 * 365 * 24 * 3_600),
    compression: Compression::Lz4,
};
const LIMIT: Duration = Duration::from_secs(60);

/// Half tweets, half likes.
fn batches(args: &Args) -> Vec<(Position, Vec<Change>)> {
    let change = |id: i64| {
        let at = i64::try_from(START).unwrap_or(0) * 1_000 + id;
        let row = if id % 2 == 0 {
            let content = format!("tweet {id}: what is written here is about as long as what people write");
            let conversation_id = id << 16;
            let tweet = Tweet { id: id << 16, user_id: id % 1_000, content, conversation_id, ..Tweet::default() };
            Row::Tweet(Box::new(Tweet { created_at: at, updated_at: at, ..tweet }))
        } else {
            Row::Like(Like { user_id: id % 1_000, tweet_id: id << 16, created_at: at })
        };
        Change { old: None, new: Some(row) }
    };
    let batch = |number: u64| {
        let first = i64::try_from(number).unwrap_or(0) * CHANGES;
        let position = Position { time: START + number, lsn: Lsn(number << 16) };
        (position, (first..first + CHANGES).map(change).collect())
    };
    (1..=u64::try_from(args.changes / CHANGES).unwrap_or(0)).map(batch).collect()
}

/// The log with this prefix, its topics made.
fn log(kafka: &Kafka, prefix: &str) -> anyhow::Result<KafkaLog> {
    let servers = format!("kafka://{}", kafka.bootstrap()).parse()?;
    let log =
        KafkaLog { servers, prefix: prefix.to_owned(), layout: Layout::Tables, format: Format::Json, registry: None };
    prepare(&log, &OPTIONS)?;
    Ok(log)
}

/// Publishes as `feedmill capture` does, by a thread that writes and one that sends; gives how long it took.
fn publish(to: &KafkaLog, batches: &[(Position, Vec<Change>)]) -> anyhow::Result<Duration> {
    let source = SourceId { system: 1, timeline: 1, slot: "feedmill".to_owned() };
    let origin = Origin { source: &source, history: 0, greatest_entry: 0 };
    let mut publisher = Publisher::open(to, &OPTIONS)?;
    let (mut encoder, encoded) = Encoder::new(to, "social", publisher.at())?;
    let first = Position { time: START, lsn: Lsn(0) };
    encoder.write(origin, &[Part { position: first, floor: None, content: Content::Rows(&[]), last: true }])?;
    publisher.publish(&encoded, LIMIT)?;
    let began = Instant::now();
    std::thread::scope(|scope| {
        let writer = scope.spawn(move || {
            for batches in batches.chunks(TOGETHER) {
                let parts: Vec<Part<'_>> = batches
                    .iter()
                    .map(|(position, changes)| Part {
                        position: *position,
                        floor: None,
                        content: Content::Changes(changes),
                        last: true,
                    })
                    .collect();
                encoder.write(origin, &parts)?;
            }
            anyhow::Ok(())
        });
        while publisher.publish(&encoded, LIMIT)? != Published::Ended {}
        writer.join().map_err(|_| anyhow::anyhow!("the thread that writes has panicked"))?
    })?;
    Ok(began.elapsed())
}

/// All records of a log but those of `times`.
fn records(log: &KafkaLog) -> anyhow::Result<Vec<OwnedMessage>> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", log.servers.to_string()).set("group.id", "bench");
    config.set("enable.auto.commit", "false").set("enable.partition.eof", "true");
    let consumer: BaseConsumer = config.create()?;
    let topics = Topics::of(log);
    let mut assignment = TopicPartitionList::new();
    let mut open = 0;
    for topic in topics.changes().chain(topics.rows()) {
        for partition in 0..OPTIONS.partitions {
            assignment.add_partition_offset(topic, partition, Offset::Beginning)?;
            open += 1;
        }
    }
    consumer.assign(&assignment)?;
    let mut records = Vec::new();
    while open > 0 {
        match consumer.poll(LIMIT) {
            Some(Ok(message)) => records.push(message.detach()),
            Some(Err(KafkaError::PartitionEOF(_))) => open -= 1,
            Some(Err(error)) => anyhow::bail!(error),
            None => anyhow::bail!("the records cannot be read back"),
        }
    }
    // As they were sent: topics and partitions mixed.
    records.sort_by_key(|record| (record.timestamp().to_millis(), record.offset()));
    Ok(records)
}

/// Sends records by the crate alone; gives how long it took.
fn send(
    log: &KafkaLog,
    from: &str,
    records: &[OwnedMessage],
    at_once: usize,
    drained: bool,
) -> anyhow::Result<Duration> {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", log.servers.to_string()).set("transactional.id", &log.prefix);
    config.set("compression.type", "lz4").set("partitioner", "murmur2_random").set("linger.ms", "1");
    let producer: BaseProducer = config.create()?;
    producer.init_transactions(LIMIT)?;
    let names: Vec<String> = records.iter().map(|record| record.topic().replacen(from, &log.prefix, 1)).collect();
    let began = Instant::now();
    for (records, names) in records.chunks(at_once).zip(names.chunks(at_once)) {
        producer.begin_transaction()?;
        for (number, (record, name)) in records.iter().zip(names).enumerate() {
            let mut next = BaseRecord::<[u8], [u8]>::to(name).key(record.key().unwrap_or_default());
            if let Some(payload) = record.payload() {
                next = next.payload(payload);
            }
            while let Err((error, again)) = producer.send(next) {
                match error {
                    KafkaError::MessageProduction(RDKafkaErrorCode::QueueFull) => {
                        producer.poll(Duration::from_millis(1))
                    }
                    error => anyhow::bail!(error),
                }
                next = again;
            }
            if number.is_multiple_of(256) {
                producer.poll(Duration::ZERO);
            }
        }
        while drained && producer.in_flight_count() > 0 {
            producer.poll(Duration::from_millis(1));
        }
        producer.commit_transaction(LIMIT)?;
    }
    Ok(began.elapsed())
}

/// Measures pairs.
pub(super) fn run(args: &Args) -> anyhow::Result<()> {
    let kafka = Kafka::shared();
    let batches = batches(args);
    // What a plain loop sends was published before.
    let first = log(kafka, "first")?;
    publish(&first, &batches)?;
    let records = records(&first)?;
    let at_once = records.len() / batches.len().max(1) * TOGETHER;
    let rate = |took: Duration| records.len() as f64 / took.as_secs_f64();
    let plainly = |number: u32, drained: bool| -> anyhow::Result<f64> {
        let to = log(kafka, &format!("plain{number}{}", if drained { "" } else { "undrained" }))?;
        Ok(rate(send(&to, &first.prefix, &records, at_once, drained)?))
    };
    let ours = |number| Ok(rate(publish(&log(kafka, &format!("own{number}"))?, &batches)?));
    pairs(args, "messages into Kafka", ours, |number| plainly(number, true))?;
    println!("messages into Kafka: {:.0}/s by a plain loop that does not drain", plainly(0, false)?);
    Ok(())
}
