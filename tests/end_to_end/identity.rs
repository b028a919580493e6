//! The database is restored, promoted or replaced, and its slot goes away, is made again or is lost: never silent
//! corruption, and a resync takes over the difference.

use std::process::ExitStatus;

use nix::sys::signal::{Signal, kill};
use tokio_postgres::Client;

use crate::postgres::Postgres;
use crate::system::{Account, System};

/// Ada posts, Ben follows her; some others are there as well.
struct Story {
    system: System,
    ada: Account,
    ben: Account,
}

impl Story {
    async fn begin(postgres: &Postgres, settings: &[&str]) -> Story {
        let system = System::start_on(postgres, settings).await;
        let ada = system.register("ada").await;
        let ben = system.register("ben").await;
        system.post(&format!("/api/follows/{}", ada.id), Some(&ben), serde_json::json!({})).await;
        system.tweet(&ada, "first").await;
        system.tweet(&ada, "second").await;
        postgres
            .sql()
            .await
            .batch_execute(
                "INSERT INTO accounts (user_id, username) SELECT n, 'other' || n FROM generate_series(1, 300) AS n;
                 INSERT INTO users (id, username, display_name)
                     SELECT n, 'other' || n, 'Other' FROM generate_series(1, 300) AS n",
            )
            .await
            .unwrap();
        system.until("all show", async |system| system.get("/api/users/other300", None).await.status == 200).await;
        Story { system, ada, ben }
    }

    /// Ada's tweet, past the API, by whoever has the database.
    async fn tweets_by_sql(&self, sql: &Client, content: &str) -> String {
        let insert = "INSERT INTO tweets (id, user_id, content, conversation_id)
                          SELECT id, $1, $2, id FROM (SELECT feedmill_id() AS id) AS one RETURNING id";
        let ada: i64 = self.ada.id.parse().unwrap();
        sql.query_one(insert, &[&ada, &content]).await.unwrap().get::<_, i64>(0).to_string()
    }

    /// It refuses to start, says what it found and what mends it; with `--on-mismatch resync` it starts, takes over only
    /// the difference, and every view equals its SQL.
    async fn refuses_then_mends(&mut self, found: &str) {
        let printed = self.system.expect_start_failure().await;
        assert!(printed.contains(found), "{printed}");
        assert!(printed.contains("feedmill up --on-mismatch resync") && printed.contains("restore it"), "{printed}");
        // Nothing was changed: it says the same again.
        assert!(self.system.expect_start_failure().await.contains(found));
        self.system.settings.extend(["--on-mismatch", "resync"].map(str::to_owned));
        self.system.go().await;
        self.system.verified().await;
        // A handful of rows differ, of hundreds.
        assert!(self.system.log().contains("differences taken over"), "{}", self.system.log());
        let changes = self.system.metric("feedmill_log_changes_total").await;
        assert!(changes < 50.0, "{changes} changes are not the difference only");
        // From here on it is a system like any other.
        let (newest, token) = self.system.tweet(&self.ada, "afterwards").await;
        assert_eq!(self.system.home(&self.ben, Some(&token)).await.first(), Some(&newest));
        self.system.interrupt();
        self.system.settings.truncate(self.system.settings.len() - 2);
        self.system.go().await;
        assert_eq!(self.system.home(&self.ben, None).await.first(), Some(&newest));
    }

    /// The process ends by itself.
    fn ended(&mut self) -> ExitStatus {
        self.system.wait()
    }
}

const MAKE: &str = "SELECT pg_create_logical_replication_slot('feedmill', 'pgoutput')";
const DROP: &str = "SELECT pg_drop_replication_slot('feedmill')";

#[tokio::test(flavor = "multi_thread")]
async fn c07_a_new_slot_is_never_merged_with_old_progress() {
    let postgres = Postgres::new(&[]).await;
    let mut story = Story::begin(&postgres, &[]).await;
    story.system.interrupt();
    let sql = postgres.sql().await;
    sql.batch_execute(DROP).await.unwrap();
    let missed = story.tweets_by_sql(&sql, "while nobody listened").await;
    let printed = story.system.expect_start_failure().await;
    assert!(printed.contains("the replication slot feedmill is gone"), "{printed}");
    // The new slot begins after it.
    sql.batch_execute(MAKE).await.unwrap();
    story.refuses_then_mends("the replication slot feedmill stands at").await;
    assert!(story.system.home(&story.ben, None).await.contains(&missed));
}

/// Makes the slot anew under a system that runs; gives a tweet that neither slot tells.
async fn swap_slot(postgres: &Postgres, story: &Story) -> String {
    // It cannot look while it is frozen.
    kill(story.system.pid(), Signal::SIGSTOP).unwrap();
    let sql = postgres.superuser("feedmill").await;
    sql.batch_execute("SELECT pg_terminate_backend(active_pid, 10000) FROM pg_replication_slots").await.unwrap();
    sql.batch_execute(DROP).await.unwrap();
    let missed = story.tweets_by_sql(&sql, "between two slots").await;
    sql.batch_execute(MAKE).await.unwrap();
    kill(story.system.pid(), Signal::SIGCONT).unwrap();
    missed
}

#[tokio::test(flavor = "multi_thread")]
async fn c08_a_slot_made_again_under_a_running_system_is_told() {
    let postgres = Postgres::new(&[]).await;
    let mut story = Story::begin(&postgres, &[]).await;
    swap_slot(&postgres, &story).await;
    let status = story.ended();
    assert_eq!(status.code(), Some(1), "{}", story.system.log());
    let log = story.system.log();
    assert!(log.contains("it was dropped and made again") && log.contains("feedmill up --on-mismatch resync"), "{log}");
    story.refuses_then_mends("the replication slot feedmill stands at").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c08_a_slot_made_again_is_mended_by_policy_while_reads_go_on() {
    let postgres = Postgres::new(&[]).await;
    let story = Story::begin(&postgres, &["--on-mismatch", "resync"]).await;
    let before = story.system.metric("feedmill_log_changes_total").await;
    for _ in 0..2 {
        let missed = swap_slot(&postgres, &story).await;
        let shows = async |system: &System| system.home(&story.ben, None).await.contains(&missed);
        story.system.until("the missed tweet shows", shows).await;
        story.system.verified().await;
    }
    let changes = story.system.metric("feedmill_log_changes_total").await - before;
    assert!(changes < 50.0, "{changes} changes are not the difference only");
    let (newest, token) = story.system.tweet(&story.ada, "afterwards").await;
    assert_eq!(story.system.home(&story.ben, Some(&token)).await.first(), Some(&newest));
}

#[tokio::test(flavor = "multi_thread")]
async fn c09_a_lost_slot_says_why_and_is_mended_by_policy_only() {
    let settings = ["max_slot_wal_keep_size = 1MB", "min_wal_size = 32MB", "max_wal_size = 32MB"];
    let postgres = Postgres::new(&settings).await;
    let mut story = Story::begin(&postgres, &[]).await;
    story.system.interrupt();
    let superuser = postgres.superuser("feedmill").await;
    let missed = story.tweets_by_sql(&superuser, "in the log that is lost").await;
    let lost = async |_: &System| {
        let churn = "CREATE TABLE IF NOT EXISTS churn (n int); INSERT INTO churn VALUES (1); SELECT pg_switch_wal()";
        superuser.batch_execute(churn).await.unwrap();
        superuser.batch_execute("CHECKPOINT").await.unwrap();
        let status = superuser.query_one("SELECT wal_status FROM pg_replication_slots", &[]).await.unwrap();
        status.get::<_, &str>(0) == "lost"
    };
    story.system.until("the slot is lost", lost).await;
    story.refuses_then_mends("the replication slot feedmill is lost").await;
    assert!(story.system.home(&story.ben, None).await.contains(&missed));
}

#[tokio::test(flavor = "multi_thread")]
async fn c13_a_database_restored_from_an_older_backup_is_told() {
    let mut postgres = Postgres::new(&[]).await;
    let mut story = Story::begin(&postgres, &[]).await;
    story.system.interrupt();
    postgres.stop_fast();
    let backup = postgres.backup();
    postgres.start().await;
    story.system.go().await;
    let (gone, token) = story.system.tweet(&story.ada, "after the backup").await;
    assert!(story.system.home(&story.ben, Some(&token)).await.contains(&gone));
    story.system.interrupt();
    postgres.stop_fast();
    postgres.restore(&backup);
    postgres.start().await;
    story.refuses_then_mends("the database was restored from an older backup").await;
    assert!(!story.system.home(&story.ben, None).await.contains(&gone));
}

#[cfg(feature = "failpoints")]
#[tokio::test(flavor = "multi_thread")]
async fn c13_a_kill_before_the_stores_have_the_difference_mixes_no_positions() {
    let mut postgres = Postgres::new(&[]).await;
    let mut story = Story::begin(&postgres, &["--on-mismatch", "resync"]).await;
    story.system.interrupt();
    postgres.stop_fast();
    let backup = postgres.backup();
    postgres.start().await;
    story.system.go().await;
    // Much log, so that positions of the restored database are long below those of the stores.
    postgres.superuser("feedmill").await.batch_execute("SELECT pg_switch_wal()").await.unwrap();
    let (gone, token) = story.system.tweet(&story.ada, "after the backup").await;
    assert!(story.system.home(&story.ben, Some(&token)).await.contains(&gone));
    story.system.interrupt();
    postgres.stop_fast();
    postgres.restore(&backup);
    postgres.start().await;
    story.system.failpoints = Some("sink_write_before=return".to_owned());
    story.system.spawn().await.unwrap();
    story.system.until("it died with the difference in the log", async |system| !system.is_running()).await;
    story.ended();
    assert!(story.system.log().contains("differences taken over"), "{}", story.system.log());
    story.system.failpoints = None;
    story.system.go().await;
    assert!(!story.system.home(&story.ben, None).await.contains(&gone), "ready is what has the difference");
    let (newest, token) = story.system.tweet(&story.ada, "afterwards").await;
    assert_eq!(story.system.home(&story.ben, Some(&token)).await.first(), Some(&newest));
    story.system.verified().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn c13_a_promoted_standby_is_told() {
    let mut postgres = Postgres::new(&[]).await;
    let mut story = Story::begin(&postgres, &[]).await;
    story.system.interrupt();
    postgres.stop_fast();
    postgres.put("standby.signal", "");
    postgres.start().await;
    postgres.superuser("postgres").await.batch_execute("SELECT pg_promote()").await.unwrap();
    let sql = postgres.sql().await;
    let missed = story.tweets_by_sql(&sql, "on the new timeline").await;
    story.refuses_then_mends("timeline 2").await;
    assert!(story.system.home(&story.ben, None).await.contains(&missed));
}

#[tokio::test(flavor = "multi_thread")]
async fn c13_another_database_is_not_taken_for_the_old_one() {
    let postgres = Postgres::new(&[]).await;
    let mut story = Story::begin(&postgres, &[]).await;
    story.system.interrupt();
    // The same schema, no rows.
    let other = Postgres::unlike_others(&[]).await;
    let mut preparation = System::start_on(&other, &[]).await;
    preparation.interrupt();
    story.system.database_url = Some(other.url());
    let printed = story.system.expect_start_failure().await;
    assert!(printed.contains("the database is another one"), "{printed}");
    story.system.settings.extend(["--on-mismatch", "resync"].map(str::to_owned));
    story.system.go().await;
    assert_eq!(story.system.get("/api/users/ada", None).await.status, 404);
    story.system.verified().await;
}
