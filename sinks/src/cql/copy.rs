//! A copy of the stores as of one closed time, on this machine, to be read as the local stores are.
//!
//! ```text
//!   stores stand at T ─ all rows of each table ─► a local index, and a file of home timelines ─► FrozenViews
//! ```
//!
//! A cluster has no snapshots that one could read from, so the stores stand still while this reads all of them.
//!
//! Of a list that lies in several parts a key may be in more than one, and the later part counts: so parts are copied from
//! the first on.

use std::path::Path;

use feedmill_model::{
    Closed, Counter, Fact, Keyed, Op, Parameters, Phase, Position, RowSink, Shard, StoreError, View, ViewRow, shard_of,
};
use futures::TryStreamExt;
use scylla::deserialize::row::DeserializeRow;
use scylla::statement::unprepared::Statement;

use super::cluster::Cluster;
use super::fault::Fault;
use super::ledger::of_shard;
use super::place::{counter, fact_of, row_of, whole_row};
use super::read::{Homes, bound};
use super::record::{StoredRecord, add};
use super::spread::{FULL, List, MARK, Part};
use super::trends;
use crate::local::{Copying, Folder};
use crate::{FrozenViews, HomeRecord, LocalIndex, layout};

/// Rows of a page. A node refuses one for which it has to pass by 100,000 deletes, so it must not be long.
const PAGE_ROWS: i32 = 500;
/// Rows that are copied at a time.
const ROWS_AT_ONCE: usize = 50_000;
/// Records of home timelines that are.
const RECORDS_AT_ONCE: usize = 1_000;

type Listed = (String, i64, i64, Vec<u8>, Vec<u8>);
type Row = (i64, String, Vec<u8>, Vec<u8>);

/// Calls `each` with every row of a table.
async fn scan<R>(cluster: &Cluster, text: &str, mut each: impl FnMut(R) -> Result<(), Fault>) -> Result<(), Fault>
where
    R: for<'f, 'm> DeserializeRow<'f, 'm> + 'static,
{
    let failed = |problem: String| Fault::Refused { servers: cluster.settings.servers(), problem };
    let statement = Statement::new(text).with_page_size(PAGE_ROWS);
    let pager = cluster.session.query_iter(statement, ()).await.map_err(|error| failed(error.to_string()))?;
    let rows = pager.rows_stream::<R>().map_err(|error| failed(error.to_string()))?;
    let mut rows = rows.map_err(|error| failed(error.to_string()));
    while let Some(row) = rows.try_next().await? {
        each(row)?;
    }
    Ok(())
}

/// Calls `each` with everything that `counter` counts, and how often.
pub(super) async fn counts(
    cluster: &Cluster,
    wanted: Counter,
    each: &mut (dyn FnMut(i64, i64) + '_),
) -> Result<(), Fault> {
    // The cluster looks at all rows, but sends no others.
    let text = format!("SELECT owner, key, value FROM rows WHERE kind = '{}' ALLOW FILTERING", wanted.view().name());
    scan(cluster, &text, |(owner, key, value): (i64, Vec<u8>, Vec<u8>)| {
        if counter(&key) == Some(wanted) {
            let (count, _) = layout::of_two(&value).ok_or(Fault::Undecodable { of: wanted.view().name() })?;
            each(owner, count as i64);
        }
        Ok(())
    })
    .await
}

/// What a local index takes.
trait Copied: Keyed + Sized {
    fn put(index: &LocalIndex, closed: Closed<Self>) -> Result<(), StoreError>;
}

impl Copied for Fact {
    fn put(index: &LocalIndex, closed: Closed<Self>) -> Result<(), StoreError> {
        index.apply(&closed)
    }
}

impl Copied for ViewRow {
    /// A table has rows and reactions.
    fn put(index: &LocalIndex, closed: Closed<Self>) -> Result<(), StoreError> {
        let is_reaction = |(_, Op::Put(row) | Op::Delete(row) | Op::Add(row, _)): &(Shard, Op<ViewRow>)| {
            layout::view(row).phase() == Phase::Reactions
        };
        let (reactions, rows) = closed.ops.into_iter().partition(is_reaction);
        index.apply(&Closed { ops: rows, ..closed })?;
        index.apply_reactions(&Closed { ops: reactions, ..closed })
    }
}

/// Rows on their way into the local index.
struct Copy<'a> {
    index: &'a LocalIndex,
    bytes_left: u64,
}

impl Copy<'_> {
    fn take(&mut self, bytes: usize) -> Result<(), Fault> {
        let left = self.bytes_left.checked_sub(bytes as u64);
        self.bytes_left = left.ok_or_else(|| Fault::Local("there is no room for a copy of the stores".to_owned()))?;
        Ok(())
    }

    fn put<R: Copied>(&self, ops: &mut Vec<Op<R>>, is_last: bool) -> Result<(), Fault> {
        if ops.len() < ROWS_AT_ONCE && !is_last {
            return Ok(());
        }
        let shard = |op: &Op<R>| match op {
            Op::Put(row) | Op::Delete(row) | Op::Add(row, _) => row.shard(),
        };
        let mut ops: Vec<_> = std::mem::take(ops).into_iter().map(|op| (shard(&op), op)).collect();
        ops.sort_by_key(|(shard, _)| *shard);
        // A load: nothing but what is read of it counts.
        let position = Position { time: 1, ..Position::default() };
        let closed = Closed { position, shards: u64::MAX, loading: true, ops };
        R::put(self.index, closed).map_err(|error| Fault::Local(error.to_string()))
    }

    /// Copies a table of lists, its parts from the first on.
    async fn lists<R: Copied>(
        &mut self,
        cluster: &Cluster,
        table: &str,
        decode: impl Fn(List, i64, &[u8], &[u8]) -> Option<Option<R>>,
    ) -> Result<(), Fault> {
        let text = format!("SELECT kind, owner, part, key, value FROM {table}");
        let (mut depth, mut depth_max) = (0, 0);
        while depth <= depth_max {
            let mut ops = Vec::new();
            scan(cluster, &text, |(kind, owner, part, key, value): Listed| {
                // Directories, marks and the list of full parts are no rows.
                if part < 0 || key == MARK || kind == FULL {
                    return Ok(());
                }
                let own = Part::of_number(part).depth();
                depth_max = depth_max.max(own);
                if own != depth {
                    return Ok(());
                }
                let undecodable = Fault::Undecodable { of: "lists" };
                let list = List::named(&kind).ok_or(Fault::Undecodable { of: "lists" })?;
                self.take(key.len() + value.len())?;
                ops.extend(decode(list, owner, &key, &value).ok_or(undecodable)?.map(Op::Put));
                self.put(&mut ops, false)
            })
            .await?;
            self.put(&mut ops, true)?;
            depth += 1;
        }
        Ok(())
    }

    async fn rows(&mut self, cluster: &Cluster) -> Result<(), Fault> {
        let mut ops = Vec::new();
        scan(cluster, "SELECT owner, kind, key, value FROM rows", |(owner, kind, key, value): Row| {
            let undecodable = || Fault::Undecodable { of: "rows" };
            let view = View::ALL.into_iter().find(|view| view.name() == kind).ok_or_else(undecodable)?;
            self.take(key.len() + value.len())?;
            if trends::has_lists(view) {
                ops.extend(trends::rows_of(view, &value).ok_or_else(undecodable)?.into_iter().map(Op::Put));
                return self.put(&mut ops, false);
            }
            let (row, count) = row_of(view, owner, &key, &value).ok_or_else(undecodable)?;
            let is_count = matches!(view, View::Counts | View::LikeCounts);
            ops.push(if is_count { Op::Add(row, count) } else { Op::Put(row) });
            self.put(&mut ops, false)
        })
        .await?;
        self.put(&mut ops, true)
    }
}

/// Copies everything into the folder `dir`.
pub(super) async fn freeze(
    cluster: &Cluster,
    homes: Homes,
    parameters: &Parameters,
    position: Position,
    dir: &Path,
    bytes_max: u64,
) -> Result<FrozenViews, StoreError> {
    let failed = |fault: Fault| fault.store("CQL", "copy what it holds");
    let io = |error: std::io::Error| failed(Fault::Local(error.to_string()));
    let folder = Folder::anew(dir.join(format!("cql-copy-{}", std::process::id()))).map_err(io)?;
    let index = LocalIndex::open(folder.path()).map_err(|error| failed(Fault::Local(error.to_string())))?;
    let mut copy = Copy { index: &index, bytes_left: bytes_max };
    let fact = |_, owner, key: &[u8], value: &[u8]| fact_of(owner, key, value).map(Some);
    copy.lists::<Fact>(cluster, "facts", fact).await.map_err(failed)?;
    copy.lists::<ViewRow>(cluster, "lists", whole_row).await.map_err(failed)?;
    copy.rows(cluster).await.map_err(failed)?;
    let home = copy_homes(cluster, homes, parameters, position, dir, copy.bytes_left).await?;
    Ok(FrozenViews::of(&index, home, position, Some(folder)))
}

async fn copy_homes(
    cluster: &Cluster,
    homes: Homes,
    parameters: &Parameters,
    position: Position,
    dir: &Path,
    bytes_max: u64,
) -> Result<crate::HomeCopy, StoreError> {
    let failed = |fault: Fault| fault.store("CQL", "copy home timelines");
    let progress = homes.rows(cluster).await.map_err(failed)?;
    let mut copying = Copying::begin(dir, bytes_max, parameters.clone())?;
    let (mut records, mut of) = (Vec::new(), None::<(i64, StoredRecord)>);
    let mut finish = |of: Option<(i64, StoredRecord)>, is_last: bool| {
        if let Some((viewer, stored)) = of
            && let Some((own, _)) = stored.record
            && let Some(bound) = bound(of_shard(&progress, shard_of(viewer)), parameters)
        {
            let floor = own.max(bound);
            let entries = stored.entries.into_iter().take_while(|entry| entry.id() > floor).collect();
            let mut hot = stored.hot;
            hot.sort_unstable();
            records.push((viewer, HomeRecord { floor, hot, entries }));
        }
        if records.len() >= RECORDS_AT_ONCE || is_last {
            let pushed = copying.push_records(std::mem::take(&mut records), position.time);
            pushed.map_err(|error| Fault::Local(error.to_string()))?;
        }
        Ok(())
    };
    type Stored = (i64, i8, i64, Option<i64>, Option<i64>);
    scan(cluster, "SELECT viewer, kind, id, floor, time FROM home", |(viewer, kind, id, floor, time): Stored| {
        if of.as_ref().is_none_or(|(current, _)| *current != viewer) {
            finish(of.replace((viewer, StoredRecord::default())), false)?;
        }
        match &mut of {
            Some((_, stored)) => add(stored, kind, id, floor, time),
            None => Ok(()),
        }
    })
    .await
    .and_then(|()| finish(of, true))
    .map_err(failed)?;
    Ok(copying.finish())
}
