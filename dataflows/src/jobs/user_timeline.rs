//! A user's own entries and replies.

use std::rc::Rc;

use feedmill_model::{EntryId, Tweet, ViewRow};

use crate::collection::Rows;
use crate::jobs::retweets::LiveRetweet;

/// Tweets, replies and retweets by their author, without those of deleted tweets.
pub(crate) fn user_timeline<'scope>(
    tweets: Rows<'scope, Rc<Tweet>>,
    retweets: Rows<'scope, LiveRetweet>,
) -> Rows<'scope, ViewRow> {
    let tweets = tweets.flat_map(|tweet| {
        tweet.deleted_at.is_none().then(|| ViewRow::TimelineEntry {
            user: tweet.user_id,
            reply: tweet.reply_to_id.is_some(),
            entry: EntryId::tweet(tweet.id),
            tweet: tweet.id,
        })
    });
    let retweets = retweets.map(|retweet| ViewRow::TimelineEntry {
        user: retweet.user_id,
        reply: false,
        entry: EntryId::retweet(retweet.id),
        tweet: retweet.tweet_id,
    });
    tweets.concat(retweets)
}
