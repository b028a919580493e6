//! From Kafka into the dataflows.
//!
//! ```text
//!   row topics, as of the load ─ slices ─► load … loaded ─► change topics and `times` ─ batches ─► feed
//!                                                              ▲ Kafka is away, between two batches: open again
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context;
use feedmill_connectors::kafka::{BatchReader, Hydration, KafkaError, KafkaLog, Share};
use feedmill_dataflows::Runtime;
use feedmill_model::{Batch, Lsn, Position, SourceId, failpoint};
use feedmill_sinks::cql::CqlIndex;
use feedmill_sinks::{IndexStore, Progress};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::stores::Beginning;
use crate::up::stations::Stations;

/// How long to wait for a batch before it is looked whether to end.
const WAIT: Duration = Duration::from_millis(100);
/// How long the records of a batch may be late before it is told which partition lacks them.
const SILENT_MAX: Duration = Duration::from_secs(3);
/// Pause before a reader is opened again.
const RETRY: Duration = Duration::from_millis(500);
/// A reader that cannot be opened for so long is given up, so that whoever runs this knows.
const AWAY_MAX: Duration = Duration::from_secs(600);

/// What feeds the dataflows of this process.
pub struct Feeding {
    /// From where.
    pub log: KafkaLog,
    /// Which part of it.
    pub share: Share,
    /// Where it begins.
    pub beginning: Beginning,
    /// Where to.
    pub runtime: Arc<Runtime>,
    /// Told which positions the times have.
    pub progress: Arc<Progress>,
    /// Told of which history positions are, for who reads it elsewhere; by one process.
    pub index: Option<Arc<CqlIndex>>,
    /// Told once the state is loaded.
    pub loaded: watch::Sender<bool>,
    /// Where it reports how far it is.
    pub stations: Arc<Stations>,
    /// Ends it.
    pub end: CancellationToken,
}

impl Feeding {
    /// Loads and feeds until the end.
    pub fn run(self) -> anyhow::Result<()> {
        let fed = self.load().and_then(|()| self.feed());
        // The dataflows know best why they took no more.
        self.runtime.join()?;
        match fed {
            Err(_) if self.end.is_cancelled() => Ok(()),
            fed => fed,
        }
    }

    /// Loads this share of the state.
    fn load(&self) -> anyhow::Result<()> {
        let load = self.beginning.load;
        self.stations.load().begin(None, "rows of Kafka into the dataflows");
        let mut rows = 0;
        for slice in Hydration::begin(&self.log, self.share, load.time).context("could not load the state")? {
            let slice = slice.context("could not load the state")?;
            rows += slice.len() as u64;
            self.stations.load().add(slice.len() as u64);
            self.runtime.load(slice)?;
            if self.end.is_cancelled() {
                return Ok(());
            }
        }
        self.runtime.loaded(self.beginning.floor)?;
        self.runtime.wait_until_loaded()?;
        tracing::info!("loaded {rows} rows into the dataflows");
        self.stations.load().end(format!("{rows} rows"));
        self.stations.dataflows().reached(load);
        self.loaded.send_replace(true);
        Ok(())
    }

    /// Feeds batches until the end.
    fn feed(&self) -> anyhow::Result<()> {
        let (mut last, mut midway, mut told) = (self.beginning.load, false, None);
        let mut given = Instant::now();
        let mut reader = self.reader(last)?;
        while !self.end.is_cancelled() {
            self.runtime.check()?;
            let next = match &mut reader {
                Some(reader) => reader.next(WAIT),
                None => return Ok(()),
            };
            let batch = match next {
                Ok(Some(batch)) => batch,
                Ok(None) => {
                    let lacking = reader.as_ref().and_then(BatchReader::waits_for);
                    if let Some(partition) = lacking.filter(|_| given.elapsed() > SILENT_MAX) {
                        let why = format!("{partition} in Kafka does not give what `times` tells of: has it a leader?");
                        self.stations.dataflows().waiting(why);
                    }
                    continue;
                }
                // The pieces of a time that were fed cannot be fed again.
                Err(error) if error.is_transient() && !midway => {
                    self.wait_for(&error);
                    reader = self.reader(last)?;
                    continue;
                }
                Err(error) => return Err(error).context("could not read the log"),
            };
            given = Instant::now();
            let record = reader.as_ref().and_then(BatchReader::record);
            let history = record.map_or(0, |record| record.history);
            if let (Some(index), Some(record)) = (&self.index, record)
                && told.as_ref() != Some(&(history, record.source.clone()))
            {
                index.begin_history(&SourceId::from(&record.source), history)?;
                told = Some((history, record.source.clone()));
            }
            midway = !batch.last;
            if batch.last {
                last = batch.position;
                let lsn = if last.time < history { Lsn(0) } else { last.lsn };
                self.progress.covers(Position { lsn, ..last });
            } else {
                self.stations.dataflows().midway();
            }
            self.give(batch, last)?;
        }
        Ok(())
    }

    fn give(&self, batch: Batch, last: Position) -> anyhow::Result<()> {
        let changes = batch.changes.len() as u64;
        failpoint!("batch_handed_over_before");
        self.runtime.feed(Arc::new(batch))?;
        failpoint!("batch_handed_over_after");
        self.stations.dataflows().reached(last);
        self.stations.dataflows().changed(changes);
        Ok(())
    }

    /// Reads what comes after `last`; waits for Kafka. `None` at the end.
    fn reader(&self, last: Position) -> anyhow::Result<Option<BatchReader>> {
        let since = Instant::now();
        while !self.end.is_cancelled() {
            self.runtime.check()?;
            match BatchReader::open(&self.log, self.share, last.time) {
                Err(error) if error.is_transient() && since.elapsed() < AWAY_MAX => self.wait_for(&error),
                reader => return reader.map(Some).context("could not read the log"),
            }
        }
        Ok(None)
    }

    fn wait_for(&self, error: &KafkaError) {
        tracing::warn!("waiting for the log: {error}");
        self.stations.kafka().waiting(error.to_string());
        std::thread::sleep(RETRY);
    }
}
