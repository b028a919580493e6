//! What every change log promises, checked on each that there is: what capture and the dataflows rely on.
//!
//! A log is given to the suite as an [`Implementation`]; [`contracts`] makes a test of each promise for each of them.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    reason = "a test fails by panicking"
)]

mod append;
mod copy;
mod history;
mod model;
mod quarantine;
mod read;
mod resync;
mod sorter;
mod writer;

use std::path::Path;
use std::time::Duration;

use feedmill_connectors::postgres::{RowChange, Transaction};
use feedmill_ingest::{Log, LogError, Options, Reader};
use feedmill_model::{Batch, Follow, Lsn, Relation, Row, SourceId, Time, Tweet, User};
use model::State;

/// No wait of these tests takes this long unless something is broken.
const LIMIT: Duration = Duration::from_secs(60);
const NOW: u64 = 1_700_000_000_000;
const HOUR_MS: u64 = 3_600_000;
const BULK_ROWS: usize = 20;

/// A change log that can be opened, and opened again, in a folder.
trait Implementation {
    fn open(dir: &Path) -> Result<Log, LogError>;
}

/// The log on this machine's disk.
struct Local;

impl Implementation for Local {
    fn open(dir: &Path) -> Result<Log, LogError> {
        Log::open(dir, Options { bulk_rows: BULK_ROWS, ..Options::default() })
    }
}

/// The same with so little memory for rows that they soon lie in tables.
struct LocalInTables;

impl Implementation for LocalInTables {
    fn open(dir: &Path) -> Result<Log, LogError> {
        Log::open(
            dir,
            Options {
                bulk_rows: BULK_ROWS,
                cache_bytes: 1 << 16,
                memtable_bytes: 4 << 10,
                range_rows: 1_000,
                ..Options::default()
            },
        )
    }
}

/// The same with batches that are large from their third change on, and a state that is read in many ranges.
struct LocalInPieces;

impl Implementation for LocalInPieces {
    fn open(dir: &Path) -> Result<Log, LogError> {
        Log::open(dir, Options { bulk_rows: BULK_ROWS, large_changes: 2, range_rows: 2, ..Options::default() })
    }
}

macro_rules! contract {
    ($name:ident: $implementation:ty: $($part:ident: [$($promise:ident),* $(,)?]),* $(,)?) => {
        mod $name {
            use super::*;
            $($(
                #[test]
                fn $promise() {
                    $part::$promise::<$implementation>();
                }
            )*)*
        }
    };
}

macro_rules! contracts {
    ($($name:ident: $implementation:ty),* $(,)?) => {
        $(contract!($name: $implementation:
            copy: [
                a_new_log_is_empty_and_gives_nothing,
                a_copy_that_did_not_end_is_never_ready,
                what_follows_a_copy_that_was_cut_short_outlives_restarts,
                a_copy_goes_into_an_empty_log_only,
                rows_are_copied_from_several_threads,
                only_one_has_it_open,
            ],
            append: [
                a_batch_holds_the_net_change_of_each_key,
                a_changed_key_takes_unchanged_columns_along,
                truncate_takes_rows_that_came_in_the_same_batch,
                an_update_that_needs_a_missing_row_is_set_aside,
                times_grow_and_are_kept,
                a_clock_that_cannot_be_right_mints_nothing,
                what_is_held_is_skipped,
                a_bulk_batch_raises_the_floor,
                the_greatest_entry_is_remembered,
            ],
            read: [
                readers_wait_for_what_comes,
                a_reader_that_is_too_slow_is_told,
                compaction_keeps_the_newest,
                a_batch_of_many_parts_is_whole,
                the_state_is_of_one_moment_while_appends_go_on,
                the_state_comes_in_bounded_slices,
                a_state_that_nobody_reads_on_lets_go_of_the_log,
                who_needs_some_relations_is_given_all_of_them_and_little_else,
            ],
            quarantine: [
                an_unusable_row_is_out_of_the_log_until_it_is_mended,
                a_row_changes_again_and_again_in_one_batch,
                the_future_waits_for_its_time,
            ],
            resync: [
                a_resync_is_the_difference,
                a_resync_of_a_table_leaves_the_rest,
                a_snapshot_is_no_more_use_when_the_log_went_on,
            ],
            sorter: [
                what_is_sorted_while_it_is_received_is_the_same,
                what_was_sorted_goes_with_its_transaction,
            ],
            writer: [
                the_writer_acknowledges_what_is_durable,
                the_writer_waits_for_a_right_clock,
                the_writer_ends_with_the_error,
            ],
            history: [any_history_is_kept],
        );)*
    };
}

contracts!(local: Local, local_in_tables: LocalInTables, local_in_pieces: LocalInPieces);

fn source() -> SourceId {
    SourceId { system: 7, timeline: 1, slot: "feedmill".to_owned() }
}

fn user(id: i64, display_name: &str) -> Row {
    Row::User(Box::new(User { id, display_name: display_name.to_owned(), ..User::default() }))
}

fn tweet(id: i64) -> Row {
    Row::Tweet(Box::new(Tweet { id, ..Tweet::default() }))
}

fn follow(follower_id: i64, following_id: i64) -> Row {
    Row::Follow(Follow { follower_id, following_id, accepted: true, created_at: 0 })
}

/// A log with a finished copy of `rows`, as of position 100.
fn ready<I: Implementation>(dir: &Path, rows: Vec<Row>) -> Log {
    let log = I::open(dir).unwrap();
    log.begin_copy(&source()).unwrap();
    log.copy_rows(rows).unwrap();
    log.finish_copy(Lsn(100), NOW).unwrap();
    log
}

/// Transactions with positions that follow on `after`, 10 bytes each.
fn transactions(after: Lsn, changes: Vec<Vec<RowChange>>) -> Vec<Transaction> {
    let ends = (1..).map(|number| Lsn(after.0 + 10 * number));
    ends.zip(changes)
        .map(|(end_lsn, changes)| Transaction { end_lsn, committed_at: 0, changes: changes.into() })
        .collect()
}

/// Appends one transaction that follows on what is there; gives the batch that it became.
fn append(log: &Log, changes: Vec<RowChange>) -> Batch {
    append_group(log, &transactions(log.position().unwrap().lsn, vec![changes]))
}

/// Appends transactions as one batch, and gives it.
fn append_group(log: &Log, group: &[Transaction]) -> Batch {
    let mut reader = log.reader(log.position().unwrap().time).unwrap();
    let position = log.append(group, Lsn(0), NOW).unwrap();
    let batch = next(&mut reader, Duration::ZERO).expect("it was appended");
    assert_eq!(batch.position, position);
    batch
}

/// The next batch, put together again if it comes in pieces.
fn next(reader: &mut Reader, limit: Duration) -> Option<Batch> {
    let mut whole = Batch::clone(&*reader.next(limit).unwrap()?);
    while !whole.last {
        let piece = reader.next(Duration::ZERO).unwrap().expect("all pieces are there");
        assert_eq!((piece.position, piece.floor), (whole.position, whole.floor));
        whole.changes.extend(piece.changes.iter().cloned());
        whole.last = piece.last;
    }
    Some(whole)
}

fn insert(rows: impl IntoIterator<Item = Row>) -> Vec<RowChange> {
    rows.into_iter().map(RowChange::Insert).collect()
}

fn state_at(log: &Log, time: Time) -> State {
    let rows: Vec<Row> = log.state_at(time).unwrap().flat_map(|slice| slice.unwrap()).collect();
    let load_order = |relation: Relation| Relation::LOAD_ORDER.iter().position(|other| *other == relation);
    assert!(
        rows.is_sorted_by_key(|row| (load_order(row.relation()), row.key())),
        "in the order of the load, and of keys"
    );
    let state: State = rows.iter().map(|row| (row.key(), row.clone())).collect();
    assert_eq!(state.len(), rows.len(), "each row comes once");
    state
}

fn state(log: &Log) -> State {
    state_at(log, log.position().unwrap().time)
}

fn rows(log: &Log) -> Vec<Row> {
    state(log).into_values().collect()
}

/// All that a reader has, without waiting.
fn read(reader: &mut Reader) -> Vec<Batch> {
    std::iter::from_fn(|| next(reader, Duration::ZERO)).collect()
}
