//! What is read beside timelines, compared with what a model that knows everything would serve.

use std::fmt::Debug;
use std::sync::Arc;

use feedmill_model::{Parameters, TrendWindow};
use feedmill_sinks::read::{
    Access, Ancestor, Notification, Page, ThreadOrder, ThreadReply, ancestors_page, blocked_page, follow_requests_page,
    hashtag_page, likers_page, muted_page, notifications_page, retweeters_page, suggestions, thread_page,
    trending_tags, trending_tweets, unread, viewer_flags,
};
use feedmill_sinks::{LocalHome, Profile, ReadError, Views};
use proptest::prelude::*;

use crate::pages::{Stores, block_on};
use crate::served::{NoticeLine, ThreadLine, grouped};
use crate::world::{Kind, TAGS, World, worlds};

/// More pages than anything of these tests has.
const PAGES_MAX: usize = 500;

/// All pages, one after the other.
fn all<T, C: Debug>(limit: usize, mut page: impl FnMut(Option<C>) -> Result<Page<T, C>, ReadError>) -> Vec<T> {
    let (mut items, mut cursor) = (Vec::new(), None);
    for _ in 0..PAGES_MAX {
        let page = page(cursor).unwrap();
        assert!(page.items.len() <= limit);
        assert_eq!(page.time, 1);
        items.extend(page.items);
        cursor = page.next;
        if cursor.is_none() {
            return items;
        }
    }
    panic!("there is no end after {cursor:?}");
}

/// The same of something that not everyone may read.
fn all_granted<T, C: Debug>(
    limit: usize,
    mut page: impl FnMut(Option<C>) -> Result<Access<Page<T, C>>, ReadError>,
) -> Access<Vec<T>> {
    let mut denied = None;
    let items = all(limit, |cursor| {
        let nothing = Page { items: Vec::new(), next: None, time: 1 };
        Ok(match page(cursor)? {
            Access::Granted(page) => page,
            Access::Hidden => {
                denied = Some(Access::Hidden);
                nothing
            }
            Access::NotFound => {
                denied = Some(Access::NotFound);
                nothing
            }
        })
    });
    denied.unwrap_or(Access::Granted(items))
}

fn map<T, U>(access: Access<Vec<T>>, line: impl Fn(T) -> U) -> Access<Vec<U>> {
    match access {
        Access::Granted(items) => Access::Granted(items.into_iter().map(line).collect()),
        Access::Hidden => Access::Hidden,
        Access::NotFound => Access::NotFound,
    }
}

fn id(profile: Arc<Profile>) -> i64 {
    profile.user.id
}

fn thread_line(reply: ThreadReply) -> ThreadLine {
    let author = reply.tweet.map(|tweet| {
        assert_eq!(tweet.tweet.tweet.id, reply.id);
        tweet.author.user.id
    });
    (reply.id, reply.parent, reply.depth, author)
}

fn notice_line(notification: Notification) -> NoticeLine {
    let Notification { kind, order, orders, unread, tweet, actors, count } = notification;
    assert_eq!((actors.len(), orders.len(), orders.first()), (count, count, Some(&order)));
    assert!(orders.is_sorted_by(|newer, older| newer >= older));
    (kind, order, unread, tweet.map_or(0, |tweet| tweet.entry.id), actors.into_iter().map(id).collect())
}

/// Everyone who may look, nobody in particular included.
fn viewers(world: &World) -> impl Iterator<Item = Option<i64>> {
    (0..=world.users).filter(|id| !world.deleted.contains(id)).map(|id| (id > 0).then_some(id))
}

fn denied<T>(world: &World, viewer: Option<i64>, tweet: usize) -> Option<Access<T>> {
    let post = &world.posts[tweet];
    match (post.deleted, world.may_read(viewer, post.user)) {
        (true, _) => Some(Access::NotFound),
        (false, false) => Some(Access::Hidden),
        (false, true) => None,
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    // One test, because stores take long to open.
    #[test]
    fn every_page_is_what_the_model_says(world in worlds(), limit in prop_oneof![1..4_usize, 8..40_usize]) {
        let stores = Stores::of(&world);
        let views = stores.views(LocalHome::new(Parameters::default()));
        lists_are_served(&world, &views, limit)?;
        tags_and_trends_are_served(&world, &views, limit)?;
        threads_are_served(&world, &views, limit)?;
        notifications_and_suggestions_are_served(&world, &views, limit)?;
    }
}

/// Lists are of those who may be known.
fn lists_are_served(world: &World, views: &dyn Views, limit: usize) -> Result<(), TestCaseError> {
    let tweets: Vec<usize> = (0..world.posts.len()).filter(|index| world.posts[*index].is_tweet()).collect();
    for viewer in viewers(world) {
        for tweet in tweets.iter().copied() {
            let of = world.posts[tweet].id;
            let page = |cursor| block_on(likers_page(views, viewer, of, cursor, limit));
            let likers = map(all_granted(limit, page), id);
            let expected = Access::Granted(world.likers(viewer, tweet));
            prop_assert_eq!(likers, denied(world, viewer, tweet).unwrap_or(expected));
            let page = |cursor| block_on(retweeters_page(views, viewer, of, cursor, limit));
            let retweeters = map(all_granted(limit, page), id);
            let expected = Access::Granted(world.retweeters(viewer, tweet));
            prop_assert_eq!(retweeters, denied(world, viewer, tweet).unwrap_or(expected));
        }
        let Some(viewer) = viewer else { continue };
        let requests = all(limit, |cursor| block_on(follow_requests_page(views, viewer, cursor, limit)));
        prop_assert_eq!(requests.into_iter().map(id).collect::<Vec<_>>(), world.requests(viewer));
        let blocked = all(limit, |cursor| block_on(blocked_page(views, viewer, cursor, limit)));
        let others = |pairs: &std::collections::BTreeSet<(i64, i64)>| {
            pairs.iter().filter(|(one, _)| *one == viewer).map(|(_, other)| *other).collect::<Vec<_>>()
        };
        prop_assert_eq!(blocked.into_iter().map(id).collect::<Vec<_>>(), others(&world.blocks));
        let muted = all(limit, |cursor| block_on(muted_page(views, viewer, cursor, limit)));
        prop_assert_eq!(muted.into_iter().map(id).collect::<Vec<_>>(), others(&world.mutes));
        let ids: Vec<i64> = tweets.iter().map(|tweet| world.posts[*tweet].id).collect();
        let users: Vec<i64> = (1..=world.users).collect();
        let flags = block_on(viewer_flags(views, viewer, &ids, &users)).unwrap();
        for (tweet, flags) in tweets.iter().zip(&flags.tweets) {
            prop_assert_eq!(flags.liked, world.likes.contains_key(&(viewer, *tweet)));
            let retweet =
                |post: &&crate::world::Post| post.kind == Kind::Retweet(*tweet) && post.user == viewer && !post.deleted;
            prop_assert_eq!(flags.retweeted, world.posts.iter().rev().find(retweet).map(|post| post.id));
        }
        for (user, flags) in users.iter().zip(&flags.users) {
            let accepted = |pair: (i64, i64)| world.follows.get(&pair).map(|(accepted, _)| *accepted);
            prop_assert_eq!(flags.following, accepted((viewer, *user)));
            prop_assert_eq!(flags.followed_by, accepted((*user, viewer)));
            prop_assert_eq!(flags.mutes, world.mutes.contains(&(viewer, *user)));
        }
    }
    Ok(())
}

/// Tags and trends are found by who may read them and does not mute their authors.
fn tags_and_trends_are_served(world: &World, views: &dyn Views, limit: usize) -> Result<(), TestCaseError> {
    for viewer in viewers(world) {
        for tag in TAGS {
            let written = tag.to_uppercase();
            let tagged = all(limit, |cursor| block_on(hashtag_page(views, viewer, &written, cursor, limit)));
            let tagged: Vec<i64> = tagged.into_iter().map(|tweet| tweet.tweet.tweet.id).collect();
            prop_assert_eq!(tagged, world.tagged(viewer, tag));
        }
        let trending = block_on(trending_tweets(views, viewer, limit)).unwrap().value;
        let trending: Vec<_> = trending.into_iter().map(|liked| (liked.tweet.tweet.tweet.id, liked.likes)).collect();
        let expected = world.trending(viewer);
        // It looks at ten times the limit, so it may miss some that come after.
        prop_assert_eq!(&trending[..], &expected[..trending.len()]);
        prop_assert!(trending.len() == limit.min(expected.len()) || limit < 8);
    }
    Ok(())
}

/// Threads are depth first, and replies keep their places.
fn threads_are_served(world: &World, views: &dyn Views, limit: usize) -> Result<(), TestCaseError> {
    for viewer in viewers(world) {
        for tweet in (0..world.posts.len()).filter(|index| world.posts[*index].is_tweet()) {
            let may_read = world.may_read_thread(viewer, tweet);
            let expected = |granted| match may_read {
                Some(true) => Access::Granted(granted),
                Some(false) => Access::Hidden,
                None => Access::NotFound,
            };
            let of = world.posts[tweet].id;
            for order in [ThreadOrder::Time, ThreadOrder::AuthorFirst] {
                let page = |cursor| block_on(thread_page(views, viewer, of, order, cursor, limit));
                let served = map(all_granted(limit, page), thread_line);
                let author_first = order == ThreadOrder::AuthorFirst;
                prop_assert_eq!(served, expected(world.thread(viewer, tweet, author_first)), "{:?}", order);
            }
            let page = |cursor| block_on(ancestors_page(views, viewer, of, cursor, limit));
            // Each page goes on above the one before.
            let mut above = map(all_granted(limit, page), |ancestor| match ancestor {
                Ancestor::Shown(tweet) => (tweet.tweet.tweet.id, false, false),
                Ancestor::Deleted(id) => (id, true, false),
                Ancestor::Hidden(id) => (id, false, true),
            });
            if let Access::Granted(above) = &mut above {
                above.sort_unstable();
            }
            let granted = may_read.map_or(Vec::new(), |_| world.ancestors(viewer, tweet));
            let expected = match may_read {
                Some(true) => Access::Granted(granted),
                Some(false) => Access::Hidden,
                None => Access::NotFound,
            };
            prop_assert_eq!(above, expected);
        }
    }
    Ok(())
}

/// Notifications and suggestions are of those who are welcome.
fn notifications_and_suggestions_are_served(
    world: &World,
    views: &dyn Views,
    limit: usize,
) -> Result<(), TestCaseError> {
    for viewer in viewers(world).flatten() {
        let served = all(limit, |cursor| block_on(notifications_page(views, viewer, cursor, limit)));
        let served: Vec<NoticeLine> = served.into_iter().map(notice_line).collect();
        // A page may end within a notification.
        prop_assert_eq!(grouped(served), world.notifications(viewer));
        let count = block_on(unread(views, viewer)).unwrap().value;
        prop_assert_eq!((count.count, count.more), (world.unread(viewer), false));
        let suggested = block_on(suggestions(views, &Parameters::default(), viewer, limit)).unwrap().value;
        let suggested: Vec<_> = suggested.into_iter().map(|found| (found.profile.user.id, found.mutual)).collect();
        let mut expected = world.suggestions(viewer);
        expected.truncate(limit);
        prop_assert_eq!(suggested, expected);
    }
    Ok(())
}

#[test]
fn trending_tags_are_ordered_by_authors_then_uses_then_tag() {
    use feedmill_model::{Op, ViewRow};

    use crate::index::Give;
    let stores = Stores::of(&World { users: 1, ..World::default() });
    let tag = |tag: &str, authors, uses| {
        Op::Put(ViewRow::TrendingTag { window: TrendWindow::Hour, tag: tag.into(), authors, uses })
    };
    let rows = vec![tag("d", 2, 3), tag("b", 3, 3), tag("c", 2, 3), tag("a", 2, 4)];
    stores.index.give(&crate::index::closed(2, crate::index::ALL, rows)).unwrap();
    let views = stores.views(LocalHome::new(Parameters::default()));
    let tags = |window, limit| {
        let found = block_on(trending_tags(&views, window, limit)).unwrap().value;
        found.into_iter().map(|found| found.tag).collect::<Vec<_>>()
    };
    assert_eq!(tags(TrendWindow::Hour, 10), ["b", "a", "c", "d"]);
    assert_eq!(tags(TrendWindow::Hour, 2), ["b", "a"]);
    assert!(tags(TrendWindow::Day, 2).is_empty());
}
