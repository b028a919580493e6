//! Lists of trends in a CQL cluster: rows leave them as fast as they come, for ever.

use std::collections::BTreeMap;

use feedmill_model::{Op, Parameters, RowSink, Time, TrendWindow, ViewRow};
use feedmill_sinks::cql::CqlStores;
use feedmill_sinks::{IndexStore, Views};
use futures::executor::block_on;
use scylla::client::session::Session;
use scylla::statement::unprepared::Statement;

use super::cql::{Cql, RUNTIME, dump, open, session, views};
use crate::index::{ALL, Give, closed};

/// How many a list has.
const LISTED: i64 = 20;
/// Tags that come and go in turn; tweets do not come back.
const TAGS: i64 = 50;

/// The tweets that trend at the time `n`, and their likes.
fn tweets(n: i64) -> BTreeMap<i64, u64> {
    let first = (n - LISTED).max(0) + 1;
    (first..=n).map(|tweet| (tweet, (tweet % 7 + (n - tweet) / 3) as u64)).collect()
}

/// The tags that do, and how often they are used.
fn tags(n: i64) -> BTreeMap<String, u64> {
    tweets(n).into_iter().map(|(tweet, likes)| (format!("t{}", tweet % TAGS), likes)).collect()
}

/// What a list that was `before` and is `after` has of operations.
fn ops<K: Ord + Clone>(
    before: &BTreeMap<K, u64>,
    after: &BTreeMap<K, u64>,
    row: impl Fn(K, u64) -> ViewRow,
) -> Vec<Op<ViewRow>> {
    let gone = before.iter().filter(|(key, _)| !after.contains_key(key));
    let new = after.iter().filter(|(key, count)| before.get(key) != Some(count));
    let gone = gone.map(|(key, count)| Op::Delete(row(key.clone(), *count)));
    gone.chain(new.map(|(key, count)| Op::Put(row(key.clone(), *count)))).collect()
}

fn apply(stores: &CqlStores, n: i64) {
    let tweet = |tweet, likes| ViewRow::TrendingTweet { tweet, likes };
    let tag = |tag, uses| ViewRow::TrendingTag { window: TrendWindow::Hour, tag, authors: 1, uses };
    let tweets = ops(&tweets(n - 1), &tweets(n), tweet);
    let tags = ops(&tags(n - 1), &tags(n), tag);
    stores.index.give(&closed(n as Time, ALL, tweets.into_iter().chain(tags).collect())).unwrap();
}

/// Whether the stores serve what trends at the time `n`.
fn is_served(stores: &CqlStores, n: i64) {
    let views = views(stores);
    let found = block_on(views.trending_tweets()).unwrap();
    assert_eq!(found.len() as i64, n.min(LISTED), "at {n}");
    assert_eq!(found.into_iter().map(|tweet| (tweet.tweet, tweet.likes)).collect::<BTreeMap<_, _>>(), tweets(n));
    let found = block_on(views.trending_tags(TrendWindow::Hour)).unwrap();
    assert_eq!(found.into_iter().map(|tag| (tag.tag, tag.uses)).collect::<BTreeMap<_, _>>(), tags(n));
}

/// How many deletes the server passes by to answer this, as it tells itself.
pub fn passed_by(session: &Session, text: &str) -> u64 {
    let mut statement = Statement::new(text);
    statement.set_tracing(true);
    let told = RUNTIME.block_on(async {
        let found = session.query_unpaged(statement, ()).await.unwrap();
        session.get_tracing_info(&found.tracing_id().unwrap()).await.unwrap()
    });
    let told: Vec<String> = told.events.into_iter().filter_map(|event| event.activity).collect();
    let words: Vec<&str> = told.iter().flat_map(|line| line.split(' ')).collect();
    // Cassandra has "20 live rows and 0 tombstone cells", ScyllaDB "20 clustering row(s) (20 live, 0 dead)".
    let is_of_deletes = |word: &str| word.starts_with("tombstone") || word.starts_with("dead");
    let numbers = words.windows(2).filter(|pair| is_of_deletes(pair[1])).filter_map(|pair| pair[0].parse::<u64>().ok());
    numbers.max().unwrap_or_else(|| panic!("it does not tell of deletes: {told:?}"))
}

/// As a crash leaves it that comes after the rows of the time `n`, and before the progress of the last `lost` times.
fn lose_progress(session: &Session, n: i64, lost: i64) {
    for store in ["rows", "reactions"] {
        let (time, at) = (n - lost, n * 1_000 + 500);
        let back = format!(
            "INSERT INTO progress (store, generation, shards, time, lsn) VALUES ('{store}', 0, -1, {time}, 0) \
             USING TIMESTAMP {at}"
        );
        RUNTIME.block_on(session.query_unpaged(back, ())).unwrap();
    }
}

#[test]
fn c48_lists_of_trends_gather_no_deletes_and_are_what_they_were_after_a_replay() {
    const TIMES: i64 = 2_000;
    const LOST: i64 = 90;
    let cql = Cql::new();
    let own = session_of(&cql);
    let mut stores = cql.stores();
    for n in 1..=TIMES {
        apply(&stores, n);
        if n % 400 != 0 {
            continue;
        }
        is_served(&stores, n);
        let before = dump(&own, "rows");
        lose_progress(&own, n, LOST);
        drop(stores);
        stores = cql.stores();
        let reached = RowSink::<ViewRow>::progress(&*stores.index).into_iter().chain(stores.index.reactions_progress());
        assert!(reached.flatten().all(|at| at.time == (n - LOST) as Time), "the last times are applied again");
        for again in n - LOST + 1..=n {
            apply(&stores, again);
            is_served(&stores, n);
        }
        assert_eq!(dump(&own, "rows"), before, "a replay changes nothing");
    }
    let of_tweets = "SELECT key FROM rows WHERE owner = 0 AND kind = 'trending_tweets'";
    let of_tags = "SELECT key FROM rows WHERE owner = 1 AND kind = 'trending_hashtags'";
    assert_eq!([of_tweets, of_tags].map(|list| passed_by(&own, list)), [0, 0]);
    // One that is deleted is told of.
    let delete = "DELETE FROM rows WHERE owner = 0 AND kind = 'trending_tweets' AND key = 0x00";
    RUNTIME.block_on(own.query_unpaged(delete, ())).unwrap();
    assert_eq!(passed_by(&own, of_tweets), 1);
    // A list without rows is one, too.
    let gone = tweets(TIMES).into_iter().map(|(tweet, likes)| Op::Delete(ViewRow::TrendingTweet { tweet, likes }));
    stores.index.give(&closed(1 + TIMES as Time, ALL, gone.collect())).unwrap();
    assert!(block_on(views(&stores).trending_tweets()).unwrap().is_empty());
    assert_eq!(passed_by(&own, of_tweets), 1);
}

#[test]
fn a_list_of_trends_is_what_it_was_whoever_goes_on_with_it() {
    let cql = Cql::new();
    let [earlier, later] = [(); 2].map(|()| open(cql.settings(), &Parameters::default()));
    (1..=30).for_each(|n| apply(&earlier, n));
    // It was opened before there was anything, and reads what it goes on with.
    for n in 1..=60 {
        apply(&later, n);
        is_served(&later, n.max(30));
    }
    let own = session_of(&cql);
    let before = dump(&own, "rows");
    // For a moment the one before it does not know.
    (31..=40).for_each(|n| apply(&earlier, n));
    assert_eq!(dump(&own, "rows"), before, "what is late changes nothing");
    // All is built again, from early times on.
    later.index.rebuild_rows(0).unwrap();
    (1..=40).for_each(|n| apply(&later, n));
    is_served(&later, 40);
}

fn session_of(cql: &Cql) -> Session {
    // The keyspace is made by whoever opens the stores first.
    drop(cql.stores());
    session(cql.settings())
}
