//! What whoever shows the views live is told, and what it then finds.

use std::collections::HashSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use feedmill_model::{
    Applied, Counter, EntryId, Fact, HomeSink, Notice, NoticeKind, Op, Parameters, Tweet, ViewRow, shard_of,
};
use feedmill_sinks::read::{Verdict, home_news, tweets};
use feedmill_sinks::{Changed, Changes, LocalHome, LocalViews, Progress, Views};
use proptest::prelude::*;

use crate::home::{START, active, closed as home_closed, hot, id, packed};
use crate::index::{ALL, Give, closed, position, user};
use crate::pages::{Stores, block_on, line};
use crate::world::{World, layouts, worlds};

#[test]
fn a_head_changes_with_whatever_comes_to_the_top_and_else_not() {
    let home = LocalHome::new(Parameters::default());
    let records = vec![active(1, 1), hot(1, 8, 1), hot(1, 9, 1), active(2, 1)];
    let old = (1..=20).map(|number| (1, packed(id(2 * number)), 1)).collect::<Vec<_>>();
    home.apply(&mut home_closed(START, records, &old)).unwrap();
    let head = |viewer, authors: &[i64]| home.heads(&[viewer], authors)[0];
    assert_eq!(head(3, &[8]), None, "who is not active has none");
    let before = head(1, &[]);
    home.apply(&mut home_closed(START + 1, vec![active(4, 1)], &[(2, packed(id(1)), 1)])).unwrap();
    assert_eq!(head(1, &[]).map(|head| head.stamp), before.map(|head| head.stamp), "others have changed");
    let mut stamps = vec![before.unwrap().stamp];
    let changes = [
        (vec![], vec![(1, packed(id(100)), 1)]),
        // It committed after what was made later.
        (vec![], vec![(1, packed(id(3)), 1)]),
        (vec![], vec![(1, packed(id(100)), -1), (1, packed(id(99)), 1)]),
        // One has gone and another has come, far below the newest.
        (vec![], vec![(1, packed(id(4)), -1), (1, packed(id(5)), 1)]),
        (vec![hot(1, 7, 1)], vec![]),
        (vec![hot(1, 7, -1), hot(1, 6, 1)], vec![]),
    ];
    for (time, (records, deliveries)) in (START + 2..).zip(changes) {
        home.apply(&mut home_closed(time, records, &deliveries)).unwrap();
        stamps.push(head(1, &[]).unwrap().stamp);
    }
    assert_eq!(stamps.iter().collect::<HashSet<_>>().len(), stamps.len(), "{stamps:?}");
    let takes = |viewer, authors: &[i64]| head(viewer, authors).unwrap().takes;
    assert_eq!([takes(1, &[7, 9]), takes(1, &[6]), takes(1, &[7]), takes(2, &[8, 9])], [true, true, false, false]);
    assert!(takes(1, &(0..1_000).collect::<Vec<_>>()));

    let mut viewers: Vec<i64> = (0..2_000).collect();
    viewers.sort_by_key(|viewer| shard_of(*viewer));
    let all = home.heads(&viewers, &[9]);
    assert_eq!(all, viewers.iter().map(|viewer| head(*viewer, &[9])).collect::<Vec<_>>());
    assert_eq!(all.iter().flatten().count(), 3);
    home.fill();
    assert_eq!(head(1, &[]), None, "it is being filled");
}

fn rows(ops: Vec<ViewRow>) -> Vec<Op<ViewRow>> {
    ops.into_iter().map(Op::Put).collect()
}

#[test]
fn what_is_applied_is_told_once_to_whoever_listens_then() {
    let stores = Stores::of(&World::example());
    let views = stores.views(LocalHome::new(Parameters::default()));
    let listener = views.changes().listen();
    assert_eq!(listener.take(), Changed::default(), "that was before");
    let entry = |user, reply, id| ViewRow::TimelineEntry { user, reply, entry: EntryId::tweet(id), tweet: id };
    let notice = Notice { order: 5, kind: NoticeKind::Follow, actor: 2, tweet: 0 };
    let mut ops = rows(vec![
        entry(10, false, 100),
        entry(11, true, 101),
        ViewRow::Notification { user: 12, notice },
        ViewRow::ReadMark { user: 13, read: 5 },
        ViewRow::Tweet(Box::new(Tweet { id: 100, user_id: 10, ..Tweet::default() })),
        ViewRow::Liked { user: 14, tweet: 102 },
    ]);
    ops.push(Op::Delete(entry(15, false, 103)));
    ops.push(Op::Add(ViewRow::Count { counter: Counter::Likes, of: 104 }, -1));
    ops.push(Op::Add(ViewRow::Count { counter: Counter::Followers, of: 16 }, 1));
    stores.index.give(&closed(2, ALL, ops)).unwrap();
    let facts = vec![
        Fact::Follow { follower: 20, following: 21, accepted: true },
        Fact::Block { blocker: 22, blocked: 23 },
        Fact::Mute { muter: 24, muted: 25 },
        Fact::Protected(26),
        Fact::DeletedUser(27),
        Fact::DeletedTweet(105),
    ];
    stores.index.give(&closed::<Fact>(2, ALL, facts.into_iter().map(Op::Put).collect())).unwrap();
    let late = views.changes().listen();
    let expected = Changed {
        anything: false,
        unnamed: false,
        timelines: [10, 15].into(),
        notifications: [12, 13].into(),
        tweets: [100, 104, 105].into(),
        viewers: [20, 22, 23, 24, 27].into(),
        authors: [26, 27].into(),
    };
    assert_eq!(listener.take(), expected);
    assert_eq!((listener.take(), late.take()), Default::default());
}

#[test]
fn what_is_not_taken_becomes_anything() {
    let stores = Stores::of(&World::example());
    let views = stores.views(LocalHome::new(Parameters::default()));
    let listener = views.changes().listen();
    let like = |of| Op::Add(ViewRow::Count { counter: Counter::Likes, of }, 1);
    for time in 0..8 {
        let ops = (0..10_000).map(|tweet| like(time as i64 * 10_000 + tweet)).collect();
        stores.index.give(&closed(2 + time, ALL, ops)).unwrap();
    }
    assert!(listener.take().anything);
    assert_eq!(listener.take(), Changed::default());
    let changes = Changes::default();
    let listener = changes.listen();
    changes.tell_anything();
    assert!(listener.take().anything);
}

#[test]
fn what_is_built_again_may_be_anything() {
    let stores = Stores::of(&World::example());
    let views = stores.views(LocalHome::new(Parameters::default()));
    let listener = views.changes().listen();
    stores.index.rebuild_rows(12).unwrap();
    assert!(listener.take().anything);
    stores.index.rebuild_facts(12).unwrap();
    assert!(listener.take().anything);
}

#[test]
fn the_newest_entry_is_that_of_the_times_asked_about() {
    let stores = Stores::of(&World::default());
    let views = stores.views(LocalHome::new(Parameters::default()));
    let newest = |time| views.changes().newest_entry(time);
    assert_eq!(newest(9), None);
    let apply = |time, ids: &[i64]| {
        let entry =
            |id: &i64| ViewRow::TimelineEntry { user: 1, reply: id % 2 == 1, entry: EntryId::tweet(*id), tweet: *id };
        stores.index.give(&closed(time, ALL, rows(ids.iter().map(entry).collect()))).unwrap();
    };
    apply(2, &[50, 40]);
    apply(3, &[45]);
    apply(5, &[91, 90]);
    assert_eq!([1, 2, 3, 4, 5, 9].map(newest), [None, Some(50), Some(50), Some(50), Some(91), Some(91)]);
    // Those of very many times are remembered as those of one, and of a time among them nothing is known any more.
    for time in 6..10_000 {
        apply(time, &[i64::try_from(time).unwrap()]);
    }
    assert_eq!([9_999, 9_998].map(newest), [Some(9_999), Some(9_998)]);
    assert_eq!(newest(5), None);
}

/// A worker has put an entry into a timeline, and another has not applied its tweet yet.
#[test]
fn what_is_late_is_told_of_and_found_later() {
    let stores = Stores::of(&World::default());
    let (author, viewer, tweet) = (1, 2, id(5));
    let follow = Fact::Follow { follower: viewer, following: author, accepted: true };
    stores.index.give(&closed(2, ALL, vec![Op::Put(follow)])).unwrap();
    let profiles = [author, viewer].map(|id| ViewRow::Profile(Box::new(user(id))));
    stores.index.give(&closed(2, ALL, rows(profiles.into()))).unwrap();
    let home = LocalHome::new(Parameters::default());
    home.apply(&mut home_closed(START, vec![active(viewer, 1)], &[(viewer, packed(tweet), 1)])).unwrap();
    let progress = Arc::new(Progress::new([position(2); 5]));
    progress.covers(position(3));
    let views = LocalViews::new(stores.index.clone(), Arc::new(home), progress.clone());
    let news = || block_on(home_news(&views, &Parameters::default(), viewer, 0, &[], 10)).unwrap();
    let verdicts = || block_on(tweets(&views, Some(viewer), &[tweet, 7])).unwrap();
    let late = news();
    assert!(late.late && late.items.is_empty() && late.looked_at.is_empty() && !late.more, "{late:?}");
    assert_eq!(verdicts(), [Verdict::Late, Verdict::Late]);

    let row = Tweet { id: tweet, user_id: author, ..Tweet::default() };
    stores.index.give(&closed(3, ALL, rows(vec![ViewRow::Tweet(Box::new(row))]))).unwrap();
    let found = news();
    assert_eq!((found.items.len(), found.looked_at, found.late), (1, vec![EntryId::tweet(tweet)], false));
    progress.applied(Applied::at(4));
    assert!(matches!(&verdicts()[..], [Verdict::Shown(_), Verdict::Missing]));

    // What its time has ended without is not late, and neither is what the facts call deleted.
    progress.covers(position(4));
    let gone = Op::Delete(ViewRow::Tweet(Box::new(Tweet { id: tweet, user_id: author, ..Tweet::default() })));
    stores.index.give(&closed(4, ALL, vec![gone])).unwrap();
    assert_eq!(verdicts(), [Verdict::Late, Verdict::Late]);
    stores.index.give(&closed(4, ALL, vec![Op::Put(Fact::DeletedTweet(tweet))])).unwrap();
    assert_eq!(verdicts(), [Verdict::Hidden, Verdict::Late]);
    progress.applied(Applied::at(5));
    assert_eq!(verdicts(), [Verdict::Hidden, Verdict::Missing]);
    assert!(!news().late);
}

#[test]
fn what_was_told_can_be_read() {
    const LIKES: i64 = 2_000;
    let stores = Stores::of(&World::example());
    let tweet = Tweet { id: 100, user_id: 1, ..Tweet::default() };
    stores.index.give(&closed(2, ALL, rows(vec![ViewRow::Tweet(Box::new(tweet))]))).unwrap();
    let views = stores.views(LocalHome::new(Parameters::default()));
    let listener = views.changes().listen();
    let done = Arc::new(AtomicBool::new(false));
    let (index, over) = (stores.index.clone(), done.clone());
    let writer = std::thread::spawn(move || {
        for time in 0..LIKES as u64 {
            let like = Op::Add(ViewRow::Count { counter: Counter::Likes, of: 100 }, 1);
            index.give(&closed(3 + time, ALL, vec![like])).unwrap();
        }
        over.store(true, Ordering::Release);
    });
    let mut likes = 0;
    loop {
        let was_done = done.load(Ordering::Acquire);
        if listener.take().tweets.contains(&100) {
            likes = block_on(views.tweets(&[100])).unwrap()[0].as_ref().unwrap().likes;
        } else if was_done {
            break;
        }
    }
    writer.join().unwrap();
    assert_eq!(likes, LIKES, "who reads whenever something was told has read the last of it");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn news_are_what_the_timeline_has_and_was_not_known(
        world in worlds(),
        layouts in prop::collection::vec(layouts(), 4),
        above in -1..70_i64,
        known in prop::collection::vec(any::<bool>(), 70),
        following_max in prop_oneof![Just(5_000), 0..4_usize],
        limit in 0..30_usize,
    ) {
        let stores = Stores::of(&world);
        let above = feedmill_model::id_at(crate::world::START_MS + above * crate::world::STEP_MS, 0);
        for layout in &layouts {
            let parameters = world.parameters(layout, following_max);
            let home = LocalHome::new(parameters.clone());
            world.apply_home(&home, layout, &parameters);
            let views = stores.views(home);
            for viewer in (1..=world.users).filter(|viewer| !world.deleted.contains(viewer)) {
                let news = |above, known: &[EntryId], limit| {
                    block_on(home_news(&views, &parameters, viewer, above, known, limit)).unwrap()
                };
                let all = news(above, &[], 100);
                let lines = |items: &[_]| items.iter().map(line).collect::<Vec<_>>();
                prop_assert_eq!(lines(&all.items), world.news(viewer, following_max, above, &[]), "{:?}", layout);
                prop_assert!(!all.more && all.looked_at.iter().all(|entry| entry.id > above));
                let known: Vec<EntryId> =
                    all.looked_at.iter().zip(&known).filter_map(|(entry, known)| known.then_some(*entry)).collect();
                let rest = news(above, &known, 100);
                let expected = world.news(viewer, following_max, above, &known);
                prop_assert_eq!(lines(&rest.items), expected.as_slice(), "{:?}", layout);
                prop_assert!(news(above, &all.looked_at, 100).items.is_empty(), "all of it is known");
                let some = news(above, &known, limit);
                prop_assert_eq!(lines(&some.items), &expected[..limit.min(expected.len())]);
                prop_assert!(some.more >= (expected.len() > limit), "more than that is told of");
                prop_assert!(limit < 10 || some.more == (expected.len() > limit));
            }
        }
    }

    #[test]
    fn tweets_by_their_ids_are_those_that_may_be_read(world in worlds()) {
        let stores = Stores::of(&world);
        let views = stores.views(LocalHome::new(Parameters::default()));
        let posts: Vec<_> = world.posts.iter().filter(|post| post.is_tweet()).collect();
        let ids: Vec<i64> = posts.iter().map(|post| post.id).chain([7]).collect();
        for viewer in (0..=world.users).filter(|id| !world.deleted.contains(id)).map(|id| (id > 0).then_some(id)) {
            let mut found = block_on(tweets(&views, viewer, &ids)).unwrap();
            prop_assert_eq!(found.pop(), Some(Verdict::Missing), "it never was");
            for (post, verdict) in posts.iter().zip(found) {
                match verdict {
                    Verdict::Shown(tweet) => {
                        prop_assert_eq!(tweet.tweet.tweet.id, post.id);
                        prop_assert!(!post.deleted && world.may_read(viewer, post.user));
                    }
                    verdict => {
                        prop_assert!(post.deleted || !world.may_read(viewer, post.user));
                        prop_assert_eq!(verdict, Verdict::Hidden);
                    }
                }
            }
        }
    }
}
