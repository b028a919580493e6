//! The local stores, put through the suites, and what only they do.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use std::{fs, io};

use feedmill_model::{Closed, Counter, Fact, Op, Parameters, Phase, Position, RowSink, Tweet, View, ViewRow};
use feedmill_sinks::search::SearchStore;
use feedmill_sinks::{LocalHome, LocalIndex, LocalSearch, LocalViews, OpenError, Progress, SearchOpenError, Views};
use futures::executor::block_on;
use parking_lot::Mutex;
use tempfile::TempDir;

use crate::home::home_suite;
use crate::index::{ALL, Give, Subject, closed, index_suite, user};
use crate::search::{self, search_suite};
use crate::world::World;

/// Local index stores, each in a folder of its own.
pub struct Local {
    root: TempDir,
    dir: Mutex<PathBuf>,
}

impl Local {
    fn new() -> Self {
        let root = tempfile::tempdir().unwrap();
        let dir = Mutex::new(root.path().join("0"));
        Local { root, dir }
    }
}

/// Copies a folder as it is at one moment: anew if files came or went meanwhile, as they do when tables are written.
pub fn copy(from: &Path, to: &Path) {
    loop {
        let before = files(from);
        if copied(from, to).is_ok() && files(from) == before {
            return;
        }
        fs::remove_dir_all(to).unwrap();
    }
}

fn copied(from: &Path, to: &Path) -> io::Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let to = to.join(entry.file_name());
        if entry.file_type()?.is_dir() {
            copied(&entry.path(), &to)?;
        } else {
            fs::copy(entry.path(), to)?;
        }
    }
    Ok(())
}

/// All files in a folder, and how long they are; what goes while it is looked at is left out.
fn files(folder: &Path) -> BTreeSet<(PathBuf, u64)> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
        match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => files.extend(self::files(&entry.path())),
            Ok(metadata) => drop(files.insert((entry.path(), metadata.len()))),
            Err(_) => {}
        }
    }
    files
}

impl Subject for Local {
    type Store = LocalIndex;

    fn open(&self) -> Arc<LocalIndex> {
        Arc::new(LocalIndex::open(&self.dir.lock()).unwrap())
    }

    /// A copy of the files while the store is open is what a killed process leaves.
    fn crash(&self, store: Arc<LocalIndex>) -> Arc<LocalIndex> {
        let mut dir = self.dir.lock();
        let number: u32 = dir.file_name().unwrap().to_str().unwrap().parse().unwrap();
        let next = self.root.path().join((number + 1).to_string());
        copy(&dir, &next);
        drop(store);
        *dir = next;
        Arc::new(LocalIndex::open(&dir).unwrap())
    }

    fn durable(&self, store: &LocalIndex) -> Option<Position> {
        store.durable().unwrap()
    }

    fn views(&self, store: &Arc<LocalIndex>) -> Arc<dyn Views> {
        let home = Arc::new(LocalHome::new(Parameters::default()));
        Arc::new(LocalViews::new(store.clone(), home, Arc::new(Progress::new([Position::default(); 5]))))
    }
}

index_suite!(index, Local::new());
home_suite!(home, LocalHome::new);
search_suite!(found, LocalIndexOfSearch::new());

/// Search indices, each in a folder of its own.
struct LocalIndexOfSearch {
    root: TempDir,
    generation: Cell<u32>,
}

impl LocalIndexOfSearch {
    fn new() -> Self {
        LocalIndexOfSearch { root: tempfile::tempdir().unwrap(), generation: Cell::new(0) }
    }

    fn dir(&self) -> PathBuf {
        self.root.path().join(self.generation.get().to_string())
    }
}

impl search::Subject for LocalIndexOfSearch {
    const ATOMIC: bool = true;
    const CASES: u32 = 24;

    fn open(&self) -> Arc<dyn SearchStore> {
        Arc::new(LocalSearch::open(&self.dir()).unwrap())
    }

    fn crash(&self, search: Arc<dyn SearchStore>) -> Arc<dyn SearchStore> {
        let from = self.dir();
        self.generation.update(|generation| generation + 1);
        copy(&from, &self.dir());
        drop(search);
        search::Subject::open(self)
    }
}

#[test]
fn another_format_of_search_is_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    drop(LocalSearch::open(dir.path()).unwrap());
    std::fs::write(dir.path().join("format"), "0").unwrap();
    let refused = LocalSearch::open(dir.path()).err().unwrap();
    assert!(matches!(&refused, SearchOpenError::Format { found, .. } if found == "0"), "{refused}");
    assert!(refused.to_string().contains("format 0"), "{refused}");
}

#[test]
fn another_format_and_another_process_are_refused_with_a_sentence() {
    let dir = tempfile::tempdir().unwrap();
    let store = LocalIndex::open(dir.path()).unwrap();
    let refused = LocalIndex::open(dir.path()).err().unwrap();
    assert!(matches!(refused, OpenError::Locked { .. }), "{refused}");
    drop(store);
    {
        let db = fjall::Database::builder(dir.path()).open().unwrap();
        let state = db.keyspace("state", Default::default).unwrap();
        state.insert("format", "0").unwrap();
    }
    let refused = LocalIndex::open(dir.path()).err().unwrap();
    assert!(matches!(&refused, OpenError::Format { found, .. } if found == "0"), "{refused}");
    assert!(refused.to_string().contains("format 0"), "{refused}");
}

#[test]
fn a_large_closed_time_is_applied_whole_and_written_out_whole() {
    let local = Local::new();
    let store = local.open();
    let rows: Vec<_> = (0..100_000).map(|at| Op::Put(ViewRow::Follower { user: 1, at, follower: at })).collect();
    store.give(&closed(1, ALL, rows)).unwrap();
    store.write_out(Duration::from_secs(60)).unwrap();
    let store = local.crash(store);
    let mut rows = 0;
    let views = LocalViews::new(
        store,
        Arc::new(LocalHome::new(Parameters::default())),
        Arc::new(Progress::new([Position::default(); 5])),
    );
    let views = views.freeze(&local.root.path().join("copies"), u64::MAX).unwrap();
    views.scan(View::Followers, 1, &mut |_, _| rows += 1).unwrap();
    assert_eq!(rows, 100_000);
}

#[test]
fn rows_that_are_built_again_are_not_read_before_they_are_whole_and_facts_stay() {
    let local = Local::new();
    let store = local.open();
    let views = local.views(&store);
    let block = Op::Put(Fact::Block { blocker: 1, blocked: 2 });
    let row = |id: i64| Op::Put(ViewRow::Profile(Box::new(user(id))));
    store.give(&closed(10, ALL, vec![block])).unwrap();
    store.give(&closed(10, ALL, vec![row(1), row(2)])).unwrap();
    let profiles = |views: &Arc<dyn Views>| {
        let read = block_on(views.profiles(&[1, 2]));
        let found = |found: Vec<Option<_>>| found.iter().map(Option::is_some).collect::<Vec<_>>();
        read.map(found).map_err(|error| error.rebuilding())
    };
    let blocks = |views: &Arc<dyn Views>| block_on(views.relationships(Some(1), &[2])).map(|found| found[0].blocks);
    assert_eq!(profiles(&views), Ok(vec![true, true]));

    store.rebuild_rows(12).unwrap();
    assert!(RowSink::<ViewRow>::progress(&*store).iter().all(Option::is_none));
    assert!(RowSink::<Fact>::progress(&*store).iter().all(|position| position.is_some_and(|at| at.time == 10)));
    assert_eq!(profiles(&views), Err(Some(Phase::Rows)));
    assert!(blocks(&views).unwrap());
    assert_eq!(local.durable(&store), None, "the change log must keep its tail");
    // The load, then what comes after it: nothing is read before the time that others may have, on all shards.
    store.give(&Closed { loading: true, ..closed(3, ALL, vec![row(1)]) }).unwrap();
    store.give(&closed::<ViewRow>(10, ALL, vec![])).unwrap();
    store.give(&closed::<ViewRow>(11, ALL, vec![])).unwrap();
    store.give(&closed::<ViewRow>(12, ALL >> 1, vec![])).unwrap();
    assert_eq!(profiles(&views), Err(Some(Phase::Rows)));
    store.give(&closed::<ViewRow>(12, !(ALL >> 1), vec![])).unwrap();
    assert_eq!(profiles(&views), Ok(vec![true, false]), "what was there before is gone");

    // Killed before the load has ended: the next start begins anew, and knows that it must.
    store.rebuild_facts(12).unwrap();
    assert!(blocks(&views).is_err_and(|error| error.rebuilding() == Some(Phase::Facts)));
    drop(views);
    let store = local.crash(store);
    assert!(RowSink::<Fact>::progress(&*store).iter().all(Option::is_none));
    assert!(RowSink::<ViewRow>::progress(&*store).iter().all(|position| position.is_some_and(|at| at.time == 12)));
    let views = local.views(&store);
    assert_eq!(profiles(&views), Ok(vec![true, false]));
    assert!(!blocks(&views).unwrap());
}

#[test]
fn rows_may_be_ahead_of_reactions_and_reactions_are_built_again_by_themselves() {
    let local = Local::new();
    let store = local.open();
    let views = local.views(&store);
    let tweet = |id: i64| Op::Put(ViewRow::Tweet(Box::new(Tweet { id, user_id: 1, ..Tweet::default() })));
    let like = |n| Op::Add(ViewRow::Count { counter: Counter::Likes, of: 7 }, n);
    let likes = |views: &Arc<dyn Views>| {
        let read = block_on(views.tweets(&[7])).map(|found| found[0].as_ref().map(|tweet| tweet.likes));
        read.map_err(|error| error.rebuilding())
    };
    RowSink::<Fact>::apply(&*store, &closed(10, ALL, vec![])).unwrap();
    store.apply(&closed(10, ALL, vec![tweet(7)])).unwrap();
    assert_eq!(local.durable(&store), None, "reactions have nothing");
    store.apply_reactions(&closed(9, ALL, vec![like(2)])).unwrap();
    assert_eq!(local.durable(&store).map(|at| at.time), Some(9));
    assert_eq!(likes(&views), Ok(Some(2)));
    // Each is told by its own store, and what is held in memory is of both.
    store.apply_reactions(&closed(10, ALL, vec![like(1)])).unwrap();
    assert_eq!(likes(&views), Ok(Some(3)));
    drop(views);
    let store = local.crash(store);
    let views = local.views(&store);
    let reached = store.reactions_progress();
    assert!(reached.iter().all(|position| position.is_some_and(|at| at.time == 10)), "{reached:?}");
    store.apply_reactions(&closed(10, ALL, vec![like(1)])).unwrap();
    assert_eq!(likes(&views), Ok(Some(3)), "a time counts once");

    store.rebuild_reactions(12).unwrap();
    assert_eq!(likes(&views), Err(Some(Phase::Reactions)));
    assert!(block_on(views.profiles(&[1])).is_ok(), "rows stay");
    assert!(RowSink::<ViewRow>::progress(&*store).iter().all(Option::is_some));
    assert_eq!(local.durable(&store), None, "the change log must keep its tail");
    store.apply_reactions(&Closed { loading: true, ..closed(3, ALL, vec![like(4)]) }).unwrap();
    store.apply_reactions(&closed(11, ALL, vec![like(1)])).unwrap();
    assert_eq!(likes(&views), Err(Some(Phase::Reactions)));
    store.apply_reactions(&closed(12, ALL, vec![])).unwrap();
    assert_eq!(likes(&views), Ok(Some(5)));
    // And the other way round.
    store.rebuild_rows(12).unwrap();
    assert_eq!(likes(&views), Err(Some(Phase::Rows)));
    store.apply(&closed(12, ALL, vec![tweet(7)])).unwrap();
    assert_eq!(likes(&views), Ok(Some(5)));
}

#[test]
fn scans_print_what_the_sql_of_the_views_prints() {
    let local = Local::new();
    let store = local.open();
    let world = World::example();
    store.give(&closed(1, ALL, world.facts().into_iter().map(Op::Put).collect::<Vec<Op<Fact>>>())).unwrap();
    store.give(&closed(1, ALL, world.rows())).unwrap();
    let mut ada = user(99);
    (ada.bio, ada.verified, ada.created_at) = (Some("hi".into()), true, 5);
    store.give(&closed(2, ALL, vec![Op::Put(ViewRow::Profile(Box::new(ada)))])).unwrap();
    let parameters = Parameters::default();
    let home = Arc::new(LocalHome::new(parameters.clone()));
    let time = world.apply_home(&*home, &world.whole(), &parameters);
    let views = LocalViews::new(store, home, Arc::new(Progress::new([Position::default(); 5])));
    let views = views.freeze(&local.root.path().join("copies"), u64::MAX).unwrap();
    let scan = |view: View| {
        let mut pairs = Vec::new();
        views.scan(view, time, &mut |key, value| pairs.push((key, value))).unwrap();
        pairs.sort();
        pairs
    };
    let has = |view: View, key: &str, value: &str| {
        let pairs = scan(view);
        assert!(pairs.contains(&(key.into(), value.into())), "{} lacks {key:?} {value:?}: {pairs:?}", view.name());
    };
    has(View::FollowFacts, "1 2", "t");
    has(View::FollowFacts, "3 2", "f");
    has(View::Blocks, "3 1", "");
    has(View::Mutes, "1 3", "");
    has(View::Protected, "2", "");
    has(View::DeletedTweets, &world.posts[2].id.to_string(), "");
    has(View::Profile, "99", "User99\u{1f}U 99\u{1f}hi\u{1f}\\N\u{1f}t\u{1f}f\u{1f}5\u{1f}0");
    has(View::Username, "user1", "1");
    has(View::Followers, "2 1", "20");
    has(View::Following, "1 2", "20");
    let [first, retweet] = [world.posts[0].id, world.posts[1].id];
    has(View::Tweet, &first.to_string(), &["2", "", "\\N", &first.to_string(), "\\N", "0", "0"].join("\u{1f}"));
    has(View::Retweet, &retweet.to_string(), &format!("1 {first}"));
    has(View::UserTimeline, &format!("1 {retweet} r"), &format!("f {first}"));
    has(View::Counts, "tweets 2", "1");
    assert!(!scan(View::Counts).iter().any(|(_, count)| count == "0"));
    has(View::Active, "1", "");
    has(View::VerifiedFollowing, "1 4", "");
    has(View::Home, &format!("1 {first} t"), "");
    assert!(scan(View::DeletedUsers).is_empty());
    assert_eq!(views.floors(time).unwrap().get(&1), Some(&parameters.horizon(time)));
}
