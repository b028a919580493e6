//! When everything is served that was committed before the start.

use std::sync::Arc;

use feedmill_ingest::Log;
use feedmill_model::Lsn;
use feedmill_sinks::Progress;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::stations::Stations;

/// Waits until everything is served that was committed before this start.
pub struct CatchUp {
    /// Told what is served.
    pub progress: Arc<Progress>,
    /// Told when the state of the log is loaded.
    pub is_loaded: watch::Receiver<bool>,
    /// Where it stood at the start.
    pub from: Lsn,
    /// The end of the source's log at the start.
    pub to: Lsn,
    /// The change log.
    pub log: Log,
    /// Where it reports how far it is.
    pub stations: Arc<Stations>,
}

impl CatchUp {
    /// Says that it serves, once it does; then waits for the end.
    pub async fn wait(self, end: CancellationToken) -> anyhow::Result<&'static str> {
        let CatchUp { progress, mut is_loaded, from, to, log, stations } = self;
        let history = log.history();
        let bytes = |lsn: Lsn| lsn.0.saturating_sub(from.0);
        stations.catch_up().begin(Some(bytes(to)), format!("up to {to}, which was the end of the log at the start"));
        let mut reached = progress.watch();
        let caught_up = async {
            // Stores that had it all already serve new writes only once the dataflows are loaded.
            is_loaded.wait_for(|loaded| *loaded).await.ok()?;
            let caught_up = reached.wait_for(|[_, _, home, _, reactions]| {
                let last = if reactions.time < home.time { reactions } else { home };
                stations.catch_up().set(bytes(last.lsn.min(to)));
                // After a resync meanwhile the end is of another history: what it took over is newer.
                last.lsn >= to || (log.history() > history && last.time >= log.history())
            });
            caught_up.await.ok().map(drop)
        };
        let caught_up = tokio::select! {
            caught_up = caught_up => caught_up.is_some(),
            () = end.cancelled() => false,
        };
        if caught_up {
            stations.catch_up().end(format!("at {to}, which was the end of the log at the start"));
            stations.serve();
        }
        end.cancelled().await;
        Ok("the catch up")
    }
}
