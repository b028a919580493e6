//! How fast the change log is on this machine's disk: appends, a first copy, and loading the state.
//!
//! ```text
//! cargo bench -p feedmill-ingest [-- FOLDER]
//! ```
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has nothing to say")]

use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use feedmill_connectors::postgres::{RowChange, Transaction};
use feedmill_ingest::{Log, Options};
use feedmill_model::{Follow, Lsn, Row, SourceId, Tweet, id_at};

const NOW: u64 = 1_700_000_000_000;
const FOLLOWS: i64 = 2_000_000;
const FOR: Duration = Duration::from_secs(3);

fn main() {
    // Cargo passes `--bench`.
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).map(PathBuf::from);
    let dir = tempfile::tempdir_in(folder.unwrap_or_else(std::env::temp_dir)).unwrap();
    let log = Log::open(dir.path(), Options::default()).unwrap();
    copy(&log);
    state(&log, "newest");
    let start = log.position().unwrap().time;
    let mut id = 0;
    appends(&log, "append of 1 tweet", 1, &mut id);
    appends(&log, "append of 60 tweets", 60, &mut id);
    appends(&log, "append of 4,096 tweets", 4_096, &mut id);
    appends(&log, "empty append", 0, &mut id);
    read(&log, start);
    let started = Instant::now();
    let undo = log.state_at(start).unwrap();
    println!("state before all appends, until the first slice: {:?}", started.elapsed());
    drop(undo);
    state(&log, "newest, with tweets");
    bulk(&log);
    drop(log);
    reopen(dir.path());
}

/// Scattered, as the follows of a table in the order of its insertions are.
fn follow(number: i64) -> Row {
    let scattered = number.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64);
    let follower_id = id_at(1_600_000_000_000 + scattered.rem_euclid(200_000), 0);
    Row::Follow(Follow {
        follower_id,
        following_id: id_at(1_600_000_000_000, 0) + number,
        accepted: true,
        created_at: 1,
    })
}

fn copy(log: &Log) {
    log.begin_copy(&SourceId { system: 1, timeline: 1, slot: "bench".to_owned() }).unwrap();
    let started = Instant::now();
    for slice in 0..FOLLOWS / 10_000 {
        log.copy_rows((0..10_000).map(|number| follow(slice * 10_000 + number)).collect()).unwrap();
    }
    log.finish_copy(Lsn(1), NOW).unwrap();
    let seconds = started.elapsed().as_secs_f64();
    println!("copy: {:.0} follows/s ({seconds:.2} s for {FOLLOWS})", FOLLOWS as f64 / seconds);
}

fn state(log: &Log, which: &str) {
    let started = Instant::now();
    let rows: usize = log.state_at(log.position().unwrap().time).unwrap().map(|slice| slice.unwrap().len()).sum();
    let seconds = started.elapsed().as_secs_f64();
    println!("state ({which}): {:.0} rows/s ({rows} rows in {seconds:.2} s)", rows as f64 / seconds);
}

fn tweet(id: i64) -> RowChange {
    let content = format!("{id}: {}", "words of a tweet ".repeat(5));
    let id = id_at(1_700_000_000_000, 0) + id;
    let tweet = Tweet { id, user_id: id / 7, content, conversation_id: id, created_at: 1, ..Tweet::default() };
    RowChange::Insert(Row::Tweet(Box::new(tweet)))
}

fn transaction(log: &Log, changes: Vec<RowChange>) -> Transaction {
    Transaction { end_lsn: Lsn(log.position().unwrap().lsn.0 + 1), committed_at: 0, changes: changes.into() }
}

fn appends(log: &Log, what: &str, tweets: usize, id: &mut i64) {
    let started = Instant::now();
    let mut millis = Vec::new();
    while started.elapsed() < FOR {
        let first = *id;
        *id += tweets as i64;
        let group = [transaction(log, (first..*id).map(tweet).collect())];
        let begun = Instant::now();
        log.append(&group, Lsn(0), NOW).unwrap();
        millis.push(begun.elapsed().as_secs_f64() * 1e3);
    }
    let rate = millis.len() as f64 / started.elapsed().as_secs_f64();
    millis.sort_by(f64::total_cmp);
    let quantile = |q: f64| millis.get((millis.len() as f64 * q) as usize).copied().unwrap_or_default();
    let (p50, p99, max) = (quantile(0.5), quantile(0.99), millis.last().copied().unwrap_or_default());
    println!("{what}: {rate:.0}/s ({:.0} rows/s), p50 {p50:.2} p99 {p99:.2} max {max:.2} ms", rate * tweets as f64);
}

fn read(log: &Log, start: u64) {
    let started = Instant::now();
    let (mut batches, mut changes) = (0, 0);
    let mut reader = log.reader(start).unwrap();
    while let Some(batch) = reader.next(Duration::ZERO).unwrap() {
        batches += 1;
        changes += batch.changes.len();
    }
    let seconds = started.elapsed().as_secs_f64();
    println!("tail: {batches} batches, {:.0} changes/s ({changes} in {seconds:.2} s)", changes as f64 / seconds);
}

fn bulk(log: &Log) {
    let changes = (0..1_000_000).map(|number| RowChange::Insert(follow(FOLLOWS + number))).collect();
    let transaction = transaction(log, changes);
    let started = Instant::now();
    log.append(&[transaction], Lsn(0), NOW).unwrap();
    println!("one transaction of a million follows: {:.2} s", started.elapsed().as_secs_f64());
}

fn reopen(dir: &Path) {
    let started = Instant::now();
    let log = Log::open(dir, Options::default()).unwrap();
    println!("open: {:.2} s", started.elapsed().as_secs_f64());
    let started = Instant::now();
    log.compact(u64::MAX).unwrap();
    println!("compaction of the tail: {:.2} s", started.elapsed().as_secs_f64());
    state(&log, "after a restart");
}
