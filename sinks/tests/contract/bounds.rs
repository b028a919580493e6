//! What a page costs, whatever there is: rows of lists and ranges that it reads are counted.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use feedmill_model::{EntryId, Fact, Notice, NoticeKind, Op, Parameters, TrendWindow, ViewRow};
use feedmill_sinks::read::{
    Access, Ancestor, Page, SUGGESTION_SOURCES_MAX, ThreadCursor, ThreadOrder, UNREAD_MAX, ancestors_page,
    hashtag_page, likers_page, notifications_page, suggestions, thread_page, unread, user_page,
};
use feedmill_sinks::{
    Changes, CountedTweet, Edge, HomeHead, HomeRecord, List, LocalHome, LocalViews, Profile, Progress, ReadError,
    Relationship, Reply, TimelineItem, TrendingTag, TrendingTweet, Views,
};

use crate::index::{ALL, Give, closed, user};
use crate::pages::{Stores, block_on};
use crate::world::{Kind, Post, TAGS, World};

/// Views that count the rows of the ranges that are read.
struct Counted {
    views: LocalViews,
    rows: AtomicUsize,
    /// Done once, while a list of accounts is read.
    meanwhile: Mutex<Option<Meanwhile>>,
}

type Meanwhile = Box<dyn FnOnce() + Send>;

impl Counted {
    fn new(views: LocalViews) -> Self {
        Counted { views, rows: AtomicUsize::new(0), meanwhile: Mutex::new(None) }
    }

    fn counted<T>(&self, rows: Result<Vec<T>, ReadError>) -> Result<Vec<T>, ReadError> {
        self.rows.fetch_add(rows.as_ref().map_or(0, Vec::len), Ordering::Relaxed);
        rows
    }

    /// Rows since the last call.
    fn rows(&self) -> usize {
        self.rows.swap(0, Ordering::Relaxed)
    }
}

#[async_trait]
impl Views for Counted {
    async fn user_by_name(&self, name: &str) -> Result<Option<i64>, ReadError> {
        self.views.user_by_name(name).await
    }

    async fn profiles(&self, ids: &[i64]) -> Result<Vec<Option<Arc<Profile>>>, ReadError> {
        self.views.profiles(ids).await
    }

    async fn edges(&self, list: List, of: i64, after: Option<Edge>, limit: usize) -> Result<Vec<Edge>, ReadError> {
        let edges = self.counted(self.views.edges(list, of, after, limit).await);
        if let Some(meanwhile) = self.meanwhile.lock().unwrap().take() {
            meanwhile();
        }
        edges
    }

    async fn tweets(&self, ids: &[i64]) -> Result<Vec<Option<Arc<CountedTweet>>>, ReadError> {
        self.views.tweets(ids).await
    }

    async fn retweets(&self, ids: &[i64]) -> Result<Vec<Option<(i64, i64)>>, ReadError> {
        self.views.retweets(ids).await
    }

    async fn user_timeline(
        &self,
        user: i64,
        replies: bool,
        before: Option<EntryId>,
        limit: usize,
    ) -> Result<Vec<TimelineItem>, ReadError> {
        self.counted(self.views.user_timeline(user, replies, before, limit).await)
    }

    async fn retweeters(&self, tweet: i64, before: Option<i64>, limit: usize) -> Result<Vec<(i64, i64)>, ReadError> {
        self.counted(self.views.retweeters(tweet, before, limit).await)
    }

    async fn liked(&self, user: i64, tweets: &[i64]) -> Result<Vec<bool>, ReadError> {
        self.views.liked(user, tweets).await
    }

    async fn retweeted(&self, user: i64, tweets: &[i64]) -> Result<Vec<Option<i64>>, ReadError> {
        self.views.retweeted(user, tweets).await
    }

    async fn tagged(&self, tag: &str, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        self.counted(self.views.tagged(tag, before, limit).await)
    }

    async fn trending_tags(&self, window: TrendWindow) -> Result<Vec<TrendingTag>, ReadError> {
        self.counted(self.views.trending_tags(window).await)
    }

    async fn trending_tweets(&self) -> Result<Vec<TrendingTweet>, ReadError> {
        self.counted(self.views.trending_tweets().await)
    }

    async fn replies(
        &self,
        root: i64,
        under: &[i64],
        after: Option<&[i64]>,
        limit: usize,
    ) -> Result<Vec<Reply>, ReadError> {
        self.counted(self.views.replies(root, under, after, limit).await)
    }

    async fn replies_of(&self, root: i64, ids: &[i64]) -> Result<Vec<Option<Reply>>, ReadError> {
        self.views.replies_of(root, ids).await
    }

    async fn notifications(&self, user: i64, after: Option<&Notice>, limit: usize) -> Result<Vec<Notice>, ReadError> {
        self.counted(self.views.notifications(user, after, limit).await)
    }

    async fn read_mark(&self, user: i64) -> Result<Option<i64>, ReadError> {
        self.views.read_mark(user).await
    }

    async fn home(&self, viewer: i64) -> Result<Option<HomeRecord>, ReadError> {
        self.views.home(viewer).await
    }

    async fn heads(&self, viewers: &[i64], authors: &[i64]) -> Result<Vec<Option<HomeHead>>, ReadError> {
        self.views.heads(viewers, authors).await
    }

    async fn relationships(&self, viewer: Option<i64>, users: &[i64]) -> Result<Vec<Relationship>, ReadError> {
        self.views.relationships(viewer, users).await
    }

    async fn blocks(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        self.counted(self.views.blocks(user, after, limit).await)
    }

    async fn mutes(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        self.counted(self.views.mutes(user, after, limit).await)
    }

    async fn deleted_tweets(&self, ids: &[i64]) -> Result<Vec<bool>, ReadError> {
        self.views.deleted_tweets(ids).await
    }

    fn changes(&self) -> &Changes {
        self.views.changes()
    }

    fn progress(&self) -> &Progress {
        self.views.progress()
    }
}

fn views(world: &World, rows: Vec<ViewRow>) -> (Stores, Counted) {
    let stores = Stores::of(world);
    stores.index.give(&closed(2, ALL, rows.into_iter().map(Op::Put).collect())).unwrap();
    let views = stores.views(LocalHome::new(Parameters::default()));
    (stores, Counted::new(views))
}

/// All replies below the first tweet, and how many rows each page read.
fn thread(views: &Counted, world: &World, order: ThreadOrder, limit: usize) -> (Vec<(i64, usize, bool)>, Vec<usize>) {
    let (mut replies, mut pages, mut cursor) = (Vec::new(), Vec::new(), None::<ThreadCursor>);
    loop {
        let root = world.posts[0].id;
        let page = match block_on(thread_page(views, Some(3), root, order, cursor, limit)).unwrap() {
            Access::Granted(page) => page,
            denied => panic!("{denied:?}"),
        };
        replies.extend(page.items.iter().map(|reply| (reply.id, reply.depth, reply.tweet.is_some())));
        pages.push(views.rows());
        cursor = page.next;
        if cursor.is_none() {
            return (replies, pages);
        }
    }
}

#[test]
fn a_page_of_a_thread_of_ten_thousand_replies_reads_what_it_shows() {
    let mut posts = vec![Post::new(0, 1, Kind::Tweet)];
    for number in 1..=10_000 {
        // Every third begins a new answer, which the next two are below. The author answers now and then.
        let to = if number % 3 == 1 { 0 } else { number - 1 };
        let user = if number % 700 == 1 { 1 } else { 2 + number as i64 % 2 };
        posts.push(Post { deleted: number % 100 == 5, ..Post::new(number as i64, user, Kind::Reply(to)) });
    }
    let world = World { users: 3, posts, ..World::default() };
    let (_stores, views) = views(&world, Vec::new());
    for (order, author_first) in [(ThreadOrder::Time, false), (ThreadOrder::AuthorFirst, true)] {
        let (replies, pages) = thread(&views, &world, order, 50);
        let expected = world.thread(Some(3), 0, author_first);
        let expected: Vec<_> =
            expected.into_iter().map(|(id, _, depth, author)| (id, depth, author.is_some())).collect();
        assert!(replies == expected, "{order:?}");
        let most = pages.iter().max().copied().unwrap();
        match order {
            ThreadOrder::Time => assert!(most <= 51, "{most} rows for a page of 50"),
            // The first page looks at the author's replies, too.
            ThreadOrder::AuthorFirst => assert!(pages.iter().skip(1).all(|rows| *rows <= 500), "{most}"),
        }
    }
}

#[test]
fn a_page_that_is_hidden_looks_no_further_than_ten_times_its_limit() {
    let mut posts = vec![Post::new(0, 1, Kind::Tweet)];
    posts.extend((1..=1_000).map(|number| Post::new(number, 2, Kind::Reply(0))));
    posts.push(Post::new(1_001, 3, Kind::Reply(0)));
    let world = World { users: 3, posts, blocks: [(2, 3)].into(), ..World::default() };
    let (_stores, views) = views(&world, Vec::new());
    let (replies, pages) = thread(&views, &world, ThreadOrder::Time, 50);
    assert_eq!(replies, [(world.posts[1_001].id, 1, true)]);
    assert!(pages.len() == 3 && pages.iter().all(|rows| *rows <= 10 * 51), "{pages:?}");
}

/// How much each page reads of a list of a thousand of which the viewer may see the last only, until that is found.
fn pages_until_found<T, C>(views: &Counted, mut page: impl FnMut(Option<C>) -> Page<T, C>) -> Vec<usize> {
    let (mut pages, mut cursor) = (Vec::new(), None);
    loop {
        let page = page(cursor);
        pages.push(views.rows());
        cursor = page.next;
        if cursor.is_none() {
            assert_eq!(page.items.len(), 1);
            return pages;
        }
        assert!(page.items.is_empty());
    }
}

#[test]
fn pages_of_which_most_is_hidden_look_no_further_than_ten_times_their_limit() {
    const LIMIT: usize = 20;
    fn granted<T>(access: Access<T>) -> T {
        let Access::Granted(found) = access else { panic!("hidden") };
        found
    }
    // 1 wrote a tweet and retweeted another, and retweeted all that 2 wrote since; 2 and whoever likes it blocks 3.
    let mut posts = vec![Post::new(0, 4, Kind::Tweet), Post::new(1, 1, Kind::Retweet(0))];
    posts.extend((0..1_000).flat_map(|number: usize| {
        let [at, of] = [2 + 2 * number, 3 + 2 * number].map(|at| at as i64);
        [Post::new(at, 2, Kind::Tweet), Post::new(of, 1, Kind::Retweet(at as usize))]
    }));
    for post in posts.iter_mut().filter(|post| post.is_tweet()) {
        post.tags.insert(TAGS[0]);
    }
    let likes = (4..=1_004).map(|user| ((user, 0), user)).collect();
    let blocks = (5..=1_004).map(|user| (user, 3)).chain([(2, 3)]).collect();
    let world = World { users: 1_004, posts, likes, blocks, ..World::default() };
    let (_stores, views) = views(&world, Vec::new());
    let (viewer, tweet) = (Some(3), world.posts[0].id);
    let all = [
        pages_until_found(&views, |at| block_on(hashtag_page(&views, viewer, TAGS[0], at, LIMIT)).unwrap()),
        pages_until_found(&views, |at| granted(block_on(user_page(&views, viewer, 1, true, at, LIMIT)).unwrap())),
        pages_until_found(&views, |at| granted(block_on(likers_page(&views, viewer, tweet, at, LIMIT)).unwrap())),
    ];
    // A user's page reads ahead in two ranges.
    let most = 20 * LIMIT;
    for pages in all {
        assert!(pages.iter().all(|rows| *rows <= most) && pages.len() >= 1_000 / most, "{pages:?}");
    }
}

#[test]
fn a_chain_of_a_thousand_replies_is_read_from_both_ends() {
    let mut posts = vec![Post::new(0, 1, Kind::Tweet)];
    posts.extend((1..=1_000).map(|number| Post::new(number, 1 + number % 3, Kind::Reply(number as usize - 1))));
    let world = World { users: 3, posts, ..World::default() };
    let (_stores, views) = views(&world, Vec::new());
    let (replies, _) = thread(&views, &world, ThreadOrder::AuthorFirst, 50);
    let ids: Vec<i64> = world.posts.iter().map(|post| post.id).collect();
    assert!(replies.iter().map(|(id, _, _)| *id).eq(ids[1..].iter().copied()));
    assert!(replies.iter().map(|(_, depth, _)| *depth).eq(1..=1_000));
    let (mut end, mut cursor) = (1_000, None);
    while end > 0 {
        let page = block_on(ancestors_page(&views, Some(3), ids[1_000], cursor, 50)).unwrap();
        let Access::Granted(page) = page else { panic!("hidden") };
        let above = page.items.iter().map(|above| match above {
            Ancestor::Shown(tweet) => tweet.tweet.tweet.id,
            other => panic!("{other:?}"),
        });
        assert!(above.eq(ids[end - 50..end].iter().copied()));
        (end, cursor) = (end - 50, page.next);
        assert_eq!(cursor.is_some(), end > 0);
    }
}

#[test]
fn suggestions_for_who_follows_five_thousand_read_a_bounded_part() {
    let follows = |user, at, following| ViewRow::Following { user, at, following };
    let mut rows: Vec<ViewRow> = (2..=5_001).map(|id| follows(1, id, id)).collect();
    // The newest 250 follow 300 accounts each: the one after, and some that the viewer does not follow.
    for id in 4_752..=5_001 {
        rows.extend((0..300).map(|number| follows(id, number, 6_000 + (id + number) % 400)));
    }
    let profile = |id| ViewRow::Profile(Box::new(user(id)));
    rows.extend((6_000..6_400).map(profile));
    let (stores, views) = views(&World { users: 1, ..World::default() }, rows);
    let facts: Vec<_> = (4_752..=5_001)
        .map(|following| Op::Put(feedmill_model::Fact::Follow { follower: 1, following, accepted: true }))
        .collect();
    stores.index.give(&closed(3, ALL, facts)).unwrap();
    let found = block_on(suggestions(&views, &Parameters::default(), 1, 20)).unwrap().value;
    assert_eq!(found.len(), 20);
    assert!(found.iter().all(|suggestion| suggestion.profile.user.id >= 6_000 && suggestion.mutual <= 200));
    assert!(found.is_sorted_by_key(|suggestion| std::cmp::Reverse((suggestion.mutual, suggestion.profile.user.id))));
    let rows = views.rows();
    let bound = Parameters::default().following_max + SUGGESTION_SOURCES_MAX * SUGGESTION_SOURCES_MAX;
    assert!(rows > 40_000 && rows <= bound, "{rows} rows");
}

#[test]
fn who_likes_a_tweet_is_not_told_when_it_is_hidden_meanwhile() {
    let posts = vec![Post::new(0, 2, Kind::Tweet)];
    let world = World { users: 3, posts, likes: [((3, 0), 1)].into(), ..World::default() };
    let tweet = world.posts[0].id;
    for (time, fact) in [(3, Fact::Block { blocker: 2, blocked: 1 }), (3, Fact::DeletedTweet(tweet))] {
        let (stores, views) = views(&world, Vec::new());
        let likers = || block_on(likers_page(&views, Some(1), tweet, None, 20)).unwrap();
        assert!(matches!(likers(), Access::Granted(page) if page.items.len() == 1));
        let hide = move || stores.index.give(&closed(time, ALL, vec![Op::Put(fact)])).unwrap();
        *views.meanwhile.lock().unwrap() = Some(Box::new(hide));
        assert!(!matches!(likers(), Access::Granted(_)));
    }
}

#[test]
fn a_notification_of_many_is_cut_where_the_page_has_looked_far_enough() {
    let likes = (2..=1_500).map(|user| ((user, 0), user)).collect();
    let posts = vec![Post::new(0, 1, Kind::Tweet)];
    let world = World { users: 1_500, posts, likes, mutes: [(1, 1_499)].into(), ..World::default() };
    let (_stores, views) = views(&world, Vec::new());
    let page = block_on(notifications_page(&views, 1, None, 20)).unwrap();
    assert!(views.rows() <= 200);
    let [likes] = &page.items[..] else { panic!("{} notifications", page.items.len()) };
    assert_eq!((likes.kind, likes.count, likes.actors.len()), (NoticeKind::Like, 199, 10), "one is muted");
    assert!(likes.unread && page.next.is_some());
    let actors: BTreeSet<i64> = likes.actors.iter().map(|profile| profile.user.id).collect();
    assert!(actors.iter().all(|actor| *actor > 1_480 && *actor != 1_499));
    let unread = block_on(unread(&views, 1)).unwrap().value;
    assert_eq!((unread.count, unread.more), (UNREAD_MAX, true));
    assert!(views.rows() <= 2 * (UNREAD_MAX + 1));
}
