//! A process on a data folder: its lock, its signals, its parts, and its PostgreSQL.

use std::fs::{File, TryLockError};
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, bail};
use feedmill_connectors::postgres::Cluster;
use tokio::task::{JoinError, JoinSet};
use tokio_util::sync::CancellationToken;

use crate::config::Settings;

/// How long parts may take to end; Ctrl-C ends within 5 seconds.
const PARTS_END_MAX: Duration = Duration::from_secs(2);
const CLUSTER_STOP_MAX: Duration = Duration::from_secs(2);

/// Parts that run until the end; each says its name when it ends.
pub type Parts = JoinSet<anyhow::Result<&'static str>>;

/// Runs `serve` on the folder until Ctrl-C or SIGTERM, or until a part fails. It is given where to put the private
/// PostgreSQL, once it runs, which is stopped after it.
pub async fn run(
    settings: &Settings,
    serve: impl AsyncFnOnce(&Settings, &mut Option<Cluster>, CancellationToken) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let _lock = lock(&settings.data)?;
    let shutdown = CancellationToken::new();
    on_signal(shutdown.clone())?;
    let mut cluster = None;
    let outcome = serve(settings, &mut cluster, shutdown).await;
    let stopped = match cluster {
        Some(cluster) => cluster.stop(CLUSTER_STOP_MAX).await.context("could not stop PostgreSQL"),
        None => Ok(()),
    };
    // What went wrong first says more.
    outcome.and(stopped)
}

/// One process a folder.
pub fn lock(data: &Path) -> anyhow::Result<File> {
    std::fs::create_dir_all(data)
        .with_context(|| format!("could not make the folder {}; name another with --data", data.display()))?;
    let path = data.join("lock");
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.with_context(|| format!("could not open {}", path.display()))?;
    match file.try_lock() {
        Ok(()) => Ok(file),
        Err(TryLockError::WouldBlock) => bail!(
            "another Feedmill runs on {}: stop it first, or give this one a folder of its own with --data",
            data.display()
        ),
        Err(TryLockError::Error(error)) => Err(error).with_context(|| format!("could not lock {}", path.display())),
    }
}

fn on_signal(shutdown: CancellationToken) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt()).context("could not listen for Ctrl-C")?;
    let mut terminate = signal(SignalKind::terminate()).context("could not listen for SIGTERM")?;
    tokio::spawn(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        tracing::info!("stopping");
        shutdown.cancel();
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
        // Asked twice: what is durable is enough for the next start.
        std::process::exit(130);
    });
    Ok(())
}

/// Waits for shutdown or for the first part that ends by itself, then ends the others. The first error counts.
pub async fn supervise(parts: &mut Parts, shutdown: &CancellationToken, end: &CancellationToken) -> anyhow::Result<()> {
    supervise_for(parts, shutdown, end, PARTS_END_MAX).await
}

/// The same, where parts may take `limit` to end.
pub async fn supervise_for(
    parts: &mut Parts,
    shutdown: &CancellationToken,
    end: &CancellationToken,
    limit: Duration,
) -> anyhow::Result<()> {
    let mut outcome = Ok(());
    let late = async {
        end.cancelled().await;
        tokio::time::sleep(limit).await;
    };
    tokio::pin!(late);
    loop {
        let part = tokio::select! {
            part = parts.join_next() => part,
            () = &mut late => {
                tracing::warn!("{} parts did not end within {limit:?}; the next start goes on from what is durable", parts.len());
                return outcome;
            }
            () = shutdown.cancelled(), if !end.is_cancelled() => {
                end.cancel();
                continue;
            }
        };
        let failed = match part {
            None => return outcome,
            Some(Ok(Ok(_))) if end.is_cancelled() => Ok(()),
            Some(ended) => Err(failure(ended)),
        };
        if let Err(error) = failed {
            tracing::error!("{error:#}");
            if outcome.is_ok() {
                outcome = Err(error);
            }
            end.cancel();
        }
    }
}

/// Why a part ended that was to go on.
pub fn failure(ended: Result<anyhow::Result<&'static str>, JoinError>) -> anyhow::Error {
    match ended {
        Ok(Ok(name)) => anyhow::anyhow!("{name} ended by itself"),
        Ok(Err(error)) => error,
        Err(panic) => anyhow::anyhow!(panic).context("a part panicked"),
    }
}
