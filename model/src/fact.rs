//! What decides who may see what.

use serde::{Deserialize, Serialize};

/// What decides who may see what; applied before everything else of its time, and read after everything else.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Fact {
    /// `follower` follows `following`, or has asked to.
    Follow {
        /// Who follows; with `following` the key.
        follower: i64,
        /// Who is followed.
        following: i64,
        /// `false`: only requested.
        accepted: bool,
    },
    /// `blocker` blocks `blocked`; both are the key.
    Block {
        /// Who blocks.
        blocker: i64,
        /// Who is blocked.
        blocked: i64,
    },
    /// `muter` mutes `muted`; both are the key.
    Mute {
        /// Who mutes.
        muter: i64,
        /// Who is muted.
        muted: i64,
    },
    /// Only accepted followers may read this account.
    Protected(i64),
    /// The account was deleted.
    DeletedUser(i64),
    /// The tweet was deleted.
    DeletedTweet(i64),
}
