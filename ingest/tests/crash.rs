//! A process that dies while it writes, and a disk that does not give back what it was given.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::FileExt;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

use feedmill_connectors::postgres::{RowChange, Transaction};
use feedmill_ingest::{Log, LogError, LogState, Options};
use feedmill_model::{Batch, Lsn, Row, SourceId, User};
use rand::{Rng, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Set for the process that is to be killed: the folder of its log.
const CHILD: &str = "FEEDMILL_TEST_CRASH_DIR";
/// Set for it if each of its transactions is to be a large batch.
const LARGE: &str = "FEEDMILL_TEST_CRASH_LARGE";
const NOW: u64 = 1_700_000_000_000;
/// Rows of each transaction, which must stay together.
const ROWS: i64 = 7;

fn options() -> Options {
    // Told to the process that is to be killed, which inherits it.
    let large_changes = if std::env::var_os(LARGE).is_some() { 2 } else { 65_536 };
    Options { memtable_bytes: 64 << 10, large_changes, ..Options::default() }
}

/// Transaction number `number` gives `ROWS` users a name of its own.
fn rows(number: u64) -> Vec<Row> {
    let name = |id| User { id, display_name: format!("{number} {}", "x".repeat(200)), ..User::default() };
    let first = i64::try_from(number % 50).unwrap() * ROWS;
    (first..first + ROWS).map(|id| Row::User(Box::new(name(id)))).collect()
}

/// The transaction of that number, which is also its end.
fn transaction(number: u64) -> Transaction {
    let changes: Vec<RowChange> = rows(number).into_iter().map(RowChange::Insert).collect();
    Transaction { end_lsn: Lsn(number), committed_at: 0, changes: changes.into() }
}

fn copied(dir: &Path) -> Log {
    let log = Log::open(dir, options()).unwrap();
    log.begin_copy(&SourceId { system: 1, timeline: 1, slot: "feedmill".to_owned() }).unwrap();
    log.finish_copy(Lsn(0), NOW).unwrap();
    log
}

/// All batches after the copy.
fn batches(log: &Log) -> Result<Vec<Arc<Batch>>, LogError> {
    let mut reader = log.reader(log.tail_after())?;
    let mut batches: Vec<Arc<Batch>> = Vec::new();
    while let Some(piece) = reader.next(Duration::ZERO)? {
        match batches.last_mut().filter(|batch| !batch.last) {
            Some(batch) => {
                let whole = Arc::make_mut(batch);
                whole.changes.extend(piece.changes.iter().cloned());
                whole.last = piece.last;
            }
            None => batches.push(piece),
        }
    }
    Ok(batches)
}

fn state(log: &Log) -> Result<Vec<Row>, LogError> {
    let slices: Vec<Vec<Row>> =
        log.state_at(log.position().ok_or(LogError::NotReady)?.time)?.collect::<Result<_, _>>()?;
    Ok(slices.into_iter().flatten().collect())
}

/// The log is what transactions `1..=n` make of it, and it says which `n`.
fn check(log: &Log) -> Result<u64, LogError> {
    let end = log.position().ok_or(LogError::NotReady)?.lsn.0;
    let batches = batches(log)?;
    let ends: Vec<u64> = batches.iter().map(|batch| batch.position.lsn.0).collect();
    assert!(ends.iter().copied().eq(1..=end), "each transaction is there once: {ends:?}");
    for batch in &batches {
        let new = batch.changes.iter().map(|change| change.new.clone().unwrap());
        assert!(new.eq(rows(batch.position.lsn.0)), "batches are whole");
    }
    let mut expected: Vec<Row> = (end.saturating_sub(49).max(1)..=end).flat_map(rows).collect();
    expected.sort_by_key(Row::key);
    assert!(state(log)? == expected, "the rows are those of transaction {end}");
    Ok(end)
}

/// Not a test: what the process does that is to be killed.
#[test]
fn child() {
    let Some(dir) = std::env::var_os(CHILD) else { return };
    let log = Log::open(Path::new(&dir), options()).unwrap();
    let first = log.position().unwrap().lsn.0 + 1;
    for number in first.. {
        let position = log.append(&[transaction(number)], Lsn(0), NOW).unwrap();
        writeln!(std::io::stdout(), "\nacknowledged {}", position.lsn.0).unwrap();
    }
}

#[test]
fn what_was_acknowledged_survives_a_kill() {
    kill_again_and_again(&[1, 40, 150, 400], |command| command);
}

/// A large batch is several writes, of which one publishes it: wherever between them the end comes, it is there whole or
/// not at all, and rows that are behind are brought up.
#[test]
fn large_batches_that_were_acknowledged_survive_a_kill() {
    kill_again_and_again(&[1, 2, 3, 5, 8, 13, 21, 34], |command| command.env(LARGE, "1"));
}

fn kill_again_and_again(after: &[usize], with: impl Fn(&mut Command) -> &mut Command) {
    let dir = tempfile::tempdir().unwrap();
    drop(copied(dir.path()));
    for &lines in after {
        let mut command = Command::new(std::env::current_exe().unwrap());
        let command = command.args(["--exact", "child", "--nocapture"]).env(CHILD, dir.path()).stdout(Stdio::piped());
        let mut child = with(command).spawn().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap()).lines().map(Result::unwrap);
        let mut acknowledged =
            output.filter_map(|line| line.strip_prefix("acknowledged ").map(|lsn| lsn.parse::<u64>().unwrap()));
        let reached = acknowledged.by_ref().nth(lines).expect("the child appends until it is killed");
        child.kill().unwrap();
        assert_eq!(child.wait().unwrap().signal(), Some(9));
        let last = acknowledged.last().unwrap_or(reached);
        let log = Log::open(dir.path(), options()).unwrap();
        // One more may have reached the disk before its acknowledgement was said.
        let end = check(&log).unwrap();
        assert!((last..=last + 1).contains(&end), "acknowledged {last}, found {end}");
    }
}

/// What is not whole at the end of the journal is not there; nothing panics, nothing is half there.
#[test]
fn a_journal_that_was_cut_or_garbled_is_whole_batches_or_an_error() {
    let made = tempfile::tempdir().unwrap();
    let log = copied(made.path());
    for number in 1..=60 {
        log.append(&[transaction(number)], Lsn(0), NOW).unwrap();
    }
    drop(log);
    let mut random = ChaCha8Rng::seed_from_u64(7);
    for round in 0..40 {
        let dir = tempfile::tempdir().unwrap();
        copy_folder(made.path(), dir.path());
        let journal = newest_journal(dir.path());
        let length = written(&journal);
        let at = random.random_range(0..length);
        let file = File::options().write(true).open(&journal).unwrap();
        if round % 2 == 0 {
            file.set_len(at).unwrap();
        } else {
            file.write_all_at(&random.random::<[u8; 3]>(), at).unwrap();
        }
        drop(file);
        match Log::open(dir.path(), options()) {
            Err(error) => assert!(matches!(error, LogError::Open { .. } | LogError::Corrupt { .. }), "{error}"),
            Ok(log) if log.state() == LogState::Ready => {
                assert!(check(&log).unwrap() <= 60, "at {at}");
                let next = log.position().unwrap().lsn.0 + 1;
                log.append(&[transaction(next)], Lsn(0), NOW).unwrap();
                assert_eq!(check(&log).unwrap(), next);
            }
            Ok(log) => assert!(log.position().is_none(), "the copy itself was cut"),
        }
    }
}

/// A garbled block of a table is an error of whoever reads it.
#[test]
fn a_garbled_table_is_an_error() {
    let dir = tempfile::tempdir().unwrap();
    let log = copied(dir.path());
    for number in 1..=2_000 {
        log.append(&[transaction(number)], Lsn(0), NOW).unwrap();
    }
    drop(log);
    let tables = files(dir.path(), |path| path.parent().is_some_and(|parent| parent.ends_with("tables")));
    let large: Vec<&PathBuf> = tables.iter().filter(|path| path.metadata().unwrap().len() > 20_000).collect();
    assert!(!large.is_empty(), "rows are in tables by now");
    for table in large {
        let file = File::options().write(true).open(table).unwrap();
        file.write_all_at(&[0xA5; 16], 3_000).unwrap();
    }
    let outcome = Log::open(dir.path(), options()).and_then(|log| state(&log));
    let error = outcome.expect_err("a block is not what it was");
    assert!(matches!(error, LogError::Open { .. } | LogError::Storage { .. } | LogError::Corrupt { .. }), "{error}");
}

fn files(dir: &Path, wanted: impl Fn(&Path) -> bool + Copy) -> Vec<PathBuf> {
    let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
    let found = entries.flat_map(|path| if path.is_dir() { files(&path, wanted) } else { vec![path] });
    found.filter(|path| wanted(path)).collect()
}

fn copy_folder(from: &Path, to: &Path) {
    for file in files(from, |_| true) {
        let copy = to.join(file.strip_prefix(from).unwrap());
        fs::create_dir_all(copy.parent().unwrap()).unwrap();
        fs::copy(&file, copy).unwrap();
    }
}

fn newest_journal(dir: &Path) -> PathBuf {
    let journals = files(dir, |path| path.extension().is_some_and(|extension| extension == "jnl"));
    let number = |path: &PathBuf| path.file_stem().unwrap().to_str().unwrap().parse::<u64>().unwrap();
    journals.into_iter().max_by_key(number).expect("there is a journal")
}

/// Bytes of the journal before the zeros that it was laid out with.
fn written(journal: &Path) -> u64 {
    let bytes = fs::read(journal).unwrap();
    bytes.iter().rposition(|byte| *byte != 0).unwrap() as u64 + 1
}
