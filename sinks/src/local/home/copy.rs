//! A copy of all records as of one closed time, on disk, to be read while the store goes on.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};

use feedmill_model::{Parameters, SHARDS, StoreError, Time, View};

use super::record::Record;
use super::save::{SavedSegment, failed};
use super::{LocalHome, ScannedRecord, segment, texts};
use crate::HomeRecord;

/// All records as of the closed time at which they were copied. The file has no name: it is gone with this.
pub struct HomeCopy {
    file: File,
    dir: PathBuf,
    segments: Vec<SavedSegment>,
    parameters: Parameters,
}

impl LocalHome {
    /// Copies all records into a file in the folder `dir`, of at most `bytes_max`. No closed time may be applied
    /// meanwhile. A segment at a time is in memory; a million entries take some milliseconds.
    pub fn copy_to(&self, dir: &Path, bytes_max: u64) -> Result<HomeCopy, StoreError> {
        let mut copying = Copying::begin(dir, bytes_max, self.parameters.clone())?;
        let mut bytes = Vec::new();
        for shard in 0..SHARDS {
            for number in 0.. {
                let Some(records) = self.records(shard) else { break };
                let Some(view) = records.segment(number, &self.parameters) else { break };
                bytes.clear();
                segment::encode(view.records, view.bound, &mut bytes);
                let time = view.time;
                drop(records);
                copying.push(&bytes, time)?;
            }
        }
        Ok(copying.copy)
    }
}

/// A copy that is being made.
pub(crate) struct Copying {
    copy: HomeCopy,
    offset: u64,
    bytes_max: u64,
}

impl Copying {
    /// Begins a copy in the folder `dir`, of at most `bytes_max`, of records that are cut and expire as `parameters` say.
    pub(crate) fn begin(dir: &Path, bytes_max: u64, parameters: Parameters) -> Result<Self, StoreError> {
        let path = dir.join(format!("home-copy-{}", std::process::id()));
        std::fs::create_dir_all(dir).map_err(failed("make the folder", dir))?;
        let mut options = File::options();
        let file = options.create(true).truncate(true).read(true).write(true).open(&path);
        let file = file.map_err(failed("make", &path))?;
        std::fs::remove_file(&path).map_err(failed("take away the name of", &path))?;
        let copy = HomeCopy { file, dir: dir.to_path_buf(), segments: Vec::new(), parameters };
        Ok(Copying { copy, offset: 0, bytes_max })
    }

    fn push(&mut self, bytes: &[u8], time: Time) -> Result<(), StoreError> {
        use std::io::Write;
        let HomeCopy { file, dir, segments, .. } = &mut self.copy;
        if self.offset + bytes.len() as u64 > self.bytes_max {
            let full = format!("it would take more than the {} MiB that may be used there", self.bytes_max >> 20);
            return Err(failed("write a copy into", dir)(std::io::Error::other(full)));
        }
        file.write_all(bytes).map_err(failed("write a copy into", dir))?;
        segments.push(SavedSegment::new(0, self.offset, bytes, time));
        self.offset += bytes.len() as u64;
        Ok(())
    }

    /// Adds records of viewers as they are at `time`.
    pub(crate) fn push_records(&mut self, records: Vec<(i64, HomeRecord)>, time: Time) -> Result<(), StoreError> {
        let restored = |(viewer, HomeRecord { floor, hot, entries }): (i64, HomeRecord)| {
            Record::restored(viewer, floor, hot, entries.into_iter().rev())
        };
        let records: Vec<Record> = records.into_iter().map(restored).collect();
        let mut bytes = Vec::new();
        segment::encode(&records, i64::MIN, &mut bytes);
        self.push(&bytes, time)
    }

    pub(crate) fn finish(self) -> HomeCopy {
        self.copy
    }
}

impl HomeCopy {
    /// Each viewer with the id above which the record is complete at `at`.
    pub fn floors(&self, at: Time, mut each: impl FnMut(i64, i64)) -> Result<(), StoreError> {
        self.each(at, &mut |record| each(record.viewer(), record.floor))
    }

    /// As [`FrozenViews::scan`](crate::FrozenViews::scan), of the views of home timelines.
    pub fn scan(&self, view: View, at: Time, each: &mut dyn FnMut(String, String)) -> Result<(), StoreError> {
        let horizon = self.parameters.horizon(at);
        self.each(at, &mut |record| texts(view, horizon, &record, each))
    }

    /// The records of `viewers` as they are at `at`.
    pub(in crate::local) fn records(
        &self,
        viewers: &HashSet<i64>,
        at: Time,
    ) -> Result<HashMap<i64, HomeRecord>, StoreError> {
        let mut records = HashMap::new();
        self.each(at, &mut |record| {
            if viewers.contains(&record.viewer()) {
                let (floor, hot, entries) = (record.floor, record.hot().to_vec(), record.entries().collect());
                records.insert(record.viewer(), HomeRecord { floor, hot, entries });
            }
        })?;
        Ok(records)
    }

    fn each(&self, at: Time, each: &mut dyn FnMut(ScannedRecord<'_>)) -> Result<(), StoreError> {
        let horizon = self.parameters.horizon(at);
        let mut bytes = Vec::new();
        let mut give = |record: Record| each(ScannedRecord { record: &record, floor: horizon.max(record.floor()) });
        for saved in &self.segments {
            let read = saved.read(&self.file, &mut bytes).and_then(|()| Ok(segment::decode(&bytes, &mut give)?));
            read.map_err(|error| failed("read the copy in", &self.dir)(std::io::Error::other(error)))?;
        }
        Ok(())
    }
}
