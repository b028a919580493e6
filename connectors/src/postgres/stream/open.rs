//! A transaction of which the commit has not come yet.
//!
//! ```text
//!   places:    0 … 99 │ 100 … 180 │ 181 …          one for each change
//!              file     memory                     the beginning goes to disk when memory runs short
//!                  ▲        ▲
//!   subtransactions: where each made its first change; rolled back, everything from there on is gone
//! ```
//!
//! Why cutting at the first change is right: a subtransaction ends before the one around it goes on, so between its
//! first change and its rollback there are only changes of it and of subtransactions inside it, which are rolled back
//! with it. The server tells the rollback where it lies in its log: after those changes and before all later ones.

use feedmill_model::Row;
use hashbrown::HashMap;

use super::super::spill::SpillWriter;
use super::super::{Changes, DecodeError, Field, RowChange, SpillError};
use super::assembly::Spilling;

/// What is kept of a subtransaction, with its place in the index.
const SUBTRANSACTION_BYTES: usize = size_of::<Begin>() + 2 * size_of::<(u32, usize)>();

/// The changes of a transaction so far.
#[derive(Debug, Default)]
pub(super) struct Open {
    file: Option<SpillWriter>,
    /// How many changes are in the file.
    filed: usize,
    memory: Vec<RowChange>,
    /// What `memory` takes.
    bytes: usize,
    /// Changes that cannot be read, and everything after the first of them, have places but are not kept.
    places: usize,
    /// The place of the first change that cannot be read, and why.
    unreadable: Option<(usize, DecodeError)>,
    subtransactions: Subtransactions,
}

impl Open {
    /// Adds a change by the transaction `xid`, or by `sub`, which may be a subtransaction of it. Returns how much more
    /// memory is taken.
    pub(super) fn push(&mut self, xid: u32, sub: u32, change: RowChange) -> usize {
        let before = self.bytes();
        self.subtransactions.begin(xid, sub, self.places);
        self.places += 1;
        if self.unreadable.is_none() {
            self.bytes += weight(&change);
            self.memory.push(change);
        }
        self.bytes() - before
    }

    /// Adds a change that cannot be read. It matters if it is not rolled back. Returns how much more memory is taken.
    pub(super) fn push_unreadable(&mut self, xid: u32, sub: u32, error: DecodeError) -> usize {
        let before = self.bytes();
        self.subtransactions.begin(xid, sub, self.places);
        if self.unreadable.is_none() {
            self.unreadable = Some((self.places, error));
        }
        self.places += 1;
        self.bytes() - before
    }

    /// A subtransaction was rolled back.
    pub(super) fn abort(&mut self, sub: u32) {
        let Some(Begin { place, offset, .. }) = self.subtransactions.abort(sub) else { return };
        self.places = place;
        if self.unreadable.as_ref().is_some_and(|(at, _)| *at >= place) {
            self.unreadable = None;
        }
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
        self.bytes + self.subtransactions.begun.len() * SUBTRANSACTION_BYTES
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
        Ok(())
    }

    /// It was committed.
    pub(super) fn commit(mut self, spilling: &Spilling) -> Result<Result<Changes, DecodeError>, SpillError> {
        if let Some((_, error)) = self.unreadable {
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
}

/// Where subtransactions begin, in the order in which they began.
#[derive(Debug, Default)]
struct Subtransactions {
    begun: Vec<Begin>,
    /// Where in `begun` each stands.
    index: HashMap<u32, usize>,
    /// Those from here on begin in memory.
    in_memory: usize,
    /// The one that made the last change.
    last: Option<u32>,
}

#[derive(Clone, Copy, Debug)]
struct Begin {
    xid: u32,
    place: usize,
    /// Where its first change lies in the file, if it is there.
    offset: u64,
}

impl Subtransactions {
    fn begin(&mut self, xid: u32, sub: u32, place: usize) {
        if sub == xid || self.last == Some(sub) {
            return;
        }
        self.last = Some(sub);
        if !self.index.contains_key(&sub) {
            self.index.insert(sub, self.begun.len());
            self.begun.push(Begin { xid: sub, place, offset: 0 });
        }
    }

    /// Forgets a subtransaction and those that began after it.
    fn abort(&mut self, sub: u32) -> Option<Begin> {
        let at = self.index.get(&sub).copied()?;
        let begin = self.begun.get(at).copied()?;
        for gone in self.begun.drain(at..) {
            self.index.remove(&gone.xid);
        }
        self.in_memory = self.in_memory.min(at);
        self.last = None;
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
