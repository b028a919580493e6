//! How much room there is.

use std::io;
use std::path::Path;

use nix::sys::statvfs::statvfs;

/// Bytes that are free for this process on the disk of a folder.
pub fn free_bytes(folder: &Path) -> io::Result<u64> {
    let disk = statvfs(folder)?;
    // Their types differ between systems.
    #[allow(clippy::useless_conversion, reason = "not useless everywhere")]
    Ok(u64::from(disk.blocks_available()).saturating_mul(u64::from(disk.fragment_size())))
}
