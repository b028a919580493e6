//! What hides an account or a tweet hides it wherever one may look, as soon as the facts say so: rows and home timelines
//! still hold what was there before.

use std::sync::Arc;

use feedmill_model::{Fact, Op, Parameters};
use feedmill_sinks::read::{
    Access, Ancestor, HomeCursor, ThreadOrder, TimelineTweet, ancestors_page, follow_requests_page, followers_page,
    following_page, hashtag_page, home_page, likers_page, notifications_page, retweeters_page, suggestions,
    thread_page, trending_tweets, tweet, unread, user_page,
};
use feedmill_sinks::{IndexStore, LocalHome, Profile, Views};

use crate::index::{ALL, Give, closed};
use crate::pages::{Stores, block_on};
use crate::world::{Kind, Post, TAGS, World};

/// Who looks.
const VIEWER: i64 = 1;
/// Whose things are looked for.
const SUBJECT: i64 = 2;
/// Whom both viewers follow.
const FRIEND: i64 = 3;
/// Who looks for suggestions, and follows nobody but the friend.
const OTHER: i64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Place {
    Home,
    HomeRetweetedBy,
    Timeline,
    TimelineOfFriend,
    Tweet,
    Hashtag,
    Trends,
    Thread,
    ThreadGap,
    Ancestors,
    AncestorsGap,
    Likers,
    Retweeters,
    LikersOfTweet,
    RetweetersOfTweet,
    Followers,
    Following,
    Requests,
    Notifications,
    Unread,
    Suggestions,
}

use Place::*;

const PLACES: [Place; 21] = [
    Home,
    HomeRetweetedBy,
    Timeline,
    TimelineOfFriend,
    Tweet,
    Hashtag,
    Trends,
    Thread,
    ThreadGap,
    Ancestors,
    AncestorsGap,
    Likers,
    Retweeters,
    LikersOfTweet,
    RetweetersOfTweet,
    Followers,
    Following,
    Requests,
    Notifications,
    Unread,
    Suggestions,
];

/// The subject is found in every place.
fn world(is_followed: bool, protected: bool) -> World {
    let mut posts = vec![
        Post::new(0, VIEWER, Kind::Tweet),
        Post::new(1, SUBJECT, Kind::Tweet),
        Post::new(2, FRIEND, Kind::Retweet(1)),
        Post::new(3, SUBJECT, Kind::Reply(0)),
        Post::new(4, FRIEND, Kind::Reply(3)),
        Post::new(5, SUBJECT, Kind::Retweet(0)),
    ];
    posts[1].tags.insert(TAGS[0]);
    posts[3].names.insert(VIEWER);
    let accepted = |one, other| ((one, other), (true, 5));
    let mut world = World {
        users: 5,
        posts,
        follows: [accepted(VIEWER, FRIEND), accepted(OTHER, FRIEND), accepted(FRIEND, SUBJECT)].into(),
        likes: [((SUBJECT, 0), 10), ((FRIEND, 1), 10)].into(),
        ..World::default()
    };
    world.follows.insert((SUBJECT, VIEWER), (false, 5));
    world.follows.extend(is_followed.then_some(accepted(VIEWER, SUBJECT)));
    world.protected.extend(protected.then_some(SUBJECT));
    world
}

fn granted<T>(access: Access<T>) -> Option<T> {
    match access {
        Access::Granted(found) => Some(found),
        Access::Hidden | Access::NotFound => None,
    }
}

fn has(profiles: impl IntoIterator<Item = Arc<Profile>>) -> bool {
    profiles.into_iter().any(|profile| profile.user.id == SUBJECT)
}

fn wrote(tweets: impl IntoIterator<Item = TimelineTweet>) -> bool {
    tweets.into_iter().any(|tweet| tweet.author.user.id == SUBJECT)
}

/// Whether the subject, or something of the subject's, is found.
async fn is_found(views: &dyn Views, world: &World, place: Place) -> bool {
    let (viewer, parameters) = (Some(VIEWER), Parameters::default());
    let [own, of_subject, between, answer] = [0, 1, 3, 4].map(|post: usize| world.posts[post].id);
    let home = || home_page(views, &parameters, VIEWER, HomeCursor::default(), 50);
    match place {
        Home => wrote(home().await.unwrap().items),
        HomeRetweetedBy => has(home().await.unwrap().items.into_iter().filter_map(|tweet| tweet.retweeted_by)),
        Timeline => granted(user_page(views, viewer, SUBJECT, true, None, 50).await.unwrap())
            .is_some_and(|page| wrote(page.items)),
        TimelineOfFriend => granted(user_page(views, viewer, FRIEND, true, None, 50).await.unwrap())
            .is_some_and(|page| wrote(page.items)),
        Tweet => granted(tweet(views, viewer, of_subject).await.unwrap()).is_some(),
        Hashtag => wrote(hashtag_page(views, viewer, TAGS[0], None, 50).await.unwrap().items),
        Trends => wrote(trending_tweets(views, viewer, 50).await.unwrap().value.into_iter().map(|liked| liked.tweet)),
        Thread => {
            let page = granted(thread_page(views, viewer, own, ThreadOrder::Time, None, 50).await.unwrap()).unwrap();
            assert!(page.items.iter().any(|reply| reply.id == answer && reply.depth == 2), "{page:?}");
            wrote(page.items.into_iter().filter_map(|reply| reply.tweet))
        }
        // A placeholder tells that something was there.
        ThreadGap => {
            let page = granted(thread_page(views, viewer, own, ThreadOrder::Time, None, 50).await.unwrap()).unwrap();
            page.items.iter().any(|reply| reply.id == between)
        }
        AncestorsGap => {
            let above = granted(ancestors_page(views, viewer, answer, None, 50).await.unwrap()).unwrap().items;
            above.iter().any(|above| match above {
                Ancestor::Shown(tweet) => tweet.tweet.tweet.id == between,
                Ancestor::Deleted(id) => *id == between,
                Ancestor::Hidden(_) => false,
            })
        }
        Ancestors => {
            let above = granted(ancestors_page(views, viewer, answer, None, 50).await.unwrap()).unwrap().items;
            assert_eq!(above.len(), 2);
            wrote(above.into_iter().filter_map(|above| match above {
                Ancestor::Shown(tweet) => Some(*tweet),
                Ancestor::Deleted(_) | Ancestor::Hidden(_) => None,
            }))
        }
        Likers => has(granted(likers_page(views, viewer, own, None, 50).await.unwrap()).unwrap().items),
        Retweeters => has(granted(retweeters_page(views, viewer, own, None, 50).await.unwrap()).unwrap().items),
        LikersOfTweet => granted(likers_page(views, viewer, of_subject, None, 50).await.unwrap()).is_some(),
        RetweetersOfTweet => granted(retweeters_page(views, viewer, of_subject, None, 50).await.unwrap()).is_some(),
        Followers => granted(followers_page(views, viewer, SUBJECT, None, 50).await.unwrap()).is_some(),
        Following => granted(following_page(views, viewer, SUBJECT, None, 50).await.unwrap()).is_some(),
        Requests => has(follow_requests_page(views, VIEWER, None, 50).await.unwrap().items),
        Notifications => {
            let notifications = notifications_page(views, VIEWER, None, 50).await.unwrap().items;
            has(notifications.into_iter().flat_map(|notification| notification.actors))
        }
        Unread => unread(views, VIEWER).await.unwrap().value.count > 0,
        Suggestions => {
            let found = suggestions(views, &parameters, OTHER, 50).await.unwrap().value;
            has(found.into_iter().map(|suggestion| suggestion.profile))
        }
    }
}

/// Applies the facts to a world in which the subject is found everywhere but in `not_before`, and looks where it still is.
fn found_after(world: &World, not_before: &[Place], facts: Vec<Op<Fact>>) -> Vec<Place> {
    let stores = Stores::of(world);
    let (parameters, layout) = (Parameters::default(), world.whole());
    let home = LocalHome::new(parameters.clone());
    world.apply_home(&home, &layout, &parameters);
    let views = stores.views(home);
    found_in(&views, world, not_before, || stores.index.give(&closed(2, ALL, facts)).unwrap())
}

fn found_in(views: &dyn Views, world: &World, not_before: &[Place], apply: impl FnOnce()) -> Vec<Place> {
    let found =
        || -> Vec<Place> { PLACES.into_iter().filter(|place| block_on(is_found(views, world, *place))).collect() };
    let before: Vec<Place> = PLACES.into_iter().filter(|place| !not_before.contains(place)).collect();
    assert_eq!(found(), before);
    apply();
    found()
}

/// The world in which the subject is found everywhere.
pub fn open_world() -> World {
    world(true, false)
}

/// Nothing of the subject is found in a store of [`open_world`] when viewers and subject have blocked each other.
pub fn blocks_hide_everything(store: &impl IndexStore, views: &dyn Views) {
    let blocks = [VIEWER, OTHER].map(|blocker| Fact::Block { blocker, blocked: SUBJECT });
    let apply = || store.give(&closed(2, ALL, puts(blocks))).unwrap();
    assert_eq!(found_in(views, &open_world(), &[], apply), []);
}

fn puts(facts: impl IntoIterator<Item = Fact>) -> Vec<Op<Fact>> {
    facts.into_iter().map(Op::Put).collect()
}

#[test]
fn c55_a_block_hides_both_from_each_other() {
    let blocks = [VIEWER, OTHER].map(|blocker| Fact::Block { blocker, blocked: SUBJECT });
    assert_eq!(found_after(&world(true, false), &[], puts(blocks)), []);
    let blocks = [VIEWER, OTHER].map(|blocked| Fact::Block { blocker: SUBJECT, blocked });
    assert_eq!(found_after(&world(true, false), &[], puts(blocks)), []);
}

#[test]
fn a_mute_hides_from_what_was_not_asked_for() {
    let mutes = [VIEWER, OTHER].map(|muter| Fact::Mute { muter, muted: SUBJECT });
    let hidden = [Home, HomeRetweetedBy, Hashtag, Trends, Notifications, Unread, Suggestions];
    let shown: Vec<Place> = PLACES.into_iter().filter(|place| !hidden.contains(place)).collect();
    assert_eq!(found_after(&world(true, false), &[], puts(mutes)), shown);
}

#[test]
fn who_does_not_follow_a_protected_account_any_more_knows_only_what_it_asks() {
    let follows = [(VIEWER, SUBJECT), (OTHER, FRIEND)];
    let unfollows = follows.map(|(follower, following)| Fact::Follow { follower, following, accepted: true });
    let facts = unfollows.into_iter().map(Op::Delete).collect();
    assert_eq!(found_after(&world(true, true), &[], facts), [Requests, Notifications, Unread]);
}

#[test]
fn an_account_that_becomes_protected_can_be_found_and_not_read() {
    let shown = [Requests, Notifications, Unread, Suggestions];
    assert_eq!(found_after(&world(false, false), &[HomeRetweetedBy], puts([Fact::Protected(SUBJECT)])), shown);
}

#[test]
fn a_tweet_that_was_deleted_is_gone_and_its_author_is_not() {
    let world = world(true, false);
    let deleted = [1, 3].map(|post: usize| Fact::DeletedTweet(world.posts[post].id));
    let shown = [
        HomeRetweetedBy,
        ThreadGap,
        AncestorsGap,
        Likers,
        Retweeters,
        Followers,
        Following,
        Requests,
        Notifications,
        Unread,
        Suggestions,
    ];
    assert_eq!(found_after(&world, &[], puts(deleted)), shown);
}

#[test]
fn an_account_that_was_deleted_is_gone() {
    let world = world(true, false);
    let tweets = [1, 3].map(|post: usize| Fact::DeletedTweet(world.posts[post].id));
    let facts = puts(tweets.into_iter().chain([Fact::DeletedUser(SUBJECT)]));
    assert_eq!(found_after(&world, &[], facts), [ThreadGap, AncestorsGap]);
}
