//! A tweet's row, and what is counted of tweets.
//!
//! A count needs no state: each row is one of `Count`, and its multiplicity is what the store adds.

use std::rc::Rc;

use feedmill_model::{Counter, Retweet, Tweet, ViewRow};

use crate::collection::Rows;

/// The row of each tweet that was not deleted, and its part in the counts of its author and of its parent. Retweets count for
/// deleted tweets too.
pub(crate) fn tweets<'scope>(
    tweets: Rows<'scope, Rc<Tweet>>,
    retweets: Rows<'scope, Retweet>,
) -> Rows<'scope, ViewRow> {
    let tweets = tweets.filter(|tweet| tweet.deleted_at.is_none()).flat_map(|tweet| {
        let of_author = ViewRow::Count { counter: Counter::Tweets, of: tweet.user_id };
        let of_parent = tweet.reply_to_id.map(|of| ViewRow::Count { counter: Counter::Replies, of });
        [ViewRow::Tweet(Box::new(Tweet::clone(&tweet))), of_author].into_iter().chain(of_parent)
    });
    let retweets = retweets.map(|retweet| ViewRow::Count { counter: Counter::Retweets, of: retweet.tweet_id });
    tweets.concat(retweets)
}
