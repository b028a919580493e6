//! From the temporary tables into the relations, a bounded transaction at a time.
//!
//! Users come with their accounts and their activity in one transaction, before anything refers to them; then tweets by
//! id, so that what is answered comes before what answers it; then follows, then likes.
//!
//! A transaction holds [`ROWS_MAX`] rows. Far fewer than what makes a bulk batch (100,000), which would not be fanned out
//! and would raise every viewer's floor; enough that the commits cost nothing beside the rows; and few enough that they
//! show soon, and that a crash repeats little.

use std::time::Duration;

use anyhow::{Context, bail};
use tokio_postgres::error::SqlState;
use tokio_postgres::types::ToSql;
use tokio_postgres::{Client, Transaction};

use super::file::Kind;
use super::report::Report;
use super::{Record, stage};

/// Rows a transaction.
const ROWS_MAX: i64 = 10_000;
/// Making a partition waits 2 s for the writers of `tweets`; so often it is tried.
const PARTITION_ATTEMPTS_MAX: u32 = 30;

/// What is inserted, in final form: numbered from 1 in the order of insertion. `{shift}` and `{begun}` are milliseconds and
/// microseconds; a row without a time has that of the import's beginning, and follows keep the order of their file by
/// microseconds after it.
const READY: &str = "
    CREATE TEMPORARY TABLE ready_users AS
    SELECT row_number() OVER (ORDER BY line, id) AS n, line, id, username, display_name, email,
        timestamptz 'epoch' + coalesce((created_ms + {shift}) * interval '1 millisecond',
                                       {begun} * interval '1 microsecond') AS moment
    FROM staged_users;
    CREATE TEMPORARY TABLE ready_tweets AS
    SELECT row_number() OVER (ORDER BY m.id) AS n, m.line, m.source_id, m.id, s.user_id, s.content, m.reply_to_id,
        m.conversation_id, timestamptz 'epoch' + (s.created_ms + {shift}) * interval '1 millisecond' AS moment
    FROM minted_tweets m JOIN staged_tweets s USING (line);
    CREATE TEMPORARY TABLE ready_follows AS
    SELECT row_number() OVER (ORDER BY line) AS n, line, follower, following,
        timestamptz 'epoch' + coalesce((created_ms + {shift}) * interval '1 millisecond',
                                       ({begun} + line) * interval '1 microsecond') AS moment
    FROM staged_follows;
    CREATE TEMPORARY TABLE ready_likes AS
    SELECT row_number() OVER (ORDER BY line) AS n, line, user_id, tweet_id,
        timestamptz 'epoch' + (created_ms + {shift}) * interval '1 millisecond' AS moment
    FROM resolved_likes;
    CREATE INDEX ON ready_users (n);
    CREATE INDEX ON ready_tweets (n);
    CREATE INDEX ON ready_follows (n);
    CREATE INDEX ON ready_likes (n);
    ANALYZE ready_users, ready_tweets, ready_follows, ready_likes;
";

const ACCOUNTS: &str = "
    INSERT INTO accounts (user_id, username, email, created_at)
    SELECT id, username, email, moment FROM ready_users WHERE n > $1 AND n <= $2
    ON CONFLICT DO NOTHING";
const USERS: &str = "
    INSERT INTO users (id, username, display_name, created_at, updated_at)
    SELECT r.id, r.username, r.display_name, r.moment, r.moment
    FROM ready_users r JOIN accounts a ON a.user_id = r.id AND a.username = r.username
    WHERE r.n > $1 AND r.n <= $2
    ON CONFLICT DO NOTHING";
/// Only users who are new are active today: a run that changes nothing else does not change this.
const ACTIVITY: &str = "INSERT INTO activity (user_id, day) SELECT id, (now() AT TIME ZONE 'UTC')::date FROM inserted";
const USERS_LOST: &str = "
    SELECT line, format('the username %s or the e-mail address was taken meanwhile', username) FROM ready_users r
    WHERE n > $1 AND n <= $2 AND NOT EXISTS (SELECT FROM users u WHERE u.id = r.id)";
const TWEETS: &str = "
    INSERT INTO tweets (id, user_id, content, reply_to_id, conversation_id, created_at, updated_at)
    SELECT id, user_id, content, reply_to_id, conversation_id, moment, moment
    FROM ready_tweets WHERE n > $1 AND n <= $2
    ON CONFLICT DO NOTHING";
const IMPORTED_TWEETS: &str = "
    INSERT INTO imported_tweets (import, source_id, tweet_id)
    SELECT $3, source_id, id FROM ready_tweets WHERE n > $1 AND n <= $2 AND source_id <> id
    ON CONFLICT DO NOTHING";
const FOLLOWS: &str = "
    INSERT INTO follows (follower_id, following_id, created_at)
    SELECT follower, following, moment FROM ready_follows WHERE n > $1 AND n <= $2
    ON CONFLICT DO NOTHING";
const LIKES: &str = "
    INSERT INTO likes (user_id, tweet_id, created_at)
    SELECT user_id, tweet_id, moment FROM ready_likes WHERE n > $1 AND n <= $2
    ON CONFLICT DO NOTHING";

/// Inserts everything that is not there yet.
pub async fn all(
    client: &mut Client,
    name: &str,
    record: &Record,
    active: bool,
    report: &mut Report,
) -> anyhow::Result<()> {
    let ready = READY
        .replace("{shift}", &format!("({}::bigint)", record.shift_ms))
        .replace("{begun}", &format!("({}::bigint)", record.begun_micros));
    client.batch_execute(&ready).await.context("could not prepare the rows")?;
    partitions(client).await?;

    const KINDS: [(Kind, &str); 4] = [
        (Kind::Users, "ready_users"),
        (Kind::Tweets, "ready_tweets"),
        (Kind::Follows, "ready_follows"),
        (Kind::Likes, "ready_likes"),
    ];
    let mut rows = Vec::new();
    for (kind, table) in KINDS {
        let count: i64 = client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?.get(0);
        rows.push((kind, count));
    }
    let total: i64 = rows.iter().map(|(_, count)| count).sum();
    let bar = stage::bar(total.unsigned_abs(), "writing  {wide_bar} {human_pos}/{human_len} rows {eta}");
    for (kind, count) in rows {
        let mut after = 0;
        while after < count {
            let upto = count.min(after + ROWS_MAX);
            let transaction = client.transaction().await.context("could not begin a transaction")?;
            let inserted = insert(&transaction, kind, name, active, (after, upto))
                .await
                .with_context(|| format!("could not insert {}", kind.name()))?;
            let lost =
                if kind == Kind::Users { transaction.query(USERS_LOST, &[&after, &upto]).await? } else { Vec::new() };
            transaction.commit().await.with_context(|| format!("could not commit {}", kind.name()))?;
            bar.suspend(|| lost.iter().for_each(|row| report.lose(kind, row.get(0), row.get(1))));
            let there = (upto - after).unsigned_abs().saturating_sub(inserted + lost.len() as u64);
            report.written(kind, inserted, there);
            bar.inc((upto - after).unsigned_abs());
            after = upto;
        }
    }
    bar.finish_and_clear();
    Ok(())
}

/// Inserts the rows of a kind after the first number, up to the second; gives how many were new.
async fn insert(
    transaction: &Transaction<'_>,
    kind: Kind,
    name: &str,
    active: bool,
    (after, upto): (i64, i64),
) -> Result<u64, tokio_postgres::Error> {
    let range: [&(dyn ToSql + Sync); 2] = [&after, &upto];
    match kind {
        Kind::Users => {
            transaction.execute(ACCOUNTS, &range).await?;
            match active {
                true => {
                    let both = format!("WITH inserted AS ({USERS} RETURNING id) {ACTIVITY}");
                    transaction.execute(&both, &range).await
                }
                false => transaction.execute(USERS, &range).await,
            }
        }
        Kind::Tweets => {
            transaction.execute(IMPORTED_TWEETS, &[&after, &upto, &name]).await?;
            transaction.execute(TWEETS, &range).await
        }
        Kind::Follows => transaction.execute(FOLLOWS, &range).await,
        Kind::Likes => transaction.execute(LIKES, &range).await,
    }
}

/// Makes the partitions of the quarters that the tweets lie in.
async fn partitions(client: &Client) -> anyhow::Result<()> {
    let quarters = "
        SELECT min(id >> 16) FROM ready_tweets
        GROUP BY date_trunc('quarter', timestamp '1970-01-01' + (id >> 16) * interval '1 millisecond') ORDER BY 1";
    for row in client.query(quarters, &[]).await.context("could not find the quarters of the tweets")? {
        let ms: i64 = row.get(0);
        let mut attempts = 0;
        while let Err(error) = client.execute("SELECT feedmill_quarter_partition($1)", &[&ms]).await {
            attempts += 1;
            if error.code() != Some(&SqlState::LOCK_NOT_AVAILABLE) {
                return Err(error).with_context(|| format!("could not make the partition of the millisecond {ms}"));
            }
            if attempts == PARTITION_ATTEMPTS_MAX {
                bail!(
                    "a long transaction on `tweets` keeps its partition for the millisecond {ms} from being made: end it"
                );
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    }
    Ok(())
}
