//! The reads of [`Views`](crate::Views) that facts and rows answer.

use std::sync::Arc;

use feedmill_model::{EntryId, Notice, Phase, TrendWindow, View};
use fjall::Snapshot;

use super::facts::{Account, Facts};
use super::ledger::Ledger;
use super::rows::Rows;
use super::{LocalIndex, OrRead, Tables};
use crate::{
    CountedTweet, Edge, Profile, ReadError, Rebuilding, Relationship, Reply, TimelineItem, TrendingTag, TrendingTweet,
};

/// What is read, for who is told that it cannot be.
const PROFILES: &str = "profiles";
const TWEETS: &str = "tweets";
const RELATIONSHIPS: &str = "relationships";
const DELETED_TWEETS: &str = "deleted tweets";

/// Facts, rows and reactions as of one moment; what is applied later does not change it, nor does it matter if they are begun
/// anew.
pub(in crate::local) struct IndexReader {
    facts: Arc<Facts>,
    tables: Arc<Tables>,
    pub(super) at: Snapshot,
}

impl LocalIndex {
    /// What is applied now. Profiles, tweets, relationships and deleted tweets are read without it: see [`super::hot`].
    pub(in crate::local) fn reader(&self) -> IndexReader {
        IndexReader { facts: self.facts(), tables: self.tables(), at: self.db.snapshot() }
    }

    pub(in crate::local) fn profiles(&self, ids: &[i64]) -> Result<Vec<Option<Arc<Profile>>>, ReadError> {
        let tables = self.tables();
        let rows = tables.rows(PROFILES)?;
        tables.hot.profiles.get(ids, || self.db.snapshot(), |at, id| rows.profile(at, id)).or_read(PROFILES)
    }

    pub(in crate::local) fn tweets(&self, ids: &[i64]) -> Result<Vec<Option<Arc<CountedTweet>>>, ReadError> {
        let tables = self.tables();
        let (rows, reactions) = (tables.rows(TWEETS)?, tables.reactions(TWEETS)?);
        tables.hot.tweets.get(ids, || self.db.snapshot(), |at, id| rows.tweet(at, id, reactions)).or_read(TWEETS)
    }

    pub(in crate::local) fn relationships(
        &self,
        viewer: Option<i64>,
        users: &[i64],
    ) -> Result<Vec<Relationship>, ReadError> {
        let facts = self.facts();
        readable(&facts.ledger, Phase::Facts, RELATIONSHIPS)?;
        let ids: Vec<i64> = users.iter().copied().chain(viewer).collect();
        let account = |at: &Snapshot, id| facts.account(at, id).map(Arc::new);
        let accounts = facts.hot.accounts.get(&ids, || self.db.snapshot(), account).or_read(RELATIONSHIPS)?;
        relationships(&facts, || self.db.snapshot(), viewer, users, &accounts)
    }

    pub(in crate::local) fn deleted_tweets(&self, ids: &[i64]) -> Result<Vec<bool>, ReadError> {
        let facts = self.facts();
        readable(&facts.ledger, Phase::Facts, DELETED_TWEETS)?;
        let deleted = |at: &Snapshot, id| facts.is_deleted_tweet(at, id);
        facts.hot.deleted_tweets.get(ids, || self.db.snapshot(), deleted).or_read(DELETED_TWEETS)
    }
}

/// The facts between the viewer and users whose accounts are `accounts`, the viewer's at the end.
fn relationships(
    facts: &Facts,
    at: impl Fn() -> Snapshot,
    viewer: Option<i64>,
    users: &[i64],
    accounts: &[Arc<Account>],
) -> Result<Vec<Relationship>, ReadError> {
    let own = viewer.zip(accounts.last().map(Arc::as_ref));
    let others = users.iter().copied().zip(accounts.iter().map(Arc::as_ref));
    others.map(|other| facts.relationship(&at, own, other)).collect::<Result<_, _>>().or_read(RELATIONSHIPS)
}

impl IndexReader {
    pub(super) fn facts(&self, what: &'static str) -> Result<&Facts, ReadError> {
        readable(&self.facts.ledger, Phase::Facts, what)?;
        Ok(&self.facts)
    }

    pub(super) fn rows(&self, what: &'static str) -> Result<&Rows, ReadError> {
        self.tables.rows(what)
    }

    pub(super) fn reactions(&self, what: &'static str) -> Result<&Rows, ReadError> {
        self.tables.reactions(what)
    }

    /// The rows, or the reactions, whichever have this view.
    pub(super) fn of_view(&self, view: View, what: &'static str) -> Result<&Rows, ReadError> {
        if view.phase() == Phase::Reactions { self.reactions(what) } else { self.rows(what) }
    }

    pub(in crate::local) fn user_by_name(&self, name: &str) -> Result<Option<i64>, ReadError> {
        let what = "a name";
        self.rows(what)?.user_by_name(&self.at, name).or_read(what)
    }

    pub(in crate::local) fn profiles(&self, ids: &[i64]) -> Result<Vec<Option<Arc<Profile>>>, ReadError> {
        let rows = self.rows(PROFILES)?;
        ids.iter().map(|id| rows.profile(&self.at, *id)).collect::<Result<_, _>>().or_read(PROFILES)
    }

    pub(in crate::local) fn edges(
        &self,
        list: View,
        of: i64,
        after: Option<Edge>,
        limit: usize,
    ) -> Result<Vec<Edge>, ReadError> {
        let what = "a list of accounts";
        self.of_view(list, what)?.edges(&self.at, list, of, after, limit).or_read(what)
    }

    pub(in crate::local) fn tweets(&self, ids: &[i64]) -> Result<Vec<Option<Arc<CountedTweet>>>, ReadError> {
        let (rows, reactions) = (self.rows(TWEETS)?, self.reactions(TWEETS)?);
        ids.iter().map(|id| rows.tweet(&self.at, *id, reactions)).collect::<Result<_, _>>().or_read(TWEETS)
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
        self.reactions(what)?.liked(&self.at, user, tweets).or_read(what)
    }

    pub(in crate::local) fn retweeted(&self, user: i64, tweets: &[i64]) -> Result<Vec<Option<i64>>, ReadError> {
        let what = "retweets of a user";
        self.rows(what)?.retweeted(&self.at, user, tweets).or_read(what)
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
        self.reactions(what)?.trending_tweets(&self.at).or_read(what)
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

    pub(in crate::local) fn replies_of(&self, root: i64, ids: &[i64]) -> Result<Vec<Option<Reply>>, ReadError> {
        let what = "places in a conversation";
        let rows = self.rows(what)?;
        ids.iter().map(|id| rows.reply(&self.at, root, *id)).collect::<Result<_, _>>().or_read(what)
    }

    pub(in crate::local) fn notifications(
        &self,
        user: i64,
        after: Option<&Notice>,
        limit: usize,
    ) -> Result<Vec<Notice>, ReadError> {
        let what = "notifications";
        self.reactions(what)?.notifications(&self.at, user, after, limit).or_read(what)
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
        let facts = self.facts(RELATIONSHIPS)?;
        let ids = users.iter().copied().chain(viewer);
        let accounts = ids.map(|id| facts.account(&self.at, id).map(Arc::new)).collect::<Result<Vec<_>, _>>();
        relationships(facts, || self.at.clone(), viewer, users, &accounts.or_read(RELATIONSHIPS)?)
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
        let facts = self.facts(DELETED_TWEETS)?;
        ids.iter().map(|id| facts.is_deleted_tweet(&self.at, *id)).collect::<Result<_, _>>().or_read(DELETED_TWEETS)
    }
}

impl Tables {
    fn rows(&self, what: &'static str) -> Result<&Rows, ReadError> {
        readable(&self.rows.ledger, Phase::Rows, what)?;
        Ok(&self.rows)
    }

    fn reactions(&self, what: &'static str) -> Result<&Rows, ReadError> {
        readable(&self.reactions.ledger, Phase::Reactions, what)?;
        Ok(&self.reactions)
    }
}

fn readable(ledger: &Ledger, phase: Phase, what: &'static str) -> Result<(), ReadError> {
    let rebuilding = || ReadError { store: "local", what, source: Box::new(Rebuilding(phase)) };
    ledger.is_readable().then_some(()).ok_or_else(rebuilding)
}
