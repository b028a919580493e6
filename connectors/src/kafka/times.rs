//! The topic `times`: one record closes each batch.

use feedmill_model::{Lsn, Position, SourceId, Time};
use rdkafka::Offset;
use rdkafka::message::Message;
use serde::{Deserialize, Serialize};

use super::client::Client;
use super::error::KafkaError;
use super::topics::{Format, KafkaLog, TIMES_PARTITION, Topics};

/// How many records are looked at to find the last ones, at first.
const BACK: i64 = 64;
/// How many more, each time that this was not enough.
const BACK_FACTOR: i64 = 16;

/// What was published of a batch, or of the first state.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TimesRecord {
    /// Its time.
    pub time: Time,
    /// Time of the batch before; `None` for the first state.
    pub previous: Option<Time>,
    /// The end of the source's log that it covers.
    #[serde(with = "text")]
    pub lsn: Lsn,
    /// The source.
    pub source: PublishedSource,
    /// Positions of times before this one are of another history of the source.
    pub history: Time,
    /// Whether this is the first state, whose rows are in the row topics alone.
    pub snapshot: bool,
    /// No entry that a home timeline can hold had a greater id when this was published.
    pub greatest_entry: i64,
    /// Set on a bulk batch: see [`feedmill_model::Batch::floor`].
    pub floor: Option<i64>,
    /// How many changes of it, or rows, were published up to here, those that are in the same Kafka transaction included.
    pub done: u64,
    /// Whether they are all of it.
    pub last: bool,
    /// In which form keys and values of the other topics are.
    #[serde(default)]
    pub format: Format,
    /// Where those are that are in the same Kafka transaction.
    pub partitions: Vec<Touched>,
}

/// [`SourceId`], with a number that every reader of JSON reads.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PublishedSource {
    /// `system_identifier` of the cluster.
    #[serde(with = "text")]
    pub system: u64,
    /// Timeline of the cluster.
    pub timeline: u32,
    /// Name of the replication slot.
    pub slot: String,
}

impl From<&SourceId> for PublishedSource {
    fn from(SourceId { system, timeline, slot }: &SourceId) -> Self {
        PublishedSource { system: *system, timeline: *timeline, slot: slot.clone() }
    }
}

impl From<&PublishedSource> for SourceId {
    fn from(PublishedSource { system, timeline, slot }: &PublishedSource) -> Self {
        SourceId { system: *system, timeline: *timeline, slot: slot.clone() }
    }
}

/// What is in one partition.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Touched {
    /// Its topic.
    pub topic: String,
    /// Its number.
    pub partition: i32,
    /// Of the last record.
    pub offset: i64,
    /// How many records.
    pub records: u64,
}

impl TimesRecord {
    /// Fails if `log` would go on in another format: a row would have two keys, each in a partition of its own.
    pub fn check_format(&self, log: &KafkaLog) -> Result<(), KafkaError> {
        if self.format == log.format {
            return Ok(());
        }
        let (found, asked) = (self.format.name(), log.format.name());
        Err(KafkaError::OtherFormat { topics: Topics::of(log).times(), found, asked })
    }

    /// Its time and position.
    pub fn position(&self) -> Position {
        Position { time: self.time, lsn: self.lsn }
    }
}

/// As text, as it is displayed.
mod text {
    use std::borrow::Cow;
    use std::fmt::Display;
    use std::str::FromStr;

    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<V: Display, S: Serializer>(value: &V, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(value)
    }

    pub fn deserialize<'de, V: FromStr<Err: Display>, D: Deserializer<'de>>(deserializer: D) -> Result<V, D::Error> {
        Cow::<str>::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

/// Reads the end of `times`.
pub struct Times {
    client: Client,
    topic: String,
}

impl Times {
    /// Of this log.
    pub fn of(log: &KafkaLog) -> Result<Self, KafkaError> {
        Ok(Times { client: Client::to_an_end(&log.servers)?, topic: Topics::of(log).times() })
    }

    /// The last record, if there is any; fails if there were some, and all are gone.
    pub fn last(&self) -> Result<Option<TimesRecord>, KafkaError> {
        self.find(|_| true)
    }

    /// The last batch that is published in full.
    pub fn newest(&self) -> Result<TimesRecord, KafkaError> {
        self.find(|record| record.last)?.ok_or_else(|| KafkaError::NotReady { topic: self.topic.clone() })
    }

    /// What the last Kafka transaction has touched. Those before it are there in every partition: a transaction begins when
    /// the one before has come to its end everywhere.
    pub(super) fn last_touched(&self) -> Result<Vec<Touched>, KafkaError> {
        let (low, high) = self.client.watermarks(&self.topic, TIMES_PARTITION)?;
        let mut back = BACK;
        loop {
            let from = low.max(high.saturating_sub(back));
            let mut records = self.read(from)?;
            // The end of each takes an offset too.
            let is_one = |[one, other]: &[(i64, TimesRecord); 2]| one.0 + 1 == other.0;
            let end = records.array_windows().rposition(|two| !is_one(two)).map(|before| before + 1);
            if end.is_some() || from == low {
                let last = records.drain(end.unwrap_or(0)..);
                return Ok(last.flat_map(|(_, record)| record.partitions).collect());
            }
            back = back.saturating_mul(BACK_FACTOR);
        }
    }

    /// The last record for which `wanted` holds.
    fn find(&self, wanted: impl Fn(&TimesRecord) -> bool) -> Result<Option<TimesRecord>, KafkaError> {
        let (low, high) = self.client.watermarks(&self.topic, TIMES_PARTITION)?;
        let mut back = BACK;
        loop {
            let from = low.max(high.saturating_sub(back));
            let mut records = self.read(from)?;
            if let Some(at) = records.iter().rposition(|(_, record)| wanted(record)) {
                return Ok(Some(records.swap_remove(at).1));
            }
            if from == low {
                let forgotten = low > 0 && records.is_empty();
                return if forgotten { Err(KafkaError::Forgotten { topic: self.topic.clone() }) } else { Ok(None) };
            }
            back = back.saturating_mul(BACK_FACTOR);
        }
    }

    /// All records from an offset on, each with its own.
    fn read(&self, from: i64) -> Result<Vec<(i64, TimesRecord)>, KafkaError> {
        let mut records = Vec::new();
        self.client.read(&self.topic, TIMES_PARTITION, Offset::Offset(from), 0, |message| {
            records.push((message.offset(), decode(&message)?));
            Ok(())
        })?;
        Ok(records)
    }
}

/// The record that a message is.
pub(super) fn decode(message: &impl Message) -> Result<TimesRecord, KafkaError> {
    serde_json::from_slice(message.payload().unwrap_or_default()).map_err(|error| unusable(message, error.to_string()))
}

/// Says which record cannot be used, and why.
pub(super) fn unusable(message: &impl Message, why: String) -> KafkaError {
    KafkaError::Unusable {
        topic: message.topic().to_owned(),
        partition: message.partition(),
        offset: message.offset(),
        why,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_is_read_as_it_was_written() {
        let record = TimesRecord {
            time: 1_700_000_000_123,
            previous: None,
            lsn: Lsn(0x16_B374_D848),
            source: PublishedSource { system: u64::MAX, timeline: 2, slot: "feedmill".to_owned() },
            history: 0,
            snapshot: true,
            greatest_entry: 7,
            floor: None,
            done: 7,
            last: false,
            format: Format::Json,
            partitions: vec![Touched { topic: "tweets".to_owned(), partition: 3, offset: 12, records: 4 }],
        };
        let text = serde_json::to_string(&record).expect("it can be written");
        assert!(
            text.contains(r#""lsn":"16/B374D848""#) && text.contains(r#""system":"18446744073709551615""#),
            "{text}"
        );
        assert_eq!(serde_json::from_str::<TimesRecord>(&text).expect("it is read"), record);
    }
}
