//! The pages, compared with what a model that knows everything would serve.

use std::sync::Arc;

use feedmill_model::{EntryId, Fact, Op, Parameters, ViewRow};
use feedmill_sinks::read::{
    Access, HomeCursor, TimelineTweet, followers_page, following_page, home_page, profile_by_name, tweet, user_page,
};
use feedmill_sinks::{LocalHome, LocalIndex, LocalViews, Profile, Progress, Views};
use proptest::prelude::*;
use tempfile::TempDir;

use crate::index::{ALL, Give, closed, position};
use crate::world::{Kind, Line, World, layouts, worlds};

/// More pages than any timeline of these tests has.
const PAGES_MAX: usize = 500;

pub struct Stores {
    pub index: Arc<LocalIndex>,
    _dir: TempDir,
}

impl Stores {
    pub fn of(world: &World) -> Stores {
        let dir = tempfile::tempdir().unwrap();
        let index = Arc::new(LocalIndex::open(dir.path()).unwrap());
        let facts: Vec<Op<Fact>> = world.facts().into_iter().map(Op::Put).collect();
        index.give(&closed(1, ALL, facts)).unwrap();
        index.give(&closed::<ViewRow>(1, ALL, world.rows())).unwrap();
        Stores { index, _dir: dir }
    }

    pub fn views(&self, home: LocalHome) -> LocalViews {
        LocalViews::new(self.index.clone(), Arc::new(home), Arc::new(Progress::new([position(1); 5])))
    }
}

pub fn line(item: &TimelineTweet) -> Line {
    assert_eq!(item.author.user.id, item.tweet.tweet.user_id);
    (item.entry, item.tweet.tweet.id, item.author.user.id, item.retweeted_by.as_ref().map(|user| user.user.id))
}

pub fn all_home(views: &dyn Views, parameters: &Parameters, viewer: i64, limit: usize) -> Vec<Line> {
    let (mut lines, mut cursor) = (Vec::new(), HomeCursor::default());
    for _ in 0..PAGES_MAX {
        let page = block_on(home_page(views, parameters, viewer, cursor, limit)).unwrap();
        assert!(page.items.len() <= limit);
        assert_eq!(page.time, 1);
        lines.extend(page.items.iter().map(line));
        match page.next {
            Some(next) => cursor = next,
            None => return lines,
        }
    }
    panic!("home timeline of {viewer} has no end");
}

fn all_of_user(views: &dyn Views, viewer: Option<i64>, user: i64, replies: bool, limit: usize) -> Access<Vec<Line>> {
    let (mut lines, mut cursor): (Vec<Line>, Option<EntryId>) = (Vec::new(), None);
    for _ in 0..PAGES_MAX {
        let page = match block_on(user_page(views, viewer, user, replies, cursor, limit)).unwrap() {
            Access::Granted(page) => page,
            Access::Hidden => return Access::Hidden,
            Access::NotFound => return Access::NotFound,
        };
        assert!(page.items.len() <= limit);
        lines.extend(page.items.iter().map(line));
        cursor = page.next;
        if cursor.is_none() {
            return Access::Granted(lines);
        }
    }
    panic!("timeline of {user} has no end");
}

fn ids(profiles: &[Arc<Profile>]) -> Vec<i64> {
    profiles.iter().map(|profile| profile.user.id).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    #[test]
    fn home_is_served_alike_wherever_floors_are_and_whoever_is_hot(
        world in worlds(),
        layouts in prop::collection::vec(layouts(), 6),
        limit in prop_oneof![1..8_usize, 8..40_usize],
        following_max in prop_oneof![Just(5_000), 0..4_usize],
    ) {
        let stores = Stores::of(&world);
        for layout in &layouts {
            let parameters = world.parameters(layout, following_max);
            let home = LocalHome::new(parameters.clone());
            world.apply_home(&home, layout, &parameters);
            prop_assert_eq!(home.anomalies(), 0);
            let views = stores.views(home);
            for viewer in (1..=world.users).filter(|viewer| !world.deleted.contains(viewer)) {
                let served = all_home(&views, &parameters, viewer, limit);
                prop_assert_eq!(served, world.home(viewer, following_max), "viewer {}, {:?}", viewer, layout);
            }
        }
    }

    #[test]
    fn users_and_tweets_are_shown_to_whom_they_may_be(world in worlds(), limit in prop_oneof![1..6_usize, 8..40_usize]) {
        let stores = Stores::of(&world);
        let views = stores.views(LocalHome::new(Parameters::default()));
        for viewer in (0..=world.users).filter(|id| !world.deleted.contains(id)).map(|id| (id > 0).then_some(id)) {
            for user in 1..=world.users {
                let denied = if world.deleted.contains(&user) { Access::NotFound } else { Access::Hidden };
                for replies in [false, true] {
                    let expected = world.timeline(viewer, user, replies).map_or(denied.clone(), Access::Granted);
                    prop_assert_eq!(all_of_user(&views, viewer, user, replies, limit), expected);
                }
                for followers in [false, true] {
                    let page = if followers {
                        block_on(followers_page(&views, viewer, user, None, 100)).unwrap()
                    } else {
                        block_on(following_page(&views, viewer, user, None, 100)).unwrap()
                    };
                    let meets = |id: &i64| viewer.is_none_or(|viewer| !world.blocked(viewer, *id));
                    let edges = world.edges(user, followers).into_iter().map(|(_, id)| id);
                    let edges: Vec<i64> = edges.filter(meets).collect();
                    match page {
                        Access::Granted(page) => prop_assert_eq!(ids(&page.items), edges),
                        _ => prop_assert!(!world.may_read(viewer, user)),
                    }
                }
            }
            for post in world.posts.iter().filter(|post| !matches!(post.kind, Kind::Retweet(_))) {
                let found = match block_on(tweet(&views, viewer, post.id)).unwrap() {
                    Access::Granted(found) => Some((found.value.tweet.tweet.id, found.value.author.user.id)),
                    Access::Hidden => None,
                    Access::NotFound => {
                        prop_assert!(post.deleted);
                        None
                    }
                };
                let readable = !post.deleted && world.may_read(viewer, post.user);
                prop_assert_eq!(found, readable.then_some((post.id, post.user)));
            }
        }
    }
}

#[test]
fn a_list_is_paged_and_a_name_found() {
    let follows = (2..=40).map(|id| ((id, 1), (true, id % 7))).collect();
    let world = World { users: 40, follows, ..World::default() };
    let stores = Stores::of(&world);
    let views = stores.views(LocalHome::new(Parameters::default()));
    let expected: Vec<i64> = world.edges(1, true).into_iter().map(|(_, id)| id).collect();
    let (mut found, mut cursor, mut pages) = (Vec::new(), None, 0);
    loop {
        let Access::Granted(page) = block_on(followers_page(&views, None, 1, cursor, 13)).unwrap() else {
            panic!("anyone may read it");
        };
        found.extend(ids(&page.items));
        (cursor, pages) = (page.next, pages + 1);
        if cursor.is_none() {
            break;
        }
    }
    assert_eq!((found, pages), (expected, 3), "39 followers are three pages of 13, and no empty one");
    let named = block_on(profile_by_name(&views, "USER1")).unwrap().unwrap();
    assert_eq!((named.value.user.id, named.value.followers), (1, 39));
    assert!(block_on(profile_by_name(&views, "nobody")).unwrap().is_none());
}

/// The API runs pages on any thread.
#[test]
fn pages_are_sent_between_threads() {
    fn sent(_: impl Send) {}
    let world = World::example();
    let stores = Stores::of(&world);
    let parameters = Parameters::default();
    let views = stores.views(LocalHome::new(parameters.clone()));
    sent(home_page(&views, &parameters, 1, HomeCursor::default(), 1));
    sent(user_page(&views, None, 1, true, None, 1));
    sent(followers_page(&views, None, 1, None, 1));
}

/// Pages may wait, so they need a clock.
pub fn block_on<F: Future>(page: F) -> F::Output {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(page)
}
