//! From the source into the change log, also when the source is no longer what it was.
//!
//! ```text
//!   Capture ── Incoming, bounded ──► writer ──► log ── durable ──► acknowledge
//!      │
//!      └─ mismatch: slot gone, lost or moved; database restored, promoted or replaced
//!            ├─ stop:    end with what was found and what mends it
//!            └─ resync:  writer ends ─► new slot and snapshot ─► the difference becomes one batch ─► capture again
//! ```
//!
//! Why positions of two histories never mix: the writer has made everything durable that it was given before the log is
//! brought to the new snapshot, and capture begins anew with nothing outstanding. Stores and home timelines stay; they
//! receive the difference like any other batch.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feedmill_connectors::postgres::{ReplicationError, Source, Spilling};
use feedmill_ingest::{Log, run_writer};
use feedmill_model::{Lsn, SourceId};
use feedmill_sinks::Progress;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

use super::capture::{Capture, Cut};
use super::stations::Stations;
use super::{now_ms, renew};
use crate::config::{OnMismatch, Settings};

/// Transactions and keepalives between capture and the writer of the change log.
const INCOMING_MAX: usize = 4_096;
/// Pause before another attempt to bring the log to a new snapshot, when the last one failed for a passing reason.
const RETRY: Duration = Duration::from_secs(2);

/// What the intake needs.
pub struct Intake {
    /// The database.
    pub source: Source,
    /// Where its transactions go.
    pub log: Log,
    /// What to do on a mismatch, and how to copy.
    pub settings: Settings,
    /// Told what is durable.
    pub durable: Arc<watch::Sender<Lsn>>,
    /// Told which source the log is of.
    pub identity: watch::Sender<SourceId>,
    /// Whom readers wait at.
    pub progress: Arc<Progress>,
    /// Requests to end a batch.
    pub cuts: mpsc::Receiver<Cut>,
    /// Where it reports how far it is.
    pub stations: Arc<Stations>,
    /// Ends it.
    pub shutdown: CancellationToken,
}

impl Intake {
    /// Takes in what is committed until shutdown.
    pub async fn run(mut self) -> anyhow::Result<&'static str> {
        loop {
            let captured = self.capture().await;
            let Err(error) = captured else { return Ok("the intake") };
            let mismatch = match error.downcast::<ReplicationError>() {
                Ok(mismatch) if mismatch.is_mismatch() => mismatch,
                Ok(error) => return Err(error.into()),
                Err(error) => return Err(error),
            };
            if self.settings.on_mismatch == OnMismatch::Stop {
                return Err(renew::explained(mismatch));
            }
            let renewed = tokio::select! {
                renewed = renew::renew(&self.source, &self.log, &self.settings, &self.stations, &mismatch) => renewed,
                () = self.shutdown.cancelled() => return Ok("the intake"),
            };
            match renewed {
                Ok(renewed) => {
                    self.durable.send_replace(renewed.position.lsn);
                    self.identity.send_replace(renewed.identity);
                    self.progress.begin_history(renewed.position.time);
                }
                Err(error) if renew::is_transient(&error) => {
                    tracing::warn!("the resync failed ({error:#}); trying again in {RETRY:?}");
                    tokio::time::sleep(RETRY).await;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Captures until shutdown or until no retry helps. When this returns, everything that was captured is durable.
    async fn capture(&mut self) -> anyhow::Result<()> {
        let (incoming, received) = mpsc::channel(INCOMING_MAX);
        let mut writer = {
            let (log, durable) = (self.log.clone(), Arc::clone(&self.durable));
            tokio::task::spawn_blocking(move || run_writer(&log, received, &durable, now_ms))
        };
        let capture = Capture {
            source: self.source.clone(),
            known: self.log.source().context("the change log does not say of which source it is")?,
            incoming,
            durable: self.durable.subscribe(),
            wanted: self.progress.wanted(),
            cuts: &mut self.cuts,
            spilling: Spilling {
                reserve_bytes: self.settings.disk_reserve_mb << 20,
                follower: Some(self.log.sorter()),
                ..Spilling::to(self.settings.data.join("spill"))
            },
            stations: Arc::clone(&self.stations),
            shutdown: self.shutdown.clone(),
        };
        tokio::select! {
            captured = capture.run() => {
                writer.await??;
                captured
            }
            // It ends before capture does only when it has failed.
            written = &mut writer => Ok(written??),
        }
    }
}
