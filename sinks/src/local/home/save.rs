//! The folder of the saved segments.
//!
//! ```text
//!   segments-17, segments-18, …   segments one after the other, each file of one save
//!   manifest                      format, parameters; of each shard: position, of each segment: where, checksum, time
//! ```
//!
//! A save writes its segments into a new file, fsyncs it, has the index made durable, and then puts the new manifest in
//! the place of the old one by a rename. A crash before that leaves the old save, whose files are all still there; files
//! that no manifest names go after it. So a folder holds one save, whole, whatever happens when; what else happens to
//! it the checksums tell.
//!
//! Segments that have not changed are kept by reference. A file of which less than half is still referred to is written
//! over: its segments count as changed. So the folder holds at most twice what the segments take, beside the save that
//! is being written.

use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use feedmill_model::{Lsn, Parameters, Position, SHARDS, StoreError, Time, failpoint};
use serde::{Deserialize, Serialize};
use xxhash_rust::xxh3::xxh3_64;

use super::segment::Damaged;

/// Version of what the manifest and the segments hold, and of [`SEGMENT_PLACES`](super::segment::SEGMENT_PLACES).
/// Another version is not read: the store starts empty.
const FORMAT: u32 = 1;
const MANIFEST: &str = "manifest";
const NEXT_MANIFEST: &str = "manifest.next";
const SEGMENTS: &str = "segments-";

/// The parameters that decide who has a record, and which entries it holds above its floor.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
struct Defined {
    fanout_days: u32,
    active_days: u32,
}

impl Defined {
    const fn by(parameters: &Parameters) -> Self {
        Defined { fanout_days: parameters.fanout_days, active_days: parameters.active_days }
    }
}

/// Where a segment lies, and as of when it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct SavedSegment {
    file: u64,
    offset: u64,
    bytes: u32,
    checksum: u64,
    /// It has every closed time up to this, and none after it.
    pub time: Time,
}

impl SavedSegment {
    pub(super) fn new(file: u64, offset: u64, bytes: &[u8], time: Time) -> Self {
        // A thousand records of a thousand entries take some megabytes.
        SavedSegment { file, offset, bytes: bytes.len() as u32, checksum: xxh3_64(bytes), time }
    }

    /// The same segment, in which nothing has changed up to `time`.
    pub(super) const fn moved_to(self, time: Time) -> Self {
        SavedSegment { time, ..self }
    }

    /// Reads it into `bytes`.
    pub(super) fn read(&self, file: &File, bytes: &mut Vec<u8>) -> Result<(), Unusable> {
        bytes.resize(self.bytes as usize, 0);
        file.read_exact_at(bytes, self.offset).map_err(Unusable::Read)?;
        if xxh3_64(bytes) == self.checksum { Ok(()) } else { Err(Unusable::Damaged("a segment")) }
    }
}

/// The segments of a shard.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub(super) struct SavedShard {
    time: Time,
    lsn: Lsn,
    /// The shard's floor at that time.
    pub floor: i64,
    pub segments: Vec<SavedSegment>,
}

impl SavedShard {
    pub(super) const fn new(position: Position, floor: i64) -> Self {
        SavedShard { time: position.time, lsn: position.lsn, floor, segments: Vec::new() }
    }

    /// Every segment has at least this, and a record that is in none was not there then or is gone since.
    pub(super) const fn position(&self) -> Position {
        Position { time: self.time, lsn: self.lsn }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Manifest {
    defined: Defined,
    /// Bytes of each file.
    files: HashMap<u64, u64>,
    shards: Vec<SavedShard>,
}

/// Files of a save, open.
pub(super) type Files = Arc<HashMap<u64, File>>;

/// Reads the segment wherever it lies.
pub(super) fn read(segment: &SavedSegment, files: &Files, bytes: &mut Vec<u8>) -> Result<(), Unusable> {
    segment.read(files.get(&segment.file).ok_or(Unusable::Damaged("the manifest"))?, bytes)
}

/// Why a save is not used.
#[derive(Debug, thiserror::Error)]
pub(super) enum Unusable {
    #[error("it could not be read: {0}")]
    Read(#[source] io::Error),
    #[error("{0} is not what was written: the disk, or somebody, has changed it")]
    Damaged(&'static str),
    #[error("it has format {found}, this version of feedmill reads {FORMAT}")]
    Format { found: u32 },
    #[error("it was made with another --fanout-days or --active-days")]
    Parameters,
}

impl From<Damaged> for Unusable {
    fn from(_: Damaged) -> Self {
        Unusable::Damaged("a segment")
    }
}

/// The folder, and the save that it holds.
pub(super) struct Folder {
    dir: PathBuf,
    defined: Defined,
    saved: Option<Manifest>,
    /// Greater than the number of every file in the folder.
    next: u64,
}

impl Folder {
    /// The folder `dir`, which need not exist, and its save opened for reading.
    pub(super) fn open(dir: &Path, parameters: &Parameters) -> (Self, Result<Option<Files>, Unusable>) {
        let next = numbers(dir).max().map_or(0, |greatest| greatest + 1);
        let mut folder = Folder { dir: dir.to_path_buf(), defined: Defined::by(parameters), saved: None, next };
        let opened = folder.read();
        (folder, opened)
    }

    fn read(&mut self) -> Result<Option<Files>, Unusable> {
        let bytes = match fs::read(self.dir.join(MANIFEST)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(Unusable::Read(error)),
        };
        let manifest = decode(&bytes)?;
        if manifest.defined != self.defined {
            return Err(Unusable::Parameters);
        }
        let open = |(number, bytes): (&u64, &u64)| {
            let file = File::open(self.path(*number)).map_err(Unusable::Read)?;
            let whole = file.metadata().map_err(Unusable::Read)?.len() == *bytes;
            if whole { Ok((*number, file)) } else { Err(Unusable::Damaged("the length of a file")) }
        };
        let files = manifest.files.iter().map(open).collect::<Result<HashMap<_, _>, _>>()?;
        self.saved = Some(manifest);
        Ok(Some(Arc::new(files)))
    }

    fn path(&self, number: u64) -> PathBuf {
        self.dir.join(format!("{SEGMENTS}{number}"))
    }

    /// The shards of the save; none if there is no save.
    pub(super) fn shards(&self) -> &[SavedShard] {
        self.saved.as_ref().map_or(&[], |manifest| &manifest.shards)
    }

    /// The least position of a shard of the save: closed times after it are needed to go on from there.
    pub(super) fn position(&self) -> Option<Position> {
        self.shards().iter().map(SavedShard::position).min_by_key(|position| position.time)
    }

    /// What is saved is of no use.
    pub(super) fn forget(&mut self) {
        self.saved = None;
    }

    /// Begins a save.
    pub(super) fn begin(&mut self) -> Result<Writing<'_>, StoreError> {
        fs::create_dir_all(&self.dir).map_err(failed("make the folder", &self.dir))?;
        self.sweep();
        let number = self.next;
        self.next += 1;
        let path = self.path(number);
        let file = File::options().create_new(true).write(true).open(&path).map_err(failed("make", &path))?;
        let worn = self.worn();
        Ok(Writing { folder: self, number, file, bytes: 0, worn, shards: Vec::with_capacity(SHARDS) })
    }

    /// Files of which less than half is in the save.
    fn worn(&self) -> HashSet<u64> {
        let Some(saved) = &self.saved else { return HashSet::new() };
        let mut live: HashMap<u64, u64> = HashMap::new();
        for segment in saved.shards.iter().flat_map(|shard| &shard.segments) {
            *live.entry(segment.file).or_default() += u64::from(segment.bytes);
        }
        let is_worn = |(number, bytes): &(&u64, &u64)| live.get(number).copied().unwrap_or(0) < **bytes / 2;
        saved.files.iter().filter(is_worn).map(|(number, _)| *number).collect()
    }

    /// Removes what the save does not need; what cannot be removed now is tried again at the next.
    fn sweep(&self) {
        let is_needed = |number: &u64| self.saved.as_ref().is_some_and(|saved| saved.files.contains_key(number));
        for number in numbers(&self.dir).filter(|number| !is_needed(number)) {
            if let Err(error) = fs::remove_file(self.path(number)) {
                tracing::warn!(%error, "could not remove the old file {}", self.path(number).display());
            }
        }
    }
}

/// A save that is being written. Dropped before [`Self::finish`], it leaves the save before it, and the disk as it was.
pub(super) struct Writing<'a> {
    folder: &'a mut Folder,
    number: u64,
    file: File,
    bytes: u64,
    worn: HashSet<u64>,
    shards: Vec<SavedShard>,
}

impl Writing<'_> {
    /// What the save before has of a segment, if it may be kept by reference.
    pub(super) fn before(&self, shard: usize, segment: usize) -> Option<SavedSegment> {
        let segment = *self.folder.shards().get(shard)?.segments.get(segment)?;
        Some(segment).filter(|segment| !self.worn.contains(&segment.file))
    }

    /// Writes a segment that is as of `time`.
    pub(super) fn write(&mut self, bytes: &[u8], time: Time) -> Result<SavedSegment, StoreError> {
        let path = self.folder.path(self.number);
        self.file.write_all(bytes).map_err(failed("write", &path))?;
        let segment = SavedSegment::new(self.number, self.bytes, bytes, time);
        self.bytes += bytes.len() as u64;
        failpoint!("home_save_segment_after");
        Ok(segment)
    }

    /// Adds the next shard.
    pub(super) fn push(&mut self, shard: SavedShard) {
        self.shards.push(shard);
    }

    /// Makes the segments durable, calls `before`, and puts the save in the place of the one before. Returns the bytes
    /// that were written.
    pub(super) fn finish(mut self, before: impl FnOnce() -> Result<(), StoreError>) -> Result<u64, StoreError> {
        let dir = &self.folder.dir;
        self.file.sync_all().map_err(failed("make durable", &self.folder.path(self.number)))?;
        before()?;
        let mut files = self.folder.saved.as_ref().map(|saved| saved.files.clone()).unwrap_or_default();
        files.insert(self.number, self.bytes);
        let used: HashSet<u64> = self.shards.iter().flat_map(|shard| &shard.segments).map(|of| of.file).collect();
        files.retain(|number, _| used.contains(number));
        let manifest = Manifest { defined: self.folder.defined, files, shards: std::mem::take(&mut self.shards) };
        let next = dir.join(NEXT_MANIFEST);
        let write = || {
            let mut file = File::create(&next)?;
            file.write_all(&encode(&manifest)?)?;
            file.sync_all()?;
            failpoint!("home_save_before");
            fs::rename(&next, dir.join(MANIFEST))?;
            failpoint!("home_save_after");
            Ok(())
        };
        write().map_err(failed("publish", &next))?;
        let published = File::open(dir).and_then(|dir| dir.sync_all());
        let published = published.map_err(failed("make durable", &next));
        self.folder.saved = Some(manifest);
        published?;
        self.folder.sweep();
        Ok(self.bytes)
    }
}

impl Drop for Writing<'_> {
    fn drop(&mut self) {
        // Of a save that failed, for want of room perhaps, nothing may stay that takes room.
        if self.folder.saved.as_ref().is_none_or(|saved| !saved.files.contains_key(&self.number)) {
            let _ = fs::remove_file(self.folder.path(self.number));
        }
    }
}

/// Numbers of the segment files in `dir`.
fn numbers(dir: &Path) -> impl Iterator<Item = u64> {
    let entries = fs::read_dir(dir).into_iter().flatten().flatten();
    entries.filter_map(|entry| entry.file_name().to_str()?.strip_prefix(SEGMENTS)?.parse().ok())
}

/// Format, manifest, and the checksum of both.
fn encode(manifest: &Manifest) -> io::Result<Vec<u8>> {
    let mut bytes = postcard::to_allocvec(&(FORMAT, manifest)).map_err(io::Error::other)?;
    bytes.extend(xxh3_64(&bytes).to_le_bytes());
    Ok(bytes)
}

fn decode(bytes: &[u8]) -> Result<Manifest, Unusable> {
    let damaged = || Unusable::Damaged("the manifest");
    let (body, checksum) = bytes.split_last_chunk().ok_or_else(damaged)?;
    if xxh3_64(body) != u64::from_le_bytes(*checksum) {
        return Err(damaged());
    }
    let (found, rest) = postcard::take_from_bytes::<u32>(body).map_err(|_| damaged())?;
    if found != FORMAT {
        return Err(Unusable::Format { found });
    }
    let manifest: Manifest = postcard::from_bytes(rest).map_err(|_| damaged())?;
    if manifest.shards.len() == SHARDS { Ok(manifest) } else { Err(damaged()) }
}

/// An error of what was tried on `path`.
pub(super) fn failed(tried: &str, path: &Path) -> impl FnOnce(io::Error) -> StoreError {
    let tried = format!("{tried} {}", path.display());
    move |error| StoreError { store: "home", tried, source: Box::new(error) }
}
