//! The data folder.

use std::path::{Path, PathBuf};

use feedmill_connectors::postgres::validate::Finding;
use feedmill_ingest::{Log, LogError, Options};
use nix::sys::statvfs::statvfs;
use nix::unistd::{AccessFlags, access};

use crate::up::process::lock;

/// Room below which nothing goes on for long, and below which it is told.
const ROOM_FAIL: u64 = 1 << 30;
const ROOM_WARN: u64 = 10 << 30;

/// The folder of the change log.
pub fn log(data: &Path) -> PathBuf {
    data.join("log")
}

/// Whether the folder can be written, has room, and holds what this version reads.
pub fn findings(data: &Path) -> Vec<Finding> {
    vec![writable(data), room(data), format(data)]
}

/// The folder, or what is there of the way to it.
fn existing(data: &Path) -> PathBuf {
    let data = std::path::absolute(data).unwrap_or_else(|_| data.to_owned());
    data.ancestors().find(|folder| folder.exists()).unwrap_or(Path::new("/")).to_owned()
}

fn writable(data: &Path) -> Finding {
    const CHECK: &str = "data folder";
    let existing = existing(data);
    let shown = data.display();
    match access(&existing, AccessFlags::W_OK | AccessFlags::X_OK) {
        Ok(()) if data.exists() => Finding::ok(CHECK, format!("{shown} can be written")),
        Ok(()) => Finding::ok(CHECK, format!("{shown} is not there yet; the first start makes it")),
        Err(error) => {
            let mend = format!("chown $(id -u) {}, or name another folder with --data", existing.display());
            Finding::fail(CHECK, format!("{} cannot be written: {error}", existing.display()), mend)
        }
    }
}

fn room(data: &Path) -> Finding {
    const CHECK: &str = "room";
    let folder = existing(data);
    let free = match statvfs(&folder) {
        Ok(about) => about.blocks_available().saturating_mul(about.fragment_size()),
        Err(error) => {
            let found = format!("how much is free in {} cannot be told: {error}", folder.display());
            return Finding::warn(CHECK, found, "see it by df");
        }
    };
    let found = format!("{:.1} GiB are free", free as f64 / f64::from(1 << 30));
    let mend = "make room, or name a folder on another disk with --data";
    match free {
        ..ROOM_FAIL => Finding::fail(CHECK, found, mend),
        ROOM_FAIL..ROOM_WARN => Finding::warn(CHECK, found, mend),
        _ => Finding::ok(CHECK, found),
    }
}

fn format(data: &Path) -> Finding {
    const CHECK: &str = "change log";
    let folder = log(data);
    if !folder.exists() {
        return Finding::ok(CHECK, "there is none yet; the first start copies the database into it");
    }
    // Held while the log is open, so that no start comes in between.
    let Ok(_lock) = lock(data) else {
        return Finding::ok(CHECK, "a running Feedmill has it open");
    };
    match Log::open(&folder, Options::default()) {
        Ok(log) => match log.position() {
            Some(position) => Finding::ok(CHECK, format!("it ends at {}", position.lsn)),
            None => Finding::ok(CHECK, "a first copy did not end; the next start begins it anew"),
        },
        Err(LogError::Locked { .. }) => Finding::ok(CHECK, "a running Feedmill has it open"),
        Err(error) => {
            let mend = format!("use the version that wrote it, or remove {} to copy anew", folder.display());
            Finding::fail(CHECK, error.to_string(), mend)
        }
    }
}
