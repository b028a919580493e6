//! A CQL node is killed, or does not answer, while the stores write.

use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;
use std::time::Duration;

use feedmill_model::{Fact, Op, RowSink, Time, ViewRow};
use feedmill_sinks::Views;
use feedmill_sinks::cql::CqlSettings;
use feedmill_test_servers::Cassandra;
use futures::executor::block_on;

use super::cql::{open, settings, views};
use super::cql_cases::{apply, facts, is_as_expected, open_for_cases, rows, until};
use crate::index::{ALL, Give, closed, user};

/// Closed times of a crash test.
const TIMES: i64 = 24;

#[test]
fn c43_c45_a_node_that_is_killed_in_the_middle_loses_nothing_that_progress_tells_of() {
    let node = Cassandra::mortal();
    let settings = settings(node.address());
    let told = AtomicI64::new(0);
    for killed_after in [TIMES / 3, 2 * TIMES / 3] {
        let stores = open_for_cases(&settings);
        thread::scope(|scope| {
            // It goes on through the crash: a request that fails is tried again.
            let applied = scope.spawn(|| {
                for n in told.load(Ordering::Acquire) + 1..=killed_after + 4 {
                    apply(&stores, n);
                    told.store(n, Ordering::Release);
                }
            });
            until("the time after which it is killed", || told.load(Ordering::Acquire) >= killed_after);
            node.kill();
            node.start_again();
            applied.join().unwrap();
        });
        assert_eq!(stores.home.anomalies(), 0);
    }
    // A process that dies with its node: what is there goes as far as the progress, and the rest comes again.
    let stores = open_for_cases(&settings);
    node.kill();
    drop(stores);
    node.start_again();
    let stores = open_for_cases(&settings);
    let reached = RowSink::<ViewRow>::progress(&*stores.index).into_iter().min_by_key(|at| at.map(|at| at.time));
    let told = told.load(Ordering::Acquire);
    assert!(reached.flatten().is_some_and(|at| at.time >= told as Time), "progress was told of and is not there");
    let read = views(&stores);
    let ids: Vec<i64> = (1..=told).collect();
    assert!(
        block_on(read.tweets(&ids)).unwrap().iter().all(Option::is_some),
        "a row that progress tells of is not there"
    );
    (1..=TIMES).for_each(|n| apply(&stores, n));
    assert_eq!(stores.home.anomalies(), 0);
    is_as_expected(&settings, TIMES);
}

#[test]
fn c51_a_node_that_does_not_answer_holds_up_who_writes_and_is_written_when_it_goes_on() {
    let node = Cassandra::mortal();
    let settings = CqlSettings { timeout: Duration::from_secs(1), ..settings(node.address()) };
    let stores = open_for_cases(&settings);
    apply(&stores, 1);
    let applied = AtomicI64::new(1);
    node.freeze();
    let before = stores.retries();
    thread::scope(|scope| {
        let writer = scope.spawn(|| {
            for n in 2..=5 {
                apply(&stores, n);
                applied.store(n, Ordering::Release);
            }
        });
        until("attempts that were not answered", || stores.retries() > before + 2);
        assert_eq!(applied.load(Ordering::Acquire), 1, "a closed time that is not acknowledged is not told of");
        node.thaw();
        writer.join().unwrap();
    });
    is_as_expected(&settings, 5);
}

#[test]
fn a_server_that_is_away_is_an_error_that_says_what_to_do() {
    let node = Cassandra::mortal();
    let settings =
        CqlSettings { retry_for: Duration::from_secs(2), timeout: Duration::from_secs(1), ..settings(node.address()) };
    let stores = open(&settings, &Default::default());
    node.kill();
    let row = Op::Put(ViewRow::Profile(Box::new(user(1))));
    let error = stores.index.give(&closed(1, ALL, vec![row])).unwrap_err().to_string();
    for part in ["apply the closed time 1", "rows", &node.address(), "Check that enough of its nodes run"] {
        assert!(error.contains(part), "{error} lacks {part}");
    }
    assert!(RowSink::<ViewRow>::progress(&*stores.index).iter().all(Option::is_none));
    // The same store goes on when the server does.
    node.start_again();
    let applied = |n: i64| {
        let facts: Result<_, _> = stores.index.give(&closed::<Fact>(n as Time, ALL, facts(n)));
        facts.and_then(|()| stores.index.give(&closed(n as Time, ALL, rows(n)))).is_ok()
    };
    until("a closed time that is applied", || applied(1));
}
