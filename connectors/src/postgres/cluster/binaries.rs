//! Where PostgreSQL's programs are.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

use tokio::process::Command;

use super::ClusterError;

/// The oldest major version that will do.
const VERSION_MIN: u32 = 14;

/// The programs of one version.
pub(super) struct Binaries {
    dir: PathBuf,
    /// Major version.
    pub(super) version: u32,
}

impl Binaries {
    /// The programs of the version that made the cluster in `data`, or the newest if there is none yet.
    pub(super) async fn find(data: &Path) -> Result<Binaries, ClusterError> {
        let mut found = BTreeMap::new();
        for dir in candidates().await {
            if let Some(version) = version(&dir).await.filter(|version| *version >= VERSION_MIN) {
                found.entry(version).or_insert(dir);
            }
        }
        let existing = std::fs::read_to_string(data.join("PG_VERSION")).ok();
        match existing.and_then(|version| version.trim().parse().ok()) {
            Some(version) => match found.remove(&version) {
                Some(dir) => Ok(Binaries { dir, version }),
                None if found.is_empty() => Err(ClusterError::NotInstalled { min: VERSION_MIN }),
                None => {
                    let found = found.keys().map(u32::to_string).collect::<Vec<_>>().join(", ");
                    Err(ClusterError::OtherVersion { data: data.to_owned(), version, found })
                }
            },
            None => {
                let newest = found.pop_last().ok_or(ClusterError::NotInstalled { min: VERSION_MIN });
                newest.map(|(version, dir)| Binaries { dir, version })
            }
        }
    }

    pub(super) fn initdb(&self) -> PathBuf {
        self.dir.join("initdb")
    }

    pub(super) fn postgres(&self) -> PathBuf {
        self.dir.join("postgres")
    }
}

/// Folders in which to look, those that the user chose first.
async fn candidates() -> Vec<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut dirs: Vec<PathBuf> = std::env::split_paths(&path).collect();
    let configured = Command::new("pg_config").arg("--bindir").stderr(Stdio::null()).output().await;
    if let Ok(output) = configured {
        dirs.push(PathBuf::from(String::from_utf8_lossy(&output.stdout).trim()));
    }
    // Debian and Ubuntu; then the packages of postgresql.org for RPM systems.
    dirs.extend(children(Path::new("/usr/lib/postgresql")).map(|dir| dir.join("bin")));
    let rpm = |dir: &PathBuf| dir.file_name().is_some_and(|name| name.to_string_lossy().starts_with("pgsql-"));
    dirs.extend(children(Path::new("/usr")).filter(rpm).map(|dir| dir.join("bin")));
    dirs.retain(|dir| dir.is_absolute() && dir.join("postgres").is_file() && dir.join("initdb").is_file());
    dirs
}

fn children(dir: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// The major version of the programs in `dir`.
async fn version(dir: &Path) -> Option<u32> {
    let output = Command::new(dir.join("postgres")).arg("--version").stderr(Stdio::null()).output().await.ok()?;
    major(&String::from_utf8_lossy(&output.stdout))
}

/// The major version in what `postgres --version` prints.
fn major(printed: &str) -> Option<u32> {
    let version = printed.split_whitespace().find(|word| word.starts_with(|first: char| first.is_ascii_digit()))?;
    version.split(|byte: char| !byte.is_ascii_digit()).next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_read() {
        assert_eq!(major("postgres (PostgreSQL) 15.14 (Debian 15.14-0+deb12u1)\n"), Some(15));
        assert_eq!(major("postgres (PostgreSQL) 18beta2"), Some(18));
        assert_eq!(major("nonsense"), None);
    }
}
