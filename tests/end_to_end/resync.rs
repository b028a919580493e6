//! `feedmill resync`: what the change log holds wrongly becomes right again, and only that.

use feedmill_connectors::postgres::{RowChange, Transaction};
use feedmill_ingest::{Log, Options};
use feedmill_model::{Follow, Key, Lsn, Relation, Row, Tweet, User};

use crate::system::System;

/// Changes the rows of the log without a word from the source, as a defect or a clumsy hand would.
fn damage(system: &System, changes: Vec<RowChange>) {
    let log = Log::open(&system.data().join("log"), Options::default()).unwrap();
    let position = log.position().unwrap();
    let end_lsn = Lsn(position.lsn.0 + 1);
    let transaction = Transaction { end_lsn, committed_at: 0, changes: changes.into() };
    log.append(&[transaction], end_lsn, position.time + 1).unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_row_store_is_repaired_by_hand() {
    let mut system = System::start(&[]).await;
    let (ada, ben) = (system.register("ada").await, system.register("ben").await);
    system.post(&format!("/api/follows/{}", ada.id), Some(&ben), serde_json::json!({})).await;
    let (kept, _) = system.tweet(&ada, "kept").await;
    let (lost, token) = system.tweet(&ada, "lost").await;
    let expected = system.home(&ben, Some(&token)).await;
    assert_eq!(expected, [lost.clone(), kept]);
    // The source writes on, so that its log reaches beyond ours.
    system.kill();
    let sql = system.sql().await;
    sql.batch_execute("SELECT pg_logical_emit_message(true, 'test', 'moves the log on')").await.unwrap();
    drop(sql);

    let number = |text: &str| text.parse::<i64>().unwrap();
    let invented = number(&lost) + 1;
    let of_nobody =
        User { id: number(&ben.id), username: "ben".into(), display_name: "Mallory".into(), ..User::default() };
    damage(
        &system,
        vec![
            RowChange::Delete(Key { relation: Relation::Tweets, first: number(&lost), second: 0 }),
            RowChange::Insert(Row::Tweet(Box::new(Tweet {
                id: invented,
                user_id: number(&ada.id),
                content: "invented".into(),
                conversation_id: invented,
                ..Tweet::default()
            }))),
            RowChange::Insert(Row::Follow(Follow {
                follower_id: number(&ada.id),
                following_id: number(&ben.id),
                accepted: true,
                created_at: 0,
            })),
            RowChange::Insert(Row::User(Box::new(of_nobody))),
        ],
    );
    system.go().await;
    let shows = async |system: &System| system.home(&ben, None).await.first() == Some(&invented.to_string());
    system.until("the damage shows", shows).await;
    assert!(!system.command(&["verify"]).await.status.success(), "verify finds it");

    // One table alone, then the rest.
    let output = system.command(&["resync", "--relation", "tweets"]).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.ends_with("2 rows compared, 2 differences taken over\n"), "{printed}");
    system.until("the timeline is right", async |system| system.home(&ben, None).await == expected).await;
    let output = system.command(&["resync"]).await;
    let printed = String::from_utf8(output.stdout).unwrap();
    let line = |table: &str| {
        let line = printed.lines().find(|line| line.starts_with(table)).unwrap_or_else(|| panic!("{printed}"));
        line.split_whitespace().skip(1).map(|number| number.parse().unwrap()).collect::<Vec<u64>>()
    };
    assert_eq!(
        (line("users"), line("tweets"), line("follows")),
        (vec![2, 0, 1, 0], vec![2, 0, 0, 0], vec![1, 0, 0, 1])
    );
    system.verified().await;
    assert_eq!(system.home(&ben, None).await, expected);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_resync_while_others_write_loses_nothing_and_undoes_nothing() {
    let system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let mut written = Vec::new();
    let mut resync = tokio::task::spawn_blocking({
        let mut command = system.prepare(&["resync"]);
        move || command.output().unwrap()
    });
    let output = loop {
        written.insert(0, system.tweet(&ada, &format!("tweet {}", written.len())).await.0);
        if resync.is_finished() {
            break (&mut resync).await.unwrap();
        }
    };
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let (last, token) = system.tweet(&ada, "afterwards").await;
    written.insert(0, last);
    written.truncate(100);
    assert_eq!(system.home(&ada, Some(&token)).await, written);
    system.verified().await;
}
