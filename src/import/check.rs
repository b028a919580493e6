//! What the lines say of each other and of the database: each rule is one statement, which takes the bad lines out of the
//! temporary tables and gives them with the reason. A line that only repeats another has no reason: it is there already.
//!
//! Users come first: what refers to a user that was taken out is taken out by the rule for missing users.

use std::pin::pin;

use anyhow::Context;
use futures::TryStreamExt;
use tokio_postgres::Client;
use tokio_postgres::types::ToSql;

use super::file::Kind;
use super::report::Report;

/// Runs a rule: a statement that returns line and reason of what it deletes. Gives the number of lines.
async fn rule(
    client: &Client,
    kind: Kind,
    statement: &str,
    parameters: &[&(dyn ToSql + Sync)],
    report: &mut Report,
) -> anyhow::Result<u64> {
    let ordered = format!("WITH bad AS ({statement}) SELECT line, reason FROM bad ORDER BY line");
    let context = || format!("could not check the {}", kind.name());
    let rows = client.query_raw(&ordered, parameters.iter().copied()).await.with_context(context)?;
    let mut rows = pin!(rows);
    let mut deleted = 0;
    while let Some(row) = rows.try_next().await.with_context(context)? {
        deleted += 1;
        match row.get::<_, Option<String>>(1) {
            Some(reason) => report.refuse(kind, row.get(0), &reason),
            None => report.written(kind, 0, 1),
        }
    }
    Ok(deleted)
}

/// What the database would refuse as future; and ids hold no time before 1970.
async fn times(client: &Client, kind: Kind, table: &str, shift_ms: i64, report: &mut Report) -> anyhow::Result<()> {
    let statement = format!(
        "DELETE FROM {table} WHERE created_ms + $1::bigint < 0
            OR created_ms + $1 > (extract(epoch FROM now()) * 1000)::bigint + 3600000
         RETURNING line, format('its time, %s, lies %s', to_timestamp((created_ms + $1) / 1000),
            CASE WHEN created_ms + $1 < 0 THEN 'before 1970' ELSE 'more than an hour ahead of now' END) AS reason"
    );
    rule(client, kind, &statement, &[&shift_ms], report).await?;
    Ok(())
}

/// Takes out lines that refer to users who are neither in the files nor in the database, or were deleted.
async fn users_of(client: &Client, kind: Kind, table: &str, column: &str, report: &mut Report) -> anyhow::Result<()> {
    let statement = format!(
        "DELETE FROM {table} s
         WHERE NOT EXISTS (SELECT FROM staged_users u WHERE u.id = s.{column})
           AND NOT EXISTS (SELECT FROM users u WHERE u.id = s.{column})
         RETURNING line, format('user %s is neither among the good lines of --users nor in the database', {column})
            AS reason"
    );
    rule(client, kind, &statement, &[], report).await?;
    let statement = format!(
        "DELETE FROM {table} s USING users u WHERE u.id = s.{column} AND u.deleted_at IS NOT NULL
         RETURNING line, format('user %s was deleted', {column}) AS reason"
    );
    rule(client, kind, &statement, &[], report).await?;
    Ok(())
}

/// Checks the users. With `from_follows` they are made from the follows: those that are not in the database.
pub async fn users(client: &Client, from_follows: bool, shift_ms: i64, report: &mut Report) -> anyhow::Result<()> {
    if from_follows {
        // No time: that of the import's beginning.
        let made = "
            INSERT INTO staged_users (line, id, username, display_name)
            SELECT min(line), id, 'u' || id, 'u' || id
            FROM (SELECT line, follower AS id FROM staged_follows UNION ALL SELECT line, following FROM staged_follows) f
            WHERE NOT EXISTS (SELECT FROM users u WHERE u.id = f.id)
            GROUP BY id";
        client.execute(made, &[]).await.context("could not make the users of the follows")?;
        client.batch_execute("ANALYZE staged_users").await?;
        let negative = "DELETE FROM staged_users WHERE id < 0
            RETURNING line, format('user %s cannot be named u%s: give the users by --users', id, id) AS reason";
        rule(client, Kind::Users, negative, &[], report).await?;
    }
    times(client, Kind::Users, "staged_users", shift_ms, report).await?;
    let rules = [
        // The same user twice.
        "DELETE FROM staged_users s USING staged_users f,
            (SELECT id, min(line) AS line FROM staged_users GROUP BY id HAVING count(*) > 1) d
         WHERE s.id = d.id AND s.line <> d.line AND f.line = d.line AND f.id = d.id
         RETURNING s.line, CASE
            WHEN (s.username, s.display_name, s.email, s.created_ms)
                IS DISTINCT FROM (f.username, f.display_name, f.email, f.created_ms)
            THEN format('user %s is on line %s already, and differs', s.id, f.line) END AS reason",
        // Another user has the id. A name can have been changed since an earlier import, the time cannot.
        "DELETE FROM staged_users s USING users u
         WHERE u.id = s.id AND u.deleted_at IS NULL AND lower(u.username) <> lower(s.username)
           AND u.created_at <> timestamptz 'epoch' + (s.created_ms + $1::bigint) * interval '1 millisecond'
         RETURNING line, format('the database has another user %s, who is called %s', s.id, u.username) AS reason",
    ];
    for (statement, parameters) in rules.iter().zip([&[] as &[&(dyn ToSql + Sync)], &[&shift_ms]]) {
        rule(client, Kind::Users, statement, parameters, report).await?;
    }
    for (column, what) in [("username", "the username"), ("email", "the e-mail address")] {
        let in_file = format!(
            "DELETE FROM staged_users s USING
                (SELECT lower({column}) AS taken, min(line) AS line FROM staged_users GROUP BY 1 HAVING count(*) > 1) d
             WHERE lower(s.{column}) = d.taken AND s.line <> d.line
             RETURNING s.line, format('{what} %s is taken by line %s', s.{column}, d.line) AS reason"
        );
        rule(client, Kind::Users, &in_file, &[], report).await?;
        let in_database = format!(
            "DELETE FROM staged_users s USING accounts a
             WHERE lower(a.{column}) = lower(s.{column}) AND a.user_id <> s.id
               AND NOT EXISTS (SELECT FROM users u WHERE u.id = s.id)
             RETURNING s.line, format('{what} %s is taken by user %s of the database', s.{column}, a.user_id) AS reason"
        );
        rule(client, Kind::Users, &in_database, &[], report).await?;
    }
    Ok(())
}

/// Checks the follows, after the users.
pub async fn follows(client: &Client, shift_ms: i64, report: &mut Report) -> anyhow::Result<()> {
    times(client, Kind::Follows, "staged_follows", shift_ms, report).await?;
    users_of(client, Kind::Follows, "staged_follows", "follower", report).await?;
    users_of(client, Kind::Follows, "staged_follows", "following", report).await?;
    let repeated = "
        DELETE FROM staged_follows s USING
            (SELECT follower, following, min(line) AS line FROM staged_follows GROUP BY 1, 2 HAVING count(*) > 1) d
        WHERE s.follower = d.follower AND s.following = d.following AND s.line <> d.line
        RETURNING s.line, NULL::text AS reason";
    rule(client, Kind::Follows, repeated, &[], report).await?;
    let blocked = "
        DELETE FROM staged_follows s USING blocks b
        WHERE (b.blocker_id, b.blocked_id) IN ((s.follower, s.following), (s.following, s.follower))
        RETURNING line, format('user %s blocks user %s', b.blocker_id, b.blocked_id) AS reason";
    rule(client, Kind::Follows, blocked, &[], report).await?;
    Ok(())
}

/// Checks the tweets by themselves, after the users; what they answer is checked where ids are minted.
pub async fn tweets(client: &Client, shift_ms: i64, report: &mut Report) -> anyhow::Result<()> {
    times(client, Kind::Tweets, "staged_tweets", shift_ms, report).await?;
    users_of(client, Kind::Tweets, "staged_tweets", "user_id", report).await?;
    let repeated = "
        DELETE FROM staged_tweets s USING staged_tweets f,
            (SELECT source_id, min(line) AS line FROM staged_tweets GROUP BY source_id HAVING count(*) > 1) d
        WHERE s.source_id = d.source_id AND s.line <> d.line AND f.line = d.line AND f.source_id = d.source_id
        RETURNING s.line, CASE
            WHEN (s.user_id, s.source_reply_to, s.content, s.created_ms)
                IS DISTINCT FROM (f.user_id, f.source_reply_to, f.content, f.created_ms)
            THEN format('tweet %s is on line %s already, and differs', s.source_id, f.line) END AS reason";
    rule(client, Kind::Tweets, repeated, &[], report).await?;
    Ok(())
}

/// Checks minted tweets against those of the database that have the same id.
pub async fn minted(client: &Client, report: &mut Report) -> anyhow::Result<()> {
    let taken = "
        DELETE FROM minted_tweets m USING tweets t, staged_tweets s
        WHERE t.id = m.id AND s.line = m.line
          AND (t.user_id <> s.user_id OR t.deleted_at IS NULL AND t.content <> s.content)
        RETURNING m.line, format('the database has another tweet with the id %s', m.id) AS reason";
    let orphaned = "
        DELETE FROM minted_tweets m USING staged_tweets s, staged_tweets p
        WHERE s.line = m.line AND p.source_id = s.source_reply_to
          AND NOT EXISTS (SELECT FROM minted_tweets t WHERE t.source_id = p.source_id)
        RETURNING m.line, format('it answers tweet %s, which is on a bad line', p.source_id) AS reason";
    let mut deleted = rule(client, Kind::Tweets, taken, &[], report).await?;
    while deleted > 0 {
        deleted = rule(client, Kind::Tweets, orphaned, &[], report).await?;
    }
    Ok(())
}

/// Checks the likes, after the tweets, and finds out which tweets they mean: one of the file's, one of an earlier run
/// under this name, or one whose id was kept, in this order.
pub async fn likes(client: &Client, shift_ms: i64, report: &mut Report) -> anyhow::Result<()> {
    times(client, Kind::Likes, "staged_likes", shift_ms, report).await?;
    users_of(client, Kind::Likes, "staged_likes", "user_id", report).await?;
    let resolve = "
        CREATE TEMPORARY TABLE resolved_likes AS
        SELECT s.line, s.user_id, s.source_tweet_id, s.created_ms, coalesce(m.id, i.tweet_id, t.id) AS tweet_id
        FROM staged_likes s
        LEFT JOIN minted_tweets m ON m.source_id = s.source_tweet_id
        LEFT JOIN before_tweets i ON m.id IS NULL AND i.source_id = s.source_tweet_id
        LEFT JOIN tweets t ON m.id IS NULL AND i.tweet_id IS NULL AND t.id = s.source_tweet_id";
    client.batch_execute(resolve).await.context("could not find the tweets that are liked")?;
    let missing = "
        DELETE FROM resolved_likes WHERE tweet_id IS NULL
        RETURNING line, format('tweet %s is neither among the good lines of --tweets nor in the database',
            source_tweet_id) AS reason";
    rule(client, Kind::Likes, missing, &[], report).await?;
    let repeated = "
        DELETE FROM resolved_likes s USING
            (SELECT user_id, tweet_id, min(line) AS line FROM resolved_likes GROUP BY 1, 2 HAVING count(*) > 1) d
        WHERE s.user_id = d.user_id AND s.tweet_id = d.tweet_id AND s.line <> d.line
        RETURNING s.line, NULL::text AS reason";
    rule(client, Kind::Likes, repeated, &[], report).await?;
    Ok(())
}
