//! From the change log into the dataflows.
//!
//! ```text
//!   Log::state_at(load time) ── slices ─► Runtime::load … loaded ─► Log::reader ── batch ─► Runtime::feed
//!                                                                       │
//!                                            Hold: no batch beyond a position, while `verify` reads the stores
//!                                            (a large batch comes in pieces, and is held only after its last);
//!                                            likewise of what is published
//! ```
//!
//! The feeder is one thread. `Runtime::feed` blocks while too much is in flight, so what the stores cannot take stays in
//! the log, on disk.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feedmill_dataflows::Runtime;
use feedmill_ingest::Log;
use feedmill_model::{Lsn, Position, failpoint};
use feedmill_sinks::Progress;
use parking_lot::{Condvar, Mutex};
use tokio_util::sync::CancellationToken;

use super::stations::{Station, Stations};

/// How long the feeder waits for a batch or a release before it looks whether it should end.
const WAIT: Duration = Duration::from_millis(100);

/// Keeps what takes batches from taking one beyond a position.
#[derive(Default)]
pub struct Hold {
    at: Mutex<Option<Lsn>>,
    released: Condvar,
}

/// While this lives, nothing is taken beyond the position.
pub struct Held(Arc<Hold>);

impl Hold {
    /// Holds at the first batch that covers `lsn`. One hold at a time: the later replaces the earlier.
    pub fn at(self: &Arc<Self>, lsn: Lsn) -> Held {
        *self.at.lock() = Some(lsn);
        Held(Arc::clone(self))
    }

    /// Whether nothing is to be handed on after the batch at `position`.
    pub fn is_at(&self, position: Position) -> bool {
        self.at.lock().is_some_and(|lsn| position.lsn >= lsn)
    }

    /// Blocks while nothing is to be handed on after the batch at `position`.
    pub fn wait(&self, position: Position, station: &Station, shutdown: &CancellationToken) {
        let mut at = self.at.lock();
        let mut held = false;
        while at.is_some_and(|lsn| position.lsn >= lsn) && !shutdown.is_cancelled() {
            station.held("`feedmill verify` compares what there is");
            held = true;
            self.released.wait_for(&mut at, WAIT);
        }
        if held {
            station.goes_on();
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        *self.0.at.lock() = None;
        self.0.released.notify_all();
    }
}

/// Loads the state at `load` into the dataflows.
pub fn load(log: &Log, runtime: &Runtime, load: Position, stations: &Stations) -> anyhow::Result<()> {
    stations.load().begin(Some(log.rows_about()), "rows of the change log into the dataflows");
    let mut rows = 0;
    for slice in log.state_at(load.time).context("could not load the state from the change log")? {
        let slice = slice.context("could not load the state from the change log")?;
        let slice_rows = slice.len() as u64;
        runtime.load(slice)?;
        stations.load().add(slice_rows);
        if stations.is_replaying() {
            stations.replay().add(slice_rows);
        }
        rows += slice_rows;
    }
    // What is not in this state comes after it, through the join: so home timelines are complete above the greatest entry
    // that is, and a system that begins empty pushes whatever is imported into it.
    runtime.loaded(log.greatest_entry())?;
    // Nothing counts as loaded, and so nothing as caught up, before facts and rows that were lost are there again.
    runtime.wait_until_loaded()?;
    tracing::info!("loaded {rows} rows into the dataflows");
    stations.load().end(format!("{rows} rows"));
    stations.dataflows().reached(load);
    Ok(())
}

/// Feeds batches until shutdown.
pub fn feed(
    log: &Log,
    runtime: &Runtime,
    progress: &Progress,
    hold: &Hold,
    load: Position,
    stations: &Stations,
    shutdown: &CancellationToken,
) -> anyhow::Result<()> {
    let mut reader = log.reader(load.time).context("could not read the change log")?;
    let mut last = load;
    while !shutdown.is_cancelled() {
        hold.wait(last, stations.dataflows(), shutdown);
        let Some(batch) = reader.next(WAIT).context("could not read the change log")? else { continue };
        // A time of which a piece is fed must be fed to its end: nothing is held in between.
        if batch.last {
            last = batch.position;
            if last.time < log.history() {
                // A position of another history says nothing to who waits for one of this.
                last.lsn = Lsn(0);
            }
            progress.covers(last);
        } else {
            stations.dataflows().midway();
        }
        let changes = batch.changes.len() as u64;
        failpoint!("batch_handed_over_before");
        runtime.feed(batch)?;
        failpoint!("batch_handed_over_after");
        stations.dataflows().reached(last);
        stations.dataflows().changed(changes);
    }
    Ok(())
}
