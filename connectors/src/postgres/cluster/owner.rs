//! As whom PostgreSQL runs.

use std::ffi::OsStr;
use std::fs;
use std::io;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::unistd::{Uid, User, geteuid};

use super::ClusterError;
use super::binaries::Binaries;

/// What of our environment PostgreSQL gets. Variables such as `PGDATA` or `PGOPTIONS` would change what it does.
const ENVIRONMENT: [&str; 3] = ["PATH", "LD_LIBRARY_PATH", "TMPDIR"];

/// As whom PostgreSQL runs: as ourselves, or as another user if we are root.
pub(super) struct Owner {
    other: Option<Other>,
}

struct Other {
    name: String,
    uid: u32,
    gid: u32,
}

impl Owner {
    /// As whom the cluster in `data` runs, or will run when it is made.
    pub(super) fn of(data: &Path) -> Result<Owner, ClusterError> {
        if !geteuid().is_root() {
            return Ok(Owner { other: None });
        }
        let existing = fs::metadata(data).ok().filter(|data| data.uid() != 0);
        if let Some((uid, gid)) = existing.map(|data| (data.uid(), data.gid())) {
            let user = User::from_uid(Uid::from_raw(uid)).ok().flatten();
            let name = user.map_or_else(|| uid.to_string(), |user| user.name);
            return Ok(Owner { other: Some(Other { name, uid, gid }) });
        }
        let user = ["postgres", "nobody"].into_iter().find_map(|name| User::from_name(name).ok().flatten());
        let user = user.ok_or(ClusterError::NoUser)?;
        Ok(Owner { other: Some(Other { name: user.name, uid: user.uid.as_raw(), gid: user.gid.as_raw() }) })
    }

    /// A command that runs as this user, in a process group of its own, so that a Ctrl-C in our terminal is not for it.
    pub(super) fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new(program);
        command.env_clear().env("LC_ALL", "C").current_dir("/").process_group(0);
        for name in ENVIRONMENT {
            if let Some(value) = std::env::var_os(name) {
                command.env(name, value);
            }
        }
        if let Some(other) = &self.other {
            command.uid(other.uid).gid(other.gid);
        }
        command
    }

    /// A directory that only this user enters.
    pub(super) fn make_dir(&self, path: &Path) -> Result<(), ClusterError> {
        let failed = |error| ClusterError::File { tried: "make the directory", path: path.to_owned(), error };
        match fs::create_dir(path) {
            Err(error) if error.kind() != io::ErrorKind::AlreadyExists => return Err(failed(error)),
            _ => {}
        }
        if let Some(other) = &self.other {
            chown(path, Some(other.uid), Some(other.gid)).map_err(failed)?;
        }
        fs::set_permissions(path, fs::Permissions::from_mode(0o700)).map_err(failed)
    }

    /// Whether this user can enter `dir`, by trying it: that counts groups, access lists and mounts in.
    pub(super) fn check_reach(&self, dir: &Path, binaries: &Binaries) -> Result<(), ClusterError> {
        let Some(other) = &self.other else { return Ok(()) };
        let program = binaries.postgres();
        let run = |from: &Path| {
            let mut command = self.command(&program);
            command.arg("--version").current_dir(from).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            command.status()
        };
        let failed = |error| ClusterError::File { tried: "run", path: program.clone(), error };
        run(Path::new("/")).map_err(failed)?;
        match run(dir) {
            Ok(_) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                Err(ClusterError::Unreachable { user: other.name.clone(), blocked: other.blocked_at(dir) })
            }
            Err(error) => Err(failed(error)),
        }
    }
}

impl Other {
    /// The first directory on the way to `dir` whose permissions do not let this user through, as far as the mode bits
    /// tell; `dir` itself if they do not.
    fn blocked_at(&self, dir: &Path) -> PathBuf {
        let mut way: Vec<&Path> = dir.ancestors().collect();
        way.reverse();
        let blocks = |path: &&&Path| {
            fs::metadata(path).is_ok_and(|metadata| {
                let bit = if metadata.uid() == self.uid {
                    0o100
                } else if metadata.gid() == self.gid {
                    0o010
                } else {
                    0o001
                };
                metadata.mode() & bit == 0
            })
        };
        way.iter().find(blocks).map_or(dir, |path| path).to_owned()
    }
}
