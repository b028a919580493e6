//! Histories of the source: what users do, as batches of changes, and the state after each.

use std::collections::BTreeMap;

use feedmill_model::{
    Activity, Batch, Block, Change, Follow, Key, Like, Lsn, Mute, Parameters, Popular, Position, ReadMark, Relation,
    Retweet, Row, Time, Tweet, User, floor_of, id_at,
};

use super::actions::{Action, Age, At, Jump, Step};

/// All rows of the source.
pub type World = BTreeMap<Key, Row>;

/// Ids of the users: small, large, negative.
pub const USERS: [i64; 7] = [1, 2, 3, 86_399, 5_000_000_007, -4, 9 << 50];

/// What stands in tweets beside the tags and names of all.
const TEXTS: [&str; 9] = [
    "",
    "#Straße,#STRASSE #ΟΔΌΣ #οδός",
    "#café #cafe\u{301} #CAFE\u{301}",
    "http://a.b/#c @d. (https://e.f/@user1#g), http://.#h",
    "a#b 1#c &#x27; ##d #1 #2024 #9lives #_ @#e a@user2",
    "#日本語 ＃ПРИВЕТ ＠User3, #한국어#हिन्दी",
    "@user4@user5 @@user6 #a-b #c/#d HTTPS://x.y?#z",
    "xhttp://http://a.b/#c <http://d.e>#f @user0's",
    "@long_long_long_long_long_long_1 @long_long_long_long_long_long_12 #\u{301}",
];

/// Short windows, so that histories cross them.
pub fn parameters() -> Parameters {
    Parameters { fanout_days: 2, active_days: 3, ..Parameters::default() }
}

/// A batch, and the rows after it.
pub struct Moment {
    pub batch: Batch,
    pub world: World,
}

/// The batches of `steps`, the first of which brings all users, everyone active and with two follows.
pub fn play(steps: &[Step]) -> Vec<Moment> {
    let mut scene = Scene { time: 1_700_000_000_123, sequence: 0, world: World::new(), away: Vec::new() };
    for user in 0..USERS.len() {
        scene.act(&Action::Register { user, verified: false });
        scene.act(&Action::Act { user, days_ago: 0 });
        scene.act(&Action::Follow { user, other: (user + 1) % USERS.len(), accepted: true });
        scene.act(&Action::Follow { user, other: (user + 3) % USERS.len(), accepted: true });
    }
    let mut moments = vec![scene.moment(&World::new(), 0, false)];
    for (number, step) in steps.iter().enumerate() {
        scene.time = match step.jump {
            Jump::Ms(ms) => scene.time + ms,
            Jump::Minute => (scene.time / 60_000 + 1) * 60_000,
        };
        let before = scene.world.clone();
        for action in &step.actions {
            scene.act(action);
        }
        moments.push(scene.moment(&before, number as u64 + 1, step.bulk));
    }
    moments
}

/// The greatest id of an entry in `world`: the floor at which home timelines start.
pub fn greatest_entry(world: &World) -> i64 {
    let entries = world.values().filter_map(|row| match row {
        Row::Tweet(tweet) if tweet.reply_to_id.is_none() => Some(tweet.id),
        Row::Retweet(retweet) => Some(retweet.id),
        _ => None,
    });
    entries.max().unwrap_or(0)
}

/// The greatest id of a tweet or retweet that comes or goes.
fn greatest_touched(changes: &[Change]) -> i64 {
    let rows = changes.iter().flat_map(|change| [&change.old, &change.new]).flatten();
    let ids = rows.filter_map(|row| match row {
        Row::Tweet(tweet) => Some(tweet.id),
        Row::Retweet(retweet) => Some(retweet.id),
        _ => None,
    });
    ids.max().unwrap_or(0)
}

fn tweet_of(row: &Row) -> Option<Tweet> {
    match row {
        Row::Tweet(tweet) => Some(Tweet::clone(tweet)),
        _ => None,
    }
}

struct Scene {
    time: Time,
    sequence: u16,
    world: World,
    /// Tweets that went, or that did not come yet.
    away: Vec<Tweet>,
}

impl Scene {
    fn moment(&self, before: &World, number: u64, bulk: bool) -> Moment {
        let keys: std::collections::BTreeSet<_> = before.keys().chain(self.world.keys()).collect();
        let changes = keys.into_iter().filter_map(|key| {
            let change = Change { old: before.get(key).cloned(), new: self.world.get(key).cloned() };
            (change.old != change.new).then_some(change)
        });
        let position = Position { time: self.time, lsn: Lsn(1_000 + number) };
        let changes: Vec<Change> = changes.collect();
        let floor = bulk.then(|| greatest_entry(&self.world).max(greatest_touched(&changes)).max(floor_of(self.time)));
        Moment { batch: Batch { position, floor, changes, last: true }, world: self.world.clone() }
    }

    fn put(&mut self, row: Row) {
        self.world.insert(row.key(), row);
    }

    fn new_id(&mut self, age: Age) -> i64 {
        self.sequence += 1;
        match age {
            Age::Ms(ms) => id_at(self.time as i64 - ms, self.sequence),
            Age::Negative => -i64::from(self.sequence),
        }
    }

    fn pick(&self, relation: Relation, pick: usize) -> Option<Row> {
        let rows: Vec<_> = self.world.values().filter(|row| row.relation() == relation).collect();
        (!rows.is_empty()).then(|| rows[pick % rows.len()].clone())
    }

    fn drop_picked(&mut self, relation: Relation, pick: usize) {
        if let Some(row) = self.pick(relation, pick) {
            self.world.remove(&row.key());
        }
    }

    fn user(&mut self, user: usize, change: impl FnOnce(&mut User)) {
        let key = Key { relation: Relation::Users, first: USERS[user], second: 0 };
        let time = self.time;
        if let Some(Row::User(row)) = self.world.get_mut(&key) {
            change(row);
            row.updated_at = time as i64 * 1_000;
        }
    }

    fn tweet(&self, pick: usize) -> Option<Box<Tweet>> {
        self.pick(Relation::Tweets, pick).as_ref().and_then(tweet_of).map(Box::new)
    }

    fn unfollow(&mut self, follower: i64, following: i64) {
        self.world.remove(&Key { relation: Relation::Follows, first: follower, second: following });
    }

    fn act(&mut self, action: &Action) {
        let now = self.time as i64 * 1_000;
        match *action {
            Action::Register { user, verified } => {
                let id = USERS[user];
                let user = User { id, username: format!("User{user}"), verified, created_at: now, ..User::default() };
                self.put(Row::User(Box::new(user)));
            }
            Action::Rename { user, name } => self.user(user, |user| user.username = format!("Name{name}_{}", user.id)),
            Action::Verify { user, verified } => self.user(user, |user| user.verified = verified),
            Action::Protect { user, protected } => self.user(user, |user| user.protected = protected),
            Action::DeleteUser { user } => {
                self.user(user, |user| user.deleted_at = Some(now));
                let id = USERS[user];
                self.world.retain(|key, row| match row {
                    Row::Follow(_) | Row::Block(_) | Row::Mute(_) => key.first != id && key.second != id,
                    _ => true,
                });
            }
            Action::Popular { user, popular } => {
                let row = Row::Popular(Popular { user_id: USERS[user] });
                self.world.remove(&row.key());
                if popular {
                    self.put(row);
                }
            }
            Action::Follow { user, other, accepted } if user != other => self.put(Row::Follow(Follow {
                follower_id: USERS[user],
                following_id: USERS[other],
                accepted,
                created_at: now,
            })),
            Action::Unfollow { pick } => self.drop_picked(Relation::Follows, pick),
            Action::Mute { user, other } => {
                self.put(Row::Mute(Mute { muter_id: USERS[user], muted_id: USERS[other] }));
            }
            Action::Unmute { pick } => self.drop_picked(Relation::Mutes, pick),
            Action::Block { user, other } => {
                self.put(Row::Block(Block { blocker_id: USERS[user], blocked_id: USERS[other] }));
                self.unfollow(USERS[user], USERS[other]);
                if user % 2 == 0 {
                    // As the source does; the views must be right also where it did not.
                    self.unfollow(USERS[other], USERS[user]);
                }
            }
            Action::Unblock { pick } => self.drop_picked(Relation::Blocks, pick),
            Action::Post { user, age, reply_to } => {
                let parent = reply_to.and_then(|pick| self.tweet(pick));
                let id = self.new_id(age);
                let conversation_id = parent.as_ref().map_or(id, |parent| parent.conversation_id);
                let (user_id, reply_to_id) = (USERS[user], parent.map(|parent| parent.id));
                // Tags and names in several cases, and those of nobody; and what only looks like them.
                let number = self.sequence;
                let content = format!(
                    "tweet {id} #Tag{} #tag{} ＃{} @USER{} @name{}_{} {}",
                    number % 4,
                    number % 3,
                    number % 2,
                    number % 8,
                    number % 3,
                    USERS[usize::from(number) % USERS.len()],
                    TEXTS[usize::from(number) % TEXTS.len()],
                );
                let created_at = match age {
                    Age::Ms(ms) => now - ms * 1_000,
                    Age::Negative => i64::MIN,
                };
                let tweet =
                    Tweet { id, user_id, content, reply_to_id, conversation_id, created_at, ..Tweet::default() };
                self.put(Row::Tweet(Box::new(tweet)));
            }
            Action::Edit { pick } => {
                if let Some(mut tweet) = self.tweet(pick) {
                    tweet.content.push_str(" #edited");
                    self.put(Row::Tweet(tweet));
                }
            }
            Action::DeleteTweet { pick } => {
                if let Some(mut tweet) = self.tweet(pick) {
                    tweet.content.clear();
                    tweet.deleted_at = Some(now);
                    self.put(Row::Tweet(tweet));
                }
            }
            Action::Retweet { user, pick, age } => {
                let is_new = |tweet: i64| {
                    let pair = (USERS[user], tweet);
                    !self.world.values().any(|row| matches!(row, Row::Retweet(r) if (r.user_id, r.tweet_id) == pair))
                };
                if let Some(tweet) = self.tweet(pick).filter(|tweet| is_new(tweet.id)) {
                    let id = self.new_id(age);
                    let retweet = Retweet { id, user_id: USERS[user], tweet_id: tweet.id, created_at: now };
                    self.put(Row::Retweet(retweet));
                }
            }
            Action::Unretweet { pick } => self.drop_picked(Relation::Retweets, pick),
            Action::Like { user, pick } => {
                if let Some(tweet) = self.tweet(pick) {
                    self.put(Row::Like(Like { user_id: USERS[user], tweet_id: tweet.id, created_at: now }));
                }
            }
            Action::Unlike { pick } => self.drop_picked(Relation::Likes, pick),
            Action::Purge { pick } => {
                if let Some(tweet) = self.tweet(pick) {
                    self.world.remove(&Row::Tweet(tweet.clone()).key());
                    self.away.push(*tweet);
                }
            }
            Action::Orphan { user, pick } => {
                if let Some(above) = self.tweet(pick) {
                    let (id, conversation_id) = (self.new_id(Age::Ms(0)), above.conversation_id);
                    let reply =
                        Tweet { id, user_id: USERS[user], conversation_id, created_at: now, ..Tweet::default() };
                    self.away.push(Tweet { reply_to_id: Some(above.id), ..reply.clone() });
                    let below = Tweet { id: self.new_id(Age::Ms(0)), reply_to_id: Some(id), ..reply };
                    self.put(Row::Tweet(Box::new(below)));
                }
            }
            Action::Return { pick } if !self.away.is_empty() => {
                let tweet = self.away.swap_remove(pick % self.away.len());
                self.put(Row::Tweet(Box::new(tweet)));
            }
            Action::Move { pick, other } => {
                let tweets = self.world.values().filter_map(tweet_of);
                let replies: Vec<Tweet> = tweets.filter(|tweet| tweet.reply_to_id.is_some()).collect();
                if let Some(mut moved) = (!replies.is_empty()).then(|| replies[pick % replies.len()].clone()) {
                    let same = |tweet: &&Tweet| tweet.conversation_id == moved.conversation_id;
                    let thread: Vec<i64> = replies.iter().filter(same).map(|reply| reply.id).collect();
                    moved.reply_to_id = Some(thread[other % thread.len()]);
                    self.put(Row::Tweet(Box::new(moved)));
                }
            }
            Action::Chain { user, pick, length } => {
                let Some(mut above) = self.tweet(pick) else { return };
                for _ in 0..length {
                    above.reply_to_id = Some(above.id);
                    (above.id, above.user_id) = (self.new_id(Age::Ms(0)), USERS[user]);
                    (above.content, above.deleted_at) = (String::new(), Some(now));
                    self.put(Row::Tweet(above.clone()));
                }
            }
            Action::Date { relation, pick, at } => {
                let at = match at {
                    At::Ahead(ms) => now + ms * 1_000,
                    At::Infinity => i64::MAX,
                    At::MinusInfinity => i64::MIN,
                };
                match self.pick(relation, pick) {
                    Some(Row::Like(like)) => self.put(Row::Like(Like { created_at: at, ..like })),
                    Some(Row::Follow(follow)) => self.put(Row::Follow(Follow { created_at: at, ..follow })),
                    _ => {}
                }
            }
            Action::Read { user, pick } => {
                let notifications_id = self.tweet(pick).map_or(0, |tweet| tweet.id);
                self.put(Row::ReadMark(ReadMark { user_id: USERS[user], notifications_id }));
            }
            Action::Act { user, days_ago } => {
                let day = (self.time / 86_400_000) as i32 - days_ago;
                self.put(Row::Activity(Activity { user_id: USERS[user], day }));
            }
            Action::ForgetActivity { pick } => self.drop_picked(Relation::Activity, pick),
            Action::Follow { .. } | Action::Return { .. } => {}
        }
    }
}
