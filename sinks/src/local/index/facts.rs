//! Visibility facts: `shard kind owner [other]`, each in the shard of its owner.

use std::ops::Bound;

use feedmill_model::{Fact, Op, SHARDS, Shard, Time};
use fjall::{Database, Keyspace, OwnedWriteBatch, Readable, Snapshot};

use super::bulk::{Change, Due, bits, ingest, put};
use super::hot::HotFacts;
use super::ledger::{Ledger, Progressed, Writes};
use super::{Fault, open_keyspace};
use crate::Relationship;
use crate::key::{Key, Parts};

const KEYSPACE: &str = "facts";
/// Accounts of a list that are held in memory: to read so many costs as much as to look up some twenty, which a page needs.
const LISTED_MAX: usize = 256;

/// Which fact a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
enum Kind {
    Follow = 1,
    Block = 2,
    Mute = 3,
    Protected = 4,
    DeletedUser = 5,
    DeletedTweet = 6,
}

/// The keyspace of the facts.
pub(super) struct Facts {
    pub(super) ledger: Ledger,
    pub(super) hot: HotFacts,
    keyspace: Keyspace,
}

/// What the facts say of an account.
#[derive(Debug)]
pub(super) struct Account {
    protected: bool,
    deleted: bool,
    /// Whom it follows, or has asked to.
    follows: Listed,
    blocks: Listed,
    mutes: Listed,
}

impl Account {
    /// What its lists take in memory.
    pub(super) fn list_bytes(&self) -> usize {
        let bytes = |listed: &Listed| match listed {
            Listed::All(others) => size_of_val::<[_]>(others),
            Listed::Many => 0,
        };
        [&self.follows, &self.blocks, &self.mutes].into_iter().map(bytes).sum()
    }
}

/// Accounts to which there is a fact, by id, with whether a follow is accepted.
#[derive(Debug)]
enum Listed {
    All(Box<[(i64, bool)]>),
    /// More than [`LISTED_MAX`].
    Many,
}

impl Listed {
    fn of(others: Vec<(i64, bool)>) -> Self {
        if others.len() > LISTED_MAX { Listed::Many } else { Listed::All(others.into()) }
    }
}

fn found(others: &[(i64, bool)], other: i64) -> Option<&(i64, bool)> {
    others.binary_search_by_key(&other, |(id, _)| *id).ok().and_then(|index| others.get(index))
}

fn ids(others: Vec<(i64, bool)>) -> Vec<i64> {
    others.into_iter().map(|(id, _)| id).collect()
}

fn of_one(kind: Kind, id: i64) -> Key {
    Key::of(id).byte(kind as u8).ascending(id)
}

fn of_two(kind: Kind, owner: i64, other: i64) -> Key {
    of_one(kind, owner).ascending(other)
}

fn key(fact: &Fact) -> Key {
    match *fact {
        Fact::Follow { follower, following, .. } => of_two(Kind::Follow, follower, following),
        Fact::Block { blocker, blocked } => of_two(Kind::Block, blocker, blocked),
        Fact::Mute { muter, muted } => of_two(Kind::Mute, muter, muted),
        Fact::Protected(id) => of_one(Kind::Protected, id),
        Fact::DeletedUser(id) => of_one(Kind::DeletedUser, id),
        Fact::DeletedTweet(id) => of_one(Kind::DeletedTweet, id),
    }
}

fn decode(kind: Kind, key: &[u8], value: &[u8]) -> Option<Fact> {
    let mut parts = Parts::new(key);
    let (_, _, id) = (parts.byte()?, parts.byte()?, parts.ascending()?);
    let mut other = || parts.ascending();
    Some(match kind {
        Kind::Follow => Fact::Follow { follower: id, following: other()?, accepted: is_accepted(value) },
        Kind::Block => Fact::Block { blocker: id, blocked: other()? },
        Kind::Mute => Fact::Mute { muter: id, muted: other()? },
        Kind::Protected => Fact::Protected(id),
        Kind::DeletedUser => Fact::DeletedUser(id),
        Kind::DeletedTweet => Fact::DeletedTweet(id),
    })
}

fn is_accepted(value: &[u8]) -> bool {
    value == [1]
}

/// What an operation makes of its key.
fn change(op: &Op<Fact>) -> Change {
    match op {
        Op::Put(fact @ Fact::Follow { accepted, .. }) => (key(fact), Some([u8::from(*accepted)].into())),
        // No fact is a sum: one that is added is there, one that is taken away is not.
        Op::Put(fact) | Op::Add(fact, 1..) => (key(fact), Some([].into())),
        Op::Delete(fact) | Op::Add(fact, _) => (key(fact), None),
    }
}

impl Writes<Fact> for Facts {
    fn write(&self, _: Time, op: &Op<Fact>, batch: &mut OwnedWriteBatch, _: &mut Progressed) -> Result<(), Fault> {
        put(batch, &self.keyspace, change(op));
        Ok(())
    }

    fn ingest(&self, _: Time, ops: &[(Shard, Op<Fact>)], due: &mut Due<'_>) -> Result<(), Fault> {
        ingest(&self.keyspace, ops, bits(due), |_, op| Ok(Some(change(op))))
    }
}

impl Facts {
    pub(super) fn open(db: &Database, ledger: Ledger) -> fjall::Result<Self> {
        let keyspace = open_keyspace(db, &ledger, KEYSPACE)?;
        Ok(Facts { ledger, hot: HotFacts::new(), keyspace })
    }

    fn has(&self, at: &Snapshot, key: &Key) -> Result<bool, Fault> {
        Ok(at.contains_key(&self.keyspace, key)?)
    }

    fn follow(&self, at: &Snapshot, follower: i64, following: i64) -> Result<Option<bool>, Fault> {
        let value = at.get(&self.keyspace, of_two(Kind::Follow, follower, following))?;
        Ok(value.map(|value| is_accepted(&value)))
    }

    /// What the facts say of an account.
    pub(super) fn account(&self, at: &Snapshot, id: i64) -> Result<Account, Fault> {
        let listed = |kind| self.others(at, kind, id, None, LISTED_MAX + 1).map(Listed::of);
        Ok(Account {
            protected: self.has(at, &of_one(Kind::Protected, id))?,
            deleted: self.has(at, &of_one(Kind::DeletedUser, id))?,
            follows: listed(Kind::Follow)?,
            blocks: listed(Kind::Block)?,
            mutes: listed(Kind::Mute)?,
        })
    }

    /// The facts between a viewer, if there is one, and another account. What the accounts do not list is read `at` a
    /// snapshot.
    pub(super) fn relationship(
        &self,
        at: impl Fn() -> Snapshot,
        viewer: Option<(i64, &Account)>,
        (other, account): (i64, &Account),
    ) -> Result<Relationship, Fault> {
        let follow = |one: &Account, follower, following| match &one.follows {
            Listed::All(follows) => Ok(found(follows, following).map(|(_, accepted)| *accepted)),
            Listed::Many => self.follow(&at(), follower, following),
        };
        let has = |listed: &Listed, kind, one, other| match listed {
            Listed::All(others) => Ok(found(others, other).is_some()),
            Listed::Many => self.has(&at(), &of_two(kind, one, other)),
        };
        let Account { protected, deleted, .. } = *account;
        let mut relationship = Relationship { protected, deleted, ..Relationship::default() };
        if let Some((viewer, own)) = viewer.filter(|(viewer, _)| *viewer != other) {
            relationship.following = follow(own, viewer, other)?;
            relationship.followed_by = follow(account, other, viewer)?;
            relationship.blocks = has(&own.blocks, Kind::Block, viewer, other)?;
            relationship.blocked_by = has(&account.blocks, Kind::Block, other, viewer)?;
            relationship.mutes = has(&own.mutes, Kind::Mute, viewer, other)?;
        }
        Ok(relationship)
    }

    /// At most `limit` accounts that `user` blocks, by id, after `after`.
    pub(super) fn blocks(&self, at: &Snapshot, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, Fault> {
        Ok(ids(self.others(at, Kind::Block, user, after, limit)?))
    }

    /// At most `limit` accounts that `user` mutes, by id, after `after`.
    pub(super) fn mutes(&self, at: &Snapshot, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, Fault> {
        Ok(ids(self.others(at, Kind::Mute, user, after, limit)?))
    }

    /// At most `limit` accounts to which `owner` has a fact of a kind, by id, after `after`; with whether a follow is
    /// accepted.
    fn others(
        &self,
        at: &Snapshot,
        kind: Kind,
        owner: i64,
        after: Option<i64>,
        limit: usize,
    ) -> Result<Vec<(i64, bool)>, Fault> {
        let all = of_one(kind, owner);
        let from = after.map_or_else(|| all.clone(), |after| of_two(kind, owner, after));
        let facts = at.range(&self.keyspace, (Bound::Excluded(from), Bound::Excluded(all.end())));
        let other = |fact: fjall::Guard| {
            let (key, value) = fact.into_inner()?;
            // Shard, kind and owner come before it.
            let other = key.get(10..).and_then(|other| Parts::new(other).ascending());
            Ok((other.ok_or(Fault::Undecodable { keyspace: KEYSPACE })?, is_accepted(&value)))
        };
        facts.take(limit).map(other).collect()
    }

    pub(super) fn is_deleted_tweet(&self, at: &Snapshot, id: i64) -> Result<bool, Fault> {
        self.has(at, &of_one(Kind::DeletedTweet, id))
    }

    /// Calls `each` with every fact of the kind of `like`, whose fields do not matter.
    pub(super) fn scan(&self, at: &Snapshot, like: &Fact, each: &mut dyn FnMut(Fact)) -> Result<(), Fault> {
        let kind = match like {
            Fact::Follow { .. } => Kind::Follow,
            Fact::Block { .. } => Kind::Block,
            Fact::Mute { .. } => Kind::Mute,
            Fact::Protected(_) => Kind::Protected,
            Fact::DeletedUser(_) => Kind::DeletedUser,
            Fact::DeletedTweet(_) => Kind::DeletedTweet,
        };
        for shard in 0..SHARDS as Shard {
            for row in at.prefix(&self.keyspace, Key::in_shard(shard).byte(kind as u8)) {
                let (key, value) = row.into_inner()?;
                each(decode(kind, &key, &value).ok_or(Fault::Undecodable { keyspace: KEYSPACE })?);
            }
        }
        Ok(())
    }
}
