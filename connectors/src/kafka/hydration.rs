//! The rows as of a time.
//!
//! ```text
//!   for each partition of the share:
//!     row topic ─────► rows of time T or before, the last of each key ─┐
//!     change topic ──► each key's first change after T: `before`       ├─► rows as of T, relation by relation
//!                                                                      ┘
//! ```
//!
//! Why that is the state at T: a key that did not change after T has its row in the row topic, which compaction keeps, or has
//! none. Of one that did, the row topic may have the later row alone, and the first change after T tells how it was. The changes
//! are read after the rows, and up to the end of `times` at that moment, so whatever had replaced a row that was not seen is
//! among them. That they are all there is checked as [`BatchReader`] does.
//!
//! Both topics of a relation have as many partitions, and a key is in the same one of both. In memory are the rows of one
//! partition, and as they were those that have changed since.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use feedmill_model::{Key, Relation, Row, Time};
use rdkafka::consumer::Consumer;
use rdkafka::error::KafkaError as Native;
use rdkafka::message::{Message, OwnedMessage};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{Client, SILENCE_MAX, partitions};
use super::error::KafkaError;
use super::reader::{BatchReader, Share, time_of};
use super::times::{Times, unusable};
use super::topics::{KafkaLog, Topics};
use super::{columns, envelope};

/// Rows of a slice, at most.
const SLICE_ROWS: usize = 8_192;
/// How long to wait for a batch at a time.
const WAIT: Duration = Duration::from_millis(500);

/// Gives all rows of a share, in slices of bounded size.
pub struct Hydration {
    log: KafkaLog,
    client: Client,
    times: Times,
    topics: Topics,
    time: Time,
    /// Change topics, and their partitions, that are not read yet.
    partitions: VecDeque<(String, i32)>,
    /// What comes next.
    slices: VecDeque<Vec<Row>>,
}

impl Hydration {
    /// The rows as of `time`. Fails with [`KafkaError::Gone`], here or later, when the changes after it are not retained any
    /// more, and with [`KafkaError::Beyond`] when it was never published.
    pub fn begin(log: &KafkaLog, share: Share, time: Time) -> Result<Self, KafkaError> {
        let times = Times::of(log)?;
        let newest = times.newest()?.time;
        if time > newest {
            return Err(KafkaError::Beyond { asked: time, newest });
        }
        let (topics, client) = (Topics::of(log), Client::new(&log.servers)?);
        let metadata = client.metadata()?;
        let counted = topics.changes().map(|topic| (topic, partitions(&metadata, topic).unwrap_or(0)));
        let wanted = share.partitions(counted).into_iter().map(|(topic, partition)| (topic.to_owned(), partition));
        let mut partitions: Vec<(String, i32)> = wanted.collect();
        // Few rows that decide over many come first.
        partitions.sort_by_key(|(topic, _)| {
            Relation::LOAD_ORDER.iter().position(|relation| topics.name(topics.numbers(*relation).0) == topic)
        });
        Ok(Hydration {
            log: log.clone(),
            client,
            times,
            topics,
            time,
            partitions: partitions.into(),
            slices: VecDeque::new(),
        })
    }

    /// The rows of one partition, as slices.
    fn load(&mut self, topic: String, partition: i32) -> Result<(), KafkaError> {
        let mut rows = self.rows(&format!("{topic}{}", super::topics::ROWS), partition)?;
        let end = self.times.last()?;
        let mut changes = BatchReader::of_partitions(&self.log, vec![(topic, partition)], self.time)?;
        let mut undone: HashMap<Key, Option<Row>> = HashMap::new();
        let mut deadline = Instant::now() + SILENCE_MAX;
        while end.as_ref().is_some_and(|end| !changes.has(end)) {
            match changes.next(WAIT)? {
                Some(batch) => {
                    deadline = Instant::now() + SILENCE_MAX;
                    for change in batch.changes {
                        if let Some(key) = change.old.as_ref().or(change.new.as_ref()).map(Row::key) {
                            undone.entry(key).or_insert(change.old);
                        }
                    }
                }
                None if Instant::now() > deadline => return Err(self.client.silent("read the changes")),
                None => {}
            }
        }
        for (key, row) in undone {
            match row {
                Some(row) => rows.insert(key, row),
                None => rows.remove(&key),
            };
        }
        let order = |row: &Row| Relation::LOAD_ORDER.iter().position(|relation| *relation == row.relation());
        let mut rows: Vec<Row> = rows.into_values().collect();
        rows.sort_by_cached_key(|row| (order(row), row.key()));
        while !rows.is_empty() {
            let rest = rows.split_off(rows.len().min(SLICE_ROWS));
            self.slices.push_back(rows);
            rows = rest;
        }
        Ok(())
    }

    /// The last row of each key in a partition of a row topic, of those that are not newer than the time.
    fn rows(&self, topic: &str, partition: i32) -> Result<HashMap<Key, Row>, KafkaError> {
        let tried = || format!("read {topic}, partition {partition}");
        let failed = |error: &Native| self.client.failed(tried(), error);
        let mut assignment = TopicPartitionList::new();
        assignment.add_partition_offset(topic, partition, Offset::Beginning).map_err(|error| failed(&error))?;
        self.client.consumer.assign(&assignment).map_err(|error| failed(&error))?;
        let mut rows = HashMap::new();
        let mut deadline = Instant::now() + SILENCE_MAX;
        while Instant::now() < deadline {
            match self.client.consumer.poll(WAIT) {
                Some(Ok(message)) => {
                    deadline = Instant::now() + SILENCE_MAX;
                    let message = message.detach();
                    if time_of(&message)? > self.time {
                        continue;
                    }
                    match message.payload() {
                        Some(value) => {
                            let row = envelope::change(value).map(|change| change.new);
                            let row = row.map_err(|error| unusable(&message, error.to_string()))?;
                            let row = row.ok_or_else(|| unusable(&message, "it has no row".to_owned()))?;
                            rows.insert(row.key(), row);
                        }
                        None => drop(rows.remove(&self.key(&message)?)),
                    }
                }
                Some(Err(Native::PartitionEOF(_))) => return Ok(rows),
                Some(Err(error @ Native::MessageConsumptionFatal(_))) => return Err(failed(&error)),
                // The library tries again by itself.
                Some(Err(_)) | None => {}
            }
        }
        Err(self.client.silent(tried()))
    }

    /// The key of a tombstone.
    fn key(&self, message: &OwnedMessage) -> Result<Key, KafkaError> {
        let relation = |table: Option<&str>| self.topics.relation(message.topic(), table);
        let key = columns::key(message.key().unwrap_or_default(), relation);
        key.map_err(|error| unusable(message, error.to_string()))
    }
}

impl Iterator for Hydration {
    type Item = Result<Vec<Row>, KafkaError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(slice) = self.slices.pop_front() {
                return Some(Ok(slice));
            }
            let (topic, partition) = self.partitions.pop_front()?;
            if let Err(error) = self.load(topic, partition) {
                self.partitions.clear();
                return Some(Err(error));
            }
        }
    }
}
