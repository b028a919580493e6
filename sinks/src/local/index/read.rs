//! The reads of [`Views`](crate::Views) that facts and rows answer, each from the snapshot `at`.

use feedmill_model::EntryId;
use fjall::Snapshot;

use super::rows::List;
use super::{LocalIndex, OrRead};
use crate::{CountedTweet, Edge, Profile, ReadError, Relationship, TimelineItem};

impl LocalIndex {
    pub(in crate::local) fn user_by_name(&self, at: &Snapshot, name: &str) -> Result<Option<i64>, ReadError> {
        self.rows.user_by_name(at, name).or_read("a name")
    }

    pub(in crate::local) fn profiles(&self, at: &Snapshot, ids: &[i64]) -> Result<Vec<Option<Profile>>, ReadError> {
        ids.iter().map(|id| self.rows.profile(at, *id)).collect::<Result<_, _>>().or_read("profiles")
    }

    pub(in crate::local) fn followers(
        &self,
        at: &Snapshot,
        user: i64,
        after: Option<Edge>,
        limit: usize,
    ) -> Result<Vec<Edge>, ReadError> {
        self.rows.edges(at, List::Followers, user, after, limit).or_read("followers")
    }

    pub(in crate::local) fn following(
        &self,
        at: &Snapshot,
        user: i64,
        after: Option<Edge>,
        limit: usize,
    ) -> Result<Vec<Edge>, ReadError> {
        self.rows.edges(at, List::Following, user, after, limit).or_read("accounts followed")
    }

    pub(in crate::local) fn tweets(&self, at: &Snapshot, ids: &[i64]) -> Result<Vec<Option<CountedTweet>>, ReadError> {
        ids.iter().map(|id| self.rows.tweet(at, *id)).collect::<Result<_, _>>().or_read("tweets")
    }

    pub(in crate::local) fn retweets(&self, at: &Snapshot, ids: &[i64]) -> Result<Vec<Option<(i64, i64)>>, ReadError> {
        ids.iter().map(|id| self.rows.retweet(at, *id)).collect::<Result<_, _>>().or_read("retweets")
    }

    pub(in crate::local) fn user_timeline(
        &self,
        at: &Snapshot,
        user: i64,
        replies: bool,
        before: Option<EntryId>,
        limit: usize,
    ) -> Result<Vec<TimelineItem>, ReadError> {
        self.rows.timeline(at, user, replies, before, limit).or_read("a user timeline")
    }

    pub(in crate::local) fn relationships(
        &self,
        at: &Snapshot,
        viewer: Option<i64>,
        users: &[i64],
    ) -> Result<Vec<Relationship>, ReadError> {
        let relationships = users.iter().map(|user| self.facts.relationship(at, viewer, *user));
        relationships.collect::<Result<_, _>>().or_read("relationships")
    }

    pub(in crate::local) fn deleted_tweets(&self, at: &Snapshot, ids: &[i64]) -> Result<Vec<bool>, ReadError> {
        let deleted = ids.iter().map(|id| self.facts.is_deleted_tweet(at, *id));
        deleted.collect::<Result<_, _>>().or_read("deleted tweets")
    }
}
