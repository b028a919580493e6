//! Timelines as they are served, against SQL over the relations alone: no floor, no hot account, nothing derived.

use std::collections::BTreeMap;

use anyhow::Context;
use feedmill_model::{EntryKind, Parameters};
use feedmill_sinks::Views;
use feedmill_sinks::read::{HomeCursor, home_page};
use tokio_postgres::Client;

use super::Report;

/// Entries of each timeline that are compared.
const ENTRIES: usize = 100;
/// Entries a page: several pages a timeline, so that cursors are compared too.
const PAGE: usize = 40;
/// Viewers of one query.
const VIEWERS_A_QUERY: usize = 200;
/// Pages that hold nothing visible end a timeline that is mostly hidden.
const PAGES_MAX: usize = 1_000;

/// Compares the newest entries of `viewers`.
pub async fn compare(
    client: &Client,
    views: &dyn Views,
    parameters: &Parameters,
    viewers: &[i64],
) -> anyhow::Result<Report> {
    let mut report = Report { view: "home as served".to_owned(), ..Report::default() };
    let query = client.prepare(include_str!("served.sql")).await.context("the SQL of served timelines is refused")?;
    for viewers in viewers.chunks(VIEWERS_A_QUERY) {
        let mut expected: BTreeMap<i64, Vec<(i64, EntryKind)>> = BTreeMap::new();
        let following_max = i64::try_from(parameters.following_max)?;
        let rows = client.query(&query, &[&viewers, &(ENTRIES as i64), &following_max]).await;
        for row in rows.context("the SQL of served timelines failed")? {
            let kind = if row.try_get::<_, &str>(2)? == "r" { EntryKind::Retweet } else { EntryKind::Tweet };
            expected.entry(row.try_get(0)?).or_default().push((row.try_get(1)?, kind));
        }
        for viewer in viewers {
            let expected = expected.remove(viewer).unwrap_or_default();
            let served = served(views, parameters, *viewer).await?;
            report.rows += expected.len() as u64;
            difference(&mut report, *viewer, &expected, &served);
        }
    }
    report.note = Some(format!("{} timelines, the newest {ENTRIES} entries of each", viewers.len()));
    Ok(report)
}

async fn served(views: &dyn Views, parameters: &Parameters, viewer: i64) -> anyhow::Result<Vec<(i64, EntryKind)>> {
    let mut entries = Vec::new();
    let mut cursor = HomeCursor::default();
    for _ in 0..PAGES_MAX {
        let page = home_page(views, parameters, viewer, cursor, PAGE.min(ENTRIES - entries.len())).await?;
        entries.extend(page.items.iter().map(|item| (item.entry.id, item.entry.kind)));
        match page.next {
            Some(next) if entries.len() < ENTRIES => cursor = next,
            _ => break,
        }
    }
    Ok(entries)
}

fn difference(report: &mut Report, viewer: i64, expected: &[(i64, EntryKind)], served: &[(i64, EntryKind)]) {
    if expected == served {
        return;
    }
    let missing = expected.iter().filter(|entry| !served.contains(entry)).count();
    let extra = served.iter().filter(|entry| !expected.contains(entry)).count();
    report.missing += missing as u64;
    report.extra += extra as u64;
    if missing + extra == 0 {
        // The same entries in another order are a difference too.
        report.extra += 1;
    }
    if report.examples.len() < 5 {
        let first = expected.iter().zip(served).position(|(one, other)| one != other);
        let first = first.unwrap_or_else(|| expected.len().min(served.len()));
        report.examples.push(format!(
            "viewer {viewer}, place {first}: expected {:?}, served {:?}",
            expected.get(first),
            served.get(first)
        ));
    }
}
