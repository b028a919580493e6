//! A small social network that is known in full: its facts and rows, its home timelines in any layout, and what each
//! viewer must be served.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use feedmill_model::{
    Counter, Delivery, EntryId, Fact, HomeClosed, HomeRecordChange, HomeSink, Notice, NoticeKind, Op, PackedEntry,
    Parameters, Time, TrendWindow, Tweet, User, ViewRow, id_at, shard_of,
};
use feedmill_sinks::read::SHOWN_MAX;
use proptest::prelude::*;

use crate::index::{ALL, position, user};

/// When the first post was made.
pub const START_MS: i64 = 1_700_000_000_000;
/// Between two posts.
pub const STEP_MS: i64 = 1_000;

/// The tags that posts have, folded.
pub const TAGS: [&str; 2] = ["rust", "日本"];

/// What a post is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Tweet,
    /// A reply to a tweet, by its index.
    Reply(usize),
    /// A retweet of a tweet, by its index.
    Retweet(usize),
}

#[derive(Clone, Debug)]
pub struct Post {
    pub id: i64,
    pub user: i64,
    pub kind: Kind,
    /// Of a retweet: its row is gone.
    pub deleted: bool,
    pub tags: BTreeSet<&'static str>,
    /// Who is named in it.
    pub names: BTreeSet<i64>,
}

impl Post {
    pub fn new(number: i64, user: i64, kind: Kind) -> Post {
        let id = id_at(START_MS + number * STEP_MS, 0);
        Post { id, user, kind, deleted: false, tags: BTreeSet::new(), names: BTreeSet::new() }
    }

    pub fn is_tweet(&self) -> bool {
        !matches!(self.kind, Kind::Retweet(_))
    }
}

#[derive(Clone, Debug, Default)]
pub struct World {
    /// Users are 1, 2, … this.
    pub users: i64,
    pub protected: BTreeSet<i64>,
    pub deleted: BTreeSet<i64>,
    /// (follower, following) → accepted, since when
    pub follows: BTreeMap<(i64, i64), (bool, i64)>,
    pub blocks: BTreeSet<(i64, i64)>,
    pub mutes: BTreeSet<(i64, i64)>,
    pub posts: Vec<Post>,
    /// (user, tweet by its index) → since when
    pub likes: BTreeMap<(i64, usize), i64>,
    /// Up to where notifications are read.
    pub marks: BTreeMap<i64, i64>,
}

/// How home timelines are kept: none of it may be seen in what is served.
#[derive(Clone, Debug)]
pub struct Layout {
    pub hot: BTreeSet<i64>,
    pub active: BTreeSet<i64>,
    /// The floor that a bulk batch raised.
    pub floor: Option<i64>,
    /// The time is such that the horizon lies this far after the first post.
    pub horizon_ms: i64,
    pub home_max: usize,
    pub home_keep: usize,
}

/// A tweet as it is served: entry, tweet, author, who retweeted it.
pub type Line = (EntryId, i64, i64, Option<i64>);

impl World {
    /// 1 follows 2 and 4; 2 is protected; 3 blocks 1 and is muted by 1; 4 deleted a tweet.
    pub fn example() -> World {
        let post =
            |number, user, kind, deleted| Post { id: id_at(START_MS + number, 0), deleted, ..Post::new(0, user, kind) };
        World {
            users: 4,
            protected: [2].into(),
            deleted: BTreeSet::new(),
            follows: [((1, 2), (true, 20)), ((3, 2), (false, 10)), ((1, 4), (true, 30))].into(),
            blocks: [(3, 1)].into(),
            mutes: [(1, 3)].into(),
            posts: vec![
                post(0, 2, Kind::Tweet, false),
                post(1, 1, Kind::Retweet(0), false),
                post(2, 4, Kind::Tweet, true),
            ],
            ..World::default()
        }
    }

    /// 4 is hot, all are active, nothing has expired.
    pub fn whole(&self) -> Layout {
        Layout {
            hot: [4].into(),
            active: (1..=self.users).collect(),
            floor: None,
            horizon_ms: -STEP_MS,
            home_max: 1_000,
            home_keep: 800,
        }
    }

    /// The tweet that a post shows, unless it or the post is deleted.
    fn tweet_of<'a>(&'a self, post: &'a Post) -> Option<&'a Post> {
        let tweet = match post.kind {
            Kind::Retweet(tweet) => &self.posts[tweet],
            _ => post,
        };
        (!post.deleted && !tweet.deleted).then_some(tweet)
    }

    fn entry(post: &Post) -> EntryId {
        if matches!(post.kind, Kind::Retweet(_)) { EntryId::retweet(post.id) } else { EntryId::tweet(post.id) }
    }

    pub fn facts(&self) -> Vec<Fact> {
        let follow = |(&(follower, following), &(accepted, _))| Fact::Follow { follower, following, accepted };
        let mut facts: Vec<Fact> = self.follows.iter().map(follow).collect();
        facts.extend(self.blocks.iter().map(|&(blocker, blocked)| Fact::Block { blocker, blocked }));
        facts.extend(self.mutes.iter().map(|&(muter, muted)| Fact::Mute { muter, muted }));
        facts.extend(self.protected.iter().map(|id| Fact::Protected(*id)));
        facts.extend(self.deleted.iter().map(|id| Fact::DeletedUser(*id)));
        let deleted = self.posts.iter().filter(|post| post.deleted && !matches!(post.kind, Kind::Retweet(_)));
        facts.extend(deleted.map(|post| Fact::DeletedTweet(post.id)));
        facts
    }

    pub fn user(&self, id: i64) -> User {
        User { protected: self.protected.contains(&id), ..user(id) }
    }

    /// All rows, each put once.
    pub fn rows(&self) -> Vec<Op<ViewRow>> {
        let mut rows = Vec::new();
        let mut counts: BTreeMap<(Counter, i64), i64> = BTreeMap::new();
        for id in (1..=self.users).filter(|id| !self.deleted.contains(id)) {
            rows.push(ViewRow::Username { name: format!("user{id}"), user: id });
            rows.push(ViewRow::Profile(Box::new(self.user(id))));
        }
        for (&(follower, user), &(_, at)) in self.follows.iter().filter(|(_, (accepted, _))| !*accepted) {
            rows.push(ViewRow::FollowRequest { user, at, follower });
        }
        for (&(one, other), &(_, at)) in self.follows.iter().filter(|(_, (accepted, _))| *accepted) {
            rows.push(ViewRow::Following { user: one, at, following: other });
            rows.push(ViewRow::Follower { user: other, at, follower: one });
            *counts.entry((Counter::Following, one)).or_default() += 1;
            *counts.entry((Counter::Followers, other)).or_default() += 1;
        }
        for (&(user, tweet), &at) in &self.likes {
            let tweet = self.posts[tweet].id;
            rows.extend([ViewRow::Liked { user, tweet }, ViewRow::Liker { tweet, at, user }]);
            *counts.entry((Counter::Likes, tweet)).or_default() += 1;
        }
        rows.extend(self.marks.iter().map(|(&user, &read)| ViewRow::ReadMark { user, read }));
        for user in 1..=self.users {
            rows.extend(self.notices(user).into_iter().map(|notice| ViewRow::Notification { user, notice }));
        }
        rows.extend(self.trends());
        for (index, post) in self.posts.iter().enumerate() {
            match post.kind {
                Kind::Reply(to) => {
                    let (root, path) = self.path(index);
                    let parent = self.posts[to].id;
                    rows.push(ViewRow::Reply { root: self.posts[root].id, path, parent, user: post.user });
                }
                Kind::Retweet(of) if !post.deleted => {
                    let (tweet, id, user) = (self.posts[of].id, post.id, post.user);
                    rows.extend([ViewRow::Retweeter { tweet, id, user }, ViewRow::Retweeted { user, tweet, id }]);
                }
                _ => {}
            }
        }
        for (index, post) in self.posts.iter().enumerate() {
            let Some(tweet) = self.tweet_of(post) else { continue };
            let reply = matches!(post.kind, Kind::Reply(_));
            rows.push(ViewRow::TimelineEntry { user: post.user, reply, entry: World::entry(post), tweet: tweet.id });
            match post.kind {
                Kind::Retweet(_) => {
                    rows.push(ViewRow::Retweet { id: post.id, user: post.user, tweet: tweet.id });
                    *counts.entry((Counter::Retweets, tweet.id)).or_default() += 1;
                }
                _ => {
                    let reply_to_id = match post.kind {
                        Kind::Reply(to) => Some(self.posts[to].id),
                        _ => None,
                    };
                    let conversation_id = self.posts[self.path(index).0].id;
                    rows.extend(post.tags.iter().map(|tag| ViewRow::Tagged { tag: (*tag).into(), tweet: post.id }));
                    let row =
                        Tweet { id: post.id, user_id: post.user, reply_to_id, conversation_id, ..Tweet::default() };
                    rows.push(ViewRow::Tweet(Box::new(row)));
                    *counts.entry((Counter::Tweets, post.user)).or_default() += 1;
                }
            }
        }
        let count = |((counter, of), count)| Op::Add(ViewRow::Count { counter, of }, count);
        rows.into_iter().map(Op::Put).chain(counts.into_iter().map(count)).collect()
    }

    /// The first tweet of the thread of a tweet, and the ids of the replies from there down to it.
    pub fn path(&self, post: usize) -> (usize, Vec<i64>) {
        let (mut at, mut path) = (post, Vec::new());
        while let Kind::Reply(to) = self.posts[at].kind {
            path.push(self.posts[at].id);
            at = to;
        }
        path.reverse();
        (at, path)
    }

    /// All that happened to a user, in the order of the view.
    pub fn notices(&self, user: i64) -> Vec<Notice> {
        let order = |at: i64| ((at / 1_000) << 16) + at % 1_000;
        let mut notices = Vec::new();
        for (&(actor, following), &(accepted, at)) in &self.follows {
            let kind = if accepted { NoticeKind::Follow } else { NoticeKind::FollowRequest };
            notices.extend((following == user).then_some(Notice { order: order(at), kind, actor, tweet: 0 }));
        }
        let is_own = |post: usize| self.posts[post].user == user && !self.posts[post].deleted;
        for (&(actor, post), &at) in self.likes.iter().filter(|((_, post), _)| is_own(*post)) {
            notices.push(Notice { order: order(at), kind: NoticeKind::Like, actor, tweet: self.posts[post].id });
        }
        for post in self.posts.iter().filter(|post| !post.deleted) {
            let notice = |kind, tweet| Notice { order: post.id, kind, actor: post.user, tweet };
            match post.kind {
                Kind::Retweet(of) if is_own(of) => notices.push(notice(NoticeKind::Retweet, self.posts[of].id)),
                Kind::Reply(to) if is_own(to) => notices.push(notice(NoticeKind::Reply, post.id)),
                _ => {}
            }
            let is_named = post.is_tweet() && post.names.contains(&user);
            notices.extend(is_named.then(|| notice(NoticeKind::Mention, post.id)));
        }
        notices.retain(|notice| notice.actor != user && !self.deleted.contains(&user));
        notices.sort_by_key(|notice| (Reverse(notice.order), notice.kind, notice.actor, notice.tweet));
        notices
    }

    /// What trends: all of it, in both windows.
    fn trends(&self) -> Vec<ViewRow> {
        let mut likes: BTreeMap<i64, u64> = BTreeMap::new();
        for (_, post) in self.likes.keys().filter(|(_, post)| !self.posts[*post].deleted) {
            *likes.entry(self.posts[*post].id).or_default() += 1;
        }
        let mut rows: Vec<ViewRow> =
            likes.into_iter().map(|(tweet, likes)| ViewRow::TrendingTweet { tweet, likes }).collect();
        for tag in TAGS {
            let counts = |post: &&Post| {
                !post.deleted && post.tags.contains(tag) && post.is_tweet() && !self.protected.contains(&post.user)
            };
            let authors: Vec<i64> = self.posts.iter().filter(counts).map(|post| post.user).collect();
            let (uses, authors) = (authors.len() as u64, authors.into_iter().collect::<BTreeSet<_>>().len() as u64);
            let row = |window| ViewRow::TrendingTag { window, tag: tag.into(), authors, uses };
            rows.extend(TrendWindow::ALL.into_iter().filter(|_| uses > 0).map(row));
        }
        rows
    }

    pub fn parameters(&self, layout: &Layout, following_max: usize) -> Parameters {
        let (home_max, home_keep) = (layout.home_max, layout.home_keep);
        Parameters { home_max, home_keep, following_max, ..Parameters::default() }
    }

    pub fn is_followed(&self, follower: i64, following: i64) -> bool {
        self.follows.get(&(follower, following)).is_some_and(|(accepted, _)| *accepted)
    }

    pub fn blocked(&self, one: i64, other: i64) -> bool {
        self.blocks.contains(&(one, other)) || self.blocks.contains(&(other, one))
    }

    /// Entries of `user` that may enter home timelines.
    fn entries(&self, user: i64) -> impl Iterator<Item = &Post> {
        let is_entry = |post: &&Post| self.tweet_of(post).is_some() && !matches!(post.kind, Kind::Reply(_));
        self.posts.iter().filter(move |post| post.user == user).filter(is_entry)
    }

    /// Fills a home store as the dataflows would; returns the time at which it is then.
    pub fn apply_home(&self, home: &dyn HomeSink, layout: &Layout, parameters: &Parameters) -> Time {
        let time = (START_MS + layout.horizon_ms) as Time + parameters.fanout_ms();
        let mut closed = HomeClosed { floor: layout.floor, ..HomeClosed::empty(position(time), ALL) };
        for &viewer in layout.active.iter().filter(|viewer| !self.deleted.contains(viewer)) {
            closed.records.push((HomeRecordChange::Active { viewer }, 1));
            let audience = |author: &i64| {
                self.is_followed(viewer, *author)
                    && !self.mutes.contains(&(viewer, *author))
                    && !self.blocked(viewer, *author)
            };
            let authors: Vec<i64> = (1..=self.users).filter(audience).collect();
            let (hot, pushed): (Vec<i64>, Vec<i64>) = authors.iter().partition(|author| layout.hot.contains(author));
            closed.records.extend(hot.iter().map(|&author| (HomeRecordChange::Hot { viewer, author }, 1)));
            for post in pushed.into_iter().chain([viewer]).flat_map(|author| self.entries(author)) {
                if post.id > parameters.horizon(time) {
                    let entry = PackedEntry::new(World::entry(post)).unwrap();
                    closed.deliveries[usize::from(shard_of(viewer))].push(Delivery { viewer, entry, diff: 1 });
                }
            }
        }
        closed.records.sort();
        home.apply(&mut closed).unwrap();
        time
    }

    pub fn may_read(&self, viewer: Option<i64>, user: i64) -> bool {
        let reader =
            |viewer| !self.blocked(viewer, user) && (!self.protected.contains(&user) || self.is_followed(viewer, user));
        !self.deleted.contains(&user)
            && match viewer {
                Some(viewer) => viewer == user || reader(viewer),
                None => !self.protected.contains(&user),
            }
    }

    fn line(&self, post: &Post) -> Option<Line> {
        let tweet = self.tweet_of(post)?;
        let retweeter = matches!(post.kind, Kind::Retweet(_)).then_some(post.user);
        Some((World::entry(post), tweet.id, tweet.user, retweeter))
    }

    /// Accounts of a list of `user` with since when, newest first: those that `user` follows, or who follows.
    pub fn edges(&self, user: i64, followers: bool) -> Vec<(i64, i64)> {
        let of = |(&(one, other), &(accepted, at)): (&(i64, i64), &(bool, i64))| match followers {
            false if accepted && one == user => Some((at, other)),
            true if accepted && other == user => Some((at, one)),
            _ => None,
        };
        let mut edges: Vec<_> = self.follows.iter().filter_map(of).collect();
        edges.sort_by(|one, other| other.cmp(one));
        edges
    }

    /// What the viewer's home timeline serves.
    pub fn home(&self, viewer: i64, following_max: usize) -> Vec<Line> {
        once(self.home_lines(viewer, following_max))
    }

    /// What is new in it to who knows some entries: those with an id above one.
    pub fn news(&self, viewer: i64, following_max: usize, above: i64, known: &[EntryId]) -> Vec<Line> {
        let mut lines = self.home_lines(viewer, following_max);
        lines.retain(|(entry, ..)| entry.id > above && !known.contains(entry));
        once(lines)
    }

    /// What the viewer may be shown, newest first.
    fn home_lines(&self, viewer: i64, following_max: usize) -> Vec<Line> {
        let followed = self.edges(viewer, false);
        let accounts = followed.iter().take(following_max).map(|(_, account)| *account).chain([viewer]);
        let mut lines: Vec<Line> =
            accounts.flat_map(|account| self.entries(account)).filter_map(|post| self.line(post)).collect();
        lines.sort_by_key(|line| Reverse(line.0));
        let hides =
            |user: i64| !self.may_read(Some(viewer), user) || (user != viewer && self.mutes.contains(&(viewer, user)));
        lines.retain(|(_, _, author, retweeter)| !hides(*author) && !retweeter.is_some_and(hides));
        lines
    }

    /// What a user's timeline serves, `None` when it may not be read.
    pub fn timeline(&self, viewer: Option<i64>, user: i64, replies: bool) -> Option<Vec<Line>> {
        let of_user = self.posts.iter().filter(|post| post.user == user);
        let wanted = of_user.filter(|post| replies || !matches!(post.kind, Kind::Reply(_)));
        let mut lines: Vec<Line> = wanted.filter_map(|post| self.line(post)).collect();
        lines.retain(|(_, _, author, _)| self.may_read(viewer, *author));
        let retweets: BTreeSet<i64> =
            lines.iter().filter(|(.., retweeter)| retweeter.is_some()).map(|(_, tweet, ..)| *tweet).collect();
        lines.retain(|(_, tweet, _, retweeter)| retweeter.is_some() || !retweets.contains(tweet));
        lines.sort_by_key(|line| Reverse(line.0));
        self.may_read(viewer, user).then_some(lines)
    }
}

/// Each tweet as its newest entry, as far as a cursor remembers.
fn once(mut lines: Vec<Line>) -> Vec<Line> {
    let mut shown: Vec<i64> = Vec::new();
    lines.retain(|(_, tweet, ..)| {
        let is_new = !shown[shown.len().saturating_sub(SHOWN_MAX)..].contains(tweet);
        shown.extend(is_new.then_some(*tweet));
        is_new
    });
    lines
}

/// A user's choice, of which the world then makes sense.
#[derive(Clone, Debug)]
struct Draft {
    user: i64,
    kind: u8,
    target: prop::sample::Index,
    deleted: bool,
    shares_id: bool,
    tags: u8,
    named: Option<i64>,
}

fn pairs(users: i64, max: usize) -> impl Strategy<Value = BTreeSet<(i64, i64)>> {
    let pair = (1..=users, 1..=users);
    prop::collection::btree_set(pair, 0..=max).prop_map(|pairs| pairs.into_iter().filter(|(a, b)| a != b).collect())
}

/// Any world of up to seven users and sixty posts.
pub fn worlds() -> impl Strategy<Value = World> {
    (2..=7_i64).prop_flat_map(|users| {
        let draft = (1..=users, 0..12_u8, any::<prop::sample::Index>(), prop::bool::weighted(0.1), any::<bool>());
        let words = (0..8_u8, prop::option::weighted(0.2, 1..=users));
        let draft = (draft, words).prop_map(|((user, kind, target, deleted, shares_id), (tags, named))| Draft {
            user,
            kind,
            target,
            deleted,
            shares_id,
            tags,
            named,
        });
        let likes = prop::collection::vec((1..=users, any::<prop::sample::Index>(), 0..60_i64), 0..30);
        let marks = prop::collection::btree_map(1..=users, 0..60_i64, 0..3);
        let follows =
            prop::collection::btree_map((1..=users, 1..=users), (prop::bool::weighted(0.85), 0..9_i64), 0..40);
        (
            follows,
            pairs(users, 2),
            pairs(users, 4),
            prop::collection::btree_set(1..=users, 0..3),
            prop::collection::btree_set(1..=users, 0..2),
            (prop::collection::vec(draft, 0..60), likes, marks),
        )
            .prop_map(move |(follows, blocks, mutes, protected, deleted, (drafts, likes, marks))| {
                let mut world = World { users, follows, blocks, mutes, protected, deleted, ..World::default() };
                world.follows.retain(|(one, other), _| one != other);
                drafts.iter().for_each(|draft| world.post(draft));
                world.like(&likes);
                world.marks = marks.into_iter().map(|(user, at)| (user, id_at(START_MS + at * STEP_MS, 0))).collect();
                world.settle();
                world
            })
    })
}

impl World {
    fn post(&mut self, draft: &Draft) {
        let tweets: Vec<usize> =
            (0..self.posts.len()).filter(|index| !matches!(self.posts[*index].kind, Kind::Retweet(_))).collect();
        let kind = match (draft.kind, tweets.is_empty()) {
            (0..5, _) | (_, true) => Kind::Tweet,
            (5..8, _) => Kind::Reply(tweets[draft.target.index(tweets.len())]),
            _ => Kind::Retweet(tweets[draft.target.index(tweets.len())]),
        };
        // A user retweets a tweet once.
        let is_retweeted = |post: &Post| !post.is_tweet() && post.user == draft.user && post.kind == kind;
        let kind = if self.posts.iter().any(is_retweeted) { Kind::Tweet } else { kind };
        let next = id_at(START_MS + self.posts.len() as i64 * STEP_MS, 0);
        let previous = self.posts.last().filter(|post| !matches!(post.kind, Kind::Retweet(_)));
        let shared = previous.map(|post| post.id).filter(|_| draft.shares_id && matches!(kind, Kind::Retweet(_)));
        let deleted = draft.deleted && !matches!(kind, Kind::Retweet(_));
        let is_tweet = !matches!(kind, Kind::Retweet(_));
        let tags = TAGS.into_iter().enumerate().filter(|(index, _)| is_tweet && draft.tags == *index as u8);
        let tags = tags.map(|(_, tag)| tag).collect();
        let names = draft.named.into_iter().filter(|_| is_tweet).collect();
        self.posts.push(Post { id: shared.unwrap_or(next), user: draft.user, kind, deleted, tags, names });
    }

    fn like(&mut self, likes: &[(i64, prop::sample::Index, i64)]) {
        let tweets: Vec<usize> = (0..self.posts.len()).filter(|index| self.posts[*index].is_tweet()).collect();
        for (user, tweet, at) in likes.iter().filter(|_| !tweets.is_empty()) {
            // Some at one time.
            let at = (START_MS + (at / 2) * STEP_MS) * 1_000 + 7;
            self.likes.insert((*user, tweets[tweet.index(tweets.len())]), at);
        }
    }

    /// What a deleted user leaves: a fact, and deleted tweets.
    fn settle(&mut self) {
        let gone = self.deleted.clone();
        let stays = |(one, other): &(i64, i64)| !gone.contains(one) && !gone.contains(other);
        self.follows.retain(|pair, _| stays(pair));
        self.blocks.retain(stays);
        self.mutes.retain(stays);
        self.likes.retain(|(user, _), _| !gone.contains(user));
        let unblocked = |one: i64, other: i64, blocks: &BTreeSet<(i64, i64)>| {
            !blocks.contains(&(one, other)) && !blocks.contains(&(other, one))
        };
        self.follows.retain(|(one, other), _| unblocked(*one, *other, &self.blocks));
        self.posts.iter_mut().filter(|post| gone.contains(&post.user)).for_each(|post| post.deleted = true);
    }
}

/// Any way to keep the home timelines of a world. Floors lie at posts and right before them.
pub fn layouts() -> impl Strategy<Value = Layout> {
    let users = || prop::collection::btree_set(1..=7_i64, 0..=7);
    let floor = prop::option::of((0..70_i64, 0..2_i64));
    (users(), users(), floor, (-10..40_i64, 0..2_i64), (1..40_usize, 1..40_usize)).prop_map(
        |(hot, inactive, floor, (horizon, early), (one, other))| Layout {
            hot,
            active: (1..=7).filter(|user| !inactive.contains(user) || *user % 2 == 0).collect(),
            floor: floor.map(|(post, before)| id_at(START_MS + post * STEP_MS, 0) - before),
            horizon_ms: horizon * STEP_MS - early,
            home_max: one.max(other),
            home_keep: one.min(other),
        },
    )
}
