//! Many documents in one request, and what becomes of each.
//!
//! ```text
//!   lines ─► _bulk ─► a status each ─┬─ done: 2xx, and 409: a later version is there, or this one is
//!     ▲                              ├─ again: 429, 503 and whatever else may pass ─► after a pause
//!     └──────────────────────────────┘
//!                                    └─ refused: 400, the document does not fit ─► told, and set aside
//! ```
//!
//! Why it is correct: each line is of one id and one version, and the server keeps the greatest version of an id, whatever
//! comes first. So requests may be under way together, be sent again, and come late. An answer is read item by item: that
//! of the request says nothing of them.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use feedmill_model::Time;
use serde::Deserialize;

use super::client::Failure;
use super::standing::Server;
use super::state::{Fault, Shared, insist};

/// Only what is looked at of the answer.
const ANSWER: &str = "filter_path=errors,items.*.status,items.*.error.type,items.*.error.reason";
/// How much of a reason is kept.
const REASON_CHARS_MAX: usize = 500;

/// One line of a bulk, with what it does.
#[derive(Clone, Debug)]
pub(super) struct Item {
    /// The document.
    pub key: String,
    /// Its version.
    pub time: Time,
    /// Action and document as they are sent.
    pub lines: Vec<u8>,
}

/// A document that does not fit.
#[derive(Clone, Debug)]
pub(super) struct Refused {
    pub item: Item,
    pub reason: String,
}

#[derive(Debug, Deserialize)]
struct Answer {
    errors: bool,
    #[serde(default)]
    items: Vec<std::collections::HashMap<String, Status>>,
}

#[derive(Debug, Deserialize)]
struct Status {
    status: u16,
    error: Option<Problem>,
}

#[derive(Debug, Deserialize)]
struct Problem {
    r#type: Option<String>,
    reason: Option<String>,
}

/// What becomes of an item.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Done,
    Again(String),
    Refused(String),
    Gone,
}

impl Status {
    fn verdict(self) -> Verdict {
        let problem = self.error.map(|Problem { r#type, reason }| {
            format!("{}: {}", r#type.unwrap_or_default(), reason.unwrap_or_default())
        });
        let told = || -> String {
            let told = format!("{} {}", self.status, problem.clone().unwrap_or_default());
            told.chars().take(REASON_CHARS_MAX).collect()
        };
        match self.status {
            200..=299 | 409 => Verdict::Done,
            404 => Verdict::Gone,
            400 | 413 => Verdict::Refused(told()),
            _ => Verdict::Again(told()),
        }
    }
}

/// Sends `items` into `index` until each is there or was refused.
pub(super) async fn deliver(
    shared: &Shared,
    server: &Server,
    index: &str,
    items: Vec<Item>,
) -> Result<Vec<Refused>, Fault> {
    let path = format!("{index}/_bulk?{ANSWER}");
    let mut items: VecDeque<Item> = items.into();
    let mut at_once = items.len();
    let mut refused = Vec::new();
    let mut pause = Pause::default();
    while !items.is_empty() {
        let count = at_once.clamp(1, items.len());
        let body: Vec<u8> = items.iter().take(count).flat_map(|item| item.lines.iter().copied()).collect();
        let answer = match server.client.lines(&path, Bytes::from(body)).await {
            Ok(answer) => answer,
            Err(Failure::Passing(reason)) => {
                pause.wait(shared, reason).await;
                continue;
            }
            // Perhaps a part of it fits; of one alone it is known.
            Err(Failure::TooLarge(_) | Failure::Refused(_)) if count > 1 => {
                at_once = count / 2;
                continue;
            }
            Err(Failure::TooLarge(reason) | Failure::Refused(reason) | Failure::Conflict(reason)) => {
                refused.extend(items.pop_front().map(|item| Refused { item, reason }));
                continue;
            }
            Err(Failure::Missing(_)) => return Err(Fault::Gone(index.to_owned())),
        };
        let answer: Answer = match serde_json::from_slice(&answer) {
            Ok(answer) => answer,
            Err(error) => {
                pause.wait(shared, format!("the answer to a bulk cannot be read: {error}")).await;
                continue;
            }
        };
        let sent: Vec<Item> = items.drain(..count).collect();
        if answer.items.len() != sent.len() {
            items.extend(sent);
            pause.wait(shared, format!("{} of {count} items of a bulk were answered", answer.items.len())).await;
            continue;
        }
        if !answer.errors {
            shared.goes_on();
            continue;
        }
        let mut again = None;
        for (item, status) in sent.into_iter().zip(answer.items) {
            let verdict = status.into_values().next().map_or(Verdict::Done, Status::verdict);
            match verdict {
                Verdict::Done => {}
                Verdict::Again(reason) => {
                    again = Some(reason);
                    items.push_back(item);
                }
                Verdict::Refused(reason) => refused.push(Refused { item, reason }),
                Verdict::Gone => return Err(Fault::Gone(index.to_owned())),
            }
        }
        match again {
            Some(reason) => pause.wait(shared, reason).await,
            None => shared.goes_on(),
        }
    }
    Ok(refused)
}

/// Sends lines of which each item may fail: they are sent again another time.
pub(super) async fn send_once(shared: &Shared, server: &Server, index: &str, lines: Vec<u8>) -> Result<u64, Fault> {
    let path = format!("{index}/_bulk?{ANSWER}");
    let lines = Bytes::from(lines);
    let answer = insist(shared, || server.client.lines(&path, lines.clone())).await?;
    let done = |status: &Status| (200..300).contains(&status.status);
    let answer: Option<Answer> = serde_json::from_slice(&answer).ok();
    Ok(answer.map_or(0, |answer| {
        answer.items.iter().flat_map(|item| item.values()).filter(|item| done(item)).count() as u64
    }))
}

/// Pauses that grow.
pub(super) struct Pause(Duration);

impl Pause {
    const FIRST: Duration = Duration::from_millis(100);
    const LAST: Duration = Duration::from_secs(5);

    /// Waits, and tells why.
    pub async fn wait(&mut self, shared: &Shared, reason: String) {
        shared.waits(reason);
        metrics::counter!("feedmill_search_retries_total").increment(1);
        tokio::time::sleep(self.0).await;
        self.0 = (self.0 * 2).min(Self::LAST);
    }
}

impl Default for Pause {
    fn default() -> Self {
        Pause(Self::FIRST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c49_each_status_has_its_verdict() {
        let of = |status| Status { status, error: None }.verdict();
        for done in [200, 201, 409] {
            assert_eq!(of(done), Verdict::Done, "{done}");
        }
        for again in [401, 403, 429, 500, 502, 503, 504] {
            assert!(matches!(of(again), Verdict::Again(_)), "{again}");
        }
        assert!(matches!(of(400), Verdict::Refused(_)));
        assert_eq!(of(404), Verdict::Gone);
        let answer = r#"{"errors":true,"items":[{"index":{"status":400,"error":{"type":"a","reason":"b"}}},{"index":{"status":201}}]}"#;
        let answer: Answer = serde_json::from_str(answer).unwrap();
        let verdicts: Vec<Verdict> =
            answer.items.into_iter().flat_map(|item| item.into_values().map(Status::verdict)).collect();
        assert_eq!(verdicts, [Verdict::Refused("400 a: b".into()), Verdict::Done]);
    }
}
