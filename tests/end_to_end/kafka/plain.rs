//! A consumer that knows Debezium's documentation and nothing of Feedmill.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use rdkafka::config::ClientConfig;
use rdkafka::consumer::{BaseConsumer, Consumer};
use rdkafka::error::KafkaError;
use rdkafka::message::Message;
use rdkafka::{Offset, TopicPartitionList};
use serde_json::Value;

use crate::system::LIMIT;

/// A committed record.
#[derive(Clone, Debug, PartialEq)]
pub struct Record {
    pub partition: i32,
    pub offset: i64,
    pub timestamp: i64,
    pub key: Option<Value>,
    /// `None` for a tombstone.
    pub value: Option<Value>,
}

pub fn consumer(servers: &str) -> BaseConsumer {
    let mut config = ClientConfig::new();
    config.set("bootstrap.servers", servers).set("group.id", "plain").set("enable.auto.commit", "false");
    config.set("isolation.level", "read_committed").set("enable.partition.eof", "true");
    // What is read is read to its end, of which the broker tells after so long.
    config.set("fetch.wait.max.ms", "5");
    config.create().unwrap()
}

/// All committed records of a topic, partition by partition, which are JSON.
pub fn records(servers: &str, topic: &str) -> Vec<Record> {
    records_by(servers, topic, |bytes| serde_json::from_slice(bytes).unwrap())
}

/// How many they are.
pub fn count(servers: &str, topic: &str) -> usize {
    records_by(servers, topic, |_| Value::Null).len()
}

/// The same, of which `decode` gives keys and values as JSON.
pub fn records_by(servers: &str, topic: &str, decode: impl Fn(&[u8]) -> Value) -> Vec<Record> {
    let consumer = consumer(servers);
    let deadline = Instant::now() + LIMIT;
    let partitions = loop {
        let metadata = consumer.fetch_metadata(Some(topic), Duration::from_secs(10));
        let partitions = metadata.map_or(0, |metadata| metadata.topics()[0].partitions().len());
        if partitions > 0 {
            break i32::try_from(partitions).unwrap();
        }
        assert!(Instant::now() < deadline, "there is no topic {topic}");
    };
    let mut assignment = TopicPartitionList::new();
    for partition in 0..partitions {
        assignment.add_partition_offset(topic, partition, Offset::Beginning).unwrap();
    }
    consumer.assign(&assignment).unwrap();
    let (mut records, mut ended) = (Vec::new(), 0);
    while ended < partitions {
        assert!(Instant::now() < deadline, "{topic} does not end");
        match consumer.poll(Duration::from_millis(100)) {
            Some(Ok(message)) => {
                records.push(Record {
                    partition: message.partition(),
                    offset: message.offset(),
                    timestamp: message.timestamp().to_millis().unwrap(),
                    key: message.key().map(&decode),
                    value: message.payload().map(&decode),
                });
            }
            Some(Err(KafkaError::PartitionEOF(_))) => ended += 1,
            Some(Err(_)) | None => {}
        }
    }
    records.sort_by_key(|record| (record.partition, record.offset));
    records
}

/// The rows of a table, by its key as JSON.
pub type Table = BTreeMap<String, Value>;

/// What the change events of a topic come to, table by table, by the rules of the documentation: `c` and `r` bring a row, `u`
/// replaces it, `d` takes it away, and a tombstone says that nothing is left of the key.
pub fn tables(records: &[Record]) -> BTreeMap<String, Table> {
    let mut tables: BTreeMap<String, Table> = BTreeMap::new();
    for Record { key, value, .. } in records {
        let key = key.as_ref().expect("an event has a key").to_string();
        let Some(value) = value else {
            tables.values_mut().for_each(|table| drop(table.remove(&key)));
            continue;
        };
        let source = &value["source"];
        assert_eq!((&source["connector"], &source["schema"]), (&"postgresql".into(), &"public".into()), "{value}");
        assert!(source["lsn"].is_u64() && source["ts_ms"].is_u64() && value["ts_ms"].is_u64(), "{value}");
        let table = tables.entry(source["table"].as_str().unwrap().to_owned()).or_default();
        let (before, after) = (&value["before"], &value["after"]);
        match value["op"].as_str().unwrap() {
            "r" => {
                assert!(before.is_null(), "{value}");
                table.insert(key, after.clone());
            }
            "c" => {
                assert!(before.is_null(), "{value}");
                assert_eq!(table.insert(key, after.clone()), None, "{value}");
            }
            "u" => assert_eq!(table.insert(key, after.clone()).as_ref(), Some(before), "{value}"),
            "d" => {
                assert!(after.is_null(), "{value}");
                assert_eq!(table.remove(&key).as_ref(), Some(before), "{value}");
            }
            other => panic!("the documentation knows no operation {other}"),
        }
    }
    tables
}
