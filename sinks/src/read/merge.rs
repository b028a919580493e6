//! Many timelines as one, newest first.
//!
//! ```text
//!   timeline of a ─ few, then more ─► ready ─┐
//!   timeline of b ─ few, then more ─► ready ─┼─► heap of the newest of each ─► next
//!   pushed entries ─────────────────► ready ─┘
//! ```
//!
//! A source is asked again only when all that it had was taken, so a page reads a few entries of each account and not
//! the timelines of all.

use std::collections::{BinaryHeap, VecDeque};

use feedmill_model::{EntryId, EntryKind, PackedEntry};
use futures::future::try_join_all;

use crate::{ReadError, TimelineItem, Views};

/// Entries that a timeline is first asked for; then four times as many each time, up to [`FETCH_MAX`].
const FETCH_FIRST: usize = 4;
const FETCH_MAX: usize = 256;

/// Timelines that are read at the same time.
const FETCHES_AT_ONCE: usize = 32;

/// An entry that a page may show.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Candidate {
    /// The entry.
    pub entry: EntryId,
    /// Who tweeted or retweeted it, where the source says so.
    pub by: Option<i64>,
    /// The tweet itself or the one retweeted, where the source says so.
    pub tweet: Option<i64>,
}

/// Entries of one account, or those that were pushed, newest first.
#[derive(Debug)]
pub(super) struct Source {
    user: i64,
    replies: bool,
    before: Option<EntryId>,
    /// Only entries with an id above this belong; all, where it is `None`.
    above: Option<i64>,
    fetch: usize,
    ended: bool,
    ready: VecDeque<Candidate>,
}

impl Source {
    /// The entries (`replies`: the replies) of `user` before `before` with an id above `above`, if that is given.
    pub(super) fn timeline(user: i64, replies: bool, before: Option<EntryId>, above: Option<i64>) -> Self {
        Source { user, replies, before, above, fetch: FETCH_FIRST, ended: false, ready: VecDeque::new() }
    }

    /// The pushed entries before `before`, which come newest first.
    pub(super) fn pushed(entries: &[PackedEntry], before: Option<EntryId>) -> Self {
        let candidate = |entry: EntryId| {
            let tweet = (entry.kind == EntryKind::Tweet).then_some(entry.id);
            Candidate { entry, by: None, tweet }
        };
        let entries = entries.iter().map(|entry| entry.entry());
        let ready = entries.filter(|entry| before.is_none_or(|before| *entry < before)).map(candidate).collect();
        Source { ended: true, ready, ..Source::timeline(0, false, None, None) }
    }

    async fn fill(&mut self, views: &dyn Views) -> Result<(), ReadError> {
        if self.ended || !self.ready.is_empty() {
            return Ok(());
        }
        let items = views.user_timeline(self.user, self.replies, self.before, self.fetch).await?;
        self.before = items.last().map(|item| item.entry).or(self.before);
        let above = self.above;
        let belongs = |item: &TimelineItem| above.is_none_or(|above| item.entry.id > above);
        self.ended = items.len() < self.fetch || items.last().is_some_and(|item| !belongs(item));
        self.fetch = (self.fetch * 4).min(FETCH_MAX);
        let by = Some(self.user);
        let candidate = |item: TimelineItem| Candidate { entry: item.entry, by, tweet: Some(item.tweet) };
        self.ready.extend(items.into_iter().filter(belongs).map(candidate));
        Ok(())
    }
}

/// The entries of all sources, newest first.
pub(super) struct Merge<'a> {
    views: &'a dyn Views,
    sources: Vec<Source>,
    /// The newest entry of each source that has one, and the source's index.
    newest: BinaryHeap<(EntryId, usize)>,
}

impl<'a> Merge<'a> {
    /// Reads the beginning of each source.
    pub(super) async fn open(views: &'a dyn Views, mut sources: Vec<Source>) -> Result<Self, ReadError> {
        for sources in sources.chunks_mut(FETCHES_AT_ONCE) {
            try_join_all(sources.iter_mut().map(|source| source.fill(views))).await?;
        }
        let newest =
            sources.iter().enumerate().filter_map(|(index, source)| Some((source.ready.front()?.entry, index)));
        let newest = newest.collect();
        Ok(Merge { views, sources, newest })
    }

    /// The next entry.
    pub(super) async fn next(&mut self) -> Result<Option<Candidate>, ReadError> {
        let Some((_, index)) = self.newest.pop() else { return Ok(None) };
        let Some(source) = self.sources.get_mut(index) else { return Ok(None) };
        let next = source.ready.pop_front();
        source.fill(self.views).await?;
        self.newest.extend(source.ready.front().map(|candidate| (candidate.entry, index)));
        Ok(next)
    }

    /// Whether there is no next entry.
    pub(super) fn is_empty(&self) -> bool {
        self.newest.is_empty()
    }
}
