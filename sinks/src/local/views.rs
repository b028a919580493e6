//! Reads the local stores.
//!
//! Reads are answered on the thread that asks: what they touch is in memory or in the system's file cache nearly always,
//! where a hop to another thread costs more than the read. Each takes from the task's budget, so that a page that merges
//! thousands of timelines lets others run.

use std::path::Path;
use std::sync::Arc;

use async_trait::async_trait;
use feedmill_model::{Counter, EntryId, Notice, Phase, StoreError, TrendWindow};
use tokio::task::consume_budget;

use crate::{
    Changes, CountedTweet, Edge, FrozenViews, HomeHead, HomeRecord, List, LocalHome, LocalIndex, Profile, Progress,
    ReadError, Relationship, Reply, TimelineItem, TrendingTag, TrendingTweet, Views,
};

/// The local stores, read.
#[derive(Clone)]
pub struct LocalViews {
    index: Arc<LocalIndex>,
    home: Arc<LocalHome>,
    progress: Arc<Progress>,
}

impl LocalViews {
    /// Reads these stores; `progress` says how far they are.
    pub fn new(index: Arc<LocalIndex>, home: Arc<LocalHome>, progress: Arc<Progress>) -> Self {
        LocalViews { index, home, progress }
    }

    /// All stores as they are now. No closed time may be applied meanwhile. The copy of home timelines lies in the folder
    /// `dir`, takes at most `bytes_max` there, and goes with what this returns.
    pub fn freeze(&self, dir: &Path, bytes_max: u64) -> Result<FrozenViews, StoreError> {
        FrozenViews::take(&self.index, &self.home, self.progress.position(Phase::Home), dir, bytes_max)
    }

    /// Calls `each` with everything that `counter` counts, and how often, in no particular order.
    pub fn counts(&self, counter: Counter, each: &mut dyn FnMut(i64, i64)) -> Result<(), ReadError> {
        self.index.reader().counts(counter, each)
    }
}

#[async_trait]
impl Views for LocalViews {
    async fn user_by_name(&self, name: &str) -> Result<Option<i64>, ReadError> {
        consume_budget().await;
        self.index.reader().user_by_name(name)
    }

    async fn profiles(&self, ids: &[i64]) -> Result<Vec<Option<Arc<Profile>>>, ReadError> {
        consume_budget().await;
        self.index.profiles(ids)
    }

    async fn edges(&self, list: List, of: i64, after: Option<Edge>, limit: usize) -> Result<Vec<Edge>, ReadError> {
        consume_budget().await;
        self.index.reader().edges(list.view(), of, after, limit)
    }

    async fn retweeters(&self, tweet: i64, before: Option<i64>, limit: usize) -> Result<Vec<(i64, i64)>, ReadError> {
        consume_budget().await;
        self.index.reader().retweeters(tweet, before, limit)
    }

    async fn liked(&self, user: i64, tweets: &[i64]) -> Result<Vec<bool>, ReadError> {
        consume_budget().await;
        self.index.reader().liked(user, tweets)
    }

    async fn retweeted(&self, user: i64, tweets: &[i64]) -> Result<Vec<Option<i64>>, ReadError> {
        consume_budget().await;
        self.index.reader().retweeted(user, tweets)
    }

    async fn tagged(&self, tag: &str, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        consume_budget().await;
        self.index.reader().tagged(tag, before, limit)
    }

    async fn trending_tags(&self, window: TrendWindow) -> Result<Vec<TrendingTag>, ReadError> {
        consume_budget().await;
        self.index.reader().trending_tags(window)
    }

    async fn trending_tweets(&self) -> Result<Vec<TrendingTweet>, ReadError> {
        consume_budget().await;
        self.index.reader().trending_tweets()
    }

    async fn replies(
        &self,
        root: i64,
        under: &[i64],
        after: Option<&[i64]>,
        limit: usize,
    ) -> Result<Vec<Reply>, ReadError> {
        consume_budget().await;
        self.index.reader().replies(root, under, after, limit)
    }

    async fn replies_of(&self, root: i64, ids: &[i64]) -> Result<Vec<Option<Reply>>, ReadError> {
        consume_budget().await;
        self.index.reader().replies_of(root, ids)
    }

    async fn notifications(&self, user: i64, after: Option<&Notice>, limit: usize) -> Result<Vec<Notice>, ReadError> {
        consume_budget().await;
        self.index.reader().notifications(user, after, limit)
    }

    async fn read_mark(&self, user: i64) -> Result<Option<i64>, ReadError> {
        consume_budget().await;
        self.index.reader().read_mark(user)
    }

    async fn tweets(&self, ids: &[i64]) -> Result<Vec<Option<Arc<CountedTweet>>>, ReadError> {
        consume_budget().await;
        self.index.tweets(ids)
    }

    async fn retweets(&self, ids: &[i64]) -> Result<Vec<Option<(i64, i64)>>, ReadError> {
        consume_budget().await;
        self.index.reader().retweets(ids)
    }

    async fn user_timeline(
        &self,
        user: i64,
        replies: bool,
        before: Option<EntryId>,
        limit: usize,
    ) -> Result<Vec<TimelineItem>, ReadError> {
        consume_budget().await;
        self.index.reader().user_timeline(user, replies, before, limit)
    }

    async fn home(&self, viewer: i64) -> Result<Option<HomeRecord>, ReadError> {
        consume_budget().await;
        Ok(self.home.record(viewer))
    }

    async fn heads(&self, viewers: &[i64], authors: &[i64]) -> Result<Vec<Option<HomeHead>>, ReadError> {
        consume_budget().await;
        Ok(self.home.heads(viewers, authors))
    }

    async fn relationships(&self, viewer: Option<i64>, users: &[i64]) -> Result<Vec<Relationship>, ReadError> {
        consume_budget().await;
        self.index.relationships(viewer, users)
    }

    async fn blocks(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        consume_budget().await;
        self.index.reader().blocks(user, after, limit)
    }

    async fn mutes(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        consume_budget().await;
        self.index.reader().mutes(user, after, limit)
    }

    async fn deleted_tweets(&self, ids: &[i64]) -> Result<Vec<bool>, ReadError> {
        consume_budget().await;
        self.index.deleted_tweets(ids)
    }

    fn changes(&self) -> &Changes {
        self.index.changes()
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}
