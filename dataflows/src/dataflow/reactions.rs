//! The part of what likes bring.
//!
//! ```text
//!   likes ─► likers, liked, counts ──────────────────────────┐
//!   likes tweets ─► trending tweets ─────────────────────────┼─► reactions sink
//!   likes retweets follows tweets users ─► notifications ────┘
//! ```

use std::rc::Rc;
use std::sync::Arc;

use feedmill_model::{Follow, Like, Retweet, Time, Tweet, User};
use timely::dataflow::Scope;

use super::{Sources, Ticks, reached_by};
use crate::collection::{Rows, after};
use crate::jobs::{self, notifications};
use crate::sink::row_sink;
use crate::worker::Plan;

/// What it is derived from.
pub(super) struct Causes<'scope> {
    users: Rows<'scope, Rc<User>>,
    tweets: Rows<'scope, Rc<Tweet>>,
    follows: Rows<'scope, Follow>,
    likes: Rows<'scope, Like>,
    retweets: Rows<'scope, Retweet>,
}

impl<'scope> Causes<'scope> {
    pub(super) fn of(sources: &Sources<'scope>) -> Self {
        let Sources { users, tweets, follows, likes, retweets, .. } = sources;
        Causes {
            users: users.clone(),
            tweets: tweets.clone(),
            follows: follows.clone(),
            likes: likes.clone(),
            retweets: retweets.clone(),
        }
    }
}

/// Builds it; gives the ticks of what is applied. `ticks` are those of times whose rows are.
pub(super) fn reactions<'scope>(
    scope: Scope<'scope, Time>,
    causes: Causes<'scope>,
    ticks: Ticks<'scope>,
    plan: &Plan,
) -> Ticks<'scope> {
    let Plan { stores, load, supervisor, .. } = plan;
    let Causes { users, tweets, follows, likes, retweets } = causes;
    let reached = reached_by(stores.reactions.progress());
    // Each in a region of its own, which is scheduled, drawn and measured as one.
    let trending_tweets = scope.region_named("TrendingTweets", |job| {
        let (likes, tweets) = (likes.clone().enter_region(job), tweets.clone().enter_region(job));
        jobs::trends::trending_tweets(likes, tweets, load.time).leave_region(scope)
    });
    let notifications = scope.region_named("Notifications", |job| {
        let causes = notifications::Causes {
            users: users.enter_region(job),
            tweets: tweets.enter_region(job),
            follows: follows.enter_region(job),
            likes: likes.clone().enter_region(job),
            retweets: retweets.enter_region(job),
        };
        notifications::notifications(causes, load.time).leave_region(scope)
    });
    let with_windows = trending_tweets.concat(notifications);
    let rows = jobs::likes::likes(after(likes, reached)).concat(after(with_windows, reached));
    let store = Arc::clone(&stores.reactions);
    row_sink("ReactionsSink", rows, ticks, store, scope.peers(), *load, Arc::clone(supervisor))
}
