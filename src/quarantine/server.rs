//! The answers, in the running process.

use anyhow::{Context, ensure};
use feedmill_connectors::postgres::Field;
use feedmill_ingest::{Log, QuarantineId, Quarantined, Retried};
use serde_json::Value;
use tokio::sync::mpsc;

use super::{Ask, Told};
use crate::control::Answer;
use crate::up::now_ms;

/// Rows that are read, or tried again, at a time.
const PAGE: usize = 500;

/// Does what is asked, and sends a line for each row.
pub async fn answer(log: &Log, ask: Ask, answers: mpsc::Sender<Answer>) -> anyhow::Result<()> {
    let log = log.clone();
    // The log blocks.
    tokio::task::spawn_blocking(move || {
        let send = |told: Told| {
            answers.blocking_send(Answer::Quarantined(Box::new(told))).ok().context("whoever asked has gone away")
        };
        match ask {
            Ask::List { after, limit } => list(&log, after, limit, &send),
            Ask::Show(id) => {
                let id: QuarantineId = id.parse()?;
                let row = log.quarantined(id)?.with_context(|| format!("{id} is not in quarantine"))?;
                send(told(id, &row))
            }
            Ask::Retry(ids) => retry(&log, &ids, &send),
            Ask::Drop(id) => {
                let id: QuarantineId = id.parse()?;
                ensure!(log.drop_quarantined(id)?, "{id} is not in quarantine");
                send(Told { id: id.to_string(), state: "dropped".to_owned(), ..Told::default() })
            }
        }
    })
    .await?
}

fn list(
    log: &Log,
    after: Option<String>,
    limit: usize,
    send: &impl Fn(Told) -> anyhow::Result<()>,
) -> anyhow::Result<()> {
    let mut after = after.map(|id| id.parse()).transpose()?;
    let mut left = limit;
    while left > 0 {
        let page = log.quarantine(after, left.min(PAGE))?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        left -= page.len();
        for (id, row) in &page {
            send(told(*id, row))?;
        }
    }
    Ok(())
}

fn retry(log: &Log, ids: &[String], send: &impl Fn(Told) -> anyhow::Result<()>) -> anyhow::Result<()> {
    let named = ids.iter().map(|id| id.parse()).collect::<Result<Vec<QuarantineId>, _>>()?;
    for page in named.chunks(PAGE) {
        retry_page(log, page, send)?;
    }
    let mut after = None;
    while named.is_empty() {
        let page = log.quarantine(after, PAGE)?;
        let Some((last, _)) = page.last() else { break };
        after = Some(*last);
        let page: Vec<QuarantineId> = page.iter().map(|(id, _)| *id).collect();
        retry_page(log, &page, send)?;
    }
    Ok(())
}

fn retry_page(log: &Log, ids: &[QuarantineId], send: &impl Fn(Told) -> anyhow::Result<()>) -> anyhow::Result<()> {
    for (id, outcome) in log.retry_quarantined(ids, now_ms())? {
        let (state, reason) = match outcome {
            Retried::Back => ("back", None),
            Retried::Still(reason) => ("held", Some(reason)),
            Retried::Unknown => ("unknown", Some("it is not in quarantine".to_owned())),
        };
        send(Told { id: id.to_string(), state: state.to_owned(), reason, ..Told::default() })?;
    }
    Ok(())
}

fn told(id: QuarantineId, row: &Quarantined) -> Told {
    let columns = row.row.columns.iter().filter_map(|(name, field)| {
        let value = match field {
            Field::Unsent => return None,
            Field::Null => Value::Null,
            Field::Text(text) => Value::String(text.clone()),
            Field::Bytes(bytes) => Value::String(format!("{bytes:02x?}")),
        };
        Some((name.clone(), value))
    });
    Told {
        id: id.to_string(),
        state: "held".to_owned(),
        reason: Some(row.row.reason.clone()),
        operation: Some(format!("{:?}", row.row.operation).to_lowercase()),
        time_ms: Some(row.position.time),
        lsn: Some(row.position.lsn.to_string()),
        columns: columns.collect(),
        row: row.readable.as_ref().and_then(|row| serde_json::to_value(row).ok()),
    }
}
