//! What one write costs as it passes through all jobs: each in a batch of its own.

use std::time::Instant;

use feedmill_model::{Change, Row, Tweet};

use crate::world::{World, new};
use crate::{Args, cpu};

/// Writes of each kind.
const WRITES: i64 = 20_000;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut world = World::load(args)?;
    println!("one write at a time, {} users, {} workers", args.users, args.workers);
    println!("  {:<38} {:>10} {:>10}", "", "µs", "CPU µs");
    let mut posts: Vec<Tweet> = Vec::new();
    for n in 0..WRITES {
        let text = format!("Post {n} about #tag{}, long enough to be like others that people write", n % 1_000);
        posts.push(world.tweet(world.author(n), text, None));
    }
    let row = |tweet: &Tweet| Row::Tweet(Box::new(tweet.clone()));
    measure(&mut world, "post (200 followers)", posts.iter().map(|post| new(row(post))).collect())?;
    let replies = posts.iter().zip(WRITES..).map(|(post, n)| {
        let text = format!("Answer {n}, long enough to be like others that people write");
        let reply = world.tweet(world.anyone(n), text, Some(post));
        new(Row::Tweet(Box::new(reply)))
    });
    let replies = replies.collect();
    measure(&mut world, "reply", replies)?;
    let likes = posts.iter().zip(0..).map(|(post, n)| world.like(world.anyone(n), post.id)).collect();
    measure(&mut world, "like", likes)?;
    let follows = (0..WRITES).map(|n| world.follow(world.anyone(n), 10_000_000 + n)).collect();
    measure(&mut world, "follow", follows)?;
    let now = world.now();
    let deleted = posts.iter().map(|post| {
        let gone = Tweet { content: String::new(), deleted_at: Some(now), ..post.clone() };
        Change { old: Some(row(post)), new: Some(row(&gone)) }
    });
    let deleted = deleted.collect();
    measure(&mut world, "delete of a post (200 followers)", deleted)?;
    world.stop()
}

fn measure(world: &mut World, what: &str, changes: Vec<Change>) -> anyhow::Result<()> {
    let count = changes.len() as f64;
    let (began, before) = (Instant::now(), cpu()?);
    for change in changes {
        world.write(1, vec![change])?;
    }
    world.wait()?;
    let (took, spent) = (began.elapsed().as_secs_f64(), (cpu()? - before).as_secs_f64());
    println!("  {what:<38} {:>10.1} {:>10.1}", took * 1e6 / count, spent * 1e6 / count);
    Ok(())
}
