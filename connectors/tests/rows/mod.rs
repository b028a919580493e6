//! Odd rows of every relation, as SQL and as what must come of it.

use feedmill_model::{Activity, Block, Follow, Like, Mute, Popular, ReadMark, Retweet, Row, Tweet, User};

const NOON: i64 = 1_709_208_000_123_456;
const NOON_SQL: &str = "'2024-02-29 12:00:00.123456+00'";
const LONG_AGO: i64 = -210_866_803_200_000_000;

const NAME: &str = "عَلِيّ \u{202e}x\u{200d}👩\u{200d}🚀 e\u{301}\u{1}";

/// Inserts the rows.
pub fn insert() -> String {
    let emoji = "😀".repeat(280);
    let max = i64::MAX;
    format!(
        "INSERT INTO accounts (user_id, username) VALUES (0, 'zero'), (-1, 'minus'), ({max}, 'max'), (7, 'seven'); \
         INSERT INTO users VALUES \
             (0, 'zero', '', '', '', false, false, 'infinity', '-infinity', NULL), \
             (-1, 'minus', '{NAME}', NULL, NULL, true, true, '4714-11-24 00:00:00+00 BC', 'epoch', 'infinity'), \
             ({max}, 'max', 'Max', E'a\\\\b\\n''c', 'https://example.org/?a=b', false, true, \
                 '294276-12-31 23:59:59.999999+00', '2024-02-29 24:00:00+00', {NOON_SQL}), \
             (7, 'seven', 'Seven', NULL, NULL, false, false, {NOON_SQL}, {NOON_SQL}, NULL); \
         INSERT INTO tweets VALUES \
             ({min}, {max}, '{emoji}', NULL, {min}, NULL, '-infinity', {NOON_SQL}, NULL), \
             (-5, -1, '', NULL, -5, '{{\"b\": 1.50, \"a\": [null, \"ü\\u0001\"]}}', {NOON_SQL}, 'infinity', NULL), \
             (0, 0, '#', -5, -5, 'null', {NOON_SQL}, {NOON_SQL}, NULL), \
             (1, 7, '', 0, -5, NULL, {NOON_SQL}, {NOON_SQL}, {NOON_SQL}); \
         INSERT INTO follows VALUES (0, {max}, true, 'infinity'), (-1, 7, false, {NOON_SQL}); \
         INSERT INTO likes VALUES (0, {min}, '-infinity'), ({max}, 0, {NOON_SQL}); \
         INSERT INTO retweets VALUES (-9, {max}, {min}, {NOON_SQL}), (0, -1, 0, '-infinity'); \
         INSERT INTO blocks VALUES (0, -1), ({max}, 7); \
         INSERT INTO mutes VALUES (-1, 0), (7, {max}); \
         INSERT INTO activity VALUES (0, '1970-01-01'), (0, 'infinity'), ({max}, '-infinity'), (-1, '4714-11-24 BC'), \
             (7, '5874897-12-31'); \
         INSERT INTO popular VALUES (-1), ({max}); \
         INSERT INTO read_marks VALUES (0, {max}), (-1, {min})",
        min = i64::MIN
    )
}

fn user(id: i64, username: &str, display_name: &str, times: (i64, i64, Option<i64>)) -> User {
    let (created_at, updated_at, deleted_at) = times;
    let (username, display_name) = (username.to_owned(), display_name.to_owned());
    User { id, username, display_name, created_at, updated_at, deleted_at, ..User::default() }
}

fn users() -> [User; 4] {
    let some = |text: &str| Some(text.to_owned());
    let zero = user(0, "zero", "", (i64::MAX, i64::MIN, None));
    let minus = user(-1, "minus", NAME, (LONG_AGO, 0, Some(i64::MAX)));
    let max = user(i64::MAX, "max", "Max", (i64::MAX - 1, 1_709_251_200_000_000, Some(NOON)));
    [
        User { bio: some(""), avatar_url: some(""), ..zero },
        User { verified: true, protected: true, ..minus },
        User { bio: some("a\\b\n'c"), avatar_url: some("https://example.org/?a=b"), protected: true, ..max },
        user(7, "seven", "Seven", (NOON, NOON, None)),
    ]
}

fn tweets() -> [Tweet; 4] {
    let base = Tweet { created_at: NOON, updated_at: NOON, ..Tweet::default() };
    let some = |text: &str| Some(text.to_owned());
    [
        Tweet {
            id: i64::MIN,
            user_id: i64::MAX,
            content: "😀".repeat(280),
            conversation_id: i64::MIN,
            created_at: i64::MIN,
            ..base.clone()
        },
        Tweet {
            id: -5,
            user_id: -1,
            conversation_id: -5,
            media: some("{\"a\": [null, \"ü\\u0001\"], \"b\": 1.50}"),
            updated_at: i64::MAX,
            ..base.clone()
        },
        Tweet {
            id: 0,
            user_id: 0,
            content: "#".to_owned(),
            reply_to_id: Some(-5),
            conversation_id: -5,
            media: some("null"),
            ..base.clone()
        },
        Tweet { id: 1, user_id: 7, reply_to_id: Some(0), conversation_id: -5, deleted_at: Some(NOON), ..base },
    ]
}

/// The rows that [`insert`] makes.
pub fn expected() -> Vec<Row> {
    let (min, max) = (i64::MIN, i64::MAX);
    let follow = |follower_id, following_id, accepted, created_at| {
        Row::Follow(Follow { follower_id, following_id, accepted, created_at })
    };
    let like = |user_id, tweet_id, created_at| Row::Like(Like { user_id, tweet_id, created_at });
    let retweet = |id, user_id, tweet_id, created_at| Row::Retweet(Retweet { id, user_id, tweet_id, created_at });
    let activity = |user_id, day| Row::Activity(Activity { user_id, day });
    let mut rows: Vec<Row> = users().into_iter().map(|user| Row::User(Box::new(user))).collect();
    rows.extend(tweets().into_iter().map(|tweet| Row::Tweet(Box::new(tweet))));
    rows.extend([
        follow(0, max, true, max),
        follow(-1, 7, false, NOON),
        like(0, min, min),
        like(max, 0, NOON),
        retweet(-9, max, min, NOON),
        retweet(0, -1, 0, min),
        Row::Block(Block { blocker_id: 0, blocked_id: -1 }),
        Row::Block(Block { blocker_id: max, blocked_id: 7 }),
        Row::Mute(Mute { muter_id: -1, muted_id: 0 }),
        Row::Mute(Mute { muter_id: 7, muted_id: max }),
        activity(0, 0),
        activity(0, i32::MAX),
        activity(max, i32::MIN),
        activity(-1, -2_440_588),
        activity(7, 2_145_042_905),
        Row::Popular(Popular { user_id: -1 }),
        Row::Popular(Popular { user_id: max }),
        Row::ReadMark(ReadMark { user_id: 0, notifications_id: max }),
        Row::ReadMark(ReadMark { user_id: -1, notifications_id: min }),
    ]);
    rows
}
