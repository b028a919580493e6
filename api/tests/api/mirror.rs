//! Views without stores or dataflows: the relations, copied from PostgreSQL whole, and answered from by going through
//! all of it.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::{SystemTime, UNIX_EPOCH};

use async_trait::async_trait;
use feedmill_model::{Applied, EntryId, Lsn, Notice, Phase, Position, Retweet, TrendWindow, Tweet, User};
use feedmill_sinks::{
    CountedTweet, Edge, HomeRecord, List, Profile, Progress, ReadError, Rebuilding, Relationship, Reply, TimelineItem,
    TrendingTag, TrendingTweet, Views,
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
    likes: Vec<i64>,
    /// (follower, followed) → accepted, since
    follows: BTreeMap<(i64, i64), (bool, i64)>,
    blocks: BTreeSet<(i64, i64)>,
    mutes: BTreeSet<(i64, i64)>,
}

/// The views.
pub struct Mirror {
    relations: RwLock<Relations>,
    progress: Progress,
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
            progress: Progress::new([Position { time: now_ms() - 10, lsn: Lsn(0) }; 4]),
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
        let lsn: PgLsn = client.query_one("SELECT pg_current_wal_flush_lsn()", &[]).await.unwrap().get(0);
        *self.relations.write() = copy(client).await;
        let time = now_ms().max(self.progress.position(Phase::Facts).time + 1);
        self.progress.covers(Position { time, lsn: Lsn(lsn.into()) });
        self.progress.applied(Applied { facts: time + 1, rows: time + 1, home: time + 1, search: time + 1 });
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
    all.likes.extend(rows("SELECT tweet_id FROM likes").await.iter().map(|row| row.get::<_, i64>(0)));
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
        let mut edges: Vec<Edge> = self
            .follows
            .iter()
            .filter_map(|((follower, following), (accepted, at))| {
                Some(Edge { at: *at, id: pick(*follower, *following, *accepted)? })
            })
            .filter(|edge| after.is_none_or(|after| *edge < after))
            .collect();
        edges.sort_by(|one, other| other.cmp(one));
        edges.truncate(limit);
        edges
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

    async fn profiles(&self, ids: &[i64]) -> Result<Vec<Option<Profile>>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        let count = |holds: &dyn Fn(&(i64, i64)) -> bool| {
            all.follows.iter().filter(|(pair, (accepted, _))| *accepted && holds(pair)).count() as i64
        };
        let profile = |id: &i64| {
            all.is_there(*id).then(|| Profile {
                user: all.users[id].clone(),
                followers: count(&|(_, following)| following == id),
                following: count(&|(follower, _)| follower == id),
                tweets: all.tweets.values().filter(|t| t.user_id == *id && t.deleted_at.is_none()).count() as i64,
            })
        };
        Ok(ids.iter().map(profile).collect())
    }

    async fn edges(&self, list: List, of: i64, after: Option<Edge>, limit: usize) -> Result<Vec<Edge>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        let is_listed = |follower: i64, following: i64, accepted: bool| match list {
            List::Followers => (accepted && following == of).then_some(follower),
            List::Following => (accepted && follower == of).then_some(following),
            List::FollowRequests => (!accepted && following == of).then_some(follower),
            List::Likers => None,
        };
        Ok(all.edges(is_listed, after, limit))
    }

    // No route reads what follows.

    async fn retweeters(&self, _: i64, _: Option<i64>, _: usize) -> Result<Vec<(i64, i64)>, ReadError> {
        Ok(Vec::new())
    }

    async fn liked(&self, _: i64, tweets: &[i64]) -> Result<Vec<bool>, ReadError> {
        Ok(vec![false; tweets.len()])
    }

    async fn retweeted(&self, _: i64, tweets: &[i64]) -> Result<Vec<Option<i64>>, ReadError> {
        Ok(vec![None; tweets.len()])
    }

    async fn tagged(&self, _: &str, _: Option<i64>, _: usize) -> Result<Vec<i64>, ReadError> {
        Ok(Vec::new())
    }

    async fn trending_tags(&self, _: TrendWindow) -> Result<Vec<TrendingTag>, ReadError> {
        Ok(Vec::new())
    }

    async fn trending_tweets(&self) -> Result<Vec<TrendingTweet>, ReadError> {
        Ok(Vec::new())
    }

    async fn replies(&self, _: i64, _: &[i64], _: Option<&[i64]>, _: usize) -> Result<Vec<Reply>, ReadError> {
        Ok(Vec::new())
    }

    async fn reply_paths(&self, _: i64, replies: &[i64]) -> Result<Vec<Option<Vec<i64>>>, ReadError> {
        Ok(vec![None; replies.len()])
    }

    async fn blocks(&self, _: i64, _: Option<i64>, _: usize) -> Result<Vec<i64>, ReadError> {
        Ok(Vec::new())
    }

    async fn mutes(&self, _: i64, _: Option<i64>, _: usize) -> Result<Vec<i64>, ReadError> {
        Ok(Vec::new())
    }

    async fn notifications(&self, _: i64, _: Option<&Notice>, _: usize) -> Result<Vec<Notice>, ReadError> {
        Ok(Vec::new())
    }

    async fn read_mark(&self, _: i64) -> Result<Option<i64>, ReadError> {
        Ok(None)
    }

    async fn tweets(&self, ids: &[i64]) -> Result<Vec<Option<CountedTweet>>, ReadError> {
        self.feel()?;
        let all = self.relations.read();
        let counted = |id: &i64| {
            all.living_tweet(*id).map(|tweet| CountedTweet {
                tweet: tweet.clone(),
                likes: all.likes.iter().filter(|liked| *liked == id).count() as i64,
                retweets: all.retweets.iter().filter(|retweet| retweet.tweet_id == *id).count() as i64,
                replies: all.tweets.values().filter(|t| t.reply_to_id == Some(*id) && t.deleted_at.is_none()).count()
                    as i64,
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

    fn progress(&self) -> &Progress {
        &self.progress
    }
}
