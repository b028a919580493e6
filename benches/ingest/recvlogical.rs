//! What it is measured against: PostgreSQL's own client, which throws away what it receives.

use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::time::Instant;

use anyhow::{Context, ensure};
use feedmill_connectors::postgres::Source;
use feedmill_model::Lsn;
use nix::sys::resource::{UsageWho, getrusage};
use tokio_postgres::config::Host;

use crate::{Figures, cpu};

/// Reads `slot` to the position `to`.
pub async fn run(source: &Source, slot: &str, to: Lsn) -> anyhow::Result<Figures> {
    let config = source.config();
    let Some(Host::Unix(socket)) = config.get_hosts().first() else {
        anyhow::bail!("the private cluster listens on no socket");
    };
    let mut command = Command::new(program()?);
    command.arg("--host").arg(socket).args(["--no-password", "--start", "--no-loop", "--file", "/dev/null"]);
    command.args(["--username", config.get_user().unwrap_or("feedmill")]);
    command.args(["--dbname", config.get_dbname().unwrap_or("feedmill"), "--slot", slot, "--endpos", &to.to_string()]);
    for option in ["proto_version=2", "publication_names=feedmill", "streaming=on", "binary=true"] {
        command.args(["--option", option]);
    }
    tokio::task::spawn_blocking(move || {
        let before = cpu(&getrusage(UsageWho::RUSAGE_CHILDREN)?);
        let began = Instant::now();
        let status = command.stdin(Stdio::null()).status().context("could not start pg_recvlogical")?;
        let took = began.elapsed();
        ensure!(status.success(), "pg_recvlogical failed: {status}");
        Ok(Figures { took, cpu: cpu(&getrusage(UsageWho::RUSAGE_CHILDREN)?) - before })
    })
    .await?
}

/// The newest that is installed.
fn program() -> anyhow::Result<PathBuf> {
    let folders = std::fs::read_dir("/usr/lib/postgresql").into_iter().flatten().flatten();
    let mut installed: Vec<(u32, PathBuf)> = folders
        .filter_map(|folder| {
            Some((folder.file_name().to_str()?.parse().ok()?, folder.path().join("bin/pg_recvlogical")))
        })
        .filter(|(_, program)| program.is_file())
        .collect();
    installed.sort();
    let on_path = || {
        let path = std::env::var_os("PATH").unwrap_or_default();
        std::env::split_paths(&path).map(|folder| folder.join("pg_recvlogical")).find(|program| program.is_file())
    };
    installed.pop().map(|(_, program)| program).or_else(on_path).context("pg_recvlogical is not installed")
}
