//! Reads the stores of a CQL cluster.
//!
//! Requests are made on the runtime of the store, whoever asks: the session's connections and timers live there.

use std::future::Future;
use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use feedmill_model::{Counter, EntryId, Notice, Parameters, Phase, StoreError, Time, TrendWindow};

use super::cache::{CacheAges, Caches, Piece};
use super::cluster::Cluster;
use super::copy::{counts, freeze};
use super::fault::Fault;
use super::follow::{Begun, Followed, Following};
use super::home::CqlHome;
use super::index::CqlIndex;
use super::place::Kind;
use super::read::{Homes, Reader};
use crate::{
    Changes, CountedTweet, Edge, FrozenViews, HomeHead, HomeRecord, List, Profile, Progress, ReadError, Rebuilding,
    Relationship, Reply, StoreViews, TimelineItem, TrendingTag, TrendingTweet, Views,
};

/// The stores of a CQL cluster, read.
#[derive(Clone)]
pub struct CqlViews {
    stores: Stores,
    progress: Arc<Progress>,
    reader: Arc<Reader>,
}

/// Who knows how far the stores are.
#[derive(Clone)]
enum Stores {
    /// This process writes them.
    Written(Arc<CqlIndex>, Arc<CqlHome>),
    /// Others do.
    Followed(Arc<Following>),
}

impl CqlViews {
    /// Reads these stores; `progress` says how far they are.
    pub fn new(index: Arc<CqlIndex>, home: Arc<CqlHome>, progress: Arc<Progress>) -> Self {
        let reader = Arc::new(Reader { cluster: Arc::clone(&index.rows.cluster), caches: None });
        CqlViews { stores: Stores::Written(index, home), progress, reader }
    }

    /// Reads what others write.
    pub(super) fn following(cluster: Arc<Cluster>, following: Arc<Following>, ages: CacheAges) -> Self {
        let progress = Arc::clone(&following.followed.progress);
        let reader = Arc::new(Reader { cluster, caches: Some(Caches::new(ages)) });
        CqlViews { stores: Stores::Followed(following), progress, reader }
    }

    fn followed(&self) -> Option<&Followed> {
        match &self.stores {
            Stores::Written(..) => None,
            Stores::Followed(following) => Some(&following.followed),
        }
    }

    /// A read of what belongs to `phase` begins.
    fn begin(&self, phase: Phase, what: &'static str) -> Result<Option<Begun>, ReadError> {
        let (index, home) = match &self.stores {
            Stores::Written(index, home) => (index, home),
            Stores::Followed(following) => return following.followed.begin_read(phase, what).map(Some),
        };
        let ledger = match phase {
            Phase::Facts => &index.facts,
            Phase::Rows | Phase::Search => &index.rows,
            Phase::Home => &home.ledger,
            Phase::Reactions => &index.reactions,
        };
        // While home timelines are built again there are no records, and who reads merges.
        if phase != Phase::Home && !ledger.is_readable() {
            return Err(ReadError { store: "CQL", what, source: Box::new(Rebuilding(phase)) });
        }
        Ok(None)
    }

    /// The same of home timelines, with how far they are then and the settings that they have.
    fn begin_home(&self, what: &'static str) -> Result<(Option<Begun>, Homes, Parameters), ReadError> {
        Ok(match &self.stores {
            Stores::Written(_, home) => (None, Homes::Asked(home.ledger.generation()), home.parameters.clone()),
            Stores::Followed(following) => {
                let (begun, rows) = following.followed.begin_homes(what)?;
                (Some(begun), Homes::Known(rows), following.followed.parameters.clone())
            }
        })
    }

    /// Runs a read of what belongs to `phase`.
    async fn read<T, F>(
        &self,
        phase: Phase,
        what: &'static str,
        read: impl FnOnce(Arc<Reader>) -> F,
    ) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        self.run(self.begin(phase, what)?, what, read).await
    }

    /// Runs a read that has begun.
    async fn run<T, F>(
        &self,
        begun: Option<Begun>,
        what: &'static str,
        read: impl FnOnce(Arc<Reader>) -> F,
    ) -> Result<T, ReadError>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Fault>> + Send + 'static,
    {
        let task = self.reader.cluster.handle.spawn(read(Arc::clone(&self.reader)));
        let found = task.await.map_err(|_| Fault::Stopped).and_then(|found| found).map_err(|fault| fault.read(what))?;
        if let (Some(followed), Some(begun)) = (self.followed(), begun) {
            followed.end_read(begun, what)?;
        }
        Ok(found)
    }

    /// The time that rows have now.
    fn rows_time(&self) -> Time {
        self.progress.position(Phase::Rows).time
    }
}

#[async_trait]
impl Views for CqlViews {
    async fn user_by_name(&self, name: &str) -> Result<Option<i64>, ReadError> {
        let name = name.to_owned();
        self.read(Phase::Rows, "a name", |reader| async move { reader.user_by_name(&name).await }).await
    }

    async fn profiles(&self, ids: &[i64]) -> Result<Vec<Option<Arc<Profile>>>, ReadError> {
        let (ids, time) = (ids.to_vec(), self.rows_time());
        self.read(Phase::Rows, "profiles", |reader| async move { reader.profiles(&ids, time).await }).await
    }

    async fn edges(&self, list: List, of: i64, after: Option<Edge>, limit: usize) -> Result<Vec<Edge>, ReadError> {
        let read = |reader: Arc<Reader>| async move { reader.edges(list, of, after, limit).await };
        self.read(list.view().phase(), "a list of accounts", read).await
    }

    async fn tweets(&self, ids: &[i64]) -> Result<Vec<Option<Arc<CountedTweet>>>, ReadError> {
        let ids = ids.to_vec();
        // Its likes are counted by the reactions. What is emptied of both has lost the progress of the rows too.
        self.begin(Phase::Reactions, "tweets")?;
        self.read(Phase::Rows, "tweets", |reader| async move { reader.tweets(&ids).await }).await
    }

    async fn retweets(&self, ids: &[i64]) -> Result<Vec<Option<(i64, i64)>>, ReadError> {
        let ids = ids.to_vec();
        self.read(Phase::Rows, "retweets", |reader| async move { reader.retweets(&ids).await }).await
    }

    async fn user_timeline(
        &self,
        user: i64,
        replies: bool,
        before: Option<EntryId>,
        limit: usize,
    ) -> Result<Vec<TimelineItem>, ReadError> {
        let (piece, time) = (Piece { user, replies, before, limit }, self.rows_time());
        let read = move |reader: Arc<Reader>| async move { reader.timeline(piece, time).await };
        self.read(Phase::Rows, "a user timeline", read).await
    }

    async fn retweeters(&self, tweet: i64, before: Option<i64>, limit: usize) -> Result<Vec<(i64, i64)>, ReadError> {
        let read = |reader: Arc<Reader>| async move { reader.retweeters(tweet, before, limit).await };
        self.read(Phase::Rows, "retweeters", read).await
    }

    async fn liked(&self, user: i64, tweets: &[i64]) -> Result<Vec<bool>, ReadError> {
        let tweets = tweets.to_vec();
        let read = |reader: Arc<Reader>| async move { reader.liked(user, &tweets).await };
        self.read(Phase::Reactions, "likes of a user", read).await
    }

    async fn retweeted(&self, user: i64, tweets: &[i64]) -> Result<Vec<Option<i64>>, ReadError> {
        let tweets = tweets.to_vec();
        let read = |reader: Arc<Reader>| async move { reader.retweeted(user, &tweets).await };
        self.read(Phase::Rows, "retweets of a user", read).await
    }

    async fn tagged(&self, tag: &str, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        let tag = tag.to_owned();
        let read = |reader: Arc<Reader>| async move { reader.tagged(&tag, before, limit).await };
        self.read(Phase::Rows, "tweets with a tag", read).await
    }

    async fn trending_tags(&self, window: TrendWindow) -> Result<Vec<TrendingTag>, ReadError> {
        let read = |reader: Arc<Reader>| async move { reader.trending_tags(window).await };
        self.read(Phase::Rows, "trending hashtags", read).await
    }

    async fn trending_tweets(&self) -> Result<Vec<TrendingTweet>, ReadError> {
        self.read(Phase::Reactions, "trending tweets", |reader| async move { reader.trending_tweets().await }).await
    }

    async fn replies(
        &self,
        root: i64,
        under: &[i64],
        after: Option<&[i64]>,
        limit: usize,
    ) -> Result<Vec<Reply>, ReadError> {
        let (under, after) = (under.to_vec(), after.map(<[i64]>::to_vec));
        let read = |reader: Arc<Reader>| async move { reader.replies(root, &under, after.as_deref(), limit).await };
        self.read(Phase::Rows, "a conversation", read).await
    }

    async fn replies_of(&self, root: i64, ids: &[i64]) -> Result<Vec<Option<Reply>>, ReadError> {
        let ids = ids.to_vec();
        let read = |reader: Arc<Reader>| async move { reader.replies_of(root, &ids).await };
        self.read(Phase::Rows, "places in a conversation", read).await
    }

    async fn notifications(&self, user: i64, after: Option<&Notice>, limit: usize) -> Result<Vec<Notice>, ReadError> {
        let after = after.copied();
        let read = |reader: Arc<Reader>| async move { reader.notifications(user, after.as_ref(), limit).await };
        self.read(Phase::Reactions, "notifications", read).await
    }

    async fn read_mark(&self, user: i64) -> Result<Option<i64>, ReadError> {
        self.read(Phase::Rows, "a read mark", |reader| async move { reader.read_mark(user).await }).await
    }

    async fn home(&self, viewer: i64) -> Result<Option<HomeRecord>, ReadError> {
        const WHAT: &str = "a home timeline";
        let (begun, homes, parameters) = self.begin_home(WHAT)?;
        let read = |reader: Arc<Reader>| async move { reader.home(viewer, homes, &parameters).await };
        self.run(begun, WHAT, read).await
    }

    async fn heads(&self, viewers: &[i64], authors: &[i64]) -> Result<Vec<Option<HomeHead>>, ReadError> {
        const WHAT: &str = "heads of home timelines";
        let (begun, homes, parameters) = self.begin_home(WHAT)?;
        let (viewers, authors) = (viewers.to_vec(), authors.to_vec());
        let read = |reader: Arc<Reader>| async move { reader.heads(&viewers, &authors, homes, &parameters).await };
        self.run(begun, WHAT, read).await
    }

    async fn relationships(&self, viewer: Option<i64>, users: &[i64]) -> Result<Vec<Relationship>, ReadError> {
        let users = users.to_vec();
        let read = |reader: Arc<Reader>| async move { reader.relationships(viewer, &users).await };
        self.read(Phase::Facts, "relationships", read).await
    }

    async fn blocks(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        let read = |reader: Arc<Reader>| async move { reader.others(Kind::Block, user, after, limit).await };
        self.read(Phase::Facts, "accounts blocked", read).await
    }

    async fn mutes(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        let read = |reader: Arc<Reader>| async move { reader.others(Kind::Mute, user, after, limit).await };
        self.read(Phase::Facts, "accounts muted", read).await
    }

    async fn deleted_tweets(&self, ids: &[i64]) -> Result<Vec<bool>, ReadError> {
        let ids = ids.to_vec();
        self.read(Phase::Facts, "deleted tweets", |reader| async move { reader.deleted_tweets(&ids).await }).await
    }

    fn changes(&self) -> &Changes {
        match &self.stores {
            Stores::Written(index, _) => &index.changes,
            Stores::Followed(following) => &following.followed.changes,
        }
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}

impl StoreViews for CqlViews {
    fn counts(&self, counter: Counter, each: &mut dyn FnMut(i64, i64)) -> Result<(), ReadError> {
        let what = "all counts";
        self.begin(counter.view().phase(), what)?;
        let cluster = &self.reader.cluster;
        cluster.wait(counts(cluster, counter, each)).map_err(|fault| fault.read(what))
    }

    fn freeze(&self, dir: &Path, bytes_max: u64) -> Result<FrozenViews, StoreError> {
        const WHAT: &str = "all stores";
        let failed =
            |error| StoreError { store: "CQL", tried: "copy what it holds".to_owned(), source: Box::new(error) };
        for phase in [Phase::Facts, Phase::Rows, Phase::Reactions] {
            self.begin(phase, WHAT).map_err(failed)?;
        }
        let (_, homes, parameters) = self.begin_home(WHAT).map_err(failed)?;
        let (cluster, position) = (&self.reader.cluster, self.progress.position(Phase::Home));
        cluster.wait(freeze(cluster, homes, &parameters, position, dir, bytes_max))
    }
}
