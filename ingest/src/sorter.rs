//! Large transactions, sorted while they are received.
//!
//! ```text
//!   receiving ── changes ─► file of the transaction             commit ─► append
//!                              │ read along, on a thread                    │ takes what is sorted, once the last buffer is
//!                              ▼                                            ▼
//!                  Intake ─► run 0, run 1, …, run n ──────────────────────► merge, as if they had been sorted now
//!                     ▲                │
//!                     └── back to the end of the last run that is whole ◄── a subtransaction was rolled back
//! ```
//!
//! Why it is what sorting at the commit gives: the same [`Intake`] takes the same changes in the same order (see
//! [`Growing`]), and a run is either of changes that all count, or dropped. An intake knows, at the end of each run, what
//! it has to know to go on from there as if nothing had come since: the number of changes and runs, what is cleared, and
//! the names that rows without a key were given. Where a run ends does not matter to the merge.
//!
//! One transaction at a time, so that the memory stays that of one buffer; while it is being taken, no other begins. What
//! cannot be done here is done at the commit, which is the same but later: a transaction that came while there was
//! another, one that cannot be told key by key, a disk that fails or has not enough left for the runs beside what the
//! transaction needs to be received and appended. When the log waits for room, what was sorted is let go of.
//!
//! What was sorted goes with its thread, or, if that had ended, with the next batch, and an idle tick is one too; the file
//! has no name, so it ends with the process. The thread ends with its transaction: by commit, rollback, or loss
//! of the connection.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use feedmill_connectors::disk::free_bytes;
use feedmill_connectors::postgres::{Changes, Follow, Growing, Grown, SpillId, Transaction};
use parking_lot::Mutex;

use crate::LogError;
use crate::intake::{Intake, Mark, Sorted};
use crate::large::joined;
use crate::room::CHANGE_BYTES;
use crate::run::Runs;

/// How often is looked whether it is to stop, and whether there is room, while nothing comes.
const LOOK: Duration = Duration::from_millis(100);

/// Batches whose changes were sorted when they were committed.
const SORTED_EARLY: &str = "feedmill_log_sorted_early_total";

/// Sorts transactions while they are received.
#[derive(Debug)]
pub(crate) struct Sorter {
    dir: PathBuf,
    reserve_bytes: u64,
    run_changes: usize,
    /// Held while what is sorted is taken.
    followed: Mutex<Option<Followed>>,
}

/// A transaction that is being sorted, or was.
#[derive(Debug)]
struct Followed {
    file: SpillId,
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Option<Sorted>>,
}

impl Sorter {
    pub fn new(dir: &Path, reserve_bytes: u64, run_changes: usize) -> Self {
        Sorter { dir: dir.to_owned(), reserve_bytes, run_changes, followed: Mutex::new(None) }
    }

    /// What these transactions come to, if they are the one that was sorted; waits until the rest of it is.
    pub fn take(&self, transactions: &[Transaction]) -> Option<Sorted> {
        let [Transaction { changes: Changes::Spilled(spill), .. }] = transactions else { return None };
        let mut followed = self.followed.lock();
        let this = followed.take_if(|followed| followed.file == spill.id())?;
        // All that it waits for is here.
        let sorted = joined(this.thread.join())?;
        metrics::counter!(SORTED_EARLY).increment(1);
        Some(sorted)
    }

    /// Drops what was sorted of a transaction that is gone.
    pub fn forget_gone(&self) {
        forget_gone(&mut self.followed.lock());
    }

    /// Gives up what is being sorted, and the room that it takes.
    pub fn let_go(&self) {
        if let Some(followed) = self.followed.lock().take() {
            followed.stop.store(true, Ordering::Relaxed);
            joined(followed.thread.join());
        }
    }
}

impl Follow for Sorter {
    fn follow(&self, growing: Growing) -> bool {
        // Held, it is busy.
        let Some(mut followed) = self.followed.try_lock() else { return false };
        forget_gone(&mut followed);
        if followed.is_some() {
            return false;
        }
        let (file, stop) = (growing.id(), Arc::new(AtomicBool::new(false)));
        let along = Along {
            growing,
            dir: self.dir.clone(),
            reserve_bytes: self.reserve_bytes,
            intake: Intake::new(self.run_changes),
            stop: Arc::clone(&stop),
        };
        let sort = move || {
            along.sort().unwrap_or_else(|error| {
                tracing::warn!("a large transaction is sorted at its commit, not while it is received: {error}");
                None
            })
        };
        match thread::Builder::new().name("sorter".to_owned()).spawn(sort) {
            Ok(thread) => *followed = Some(Followed { file, stop, thread }),
            Err(error) => {
                tracing::warn!("a large transaction is sorted at its commit: could not start a thread: {error}");
            }
        }
        // Another thread would not be given either.
        true
    }
}

impl Drop for Sorter {
    fn drop(&mut self) {
        if let Some(followed) = self.followed.get_mut().take() {
            followed.stop.store(true, Ordering::Relaxed);
            // A panic has been told by the thread itself.
            let _ = followed.thread.join();
        }
    }
}

fn forget_gone(followed: &mut Option<Followed>) {
    if let Some(gone) = followed.take_if(|followed| followed.thread.is_finished() && followed.file.is_gone()) {
        joined(gone.thread.join());
    }
}

/// Sorts one transaction.
struct Along {
    growing: Growing,
    dir: PathBuf,
    reserve_bytes: u64,
    intake: Intake,
    stop: Arc<AtomicBool>,
}

impl Along {
    /// `None` if it is to be sorted at its commit, or not at all.
    fn sort(mut self) -> Result<Option<Sorted>, LogError> {
        let runs = Runs::create(&self.dir)?;
        // Where each run begins, and the one that comes next.
        let mut begins: Vec<(u64, Mark)> = vec![(0, self.intake.mark())];
        while !self.stop.load(Ordering::Relaxed) {
            match self.growing.next(LOOK)? {
                Grown::Change(change) => {
                    if !self.intake.take(&change)? {
                        break;
                    }
                    if self.intake.is_full() {
                        if !self.write(&runs)? {
                            break;
                        }
                        begins.push((self.growing.offset(), self.intake.mark()));
                    }
                }
                Grown::Cut(offset) => {
                    begins.retain(|(begin, _)| *begin <= offset);
                    let Some((begin, mark)) = begins.last() else { break };
                    self.growing.go_back(*begin);
                    self.intake.go_back(mark);
                    runs.keep_before(mark.run);
                }
                Grown::Waiting if self.has_room(&runs)? => {}
                Grown::Complete => {
                    let cleared = if self.write(&runs)? { Some(self.intake.cleared()) } else { None };
                    return Ok(cleared.map(|cleared| Sorted { runs, cleared }));
                }
                Grown::Waiting | Grown::Dropped => break,
            }
        }
        Ok(None)
    }

    /// Writes a run; `false` if there is no room for it.
    fn write(&mut self, runs: &Runs) -> Result<bool, LogError> {
        let has_room = self.has_room(runs)?;
        if has_room {
            let (number, buffer) = self.intake.next_run();
            runs.write(number, buffer)?;
        }
        Ok(has_room)
    }

    /// Whether the disk has room for what was taken since the last run, for as much of the transaction as has come
    /// already to come once more, and for it to be appended: what is sorted must not keep it from being received.
    fn has_room(&self, runs: &Runs) -> Result<bool, LogError> {
        let free = free_bytes(&self.dir).map_err(|source| LogError::File {
            tried: "look at the disk of",
            dir: self.dir.clone(),
            source,
        })?;
        let run = self.intake.run_bytes();
        let appended = (self.intake.changes() as u64).saturating_mul(CHANGE_BYTES);
        let need = [self.growing.offset(), run, appended].into_iter().fold(self.reserve_bytes, u64::saturating_add);
        if free < need {
            tracing::debug!("{} MiB of runs are let go of: the disk is nearly full", runs.bytes() >> 20);
        }
        Ok(free >= need)
    }
}
