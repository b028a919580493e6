//! What a CQL cluster can do to what is written: each case by its name.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use feedmill_model::{Counter, Fact, HomeSink, Op, Parameters, RowSink, Time, TrendWindow, Tweet, User, ViewRow};
use feedmill_sinks::cql::{CqlSettings, CqlStores};
use feedmill_sinks::{Edge, List, Views};
use feedmill_test_servers::Cassandra;
use futures::executor::block_on;

use super::cql::{Cql, RUNTIME, dump, open, session, settings};
use super::cql_trends::passed_by;
use super::proxy::Proxy;
use crate::home::{START, active, closed as home_closed, hot, id, packed};
use crate::index::{ALL, Give, Subject, closed, user};

const TABLES: [&str; 4] = ["facts", "rows", "lists", "home"];

/// Waits for what must come, and says what it was if it does not.
pub fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(120);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come");
        thread::sleep(Duration::from_millis(5));
    }
}

/// What happens at the time `n`: rows of every kind that change, come and go.
pub fn rows(n: i64) -> Vec<Op<ViewRow>> {
    let tweet = |id: i64| Tweet { id, user_id: 1, content: format!("at {n}"), conversation_id: id, ..Tweet::default() };
    let mut rows = vec![
        Op::Put(ViewRow::Tweet(Box::new(tweet(n)))),
        Op::Put(ViewRow::Tweet(Box::new(tweet(-1)))),
        Op::Put(ViewRow::Profile(Box::new(User { display_name: format!("at {n}"), ..user(1) }))),
        Op::Add(ViewRow::Count { counter: Counter::Tweets, of: 1 }, 1),
        Op::Add(ViewRow::Count { counter: Counter::Likes, of: n % 5 }, n),
    ];
    for follower in 0..40 {
        let (at, follower) = (n * 1_000 + follower, n * 100 + follower);
        rows.push(Op::Put(ViewRow::Follower { user: 1, at, follower }));
        if n > 1 && follower % 2 == 0 {
            let (at, follower) = (at - 1_000, follower - 100);
            rows.push(Op::Delete(ViewRow::Follower { user: 1, at, follower }));
        }
    }
    let trending =
        |n: i64| ViewRow::TrendingTag { window: TrendWindow::Day, tag: format!("t{n}"), authors: 1, uses: 1 };
    rows.push(Op::Put(trending(n)));
    rows.extend((n > 3).then(|| Op::Delete(trending(n - 3))));
    rows
}

pub fn facts(n: i64) -> Vec<Op<Fact>> {
    let follow = |following, accepted| Fact::Follow { follower: 1, following, accepted };
    let mut facts: Vec<_> = (0..40).map(|other| Op::Put(follow(n * 100 + other, n % 2 == 0))).collect();
    facts.push(Op::Put(follow(-1, n % 2 == 0)));
    if n > 1 {
        facts.push(Op::Delete(follow((n - 1) * 100, (n - 1) % 2 == 0)));
    }
    facts
}

/// Entries come and go, accounts become hot, and timelines are cut.
fn home(n: u64) -> feedmill_model::HomeClosed {
    let viewers = 1..=6_i64;
    let mut records = Vec::new();
    let mut entries = Vec::new();
    for viewer in viewers {
        if n == 1 {
            records.push(active(viewer, 1));
        }
        entries.push((viewer, packed(id(n)), 1));
        entries.push((viewer, packed(id(n + 1_000)), 1));
        if n > 1 && n.is_multiple_of(3) {
            entries.push((viewer, packed(id(n - 1 + 1_000)), -1));
        }
        records.extend(n.is_multiple_of(4).then_some(hot(viewer, n as i64, 1)));
    }
    home_closed(START + n, records, &entries)
}

pub fn apply(stores: &CqlStores, n: i64) {
    let time = n as Time;
    stores.index.give(&closed(time, ALL, facts(n))).unwrap();
    stores.index.give(&closed(time, ALL, rows(n))).unwrap();
    stores.home.apply(&mut home(time)).unwrap();
}

/// Everything that a keyspace holds, with write timestamps.
pub fn contents(settings: &CqlSettings) -> Vec<BTreeMap<String, String>> {
    let session = session(settings);
    TABLES.map(|table| dump(&session, table)).into()
}

fn parameters() -> Parameters {
    Parameters { home_max: 20, home_keep: 12, ..Parameters::default() }
}

/// What the times up to `n` leave where nothing goes wrong.
pub fn expected(n: i64) -> Vec<BTreeMap<String, String>> {
    let settings = settings(Cassandra::shared().address());
    let stores = open(&settings, &parameters());
    (1..=n).for_each(|n| apply(&stores, n));
    assert_eq!(stores.home.anomalies(), 0);
    contents(&settings)
}

fn same(found: &[BTreeMap<String, String>], expected: &[BTreeMap<String, String>]) {
    for ((table, found), expected) in TABLES.iter().zip(found).zip(expected) {
        for (key, value) in found {
            assert_eq!(Some(value), expected.get(key), "{table} has {key}");
        }
        let lacks = expected.keys().find(|key| !found.contains_key(*key));
        assert_eq!(lacks, None, "{table} lacks it");
    }
}

pub fn is_as_expected(settings: &CqlSettings, n: i64) {
    same(&contents(settings), &expected(n));
}

pub fn open_for_cases(settings: &CqlSettings) -> CqlStores {
    open(settings, &parameters())
}

#[test]
fn c44_a_write_whose_answer_was_lost_is_written_again_with_the_same_result() {
    let proxy = Proxy::to(Cassandra::shared().address());
    let settings = settings(proxy.address());
    let stores = open_for_cases(&settings);
    apply(&stores, 1);
    for n in 2..=4 {
        proxy.lose_answers();
        let lost = proxy.lost();
        thread::scope(|scope| {
            let applied = scope.spawn(|| apply(&stores, n));
            until("an answer that is lost", || proxy.lost() > lost);
            proxy.pass_answers();
            applied.join().unwrap();
        });
    }
    assert!(stores.retries() >= 3, "each was sent again");
    assert_eq!(stores.home.anomalies(), 0);
    is_as_expected(&settings, 4);
}

#[test]
fn c46_a_replay_writes_the_same_keys_timestamps_and_values() {
    let settings = settings(Cassandra::shared().address());
    let mut stores = open_for_cases(&settings);
    let own = session(&settings);
    for n in 1..=6 {
        apply(&stores, n);
        let before = contents(&settings);
        // As a crash leaves it that comes after all rows, and before the progress.
        let (time, at) = (n - 1, n * 1_000 + 500);
        for (store, time) in [("facts", time), ("rows", time), ("home", START as i64 + time)] {
            let at = if store == "home" { START as i64 * 1_000 + at } else { at };
            let back = format!(
                "INSERT INTO progress (store, generation, shards, time, lsn) VALUES ('{store}', 0, -1, {time}, 0) \
                 USING TIMESTAMP {at}"
            );
            RUNTIME.block_on(own.query_unpaged(back, ())).unwrap();
        }
        drop(stores);
        stores = open_for_cases(&settings);
        let reached = RowSink::<ViewRow>::progress(&*stores.index).into_iter().chain(stores.home.progress());
        let missing = reached.flatten().all(|at| at.time == time as Time || at.time == START + time as Time);
        assert!(missing, "the time {n} is applied again");
        apply(&stores, n);
        assert_eq!(stores.home.anomalies(), 0);
        same(&contents(&settings), &before);
    }
    is_as_expected(&settings, 6);
}

#[test]
fn c47_a_row_that_is_replaced_is_one_put_and_what_is_late_changes_nothing() {
    let cql = Cql::new();
    let store = cql.open();
    let views = cql.views(&store);
    let own = session(cql.settings());
    let name = |user| ViewRow::Username { name: "ada".into(), user };
    let found = || block_on(views.user_by_name("ada")).unwrap();
    store.give(&closed(1, ALL, vec![Op::Put(name(9))])).unwrap();
    // Smaller than what was there: at one timestamp the greater would stay.
    store.give(&closed(2, ALL, vec![Op::Put(name(3))])).unwrap();
    assert_eq!(found(), Some(3));
    let write = |value: i64, at: i64| {
        let text = "UPDATE rows USING TIMESTAMP ? SET value = ? WHERE owner = ? AND kind = 'username' AND key = ?";
        let owner = feedmill_model::name_owner("ada");
        let values = (at, value.to_be_bytes().to_vec(), owner, b"ada".to_vec());
        RUNTIME.block_on(own.query_unpaged(text, values)).unwrap();
    };
    write(7, 1_999);
    assert_eq!(found(), Some(3), "what is late changes nothing");
    store.give(&closed(3, ALL, vec![Op::Delete(name(3))])).unwrap();
    write(8, 3_000);
    assert_eq!(found(), None, "of two operations with one timestamp a delete wins");
    store.give(&closed(4, ALL, vec![Op::Put(name(1))])).unwrap();
    write(2, 4_000);
    assert_eq!(found(), Some(2), "and of two puts the greater value");
    // So of each row the store writes one operation a time, whatever parts the row's list has.
    let edge = |at| ViewRow::Follower { user: 1, at, follower: at };
    for n in 5..30 {
        let puts = (0..20).map(|follower| Op::Put(edge(n * 100 + follower)));
        let deletes = (0..20).filter(|_| n > 5).map(|follower| Op::Delete(edge((n - 1) * 100 + follower)));
        store.give(&closed(n as Time, ALL, puts.chain(deletes).collect())).unwrap();
        let page = block_on(views.edges(List::Followers, 1, None, 100)).unwrap();
        assert_eq!(page.len(), 20, "at {n}");
    }
}

/// The sizes of all partitions of the lists.
fn partitions(settings: &CqlSettings) -> BTreeMap<(String, i64, i64), i64> {
    let session = session(settings);
    let text = "SELECT kind, owner, part, count(*) FROM lists GROUP BY kind, owner, part";
    let found = RUNTIME.block_on(session.query_unpaged(text, ())).unwrap().into_rows_result().unwrap();
    let rows = found.rows::<(String, i64, i64, i64)>().unwrap();
    rows.map(|row| row.unwrap()).map(|(view, owner, part, count)| ((view, owner, part), count)).collect()
}

#[test]
fn c48_the_partitions_of_an_account_with_very_many_followers_are_bounded() {
    const FOLLOWERS: i64 = 24_000;
    const DAY_US: i64 = 86_400_000_000;
    let cql = Cql::new();
    let store = cql.open();
    let views = cql.views(&store);
    // Some come over months, some in one minute, and some in one microsecond.
    let at = |follower: i64| match follower % 3 {
        0 => follower * DAY_US / 100,
        1 => 90 * DAY_US + follower,
        _ => 91 * DAY_US,
    };
    let edge = |follower| ViewRow::Follower { user: 1, at: at(follower), follower };
    let mut sorted: Vec<Edge> = (0..FOLLOWERS).map(|id| Edge { at: at(id), id }).collect();
    sorted.sort_by(|one, other| other.cmp(one));
    for (time, followers) in sorted.rchunks(1_500).enumerate() {
        let puts = followers.iter().map(|edge_of| Op::Put(edge(edge_of.id))).collect();
        store.give(&closed(1 + time as Time, ALL, puts)).unwrap();
    }
    let sizes = partitions(cql.settings());
    let of_account = || sizes.iter().filter(|((view, owner, _), _)| view == "followers" && *owner == 1);
    let greatest = of_account().map(|(_, size)| *size).max().unwrap();
    let partition_rows = cql.settings().partition_rows as i64;
    assert!(greatest <= 12 * partition_rows, "{greatest} rows of {partition_rows}");
    let parts: BTreeSet<i64> = of_account().map(|((_, _, part), _)| *part).collect();
    assert!(parts.len() as i64 > FOLLOWERS / (12 * partition_rows), "{} parts", parts.len());

    let all = |limit: usize| {
        let (mut found, mut after): (Vec<Edge>, _) = (Vec::new(), None);
        loop {
            let page = block_on(views.edges(List::Followers, 1, after, limit)).unwrap();
            after = page.last().copied().or(after);
            let is_last = page.len() < limit;
            found.extend(page);
            if is_last {
                return found;
            }
        }
    };
    assert!(all(1_000) == sorted, "pages are the followers, newest first");
    assert_eq!(block_on(views.edges(List::Followers, 1, None, 7)).unwrap(), sorted[..7]);
    let (gone, stay): (Vec<Edge>, Vec<Edge>) = sorted.into_iter().partition(|edge| edge.id % 2 == 0);
    let deletes = gone.iter().map(|edge_of| Op::Delete(edge(edge_of.id))).collect();
    store.give(&closed(1_000, ALL, deletes)).unwrap();
    assert!(all(777) == stay, "who is deleted is found in whatever part");
    let first = "SELECT key FROM lists WHERE kind = 'followers' AND owner = 1 AND part = 0";
    let deletes = passed_by(&session(cql.settings()), first);
    assert!(deletes <= 12 * cql.settings().partition_rows, "{deletes} deletes in a part of {partition_rows}");
    // A start knows what is full.
    let store = cql.crash(store);
    let back = gone.iter().take(50).map(|edge_of| Op::Put(edge(edge_of.id))).collect();
    store.give(&closed(1_001, ALL, back)).unwrap();
    let expected: BTreeSet<i64> = stay.iter().chain(gone.iter().take(50)).map(|edge| edge.id).collect();
    let read: Arc<dyn Views> = cql.views(&store);
    let found = block_on(read.edges(List::Followers, 1, None, FOLLOWERS as usize)).unwrap();
    assert!(found.iter().map(|edge| edge.id).collect::<BTreeSet<_>>() == expected);
    assert_eq!(found.len(), expected.len());
}
