//! Visibility facts: `shard kind owner [other]`, each in the shard of its owner.

use std::ops::Bound;

use feedmill_model::{Fact, Op, SHARDS, Shard};
use fjall::{Database, Keyspace, OwnedWriteBatch, Readable, Snapshot};

use super::key::{Key, Parts};
use super::ledger::Ledger;
use super::{Fault, open_keyspace};
use crate::Relationship;

const KEYSPACE: &str = "facts";

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
    keyspace: Keyspace,
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

impl Facts {
    pub(super) fn open(db: &Database, ledger: Ledger) -> fjall::Result<Self> {
        let keyspace = open_keyspace(db, &ledger, KEYSPACE)?;
        Ok(Facts { ledger, keyspace })
    }

    pub(super) fn write(&self, op: &Op<Fact>, batch: &mut OwnedWriteBatch) -> Result<(), Fault> {
        match op {
            Op::Put(fact @ Fact::Follow { accepted, .. }) => {
                batch.insert(&self.keyspace, key(fact), [u8::from(*accepted)]);
            }
            // No fact is a sum: one that is added is there, one that is taken away is not.
            Op::Put(fact) | Op::Add(fact, 1..) => batch.insert(&self.keyspace, key(fact), []),
            Op::Delete(fact) | Op::Add(fact, _) => batch.remove(&self.keyspace, key(fact)),
        }
        Ok(())
    }

    fn has(&self, at: &Snapshot, key: &Key) -> Result<bool, Fault> {
        Ok(at.contains_key(&self.keyspace, key)?)
    }

    fn follow(&self, at: &Snapshot, follower: i64, following: i64) -> Result<Option<bool>, Fault> {
        let value = at.get(&self.keyspace, of_two(Kind::Follow, follower, following))?;
        Ok(value.map(|value| is_accepted(&value)))
    }

    pub(super) fn relationship(&self, at: &Snapshot, viewer: Option<i64>, user: i64) -> Result<Relationship, Fault> {
        let mut relationship = Relationship {
            protected: self.has(at, &of_one(Kind::Protected, user))?,
            deleted: self.has(at, &of_one(Kind::DeletedUser, user))?,
            ..Relationship::default()
        };
        if let Some(viewer) = viewer.filter(|viewer| *viewer != user) {
            relationship.following = self.follow(at, viewer, user)?;
            relationship.followed_by = self.follow(at, user, viewer)?;
            relationship.blocks = self.has(at, &of_two(Kind::Block, viewer, user))?;
            relationship.blocked_by = self.has(at, &of_two(Kind::Block, user, viewer))?;
            relationship.mutes = self.has(at, &of_two(Kind::Mute, viewer, user))?;
        }
        Ok(relationship)
    }

    /// At most `limit` accounts that `user` blocks, by id, after `after`.
    pub(super) fn blocks(&self, at: &Snapshot, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, Fault> {
        self.others(at, Kind::Block, user, after, limit)
    }

    /// At most `limit` accounts that `user` mutes, by id, after `after`.
    pub(super) fn mutes(&self, at: &Snapshot, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, Fault> {
        self.others(at, Kind::Mute, user, after, limit)
    }

    fn others(
        &self,
        at: &Snapshot,
        kind: Kind,
        owner: i64,
        after: Option<i64>,
        limit: usize,
    ) -> Result<Vec<i64>, Fault> {
        let all = of_one(kind, owner);
        let from = after.map_or_else(|| all.clone(), |after| of_two(kind, owner, after));
        let facts = at.range(&self.keyspace, (Bound::Excluded(from), Bound::Excluded(all.end())));
        let other = |fact: fjall::Guard| {
            let key = fact.key()?;
            // Shard, kind and owner come before it.
            let other = key.get(10..).and_then(|other| Parts::new(other).ascending());
            other.ok_or(Fault::Undecodable { keyspace: KEYSPACE })
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
