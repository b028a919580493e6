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

use feedmill_connectors::postgres::{RowChange, Transaction};
use feedmill_model::{Change, Key, Relation, Row};

use crate::LogError;

/// The row store as the resolver needs it.
pub(crate) trait Rows {
    fn row(&self, key: &Key) -> Result<Option<Row>, LogError>;
    fn keys(&self, relation: Relation) -> Result<Vec<Key>, LogError>;
}

struct Slot {
    old: Option<Row>,
    new: Option<Row>,
}

/// The net changes of `transactions`, in the order in which their keys were first met.
pub(crate) fn resolve(store: &impl Rows, transactions: &[Transaction]) -> Result<Vec<Change>, LogError> {
    let mut overlay = Overlay { store, slots: HashMap::new(), order: Vec::new() };
    for change in transactions.iter().flat_map(|transaction| &transaction.changes) {
        overlay.apply(change)?;
    }
    let Overlay { mut slots, order, .. } = overlay;
    let changes = order.iter().filter_map(|key| slots.remove(key)).filter(|slot| slot.old != slot.new);
    Ok(changes.map(|slot| Change { old: slot.old, new: slot.new }).collect())
}

struct Overlay<'a, S> {
    store: &'a S,
    slots: HashMap<Key, Slot>,
    order: Vec<Key>,
}

impl<S: Rows> Overlay<'_, S> {
    fn slot(&mut self, key: Key) -> Result<&mut Slot, LogError> {
        use std::collections::hash_map::Entry;
        match self.slots.entry(key) {
            Entry::Occupied(slot) => Ok(slot.into_mut()),
            Entry::Vacant(place) => {
                let old = self.store.row(&key)?;
                self.order.push(key);
                Ok(place.insert(Slot { new: old.clone(), old }))
            }
        }
    }

    fn apply(&mut self, change: &RowChange) -> Result<(), LogError> {
        match change {
            RowChange::Insert(row) => self.slot(row.key())?.new = Some(row.clone()),
            RowChange::Delete(key) => self.slot(*key)?.new = None,
            RowChange::Update { old_key, row, unchanged } => {
                let mut row = row.clone();
                let key = row.key();
                let before = match old_key.filter(|old_key| *old_key != key) {
                    Some(old_key) => self.slot(old_key)?.new.take(),
                    None => self.slot(key)?.new.take(),
                };
                if let Some(before) = before {
                    row.fill_unchanged(*unchanged, &before);
                }
                self.slot(key)?.new = Some(row);
            }
            RowChange::Truncate(relation) => {
                for key in self.store.keys(*relation)? {
                    self.slot(key)?.new = None;
                }
                for (key, slot) in &mut self.slots {
                    if key.relation == *relation {
                        slot.new = None;
                    }
                }
            }
        }
        Ok(())
    }
}
