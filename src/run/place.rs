//! Which process this is, of which, and where it reads and writes.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use feedmill_connectors::kafka::{KafkaLog, Share};
use feedmill_connectors::postgres::Source;
use feedmill_dataflows::Cluster;
use feedmill_model::SourceId;
use feedmill_sinks::ElasticSettings;
use feedmill_sinks::cql::CqlSettings;

use crate::config::{SearchPlace, Settings};

/// What `feedmill run` takes beside the settings.
#[derive(Args, Clone, Debug)]
pub struct RunArgs {
    /// Which line of --hosts this process is; the first is 0
    #[arg(long, env = "FEEDMILL_PROCESS", value_name = "I", default_value_t = 0)]
    pub process: usize,

    /// File with a line `host:port` for each process, the same for all of them; without it there is one
    #[arg(long, env = "FEEDMILL_HOSTS", value_name = "FILE")]
    pub hosts: Option<PathBuf>,

    /// Seconds for which a process waits for the others at the start
    #[arg(long, env = "FEEDMILL_MEETING_SECONDS", value_name = "SECONDS", default_value_t = Cluster::MEETING_MAX.as_secs())]
    pub meeting_seconds: u64,
}

/// A process's place, and what it works on.
#[derive(Clone)]
pub struct Place {
    /// Which process this is.
    pub process: usize,
    /// Where all of them listen; nothing if there is one.
    pub hosts: Vec<String>,
    /// Dataflow workers of each.
    pub workers: usize,
    /// What it reads and writes.
    pub estate: Estate,
    /// Where the accounts that are popular are written.
    pub source: Source,
    meeting_max: Duration,
}

/// Where all processes read and write.
#[derive(Clone)]
pub struct Estate {
    /// The log in Kafka.
    pub log: KafkaLog,
    /// The stores of facts, rows and home timelines.
    pub store: CqlSettings,
    /// The search index.
    pub search: ElasticSettings,
}

impl Estate {
    /// What the settings say, all of which must be there.
    pub fn new(settings: &Settings) -> anyhow::Result<Self> {
        let log = settings.kafka_log()?;
        let store = settings.cluster()?.context(
            "it is not said where the views are kept: name a CQL cluster with --store cql://one.example:9042/keyspace. \
             (Everything on one machine is `feedmill up`.)",
        )?;
        let SearchPlace::Elastic(search) = settings.search_place()? else {
            bail!("it is not said where search is kept: name an Elasticsearch with --search http://one.example:9200");
        };
        Ok(Estate { log, store, search: *search })
    }

    /// What all processes must have in common, beside settings of the views.
    pub fn task(&self) -> String {
        let KafkaLog { prefix, layout, .. } = &self.log;
        format!(
            "topics {prefix} ({layout:?}), keyspace {}, search {}",
            self.store.keyspace,
            self.search.address.prefix()
        )
    }

    /// Who writes the search index. A promoted standby goes on where the other was.
    pub fn owner(&self, source: &SourceId) -> String {
        format!("{}, {}", source.system, self.task())
    }
}

impl Place {
    /// What arguments and settings say, all of which must be there.
    pub fn new(args: &RunArgs, settings: &Settings) -> anyhow::Result<Self> {
        let hosts = args.hosts.as_deref().map(read_hosts).transpose()?.unwrap_or_default();
        let processes = hosts.len().max(1);
        ensure!(
            args.process < processes,
            "--process is {}, but there are {processes} processes, of which the first is 0: {}",
            args.process,
            match &args.hosts {
                Some(file) => format!("add it to {}, or give another number", file.display()),
                None => "name all of them with --hosts".to_owned(),
            }
        );
        let workers = settings.workers * processes;
        ensure!(
            workers <= 64,
            "{processes} processes with {} workers each are {workers} workers, but there must be at most 64, so that each has a shard: lower --workers",
            settings.workers
        );
        let estate = Estate::new(settings)?;
        let source = settings.database_url.as_deref().context(
            "it is not said where PostgreSQL is, into which accounts are written that have become popular: name it with \
             --database-url",
        )?;
        Ok(Place {
            process: args.process,
            hosts: if processes > 1 { hosts } else { Vec::new() },
            workers: settings.workers,
            estate,
            source: source.parse()?,
            meeting_max: Duration::from_secs(args.meeting_seconds),
        })
    }

    /// How many processes there are.
    pub fn processes(&self) -> usize {
        self.hosts.len().max(1)
    }

    /// The processes, if there are several.
    pub fn cluster(&self) -> Option<Cluster> {
        (self.processes() > 1).then(|| Cluster {
            process: self.process,
            hosts: self.hosts.clone(),
            meeting_max: self.meeting_max,
        })
    }

    /// The partitions that this process reads.
    pub fn share(&self) -> Share {
        Share { index: self.process, of: self.processes() }
    }

    /// The shards that this process writes, as bits.
    pub fn owned(&self) -> u64 {
        feedmill_dataflows::shards_of_process(self.process, self.workers, self.processes())
    }
}

/// Reads the places of the processes, a line each.
fn read_hosts(file: &Path) -> anyhow::Result<Vec<String>> {
    let text = std::fs::read_to_string(file)
        .with_context(|| format!("could not read {}, which --hosts names", file.display()))?;
    hosts(&text).with_context(|| format!("{}, which --hosts names, cannot be used", file.display()))
}

fn hosts(text: &str) -> anyhow::Result<Vec<String>> {
    let lines = text.lines().map(|line| line.split('#').next().unwrap_or_default().trim());
    let hosts: Vec<String> = lines.filter(|line| !line.is_empty()).map(str::to_owned).collect();
    ensure!(!hosts.is_empty(), "it has no line with `host:port`");
    for (number, host) in hosts.iter().enumerate() {
        let port = host.rsplit_once(':').filter(|(name, _)| !name.is_empty()).map(|(_, port)| port.parse::<u16>());
        ensure!(matches!(port, Some(Ok(1..))), "`{host}` is not `host:port`");
        ensure!(!hosts.iter().take(number).any(|other| other == host), "`{host}` is there twice");
    }
    Ok(hosts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_are_read_and_what_is_wrong_is_said() {
        let read = hosts("# two\n one:7000\n\n[::1]:7001 # the other\n").unwrap();
        assert_eq!(read, ["one:7000", "[::1]:7001"]);
        for (text, told) in [
            ("# none\n", "no line"),
            ("one", "`one` is not"),
            ("one:0", "`one:0` is not"),
            (":7000", "`:7000` is not"),
            ("one:7000\none:7000", "twice"),
        ] {
            let error = hosts(text).unwrap_err().to_string();
            assert!(error.contains(told), "{text}: {error}");
        }
    }
}
