//! The reads of [`Views`](crate::Views) that facts and rows answer.

use std::sync::Arc;

use feedmill_model::{EntryId, Phase};
use fjall::Snapshot;

use super::facts::Facts;
use super::rows::{List, Rows};
use super::{LocalIndex, OrRead};
use crate::{CountedTweet, Edge, Profile, ReadError, Rebuilding, Relationship, TimelineItem};

/// Facts and rows as of one moment; what is applied later does not change it, nor does it matter if they are begun anew.
pub(in crate::local) struct IndexReader {
    facts: Arc<Facts>,
    rows: Arc<Rows>,
    pub(super) at: Snapshot,
}

impl LocalIndex {
    /// What is applied now.
    pub(in crate::local) fn reader(&self) -> IndexReader {
        IndexReader { facts: self.facts(), rows: self.rows(), at: self.db.snapshot() }
    }
}

impl IndexReader {
    pub(super) fn facts(&self, what: &'static str) -> Result<&Facts, ReadError> {
        if self.facts.ledger.is_readable() { Ok(&self.facts) } else { Err(rebuilding(Phase::Facts, what)) }
    }

    pub(super) fn rows(&self, what: &'static str) -> Result<&Rows, ReadError> {
        if self.rows.ledger.is_readable() { Ok(&self.rows) } else { Err(rebuilding(Phase::Rows, what)) }
    }

    pub(in crate::local) fn user_by_name(&self, name: &str) -> Result<Option<i64>, ReadError> {
        let what = "a name";
        self.rows(what)?.user_by_name(&self.at, name).or_read(what)
    }

    pub(in crate::local) fn profiles(&self, ids: &[i64]) -> Result<Vec<Option<Profile>>, ReadError> {
        let what = "profiles";
        let rows = self.rows(what)?;
        ids.iter().map(|id| rows.profile(&self.at, *id)).collect::<Result<_, _>>().or_read(what)
    }

    pub(in crate::local) fn followers(
        &self,
        user: i64,
        after: Option<Edge>,
        limit: usize,
    ) -> Result<Vec<Edge>, ReadError> {
        let what = "followers";
        self.rows(what)?.edges(&self.at, List::Followers, user, after, limit).or_read(what)
    }

    pub(in crate::local) fn following(
        &self,
        user: i64,
        after: Option<Edge>,
        limit: usize,
    ) -> Result<Vec<Edge>, ReadError> {
        let what = "accounts followed";
        self.rows(what)?.edges(&self.at, List::Following, user, after, limit).or_read(what)
    }

    pub(in crate::local) fn tweets(&self, ids: &[i64]) -> Result<Vec<Option<CountedTweet>>, ReadError> {
        let what = "tweets";
        let rows = self.rows(what)?;
        ids.iter().map(|id| rows.tweet(&self.at, *id)).collect::<Result<_, _>>().or_read(what)
    }

    pub(in crate::local) fn retweets(&self, ids: &[i64]) -> Result<Vec<Option<(i64, i64)>>, ReadError> {
        let what = "retweets";
        let rows = self.rows(what)?;
        ids.iter().map(|id| rows.retweet(&self.at, *id)).collect::<Result<_, _>>().or_read(what)
    }

    pub(in crate::local) fn user_timeline(
        &self,
        user: i64,
        replies: bool,
        before: Option<EntryId>,
        limit: usize,
    ) -> Result<Vec<TimelineItem>, ReadError> {
        let what = "a user timeline";
        self.rows(what)?.timeline(&self.at, user, replies, before, limit).or_read(what)
    }

    pub(in crate::local) fn relationships(
        &self,
        viewer: Option<i64>,
        users: &[i64],
    ) -> Result<Vec<Relationship>, ReadError> {
        let what = "relationships";
        let facts = self.facts(what)?;
        users.iter().map(|user| facts.relationship(&self.at, viewer, *user)).collect::<Result<_, _>>().or_read(what)
    }

    pub(in crate::local) fn deleted_tweets(&self, ids: &[i64]) -> Result<Vec<bool>, ReadError> {
        let what = "deleted tweets";
        let facts = self.facts(what)?;
        ids.iter().map(|id| facts.is_deleted_tweet(&self.at, *id)).collect::<Result<_, _>>().or_read(what)
    }
}

fn rebuilding(phase: Phase, what: &'static str) -> ReadError {
    ReadError { store: "local", what, source: Box::new(Rebuilding(phase)) }
}
