//! What happened to a viewer.
//!
//! ```text
//!   like 9 by a ─┐
//!   like 9 by b ─┴─► a and b like 9      what is of one kind and about one tweet, and stands side by side once
//!   follow by c ───► c follows           what the viewer shall not see is taken out
//! ```
//!
//! A notification is never newer than the rows of who did it and of the tweet that it is about: reactions come after rows.
//!
//! Nothing comes from who is muted, who blocks the viewer or is blocked, or whose tweets the viewer may not read, but for
//! following: that anyone may do who is not blocked. What names the viewer in an answer to the viewer is the answer only:
//! the two are neighbours, because both are ordered by the tweet's id.

use std::collections::BTreeSet;
use std::sync::Arc;

use feedmill_model::{EntryId, Notice, NoticeKind, Phase};

use super::candidates::{Audience, Late, judge, profiles_or_late, relationships};
use super::merge::Candidate;
use super::{AtOnce, CANDIDATES_PER_ITEM, Page, Served, TimelineTweet, Verdict, served};
use crate::{Profile, ReadError, Relationship, Views};

/// What is not read yet is counted up to here.
pub const UNREAD_MAX: usize = 100;

/// Who did it, named for a notification; of more the number says.
pub const ACTORS_MAX: usize = 10;

/// One or more things of a kind that happened to a viewer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Notification {
    /// What happened.
    pub kind: NoticeKind,
    /// [`Notice::order`] of the newest: what a read mark names.
    pub order: i64,
    /// That of each of them, as far as the page looked, the newest first.
    pub orders: Vec<i64>,
    /// Whether the newest was not read yet.
    pub unread: bool,
    /// The tweet that is liked or retweeted, or that answers or names; `None` for a follow.
    pub tweet: Option<TimelineTweet>,
    /// Who did it, the newest first, at most [`ACTORS_MAX`] of them.
    pub actors: Vec<Arc<Profile>>,
    /// How many did it, as far as the page looked.
    pub count: usize,
}

/// What is not read yet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Unread {
    /// How much there is.
    pub count: usize,
    /// There may be more than that.
    pub more: bool,
}

/// A page of the viewer's notifications, newest first. Likes and retweets of one tweet, and follows, are one notification
/// where nothing else is shown between them; a page that has looked far enough may end within one, and the next page goes on
/// with the rest of it as another.
pub async fn notifications_page(
    views: &dyn Views,
    viewer: i64,
    cursor: Option<Notice>,
    limit: usize,
) -> Result<Page<Notification, Notice>, ReadError> {
    Ok(page(views, viewer, cursor, limit, Late::Awaited).await?.value)
}

/// The same, without waiting for late rows.
pub async fn notifications_at_once(
    views: &dyn Views,
    viewer: i64,
    cursor: Option<Notice>,
    limit: usize,
) -> Result<AtOnce<Page<Notification, Notice>>, ReadError> {
    page(views, viewer, cursor, limit, Late::Told).await
}

async fn page(
    views: &dyn Views,
    viewer: i64,
    cursor: Option<Notice>,
    limit: usize,
    late: Late,
) -> Result<AtOnce<Page<Notification, Notice>>, ReadError> {
    let time = served(views, &[Phase::Reactions, Phase::Rows, Phase::Facts]);
    let read = views.read_mark(viewer).await?.unwrap_or(i64::MIN);
    let limit = limit.max(1);
    let mut may_look_at = limit.saturating_mul(CANDIDATES_PER_ITEM);
    let (mut groups, mut last, mut more, mut any_late): (Vec<Notification>, _, _, _) =
        (Vec::new(), cursor, true, false);
    'page: while more && may_look_at > 0 {
        let count = (limit + limit / 8 + 1).min(may_look_at);
        let notices = views.notifications(viewer, last.as_ref(), count).await?;
        may_look_at -= count;
        more = notices.len() == count;
        let AtOnce { value: happened, late } = judged(views, viewer, last, &notices, late).await?;
        any_late |= late;
        for (notice, happened) in notices.into_iter().zip(happened) {
            if let Some(happened) = happened {
                let full = groups.len() == limit;
                match groups.last_mut().filter(|group| group.takes(&notice)) {
                    Some(group) => group.add(notice.order, happened.actor),
                    None if full => {
                        more = true;
                        break 'page;
                    }
                    None => groups.push(Notification {
                        kind: notice.kind,
                        order: notice.order,
                        orders: vec![notice.order],
                        unread: notice.order > read,
                        tweet: happened.tweet,
                        actors: vec![happened.actor],
                        count: 1,
                    }),
                }
            }
            last = Some(notice);
        }
    }
    Ok(AtOnce { value: Page { items: groups, next: last.filter(|_| more), time }, late: any_late })
}

/// How much of what happened to the viewer is not read yet, each thing counted for itself.
pub async fn unread(views: &dyn Views, viewer: i64) -> Result<Served<Unread>, ReadError> {
    let time = served(views, &[Phase::Reactions, Phase::Rows, Phase::Facts]);
    Ok(Served { value: count_unread(views, viewer, Late::Awaited).await?.value, time })
}

/// The same, without waiting for late rows.
pub async fn unread_at_once(views: &dyn Views, viewer: i64) -> Result<AtOnce<Unread>, ReadError> {
    count_unread(views, viewer, Late::Told).await
}

async fn count_unread(views: &dyn Views, viewer: i64, late: Late) -> Result<AtOnce<Unread>, ReadError> {
    let read = views.read_mark(viewer).await?.unwrap_or(i64::MIN);
    let (mut unread, mut last, mut more, mut any_late): (_, Option<Notice>, _, _) = (0, None, true, false);
    for _ in 0..CANDIDATES_PER_ITEM {
        let mut notices = views.notifications(viewer, last.as_ref(), UNREAD_MAX + 1).await?;
        more = notices.len() > UNREAD_MAX;
        let before = notices.len();
        notices.retain(|notice| notice.order > read);
        more &= notices.len() == before;
        let judged = judged(views, viewer, last, &notices, late).await?;
        any_late |= judged.late;
        unread += judged.value.iter().flatten().count();
        last = notices.last().copied();
        if !more || unread > UNREAD_MAX {
            break;
        }
    }
    let value = Unread { count: unread.min(UNREAD_MAX), more: more || unread > UNREAD_MAX };
    Ok(AtOnce { value, late: any_late })
}

impl Notification {
    /// Whether what comes next belongs to it.
    fn takes(&self, notice: &Notice) -> bool {
        let tweet = self.tweet.as_ref().map_or(0, |tweet| tweet.entry.id);
        let grouped = matches!(notice.kind, NoticeKind::Like | NoticeKind::Retweet | NoticeKind::Follow);
        grouped && notice.kind == self.kind && notice.tweet == tweet
    }

    fn add(&mut self, order: i64, actor: Arc<Profile>) {
        self.count += 1;
        self.orders.push(order);
        if self.actors.len() < ACTORS_MAX {
            self.actors.push(actor);
        }
    }
}

/// Something that may be shown.
struct Happened {
    actor: Arc<Profile>,
    tweet: Option<TimelineTweet>,
}

/// For each notice what may be shown of it; `before` is the one before the first.
async fn judged(
    views: &dyn Views,
    viewer: i64,
    before: Option<Notice>,
    notices: &[Notice],
    late: Late,
) -> Result<AtOnce<Vec<Option<Happened>>>, ReadError> {
    let about = |notice: &&Notice| !matches!(notice.kind, NoticeKind::Follow | NoticeKind::FollowRequest);
    let candidate = |id| Candidate { entry: EntryId::tweet(id), by: None, tweet: Some(id) };
    let candidates: Vec<Candidate> = notices.iter().filter(about).map(|notice| candidate(notice.tweet)).collect();
    let tweets = judge(views, &Audience::Asked { viewer: Some(viewer) }, &candidates, late).await?;
    let actors: BTreeSet<i64> = notices.iter().map(|notice| notice.actor).collect();
    let ids: Vec<i64> = actors.iter().copied().collect();
    let profiles = profiles_or_late(views, &ids, late).await?;
    let facts = relationships(views, Some(viewer), &actors).await?;
    let late = !profiles.late.is_empty() || tweets.contains(&Verdict::Late);
    let mut tweets = tweets.into_iter().map(Verdict::shown);
    let previous = std::iter::once(before).chain(notices.iter().copied().map(Some));
    let judge = |(notice, previous): (&Notice, Option<Notice>)| {
        let tweet = if about(&notice) { tweets.next().flatten() } else { None };
        let is_shown = shows(notice, facts.get(&notice.actor)?)
            && tweet.is_some() == about(&notice)
            && !previous.is_some_and(|previous| answers_and_names(&previous, notice));
        Some(Happened { actor: profiles.rows.get(&notice.actor).filter(|_| is_shown)?.clone(), tweet })
    };
    Ok(AtOnce { value: notices.iter().zip(previous).map(judge).collect(), late })
}

/// Whether the viewer shall know what this account did.
fn shows(notice: &Notice, actor: &Relationship) -> bool {
    let welcome = !actor.deleted && !actor.blocks && !actor.blocked_by && !actor.mutes;
    welcome
        && match notice.kind {
            NoticeKind::Follow => actor.followed_by == Some(true),
            NoticeKind::FollowRequest => actor.followed_by == Some(false),
            NoticeKind::Like | NoticeKind::Retweet | NoticeKind::Reply | NoticeKind::Mention => actor.may_read(false),
        }
}

/// Whether a tweet that answers the viewer names the viewer too.
fn answers_and_names(previous: &Notice, notice: &Notice) -> bool {
    notice.kind == NoticeKind::Mention && previous.kind == NoticeKind::Reply && previous.tweet == notice.tweet
}
