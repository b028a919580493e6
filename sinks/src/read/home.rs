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

use feedmill_model::{EntryId, Parameters, Phase, Time};

use super::candidates::{Audience, Candidates, Late, show};
use super::merge::{Candidate, Merge, Source};
use super::{HomeCursor, Page, SHOWN_MAX, TimelineTweet, served};
use crate::{Edge, HomeRecord, List, ReadError, Views};

/// What a home timeline is read from.
const HOME_PHASES: [Phase; 3] = [Phase::Home, Phase::Rows, Phase::Facts];

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
    let time = served(views, &HOME_PHASES);
    let record = views.home(viewer).await?;
    let following_max = parameters.following_max;
    let within = within(views, viewer, following_max).await?;
    let before = cursor.before.map_or(END, |before| before.min(END));
    let range = Range { before, above: None };
    let mut candidates = HomeCandidates::open(views, viewer, record, within.as_ref(), range, following_max).await?;
    let mut last_shown = LastShown::new(cursor.shown);
    let audience = Audience::Home { viewer, within: within.as_ref() };
    let shown = show(views, &audience, &mut candidates, limit, |tweet| last_shown.add(tweet.tweet.tweet.id)).await?;
    let next = || HomeCursor { before: shown.last.or(cursor.before), shown: last_shown.0.into() };
    Ok(Page { next: shown.more.then(next), items: shown.items, time })
}

/// What has come into a home timeline.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct News {
    /// What may be shown of it, newest first. A tweet stands there once.
    pub items: Vec<TimelineTweet>,
    /// All entries that were looked at, also those that are not shown.
    pub looked_at: Vec<EntryId>,
    /// Other entries are there of which rows are late: they are found by whoever looks again in a moment.
    pub late: bool,
    /// There may be more than that.
    pub more: bool,
    /// As of when.
    pub time: Time,
}

/// At most `limit` entries of the viewer's home timeline, the newest, with an id above `above` that are not `known`. Nothing is
/// waited for.
pub async fn home_news(
    views: &dyn Views,
    parameters: &Parameters,
    viewer: i64,
    above: i64,
    known: &[EntryId],
    limit: usize,
) -> Result<News, ReadError> {
    let time = served(views, &HOME_PHASES);
    let record = views.home(viewer).await?;
    let following_max = parameters.following_max;
    let within = within(views, viewer, following_max).await?;
    let range = Range { before: END, above: Some(above) };
    let home = HomeCandidates::open(views, viewer, record, within.as_ref(), range, following_max).await?;
    let mut candidates = Unknown { home, known, looked_at: Vec::new() };
    let mut shown = LastShown::new(Vec::new());
    let audience = Audience::Home { viewer, within: within.as_ref() };
    // One more tells whether there is more.
    let found = show(views, &audience, &mut candidates, limit + 1, |tweet| shown.add(tweet.tweet.tweet.id)).await?;
    let (mut items, mut looked_at) = (found.items, candidates.looked_at);
    looked_at.retain(|entry| !found.late.contains(entry));
    let more = found.more || items.len() > limit;
    items.truncate(limit);
    Ok(News { items, looked_at, late: !found.late.is_empty(), more, time })
}

/// The accounts whose entries count, of a viewer who follows more than `max`.
async fn within(views: &dyn Views, viewer: i64, max: usize) -> Result<Option<HashSet<i64>>, ReadError> {
    let profile = views.profiles(&[viewer]).await?.into_iter().next().flatten();
    let follows = profile.map_or(0, |profile| profile.following);
    if usize::try_from(follows).is_ok_and(|follows| follows > max) {
        return Ok(Some(following(views, viewer, max).await?.into_iter().collect()));
    }
    Ok(None)
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

/// Which entries are wanted.
#[derive(Clone, Copy)]
struct Range {
    before: EntryId,
    /// Only those with an id above it; all, where it is `None`.
    above: Option<i64>,
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
    range: Range,
    following_max: usize,
}

impl<'a> HomeCandidates<'a> {
    async fn open(
        views: &'a dyn Views,
        viewer: i64,
        record: Option<HomeRecord>,
        within: Option<&HashSet<i64>>,
        Range { before, above }: Range,
        following_max: usize,
    ) -> Result<Self, ReadError> {
        let floor = record.as_ref().map_or(i64::MAX, |record| record.floor);
        let least = above.map_or(floor, |above| above.max(floor));
        let first_above = EntryId::tweet(floor.saturating_add(1));
        let mut sources = Vec::new();
        if let Some(record) = record.filter(|_| before > first_above) {
            let hot = record.hot.iter().filter(|account| within.is_none_or(|within| within.contains(account)));
            sources.extend(hot.map(|account| Source::timeline(*account, false, Some(before), Some(least))));
            let end = record.entries.partition_point(|entry| entry.id() > least);
            sources.push(Source::pushed(record.entries.get(..end).unwrap_or_default(), Some(before)));
        }
        let below = Below { viewer, range: Range { before: before.min(first_above), above }, following_max };
        let below = Some(below).filter(|_| above.is_none_or(|above| above < floor));
        Ok(HomeCandidates { views, merge: Merge::open(views, sources).await?, below })
    }
}

impl Below {
    async fn merge(self, views: &dyn Views) -> Result<Merge<'_>, ReadError> {
        let mut accounts = following(views, self.viewer, self.following_max).await?;
        accounts.retain(|account| *account != self.viewer);
        accounts.push(self.viewer);
        let timeline = |account: i64| Source::timeline(account, false, Some(self.range.before), self.range.above);
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

/// Entries that are not known yet.
struct Unknown<'a> {
    home: HomeCandidates<'a>,
    known: &'a [EntryId],
    looked_at: Vec<EntryId>,
}

impl Candidates for Unknown<'_> {
    const LATE: Late = Late::Told;

    async fn take(&mut self, count: usize) -> Result<Vec<Candidate>, ReadError> {
        let mut taken = Vec::new();
        while taken.len() < count && self.home.more() {
            taken.extend(self.home.take(count - taken.len()).await?);
            taken.retain(|candidate| !self.known.contains(&candidate.entry));
        }
        self.looked_at.extend(taken.iter().map(|candidate| candidate.entry));
        Ok(taken)
    }

    fn more(&self) -> bool {
        self.home.more()
    }
}
