//! Tweets by the tags in their text. What a tag is, [`text`] says.

use std::rc::Rc;

use feedmill_model::{Tweet, ViewRow, text};

use crate::collection::Rows;

/// Each tag of each tweet that was not deleted.
pub(crate) fn hashtags(tweets: Rows<'_, Rc<Tweet>>) -> Rows<'_, ViewRow> {
    tweets.filter(|tweet| tweet.deleted_at.is_none()).flat_map(|tweet| {
        let tweet_id = tweet.id;
        text::hashtags(&tweet.content).into_iter().map(move |tag| ViewRow::Tagged { tag, tweet: tweet_id })
    })
}
