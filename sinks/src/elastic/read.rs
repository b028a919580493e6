//! Reads the index: what is asked for in the server's words, and all of it for a comparison.

use std::time::Duration;

use async_trait::async_trait;
use feedmill_model::{Phase, Position, Time};
use serde_json::{Value, json};
use tokio::runtime::Handle;
use tokio::sync::watch;

use super::client::{self, Failure, Method, at};
use super::standing::Server;
use super::{ElasticSearch, Rebuilding, Search, SearchSnapshot, layout};
use crate::ReadError;
use crate::search::{AccountQuery, Clause, Hit, Query, What, prefix, printed};

/// How long the server may look for an answer, and how long that is waited for.
const SEARCH_MAX: &str = "5s";
const ANSWER_MAX: Duration = Duration::from_secs(8);
/// Hits of one request.
const HITS_MAX: usize = 10_000;
/// Documents of one request of a scan, and for how long the server keeps what is scanned.
const SCANNED: usize = 2_000;
const KEPT: &str = "5m";
const SCANNED_MAX: Duration = Duration::from_secs(60);
/// Score of an account whose name is just what was asked for, and of each word that is one of its names'.
const NAME_SCORE: f32 = 8.0;
const WORD_SCORE: f32 = 1.0;

/// An answer that cannot be given, or cannot be read.
#[derive(Debug, thiserror::Error)]
enum Unread {
    #[error(transparent)]
    Failed(#[from] Failure),
    #[error("the server found only a part of it within {SEARCH_MAX}")]
    Late,
    #[error("the threads that ask have ended")]
    Ended,
}

fn failed(what: &'static str) -> impl Fn(Unread) -> ReadError {
    move |error| ReadError { store: "elasticsearch", what, source: Box::new(error) }
}

fn rebuilding() -> ReadError {
    ReadError { store: "elasticsearch", what: "search", source: Box::new(Rebuilding(Phase::Search)) }
}

/// The clauses of `query`; `None` if nothing can fit.
fn tweets(query: &Query) -> Option<Value> {
    let (mut must, mut filter) = (Vec::new(), Vec::new());
    let mut must_not = vec![json!({ "term": { "deleted": true } })];
    for Clause { excluded, what } in &query.clauses {
        let (asked, scores) = match what {
            What::Words(words) => (phrase(words), true),
            What::From { user: Some(user), .. } => (json!({ "term": { "author": user } }), false),
            What::From { user: None, .. } if *excluded => continue,
            What::From { user: None, .. } => return None,
            What::Tag(tag) => (json!({ "term": { "tags": tag } }), false),
            What::Mention(name) => (json!({ "term": { "mentions": name } }), false),
            What::Since(at) => (json!({ "range": { "at": { "gte": at } } }), false),
            What::Until(at) => (json!({ "range": { "at": { "lt": at } } }), false),
            What::Media => (json!({ "term": { "media": true } }), false),
        };
        match (*excluded, scores) {
            (true, _) => must_not.push(asked),
            (false, true) => must.push(asked),
            (false, false) => filter.push(asked),
        }
    }
    Some(json!({ "bool": { "must": must, "filter": filter, "must_not": must_not } }))
}

fn phrase(words: &[String]) -> Value {
    match words {
        [one] => json!({ "term": { "words": one } }),
        several => json!({ "match_phrase": { "words": { "query": several.join(" "), "analyzer": "whitespace" } } }),
    }
}

/// The query for accounts: each word begins one of a name's, and what fits better scores.
fn accounts(query: &AccountQuery) -> Value {
    let scored = |field: &str, text: &str, score: f32| json!({ "constant_score": { "filter": { "term": { field: text } }, "boost": score } });
    let begins: Vec<Value> = query.words.iter().map(|word| json!({ "term": { "prefixes": prefix(word) } })).collect();
    let mut better: Vec<Value> = query.words.iter().map(|word| scored("names", word, WORD_SCORE)).collect();
    better.push(scored("username", &query.username, NAME_SCORE));
    let deleted = json!([{ "term": { "deleted": true } }]);
    json!({ "bool": { "filter": begins, "should": better, "minimum_should_match": 0, "must_not": deleted } })
}

/// One request for hits.
async fn hits(server: Server, mut body: Value) -> Result<Vec<Value>, Unread> {
    if let Some(body) = body.as_object_mut() {
        body.insert("timeout".into(), json!(SEARCH_MAX));
        body.insert("track_total_hits".into(), json!(false));
        body.insert("_source".into(), json!(false));
    }
    let path = format!("{}/_search?allow_partial_search_results=false", server.names.alias());
    let mut found = server.client.ask_within(ANSWER_MAX, Method::Post, &path, &body).await?;
    if *at(&found, "/timed_out") == true {
        return Err(Unread::Late);
    }
    Ok(match found.pointer_mut("/hits/hits").map(Value::take) {
        Some(Value::Array(hits)) => hits,
        _ => Vec::new(),
    })
}

/// Tweets newest first, in as many requests as they need.
async fn latest(server: Server, query: Value, before: Option<i64>, limit: usize) -> Result<Vec<i64>, Unread> {
    let (mut ids, mut after) = (Vec::new(), before);
    while ids.len() < limit {
        let size = (limit - ids.len()).min(HITS_MAX);
        let mut body = json!({ "query": query, "size": size, "sort": [{ "tweet": { "order": "desc" } }] });
        if let (Some(after), Some(body)) = (after, body.as_object_mut()) {
            body.insert("search_after".into(), json!([after]));
        }
        let found = hits(server.clone(), body).await?;
        let next = found.iter().filter_map(|hit| at(hit, "/sort/0").as_i64());
        let len = ids.len();
        ids.extend(next);
        after = ids.last().copied();
        if ids.len() - len < size {
            break;
        }
    }
    Ok(ids)
}

async fn best(server: Server, query: Value, limit: usize) -> Result<Vec<Hit>, Unread> {
    let found = hits(server, json!({ "query": query, "size": limit.clamp(1, HITS_MAX) })).await?;
    let one = |hit: &Value| {
        let id = layout::id_of(at(hit, "/_id").as_str()?)?;
        Some(Hit { id, score: at(hit, "/_score").as_f64().unwrap_or(0.0) as f32 })
    };
    Ok(found.iter().filter_map(one).collect())
}

/// The index as it is asked, whoever writes it.
#[derive(Clone)]
pub(super) struct Index {
    pub server: Server,
    /// The threads to which the connections belong.
    pub handle: Handle,
    /// What is found; `None` while nothing can be read.
    pub found: watch::Receiver<Option<Position>>,
}

impl Index {
    fn check(&self) -> Result<(), ReadError> {
        if self.found.borrow().is_some() { Ok(()) } else { Err(rebuilding()) }
    }

    /// On the threads to which the connections belong.
    async fn there<T: Send + 'static>(
        &self,
        what: &'static str,
        asked: impl Future<Output = Result<T, Unread>> + Send + 'static,
    ) -> Result<T, ReadError> {
        self.check()?;
        let found = self.handle.spawn(asked).await;
        found.map_err(|_| failed(what)(Unread::Ended))?.map_err(failed(what))
    }

    /// What is found now, kept by the server until it is dropped. Blocks.
    pub fn snapshot(&self) -> Result<Box<dyn SearchSnapshot>, ReadError> {
        const WHAT: &str = "a snapshot of search";
        self.check()?;
        let (server, time) = (self.server.clone(), self.time());
        let path = format!("{}/_pit?keep_alive={KEPT}", server.names.alias());
        let opened = self.handle.block_on(server.client.ask(Method::Post, &path, &Value::Null));
        let opened = opened.map_err(|error| failed(WHAT)(error.into()))?;
        let id = at(&opened, "/id").as_str().unwrap_or_default().to_owned();
        Ok(Box::new(Kept { handle: self.handle.clone(), server, id, time }))
    }
}

#[async_trait]
impl Search for Index {
    async fn latest(&self, query: &Query, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        self.check()?;
        let Some(query) = tweets(query) else { return Ok(Vec::new()) };
        self.there("the newest tweets that fit", latest(self.server.clone(), query, before, limit)).await
    }

    async fn relevant(&self, query: &Query, limit: usize) -> Result<Vec<Hit>, ReadError> {
        if !query.has_words() {
            let newest = self.latest(query, None, limit).await?;
            return Ok(newest.into_iter().map(|id| Hit { id, score: 0.0 }).collect());
        }
        let Some(query) = tweets(query) else { return Ok(Vec::new()) };
        self.there("the tweets that fit best", best(self.server.clone(), query, limit)).await
    }

    async fn accounts(&self, query: &AccountQuery, limit: usize) -> Result<Vec<Hit>, ReadError> {
        self.there("accounts that fit", best(self.server.clone(), accounts(query), limit)).await
    }

    fn time(&self) -> Time {
        self.found.borrow().map_or(0, |found| found.time)
    }

    async fn reached(&self, time: Time, limit: Duration) -> bool {
        let mut found = self.found.clone();
        let has = |found: &Option<Position>| found.is_some_and(|found| found.time >= time);
        matches!(tokio::time::timeout(limit, found.wait_for(has)).await, Ok(Ok(_)))
    }
}

impl ElasticSearch {
    /// The index, as long as this lives.
    pub(super) fn index(&self) -> Result<Index, ReadError> {
        let handle = self.runtime.as_ref().ok_or_else(rebuilding)?.handle().clone();
        Ok(Index { server: self.server.clone(), handle, found: self.shared.found.subscribe() })
    }
}

#[async_trait]
impl Search for ElasticSearch {
    async fn latest(&self, query: &Query, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        self.index()?.latest(query, before, limit).await
    }

    async fn relevant(&self, query: &Query, limit: usize) -> Result<Vec<Hit>, ReadError> {
        self.index()?.relevant(query, limit).await
    }

    async fn accounts(&self, query: &AccountQuery, limit: usize) -> Result<Vec<Hit>, ReadError> {
        self.index()?.accounts(query, limit).await
    }

    fn time(&self) -> Time {
        self.shared.found.borrow().map_or(0, |found| found.time)
    }

    async fn reached(&self, time: Time, limit: Duration) -> bool {
        match self.index() {
            Ok(index) => index.reached(time, limit).await,
            Err(_) => false,
        }
    }
}

/// A point in time that the server keeps.
struct Kept {
    handle: Handle,
    server: Server,
    id: String,
    time: Time,
}

impl Drop for Kept {
    fn drop(&mut self) {
        let (server, id) = (self.server.clone(), std::mem::take(&mut self.id));
        // It ends by itself if it cannot be told.
        drop(
            self.handle
                .spawn(async move { server.client.ask(Method::Delete, "_pit", &json!({ "id": id })).await.map(drop) }),
        );
    }
}

impl SearchSnapshot for Kept {
    fn time(&self) -> Time {
        self.time
    }

    fn scan(&self, each: &mut dyn FnMut(String, String)) -> Result<(), ReadError> {
        const WHAT: &str = "all documents of search";
        let mut after = Value::Null;
        loop {
            let mut body = json!({
                "size": SCANNED,
                "pit": { "id": self.id, "keep_alive": KEPT },
                "query": { "bool": { "must_not": [{ "term": { "deleted": true } }] } },
                "sort": [{ "_shard_doc": { "order": "asc" } }],
                "track_total_hits": false,
            });
            if let (false, Some(body)) = (after.is_null(), body.as_object_mut()) {
                body.insert("search_after".into(), after.clone());
            }
            let asked = self.server.client.ask_within(SCANNED_MAX, Method::Post, "_search", &body);
            let found = self.handle.block_on(asked).map_err(|error| failed(WHAT)(error.into()))?;
            let hits = client::hits(&found);
            let Some(last) = hits.last() else { return Ok(()) };
            after = at(last, "/sort").clone();
            for hit in hits {
                let undecodable = || ("a document that cannot be decoded".to_owned(), String::new());
                let (key, value) = layout::document(at(hit, "/_source")).map_or_else(undecodable, printed);
                each(key, value);
            }
        }
    }
}
