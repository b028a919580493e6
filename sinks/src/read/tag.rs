//! Tweets with a hashtag.

use std::collections::VecDeque;

use feedmill_model::text::fold_tag;
use feedmill_model::{EntryId, Phase};

use super::candidates::{Audience, Candidates, show};
use super::merge::Candidate;
use super::{Page, TimelineTweet, served};
use crate::{ReadError, Views};

/// A page of the tweets with `tag`, however it is written (without its sign), newest first. The cursor is the id of a
/// tweet.
pub async fn hashtag_page(
    views: &dyn Views,
    viewer: Option<i64>,
    tag: &str,
    cursor: Option<i64>,
    limit: usize,
) -> Result<Page<TimelineTweet, i64>, ReadError> {
    let time = served(views, &[Phase::Rows, Phase::Facts]);
    let mut tagged = Tagged { views, tag: fold_tag(tag), before: cursor, ready: VecDeque::new(), ended: false };
    let shown = show(views, &Audience::Discovery { viewer }, &mut tagged, limit, |_| true).await?;
    let next = shown.last.map(|last| last.id).or(cursor).filter(|_| shown.more);
    Ok(Page { items: shown.items, next, time })
}

/// The tweets with a tag, as candidates.
struct Tagged<'a> {
    views: &'a dyn Views,
    tag: String,
    before: Option<i64>,
    ready: VecDeque<i64>,
    ended: bool,
}

impl Candidates for Tagged<'_> {
    async fn take(&mut self, count: usize) -> Result<Vec<Candidate>, ReadError> {
        if self.ready.len() <= count && !self.ended {
            // One more tells whether there are more.
            let missing = count + 1 - self.ready.len();
            let read = self.views.tagged(&self.tag, self.before, missing).await?;
            self.ended = read.len() < missing;
            self.before = read.last().copied().or(self.before);
            self.ready.extend(read);
        }
        let taken = self.ready.drain(..count.min(self.ready.len()));
        Ok(taken.map(|tweet| Candidate { entry: EntryId::tweet(tweet), by: None, tweet: Some(tweet) }).collect())
    }

    fn more(&self) -> bool {
        !self.ready.is_empty()
    }
}
