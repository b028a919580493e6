//! What the dataflows keep of a row, as RSS: rows of several kinds are loaded, and those before them subtracted.

use std::process::Command;
use std::time::{Duration, Instant};

use clap::ValueEnum;
use feedmill_model::{Row, Tweet, id_at};

use crate::Args;
use crate::world::{START, World, new};

/// Rows that are written.
const ROWS: i64 = 1_000_000;
/// Older than any window.
const OLD_MS: i64 = 60 * 86_400_000;

/// What is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Rows {
    /// Nothing.
    None,
    /// Posts of two months ago without tags: the author of a tweet, for notifications.
    OldPosts,
    /// Replies of two months ago: the thread beside.
    OldReplies,
    /// Posts of now with a tag that many use: both windows of the trends beside.
    TaggedPosts,
    /// Likes of now of the old posts: the trend, and the notification.
    OldPostsLiked,
}

pub fn run(args: &Args) -> anyhow::Result<()> {
    println!("{:<40} {:>14}", "kept by the dataflows, one worker", "bytes a row");
    let bytes = |rows| measure(args, rows);
    let (none, posts) = (bytes(Rows::None)?, bytes(Rows::OldPosts)?);
    let row = |with: f64, without: f64| (with - without) / ROWS as f64;
    println!("  {:<38} {:>14.1}", "post (its author)", row(posts, none));
    println!("  {:<38} {:>14.1}", "reply (author, place in the thread)", row(bytes(Rows::OldReplies)?, none));
    println!("  {:<38} {:>14.1}", "post with a tag (author, two trends)", row(bytes(Rows::TaggedPosts)?, none));
    println!("  {:<38} {:>14.1}", "like (trend, notification)", row(bytes(Rows::OldPostsLiked)?, posts));
    Ok(())
}

fn measure(args: &Args, rows: Rows) -> anyhow::Result<f64> {
    let name = rows.to_possible_value().map(|value| value.get_name().to_owned()).unwrap_or_default();
    let output = Command::new(std::env::current_exe()?)
        .env("MIMALLOC_PURGE_DELAY", "0")
        .args(["--part", "memory", "--rows", &name, "--users", "10000", "--workers", "1"])
        .args(["--follows", "1", "--followers", &args.followers.to_string()])
        .output()?;
    anyhow::ensure!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Ok(String::from_utf8(output.stdout)?.trim().parse()?)
}

/// Writes the rows, and prints the memory.
pub fn of(args: &Args, rows: Rows) -> anyhow::Result<()> {
    let mut world = World::load(args)?;
    let old = |n: i64, parent: Option<i64>, text: &str| {
        let id = id_at(START as i64 - OLD_MS + n / 1_000, (n % 1_000) as u16);
        let (reply_to_id, conversation_id, at) = (parent, parent.unwrap_or(id), (START as i64 - OLD_MS) * 1_000);
        let content = text.to_owned();
        Tweet { id, user_id: n % 10_000, content, reply_to_id, conversation_id, created_at: at, ..Tweet::default() }
    };
    let numbers: Vec<i64> = (0..ROWS).collect();
    for numbers in numbers.chunks(10_000) {
        let row = |n: &i64| match rows {
            Rows::None => None,
            Rows::OldPosts | Rows::OldPostsLiked => Some(old(*n, None, "Something")),
            Rows::OldReplies => Some(old(*n, Some(n / 100 - 1_000_000), "Something")),
            Rows::TaggedPosts => {
                let now = START as i64 * 1_000;
                Some(Tweet { created_at: now, ..old(*n, None, &format!("Something #tag{}", n % 1_000)) })
            }
        };
        world.write(1, numbers.iter().filter_map(row).map(|tweet| new(Row::Tweet(Box::new(tweet)))).collect())?;
        if rows == Rows::OldPostsLiked {
            let like = |n: &i64| world.like((n + 1) % 10_000, old(*n, None, "").id);
            let likes = numbers.iter().map(like).collect();
            world.write(1, likes)?;
        }
        world.wait()?;
        world.index.durable()?;
    }
    // The stores' own rows are in tables, and their memory is bounded.
    world.index.write_out(Duration::from_secs(60))?;
    let began = Instant::now();
    let mut least = f64::MAX;
    while began.elapsed() < Duration::from_secs(6) {
        world.write(1, Vec::new())?;
        world.wait()?;
        least = least.min(resident());
    }
    println!("{least}");
    world.stop()
}

/// Resident memory of this process in bytes.
fn resident() -> f64 {
    let statm = std::fs::read_to_string("/proc/self/statm").unwrap_or_default();
    let pages: f64 = statm.split(' ').nth(1).and_then(|pages| pages.parse().ok()).unwrap_or_default();
    pages * 4_096.0
}
