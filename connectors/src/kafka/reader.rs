//! Reads batches, of a share of the partitions.
//!
//! ```text
//!   times ─► next record: batch T, last offset and number of records in each partition
//!                 │ for each partition of ours that it names
//!                 ▼
//!   partition ─► records up to that offset, all of time T, counted ─► Batch, or a piece of one
//! ```
//!
//! Each partition has a queue of its own, which is read only when `times` has told of something there: so what is fetched
//! ahead is bounded, whatever the order in which brokers send it.

use std::collections::{BTreeMap, VecDeque};
use std::time::{Duration, Instant};

use feedmill_model::{Batch, Change, Time};
use rdkafka::consumer::Consumer;
use rdkafka::consumer::base_consumer::PartitionQueue;
use rdkafka::error::KafkaError as Native;
use rdkafka::message::{Message, OwnedMessage, Timestamp};
use rdkafka::{Offset, TopicPartitionList};

use super::client::{ANSWER_MAX, Client, Said, partitions};
use super::error::KafkaError;
use super::registry::Schemas;
use super::times::{self, Times, TimesRecord, Touched};
use super::topics::{KafkaLog, TIMES_PARTITION, Topics};

/// Which partitions somebody reads: each is read by one of so many.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Which reader, from 0.
    pub index: usize,
    /// How many there are.
    pub of: usize,
}

impl Share {
    /// Everything.
    pub const ALL: Share = Share { index: 0, of: 1 };

    /// Whether the partition with this number, counted over all topics, is one of them.
    fn has(self, number: usize) -> bool {
        number % self.of.max(1) == self.index
    }

    /// Those of so many partitions of each of these topics, by topic.
    pub(super) fn partitions<'a>(self, topics: impl Iterator<Item = (&'a str, i32)>) -> Vec<(&'a str, i32)> {
        let all = topics.flat_map(|(topic, partitions)| (0..partitions).map(move |partition| (topic, partition)));
        all.enumerate().filter(|(number, _)| self.has(*number)).map(|(_, partition)| partition).collect()
    }
}

/// Gives each batch after a time, once, without gaps, with the changes of the share's partitions.
pub struct BatchReader {
    client: Client,
    schemas: Schemas,
    times: Queue,
    partitions: BTreeMap<(String, i32), Queue>,
    /// The time after which it began.
    start: Time,
    /// Time of the last batch that was given in full.
    after: Time,
    /// What `times` says of what was given last.
    record: Option<TimesRecord>,
    pending: Option<Pending>,
}

/// A record of `times` of which not all changes are here.
struct Pending {
    record: TimesRecord,
    /// Which of its partitions is being read, and how many records of it were.
    partition: usize,
    records: u64,
    changes: Vec<Change>,
}

/// What comes of one partition.
struct Queue {
    /// Where the next record is at the earliest.
    next: i64,
    /// What came before the partition had a queue.
    early: VecDeque<OwnedMessage>,
    queue: PartitionQueue<Said>,
}

/// What a partition gives next.
enum Next {
    Message(OwnedMessage),
    Nothing,
}

impl BatchReader {
    /// Reads the batches after `after`. Fails with [`KafkaError::Gone`] when they are not retained any more, here or in
    /// [`Self::next`], and with [`KafkaError::Beyond`] when `after` was never published.
    pub fn open(log: &KafkaLog, share: Share, after: Time) -> Result<Self, KafkaError> {
        let newest = Times::of(log)?.newest()?.time;
        if after > newest {
            return Err(KafkaError::Beyond { asked: after, newest });
        }
        let (topics, client, schemas) = (Topics::of(log), Client::new(&log.servers)?, Schemas::of(log)?);
        let metadata = client.metadata()?;
        let counted = topics.changes().map(|topic| (topic, partitions(&metadata, topic).unwrap_or(0)));
        let wanted = share.partitions(counted).into_iter().map(|(topic, partition)| (topic.to_owned(), partition));
        let mut wanted: Vec<(String, i32)> = wanted.collect();
        let times = topics.times();
        wanted.push((times.clone(), TIMES_PARTITION));
        let starts = starts(&client, &wanted, after)?;
        client.consumer.assign(&starts).map_err(|error| client.failed("read the log", &error))?;
        let mut queues = BTreeMap::new();
        for (topic, partition) in wanted {
            let queue = client.consumer.split_partition_queue(&topic, partition);
            let queue = queue.ok_or_else(|| client.silent(format!("read {topic}")))?;
            let next = starts.find_partition(&topic, partition).and_then(|start| start.offset().to_raw()).unwrap_or(0);
            queues.insert((topic, partition), Queue { next, early: VecDeque::new(), queue });
        }
        let own = queues.remove(&(times, TIMES_PARTITION)).ok_or_else(|| client.silent("read the log"))?;
        let mut reader = BatchReader {
            client,
            schemas,
            times: own,
            partitions: queues,
            start: after,
            after,
            record: None,
            pending: None,
        };
        reader.take_early()?;
        Ok(reader)
    }

    /// The next batch, or the next piece of one, with the changes of this share; blocks until it is complete, and gives
    /// `None` when it is not within `limit`.
    pub fn next(&mut self, limit: Duration) -> Result<Option<Batch>, KafkaError> {
        let deadline = Instant::now() + limit;
        self.take_early()?;
        let mut pending = match self.pending.take() {
            Some(pending) => pending,
            None => match self.begin(deadline)? {
                Some(pending) => pending,
                None => return Ok(None),
            },
        };
        if !self.complete(&mut pending, deadline)? {
            self.pending = Some(pending);
            return Ok(None);
        }
        let Pending { record, changes, .. } = pending;
        if record.last {
            self.after = record.time;
        }
        let batch = Batch { position: record.position(), floor: record.floor, changes, last: record.last };
        self.record = Some(record);
        Ok(Some(batch))
    }

    /// The partition whose records the next batch lacks, if `times` has told of it.
    pub fn waits_for(&self) -> Option<String> {
        let pending = self.pending.as_ref()?;
        let touched = pending.record.partitions.get(pending.partition)?;
        Some(format!("partition {} of {}", touched.partition, touched.topic))
    }

    /// What `times` says of what was given last: its source, and since when positions are of the present history.
    pub fn record(&self) -> Option<&TimesRecord> {
        self.record.as_ref()
    }

    /// The next record of `times` that is after what was given.
    fn begin(&mut self, deadline: Instant) -> Result<Option<Pending>, KafkaError> {
        loop {
            let Next::Message(message) = self.times.next(&self.client, self.after, deadline)? else { return Ok(None) };
            let record = times::decode(&message)?;
            if record.time <= self.after {
                continue;
            }
            follows(&record, self.after)?;
            return Ok(Some(Pending { record, partition: 0, records: 0, changes: Vec::new() }));
        }
    }

    /// Reads what a record of `times` tells of; `false` when not all of it has come at the deadline.
    fn complete(&mut self, pending: &mut Pending, deadline: Instant) -> Result<bool, KafkaError> {
        while let Some(touched) = pending.record.partitions.get(pending.partition) {
            // Those of rows, and of other shares, are none of ours.
            if let Some(queue) = self.partitions.get_mut(&(touched.topic.clone(), touched.partition)) {
                if pending.records == 0 && queue.next > touched.offset {
                    // Retention has passed it: nothing of it will come.
                    return Err(incomplete(self.start, pending.record.time, touched, 0));
                }
                loop {
                    let Next::Message(message) = queue.next(&self.client, self.after, deadline)? else {
                        return Ok(false);
                    };
                    let time = time_of(&message)?;
                    let is_skipped = time <= self.start && pending.records == 0;
                    if !is_skipped {
                        if time != pending.record.time || message.offset() > touched.offset {
                            return Err(incomplete(self.start, pending.record.time, touched, pending.records));
                        }
                        pending.changes.push(self.schemas.change(&message)?);
                        pending.records += 1;
                    }
                    if message.offset() == touched.offset {
                        break;
                    }
                }
                if pending.records != touched.records {
                    return Err(incomplete(self.start, pending.record.time, touched, pending.records));
                }
            }
            pending.partition += 1;
            pending.records = 0;
        }
        Ok(true)
    }

    /// Takes what came before the partitions had queues of their own, which is older than what is in those.
    fn take_early(&mut self) -> Result<(), KafkaError> {
        let mut nothing = 0;
        while nothing < 2 {
            match self.client.consumer.poll(Duration::ZERO) {
                Some(Ok(message)) => {
                    nothing = 0;
                    let message = message.detach();
                    let place = (message.topic().to_owned(), message.partition());
                    let queue = self.partitions.get_mut(&place).unwrap_or(&mut self.times);
                    queue.early.push_back(message);
                }
                Some(Err(error)) => self.client.check(&error, self.after)?,
                None => nothing += 1,
            }
        }
        Ok(())
    }
}

impl Queue {
    /// Of what comes after `after`, the next record.
    fn next(&mut self, client: &Client, after: Time, deadline: Instant) -> Result<Next, KafkaError> {
        loop {
            if let Some(message) = self.early.pop_front() {
                self.next = message.offset() + 1;
                return Ok(Next::Message(message));
            }
            match self.queue.poll(deadline.saturating_duration_since(Instant::now())) {
                Some(Ok(message)) => {
                    self.next = message.offset() + 1;
                    return Ok(Next::Message(message.detach()));
                }
                Some(Err(error)) => client.check(&error, after)?,
                None if Instant::now() >= deadline => return Ok(Next::Nothing),
                None => {}
            }
        }
    }
}

/// Whether a record is of the batch after the one of a time.
pub(super) fn follows(record: &TimesRecord, after: Time) -> Result<(), KafkaError> {
    // A record that is not the first of its time has the same predecessor.
    if record.previous.is_some_and(|previous| previous <= after) && !record.snapshot {
        return Ok(());
    }
    let found = format!("the first batch there is of time {}, and not the one that follows", record.time);
    Err(KafkaError::Gone { asked: after, found })
}

/// Where each partition has the first record after a time, or its end.
pub(super) fn starts(client: &Client, wanted: &[(String, i32)], after: Time) -> Result<TopicPartitionList, KafkaError> {
    let failed = |error: Native| client.failed("look up where the log has a time", &error);
    let at = Offset::Offset(i64::try_from(after.saturating_add(1)).unwrap_or(i64::MAX));
    let mut ends = BTreeMap::new();
    let mut asked = TopicPartitionList::new();
    for (topic, partition) in wanted {
        // Before the question, so that nothing comes between the two.
        ends.insert((topic.as_str(), *partition), client.watermarks(topic, *partition)?.1);
        asked.add_partition_offset(topic, *partition, at).map_err(failed)?;
    }
    let found = client.consumer.offsets_for_times(asked, ANSWER_MAX).map_err(failed)?;
    let mut starts = TopicPartitionList::new();
    for element in found.elements() {
        element.error().map_err(failed)?;
        let end = ends.get(&(element.topic(), element.partition())).copied().unwrap_or(0);
        let start = match element.offset() {
            Offset::Offset(offset) if offset >= 0 => offset.min(end),
            _ => end,
        };
        let start = Offset::Offset(start);
        starts.add_partition_offset(element.topic(), element.partition(), start).map_err(failed)?;
    }
    Ok(starts)
}

/// The batch that a record is of.
pub(super) fn time_of(message: &OwnedMessage) -> Result<Time, KafkaError> {
    match message.timestamp() {
        Timestamp::CreateTime(time) => Ok(Time::try_from(time).unwrap_or(0)),
        _ => Err(KafkaError::Topic {
            topic: message.topic().to_owned(),
            found: "message.timestamp.type=LogAppendTime".to_owned(),
            expected: "CreateTime".to_owned(),
            mend: "set that with kafka-configs.sh, and publish anew".to_owned(),
        }),
    }
}

/// Records that `times` tells of, up to those of `time`, are not there.
pub(super) fn incomplete(start: Time, time: Time, touched: &Touched, records: u64) -> KafkaError {
    KafkaError::Gone {
        asked: start,
        found: format!(
            "up to the batch of time {time} there are {records} records in {}, partition {}, where {} were published",
            touched.topic, touched.partition, touched.records
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_partition_is_in_one_share() {
        let topics = [("one", 3), ("other", 4)];
        for of in 1..9 {
            let mut all: Vec<(&str, i32)> =
                (0..of).flat_map(|index| Share { index, of }.partitions(topics.into_iter())).collect();
            all.sort_unstable();
            let expected: Vec<(&str, i32)> =
                topics.into_iter().flat_map(|(topic, count)| (0..count).map(move |number| (topic, number))).collect();
            assert_eq!(all, expected, "{of} shares");
        }
    }
}
