//! A tweet, and a user's own timeline.

use feedmill_model::{EntryId, EntryKind, Phase, Time};

use super::candidates::{Audience, Candidates, Late, judge, profile, relationship, show};
use super::merge::{Candidate, Merge, Source};
use super::{Access, Page, Served, TimelineTweet, Verdict, served};
use crate::{ReadError, Views};

/// One tweet. A mute does not hide what is asked for by its id.
pub async fn tweet(
    views: &dyn Views,
    viewer: Option<i64>,
    id: i64,
) -> Result<Access<Served<TimelineTweet>>, ReadError> {
    let time = served(views, &[Phase::Rows, Phase::Facts]);
    let Some(tweet) = views.tweets(&[id]).await?.into_iter().next().flatten() else {
        return Ok(Access::NotFound);
    };
    let user = tweet.tweet.user_id;
    let Some(author) = profile(views, user).await? else { return Ok(Access::NotFound) };
    let relationship = relationship(views, viewer, user).await?;
    let deleted = views.deleted_tweets(&[id]).await?.contains(&true);
    if deleted || relationship.deleted {
        return Ok(Access::NotFound);
    }
    if !relationship.may_read(viewer == Some(user)) {
        return Ok(Access::Hidden);
    }
    let value = TimelineTweet { entry: EntryId::tweet(id), tweet, author, retweeted_by: None };
    Ok(Access::Granted(Served { value, time }))
}

/// Tweets by their ids; nothing is waited for. A mute does not hide what is asked for by its id.
pub async fn tweets(views: &dyn Views, viewer: Option<i64>, ids: &[i64]) -> Result<Vec<Verdict>, ReadError> {
    let candidate = |id: &i64| Candidate { entry: EntryId::tweet(*id), by: None, tweet: Some(*id) };
    let candidates: Vec<Candidate> = ids.iter().map(candidate).collect();
    judge(views, &Audience::Asked { viewer }, &candidates, Late::Told).await
}

/// Whether the viewer may read the tweet; if so, the time that was served.
pub(super) async fn may_read(views: &dyn Views, viewer: Option<i64>, id: i64) -> Result<Access<Time>, ReadError> {
    Ok(match tweet(views, viewer, id).await? {
        Access::Granted(found) => Access::Granted(found.time),
        Access::Hidden => Access::Hidden,
        Access::NotFound => Access::NotFound,
    })
}

/// A page of what `user` tweeted and retweeted, newest first; `replies` adds the replies. A retweet of what the viewer
/// may not read is left out; what the viewer mutes is not. A tweet that its author retweeted is shown once, as the retweet.
pub async fn user_page(
    views: &dyn Views,
    viewer: Option<i64>,
    user: i64,
    replies: bool,
    cursor: Option<EntryId>,
    limit: usize,
) -> Result<Access<Page<TimelineTweet, EntryId>>, ReadError> {
    let time = served(views, &[Phase::Rows, Phase::Facts]);
    let owner = profile(views, user).await?;
    let relationship = relationship(views, viewer, user).await?;
    if owner.is_none() || relationship.deleted {
        return Ok(Access::NotFound);
    }
    if !relationship.may_read(viewer == Some(user)) {
        return Ok(Access::Hidden);
    }
    let timeline = |replies| Source::timeline(user, replies, cursor, None);
    let mut sources = vec![timeline(false)];
    sources.extend(replies.then(|| timeline(true)));
    let mut timeline = OncePerTweet { views, user, merge: Merge::open(views, sources).await? };
    let shown = show(views, &Audience::Asked { viewer }, &mut timeline, limit, |_| true).await?;
    let next = shown.last.or(cursor).filter(|_| shown.more);
    Ok(Access::Granted(Page { items: shown.items, next, time }))
}

/// A user's timelines; of tweets that the user retweeted later they do not say what they are.
struct OncePerTweet<'a> {
    views: &'a dyn Views,
    user: i64,
    merge: Merge<'a>,
}

impl Candidates for OncePerTweet<'_> {
    async fn take(&mut self, count: usize) -> Result<Vec<Candidate>, ReadError> {
        let mut taken = self.merge.take(count).await?;
        let own = |candidate: &&Candidate| candidate.entry.kind == EntryKind::Tweet;
        let tweets: Vec<i64> = taken.iter().filter(own).map(|candidate| candidate.entry.id).collect();
        let mut retweets = self.views.retweeted(self.user, &tweets).await?.into_iter();
        for candidate in &mut taken {
            let retweet = if own(&&*candidate) { retweets.next().flatten() } else { None };
            if retweet.is_some_and(|retweet| EntryId::retweet(retweet) > candidate.entry) {
                // Counts as looked at, and is not shown.
                candidate.tweet = None;
            }
        }
        Ok(taken)
    }

    fn more(&self) -> bool {
        self.merge.more()
    }
}
