//! Puts the graph into an empty database.
//!
//! Everything goes by COPY in a fixed order, in transactions of [`USERS_MAX`] users and [`FOLLOWS_MAX`] follows: below the
//! 100,000 changes that make a bulk batch, so that the system takes the graph as it takes ordinary writes. So a run that
//! died is continued where it stopped: how many rows are there says which come next. `imports` says which graph has been
//! begun (`load-<hash>`), and which is there (`load-<hash> complete`).

use std::pin::pin;

use anyhow::{Context, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Transaction};

use super::graph::Graph;
use crate::exclusion::exclude_others;

/// Users a transaction.
const USERS_MAX: usize = 10_000;
/// Follows a transaction.
const FOLLOWS_MAX: usize = 50_000;
/// Tweets that each hot account has from the start: what readers merge.
const HOT_TWEETS: i32 = 50;

/// Makes sure that the database holds the graph with every user active, and nothing but it. An empty database is filled.
pub async fn fill(client: &mut Client, graph: &Graph) -> anyhow::Result<()> {
    exclude_others(client, "load").await?;
    let (begun, complete) = (graph.name(), format!("{} complete", graph.name()));
    let state = "
        SELECT EXISTS (SELECT FROM imports WHERE name = $1), EXISTS (SELECT FROM imports WHERE name = $2),
            EXISTS (SELECT FROM users)";
    let row = client
        .query_one(state, &[&begun, &complete])
        .await
        .context("could not see what the database holds: start `feedmill up` first, which makes the tables")?;
    if row.get(1) {
        return stay_active(client).await;
    }
    ensure!(
        row.get::<_, bool>(0) || !row.get::<_, bool>(2),
        "the database holds users, but not those of the graph {begun}: give load a system of its own, in an empty folder \
         (--data), or the settings of the graph that is there"
    );
    record(client, &begun).await?;
    let style = ProgressStyle::with_template("filling  {wide_bar} {human_pos}/{human_len} rows {eta}");
    let bar = ProgressBar::new(graph.plan().users + graph.follows()).with_style(style?);
    users(client, graph, &bar).await.context("could not copy the users")?;
    follows(client, graph, &bar).await.context("could not copy the follows")?;
    bar.finish_and_clear();
    finish(client, graph, &complete).await.context("could not complete the graph")
}

async fn record(client: &Client, name: &str) -> anyhow::Result<()> {
    let insert = "INSERT INTO imports (name, shift_ms) VALUES ($1, 0) ON CONFLICT DO NOTHING";
    client.execute(insert, &[&name]).await.with_context(|| format!("could not record {name}"))?;
    Ok(())
}

/// A graph that was made days ago is made active again, long before anybody expires.
async fn stay_active(client: &Client) -> anyhow::Result<()> {
    let today = "
        INSERT INTO activity (user_id, day)
        SELECT id, (now() AT TIME ZONE 'UTC')::date FROM users
        WHERE NOT EXISTS (SELECT FROM activity WHERE day > (now() AT TIME ZONE 'UTC')::date - 7)
        ON CONFLICT DO NOTHING";
    client.execute(today, &[]).await.context("could not make the users active")?;
    Ok(())
}

async fn rows_of(client: &Client, table: &str) -> anyhow::Result<usize> {
    let count: i64 = client.query_one(&format!("SELECT count(*) FROM {table}"), &[]).await?.get(0);
    Ok(usize::try_from(count)?)
}

async fn copy<'a, R>(transaction: &Transaction<'_>, into: &str, types: &[Type], rows: R) -> anyhow::Result<()>
where
    R: Iterator<Item = Vec<&'a (dyn ToSql + Sync)>>,
{
    let copy = transaction.copy_in(&format!("COPY {into} FROM STDIN BINARY")).await?;
    let mut writer = pin!(BinaryCopyInWriter::new(copy, types));
    for row in rows {
        writer.as_mut().write(&row).await?;
    }
    writer.finish().await?;
    Ok(())
}

/// A user, the account and the activity are one transaction, so the number of users says how far the three are.
async fn users(client: &mut Client, graph: &Graph, bar: &ProgressBar) -> anyhow::Result<()> {
    let there = rows_of(client, "users").await?;
    bar.inc(there as u64);
    let all: Vec<i64> = (1..=graph.plan().users.cast_signed()).skip(there).collect();
    for chunk in all.chunks(USERS_MAX) {
        let named: Vec<(i64, String, bool)> =
            chunk.iter().map(|id| (*id, format!("load_{id}"), graph.hot().contains(id))).collect();
        let transaction = client.transaction().await?;
        copy(
            &transaction,
            "accounts (user_id, username)",
            &[Type::INT8, Type::TEXT],
            named.iter().map(|(id, name, _)| vec![id as &(dyn ToSql + Sync), name]),
        )
        .await?;
        copy(
            &transaction,
            "users (id, username, display_name, verified)",
            &[Type::INT8, Type::TEXT, Type::TEXT, Type::BOOL],
            named.iter().map(|(id, name, hot)| vec![id as &(dyn ToSql + Sync), name, name, hot]),
        )
        .await?;
        let active = "INSERT INTO activity (user_id, day)
                      SELECT id, (now() AT TIME ZONE 'UTC')::date FROM unnest($1::bigint[]) AS id";
        transaction.execute(active, &[&chunk]).await?;
        transaction.commit().await?;
        bar.inc(chunk.len() as u64);
    }
    Ok(())
}

async fn follows(client: &mut Client, graph: &Graph, bar: &ProgressBar) -> anyhow::Result<()> {
    let there = rows_of(client, "follows").await?;
    bar.inc(there as u64);
    let followed = 1..=*graph.hot().end();
    let mut all = followed
        .flat_map(|following| graph.followers_of(following).into_iter().map(move |follower| (follower, following)))
        .skip(there)
        .peekable();
    while all.peek().is_some() {
        let chunk: Vec<(i64, i64)> = all.by_ref().take(FOLLOWS_MAX).collect();
        let transaction = client.transaction().await?;
        copy(
            &transaction,
            "follows (follower_id, following_id)",
            &[Type::INT8, Type::INT8],
            chunk.iter().map(|(follower, following)| vec![follower as &(dyn ToSql + Sync), following]),
        )
        .await?;
        transaction.commit().await?;
        bar.inc(chunk.len() as u64);
    }
    Ok(())
}

/// The tweets of the hot accounts, and the record that all is there, in one transaction.
async fn finish(client: &mut Client, graph: &Graph, complete: &str) -> anyhow::Result<()> {
    let (users, follows) = (rows_of(client, "users").await? as u64, rows_of(client, "follows").await? as u64);
    if (users, follows) != (graph.plan().users, graph.follows()) {
        bail!(
            "the database holds {users} users and {follows} follows instead of {} and {}: somebody else writes to it",
            graph.plan().users,
            graph.follows()
        );
    }
    client.batch_execute("ANALYZE users, follows, activity").await?;
    let transaction = client.transaction().await?;
    let tweets = "
        WITH fresh AS MATERIALIZED (
            SELECT feedmill_id() AS id, author, n
            FROM generate_series(1, $1::integer) AS n, unnest($2::bigint[]) AS author)
        INSERT INTO tweets (id, user_id, content, conversation_id)
        SELECT id, author, format('Tweet %s of a hot account', n), id FROM fresh";
    transaction.execute(tweets, &[&HOT_TWEETS, &graph.hot().collect::<Vec<i64>>()]).await?;
    transaction.execute("INSERT INTO imports (name, shift_ms) VALUES ($1, 0)", &[&complete]).await?;
    transaction.commit().await?;
    Ok(())
}
