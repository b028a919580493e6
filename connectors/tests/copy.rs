//! A relation is copied in ranges of pages, by several connections, as of one snapshot.
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

use std::collections::BTreeSet;

use feedmill_connectors::postgres::{Copied, Copier, ReplicationError};
use feedmill_model::{Key, Lsn, Relation, Row, SourceId};
use fixture::{Fixture, start_stream};
use tokio::sync::mpsc;

const USERS: i64 = 3_000;

/// Users in several pages of each partition.
async fn populate(fixture: &Fixture) {
    fixture
        .run(&format!(
            "INSERT INTO accounts (user_id, username) SELECT n, 'u' || n FROM generate_series(1, {USERS}) AS n;
             INSERT INTO users (id, username, display_name, bio)
                 SELECT n, 'u' || n, 'User ' || n, repeat('x', 160) FROM generate_series(1, {USERS}) AS n"
        ))
        .await;
}

#[tokio::test]
async fn c21_parts_read_by_several_connections_are_the_table_as_it_was() {
    let fixture = Fixture::new("copy_parts").await;
    populate(&fixture).await;
    let mut replication = fixture.replication().await;
    let start = replication.create_slot("copy_parts", true).await.unwrap();
    // None of this is in the snapshot: not the new row versions, nor the pages that the table grows by.
    fixture.run("UPDATE users SET bio = 'changed'; DELETE FROM users WHERE id % 3 = 0").await;

    let copiers = [
        Copier::open(&fixture.source, &start.snapshot, &[Relation::Users]).await.unwrap(),
        Copier::open(&fixture.source, &start.snapshot, &[Relation::Users]).await.unwrap(),
    ];
    let parts = copiers[0].parts(Relation::Users, 16).await.unwrap();
    assert!(parts.len() > 4, "{parts:?}");
    assert!(parts.iter().map(|part| part.rows).sum::<u64>() > 100, "{parts:?}");
    let mut keys = BTreeSet::<Key>::new();
    let mut rows = 0;
    for (at, part) in parts.iter().enumerate() {
        let (sender, mut receiver) = mpsc::channel::<Copied>(2);
        let read = async {
            let count = copiers[at % 2].copy(*part, &sender).await.unwrap();
            drop(sender);
            count
        };
        let collect = async {
            while let Some(chunk) = receiver.recv().await {
                for row in &chunk.rows {
                    let Row::User(user) = row else { panic!("{row:?}") };
                    assert_eq!(user.bio.as_ref().map(|bio| bio.len()), Some(160));
                }
                keys.extend(chunk.rows.iter().map(Row::key));
            }
        };
        let (count, ()) = tokio::join!(read, collect);
        rows += count;
    }
    assert_eq!((rows, keys.len()), (USERS as u64, USERS as usize), "each row comes once");
}

#[tokio::test]
async fn c21_a_part_touches_no_pages_but_its_own() {
    let fixture = Fixture::new("copy_pages").await;
    populate(&fixture).await;
    let plan = "EXPLAIN SELECT id FROM users WHERE ctid >= '(2,0)' AND ctid < '(3,0)'";
    let plan = fixture.client.query(plan, &[]).await.unwrap();
    let plan: Vec<String> = plan.iter().map(|row| row.get(0)).collect();
    assert_eq!(plan.iter().filter(|line| line.contains("Tid Range Scan")).count(), 8, "{plan:#?}");
    assert!(!plan.iter().any(|line| line.contains("Seq Scan")), "{plan:#?}");
}

#[tokio::test]
async fn c13_a_source_of_another_history_is_refused() {
    let fixture = Fixture::new("copy_history").await;
    let mut replication = fixture.replication().await;
    let from = replication.create_slot("copy_history", false).await.unwrap().consistent_point;
    let known = replication.identify("copy_history").await.unwrap();
    replication.check_continues(&known, from).await.unwrap();
    for other in [SourceId { system: known.system ^ 1, ..known.clone() }, SourceId { timeline: 2, ..known.clone() }] {
        let error = replication.check_continues(&other, from).await.unwrap_err();
        assert!(matches!(error, ReplicationError::OtherSource { .. }), "{error}");
        assert!(error.is_mismatch() && !error.is_transient());
    }
    let error = replication.check_continues(&known, Lsn(u64::MAX)).await.unwrap_err();
    assert!(matches!(error, ReplicationError::Ahead { .. }) && error.is_mismatch(), "{error}");
}

#[tokio::test]
async fn c08_a_slot_made_again_is_not_taken_for_the_old_one() {
    let fixture = Fixture::new("copy_again").await;
    let mut replication = fixture.replication().await;
    replication.create_slot("copy_again", false).await.unwrap();
    // The furthest that anybody can have read: the end of the log. Nothing is written in between.
    let from = replication.wal_end().await.unwrap();
    replication.drop_slot("copy_again").await.unwrap();
    let error = start_stream(&fixture.source, "copy_again", from).await.err().unwrap();
    assert!(matches!(error, ReplicationError::SlotMissing { .. }) && error.is_mismatch(), "{error}");
    replication.create_slot("copy_again", false).await.unwrap();
    let error = start_stream(&fixture.source, "copy_again", from).await.err().unwrap();
    assert!(matches!(error, ReplicationError::Behind { .. }) && error.is_mismatch(), "{error}");
}
