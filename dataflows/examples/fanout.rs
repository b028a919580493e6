//! Bytes a follow and deliveries a second of the dataflows alone, with stores that only count.
//!
//! `cargo run --release -p feedmill-dataflows --example fanout -- [workers] [users] [follows a user] [posts a batch]`
//!
//! Every user is active and follows others at random; then batches of posts are fed as fast as they are taken. Memory is
//! what the process holds of the system (RSS), before follows are loaded and when their arrangement has settled.
#![allow(clippy::expect_used, reason = "a measurement that cannot be made should say why")]

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use feedmill_dataflows::{Config, Runtime, Stores};
use feedmill_model::{
    Activity, Applied, Batch, Change, Closed, Follow, HomeClosed, HomeSink, Lsn, Parameters, Position, Row, RowSink,
    SHARDS, StoreError, Time, Tweet, floor_of, id_at,
};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Counts what it is given and keeps nothing.
#[derive(Default)]
struct Counts {
    changes: AtomicU64,
    reached: AtomicU64,
}

impl<R> RowSink<R> for Counts {
    fn progress(&self) -> Vec<Option<Position>> {
        let time = self.reached.load(Ordering::Relaxed);
        vec![(time > 0).then_some(Position { time, lsn: Lsn(1) }); SHARDS]
    }

    fn apply(&self, closed: &Closed<R>) -> Result<(), StoreError> {
        self.changes.fetch_add(closed.ops.len() as u64, Ordering::Relaxed);
        Ok(())
    }
}

impl HomeSink for Counts {
    fn apply(&self, closed: &mut HomeClosed) -> Result<(), StoreError> {
        let deliveries: usize = closed.deliveries.iter().map(Vec::len).sum();
        self.changes.fetch_add(deliveries as u64, Ordering::Relaxed);
        closed.deliveries.iter_mut().for_each(Vec::clear);
        Ok(())
    }
}

const LOAD: Time = 1_800_000_000_000;

fn main() {
    let mut arguments = std::env::args().skip(1).map(|argument| argument.parse::<i64>().expect("a number"));
    let mut argument = |default| arguments.next().unwrap_or(default);
    let (workers, users, follows, posts) = (argument(2), argument(1_000_000), argument(20), argument(60));
    // Loaded like stores that have reached the load time, so that only what is kept is measured.
    let counts = || Arc::new(Counts { reached: AtomicU64::new(LOAD), ..Counts::default() });
    let home = Arc::new(Counts::default());
    let stores = Stores { facts: counts(), rows: counts(), home: home.clone() };
    let config = Config { workers: workers as usize, parameters: Parameters::default() };
    let load = Position { time: LOAD, lsn: Lsn(1) };
    let runtime = Runtime::start(config, stores, load, Arc::new(|_: Applied| {})).expect("start");

    let day = (LOAD / 86_400_000) as i32;
    let id = |user: i64| id_at(1_700_000_000_000 + user, 0);
    let mut random = 0x9E37_79B9_7F4A_7C15_u64;
    let mut next = move || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random
    };
    for first in (0..users).step_by(100_000) {
        let rows = (first..users.min(first + 100_000)).map(|user| Row::Activity(Activity { user_id: id(user), day }));
        runtime.load(rows.collect()).expect("load");
    }
    std::thread::sleep(Duration::from_secs(2));
    let (before, start) = (rss(), Instant::now());
    let mut peak = before;
    let slice = (100_000 / follows).max(1);
    for first in (0..users).step_by(slice as usize) {
        let mut rows = Vec::new();
        for user in first..users.min(first + slice) {
            rows.extend((0..follows).map(|_| {
                let following_id = id((next() % users as u64) as i64);
                Row::Follow(Follow { follower_id: id(user), following_id, accepted: true, created_at: 0 })
            }));
        }
        runtime.load(rows).expect("load");
        peak = peak.max(rss());
    }
    runtime.loaded(floor_of(LOAD)).expect("load");
    until(&runtime, LOAD);
    let loaded = start.elapsed();
    std::thread::sleep(Duration::from_secs(5));
    let all = (users * follows) as f64;
    println!(
        "{workers} workers, {users} users, {all} follows: loaded in {loaded:.1?}, {:.1} bytes a follow, {:.1} at the peak",
        (rss() - before) as f64 / all,
        (peak - before) as f64 / all,
    );

    let batches = 2_000_u64;
    let (start, delivered) = (Instant::now(), home.changes.load(Ordering::Relaxed));
    for batch in 1..=batches {
        let time = LOAD + 10 * batch;
        let changes = (0..posts).map(|post| {
            let id_of_post = id_at(time as i64, post as u16);
            let user_id = id((next() % users as u64) as i64);
            let tweet = Tweet { id: id_of_post, user_id, content: "hello".into(), ..Tweet::default() };
            Change { old: None, new: Some(Row::Tweet(Box::new(tweet))) }
        });
        let position = Position { time, lsn: Lsn(batch + 1) };
        runtime.feed(Arc::new(Batch { position, floor: None, changes: changes.collect() })).expect("feed");
    }
    until(&runtime, LOAD + 10 * batches);
    let (elapsed, delivered) = (start.elapsed(), home.changes.load(Ordering::Relaxed) - delivered);
    println!(
        "{batches} batches of {posts} posts: {delivered} deliveries in {elapsed:.1?}, {:.2} million a second",
        delivered as f64 / elapsed.as_secs_f64() / 1e6
    );

    println!("{:.1} bytes a follow by now", (rss() - before) as f64 / all);

    // One batch at a time: what a batch costs that has almost nothing in it.
    let start = Instant::now();
    for batch in 1..=1_000 {
        let position = Position { time: LOAD + 10 * batches + batch, lsn: Lsn(batches + batch) };
        runtime.feed(Arc::new(Batch { position, floor: None, changes: vec![] })).expect("feed");
        until(&runtime, position.time);
    }
    println!("an empty batch takes {:.0?}, one at a time", start.elapsed() / 1_000);
    runtime.join().expect("end");
}

fn until(runtime: &Runtime, time: Time) {
    while runtime.applied().home <= time {
        std::thread::yield_now();
    }
}

/// Bytes that the process holds of the system.
fn rss() -> i64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("statm");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<i64>().ok()).expect("pages") * 4_096
}
