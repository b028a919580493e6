//! Ids of imported tweets.
//!
//! An id that is time-ordered (its milliseconds are those of the tweet) is kept, moved by the import's shift. Any other is
//! minted from the tweet's time: its milliseconds, and as the sequence its rank among the minted tweets of the same
//! millisecond, by their order in the file; but a reply comes after what it answers, and a sequence that another tweet
//! has is passed over. So the same file gives the same ids, wherever and whenever it is imported into the same rows.
//!
//! Tweets are taken by time, so what a tweet answers has its id already, or stands in the same millisecond, or comes later
//! and is refused. Everything known is held in memory: about 100 bytes a tweet of the file.

use std::collections::{HashMap, HashSet};
use std::fmt;

use feedmill_model::{id_at, ms_of};

/// A tweet as its file has it, but for the time, which is shifted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Tweet {
    /// Where it stands in the file.
    pub line: i64,
    /// The file's id, which occurs once.
    pub source_id: i64,
    /// The file's id of what it answers.
    pub reply_to: Option<i64>,
    /// When it was posted, after the shift; between 1970 and now.
    pub ms: i64,
}

/// A tweet that has its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Minted {
    /// Its id.
    pub id: i64,
    /// What it answers.
    pub reply_to: Option<i64>,
    /// The first tweet of the thread.
    pub conversation: i64,
}

/// Why a tweet gets no id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// Nobody knows what it answers.
    Unknown(i64),
    /// What it answers is in the file, but later, or on a bad line.
    LaterOrBad(i64),
    /// It answers itself, by way of others.
    Loop(i64),
    /// The id that is kept is not greater than that of what it answers.
    NotGreater { id: i64, parent: i64 },
    /// The millisecond has no sequence left.
    Full(i64),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::Unknown(parent) => {
                write!(f, "it answers tweet {parent}, which is neither in the file nor in the database")
            }
            Refusal::LaterOrBad(parent) => write!(f, "it answers tweet {parent}, which is later, or on a bad line"),
            Refusal::Loop(parent) => write!(f, "it answers tweet {parent}, which answers it in turn"),
            Refusal::NotGreater { id, parent } => {
                write!(f, "its id is {id}, but must be greater than {parent}, the id of what it answers")
            }
            Refusal::Full(ms) => write!(f, "more than 65,536 tweets have the time {ms} ms (after the shift)"),
        }
    }
}

/// What ids are minted against.
#[derive(Debug, Default)]
pub struct Mint {
    /// By how much times are shifted.
    pub shift_ms: i64,
    /// Tweets of earlier runs, and of this one, by the file's id.
    pub known: HashMap<i64, Minted>,
    /// Tweets of the database that are answered by the id that they have there.
    pub kept: HashMap<i64, Minted>,
    /// Ids in the database that a tweet with a new id must not get.
    pub taken: HashSet<i64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum State {
    New,
    /// Waits for the one it answers.
    Waiting,
    Done,
}

impl Mint {
    /// Gives ids to all tweets of a file, which are ordered by time, then by line.
    pub fn mint(&mut self, tweets: &[Tweet]) -> Vec<Result<Minted, Refusal>> {
        let file: HashSet<i64> = tweets.iter().map(|tweet| tweet.source_id).collect();
        let mut all = Vec::with_capacity(tweets.len());
        for group in tweets.chunk_by(|one, other| one.ms == other.ms) {
            all.extend(Group::new(self, &file, group).mint());
        }
        all
    }

    /// The id as it is kept, if it is time-ordered.
    fn kept_id(&self, tweet: &Tweet) -> Option<i64> {
        (ms_of(tweet.source_id) == tweet.ms - self.shift_ms).then(|| tweet.source_id + (self.shift_ms << 16))
    }
}

/// The tweets of one millisecond.
struct Group<'a> {
    mint: &'a mut Mint,
    file: &'a HashSet<i64>,
    tweets: &'a [Tweet],
    /// Where the file's ids stand in the group.
    places: HashMap<i64, usize>,
    /// Sequences that are not minted, because they are kept, or were minted by an earlier run.
    reserved: HashSet<i64>,
    /// The next sequence.
    next: i64,
    states: Vec<State>,
    results: Vec<Option<Result<Minted, Refusal>>>,
}

impl<'a> Group<'a> {
    fn new(mint: &'a mut Mint, file: &'a HashSet<i64>, tweets: &'a [Tweet]) -> Self {
        let places = tweets.iter().enumerate().map(|(place, tweet)| (tweet.source_id, place)).collect();
        let reserved = tweets
            .iter()
            .filter_map(|tweet| match mint.known.get(&tweet.source_id) {
                Some(known) => Some(known.id),
                None => mint.kept_id(tweet),
            })
            .collect();
        let states = vec![State::New; tweets.len()];
        Group { mint, file, tweets, places, reserved, next: 0, states, results: vec![None; tweets.len()] }
    }

    fn mint(mut self) -> Vec<Result<Minted, Refusal>> {
        for place in 0..self.tweets.len() {
            self.mint_thread(place);
        }
        self.results
            .into_iter()
            .zip(self.tweets)
            .map(|(result, tweet)| result.unwrap_or(Err(Refusal::Full(tweet.ms))))
            .collect()
    }

    /// Mints one tweet, after those of the same millisecond that it answers, directly and by way of others.
    fn mint_thread(&mut self, place: usize) {
        let mut waiting = vec![place];
        while let Some(place) = waiting.last().copied() {
            let (Some(tweet), Some(state)) = (self.tweets.get(place).copied(), self.states.get(place).copied()) else {
                return;
            };
            if state == State::Done {
                waiting.pop();
                continue;
            }
            let parent = tweet.reply_to.and_then(|parent| self.places.get(&parent).copied());
            let result = match parent.and_then(|parent| Some((parent, *self.states.get(parent)?))) {
                Some((parent, State::New)) if parent != place => {
                    self.set(place, State::Waiting);
                    waiting.push(parent);
                    continue;
                }
                Some((_, State::New | State::Waiting)) => Err(Refusal::Loop(tweet.reply_to.unwrap_or_default())),
                Some((_, State::Done)) | None => self.mint_one(&tweet),
            };
            if let Ok(minted) = result {
                self.mint.known.insert(tweet.source_id, minted);
            }
            if let Some(slot) = self.results.get_mut(place) {
                *slot = Some(result);
            }
            self.set(place, State::Done);
            waiting.pop();
        }
    }

    fn set(&mut self, place: usize, state: State) {
        if let Some(slot) = self.states.get_mut(place) {
            *slot = state;
        }
    }

    /// What a tweet answers has been minted, or never will be.
    fn mint_one(&mut self, tweet: &Tweet) -> Result<Minted, Refusal> {
        if let Some(known) = self.mint.known.get(&tweet.source_id).copied() {
            // The next one ranks after it, as it did when this one was minted.
            if ms_of(known.id) == tweet.ms && self.mint.kept_id(tweet).is_none() {
                self.next = self.next.max((known.id & 0xFFFF) + 1);
            }
            return Ok(known);
        }
        let parent = match tweet.reply_to {
            None => None,
            Some(parent) => Some(self.parent(parent)?),
        };
        let id = match self.mint.kept_id(tweet) {
            Some(id) => id,
            None => self.sequence_after(tweet.ms, parent.map(|parent| parent.id))?,
        };
        match parent {
            Some(parent) if parent.id >= id => Err(Refusal::NotGreater { id, parent: parent.id }),
            Some(parent) => Ok(Minted { id, reply_to: Some(parent.id), conversation: parent.conversation }),
            None => Ok(Minted { id, reply_to: None, conversation: id }),
        }
    }

    fn parent(&self, source_id: i64) -> Result<Minted, Refusal> {
        let found = self.mint.known.get(&source_id);
        // One of the file's own is never mistaken for one of the database that happens to have its id.
        match found.or_else(|| if self.file.contains(&source_id) { None } else { self.mint.kept.get(&source_id) }) {
            Some(parent) => Ok(*parent),
            None if self.file.contains(&source_id) => Err(Refusal::LaterOrBad(source_id)),
            None => Err(Refusal::Unknown(source_id)),
        }
    }

    fn sequence_after(&mut self, ms: i64, parent: Option<i64>) -> Result<i64, Refusal> {
        let mut id = id_at(ms, 0) + self.next;
        if let Some(parent) = parent.filter(|parent| ms_of(*parent) == ms) {
            id = id.max(parent + 1);
        }
        while self.reserved.contains(&id) || self.mint.taken.contains(&id) {
            id += 1;
        }
        if ms_of(id) != ms {
            return Err(Refusal::Full(ms));
        }
        self.next = (id & 0xFFFF) + 1;
        Ok(id)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn tweet(line: i64, source_id: i64, reply_to: Option<i64>, ms: i64) -> Tweet {
        Tweet { line, source_id, reply_to, ms }
    }

    fn ids(results: &[Result<Minted, Refusal>]) -> Vec<Result<i64, Refusal>> {
        results.iter().map(|result| result.map(|minted| minted.id)).collect()
    }

    #[test]
    fn ids_are_ranks_and_replies_come_after_what_they_answer() {
        let tweets = [
            tweet(2, 70, Some(90), 5),
            tweet(3, 80, None, 5),
            tweet(4, 90, Some(60), 5),
            tweet(5, 60, None, 5),
            tweet(6, 50, Some(70), 6),
        ];
        let minted = Mint::default().mint(&tweets);
        assert_eq!(ids(&minted), [Ok(id_at(5, 2)), Ok(id_at(5, 3)), Ok(id_at(5, 1)), Ok(id_at(5, 0)), Ok(id_at(6, 0))]);
        assert!(
            minted
                .iter()
                .all(|minted| minted.unwrap().conversation == id_at(5, 0) || minted.unwrap().id == id_at(5, 3))
        );
    }

    #[test]
    fn time_ordered_ids_are_kept_and_moved_by_the_shift() {
        let mut mint = Mint { shift_ms: 1_000, ..Mint::default() };
        let minted = mint.mint(&[
            tweet(2, 7, None, 1_005),
            tweet(3, id_at(5, 0), None, 1_005),
            tweet(4, id_at(5, 900), Some(7), 1_005),
        ]);
        assert_eq!(ids(&minted), [Ok(id_at(1_005, 1)), Ok(id_at(1_005, 0)), Ok(id_at(1_005, 900))]);
    }

    #[test]
    fn what_cannot_be_placed_is_refused() {
        let tweets = [
            tweet(2, 1, Some(2), 5),
            tweet(3, 2, Some(1), 5),
            tweet(4, 3, Some(3), 5),
            tweet(5, 4, Some(6), 5),
            tweet(6, 5, Some(99), 5),
            tweet(7, 6, None, 6),
            tweet(8, 7, Some(5), 6),
        ];
        let refused: Vec<_> = Mint::default().mint(&tweets).into_iter().map(Result::err).collect();
        assert_eq!(
            refused,
            [
                Some(Refusal::LaterOrBad(2)),
                Some(Refusal::Loop(1)),
                Some(Refusal::Loop(3)),
                Some(Refusal::LaterOrBad(6)),
                Some(Refusal::Unknown(99)),
                None,
                Some(Refusal::LaterOrBad(5)),
            ]
        );
    }

    #[test]
    fn a_millisecond_holds_65536_tweets_and_passes_over_ids_that_are_taken() {
        let tweets: Vec<Tweet> = (0..65_537).map(|n| tweet(n + 2, -1 - n, None, 5)).collect();
        let minted = Mint::default().mint(&tweets);
        assert!(minted.iter().take(65_536).all(Result::is_ok));
        assert_eq!(minted.last(), Some(&Err(Refusal::Full(5))));
        let mut mint = Mint { taken: HashSet::from([id_at(5, 0), id_at(5, 2)]), ..Mint::default() };
        assert_eq!(ids(&mint.mint(&tweets[..3])), [Ok(id_at(5, 1)), Ok(id_at(5, 3)), Ok(id_at(5, 4))]);
    }

    /// Files of few milliseconds with replies to any line, also to later ones and to themselves.
    fn files() -> impl Strategy<Value = Vec<Tweet>> {
        prop::collection::vec((0..4_i64, prop::option::of(0..40_i64), any::<bool>()), 1..40).prop_map(|lines| {
            let source_ids: Vec<i64> = lines
                .iter()
                .zip(0..)
                .map(|((ms, _, kept), line)| if *kept { id_at(1_000 + ms, 0) + line * 3 } else { 10_000 - line * 7 })
                .collect();
            let mut tweets: Vec<Tweet> = lines
                .iter()
                .zip(0..)
                .map(|((ms, reply_to, _), line)| Tweet {
                    line,
                    source_id: source_ids[line as usize],
                    reply_to: reply_to.map(|to| source_ids.get(to as usize).copied().unwrap_or(-to)),
                    ms: 1_000 + ms,
                })
                .collect();
            tweets.sort_by_key(|tweet| (tweet.ms, tweet.line));
            tweets
        })
    }

    proptest! {
        #[test]
        fn ids_are_unique_time_ordered_repeatable_and_threads_ascend(tweets in files(), split in 0..40_usize) {
            let mut mint = Mint::default();
            let minted = mint.mint(&tweets);
            prop_assert_eq!(&Mint::default().mint(&tweets), &minted);

            let by_source: HashMap<i64, Minted> =
                tweets.iter().zip(&minted).filter_map(|(tweet, minted)| Some((tweet.source_id, (*minted).ok()?))).collect();
            let distinct: HashSet<i64> = by_source.values().map(|minted| minted.id).collect();
            prop_assert_eq!(distinct.len(), by_source.len());
            for (tweet, minted) in tweets.iter().zip(&minted) {
                let Ok(minted) = minted else {
                    prop_assert!(tweet.reply_to.is_some(), "only replies are refused");
                    continue;
                };
                prop_assert_eq!(ms_of(minted.id), tweet.ms);
                match tweet.reply_to {
                    None => prop_assert_eq!((minted.reply_to, minted.conversation), (None, minted.id)),
                    Some(parent) => {
                        let parent = by_source[&parent];
                        prop_assert!(parent.id < minted.id);
                        prop_assert_eq!((minted.reply_to, minted.conversation), (Some(parent.id), parent.conversation));
                    }
                }
            }

            // After a crash some are there already, whichever; the next run gives the same ids.
            let there = tweets.iter().filter(|tweet| by_source.contains_key(&tweet.source_id)).take(split);
            let known: HashMap<i64, Minted> = there.map(|tweet| (tweet.source_id, by_source[&tweet.source_id])).collect();
            let taken = known.values().map(|minted| minted.id).collect();
            let again = Mint { known, taken, ..Mint::default() }.mint(&tweets);
            let placed = |results: &[Result<Minted, Refusal>]| -> Vec<_> { results.iter().map(|result| result.ok()).collect() };
            prop_assert_eq!(placed(&again), placed(&minted));
        }
    }
}
