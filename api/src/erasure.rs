//! What goes with a deleted account, and how it goes when it is a lot.
//!
//! ```text
//!   DELETE /api/users/me ── one transaction ─┬─ users: emptied, deleted_at      from here on nobody reads any of it
//!                                            ├─ accounts: no name, address, password; sessions: revoked
//!                                            ├─ erasures: one row
//!                                            └─ the first thousand of each relation
//!   afterwards           ── transactions ────── the next thousand of each, until none is left
//!   a minute later       ── one more ────────── what a request wrote that was on its way; erasures: the row goes
//! ```
//!
//! The fact that the account is deleted hides all of it at once. How many rows it has therefore decides how long they
//! stay, and not how long the request takes, nor whether the batch is so large that it is not fanned out. The row in
//! `erasures` is written with the fact and goes when nothing is left, so that whatever ends in between, some instance
//! goes on. Tweets are emptied from the newest down, and how far is kept, so that none is looked at twice.

use crate::database::{Database, DatabaseError, Transaction, column};

/// Rows of a relation that a transaction takes.
const ROWS_MAX: i64 = 1_000;

const BEGIN: &str = "INSERT INTO erasures (user_id) VALUES ($1) ON CONFLICT DO NOTHING";

/// An account that has something left, or of which it is time to look once more.
const NEXT: &str = "
    SELECT user_id, done FROM erasures WHERE NOT done OR deleted_at < now() - interval '1 minute'
    ORDER BY deleted_at LIMIT 1 FOR UPDATE SKIP LOCKED";

/// Empties the next tweets, as a tweet that is deleted is; tells how many it looked at.
const TWEETS: &str = "
    WITH next AS (
        SELECT id FROM tweets
        WHERE user_id = $1 AND id < (SELECT tweets_from FROM erasures WHERE user_id = $1)
        ORDER BY id DESC LIMIT $2
    ), emptied AS (
        UPDATE tweets t SET content = '', media = NULL, deleted_at = now(), updated_at = now()
        FROM next WHERE t.id = next.id AND t.user_id = $1 AND t.deleted_at IS NULL
    )
    UPDATE erasures SET tweets_from = coalesce((SELECT min(id) FROM next), tweets_from) WHERE user_id = $1
    RETURNING (SELECT count(*) FROM next)";

/// Removes the next rows of the other relations, follows from both sides; tells how many.
const EDGES: &str = "
    WITH follows_gone AS (
        DELETE FROM follows WHERE follower_id = $1 AND following_id IN (
            SELECT following_id FROM follows WHERE follower_id = $1 LIMIT $2) RETURNING true
    ), followers_gone AS (
        DELETE FROM follows WHERE following_id = $1 AND follower_id IN (
            SELECT follower_id FROM follows WHERE following_id = $1 LIMIT $2) RETURNING true
    ), likes_gone AS (
        DELETE FROM likes WHERE user_id = $1 AND tweet_id IN (
            SELECT tweet_id FROM likes WHERE user_id = $1 LIMIT $2) RETURNING true
    ), retweets_gone AS (
        DELETE FROM retweets WHERE id IN (SELECT id FROM retweets WHERE user_id = $1 LIMIT $2) RETURNING true
    ), blocks_gone AS (
        DELETE FROM blocks WHERE blocker_id = $1 AND blocked_id IN (
            SELECT blocked_id FROM blocks WHERE blocker_id = $1 LIMIT $2) RETURNING true
    ), mutes_gone AS (
        DELETE FROM mutes WHERE muter_id = $1 AND muted_id IN (
            SELECT muted_id FROM mutes WHERE muter_id = $1 LIMIT $2) RETURNING true
    ), keys_gone AS (
        DELETE FROM idempotency_keys WHERE user_id = $1 AND key IN (
            SELECT key FROM idempotency_keys WHERE user_id = $1 LIMIT $2) RETURNING true
    ), marks_gone AS (
        DELETE FROM read_marks WHERE user_id = $1 RETURNING true
    ), days_gone AS (
        DELETE FROM activity WHERE user_id = $1 RETURNING true
    )
    SELECT (SELECT count(*) FROM follows_gone) + (SELECT count(*) FROM followers_gone)
         + (SELECT count(*) FROM likes_gone) + (SELECT count(*) FROM retweets_gone)
         + (SELECT count(*) FROM blocks_gone) + (SELECT count(*) FROM mutes_gone)
         + (SELECT count(*) FROM keys_gone) + (SELECT count(*) FROM marks_gone) + (SELECT count(*) FROM days_gone)";

/// Nothing is left for now.
const DONE: &str = "UPDATE erasures SET done = true WHERE user_id = $1";

/// Tweets that were on their way when the account was deleted: their ids are of about that time or later.
const LATE_TWEETS: &str = "
    UPDATE tweets SET content = '', media = NULL, deleted_at = now(), updated_at = now()
    WHERE user_id = $1 AND deleted_at IS NULL
      AND id >= (SELECT (feedmill_micros(deleted_at) / 1000 - 60000) << 16 FROM erasures WHERE user_id = $1)";

const END: &str = "DELETE FROM erasures WHERE user_id = $1";

/// Begins to remove what `user` has, in the transaction that deletes the account.
pub(crate) async fn begin(transaction: &Transaction<'_>, user: i64) -> Result<(), DatabaseError> {
    transaction.query(BEGIN, &[&user]).await?;
    remove_some(transaction, user).await?;
    Ok(())
}

/// Removes some more of what deleted accounts have left; whether there may be more to do now.
pub(crate) async fn go_on(database: &Database) -> Result<bool, DatabaseError> {
    let mut session = database.session().await?;
    let transaction = session.begin().await?;
    let rows = transaction.query(NEXT, &[]).await?;
    let Some(row) = rows.first() else {
        transaction.commit().await?;
        return Ok(false);
    };
    let (user, done): (i64, bool) = (column(row, 0)?, column(row, 1)?);
    let removed = remove_some(&transaction, user).await?;
    if removed == 0 && done {
        transaction.query(LATE_TWEETS, &[&user]).await?;
        transaction.query(END, &[&user]).await?;
    } else if removed == 0 {
        transaction.query(DONE, &[&user]).await?;
    }
    transaction.commit().await?;
    Ok(true)
}

/// Removes up to [`ROWS_MAX`] of each relation; tells how many rows it met.
async fn remove_some(transaction: &Transaction<'_>, user: i64) -> Result<i64, DatabaseError> {
    let mut met = 0;
    for sql in [TWEETS, EDGES] {
        let rows = transaction.query(sql, &[&user, &ROWS_MAX]).await?;
        met += rows.first().map_or(Ok(0), |row| column::<i64>(row, 0))?;
    }
    Ok(met)
}
