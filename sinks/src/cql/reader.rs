//! The stores of a keyspace that other processes write, to be read.

use std::sync::Arc;

use feedmill_model::{Parameters, Phase, SourceId};
use tokio::sync::watch;

use super::CqlError;
use super::cache::CacheAges;
use super::cluster::Cluster;
use super::follow::{Followed, Following};
use super::settings::CqlSettings;
use super::views::CqlViews;
use crate::Progress;

/// The stores of a keyspace that other processes write. It writes nothing. What it has found out of how far they are is followed as
/// long as this or its views live.
#[derive(Clone)]
pub struct CqlReader {
    views: CqlViews,
    following: Arc<Following>,
}

impl CqlReader {
    /// Connects to the cluster. A keyspace that nobody has made yet, or that is of another version or has entries for another time
    /// than `parameters` say, is an error; one that is not filled is not, but cannot be read ([`Self::missing`]).
    ///
    /// Requests are made on the runtime that this is called on.
    pub async fn open(settings: CqlSettings, parameters: Parameters, ages: CacheAges) -> Result<Self, CqlError> {
        let cluster = Arc::new(Cluster::open_made(settings).await?);
        let following = Arc::new(Followed::begin(&cluster, parameters).await?);
        Ok(CqlReader { views: CqlViews::following(cluster, Arc::clone(&following), ages), following })
    }

    fn followed(&self) -> &Followed {
        &self.following.followed
    }

    /// The stores, to be read.
    pub fn views(&self) -> CqlViews {
        self.views.clone()
    }

    /// How far they are. Of search it knows nothing: whoever does tells it.
    pub fn progress(&self) -> Arc<Progress> {
        Arc::clone(&self.followed().progress)
    }

    /// The source that they are of. It changes when the database is restored or fails over.
    pub fn source(&self) -> watch::Receiver<SourceId> {
        self.followed().source()
    }

    /// Stores that are not filled yet, or are being built again.
    pub fn missing(&self) -> Vec<Phase> {
        self.followed().missing()
    }

    /// Why it is not known now how far the stores are, though that is asked again and again.
    pub fn away(&self) -> Option<String> {
        self.followed().away()
    }

    /// Waits until they cannot be followed any more; gives why. Nothing is read from then on.
    pub async fn fault(&self) -> Arc<CqlError> {
        self.followed().fault().await
    }
}
