//! How the jobs are connected: one dataflow, the same on every worker.
//!
//! ```text
//!   users tweets follows blocks mutes ─► facts ────────────────────────────────► facts sink
//!   users ─► profile ┐                                                               │
//!   follows ─► follows├──────────────────────────────────────────────────────────► rows sink
//!   tweets likes retweets ─► tweets, retweets, user_timeline, hashtags ┤             │
//!   tweets likes retweets follows users ─► conversation, trends, notifications ┘     │
//!   activity ─► active ┐                                                             │
//!   follows blocks mutes ─► audience ─► by author ┬─► verified_following ─► records  │
//!   users popular ─► hot ─────────────────────────┤                              ▼   ▼
//!   tweets retweets ─► entries ───────────────────┴─► home ─► deliveries ─────► home sink
//!   tweets users ─► search, after the facts ───────────────────────────────────► search sink
//! ```
//!
//! What feeds only stores that have reached a time already is not even mapped up to that time; what feeds another
//! operator always is (see the sinks for the rest of hydration).

use std::rc::Rc;
use std::sync::Arc;

use differential_dataflow::input::InputSession;
use feedmill_model::{
    Activity, Applied, Block, Follow, HomeRecordChange, Like, Mute, Popular, Position, ReadMark, Retweet, Row, Time,
    Tweet, User,
};
use timely::dataflow::operators::Probe;
use timely::dataflow::operators::probe::Handle as ProbeHandle;
use timely::dataflow::operators::vec::input::Handle as InputHandle;
use timely::dataflow::{Scope, operators::Input};

use crate::Stores;
use crate::collection::{Rows, after, index, set};
use crate::jobs::{self, home::BulkTimes, home::Window, notifications::Causes};
use crate::sink::{Tick, home_sink, row_sink};
use crate::worker::Plan;

/// Changes of one relation.
type Changes<D> = InputSession<Time, D, isize>;

/// What a worker feeds.
pub(crate) struct Inputs {
    users: Changes<Rc<User>>,
    tweets: Changes<Rc<Tweet>>,
    follows: Changes<Follow>,
    likes: Changes<Like>,
    retweets: Changes<Retweet>,
    blocks: Changes<Block>,
    mutes: Changes<Mute>,
    activity: Changes<Activity>,
    popular: Changes<Popular>,
    read_marks: Changes<ReadMark>,
    ticks: InputHandle<Time, Tick>,
    ticks_at: Time,
}

impl Inputs {
    fn new() -> Self {
        Inputs {
            users: Changes::new(),
            tweets: Changes::new(),
            follows: Changes::new(),
            likes: Changes::new(),
            retweets: Changes::new(),
            blocks: Changes::new(),
            mutes: Changes::new(),
            activity: Changes::new(),
            popular: Changes::new(),
            read_marks: Changes::new(),
            ticks: InputHandle::new(),
            ticks_at: 0,
        }
    }

    /// `row` comes (`diff` 1) or goes (−1) at `time`.
    pub(crate) fn update(&mut self, row: Row, time: Time, diff: isize) {
        match row {
            Row::User(row) => self.users.update_at(Rc::from(row), time, diff),
            Row::Tweet(row) => self.tweets.update_at(Rc::from(row), time, diff),
            Row::Follow(row) => self.follows.update_at(row, time, diff),
            Row::Like(row) => self.likes.update_at(row, time, diff),
            Row::Retweet(row) => self.retweets.update_at(row, time, diff),
            Row::Block(row) => self.blocks.update_at(row, time, diff),
            Row::Mute(row) => self.mutes.update_at(row, time, diff),
            Row::Activity(row) => self.activity.update_at(row, time, diff),
            Row::Popular(row) => self.popular.update_at(row, time, diff),
            Row::ReadMark(row) => self.read_marks.update_at(row, time, diff),
        }
    }

    /// A batch stands at `tick`.
    pub(crate) fn tick(&mut self, tick: Tick) {
        self.ticks.send(tick);
    }

    /// Nothing more comes before `time`. Takes effect with [`Self::flush`].
    pub(crate) fn advance_to(&mut self, time: Time) {
        self.users.advance_to(time);
        self.tweets.advance_to(time);
        self.follows.advance_to(time);
        self.likes.advance_to(time);
        self.retweets.advance_to(time);
        self.blocks.advance_to(time);
        self.mutes.advance_to(time);
        self.activity.advance_to(time);
        self.popular.advance_to(time);
        self.read_marks.advance_to(time);
        self.ticks_at = time;
    }

    /// Hands everything to the dataflow.
    pub(crate) fn flush(&mut self) {
        self.users.flush();
        self.tweets.flush();
        self.follows.flush();
        self.likes.flush();
        self.retweets.flush();
        self.blocks.flush();
        self.mutes.flush();
        self.activity.flush();
        self.popular.flush();
        self.read_marks.flush();
        self.ticks.flush();
        if *self.ticks.time() < self.ticks_at {
            self.ticks.advance_to(self.ticks_at);
        }
    }
}

/// How far the sinks are.
pub(crate) struct Probes {
    facts: ProbeHandle<Time>,
    rows: ProbeHandle<Time>,
    home: ProbeHandle<Time>,
    search: ProbeHandle<Time>,
}

impl Probes {
    /// The frontiers, on all workers; `None` when the dataflow has come to its end.
    pub(crate) fn applied(&self) -> Option<Applied> {
        let frontier = |probe: &ProbeHandle<Time>| probe.with_frontier(|frontier| frontier.first().copied());
        Some(Applied {
            facts: frontier(&self.facts)?,
            rows: frontier(&self.rows)?,
            home: frontier(&self.home)?,
            search: frontier(&self.search)?,
        })
    }

    /// Whether everything at `time` is applied.
    pub(crate) fn passed(&self, time: Time) -> bool {
        !self.home.less_equal(&time) && !self.search.less_equal(&time)
    }
}

/// Builds the dataflow of a plan in `scope`.
pub(crate) fn build(scope: Scope<'_, Time>, plan: &Plan, bulk: BulkTimes) -> (Inputs, Probes) {
    let Plan { workers: searchers, parameters, stores, load, fill, supervisor, .. } = plan;
    let (searchers, load, fill) = (*searchers, *load, *fill);
    let mut inputs = Inputs::new();
    let users = inputs.users.to_collection(scope);
    let tweets = inputs.tweets.to_collection(scope);
    let follows = inputs.follows.to_collection(scope);
    let likes = inputs.likes.to_collection(scope);
    let retweets = inputs.retweets.to_collection(scope);
    let blocks = inputs.blocks.to_collection(scope);
    let mutes = inputs.mutes.to_collection(scope);
    let activity = inputs.activity.to_collection(scope);
    let popular = inputs.popular.to_collection(scope);
    let read_marks = inputs.read_marks.to_collection(scope);
    let ticks = scope.input_from(&mut inputs.ticks);
    let live_retweets = jobs::retweets::live_retweets(retweets.clone(), tweets.clone());

    let reached = reached_by_all(stores);
    let (new_users, new_tweets) = (after(users.clone(), reached), after(tweets.clone(), reached));
    let searched = reached_by(stores.search.progress());
    let documents = jobs::search::search(after(tweets.clone(), searched), after(users.clone(), searched));
    let new_follows = after(follows.clone(), reached);
    let facts = jobs::facts::facts(
        new_users.clone(),
        new_tweets.clone(),
        new_follows.clone(),
        after(blocks.clone(), reached),
        after(mutes.clone(), reached),
    );
    let (new_likes, new_retweets) = (after(likes.clone(), reached), after(retweets.clone(), reached));
    let new_live_retweets = after(live_retweets.clone(), reached);
    // Each in a region of its own, which is scheduled, drawn and measured as one.
    let conversation = scope.region_named("Conversation", |job| {
        jobs::conversation::conversation(tweets.clone().enter_region(job), reached).leave_region(scope)
    });
    let trending_hashtags = scope.region_named("TrendingHashtags", |job| {
        let (tweets, users) = (tweets.clone().enter_region(job), users.clone().enter_region(job));
        jobs::trends::trending_hashtags(tweets, users, load.time).leave_region(scope)
    });
    let trending_tweets = scope.region_named("TrendingTweets", |job| {
        let (likes, tweets) = (likes.clone().enter_region(job), tweets.clone().enter_region(job));
        jobs::trends::trending_tweets(likes, tweets, load.time).leave_region(scope)
    });
    let notifications = scope.region_named("Notifications", |job| {
        let causes = Causes {
            users: users.clone().enter_region(job),
            tweets: tweets.clone().enter_region(job),
            follows: follows.clone().enter_region(job),
            likes: likes.enter_region(job),
            retweets: retweets.enter_region(job),
        };
        jobs::notifications::notifications(causes, load.time).leave_region(scope)
    });
    let with_windows = trending_hashtags.concatenate([trending_tweets, notifications]);
    let rows = jobs::profile::profile(new_users).concatenate([
        jobs::follows::follows(new_follows),
        jobs::tweets::tweets(new_tweets.clone(), new_likes.clone(), new_retweets.clone()),
        jobs::likes::likes(new_likes),
        jobs::retweets::retweeters(new_retweets),
        jobs::retweets::retweets(new_live_retweets.clone()),
        jobs::user_timeline::user_timeline(new_tweets.clone(), new_live_retweets),
        jobs::hashtags::hashtags(new_tweets),
        jobs::read_marks::read_marks(after(read_marks, reached)),
        conversation,
        after(with_windows, reached),
    ]);

    let active = jobs::active::active(activity, load.time, parameters);
    let hot = set(jobs::hot::hot(users, popular), "HotSet");
    let audience = jobs::audience::audience(follows, mutes, blocks, active.clone());
    let audience = index(audience, "AudienceByAuthor");
    let records = jobs::verified_following::verified_following(hot.clone(), audience.clone());
    let records: Rows<'_, HomeRecordChange> =
        records.concat(active.clone().map(|viewer| HomeRecordChange::Active { viewer }));
    let entries = jobs::home::entries(tweets, live_retweets, load.time, parameters);
    let window = Window::new(parameters, load.time, fill, bulk);
    let deliveries = jobs::home::home(entries, hot, audience, set(active, "ActiveSet"), window);

    let all = scope.peers();
    let (facts_store, rows_store) = (Arc::clone(&stores.facts), Arc::clone(&stores.rows));
    let facts = row_sink("FactsSink", facts, ticks, facts_store, all, load, Arc::clone(supervisor));
    let (ticks, search_store) = (facts.clone(), Arc::clone(&stores.search));
    let search = row_sink("SearchSink", documents, ticks, search_store, searchers, load, Arc::clone(supervisor));
    let rows = row_sink("RowsSink", rows, facts.clone(), rows_store, all, load, Arc::clone(supervisor));
    // What comes before the load's own time is applied with it, unless the load fills the store.
    let first = if fill { 0 } else { load.time };
    let home = home_sink(deliveries, records, rows.clone(), Arc::clone(&stores.home), first, Arc::clone(supervisor));
    let probes =
        Probes { facts: facts.probe().0, rows: rows.probe().0, home: home.probe().0, search: search.probe().0 };
    (inputs, probes)
}

/// The time that every shard of the facts and rows has reached; 0 if one has not reached any.
pub(crate) fn reached_by_all(stores: &Stores) -> Time {
    reached_by(stores.facts.progress()).min(reached_by(stores.rows.progress()))
}

/// The same of the store with this progress.
pub(crate) fn reached_by(progress: Vec<Option<Position>>) -> Time {
    progress.into_iter().map(|position| position.map_or(0, |position| position.time)).min().unwrap_or(0)
}
