//! What the running process answers to other commands.

use std::sync::{Arc, OnceLock};

use anyhow::Context;
use feedmill_api::Health;
use feedmill_ingest::Log;
use tokio::sync::mpsc;

use super::stations::{Role, Stations};
use crate::control::{Answer, Handler, Request};
use crate::replay::Replayer;
use crate::resync::Resyncer;
use crate::verify::Verifier;

/// Why something cannot be answered yet.
const STARTS: &str = "the system starts; `feedmill status` says how far it is";
/// Why something is never answered by a process that has no views.
const NO_VIEWS: &str = "`feedmill capture` runs on this folder, which has no views. To have it compare those that others derive, \
                        start it with --store and --search as they have them";

/// Why something is never answered by a process that writes no store.
const NO_STORES: &str =
    "`feedmill serve` runs on this folder, which writes nothing but PostgreSQL: ask a process that writes the stores";

/// Why something is never answered by a process that is one of several.
const NOT_HERE: &str = "`feedmill run` runs on this folder, one process of several: `feedmill verify` asks `feedmill capture`; \
                        for `feedmill replay` stop all of them first, and start them again after it";

/// Who answers what. Some of it is there only after a part of the start.
pub struct Requests {
    stations: Arc<Stations>,
    log: OnceLock<Log>,
    verifier: OnceLock<Verifier>,
    resyncer: OnceLock<Arc<Resyncer>>,
    replayer: OnceLock<Replayer>,
}

impl Requests {
    /// Nothing but the status can be asked yet.
    pub fn new(stations: Arc<Stations>) -> Arc<Self> {
        Arc::new(Requests {
            stations,
            log: OnceLock::new(),
            verifier: OnceLock::new(),
            resyncer: OnceLock::new(),
            replayer: OnceLock::new(),
        })
    }

    /// From now on rows in quarantine can be asked for.
    pub fn log(&self, log: Log) {
        // There is one start, and so one log.
        let _ = self.log.set(log);
    }

    /// From now on views can be compared.
    pub fn verifier(&self, verifier: Verifier) {
        // There is one start, and so one verifier.
        let _ = self.verifier.set(verifier);
    }

    /// From now on the change log can be compared.
    pub fn resyncer(&self, resyncer: Arc<Resyncer>) {
        let _ = self.resyncer.set(resyncer);
    }

    /// From now on stores can be built again.
    pub fn replayer(&self, replayer: Replayer) {
        // There is one start, and so one pipeline.
        let _ = self.replayer.set(replayer);
    }

    /// Answers requests of the control socket.
    pub fn handler(self: &Arc<Self>) -> Handler {
        let requests = Arc::clone(self);
        Arc::new(move |request, answers| {
            let requests = Arc::clone(&requests);
            Box::pin(async move { requests.answer(request, answers).await })
        })
    }

    fn no_views(&self) -> &'static str {
        match self.stations.role() {
            Role::Everything => STARTS,
            Role::Capture => NO_VIEWS,
            Role::Serve => NO_STORES,
            Role::Run { .. } => NOT_HERE,
        }
    }

    /// Why there is no change log here to be asked.
    fn no_log(&self) -> &'static str {
        match self.stations.role() {
            Role::Serve => NO_STORES,
            Role::Run { .. } => NOT_HERE,
            Role::Everything | Role::Capture => STARTS,
        }
    }

    async fn answer(&self, request: Request, answers: mpsc::Sender<Answer>) -> anyhow::Result<()> {
        match request {
            Request::Status => {
                let report = self.stations.report();
                answers.send(Answer::Status(Box::new(report))).await.context("whoever asked has gone away")
            }
            Request::Quarantine(ask) => {
                let log = self.log.get().context(self.no_log())?;
                crate::quarantine::answer(log, ask, answers).await
            }
            Request::Verify { sample } => {
                let verifier = self.verifier.get().context(self.no_views())?;
                verifier.run(sample, answers).await
            }
            Request::Resync { tables } => {
                let resyncer = self.resyncer.get().context(self.no_log())?;
                resyncer.answer(&tables, answers).await
            }
            Request::Replay { views } => {
                let replayer = self.replayer.get().context(self.no_views())?;
                replayer.answer(&views, answers).await
            }
        }
    }
}
