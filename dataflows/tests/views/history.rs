//! Histories of the source: what users do, as batches of changes, and the state after each.

use std::collections::BTreeMap;

use feedmill_model::{
    Activity, Batch, Block, Change, Follow, Key, Like, Lsn, Mute, Parameters, Popular, Position, ReadMark, Relation,
    Retweet, Row, Time, Tweet, User, floor_of, id_at,
};
use proptest::prelude::*;

/// All rows of the source.
pub type World = BTreeMap<Key, Row>;

/// Ids of the users: small, large, negative.
pub const USERS: [i64; 7] = [1, 2, 3, 86_399, 5_000_000_007, -4, 9 << 50];

/// Short windows, so that histories cross them.
pub fn parameters() -> Parameters {
    Parameters { fanout_days: 2, active_days: 3, ..Parameters::default() }
}

/// Something that a user or the system does. Users are indexes into [`USERS`]; `pick` chooses among the rows there are.
#[derive(Clone, Debug)]
pub enum Action {
    Register {
        user: usize,
        verified: bool,
    },
    Rename {
        user: usize,
        name: u8,
    },
    Verify {
        user: usize,
        verified: bool,
    },
    Protect {
        user: usize,
        protected: bool,
    },
    DeleteUser {
        user: usize,
    },
    Popular {
        user: usize,
        popular: bool,
    },
    Follow {
        user: usize,
        other: usize,
        accepted: bool,
    },
    Unfollow {
        pick: usize,
    },
    Mute {
        user: usize,
        other: usize,
    },
    Unmute {
        pick: usize,
    },
    Block {
        user: usize,
        other: usize,
    },
    Unblock {
        pick: usize,
    },
    Post {
        user: usize,
        age: Age,
        reply_to: Option<usize>,
    },
    Edit {
        pick: usize,
    },
    DeleteTweet {
        pick: usize,
    },
    Retweet {
        user: usize,
        pick: usize,
        age: Age,
    },
    Unretweet {
        pick: usize,
    },
    Like {
        user: usize,
        pick: usize,
    },
    Unlike {
        pick: usize,
    },
    /// The row of a reply goes, as another writer might have it.
    Purge {
        pick: usize,
    },
    Read {
        user: usize,
        pick: usize,
    },
    Act {
        user: usize,
        days_ago: i32,
    },
    ForgetActivity {
        pick: usize,
    },
}

/// How old a row's id says it is.
#[derive(Clone, Copy, Debug)]
pub enum Age {
    Ms(i64),
    /// An id that no home timeline holds.
    Negative,
}

/// One batch to be.
#[derive(Clone, Debug)]
pub struct Step {
    pub jump: Jump,
    pub actions: Vec<Action>,
    pub bulk: bool,
}

/// From one batch to the next.
#[derive(Clone, Copy, Debug)]
pub enum Jump {
    Ms(u64),
    /// To the next full minute.
    Minute,
}

pub fn actions() -> impl Strategy<Value = Action> {
    let user = || 0..USERS.len();
    let pick = || 0..64_usize;
    let day = 86_400_000;
    let age = || {
        prop_oneof![
            8 => (0..5_000_i64).prop_map(Age::Ms),
            2 => (2 * day - 200_000..2 * day + 1_000).prop_map(Age::Ms),
            1 => Just(Age::Ms(-1_800_000)),
            1 => Just(Age::Ms(3 * day)),
            1 => Just(Age::Negative),
        ]
    };
    prop_oneof![
        2 => (user(), any::<bool>()).prop_map(|(user, verified)| Action::Register { user, verified }),
        1 => (user(), 0..3_u8).prop_map(|(user, name)| Action::Rename { user, name }),
        3 => (user(), any::<bool>()).prop_map(|(user, verified)| Action::Verify { user, verified }),
        1 => (user(), any::<bool>()).prop_map(|(user, protected)| Action::Protect { user, protected }),
        1 => user().prop_map(|user| Action::DeleteUser { user }),
        3 => (user(), any::<bool>()).prop_map(|(user, popular)| Action::Popular { user, popular }),
        12 => (user(), user(), prop::bool::weighted(0.9))
            .prop_map(|(user, other, accepted)| Action::Follow { user, other, accepted }),
        3 => pick().prop_map(|pick| Action::Unfollow { pick }),
        2 => (user(), user()).prop_map(|(user, other)| Action::Mute { user, other }),
        2 => pick().prop_map(|pick| Action::Unmute { pick }),
        2 => (user(), user()).prop_map(|(user, other)| Action::Block { user, other }),
        2 => pick().prop_map(|pick| Action::Unblock { pick }),
        12 => (user(), age(), prop::option::weighted(0.4, pick()))
            .prop_map(|(user, age, reply_to)| Action::Post { user, age, reply_to }),
        2 => pick().prop_map(|pick| Action::Edit { pick }),
        3 => pick().prop_map(|pick| Action::DeleteTweet { pick }),
        5 => (user(), pick(), age()).prop_map(|(user, pick, age)| Action::Retweet { user, pick, age }),
        2 => pick().prop_map(|pick| Action::Unretweet { pick }),
        6 => (user(), pick()).prop_map(|(user, pick)| Action::Like { user, pick }),
        1 => pick().prop_map(|pick| Action::Purge { pick }),
        1 => (user(), pick()).prop_map(|(user, pick)| Action::Read { user, pick }),
        1 => pick().prop_map(|pick| Action::Unlike { pick }),
        8 => (user(), 0..5_i32).prop_map(|(user, days_ago)| Action::Act { user, days_ago }),
        2 => pick().prop_map(|pick| Action::ForgetActivity { pick }),
    ]
}

pub fn steps() -> impl Strategy<Value = Step> {
    let jump = prop_oneof![
        8 => (1..2_000_u64).prop_map(Jump::Ms),
        3 => Just(Jump::Minute),
        3 => (10_000..200_000_u64).prop_map(Jump::Ms),
        2 => (3_600_000..40_000_000_u64).prop_map(Jump::Ms),
        1 => (100_000_000..400_000_000_u64).prop_map(Jump::Ms),
    ];
    (jump, prop::collection::vec(actions(), 0..7), prop::bool::weighted(0.08)).prop_map(|(jump, actions, bulk)| Step {
        jump,
        actions,
        bulk,
    })
}

/// A batch, and the rows after it.
pub struct Moment {
    pub batch: Batch,
    pub world: World,
}

/// The batches of `steps`, the first of which brings all users, everyone active and with two follows.
pub fn play(steps: &[Step]) -> Vec<Moment> {
    let mut scene = Scene { time: 1_700_000_000_123, sequence: 0, world: World::new() };
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

struct Scene {
    time: Time,
    sequence: u16,
    world: World,
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
        match self.pick(Relation::Tweets, pick) {
            Some(Row::Tweet(tweet)) => Some(tweet),
            _ => None,
        }
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
                // Tags and names in several cases, and those of nobody.
                let number = self.sequence;
                let content = format!(
                    "tweet {id} #Tag{} #tag{} ＃{} @USER{} @name{}_{}",
                    number % 4,
                    number % 3,
                    number % 2,
                    number % 8,
                    number % 3,
                    USERS[usize::from(number) % USERS.len()],
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
                let replies: Vec<_> = self
                    .world
                    .values()
                    .filter(|row| matches!(row, Row::Tweet(tweet) if tweet.reply_to_id.is_some()))
                    .collect();
                if let Some(key) = (!replies.is_empty()).then(|| replies[pick % replies.len()].key()) {
                    self.world.remove(&key);
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
            Action::Follow { .. } => {}
        }
    }
}
