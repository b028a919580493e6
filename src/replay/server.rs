//! What the running process does when it is asked for a replay; the work itself is the pipeline's.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feedmill_model::Phase;
use tokio::sync::{Mutex, OwnedMutexGuard, mpsc, oneshot};
use tokio::time::{MissedTickBehavior, interval};

use super::stores_of;
use crate::control::Answer;
use crate::up::stations::Stations;

/// How often whoever asked is told how far it is.
const TELL: Duration = Duration::from_millis(200);

/// A replay, from the request to its end.
pub struct Replay {
    /// What is built again.
    pub stores: Vec<Phase>,
    /// Whom to tell how it ended, unless it goes on from an earlier start.
    ended: Option<oneshot::Sender<anyhow::Result<()>>>,
    /// No verify and no other replay meanwhile.
    alone: Option<OwnedMutexGuard<()>>,
}

impl Replay {
    /// The stores may be compared again. To be called before anybody can see that it is over.
    pub fn let_others(&mut self) {
        self.alone = None;
    }

    /// It is over. Whoever asked may have gone away.
    pub fn end(self, outcome: anyhow::Result<()>) {
        if let Some(ended) = self.ended {
            let _ = ended.send(outcome);
        }
    }
}

/// Takes requests for replays.
pub struct Replayer {
    /// Whoever compares the stores or builds them again holds this.
    pub one_at_a_time: Arc<Mutex<()>>,
    /// To the pipeline.
    pub asked: mpsc::Sender<Replay>,
    /// Where progress is read.
    pub stations: Arc<Stations>,
}

impl Replayer {
    /// The replay that an earlier process left half-way: of `stores`.
    pub fn resumed(&self, stores: Vec<Phase>) -> anyhow::Result<Replay> {
        Ok(Replay { stores, ended: None, alone: Some(self.alone()?) })
    }

    fn alone(&self) -> anyhow::Result<OwnedMutexGuard<()>> {
        let alone = Arc::clone(&self.one_at_a_time).try_lock_owned();
        alone.context(
            "another replay or a verify is running: try again when it has ended; `feedmill status` says how far a replay is",
        )
    }

    /// Builds the stores of `views` again, and tells how far that is. It goes on if whoever asked goes away.
    pub async fn answer(&self, views: &[String], answers: mpsc::Sender<Answer>) -> anyhow::Result<()> {
        let stores = stores_of(views)?;
        let (ended, mut has_ended) = oneshot::channel();
        let replay = Replay { stores, ended: Some(ended), alone: Some(self.alone()?) };
        const ENDS: &str = "the process ends; if the replay had begun, the next start goes on with it";
        self.asked.send(replay).await.ok().context(ENDS)?;
        let mut again = interval(TELL);
        again.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let ended = tokio::select! {
                ended = &mut has_ended => Some(ended.context(ENDS)?),
                _ = again.tick() => None,
            };
            let is_over = ended.is_some();
            ended.transpose()?;
            if is_over || self.stations.is_replaying() {
                let step = Box::new(self.stations.replay().told());
                answers.send(Answer::Replaying(step)).await.context("whoever asked has gone away")?;
            }
            if is_over {
                return Ok(());
            }
        }
    }
}
