//! What the settings say of Kafka.

use std::time::Duration;

use anyhow::{Context, ensure};
use feedmill_connectors::kafka::{Compression, Format, KafkaLog, Layout, RegistryAddress, TopicOptions};

use crate::config::{Settings, TopicCompression, TopicFormat, TopicLayout};

/// A topic's name may have 249 characters, and ours add up to 30 to the prefix.
const PREFIX_MAX: usize = 200;

impl Settings {
    /// The log in Kafka.
    pub fn kafka_log(&self) -> anyhow::Result<KafkaLog> {
        let servers = self.publish.as_deref().context(
            "it is not said where the change log is published: name Kafka with --publish kafka://one.example:9092",
        )?;
        let layout = match self.topic_layout {
            TopicLayout::Tables => Layout::Tables,
            TopicLayout::Subjects => Layout::Subjects,
        };
        let servers = servers.parse().context("--publish cannot be used")?;
        let format = match self.topic_format {
            TopicFormat::Json => Format::Json,
            TopicFormat::Avro => Format::Avro,
        };
        Ok(KafkaLog { servers, prefix: self.topic_prefix.clone(), layout, format, registry: self.registry_address()? })
    }

    /// How topics are made and written.
    pub fn topic_options(&self) -> TopicOptions {
        TopicOptions {
            partitions: i32::from(self.topic_partitions),
            replication: if self.topic_replication == 0 { -1 } else { i32::from(self.topic_replication) },
            retention: Duration::from_secs(u64::from(self.topic_retention_hours) * 3_600),
            compression: match self.topic_compression {
                TopicCompression::Lz4 => Compression::Lz4,
                TopicCompression::Gzip => Compression::Gzip,
                TopicCompression::Zstd => Compression::Zstd,
                TopicCompression::None => Compression::None,
            },
        }
    }

    /// Where the schema registry is, if there is one.
    pub fn registry_address(&self) -> anyhow::Result<Option<RegistryAddress>> {
        self.registry.as_deref().map(str::parse).transpose().context("--registry cannot be used")
    }

    pub(crate) fn check_topics(&self) -> anyhow::Result<()> {
        let is_name = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        ensure!(
            !self.topic_prefix.is_empty()
                && self.topic_prefix.len() <= PREFIX_MAX
                && self.topic_prefix.chars().all(is_name),
            "--topic-prefix is `{}`, but must be 1 to {PREFIX_MAX} letters, digits, dots, dashes and underscores",
            self.topic_prefix
        );
        ensure!(self.topic_partitions > 0, "--topic-partitions is 0, but must be at least 1");
        ensure!(self.topic_retention_hours > 0, "--topic-retention-hours is 0, but must be at least 1");
        let registry = self.registry_address()?;
        if self.topic_format == TopicFormat::Avro {
            ensure!(
                registry.is_some(),
                "--topic-format is avro, which needs a schema registry: name it with --registry"
            );
            ensure!(
                self.topic_layout == TopicLayout::Tables,
                "--topic-format is avro, of which a topic has one schema, so --topic-layout must be tables"
            );
        }
        if self.publish.is_some() {
            self.kafka_log()?;
        }
        Ok(())
    }
}
