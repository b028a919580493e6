//! Threads: what answers a tweet, and what it answers.
//!
//! ```text
//!   root ─┬─ 2 ─┬─ 5            keys, depth first:   2   2·5   2·7   3
//!         │     └─ 7
//!         └─ 3                  the author's first:  3 │ 2   2·5   2·7
//! ```
//!
//! The replies below a tweet are one range of keys, whose order is that of the page: a page begins after the last reply of
//! the one before, and reads on from there. Where the answers of the thread's author come first, those to the tweet itself
//! are found when the first page is made, and the cursor names them: each with what is below it comes first, and is left
//! out of the range.
//!
//! A reply that was deleted keeps its place, so that those below it keep theirs. One that the viewer may not read is left
//! out, and what is below it is not: it keeps its depth, and names what it answers.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use feedmill_model::{EntryId, Phase};
use serde::{Deserialize, Serialize};

use super::candidates::{Audience, relationship, relationships, shown};
use super::merge::Candidate;
use super::{Access, CANDIDATES_PER_ITEM, Page, TimelineTweet, served, tweet};
use crate::{ReadError, Relationship, Reply, Views};

/// Replies of the author of a thread that are looked at for those that come first, the newest.
const AUTHOR_REPLIES_MAX: usize = 500;
/// Answers of the author of a thread that come first.
pub const FIRST_MAX: usize = 50;

/// Replies that are read at once below one that comes first. There are few as a rule.
const FIRST_FETCH: usize = 8;

/// In which order the answers to a tweet come; what is below each comes by time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum ThreadOrder {
    /// By time.
    #[default]
    Time,
    /// Those of the author of the thread, then the others, each by time. Of an author who wrote more than 500 replies
    /// since, only the newest are looked at, and at most 50 come first.
    AuthorFirst,
}

/// A reply in its thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ThreadReply {
    /// The reply.
    pub id: i64,
    /// What it answers.
    pub parent: i64,
    /// How far it is from the first tweet of the thread, 1 for an answer to that. It ends at
    /// [`PATH_MAX`](feedmill_model::PATH_MAX).
    pub depth: usize,
    /// `None`: it was deleted.
    pub tweet: Option<TimelineTweet>,
}

/// What a tweet answers, directly or not.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ancestor {
    /// The viewer may read it.
    Shown(Box<TimelineTweet>),
    /// It was deleted, or its author was.
    Deleted(i64),
    /// The viewer may not read it.
    Hidden(i64),
}

/// Where a page of a thread ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ThreadCursor {
    /// The last reply that was looked at. Its path may be long, and is looked up.
    pub last: i64,
    /// The answers that come first.
    pub first: Vec<i64>,
    /// Whether the last reply is one of these or below one.
    pub in_first: bool,
}

/// A page of the replies below `tweet`, depth first. A thread whose first tweet was deleted can be read; one of which the
/// cursor's reply has left the database ends there.
pub async fn thread_page(
    views: &dyn Views,
    viewer: Option<i64>,
    tweet: i64,
    order: ThreadOrder,
    cursor: Option<ThreadCursor>,
    limit: usize,
) -> Result<Access<Page<ThreadReply, ThreadCursor>>, ReadError> {
    let time = served(views, &[Phase::Rows, Phase::Facts]);
    let place = match place(views, viewer, tweet).await? {
        Access::Granted(place) => place,
        Access::Hidden => return Ok(Access::Hidden),
        Access::NotFound => return Ok(Access::NotFound),
    };
    let limit = limit.max(1);
    let mut may_look_at = limit.saturating_mul(CANDIDATES_PER_ITEM);
    let mut walk = Walk::open(views, viewer, place, order, cursor.as_ref()).await?;
    let (mut items, mut next, mut more) = (Vec::new(), cursor, !walk.ended);
    while more && items.len() < limit && may_look_at > 0 {
        let in_first = !walk.leading.is_empty();
        let (replies, read) = walk.take((limit - items.len()).min(may_look_at)).await?;
        may_look_at = may_look_at.saturating_sub(read.max(1));
        more = !walk.ended;
        if let Some(last) = walk.last {
            next = Some(ThreadCursor { last, first: walk.first.clone(), in_first });
        }
        items.extend(judged(views, viewer, replies).await?.into_iter().flatten());
    }
    Ok(Access::Granted(Page { items, next: next.filter(|_| more), time }))
}

/// What `tweet` answers: the nearest `limit` of those above it, or above the one that the cursor names, the highest first.
/// The next page is of those above them. Of a reply that lies deeper than [`PATH_MAX`](feedmill_model::PATH_MAX) the
/// nearest are left out.
pub async fn ancestors_page(
    views: &dyn Views,
    viewer: Option<i64>,
    tweet: i64,
    cursor: Option<i64>,
    limit: usize,
) -> Result<Access<Page<Ancestor, i64>>, ReadError> {
    let time = served(views, &[Phase::Rows, Phase::Facts]);
    let place = match place(views, viewer, tweet).await? {
        Access::Granted(place) => place,
        Access::Hidden => return Ok(Access::Hidden),
        Access::NotFound => return Ok(Access::NotFound),
    };
    let mut ids: Vec<i64> = std::iter::once(place.root).chain(place.path).collect();
    // One that is not above it any more has none above it.
    let end = ids.iter().position(|id| *id == cursor.unwrap_or(tweet)).unwrap_or(0);
    ids.truncate(end);
    let next = ids.len().checked_sub(limit.max(1)).filter(|above| *above > 0);
    ids.drain(..next.unwrap_or(0));

    let candidates: Vec<Candidate> = ids.iter().map(|id| candidate(*id, None)).collect();
    let shown = shown(views, &Audience::Asked { viewer }, &candidates).await?;
    let mut authors: BTreeMap<i64, i64> = BTreeMap::new();
    let missing: Vec<i64> = ids.iter().zip(&shown).filter(|(_, shown)| shown.is_none()).map(|(id, _)| *id).collect();
    let replies = views.replies_of(place.root, &missing).await?;
    authors.extend(missing.iter().zip(replies).filter_map(|(id, reply)| Some((*id, reply?.user))));
    if missing.contains(&place.root)
        && let Some(root) = views.tweets(&[place.root]).await?.into_iter().next().flatten()
    {
        authors.insert(place.root, root.tweet.user_id);
    }
    let facts = relationships(views, viewer, &authors.values().copied().collect()).await?;
    // Nobody knows any more who wrote the first tweet of a thread when that was deleted.
    let is_hidden = |id: &i64| authors.get(id).is_some_and(|author| !may_know_of(&facts, viewer, *author));
    let ancestor = |(id, shown): (i64, Option<TimelineTweet>)| match shown {
        Some(tweet) => Ancestor::Shown(Box::new(tweet)),
        None if is_hidden(&id) => Ancestor::Hidden(id),
        None => Ancestor::Deleted(id),
    };
    let next = next.and(ids.first().copied());
    Ok(Access::Granted(Page { items: ids.into_iter().zip(shown).map(ancestor).collect(), next, time }))
}

/// Whether the viewer is told that something of `author` was there and is gone.
fn may_know_of(facts: &BTreeMap<i64, Relationship>, viewer: Option<i64>, author: i64) -> bool {
    facts.get(&author).is_some_and(|facts| facts.deleted || facts.may_read(viewer == Some(author)))
}

/// Where a tweet lies in its thread.
struct Place {
    root: i64,
    /// Empty for the first tweet.
    path: Vec<i64>,
}

/// Where `id` lies, if the viewer may read it, or if it is the first tweet of a thread and was deleted.
async fn place(views: &dyn Views, viewer: Option<i64>, id: i64) -> Result<Access<Place>, ReadError> {
    let root = match tweet::tweet(views, viewer, id).await? {
        Access::Granted(found) => found.value.tweet.tweet.conversation_id,
        Access::Hidden => return Ok(Access::Hidden),
        Access::NotFound if views.replies(id, &[], None, 1).await?.is_empty() => return Ok(Access::NotFound),
        Access::NotFound => return Ok(Access::Granted(Place { root: id, path: Vec::new() })),
    };
    let path = views.replies_of(root, &[id]).await?.into_iter().next().flatten().map(|reply| reply.path);
    // What has no way to the first tweet of its thread begins one, which nothing belongs to.
    Ok(Access::Granted(path.map_or(Place { root: id, path: Vec::new() }, |path| Place { root, path })))
}

fn candidate(id: i64, by: Option<i64>) -> Candidate {
    Candidate { entry: EntryId::tweet(id), by, tweet: Some(id) }
}

/// For each reply what is shown of it.
async fn judged(
    views: &dyn Views,
    viewer: Option<i64>,
    replies: Vec<Reply>,
) -> Result<Vec<Option<ThreadReply>>, ReadError> {
    let id = |reply: &Reply| reply.path.last().copied().unwrap_or_default();
    let candidates: Vec<Candidate> = replies.iter().map(|reply| candidate(id(reply), Some(reply.user))).collect();
    let shown = shown(views, &Audience::Asked { viewer }, &candidates).await?;
    let missing = replies.iter().zip(&shown).filter(|(_, shown)| shown.is_none());
    let authors: BTreeSet<i64> = missing.map(|(reply, _)| reply.user).collect();
    let facts = relationships(views, viewer, &authors).await?;
    let item = |(reply, tweet): (Reply, Option<TimelineTweet>)| {
        // One that is not there and that the viewer may read was deleted.
        let is_hidden = tweet.is_none() && !may_know_of(&facts, viewer, reply.user);
        let item = ThreadReply { id: id(&reply), parent: reply.parent, depth: reply.path.len(), tweet };
        (!is_hidden).then_some(item)
    };
    Ok(replies.into_iter().zip(shown).map(item).collect())
}

/// A way through the replies below a tweet.
struct Walk<'a> {
    views: &'a dyn Views,
    viewer: Option<i64>,
    root: i64,
    under: Vec<i64>,
    /// The answers that come first.
    first: Vec<i64>,
    /// Those of them that are still to come, the current one included.
    leading: VecDeque<i64>,
    /// The path after which to go on: below the current one of those that come first, or below all.
    after: Option<Vec<i64>>,
    /// The last reply that was read, or left out because it came first.
    last: Option<i64>,
    ended: bool,
}

impl<'a> Walk<'a> {
    async fn open(
        views: &'a dyn Views,
        viewer: Option<i64>,
        place: Place,
        order: ThreadOrder,
        cursor: Option<&ThreadCursor>,
    ) -> Result<Self, ReadError> {
        let Place { root, path: under } = place;
        let (first, leading) = (Vec::new(), VecDeque::new());
        let mut walk = Walk { views, viewer, root, under, first, leading, after: None, last: None, ended: false };
        if let Some(cursor) = cursor {
            let last = views.replies_of(root, &[cursor.last]).await?.into_iter().next().flatten();
            let path = last.map(|reply| reply.path);
            let answer = path.as_deref().and_then(|path| walk.answer(path));
            walk.ended = answer.is_none();
            walk.after = path;
            walk.first.clone_from(&cursor.first);
            walk.leading.extend(cursor.first.iter().skip_while(|first| cursor.in_first && Some(**first) != answer));
            if !cursor.in_first {
                walk.leading.clear();
            }
        } else if order == ThreadOrder::AuthorFirst {
            walk.first = walk.of_author().await?;
            walk.leading.extend(&walk.first);
        }
        Ok(walk)
    }

    /// The answers by the author of the thread.
    async fn of_author(&self) -> Result<Vec<i64>, ReadError> {
        let Some(root) = self.views.tweets(&[self.root]).await?.into_iter().next().flatten() else {
            return Ok(Vec::new());
        };
        let author = root.tweet.user_id;
        // A cursor names them, so they are named to nobody who may not read them.
        if !relationship(self.views, self.viewer, author).await?.may_read(self.viewer == Some(author)) {
            return Ok(Vec::new());
        }
        let replies = self.views.user_timeline(author, true, None, AUTHOR_REPLIES_MAX).await?;
        let replies: Vec<i64> = replies.into_iter().map(|item| item.tweet).collect();
        let places = self.views.replies_of(self.root, &replies).await?;
        let is_answer =
            |Reply { path, .. }: &Reply| path.len() == self.under.len() + 1 && path.starts_with(&self.under);
        let answers = replies.iter().zip(places).filter(|(_, place)| place.as_ref().is_some_and(is_answer));
        let mut first: Vec<i64> = answers.map(|(id, _)| *id).collect();
        first.sort_unstable();
        first.truncate(FIRST_MAX);
        Ok(first)
    }

    /// The answer that a reply below is or belongs to.
    fn answer(&self, path: &[i64]) -> Option<i64> {
        path.strip_prefix(self.under.as_slice())?.first().copied()
    }

    /// After all that belongs to an answer, whether there is one of this id or not.
    fn end_of(&self, answer: i64) -> Vec<i64> {
        self.under.iter().copied().chain([answer, i64::MAX]).collect()
    }

    /// The next replies, at most `count`, and how many were read to find them.
    async fn take(&mut self, count: usize) -> Result<(Vec<Reply>, usize), ReadError> {
        let (views, root) = (self.views, self.root);
        if let Some(answer) = self.leading.front().copied() {
            let count = count.min(FIRST_FETCH);
            let after = self.after.take().unwrap_or_else(|| self.end_of(answer.saturating_sub(1)));
            let mut replies = views.replies(root, &self.under, Some(&after), count).await?;
            let read = replies.len();
            replies.retain(|reply| self.answer(&reply.path) == Some(answer));
            if replies.len() < count {
                self.leading.pop_front();
            } else {
                self.after = replies.last().map(|reply| reply.path.clone());
            }
            self.last = replies.last().and_then(|reply| reply.path.last().copied()).or(self.last);
            return Ok((replies, read));
        }
        // One more tells whether there are more.
        let mut replies = views.replies(root, &self.under, self.after.as_deref(), count + 1).await?;
        self.ended = replies.len() <= count;
        replies.truncate(count);
        let read = replies.len();
        if let Some(last) = replies.last() {
            self.last = last.path.last().copied();
            let answer = self.answer(&last.path).filter(|answer| self.first.contains(answer));
            self.after = Some(answer.map_or_else(|| last.path.clone(), |answer| self.end_of(answer)));
        }
        replies.retain(|reply| self.answer(&reply.path).is_none_or(|answer| !self.first.contains(&answer)));
        Ok((replies, read))
    }
}
