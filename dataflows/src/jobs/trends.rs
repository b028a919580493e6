//! Trends: the tags that most authors use, and the tweets that are liked most.
//!
//! ```text
//!   tags, each for both windows ─► expire ─► without protected authors ─► tally by tag ─┐
//!                                                                                       ├─► best of a worker ─► best
//!   likes ─► expire ─────────────────────────► tally by tweet, without deleted ones ────┘
//! ```
//!
//! Windows end at full minutes ([`expire`]): they slide also when nothing is written, because the log ticks when it is
//! idle. The best are found in two steps, so that no worker has to know all tags: each offers its own first hundred.
//!
//! Why it is correct: of the first hundred of all, those of one worker are among its own first hundred. A tag's uses all
//! come to the worker that owns the tag, so what is tallied there is the whole of it.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use differential_dataflow::ExchangeData;
use feedmill_model::{Like, Time, Timestamp, TrendWindow, Tweet, User, ViewRow, name_owner, shard_of, text};
use hashbrown::{HashMap, HashSet};

use crate::closed::each_time;
use crate::collection::{Rows, index, set, without};
use crate::expire::expire;

/// How far ahead of its time a row counts.
const AHEAD_MINUTES: u64 = 60;

/// How many are listed.
const LISTED: usize = 100;

/// A tag and what it is ranked by, the best first.
type RankedTag = (Reverse<u64>, Reverse<u64>, String);

/// A tweet likewise.
type RankedTweet = (Reverse<u64>, Reverse<i64>);

/// The first full minute, as a time, at which what was made at `at` is no longer in the window.
pub(crate) fn leaves(at: Timestamp, minutes: u64) -> Time {
    let minute = at.div_euclid(60_000_000).saturating_add_unsigned(minutes);
    u64::try_from(minute).unwrap_or(0).saturating_mul(60_000)
}

/// Rows that are from less than so many minutes ago. A like or a follow can say that it is from a time to come: it counts
/// from an hour before that on, which is as far as tweets can be ahead; one from `infinity`, never.
pub(crate) fn within<'scope, D: ExchangeData>(
    rows: Rows<'scope, (Timestamp, D)>,
    minutes: u64,
    start: Time,
    name: &str,
    owner: fn(&D) -> i64,
) -> Rows<'scope, D> {
    let rows = rows.filter(|(at, _)| *at < Timestamp::MAX).map(move |(at, row)| (leaves(at, minutes), row));
    expire(rows, (minutes + AHEAD_MINUTES) * 60_000, start, name, owner)
}

/// The first hundred tags of each window.
pub(crate) fn trending_hashtags<'scope>(
    tweets: Rows<'scope, Rc<Tweet>>,
    users: Rows<'scope, Rc<User>>,
    start: Time,
) -> Rows<'scope, ViewRow> {
    // What no window can hold any more is not even looked at: all tweets of all time are loaded.
    let is_recent = move |tweet: &Rc<Tweet>| leaves(tweet.created_at, TrendWindow::Day.minutes()) > start;
    let uses = tweets.filter(move |tweet| tweet.deleted_at.is_none() && is_recent(tweet)).flat_map(|tweet| {
        let tags = text::hashtags(&tweet.content).into_iter();
        tags.flat_map(move |tag| {
            let (author, at) = (tweet.user_id, tweet.created_at);
            TrendWindow::ALL.map(|window| (leaves(at, window.minutes()), (author, (window, tag.clone()))))
        })
    });
    let uses = expire(uses, Time::MAX, start, "ExpireTags", |(author, _)| *author);
    let protected = set(users.filter(|user| user.protected).map(|user| user.id), "ProtectedAuthors");
    let by_author = index(uses.clone(), "TagsByAuthor");
    let uses = without(uses, by_author, protected).map(|(author, (window, tag))| (window, tag, author));
    let ranked = best(tallied_tags(uses), "BestTagsOfWorker", |(_, (_, _, tag))| owner_of(tag));
    best(ranked, "BestTags", |(window, _)| u64::from(shard_of(*window as i64)))
        .map(|(window, (Reverse(authors), Reverse(uses), tag))| ViewRow::TrendingTag { window, tag, authors, uses })
}

/// The hundred tweets that were liked most in 24 hours.
pub(crate) fn trending_tweets<'scope>(
    likes: Rows<'scope, Like>,
    tweets: Rows<'scope, Rc<Tweet>>,
    start: Time,
) -> Rows<'scope, ViewRow> {
    let likes = likes.map(|like| (like.created_at, like.tweet_id));
    let likes = within(likes, TrendWindow::Day.minutes(), start, "ExpireLikes", |tweet| *tweet);
    let likes = likes.map(|tweet| (tweet, Said::Liked));
    let deleted = tweets.filter(|tweet| tweet.deleted_at.is_some()).map(|tweet| (tweet.id, Said::Deleted));
    let route = |tweet: i64| u64::from(shard_of(tweet));
    let ranked = best(tallied_tweets(likes.concat(deleted)), "BestTweetsOfWorker", move |(_, (_, Reverse(tweet)))| {
        route(*tweet)
    });
    best(ranked, "BestTweets", move |_| route(0))
        .map(|((), (Reverse(likes), Reverse(tweet)))| ViewRow::TrendingTweet { tweet, likes })
}

fn owner_of(tag: &str) -> u64 {
    u64::from(shard_of(name_owner(tag)))
}

/// How often a tag is used, and by whom.
#[derive(Default)]
struct Uses {
    by: HashMap<i64, isize>,
    all: isize,
}

impl Uses {
    fn ranked(&self, tag: &str) -> Option<RankedTag> {
        let count = |count| u64::try_from(count).unwrap_or(0);
        (self.all > 0).then(|| (Reverse(self.by.len() as u64), Reverse(count(self.all)), tag.to_owned()))
    }
}

/// Tags with what they are ranked by.
fn tallied_tags<'scope>(uses: Rows<'scope, (TrendWindow, String, i64)>) -> Rows<'scope, (TrendWindow, RankedTag)> {
    let mut windows = BTreeMap::<TrendWindow, HashMap<String, Uses>>::new();
    each_time(
        uses,
        "TallyTags",
        |(_, tag, _)| owner_of(tag),
        move |_time, changes, emit| {
            for of_tag in changes.chunk_by(|((w, one, _), _), ((v, other, _), _)| (w, one) == (v, other)) {
                let Some(((window, tag, _), _)) = of_tag.first() else { continue };
                let tags = windows.entry(*window).or_default();
                let uses = tags.entry_ref(tag.as_str()).or_default();
                let before = uses.ranked(tag);
                for ((_, _, author), diff) in of_tag {
                    let by = uses.by.entry(*author).or_default();
                    *by += diff;
                    uses.all += diff;
                    if *by == 0 {
                        uses.by.remove(author);
                    }
                }
                let after = uses.ranked(tag);
                if after.is_none() && uses.by.is_empty() {
                    tags.remove(tag);
                }
                if before != after {
                    before.into_iter().for_each(|before| emit((*window, before), -1));
                    after.into_iter().for_each(|after| emit((*window, after), 1));
                }
            }
        },
    )
}

/// What is known of a tweet.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, serde::Serialize, serde::Deserialize)]
enum Said {
    Liked,
    Deleted,
}

/// Tweets with what they are ranked by.
fn tallied_tweets<'scope>(said: Rows<'scope, (i64, Said)>) -> Rows<'scope, ((), RankedTweet)> {
    let mut likes = HashMap::<i64, isize>::new();
    // All that were ever deleted: whoever likes one tomorrow, it is not to be listed. At most 18 bytes each.
    let mut deleted = HashSet::<i64>::new();
    let ranked = |tweet: i64, likes: isize, deleted: bool| {
        let likes = u64::try_from(likes).ok().filter(|likes| *likes > 0 && !deleted);
        likes.map(|likes| (Reverse(likes), Reverse(tweet)))
    };
    each_time(
        said,
        "TallyLikes",
        |(tweet, _)| u64::from(shard_of(*tweet)),
        move |_time, changes, emit| {
            for of_tweet in changes.chunk_by(|((one, _), _), ((other, _), _)| one == other) {
                let Some(&((tweet, _), _)) = of_tweet.first() else { continue };
                let (had, was_deleted) = (likes.get(&tweet).copied().unwrap_or(0), deleted.contains(&tweet));
                let (mut has, mut is_deleted) = (had, was_deleted);
                for ((_, said), diff) in of_tweet {
                    match said {
                        Said::Liked => has += diff,
                        Said::Deleted => is_deleted = *diff > 0,
                    }
                }
                match has {
                    0 => likes.remove(&tweet),
                    has => likes.insert(tweet, has),
                };
                match is_deleted {
                    true => deleted.insert(tweet),
                    false => deleted.remove(&tweet),
                };
                let (before, after) = (ranked(tweet, had, was_deleted), ranked(tweet, has, is_deleted));
                if before != after {
                    before.into_iter().for_each(|before| emit(((), before), -1));
                    after.into_iter().for_each(|after| emit(((), after), 1));
                }
            }
        },
    )
}

/// What is ranked on a worker, and what of it is listed.
struct Ranked<R> {
    all: BTreeSet<R>,
    listed: Vec<R>,
}

impl<R> Default for Ranked<R> {
    fn default() -> Self {
        Ranked { all: BTreeSet::new(), listed: Vec::new() }
    }
}

/// The first hundred of each list that come to a worker; `R` is in the order of the list.
fn best<'scope, L: ExchangeData, R: ExchangeData>(
    rows: Rows<'scope, (L, R)>,
    name: &str,
    route: impl Fn(&(L, R)) -> u64 + 'static,
) -> Rows<'scope, (L, R)> {
    let mut lists = BTreeMap::<L, Ranked<R>>::new();
    each_time(rows, name, route, move |_time, changes, emit| {
        for of_list in changes.chunk_by(|((one, _), _), ((other, _), _)| one == other) {
            let Some(((list, _), _)) = of_list.first() else { continue };
            let ranked = lists.entry(list.clone()).or_default();
            for ((_, row), diff) in of_list {
                if *diff > 0 {
                    ranked.all.insert(row.clone());
                } else {
                    ranked.all.remove(row);
                }
            }
            let mut before = std::mem::take(&mut ranked.listed).into_iter().peekable();
            ranked.listed.extend(ranked.all.iter().take(LISTED).cloned());
            // Both are in order.
            for row in &ranked.listed {
                while let Some(gone) = before.next_if(|gone| gone < row) {
                    emit((list.clone(), gone), -1);
                }
                if before.next_if_eq(row).is_none() {
                    emit((list.clone(), row.clone()), 1);
                }
            }
            before.for_each(|gone| emit((list.clone(), gone), -1));
        }
    })
}
