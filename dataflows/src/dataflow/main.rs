//! The part without what likes bring.
//!
//! ```text
//!   users tweets follows blocks mutes ─► facts ──────────────────────────► facts sink
//!   users ─► profile ┐                                                         │
//!   follows ─► follows├────────────────────────────────────────────────────► rows sink
//!   tweets retweets ─► tweets, retweets, user_timeline, hashtags ┤             │
//!   tweets users ─► conversation, trending hashtags ─────────────┘             │
//!   activity ─► active ┐                                                       │
//!   follows blocks mutes ─► audience ─► by author ┬─► verified_following ─► records
//!   users popular ─► hot ─────────────────────────┤                        ▼   ▼
//!   tweets retweets ─► entries ───────────────────┴─► home ─► deliveries ─► home sink
//!   tweets users ─► search, after the facts ─────────────────────────────► search sink
//! ```

use std::sync::Arc;

use feedmill_model::{HomeRecordChange, Time};
use timely::dataflow::Scope;

use super::{Sources, Ticks, reached_by, reached_by_all};
use crate::collection::{Rows, after, index, set};
use crate::jobs::{self, home::BulkTimes, home::Window};
use crate::sink::{home_sink, row_sink};
use crate::worker::Plan;

/// The ticks of what is applied.
pub(super) struct Applied<'scope> {
    pub(super) facts: Ticks<'scope>,
    pub(super) rows: Ticks<'scope>,
    pub(super) home: Ticks<'scope>,
    pub(super) search: Ticks<'scope>,
}

/// Builds it.
pub(super) fn main<'scope>(
    scope: Scope<'scope, Time>,
    sources: Sources<'scope>,
    plan: &Plan,
    bulk: BulkTimes,
) -> Applied<'scope> {
    let Plan { workers: searchers, parameters, stores, load, fill, supervisor, .. } = plan;
    let (searchers, load, fill) = (*searchers, *load, *fill);
    let Sources { users, tweets, follows, retweets, blocks, mutes, activity, popular, read_marks, ticks, .. } = sources;
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
    let new_retweets = after(retweets, reached);
    let new_live_retweets = after(live_retweets.clone(), reached);
    // Each in a region of its own, which is scheduled, drawn and measured as one.
    let conversation = scope.region_named("Conversation", |job| {
        jobs::conversation::conversation(tweets.clone().enter_region(job), reached).leave_region(scope)
    });
    let trending_hashtags = scope.region_named("TrendingHashtags", |job| {
        let (tweets, users) = (tweets.clone().enter_region(job), users.clone().enter_region(job));
        jobs::trends::trending_hashtags(tweets, users, load.time).leave_region(scope)
    });
    let rows = jobs::profile::profile(new_users).concatenate([
        jobs::follows::follows(new_follows),
        jobs::tweets::tweets(new_tweets.clone(), new_retweets.clone()),
        jobs::retweets::retweeters(new_retweets),
        jobs::retweets::retweets(new_live_retweets.clone()),
        jobs::user_timeline::user_timeline(new_tweets.clone(), new_live_retweets),
        jobs::hashtags::hashtags(new_tweets),
        jobs::read_marks::read_marks(after(read_marks, reached)),
        conversation,
        after(trending_hashtags, reached),
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
    Applied { facts, rows, home, search }
}
