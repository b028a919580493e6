//! The search index on a server.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use feedmill_model::{Document, Op, Phase, Time};
use feedmill_sinks::search::{Query, Search, SearchIndex, SearchStore};
use feedmill_sinks::{ElasticReader, ElasticSearch, ElasticSettings, Progress};
use feedmill_test_servers::Elasticsearch;
use reqwest::Method;
use serde_json::{Value, json};
use tempfile::TempDir;

use crate::index::{ALL, closed, position};
use crate::search::{self, LIMIT, account, block_on, durable, found, put, search_suite, times, tweet};

/// Indices with a prefix of their own, which go at the end.
struct Elastic {
    url: String,
    prefix: String,
    folder: TempDir,
}

impl Elastic {
    /// On the server of all tests.
    fn shared() -> Self {
        Elastic::on(Elasticsearch::shared())
    }

    fn on(server: &Elasticsearch) -> Self {
        static NUMBER: AtomicU32 = AtomicU32::new(0);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let prefix = format!("t{}-{number}", std::process::id());
        Elastic { url: server.url(), prefix, folder: tempfile::tempdir().unwrap() }
    }

    fn settings(&self) -> ElasticSettings {
        ElasticSettings::new(format!("{}/{}", self.url, self.prefix).parse().unwrap())
    }

    fn open_with(&self, settings: ElasticSettings) -> Arc<dyn SearchStore> {
        Arc::new(ElasticSearch::open(settings, self.folder.path(), None).unwrap())
    }

    /// Asks the server itself; gives status and answer.
    fn ask(&self, method: Method, path: &str, body: Value) -> (u16, Value) {
        let path = path.replace('@', &self.prefix);
        block_on(async {
            let client = reqwest::Client::builder().no_proxy().build().unwrap();
            let mut request = client.request(method, format!("{}/{path}", self.url));
            if !body.is_null() {
                request = request.json(&body);
            }
            let answer = request.send().await.unwrap();
            let status = answer.status().as_u16();
            (status, serde_json::from_slice(&answer.bytes().await.unwrap()).unwrap_or(Value::Null))
        })
    }

    /// The same, where it must go well.
    #[track_caller]
    fn told(&self, method: Method, path: &str, body: Value) -> Value {
        let (status, answer) = self.ask(method, path, body);
        assert!((200..300).contains(&status), "{path}: {status} {answer}");
        answer
    }

    /// How many documents of the index that is read have `field` with this value.
    fn count(&self, field: &str, value: Value) -> u64 {
        self.told(Method::POST, "@-search/_refresh", Value::Null);
        let query = json!({ "query": { "term": { field: value } } });
        self.told(Method::POST, "@-search/_count", query)["count"].as_u64().unwrap()
    }
}

impl Drop for Elastic {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let _ = std::panic::catch_unwind(|| {
            let indices = self.told(Method::GET, "@-*/_alias?expand_wildcards=all", Value::Null);
            for index in indices.as_object().unwrap().keys() {
                self.ask(Method::DELETE, index, Value::Null);
            }
            self.ask(Method::DELETE, "_index_template/@-search", Value::Null);
            self.ask(Method::DELETE, "_component_template/@-search@settings", Value::Null);
        });
    }
}

impl search::Subject for Elastic {
    const ATOMIC: bool = false;
    const CASES: u32 = 6;

    fn open(&self) -> Arc<dyn SearchStore> {
        self.open_with(self.settings())
    }

    fn crash(&self, search: Arc<dyn SearchStore>) -> Arc<dyn SearchStore> {
        // What is under way is given up, and nothing is waited for.
        drop(search);
        search::Subject::open(self)
    }
}

search_suite!(found_there, Elastic::shared());

#[track_caller]
fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + LIMIT;
    while !holds() {
        assert!(Instant::now() < deadline, "waited for {LIMIT:?} until {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn apply(search: &dyn SearchStore, time: Time, ops: Vec<Op<Document>>) {
    search.apply(&closed(time, ALL, ops)).unwrap();
}

#[test]
fn c45_progress_never_passes_a_document_that_is_not_durable() {
    let server = Elasticsearch::mortal();
    let place = Elastic::on(&server);
    let mut search = search::Subject::open(&place);
    apply(&*search, 1, vec![]);
    durable(&*search);
    let mut next: Time = 2;
    for kill_at in [150, 400] {
        // Each time has ten documents, whose ids say of which it is.
        let (begun, mut killed) = (next, false);
        while next < begun + 600 {
            apply(&*search, next, put((0..10).map(|n| tweet((next * 10 + n) as i64, 7, "word"))));
            next += 1;
            if next > begun + kill_at && !killed {
                until("something is durable", || search.durable(Duration::ZERO).unwrap().unwrap().time > begun);
                server.kill();
                killed = true;
            }
        }
        drop(search);
        server.start_again();
        search = search::Subject::open(&place);
        let reached = times(&*search)[0].unwrap();
        assert!(reached > begun && reached < next, "{reached}");
        place.told(Method::POST, "@-search/_refresh", Value::Null);
        let query = feedmill_sinks::search::Query::parse("word").unwrap();
        let there = block_on(search.latest(&query, None, 100_000)).unwrap();
        let covered = |id: &&i64| id.cast_unsigned() / 10 <= reached;
        let expected = (2..=reached).rev().flat_map(|time| (0..10).rev().map(move |n| (time * 10 + n) as i64));
        assert!(there.iter().filter(covered).copied().eq(expected), "{} of those up to {reached}", there.len());
        // The change log has the rest.
        for time in reached..next {
            apply(&*search, time, put((0..10).map(|n| tweet((time * 10 + n) as i64, 7, "word"))));
        }
        assert_eq!(durable(&*search), Some(position(next - 1)));
        assert_eq!(block_on(search.latest(&query, None, 100_000)).unwrap().len() as u64, (next - 2) * 10);
    }
}

#[test]
fn c49_a_document_that_does_not_fit_is_set_aside_and_comes_back_when_it_does() {
    let place = Elastic::shared();
    let search = search::Subject::open(&place);
    // No term may be so long.
    let unfit = |name: &str| account(7, &"a".repeat(40_000), name);
    apply(&*search, 1, put([tweet(1, 7, "one"), unfit("Ada"), tweet(2, 7, "one")]));
    assert_eq!(durable(&*search), Some(position(1)), "the others are not held up");
    assert_eq!((found(&*search, "one"), search.refused()), (vec![2, 1], 1));
    let kept = place.told(Method::GET, "@-search-progress/_doc/refused-a7", Value::Null);
    assert!(kept["_source"]["reason"].as_str().unwrap().starts_with("400 "), "{kept}");
    assert!(kept["_source"]["document"].as_str().unwrap().contains("Ada"));
    let search = search::Subject::crash(&place, search);
    until("it is known again", || search.refused() == 1);
    apply(&*search, 2, put([unfit("Bob")]));
    durable(&*search);
    assert_eq!(search.refused(), 1);
    apply(&*search, 3, put([account(7, "ada", "Ada")]));
    durable(&*search);
    assert_eq!(search.refused(), 0);
    assert_eq!(place.ask(Method::GET, "@-search-progress/_doc/refused-a7", Value::Null).0, 404);
    let ada = feedmill_sinks::search::AccountQuery::parse("ada").unwrap();
    assert_eq!(block_on(search.accounts(&ada, 10)).unwrap().len(), 1);
}

#[test]
fn c49_a_conflict_of_versions_is_a_success_and_a_refusal_for_now_is_tried_again() {
    let place = Elastic::shared();
    let search = search::Subject::open(&place);
    apply(&*search, 1, put([tweet(1, 7, "one")]));
    durable(&*search);
    // Somebody has a later version already.
    let later = json!({ "tweet": 2, "author": 7, "at": 0, "media": false, "words": "later" });
    place.told(Method::PUT, "@-search/_doc/t2?version=50&version_type=external", later);
    apply(&*search, 2, put([tweet(2, 7, "earlier"), tweet(3, 7, "earlier")]));
    assert_eq!(durable(&*search), Some(position(2)));
    assert_eq!((found(&*search, "later"), found(&*search, "earlier")), (vec![2], vec![3]));
    // As when the disk is nearly full: 429.
    let block = |on| json!({ "index.blocks.read_only_allow_delete": on });
    place.told(Method::PUT, "@-search/_settings", block(true));
    apply(&*search, 3, put([tweet(4, 7, "four")]));
    until("it says why", || search.waits().is_some_and(|reason| reason.contains("429")));
    assert_eq!(search.durable(Duration::ZERO).unwrap(), Some(position(2)));
    place.told(Method::PUT, "@-search/_settings", block(false));
    assert_eq!(durable(&*search), Some(position(3)));
    assert_eq!((found(&*search, "four"), search.waits(), search.refused()), (vec![4], None, 0));
}

#[test]
fn c50_a_late_older_version_does_not_bring_back_what_was_deleted_when_the_server_has_forgotten() {
    let server = Elasticsearch::mortal();
    let place = Elastic::on(&server);
    let search = search::Subject::open(&place);
    apply(&*search, 1, put([tweet(1, 7, "word")]));
    durable(&*search);
    let before = place.told(Method::GET, "@-search-progress/_doc/standing", Value::Null)["_source"].take();
    apply(&*search, 2, put([tweet(2, 7, "word")]));
    apply(&*search, 3, vec![Op::Delete(tweet(2, 7, "word"))]);
    durable(&*search);
    assert_eq!(found(&*search, "word"), [1]);
    drop(search);
    // What the server does by itself: the version of what was deleted is gone after a flush and a restart.
    place.told(Method::PUT, "@-plain", json!({ "settings": { "number_of_replicas": 0 } }));
    let versioned = |version| format!("@-plain/_doc/2?version={version}&version_type=external");
    place.told(Method::PUT, &versioned(2), json!({ "word": 1 }));
    place.told(Method::DELETE, &versioned(3), Value::Null);
    assert_eq!(place.ask(Method::PUT, &versioned(2), json!({ "word": 1 })).0, 409);
    place.told(Method::POST, "@-search,@-plain/_flush?force=true", Value::Null);
    // The progress of the later times is lost, as if the process had died before it was written.
    place.told(Method::PUT, "@-search-progress/_doc/standing", before);
    place.told(Method::POST, "@-search-progress/_flush?force=true", Value::Null);
    server.kill();
    server.start_again();
    assert_eq!(place.ask(Method::PUT, &versioned(2), json!({ "word": 1 })).0, 201, "the server has not forgotten");

    let search = search::Subject::open(&place);
    assert_eq!(times(&*search), [Some(1); 64]);
    apply(&*search, 2, put([tweet(2, 7, "word")]));
    assert_eq!(durable(&*search), Some(position(2)));
    assert_eq!(found(&*search, "word"), [1], "it came back");
    apply(&*search, 3, vec![Op::Delete(tweet(2, 7, "word"))]);
    durable(&*search);
    assert_eq!(found(&*search, "word"), [1]);
    // Posted again later, it is there.
    apply(&*search, 4, put([tweet(2, 7, "word")]));
    durable(&*search);
    assert_eq!(found(&*search, "word"), [2, 1]);
}

#[test]
fn c50_tombstones_go_when_no_replay_reaches_behind_them() {
    let place = Elastic::shared();
    let at_once = ElasticSettings { sweep_after: Duration::ZERO, ..place.settings() };
    let search = search::Subject::open(&place);
    apply(&*search, 1_000, put((1..=1_500).map(|id| tweet(id, 7, "word"))));
    apply(&*search, 2_000, (1..=1_400).map(|id| Op::Delete(tweet(id, 7, "word"))).collect());
    durable(&*search);
    assert_eq!((found(&*search, "word").len(), place.count("deleted", json!(true))), (100, 1_400));
    // A replay may still come from an hour ago.
    apply(&*search, 3_000, put([tweet(3, 7, "again")]));
    durable(&*search);
    assert_eq!(place.count("deleted", json!(true)), 1_399);
    drop(search);
    let search = place.open_with(at_once);
    apply(&*search, 4_000, vec![Op::Delete(tweet(1_500, 7, "word"))]);
    until("those of before are gone", || {
        durable(&*search);
        place.count("deleted", json!(true)) == 1
    });
    assert_eq!((found(&*search, "word").len(), found(&*search, "again")), (99, vec![3]));
    apply(&*search, 5_000, put([tweet(4, 7, "again")]));
    until("the last is gone", || {
        durable(&*search);
        place.count("deleted", json!(true)) == 0
    });
    assert_eq!(found(&*search, "again"), [4, 3]);
}

#[test]
fn c51_a_server_that_is_away_holds_nobody_up_and_has_it_all_afterwards() {
    let server = Elasticsearch::mortal();
    let place = Elastic::on(&server);
    let settings = || ElasticSettings { queued_operations: 1_000, ..place.settings() };
    let search = place.open_with(settings());
    apply(&*search, 1, put([tweet(1, 7, "first")]));
    assert_eq!(durable(&*search), Some(position(1)));

    server.kill();
    for time in 2..=400 {
        apply(&*search, time, put((0..100).map(|n| tweet((time * 100 + n) as i64, 7, "away"))));
    }
    until("it says why", || search.waits().is_some());
    assert!(block_on(search.latest(&feedmill_sinks::search::Query::parse("first").unwrap(), None, 1)).is_err());
    assert_eq!(search.durable(Duration::ZERO).unwrap(), Some(position(1)), "the change log keeps what came after it");
    assert_eq!(times(&*search), [Some(400); 64], "it was taken over");

    // A process that starts meanwhile goes on from its copy.
    drop(search);
    let search = place.open_with(settings());
    assert_eq!(times(&*search), [Some(1); 64]);
    for time in 2..=400 {
        apply(&*search, time, put((0..100).map(|n| tweet((time * 100 + n) as i64, 7, "away"))));
    }
    server.start_again();
    assert_eq!(durable(&*search), Some(position(400)));
    assert_eq!((found(&*search, "away").len(), search.waits()), (1_000, None));
    assert_eq!(place.count("words", json!("away")), 39_900);

    // One that does not answer is away too.
    server.freeze();
    apply(&*search, 401, put([tweet(1, 7, "thawed")]));
    until("it says why", || search.waits().is_some());
    server.thaw();
    assert_eq!(durable(&*search), Some(position(401)));
    assert_eq!((found(&*search, "thawed"), found(&*search, "first")), (vec![1], vec![]));
}

#[test]
fn of_two_data_folders_the_one_that_came_last_writes() {
    let place = Elastic::shared();
    let first = search::Subject::open(&place);
    apply(&*first, 1, put([tweet(1, 7, "one")]));
    durable(&*first);
    let other = tempfile::tempdir().unwrap();
    let second = ElasticSearch::open(place.settings(), other.path(), None).unwrap();
    assert!(times(&second).iter().all(Option::is_none), "another folder has another change log");
    assert!(second.found().is_none(), "what another folder filled is not read");
    apply(&second, 1, put([tweet(2, 7, "two")]));
    assert_eq!(durable(&second), Some(position(1)));
    assert_eq!(found(&second, "two"), [2]);
    apply(&*first, 2, put([tweet(3, 7, "three")]));
    let refused = first.durable(LIMIT).unwrap_err();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(source.contains("is not on the server any more") || source.contains("another data folder"), "{source}");
    assert!(first.apply(&closed(3, ALL, put([tweet(4, 7, "four")]))).is_err());
    assert_eq!((found(&second, "one"), found(&second, "three")), (vec![], vec![]));
}

#[test]
fn an_index_that_is_gone_ends_the_writing_with_a_sentence_and_is_built_again() {
    let place = Elastic::shared();
    let search = search::Subject::open(&place);
    apply(&*search, 1, put([tweet(1, 7, "one")]));
    durable(&*search);
    let index = place.told(Method::GET, "_alias/@-search", Value::Null);
    let index = index.as_object().unwrap().keys().next().unwrap().clone();
    place.told(Method::DELETE, &index, Value::Null);
    apply(&*search, 2, put([tweet(2, 7, "two")]));
    let refused = search.durable(LIMIT).unwrap_err();
    let source = std::error::Error::source(&refused).unwrap().to_string();
    assert!(source.contains(&index) && source.contains("start again"), "{source}");
    let search = search::Subject::crash(&place, search);
    assert!(times(&*search).iter().all(Option::is_none));
    apply(&*search, 3, put([tweet(1, 7, "one"), tweet(2, 7, "two")]));
    durable(&*search);
    assert_eq!(found(&*search, "two"), [2]);
}

#[test]
fn who_does_not_write_the_index_finds_what_was_told_to_be_found() {
    let place = Elastic::shared();
    let (runtime, progress) = (tokio::runtime::Runtime::new().unwrap(), Arc::new(Progress::following()));
    let open = async { ElasticReader::open(&place.settings(), Arc::clone(&progress)).unwrap() };
    let reader = runtime.block_on(open);
    assert!(
        block_on(reader.latest(&Query::parse("word").unwrap(), None, 9))
            .is_err_and(|error| error.rebuilding().is_some())
    );
    let search = search::Subject::open(&place);
    let reached = |time: Time| {
        runtime.block_on(async {
            progress.reached(Phase::Search, position(time).lsn, LIMIT).await && reader.reached(time, LIMIT).await
        })
    };
    let found = || block_on(reader.latest(&Query::parse("word").unwrap(), None, 9)).unwrap();
    for n in 1..4 {
        // Nobody asks the writer for anything.
        apply(&*search, n, put([tweet(n as i64, 7, "word")]));
        assert!(reached(n), "{:?}", reader.found());
        assert_eq!(found(), (1..=n as i64).rev().collect::<Vec<_>>());
    }
    apply(&*search, 9, vec![]);
    assert!(reached(9), "a time without documents is found too");
    let mut documents = 0;
    reader.snapshot().unwrap().scan(&mut |_, _| documents += 1).unwrap();
    assert_eq!(documents, 3);
    // Built again, what was there is found until the new one is as far.
    search.rebuild(12).unwrap();
    apply(&*search, 11, put([tweet(5, 7, "word")]));
    durable(&*search);
    assert_eq!(found(), [3, 2, 1]);
    apply(&*search, 12, vec![]);
    durable(&*search);
    assert!(reached(12));
    assert_eq!(found(), [5]);
    assert_eq!(reader.waits(), None);
}
