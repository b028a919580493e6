//! A transaction of which the commit has not come yet.
//!
//! ```text
//!   places:    0 … 99 │ 100 … 180 │ 181 …          one for each change
//!              file     memory                     the beginning goes to disk when memory runs short
//!                  ▲        ▲
//!   subtransactions: where each made its first change; rolled back, everything from there on is gone
//!   runs:      main │ a │ b │ a │ main             who made which changes
//! ```
//!
//! Why cutting at the first change is right: a subtransaction ends before the one around it goes on, so between its
//! first change and its rollback there are only changes of it and of subtransactions inside it, which are rolled back
//! with it. The server tells the rollback where it lies in its log: after those changes and before all later ones.
//!
//! A rollback that the server does not tell ([`super::outcome`]) is known at the commit: then the changes of the
//! subtransaction are left out, run by run, and so are those inside it, which are known as rolled back as well.

use std::collections::HashSet;

use feedmill_model::Row;
use hashbrown::HashMap;

use super::super::{Changes, DecodeError, Field, RowChange, SpillError, SpillWriter};
use super::assembly::Spilling;

/// What is kept of a subtransaction, with its place in the index, and of a run.
const SUBTRANSACTION_BYTES: usize = size_of::<Begin>() + 2 * size_of::<(u32, usize)>();
const RUN_BYTES: usize = size_of::<Run>();

/// The changes of a transaction so far.
#[derive(Debug, Default)]
pub(super) struct Open {
    file: Option<SpillWriter>,
    /// Whether somebody reads it along.
    is_followed: bool,
    /// How many changes are in the file.
    filed: usize,
    memory: Vec<RowChange>,
    /// What `memory` takes.
    bytes: usize,
    /// How many changes there are.
    places: usize,
    /// Why a change cannot be read, which has no place: the first of each run, with the number of runs up to there.
    unreadable: Vec<(usize, DecodeError)>,
    subtransactions: Subtransactions,
}

impl Open {
    /// Adds a change by the transaction `xid`, or by `sub`, which may be a subtransaction of it. Returns how much more
    /// memory is taken.
    pub(super) fn push(&mut self, xid: u32, sub: u32, change: RowChange) -> usize {
        let before = self.bytes();
        self.subtransactions.begin(xid, sub, self.places);
        self.places += 1;
        self.bytes += weight(&change);
        self.memory.push(change);
        self.bytes() - before
    }

    /// Adds a change that cannot be read. It matters if it is not rolled back. Returns how much more memory is taken.
    pub(super) fn push_unreadable(&mut self, xid: u32, sub: u32, error: DecodeError) -> usize {
        let before = self.bytes();
        self.subtransactions.begin(xid, sub, self.places);
        let runs = self.subtransactions.runs.len();
        if self.unreadable.last().is_none_or(|(last, _)| *last < runs) {
            self.unreadable.push((runs, error));
        }
        self.bytes() - before
    }

    /// A subtransaction was rolled back.
    pub(super) fn abort(&mut self, sub: u32) {
        let Some(Begin { place, offset, run, .. }) = self.subtransactions.abort(sub) else { return };
        self.places = place;
        self.unreadable.retain(|(runs, _)| *runs <= run);
        match (place.checked_sub(self.filed), &mut self.file) {
            (None, Some(file)) => {
                file.truncate(place, offset);
                self.filed = place;
                self.memory.clear();
                self.bytes = 0;
            }
            (kept, _) => {
                let gone = self.memory.drain(kept.unwrap_or(0).min(self.memory.len())..);
                self.bytes -= gone.map(|change| weight(&change)).sum::<usize>();
            }
        }
    }

    /// How much memory it takes.
    pub(super) fn bytes(&self) -> usize {
        let Subtransactions { begun, runs, .. } = &self.subtransactions;
        self.bytes + begun.len() * SUBTRANSACTION_BYTES + runs.len() * RUN_BYTES
    }

    /// Its subtransactions of which no rollback was told.
    pub(super) fn subtransactions(&self) -> Vec<u32> {
        self.subtransactions.begun.iter().map(|begin| begin.xid).collect()
    }

    /// How much of that its changes take, which can go to disk.
    pub(super) fn held_bytes(&self) -> usize {
        self.bytes
    }

    /// Whether part of it is on disk.
    pub(super) fn is_filed(&self) -> bool {
        self.file.is_some()
    }

    /// Moves the changes in memory to a file.
    pub(super) fn spill(&mut self, spilling: &Spilling) -> Result<(), SpillError> {
        let file = match &mut self.file {
            Some(file) => file,
            file => file.insert(SpillWriter::create(&spilling.dir, spilling.reserve_bytes)?),
        };
        for change in self.memory.drain(..) {
            self.subtransactions.filed(self.filed, file.offset());
            file.push(&change)?;
            self.filed += 1;
        }
        self.memory.shrink_to(0);
        self.bytes = 0;
        if !self.is_followed
            && let Some(follower) = &spilling.follower
        {
            self.is_followed = follower.follow(file.growing());
        }
        Ok(())
    }

    /// It was committed, but for these of its subtransactions.
    pub(super) fn commit(
        mut self,
        spilling: &Spilling,
        rolled_back: &HashSet<u32>,
    ) -> Result<Result<Changes, DecodeError>, SpillError> {
        if !rolled_back.is_empty() {
            self.leave_out(spilling, rolled_back)?;
        }
        if let Some((_, error)) = std::mem::take(&mut self.unreadable).into_iter().next() {
            return Ok(Err(error));
        }
        if self.file.is_some() {
            self.spill(spilling)?;
        }
        match self.file {
            Some(file) => Ok(Ok(Changes::Spilled(file.freeze()?))),
            None => Ok(Ok(Changes::Memory(self.memory))),
        }
    }

    /// Leaves out what these subtransactions did. What is on disk is written again without it.
    fn leave_out(&mut self, spilling: &Spilling, rolled_back: &HashSet<u32>) -> Result<(), SpillError> {
        let runs = &self.subtransactions.runs;
        self.unreadable.retain(|(runs_before, _)| {
            let run = runs_before.checked_sub(1).and_then(|run| runs.get(run));
            run.is_none_or(|run| !rolled_back.contains(&run.xid))
        });
        let (mut place, mut run, mut is_gone) = (0, 0, false);
        let mut is_kept = || {
            while let Some(next) = runs.get(run).filter(|next| next.place <= place) {
                is_gone = rolled_back.contains(&next.xid);
                run += 1;
            }
            place += 1;
            !is_gone
        };
        if let Some(file) = self.file.take() {
            let mut kept = SpillWriter::create(&spilling.dir, spilling.reserve_bytes)?;
            self.filed = 0;
            for chunk in Changes::Spilled(file.freeze()?).chunks() {
                for change in chunk?.iter().filter(|_| is_kept()) {
                    kept.push(change)?;
                    self.filed += 1;
                }
            }
            self.file = Some(kept);
        }
        self.memory.retain(|_| is_kept());
        Ok(())
    }
}

/// Where subtransactions begin, in the order in which they began, and who made which changes.
#[derive(Debug, Default)]
struct Subtransactions {
    begun: Vec<Begin>,
    /// Where in `begun` each stands.
    index: HashMap<u32, usize>,
    /// Those from here on begin in memory.
    in_memory: usize,
    /// Changes before the first are of the transaction itself.
    runs: Vec<Run>,
}

#[derive(Clone, Copy, Debug)]
struct Begin {
    xid: u32,
    place: usize,
    /// Where its first change lies in the file, if it is there.
    offset: u64,
    /// How many runs there were before.
    run: usize,
}

/// Changes of one transaction or subtransaction after another's.
#[derive(Clone, Copy, Debug)]
struct Run {
    xid: u32,
    /// The place of the first.
    place: usize,
}

impl Subtransactions {
    fn begin(&mut self, xid: u32, sub: u32, place: usize) {
        if self.runs.last().map_or(xid, |run| run.xid) == sub {
            return;
        }
        if sub != xid && !self.index.contains_key(&sub) {
            self.index.insert(sub, self.begun.len());
            self.begun.push(Begin { xid: sub, place, offset: 0, run: self.runs.len() });
        }
        self.runs.push(Run { xid: sub, place });
    }

    /// Forgets a subtransaction and those that began after it.
    fn abort(&mut self, sub: u32) -> Option<Begin> {
        let at = self.index.get(&sub).copied()?;
        let begin = self.begun.get(at).copied()?;
        for gone in self.begun.drain(at..) {
            self.index.remove(&gone.xid);
        }
        self.in_memory = self.in_memory.min(at);
        self.runs.truncate(begin.run);
        Some(begin)
    }

    /// The change at `place` goes to `offset` of the file.
    fn filed(&mut self, place: usize, offset: u64) {
        while let Some(begin) = self.begun.get_mut(self.in_memory).filter(|begin| begin.place <= place) {
            begin.offset = offset;
            self.in_memory += 1;
        }
    }
}

/// How much memory a change takes.
fn weight(change: &RowChange) -> usize {
    let beside = match change {
        RowChange::Insert(row) | RowChange::Update { row, .. } => match row {
            Row::User(user) => {
                let optional = [&user.bio, &user.avatar_url].into_iter().flatten().map(String::len).sum::<usize>();
                size_of_val(&**user) + user.username.len() + user.display_name.len() + optional
            }
            Row::Tweet(tweet) => {
                size_of_val(&**tweet) + tweet.content.len() + tweet.media.as_ref().map_or(0, String::len)
            }
            _ => 0,
        },
        RowChange::Unusable(unusable) => {
            let field = |field: &Field| match field {
                Field::Null | Field::Unsent => 0,
                Field::Text(text) => text.len(),
                Field::Bytes(bytes) => bytes.len(),
            };
            let columns = unusable.columns.iter();
            size_of_val(&**unusable) + columns.map(|(name, value)| 64 + name.len() + field(value)).sum::<usize>()
        }
        RowChange::Delete(_) | RowChange::Truncate(_) => 0,
    };
    size_of::<RowChange>() + beside
}
