//! What users and the system do, step by step, and how it is generated.

use feedmill_model::Relation;
use proptest::prelude::*;

use super::history::USERS;

/// Something that a user or the system does. Users are indexes into [`USERS`]; `pick` chooses among the rows there are.
#[derive(Clone, Debug)]
pub enum Action {
    Register {
        user: usize,
        verified: bool,
    },
    Rename {
        user: usize,
        name: u8,
    },
    Verify {
        user: usize,
        verified: bool,
    },
    Protect {
        user: usize,
        protected: bool,
    },
    DeleteUser {
        user: usize,
    },
    Popular {
        user: usize,
        popular: bool,
    },
    Follow {
        user: usize,
        other: usize,
        accepted: bool,
    },
    Unfollow {
        pick: usize,
    },
    Mute {
        user: usize,
        other: usize,
    },
    Unmute {
        pick: usize,
    },
    Block {
        user: usize,
        other: usize,
    },
    Unblock {
        pick: usize,
    },
    Post {
        user: usize,
        age: Age,
        reply_to: Option<usize>,
    },
    Edit {
        pick: usize,
    },
    DeleteTweet {
        pick: usize,
    },
    Retweet {
        user: usize,
        pick: usize,
        age: Age,
    },
    Unretweet {
        pick: usize,
    },
    Like {
        user: usize,
        pick: usize,
    },
    Unlike {
        pick: usize,
    },
    /// The row of a tweet goes, as another writer might have it.
    Purge {
        pick: usize,
    },
    /// A reply to a tweet that is not there yet, in the thread of one that is.
    Orphan {
        user: usize,
        pick: usize,
    },
    /// A tweet that went, or that a reply waits for, comes.
    Return {
        pick: usize,
    },
    /// A reply answers another of its thread from now on, be it one below it.
    Move {
        pick: usize,
        other: usize,
    },
    /// Replies below a tweet, each to the one before, all deleted.
    Chain {
        user: usize,
        pick: usize,
        length: usize,
    },
    /// A like, or a follow, is from another time.
    Date {
        relation: Relation,
        pick: usize,
        at: At,
    },
    Read {
        user: usize,
        pick: usize,
    },
    Act {
        user: usize,
        days_ago: i32,
    },
    ForgetActivity {
        pick: usize,
    },
}

/// How old a row's id says it is.
#[derive(Clone, Copy, Debug)]
pub enum Age {
    Ms(i64),
    /// An id that no home timeline holds.
    Negative,
}

/// A time that a like or a follow says it is from.
#[derive(Clone, Copy, Debug)]
pub enum At {
    /// So many milliseconds from now.
    Ahead(i64),
    Infinity,
    MinusInfinity,
}

/// One batch to be.
#[derive(Clone, Debug)]
pub struct Step {
    pub jump: Jump,
    pub actions: Vec<Action>,
    pub bulk: bool,
}

/// From one batch to the next.
#[derive(Clone, Copy, Debug)]
pub enum Jump {
    Ms(u64),
    /// To the next full minute.
    Minute,
}

pub fn actions() -> impl Strategy<Value = Action> {
    let user = || 0..USERS.len();
    let pick = || 0..64_usize;
    let day = 86_400_000;
    let age = || {
        prop_oneof![
            8 => (0..5_000_i64).prop_map(Age::Ms),
            2 => (2 * day - 200_000..2 * day + 1_000).prop_map(Age::Ms),
            1 => Just(Age::Ms(-1_800_000)),
            1 => Just(Age::Ms(3 * day)),
            1 => Just(Age::Negative),
        ]
    };
    let at = || {
        prop_oneof![
            2 => (-day..3 * 3_600_000).prop_map(At::Ahead),
            1 => Just(At::Ahead(3 * day)),
            1 => Just(At::Infinity),
            1 => Just(At::MinusInfinity),
        ]
    };
    prop_oneof![
        2 => (user(), any::<bool>()).prop_map(|(user, verified)| Action::Register { user, verified }),
        1 => (user(), 0..3_u8).prop_map(|(user, name)| Action::Rename { user, name }),
        3 => (user(), any::<bool>()).prop_map(|(user, verified)| Action::Verify { user, verified }),
        1 => (user(), any::<bool>()).prop_map(|(user, protected)| Action::Protect { user, protected }),
        1 => user().prop_map(|user| Action::DeleteUser { user }),
        3 => (user(), any::<bool>()).prop_map(|(user, popular)| Action::Popular { user, popular }),
        12 => (user(), user(), prop::bool::weighted(0.9))
            .prop_map(|(user, other, accepted)| Action::Follow { user, other, accepted }),
        3 => pick().prop_map(|pick| Action::Unfollow { pick }),
        2 => (user(), user()).prop_map(|(user, other)| Action::Mute { user, other }),
        2 => pick().prop_map(|pick| Action::Unmute { pick }),
        2 => (user(), user()).prop_map(|(user, other)| Action::Block { user, other }),
        2 => pick().prop_map(|pick| Action::Unblock { pick }),
        12 => (user(), age(), prop::option::weighted(0.4, pick()))
            .prop_map(|(user, age, reply_to)| Action::Post { user, age, reply_to }),
        2 => pick().prop_map(|pick| Action::Edit { pick }),
        3 => pick().prop_map(|pick| Action::DeleteTweet { pick }),
        5 => (user(), pick(), age()).prop_map(|(user, pick, age)| Action::Retweet { user, pick, age }),
        2 => pick().prop_map(|pick| Action::Unretweet { pick }),
        6 => (user(), pick()).prop_map(|(user, pick)| Action::Like { user, pick }),
        2 => pick().prop_map(|pick| Action::Purge { pick }),
        2 => (user(), pick()).prop_map(|(user, pick)| Action::Orphan { user, pick }),
        3 => pick().prop_map(|pick| Action::Return { pick }),
        3 => (pick(), pick()).prop_map(|(pick, other)| Action::Move { pick, other }),
        2 => (prop_oneof![Just(Relation::Likes), Just(Relation::Follows)], pick(), at())
            .prop_map(|(relation, pick, at)| Action::Date { relation, pick, at }),
        1 => (user(), pick()).prop_map(|(user, pick)| Action::Read { user, pick }),
        1 => pick().prop_map(|pick| Action::Unlike { pick }),
        8 => (user(), 0..5_i32).prop_map(|(user, days_ago)| Action::Act { user, days_ago }),
        2 => pick().prop_map(|pick| Action::ForgetActivity { pick }),
    ]
}

pub fn steps() -> impl Strategy<Value = Step> {
    let jump = prop_oneof![
        8 => (1..2_000_u64).prop_map(Jump::Ms),
        3 => Just(Jump::Minute),
        3 => (10_000..200_000_u64).prop_map(Jump::Ms),
        2 => (3_600_000..40_000_000_u64).prop_map(Jump::Ms),
        1 => (100_000_000..400_000_000_u64).prop_map(Jump::Ms),
    ];
    (jump, prop::collection::vec(actions(), 0..7), prop::bool::weighted(0.08)).prop_map(|(jump, actions, bulk)| Step {
        jump,
        actions,
        bulk,
    })
}
