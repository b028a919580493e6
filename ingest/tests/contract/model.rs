//! Generated histories of transactions, and the naive model that they are checked against.

use std::collections::BTreeMap;

use feedmill_connectors::postgres::RowChange;
use feedmill_model::{Change, Follow, Key, Relation, Row, Tweet, User};
use proptest::prelude::*;

/// What a source holds.
pub type State = BTreeMap<Key, Row>;

/// What happens to a log.
#[derive(Clone, Debug)]
pub enum Step {
    /// Transactions are appended as one batch; none is an idle tick.
    Append(Vec<Vec<RowChange>>),
    /// The last transactions come again, as after a lost connection.
    Again,
    /// The process ends and starts again.
    Reopen,
    /// The older half of the tail is dropped.
    Compact,
}

/// Rows of a few users, tweets and follows, so that keys meet often.
fn row() -> impl Strategy<Value = Row> {
    let text = || prop::sample::select(vec!["", "ada", "a longer text"]).prop_map(str::to_owned);
    prop_oneof![
        (0..4_i64, text(), prop::option::of(text())).prop_map(|(id, display_name, bio)| {
            Row::User(Box::new(User { id, display_name, bio, ..User::default() }))
        }),
        (-2..4_i64, text(), prop::option::of(0..2_i64)).prop_map(|(id, content, reply_to_id)| {
            Row::Tweet(Box::new(Tweet { id, content, reply_to_id, ..Tweet::default() }))
        }),
        (0..3_i64, 0..3_i64, any::<bool>()).prop_map(|(follower_id, following_id, accepted)| {
            Row::Follow(Follow { follower_id, following_id, accepted, created_at: 0 })
        }),
    ]
}

/// What may happen to a row.
pub fn change() -> impl Strategy<Value = RowChange> {
    // Bit 2 is a user's `display_name` and a tweet's `content`, bit 3 a user's `bio`.
    let unchanged = prop::sample::select(vec![0, 0, 0b100, 0b1100]);
    prop_oneof![
        4 => row().prop_map(RowChange::Insert),
        2 => row().prop_map(|row| RowChange::Delete(row.key())),
        4 => (row(), prop::option::of(row()), unchanged).prop_map(|(row, old, unchanged)| {
            let old_key = old.map(|old| old.key()).filter(|key| key.relation == row.relation());
            RowChange::Update { old_key, row, unchanged }
        }),
        1 => prop::sample::select(vec![Relation::Users, Relation::Tweets, Relation::Follows])
            .prop_map(RowChange::Truncate),
    ]
}

/// What happens to a log, in order.
pub fn steps() -> impl Strategy<Value = Vec<Step>> {
    let transaction = prop::collection::vec(change(), 0..6);
    let step = prop_oneof![
        12 => prop::collection::vec(transaction, 0..4).prop_map(Step::Append),
        1 => Just(Step::Again),
        1 => Just(Step::Reopen),
        1 => Just(Step::Compact),
    ];
    prop::collection::vec(step, 1..40)
}

/// Applies transactions as PostgreSQL did, and takes out of them what it would never send: an update with columns that
/// did not change of a row that is not there.
pub fn apply(state: &mut State, transactions: &mut [Vec<RowChange>]) {
    for changes in transactions {
        changes.retain(|change| apply_one(state, change));
    }
}

fn apply_one(state: &mut State, change: &RowChange) -> bool {
    match change {
        RowChange::Insert(row) => {
            state.insert(row.key(), row.clone());
        }
        RowChange::Delete(key) => {
            state.remove(key);
        }
        RowChange::Unusable(_) => return false,
        RowChange::Truncate(relation) => state.retain(|key, _| key.relation != *relation),
        RowChange::Update { old_key, row, unchanged } => {
            let before = old_key.unwrap_or(row.key());
            if *unchanged != 0 && !state.contains_key(&before) {
                return false;
            }
            let mut row = row.clone();
            if let Some(old) = state.remove(&before) {
                row.fill_unchanged(*unchanged, &old);
            }
            state.insert(row.key(), row);
        }
    }
    true
}

/// What changed between two states, by key.
pub fn difference(old: &State, new: &State) -> BTreeMap<Key, Change> {
    let keys = old.keys().chain(new.keys());
    let changes = keys.map(|key| (*key, Change { old: old.get(key).cloned(), new: new.get(key).cloned() }));
    changes.filter(|(_, change)| change.old != change.new).collect()
}

/// Changes of a batch by key; fails if there are two of one key.
pub fn by_key(changes: &[Change]) -> BTreeMap<Key, Change> {
    let key = |change: &Change| change.new.as_ref().or(change.old.as_ref()).expect("a change of a row").key();
    let by_key: BTreeMap<Key, Change> = changes.iter().map(|change| (key(change), change.clone())).collect();
    assert_eq!(by_key.len(), changes.len(), "a key changes once: {changes:?}");
    by_key
}
