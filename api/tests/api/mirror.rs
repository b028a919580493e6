//! Views without stores or dataflows: the relations, copied from PostgreSQL whole, and answered from by going through
//! all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use feedmill_model::{Applied, EntryId, Lsn, Notice, Phase, Position, Retweet, Time, TrendWindow, Tweet, User, text};
use feedmill_sinks::search::{AccountQuery, Hit, Query, Search, What, fold, terms};
use feedmill_sinks::{
    Changes, CountedTweet, Edge, HomeHead, HomeRecord, List, Profile, Progress, ReadError, Rebuilding, Relationship,
    Reply, TimelineItem, TrendingTag, TrendingTweet, Views,
};
use parking_lot::RwLock;
use tokio_postgres::Client;
use tokio_postgres::types::PgLsn;

/// How the mirror answers.
#[derive(Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Mood {
    Well,
    /// Every read fails.
    Broken,
    /// Every read has a defect.
    Defective,
    /// Every read needs rows that are being built again.
    Rebuilding,
}

#[derive(Default)]
struct Relations {
    users: BTreeMap<i64, User>,
    tweets: BTreeMap<i64, Tweet>,
    retweets: Vec<Retweet>,
    /// (user, tweet) → since
    likes: BTreeMap<(i64, i64), i64>,
    /// (follower, followed) → accepted, since
    follows: BTreeMap<(i64, i64), (bool, i64)>,
    blocks: BTreeSet<(i64, i64)>,
    mutes: BTreeSet<(i64, i64)>,
}

/// The views.
pub struct Mirror {
    relations: RwLock<Relations>,
    progress: Progress,
    changes: Changes,
    mood: AtomicU8,
}

fn now_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).unwrap().as_millis().try_into().unwrap()
}

impl Mirror {
    /// Nothing yet.
    pub fn new() -> Self {
        Mirror {
            relations: RwLock::default(),
            progress: Progress::new([Position { time: now_ms() - 10, lsn: Lsn(0) }; 5]),
            changes: Changes::default(),
            mood: AtomicU8::new(Mood::Well as u8),
        }
    }

    pub fn set_mood(&self, mood: Mood) {
        self.mood.store(mood as u8, Ordering::SeqCst);
    }

    fn feel(&self) -> Result<(), ReadError> {
        let mood = self.mood.load(Ordering::SeqCst);
        assert!(mood != Mood::Defective as u8, "a defect");
        if mood == Mood::Broken as u8 {
            return Err(ReadError { store: "mirror", what: "anything", source: "the disk is gone".into() });
        }
        if mood == Mood::Rebuilding as u8 {
            let source = Box::new(Rebuilding(Phase::Rows));
            return Err(ReadError { store: "mirror", what: "anything", source });
        }
        Ok(())
    }

    /// Copies what is committed now.
    pub async fn catch_up(&self, client: &Client) {
        let time = self.copy(client).await;
        self.progress.applied(Applied::at(time + 1));
    }

    /// The same, but what likes bring is late.
    pub async fn catch_up_but_for_likes(&self, client: &Client) {
        let time = self.copy(client).await;
        self.progress.applied(Applied { reactions: 0, ..Applied::at(time + 1) });
    }

    /// Copies what is committed now, and gives its time.
    async fn copy(&self, client: &Client) -> Time {
        let lsn: PgLsn = client.query_one("SELECT pg_current_wal_flush_lsn()", &[]).await.unwrap().get(0);
        *self.relations.write() = copy(client).await;
        self.changes.tell_anything();
        let time = now_ms().max(self.progress.position(Phase::Facts).time + 1);
        self.progress.covers(Position { time, lsn: Lsn(lsn.into()) });
        time
    }
}

async fn copy(client: &Client) -> Relations {
    let rows = async |sql: &str| client.query(sql, &[]).await.unwrap();
    let mut all = Relations::default();
    for row in rows(
        "SELECT id, username, display_name, bio, avatar_url, verified, protected, feedmill_micros(created_at),
                feedmill_micros(deleted_at) FROM users",
    )
    .await
    {
        let user = User {
            id: row.get(0),
            username: row.get(1),
            display_name: row.get(2),
            bio: row.get(3),
            avatar_url: row.get(4),
            verified: row.get(5),
            protected: row.get(6),
            created_at: row.get(7),
            updated_at: 0,
            deleted_at: row.get(8),
        };
        all.users.insert(user.id, user);
    }
    for row in rows(
        "SELECT id, user_id, content, reply_to_id, conversation_id, feedmill_micros(created_at),
                feedmill_micros(deleted_at) FROM tweets",
    )
    .await
    {
        let tweet = Tweet {
            id: row.get(0),
            user_id: row.get(1),
            content: row.get(2),
            reply_to_id: row.get(3),
            conversation_id: row.get(4),
            created_at: row.get(5),
            deleted_at: row.get(6),
            ..Tweet::default()
        };
        all.tweets.insert(tweet.id, tweet);
    }
    for row in rows("SELECT id, user_id, tweet_id, feedmill_micros(created_at) FROM retweets").await {
        let (id, user_id, tweet_id, created_at) = (row.get(0), row.get(1), row.get(2), row.get(3));
        all.retweets.push(Retweet { id, user_id, tweet_id, created_at });
    }
    for row in rows("SELECT user_id, tweet_id, feedmill_micros(created_at) FROM likes").await {
        all.likes.insert((row.get(0), row.get(1)), row.get(2));
    }
    for row in rows("SELECT follower_id, following_id, accepted, feedmill_micros(created_at) FROM follows").await {
        all.follows.insert((row.get(0), row.get(1)), (row.get(2), row.get(3)));
    }
    all.blocks.extend(rows("SELECT * FROM blocks").await.iter().map(|row| (row.get(0), row.get(1))));
    all.mutes.extend(rows("SELECT * FROM mutes").await.iter().map(|row| (row.get(0), row.get(1))));
    all
}

impl Relations {
    fn is_there(&self, user: i64) -> bool {
        self.users.get(&user).is_some_and(|user| user.deleted_at.is_none())
    }

    fn living_tweet(&self, id: i64) -> Option<&Tweet> {
        self.tweets.get(&id).filter(|tweet| tweet.deleted_at.is_none())
    }

    fn edges(&self, pick: impl Fn(i64, i64, bool) -> Option<i64>, after: Option<Edge>, limit: usize) -> Vec<Edge> {
        let edges = self.follows.iter().filter_map(|((follower, following), (accepted, at))| {
            Some(Edge { at: *at, id: pick(*follower, *following, *accepted)? })
        });
        newest_edges(edges, after, limit)
    }

    /// Ids of the tweets that are there and of which something holds.
    fn newest(&self, before: Option<i64>, limit: usize, holds: impl Fn(&Tweet) -> bool) -> Vec<i64> {
        let older = self.tweets.values().rev().filter(|tweet| before.is_none_or(|before| tweet.id < before));
        let found = older.filter(|tweet| tweet.deleted_at.is_none() && holds(tweet));
        found.map(|tweet| tweet.id).take(limit).collect()
    }

    /// All replies of a thread, depth first.
    fn thread(&self, root: i64) -> Vec<Reply> {
        let path_of = |tweet: &Tweet| {
            let mut path = vec![tweet.id];
            let mut parent = tweet.reply_to_id?;
            while parent != root {
                path.insert(0, parent);
                parent = self.tweets.get(&parent)?.reply_to_id?;
            }
            Some(path)
        };
        let reply =
            |tweet: &Tweet| Some(Reply { path: path_of(tweet)?, parent: tweet.reply_to_id?, user: tweet.user_id });
        let mut replies: Vec<Reply> = self.tweets.values().filter_map(reply).collect();
        replies.sort_by(|one, other| one.path.cmp(&other.path));
        replies
    }
}

fn newest_edges(edges: impl Iterator<Item = Edge>, after: Option<Edge>, limit: usize) -> Vec<Edge> {
    let mut edges: Vec<Edge> = edges.filter(|edge| after.is_none_or(|after| *edge < after)).collect();
    edges.sort_by(|one, other| other.cmp(one));
    edges.truncate(limit);
    edges
}

/// The second of the pairs that have this first, after one.
fn seconds(pairs: &BTreeSet<(i64, i64)>, first: i64, after: Option<i64>, limit: usize) -> Vec<i64> {
    let of = pairs.iter().filter(|(one, other)| *one == first && after.is_none_or(|after| *other > after));
    of.map(|(_, other)| *other).take(limit).collect()
}

/// Words are found, and of all else that can be asked for nothing is looked at.
#[async_trait]
impl Search for Mirror {
    async fn latest(&self, query: &Query, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        self.feel()?;
        let fits = |tweet: &Tweet| {
            let found = terms(&tweet.content);
            query.clauses.iter().all(|clause| match &clause.what {
                What::Words(words) => words.iter().all(|word| found.contains(word)) != clause.excluded,
                _ => true,
            })
        };
        Ok(self.relations.read().newest(before, limit, fits))
    }

    async fn relevant(&self, query: &Query, limit: usize) -> Result<Vec<Hit>, ReadError> {
        Ok(self.latest(query, None, limit).await?.into_iter().map(|id| Hit { id, score: 1.0 }).collect())
    }

    async fn accounts(&self, query: &AccountQuery, limit: usize) -> Result<Vec<Hit>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        let fits = |user: &&User| fold(&user.username).starts_with(&query.username) && user.deleted_at.is_none();
        Ok(all.users.values().filter(fits).map(|user| Hit { id: user.id, score: 1.0 }).take(limit).collect())
    }

    fn time(&self) -> Time {
        self.progress.position(Phase::Search).time
    }

    async fn reached(&self, time: Time, _: Duration) -> bool {
        Search::time(self) >= time
    }
}

#[async_trait]
impl Views for Mirror {
    async fn user_by_name(&self, name: &str) -> Result<Option<i64>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        let named = |user: &&User| user.deleted_at.is_none() && user.username.eq_ignore_ascii_case(name);
        Ok(all.users.values().find(named).map(|user| user.id))
    }

    async fn profiles(&self, ids: &[i64]) -> Result<Vec<Option<Arc<Profile>>>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        let count = |holds: &dyn Fn(&(i64, i64)) -> bool| {
            all.follows.iter().filter(|(pair, (accepted, _))| *accepted && holds(pair)).count() as i64
        };
        let profile = |id: &i64| {
            all.is_there(*id).then(|| {
                Arc::new(Profile {
                    user: all.users[id].clone(),
                    followers: count(&|(_, following)| following == id),
                    following: count(&|(follower, _)| follower == id),
                    tweets: all.tweets.values().filter(|t| t.user_id == *id && t.deleted_at.is_none()).count() as i64,
                })
            })
        };
        Ok(ids.iter().map(profile).collect())
    }

    async fn edges(&self, list: List, of: i64, after: Option<Edge>, limit: usize) -> Result<Vec<Edge>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        if list == List::Likers {
            let likes = all.likes.iter().filter(|((_, tweet), _)| *tweet == of);
            return Ok(newest_edges(likes.map(|((id, _), at)| Edge { at: *at, id: *id }), after, limit));
        }
        let is_listed = |follower: i64, following: i64, accepted: bool| match list {
            List::Followers => (accepted && following == of).then_some(follower),
            List::Following => (accepted && follower == of).then_some(following),
            List::FollowRequests => (!accepted && following == of).then_some(follower),
            List::Likers => None,
        };
        Ok(all.edges(is_listed, after, limit))
    }

    async fn retweeters(&self, tweet: i64, before: Option<i64>, limit: usize) -> Result<Vec<(i64, i64)>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        let of = all.retweets.iter().filter(|r| r.tweet_id == tweet && before.is_none_or(|before| r.id < before));
        let mut found: Vec<(i64, i64)> = of.map(|retweet| (retweet.id, retweet.user_id)).collect();
        found.sort_unstable_by(|one, other| other.cmp(one));
        found.truncate(limit);
        Ok(found)
    }

    async fn liked(&self, user: i64, tweets: &[i64]) -> Result<Vec<bool>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        Ok(tweets.iter().map(|tweet| all.likes.contains_key(&(user, *tweet))).collect())
    }

    async fn retweeted(&self, user: i64, tweets: &[i64]) -> Result<Vec<Option<i64>>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        let by = |tweet: &i64| all.retweets.iter().find(|r| r.user_id == user && r.tweet_id == *tweet).map(|r| r.id);
        Ok(tweets.iter().map(by).collect())
    }

    async fn tagged(&self, tag: &str, before: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        Ok(all.newest(before, limit, |tweet| text::hashtags(&tweet.content).contains(tag)))
    }

    async fn replies(
        &self,
        root: i64,
        under: &[i64],
        after: Option<&[i64]>,
        limit: usize,
    ) -> Result<Vec<Reply>, ReadError> {
        self.feel()?;
        let mut replies = self.relations.read().thread(root);
        replies.retain(|reply| {
            let below = reply.path.len() > under.len() && reply.path.starts_with(under);
            below && after.is_none_or(|after| reply.path.as_slice() > after)
        });
        replies.truncate(limit);
        Ok(replies)
    }

    async fn replies_of(&self, root: i64, ids: &[i64]) -> Result<Vec<Option<Reply>>, ReadError> {
        self.feel()?;
        let replies = self.relations.read().thread(root);
        Ok(ids.iter().map(|id| replies.iter().find(|reply| reply.path.last() == Some(id)).cloned()).collect())
    }

    async fn blocks(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        self.feel()?;
        Ok(seconds(&self.relations.read().blocks, user, after, limit))
    }

    async fn mutes(&self, user: i64, after: Option<i64>, limit: usize) -> Result<Vec<i64>, ReadError> {
        self.feel()?;
        Ok(seconds(&self.relations.read().mutes, user, after, limit))
    }

    // What follows is derived from more than relations. Nothing trends here, and nobody is notified.

    async fn trending_tags(&self, _: TrendWindow) -> Result<Vec<TrendingTag>, ReadError> {
        self.feel()?;
        Ok(Vec::new())
    }

    async fn trending_tweets(&self) -> Result<Vec<TrendingTweet>, ReadError> {
        self.feel()?;
        Ok(Vec::new())
    }

    async fn notifications(&self, _: i64, _: Option<&Notice>, _: usize) -> Result<Vec<Notice>, ReadError> {
        self.feel()?;
        Ok(Vec::new())
    }

    async fn read_mark(&self, _: i64) -> Result<Option<i64>, ReadError> {
        self.feel()?;
        Ok(None)
    }

    async fn tweets(&self, ids: &[i64]) -> Result<Vec<Option<Arc<CountedTweet>>>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        let counted = |id: &i64| {
            all.living_tweet(*id).map(|tweet| {
                Arc::new(CountedTweet {
                    tweet: tweet.clone(),
                    likes: all.likes.keys().filter(|(_, liked)| liked == id).count() as i64,
                    retweets: all.retweets.iter().filter(|retweet| retweet.tweet_id == *id).count() as i64,
                    replies: all
                        .tweets
                        .values()
                        .filter(|t| t.reply_to_id == Some(*id) && t.deleted_at.is_none())
                        .count() as i64,
                })
            })
        };
        Ok(ids.iter().map(counted).collect())
    }

    async fn retweets(&self, ids: &[i64]) -> Result<Vec<Option<(i64, i64)>>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        let living = |id: &i64| all.retweets.iter().find(|r| r.id == *id && all.living_tweet(r.tweet_id).is_some());
        Ok(ids.iter().map(|id| living(id).map(|retweet| (retweet.user_id, retweet.tweet_id))).collect())
    }

    async fn user_timeline(
        &self,
        user: i64,
        replies: bool,
        before: Option<EntryId>,
        limit: usize,
    ) -> Result<Vec<TimelineItem>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        let own = all.tweets.values().filter(|tweet| tweet.user_id == user && tweet.deleted_at.is_none());
        let own = own.filter(|tweet| tweet.reply_to_id.is_some() == replies);
        let own = own.map(|tweet| TimelineItem { entry: EntryId::tweet(tweet.id), tweet: tweet.id });
        let retweets = all.retweets.iter().filter(|r| !replies && r.user_id == user);
        let retweets = retweets.filter(|retweet| all.living_tweet(retweet.tweet_id).is_some());
        let retweets = retweets.map(|r| TimelineItem { entry: EntryId::retweet(r.id), tweet: r.tweet_id });
        let mut items: Vec<_> = own.chain(retweets).filter(|i| before.is_none_or(|before| i.entry < before)).collect();
        items.sort_by_key(|item| std::cmp::Reverse(item.entry));
        items.truncate(limit);
        Ok(items)
    }

    /// Nobody has a record, so every home timeline is merged.
    async fn home(&self, _viewer: i64) -> Result<Option<HomeRecord>, ReadError> {
        self.feel()?;
        Ok(None)
    }

    async fn heads(&self, viewers: &[i64], _: &[i64]) -> Result<Vec<Option<HomeHead>>, ReadError> {
        self.feel()?;
        Ok(vec![None; viewers.len()])
    }

    async fn relationships(&self, viewer: Option<i64>, users: &[i64]) -> Result<Vec<Relationship>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        let follows =
            |one: Option<i64>, other: Option<i64>| all.follows.get(&(one?, other?)).map(|(accepted, _)| *accepted);
        let relationship = |user: &i64| Relationship {
            following: follows(viewer, Some(*user)),
            followed_by: follows(Some(*user), viewer),
            blocks: viewer.is_some_and(|viewer| all.blocks.contains(&(viewer, *user))),
            blocked_by: viewer.is_some_and(|viewer| all.blocks.contains(&(*user, viewer))),
            mutes: viewer.is_some_and(|viewer| all.mutes.contains(&(viewer, *user))),
            protected: all.users.get(user).is_some_and(|user| user.protected && user.deleted_at.is_none()),
            deleted: all.users.get(user).is_some_and(|user| user.deleted_at.is_some()),
        };
        Ok(users.iter().map(relationship).collect())
    }

    async fn deleted_tweets(&self, ids: &[i64]) -> Result<Vec<bool>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        Ok(ids.iter().map(|id| all.tweets.get(id).is_some_and(|tweet| tweet.deleted_at.is_some())).collect())
    }

    fn changes(&self) -> &Changes {
        &self.changes
    }

    fn progress(&self) -> &Progress {
        &self.progress
    }
}
