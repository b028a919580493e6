//! The topics: their names, and how they are made.

use std::collections::HashMap;
use std::time::{Duration, Instant};

use feedmill_model::Relation;
use futures::executor::block_on;
use rdkafka::admin::{AdminClient, AdminOptions, NewTopic, ResourceSpecifier, TopicReplication};
use rdkafka::consumer::Consumer;
use rdkafka::error::{KafkaError as Native, RDKafkaErrorCode};
use rdkafka::message::Message;
use rdkafka::metadata::Metadata;
use rdkafka::{Offset, TopicPartitionList};
use serde::{Deserialize, Serialize};

use super::Servers;
use super::client::{self, ANSWER_MAX, Client, SILENCE_MAX, Said, partitions};
use super::error::{KafkaError, failed, unusable_settings};
use super::registry::RegistryAddress;

/// A record is at most so large: rows before and after, and what is around them.
pub(super) const RECORD_BYTES_MAX: &str = "16777216";
/// How long a topic that was made may take to be known everywhere.
const KNOWN_MAX: Duration = Duration::from_secs(20);
const KNOWN_POLL: Duration = Duration::from_millis(50);
/// The one partition of `times`.
pub(super) const TIMES_PARTITION: i32 = 0;

/// Where the log is.
#[derive(Clone, Debug)]
pub struct KafkaLog {
    /// The brokers.
    pub servers: Servers,
    /// What the names of its topics begin with.
    pub prefix: String,
    /// How changes are distributed over topics.
    pub layout: Layout,
    /// In which form records are written. Either is read.
    pub format: Format,
    /// Who has the schemas of what is Avro.
    pub registry: Option<RegistryAddress>,
}

/// In which form keys and values are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// JSON without schemas.
    #[default]
    Json,
    /// Avro, with a schema registry. A topic has one table then.
    Avro,
}

/// How changes are distributed over topics.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Layout {
    /// A topic a table, named as Debezium does: `PREFIX.public.tweets`.
    #[default]
    Tables,
    /// Four topics, without a prefix: `tweets`, `tweet-interactions`, `user-interactions`, `user-events`. A key says of which
    /// table it is, as it does where Debezium routes several tables into one topic.
    Subjects,
}

impl Format {
    pub(super) const fn name(self) -> &'static str {
        match self {
            Format::Json => "json",
            Format::Avro => "avro",
        }
    }
}

/// How topics are made that are not there, and what is written into them.
#[derive(Clone, Debug)]
pub struct TopicOptions {
    /// Partitions of each topic but `times`, which has one. They cannot be changed afterwards.
    pub partitions: i32,
    /// Copies that the brokers keep of each.
    pub replication: i32,
    /// How long changes and times are kept.
    pub retention: Duration,
    /// How records are compressed.
    pub compression: Compression,
}

/// How records are compressed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Compression {
    /// Not at all.
    None,
    /// By LZ4.
    #[default]
    Lz4,
    /// By gzip.
    Gzip,
    /// By Zstandard.
    Zstd,
}

impl Compression {
    pub(super) const fn codec(self) -> &'static str {
        match self {
            Compression::None => "none",
            Compression::Lz4 => "lz4",
            Compression::Gzip => "gzip",
            Compression::Zstd => "zstd",
        }
    }
}

/// The names of the topics of a log.
#[derive(Clone, Debug)]
pub struct Topics {
    prefix: String,
    layout: Layout,
    /// Change topics, and as many row topics in the same order.
    names: Vec<String>,
    /// As Debezium names the topics of the tables, in the order of [`Relation::ALL`].
    tables: [String; Relation::ALL.len()],
}

/// What the names of row topics end with.
pub(super) const ROWS: &str = ".rows";
const SUBJECTS: [&str; 4] = ["tweets", "tweet-interactions", "user-interactions", "user-events"];

impl Topics {
    /// The topics of `log`.
    pub fn of(log: &KafkaLog) -> Self {
        let tables = Relation::ALL.map(|relation| format!("{}.public.{}", log.prefix, relation.table()));
        let changes: Vec<String> = match log.layout {
            Layout::Tables => tables.to_vec(),
            Layout::Subjects => SUBJECTS.map(str::to_owned).into(),
        };
        let rows = changes.iter().map(|name| format!("{name}{ROWS}"));
        let names = changes.iter().cloned().chain(rows).collect();
        Topics { prefix: log.prefix.clone(), layout: log.layout, names, tables }
    }

    /// What the names begin with.
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The topic that closes batches.
    pub fn times(&self) -> String {
        format!("{}.times", self.prefix)
    }

    /// By which the publisher of these topics is known to be the only one.
    pub fn transactional_id(&self) -> String {
        format!("{}.publisher", self.prefix)
    }

    /// The topics of changes.
    pub fn changes(&self) -> impl Iterator<Item = &str> {
        self.names.iter().take(self.names.len() / 2).map(String::as_str)
    }

    /// The topics of rows, in the order of those of changes.
    pub fn rows(&self) -> impl Iterator<Item = &str> {
        self.names.iter().skip(self.names.len() / 2).map(String::as_str)
    }

    /// The topic of the changes of a relation, and that of its rows, as numbers for [`Self::name`].
    pub(super) fn numbers(&self, relation: Relation) -> (usize, usize) {
        let number = match self.layout {
            Layout::Tables => Relation::ALL.iter().position(|known| *known == relation).unwrap_or(0),
            Layout::Subjects => match relation {
                Relation::Tweets => 0,
                Relation::Likes | Relation::Retweets => 1,
                Relation::Follows | Relation::Blocks | Relation::Mutes => 2,
                Relation::Users | Relation::Activity | Relation::Popular | Relation::ReadMarks => 3,
            },
        };
        (number, number + self.names.len() / 2)
    }

    /// The name of a topic.
    pub(super) fn name(&self, number: usize) -> &str {
        self.names.get(number).map_or("", String::as_str)
    }

    /// How keys say of which table they are, if topics have several.
    pub(super) fn table_of_key(&self, relation: Relation) -> Option<&str> {
        let number = Relation::ALL.iter().position(|known| *known == relation)?;
        self.tables.get(number).filter(|_| self.layout == Layout::Subjects).map(String::as_str)
    }

    /// The relation of a record in the topic of this name, whose key names `table`.
    pub(super) fn relation(&self, topic: &str, table_of_key: Option<&str>) -> Option<Relation> {
        let topic = topic.strip_suffix(ROWS).unwrap_or(topic);
        let named = match self.layout {
            Layout::Tables => topic,
            Layout::Subjects => table_of_key?,
        };
        Relation::ALL.into_iter().zip(&self.tables).find(|(_, table)| *table == named).map(|(relation, _)| relation)
    }
}

/// A topic as it has to be.
struct Wanted<'a> {
    name: &'a str,
    partitions: i32,
    /// `delete` after the retention, or `compact`.
    policy: &'a str,
}

/// Makes the topics that are not there, and checks those that are.
pub fn prepare(log: &KafkaLog, options: &TopicOptions) -> Result<(), KafkaError> {
    let topics = Topics::of(log);
    let client = Client::new(&log.servers)?;
    let retention = options.retention.as_millis().to_string();
    let times = topics.times();
    let wanted = |name, partitions, policy| Wanted { name, partitions, policy };
    let wanted: Vec<Wanted<'_>> = topics
        .changes()
        .map(|name| wanted(name, options.partitions, "delete"))
        .chain(topics.rows().map(|name| wanted(name, options.partitions, "compact")))
        .chain([wanted(&times, 1, "delete")])
        .collect();
    let known = client.metadata()?;
    let missing = wanted.iter().filter(|topic| partitions(&known, topic.name).is_none());
    let new: Vec<NewTopic<'_>> = missing
        .map(|topic| {
            NewTopic::new(topic.name, topic.partitions, TopicReplication::Fixed(options.replication))
                .set("cleanup.policy", topic.policy)
                .set("retention.ms", if topic.policy == "delete" { &retention } else { "-1" })
                .set("message.timestamp.type", "CreateTime")
                .set("max.message.bytes", RECORD_BYTES_MAX)
        })
        .collect();
    let servers = &log.servers;
    let admin = client::config(&log.servers).create_with_context(Said::default());
    let admin: AdminClient<Said> = admin.map_err(|error| unusable_settings(servers, &error))?;
    let ask = AdminOptions::new().request_timeout(Some(ANSWER_MAX)).operation_timeout(Some(ANSWER_MAX));
    if !new.is_empty() {
        let made = block_on(admin.create_topics(&new, &ask));
        for made in made.map_err(|error| client.failed("make topics", &error))? {
            match made {
                Ok(_) | Err((_, RDKafkaErrorCode::TopicAlreadyExists)) => {}
                Err((name, code)) => {
                    let why = format!("{code}; {} brokers are up", known.brokers().len());
                    let tried = format!(
                        "make the topic {name} with {} partitions and {} copies of each",
                        options.partitions, options.replication
                    );
                    return Err(failed(tried, servers, Some(code), why));
                }
            }
        }
        tracing::info!("made {} topics, from {} to {times}", new.len(), topics.name(0));
    }
    let deadline = Instant::now() + KNOWN_MAX;
    for Wanted { name, partitions: expected, .. } in &wanted {
        let found = loop {
            match led(&client.metadata()?, name) {
                Some(found) => break found,
                None if Instant::now() < deadline => std::thread::sleep(KNOWN_POLL),
                None => return Err(client.silent(format!("find the topic {name}, which was made"))),
            }
        };
        if found != *expected {
            return Err(KafkaError::Topic {
                topic: (*name).to_owned(),
                found: format!("{found} partitions"),
                expected: expected.to_string(),
                mend: "set --topic-partitions to what there is; with another number rows would move to other partitions, so \
                       that needs other topics (--topic-prefix)"
                    .to_owned(),
            });
        }
    }
    check_settings(&admin, &client, &wanted, &ask)
}

/// How many partitions a topic has, once each has a broker that answers for it.
fn led(metadata: &Metadata, name: &str) -> Option<i32> {
    let topic = metadata.topics().iter().find(|topic| topic.name() == name)?;
    let is_led = topic.partitions().iter().all(|partition| partition.leader() >= 0);
    partitions(metadata, name).filter(|_| is_led)
}

/// Whether the topics of changes and rows hold nothing, as they must where nothing was published: rows that another log has
/// left there would be taken for ours.
pub(super) fn check_empty(log: &KafkaLog) -> Result<(), KafkaError> {
    let (topics, client) = (Topics::of(log), Client::new(&log.servers)?);
    let metadata = client.metadata()?;
    let failed = |error: &Native| client.failed("see whether the topics are empty", error);
    let mut assignment = TopicPartitionList::new();
    for topic in topics.changes().chain(topics.rows()) {
        for partition in 0..partitions(&metadata, topic).unwrap_or(0) {
            let added = assignment.add_partition_offset(topic, partition, Offset::Beginning);
            added.map_err(|error| failed(&error))?;
        }
    }
    client.consumer.assign(&assignment).map_err(|error| failed(&error))?;
    let mut ended = 0;
    let deadline = Instant::now() + SILENCE_MAX;
    while ended < assignment.count() {
        match client.consumer.poll(KNOWN_POLL) {
            Some(Ok(message)) => {
                return Err(KafkaError::Topic {
                    topic: message.topic().to_owned(),
                    found: format!("records, of which {} knows nothing", topics.times()),
                    expected: "none".to_owned(),
                    mend: "they are of another log. Remove the topics, or name others with --topic-prefix and \
                           --topic-layout"
                        .to_owned(),
                });
            }
            Some(Err(Native::PartitionEOF(_))) => ended += 1,
            Some(Err(_)) | None if Instant::now() < deadline => {}
            Some(Err(_)) | None => return Err(client.silent("see whether the topics are empty")),
        }
    }
    Ok(())
}

/// Whether the topics keep what they must, with the timestamps that were given to it.
fn check_settings(
    admin: &AdminClient<Said>,
    client: &Client,
    wanted: &[Wanted<'_>],
    ask: &AdminOptions,
) -> Result<(), KafkaError> {
    let resources: Vec<ResourceSpecifier<'_>> =
        wanted.iter().map(|topic| ResourceSpecifier::Topic(topic.name)).collect();
    let told = block_on(admin.describe_configs(&resources, ask));
    let told = told.map_err(|error| client.failed("ask for the settings of the topics", &error))?;
    for (Wanted { name, policy, .. }, told) in wanted.iter().zip(told) {
        // Who may not ask is not kept from publishing.
        let Ok(told) = told else { continue };
        let settings: HashMap<&str, Option<&str>> =
            told.entries.iter().map(|entry| (entry.name.as_str(), entry.value.as_deref())).collect();
        for (setting, expected) in [("cleanup.policy", *policy), ("message.timestamp.type", "CreateTime")] {
            let found = settings.get(setting).copied().flatten();
            if found.is_some_and(|found| found != expected) {
                return Err(KafkaError::Topic {
                    topic: (*name).to_owned(),
                    found: format!("{setting}={}", found.unwrap_or_default()),
                    expected: expected.to_owned(),
                    mend: "set that with kafka-configs.sh".to_owned(),
                });
            }
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn topics(layout: Layout) -> Topics {
        let servers = "kafka://one:9092".parse().expect("an address");
        let format = Format::Json;
        Topics::of(&KafkaLog { servers, prefix: "feedmill".to_owned(), layout, format, registry: None })
    }

    #[test]
    fn each_relation_has_a_topic_and_is_known_again_by_its_records() {
        for layout in [Layout::Tables, Layout::Subjects] {
            let topics = topics(layout);
            for relation in Relation::ALL {
                let (changes, rows) = topics.numbers(relation);
                assert_eq!(format!("{}.rows", topics.name(changes)), topics.name(rows));
                let key = topics.table_of_key(relation);
                for topic in [changes, rows] {
                    assert_eq!(topics.relation(topics.name(topic), key), Some(relation));
                }
            }
        }
    }

    #[test]
    fn the_names_are_those_of_debezium_or_of_the_subjects() {
        let names = |layout| topics(layout).changes().map(str::to_owned).collect::<Vec<_>>();
        assert_eq!(names(Layout::Tables)[..2], ["feedmill.public.users", "feedmill.public.tweets"]);
        assert_eq!(names(Layout::Subjects), ["tweets", "tweet-interactions", "user-interactions", "user-events"]);
        assert_eq!(topics(Layout::Subjects).times(), "feedmill.times");
    }
}
