//! One account, tweet, tag and thread that has it all: what a write costs at the beginning and at the end must be alike.

use std::time::Instant;

use feedmill_model::{Change, Row, Tweet};
use feedmill_sinks::Views;
use futures::executor::block_on;

use crate::Args;
use crate::world::{World, new};

/// Writes of a batch.
const BATCH: usize = 1_000;
/// Replies in the one thread, and how deep the one chain is.
const REPLIES: i64 = 10_000;
const CHAIN: i64 = 1_000;
/// Replies of a page.
const PAGE: usize = 50;

pub fn run(args: &Args) -> anyhow::Result<()> {
    let mut world = World::load(&Args { follows: 1, ..args.clone() })?;
    println!("skew, {} users, {} workers", args.users, args.workers);
    println!("  {:<44} {:>14} {:>14}", "", "first tenth µs", "last tenth µs");
    let post = world.tweet(0, "The one that all like".to_owned(), None);
    world.write(1, vec![new(Row::Tweet(Box::new(post.clone())))])?;
    let likes = (0..args.users).map(|user| world.like(user, post.id)).collect();
    measure(&mut world, &format!("{} likes of one tweet", args.users), likes)?;
    let follows = (1..args.users).map(|user| world.follow(user, 20_000_000)).collect();
    measure(&mut world, &format!("{} follows of one account", args.users), follows)?;
    let tagged = (0..args.users / 5).map(|n| {
        let tweet = world.tweet(n, format!("Post {n} with the #one tag of all"), None);
        new(Row::Tweet(Box::new(tweet)))
    });
    let tagged = tagged.collect();
    measure(&mut world, &format!("{} posts with one tag", args.users / 5), tagged)?;
    let replies = (0..REPLIES).map(|n| new(Row::Tweet(Box::new(world.tweet(n, format!("Answer {n}"), Some(&post))))));
    let replies = replies.collect();
    measure(&mut world, &format!("{REPLIES} replies to one tweet"), replies)?;
    let mut chain: Vec<Tweet> = Vec::new();
    for n in 0..CHAIN {
        let parent = chain.last().unwrap_or(&post).clone();
        chain.push(world.tweet(n, format!("Answer {n}"), Some(&parent)));
    }
    let chained = chain.into_iter().map(|tweet| new(Row::Tweet(Box::new(tweet)))).collect();
    measure(&mut world, &format!("a chain of {CHAIN} replies"), chained)?;
    pages(&world, post.id)?;
    world.stop()
}

fn measure(world: &mut World, what: &str, changes: Vec<Change>) -> anyhow::Result<()> {
    let tenth = changes.len().div_ceil(10);
    let mut took = Vec::new();
    let mut changes = changes.into_iter();
    while changes.len() > 0 {
        let part: Vec<Change> = changes.by_ref().take(tenth).collect();
        let (count, began) = (part.len() as f64, Instant::now());
        for batch in part.chunks(BATCH) {
            world.write(1, batch.to_vec())?;
        }
        world.wait()?;
        world.index.durable()?;
        took.push(began.elapsed().as_secs_f64() * 1e6 / count);
    }
    let of = |tenth: Option<&f64>| tenth.copied().unwrap_or(f64::NAN);
    println!("  {what:<44} {:>14.1} {:>14.1}", of(took.first()), of(took.last()));
    Ok(())
}

/// Reads the whole thread, page by page.
fn pages(world: &World, root: i64) -> anyhow::Result<()> {
    let (views, mut took, mut after) = (world.views(), Vec::new(), None::<Vec<i64>>);
    loop {
        let began = Instant::now();
        let page = block_on(views.replies(root, &[], after.as_deref(), PAGE))?;
        took.push(began.elapsed().as_secs_f64() * 1e3);
        match page.into_iter().next_back() {
            Some(last) => after = Some(last.path),
            None => break,
        }
    }
    took.sort_by(f64::total_cmp);
    let (median, most) = (took.get(took.len() / 2), took.last());
    println!(
        "  {} pages of {PAGE} replies of the thread: median {:.2} ms, longest {:.2} ms",
        took.len(),
        median.copied().unwrap_or(f64::NAN),
        most.copied().unwrap_or(f64::NAN)
    );
    Ok(())
}
