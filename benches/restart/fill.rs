//! What the system holds.

use std::path::Path;

use anyhow::Context;
use feedmill_ingest::{Log, Options};
use feedmill_model::{Activity, Follow, Row, User};
use futures::SinkExt;

use crate::Args;

/// Rows that are copied at a time.
const CHUNK: usize = 65_536;
/// Tweets of a transaction: fewer than make it a bulk batch, which is not fanned out.
const TRANSACTION: i64 = 50_000;
const DAY_MS: u64 = 86_400_000;
/// 2024-01-01, when the first user came, in milliseconds since 1970; then one came every ten seconds.
const FIRST_MS: i64 = 1_704_067_200_000;

/// Id of a user.
pub fn user(number: i64) -> i64 {
    (FIRST_MS + number * 10_000) << 16
}

fn now_ms() -> u64 {
    std::time::SystemTime::UNIX_EPOCH.elapsed().map_or(0, |since| since.as_millis() as u64)
}

/// Puts users, follows and activity into the change log of a system that does not run, in the place of what it has; its
/// stores go.
pub fn graph(folder: &Path, args: &Args) -> anyhow::Result<()> {
    let dir = folder.join("log");
    let log = Log::open(&dir, Options::default())?;
    let source = log.source().context("the log has no source")?;
    let lsn = log.position().context("the log has no position")?.lsn;
    drop(log);
    std::fs::remove_dir_all(&dir)?;
    let log = Log::open(&dir, Options::default())?;
    let day = i32::try_from(now_ms() / DAY_MS)?;
    log.begin_copy(&source)?;
    let copy = |rows: &mut Vec<Row>| log.copy_rows(std::mem::take(rows));
    let mut rows = Vec::new();
    for number in 0..args.users {
        let id = user(number);
        let created_at = (id >> 16) * 1_000;
        let (username, display_name) = (format!("user{number}"), format!("User {number}"));
        rows.push(Row::User(Box::new(User {
            id,
            username,
            display_name,
            created_at,
            updated_at: created_at,
            ..User::default()
        })));
        rows.push(Row::Activity(Activity { user_id: id, day }));
        rows.extend((1..=args.follows).map(|nth| {
            // Spread over all, and each followed by about as many.
            let following_id = user((number + nth * nth * 7_919 + nth) % args.users);
            Row::Follow(Follow { follower_id: id, following_id, accepted: true, created_at })
        }));
        if rows.len() >= CHUNK {
            copy(&mut rows)?;
        }
    }
    copy(&mut rows)?;
    log.finish_copy(lsn, now_ms())?;
    drop(log);
    for store in ["index", "home", "search"] {
        std::fs::remove_dir_all(folder.join(store))?;
    }
    Ok(())
}

/// Posts the tweets: each user in turn.
pub async fn tweets(folder: &Path, args: &Args) -> anyhow::Result<()> {
    let mut config = tokio_postgres::Config::new();
    // The superuser: rows without the accounts that they refer to.
    config.host_path(folder.join("postgres/socket")).user("postgres").dbname("feedmill");
    let (client, connection) = config.connect(tokio_postgres::NoTls).await?;
    tokio::spawn(connection);
    client.batch_execute("SET session_replication_role = replica").await?;
    let first_ms = now_ms() as i64 - args.tweets;
    for begin in (0..args.tweets).step_by(TRANSACTION as usize) {
        let sink = client.copy_in("COPY tweets (id, user_id, content, conversation_id) FROM STDIN").await?;
        let mut sink = std::pin::pin!(sink);
        let mut text = String::new();
        for number in begin..(begin + TRANSACTION).min(args.tweets) {
            let id = (first_ms + number) << 16;
            let author = user(number.wrapping_mul(7_919) % args.users);
            text.push_str(&format!("{id}\t{author}\tA tweet of some length, as tweets are: number {number}\t{id}\n"));
        }
        sink.send(bytes::Bytes::from(text)).await?;
        sink.close().await?;
    }
    Ok(())
}
