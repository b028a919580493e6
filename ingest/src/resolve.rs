//! What a group of transactions does to the row store and to the quarantine: at most one change a key, with the row
//! before and after.
//!
//! ```text
//!   changes in order ─► overlay: key → (row in the store, row now) ─► keys whose two rows differ
//! ```
//!
//! The row in the store is read once a key, when the key is first met, so `old` is what the store holds whatever the
//! transactions say: an insert of a row that is there is an update, a delete of one that is not is nothing. Applying the
//! same transactions twice therefore gives no change the second time.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use feedmill_connectors::postgres::{Operation, RowChange, Transaction, Unusable};
use feedmill_model::{Change, Key, Position, Relation, Row};

use crate::LogError;
use crate::key::{first_key, last_key};
use crate::log::Shared;
use crate::quarantine::{self, QuarantineId, Quarantined};

/// What transactions come to.
pub(crate) struct Resolved {
    /// In the order in which their keys were first met.
    pub changes: Vec<Change>,
    /// What is in quarantine from now on, by where it lies.
    pub effects: BTreeMap<Vec<u8>, Option<Box<Quarantined>>>,
}

/// What `transactions` do as the batch at `position`.
pub(crate) fn resolve(store: &Shared, transactions: &[Transaction], position: Position) -> Result<Resolved, LogError> {
    let mut overlay = Overlay {
        store,
        position,
        places: HashMap::new(),
        changes: Vec::new(),
        effects: BTreeMap::new(),
        unnamed: 0,
        quarantine: store.has_quarantined(),
    };
    for chunk in transactions.iter().flat_map(|transaction| transaction.changes.chunks()) {
        for change in chunk?.iter() {
            overlay.apply(change)?;
        }
    }
    overlay.set_aside_the_future();
    overlay.changes.retain(|change| change.old != change.new);
    Ok(Resolved { changes: overlay.changes, effects: overlay.effects })
}

struct Overlay<'a> {
    store: &'a Shared,
    position: Position,
    /// Where the change of a key stands.
    places: HashMap<Key, usize>,
    changes: Vec<Change>,
    effects: BTreeMap<Vec<u8>, Option<Box<Quarantined>>>,
    /// Rows without a readable key so far.
    unnamed: u32,
    /// Something is in quarantine, so it must be looked at.
    quarantine: bool,
}

impl Overlay<'_> {
    /// The row of a key as of now, to be read and changed.
    fn now(&mut self, key: Key) -> Result<&mut Option<Row>, LogError> {
        let place = match self.places.entry(key) {
            Entry::Occupied(place) => *place.get(),
            Entry::Vacant(entry) => {
                let old = self.store.row(&key)?;
                self.changes.push(Change { new: old.clone(), old });
                *entry.insert(self.changes.len() - 1)
            }
        };
        let change = self.changes.get_mut(place);
        change.map(|change| &mut change.new).ok_or_else(|| LogError::Corrupt { what: format!("the row {key:?}") })
    }

    /// The row of a key is this from now on.
    fn set(&mut self, key: Key, row: Option<Row>) -> Result<(), LogError> {
        if self.quarantine {
            self.release(QuarantineId::Key(key).to_bytes())?;
        }
        *self.now(key)? = row;
        Ok(())
    }

    fn apply(&mut self, change: &RowChange) -> Result<(), LogError> {
        match change {
            RowChange::Insert(row) => self.set(row.key(), Some(row.clone())),
            RowChange::Delete(key) => self.set(*key, None),
            RowChange::Update { old_key, row, unchanged } => self.update(*old_key, row, *unchanged),
            RowChange::Truncate(relation) => self.truncate(*relation),
            RowChange::Unusable(unusable) => self.set_aside(unusable),
        }
    }

    fn update(&mut self, old_key: Option<Key>, row: &Row, unchanged: u32) -> Result<(), LogError> {
        let key = row.key();
        let old_key = old_key.unwrap_or(key);
        let before = self.now(old_key)?.take();
        let held = if before.is_none() && unchanged != 0 { self.held(old_key)? } else { None };
        if old_key != key {
            self.set(old_key, None)?;
        }
        let mut row = row.clone();
        match (before, held) {
            (Some(before), _) => row.fill_unchanged(unchanged, &before),
            (None, Some(Quarantined { readable: Some(before), .. })) => row.fill_unchanged(unchanged, &before),
            (None, _) if unchanged != 0 => {
                self.set(key, None)?;
                let entry = quarantine::without_columns(&row, self.position);
                self.hold(QuarantineId::Key(key), entry);
                return Ok(());
            }
            (None, _) => {}
        }
        self.set(key, Some(row))
    }

    fn truncate(&mut self, relation: Relation) -> Result<(), LogError> {
        let (places, changes) = (&mut self.places, &mut self.changes);
        for change in changes.iter_mut() {
            if change.new.as_ref().is_some_and(|row| row.relation() == relation) {
                change.new = None;
            }
        }
        self.store.each(relation, &mut |row| {
            if let Entry::Vacant(place) = places.entry(row.key()) {
                place.insert(changes.len());
                changes.push(Change { old: Some(row), new: None });
            }
        })?;
        let (first, last) = (first_key(relation), last_key(relation));
        for (_, entry) in self.effects.range_mut(first.to_vec()..=last.to_vec()) {
            *entry = None;
        }
        if self.store.has_quarantined() {
            self.effects.extend(self.store.quarantined_between(&first, &last)?.into_iter().map(|id| (id, None)));
        }
        Ok(())
    }

    /// The row is not known any more: neither what it was nor what it is now can be shown.
    fn set_aside(&mut self, unusable: &Unusable) -> Result<(), LogError> {
        if let Some(old_key) = unusable.old_key {
            self.set(old_key, None)?;
        }
        let entry = Quarantined { row: unusable.clone(), readable: None, position: self.position };
        let id = match unusable.key {
            Some(key) => {
                self.set(key, None)?;
                QuarantineId::Key(key)
            }
            None => {
                self.unnamed += 1;
                QuarantineId::Number(self.position.time, self.unnamed - 1)
            }
        };
        self.hold(id, entry);
        Ok(())
    }

    fn set_aside_the_future(&mut self) {
        for change in &mut self.changes {
            let Some(row) = change.new.take_if(|row| quarantine::ahead(row, self.position.time).is_some()) else {
                continue;
            };
            let reason = quarantine::ahead(&row, self.position.time).unwrap_or_default();
            let operation = if change.old.is_some() { Operation::Update } else { Operation::Insert };
            let id = QuarantineId::Key(row.key()).to_bytes();
            let entry = quarantine::of_the_future(row, operation, reason, self.position);
            self.effects.insert(id, Some(Box::new(entry)));
        }
    }

    fn hold(&mut self, id: QuarantineId, entry: Quarantined) {
        self.quarantine = true;
        self.effects.insert(id.to_bytes(), Some(Box::new(entry)));
    }

    /// What is in quarantine of a key as of now.
    fn held(&self, key: Key) -> Result<Option<Quarantined>, LogError> {
        let id = QuarantineId::Key(key).to_bytes();
        match self.effects.get(&id) {
            Some(entry) => Ok(entry.as_deref().cloned()),
            None => self.store.quarantined_at(&id),
        }
    }

    /// Whatever is in quarantine under this id is so no longer.
    fn release(&mut self, id: Vec<u8>) -> Result<(), LogError> {
        let held = self.effects.contains_key(&id) || self.store.quarantined_at(&id)?.is_some();
        if held {
            self.effects.insert(id, None);
        }
        Ok(())
    }
}
