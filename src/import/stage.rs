//! From the files into temporary tables, as they are: times and ids are still the files' own.

use std::path::Path;
use std::pin::pin;

use anyhow::Context;
use indicatif::{ProgressBar, ProgressStyle};
use tokio_postgres::Client;
use tokio_postgres::binary_copy::BinaryCopyInWriter;
use tokio_postgres::types::{ToSql, Type};

use super::file::{Kind, Lines, Row};
use super::report::Report;

/// `COLLATE "C"` as in the relations, so that `lower` means the same.
const TABLES: &str = r#"
    CREATE TEMPORARY TABLE staged_users (
        line bigint, id bigint, username text COLLATE "C", display_name text, email text, created_ms bigint);
    CREATE TEMPORARY TABLE staged_tweets (
        line bigint, source_id bigint, user_id bigint, source_reply_to bigint, content text, created_ms bigint);
    CREATE TEMPORARY TABLE staged_follows (line bigint, follower bigint, following bigint, created_ms bigint);
    CREATE TEMPORARY TABLE staged_likes (line bigint, user_id bigint, source_tweet_id bigint, created_ms bigint);
"#;

const INDEXES: &str = "
    CREATE INDEX ON staged_users (id);
    CREATE INDEX ON staged_users (lower(username));
    CREATE INDEX ON staged_users (lower(email));
    CREATE INDEX ON staged_tweets (source_id);
    CREATE INDEX ON staged_follows (follower, following);
    CREATE INDEX ON staged_likes (user_id, source_tweet_id);
    ANALYZE staged_users, staged_tweets, staged_follows, staged_likes;
";

/// Reads the files into `staged_*`. The reads block the calling task: nothing else runs in this process.
pub async fn read(client: &Client, files: &[(Kind, &Path)], report: &mut Report) -> anyhow::Result<()> {
    client.batch_execute(TABLES).await.context("could not make the temporary tables")?;
    let bytes = files.iter().filter_map(|(_, path)| path.metadata().ok()).map(|file| file.len()).sum();
    let bar = bar(bytes, "reading  {wide_bar} {bytes}/{total_bytes} {eta}");
    for (kind, path) in files {
        let mut lines = Lines::open(*kind, path, &bar)?;
        let (table, types) = table(*kind);
        let copy = client
            .copy_in(&format!("COPY {table} FROM STDIN BINARY"))
            .await
            .with_context(|| format!("could not copy into {table}"))?;
        let mut rows = pin!(BinaryCopyInWriter::new(copy, types));
        while let Some(line) = lines.next()? {
            report.read(*kind);
            match line.row {
                Ok(row) => write(rows.as_mut(), line.number, &row).await.with_context(|| {
                    format!("could not copy line {} of {} into {table}", line.number, path.display())
                })?,
                Err(reason) => bar.suspend(|| report.refuse(*kind, line.number, &reason)),
            }
        }
        rows.finish().await.with_context(|| format!("could not copy into {table}"))?;
    }
    bar.finish_and_clear();
    client.batch_execute(INDEXES).await.context("could not index the temporary tables")
}

fn table(kind: Kind) -> (&'static str, &'static [Type]) {
    match kind {
        Kind::Users => ("staged_users", &[Type::INT8, Type::INT8, Type::TEXT, Type::TEXT, Type::TEXT, Type::INT8]),
        Kind::Tweets => ("staged_tweets", &[Type::INT8, Type::INT8, Type::INT8, Type::INT8, Type::TEXT, Type::INT8]),
        Kind::Follows => ("staged_follows", &[Type::INT8, Type::INT8, Type::INT8, Type::INT8]),
        Kind::Likes => ("staged_likes", &[Type::INT8, Type::INT8, Type::INT8, Type::INT8]),
    }
}

async fn write(
    writer: std::pin::Pin<&mut BinaryCopyInWriter>,
    line: i64,
    row: &Row,
) -> Result<(), tokio_postgres::Error> {
    let values: &[&(dyn ToSql + Sync)] = match row {
        Row::User { id, username, display_name, email, created_ms } => {
            &[&line, id, username, display_name, email, created_ms]
        }
        Row::Tweet { id, user_id, reply_to, content, created_ms } => {
            &[&line, id, user_id, reply_to, content, created_ms]
        }
        Row::Follow { follower, following, created_ms } => &[&line, follower, following, created_ms],
        Row::Like { user_id, tweet_id, created_ms } => &[&line, user_id, tweet_id, created_ms],
    };
    writer.write(values).await
}

/// The newest time of all files, in their own milliseconds; `None` where none has times.
pub async fn newest_ms(client: &Client) -> anyhow::Result<Option<i64>> {
    let query = "
        SELECT greatest((SELECT max(created_ms) FROM staged_users), (SELECT max(created_ms) FROM staged_tweets),
                        (SELECT max(created_ms) FROM staged_follows), (SELECT max(created_ms) FROM staged_likes))";
    Ok(client.query_one(query, &[]).await.context("could not find the newest time")?.get(0))
}

/// A progress bar on standard error; nothing where that is not a terminal.
pub fn bar(length: u64, template: &str) -> ProgressBar {
    let style = ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar());
    ProgressBar::new(length).with_style(style)
}
