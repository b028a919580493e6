//! What is read while closed times are applied is never older than what was told before.

use std::sync::atomic::{AtomicI64, Ordering};
use std::thread;

use feedmill_model::{Counter, Fact, Op, Time, Tweet, User, ViewRow};
use feedmill_sinks::{Relationship, Views};
use futures::executor::block_on;

use crate::index::{ALL, Give, Subject, closed, user};

const READERS: usize = 3;
/// Tweets and users of which all change at each time; their ids are smaller than those of what comes once.
const CHANGING: i64 = 8;
/// Who is followed, blocked, muted or deleted at the time `n` has the id `ONCE + n`.
const ONCE: i64 = 1_000;

fn facts(n: i64) -> Vec<Op<Fact>> {
    let once = ONCE + n;
    vec![
        Op::Put(Fact::Follow { follower: 1, following: once, accepted: n % 2 == 0 }),
        Op::Put(Fact::Block { blocker: once, blocked: 1 }),
        Op::Put(Fact::Mute { muter: 1, muted: once }),
        Op::Put(Fact::Protected(once)),
        Op::Put(Fact::DeletedUser(once)),
        Op::Put(Fact::DeletedTweet(once)),
    ]
}

fn rows(n: i64) -> Vec<Op<ViewRow>> {
    let of = |id| {
        let renamed = User { display_name: n.to_string(), ..user(id) };
        [
            Op::Put(ViewRow::Profile(Box::new(renamed))),
            Op::Put(ViewRow::Tweet(Box::new(Tweet { id, user_id: id, content: n.to_string(), ..Tweet::default() }))),
            Op::Add(ViewRow::Count { counter: Counter::Likes, of: id }, 1),
            Op::Add(ViewRow::Count { counter: Counter::Followers, of: id }, 1),
        ]
    };
    (1..=CHANGING).flat_map(of).collect()
}

/// Reads everything, of which all up to the time `told` must be there.
fn read(views: &dyn Views, told: i64) {
    let ids: Vec<i64> = (1..=CHANGING).collect();
    let as_new = |text: &str, count: i64| told <= count && told <= text.parse().unwrap();
    for tweet in block_on(views.tweets(&ids)).unwrap() {
        let there = tweet.is_some_and(|tweet| as_new(&tweet.tweet.content, tweet.likes));
        assert!(there || told == 0);
    }
    for profile in block_on(views.profiles(&ids)).unwrap() {
        let there = profile.is_some_and(|profile| as_new(&profile.user.display_name, profile.followers));
        assert!(there || told == 0);
    }
    // Those of the next times too: that nothing is known of them must not be remembered for longer than it is true.
    let once: Vec<i64> = (told..told + 4).map(|n| ONCE + n).collect();
    let deleted = block_on(views.deleted_tweets(&once)).unwrap();
    let relationships = block_on(views.relationships(Some(1), &once)).unwrap();
    assert!((deleted[0] && relationships[0] == all_of(told)) || told == 0);
}

fn all_of(n: i64) -> Relationship {
    Relationship {
        following: Some(n % 2 == 0),
        followed_by: None,
        blocks: false,
        blocked_by: true,
        mutes: true,
        protected: true,
        deleted: true,
    }
}

pub fn what_is_read_beside_writes_is_not_older_than_what_was_told<S: Subject>(subject: &S) {
    let store = subject.open();
    let views = subject.views(&store);
    let told = AtomicI64::new(0);
    thread::scope(|scope| {
        for _ in 0..READERS {
            scope.spawn(|| {
                loop {
                    let before = told.load(Ordering::Acquire);
                    read(views.as_ref(), before);
                    if before == S::TIMES {
                        break;
                    }
                }
            });
        }
        for n in 1..=S::TIMES {
            let time = Time::try_from(n).unwrap();
            store.give(&closed(time, ALL, facts(n))).unwrap();
            store.give(&closed(time, ALL, rows(n))).unwrap();
            told.store(n, Ordering::Release);
        }
    });
}
