//! What every store of facts and rows must do.

use std::sync::Arc;

use feedmill_model::{
    Closed, Counter, EntryId, Fact, Keyed, Lsn, Notice, NoticeKind, Op, Position, RowSink, SHARDS, StoreError, Time,
    TrendWindow, Tweet, User, ViewRow, shard_of,
};
use feedmill_sinks::{Edge, IndexStore, List, ReadError, Relationship, Reply, TimelineItem, TrendingTag, Views};
use futures::executor::block_on;

pub use crate::beside::what_is_read_beside_writes_is_not_older_than_what_was_told;
pub use crate::bulk::{
    a_time_that_is_cut_short_between_sets_of_shards_counts_once, very_many_rows_at_once_are_as_many_small_ones,
};

/// All shards.
pub const ALL: u64 = u64::MAX;

/// A kind of store, and one place where it keeps its data.
pub trait Subject {
    /// The store.
    type Store: IndexStore;
    /// Users of the tests in which very many rows come at once.
    const MANY: i64 = 120_000;
    /// Closed times that are applied while others read.
    const TIMES: i64 = 600;
    /// Opens the store.
    fn open(&self) -> Arc<Self::Store>;
    /// Closes the store, and opens what is left of it if its process is killed now.
    fn crash(&self, store: Arc<Self::Store>) -> Arc<Self::Store>;
    /// Makes what was applied durable.
    fn durable(&self, store: &Self::Store) -> Option<Position>;
    /// Reads the store.
    fn views(&self, store: &Arc<Self::Store>) -> Arc<dyn Views>;
}

/// Gives a store a closed time, of which each row goes where it belongs.
pub trait Give<R> {
    fn give(&self, closed: &Closed<R>) -> Result<(), StoreError>;
}

impl<S: IndexStore + ?Sized> Give<Fact> for S {
    fn give(&self, closed: &Closed<Fact>) -> Result<(), StoreError> {
        self.apply(closed)
    }
}

impl<S: IndexStore + ?Sized> Give<ViewRow> for S {
    fn give(&self, closed: &Closed<ViewRow>) -> Result<(), StoreError> {
        let (reactions, rows) = closed.ops.iter().cloned().partition(|(_, op)| is_reaction(op));
        self.apply(&Closed { ops: rows, ..closed.clone() })?;
        self.apply_reactions(&Closed { ops: reactions, ..closed.clone() })
    }
}

fn is_reaction((Op::Put(row) | Op::Delete(row) | Op::Add(row, _)): &Op<ViewRow>) -> bool {
    matches!(
        row,
        ViewRow::Liker { .. }
            | ViewRow::Liked { .. }
            | ViewRow::TrendingTweet { .. }
            | ViewRow::Notification { .. }
            | ViewRow::Count { counter: Counter::Likes, .. }
    )
}

/// The position of `time`.
pub fn position(time: Time) -> Position {
    Position { time, lsn: Lsn(time * 10) }
}

/// A closed time of `shards`, with those of the operations that belong there.
pub fn closed<R: Keyed>(time: Time, shards: u64, ops: Vec<Op<R>>) -> Closed<R> {
    let shard = |op: &Op<R>| match op {
        Op::Put(row) | Op::Delete(row) | Op::Add(row, _) => row.shard(),
    };
    let mut ops: Vec<_> = ops.into_iter().map(|op| (shard(&op), op)).collect();
    ops.retain(|(shard, _)| shards & (1 << shard) != 0);
    ops.sort_by_key(|(shard, _)| *shard);
    Closed { position: position(time), shards, loading: false, ops }
}

fn loading<R: Keyed>(time: Time, ops: Vec<Op<R>>) -> Closed<R> {
    Closed { loading: true, ..closed(time, ALL, ops) }
}

/// A user's row.
pub fn user(id: i64) -> User {
    User { id, username: format!("User{id}"), display_name: format!("U {id}"), ..User::default() }
}

fn tweet(id: i64, user: i64) -> Tweet {
    Tweet { id, user_id: user, content: format!("tweet {id}"), conversation_id: id, ..Tweet::default() }
}

fn put_tweet(id: i64) -> Op<ViewRow> {
    Op::Put(ViewRow::Tweet(Box::new(tweet(id, 1))))
}

fn count(counter: Counter, of: i64, diff: i64) -> Op<ViewRow> {
    Op::Add(ViewRow::Count { counter, of }, diff)
}

fn likes(views: &Arc<dyn Views>, id: i64) -> Option<i64> {
    block_on(views.tweets(&[id])).unwrap()[0].as_ref().map(|tweet| tweet.likes)
}

fn content(views: &Arc<dyn Views>, id: i64) -> Option<String> {
    block_on(views.tweets(&[id])).unwrap()[0].as_ref().map(|tweet| tweet.tweet.content.clone())
}

/// What each shard has of both rows and reactions.
fn rows_at(store: &impl IndexStore) -> Vec<Option<Time>> {
    let rows = RowSink::<ViewRow>::progress(store).into_iter().zip(store.reactions_progress());
    rows.map(|(rows, reactions)| Some(rows?.time.min(reactions?.time))).collect()
}

pub fn rows_are_put_and_deleted(subject: &impl Subject) {
    let store = subject.open();
    let views = subject.views(&store);
    let profile = |name: &str| Op::Put(ViewRow::Profile(Box::new(User { username: name.into(), ..user(7) })));
    let name = |name: &str| ViewRow::Username { name: name.into(), user: 7 };
    let retweet = ViewRow::Retweet { id: 50, user: 7, tweet: 40 };
    store.give(&closed(1, ALL, vec![profile("Ada"), Op::Put(name("ada")), Op::Put(retweet.clone())])).unwrap();
    assert_eq!(block_on(views.user_by_name("ADA")).unwrap(), Some(7));
    assert_eq!(block_on(views.retweets(&[50, 51])).unwrap(), [Some((7, 40)), None]);
    store.give(&closed(2, ALL, vec![profile("Bob"), Op::Delete(name("ada")), Op::Put(name("bob"))])).unwrap();
    assert_eq!(block_on(views.user_by_name("ada")).unwrap(), None);
    assert_eq!(block_on(views.user_by_name("bob")).unwrap(), Some(7));
    let found = block_on(views.profiles(&[8, 7])).unwrap();
    assert!(found[0].is_none());
    assert_eq!(found[1].as_ref().unwrap().user.username, "Bob");
    let gone = Op::Delete(ViewRow::Profile(Box::new(user(7))));
    store.give(&closed(3, ALL, vec![gone, Op::Delete(retweet)])).unwrap();
    assert_eq!(block_on(views.profiles(&[7])).unwrap(), [None]);
    assert_eq!(block_on(views.retweets(&[50])).unwrap(), [None]);
}

pub fn every_fact_is_found_from_both_sides(subject: &impl Subject) {
    let store = subject.open();
    let views = subject.views(&store);
    let follow = |follower, following, accepted| Fact::Follow { follower, following, accepted };
    let facts = vec![
        follow(1, 2, true),
        follow(2, 1, false),
        Fact::Block { blocker: 1, blocked: 3 },
        Fact::Block { blocker: 4, blocked: 1 },
        Fact::Mute { muter: 1, muted: 5 },
        Fact::Protected(6),
        Fact::DeletedUser(7),
        Fact::DeletedTweet(100),
    ];
    store.give(&closed(1, ALL, facts.iter().cloned().map(Op::Put).collect())).unwrap();
    let none = Relationship::default();
    let expected = [
        Relationship { following: Some(true), followed_by: Some(false), ..none },
        Relationship { blocks: true, ..none },
        Relationship { blocked_by: true, ..none },
        Relationship { mutes: true, ..none },
        Relationship { protected: true, ..none },
        Relationship { deleted: true, ..none },
        none,
    ];
    assert_eq!(block_on(views.relationships(Some(1), &[2, 3, 4, 5, 6, 7, 8])).unwrap(), expected);
    let nobody = block_on(views.relationships(None, &[2, 6])).unwrap();
    assert_eq!(nobody, [none, Relationship { protected: true, ..none }]);
    assert_eq!(block_on(views.deleted_tweets(&[100, 101])).unwrap(), [true, false]);

    let mut changes: Vec<_> = facts.into_iter().skip(1).map(Op::Delete).collect();
    changes.push(Op::Put(follow(1, 2, false)));
    store.give(&closed(2, ALL, changes)).unwrap();
    let asked = Relationship { following: Some(false), ..none };
    assert_eq!(
        block_on(views.relationships(Some(1), &[2, 3, 4, 5, 6, 7])).unwrap(),
        [asked, none, none, none, none, none]
    );
    assert_eq!(block_on(views.deleted_tweets(&[100])).unwrap(), [false]);
}

pub fn sums_add_up_once_and_zero_is_as_good_as_none(subject: &impl Subject) {
    let store = subject.open();
    let views = subject.views(&store);
    store.give(&closed(1, ALL, vec![put_tweet(9), count(Counter::Likes, 9, 2)])).unwrap();
    store.give(&closed(2, ALL, vec![count(Counter::Likes, 9, 3), count(Counter::Retweets, 9, 1)])).unwrap();
    store.give(&closed(2, ALL, vec![count(Counter::Likes, 9, 3)])).unwrap();
    store.give(&closed(1, ALL, vec![count(Counter::Likes, 9, 2)])).unwrap();
    assert_eq!(likes(&views, 9), Some(5));
    store.give(&closed(3, ALL, vec![count(Counter::Likes, 9, -5)])).unwrap();
    assert_eq!(likes(&views, 9), Some(0));
    subject.durable(&store);
    assert_eq!(likes(&views, 9), Some(0));
    store.give(&closed(4, ALL, vec![count(Counter::Likes, 9, 7)])).unwrap();
    subject.durable(&store);
    assert_eq!(likes(&views, 9), Some(7));
    // Comes down to zero and up again before anything is dropped.
    store.give(&closed(5, ALL, vec![count(Counter::Likes, 9, -7)])).unwrap();
    store.give(&closed(6, ALL, vec![count(Counter::Likes, 9, 1)])).unwrap();
    subject.durable(&store);
    assert_eq!(likes(&views, 9), Some(1));
}

pub fn lists_are_newest_first_and_paged(subject: &impl Subject) {
    let store = subject.open();
    let views = subject.views(&store);
    let edges: Vec<Edge> =
        [(5, 1), (5, 2), (-3, 9), (i64::MAX, 4), (i64::MIN, 5), (0, -7)].map(|(at, id)| Edge { at, id }).to_vec();
    let mut rows = Vec::new();
    for Edge { at, id } in edges.iter().copied() {
        rows.push(Op::Put(ViewRow::Follower { user: 1, at, follower: id }));
        rows.push(Op::Put(ViewRow::Following { user: 1, at, following: id }));
        // Neighbours in the order of keys, whose lists must not run into this one.
        rows.push(Op::Put(ViewRow::Follower { user: 2, at, follower: id }));
        rows.push(Op::Put(ViewRow::Follower { user: 0, at, follower: id }));
    }
    store.give(&closed(1, ALL, rows)).unwrap();
    let mut expected = edges;
    expected.sort_by(|one, other| other.cmp(one));
    for limit in 1..=7 {
        let (mut followers, mut following, mut after) = (Vec::new(), Vec::new(), None);
        loop {
            let page = block_on(views.edges(List::Followers, 1, after, limit)).unwrap();
            following.extend(block_on(views.edges(List::Following, 1, after, limit)).unwrap());
            after = page.last().copied();
            let last = page.len() < limit;
            followers.extend(page);
            if last {
                break;
            }
        }
        assert_eq!((&followers, &following), (&expected, &expected), "{limit} at a time");
    }
    assert!(block_on(views.edges(List::Following, 2, None, 10)).unwrap().is_empty());
}

pub fn timelines_are_newest_first_and_paged(subject: &impl Subject) {
    let store = subject.open();
    let views = subject.views(&store);
    let entries = [EntryId::tweet(10), EntryId::retweet(10), EntryId::tweet(11), EntryId::tweet(-4)];
    let row =
        |user, reply, entry: EntryId| Op::Put(ViewRow::TimelineEntry { user, reply, entry, tweet: entry.id + 100 });
    let mut rows: Vec<_> = entries.iter().map(|entry| row(1, false, *entry)).collect();
    rows.extend([row(1, true, EntryId::tweet(12)), row(0, false, EntryId::tweet(9)), row(2, false, EntryId::tweet(9))]);
    store.give(&closed(1, ALL, rows)).unwrap();
    let item = |entry: EntryId| TimelineItem { entry, tweet: entry.id + 100 };
    let expected = [EntryId::tweet(11), EntryId::retweet(10), EntryId::tweet(10), EntryId::tweet(-4)].map(item);
    let page = |replies, before, limit| block_on(views.user_timeline(1, replies, before, limit)).unwrap();
    assert_eq!(page(false, None, 10), expected);
    assert_eq!(page(false, None, 2), expected[..2]);
    assert_eq!(page(false, Some(EntryId::retweet(10)), 10), expected[2..]);
    assert_eq!(page(false, Some(EntryId::tweet(11)), 1), expected[1..2]);
    assert_eq!(page(true, None, 10), [item(EntryId::tweet(12))]);
}

/// Reads pages of every size, each after the last item of the one before, and compares all of them with what is expected.
fn is_paged<T: Clone + PartialEq + std::fmt::Debug>(
    expected: &[T],
    page: impl Fn(Option<&T>, usize) -> Result<Vec<T>, ReadError>,
) {
    for limit in 1..expected.len() + 2 {
        let mut all: Vec<T> = Vec::new();
        loop {
            let next = page(all.last(), limit).unwrap();
            assert!(next.len() <= limit);
            let last = next.len() < limit;
            all.extend(next);
            if last {
                break;
            }
        }
        assert_eq!(all, expected, "{limit} at a time");
    }
}

pub fn likes_retweets_and_requests_are_found_from_both_sides(subject: &impl Subject) {
    let store = subject.open();
    let views = subject.views(&store);
    let edges: Vec<Edge> = [(5, 1), (5, 2), (-3, 9), (0, -7)].map(|(at, id)| Edge { at, id }).to_vec();
    let mut rows = Vec::new();
    for Edge { at, id } in edges.iter().copied() {
        rows.push(ViewRow::Liker { tweet: 7, at, user: id });
        rows.push(ViewRow::Liked { user: id, tweet: 7 });
        rows.push(ViewRow::FollowRequest { user: 7, at, follower: id });
        rows.push(ViewRow::Retweeter { tweet: 7, id: 100 - id, user: id });
        rows.push(ViewRow::Retweeted { user: id, tweet: 7, id: 100 - id });
        // Neighbours, whose lists must not run into this one.
        rows.extend([6, 8].map(|tweet| ViewRow::Liker { tweet, at, user: id }));
        rows.extend([6, 8].map(|tweet| ViewRow::Retweeter { tweet, id: 100 - id, user: id }));
    }
    let put = |rows: &[ViewRow]| rows.iter().cloned().map(Op::Put).collect();
    store.give(&closed(1, ALL, put(&rows))).unwrap();
    let mut newest_first = edges;
    newest_first.sort_by(|one, other| other.cmp(one));
    for list in [List::Likers, List::FollowRequests] {
        is_paged(&newest_first, |after, limit| block_on(views.edges(list, 7, after.copied(), limit)));
    }
    let retweeters = [(107, -7), (99, 1), (98, 2), (91, 9)];
    is_paged(&retweeters, |after, limit| block_on(views.retweeters(7, after.map(|(id, _)| *id), limit)));
    assert_eq!(block_on(views.liked(9, &[6, 7])).unwrap(), [false, true]);
    assert_eq!(block_on(views.retweeted(9, &[6, 7])).unwrap(), [None, Some(91)]);

    store.give(&closed(2, ALL, rows.iter().cloned().map(Op::Delete).collect())).unwrap();
    assert!(block_on(views.edges(List::Likers, 7, None, 9)).unwrap().is_empty());
    assert!(block_on(views.edges(List::FollowRequests, 7, None, 9)).unwrap().is_empty());
    assert!(block_on(views.retweeters(7, None, 9)).unwrap().is_empty());
    assert_eq!(block_on(views.liked(9, &[7])).unwrap(), [false]);
    assert_eq!(block_on(views.retweeted(9, &[7])).unwrap(), [None]);
}

pub fn blocks_and_mutes_are_listed(subject: &impl Subject) {
    let store = subject.open();
    let views = subject.views(&store);
    let others = [-5, 0, 3, 4, i64::MAX];
    let mut facts = Vec::new();
    for other in others {
        facts.push(Fact::Block { blocker: 2, blocked: other });
        facts.push(Fact::Mute { muter: 2, muted: other });
        facts.extend([1, 3].map(|blocker| Fact::Block { blocker, blocked: other }));
    }
    store.give(&closed(1, ALL, facts.iter().cloned().map(Op::Put).collect())).unwrap();
    is_paged(&others, |after, limit| block_on(views.blocks(2, after.copied(), limit)));
    is_paged(&others, |after, limit| block_on(views.mutes(2, after.copied(), limit)));
    assert!(block_on(views.mutes(1, None, 9)).unwrap().is_empty());
    let gone = vec![Op::Delete(Fact::Block { blocker: 2, blocked: 0 })];
    store.give(&closed(2, ALL, gone)).unwrap();
    assert_eq!(block_on(views.blocks(2, None, 2)).unwrap(), [-5, 3]);
}

pub fn tags_and_trends_are_kept_apart(subject: &impl Subject) {
    let store = subject.open();
    let views = subject.views(&store);
    let tagged = |tag: &str, tweet| ViewRow::Tagged { tag: tag.into(), tweet };
    let trending = |window, tag: &str| ViewRow::TrendingTag { window, tag: tag.into(), authors: 2, uses: 3 };
    let mut rows: Vec<ViewRow> = [3, -1, 40, 7].map(|tweet| tagged("日本", tweet)).to_vec();
    // Tags that begin alike.
    rows.extend([tagged("日", 5), tagged("日本語", 5)]);
    rows.extend([trending(TrendWindow::Hour, "a"), trending(TrendWindow::Day, "b")]);
    rows.extend([(7, 2), (3, 9)].map(|(tweet, likes)| ViewRow::TrendingTweet { tweet, likes }));
    store.give(&closed(1, ALL, rows.into_iter().map(Op::Put).collect())).unwrap();
    is_paged(&[40, 7, 3, -1], |after, limit| block_on(views.tagged("日本", after.copied(), limit)));
    let tag = |tag: &str, uses| TrendingTag { tag: tag.into(), authors: 2, uses };
    assert_eq!(block_on(views.trending_tags(TrendWindow::Hour)).unwrap(), [tag("a", 3)]);
    let tweets = || {
        let mut tweets = block_on(views.trending_tweets()).unwrap();
        tweets.sort_by_key(|trending| trending.tweet);
        tweets.into_iter().map(|trending| (trending.tweet, trending.likes)).collect::<Vec<_>>()
    };
    assert_eq!(tweets(), [(3, 9), (7, 2)]);
    let more = ViewRow::TrendingTag { window: TrendWindow::Hour, tag: "a".into(), authors: 2, uses: 4 };
    let changes = vec![
        Op::Put(more),
        Op::Delete(trending(TrendWindow::Day, "b")),
        Op::Delete(tagged("日本", 7)),
        Op::Delete(ViewRow::TrendingTweet { tweet: 3, likes: 9 }),
    ];
    store.give(&closed(2, ALL, changes)).unwrap();
    assert_eq!(block_on(views.trending_tags(TrendWindow::Hour)).unwrap(), [tag("a", 4)]);
    assert!(block_on(views.trending_tags(TrendWindow::Day)).unwrap().is_empty());
    assert_eq!(block_on(views.tagged("日本", None, 9)).unwrap(), [40, 3, -1]);
    assert_eq!(tweets(), [(7, 2)]);
}

pub fn a_thread_is_depth_first_and_a_reply_is_found_in_it(subject: &impl Subject) {
    let store = subject.open();
    let views = subject.views(&store);
    let reply = |path: &[i64]| {
        let parent = path.iter().rev().nth(1).copied().unwrap_or(1);
        Reply { path: path.to_vec(), parent, user: path.len() as i64 }
    };
    let row = |root, Reply { path, parent, user }: Reply| ViewRow::Reply { root, path, parent, user };
    let paths: [&[i64]; 7] = [&[2], &[2, 5], &[2, 5, 9], &[2, 7], &[3], &[3, 4], &[1 << 61]];
    let thread = paths.map(reply);
    let mut rows: Vec<_> = thread.iter().rev().cloned().map(|reply| Op::Put(row(1, reply))).collect();
    rows.extend([0, 2].map(|root| Op::Put(row(root, reply(&[8])))));
    store.give(&closed(1, ALL, rows)).unwrap();
    let pages = |under: &'static [i64], expected: &[Reply]| {
        is_paged(expected, |after, limit| {
            block_on(views.replies(1, under, after.map(|reply| reply.path.as_slice()), limit))
        });
    };
    pages(&[], &thread);
    pages(&[2], &thread[1..4]);
    pages(&[2, 5], &thread[2..3]);
    pages(&[2, 7], &[]);
    let found = |ids: &[i64]| block_on(views.replies_of(1, ids)).unwrap();
    assert_eq!(found(&[9, 8, 1 << 61]), [Some(reply(&[2, 5, 9])), None, Some(reply(&[1 << 61]))]);

    // A reply moves, its new place being put before the old one is taken away, or after.
    let moved = reply(&[3, 9]);
    let moved_row = row(1, moved.clone());
    let put_first = vec![Op::Put(moved_row.clone()), Op::Delete(row(1, reply(&[2, 5, 9])))];
    store.give(&closed(2, ALL, put_first)).unwrap();
    assert_eq!(found(&[9]), [Some(moved)]);
    let delete_first = vec![Op::Delete(moved_row), Op::Put(row(1, reply(&[2, 5, 9])))];
    store.give(&closed(3, ALL, delete_first)).unwrap();
    assert_eq!(found(&[9]), [Some(reply(&[2, 5, 9]))]);
    store.give(&closed(4, ALL, vec![Op::Delete(row(1, reply(&[2, 7])))])).unwrap();
    assert_eq!(found(&[7]), [None]);
    pages(&[2], &thread[1..3]);
}

pub fn notifications_are_newest_first_and_paged(subject: &impl Subject) {
    let store = subject.open();
    let views = subject.views(&store);
    let notice = |order, kind, actor, tweet| Notice { order, kind, actor, tweet };
    let notices = [
        notice(i64::MAX, NoticeKind::Like, 3, 9),
        notice(70, NoticeKind::Reply, 2, 70),
        notice(70, NoticeKind::Mention, 2, 70),
        notice(5, NoticeKind::Follow, -1, 0),
        notice(5, NoticeKind::Follow, 4, 0),
        notice(5, NoticeKind::Like, 2, 8),
        notice(5, NoticeKind::Like, 2, 9),
        notice(-5, NoticeKind::Retweet, 2, 9),
    ];
    let row = |user, notice| ViewRow::Notification { user, notice };
    let mut rows: Vec<_> = notices.iter().rev().map(|notice| Op::Put(row(1, *notice))).collect();
    rows.extend([0, 2].map(|user| Op::Put(row(user, notices[0]))));
    rows.push(Op::Put(ViewRow::ReadMark { user: 1, read: 70 }));
    store.give(&closed(1, ALL, rows)).unwrap();
    is_paged(&notices, |after, limit| block_on(views.notifications(1, after, limit)));
    assert_eq!(block_on(views.read_mark(1)).unwrap(), Some(70));
    assert_eq!(block_on(views.read_mark(2)).unwrap(), None);
    let changes = vec![Op::Delete(row(1, notices[2])), Op::Put(ViewRow::ReadMark { user: 1, read: 71 })];
    store.give(&closed(2, ALL, changes)).unwrap();
    assert_eq!(block_on(views.notifications(1, Some(&notices[0]), 2)).unwrap(), [notices[1], notices[3]]);
    assert_eq!(block_on(views.read_mark(1)).unwrap(), Some(71));
}

pub fn a_time_is_applied_once_in_each_shard(subject: &impl Subject) {
    let store = subject.open();
    let views = subject.views(&store);
    let [one, other] = two_shards();
    let mask = |id| 1_u64 << shard_of(id);
    store.give(&closed(5, mask(one), vec![put_tweet(one)])).unwrap();
    // An older time of the same shard is ignored, and so is the same time; of another shard it is not.
    for time in [4, 5] {
        let delete = |id| Op::Delete(ViewRow::Tweet(Box::new(tweet(id, 1))));
        store.give(&closed(time, mask(one), vec![delete(one)])).unwrap();
    }
    store.give(&closed(4, mask(one) | mask(other), vec![put_tweet(other)])).unwrap();
    assert!(content(&views, one).is_some() && content(&views, other).is_some());
    let mut expected = vec![None; SHARDS];
    expected[usize::from(shard_of(one))] = Some(5);
    expected[usize::from(shard_of(other))] = Some(4);
    assert_eq!(rows_at(&*store), expected);
    // Facts have a progress of their own.
    assert!(RowSink::<Fact>::progress(&*store).iter().all(Option::is_none));
}

fn two_shards() -> [i64; 2] {
    let other = (2..).find(|id| shard_of(*id) != shard_of(1)).unwrap();
    [1, other]
}

/// Two workers, each with half of the shards.
const HALVES: [u64; 2] = [0x5555_5555_5555_5555, 0xAAAA_AAAA_AAAA_AAAA];

pub fn data_and_progress_survive_a_crash_together(subject: &impl Subject) {
    let mut store = subject.open();
    for time in 1..=60_u64 {
        for (worker, shards) in HALVES.into_iter().enumerate() {
            // The second worker is a little behind; a third of the times have no rows.
            if worker == 1 && time == 60 {
                continue;
            }
            let id = time as i64;
            let rows = if time % 3 == 0 { vec![] } else { vec![put_tweet(id), count(Counter::Likes, id % 5, 1)] };
            store.give(&closed(time, shards, rows)).unwrap();
            store.give(&closed::<Fact>(time, shards, vec![])).unwrap();
        }
        if time % 20 == 0 {
            store = subject.crash(store);
        }
    }
    let progress = rows_at(&*store);
    for shards in HALVES {
        let of_half = (0..SHARDS).filter(|shard| shards & (1 << shard) != 0).map(|shard| progress[shard]);
        let first = of_half.clone().next().unwrap();
        assert!(first.is_some() && of_half.clone().all(|time| time == first), "{progress:?}");
    }
    // What a replay from the least progress brings is applied where it is missing, and nowhere twice.
    let least = progress.iter().flatten().min().copied().unwrap();
    for time in least + 1..=60 {
        let id = time as i64;
        let rows = if time % 3 == 0 { vec![] } else { vec![put_tweet(id), count(Counter::Likes, id % 5, 1)] };
        store.give(&closed(time, ALL, rows)).unwrap();
    }
    let views = subject.views(&store);
    let ids: Vec<i64> = (1..=60).collect();
    let found = block_on(views.tweets(&ids)).unwrap();
    for (id, found) in ids.iter().zip(found) {
        assert_eq!(found.is_some(), id % 3 != 0, "tweet {id}");
    }
    assert_eq!([1, 2, 4].map(|id| likes(&views, id)), [Some(8); 3]);
}

pub fn durable_covers_idle_times_too(subject: &impl Subject) {
    let store = subject.open();
    assert_eq!(subject.durable(&store), None);
    store.give(&closed(1, ALL, vec![put_tweet(1)])).unwrap();
    assert_eq!(subject.durable(&store), None, "facts have none yet");
    store.give(&closed::<Fact>(1, ALL, vec![])).unwrap();
    assert_eq!(subject.durable(&store), Some(position(1)));
    for time in 2..10 {
        store.give(&closed::<ViewRow>(time, ALL, vec![])).unwrap();
        store.give(&closed::<Fact>(time, ALL, vec![])).unwrap();
    }
    store.give(&closed::<Fact>(10, ALL, vec![])).unwrap();
    assert_eq!(subject.durable(&store), Some(position(9)));
    let store = subject.crash(store);
    assert_eq!(rows_at(&*store), vec![Some(9); SHARDS]);
    assert_eq!(RowSink::<Fact>::progress(&*store), vec![Some(position(10)); SHARDS]);
}

pub fn another_number_of_workers_goes_on(subject: &impl Subject) {
    let store = subject.open();
    for shards in HALVES {
        store.give(&closed(1, shards, vec![put_tweet(1)])).unwrap();
        store.give(&closed::<Fact>(1, shards, vec![])).unwrap();
    }
    store.give(&closed(2, HALVES[0], vec![put_tweet(2)])).unwrap();
    let store = subject.crash(store);
    store.give(&closed(2, ALL, vec![put_tweet(2)])).unwrap();
    store.give(&closed(3, ALL, vec![put_tweet(3), count(Counter::Likes, 3, 1)])).unwrap();
    let store = subject.crash(store);
    assert_eq!(rows_at(&*store), vec![Some(3); SHARDS]);
    let views = subject.views(&store);
    assert!([1, 2, 3].iter().all(|id| content(&views, *id).is_some()));
}

pub fn a_load_counts_from_its_end_only(subject: &impl Subject) {
    let store = subject.open();
    store.give(&loading(1, vec![put_tweet(1), count(Counter::Likes, 1, 2)])).unwrap();
    store.give(&loading(2, vec![put_tweet(2), count(Counter::Likes, 1, 1)])).unwrap();
    store.give(&closed::<Fact>(100, ALL, vec![])).unwrap();
    assert_eq!(likes(&subject.views(&store), 1), Some(3));
    assert_eq!(rows_at(&*store), vec![None; SHARDS]);
    // One worker ends its part, then the process is killed: all rows are loaded again, the facts are not.
    store.give(&closed(100, HALVES[0], vec![put_tweet(3)])).unwrap();
    let store = subject.crash(store);
    assert_eq!(rows_at(&*store), vec![None; SHARDS]);
    assert_eq!(RowSink::<Fact>::progress(&*store), vec![Some(position(100)); SHARDS]);
    assert!([1, 2, 3].iter().all(|id| content(&subject.views(&store), *id).is_none()));

    store.give(&loading(1, vec![put_tweet(1), count(Counter::Likes, 1, 2)])).unwrap();
    store.give(&closed(100, ALL, vec![count(Counter::Likes, 1, 1)])).unwrap();
    let store = subject.crash(store);
    assert_eq!(rows_at(&*store), vec![Some(100); SHARDS]);
    assert_eq!(likes(&subject.views(&store), 1), Some(3));
}

/// Puts a store through all of the above: `index_suite!(module, a new Subject)`.
macro_rules! index_suite {
    ($module:ident, $subject:expr) => {
        index_suite!($module, $subject,
            rows_are_put_and_deleted every_fact_is_found_from_both_sides sums_add_up_once_and_zero_is_as_good_as_none
            lists_are_newest_first_and_paged timelines_are_newest_first_and_paged
            likes_retweets_and_requests_are_found_from_both_sides blocks_and_mutes_are_listed
            tags_and_trends_are_kept_apart a_thread_is_depth_first_and_a_reply_is_found_in_it
            notifications_are_newest_first_and_paged a_time_is_applied_once_in_each_shard
            data_and_progress_survive_a_crash_together durable_covers_idle_times_too another_number_of_workers_goes_on
            a_load_counts_from_its_end_only very_many_rows_at_once_are_as_many_small_ones
            a_time_that_is_cut_short_between_sets_of_shards_counts_once
            what_is_read_beside_writes_is_not_older_than_what_was_told);
    };
    ($module:ident, $subject:expr, $($test:ident)*) => {
        mod $module {
            use super::*;
            $(#[test]
            fn $test() {
                $crate::index::$test(&$subject);
            })*
        }
    };
}
pub(crate) use index_suite;
