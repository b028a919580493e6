//! Retweets of tweets that were not deleted.

use std::rc::Rc;

use feedmill_model::{Retweet, Tweet, ViewRow};

use crate::collection::{Rows, index, set, without};

/// A retweet whose tweet was not deleted.
pub(crate) type LiveRetweet = Retweet;

/// Retweets without those of deleted tweets. They are compared with the few ids of deleted tweets, never with all.
pub(crate) fn live_retweets<'scope>(
    retweets: Rows<'scope, Retweet>,
    tweets: Rows<'scope, Rc<Tweet>>,
) -> Rows<'scope, LiveRetweet> {
    let deleted = tweets.filter(|tweet| tweet.deleted_at.is_some()).map(|tweet| tweet.id);
    let retweets = retweets.map(|retweet| (retweet.tweet_id, retweet));
    let by_tweet = index(retweets.clone(), "RetweetsByTweet");
    without(retweets, by_tweet, set(deleted, "DeletedTweets")).map(|(_tweet, retweet)| retweet)
}

/// The row of each.
pub(crate) fn retweets(live: Rows<'_, LiveRetweet>) -> Rows<'_, ViewRow> {
    live.map(|retweet| ViewRow::Retweet { id: retweet.id, user: retweet.user_id, tweet: retweet.tweet_id })
}

/// Who retweeted a tweet, and whether a user did. Retweets of a deleted tweet stay, and are hidden at read.
pub(crate) fn retweeters(retweets: Rows<'_, Retweet>) -> Rows<'_, ViewRow> {
    retweets.flat_map(|Retweet { id, user_id: user, tweet_id: tweet, .. }| {
        [ViewRow::Retweeter { tweet, id, user }, ViewRow::Retweeted { user, tweet, id }]
    })
}
