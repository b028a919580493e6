//! The stores in a CQL cluster, put through the suites.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use feedmill_model::{
    Counter, Fact, HomeClosed, HomeSink, Op, Parameters, Phase, Position, RowSink, SourceId, StoreError, View, ViewRow,
};
use feedmill_sinks::cql::{CqlIndex, CqlSettings, CqlStores, CqlViews};
use feedmill_sinks::{
    FrozenViews, HomeRecord, IndexStore, LocalHome, LocalIndex, LocalViews, Progress, StoreViews, Views,
};
use feedmill_test_servers::Cassandra;
use futures::executor::block_on;
use parking_lot::Mutex;
use proptest::prelude::*;
use scylla::client::session::Session;
use scylla::client::session_builder::SessionBuilder;
use tokio::runtime::Runtime;

use crate::home::home_suite;
use crate::index::{ALL, Give, Subject, closed, index_suite, position, user};
use crate::leaks::{blocks_hide_everything, open_world};
use crate::pages::all_home;
use crate::world::{World, layouts, worlds};

/// Where the sessions of all tests live.
pub static RUNTIME: LazyLock<Runtime> =
    LazyLock::new(|| tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap());

pub fn source() -> SourceId {
    SourceId { system: 7, timeline: 1, slot: "feedmill".to_owned() }
}

/// A keyspace that no other test has, at the server of this address. Its partitions are full early.
pub fn settings(address: String) -> CqlSettings {
    static NUMBER: AtomicU32 = AtomicU32::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let keyspace = format!("t_{}_{number}", std::process::id());
    CqlSettings { nodes: vec![address], keyspace, partition_rows: 32, ..CqlSettings::default() }
}

/// Opens the stores as a process does that is the only one.
pub fn open(settings: &CqlSettings, parameters: &Parameters) -> CqlStores {
    RUNTIME.block_on(async {
        let stores = CqlStores::open(settings.clone(), &source(), parameters.clone()).await.unwrap();
        stores.clear_incomplete().await.unwrap();
        stores
    })
}

pub fn views(stores: &CqlStores) -> CqlViews {
    let progress = Arc::new(Progress::new([Position::default(); 5]));
    CqlViews::new(stores.index.clone(), stores.home.clone(), progress)
}

/// A session of the test's own.
pub fn session(settings: &CqlSettings) -> Session {
    let builder = SessionBuilder::new().known_nodes(&settings.nodes).use_keyspace(&settings.keyspace, false);
    RUNTIME.block_on(builder.build()).unwrap()
}

/// A keyspace of the shared server; it goes with the test.
pub struct Cql {
    settings: CqlSettings,
    stores: Mutex<Option<CqlStores>>,
}

impl Cql {
    pub fn new() -> Self {
        Cql { settings: settings(Cassandra::shared().address()), stores: Mutex::default() }
    }

    pub fn settings(&self) -> &CqlSettings {
        &self.settings
    }

    pub fn stores(&self) -> CqlStores {
        let stores = open(&self.settings, &Parameters::default());
        *self.stores.lock() = Some(stores.clone());
        stores
    }
}

impl Drop for Cql {
    fn drop(&mut self) {
        // The server of the tests goes with them; another one is left as it was.
        if std::env::var("FEEDMILL_TEST_CQL").is_ok() && self.stores.lock().take().is_some() {
            let drop = format!("DROP KEYSPACE {}", self.settings.keyspace);
            RUNTIME.block_on(session(&self.settings).query_unpaged(drop, ())).unwrap();
        }
    }
}

impl Subject for Cql {
    type Store = CqlIndex;
    // A server takes some ten thousand rows a second here.
    const MANY: i64 = 3_000;
    const TIMES: i64 = 60;

    fn open(&self) -> Arc<CqlIndex> {
        self.stores().index
    }

    /// What the store has, the server has: nothing is left in the process.
    fn crash(&self, store: Arc<CqlIndex>) -> Arc<CqlIndex> {
        drop(store);
        self.stores().index
    }

    fn durable(&self, store: &CqlIndex) -> Option<Position> {
        store.durable().unwrap()
    }

    fn views(&self, store: &Arc<CqlIndex>) -> Arc<dyn Views> {
        let home = self.stores.lock().as_ref().unwrap().home.clone();
        Arc::new(CqlViews::new(store.clone(), home, Arc::new(Progress::new([Position::default(); 5]))))
    }
}

/// Home timelines in a keyspace of their own.
pub struct CqlHomes {
    stores: CqlStores,
    views: CqlViews,
}

impl CqlHomes {
    fn new(parameters: Parameters) -> Self {
        let stores = open(&settings(Cassandra::shared().address()), &parameters);
        let views = views(&stores);
        CqlHomes { stores, views }
    }
}

impl HomeSink for CqlHomes {
    fn progress(&self) -> Vec<Option<Position>> {
        self.stores.home.progress()
    }

    fn is_to_be_filled(&self) -> bool {
        self.stores.home.is_to_be_filled()
    }

    fn apply(&self, closed: &mut HomeClosed) -> Result<(), StoreError> {
        self.stores.home.apply(closed)
    }
}

impl crate::home::Subject for CqlHomes {
    const HISTORIES: u32 = 4;

    fn record(&self, viewer: i64) -> Option<HomeRecord> {
        block_on(self.views.home(viewer)).unwrap()
    }

    fn anomalies(&self) -> u64 {
        self.stores.home.anomalies()
    }

    fn deliveries(&self) -> u64 {
        self.stores.home.deliveries()
    }
}

index_suite!(index, Cql::new());
home_suite!(home, CqlHomes::new);

/// The stores of a world.
fn stores_of(cql: &Cql, world: &World) -> CqlStores {
    let stores = cql.stores();
    let facts: Vec<Op<Fact>> = world.facts().into_iter().map(Op::Put).collect();
    stores.index.give(&closed(1, ALL, facts)).unwrap();
    stores.index.give(&closed::<ViewRow>(1, ALL, world.rows())).unwrap();
    stores
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3, ..ProptestConfig::default() })]

    #[test]
    fn home_is_served_as_the_model_says(world in worlds(), layout in layouts(), limit in 1..20_usize) {
        let cql = Cql::new();
        drop(stores_of(&cql, &world));
        let parameters = world.parameters(&layout, 5_000);
        let stores = open(cql.settings(), &parameters);
        world.apply_home(&*stores.home, &layout, &parameters);
        let progress = Arc::new(Progress::new([position(1); 5]));
        let views = CqlViews::new(stores.index.clone(), stores.home.clone(), progress);
        for viewer in (1..=world.users).filter(|viewer| !world.deleted.contains(viewer)) {
            let served = all_home(&views, &parameters, viewer, limit);
            prop_assert_eq!(served, world.home(viewer, 5_000), "viewer {}, {:?}", viewer, layout);
        }
    }
}

#[test]
fn c55_what_is_blocked_is_found_nowhere() {
    let cql = Cql::new();
    let world = open_world();
    let stores = stores_of(&cql, &world);
    world.apply_home(&*stores.home, &world.whole(), &Parameters::default());
    blocks_hide_everything(&*stores.index, &views(&stores));
}

#[test]
fn another_source_and_another_format_are_refused_with_a_sentence() {
    let cql = Cql::new();
    drop(cql.stores());
    let refused = |source: &SourceId| {
        let open = CqlStores::open(cql.settings().clone(), source, Parameters::default());
        RUNTIME.block_on(open).err().unwrap().to_string()
    };
    let other = SourceId { system: 8, ..source() };
    let sentence = refused(&other);
    for part in [&source().to_string(), &other.to_string(), &cql.settings().keyspace] {
        assert!(sentence.contains(part), "{sentence} lacks {part}");
    }
    let session = session(cql.settings());
    let older = "INSERT INTO state (name, value) VALUES ('format', '0')";
    RUNTIME.block_on(session.query_unpaged(older, ())).unwrap();
    let sentence = refused(&source());
    assert!(sentence.contains("has format 0"), "{sentence}");
}

#[test]
fn of_two_who_write_a_keyspace_the_earlier_ends_and_those_who_write_beside_it() {
    let cql = Cql::new();
    let open = || open(cql.settings(), &Parameters::default());
    let [earlier, beside] = [open(), open()];
    beside.join(&RUNTIME.block_on(earlier.claim()).unwrap());
    let apply = |stores: &CqlStores, time| {
        let row = ViewRow::Profile(Box::new(user(1)));
        stores.index.give(&closed(time, ALL, vec![Op::Put(row)]))
    };
    apply(&earlier, 1).unwrap();
    apply(&beside, 2).unwrap();
    let later = open();
    RUNTIME.block_on(later.claim()).unwrap();
    for stores in [&earlier, &beside] {
        let begun = Instant::now();
        let refused = (3..).find_map(|time| apply(stores, time).err());
        let told = refused.unwrap();
        let reason = std::error::Error::source(&told).unwrap().to_string();
        assert!(
            reason.contains(&format!("another process has begun to write the keyspace {}", cql.settings().keyspace))
        );
        assert!(begun.elapsed() < Duration::from_secs(60), "it went on for {:?}", begun.elapsed());
    }
    apply(&later, 1_000_000).unwrap();
}

#[test]
fn rows_that_are_built_again_are_not_read_before_they_are_whole_and_facts_stay() {
    let cql = Cql::new();
    let stores = cql.stores();
    let read = views(&stores);
    let row = |id: i64| Op::Put(ViewRow::Profile(Box::new(user(id))));
    stores.index.give(&closed(10, ALL, vec![Op::Put(Fact::Block { blocker: 1, blocked: 2 })])).unwrap();
    stores.index.give(&closed(10, ALL, vec![row(1), row(2)])).unwrap();
    let profiles = |views: &dyn Views| {
        let read = block_on(views.profiles(&[1, 2]));
        let found = |found: Vec<Option<_>>| found.iter().map(Option::is_some).collect::<Vec<_>>();
        read.map(found).map_err(|error| error.rebuilding())
    };
    assert_eq!(profiles(&read), Ok(vec![true, true]));
    stores.index.rebuild_rows(12).unwrap();
    assert!(RowSink::<ViewRow>::progress(&*stores.index).iter().all(Option::is_none));
    assert!(stores.index.reactions_progress().iter().all(Option::is_none), "their tables were emptied");
    assert_eq!(profiles(&read), Err(Some(Phase::Rows)));
    assert!(block_on(read.relationships(Some(1), &[2])).unwrap()[0].blocks);
    // Times begin early again: nothing that was deleted hides them.
    stores.index.give(&feedmill_model::Closed { loading: true, ..closed(3, ALL, vec![row(1)]) }).unwrap();
    stores.index.give(&closed::<ViewRow>(11, ALL, vec![])).unwrap();
    assert_eq!(profiles(&read), Err(Some(Phase::Rows)));
    stores.index.give(&closed::<ViewRow>(12, ALL, vec![])).unwrap();
    assert_eq!(profiles(&read), Ok(vec![true, false]), "what was there before is gone");
    // As a start finds it.
    stores.index.durable().unwrap();
    let again = cql.stores();
    assert_eq!(RowSink::<ViewRow>::progress(&*again.index), vec![Some(position(12)); 64]);
    assert_eq!(profiles(&views(&again)), Ok(vec![true, false]));
}

/// All rows of a table, with their write timestamps, as text.
pub fn dump(session: &Session, table: &str) -> BTreeMap<String, String> {
    let (key, value) = match table {
        "facts" | "lists" => ("kind, owner, part, key", "value"),
        "rows" => ("owner, kind, key", "value"),
        "home" => ("viewer, kind, id", "floor"),
        _ => panic!("{table} has no columns here"),
    };
    let count = key.split(", ").count();
    let text = format!("SELECT {key}, {value}, writetime({value}) FROM {table}");
    let found = RUNTIME.block_on(session.query_unpaged(text, ())).unwrap().into_rows_result().unwrap();
    let mut dump = BTreeMap::new();
    for row in found.rows::<scylla::value::Row>().unwrap() {
        let columns = row.unwrap().columns;
        let (key, value) = columns.split_at(count);
        assert!(dump.insert(format!("{key:?}"), format!("{value:?}")).is_none());
    }
    dump
}

#[test]
fn a_copy_has_what_a_local_store_has() {
    let cql = Cql::new();
    let world = World::example();
    let stores = stores_of(&cql, &world);
    let local = (tempfile::tempdir().unwrap(), LocalHome::new(Parameters::default()));
    let index = Arc::new(LocalIndex::open(local.0.path()).unwrap());
    let facts: Vec<Op<Fact>> = world.facts().into_iter().map(Op::Put).collect();
    index.give(&closed(1, ALL, facts)).unwrap();
    index.give(&closed::<ViewRow>(1, ALL, world.rows())).unwrap();
    // More than one part, rows that come twice, and rows that go.
    for n in 2..12 {
        let follower = |follower| ViewRow::Follower { user: 1, at: n * 1_000 + follower, follower };
        let mut rows: Vec<_> = (0..40).map(|id| Op::Put(follower(100 * n + id))).collect();
        let entry = feedmill_model::EntryId::tweet(5);
        rows.push(Op::Put(ViewRow::TimelineEntry { user: 1, reply: false, entry, tweet: n }));
        rows.extend((n > 5).then(|| Op::Delete(ViewRow::Follower { user: 1, at: 3_000 + 300 + n, follower: 300 + n })));
        rows.extend([0, 1].map(|more| Op::Put(ViewRow::TrendingTweet { tweet: n + more, likes: 9 })));
        rows.extend((n > 3).then(|| Op::Delete(ViewRow::TrendingTweet { tweet: n - 2, likes: 9 })));
        let facts: Vec<_> = (0..40)
            .map(|other| Op::Put(Fact::Follow { follower: 1, following: 50 + other, accepted: (n + other) % 2 == 0 }))
            .collect();
        index.give(&closed(n as u64, ALL, facts.clone())).unwrap();
        index.give(&closed(n as u64, ALL, rows.clone())).unwrap();
        stores.index.give(&closed(n as u64, ALL, facts)).unwrap();
        stores.index.give(&closed(n as u64, ALL, rows)).unwrap();
    }
    let parameters = Parameters::default();
    let time = world.apply_home(&local.1, &world.whole(), &parameters);
    world.apply_home(&*stores.home, &world.whole(), &parameters);
    let progress = || Arc::new(Progress::new([position(time); 5]));
    let local_views = LocalViews::new(index, Arc::new(local.1), progress());
    let views = CqlViews::new(stores.index.clone(), stores.home.clone(), progress());
    let folder = tempfile::tempdir().unwrap();
    let expected = local_views.freeze(&folder.path().join("local"), u64::MAX).unwrap();
    let found = views.freeze(&folder.path().join("cql"), u64::MAX).unwrap();
    let scan = |views: &FrozenViews, view: View| {
        let mut pairs = Vec::new();
        views.scan(view, time, &mut |key, value| pairs.push((key, value))).unwrap();
        pairs.sort();
        pairs
    };
    for view in View::ALL {
        assert_eq!(scan(&found, view), scan(&expected, view), "{}", view.name());
    }
    assert!(scan(&found, View::Followers).len() > 350);
    assert_eq!(scan(&found, View::TrendingTweets).len(), 3);
    assert_eq!(found.floors(time).unwrap(), expected.floors(time).unwrap());
    let counts = |views: &dyn StoreViews| {
        let mut counts = BTreeMap::new();
        views.counts(Counter::Followers, &mut |of, count| _ = counts.insert(of, count)).unwrap();
        counts
    };
    assert_eq!(counts(&views), counts(&local_views));
    let full = views.freeze(&folder.path().join("full"), 100).err().unwrap().to_string();
    assert!(full.contains("no room"), "{full}");
    drop(found);
    assert_eq!(std::fs::read_dir(folder.path().join("cql")).unwrap().count(), 0, "the copy goes with its reader");
}
