//! From the change log into the dataflows.
//!
//! ```text
//!   Log::state_of(load time) ── slices ─► Runtime::load … loaded ─► Log::reader_of ── batch ─► Runtime::feed    main
//!   Log::state_of(load time) ── slices ─► Runtime::load … loaded ─► Log::reader_of ── batch ─► Runtime::feed    reactions
//!                                                                       │               ▲
//!                 Hold: no batch beyond a position, while `verify`  ◄───┘               └─ once the rows have its time
//!                 reads the stores (a large batch comes in pieces,
//!                 and is held only after its last); likewise of what is published
//! ```
//!
//! Each part of the dataflows has a runtime and a feeder, which is one thread, and reads what the part needs: a transaction of
//! millions of likes is a few parts of the log that the main part passes over, so what is behind it is not late. `Runtime::feed`
//! blocks while too much is in flight, so what the stores cannot take stays in the log, on disk.
//!
//! Why reactions are never newer than the rows that they are shown with, nor than the facts that these are judged by: their
//! feeder hands a batch over when the rows have its time, and the state is loaded where rows are, or at what reactions have.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use anyhow::Context;
use feedmill_dataflows::{Part, Runtime};
use feedmill_ingest::Log;
use feedmill_model::{Applied, Batch, Lsn, Position, Row, Time, failpoint};
use feedmill_sinks::Progress;
use parking_lot::{Condvar, Mutex};
use tokio::runtime::Handle;
use tokio::sync::watch;
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

/// The load of all parts of the dataflows, as it is told.
pub struct Loading {
    stations: Arc<Stations>,
    loaded: Arc<watch::Sender<bool>>,
    rows: AtomicU64,
    parts_left: AtomicUsize,
}

impl Loading {
    /// So many parts are about to load what `log` has.
    pub fn begin(parts: usize, log: &Log, stations: &Arc<Stations>, loaded: &Arc<watch::Sender<bool>>) -> Arc<Self> {
        stations.load().begin(Some(log.rows_about()), "rows of the change log into the dataflows");
        Arc::new(Loading {
            stations: Arc::clone(stations),
            loaded: Arc::clone(loaded),
            rows: AtomicU64::new(0),
            parts_left: AtomicUsize::new(parts),
        })
    }

    /// A part has loaded a slice. What another part loads too counts there.
    fn add(&self, part: Part, slice: &[Row]) {
        let others = if part == Part::Reactions { Part::Main.relations() } else { &[] };
        if slice.first().is_some_and(|row| others.contains(&row.relation())) {
            return;
        }
        let rows = slice.len() as u64;
        self.rows.fetch_add(rows, Ordering::Relaxed);
        self.stations.load().add(rows);
        if self.stations.is_replaying() {
            self.stations.replay().add(rows);
        }
    }

    /// A part is loaded; all are when the last is.
    fn end(&self) {
        if self.parts_left.fetch_sub(1, Ordering::AcqRel) == 1 {
            let rows = self.rows.load(Ordering::Relaxed);
            tracing::info!("loaded {rows} rows into the dataflows");
            self.stations.load().end(format!("{rows} rows"));
            self.loaded.send_replace(true);
        }
    }
}

/// Feeds a part of the dataflows.
pub struct Feeder {
    /// From where.
    pub log: Log,
    /// Which part.
    pub part: Part,
    /// Where to.
    pub runtime: Arc<Runtime>,
    /// The state that is loaded.
    pub load: Position,
    /// Told which positions the times have.
    pub progress: Arc<Progress>,
    /// How far all parts are.
    pub applied: watch::Receiver<Applied>,
    /// Keeps batches back.
    pub hold: Arc<Hold>,
    /// Where it reports how far it is.
    pub stations: Arc<Stations>,
    /// The load of all parts.
    pub loading: Arc<Loading>,
}

impl Feeder {
    /// Loads and feeds until `stop`.
    pub fn run(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let fed = self.load().and_then(|()| self.feed(stop));
        // The dataflows know best why they took no more.
        self.runtime.join()?;
        match fed {
            Err(_) if stop.is_cancelled() => Ok(()),
            fed => fed,
        }
    }

    fn is_main(&self) -> bool {
        self.part != Part::Reactions
    }

    fn load(&self) -> anyhow::Result<()> {
        let state = self.log.state_of(self.load.time, self.part.relations());
        for slice in state.context("could not load the state from the change log")? {
            let slice = slice.context("could not load the state from the change log")?;
            self.loading.add(self.part, &slice);
            self.runtime.load(slice)?;
        }
        // What is not in this state comes after it, through the join: so home timelines are complete above the greatest entry
        // that is, and a system that begins empty pushes whatever is imported into it.
        self.runtime.loaded(self.log.greatest_entry())?;
        // Nothing counts as loaded, and so nothing as caught up, before facts and rows that were lost are there again.
        self.runtime.wait_until_loaded()?;
        self.loading.end();
        if self.is_main() {
            self.stations.dataflows().reached(self.load);
        }
        Ok(())
    }

    fn feed(&self, stop: &CancellationToken) -> anyhow::Result<()> {
        let reader = self.log.reader_of(self.load.time, self.part.relations());
        let mut reader = reader.context("could not read the change log")?;
        let mut last = self.load;
        while !stop.is_cancelled() {
            self.hold.wait(last, self.station(), stop);
            let Some(batch) = reader.next(WAIT).context("could not read the change log")? else { continue };
            if !self.is_main() && !self.rows_have(batch.position.time, stop) {
                break;
            }
            // A time of which a piece is fed must be fed to its end: nothing is held in between.
            if batch.last {
                last = batch.position;
                if last.time < self.log.history() {
                    // A position of another history says nothing to who waits for one of this.
                    last.lsn = Lsn(0);
                }
            } else {
                self.station().midway();
            }
            if batch.last {
                self.progress.covers(last);
            }
            if self.is_main() {
                self.give(batch)?;
                self.station().reached(last);
            } else {
                self.give_reactions(batch)?;
            }
        }
        Ok(())
    }

    fn give(&self, batch: Arc<Batch>) -> anyhow::Result<()> {
        let changes = batch.changes.len() as u64;
        failpoint!("batch_handed_over_before");
        self.runtime.feed(batch)?;
        failpoint!("batch_handed_over_after");
        self.station().changed(changes);
        Ok(())
    }

    fn give_reactions(&self, batch: Arc<Batch>) -> anyhow::Result<()> {
        let changes = batch.changes.len() as u64;
        failpoint!("reactions_handed_over_before");
        self.runtime.feed(batch)?;
        failpoint!("reactions_handed_over_after");
        self.station().changed(changes);
        Ok(())
    }

    fn station(&self) -> &Station {
        if self.is_main() { self.stations.dataflows() } else { self.stations.reactions() }
    }

    /// Waits until the rows have `time`; `false` at `stop`, or when the dataflows have ended.
    ///
    /// It is the dataflows that say so, and not the store: one that is being filled has a position before it has the rows.
    fn rows_have(&self, time: Time, stop: &CancellationToken) -> bool {
        let mut applied = self.applied.clone();
        if applied.borrow().rows > time {
            return true;
        }
        Handle::current().block_on(async {
            tokio::select! {
                reached = applied.wait_for(|applied| applied.rows > time) => reached.is_ok(),
                () = stop.cancelled() => false,
            }
        })
    }
}
