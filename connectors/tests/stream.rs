//! Copy and stream tell what the database did, whole, in order, and survive what happens to connections.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::indexing_slicing,
    clippy::panic,
    missing_docs,
    dead_code,
    reason = "a test fails by panicking; fixtures serve several tests"
)]

mod fixture;
mod rows;

use std::time::Duration;

use feedmill_connectors::postgres::{
    CAPTURE_APPLICATION, Copied, Copier, CopyError, DecodeError, Event, Replication, ReplicationError, RowChange,
    Source, Stream, Transaction,
};
use feedmill_model::{Follow, Key, Like, Lsn, Relation, Row};
use fixture::{Fixture, start_stream, within};
use tokio::sync::mpsc;

/// Copies all of the relation as it was at the snapshot, a page of each partition at a time.
async fn copy(
    source: &Source,
    snapshot: &str,
    relation: Relation,
    sender: &mpsc::Sender<Copied>,
) -> Result<u64, CopyError> {
    let copier = Copier::open(source, snapshot, &[relation]).await?;
    let mut rows = 0;
    for part in copier.parts(relation, 1).await? {
        rows += copier.copy(part, sender).await?;
    }
    Ok(rows)
}

/// All rows of the relation at the snapshot.
async fn copied(fixture: &Fixture, snapshot: &str, relation: Relation) -> Vec<Row> {
    let (sender, mut receiver) = mpsc::channel::<Copied>(2);
    let collect = async {
        let mut rows = Vec::new();
        while let Some(chunk) = receiver.recv().await {
            assert_eq!(chunk.unusable, []);
            rows.extend(chunk.rows);
        }
        rows
    };
    let copy = async {
        let sender = sender;
        copy(&fixture.source, snapshot, relation, &sender).await.unwrap()
    };
    let (count, mut rows) = tokio::join!(copy, collect);
    assert_eq!(count, rows.len() as u64);
    rows.sort_by_key(Row::key);
    rows
}

fn changes_of(transaction: &Transaction) -> Vec<RowChange> {
    transaction.changes.chunks().flat_map(|chunk| chunk.unwrap().into_owned()).collect()
}

fn changes(transactions: Vec<Transaction>) -> Vec<RowChange> {
    transactions.iter().flat_map(changes_of).collect()
}

fn like(user_id: i64, tweet_id: i64) -> Key {
    Row::Like(Like { user_id, tweet_id, created_at: 0 }).key()
}

/// Whether both are rows of the same relation with the same values.
fn assert_rows(found: &[Row], expected: &[Row]) {
    assert_eq!(found.len(), expected.len(), "{found:#?}");
    for (found, expected) in found.iter().zip(expected) {
        assert_eq!(found, expected);
    }
}

#[tokio::test]
async fn c39_c40_c42_odd_rows_of_every_relation_are_copied_and_streamed() {
    let fixture = Fixture::new("stream_rows").await;
    let mut stream = fixture.stream("stream_rows").await;
    fixture.run(&rows::insert()).await;
    let streamed = changes(fixture.drain(&mut stream).await);
    let streamed: Vec<Row> = streamed
        .into_iter()
        .map(|change| match change {
            RowChange::Insert(row) => row,
            other => panic!("{other:?}"),
        })
        .collect();
    let mut replication = fixture.replication().await;
    let start = replication.create_slot("stream_rows_copy", true).await.unwrap();
    // What commits after the snapshot is not in the copy.
    fixture.run("DELETE FROM likes; UPDATE users SET bio = 'later'").await;
    for relation in Relation::ALL {
        let mut expected: Vec<Row> = rows::expected().into_iter().filter(|row| row.relation() == relation).collect();
        assert!(!expected.is_empty(), "{relation:?}");
        expected.sort_by_key(Row::key);
        let mut of_stream: Vec<Row> = streamed.iter().filter(|row| row.relation() == relation).cloned().collect();
        of_stream.sort_by_key(Row::key);
        assert_rows(&of_stream, &expected);
        assert_rows(&copied(&fixture, &start.snapshot, relation).await, &expected);
    }
    stream.close().await.unwrap();
}

#[tokio::test]
async fn updates_deletes_keys_and_truncates() {
    let fixture = Fixture::new("stream_changes").await;
    fixture.users(&[1, 2, 3]).await;
    fixture
        .run("INSERT INTO tweets (id, user_id, content, conversation_id) VALUES (10, 1, 'x', 10), (11, 1, 'y', 11)")
        .await;
    fixture.run("INSERT INTO follows VALUES (1, 2, true, 'epoch')").await;
    fixture.run("INSERT INTO likes VALUES (1, 10), (2, 10), (3, 11)").await;
    let mut stream = fixture.stream("stream_changes").await;
    fixture.run("UPDATE follows SET accepted = false").await;
    fixture.run("UPDATE follows SET following_id = 3").await;
    let follow = |following_id| Row::Follow(Follow { follower_id: 1, following_id, accepted: false, created_at: 0 });
    let update = |old_key, row| RowChange::Update { old_key, row, unchanged: 0 };
    assert_eq!(
        changes(fixture.drain(&mut stream).await),
        [update(None, follow(2)), update(Some(follow(2).key()), follow(3))]
    );

    fixture.run("DELETE FROM likes WHERE user_id = 1").await;
    assert_eq!(changes(fixture.drain(&mut stream).await), [RowChange::Delete(like(1, 10))]);

    fixture.run("ALTER TABLE likes REPLICA IDENTITY FULL").await;
    fixture.run("DELETE FROM likes WHERE user_id = 2").await;
    assert_eq!(changes(fixture.drain(&mut stream).await), [RowChange::Delete(like(2, 10))]);

    fixture.run("TRUNCATE likes").await;
    assert_eq!(changes(fixture.drain(&mut stream).await), [RowChange::Truncate(Relation::Likes)]);

    fixture.run("TRUNCATE tweets, likes, retweets").await;
    let mut truncated = changes(fixture.drain(&mut stream).await);
    truncated.sort_by_key(|change| format!("{change:?}"));
    let all = [Relation::Likes, Relation::Retweets, Relation::Tweets];
    assert_eq!(truncated, all.map(RowChange::Truncate));
}

#[tokio::test]
async fn c22_c27_transactions_come_whole_in_commit_order() {
    let fixture = Fixture::new("stream_order").await;
    fixture.users(&[1, 2, 3, 4, 5]).await;
    let mut stream = fixture.stream("stream_order").await;
    let popular = |user| format!("INSERT INTO popular VALUES ({user})");
    let (mut one, mut two) =
        (fixture.source.connect("test").await.unwrap(), fixture.source.connect("test").await.unwrap());
    let first_to_begin = one.transaction().await.unwrap();
    first_to_begin.batch_execute(&popular(1)).await.unwrap();
    let first_to_commit = two.transaction().await.unwrap();
    first_to_commit.batch_execute(&popular(2)).await.unwrap();
    first_to_commit.batch_execute("SAVEPOINT a").await.unwrap();
    first_to_commit.batch_execute(&popular(3)).await.unwrap();
    first_to_commit.batch_execute("SAVEPOINT b; INSERT INTO activity VALUES (3, '2024-01-01')").await.unwrap();
    first_to_commit.batch_execute("ROLLBACK TO a; SAVEPOINT c").await.unwrap();
    first_to_commit.batch_execute(&popular(4)).await.unwrap();
    first_to_commit.batch_execute("RELEASE c").await.unwrap();
    first_to_commit.commit().await.unwrap();
    first_to_begin.batch_execute(&popular(5)).await.unwrap();
    first_to_begin.commit().await.unwrap();
    fixture.run("BEGIN; INSERT INTO popular VALUES (3); ROLLBACK").await;
    let transactions = fixture.drain(&mut stream).await;
    let users: Vec<Vec<i64>> = transactions
        .iter()
        .map(|transaction| {
            let users = changes_of(transaction).into_iter().map(|change| match change {
                RowChange::Insert(Row::Popular(row)) => row.user_id,
                other => panic!("{other:?}"),
            });
            users.collect()
        })
        .collect();
    assert_eq!(users, [vec![2, 4], vec![1, 5]]);
    assert!(transactions[0].end_lsn < transactions[1].end_lsn);
    let now: i64 = fixture.client.query_one("SELECT feedmill_micros(now())", &[]).await.unwrap().get(0);
    for transaction in &transactions {
        assert!((now - 60_000_000..=now).contains(&transaction.committed_at), "{}", transaction.committed_at);
    }
}

#[tokio::test]
async fn c29_an_unchanged_toast_value_is_marked() {
    let fixture = Fixture::new("stream_toast").await;
    fixture.users(&[1]).await;
    // Hex digits of hashes compress to half at best, so this is stored out of line.
    let bio = "(SELECT string_agg(sha512(n::text::bytea)::text, '') FROM generate_series(1, 80) AS n)";
    fixture.run(&format!("UPDATE users SET bio = {bio}")).await;
    let mut stream = fixture.stream("stream_toast").await;
    fixture.run("UPDATE users SET display_name = 'Ada'").await;
    fixture.run("ALTER TABLE users REPLICA IDENTITY FULL").await;
    for part in 0..8 {
        fixture.run(&format!("ALTER TABLE users_{part} REPLICA IDENTITY FULL")).await;
    }
    fixture.run("UPDATE users SET display_name = 'Bob'").await;
    let changes = changes(fixture.drain(&mut stream).await);
    let [
        RowChange::Update { old_key: None, row: Row::User(marked), unchanged },
        RowChange::Update { old_key: None, row: Row::User(filled), unchanged: 0 },
    ] = changes.as_slice()
    else {
        panic!("{changes:#?}")
    };
    assert_eq!((*unchanged, marked.bio.as_deref(), marked.display_name.as_str()), (1 << 3, None, "Ada"));
    assert_eq!((filled.bio.as_ref().map(String::len), filled.display_name.as_str()), (Some(130 * 80), "Bob"));
}

#[tokio::test]
async fn acknowledging_moves_the_slot_also_when_only_others_write() {
    let fixture = Fixture::new("stream_acknowledge").await;
    fixture.users(&[1]).await;
    let mut stream = fixture.stream("stream_acknowledge").await;
    fixture.run("INSERT INTO popular VALUES (1)").await;
    let transactions = fixture.drain(&mut stream).await;
    let end = transactions[0].end_lsn;
    stream.acknowledge(end);
    // A smaller position later does not move it back.
    stream.acknowledge(Lsn(1));
    fixture.confirmed("stream_acknowledge", |confirmed| confirmed >= end).await;

    // c01: what is not published moves the log too, and the keepalive says so.
    fixture.run("CREATE TABLE audit AS SELECT n FROM generate_series(1, 1000) AS n").await;
    let target = fixture.replication().await.wal_end().await.unwrap();
    let reached = within("a keepalive", async {
        loop {
            stream.request_keepalive();
            if let Event::Keepalive { end } = stream.next().await.unwrap()
                && end >= target
            {
                break end;
            }
        }
    })
    .await;
    stream.acknowledge(reached);
    fixture.confirmed("stream_acknowledge", |confirmed| confirmed >= target).await;

    // The last acknowledgement goes out at the end too, and the next stream begins there.
    fixture.run("DELETE FROM popular").await;
    let last = fixture.drain(&mut stream).await[0].end_lsn;
    stream.acknowledge(last);
    stream.close().await.unwrap();
    fixture.confirmed("stream_acknowledge", |confirmed| confirmed >= last).await;
    fixture.run("INSERT INTO popular VALUES (1)").await;
    let mut stream = start_stream(&fixture.source, "stream_acknowledge", last).await.unwrap();
    assert_eq!(changes(fixture.drain(&mut stream).await).len(), 1);
}

#[tokio::test]
async fn c24_what_was_not_acknowledged_comes_again_from_where_it_is_asked_for() {
    let fixture = Fixture::new("stream_again").await;
    fixture.users(&[1, 2, 3]).await;
    let mut stream = fixture.stream("stream_again").await;
    for user in 1..=3 {
        fixture.run(&format!("INSERT INTO popular VALUES ({user})")).await;
    }
    let transactions = fixture.drain(&mut stream).await;
    drop(stream);
    for skip in 0..3 {
        let from =
            if skip == 0 { slot_position(&fixture, "stream_again").await } else { transactions[skip - 1].end_lsn };
        let mut stream = start_stream(&fixture.source, "stream_again", from).await.unwrap();
        assert_eq!(fixture.drain(&mut stream).await, transactions[skip..]);
        stream.close().await.unwrap();
    }
}

async fn slot_position(fixture: &Fixture, slot: &str) -> Lsn {
    fixture.replication().await.slot(slot).await.unwrap().unwrap().confirmed_flush.unwrap()
}

#[tokio::test]
async fn c05_c51_a_stalled_consumer_costs_neither_memory_nor_the_connection() {
    let fixture = Fixture::new("stream_stall").await;
    fixture.users(&[1]).await;
    // The server hangs up after 3 s without a status.
    let source = fixture.source.with_options("-c wal_sender_timeout=3s");
    let start = fixture.replication().await.create_slot("stream_stall", false).await.unwrap();
    let mut stream = start_stream(&source, "stream_stall", start.consistent_point).await.unwrap();
    // Some 140 MB, twice what the queue takes.
    let (transactions, rows) = (60_usize, 2_000_usize);
    for _ in 0..transactions {
        let sql = format!(
            "INSERT INTO tweets (id, user_id, content, conversation_id) SELECT id, 1, repeat('😀', 280), id \
             FROM (SELECT feedmill_id() AS id FROM generate_series(1, {rows})) AS ids"
        );
        fixture.run(&sql).await;
    }
    let superuser = fixture.superuser().await;
    within("statuses of a stalled stream", async {
        // Longer than the time-out, by the server's clock.
        let sql = "SELECT r.reply_time > now() - interval '3 s' AND now() - $1 > interval '5 s' \
                   FROM pg_stat_replication r JOIN pg_replication_slots s ON s.active_pid = r.pid \
                   WHERE s.slot_name = 'stream_stall'";
        let since: std::time::SystemTime = superuser.query_one("SELECT now()", &[]).await.unwrap().get(0);
        let mut pause = tokio::time::interval(Duration::from_millis(100));
        while !superuser.query_one(sql, &[&since]).await.expect("the stream lives").get::<_, bool>(0) {
            pause.tick().await;
        }
    })
    .await;
    let sent: i64 = superuser
        .query_one(
            "SELECT (sent_lsn - $1::text::pg_lsn)::bigint FROM pg_stat_replication r JOIN pg_replication_slots s \
             ON s.active_pid = r.pid WHERE s.slot_name = 'stream_stall'",
            &[&start.consistent_point.to_string()],
        )
        .await
        .unwrap()
        .get(0);
    let end = fixture.replication().await.wal_end().await.unwrap();
    let written = (end.0 - start.consistent_point.0) as i64;
    assert!(sent < written, "all {written} bytes of log were sent to a consumer that takes none");
    let found = fixture.drain(&mut stream).await;
    assert_eq!(found.len(), transactions);
    assert!(found.iter().all(|transaction| transaction.changes.len() == rows));
}

#[tokio::test]
async fn c14_a_walsender_that_is_killed_is_a_transient_error() {
    let fixture = Fixture::new("stream_killed").await;
    fixture.users(&[1]).await;
    let mut stream = fixture.stream("stream_killed").await;
    fixture.run("INSERT INTO popular VALUES (1)").await;
    let position = slot_position(&fixture, "stream_killed").await;
    fixture
        .run("SELECT pg_terminate_backend(active_pid) FROM pg_replication_slots WHERE slot_name = 'stream_killed'")
        .await;
    let error = within("the end of the stream", async {
        loop {
            if let Err(error) = stream.next().await {
                break error;
            }
        }
    })
    .await;
    assert!(error.is_transient(), "{error}");
    assert!(matches!(stream.next().await, Err(ReplicationError::Ended)));
    let mut stream = start_stream(&fixture.source, "stream_killed", position).await.unwrap();
    assert_eq!(changes(fixture.drain(&mut stream).await).len(), 1);
}

#[tokio::test]
async fn c10_a_dead_connection_that_holds_the_slot_is_ended() {
    let fixture = Fixture::new("stream_dead").await;
    let start = fixture.replication().await.create_slot("stream_dead", false).await.unwrap();
    // It begins to stream, and says nothing from then on.
    let mut dead = Replication::connect(&fixture.source, CAPTURE_APPLICATION).await.unwrap();
    let options = "(proto_version '2', publication_names 'feedmill')";
    let begun = dead.query(&format!("START_REPLICATION SLOT stream_dead LOGICAL 0/0 {options}")).await;
    assert!(begun.is_err(), "a stream is no result");
    let slot = fixture.replication().await.slot("stream_dead").await.unwrap().unwrap();
    assert_eq!(slot.active_pid, Some(dead.pid()));
    // A busy server may take longer to end it than one attempt waits, so there is another, as capture makes it.
    let slot = async || loop {
        match start_stream(&fixture.source, "stream_dead", start.consistent_point).await {
            Err(error) if error.is_transient() => {}
            started => break started,
        }
    };
    let mut stream = within("the slot", slot()).await.unwrap();
    fixture.users(&[1]).await;
    assert_eq!(changes(fixture.drain(&mut stream).await).len(), 1);
}

#[tokio::test]
async fn c11_a_second_copy_of_us_is_refused() {
    let fixture = Fixture::new("stream_second").await;
    let mut stream = fixture.stream("stream_second").await;
    let position = slot_position(&fixture, "stream_second").await;
    let second = within("the refusal", start_stream(&fixture.source, "stream_second", position)).await;
    let Err(error @ ReplicationError::SlotInUse { .. }) = second else { panic!("started, or failed otherwise") };
    assert!(!error.is_transient());
    assert!(error.to_string().contains(CAPTURE_APPLICATION), "{error}");
    fixture.users(&[1]).await;
    assert_eq!(changes(fixture.drain(&mut stream).await).len(), 1);
}

#[tokio::test]
async fn c06_c08_c13_positions_that_do_not_fit_are_refused() {
    let fixture = Fixture::new("stream_positions").await;
    let mut replication = fixture.replication().await;
    let from = replication.create_slot("stream_positions", false).await.unwrap().consistent_point;
    let start = async |slot: &str, from| match start_stream(&fixture.source, slot, from).await {
        Ok(_) => panic!("started"),
        Err(error) => {
            assert!(!error.is_transient(), "{error}");
            error
        }
    };
    let error = start("stream_positions", Lsn(from.0 - 1)).await;
    assert!(matches!(error, ReplicationError::Behind { confirmed, .. } if confirmed == from), "{error}");
    let error = start("stream_positions", Lsn(u64::MAX)).await;
    assert!(matches!(error, ReplicationError::Ahead { .. }), "{error}");
    assert!(matches!(start("nowhere", from).await, ReplicationError::SlotMissing { .. }));
    replication.query("SELECT pg_create_physical_replication_slot('stream_physical')").await.unwrap();
    assert!(matches!(start("stream_physical", from).await, ReplicationError::SlotUnusable { .. }));
    let other = fixture.source.with_database("feedmill");
    let error = start_stream(&other, "stream_positions", from).await.err().unwrap();
    assert!(matches!(&error, ReplicationError::SlotUnusable { problem, .. } if problem.contains("stream_positions")));
    replication.drop_slot("stream_physical").await.unwrap();
    replication.drop_slot("stream_positions").await.unwrap();
    let error = replication.drop_slot("stream_positions").await.unwrap_err();
    assert!(matches!(error, ReplicationError::SlotMissing { .. }), "{error}");
    assert_eq!(replication.slot("stream_positions").await.unwrap(), None);
}

#[tokio::test]
async fn identity_is_that_of_the_system() {
    let fixture = Fixture::new("stream_identity").await;
    let mut replication = fixture.replication().await;
    let source = replication.identify("s").await.unwrap();
    let superuser = fixture.superuser().await;
    let row = superuser
        .query_one("SELECT system_identifier::text, timeline_id FROM pg_control_system(), pg_control_checkpoint()", &[])
        .await
        .unwrap();
    assert_eq!((source.system.to_string(), source.timeline as i32), (row.get(0), row.get(1)));
    let pid = replication.query("SELECT pg_backend_pid()").await.unwrap();
    assert_eq!(pid, [[Some(replication.pid().to_string())]]);
}

/// The error with which the stream ends once the statement is committed.
async fn ends_with(fixture: &Fixture, stream: &mut Stream, sql: &str) -> ReplicationError {
    fixture.run(sql).await;
    within("the end of the stream", async {
        loop {
            stream.request_keepalive();
            if let Err(error) = stream.next().await {
                break error;
            }
        }
    })
    .await
}

#[tokio::test]
async fn c35_a_column_that_is_read_and_changes_is_named_and_others_are_free() {
    let fixture = Fixture::new("stream_columns").await;
    fixture.users(&[1, 2, 3]).await;
    let mut stream = fixture.stream("stream_columns").await;
    fixture.run("ALTER TABLE popular ADD COLUMN note point DEFAULT '(1,2)'").await;
    fixture.run("INSERT INTO popular VALUES (1)").await;
    fixture.run("ALTER TABLE popular RENAME COLUMN note TO remark").await;
    fixture.run("INSERT INTO popular VALUES (2)").await;
    fixture.run("ALTER TABLE popular DROP COLUMN remark").await;
    fixture.run("INSERT INTO popular VALUES (3)").await;
    assert_eq!(changes(fixture.drain(&mut stream).await).len(), 3);
    let position = slot_position(&fixture, "stream_columns").await;

    fixture.run("ALTER TABLE read_marks ALTER COLUMN notifications_id TYPE numeric").await;
    let error = ends_with(&fixture, &mut stream, "INSERT INTO read_marks VALUES (1, 7)").await;
    let ReplicationError::Decode(error @ DecodeError::ColumnType { .. }) = &error else { panic!("{error}") };
    assert!(error.to_string().contains("read_marks.notifications_id"), "{error}");

    let mut snapshot = fixture.replication().await;
    let start = snapshot.create_slot("stream_columns_copy", true).await.unwrap();
    let (sender, _receiver) = mpsc::channel(1);
    let error = copy(&fixture.source, &start.snapshot, Relation::ReadMarks, &sender).await.unwrap_err();
    assert!(matches!(error, CopyError::Decode(DecodeError::ColumnType { column: "notifications_id", .. })), "{error}");

    let mut stream = start_stream(&fixture.source, "stream_columns", position).await.unwrap();
    fixture.run("ALTER TABLE activity RENAME COLUMN day TO date").await;
    fixture.run("UPDATE read_marks SET notifications_id = 8").await;
    let error = ends_with(&fixture, &mut stream, "INSERT INTO activity VALUES (1, now())").await;
    // The same place as before: nothing behind it is passed over.
    assert!(matches!(error, ReplicationError::Decode(DecodeError::ColumnType { .. })), "{error}");
    let error = copy(&fixture.source, &start.snapshot, Relation::Activity, &sender).await.unwrap_err();
    assert!(error.to_string().contains("\"day\""), "{error}");
}

#[tokio::test]
async fn c32_a_replica_identity_without_the_key_is_named() {
    let fixture = Fixture::new("stream_replica").await;
    fixture.users(&[1]).await;
    let mut stream = fixture.stream("stream_replica").await;
    fixture.run("ALTER TABLE popular REPLICA IDENTITY NOTHING").await;
    let error = ends_with(&fixture, &mut stream, "INSERT INTO popular VALUES (1)").await;
    assert!(error.to_string().contains("ALTER TABLE popular REPLICA IDENTITY DEFAULT"), "{error}");
    assert!(!error.is_transient());
}

#[tokio::test]
async fn a_publication_that_is_gone_is_a_definite_error() {
    let fixture = Fixture::new("stream_publication").await;
    fixture.users(&[1]).await;
    let mut stream = fixture.stream("stream_publication").await;
    fixture.run("DROP PUBLICATION feedmill").await;
    let error = ends_with(&fixture, &mut stream, "INSERT INTO popular VALUES (1)").await;
    assert!(!error.is_transient() && error.to_string().contains("feedmill"), "{error}");
}

#[tokio::test]
async fn c28_messages_of_others_are_passed_over() {
    let fixture = Fixture::new("stream_messages").await;
    fixture.users(&[1]).await;
    let mut stream = fixture.stream("stream_messages").await;
    fixture.run("SELECT pg_logical_emit_message(false, 'other', 'now')").await;
    fixture
        .run("BEGIN; SELECT pg_logical_emit_message(true, 'other', 'later'); INSERT INTO popular VALUES (1); COMMIT")
        .await;
    assert_eq!(changes(fixture.drain(&mut stream).await).len(), 1);
}

#[tokio::test]
async fn large_copies_come_in_chunks_and_can_be_given_up() {
    let fixture = Fixture::new("stream_chunks").await;
    fixture.users(&[1]).await;
    fixture.run("INSERT INTO activity SELECT 1, date '2000-01-01' + n FROM generate_series(1, 10000) AS n").await;
    let mut replication = fixture.replication().await;
    let start = replication.create_slot("stream_chunks", true).await.unwrap();
    assert_eq!(copied(&fixture, &start.snapshot, Relation::Activity).await.len(), 10_000);
    let (sender, receiver) = mpsc::channel(1);
    drop(receiver);
    let error = copy(&fixture.source, &start.snapshot, Relation::Activity, &sender).await.unwrap_err();
    assert!(matches!(error, CopyError::Abandoned { .. }), "{error}");
    // The snapshot ends with the next command of the connection that holds it.
    replication.query("SELECT 1").await.unwrap();
    let error = copy(&fixture.source, &start.snapshot, Relation::Activity, &sender).await.unwrap_err();
    assert!(error.to_string().contains("snapshot"), "{error}");
}
