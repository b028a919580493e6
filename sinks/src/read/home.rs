//! A page of a home timeline.
//!
//! ```text
//!   ids above the floor     pushed entries ∪ timelines of the hot accounts of the record
//!   ids at or below it      timelines of all accounts followed ∪ one's own
//! ```
//!
//! Both give the same entries wherever the floor lies: those of the accounts that the viewer follows, by the facts, and
//! one's own. Above the floor the record is complete but for the hot accounts, and it names those. So neither floors nor
//! what is hot can be seen in what is served. A viewer without a record has a floor above all ids.

use std::collections::{HashSet, VecDeque};

use feedmill_model::{EntryId, Parameters, Phase};

use super::candidates::{Audience, Candidates, profile, show};
use super::merge::{Candidate, Merge, Source};
use super::{HomeCursor, Page, SHOWN_MAX, TimelineTweet, served};
use crate::{Edge, HomeRecord, List, ReadError, Views};

/// Accounts of a list that are read at once.
const LIST_CHUNK: usize = 1_000;

/// No home timeline can hold an entry from here on, so none is taken from the timelines either.
const END: EntryId = EntryId::tweet(1 << 62);

/// A page of the viewer's home timeline, newest first: entries of the accounts followed and the viewer's own, without
/// what the viewer mutes, blocks or may not read. A tweet is shown once, as its newest entry, as far as the cursor
/// remembers. Of a viewer who follows more than `following_max` accounts only the newest of them count.
pub async fn home_page(
    views: &dyn Views,
    parameters: &Parameters,
    viewer: i64,
    cursor: HomeCursor,
    limit: usize,
) -> Result<Page<TimelineTweet, HomeCursor>, ReadError> {
    let time = served(views, &[Phase::Home, Phase::Rows, Phase::Facts]);
    let record = views.home(viewer).await?;
    let follows = profile(views, viewer).await?.map_or(0, |profile| profile.following);
    let following_max = parameters.following_max;
    let within = if usize::try_from(follows).is_ok_and(|follows| follows > following_max) {
        Some(following(views, viewer, following_max).await?.into_iter().collect::<HashSet<_>>())
    } else {
        None
    };
    let before = cursor.before.map_or(END, |before| before.min(END));
    let mut candidates = HomeCandidates::open(views, viewer, record, within.as_ref(), before, following_max).await?;
    let mut last_shown = LastShown::new(cursor.shown);
    let audience = Audience::Home { viewer, within: within.as_ref() };
    let shown = show(views, &audience, &mut candidates, limit, |tweet| last_shown.add(tweet.tweet.tweet.id)).await?;
    let next = || HomeCursor { before: shown.last.or(cursor.before), shown: last_shown.0.into() };
    Ok(Page { next: shown.more.then(next), items: shown.items, time })
}

/// The accounts that `user` follows, the newest first, at most `max`.
pub(super) async fn following(views: &dyn Views, user: i64, max: usize) -> Result<Vec<i64>, ReadError> {
    let mut accounts = Vec::new();
    let mut after: Option<Edge> = None;
    while accounts.len() < max {
        let limit = LIST_CHUNK.min(max - accounts.len());
        let edges = views.edges(List::Following, user, after, limit).await?;
        after = edges.last().copied();
        accounts.extend(edges.iter().map(|edge| edge.id));
        if edges.len() < limit {
            break;
        }
    }
    Ok(accounts)
}

/// The tweets shown last, the newest at the end.
struct LastShown(VecDeque<i64>);

impl LastShown {
    fn new(shown: Vec<i64>) -> Self {
        let mut shown = VecDeque::from(shown);
        shown.drain(..shown.len().saturating_sub(SHOWN_MAX));
        LastShown(shown)
    }

    /// `false` if the tweet is among them.
    fn add(&mut self, tweet: i64) -> bool {
        if self.0.contains(&tweet) {
            return false;
        }
        if self.0.len() == SHOWN_MAX {
            self.0.pop_front();
        }
        self.0.push_back(tweet);
        true
    }
}

/// Entries above the floor, then those below it.
struct HomeCandidates<'a> {
    views: &'a dyn Views,
    merge: Merge<'a>,
    below: Option<Below>,
}

/// What is merged below the floor, once a page comes there.
#[derive(Clone, Copy)]
struct Below {
    viewer: i64,
    before: EntryId,
    following_max: usize,
}

impl<'a> HomeCandidates<'a> {
    async fn open(
        views: &'a dyn Views,
        viewer: i64,
        record: Option<HomeRecord>,
        within: Option<&HashSet<i64>>,
        before: EntryId,
        following_max: usize,
    ) -> Result<Self, ReadError> {
        let floor = record.as_ref().map_or(i64::MAX, |record| record.floor);
        let first_above = EntryId::tweet(floor.saturating_add(1));
        let mut sources = Vec::new();
        if let Some(record) = record.filter(|_| before > first_above) {
            let hot = record.hot.iter().filter(|account| within.is_none_or(|within| within.contains(account)));
            sources.extend(hot.map(|account| Source::timeline(*account, false, Some(before), Some(floor))));
            sources.push(Source::pushed(&record.entries, Some(before)));
        }
        let below = Below { viewer, before: before.min(first_above), following_max };
        Ok(HomeCandidates { views, merge: Merge::open(views, sources).await?, below: Some(below) })
    }
}

impl Below {
    async fn merge(self, views: &dyn Views) -> Result<Merge<'_>, ReadError> {
        let mut accounts = following(views, self.viewer, self.following_max).await?;
        accounts.retain(|account| *account != self.viewer);
        accounts.push(self.viewer);
        let timeline = |account: i64| Source::timeline(account, false, Some(self.before), None);
        Merge::open(views, accounts.into_iter().map(timeline).collect()).await
    }
}

impl Candidates for HomeCandidates<'_> {
    async fn take(&mut self, count: usize) -> Result<Vec<Candidate>, ReadError> {
        let mut taken = self.merge.take(count).await?;
        if taken.len() < count
            && let Some(below) = self.below.take()
        {
            self.merge = below.merge(self.views).await?;
            taken.extend(self.merge.take(count - taken.len()).await?);
        }
        Ok(taken)
    }

    fn more(&self) -> bool {
        self.merge.more() || self.below.is_some()
    }
}
