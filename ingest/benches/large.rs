//! Transactions of two million rows through the change log: how long until they are published and applied, and how much
//! memory that takes.
//!
//! ```text
//! cargo bench -p feedmill-ingest --bench large [-- FOLDER]
//! ```
#![allow(clippy::unwrap_used, reason = "a bench that cannot go on has nothing to say")]

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use feedmill_connectors::postgres::{Changes, RowChange, Spill, Transaction};
use feedmill_ingest::{Log, Options};
use feedmill_model::{Like, Lsn, Row, SourceId, Tweet, id_at};

const NOW: u64 = 1_700_000_000_000;
const ROWS: i64 = 2_000_000;
const LIMIT: Duration = Duration::from_secs(60);

fn main() {
    // Cargo passes `--bench`.
    let folder = std::env::args().skip(1).find(|argument| !argument.starts_with('-')).map(PathBuf::from);
    let dir = tempfile::tempdir_in(folder.unwrap_or_else(std::env::temp_dir)).unwrap();
    let log = Log::open(&dir.path().join("log"), Options::default()).unwrap();
    log.begin_copy(&SourceId { system: 1, timeline: 1, slot: "bench".to_owned() }).unwrap();
    log.finish_copy(Lsn(1), NOW).unwrap();
    let likes = |of: i64| (0..ROWS).map(move |number| RowChange::Insert(like(number, of)));
    let spill = |changes: &mut dyn Iterator<Item = RowChange>| {
        let changes: Vec<RowChange> = changes.collect();
        Spill::write(dir.path(), &changes).unwrap()
    };
    let first = spill(&mut likes(0));
    let again = spill(&mut likes(1));
    let gone = spill(&mut (0..ROWS).map(|number| RowChange::Delete(like(number, 0).key())));
    let tweets = spill(&mut (0..ROWS / 4).map(tweet));
    forget_peak();
    append(&log, "likes of nobody before", first);
    append(&log, "likes among as many others", again);
    append(&log, "likes that go", gone);
    append(&log, "tweets", tweets);
    let rows: usize = log.state_at(log.position().unwrap().time).unwrap().map(|slice| slice.unwrap().len()).sum();
    println!("rows in the end: {rows}");
}

/// In the order in which a person likes, not in that of the keys.
fn like(number: i64, of: i64) -> Row {
    let user_id = number.wrapping_mul(0x9E37_79B9_7F4A_7C15_u64 as i64).rem_euclid(100_000);
    Row::Like(Like { user_id, tweet_id: id_at(1_600_000_000_000, 0) + number * 2 + of, created_at: 1_600_000_000_000 })
}

fn tweet(number: i64) -> RowChange {
    let content = format!("{number}: {}", "words of a tweet ".repeat(5));
    let id = id_at(1_600_000_000_000, 0) + number;
    RowChange::Insert(Row::Tweet(Box::new(Tweet { id, content, conversation_id: id, ..Tweet::default() })))
}

fn append(log: &Log, what: &str, changes: Spill) {
    let rows = changes.len();
    let lsn = Lsn(log.position().unwrap().lsn.0 + 1);
    let transaction = Transaction { end_lsn: lsn, committed_at: 0, changes: Changes::Spilled(changes) };
    let mut reader = log.reader(log.position().unwrap().time).unwrap();
    let begun = Instant::now();
    let (published, read, applied) = thread::scope(|scope| {
        let reading = scope.spawn(move || {
            let first = reader.next(LIMIT).unwrap().unwrap();
            let (published, mut last) = (begun.elapsed(), first.last);
            while !last {
                last = reader.next(LIMIT).unwrap().unwrap().last;
            }
            (published, begun.elapsed())
        });
        log.append(&[transaction], Lsn(0), NOW).unwrap();
        let applied = begun.elapsed();
        let (published, read) = reading.join().unwrap();
        (published, read, applied)
    });
    println!(
        "{what}: {rows} rows, published after {published:.2?}, read after {read:.2?}, applied after {applied:.2?} \
         ({:.0} rows/s); peak of memory {} MiB",
        rows as f64 / applied.as_secs_f64(),
        peak_mib(),
    );
}

/// The greatest resident size so far.
fn peak_mib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    line.and_then(|line| line.split_whitespace().next()?.parse::<u64>().ok()).unwrap_or_default() / 1_024
}

/// What is made for the bench itself must not count.
fn forget_peak() {
    let _ = std::fs::write("/proc/self/clear_refs", "5");
}
