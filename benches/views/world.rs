//! A graph of users, loaded, and what they write.

use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_dataflows::{Config, Part, Profile, Runtime, Stores};
use feedmill_model::{
    Activity, Batch, Change, Closed, Fact, Follow, Like, Lsn, Parameters, Position, Retweet, Row, RowSink, SHARDS,
    StoreError, Tweet, User, ViewRow, floor_of, id_at,
};
use feedmill_sinks::{LocalHome, LocalIndex, LocalSearch, LocalViews, Progress, Reactions};
use tempfile::TempDir;

use crate::Args;

/// 2026-01-01, in milliseconds since 1970.
pub const START: u64 = 1_767_225_600_000;
/// Users whose follows are loaded as one slice.
const SLICE: i64 = 3_000;
/// A run that stands still for so long has failed.
const LIMIT: Duration = Duration::from_secs(600);

/// A store that says that it has what is loaded, so that only what comes later is written.
struct Loaded<S> {
    store: Arc<S>,
    load: Position,
}

impl<R, S: RowSink<R>> RowSink<R> for Loaded<S> {
    fn progress(&self) -> Vec<Option<Position>> {
        vec![Some(self.load); SHARDS]
    }

    fn apply(&self, closed: &Closed<R>) -> Result<(), StoreError> {
        self.store.apply(closed)
    }
}

/// The dataflows and stores at work.
pub struct World {
    pub index: Arc<LocalIndex>,
    pub home: Arc<LocalHome>,
    pub profile: Profile,
    runtime: Runtime,
    users: i64,
    authors: i64,
    /// The time of the last batch.
    pub time: u64,
    sequence: u16,
    _dir: TempDir,
}

impl World {
    /// Loads the graph of `args`.
    pub fn load(args: &Args) -> anyhow::Result<World> {
        let load = Position { time: START, lsn: Lsn(1) };
        let dir = tempfile::tempdir()?;
        let index = Arc::new(LocalIndex::open(&dir.path().join("index"))?);
        let parameters = Parameters { active_days: 365, ..Parameters::default() };
        let home = Arc::new(LocalHome::new(parameters.clone()));
        let loaded = Arc::new(Loaded { store: Arc::clone(&index), load });
        let search = Arc::new(LocalSearch::open(&dir.path().join("search"))?);
        let search = Arc::new(Loaded { store: search, load });
        let (facts, rows): (Arc<dyn RowSink<Fact>>, Arc<dyn RowSink<ViewRow>>) = (loaded.clone(), loaded);
        let reactions = Arc::new(Loaded { store: Arc::new(Reactions(Arc::clone(&index))), load });
        let profile = Profile::default();
        let config = Config {
            workers: args.workers,
            part: Part::All,
            parameters,
            rows_at_a_time: Config::ROWS_AT_A_TIME,
            profile: Some(profile.clone()),
        };
        let stores = Stores { facts, rows, home: home.clone(), search, reactions };
        let runtime = Runtime::start(config, stores, load, Arc::new(|_| {}))?;
        let authors = (args.users * args.follows / args.followers).max(1);
        let world =
            World { index, home, profile, runtime, users: args.users, authors, time: START, sequence: 0, _dir: dir };
        let (day, all) = (i32::try_from(START / 86_400_000)?, 0..args.users);
        for users in all.clone().collect::<Vec<_>>().chunks(65_536) {
            let active = users.iter().map(|user| Row::Activity(Activity { user_id: *user, day }));
            world.runtime.load(active.collect())?;
            world.runtime.load(users.iter().map(|user| World::user(*user)).collect())?;
        }
        for users in all.collect::<Vec<_>>().chunks(usize::try_from(SLICE)?) {
            let follows = users.iter().flat_map(|&user| {
                let followed = move |n| Follow {
                    follower_id: user,
                    following_id: spread(user * args.follows + n, authors),
                    accepted: true,
                    created_at: 0,
                };
                (0..args.follows).map(move |n| Row::Follow(followed(n)))
            });
            world.runtime.load(follows.collect())?;
        }
        world.runtime.loaded(floor_of(START))?;
        let mut world = world;
        world.write(1, Vec::new())?;
        world.wait()?;
        Ok(world)
    }

    fn user(id: i64) -> Row {
        let name = format!("user{id}");
        Row::User(Box::new(User { id, username: name.clone(), display_name: name, ..User::default() }))
    }

    /// Feeds a batch that comes so many milliseconds after the one before.
    pub fn write(&mut self, after_ms: u64, changes: Vec<Change>) -> anyhow::Result<()> {
        self.time += after_ms;
        let position = Position { time: self.time, lsn: Lsn(self.time) };
        Ok(self.runtime.feed(Arc::new(Batch { position, floor: None, changes, last: true }))?)
    }

    /// Waits until all that was fed is applied.
    pub fn wait(&self) -> anyhow::Result<()> {
        let asked = Instant::now();
        while self.runtime.applied().home.min(self.runtime.applied().reactions) <= self.time {
            anyhow::ensure!(asked.elapsed() < LIMIT, "the dataflows did not reach {} within {LIMIT:?}", self.time);
            std::thread::park_timeout(Duration::from_millis(1));
        }
        Ok(())
    }

    /// What the stores serve.
    pub fn views(&self) -> LocalViews {
        let at = Position { time: self.time, lsn: Lsn(self.time) };
        LocalViews::new(self.index.clone(), self.home.clone(), Arc::new(Progress::new([at; 5])))
    }

    pub fn stop(self) -> anyhow::Result<()> {
        self.runtime.stop();
        Ok(self.runtime.join()?)
    }

    /// Microseconds since 1970.
    pub fn now(&self) -> i64 {
        self.time as i64 * 1_000
    }

    fn id(&mut self) -> i64 {
        self.sequence = self.sequence.wrapping_add(1);
        id_at(self.time as i64 + 1, self.sequence)
    }

    /// The `n`th author: spread over all who post.
    pub fn author(&self, n: i64) -> i64 {
        spread(n, self.authors)
    }

    /// The `n`th user, likewise.
    pub fn anyone(&self, n: i64) -> i64 {
        spread(n.wrapping_add(1 << 40), self.users)
    }

    /// A tweet by `author`, an answer to `parent` if there is one.
    pub fn tweet(&mut self, author: i64, content: String, parent: Option<&Tweet>) -> Tweet {
        let (id, now) = (self.id(), self.now());
        Tweet {
            id,
            user_id: author,
            content,
            reply_to_id: parent.map(|parent| parent.id),
            conversation_id: parent.map_or(id, |parent| parent.conversation_id),
            created_at: now,
            updated_at: now,
            ..Tweet::default()
        }
    }

    pub fn retweet(&mut self, user_id: i64, tweet_id: i64) -> Change {
        let id = self.id();
        new(Row::Retweet(Retweet { id, user_id, tweet_id, created_at: self.now() }))
    }

    pub fn like(&self, user_id: i64, tweet_id: i64) -> Change {
        new(Row::Like(Like { user_id, tweet_id, created_at: self.now() }))
    }

    pub fn follow(&self, follower_id: i64, following_id: i64) -> Change {
        new(Row::Follow(Follow { follower_id, following_id, accepted: true, created_at: self.now() }))
    }
}

/// The row comes.
pub fn new(row: Row) -> Change {
    Change { old: None, new: Some(row) }
}

/// A number below `bound` for each `n`.
pub fn spread(n: i64, bound: i64) -> i64 {
    ((n as u64).wrapping_mul(0xD129_0D3F_57A1_1C5D) >> 20) as i64 % bound.max(1)
}
