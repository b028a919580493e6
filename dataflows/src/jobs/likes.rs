//! Who likes a tweet, whether a user does, and how many do: all from one table.

use feedmill_model::{Counter, Like, ViewRow};

use crate::collection::Rows;

/// Both rows of each like, and its part in the count of its tweet. Likes of a deleted tweet stay, and are hidden at read.
pub(crate) fn likes(likes: Rows<'_, Like>) -> Rows<'_, ViewRow> {
    likes.flat_map(|Like { user_id: user, tweet_id: tweet, created_at: at }| {
        let count = ViewRow::Count { counter: Counter::Likes, of: tweet };
        [ViewRow::Liker { tweet, at, user }, ViewRow::Liked { user, tweet }, count]
    })
}
