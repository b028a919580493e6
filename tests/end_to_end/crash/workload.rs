//! Writes of every kind, as a seed says.
//!
//! What an operation is, and on whom, follows from the seed alone; ids of tweets follow from the clock, so a tweet is
//! named by its place in an order that the seed shuffles.

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rand::Rng;
use rand::seq::IndexedRandom;
use rand_chacha::ChaCha8Rng;
use serde_json::json;
use tokio_postgres::error::SqlState;
use tokio_postgres::{Client, NoTls};

use crate::postgres::Postgres;
use crate::system::{LIMIT, System};

/// Users who do and are done to.
const BUSY: i64 = 40;
/// All users whom the seed knows by their ids.
const USERS: i64 = 200;
/// Followers at which an account is hot here.
pub const HOT_FOLLOWERS: &str = "5";

const TEXTS: [&str; 8] = [
    "plain",
    "",
    "e\u{301}\u{200d}🏳️‍🌈 العربية #tag",
    "quote ' and \\ and \u{1}\t\n",
    "ÄÖÜ ß ſ",
    "@u1 @u2 https://example.com/#no",
    "日本語のつぶやき",
    "NULL",
];

/// What a new database gets.
pub const PEOPLE: &str = "
    INSERT INTO accounts (user_id, username) SELECT n, 'u' || n FROM generate_series(1, 200) AS n;
    INSERT INTO users (id, username, display_name) SELECT n, 'u' || n, 'User ' || n FROM generate_series(1, 200) AS n;
    INSERT INTO activity (user_id, day) SELECT n, (now() AT TIME ZONE 'UTC')::date FROM generate_series(1, 60) AS n;
    INSERT INTO follows (follower_id, following_id) SELECT one, other FROM generate_series(1, 12) AS one,
        generate_series(1, 12) AS other WHERE one <> other;
    INSERT INTO tweets (id, user_id, content, conversation_id) SELECT id, 1 + n % 12, 'tweet ' || n, id
        FROM (SELECT n, feedmill_id() AS id FROM generate_series(1, 60) AS n) AS numbered";

/// A transaction of more rows than a store takes in one write, and one that takes them back.
pub const HUGE: [&str; 2] = [
    "INSERT INTO follows (follower_id, following_id) SELECT one, other FROM generate_series(1, 200) AS one,
        generate_series(1, 200) AS other WHERE one <> other ON CONFLICT DO NOTHING",
    "DELETE FROM follows WHERE follower_id > 40 OR (follower_id + following_id) % 3 <> 0",
];

/// How far the writing is, and whether it is to end.
#[derive(Default)]
pub struct Pace {
    pub done: AtomicUsize,
    pub stop: AtomicBool,
}

impl Pace {
    fn goes_on(&self) -> bool {
        !self.stop.load(Ordering::Relaxed)
    }
}

/// A writer by SQL, which outlives crashes of the server.
pub struct Writer {
    socket: PathBuf,
    port: u16,
    client: Option<Client>,
}

impl Writer {
    pub fn new(postgres: &Postgres) -> Writer {
        Writer { socket: postgres.socket(), port: postgres.port, client: None }
    }

    /// Writes until it is told to stop.
    pub async fn write(&mut self, rng: &mut ChaCha8Rng, pace: &Pace) {
        while pace.goes_on() {
            self.run(&operation(rng)).await;
            pace.done.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Writes so many operations.
    pub async fn write_some(&mut self, rng: &mut ChaCha8Rng, operations: usize) {
        for _ in 0..operations {
            self.run(&operation(rng)).await;
        }
    }

    /// Runs statements. What the seed drew may break a constraint, and a crash may take it away: both are part of it.
    pub async fn run(&mut self, statements: &str) {
        let client = self.client().await;
        let Err(error) = client.batch_execute(statements).await else { return };
        match error.code() {
            Some(state) if is_of_the_game(state) => {
                // A transaction that failed half-way is still open.
                if client.batch_execute("ROLLBACK").await.is_err() {
                    self.client = None;
                }
            }
            Some(state) if !is_of_a_crash(state) => panic!("{statements}: {error:?}"),
            _ => self.client = None,
        }
    }

    async fn client(&mut self) -> &Client {
        if self.client.as_ref().is_none_or(Client::is_closed) {
            let mut config = tokio_postgres::Config::new();
            config.host_path(&self.socket).port(self.port).user("feedmill").dbname("feedmill");
            let deadline = Instant::now() + LIMIT;
            let mut pause = tokio::time::interval(Duration::from_millis(20));
            let (client, connection) = loop {
                pause.tick().await;
                match config.connect(NoTls).await {
                    Ok(connected) => break connected,
                    Err(error) => assert!(Instant::now() < deadline, "PostgreSQL does not come back: {error:?}"),
                }
            };
            tokio::spawn(connection);
            self.client = Some(client);
        }
        self.client.as_ref().unwrap()
    }
}

/// Constraints, and locks that were in each other's way.
fn is_of_the_game(state: &SqlState) -> bool {
    let code = state.code();
    code.starts_with("23") || code.starts_with("40") || *state == SqlState::LOCK_NOT_AVAILABLE
}

fn is_of_a_crash(state: &SqlState) -> bool {
    state.code().starts_with("57") || state.code().starts_with("08")
}

/// Writes over HTTP until it is told to stop, or nobody answers.
pub async fn write_by_http(system: &System, rng: &mut ChaCha8Rng, pace: &Pace) {
    let mut silent = 0;
    let mut own: Vec<String> = Vec::new();
    while pace.goes_on() && silent < 3 {
        let user = system.account(rng.random_range(1..=BUSY));
        let other = rng.random_range(1..=BUSY);
        let text = *TEXTS.choose(rng).unwrap();
        let answer = match rng.random_range(0..10) {
            0 => {
                let name = format!("http{}", rng.random_range(0..1_000_000));
                let body = json!({"username": name, "email": format!("{name}@example.com"),
                    "password": "correct horse battery", "displayName": name});
                system.post("/api/auth/register", None, body).await
            }
            1..=4 => system.post("/api/tweets", Some(&user), json!({ "content": format!("{text}!") })).await,
            5..=6 => system.post(&format!("/api/follows/{other}"), Some(&user), json!({})).await,
            7 => system.delete(&format!("/api/follows/{other}"), Some(&user)).await,
            8 => system.get("/api/timeline", Some(&user)).await,
            _ => match own.pop() {
                Some(tweet) => system.delete(&format!("/api/tweets/{tweet}"), Some(&user)).await,
                None => continue,
            },
        };
        silent = if answer.status == 0 { silent + 1 } else { 0 };
        let tweet = answer.body.get("tweet").unwrap_or(&answer.body);
        own.extend(tweet.get("id").and_then(|id| id.as_str()).map(str::to_owned));
    }
}

/// The next operation: one statement or more, a transaction of its own.
fn operation(rng: &mut ChaCha8Rng) -> String {
    let user = rng.random_range(1..=BUSY);
    let other = if user == BUSY { 1 } else { user + rng.random_range(1..=BUSY - user) };
    let (small, salt) = (rng.random_range(2..12), rng.random_range(0..1_000_000));
    let text = TEXTS.choose(rng).unwrap().replace('\'', "''");
    let tweet = format!("(SELECT id FROM tweets WHERE deleted_at IS NULL ORDER BY hashint8(id + {salt}) LIMIT 1)");
    let today = "(now() AT TIME ZONE 'UTC')::date";
    match rng.random_range(0..44) {
        0..=4 => format!(
            "INSERT INTO tweets (id, user_id, content, conversation_id) SELECT id, {user}, '{text}', id
                FROM (SELECT feedmill_id() AS id FROM generate_series(1, {})) AS made",
            rng.random_range(1..=3)
        ),
        5..=7 => format!(
            "INSERT INTO tweets (id, user_id, content, reply_to_id, conversation_id)
                SELECT feedmill_id(), {user}, '{text}', id, conversation_id FROM tweets WHERE id = {tweet}"
        ),
        8 => format!("UPDATE tweets SET content = '', media = NULL, deleted_at = now() WHERE id = {tweet}"),
        9 => format!("UPDATE tweets SET content = '{text} edited', updated_at = now() WHERE user_id = {user}"),
        // Large enough to be kept apart and unchanged by the edits that follow.
        10 => format!(
            "UPDATE tweets SET media = (SELECT jsonb_agg(md5((n + {salt})::text)) FROM generate_series(1, 200) AS n)
                WHERE id = {tweet}"
        ),
        11..=12 => delete_for_good(small, salt),
        13..=15 => format!(
            "INSERT INTO follows (follower_id, following_id, accepted) SELECT {user}, n, n % 4 <> 0
                FROM generate_series(1, {BUSY}, {small}) AS n WHERE n <> {user} ON CONFLICT DO NOTHING"
        ),
        16 => format!("DELETE FROM follows WHERE follower_id = {user} AND following_id % 3 = {salt} % 3"),
        17 => format!("UPDATE follows SET accepted = NOT accepted WHERE following_id = {user}"),
        18 => format!("UPDATE follows SET following_id = {other} WHERE (follower_id, following_id) IN
            (SELECT follower_id, following_id FROM follows WHERE follower_id = {user} LIMIT 1)"),
        19 => format!(
            "INSERT INTO follows (follower_id, following_id) SELECT n, {user} FROM generate_series(41, 50) AS n
                ON CONFLICT DO NOTHING"
        ),
        20 => format!("DELETE FROM follows WHERE following_id = {user} AND follower_id > {BUSY}"),
        21..=22 => format!(
            "INSERT INTO likes (user_id, tweet_id) SELECT {user}, id FROM tweets WHERE (id + {salt}) % {small} = 0
                ON CONFLICT DO NOTHING"
        ),
        23 => format!("DELETE FROM likes WHERE user_id = {user}"),
        24 => format!("UPDATE likes SET user_id = {other} WHERE user_id = {user}"),
        25..=26 => format!("INSERT INTO retweets (user_id, tweet_id) VALUES ({user}, {tweet}) ON CONFLICT DO NOTHING"),
        27 => format!("UPDATE retweets SET id = feedmill_id() WHERE user_id = {user}"),
        28 => format!("DELETE FROM retweets WHERE user_id = {user}"),
        29 => format!("INSERT INTO blocks VALUES ({user}, {other}) ON CONFLICT DO NOTHING"),
        30 => format!("DELETE FROM blocks WHERE blocker_id % {small} = {user} % {small}"),
        31 => format!("INSERT INTO mutes VALUES ({user}, {other}), ({other}, {user}) ON CONFLICT DO NOTHING"),
        32 => format!("UPDATE mutes SET muted_id = {other} WHERE muter_id = {user}"),
        33 => format!("INSERT INTO activity VALUES ({user}, {today} - {}) ON CONFLICT DO NOTHING", salt % 40),
        34 => format!("UPDATE activity SET day = day - 1 WHERE user_id = {user}"),
        35 => format!("UPDATE users SET verified = NOT verified, updated_at = now() WHERE id = {user}"),
        36 => format!("UPDATE users SET protected = NOT protected, bio = '{text}', avatar_url = NULL WHERE id = {user}"),
        37 => format!("UPDATE accounts SET username = 'v{salt}' WHERE user_id = {user}"),
        38 => account_ends(user),
        39 => {
            let tables = ["mutes", "likes, retweets", "activity", "read_marks", "blocks, mutes", "likes"];
            format!("TRUNCATE {}", tables.choose(rng).unwrap())
        }
        40 => large(salt, ["COMMIT", "COMMIT", "ROLLBACK"].choose(rng).unwrap()),
        41 => savepoints(user, other),
        42 => schema_change(rng, user),
        _ => format!(
            "INSERT INTO accounts (user_id, username) VALUES ({id}, 'w{salt}');
             INSERT INTO users (id, username, display_name) VALUES ({id}, 'w{salt}', '{text}');
             INSERT INTO read_marks VALUES ({user}, {salt}) ON CONFLICT (user_id) DO UPDATE SET notifications_id = {salt};
             SELECT pg_logical_emit_message(true, 'another program', repeat('x', {salt} % 10000))",
            id = 1_000 + salt
        ),
    }
}

/// Tweets without replies, and who likes and retweets them, so that the data stay small.
fn delete_for_good(tweets: i64, salt: i64) -> String {
    format!(
        "WITH gone AS (SELECT id FROM tweets WHERE NOT EXISTS (SELECT FROM tweets AS reply
                WHERE reply.reply_to_id = tweets.id) ORDER BY hashint8(id + {salt}) LIMIT {tweets}),
              likes_gone AS (DELETE FROM likes USING gone WHERE tweet_id = gone.id),
              retweets_gone AS (DELETE FROM retweets USING gone WHERE tweet_id = gone.id)
         DELETE FROM tweets USING gone WHERE tweets.id = gone.id"
    )
}

/// A user deletes the account; or, where that was done, has it again.
fn account_ends(user: i64) -> String {
    format!(
        "BEGIN;
         UPDATE users SET deleted_at = CASE WHEN deleted_at IS NULL THEN now() END, bio = NULL, display_name = ''
             WHERE id = {user};
         UPDATE tweets SET content = '', media = NULL, deleted_at = now() WHERE user_id = {user} AND deleted_at IS NULL;
         DELETE FROM follows WHERE follower_id = {user} OR following_id = {user};
         DELETE FROM likes WHERE user_id = {user};
         DELETE FROM retweets WHERE user_id = {user};
         DELETE FROM blocks WHERE blocker_id = {user} OR blocked_id = {user};
         DELETE FROM mutes WHERE muter_id = {user} OR muted_id = {user};
         COMMIT"
    )
}

/// More than the server decodes in memory here, so that it is streamed before it ends; part of it is rolled back.
fn large(salt: i64, end: &str) -> String {
    format!(
        "BEGIN;
         INSERT INTO likes (user_id, tweet_id) SELECT users.id, tweets.id FROM users, tweets
             WHERE users.id <= {USERS} AND (users.id + tweets.id + {salt}) % 5 = 0 LIMIT 2000 ON CONFLICT DO NOTHING;
         SAVEPOINT before_mutes;
         INSERT INTO mutes SELECT one, other FROM generate_series(1, 40) AS one, generate_series(41, 80) AS other
             ON CONFLICT DO NOTHING;
         ROLLBACK TO SAVEPOINT before_mutes;
         DELETE FROM likes WHERE user_id > 60;
         {end}"
    )
}

fn savepoints(user: i64, other: i64) -> String {
    format!(
        "BEGIN;
         INSERT INTO follows (follower_id, following_id) VALUES ({user}, {other}) ON CONFLICT DO NOTHING;
         SAVEPOINT one;
         DELETE FROM follows WHERE follower_id = {user};
         SAVEPOINT two;
         UPDATE users SET verified = true WHERE id = {user};
         ROLLBACK TO SAVEPOINT one;
         INSERT INTO tweets (id, user_id, content, conversation_id)
             SELECT id, {user}, 'after a rollback', id FROM feedmill_id() AS id;
         RELEASE SAVEPOINT one;
         COMMIT"
    )
}

/// A column that nobody reads comes or goes, between two writes of one transaction.
fn schema_change(rng: &mut ChaCha8Rng, user: i64) -> String {
    let table = ["users", "tweets", "follows", "likes"].choose(rng).unwrap();
    let change =
        ["ADD COLUMN IF NOT EXISTS unread text DEFAULT 'x'", "DROP COLUMN IF EXISTS unread"].choose(rng).unwrap();
    format!(
        "BEGIN;
         UPDATE users SET display_name = 'before' WHERE id = {user};
         INSERT INTO mutes VALUES ({user}, 100) ON CONFLICT DO NOTHING;
         ALTER TABLE {table} {change};
         UPDATE users SET display_name = 'after' WHERE id = {user};
         INSERT INTO likes (user_id, tweet_id) SELECT {user}, id FROM tweets LIMIT 3 ON CONFLICT DO NOTHING;
         COMMIT"
    )
}
