//! The local stores as of one closed time, to be read while they go on.
//!
//! ```text
//!   stores stand at T ─┬─ index: a snapshot of fjall ──────────┐
//!                      └─ home: its records copied to a file ──┴─► FrozenViews ─► scans, and reads as they are served
//!   stores go on ─► T + 1 …
//! ```
//!
//! Why it is of one time: it is taken while no closed time is being applied, so that all phases stand at T. What
//! housekeeping writes meanwhile (progress, counts that came down to zero and go) is in no view.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use feedmill_model::{EntryId, Notice, Position, StoreError, Time, TrendWindow, View};
use tokio::task::consume_budget;

use super::HomeCopy;
use super::index::IndexReader;
use crate::{
    Changes, CountedTweet, Edge, HomeHead, HomeRecord, List, LocalHome, LocalIndex, Profile, Progress, ReadError,
    Relationship, Reply, TimelineItem, TrendingTag, TrendingTweet, Views,
};

/// The local stores as of one closed time. Of home records it serves those of [`FrozenViews::keep_records`].
pub struct FrozenViews {
    index: IndexReader,
    home: HomeCopy,
    records: HashMap<i64, HomeRecord>,
    progress: Progress,
    /// Of which there are none.
    changes: Changes,
    /// What goes with this.
    _folder: Option<Folder>,
}

/// A folder that goes when this does.
pub(crate) struct Folder(PathBuf);

impl Folder {
    /// Takes what is there away first.
    pub(crate) fn anew(path: PathBuf) -> std::io::Result<Self> {
        if path.exists() {
            std::fs::remove_dir_all(&path)?;
        }
        std::fs::create_dir_all(&path)?;
        Ok(Folder(path))
    }

    pub(crate) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for Folder {
    fn drop(&mut self) {
        if let Err(error) = std::fs::remove_dir_all(&self.0) {
            tracing::warn!("could not remove {}: {error}", self.0.display());
        }
    }
}

impl FrozenViews {
    /// The stores of `index` and `home` as they are now, at `position`. No closed time may be applied meanwhile. The copy
    /// of home timelines lies in the folder `dir`, takes at most `bytes_max` there, and goes with this.
    pub fn take(
        index: &LocalIndex,
        home: &LocalHome,
        position: Position,
        dir: &Path,
        bytes_max: u64,
    ) -> Result<FrozenViews, StoreError> {
        Ok(FrozenViews::of(index, home.copy_to(dir, bytes_max)?, position, None))
    }

    /// What `index` has now and `home` had, at `position`; `folder` goes with it.
    pub(crate) fn of(index: &LocalIndex, home: HomeCopy, position: Position, folder: Option<Folder>) -> FrozenViews {
        FrozenViews {
            home,
            index: index.reader(),
            records: HashMap::new(),
            progress: Progress::new([position; 5]),
            changes: Changes::default(),
            _folder: folder,
        }
    }

    /// Calls `each` with key and value of every row of `view`, in the form in which the view's SQL prints them, in no
    /// particular order. `at` is the time of the stores. Of [`View::Home`] it gives what lies above [`Self::floors`].
    pub fn scan(&self, view: View, at: Time, each: &mut dyn FnMut(String, String)) -> Result<(), ReadError> {
        match view {
            View::Active | View::VerifiedFollowing | View::Home => self.home.scan(view, at, each).map_err(unreadable),
            _ => self.index.scan(view, each),
        }
    }

    /// Each viewer with the id above which the record is complete at `at`.
    pub fn floors(&self, at: Time) -> Result<HashMap<i64, i64>, ReadError> {
        let mut floors = HashMap::new();
        let noted = self.home.floors(at, |viewer, floor| {
            floors.insert(viewer, floor);
        });
        noted.map_err(unreadable)?;
        Ok(floors)
    }

    /// Reads the records of `viewers` as they are at `at`, so that their timelines can be served.
    pub fn keep_records(&mut self, viewers: &HashSet<i64>, at: Time) -> Result<(), ReadError> {
        self.records = self.home.records(viewers, at).map_err(unreadable)?;
        Ok(())
    }
}

fn unreadable(error: StoreError) -> ReadError {
    ReadError { store: "local", what: "the copy of home timelines", source: Box::new(error) }
}

#[async_trait]
impl Views for FrozenViews {
    async fn user_by_name(&self, name: &str) -> Result<Option<i64>, ReadError> {
        consume_budget().await;
        self.index.user_by_name(name)
    }

    async fn profiles(&self, ids: &[i64]) -> Result<Vec<Option<Arc<Profile>>>, ReadError> {
        consume_budget().await;
        self.index.profiles(ids)
    }

    async fn edges(&self, list: List, of: i64, after: Option<Edge>, limit: usize) -> Result<Vec<Edge>, ReadError> {
        consume_budget().await;
        self.index.edges(list.view(), of, after, limit)
    }

    async fn retweeters(&self, tweet: i64, before: Option<i64>, limit: usize) -> Result<Vec<(i64, i64)>, ReadError> {
        consume_budget().await;
        self.index.retweeters(tweet, before, limit)
    }

    async fn liked(&self, user: i64, tweets: &[i64]) -> Result<Vec<bool>, ReadError> {
        consume_budget().await;
        self.index.liked(user, tweets)
    }

    async fn retweeted(&self, user: i64, tweets: &[i64]) -> Result<Vec<Option<i64>>, ReadError> {
        consume_budget().await;
        self.index.retweeted(user, tweets)
    }

    async fn tagged(&self, tag: &str, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        consume_budget().await;
        self.index.tagged(tag, before, limit)
    }

    async fn trending_tags(&self, window: TrendWindow) -> Result<Vec<TrendingTag>, ReadError> {
        consume_budget().await;
        self.index.trending_tags(window)
    }

    async fn trending_tweets(&self) -> Result<Vec<TrendingTweet>, ReadError> {
        consume_budget().await;
        self.index.trending_tweets()
    }

    async fn replies(
        &self,
        root: i64,
        under: &[i64],
        after: Option<&[i64]>,
        limit: usize,
    ) -> Result<Vec<Reply>, ReadError> {
        consume_budget().await;
        self.index.replies(root, under, after, limit)
    }

    async fn replies_of(&self, root: i64, ids: &[i64]) -> Result<Vec<Option<Reply>>, ReadError> {
        consume_budget().await;
        self.index.replies_of(root, ids)
    }

    async fn notifications(&self, user: i64, after: Option<&Notice>, limit: usize) -> Result<Vec<Notice>, ReadError> {
        consume_budget().await;
        self.index.notifications(user, after, limit)
    }

    async fn read_mark(&self, user: i64) -> Result<Option<i64>, ReadError> {
        consume_budget().await;
        self.index.read_mark(user)
    }

    async fn tweets(&self, ids: &[i64]) -> Result<Vec<Option<Arc<CountedTweet>>>, ReadError> {
        consume_budget().await;
        self.index.tweets(ids)
    }

    async fn retweets(&self, ids: &[i64]) -> Result<Vec<Option<(i64, i64)>>, ReadError> {
        consume_budget().await;
        self.index.retweets(ids)
    }

    async fn user_timeline(
        &self,
        user: i64,
        replies: bool,
        before: Option<EntryId>,
        limit: usize,
    ) -> Result<Vec<TimelineItem>, ReadError> {
        consume_budget().await;
        self.index.user_timeline(user, replies, before, limit)
    }

    async fn home(&self, viewer: i64) -> Result<Option<HomeRecord>, ReadError> {
        consume_budget().await;
        Ok(self.records.get(&viewer).cloned())
    }

    /// Nothing changes any more.
    async fn heads(&self, viewers: &[i64], _authors: &[i64]) -> Result<Vec<Option<HomeHead>>, ReadError> {
        let head = |viewer: &i64| {
            Some(HomeHead { stamp: 0, takes: false, hot: false, floor: self.records.get(viewer)?.floor })
        };
        Ok(viewers.iter().map(head).collect())
    }

    async fn relationships(&self, viewer: Option<i64>, users: &[i64]) -> Result<Vec<Relationship>, ReadError> {
        consume_budget().await;
        self.index.relationships(viewer, users)
    }

    async fn blocks(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        consume_budget().await;
        self.index.blocks(user, after, limit)
    }

    async fn mutes(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        consume_budget().await;
        self.index.mutes(user, after, limit)
    }

    async fn deleted_tweets(&self, ids: &[i64]) -> Result<Vec<bool>, ReadError> {
        consume_budget().await;
        self.index.deleted_tweets(ids)
    }

    fn changes(&self) -> &Changes {
        &self.changes
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}
