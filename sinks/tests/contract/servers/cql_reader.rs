//! The stores in a CQL cluster, read by a process that does not write them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use feedmill_model::{
    Counter, EntryId, Fact, HomeClosed, HomeSink, Lsn, Op, Parameters, Phase, Position, SourceId, User, View, ViewRow,
};
use feedmill_sinks::cql::{CacheAges, CqlError, CqlReader, CqlStores, CqlViews};
use feedmill_sinks::{FrozenViews, IndexStore, StoreViews, Views};
use futures::executor::block_on;

use super::cql::{Cql, RUNTIME, settings, source};
use crate::index::{ALL, Give, closed, position, user};
use crate::world::World;

/// Nothing that a test waits for takes longer.
const LIMIT: Duration = Duration::from_secs(60);

fn read(cql: &Cql, parameters: &Parameters) -> Result<CqlReader, CqlError> {
    let ages = CacheAges { profiles: LIMIT, timelines: LIMIT };
    RUNTIME.block_on(CqlReader::open(cql.settings().clone(), parameters.clone(), ages))
}

/// Brings all stores to a time, with these facts and rows.
pub fn apply(stores: &CqlStores, time: u64, facts: Vec<Op<Fact>>, rows: Vec<Op<ViewRow>>) {
    stores.index.give(&closed(time, ALL, facts)).unwrap();
    stores.index.give(&closed(time, ALL, rows)).unwrap();
    stores.home.apply(&mut HomeClosed::empty(position(time), ALL)).unwrap();
}

#[track_caller]
fn reached(views: &CqlViews, phase: Phase, time: u64) {
    let has = block_on(async {
        let _runtime = RUNTIME.enter();
        views.progress().reached(phase, Lsn(time * 10), LIMIT).await
    });
    assert!(has, "{phase:?} is at {:?} and not at {time}", views.progress().position(phase));
}

fn named(views: &CqlViews, id: i64) -> Option<String> {
    block_on(views.profiles(&[id])).unwrap()[0].as_ref().map(|profile| profile.user.display_name.clone())
}

fn put_user(id: i64, name: &str) -> Op<ViewRow> {
    Op::Put(ViewRow::Profile(Box::new(User { display_name: name.to_owned(), ..user(id) })))
}

const BLOCK: Fact = Fact::Block { blocker: 1, blocked: 2 };

#[test]
fn who_reads_waits_for_all_shards_and_sees_what_it_waited_for() {
    let cql = Cql::new();
    let stores = cql.stores();
    apply(&stores, 10, vec![Op::Put(BLOCK)], vec![put_user(1, "one")]);
    let reader = read(&cql, &Parameters::default()).unwrap();
    let views = reader.views();
    assert!(reader.missing().is_empty());
    reached(&views, Phase::Home, 10);
    assert_eq!(named(&views, 1).as_deref(), Some("one"));
    assert!(block_on(views.relationships(Some(1), &[2])).unwrap()[0].blocks);
    let heard = views.changes().listen();
    // A time that one worker has brought is not reached, and what another brings without rows is, though nobody asks for it.
    let shard = 1 << feedmill_model::shard_of(1);
    stores.index.give(&closed::<Fact>(20, ALL, vec![])).unwrap();
    stores.index.give(&closed(20, shard, vec![put_user(1, "two")])).unwrap();
    reached(&views, Phase::Facts, 20);
    let moved = views.progress().watch();
    assert_eq!(views.progress().position(Phase::Rows), position(10));
    stores.index.give(&closed::<ViewRow>(20, !shard, vec![])).unwrap();
    reached(&views, Phase::Rows, 20);
    assert!(moved.has_changed().unwrap() && heard.take().unnamed);
    // What was held before is older than that.
    assert_eq!(named(&views, 1).as_deref(), Some("two"));
    for n in 3..20_u64 {
        let entry = EntryId::tweet(n as i64);
        let row = ViewRow::TimelineEntry { user: 1, reply: false, entry, tweet: entry.id };
        apply(&stores, n * 10, vec![], vec![put_user(1, &n.to_string()), Op::Put(row)]);
        reached(&views, Phase::Rows, n * 10);
        assert_eq!(named(&views, 1), Some(n.to_string()));
        assert_eq!(block_on(views.user_timeline(1, false, None, 4)).unwrap()[0].entry, entry);
    }
    // What is not there is not held.
    assert_eq!(named(&views, 7), None);
    stores.index.give(&closed(200, ALL, vec![put_user(7, "seven")])).unwrap();
    assert_eq!(named(&views, 7).as_deref(), Some("seven"));
}

#[test]
fn nothing_of_a_store_that_is_built_again_is_read() {
    let cql = Cql::new();
    let stores = cql.stores();
    apply(&stores, 10, vec![Op::Put(BLOCK)], vec![put_user(1, "one")]);
    apply(&stores, 20, vec![], vec![]);
    let views = read(&cql, &Parameters::default()).unwrap().views();
    reached(&views, Phase::Home, 20);
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let looks = scope.spawn(|| {
            let (mut seen, mut refused) = (0, 0);
            while !over.load(Ordering::Acquire) {
                match block_on(views.relationships(Some(1), &[2])) {
                    Ok(facts) => {
                        assert!(facts[0].blocks, "after {seen} looks");
                        seen += 1;
                    }
                    Err(error) => {
                        assert_eq!(error.rebuilding(), Some(Phase::Facts), "{error}");
                        refused += 1;
                    }
                }
            }
            (seen, refused)
        });
        stores.index.rebuild_facts(20).unwrap();
        // Who comes now finds rows that are newer than these facts.
        let late = read(&cql, &Parameters::default()).unwrap();
        assert_eq!(late.missing(), [Phase::Facts]);
        let loaded = feedmill_model::Closed { loading: true, ..closed(3, ALL, vec![Op::Put(BLOCK)]) };
        stores.index.give(&loaded).unwrap();
        stores.index.give(&closed::<Fact>(15, ALL, vec![])).unwrap();
        stores.index.durable().unwrap();
        let deadline = Instant::now() + Duration::from_millis(500);
        while Instant::now() < deadline {
            assert!(block_on(late.views().relationships(Some(1), &[2])).is_err());
        }
        stores.index.give(&closed::<Fact>(20, ALL, vec![])).unwrap();
        stores.index.durable().unwrap();
        reached(&views, Phase::Facts, 20);
        reached(&late.views(), Phase::Facts, 20);
        assert!(block_on(late.views().relationships(Some(1), &[2])).unwrap()[0].blocks);
        over.store(true, Ordering::Release);
        let (seen, refused) = looks.join().unwrap();
        assert!(seen > 0 && refused > 0, "{seen} looks, {refused} were refused");
    });
}

#[test]
fn positions_are_of_one_history_and_another_database_ends_it() {
    let cql = Cql::new();
    let stores = cql.stores();
    apply(&stores, 10, vec![], vec![]);
    let reader = read(&cql, &Parameters::default()).unwrap();
    let views = reader.views();
    reached(&views, Phase::Rows, 10);
    let promoted = SourceId { timeline: 2, ..source() };
    stores.index.begin_history(&promoted, 15).unwrap();
    let mut of = reader.source();
    RUNTIME.block_on(async { tokio::time::timeout(LIMIT, of.wait_for(|of| *of == promoted)).await.unwrap().unwrap() });
    assert_eq!(views.progress().position(Phase::Rows), Position { time: 10, lsn: Lsn(0) });
    apply(&stores, 20, vec![], vec![]);
    reached(&views, Phase::Rows, 20);
    stores.index.begin_history(&SourceId { system: 8, ..source() }, 25).unwrap();
    let fault = RUNTIME.block_on(async { tokio::time::timeout(LIMIT, reader.fault()).await.unwrap() });
    assert!(fault.to_string().contains("system 8"), "{fault}");
}

#[test]
fn a_keyspace_that_nobody_fills_or_otherwise_is_refused_with_a_sentence() {
    let nobody = settings(Cql::new().settings().nodes[0].clone());
    let open = CqlReader::open(nobody.clone(), Parameters::default(), CacheAges::default());
    let error = RUNTIME.block_on(open).err().unwrap();
    assert!(error.may_pass() && error.to_string().contains(&nobody.keyspace), "{error}");
    assert!(matches!(error, CqlError::Empty { .. }), "{error}");
    let cql = Cql::new();
    drop(cql.stores());
    let reader = read(&cql, &Parameters::default()).unwrap();
    assert_eq!(reader.missing(), [Phase::Facts, Phase::Rows, Phase::Home, Phase::Reactions]);
    let error = block_on(reader.views().profiles(&[1])).err().unwrap();
    assert_eq!(error.rebuilding(), Some(Phase::Rows));
    let error = read(&cql, &Parameters { fanout_days: 7, ..Parameters::default() }).err().unwrap();
    assert!(!error.may_pass() && error.to_string().contains("--fanout-days 30"), "{error}");
}

fn printed(views: &FrozenViews, view: View) -> Vec<(String, String)> {
    let mut rows = Vec::new();
    views.scan(view, 1, &mut |key, value| rows.push((key, value))).unwrap();
    rows.sort();
    rows
}

#[test]
fn a_copy_by_who_reads_is_that_of_who_writes() {
    let cql = Cql::new();
    let world = World::example();
    let stores = cql.stores();
    stores.index.give(&closed(1, ALL, world.facts().into_iter().map(Op::Put).collect::<Vec<_>>())).unwrap();
    stores.index.give(&closed::<ViewRow>(1, ALL, world.rows())).unwrap();
    world.apply_home(&*stores.home, &world.whole(), &Parameters::default());
    stores.home.durable().unwrap();
    let views = read(&cql, &Parameters::default()).unwrap().views();
    let folder = tempfile::tempdir().unwrap();
    let own = super::cql::views(&stores).freeze(&folder.path().join("own"), 1 << 30);
    let other = views.freeze(&folder.path().join("other"), 1 << 30);
    let (own, other) = (own.unwrap(), other.unwrap());
    for view in View::ALL.into_iter().filter(|view| *view != View::Search) {
        assert_eq!(printed(&own, view), printed(&other, view), "{view:?}");
    }
    let mut followers = 0;
    views.counts(Counter::Followers, &mut |_, count| followers += count).unwrap();
    assert!(followers > 0);
}
