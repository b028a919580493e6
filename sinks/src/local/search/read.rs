//! Reads the index as of one commit.

use std::ops::Bound;
use std::time::Duration;

use async_trait::async_trait;
use feedmill_model::Time;
use tantivy::collector::TopDocs;
use tantivy::query::{BooleanQuery, BoostQuery, ConstScoreQuery, Occur, PhraseQuery, RangeQuery, TermQuery};
use tantivy::schema::{Field, IndexRecordOption};
use tantivy::{DocAddress, Order, Searcher, TantivyDocument, Term};

use super::layout::{ACCOUNT, Fields, TWEET};
use super::{Fault, LocalSearch};
use crate::ReadError;
use crate::search::{AccountQuery, Clause, Hit, Query, Search, SearchSnapshot, What, prefix, printed};

/// Score of an account whose name is just what was asked for, and of each word that is one of its names'.
const NAME_SCORE: f32 = 8.0;
const WORD_SCORE: f32 = 1.0;

type AnyQuery = Box<dyn tantivy::query::Query>;

/// The index as of one commit.
#[derive(Clone)]
pub(super) struct SearchReader {
    searcher: Searcher,
    fields: Fields,
    time: Time,
}

impl SearchReader {
    pub(super) const fn new(searcher: Searcher, fields: Fields, time: Time) -> Self {
        SearchReader { searcher, fields, time }
    }

    /// The query in the engine's words; `None` if nothing can fit.
    fn tweets(&self, query: &Query, before: Option<i64>) -> Option<BooleanQuery> {
        let fields = &self.fields;
        let mut clauses: Vec<(Occur, AnyQuery)> = Vec::new();
        for Clause { excluded, what } in &query.clauses {
            let asked: AnyQuery = match what {
                What::Words(words) => phrase(fields.words, words),
                What::From { user: Some(user), .. } => filter(term(Term::from_field_i64(fields.author, *user))),
                What::From { user: None, .. } if *excluded => continue,
                What::From { user: None, .. } => return None,
                What::Tag(tag) => filter(term(Term::from_field_text(fields.tags, tag))),
                What::Mention(name) => filter(term(Term::from_field_text(fields.mentions, name))),
                What::Since(at) => range(Bound::Included(Term::from_field_i64(fields.at, *at)), Bound::Unbounded),
                What::Until(at) => range(Bound::Unbounded, Bound::Excluded(Term::from_field_i64(fields.at, *at))),
                What::Media => filter(term(Term::from_field_bool(fields.media, true))),
            };
            clauses.push((if *excluded { Occur::MustNot } else { Occur::Must }, asked));
        }
        if let Some(before) = before {
            let older = Bound::Excluded(Term::from_field_i64(fields.tweet, before));
            clauses.push((Occur::Must, range(Bound::Unbounded, older)));
        }
        Some(BooleanQuery::new(clauses))
    }

    fn latest(&self, query: &Query, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        let Some(query) = self.tweets(query, before) else { return Ok(Vec::new()) };
        let newest = TopDocs::with_limit(limit.max(1)).order_by_fast_field::<i64>(TWEET, Order::Desc);
        let found = self.searcher.search(&query, &newest).map_err(failed("the newest tweets that fit"))?;
        Ok(found.into_iter().filter_map(|(id, _)| id).collect())
    }

    fn relevant(&self, query: &Query, limit: usize) -> Result<Vec<Hit>, ReadError> {
        if !query.has_words() {
            let newest = self.latest(query, None, limit)?;
            return Ok(newest.into_iter().map(|id| Hit { id, score: 0.0 }).collect());
        }
        let Some(query) = self.tweets(query, None) else { return Ok(Vec::new()) };
        self.best(&query, TWEET, limit).map_err(failed("the tweets that fit best"))
    }

    fn accounts(&self, query: &AccountQuery, limit: usize) -> Result<Vec<Hit>, ReadError> {
        let fields = &self.fields;
        let scored = |field, text: &str, score| -> (Occur, AnyQuery) {
            let asked = term(Term::from_field_text(field, text));
            (Occur::Should, Box::new(ConstScoreQuery::new(asked, score)))
        };
        let begins = |word: &String| (Occur::Must, filter(term(Term::from_field_text(fields.prefixes, &prefix(word)))));
        let mut clauses: Vec<(Occur, AnyQuery)> = query.words.iter().map(begins).collect();
        clauses.extend(query.words.iter().map(|word| scored(fields.names, word, WORD_SCORE)));
        clauses.push(scored(fields.username, &query.username, NAME_SCORE));
        self.best(&BooleanQuery::new(clauses), ACCOUNT, limit).map_err(failed("accounts that fit"))
    }

    /// The best hits, with the ids of the column `id`.
    fn best(&self, query: &BooleanQuery, id: &'static str, limit: usize) -> tantivy::Result<Vec<Hit>> {
        let found: Vec<(f32, DocAddress)> =
            self.searcher.search(query, &TopDocs::with_limit(limit.max(1)).order_by_score())?;
        let mut hits = Vec::with_capacity(found.len());
        for (score, at) in found {
            let ids = self.searcher.segment_reader(at.segment_ord).fast_fields().i64(id)?;
            hits.extend(ids.first(at.doc_id).map(|id| Hit { id, score }));
        }
        Ok(hits)
    }
}

impl SearchSnapshot for SearchReader {
    fn time(&self) -> Time {
        self.time
    }

    fn scan(&self, each: &mut dyn FnMut(String, String)) -> Result<(), ReadError> {
        const WHAT: &str = "all documents of search";
        for segment in self.searcher.segment_readers() {
            let store = segment.get_store_reader(1).map_err(|error| failed(WHAT)(error.into()))?;
            for document in store.iter::<TantivyDocument>(segment.alive_bitset()) {
                let document = self.fields.source(&document.map_err(failed(WHAT))?);
                let undecodable = || ("a document that cannot be decoded".to_owned(), String::new());
                let (key, value) = document.map_or_else(undecodable, printed);
                each(key, value);
            }
        }
        Ok(())
    }
}

fn failed(what: &'static str) -> impl Fn(tantivy::TantivyError) -> ReadError {
    move |error| ReadError { store: "local", what, source: Box::new(Fault::Engine(error)) }
}

fn term(term: Term) -> AnyQuery {
    Box::new(TermQuery::new(term, IndexRecordOption::Basic))
}

/// Decides, and adds nothing to the score.
fn filter(query: AnyQuery) -> AnyQuery {
    Box::new(BoostQuery::new(query, 0.0))
}

fn range(from: Bound<Term>, to: Bound<Term>) -> AnyQuery {
    filter(Box::new(RangeQuery::new(from, to)))
}

fn phrase(field: Field, words: &[String]) -> AnyQuery {
    let mut terms: Vec<Term> = words.iter().map(|word| Term::from_field_text(field, word)).collect();
    match (terms.len(), terms.pop()) {
        (1, Some(one)) => Box::new(TermQuery::new(one, IndexRecordOption::WithFreqs)),
        (_, last) => Box::new(PhraseQuery::new(terms.into_iter().chain(last).collect())),
    }
}

/// A search takes milliseconds of a core, so it leaves the threads that answer requests.
async fn apart<T: Send + 'static>(
    search: &LocalSearch,
    read: impl FnOnce(SearchReader) -> Result<T, ReadError> + Send + 'static,
) -> Result<T, ReadError> {
    let reader = search.reader()?;
    let read = tokio::task::spawn_blocking(move || read(reader)).await;
    read.map_err(|error| ReadError { store: "local", what: "search", source: Box::new(error) })?
}

#[async_trait]
impl Search for LocalSearch {
    async fn latest(&self, query: &Query, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        let query = query.clone();
        apart(self, move |reader| reader.latest(&query, before, limit)).await
    }

    async fn relevant(&self, query: &Query, limit: usize) -> Result<Vec<Hit>, ReadError> {
        let query = query.clone();
        apart(self, move |reader| reader.relevant(&query, limit)).await
    }

    async fn accounts(&self, query: &AccountQuery, limit: usize) -> Result<Vec<Hit>, ReadError> {
        let query = query.clone();
        apart(self, move |reader| reader.accounts(&query, limit)).await
    }

    fn time(&self) -> Time {
        *self.shared.found.borrow()
    }

    async fn reached(&self, time: Time, limit: Duration) -> bool {
        let mut found = self.shared.found.subscribe();
        matches!(tokio::time::timeout(limit, found.wait_for(|found| *found >= time)).await, Ok(Ok(_)))
    }
}
