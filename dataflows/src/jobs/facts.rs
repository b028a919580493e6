//! Visibility facts: what decides who may see what.

use std::rc::Rc;

use feedmill_model::{Block, Fact, Follow, Mute, Tweet, User};

use crate::collection::Rows;

/// Follows and requests, blocks, mutes, protected and deleted accounts, deleted tweets.
pub(crate) fn facts<'scope>(
    users: Rows<'scope, Rc<User>>,
    tweets: Rows<'scope, Rc<Tweet>>,
    follows: Rows<'scope, Follow>,
    blocks: Rows<'scope, Block>,
    mutes: Rows<'scope, Mute>,
) -> Rows<'scope, Fact> {
    let users = users.flat_map(|user| {
        let protected = user.protected.then_some(Fact::Protected(user.id));
        protected.into_iter().chain(user.deleted_at.map(|_| Fact::DeletedUser(user.id)))
    });
    let tweets = tweets.flat_map(|tweet| tweet.deleted_at.map(|_| Fact::DeletedTweet(tweet.id)));
    let follows = follows.map(|follow| Fact::Follow {
        follower: follow.follower_id,
        following: follow.following_id,
        accepted: follow.accepted,
    });
    let blocks = blocks.map(|block| Fact::Block { blocker: block.blocker_id, blocked: block.blocked_id });
    let mutes = mutes.map(|mute| Fact::Mute { muter: mute.muter_id, muted: mute.muted_id });
    users.concatenate([tweets, follows, blocks, mutes])
}
