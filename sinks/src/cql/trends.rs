//! Lists of trends in the table `rows`, each of which is one value.
//!
//! ```text
//!   rows that come and go at t ─► the list as it was before, remembered or read once ─► the list after t ─► one put
//! ```
//!
//! A list is short, a hundred rows, and what leaves it makes room for another. As a row of its own each that leaves would be a
//! delete, which a cluster keeps for ten days (`gc_grace_seconds`) and passes by whenever the list is read, until it refuses to:
//! Cassandra at 100,000 of them. So a closed time that changes a list writes the whole of it over what was there. Nothing is
//! deleted, a list without rows is a value that has none, and a read is one row. In memory, and in a value, is what the
//! dataflow lists, of three lists.
//!
//! Why it is correct: as a count does, a list carries the time of its last change, and a time at or below that adds nothing.
//!
//! 1. *It is what the log says.* A list lies in one shard, which has its closed times in their order, and of each all changes of
//!    the list together. So a list of time t is a function of the log up to t, the same in whatever process, and its bytes are
//!    too. Two who write it for the same time, because a crash was between them or one has lost its place to the other and
//!    does not know it yet, write the same value with the same timestamp.
//! 2. *A start.* What is remembered goes with the process, and with a generation: it is the shard's (`ledger`). Who is first to
//!    change a list reads it before, with the consistency of writes, so finds whatever was acknowledged. It may be later than the
//!    progress: times up to its own come again and are part of it. One that was written and not acknowledged, and is not
//!    found, is beyond the progress: it comes again as well.
//! 3. *A write that fails* is not remembered: the same closed time can be applied again, to the list as it was before.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use feedmill_model::{Time, View, ViewRow};
use serde::{Deserialize, Serialize};

use super::cluster::Cluster;
use super::fault::Fault;
use super::spread::timestamp;
use super::statement::{Statement, Write};
use crate::layout;

/// The only key of a list among the rows of its owner. It has bytes, so that nothing rests on how a cluster takes one without.
pub(super) const KEY: &[u8] = b"list";

/// Which list: its view, and the owner of its rows.
pub(super) type Of = (View, i64);

/// The key of a row, and its value; `None`: it is gone.
pub(super) type Ranked = (Vec<u8>, Option<Vec<u8>>);

/// A list.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Trends {
    /// Closed times at or before it are part of it.
    time: Time,
    /// Keys and values of the layout, without the shard.
    rows: BTreeMap<Vec<u8>, Vec<u8>>,
}

/// The lists of a shard that were read or written.
#[derive(Debug, Default)]
pub(super) struct KnownTrends(HashMap<Of, Trends>);

impl KnownTrends {
    /// What lists are after `time`: those that do not have it yet.
    pub(super) async fn after(
        &mut self,
        cluster: &Cluster,
        time: Time,
        changes: BTreeMap<Of, Vec<Ranked>>,
    ) -> Result<Vec<(Of, Trends)>, Fault> {
        let mut after = Vec::with_capacity(changes.len());
        for (of, rows) in changes {
            let known = match self.0.entry(of) {
                Entry::Occupied(known) => known.into_mut(),
                Entry::Vacant(unknown) => unknown.insert(read(cluster, of).await?),
            };
            if known.time < time {
                after.push((of, known.after(time, rows)));
            }
        }
        Ok(after)
    }

    /// These are where the consistency level wants them.
    pub(super) fn learn(&mut self, written: Vec<(Of, Trends)>) {
        self.0.extend(written);
    }
}

impl Trends {
    fn after(&self, time: Time, changes: Vec<Ranked>) -> Self {
        let mut rows = self.rows.clone();
        for (key, value) in changes {
            match value {
                Some(value) => rows.insert(key, value),
                None => rows.remove(&key),
            };
        }
        Trends { time, rows }
    }

    /// What writes it.
    pub(super) fn put(&self, (view, owner): Of) -> Result<Write, Fault> {
        let value = Some(postcard::to_allocvec(self)?);
        Ok(Write::Row { owner, view: view.name(), key: KEY.to_vec(), value, at: timestamp(self.time) })
    }
}

/// The list as it is in the cluster.
async fn read(cluster: &Cluster, (view, owner): Of) -> Result<Trends, Fault> {
    let undecodable = || Fault::Undecodable { of: view.name() };
    let found = cluster.read(Statement::RowKeys, (owner, view.name(), vec![KEY.to_vec()])).await?;
    let row = found.maybe_first_row::<(&[u8], &[u8])>().map_err(|_| undecodable())?;
    row.map_or_else(|| Ok(Trends::default()), |(_, value)| postcard::from_bytes(value).map_err(|_| undecodable()))
}

/// The rows of a list, from its value.
pub(super) fn rows_of(view: View, value: &[u8]) -> Option<Vec<ViewRow>> {
    let Trends { rows, .. } = postcard::from_bytes(value).ok()?;
    // The layout has the shard before the key.
    let row = |(key, value): (&Vec<u8>, &Vec<u8>)| layout::row(view, &[&[0], key.as_slice()].concat(), value);
    rows.iter().map(|entry| row(entry).map(|(row, _)| row)).collect()
}

/// Whether the rows of a view are in lists that are one value each.
pub(super) const fn has_lists(view: View) -> bool {
    matches!(view, View::TrendingHashtags | View::TrendingTweets)
}
