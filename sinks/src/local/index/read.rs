//! The reads of [`Views`](crate::Views) that facts and rows answer.

use std::sync::Arc;

use feedmill_model::{EntryId, Notice, Phase, TrendWindow, View};
use fjall::Snapshot;

use super::facts::Facts;
use super::rows::Rows;
use super::{LocalIndex, OrRead};
use crate::{
    CountedTweet, Edge, Profile, ReadError, Rebuilding, Relationship, Reply, TimelineItem, TrendingTag, TrendingTweet,
};

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

    pub(in crate::local) fn edges(
        &self,
        list: View,
        of: i64,
        after: Option<Edge>,
        limit: usize,
    ) -> Result<Vec<Edge>, ReadError> {
        let what = "a list of accounts";
        self.rows(what)?.edges(&self.at, list, of, after, limit).or_read(what)
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

    pub(in crate::local) fn retweeters(
        &self,
        tweet: i64,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<(i64, i64)>, ReadError> {
        let what = "retweeters";
        self.rows(what)?.retweeters(&self.at, tweet, before, limit).or_read(what)
    }

    pub(in crate::local) fn liked(&self, user: i64, tweets: &[i64]) -> Result<Vec<bool>, ReadError> {
        let what = "likes of a user";
        let rows = self.rows(what)?;
        tweets.iter().map(|tweet| rows.likes(&self.at, user, *tweet)).collect::<Result<_, _>>().or_read(what)
    }

    pub(in crate::local) fn retweeted(&self, user: i64, tweets: &[i64]) -> Result<Vec<Option<i64>>, ReadError> {
        let what = "retweets of a user";
        let rows = self.rows(what)?;
        tweets.iter().map(|tweet| rows.retweet_of(&self.at, user, *tweet)).collect::<Result<_, _>>().or_read(what)
    }

    pub(in crate::local) fn tagged(&self, tag: &str, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        let what = "tweets with a tag";
        self.rows(what)?.tagged(&self.at, tag, before, limit).or_read(what)
    }

    pub(in crate::local) fn trending_tags(&self, window: TrendWindow) -> Result<Vec<TrendingTag>, ReadError> {
        let what = "trending hashtags";
        self.rows(what)?.trending_tags(&self.at, window).or_read(what)
    }

    pub(in crate::local) fn trending_tweets(&self) -> Result<Vec<TrendingTweet>, ReadError> {
        let what = "trending tweets";
        self.rows(what)?.trending_tweets(&self.at).or_read(what)
    }

    pub(in crate::local) fn replies(
        &self,
        root: i64,
        under: &[i64],
        after: Option<&[i64]>,
        limit: usize,
    ) -> Result<Vec<Reply>, ReadError> {
        let what = "a conversation";
        self.rows(what)?.replies(&self.at, root, under, after, limit).or_read(what)
    }

    pub(in crate::local) fn reply_paths(&self, root: i64, replies: &[i64]) -> Result<Vec<Option<Vec<i64>>>, ReadError> {
        let what = "places in a conversation";
        let rows = self.rows(what)?;
        replies.iter().map(|reply| rows.reply_path(&self.at, root, *reply)).collect::<Result<_, _>>().or_read(what)
    }

    pub(in crate::local) fn notifications(
        &self,
        user: i64,
        after: Option<&Notice>,
        limit: usize,
    ) -> Result<Vec<Notice>, ReadError> {
        let what = "notifications";
        self.rows(what)?.notifications(&self.at, user, after, limit).or_read(what)
    }

    pub(in crate::local) fn read_mark(&self, user: i64) -> Result<Option<i64>, ReadError> {
        let what = "a read mark";
        self.rows(what)?.read_mark(&self.at, user).or_read(what)
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

    pub(in crate::local) fn blocks(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        let what = "accounts blocked";
        self.facts(what)?.blocks(&self.at, user, after, limit).or_read(what)
    }

    pub(in crate::local) fn mutes(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        let what = "accounts muted";
        self.facts(what)?.mutes(&self.at, user, after, limit).or_read(what)
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
