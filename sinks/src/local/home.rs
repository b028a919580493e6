//! Home timelines in memory, saved in segments.
//!
//! ```text
//!   worker ─ HomeClosed ─► for each of its shards, under one write lock:
//!                            floor of the shard ▲ │ records made, dropped, hot ± │ entries in, entries out
//!   reader ─ record(v)  ─► read lock of v's shard: floor, hot accounts and entries of one closed time
//!   save   ─ segment    ─► read lock of its shard, a few milliseconds: bytes as of one closed time ─► file ─► manifest
//! ```
//!
//! Why it is correct: a record is changed only by its shard's worker, under the shard's lock, one closed time at a time,
//! so a reader never sees half of one: an account that becomes hot leaves the pushed entries and enters the hot list at
//! once. A record is complete above its floor, which is the greatest of its own, its shard's and the horizon. It starts
//! complete, since its own closed time fills it; an entry is left out only at or below a floor; and floors only rise.
//!
//! # Saves
//!
//! A segment is a range of places of one shard, and a record stays at its place. A save writes the segments down one
//! after the other, each as of the closed time `T(s)` that its shard then has, while closed times go on being applied:
//! it is no picture of one moment. A segment in which nothing changed since the last save is kept as it was written,
//! with a later time. `P`, the shard's position, is the closed time at which the first of its segments was visited, so
//! `P ≤ T(s)` for all of them. After a restart every closed time after the least `P` of all shards comes again, and a
//! segment ignores those at or before its `T(s)`. Why each record is right once a time after every `T(s)` has come, with
//! `v` a viewer whose record was at a place of segment `s` or of none when `s` was written:
//!
//! 1. *The record is in one segment s.* It has every change up to `T(s)`; those after it come, and are applied.
//! 2. *It was dropped before s was written* and not made again: no segment has it. Changes of an absent record are
//!    skipped, as ever, and its −1, if it comes, finds nothing: while the shard catches up that is no anomaly.
//! 3. *It was made after s was written*, at c > T(s): its +1 comes, since c is after `P`, and the closed time c fills it.
//!    It must not be put where it would miss changes: a place of a segment that has a time at or after c. While the
//!    shard catches up, records are made in new segments only, which have nothing and miss nothing.
//! 4. *It was dropped at d and made again at c, in another segment:*
//!    - both were written while it was in them, s at `T(s) < d`, the other at `T(r) ≥ c`: it is read twice, and the one
//!      of the greater time is the later one, which counts (they differ: at one time a record is in one place);
//!    - neither: `T(s) ≥ d` and `T(r) < c`; this is case 2 up to c, then case 3;
//!    - only s, `T(s) < d`: its −1 at d and its +1 at c come, after `T(s)`: cases 1 and 3;
//!    - only r, `T(r) ≥ c`: what comes up to `T(r)` is ignored, be it the −1 at d or the +1 at c: case 1.
//! 5. *A +1 for a record that is there:* at or before its segment's time it is ignored; after it, it would be an
//!    anomaly, and cannot be, because the −1 between must have come too.
//! 6. *Floors.* A record is written with the floor that it is complete above at `T(s)`: its own, its shard's and the
//!    horizon of `T(s)` in one; so entries that have expired are not written. The shard's floor is that of `P`. What
//!    raises floors after `P` comes again, and raising one twice changes nothing.
//!
//! While a shard catches up a reader sees records of different times, each whole, none older than `P`: [`HomeSink::progress`]
//! says `P`. A save made meanwhile is right too: it takes for the time of a segment the greater of `T(s)` and its shard's.
//!
//! A save never tells of more than the index has on disk: see [`LocalHome::save`].
//!
//! # Filling
//!
//! A store that is built again ([`LocalHome::fill`]) is given the month's entries by the load, slice by slice as closed
//! times of their own. A record is not complete above anything before the last of them, which brings the floor. Until then
//! its shard serves no record, so that whoever reads merges, and has no position, so that nothing is saved.

mod copy;
mod entries;
mod places;
mod record;
mod save;
mod segment;
mod shard;

use std::num::NonZero;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::time::Instant;

use feedmill_model::{
    HomeClosed, HomeSink, PackedEntry, Parameters, Position, SHARDS, Shard, StoreError, Time, View, shard_of,
};
use hashbrown::DefaultHashBuilder;
use parking_lot::{Mutex, RwLock, RwLockReadGuard, RwLockWriteGuard};

pub(crate) use self::copy::Copying;
pub use self::copy::HomeCopy;
use self::record::Record;
use self::save::{Files, Folder, SavedShard, Unusable};
use self::shard::{Outcome, ShardRecords};
use super::index::kind_text;
use crate::{HomeHead, HomeRecord};

/// Heads that are read under one lock.
const HEADS_AT_ONCE: usize = 64;

/// Home timelines in memory.
pub struct LocalHome {
    parameters: Parameters,
    hasher: DefaultHashBuilder,
    shards: Vec<HomeShard>,
    anomalies: AtomicU64,
    /// Where it is saved, if it is.
    folder: Option<Mutex<Folder>>,
    /// The position of the save in the folder.
    saved: Mutex<Option<Position>>,
    /// Set when a segment could not be read: nothing of the save may be used.
    damaged: AtomicBool,
}

struct HomeShard {
    records: RwLock<ShardRecords>,
    /// The segments that are not read yet.
    saved: Mutex<Option<(SavedShard, Files)>>,
    /// Whether all of its saved segments are in `records`.
    loaded: AtomicBool,
    deliveries: AtomicU64,
}

/// What a save has done.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Saved {
    /// Closed times after this are needed to go on from the save.
    pub position: Position,
    /// Bytes that were written: of segments that had changed.
    pub bytes: u64,
}

/// A record as a scan sees it.
pub(super) struct ScannedRecord<'a> {
    record: &'a Record,
    /// It is complete above this id.
    pub floor: i64,
}

impl ScannedRecord<'_> {
    /// Whose.
    pub(super) fn viewer(&self) -> i64 {
        self.record.viewer()
    }

    /// Hot accounts followed, in ascending order.
    fn hot(&self) -> &[i64] {
        self.record.hot()
    }

    /// Entries above the floor.
    fn entries(&self) -> impl Iterator<Item = PackedEntry> {
        self.record.entries_above(self.floor)
    }
}

/// Calls `each` with what `view`, one of those of home timelines, has of a record, as the view's SQL prints it: key and
/// value. Entries are those above `horizon`.
fn texts(view: View, horizon: i64, record: &ScannedRecord<'_>, each: &mut dyn FnMut(String, String)) {
    let mut key = |key: String| each(key, String::new());
    match view {
        View::Active => key(record.viewer().to_string()),
        View::VerifiedFollowing => {
            record.hot().iter().for_each(|author| key(format!("{} {author}", record.viewer())));
        }
        View::Home => {
            for entry in record.entries().map(PackedEntry::entry).filter(|entry| entry.id > horizon) {
                key(format!("{} {} {}", record.viewer(), entry.id, kind_text(entry.kind)));
            }
        }
        _ => {}
    }
}

impl LocalHome {
    /// An empty store that is not saved. Its records are cut, and its entries expire, as `parameters` say.
    pub fn new(parameters: Parameters) -> Self {
        let hasher = DefaultHashBuilder::default();
        let shard = || HomeShard {
            records: RwLock::new(ShardRecords::new(hasher.clone())),
            saved: Mutex::new(None),
            loaded: AtomicBool::new(true),
            deliveries: AtomicU64::new(0),
        };
        LocalHome {
            parameters,
            shards: (0..SHARDS).map(|_| shard()).collect(),
            hasher,
            anomalies: AtomicU64::new(0),
            folder: None,
            saved: Mutex::new(None),
            damaged: AtomicBool::new(false),
        }
    }

    /// The store that is saved in the folder `dir`: as it was saved, or empty if there is no save or none that can be
    /// used, which is logged. Returns at once: a shard is read when it is asked for, and all of them by [`Self::load`].
    pub fn open(dir: &Path, parameters: Parameters) -> Self {
        let (folder, files) = Folder::open(dir, &parameters);
        let mut home = LocalHome::new(parameters);
        match files {
            Ok(None) => {}
            Ok(Some(files)) => {
                *home.saved.get_mut() = folder.position();
                for (shard, saved) in home.shards.iter_mut().zip(folder.shards()) {
                    shard.records.get_mut().begin_load(saved.position(), saved.floor);
                    *shard.saved.get_mut() = Some((saved.clone(), Files::clone(&files)));
                    *shard.loaded.get_mut() = false;
                }
            }
            Err(unusable) => warn(dir, &unusable),
        }
        home.folder = Some(Mutex::new(folder));
        home
    }

    /// Reads all that is saved, with a few threads; to be called before the first closed time is applied. If some of it
    /// cannot be used the store is empty, and that is logged.
    pub fn load(&self) {
        let started = Instant::now();
        let next = AtomicUsize::new(0);
        let threads = std::thread::available_parallelism().map_or(1, NonZero::get).min(8);
        std::thread::scope(|scope| {
            for _ in 0..threads {
                scope.spawn(|| {
                    while let Some(shard) = self.shards.get(next.fetch_add(1, Ordering::Relaxed)) {
                        drop(self.read(shard));
                    }
                });
            }
        });
        if self.damaged.swap(false, Ordering::AcqRel) {
            self.clear();
        } else if self.position().is_some() {
            tracing::info!("read {} home timelines in {:?}", self.viewers(), started.elapsed());
        }
    }

    /// Empties the store: what was saved is of no use.
    pub fn clear(&self) {
        for shard in &self.shards {
            shard.loaded.store(true, Ordering::Release);
            *shard.saved.lock() = None;
            *shard.records.write() = ShardRecords::new(self.hasher.clone());
        }
        if let Some(folder) = &self.folder {
            folder.lock().forget();
            *self.saved.lock() = None;
        }
    }

    /// Empties the store, and has the next load fill it with the entries of the month.
    pub fn fill(&self) {
        self.clear();
        for shard in &self.shards {
            *shard.records.write() = ShardRecords::filling(self.hasher.clone());
        }
    }

    /// The least closed time that a shard has; `None` if one has none.
    pub fn position(&self) -> Option<Position> {
        let positions = self.progress().into_iter().collect::<Option<Vec<Position>>>()?;
        positions.into_iter().min_by_key(|position| position.time)
    }

    /// The least closed time of the last save: closed times after it are needed to go on from there.
    pub fn saved(&self) -> Option<Position> {
        *self.saved.lock()
    }

    /// Saves what has changed since the last save, while closed times go on being applied.
    ///
    /// `durable` is called when the segments are taken and before the save counts: it must make durable what facts and
    /// rows have, so that after a loss of power they are not older than this. `go_on` is asked before each segment; when
    /// it says no, the last save stays, and this returns `None`, as it does while there is nothing to be saved.
    pub fn save(
        &self,
        durable: impl FnOnce() -> Result<(), StoreError>,
        mut go_on: impl FnMut() -> bool,
    ) -> Result<Option<Saved>, StoreError> {
        let Some(folder) = &self.folder else { return Ok(None) };
        let mut folder = folder.lock();
        let Some(position) = self.position() else { return Ok(None) };
        let started = Instant::now();
        let mut save = folder.begin()?;
        let mut bytes = Vec::new();
        for number in 0..SHARDS {
            let mut shard = None;
            for segment in 0.. {
                if !go_on() {
                    return Ok(None);
                }
                let Some(records) = self.records(number) else { break };
                let begin = || SavedShard::new(records.position().unwrap_or_default(), records.floor());
                let saved = shard.get_or_insert_with(begin);
                let Some(view) = records.segment(segment, &self.parameters) else { break };
                let before = save.before(number, segment).filter(|before| view.changed <= before.time);
                let time = view.time;
                let kept = match before {
                    Some(before) => before.moved_to(time),
                    None => {
                        bytes.clear();
                        segment::encode(view.records, view.bound, &mut bytes);
                        drop(records);
                        save.write(&bytes, time)?
                    }
                };
                saved.segments.push(kept);
            }
            save.push(shard.unwrap_or_default());
        }
        let bytes = save.finish(durable)?;
        *self.saved.lock() = folder.position();
        metrics::histogram!("feedmill_home_save_seconds").record(started.elapsed().as_secs_f64());
        metrics::counter!("feedmill_home_save_bytes_total").increment(bytes);
        metrics::gauge!("feedmill_home_saved_time").set(position.time as f64 / 1e3);
        Ok(Some(Saved { position, bytes }))
    }

    /// The viewer's record as of the last closed time; `None` for one who is not active.
    pub fn record(&self, viewer: i64) -> Option<HomeRecord> {
        let records = self.records(usize::from(shard_of(viewer)))?;
        let (record, floor) = records.read(viewer, &self.parameters)?;
        Some(HomeRecord { floor, hot: record.hot().to_vec(), entries: record.entries_above(floor).collect() })
    }

    /// The heads of the viewers' records, `None` for one who is not active; `authors` are those asked about,
    /// in ascending order.
    pub fn heads(&self, viewers: &[i64], authors: &[i64]) -> Vec<Option<HomeHead>> {
        let mut heads = Vec::with_capacity(viewers.len());
        for of_shard in viewers.chunk_by(|one, other| shard_of(*one) == shard_of(*other)) {
            let number = of_shard.first().map_or(0, |viewer| usize::from(shard_of(*viewer)));
            // A closed time waits for the lock.
            for viewers in of_shard.chunks(HEADS_AT_ONCE) {
                let records = self.records(number);
                let head = |viewer: &i64| {
                    let (record, floor) = records.as_ref()?.read(*viewer, &self.parameters)?;
                    let takes = share(authors, record.hot());
                    Some(HomeHead { stamp: record.stamp(), takes, hot: !record.hot().is_empty(), floor })
                };
                heads.extend(viewers.iter().map(head));
            }
        }
        heads
    }

    /// Entries put into and taken out of records since the store was made.
    pub fn deliveries(&self) -> u64 {
        self.shards.iter().map(|shard| shard.deliveries.load(Ordering::Relaxed)).sum()
    }

    /// Changes that did not fit what the store held, and were left out: an entry that came twice, or left without
    /// having been there. Anything but 0 is a defect of whoever feeds the store.
    pub fn anomalies(&self) -> u64 {
        self.anomalies.load(Ordering::Relaxed)
    }

    /// How many viewers have a record.
    pub fn viewers(&self) -> usize {
        self.shards.iter().map(|shard| self.read(shard).len()).sum()
    }

    fn records(&self, shard: usize) -> Option<RwLockReadGuard<'_, ShardRecords>> {
        Some(self.read(self.shards.get(shard)?))
    }

    /// The records of a shard, once they are in memory.
    fn read<'a>(&self, shard: &'a HomeShard) -> RwLockReadGuard<'a, ShardRecords> {
        if shard.loaded.load(Ordering::Acquire) {
            return shard.records.read();
        }
        let mut records = shard.records.write();
        if let Some((saved, files)) = shard.saved.lock().take()
            && let Err(unusable) = load(&mut records, &saved, &files)
        {
            // Until the start has found out what this means, the viewers count as inactive.
            *records = ShardRecords::new(self.hasher.clone());
            if !self.damaged.swap(true, Ordering::AcqRel) {
                tracing::warn!("home timelines were saved, but {unusable}: they are filled anew as posts come");
            }
        }
        shard.loaded.store(true, Ordering::Release);
        RwLockWriteGuard::downgrade(records)
    }

    fn report(&self, anomalies: u64, time: Time) {
        metrics::counter!("feedmill_home_anomalies_total").increment(anomalies);
        if self.anomalies.fetch_add(anomalies, Ordering::Relaxed) == 0 {
            tracing::error!(
                anomalies,
                time,
                "changes of home timelines did not fit what the store holds and were left out; \
                 `feedmill verify` tells which timelines differ; without the folder `home` a restart begins them anew"
            );
        }
    }
}

/// Whether two ascending lists have something in common.
fn share(one: &[i64], other: &[i64]) -> bool {
    let (few, many) = if one.len() < other.len() { (one, other) } else { (other, one) };
    few.iter().any(|id| many.binary_search(id).is_ok())
}

fn load(records: &mut ShardRecords, saved: &SavedShard, files: &Files) -> Result<(), Unusable> {
    let mut bytes = Vec::new();
    for segment in &saved.segments {
        save::read(segment, files, &mut bytes)?;
        records.load(&bytes, segment.time)?;
    }
    Ok(())
}

fn warn(dir: &Path, unusable: &Unusable) {
    tracing::warn!(
        "the save of home timelines in {} is not used: {unusable}. They are filled anew as posts come",
        dir.display()
    );
}

impl HomeSink for LocalHome {
    fn progress(&self) -> Vec<Option<Position>> {
        self.shards.iter().map(|shard| shard.records.read().position()).collect()
    }

    fn is_to_be_filled(&self) -> bool {
        self.shards.iter().all(|shard| shard.records.read().is_filling())
    }

    fn apply(&self, closed: &mut HomeClosed) -> Result<(), StoreError> {
        let time = closed.position.time;
        closed.records.sort_unstable_by_key(|(change, _)| (shard_of(change.viewer()), *change));
        let mut records = closed.records.as_slice();
        let mut anomalies = 0;
        for (number, shard) in self.shards.iter().enumerate() {
            let end = records.partition_point(|(change, _)| usize::from(shard_of(change.viewer())) <= number);
            let (of_shard, rest) = records.split_at(end);
            records = rest;
            if closed.shards & (1 << number as Shard) == 0 {
                continue;
            }
            let mut none = Vec::new();
            let deliveries = closed.deliveries.get_mut(number).unwrap_or(&mut none);
            let outcome: Outcome =
                shard.records.write().apply(closed.position, closed.floor, of_shard, deliveries, &self.parameters);
            deliveries.clear();
            shard.deliveries.fetch_add(outcome.deliveries, Ordering::Relaxed);
            anomalies += outcome.anomalies;
        }
        closed.records.clear();
        if anomalies > 0 {
            self.report(anomalies, time);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
