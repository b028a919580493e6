//! The index as a process reads it that does not write it.
//!
//! ```text
//!   standing (a document) ── serving: position ──► every 200 ms ──► found, Progress ──► who waits
//!   alias ──────────────────────────────────────────────────────────────────────────► who searches
//! ```
//!
//! Why it is correct: whoever writes puts a position beside what is served when all up to it can be found there, so a search
//! that begins after the position was read finds it. A generation that takes the place of another is as far as that was, or
//! farther, before the alias goes over.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use feedmill_model::{Phase, Position, Time};
use parking_lot::RwLock;
use tokio::runtime::Handle;
use tokio::sync::watch;
use tokio::task::AbortHandle;

use super::client::{Client, Failure};
use super::read::Index;
use super::standing::{Names, Server};
use super::{ElasticOpenError, ElasticSettings, layout};
use crate::search::{AccountQuery, Hit, Query, Search, SearchIndex, SearchSnapshot};
use crate::{Progress, ReadError};

/// How often it is looked how far the index is.
const LOOK_EVERY: Duration = Duration::from_millis(200);
/// After a failure; it doubles with each.
const LOOK_AGAIN_MAX: Duration = Duration::from_secs(2);

/// The search index on a server, which others write.
pub struct ElasticReader {
    index: Index,
    away: Arc<RwLock<Option<String>>>,
    task: AbortHandle,
}

impl Drop for ElasticReader {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl ElasticReader {
    /// Reads the index at the server, once there is one; `progress` is told how far it is. Requests are made on the runtime that
    /// this is called on.
    pub fn open(settings: &ElasticSettings, progress: Arc<Progress>) -> Result<Self, ElasticOpenError> {
        let server = Server { client: Client::new(settings)?, names: Names::new(&settings.address.prefix) };
        let (tell, found) = watch::channel(None);
        let away = Arc::new(RwLock::new(None));
        let task = tokio::spawn(follow(server.clone(), tell, Arc::clone(&away), progress)).abort_handle();
        Ok(ElasticReader { index: Index { server, handle: Handle::current(), found }, away, task })
    }
}

/// What is found now, as whoever writes has told.
async fn look(server: &Server) -> Result<Option<Position>, Failure> {
    let Some((standing, _)) = server.look().await? else { return Ok(None) };
    Ok(standing.serving.filter(|_| standing.format == layout::FORMAT).map(|serving| serving.position))
}

async fn follow(
    server: Server,
    tell: watch::Sender<Option<Position>>,
    away: Arc<RwLock<Option<String>>>,
    progress: Arc<Progress>,
) {
    let mut pause = LOOK_EVERY;
    loop {
        match look(&server).await {
            Ok(found) => {
                tell.send_replace(found);
                progress.found(Phase::Search, found.unwrap_or_default());
                if away.write().take().is_some() {
                    tracing::info!("the search server answers again");
                }
                pause = LOOK_EVERY;
            }
            Err(failure) => {
                let told = failure.to_string();
                if away.write().replace(told.clone()).is_none() {
                    tracing::warn!("the search server does not say how far search is, and is asked again: {told}");
                }
                pause = (pause * 2).min(LOOK_AGAIN_MAX);
            }
        }
        tokio::time::sleep(pause).await;
    }
}

#[async_trait]
impl Search for ElasticReader {
    async fn latest(&self, query: &Query, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        self.index.latest(query, before, limit).await
    }

    async fn relevant(&self, query: &Query, limit: usize) -> Result<Vec<Hit>, ReadError> {
        self.index.relevant(query, limit).await
    }

    async fn accounts(&self, query: &AccountQuery, limit: usize) -> Result<Vec<Hit>, ReadError> {
        self.index.accounts(query, limit).await
    }

    fn time(&self) -> Time {
        self.index.time()
    }

    async fn reached(&self, time: Time, limit: Duration) -> bool {
        self.index.reached(time, limit).await
    }
}

impl SearchIndex for ElasticReader {
    fn found(&self) -> Option<Position> {
        *self.index.found.borrow()
    }

    fn snapshot(&self) -> Result<Box<dyn SearchSnapshot>, ReadError> {
        self.index.snapshot()
    }

    fn waits(&self) -> Option<String> {
        self.away.read().clone()
    }
}
