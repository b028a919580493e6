//! Home timelines: which entry goes to whom.
//!
//! ```text
//!   entries ──┬─ without hot ─► by author ─┐
//!             │              audience ─────┴─ join ─┐
//!             └─► by author ─┐                      ├─► deliveries
//!                  active ───┴───────────── join ───┘
//! ```
//!
//! Both joins see the time of what they produce and emit nothing where a store must not have it anyway ([`Window`]):
//! at or before the load time, unless the load fills the store, and at the time of a bulk batch (home timelines' floors
//! rise past every such entry), and once an entry is as old as the horizon, so that its leaving the join costs no
//! delivery. What is loaded is not even joined with what is loaded, unless the load fills the store.
//!
//! A delivery never comes before its viewer's record, whatever the order in which rows are loaded: both joins are with
//! what only active viewers have.

use std::cell::RefCell;
use std::collections::BTreeSet;
use std::rc::Rc;

use differential_dataflow::operators::join::join_traces;
use feedmill_model::{Delivery, EntryId, PackedEntry, Parameters, Time, Tweet};
use timely::container::{CapacityContainerBuilder, PushInto};
use timely::dataflow::StreamVec;
use timely::dataflow::operators::Concat;

use crate::collection::{Index, Rows, Set, index, quiet_until, without};
use crate::expire::expire;
use crate::jobs::retweets::LiveRetweet;

/// A delivery and its time: what the joins produce, and the sink sorts by time and shard.
pub(crate) type TimedDelivery = (Delivery, Time);

/// Times of bulk batches, known to a worker before it feeds such a batch, and until all its deliveries are suppressed.
pub(crate) type BulkTimes = Rc<RefCell<BTreeSet<Time>>>;

/// Which entries a home timeline may be given at which time.
#[derive(Clone)]
pub(crate) struct Window {
    parameters: Parameters,
    load: Time,
    /// What is loaded is given too.
    fill: bool,
    bulk: BulkTimes,
    /// The time asked for last, and the greatest entry that is not given at that time.
    last: (Time, PackedEntry),
}

/// Greater than every entry: nothing is given.
const NOTHING: PackedEntry = PackedEntry(u64::MAX);

impl Window {
    /// The state is loaded at `load`, and given only with `fill`; `bulk` are the times of bulk batches.
    pub(crate) fn new(parameters: &Parameters, load: Time, fill: bool, bulk: BulkTimes) -> Self {
        Window { parameters: parameters.clone(), load, fill, bulk, last: (0, NOTHING) }
    }

    /// Whether `entry` may be given at `time`. Answers come in runs of one time, so the limit is kept.
    #[inline]
    fn admits(&mut self, time: Time, entry: PackedEntry) -> bool {
        if self.last.0 != time {
            self.last = (time, self.limit(time));
        }
        entry > self.last.1
    }

    #[cold]
    fn limit(&self, time: Time) -> PackedEntry {
        if (time <= self.load && !self.fill) || self.bulk.borrow().contains(&time) {
            return NOTHING;
        }
        // Slices of the load have small times, and all are as of the load's.
        PackedEntry::last_at(self.parameters.horizon(time.max(self.load))).unwrap_or(NOTHING)
    }

    /// The first full minute at which `entry` is below the horizon.
    fn until(parameters: &Parameters, entry: PackedEntry) -> Time {
        let made = u64::try_from(feedmill_model::ms_of(entry.id())).unwrap_or(0);
        made.saturating_add(parameters.fanout_ms()).div_ceil(60_000).saturating_mul(60_000)
    }
}

/// Tweets that are not replies, and retweets, by author, while they are young enough for a home timeline.
pub(crate) fn entries<'scope>(
    tweets: Rows<'scope, Rc<Tweet>>,
    retweets: Rows<'scope, LiveRetweet>,
    start: Time,
    parameters: &Parameters,
) -> Rows<'scope, (i64, PackedEntry)> {
    let tweets = tweets.filter(|tweet| tweet.deleted_at.is_none() && tweet.reply_to_id.is_none());
    let tweets = tweets.map(|tweet| (tweet.user_id, EntryId::tweet(tweet.id)));
    let retweets = retweets.map(|retweet| (retweet.user_id, EntryId::retweet(retweet.id)));
    let parameters = parameters.clone();
    let entries = tweets.concat(retweets).flat_map(move |(author, entry)| {
        PackedEntry::new(entry).map(|entry| (Window::until(&parameters, entry), (author, entry)))
    });
    expire(entries, Time::MAX, start, "ExpireEntries", |(author, _)| *author)
}

/// Entries of authors that are not hot to their audience, and of active viewers to themselves.
pub(crate) fn home<'scope>(
    entries: Rows<'scope, (i64, PackedEntry)>,
    hot: Set<'scope>,
    audience: Index<'scope, i64>,
    active: Set<'scope>,
    window: Window,
) -> StreamVec<'scope, Time, TimedDelivery> {
    let load = if window.fill { 0 } else { window.load };
    let by_author = index(entries.clone(), "EntriesByAuthor");
    let pushed = index(without(entries, by_author.clone(), hot), "PushedByAuthor");
    let mut to_audience = window.clone();
    let pushed = join_traces::<_, _, _, _, CapacityContainerBuilder<Vec<TimedDelivery>>>(
        quiet_until(pushed, load),
        quiet_until(audience, load),
        move |_author, &entry, &viewer, time, &one, &other, deliveries| {
            if to_audience.admits(time, entry) {
                deliveries.push_into((Delivery { viewer, entry, diff: (one * other) as i32 }, time));
            }
        },
    );
    let mut to_author = window;
    let own = join_traces::<_, _, _, _, CapacityContainerBuilder<Vec<TimedDelivery>>>(
        quiet_until(by_author, load),
        quiet_until(active, load),
        move |&viewer, &entry, (), time, &one, &other, deliveries| {
            if to_author.admits(time, entry) {
                deliveries.push_into((Delivery { viewer, entry, diff: (one * other) as i32 }, time));
            }
        },
    );
    pushed.concat(own)
}
