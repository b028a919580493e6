//! What changes in facts, rows and reactions, told to whoever shows it live.
//!
//! ```text
//!   worker ─ apply(closed) ─► written, can be read ─► tell ─► a set of ids ─► take ─► who has to be looked at again
//! ```
//!
//! It is told after it can be read, so whoever takes a change and then reads finds it, or something later. Ids that are
//! told twice before they are taken stand there once. Where nobody listens nothing is kept, and where more is told than is
//! taken it becomes "anything may have changed": so what is told is never less than what has changed, and is bounded.
//!
//! Where another process writes nobody names what has changed. Who follows it tells that there may be something whenever it has
//! moved, after it can be read.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, Weak};

use feedmill_model::{Closed, Counter, Fact, Op, Time, ViewRow, floor_of};
use parking_lot::{Mutex, RwLock};

/// Ids that wait to be taken, at most.
const WAITING_MAX: usize = 65_536;
/// Closed times of which the newest entry is known, each for itself. Home timelines are fewer behind; of reactions that are not
/// it is not known.
const TIMES_MAX: usize = 4_096;

/// Something that has changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Change {
    Timeline(i64),
    Notifications(i64),
    Tweet(i64),
    Viewer(i64),
    Author(i64),
}

/// What has changed, or may have.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Changed {
    /// Anything may have, beside what is named.
    pub anything: bool,
    /// Anything may have that another process wrote, beside what heads of home timelines tell.
    pub unnamed: bool,
    /// Users whose own entries have.
    pub timelines: HashSet<i64>,
    /// Users whose notifications or read mark have.
    pub notifications: HashSet<i64>,
    /// Tweets of which row, counts or deletion have.
    pub tweets: HashSet<i64>,
    /// Users for whom has changed what they may read: follows, blocks, mutes; or who deleted their account.
    pub viewers: HashSet<i64>,
    /// Users for whose tweets has changed who may read them, apart from single viewers.
    pub authors: HashSet<i64>,
}

impl Changed {
    fn add(&mut self, change: Change) {
        let (ids, id) = match change {
            Change::Timeline(id) => (&mut self.timelines, id),
            Change::Notifications(id) => (&mut self.notifications, id),
            Change::Tweet(id) => (&mut self.tweets, id),
            Change::Viewer(id) => (&mut self.viewers, id),
            Change::Author(id) => (&mut self.authors, id),
        };
        ids.insert(id);
    }

    fn bound(&mut self) {
        let sets = [&self.timelines, &self.notifications, &self.tweets, &self.viewers, &self.authors];
        if sets.iter().map(|ids| ids.len()).sum::<usize>() > WAITING_MAX {
            *self = Changed { anything: true, unnamed: self.unnamed, ..Changed::default() };
        }
    }
}

/// Who listens for changes of a store.
#[derive(Debug, Default)]
pub struct Changes {
    listeners: RwLock<Vec<Weak<Mutex<Changed>>>>,
    newest: Mutex<Newest>,
}

/// The greatest id of an entry that closed times brought.
#[derive(Debug, Default)]
struct Newest {
    /// Of all times before the following, and the last of these.
    before: Option<(Time, i64)>,
    by_time: BTreeMap<Time, i64>,
}

/// Hears what changes from when it was made.
#[derive(Clone, Debug, Default)]
pub struct Listener {
    heard: Arc<Mutex<Changed>>,
}

impl Listener {
    /// What has changed since the last call.
    pub fn take(&self) -> Changed {
        std::mem::take(&mut self.heard.lock())
    }
}

impl Changes {
    /// Tells from now on.
    pub fn listen(&self) -> Listener {
        let listener = Listener::default();
        let mut listeners = self.listeners.write();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Arc::downgrade(&listener.heard));
        listener
    }

    /// The greatest id of an entry that closed times up to `time` have brought since the start, `None` while none did. It says
    /// how far the commits are that were applied, which may be long after they were made.
    pub fn newest_entry(&self, time: Time) -> Option<i64> {
        let newest = self.newest.lock();
        let before = newest.before.filter(|(last, _)| *last <= time).map(|(_, id)| id);
        newest.by_time.range(..=time).map(|(_, id)| *id).chain(before).max()
    }

    /// All that was committed up to `ms`, in milliseconds since 1970, is in closed times up to `time`: what an entry made later
    /// than that would say too.
    pub fn committed(&self, time: Time, ms: Time) {
        self.newest.lock().add(time, floor_of(ms));
    }

    /// Another process has written something.
    pub(crate) fn tell_unnamed(&self) {
        self.each(|heard| heard.unnamed = true);
    }

    /// Anything may have changed.
    pub fn tell_anything(&self) {
        self.each(|heard| heard.anything = true);
    }

    /// These facts were applied.
    pub(crate) fn tell_facts(&self, closed: &Closed<Fact>) {
        self.each(|heard| {
            closed.ops.iter().flat_map(|(_, op)| of_fact(op)).flatten().for_each(|change| heard.add(change));
            heard.bound();
        });
    }

    /// These rows were applied.
    pub(crate) fn tell_rows(&self, closed: &Closed<ViewRow>) {
        if let Some(newest) = closed.ops.iter().filter_map(|(_, op)| entry_of(op)).max() {
            self.newest.lock().add(closed.position.time, newest);
        }
        self.each(|heard| {
            closed.ops.iter().filter_map(|(_, op)| of_row(op)).for_each(|change| heard.add(change));
            heard.bound();
        });
    }

    fn each(&self, tell: impl Fn(&mut Changed)) {
        for listener in self.listeners.read().iter().filter_map(Weak::upgrade) {
            tell(&mut listener.lock());
        }
    }
}

impl Newest {
    fn add(&mut self, time: Time, id: i64) {
        let newest = self.by_time.entry(time).or_insert(id);
        *newest = id.max(*newest);
        if self.by_time.len() > TIMES_MAX
            && let Some((last, id)) = self.by_time.pop_first()
        {
            self.before = Some(self.before.map_or((last, id), |before| (before.0.max(last), before.1.max(id))));
        }
    }
}

fn entry_of(op: &Op<ViewRow>) -> Option<i64> {
    match op {
        Op::Put(ViewRow::TimelineEntry { entry, .. }) => Some(entry.id),
        _ => None,
    }
}

fn of_fact(op: &Op<Fact>) -> [Option<Change>; 2] {
    let (Op::Put(fact) | Op::Delete(fact) | Op::Add(fact, _)) = op;
    match *fact {
        // Who is followed sees no more and no less for it.
        Fact::Follow { follower, .. } => [Some(Change::Viewer(follower)), None],
        Fact::Block { blocker, blocked } => [Some(Change::Viewer(blocker)), Some(Change::Viewer(blocked))],
        Fact::Mute { muter, .. } => [Some(Change::Viewer(muter)), None],
        Fact::Protected(user) => [Some(Change::Author(user)), None],
        Fact::DeletedUser(user) => [Some(Change::Author(user)), Some(Change::Viewer(user))],
        Fact::DeletedTweet(tweet) => [Some(Change::Tweet(tweet)), None],
    }
}

fn of_row(op: &Op<ViewRow>) -> Option<Change> {
    let (Op::Put(row) | Op::Delete(row) | Op::Add(row, _)) = op;
    match row {
        ViewRow::TimelineEntry { user, reply: false, .. } => Some(Change::Timeline(*user)),
        ViewRow::Notification { user, .. } | ViewRow::ReadMark { user, .. } => Some(Change::Notifications(*user)),
        ViewRow::Tweet(tweet) => Some(Change::Tweet(tweet.id)),
        ViewRow::Count { counter: Counter::Likes | Counter::Retweets | Counter::Replies, of } => {
            Some(Change::Tweet(*of))
        }
        _ => None,
    }
}
