//! What a group of transactions does to the row store: at most one change a key, with the row before and after.
//!
//! ```text
//!   changes in order ─► overlay: key → (row in the store, row now) ─► keys whose two rows differ
//! ```
//!
//! The row in the store is read once a key, when the key is first met, so `old` is what the store holds whatever the
//! transactions say: an insert of a row that is there is an update, a delete of one that is not is nothing. Applying the
//! same transactions twice therefore gives no change the second time.

use std::collections::HashMap;
use std::collections::hash_map::Entry;

use feedmill_connectors::postgres::{RowChange, Transaction};
use feedmill_model::{Change, Key, Relation, Row};

use crate::LogError;

/// The row store as the resolver needs it.
pub(crate) trait Rows {
    /// The row of a key.
    fn row(&self, key: &Key) -> Result<Option<Row>, LogError>;
    /// Every row of a relation.
    fn each(&self, relation: Relation, take: &mut dyn FnMut(Row)) -> Result<(), LogError>;
}

/// The net changes of `transactions`, in the order in which their keys were first met.
pub(crate) fn resolve(store: &impl Rows, transactions: &[Transaction]) -> Result<Vec<Change>, LogError> {
    let mut overlay = Overlay { store, places: HashMap::new(), changes: Vec::new() };
    for chunk in transactions.iter().flat_map(|transaction| transaction.changes.chunks()) {
        for change in chunk?.iter() {
            overlay.apply(change)?;
        }
    }
    overlay.changes.retain(|change| change.old != change.new);
    Ok(overlay.changes)
}

struct Overlay<'a, S> {
    store: &'a S,
    /// Where the change of a key stands.
    places: HashMap<Key, usize>,
    changes: Vec<Change>,
}

impl<S: Rows> Overlay<'_, S> {
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

    fn apply(&mut self, change: &RowChange) -> Result<(), LogError> {
        match change {
            RowChange::Insert(row) => *self.now(row.key())? = Some(row.clone()),
            RowChange::Delete(key) => *self.now(*key)? = None,
            RowChange::Update { old_key, row, unchanged } => self.update(*old_key, row, *unchanged)?,
            RowChange::Truncate(relation) => self.truncate(*relation)?,
            RowChange::Unusable(row) => {
                metrics::counter!("feedmill_log_unusable_total").increment(1);
                tracing::error!(key = ?row.key, "a row of {} cannot be read: {}", row.relation.table(), row.reason);
            }
        }
        Ok(())
    }

    fn update(&mut self, old_key: Option<Key>, row: &Row, unchanged: u32) -> Result<(), LogError> {
        let key = row.key();
        let before = self.now(old_key.unwrap_or(key))?.take();
        let mut row = row.clone();
        match before {
            Some(before) => row.fill_unchanged(unchanged, &before),
            None if unchanged != 0 => return Err(LogError::Incomplete { key }),
            None => {}
        }
        *self.now(key)? = Some(row);
        Ok(())
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
        })
    }
}
