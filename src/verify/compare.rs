//! Two sets of rows, `(key, value)` as text, compared without holding either as text.
//!
//! The store's rows are kept as 128-bit hashes, the SQL's rows stream past and strike them out. What is left of either
//! side is a difference; the store is read once more for the text of its part, so a comparison without differences
//! takes some 40 to 80 bytes a row. Two different rows of equal hash would hide a difference: at 2⁻¹²⁸ a pair, that is not a risk.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};

use anyhow::Context;
use futures::TryStreamExt;
use tokio_postgres::Client;

use super::Report;

/// Differences that are shown.
const EXAMPLES_MAX: usize = 5;

/// Hands each row of the store's side to the closure.
pub type Rows<'a> = &'a (dyn Fn(&mut dyn FnMut(&str, &str)) -> anyhow::Result<()> + Sync);

/// Compares the rows that `sql` gives (columns `key` and `value`) with `store`, leaving out what `counts` refuses.
pub async fn compare(
    client: &Client,
    view: &str,
    sql: &str,
    store: Rows<'_>,
    counts: &(dyn Fn(&str) -> bool + Sync),
) -> anyhow::Result<Report> {
    let hash = Hash::default();
    let mut left: HashMap<u128, u32> = HashMap::new();
    tokio::task::block_in_place(|| store(&mut |key, value| *left.entry(hash.of(key, value)).or_default() += 1))?;

    let mut report = Report { view: view.to_owned(), ..Report::default() };
    let rows = client.query_raw(sql, std::iter::empty::<&str>()).await;
    let rows = rows.with_context(|| format!("the SQL of the view {view} failed"))?;
    let mut rows = std::pin::pin!(rows);
    while let Some(row) = rows.try_next().await.with_context(|| format!("the SQL of the view {view} broke off"))? {
        let (key, value): (&str, &str) = (row.try_get(0)?, row.try_get(1)?);
        if !counts(key) {
            continue;
        }
        report.rows += 1;
        let hash = hash.of(key, value);
        match left.get_mut(&hash) {
            Some(1) => {
                left.remove(&hash);
            }
            Some(count) => *count -= 1,
            None => {
                report.missing += 1;
                example(&mut report, "missing", key, value);
            }
        }
    }
    report.extra = left.values().map(|count| u64::from(*count)).sum();
    if report.extra > 0 {
        tokio::task::block_in_place(|| {
            store(&mut |key, value| {
                if left.contains_key(&hash.of(key, value)) {
                    example(&mut report, "extra", key, value);
                }
            })
        })?;
    }
    Ok(report)
}

fn example(report: &mut Report, what: &str, key: &str, value: &str) {
    if report.examples.iter().filter(|line| line.starts_with(what)).count() < EXAMPLES_MAX {
        let line = format!("{what}: {key} = {value}").replace('\x1f', " | ");
        report.examples.push(line.chars().take(300).collect());
    }
}

/// Two independently seeded 64-bit hashes.
#[derive(Default)]
struct Hash(RandomState, RandomState);

impl Hash {
    fn of(&self, key: &str, value: &str) -> u128 {
        u128::from(self.0.hash_one((key, value))) << 64 | u128::from(self.1.hash_one((key, value)))
    }
}
