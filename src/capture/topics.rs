//! What the settings say of Kafka.

use std::time::Duration;

use anyhow::{Context, ensure};
use feedmill_connectors::kafka::{Compression, KafkaLog, Layout, TopicOptions};

use crate::config::{Settings, TopicCompression, TopicLayout};

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
        Ok(KafkaLog { servers, prefix: self.topic_prefix.clone(), layout })
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
        if self.publish.is_some() {
            self.kafka_log()?;
        }
        Ok(())
    }
}
