//! From staged tweets to tweets with ids: what [`mint`](mod@super::mint) needs to know is read, what it decides is written
//! into `minted_tweets`.

use std::pin::pin;

use anyhow::Context;
use futures::TryStreamExt;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};
use tokio_postgres::{Client, Row};

use super::file::Kind;
use super::mint::{Mint, Minted, Tweet};
use super::report::Report;
use super::{check, mint};

const TABLES: &str = "
    CREATE TEMPORARY TABLE before_tweets (source_id bigint, tweet_id bigint);
    CREATE TEMPORARY TABLE minted_tweets (
        line bigint, source_id bigint, id bigint, reply_to_id bigint, conversation_id bigint);
";

const INDEXES: &str = "
    CREATE INDEX ON minted_tweets (source_id);
    CREATE INDEX ON minted_tweets (id);
    CREATE INDEX ON minted_tweets (line);
    ANALYZE minted_tweets;
";

/// Fills `minted_tweets` with the id of each good tweet, and `before_tweets` with those of earlier runs.
pub async fn mint(client: &Client, name: &str, shift_ms: i64, report: &mut Report) -> anyhow::Result<()> {
    client.batch_execute(TABLES).await.context("could not make the temporary tables")?;
    let before = "INSERT INTO before_tweets SELECT source_id, tweet_id FROM imported_tweets WHERE import = $1";
    client.execute(before, &[&name]).await.context("could not read imported_tweets")?;
    client.batch_execute("CREATE INDEX ON before_tweets (source_id); ANALYZE before_tweets").await?;

    let staged =
        "SELECT line, source_id, source_reply_to, created_ms + $1 FROM staged_tweets ORDER BY created_ms, line";
    let tweets = read(client, staged, &[&shift_ms], |row| Tweet {
        line: row.get(0),
        source_id: row.get(1),
        reply_to: row.get(2),
        ms: row.get(3),
    })
    .await?;
    let mut world = world(client, shift_ms, &tweets).await?;
    let minted = world.mint(&tweets);
    write(client, &tweets, &minted, report).await?;
    client.batch_execute(INDEXES).await?;
    check::minted(client, report).await
}

/// What the tweets are minted against.
async fn world(client: &Client, shift_ms: i64, tweets: &[Tweet]) -> anyhow::Result<Mint> {
    let mut world = Mint { shift_ms, ..Mint::default() };
    let (Some(first), Some(last)) = (tweets.first(), tweets.last()) else { return Ok(world) };
    let known = "SELECT b.source_id, t.id, t.reply_to_id, t.conversation_id
                 FROM before_tweets b JOIN tweets t ON t.id = b.tweet_id";
    world.known = read(client, known, &[], of_database).await?.into_iter().collect();
    let kept = "SELECT DISTINCT t.id AS source_id, t.id, t.reply_to_id, t.conversation_id
                FROM staged_tweets s JOIN tweets t ON t.id = s.source_reply_to";
    world.kept = read(client, kept, &[], of_database).await?.into_iter().collect();
    let taken = "SELECT t.id FROM tweets t WHERE t.id >= $1::bigint << 16 AND t.id < ($2::bigint + 1) << 16
                 AND t.id >> 16 IN (SELECT created_ms + $3::bigint FROM staged_tweets)";
    world.taken = read(client, taken, &[&first.ms, &last.ms, &shift_ms], |row| row.get(0)).await?.into_iter().collect();
    Ok(world)
}

fn of_database(row: &Row) -> (i64, Minted) {
    (row.get(0), Minted { id: row.get(1), reply_to: row.get(2), conversation: row.get(3) })
}

async fn read<T>(
    client: &Client,
    query: &str,
    parameters: &[&(dyn ToSql + Sync)],
    of: impl Fn(&Row) -> T,
) -> anyhow::Result<Vec<T>> {
    let context = "could not read the tweets that ids are minted for";
    let mut rows = pin!(client.query_raw(query, parameters.iter().copied()).await.context(context)?);
    let mut all = Vec::new();
    while let Some(row) = rows.try_next().await.context(context)? {
        all.push(of(&row));
    }
    Ok(all)
}

async fn write(
    client: &Client,
    tweets: &[Tweet],
    minted: &[Result<Minted, mint::Refusal>],
    report: &mut Report,
) -> anyhow::Result<()> {
    let context = "could not copy into minted_tweets";
    let copy = client.copy_in("COPY minted_tweets FROM STDIN BINARY").await.context(context)?;
    let mut rows = pin!(BinaryCopyInWriter::new(copy, &[Type::INT8, Type::INT8, Type::INT8, Type::INT8, Type::INT8]));
    for (tweet, minted) in tweets.iter().zip(minted) {
        match minted {
            Ok(Minted { id, reply_to, conversation }) => rows
                .as_mut()
                .write(&[&tweet.line, &tweet.source_id, id, reply_to, conversation])
                .await
                .context(context)?,
            Err(refusal) => report.refuse(Kind::Tweets, tweet.line, &refusal.to_string()),
        }
    }
    rows.finish().await.context(context)?;
    Ok(())
}
