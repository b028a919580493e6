//! What a reader who is signed in has to do with the users and tweets of an answer: read at once for all of them, after
//! the answer was found.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use feedmill_sinks::read::{
    Ancestor, LikedTweet, Notification, Suggestion, ThreadReply, TimelineTweet, TweetFlags, viewer_flags,
};
use feedmill_sinks::{Profile, Relationship};

use crate::problem::Problem;
use crate::state::Context;

/// The users and tweets that an answer shows.
#[derive(Debug, Default)]
pub(crate) struct Shown {
    tweets: BTreeSet<i64>,
    users: BTreeSet<i64>,
}

/// Something that shows users and tweets.
pub(crate) trait Shows {
    /// Adds them.
    fn add_to(&self, shown: &mut Shown);
}

impl<T: Shows> Shows for Arc<T> {
    fn add_to(&self, shown: &mut Shown) {
        self.as_ref().add_to(shown);
    }
}

impl Shows for Profile {
    fn add_to(&self, shown: &mut Shown) {
        shown.users.insert(self.user.id);
    }
}

impl Shows for TimelineTweet {
    fn add_to(&self, shown: &mut Shown) {
        shown.tweets.insert(self.tweet.tweet.id);
        self.author.add_to(shown);
        self.retweeted_by.iter().for_each(|by| by.add_to(shown));
    }
}

impl Shows for LikedTweet {
    fn add_to(&self, shown: &mut Shown) {
        self.tweet.add_to(shown);
    }
}

impl Shows for ThreadReply {
    fn add_to(&self, shown: &mut Shown) {
        self.tweet.iter().for_each(|tweet| tweet.add_to(shown));
    }
}

impl Shows for Ancestor {
    fn add_to(&self, shown: &mut Shown) {
        if let Ancestor::Shown(tweet) = self {
            tweet.add_to(shown);
        }
    }
}

impl Shows for Notification {
    fn add_to(&self, shown: &mut Shown) {
        self.tweet.iter().for_each(|tweet| tweet.add_to(shown));
        self.actors.iter().for_each(|actor| actor.add_to(shown));
    }
}

impl Shows for Suggestion {
    fn add_to(&self, shown: &mut Shown) {
        self.profile.add_to(shown);
    }
}

/// What the viewer has to do with what an answer shows; nothing for a reader who is not signed in.
#[derive(Debug, Default)]
pub(crate) struct Flags {
    tweets: BTreeMap<i64, TweetFlags>,
    users: BTreeMap<i64, Relationship>,
}

impl Flags {
    /// What an author has to do with a tweet that was just posted: nothing yet.
    pub fn of_new(tweet: i64, author: i64) -> Self {
        Flags { tweets: [(tweet, TweetFlags::default())].into(), users: [(author, Relationship::default())].into() }
    }

    /// What the viewer did with a tweet.
    pub fn of_tweet(&self, id: i64) -> Option<TweetFlags> {
        self.tweets.get(&id).copied()
    }

    /// What is between the viewer and a user.
    pub fn of_user(&self, id: i64) -> Option<Relationship> {
        self.users.get(&id).copied()
    }
}

impl Context {
    /// The flags of what an answer shows.
    pub async fn flags(&self, viewer: Option<i64>, items: &[impl Shows]) -> Result<Flags, Problem> {
        let Some(viewer) = viewer else { return Ok(Flags::default()) };
        let mut shown = Shown::default();
        items.iter().for_each(|item| item.add_to(&mut shown));
        let tweets: Vec<i64> = shown.tweets.into_iter().collect();
        let users: Vec<i64> = shown.users.into_iter().collect();
        let flags = viewer_flags(self.views.as_ref(), viewer, &tweets, &users).await?;
        Ok(Flags {
            tweets: tweets.into_iter().zip(flags.tweets).collect(),
            users: users.into_iter().zip(flags.users).collect(),
        })
    }
}
