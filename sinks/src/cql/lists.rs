//! Reads lists that may lie in several parts: see [`super::spread`].

use std::collections::{BTreeMap, HashMap};

use futures::FutureExt;
use futures::future::{BoxFuture, try_join};

use super::cluster::Cluster;
use super::fault::Fault;
use super::spread::{List, MARK, Part, Spread};
use super::statement::{KEYS_MAX, Statement};

/// Keys that are asked for in one request, beside the mark.
const KEYS_AT_ONCE: usize = KEYS_MAX - 1;
/// Parts of a directory that are read at a time.
const PARTS_AT_ONCE: i32 = 16;

type Row = (Vec<u8>, Vec<u8>);
type Found = HashMap<Vec<u8>, Vec<u8>>;

/// After every key: none begins with so many bytes of 0xFF.
pub(super) const END: [u8; 18] = [0xFF; 18];

/// Reads a list of an owner, or several.
#[derive(Clone, Copy)]
pub(super) struct Lists<'a>(pub(super) &'a Cluster);

impl<'a> Lists<'a> {
    /// The values of those of the keys that are there.
    pub(super) async fn get(self, list: List, owner: i64, keys: Vec<Vec<u8>>) -> Result<Found, Fault> {
        self.get_from(list, owner, Part::FIRST, keys).await
    }

    fn get_from(self, list: List, owner: i64, part: Part, keys: Vec<Vec<u8>>) -> BoxFuture<'a, Result<Found, Fault>> {
        let get = async move {
            let chunks: Vec<Vec<Vec<u8>>> = keys.chunks(KEYS_AT_ONCE).map(with_mark).collect();
            let read = |keys| self.0.page(Statement::keys(list.table()), (list.name(), owner, part.number(), keys));
            let mut found = Found::new();
            for rows in self.0.each(chunks, read).await? {
                found.extend(decoded(list, &rows)?);
            }
            if found.remove(MARK.as_slice()).is_none() {
                return Ok(found);
            }
            let mut behind: HashMap<Part, Vec<Vec<u8>>> = HashMap::new();
            for key in keys {
                if let Some(part) = part.behind(list, &key) {
                    behind.entry(part).or_default().push(key);
                }
            }
            // What was put later counts.
            let later = self.0.each(behind, |(part, keys)| self.get_from(list, owner, part, keys)).await?;
            found.extend(later.into_iter().flatten());
            Ok(found)
        };
        get.boxed()
    }

    /// The first rows with keys after `from` and before `to`, at most `limit`.
    pub(super) async fn page(
        self,
        list: List,
        owner: i64,
        from: Vec<u8>,
        to: Vec<u8>,
        limit: usize,
    ) -> Result<Vec<Row>, Fault> {
        self.page_from(list, owner, Part::FIRST, from, to, limit).await
    }

    fn page_from(
        self,
        list: List,
        owner: i64,
        part: Part,
        from: Vec<u8>,
        to: Vec<u8>,
        limit: usize,
    ) -> BoxFuture<'a, Result<Vec<Row>, Fault>> {
        let page = async move {
            let (mut rows, is_full) = if from.is_empty() {
                // The mark comes first.
                let mut rows = self.rows(list, owner, part.number(), &from, &to, limit.saturating_add(1)).await?;
                let is_full = rows.first().is_some_and(|(key, _)| *key == MARK);
                if is_full {
                    rows.remove(0);
                }
                (rows, is_full)
            } else {
                let rows = self.rows(list, owner, part.number(), &from, &to, limit);
                try_join(rows, self.is_full(list, owner, part)).await?
            };
            rows.truncate(limit);
            if !is_full {
                return Ok(rows);
            }
            let later = self.behind(list, owner, part, &from, &to, limit).await?;
            Ok(merged([rows, later], limit))
        };
        page.boxed()
    }

    /// The first rows in the parts behind one that is full.
    async fn behind(
        self,
        list: List,
        owner: i64,
        part: Part,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, Fault> {
        if let Some(Spread::Hash(_)) = part.spread(list) {
            let parts = self.parts(list, owner, part, &[], &END, i32::MAX).await?;
            let page = |part| self.page_from(list, owner, part, from.to_vec(), to.to_vec(), limit);
            return Ok(merged(self.0.each(parts, page).await?, limit));
        }
        let (Some(first), Some(last)) = (part.behind(list, from), part.behind(list, to)) else { return Ok(Vec::new()) };
        let mut rows = Vec::new();
        // Numbers are greater than 0, and the keys of a directory are those that come after another.
        let mut after = (first.number() - 1).to_be_bytes();
        let end = (last.number() + 1).to_be_bytes();
        while rows.len() < limit {
            let parts = self.parts(list, owner, part, &after, &end, PARTS_AT_ONCE).await?;
            let Some(last) = parts.last() else { break };
            after = last.number().to_be_bytes();
            for part in parts {
                let missing = limit.saturating_sub(rows.len());
                if missing == 0 {
                    break;
                }
                rows.extend(self.page_from(list, owner, part, from.to_vec(), to.to_vec(), missing).await?);
            }
        }
        Ok(rows)
    }

    /// The directory of a part: what is behind it.
    async fn parts(
        self,
        list: List,
        owner: i64,
        part: Part,
        after: &[u8],
        end: &[u8],
        limit: i32,
    ) -> Result<Vec<Part>, Fault> {
        let found = self.rows(list, owner, part.directory(), after, end, limit as usize).await?;
        let part = |(key, _): Row| {
            let number = key.try_into().map(i64::from_be_bytes);
            number.map(Part::of_number).map_err(|_| Fault::Undecodable { of: list.name() })
        };
        found.into_iter().map(part).collect()
    }

    async fn rows(
        self,
        list: List,
        owner: i64,
        part: i64,
        from: &[u8],
        to: &[u8],
        limit: usize,
    ) -> Result<Vec<Row>, Fault> {
        let limit = i32::try_from(limit).unwrap_or(i32::MAX);
        let found = self.0.page(Statement::page(list.table()), (list.name(), owner, part, from, to, limit)).await?;
        decoded(list, &found)
    }

    async fn is_full(self, list: List, owner: i64, part: Part) -> Result<bool, Fault> {
        let values = (list.name(), owner, part.number(), vec![MARK.to_vec()]);
        Ok(self.0.page(Statement::keys(list.table()), values).await?.rows_num() > 0)
    }
}

fn with_mark(keys: &[Vec<u8>]) -> Vec<Vec<u8>> {
    keys.iter().cloned().chain([MARK.to_vec()]).collect()
}

fn decoded(list: List, found: &scylla::response::query_result::QueryRowsResult) -> Result<Vec<Row>, Fault> {
    let undecodable = || Fault::Undecodable { of: list.name() };
    let rows = found.rows::<(Vec<u8>, Vec<u8>)>().map_err(|_| undecodable())?;
    rows.map(|row| row.map_err(|_| undecodable())).collect()
}

/// The first rows of several lists in the order of their keys; of one key that of the later list.
fn merged(lists: impl IntoIterator<Item = Vec<Row>>, limit: usize) -> Vec<Row> {
    let rows: BTreeMap<Vec<u8>, Vec<u8>> = lists.into_iter().flatten().collect();
    rows.into_iter().take(limit).collect()
}
