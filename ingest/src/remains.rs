//! What a copy that was cut short has left. It is removed when the log is opened, so that a copy goes into an empty log.
//!
//! ```text
//!   a copy was begun, and there are rows
//!      ─► mark: a file with the header ─► all but the mark is removed ─► a new log with that header ─► the mark is removed
//! ```
//!
//! Why it is never half done: as long as there is a mark, an open begins again at it, and the mark is there as a whole or
//! not at all. So the log goes on saying that a copy was begun, and of which source.
//!
//! Why the storage engine does not clear the rows: it would write that into its journal, and do it over again at every
//! start as long as that journal lives, without regard to what came later. What comes past the journal, the rows of a
//! large batch, would be lost.

use std::fs::{self, File};
use std::io::{self, ErrorKind, Write};
use std::path::Path;

use crate::LogError;
use crate::meta::Meta;

/// Name of the mark.
const MARK: &str = "removing";
/// The same while it is written.
const MARK_NEW: &str = "removing.new";

/// Marks the folder of a log: all of it is to be removed but its header. Nobody may have it open.
pub(crate) fn mark(dir: &Path, header: &Meta) -> Result<(), LogError> {
    let new = dir.join(MARK_NEW);
    let header = header.to_bytes()?;
    let write = || {
        let mut file = File::create(&new)?;
        file.write_all(&header)?;
        file.sync_all()?;
        fs::rename(&new, dir.join(MARK))?;
        sync(dir)
    };
    write().map_err(failed("mark the rest of a copy in", dir))
}

/// Removes all but the mark, if there is one, and gives the header that is to be kept.
pub(crate) fn remove_marked(dir: &Path) -> Result<Option<Meta>, LogError> {
    let header = match fs::read(dir.join(MARK)) {
        Ok(header) => Meta::from_bytes(&header, dir)?,
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed("read the mark in", dir)(error)),
    };
    tracing::info!("removing what a copy that did not end has left in {}", dir.display());
    let remove = || {
        for entry in fs::read_dir(dir)? {
            let entry = entry?;
            if entry.file_name() == MARK {
                continue;
            }
            if entry.file_type()?.is_dir() { fs::remove_dir_all(entry.path())? } else { fs::remove_file(entry.path())? }
        }
        sync(dir)
    };
    remove().map_err(failed("remove the rest of a copy from", dir))?;
    Ok(Some(header))
}

/// The header stands in the new log, durably.
pub(crate) fn unmark(dir: &Path) -> Result<(), LogError> {
    let remove = || fs::remove_file(dir.join(MARK)).and_then(|()| sync(dir));
    remove().map_err(failed("remove the mark from", dir))
}

fn sync(dir: &Path) -> io::Result<()> {
    File::open(dir)?.sync_all()
}

fn failed(tried: &'static str, dir: &Path) -> impl FnOnce(io::Error) -> LogError {
    let dir = dir.to_owned();
    move |source| LogError::File { tried, dir, source }
}

#[cfg(test)]
mod tests {
    use feedmill_model::{Follow, Row, SourceId};

    use super::*;
    use crate::{Log, LogState, Options};

    #[test]
    fn an_open_that_was_cut_short_itself_is_made_again() {
        let dir = tempfile::tempdir().expect("a folder");
        let source = SourceId { system: 7, timeline: 1, slot: "feedmill".to_owned() };
        let open = || Log::open(dir.path(), Options::default()).expect("opened");
        let log = open();
        log.begin_copy(&source).expect("begun");
        log.copy_rows(vec![Row::Follow(Follow { follower_id: 1, following_id: 2, accepted: true, created_at: 0 })])
            .expect("copied");
        let header = log.shared.current.lock().clone();
        drop(log);
        mark(dir.path(), &header).expect("marked");
        // It ended before any, after some, and after all was removed, and once more after the log was made anew.
        let files = || fs::read_dir(dir.path()).expect("a folder").map(|entry| entry.expect("an entry").path());
        let unmarked: Vec<_> = files().filter(|path| !path.ends_with(MARK)).collect();
        for gone in [0, unmarked.len() / 2, unmarked.len()] {
            for path in unmarked.iter().take(gone).filter(|path| path.exists()) {
                let _ = fs::remove_file(path).or_else(|_| fs::remove_dir_all(path));
            }
            let log = open();
            assert_eq!((log.state(), log.source()), (LogState::Copying, Some(source.clone())));
            assert!(!log.shared.holds_anything().expect("read"));
            drop(log);
            mark(dir.path(), &header).expect("marked");
        }
        drop(open());
        assert!(files().all(|path| !path.ends_with(MARK)));
    }
}
