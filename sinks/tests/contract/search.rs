//! What every search index must do, and the pages that are read from one.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_model::{Closed, Counter, Document, Fact, Op, Parameters, Phase, Position, Time, Tweet, User, ViewRow};
use feedmill_sinks::read::{Rank, SearchFrom, search_accounts_page, search_tweets_page};
use feedmill_sinks::search::{AccountQuery, Query, SearchStore};
use feedmill_sinks::{LocalHome, LocalIndex, LocalViews, Progress};
use proptest::prelude::*;
use proptest::test_runner::{TestCaseError, TestRunner};
use tempfile::TempDir;

use crate::index::{ALL, Give, closed, position, user};

/// 2026-01-01, in microseconds.
const NEW_YEAR: i64 = 1_767_225_600_000_000;
const DAY: i64 = 86_400_000_000;

pub fn tweet(id: i64, user: i64, content: &str) -> Document {
    Document::Tweet { id, user, content: content.to_owned(), media: false, at: NEW_YEAR + id * DAY }
}

pub fn account(id: i64, username: &str, name: &str) -> Document {
    Document::Account { id, username: username.to_owned(), name: name.to_owned() }
}

pub fn block_on<F: Future>(page: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(page)
}

/// A kind of search index, and one place where it keeps its data.
pub trait Subject {
    /// Whether documents become durable in one step with the progress that covers them.
    const ATOMIC: bool;
    /// Cases of what is random.
    const CASES: u32;
    /// Opens the index.
    fn open(&self) -> Arc<dyn SearchStore>;
    /// Opens what is left of it if its process is killed now.
    fn crash(&self, store: Arc<dyn SearchStore>) -> Arc<dyn SearchStore>;
}

/// Nothing that is waited for takes longer, also on a busy machine.
pub const LIMIT: Duration = Duration::from_secs(60);

pub fn put(documents: impl IntoIterator<Item = Document>) -> Vec<Op<Document>> {
    documents.into_iter().map(Op::Put).collect()
}

/// Ids of tweets that fit, newest first, by what is found now.
pub fn found(search: &dyn SearchStore, query: &str) -> Vec<i64> {
    block_on(search.latest(&Query::parse(query).unwrap(), None, 1_000)).unwrap()
}

/// Makes all that was applied durable.
#[track_caller]
pub fn durable(search: &dyn SearchStore) -> Option<Position> {
    search.durable(LIMIT).unwrap()
}

pub fn times(search: &dyn SearchStore) -> Vec<Option<Time>> {
    search.progress().into_iter().map(|position| position.map(|position| position.time)).collect()
}

pub fn what_is_applied_is_found_soon_without_being_asked_for<S: Subject>(subject: &S) {
    let search = subject.open();
    assert!(block_on(search.latest(&Query::parse("a").unwrap(), None, 1)).is_err(), "nothing was loaded yet");
    search.apply(&closed(1, ALL, put([tweet(1, 7, "hello")]))).unwrap();
    let deadline = Instant::now() + Duration::from_secs(60);
    while search.time() < 1 {
        assert!(Instant::now() < deadline, "it was not committed");
        std::thread::yield_now();
    }
    assert_eq!(found(&*search, "hello"), [1]);
    // A time without changes is reached as well.
    search.apply(&closed::<Document>(2, ALL, vec![])).unwrap();
    while search.time() < 2 {
        assert!(Instant::now() < deadline, "an idle time was not reached");
        std::thread::yield_now();
    }
}

pub fn a_crash_keeps_data_and_progress_together<S: Subject>(subject: &S) {
    let search = subject.open();
    search.apply(&closed(1, ALL, put([tweet(1, 7, "one"), tweet(2, 7, "one")]))).unwrap();
    assert_eq!(durable(&*search), Some(position(1)));
    search.apply(&closed(2, ALL, vec![Op::Put(tweet(1, 7, "two")), Op::Delete(tweet(2, 7, "one"))])).unwrap();
    let search = subject.crash(search);
    // The second time was committed or not; whichever, what is found is what the progress says.
    let reached = times(&*search)[0].unwrap();
    assert!(times(&*search).iter().all(|time| *time == Some(reached)));
    match reached {
        1 if S::ATOMIC => assert_eq!(found(&*search, "one"), [2, 1]),
        // What came after it may be there in part.
        1 => {}
        _ => assert_eq!((found(&*search, "one"), found(&*search, "two")), (vec![], vec![1])),
    }
    // Replayed from before it, it is as it should be.
    for _ in 0..2 {
        search.apply(&closed(1, ALL, put([tweet(1, 7, "one"), tweet(2, 7, "one")]))).unwrap();
        search.apply(&closed(2, ALL, vec![Op::Put(tweet(1, 7, "two")), Op::Delete(tweet(2, 7, "one"))])).unwrap();
    }
    assert_eq!(durable(&*search), Some(position(2)));
    assert_eq!((found(&*search, "one"), found(&*search, "two")), (vec![], vec![1]));
    let search = subject.crash(search);
    assert_eq!((times(&*search), found(&*search, "two")), (vec![Some(2); 64], vec![1]));
}

pub fn a_load_that_did_not_end_is_forgotten<S: Subject>(subject: &S) {
    let search = subject.open();
    let loading = |time, ops| Closed { loading: true, ..closed(time, ALL, ops) };
    search.apply(&loading(1, put([tweet(1, 7, "old")]))).unwrap();
    search.apply(&closed(5, ALL >> 1, put([tweet(2, 7, "old")]))).unwrap();
    assert_eq!(durable(&*search), None);
    let search = subject.crash(search);
    assert!(times(&*search).iter().all(Option::is_none));
    search.apply(&loading(1, put([tweet(3, 7, "old")]))).unwrap();
    search.apply(&closed::<Document>(5, ALL, vec![])).unwrap();
    assert_eq!(durable(&*search), Some(position(5)));
    assert_eq!(found(&*search, "old"), [3]);
}

pub fn an_index_that_is_built_again_is_not_read_before_it_is_whole<S: Subject>(subject: &S) {
    let search = subject.open();
    search.apply(&closed(1, ALL, put([tweet(1, 7, "old")]))).unwrap();
    durable(&*search);
    search.rebuild(3).unwrap();
    assert_eq!(durable(&*search), None, "the change log must keep its tail");
    // It is refused, or what was there before is found.
    let half = |search: &dyn SearchStore| match block_on(search.latest(&Query::parse("old").unwrap(), None, 1)) {
        Ok(found) => found != [1],
        Err(error) => error.rebuilding() != Some(Phase::Search),
    };
    search.apply(&closed(2, ALL, put([tweet(2, 7, "old")]))).unwrap();
    durable(&*search);
    assert!(!half(&*search));
    search.apply(&closed::<Document>(3, ALL, vec![])).unwrap();
    durable(&*search);
    assert_eq!(found(&*search, "old"), [2], "what was there before is gone");
    search.rebuild(3).unwrap();
    assert_eq!(durable(&*search), None);
    let search = subject.crash(search);
    assert!(times(&*search).iter().all(Option::is_none));
}

pub fn every_operator_finds_what_it_asks_for<S: Subject>(subject: &S) {
    let search = subject.open();
    let media = |id, content: &str| match tweet(id, 8, content) {
        Document::Tweet { id, user, content, at, .. } => Document::Tweet { id, user, content, media: true, at },
        other => other,
    };
    let documents = [
        tweet(1, 7, "Der schnelle Fuchs springt über den Zaun #Café"),
        tweet(2, 7, "den Zaun schnelle Fuchs @Ada"),
        media(3, "schnelle rote Fuchs https://www.example.org/zaun #cafe\u{301}s"),
        tweet(4, 8, "日本語 हिन्दी fuchs FUCHS fuchs"),
        account(5, "fuchs", "schnelle"),
    ];
    search.apply(&closed(1, ALL, put(documents))).unwrap();
    durable(&*search);
    let query = |text: &str, expected: &[i64]| assert_eq!(found(&*search, text), expected, "{text}");
    query("fuchs", &[4, 3, 2, 1]);
    query("Füchs SCHNELLE", &[3, 2, 1]);
    query("\"schnelle fuchs\"", &[2, 1]);
    query("schnelle -\"schnelle fuchs\"", &[3]);
    query("zaun", &[2, 1]);
    query("example.org", &[3]);
    query("https://example.org/other", &[3]);
    query("uber -rote", &[1]);
    query("#CAFÉ", &[1]);
    query("cafe", &[1]);
    query("@ada", &[2]);
    query("fuchs -@ADA -has:media", &[4, 1]);
    query("has:media", &[3]);
    query("日本語", &[4]);
    query("हिन्दी", &[4]);
    query("since:2026-01-03", &[4, 3, 2]);
    query("until:2026-01-03 fuchs", &[1]);
    query("since:2026-01-03 until:2026-01-05", &[3, 2]);
    query("from:nobody", &[]);
    query("fuchs -from:nobody", &[4, 3, 2, 1]);
    let from = |text: &str, id: i64| {
        let mut query = Query::parse(text).unwrap();
        for clause in &mut query.clauses {
            if let feedmill_sinks::search::What::From { user, .. } = &mut clause.what {
                *user = Some(id);
            }
        }
        block_on(search.latest(&query, None, 10)).unwrap()
    };
    assert_eq!(from("from:ada fuchs", 7), [2, 1]);
    assert_eq!(from("fuchs -from:ada", 7), [4, 3]);
    let best = block_on(search.relevant(&Query::parse("fuchs").unwrap(), 10)).unwrap();
    assert_eq!(best[0].id, 4, "it has the word three times: {best:?}");
    assert!(best.is_sorted_by(|one, other| one.score >= other.score) && best.len() == 4, "{best:?}");
    let accounts = block_on(search.accounts(&AccountQuery::parse("fu SCHN").unwrap(), 10)).unwrap();
    assert_eq!(accounts.iter().map(|hit| hit.id).collect::<Vec<_>>(), [5]);
}

/// Facts, rows and documents of accounts 1 to 6 and of tweets, 30 of each.
struct Scene {
    views: LocalViews,
    search: Arc<dyn SearchStore>,
    _dir: TempDir,
}

impl Scene {
    /// 2 is protected, 3 blocks 1, 1 mutes 4, 5 is deleted, and 6 follows 2.
    fn new(subject: &impl Subject) -> Scene {
        let dir = tempfile::tempdir().unwrap();
        let index = Arc::new(LocalIndex::open(dir.path()).unwrap());
        let search = subject.open();
        let facts = vec![
            Op::Put(Fact::Protected(2)),
            Op::Put(Fact::Block { blocker: 3, blocked: 1 }),
            Op::Put(Fact::Mute { muter: 1, muted: 4 }),
            Op::Put(Fact::DeletedUser(5)),
            Op::Put(Fact::Follow { follower: 6, following: 2, accepted: true }),
            Op::Put(Fact::DeletedTweet(106)),
        ];
        let (mut rows, mut documents) = (Vec::new(), Vec::new());
        for id in 1..=6 {
            let user = User { username: format!("ada{id}"), display_name: "Ada L".into(), ..user(id) };
            documents.push(account(id, &user.username, &user.display_name));
            rows.push(Op::Put(ViewRow::Username { name: user.username.clone(), user: id }));
            rows.push(Op::Put(ViewRow::Profile(Box::new(user))));
        }
        rows.push(Op::Add(ViewRow::Count { counter: Counter::Followers, of: 6 }, 100));
        for id in 101..=280 {
            let user_id = (id - 101) % 6 + 1;
            let row = Tweet { id, user_id, content: "word".into(), conversation_id: id, ..Tweet::default() };
            documents.push(tweet(id, user_id, "word"));
            rows.push(Op::Put(ViewRow::Tweet(Box::new(row))));
        }
        rows.push(Op::Add(ViewRow::Count { counter: Counter::Likes, of: 113 }, 1_000));
        index.give(&closed(1, ALL, facts)).unwrap();
        index.give(&closed(1, ALL, rows)).unwrap();
        search.apply(&closed(1, ALL, put(documents))).unwrap();
        durable(&*search);
        let home = Arc::new(LocalHome::new(Parameters::default()));
        let views = LocalViews::new(index, home, Arc::new(Progress::new([position(1); 5])));
        Scene { views, search, _dir: dir }
    }

    /// Ids of all pages.
    fn tweets(&self, viewer: Option<i64>, text: &str, mut from: SearchFrom, limit: usize) -> Vec<i64> {
        let query = Query::parse(text).unwrap();
        let mut ids = Vec::new();
        for _ in 0..1_000 {
            let page = search_tweets_page(&self.views, &*self.search, viewer, query.clone(), from, limit);
            let page = block_on(page).unwrap();
            assert!(page.items.len() <= limit && page.time == 1);
            ids.extend(page.items.iter().map(|item| item.tweet.tweet.id));
            match page.next {
                Some(next) => from = next,
                None => return ids,
            }
        }
        panic!("the pages have no end");
    }

    fn accounts(&self, viewer: Option<i64>, text: &str, limit: usize) -> Vec<i64> {
        let query = AccountQuery::parse(text).unwrap();
        let (mut ids, mut after): (_, Option<Rank>) = (Vec::new(), None);
        for _ in 0..1_000 {
            let page = search_accounts_page(&self.views, &*self.search, viewer, &query, after, limit);
            let page = block_on(page).unwrap();
            assert!(page.items.len() <= limit);
            ids.extend(page.items.iter().map(|profile| profile.user.id));
            after = page.next;
            if after.is_none() {
                return ids;
            }
        }
        panic!("the pages have no end");
    }
}

pub fn pages_have_all_that_the_viewer_may_see_once_and_in_order<S: Subject>(subject: &S) {
    let scene = Scene::new(subject);
    let by = |authors: &[i64]| {
        let ids = (101..=280).rev().filter(|id| authors.contains(&((id - 101) % 6 + 1)) && *id != 106);
        ids.collect::<Vec<i64>>()
    };
    for (viewer, authors) in [
        (None, &[1, 3, 4, 6][..]),
        (Some(1), &[1, 6]),
        (Some(2), &[1, 2, 3, 4, 6]),
        (Some(3), &[3, 4, 6]),
        (Some(6), &[1, 2, 3, 4, 6]),
    ] {
        for limit in [1, 7, 500] {
            assert_eq!(
                scene.tweets(viewer, "word", SearchFrom::Latest(None), limit),
                by(authors),
                "{viewer:?} {limit}"
            );
            let mut ranked = scene.tweets(viewer, "word", SearchFrom::Relevant(None), limit);
            assert_eq!(ranked.first(), Some(&113).filter(|_| authors.contains(&1)).or(ranked.first()));
            ranked.sort_unstable_by(|one, other| other.cmp(one));
            assert_eq!(ranked, by(authors), "{viewer:?} {limit} by relevance");
        }
    }
    assert_eq!(scene.tweets(None, "from:ADA6 word", SearchFrom::Latest(None), 9), by(&[6]));
    assert_eq!(scene.tweets(None, "word from:ada9", SearchFrom::Latest(None), 9), [0; 0]);
    assert_eq!(scene.tweets(Some(1), "word -from:ada1", SearchFrom::Latest(None), 9), by(&[6]));
    assert_eq!(scene.tweets(None, "has:media", SearchFrom::Relevant(None), 9), [0; 0]);
}

pub fn accounts_are_found_by_the_beginning_of_their_names<S: Subject>(subject: &S) {
    let scene = Scene::new(subject);
    for limit in [1, 2, 10] {
        assert_eq!(scene.accounts(None, "AD", limit), [6, 4, 3, 2, 1], "who has followers comes first");
        assert_eq!(scene.accounts(Some(1), "ada l", limit), [6, 2, 1]);
        assert_eq!(scene.accounts(Some(3), "@ada3", limit), [3]);
    }
    assert_eq!(scene.accounts(None, "da", 10), [0; 0]);
}

/// However often it is committed, killed and replayed.
pub fn what_is_found_is_what_was_put_and_not_deleted<S: Subject>(subject: impl Fn() -> S) {
    let steps = prop::collection::vec((0..12_i64, any::<bool>(), 0..4_u8), 1..30);
    let config = ProptestConfig { cases: S::CASES, ..ProptestConfig::default() };
    TestRunner::new(config).run(&steps, |steps| replayed(&subject(), steps)).unwrap_or_else(|error| panic!("{error}"));
}

fn replayed(subject: &impl Subject, steps: Vec<(i64, bool, u8)>) -> Result<(), TestCaseError> {
    let mut search = subject.open();
    let mut expected = BTreeMap::new();
    search.apply(&closed::<Document>(1, ALL, vec![])).unwrap();
    let mut history = vec![(1, Vec::new())];
    for (time, (id, deleted, then)) in (2..).zip(steps) {
        let document = tweet(id, 7, &format!("all w{time}"));
        let op = match (deleted, expected.contains_key(&id)) {
            (true, true) => {
                expected.remove(&id);
                Op::Delete(document)
            }
            _ => {
                expected.insert(id, time);
                Op::Put(document)
            }
        };
        history.push((time, vec![op.clone()]));
        search.apply(&closed(time, ALL, vec![op])).unwrap();
        match then {
            0 => drop(durable(&*search)),
            1 => {
                search = subject.crash(search);
                // The change log has all that came after what was committed.
                for (time, ops) in &history {
                    search.apply(&closed(*time, ALL, ops.clone())).unwrap();
                }
            }
            _ => {}
        }
    }
    durable(&*search);
    prop_assert_eq!(found(&*search, "all"), expected.keys().rev().copied().collect::<Vec<_>>());
    for (id, time) in &expected {
        prop_assert_eq!(found(&*search, &format!("w{time}")), vec![*id]);
    }
    let snapshot = search.snapshot().unwrap();
    let mut scanned = BTreeSet::new();
    snapshot.scan(&mut |key, _| assert!(scanned.insert(key), "it came twice")).unwrap();
    let expected: BTreeSet<String> = expected.keys().map(|id| format!("tweet {id}")).collect();
    prop_assert_eq!(scanned, expected);
    Ok(())
}

/// What a scan prints is what the SQL of the view prints.
pub fn a_scan_prints_every_document_once(subject: &impl Subject) {
    let search = subject.open();
    let tweets = (1..=2_500).map(|id| tweet(id, 7, &format!("text {id}")));
    search.apply(&closed(1, ALL, put(tweets.chain([account(1, "Ada", "Ada L.")])))).unwrap();
    search.apply(&closed(2, ALL, vec![Op::Delete(tweet(3, 7, ""))])).unwrap();
    assert_eq!(durable(&*search), Some(position(2)));
    let snapshot = search.snapshot().unwrap();
    assert_eq!(snapshot.time(), 2);
    // What comes later is not in it.
    search.apply(&closed(3, ALL, put([tweet(9_999, 7, "late")]))).unwrap();
    durable(&*search);
    let mut rows = BTreeMap::new();
    snapshot.scan(&mut |key, value| assert_eq!(rows.insert(key, value), None)).unwrap();
    assert_eq!(rows.len(), 2_500);
    assert_eq!(rows["account 1"], "Ada\u{1f}Ada L.");
    assert_eq!(rows["tweet 2500"], format!("7\u{1f}text 2500\u{1f}f\u{1f}{}", NEW_YEAR + 2_500 * DAY));
    assert!(!rows.contains_key("tweet 3"));
    assert_eq!(found(&*search, "text 2500 -late").len(), 1);
    let all = block_on(search.latest(&Query::parse("text").unwrap(), None, 20_000)).unwrap();
    assert!(
        all.len() == 2_499 && all.is_sorted_by(|one, other| one > other),
        "newest first, in as many pages as it takes"
    );
}

/// Puts a search index through all of the above: `search_suite!(module, a new Subject)`.
macro_rules! search_suite {
    ($module:ident, $subject:expr) => {
        search_suite!($module, $subject,
            what_is_applied_is_found_soon_without_being_asked_for a_crash_keeps_data_and_progress_together
            a_load_that_did_not_end_is_forgotten an_index_that_is_built_again_is_not_read_before_it_is_whole
            every_operator_finds_what_it_asks_for pages_have_all_that_the_viewer_may_see_once_and_in_order
            accounts_are_found_by_the_beginning_of_their_names a_scan_prints_every_document_once);
    };
    ($module:ident, $subject:expr, $($test:ident)*) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $test() {
                $crate::search::$test(&$subject);
            })*
            #[test]
            fn what_is_found_is_what_was_put_and_not_deleted() {
                $crate::search::what_is_found_is_what_was_put_and_not_deleted(|| $subject);
            }
        }
    };
}
pub(crate) use search_suite;

/// Pages are made on any thread.
#[test]
fn pages_of_search_are_sent_between_threads() {
    fn sent(_: impl Send) {}
    fn pages(views: &LocalViews, search: &dyn SearchStore, query: Query, accounts: &AccountQuery) {
        sent(search_tweets_page(views, search, None, query, SearchFrom::Latest(None), 1));
        sent(search_accounts_page(views, search, None, accounts, None, 1));
    }
    let _ = pages;
}
