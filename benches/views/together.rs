//! The rate that all jobs must keep up with, as fast as it goes.

use std::time::Instant;

use feedmill_model::{Row, Tweet};

use crate::world::{World, new, spread};
use crate::{Args, cpu};

/// Batches a second, and what is in each: together 6,000 tweets (a quarter of them replies), 3,000 likes, 600 retweets and
/// 500 follows a second.
const BATCHES: u64 = 100;
const TWEETS: i64 = 60;
const LIKES: i64 = 30;
const RETWEETS: i64 = 6;
const FOLLOWS: i64 = 5;
/// Tweets that are liked, retweeted and answered: the last so many.
const RECENT: usize = 50_000;
/// Batches after which the stores are made durable, as housekeeping does.
const DURABLE: u64 = 500;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut world = World::load(args)?;
    let mut recent: Vec<Tweet> = Vec::with_capacity(RECENT);
    let deliveries = world.home.deliveries();
    let (began, cpu_before) = (Instant::now(), cpu()?);
    let parts_before = world.profile.elapsed();
    let mut n = 0_i64;
    for batch in 0..args.seconds * BATCHES {
        let mut changes = Vec::new();
        for _ in 0..TWEETS {
            n += 1;
            let (tag, named) = (spread(n, 1 + spread(n, 10_000)), world.anyone(n));
            let text = match n % 10 {
                0..4 => format!("Post {n} about #tag{tag}, long enough to be like others that people write"),
                4 => format!("Post {n} for @user{named}, long enough to be like others that people write"),
                _ => format!("Post {n} about nothing in particular, long enough to be like others that people write"),
            };
            let parent = recent.get(spread(n, recent.len() as i64) as usize).filter(|_| n % 4 == 0).cloned();
            let tweet = world.tweet(world.author(n), text, parent.as_ref());
            changes.push(new(Row::Tweet(Box::new(tweet.clone()))));
            if recent.len() < RECENT {
                recent.push(tweet);
            } else if let Some(place) = recent.get_mut(n as usize % RECENT) {
                *place = tweet;
            }
        }
        let picked = |n: i64| recent.get(spread(n, recent.len() as i64) as usize).map_or(0, |tweet| tweet.id);
        for one in 0..LIKES {
            let number = n * LIKES + one;
            changes.push(world.like(world.anyone(number), picked(number)));
        }
        for one in 0..RETWEETS {
            let number = n * RETWEETS + one;
            let change = world.retweet(world.author(number), picked(number + 7));
            changes.push(change);
        }
        for one in 0..FOLLOWS {
            let number = n * FOLLOWS + one;
            // An account that nobody follows by the graph: each pair comes once.
            changes.push(world.follow(world.anyone(number), 10_000_000 + number));
        }
        world.write(1_000 / BATCHES, changes)?;
        if batch % DURABLE == DURABLE - 1 {
            world.index.durable()?;
        }
    }
    world.wait()?;
    let (took, spent) = (began.elapsed().as_secs_f64(), (cpu()? - cpu_before).as_secs_f64());
    let seconds = args.seconds as f64;
    println!("{} users, {} workers, {} s of load", args.users, args.workers, args.seconds);
    println!("  6,000 tweets/s, 3,000 likes/s, 600 retweets/s, 500 follows/s: {:.2} times as fast", seconds / took);
    println!("  cores at that rate                     {:>10.2}", spent / seconds);
    println!("  deliveries                             {:>10}", world.home.deliveries() - deliveries);
    let mut parts: Vec<(String, f64)> = Vec::new();
    for (name, elapsed) in world.profile.elapsed() {
        let before = parts_before.get(&name).copied().unwrap_or_default();
        parts.push((name, elapsed.saturating_sub(before).as_secs_f64()));
    }
    parts.sort_by(|one, other| other.1.total_cmp(&one.1));
    let all: f64 = parts.iter().map(|(_, elapsed)| elapsed).sum();
    println!("  {:<38} {:>10} {:>8}", "part of the dataflow", "s", "share");
    for (name, elapsed) in parts.into_iter().take(16) {
        println!("  {name:<38} {elapsed:>10.2} {:>7.1}%", 100.0 * elapsed / all);
    }
    world.stop()
}
