//! What a viewer has to do with the tweets and users of a page, read at once.

use crate::{ReadError, Relationship, Views};

/// What a viewer did with a tweet.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct TweetFlags {
    /// The viewer likes it.
    pub liked: bool,
    /// The viewer's retweet of it.
    pub retweeted: Option<i64>,
}

/// What a viewer did with tweets, and what is between the viewer and users, in the order in which they were asked for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ViewerFlags {
    /// Of the tweets.
    pub tweets: Vec<TweetFlags>,
    /// Of the users.
    pub users: Vec<Relationship>,
}

/// The flags of the tweets and users that a page shows. They say nothing about who may read them: the page did.
pub async fn viewer_flags(
    views: &dyn Views,
    viewer: i64,
    tweets: &[i64],
    users: &[i64],
) -> Result<ViewerFlags, ReadError> {
    let liked = views.liked(viewer, tweets).await?;
    let retweeted = views.retweeted(viewer, tweets).await?;
    let flags = liked.into_iter().zip(retweeted).map(|(liked, retweeted)| TweetFlags { liked, retweeted });
    Ok(ViewerFlags { tweets: flags.collect(), users: views.relationships(Some(viewer), users).await? })
}
