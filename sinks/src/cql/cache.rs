//! Timelines and profiles that many ask for at once, in front of the cluster.
//!
//! ```text
//!   (time that rows have, what is asked for) ─► there, and not too old ─► it
//!                                            └► one of those who ask reads it, the others wait for that
//! ```
//!
//! Why it is never older than what a reader has waited for: the time is a part of the key, as it was when the read began, and who
//! has waited for a write asks at a time that has it. When rows move on, what was read before is not found any more, and goes as
//! others come. Who may see something is asked of the facts, which are not held here.
//!
//! What is not there is not held: it may be that another worker applies it at this moment.

use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::{Duration, Instant};

use feedmill_model::{EntryId, Time};
use quick_cache::sync::Cache;

use super::fault::Fault;
use crate::{Profile, TimelineItem};

/// Profiles, at about a kilobyte each.
const PROFILES_MAX: usize = 20_000;
/// Pieces of timelines, and entries of one that is held, at 24 bytes each. Larger ones are of who scrolls far.
const TIMELINES_MAX: usize = 20_000;
pub(super) const ENTRIES_MAX: usize = 64;

/// For how long what was read is good, at most.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CacheAges {
    /// Of profiles; zero for none to be held.
    pub profiles: Duration,
    /// Of timelines, likewise.
    pub timelines: Duration,
}

impl Default for CacheAges {
    fn default() -> Self {
        CacheAges { profiles: Duration::from_secs(60), timelines: Duration::from_secs(10) }
    }
}

/// A piece of a timeline.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Piece {
    pub(super) user: i64,
    pub(super) replies: bool,
    pub(super) before: Option<EntryId>,
    pub(super) limit: usize,
}

/// What was read lately.
pub(super) struct Caches {
    pub(super) profiles: Aged<i64, Arc<Profile>>,
    pub(super) timelines: Aged<Piece, Arc<[TimelineItem]>>,
}

impl Caches {
    pub(super) fn new(ages: CacheAges) -> Self {
        Caches {
            profiles: Aged::new("profiles", PROFILES_MAX, ages.profiles),
            timelines: Aged::new("timelines", TIMELINES_MAX, ages.timelines),
        }
    }
}

/// Values by time and key.
pub(super) struct Aged<K, V> {
    name: &'static str,
    age: Duration,
    values: Cache<(Time, K), (Instant, V)>,
}

/// Why there is no value.
enum Unread {
    Absent,
    Failed(Fault),
}

impl<K: Clone + Eq + Hash, V: Clone> Aged<K, V> {
    fn new(name: &'static str, most: usize, age: Duration) -> Self {
        Aged { name, age, values: Cache::new(most) }
    }

    /// The value that `key` has at `time`, which rows have now; it is read if it is not here.
    pub(super) async fn get<F>(&self, time: Time, key: K, read: impl FnOnce() -> F) -> Result<Option<V>, Fault>
    where
        F: Future<Output = Result<Option<V>, Fault>>,
    {
        if self.age.is_zero() {
            return read().await;
        }
        let key = (time, key);
        if self.values.get(&key).is_some_and(|(at, _)| at.elapsed() >= self.age) {
            self.values.remove(&key);
        }
        let mut was_read = false;
        let found = self.values.get_or_insert_async(&key, async {
            was_read = true;
            match read().await {
                Ok(Some(value)) => Ok((Instant::now(), value)),
                Ok(None) => Err(Unread::Absent),
                Err(fault) => Err(Unread::Failed(fault)),
            }
        });
        let found = found.await;
        let result = if was_read { "miss" } else { "hit" };
        metrics::counter!("feedmill_cache_reads_total", "of" => self.name, "result" => result).increment(1);
        match found {
            Ok((_, value)) => Ok(Some(value)),
            Err(Unread::Absent) => Ok(None),
            Err(Unread::Failed(fault)) => Err(fault),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::cell::Cell;

    use super::*;

    #[tokio::test]
    async fn a_value_is_read_once_a_time_while_it_is_young_and_there() {
        let reads = Cell::new(0);
        let cache = Aged::<i64, i64>::new("test", 10, Duration::from_secs(3_600));
        let get = async |cache: &Aged<i64, i64>, time, value: Option<i64>| {
            let read = async || {
                reads.set(reads.get() + 1);
                Ok(value)
            };
            cache.get(time, 7, read).await.unwrap()
        };
        assert_eq!(get(&cache, 10, Some(1)).await, Some(1));
        assert_eq!((get(&cache, 10, Some(2)).await, reads.get()), (Some(1), 1));
        assert_eq!((get(&cache, 11, Some(2)).await, reads.get()), (Some(2), 2), "rows have moved on");
        assert_eq!((get(&cache, 12, None).await, get(&cache, 12, Some(3)).await), (None, Some(3)));
        let old = Aged::<i64, i64>::new("test", 10, Duration::from_nanos(1));
        assert_eq!((get(&old, 10, Some(1)).await, get(&old, 10, Some(2)).await), (Some(1), Some(2)));
        let none = Aged::<i64, i64>::new("test", 10, Duration::ZERO);
        assert_eq!((get(&none, 10, Some(1)).await, get(&none, 10, Some(2)).await), (Some(1), Some(2)));
    }
}
