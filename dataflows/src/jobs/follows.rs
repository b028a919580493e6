//! Followers and following: both directions, and their counts, from one table; and who asks to follow.

use feedmill_model::{Counter, Follow, ViewRow};

use crate::collection::Rows;

/// The two edges of each accepted follow, and one for each of the two counts; one row of a follow that is only requested.
pub(crate) fn follows(follows: Rows<'_, Follow>) -> Rows<'_, ViewRow> {
    follows.flat_map(|follow| {
        let Follow { follower_id: follower, following_id: following, accepted, created_at: at } = follow;
        let request = (!accepted).then_some(ViewRow::FollowRequest { user: following, at, follower });
        let rows = accepted.then_some([
            ViewRow::Follower { user: following, at, follower },
            ViewRow::Following { user: follower, at, following },
            ViewRow::Count { counter: Counter::Followers, of: following },
            ViewRow::Count { counter: Counter::Following, of: follower },
        ]);
        rows.into_iter().flatten().chain(request)
    })
}
