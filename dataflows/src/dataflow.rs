//! How the jobs are connected: one dataflow for each part, the same on every worker.
//!
//! ```text
//!   inputs ─┬─► main ───────► facts, rows, home timelines, search
//!           │                          │ ticks of what is applied, where both are one dataflow
//!           └─► reactions ◄────────────┘     (else whoever feeds it is behind the rows)
//!                  └─► what likes bring
//! ```
//!
//! What feeds only stores that have reached a time already is not even mapped up to that time; what feeds another
//! operator always is (see the sinks for the rest of hydration).

mod main;
mod reactions;

use std::rc::Rc;

use differential_dataflow::input::InputSession;
use feedmill_model::{
    Activity, Applied, Block, Follow, Like, Mute, Popular, Position, ReadMark, Retweet, Row, Time, Tweet, User,
};
use timely::dataflow::operators::probe::Handle as ProbeHandle;
use timely::dataflow::operators::vec::input::Handle as InputHandle;
use timely::dataflow::operators::{Input, Probe};
use timely::dataflow::{Scope, StreamVec};

use crate::collection::Rows;
use crate::jobs::home::BulkTimes;
use crate::sink::Tick;
use crate::worker::Plan;
use crate::{Part, Stores};

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

/// How far the sinks are; `None` for those of another part.
#[derive(Default)]
pub(crate) struct Probes {
    facts: Option<ProbeHandle<Time>>,
    rows: Option<ProbeHandle<Time>>,
    home: Option<ProbeHandle<Time>>,
    search: Option<ProbeHandle<Time>>,
    reactions: Option<ProbeHandle<Time>>,
}

impl Probes {
    /// The frontiers, on all workers, of other parts beyond all times; `None` when the dataflow has come to its end.
    pub(crate) fn applied(&self) -> Option<Applied> {
        let frontier = |probe: &Option<ProbeHandle<Time>>| match probe {
            Some(probe) => probe.with_frontier(|frontier| frontier.first().copied()),
            None => Some(Time::MAX),
        };
        Some(Applied {
            facts: frontier(&self.facts)?,
            rows: frontier(&self.rows)?,
            home: frontier(&self.home)?,
            search: frontier(&self.search)?,
            reactions: frontier(&self.reactions)?,
        })
    }

    /// Whether everything at `time` is applied.
    pub(crate) fn passed(&self, time: Time) -> bool {
        // Home timelines come after facts and rows.
        let last = [&self.home, &self.search, &self.reactions];
        last.into_iter().flatten().all(|probe| !probe.less_equal(&time))
    }
}

/// What comes of the inputs.
pub(crate) struct Sources<'scope> {
    pub(crate) users: Rows<'scope, Rc<User>>,
    pub(crate) tweets: Rows<'scope, Rc<Tweet>>,
    pub(crate) follows: Rows<'scope, Follow>,
    pub(crate) likes: Rows<'scope, Like>,
    pub(crate) retweets: Rows<'scope, Retweet>,
    pub(crate) blocks: Rows<'scope, Block>,
    pub(crate) mutes: Rows<'scope, Mute>,
    pub(crate) activity: Rows<'scope, Activity>,
    pub(crate) popular: Rows<'scope, Popular>,
    pub(crate) read_marks: Rows<'scope, ReadMark>,
    pub(crate) ticks: Ticks<'scope>,
}

/// A batch each, on every worker.
pub(crate) type Ticks<'scope> = StreamVec<'scope, Time, Tick>;

/// Builds the dataflow of a plan in `scope`.
pub(crate) fn build(scope: Scope<'_, Time>, plan: &Plan, bulk: BulkTimes) -> (Inputs, Probes) {
    let mut inputs = Inputs::new();
    let sources = Sources {
        users: inputs.users.to_collection(scope),
        tweets: inputs.tweets.to_collection(scope),
        follows: inputs.follows.to_collection(scope),
        likes: inputs.likes.to_collection(scope),
        retweets: inputs.retweets.to_collection(scope),
        blocks: inputs.blocks.to_collection(scope),
        mutes: inputs.mutes.to_collection(scope),
        activity: inputs.activity.to_collection(scope),
        popular: inputs.popular.to_collection(scope),
        read_marks: inputs.read_marks.to_collection(scope),
        ticks: scope.input_from(&mut inputs.ticks),
    };
    let probe = |applied: Ticks<'_>| Some(applied.probe().0);
    let probes = match plan.part {
        Part::All => {
            let causes = reactions::Causes::of(&sources);
            let main = main::main(scope, sources, plan, bulk);
            let reactions = probe(reactions::reactions(scope, causes, main.rows.clone(), plan));
            Probes { reactions, ..main.probes() }
        }
        Part::Main => main::main(scope, sources, plan, bulk).probes(),
        Part::Reactions => {
            let causes = reactions::Causes::of(&sources);
            let reactions = probe(reactions::reactions(scope, causes, sources.ticks, plan));
            Probes { reactions, ..Probes::default() }
        }
    };
    (inputs, probes)
}

impl main::Applied<'_> {
    fn probes(self) -> Probes {
        let probe = |applied: Ticks<'_>| Some(applied.probe().0);
        Probes {
            facts: probe(self.facts),
            rows: probe(self.rows),
            home: probe(self.home),
            search: probe(self.search),
            reactions: None,
        }
    }
}

/// The time that every shard of the facts and rows has reached; 0 if one has not reached any.
pub(crate) fn reached_by_all(stores: &Stores) -> Time {
    reached_by(stores.facts.progress()).min(reached_by(stores.rows.progress()))
}

/// The same of the store with this progress.
pub(crate) fn reached_by(progress: Vec<Option<Position>>) -> Time {
    progress.into_iter().map(|position| position.map_or(0, |position| position.time)).min().unwrap_or(0)
}
