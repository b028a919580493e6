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
//! are read after the rows, and up to their end, so whatever had replaced a row that was not seen is among them. That none of
//! them is missing is known from `times`, which is read first, and tells how many there are at least. What `times` tells of is
//! waited for in each partition, since a commit does not reach all of them at once.
//!
//! Both topics of a relation have as many partitions, and a key is in the same one of both. In memory are the rows of one
//! partition, and as they were those that have changed since.

use std::collections::{BTreeMap, HashMap, VecDeque};

use feedmill_model::{Key, Relation, Row, Time};
use rdkafka::Offset;
use rdkafka::message::Message;

use super::client::{Client, partitions};
use super::error::KafkaError;
use super::reader::{Share, follows, incomplete, starts, time_of};
use super::registry::Schemas;
use super::times::{Times, Touched, decode, unusable};
use super::topics::{KafkaLog, ROWS, TIMES_PARTITION, Topics};

/// Rows of a slice, at most.
const SLICE_ROWS: usize = 8_192;

/// Gives all rows of a share, in slices of bounded size.
pub struct Hydration {
    client: Client,
    schemas: Schemas,
    time: Time,
    /// Change topics, and their partitions, that are not read yet, with where they have the first change after the time.
    partitions: VecDeque<(String, i32, Offset)>,
    /// By topic and partition, up to which offset it has how many changes after the time, and the last of their times.
    changed: BTreeMap<(String, i32), (Touched, Time)>,
    /// What comes next.
    slices: VecDeque<Vec<Row>>,
}

impl Hydration {
    /// The rows as of `time`. Fails with [`KafkaError::Gone`], here or later, when the changes after it are not retained any
    /// more, and with [`KafkaError::Beyond`] when it was never published.
    pub fn begin(log: &KafkaLog, share: Share, time: Time) -> Result<Self, KafkaError> {
        let (topics, client, schemas) = (Topics::of(log), Client::to_an_end(&log.servers)?, Schemas::of(log)?);
        let of_log = Times::of(log)?;
        let newest = of_log.newest()?.time;
        if time > newest {
            return Err(KafkaError::Beyond { asked: time, newest });
        }
        for Touched { topic, partition, offset, .. } in of_log.last_touched()? {
            client.wait_for(&topic, partition, offset)?;
        }
        let metadata = client.metadata()?;
        let counted = topics.changes().map(|topic| (topic, partitions(&metadata, topic).unwrap_or(0)));
        let wanted = share.partitions(counted).into_iter().map(|(topic, partition)| (topic.to_owned(), partition));
        let mut wanted: Vec<(String, i32)> = wanted.collect();
        // Few rows that decide over many come first.
        wanted.sort_by_key(|(topic, _)| {
            Relation::LOAD_ORDER.iter().position(|relation| topics.name(topics.numbers(*relation).0) == topic)
        });
        let times = (topics.times(), TIMES_PARTITION);
        wanted.push(times.clone());
        let starts = starts(&client, &wanted, time)?;
        let start = |(topic, partition): (String, i32)| {
            let found = starts.find_partition(&topic, partition);
            (topic, partition, found.map_or(Offset::End, |found| found.offset()))
        };
        let mut partitions: VecDeque<_> = wanted.into_iter().map(start).collect();
        let end = partitions.pop_back();
        let mut hydration =
            Hydration { client, schemas, time, partitions, changed: BTreeMap::new(), slices: VecDeque::new() };
        if let Some((_, _, from)) = end {
            hydration.learn_changed(&times.0, from)?;
        }
        Ok(hydration)
    }

    /// Reads what was changed after the time, so far.
    fn learn_changed(&mut self, times: &str, from: Offset) -> Result<(), KafkaError> {
        let (mut after, changed) = (self.time, &mut self.changed);
        self.client.read(times, TIMES_PARTITION, from, self.time, |message| {
            let record = decode(&message)?;
            if record.time <= after {
                return Ok(());
            }
            follows(&record, after)?;
            if record.last {
                after = record.time;
            }
            for touched in record.partitions {
                let place = (touched.topic.clone(), touched.partition);
                let none = Touched { records: 0, ..touched.clone() };
                let (all, time) = changed.entry(place).or_insert((none, record.time));
                (all.offset, all.records, *time) = (touched.offset, all.records + touched.records, record.time);
            }
            Ok(())
        })
    }

    /// The rows of one partition, as slices.
    fn load(&mut self, topic: String, partition: i32, from: Offset) -> Result<(), KafkaError> {
        let mut rows = self.rows(&format!("{topic}{ROWS}"), partition)?;
        for (key, row) in self.undone(&topic, partition, from)? {
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
        let mut rows = HashMap::new();
        self.client.read(topic, partition, Offset::Beginning, self.time, |message| {
            if time_of(&message)? > self.time {
                return Ok(());
            }
            match message.payload() {
                Some(_) => {
                    let row = self.schemas.change(&message)?.new;
                    let row = row.ok_or_else(|| unusable(&message, "it has no row".to_owned()))?;
                    rows.insert(row.key(), row);
                }
                None => drop(rows.remove(&self.schemas.key(&message)?)),
            }
            Ok(())
        })?;
        Ok(rows)
    }

    /// As it was at the time: each row that a partition of a change topic has a change of after it.
    fn undone(&self, topic: &str, partition: i32, from: Offset) -> Result<HashMap<Key, Option<Row>>, KafkaError> {
        let (mut undone, mut records) = (HashMap::new(), 0);
        let known = self.changed.get(&(topic.to_owned(), partition));
        if let Some((known, _)) = known {
            self.client.wait_for(topic, partition, known.offset)?;
        }
        self.client.read(topic, partition, from, self.time, |message| {
            if time_of(&message)? <= self.time {
                return Ok(());
            }
            records += u64::from(known.is_some_and(|(known, _)| message.offset() <= known.offset));
            let change = self.schemas.change(&message)?;
            if let Some(key) = change.old.as_ref().or(change.new.as_ref()).map(Row::key) {
                undone.entry(key).or_insert(change.old);
            }
            Ok(())
        })?;
        match known {
            Some((known, time)) if known.records != records => Err(incomplete(self.time, *time, known, records)),
            _ => Ok(undone),
        }
    }
}

impl Iterator for Hydration {
    type Item = Result<Vec<Row>, KafkaError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(slice) = self.slices.pop_front() {
                return Some(Ok(slice));
            }
            let (topic, partition, from) = self.partitions.pop_front()?;
            if let Err(error) = self.load(topic, partition, from) {
                self.partitions.clear();
                return Some(Err(error));
            }
        }
    }
}
