//! What a stream delivers of transactions in progress, of rows that cannot be read, and what it acknowledges.
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

use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use feedmill_connectors::postgres::{
    Changes, Field, Follow, Growing, Grown, Operation, RowChange, Source, Spilling, Stream, Transaction,
};
use feedmill_model::{Key, Lsn, Relation};
use fixture::{Fixture, start_stream, within};

fn changes_of(transaction: &Transaction) -> Vec<RowChange> {
    transaction.changes.chunks().flat_map(|chunk| chunk.unwrap().into_owned()).collect()
}

fn changes(transactions: &[Transaction]) -> Vec<RowChange> {
    transactions.iter().flat_map(changes_of).collect()
}

/// A stream of which the server sends transactions in progress, and which keeps next to nothing in memory.
async fn streaming(fixture: &Fixture, slot: &str, memory_bytes: usize) -> Stream {
    followed(fixture, slot, memory_bytes, None).await
}

async fn followed(fixture: &Fixture, slot: &str, memory_bytes: usize, follower: Option<Arc<dyn Follow>>) -> Stream {
    let mut config = fixture.source.config().clone();
    config.options("-c logical_decoding_work_mem=64kB");
    let source = Source::local(config);
    let start = fixture.replication().await.create_slot(slot, false).await.unwrap();
    let known = fixture.replication().await.identify(slot).await.unwrap();
    let spilling = Spilling { memory_bytes, follower, ..Spilling::to(std::env::temp_dir()) };
    Stream::start(&source, &known, start.consistent_point, spilling).await.unwrap()
}

#[tokio::test]
async fn c22_c26_c27_transactions_in_progress_come_whole_in_commit_order_from_memory_and_from_disk() {
    for memory_bytes in [0, 100_000, 8 << 20] {
        let name = format!("stream_progress_{memory_bytes}");
        let fixture = Fixture::new(&name).await;
        fixture.users(&[1, 2, 3]).await;
        let mut stream = streaming(&fixture, &name, memory_bytes).await;
        let days = |user: i64, from: i64, count: i64| {
            format!(
                "INSERT INTO activity SELECT {user}, date '2000-01-01' + n FROM generate_series({from}, {from} + {count} - 1) AS n"
            )
        };
        let (mut one, mut two) =
            (fixture.source.connect("test").await.unwrap(), fixture.source.connect("test").await.unwrap());
        let (one, two) = (one.transaction().await.unwrap(), two.transaction().await.unwrap());
        for part in 0..3 {
            one.batch_execute(&days(1, part * 2_000, 2_000)).await.unwrap();
            two.batch_execute(&days(2, part * 1_000, 1_000)).await.unwrap();
            one.batch_execute("SAVEPOINT a").await.unwrap();
            one.batch_execute(&days(3, 0, 2_000)).await.unwrap();
            one.batch_execute("SAVEPOINT b").await.unwrap();
            one.batch_execute(&days(3, 5_000, 1_000)).await.unwrap();
            one.batch_execute("RELEASE b; ROLLBACK TO a").await.unwrap();
            // Small, and at once.
            fixture.run(&format!("INSERT INTO popular VALUES ({})", part + 1)).await;
        }
        fixture.run(&format!("BEGIN; {}; ROLLBACK", days(3, 0, 3_000))).await;
        two.commit().await.unwrap();
        one.commit().await.unwrap();
        let transactions = fixture.drain(&mut stream).await;
        let whose: Vec<(usize, Option<Key>, Option<Key>)> = transactions
            .iter()
            .map(|transaction| {
                let keys: Vec<Key> = changes_of(transaction)
                    .into_iter()
                    .map(|change| match change {
                        RowChange::Insert(row) => row.key(),
                        other => panic!("{other:?}"),
                    })
                    .collect();
                assert!(keys.is_sorted());
                assert_eq!(transaction.changes.len(), keys.len());
                (keys.len(), keys.first().copied(), keys.last().copied())
            })
            .collect();
        let popular = |first| Some(Key { relation: Relation::Popular, first, second: 0 });
        let active = |first, day: i64| Some(Key { relation: Relation::Activity, first, second: 10_957 + day });
        let expected = [
            (1, popular(1), popular(1)),
            (1, popular(2), popular(2)),
            (1, popular(3), popular(3)),
            (3_000, active(2, 0), active(2, 2_999)),
            (6_000, active(1, 0), active(1, 5_999)),
        ];
        assert_eq!(whose, expected);
        let on_disk = transactions.iter().filter(|transaction| matches!(transaction.changes, Changes::Spilled(_)));
        assert_eq!(
            on_disk.count(),
            [5, 2, 0][[0, 100_000, 8 << 20].iter().position(|it| *it == memory_bytes).unwrap()]
        );
        assert!(transactions.is_sorted_by(|one, two| one.end_lsn < two.end_lsn));
        stream.close().await.unwrap();
    }
}

/// What was read of a transaction, and how it ended.
type Read = (Vec<RowChange>, Grown);

/// Reads every transaction along, as long as it goes on.
#[derive(Debug, Default)]
struct Along(Mutex<Vec<JoinHandle<Read>>>);

impl Follow for Along {
    fn follow(&self, mut growing: Growing) -> bool {
        let read = move || {
            let mut taken = Vec::new();
            loop {
                let offset = growing.offset();
                match growing.next(fixture::LIMIT).unwrap() {
                    Grown::Change(change) => taken.push((offset, change)),
                    Grown::Cut(cut) => taken.retain(|(offset, _)| *offset < cut),
                    end => return (taken.into_iter().map(|(_, change)| change).collect(), end),
                }
            }
        };
        self.0.lock().unwrap().push(std::thread::spawn(read));
        true
    }
}

impl Along {
    /// The next one. The stream goes on meanwhile.
    async fn next(&self) -> Read {
        let reader = self.0.lock().unwrap().remove(0);
        tokio::task::spawn_blocking(move || reader.join().unwrap()).await.unwrap()
    }
}

#[tokio::test]
async fn c25_c27_what_is_read_along_is_what_was_committed_and_ends_with_what_was_not() {
    let fixture = Fixture::new("stream_along").await;
    fixture.users(&[1, 2]).await;
    let along = Arc::new(Along::default());
    let mut stream = followed(&fixture, "stream_along", 100_000, Some(Arc::clone(&along) as Arc<dyn Follow>)).await;
    let days = |from: u32, count: u32| {
        format!(
            "INSERT INTO activity SELECT 1, date '2000-01-01' + n FROM generate_series({from}, {from} + {count} - 1) AS n"
        )
    };
    let [kept, also, gone, inner, last] =
        [days(0, 60_000), days(60_000, 60_000), days(200_000, 60_000), days(300_000, 30_000), days(120_000, 10)];
    let savepoints = format!(
        "BEGIN; {kept}; SAVEPOINT a; {gone}; SAVEPOINT b; {inner}; RELEASE b; ROLLBACK TO a; {also}; SAVEPOINT c; {inner}; \
         ROLLBACK TO c; {last}; COMMIT"
    );
    fixture.run(&savepoints).await;
    let transactions = fixture.drain(&mut stream).await;
    let (read, end) = along.next().await;
    assert!(matches!(end, Grown::Complete), "{end:?}");
    let expected = changes(&transactions);
    assert_eq!((transactions.len(), expected.len()), (1, 120_010));
    assert!(read == expected, "{} changes were read along", read.len());

    // Rolled back, and then one that its connection does not outlive.
    let client = fixture.source.connect("test").await.unwrap();
    for round in 1..=2 {
        client.batch_execute(&format!("BEGIN; {gone}")).await.unwrap();
        // A commit takes what is open along to the server's disk, from which it is sent.
        fixture.run(&format!("INSERT INTO popular VALUES ({round})")).await;
        within("a transaction to be read along", async {
            let mut pause = tokio::time::interval(Duration::from_millis(20));
            while along.0.lock().unwrap().is_empty() {
                pause.tick().await;
            }
        })
        .await;
        if round == 1 {
            client.batch_execute("ROLLBACK").await.unwrap();
            assert_eq!(fixture.drain(&mut stream).await.len(), 1);
            assert!(matches!(along.next().await, (_, Grown::Dropped)));
        }
    }
    drop(stream);
    let (_, end) = along.next().await;
    assert!(matches!(end, Grown::Dropped), "{end:?}");
}

#[tokio::test]
async fn keepalives_go_on_while_a_transaction_is_in_progress() {
    let fixture = Fixture::new("stream_open").await;
    fixture.users(&[1]).await;
    let mut stream = streaming(&fixture, "stream_open", 8 << 20).await;
    let mut client = fixture.source.connect("test").await.unwrap();
    let open = client.transaction().await.unwrap();
    let rows = "INSERT INTO activity SELECT 1, date '2000-01-01' + n FROM generate_series(1, 5000) AS n";
    open.batch_execute(rows).await.unwrap();
    fixture.run("INSERT INTO popular VALUES (1)").await;
    let seen = fixture.drain(&mut stream).await;
    assert_eq!(seen.len(), 1);
    let position = fixture.replication().await.wal_end().await.unwrap();
    stream.acknowledge(position);
    fixture.confirmed("stream_open", |confirmed| confirmed >= position).await;
    drop(stream);
    // The slot has moved beyond what the open transaction did, and yet all of it comes.
    let mut stream = start_stream(&fixture.source, "stream_open", position).await.unwrap();
    open.commit().await.unwrap();
    assert_eq!(changes(&fixture.drain(&mut stream).await).len(), 5_000);
}

#[tokio::test]
async fn c04_what_is_acknowledged_is_what_is_durable_and_not_what_was_received() {
    let fixture = Fixture::new("stream_durable").await;
    fixture.users(&[1, 2]).await;
    let mut stream = fixture.stream("stream_durable").await;
    fixture.run("INSERT INTO popular VALUES (1)").await;
    fixture.run("INSERT INTO popular VALUES (2)").await;
    // Keepalives beyond both have come too.
    let transactions = fixture.drain(&mut stream).await;
    stream.acknowledge(transactions[0].end_lsn);
    fixture.confirmed("stream_durable", |confirmed| confirmed >= transactions[0].end_lsn).await;
    let superuser = fixture.superuser().await;
    let status = "SELECT r.reply_time, r.write_lsn::text, r.flush_lsn::text FROM pg_stat_replication r \
                  JOIN pg_replication_slots s ON s.active_pid = r.pid WHERE s.slot_name = 'stream_durable'";
    let first: std::time::SystemTime = superuser.query_one(status, &[]).await.unwrap().get(0);
    within("more statuses", async {
        let mut pause = tokio::time::interval(Duration::from_millis(50));
        loop {
            let row = superuser.query_one(status, &[]).await.unwrap();
            let (at, received, durable): (std::time::SystemTime, String, String) = (row.get(0), row.get(1), row.get(2));
            assert_eq!(durable.parse::<Lsn>().unwrap(), transactions[0].end_lsn);
            let received = received.parse::<Lsn>().unwrap();
            if received >= transactions[1].end_lsn && at.duration_since(first).is_ok_and(|since| since.as_secs() >= 2) {
                break;
            }
            pause.tick().await;
        }
    })
    .await;
    fixture.confirmed("stream_durable", |confirmed| confirmed == transactions[0].end_lsn).await;
    drop(stream);
    let mut stream = start_stream(&fixture.source, "stream_durable", transactions[0].end_lsn).await.unwrap();
    assert_eq!(fixture.drain(&mut stream).await, transactions[1..]);
}

#[tokio::test]
async fn c38_a_row_that_cannot_be_read_is_told_and_the_stream_goes_on() {
    let fixture = Fixture::new("stream_unusable").await;
    fixture.users(&[1, 2]).await;
    let mut stream = fixture.stream("stream_unusable").await;
    fixture.run("ALTER TABLE follows ALTER COLUMN accepted DROP NOT NULL").await;
    fixture.run("INSERT INTO follows VALUES (1, 2, NULL, 'epoch')").await;
    fixture.run("INSERT INTO popular VALUES (1)").await;
    let streamed = changes(&fixture.drain(&mut stream).await);
    let [RowChange::Unusable(unusable), RowChange::Insert(_)] = streamed.as_slice() else { panic!("{streamed:?}") };
    let key = Key { relation: Relation::Follows, first: 1, second: 2 };
    assert_eq!((unusable.operation, unusable.key, unusable.old_key), (Operation::Insert, Some(key), None));
    assert!(unusable.reason.contains("follows.accepted is NULL"), "{}", unusable.reason);
    assert_eq!(unusable.columns[2], ("accepted".to_owned(), Field::Null));
}
