//! Who listens, and what each of them has to look at.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_model::shard_of;
use feedmill_sinks::{Changed, HomeHead};
use parking_lot::Mutex;
use tokio::sync::Notify;

use super::mark::Told;
use super::{End, Limits, Live};
use crate::answer::now_ms;

/// A timeline without a record, or with one that was begun a moment ago, is merged from the timelines of all accounts followed,
/// so it is looked at every so often, and of all of them so many a second. Without a record there is no head that tells
/// whether it has moved.
const MERGED_EVERY: Duration = Duration::from_secs(2);
const MERGES_PER_SECOND: f64 = 20.0;

/// What a client has to look at.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Flags {
    pub home: bool,
    pub notices: bool,
    pub unread: bool,
    /// Whether the account is still there.
    pub account: bool,
    /// All tweets on screen.
    pub all_watched: bool,
    /// Some of them.
    pub watched: Vec<i64>,
    /// The stream is to end.
    pub end: Option<End>,
}

impl Flags {
    /// All that can have changed.
    pub const fn all() -> Self {
        Flags {
            home: true,
            notices: true,
            unread: true,
            account: true,
            all_watched: true,
            watched: Vec::new(),
            end: None,
        }
    }

    /// These too.
    pub fn add(&mut self, other: Flags) {
        self.home |= other.home;
        self.notices |= other.notices;
        self.unread |= other.unread;
        self.account |= other.account;
        self.all_watched |= other.all_watched;
        other.watched.into_iter().for_each(|tweet| self.watch(tweet));
        self.end = self.end.or(other.end);
    }

    fn watch(&mut self, tweet: i64) {
        if !self.all_watched && !self.watched.contains(&tweet) {
            self.watched.push(tweet);
        }
    }
}

/// Where the hub leaves word for a client.
#[derive(Debug, Default)]
struct Seat {
    flags: Mutex<Flags>,
    /// Of the tweets on screen.
    authors: Mutex<Vec<i64>>,
    woken: Notify,
}

impl Seat {
    fn tell(&self, tell: impl FnOnce(&mut Flags)) {
        tell(&mut self.flags.lock());
        self.woken.notify_one();
    }
}

/// A viewer with one stream or more.
struct Looker {
    seats: Vec<Arc<Seat>>,
    /// The stamp of the head at the last round.
    stamp: Option<u64>,
    /// It has moved since it was last looked at.
    moved: bool,
    /// When it was last looked at although it must be merged.
    merged: Instant,
}

impl Looker {
    fn tell_home(&mut self) {
        self.moved = false;
        self.seats.iter().for_each(|seat| seat.tell(|flags| flags.home = true));
    }
}

#[derive(Default)]
struct Seats {
    viewers: HashMap<i64, Looker>,
    /// By tweet on screen.
    watchers: HashMap<i64, Vec<Arc<Seat>>>,
    streams: usize,
    /// The viewers in the order of their shards, unless one came or went since it was made.
    order: Option<Arc<[i64]>>,
    /// The process ends.
    over: bool,
}

/// All streams.
pub(super) struct Registry {
    limits: Limits,
    seats: Mutex<Seats>,
    merges: Mutex<Merges>,
}

/// How many timelines may be merged now.
struct Merges {
    credit: f64,
    since: Instant,
    /// Where the next round goes on.
    next: usize,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Full {
    /// This process has as many streams as it may.
    Instance,
    /// The user has.
    User,
}

impl Registry {
    pub fn new(limits: Limits) -> Self {
        let merges = Merges { credit: 0.0, since: Instant::now(), next: 0 };
        Registry { limits, seats: Mutex::default(), merges: Mutex::new(merges) }
    }

    /// The viewers, in the order of their shards.
    pub fn viewers(&self) -> Arc<[i64]> {
        let mut seats = self.seats.lock();
        if let Some(order) = &seats.order {
            return Arc::clone(order);
        }
        let mut order: Vec<i64> = seats.viewers.keys().copied().collect();
        order.sort_unstable_by_key(|viewer| (shard_of(*viewer), *viewer));
        let order: Arc<[i64]> = order.into();
        seats.order = Some(Arc::clone(&order));
        order
    }

    /// Flags what `changed` and the `heads` of `viewers` say.
    pub fn tell(&self, viewers: &[i64], heads: &[Option<HomeHead>], changed: &Changed) {
        let mut seats = self.seats.lock();
        let mut merged = Vec::new();
        // What is new lies above the floor of a client's mark, which is not above this one by much.
        let floor = Told::before(now_ms()).floor();
        for (viewer, head) in viewers.iter().zip(heads) {
            let Some(looker) = seats.viewers.get_mut(viewer) else { continue };
            let stamp = head.map(|head| head.stamp);
            let takes = |head: HomeHead| head.takes || (head.hot && changed.unnamed);
            looker.moved |= head.is_some_and(takes) || stamp != looker.stamp;
            looker.stamp = stamp;
            match head {
                Some(head) if head.floor <= floor && looker.moved => looker.tell_home(),
                Some(head) if head.floor <= floor || !looker.moved => {}
                _ => merged.push(*viewer),
            }
        }
        self.tell_merged(&mut seats, &merged);
        if changed.anything {
            let all = seats.viewers.values().flat_map(|looker| &looker.seats);
            all.for_each(|seat| seat.tell(|flags| flags.add(Flags::all())));
            return;
        }
        if changed.unnamed {
            let all = seats.viewers.values().flat_map(|looker| &looker.seats);
            // The timeline is told by its head, and an account that is deleted loses its sessions.
            let unnamed = || Flags { home: false, account: false, ..Flags::all() };
            all.for_each(|seat| seat.tell(|flags| flags.add(unnamed())));
        }
        let of = |user: &i64| seats.viewers.get(user).into_iter().flat_map(|looker| &looker.seats);
        for seat in changed.notifications.iter().flat_map(of) {
            seat.tell(|flags| (flags.notices, flags.unread) = (true, true));
        }
        for seat in changed.viewers.iter().flat_map(of) {
            seat.tell(|flags| (flags.account, flags.unread, flags.all_watched) = (true, true, true));
        }
        for tweet in &changed.tweets {
            for seat in seats.watchers.get(tweet).into_iter().flatten() {
                seat.tell(|flags| flags.watch(*tweet));
            }
        }
        if !changed.authors.is_empty() {
            let watches = |seat: &&Arc<Seat>| seat.authors.lock().iter().any(|author| changed.authors.contains(author));
            for seat in seats.viewers.values().flat_map(|looker| &looker.seats).filter(watches) {
                seat.tell(|flags| flags.all_watched = true);
            }
        }
    }

    fn tell_merged(&self, seats: &mut Seats, viewers: &[i64]) {
        let mut merges = self.merges.lock();
        let now = Instant::now();
        let earned = now.saturating_duration_since(merges.since).as_secs_f64() * MERGES_PER_SECOND;
        merges.credit = (merges.credit + earned).min(MERGES_PER_SECOND);
        merges.since = now;
        let first = merges.next.min(viewers.len());
        let (before, after) = viewers.split_at(first);
        for (place, viewer) in after.iter().chain(before).enumerate() {
            if merges.credit < 1.0 {
                merges.next = (first + place) % viewers.len();
                return;
            }
            let Some(looker) = seats.viewers.get_mut(viewer) else { continue };
            if now.saturating_duration_since(looker.merged) >= MERGED_EVERY {
                merges.credit -= 1.0;
                looker.merged = now;
                looker.tell_home();
            }
        }
    }

    /// Ends all streams, and those to come.
    pub fn end(&self, end: End) {
        let mut seats = self.seats.lock();
        seats.over = true;
        seats.viewers.values().flat_map(|looker| &looker.seats).for_each(|seat| {
            seat.tell(|flags| flags.end = Some(end));
        });
    }
}

/// A client's place: it counts as a stream, and is told, until this is dropped.
pub(crate) struct Place {
    live: Arc<Live>,
    seat: Arc<Seat>,
    viewer: i64,
    watched: Vec<i64>,
    transport: &'static str,
}

impl Place {
    pub(super) fn take(live: &Arc<Live>, viewer: i64, transport: &'static str) -> Result<Place, Full> {
        let mut all = live.registry.seats.lock();
        let seats = &mut *all;
        let limits = live.registry.limits;
        if seats.streams >= limits.streams {
            return Err(Full::Instance);
        }
        let seat = Arc::new(Seat::default());
        if seats.over {
            seat.flags.lock().end = Some(End::Shutdown);
        }
        match seats.viewers.entry(viewer) {
            Entry::Occupied(looker) if looker.get().seats.len() >= limits.of_user => return Err(Full::User),
            Entry::Occupied(mut looker) => looker.get_mut().seats.push(Arc::clone(&seat)),
            Entry::Vacant(vacant) => {
                let seats_of = vec![Arc::clone(&seat)];
                vacant.insert(Looker { seats: seats_of, stamp: None, moved: false, merged: Instant::now() });
                seats.order = None;
            }
        }
        seats.streams += 1;
        metrics::gauge!("feedmill_stream_clients", "transport" => transport).increment(1.0);
        Ok(Place { live: Arc::clone(live), seat, viewer, watched: Vec::new(), transport })
    }

    /// Waits until there is something to look at.
    pub(super) async fn woken(&self) {
        self.seat.woken.notified().await;
    }

    /// What there is to look at since the last call.
    pub(super) fn flags(&self) -> Flags {
        std::mem::take(&mut self.seat.flags.lock())
    }

    /// The tweets on screen from now on.
    pub(super) fn watch(&mut self, tweets: Vec<i64>) {
        let mut seats = self.live.registry.seats.lock();
        for tweet in self.watched.iter().filter(|tweet| !tweets.contains(tweet)) {
            unwatch(&mut seats, *tweet, &self.seat);
        }
        for tweet in tweets.iter().filter(|tweet| !self.watched.contains(tweet)) {
            seats.watchers.entry(*tweet).or_default().push(Arc::clone(&self.seat));
        }
        self.watched = tweets;
    }

    /// Who wrote them.
    pub(super) fn written_by(&self, authors: Vec<i64>) {
        *self.seat.authors.lock() = authors;
    }
}

fn unwatch(seats: &mut Seats, tweet: i64, seat: &Arc<Seat>) {
    if let Entry::Occupied(mut watchers) = seats.watchers.entry(tweet) {
        watchers.get_mut().retain(|watcher| !Arc::ptr_eq(watcher, seat));
        if watchers.get().is_empty() {
            watchers.remove();
        }
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        metrics::gauge!("feedmill_stream_clients", "transport" => self.transport).decrement(1.0);
        let mut all = self.live.registry.seats.lock();
        let seats = &mut *all;
        seats.streams -= 1;
        self.watched.iter().for_each(|tweet| unwatch(seats, *tweet, &self.seat));
        if let Entry::Occupied(mut looker) = seats.viewers.entry(self.viewer) {
            looker.get_mut().seats.retain(|seat| !Arc::ptr_eq(seat, &self.seat));
            if looker.get().seats.is_empty() {
                looker.remove();
                seats.order = None;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::Semaphore;

    use super::*;

    #[test]
    fn what_nobody_names_is_looked_at_by_all_and_timelines_where_heads_do_not_tell() {
        let registry = Registry::new(Limits { streams: 10, of_user: 1 });
        let live = Arc::new(Live { registry, reads: Semaphore::new(1) });
        let viewers = [1, 2];
        let places = viewers.map(|viewer| Place::take(&live, viewer, "sse").unwrap());
        let heads = [false, true].map(|hot| Some(HomeHead { stamp: 1, takes: false, hot, floor: 0 }));
        let unnamed = Changed { unnamed: true, ..Changed::default() };
        live.registry.tell(&viewers, &heads, &unnamed);
        places.iter().for_each(|place| drop(place.flags()));
        live.registry.tell(&viewers, &heads, &Changed::default());
        assert!(places.iter().all(|place| place.flags() == Flags::default()));
        live.registry.tell(&viewers, &heads, &unnamed);
        let expected = Flags { home: false, account: false, ..Flags::all() };
        assert_eq!(places[0].flags(), expected);
        assert_eq!(places[1].flags(), Flags { home: true, ..expected }, "hot accounts are not in the record");
    }

    #[test]
    fn of_timelines_that_are_merged_only_so_many_are_looked_at_in_a_while() {
        let registry = Registry::new(Limits { streams: 1_000, of_user: 1 });
        let live = Arc::new(Live { registry, reads: Semaphore::new(1) });
        let viewers: Vec<i64> = (0..100).collect();
        let places: Vec<Place> = viewers.iter().map(|viewer| Place::take(&live, *viewer, "sse").unwrap()).collect();
        let told = || places.iter().filter(|place| place.flags().home).count();
        let tell = |stamp, floor| {
            let head = HomeHead { stamp, takes: false, hot: false, floor };
            live.registry.tell(&viewers, &[Some(head); 100], &Changed::default());
        };
        tell(1, i64::MAX);
        let first = told();
        assert!(first <= MERGES_PER_SECOND as usize, "{first}");
        // Those that were not looked at are, once that costs little; and then no more while nothing moves.
        tell(1, 0);
        assert_eq!(first + told(), 100);
        tell(1, 0);
        assert_eq!(told(), 0);
        tell(2, 0);
        assert_eq!(told(), 100);
    }
}
