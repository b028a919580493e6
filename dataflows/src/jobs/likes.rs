//! Who likes a tweet, and whether a user does: both directions from one table.

use feedmill_model::{Like, ViewRow};

use crate::collection::Rows;

/// Both rows of each like. Likes of a deleted tweet stay, and are hidden at read.
pub(crate) fn likes(likes: Rows<'_, Like>) -> Rows<'_, ViewRow> {
    likes.flat_map(|Like { user_id: user, tweet_id: tweet, created_at: at }| {
        [ViewRow::Liker { tweet, at, user }, ViewRow::Liked { user, tweet }]
    })
}
