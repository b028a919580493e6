//! A closed time of very many rows leaves what as many small ones would.

use std::collections::BTreeMap;
use std::sync::Arc;

use feedmill_model::{Counter, Fact, Notice, NoticeKind, Op, Time, ViewRow};
use feedmill_sinks::{Edge, List, Views};
use futures::executor::block_on;

use crate::index::{Give, Subject, closed, user};

/// Who follows and likes at first; in all there are as many as the store's [`Subject::MANY`].
const FEW: i64 = 1_000;
/// The tweets that are liked, all by one author.
const TWEETS: i64 = 10;
const AUTHOR: i64 = -1;
/// The shards of two workers.
const WORKERS: [u64; 2] = [0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA];

const fn tweet_of(user: i64) -> i64 {
    1_000_000 + user % TWEETS
}

const fn notice(user: i64) -> Notice {
    Notice { order: user, kind: NoticeKind::Like, actor: user, tweet: tweet_of(user) }
}

/// The rows of a like, put or deleted.
fn like(user: i64, op: fn(ViewRow) -> Op<ViewRow>) -> [Op<ViewRow>; 3] {
    let tweet = tweet_of(user);
    [
        ViewRow::Liker { tweet, at: user, user },
        ViewRow::Liked { user, tweet },
        ViewRow::Notification { user: AUTHOR, notice: notice(user) },
    ]
    .map(op)
}

fn count(likes: &BTreeMap<i64, i64>) -> impl Iterator<Item = Op<ViewRow>> + '_ {
    likes.iter().map(|(tweet, likes)| Op::Add(ViewRow::Count { counter: Counter::Likes, of: *tweet }, *likes))
}

/// How much each tweet has of these users.
fn tally(users: impl Iterator<Item = i64>, each: i64, likes: &mut BTreeMap<i64, i64>) {
    users.for_each(|user| *likes.entry(tweet_of(user)).or_insert(0) += each);
}

fn is_even(user: &i64) -> bool {
    user % 2 == 0
}

/// The closed times: few rows, then very many, of which some take away what the few put.
fn rows(time: Time, all: i64) -> Vec<Op<ViewRow>> {
    let mut likes = BTreeMap::new();
    if time == 1 {
        tally(0..FEW, 1, &mut likes);
        let tweets = (0..TWEETS).map(|number| {
            let id = tweet_of(number);
            let tweet = feedmill_model::Tweet { id, user_id: AUTHOR, conversation_id: id, ..Default::default() };
            Op::Put(ViewRow::Tweet(Box::new(tweet)))
        });
        let author = Op::Put(ViewRow::Profile(Box::new(user(AUTHOR))));
        return (0..FEW)
            .flat_map(|user| like(user, Op::Put))
            .chain(count(&likes))
            .chain(tweets)
            .chain([author])
            .collect();
    }
    tally(FEW..all, 1, &mut likes);
    tally((0..FEW).filter(is_even), -1, &mut likes);
    let gone = (0..FEW).filter(is_even).flat_map(|user| like(user, Op::Delete));
    (FEW..all).flat_map(|user| like(user, Op::Put)).chain(gone).chain(count(&likes)).collect()
}

fn follows(time: Time, all: i64) -> Vec<Op<Fact>> {
    let follow = |follower| Fact::Follow { follower, following: AUTHOR, accepted: follower % 3 > 0 };
    match time {
        1 => (0..FEW).map(|follower| Op::Put(follow(follower))).collect(),
        _ => {
            // Enough to be very many for each of two workers.
            let puts = (FEW..2 * all).map(|follower| Op::Put(follow(follower)));
            puts.chain((0..FEW).filter(is_even).map(|follower| Op::Delete(follow(follower)))).collect()
        }
    }
}

fn apply<S: Subject>(store: &S::Store, time: Time, sets: &[u64]) {
    for shards in sets.iter().copied() {
        store.give(&closed(time, shards, follows(time, S::MANY))).unwrap();
        store.give(&closed(time, shards, rows(time, S::MANY))).unwrap();
    }
}

fn check<S: Subject>(views: &Arc<dyn Views>) {
    let all = S::MANY;
    let there: Vec<i64> = (0..all).filter(|user| *user >= FEW || !is_even(user)).collect();
    for number in 0..TWEETS {
        let tweet = tweet_of(number);
        let likers = block_on(views.edges(List::Likers, tweet, None, all as usize)).unwrap();
        let of_tweet = there.iter().rev().filter(|user| tweet_of(**user) == tweet);
        assert!(likers.into_iter().eq(of_tweet.clone().map(|user| Edge { at: *user, id: *user })));
        let counted = block_on(views.tweets(&[tweet])).unwrap()[0].as_ref().map(|tweet| tweet.likes);
        assert_eq!(counted, Some(of_tweet.count() as i64));
    }
    let told = block_on(views.notifications(AUTHOR, None, all as usize)).unwrap();
    assert!(told.into_iter().eq(there.iter().rev().map(|user| notice(*user))));
    for user in [0, 1, FEW - 2, FEW - 1, FEW, all - 1, all] {
        let liked = block_on(views.liked(user, &[tweet_of(user), tweet_of(user + 1)])).unwrap();
        assert_eq!(liked, [there.contains(&user), false], "{user}");
    }
    for user in [0, 1, FEW - 1, FEW, all, 2 * all - 1, 2 * all] {
        let followed = block_on(views.relationships(Some(user), &[AUTHOR])).unwrap()[0].following;
        let follows = user < 2 * all && (user >= FEW || !is_even(&user));
        assert_eq!(followed, follows.then_some(user % 3 > 0), "{user}");
    }
}

pub fn very_many_rows_at_once_are_as_many_small_ones<S: Subject>(subject: &S) {
    let store = subject.open();
    apply::<S>(&store, 1, &WORKERS);
    subject.durable(&store);
    apply::<S>(&store, 2, &WORKERS);
    check::<S>(&subject.views(&store));
    // Once more changes nothing, whatever a crash leaves of the progress.
    apply::<S>(&store, 2, &WORKERS);
    check::<S>(&subject.views(&store));
    let store = subject.crash(store);
    apply::<S>(&store, 2, &WORKERS);
    check::<S>(&subject.views(&store));
}

pub fn a_time_that_is_cut_short_between_sets_of_shards_counts_once<S: Subject>(subject: &S) {
    // The shards of each worker come in three sets.
    const PARTS: [u64; 3] = [0x0000_0000_00FF_FFFF, 0x0000_FFFF_FF00_0000, 0xFFFF_0000_0000_0000];
    let sets: Vec<u64> = PARTS.iter().flat_map(|part| WORKERS.map(|worker| part & worker)).collect();
    for cut in [1, 3, 4] {
        let store = subject.open();
        apply::<S>(&store, 1, &WORKERS);
        subject.durable(&store);
        let (before, _) = sets.split_at(cut);
        apply::<S>(&store, 2, before);
        let store = subject.crash(store);
        // What comes again comes in sets of its own: here of one worker instead of two.
        apply::<S>(&store, 2, &PARTS);
        check::<S>(&subject.views(&store));
        // The first closed time after it is of all shards again, and what was there stays.
        apply::<S>(&store, 2, &[u64::MAX]);
        check::<S>(&subject.views(&store));
    }
}
