//! The task that writes.
//!
//! ```text
//!   backlog ─ pieces ─► lines with versions ─► bulks, some at a time ─┐ all answered
//!                                                                     ▼
//!                    found ◄─ read by the alias ◄─ progress ◄──── refresh
//! ```
//!
//! Why it is correct: progress is written when every line that it covers was answered, and an answer means that the line is
//! on the server's disk, or that a later version is. What is found is told after a refresh, and so is never less than what
//! is told.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_model::{Position, SHARDS, Time, failpoint};
use serde_json::{Value, json};
use tokio::task::JoinSet;

use super::ElasticSettings;
use super::backlog::{Change, Piece};
use super::bulk::{Item, Refused, deliver, send_once};
use super::client::{Method, at, hits};
use super::layout;
use super::standing::{FolderCopy, REFUSED_MAX, Server, Serving, Standing, Version};
use super::state::{Fault, Shared, insist};
use crate::search::{Reached, least, reaches};

/// Between two commits.
const COMMIT_EVERY: Duration = Duration::from_millis(800);
/// Bulks under way.
const BULKS_MAX: usize = 3;
/// Pieces that are taken at once.
const PIECES_MAX: usize = 16;
/// Between two looks at what may be swept, and tombstones that go at once.
const SWEEP_EVERY: Duration = Duration::from_secs(30);
const SWEPT_MAX: usize = 1_000;

/// What the task has taken.
struct Taken {
    begin: Option<Time>,
    pieces: Vec<Piece>,
    /// So many were taken in all.
    pieces_taken: u64,
    /// Somebody waits for all of them to be durable.
    asked: bool,
}

/// The task that writes.
pub(super) struct Writer {
    pub shared: Arc<Shared>,
    pub server: Server,
    pub settings: ElasticSettings,
    pub copy: FolderCopy,
    pub standing: Standing,
    /// Of the standing on the server; `None` while the server was not there and the copy is all there is.
    pub version: Option<Version>,
    /// What the task was handed, and has sent.
    pub reached: Reached,
    /// What is written is read from this time on.
    pub due: Time,
    /// Documents that were refused, and when.
    pub refused: BTreeMap<String, Time>,
}

/// What is under way between two commits.
struct Round {
    bulks: JoinSet<Result<Vec<Refused>, Fault>>,
    items: Vec<Item>,
    bytes: usize,
    /// Documents that were refused, and have come again.
    again: BTreeSet<String>,
    refused: Vec<Refused>,
}

impl Round {
    fn new() -> Self {
        Round { bulks: JoinSet::new(), items: Vec::new(), bytes: 0, again: BTreeSet::new(), refused: Vec::new() }
    }

    /// Waits until at most `left` bulks are under way.
    async fn wait(&mut self, left: usize) -> Result<(), Fault> {
        while self.bulks.len() > left {
            match self.bulks.join_next().await {
                Some(Ok(outcome)) => self.refused.extend(outcome?),
                Some(Err(_)) => return Err(Fault::Ended),
                None => {}
            }
        }
        Ok(())
    }
}

impl Writer {
    /// Writes until the end.
    pub async fn run(mut self) {
        let shared = Arc::clone(&self.shared);
        let outcome = self.write().await;
        if let Err(fault) = &outcome {
            tracing::error!("the search index cannot be written any more: {fault}");
        }
        shared.fail(outcome.err().unwrap_or(Fault::Ended));
    }

    async fn write(&mut self) -> Result<(), Fault> {
        if self.version.is_none() {
            self.find_again().await?;
        }
        self.find_refused().await?;
        let mut round = Round::new();
        let (mut committed, mut changed) = (None::<Instant>, false);
        let mut swept = Swept::default();
        loop {
            let due = committed.map_or_else(Instant::now, |committed| committed + COMMIT_EVERY);
            // How far search is, is written also where nothing changes: who reads in another process knows only that.
            let moved = self.standing.is_served() && self.standing.reached() != self.reached;
            let Some(taken) = self.take((changed || moved).then_some(due)).await? else { return Ok(()) };
            if let Some(due) = taken.begin {
                round = Round::new();
                self.begin(due).await?;
                changed = false;
            }
            for piece in taken.pieces {
                changed |= !piece.changes.is_empty();
                self.put(piece, &mut round).await?;
            }
            if taken.asked || ((changed || moved) && Instant::now() >= due) {
                self.commit(&mut round, taken.pieces_taken, changed).await?;
                (committed, changed) = (Some(Instant::now()), false);
                if swept.is_due(SWEEP_EVERY.min(self.settings.sweep_after)) {
                    let count = self.sweep().await?;
                    swept.note(count);
                    // They are found until the next refresh.
                    changed = count > 0;
                }
            } else if !changed && self.standing.is_served() {
                self.shared.found.send_replace(least(&self.reached));
            }
        }
    }

    /// Waits for something to do, at most until `until`; `None` at the end. What is taken at `until` may be nothing.
    async fn take(&self, until: Option<Instant>) -> Result<Option<Taken>, Fault> {
        loop {
            {
                let mut state = self.shared.state.lock();
                if state.end {
                    return Ok(None);
                }
                let begin = state.begin.take();
                state.taken += u64::from(begin.is_some());
                let mut pieces = Vec::new();
                while pieces.len() < PIECES_MAX {
                    match state.backlog.pop().map_err(|error| Fault::Backlog(error.to_string()))? {
                        Some(piece) => pieces.push(piece),
                        None => break,
                    }
                }
                metrics::gauge!("feedmill_search_waiting_bytes").set(state.backlog.bytes() as f64);
                state.taken += pieces.len() as u64;
                let asked = state.asked > state.durable && state.taken >= state.asked;
                let is_due = until.is_some_and(|until| Instant::now() >= until);
                if begin.is_some() || !pieces.is_empty() || asked || is_due {
                    self.shared.moved.notify_all();
                    return Ok(Some(Taken { begin, pieces, pieces_taken: state.taken, asked }));
                }
            }
            let told = self.shared.work.notified();
            match until {
                Some(until) => drop(tokio::time::timeout_at(until.into(), told).await),
                None => told.await,
            }
        }
    }

    /// Sends what is in `piece`, or keeps it until more has come.
    async fn put(&mut self, piece: Piece, round: &mut Round) -> Result<(), Fault> {
        for change in piece.changes {
            let (key, document) = match change {
                Change::Put(document) => (layout::key(&document), layout::indexed(&document)),
                Change::Delete(key) => (key, layout::tombstone(piece.time)),
            };
            if self.refused.contains_key(&key) {
                round.again.insert(key.clone());
            }
            let action = json!({ "index": { "_id": key, "version": piece.time, "version_type": "external" } });
            let lines = format!("{action}\n{document}\n").into_bytes();
            round.bytes += lines.len();
            round.items.push(Item { key, time: piece.time, lines });
            if round.items.len() >= self.settings.bulk_documents || round.bytes >= self.settings.bulk_bytes {
                self.send(round).await?;
            }
        }
        if let Some((position, shards)) = piece.reaches {
            reaches(&mut self.reached, shards, position);
        }
        Ok(())
    }

    async fn send(&self, round: &mut Round) -> Result<(), Fault> {
        if round.items.is_empty() {
            return Ok(());
        }
        round.wait(BULKS_MAX - 1).await?;
        round.bytes = 0;
        let items = std::mem::take(&mut round.items);
        metrics::counter!("feedmill_search_documents_total").increment(items.len() as u64);
        let (shared, server, index) = (Arc::clone(&self.shared), self.server.clone(), self.standing.writing.clone());
        round.bulks.spawn(async move { deliver(&shared, &server, &index, items).await });
        Ok(())
    }

    /// Makes all that was put durable, with how far that is, and has it found.
    async fn commit(&mut self, round: &mut Round, pieces: u64, changed: bool) -> Result<(), Fault> {
        failpoint!("search_commit_before");
        let began = Instant::now();
        self.send(round).await?;
        round.wait(0).await?;
        self.set_aside(round).await?;
        let reached = least(&self.reached);
        if changed && reached.is_some() {
            self.refresh().await?;
        }
        if reached.is_some() && self.standing.reached() != self.reached {
            self.standing.reach(&self.reached);
            if let (true, Some(serving), Some(position)) =
                (self.standing.is_served(), &mut self.standing.serving, reached)
            {
                serving.position = position;
            }
            self.note().await?;
        }
        failpoint!("search_commit_after");
        if reached.is_some_and(|reached| reached.time >= self.due) && !self.standing.is_served() {
            self.serve().await?;
        }
        if self.standing.is_served() {
            self.shared.found.send_replace(reached);
        }
        metrics::histogram!("feedmill_search_commit_seconds").record(began.elapsed().as_secs_f64());
        let mut state = self.shared.state.lock();
        // Somebody may have it begun anew meanwhile.
        if state.begin.is_none() {
            state.committed = reached;
            state.durable = state.durable.max(pieces);
        }
        drop(state);
        self.shared.moved.notify_all();
        Ok(())
    }

    async fn refresh(&self) -> Result<(), Fault> {
        let path = format!("{}/_refresh", self.standing.writing);
        insist(&self.shared, || self.server.client.ask(Method::Post, &path, &Value::Null)).await.map(drop)
    }

    /// Writes the standing to the server, and then its copy.
    async fn note(&mut self) -> Result<(), Fault> {
        let (before, standing) = (self.version, &self.standing);
        let version = insist(&self.shared, || self.server.write(standing, before)).await?;
        self.version = Some(version);
        if let Err(error) = self.copy.write(&self.standing) {
            tracing::warn!(
                "the copy of how far search is could not be written: {error}; a start without the server waits"
            );
        }
        Ok(())
    }

    /// Begins a generation that has nothing.
    async fn begin(&mut self, due: Time) -> Result<(), Fault> {
        let index = insist(&self.shared, || self.server.make()).await?;
        self.standing = Standing::new(&self.standing.owner, index, self.standing.serving.clone());
        (self.reached, self.due) = ([None; SHARDS], due);
        self.note().await?;
        self.forget_refused(&self.refused.keys().cloned().collect()).await?;
        insist(&self.shared, || self.server.tidy(&self.standing)).await
    }

    /// What is written is read from now on.
    async fn serve(&mut self) -> Result<(), Fault> {
        let (index, position) = (self.standing.writing.clone(), least(&self.reached).unwrap_or_default());
        self.refresh().await?;
        insist(&self.shared, || self.server.serve(&index)).await?;
        self.standing.serving = Some(Serving { index, position });
        self.note().await?;
        insist(&self.shared, || self.server.tidy(&self.standing)).await
    }

    /// The server was away at the start: now that it is there, it must have what the copy says.
    async fn find_again(&mut self) -> Result<(), Fault> {
        insist(&self.shared, || self.server.prepare()).await?;
        let index = &self.standing.writing;
        let found = insist(&self.shared, || self.server.look()).await?;
        let known = insist(&self.shared, || self.server.generations()).await?;
        let (is, version) = found.ok_or_else(|| Fault::Gone(index.clone()))?;
        let has = |(is, ours): (&Option<Position>, &Option<Position>)| match (is, ours) {
            (Some(is), Some(ours)) => is.time >= ours.time,
            (_, ours) => ours.is_none(),
        };
        if is.owner != self.standing.owner {
            return Err(Fault::Another(self.server.names.alias()));
        }
        if is.writing != *index || !known.contains(index) || !is.reached().iter().zip(&self.standing.reached()).all(has)
        {
            return Err(Fault::Gone(index.clone()));
        }
        // What it has beyond the copy is written once more, and is the same.
        self.version = Some(version);
        Ok(())
    }

    async fn find_refused(&mut self) -> Result<(), Fault> {
        let index = &self.standing.writing;
        self.refused = insist(&self.shared, || self.server.refused(index)).await?.into_iter().collect();
        self.shared.refused(self.refused.len());
        Ok(())
    }

    /// Keeps what was refused where it can be looked at, before progress passes it; and lets go of what was not refused
    /// again.
    async fn set_aside(&mut self, round: &mut Round) -> Result<(), Fault> {
        let mut again = std::mem::take(&mut round.again);
        let refused = std::mem::take(&mut round.refused);
        let mut kept = Vec::new();
        for Refused { item, reason } in &refused {
            again.remove(&item.key);
            let document = item.lines.split(|byte| *byte == b'\n').nth(1).unwrap_or_default();
            let document = String::from_utf8_lossy(document);
            tracing::error!("search does not take the document {}: {reason}", item.key);
            metrics::counter!("feedmill_search_refused_total").increment(1);
            let action = json!({ "index": { "_id": format!("refused-{}", item.key) } });
            let told = json!({
                "kind": "refused", "index": self.standing.writing, "id": item.key, "time": item.time, "reason": reason,
                "document": document,
            });
            let lines = format!("{action}\n{told}\n").into_bytes();
            kept.push(Item { key: item.key.clone(), time: item.time, lines });
            self.refused.insert(item.key.clone(), item.time);
        }
        // Progress passes what was refused only when it is kept there.
        let lost = deliver(&self.shared, &self.server, &self.server.names.progress(), kept).await?;
        for Refused { item, reason } in lost {
            tracing::error!("search does not keep either that it refused the document {}: {reason}", item.key);
        }
        if let Some(last) = refused.last().filter(|_| self.refused.len() > REFUSED_MAX) {
            let count = self.refused.len();
            return Err(Fault::TooManyRefused { count, last: last.reason.clone() });
        }
        self.shared.refused(self.refused.len());
        self.forget_refused(&again).await
    }

    async fn forget_refused(&mut self, keys: &BTreeSet<String>) -> Result<(), Fault> {
        let mut lines = Vec::new();
        for key in keys {
            self.refused.remove(key);
            let action = json!({ "delete": { "_id": format!("refused-{key}") } });
            lines.extend_from_slice(format!("{action}\n").as_bytes());
        }
        if !lines.is_empty() {
            send_once(&self.shared, &self.server, &self.server.names.progress(), lines).await?;
        }
        self.shared.refused(self.refused.len());
        Ok(())
    }

    /// Removes tombstones behind which no replay can reach any more: replays begin at the progress, and what an earlier
    /// process had under way comes within minutes. One that became a document again meanwhile has another version, and
    /// stays. Gives how many it found.
    async fn sweep(&self) -> Result<usize, Fault> {
        let Some(reached) = least(&self.reached).filter(|_| self.standing.is_served()) else { return Ok(0) };
        let after = u64::try_from(self.settings.sweep_after.as_millis()).unwrap_or(u64::MAX);
        let before = reached.time.saturating_sub(after);
        let query = json!({
            "size": SWEPT_MAX,
            "_source": false,
            "seq_no_primary_term": true,
            "track_total_hits": false,
            "query": { "bool": { "filter": [
                { "term": { "deleted": true } },
                { "range": { "time": { "lt": before } } },
            ] } },
        });
        let index = &self.standing.writing;
        let path = format!("{index}/_search");
        let found = insist(&self.shared, || self.server.client.ask(Method::Post, &path, &query)).await?;
        let mut lines = Vec::new();
        for hit in hits(&found) {
            let action = json!({ "delete": {
                "_id": at(hit, "/_id"), "if_seq_no": at(hit, "/_seq_no"), "if_primary_term": at(hit, "/_primary_term"),
            } });
            lines.extend_from_slice(format!("{action}\n").as_bytes());
        }
        if !lines.is_empty() {
            let swept = send_once(&self.shared, &self.server, index, lines).await?;
            metrics::counter!("feedmill_search_swept_total").increment(swept);
        }
        Ok(hits(&found).len())
    }
}

/// When tombstones were last looked for.
#[derive(Default)]
struct Swept {
    at: Option<Instant>,
    more: bool,
}

impl Swept {
    fn is_due(&self, every: Duration) -> bool {
        self.more || self.at.is_none_or(|at| at.elapsed() >= every)
    }

    fn note(&mut self, count: usize) {
        (self.at, self.more) = (Some(Instant::now()), count >= SWEPT_MAX);
    }
}
