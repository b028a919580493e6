//! A streaming replica beside the primary: what it serves, and what it never does.

use serde_json::{Value, json};

use crate::postgres::Postgres;
use crate::system::{Account, System};

/// Reads of the replica with this result.
async fn reads(system: &System, result: &str) -> f64 {
    let text = system.http.get(format!("{}/metrics", system.url)).send().await.unwrap().text().await.unwrap();
    let line = format!("feedmill_replica_reads_total{{result=\"{result}\"}} ");
    text.lines().find_map(|found| found.strip_prefix(&line)?.parse().ok()).unwrap_or(0.0)
}

/// Waits until the standby has replayed all that the primary has written.
async fn until_replayed(system: &System, primary: &Postgres, standby: &Postgres) {
    let end: String = one(primary, "SELECT pg_current_wal_flush_lsn()::text").await;
    let replayed = format!("SELECT (pg_last_wal_replay_lsn() >= '{end}'::pg_lsn)::text");
    system.until("the replica has it", async |_| one(standby, &replayed).await == "true").await;
}

async fn one(postgres: &Postgres, query: &str) -> String {
    postgres.superuser("feedmill").await.query_one(query, &[]).await.unwrap().get(0)
}

async fn verify(system: &System, account: &Account) -> (u16, Value) {
    let answer = system.get("/api/auth/verify", Some(account)).await;
    (answer.status, answer.body["user"]["id"].clone())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_replica_serves_what_it_has_and_the_primary_the_rest() {
    let mut primary = Postgres::new(&[]).await;
    let mut standby = primary.standby().await;
    let mut system = System::new(&["--replica-url", &standby.url()]);
    system.use_database(&primary);
    system.go().await;
    let ada = system.register("ada").await;
    let (tweet, token) = system.tweet(&ada, "hello").await;
    assert_eq!(system.home(&ada, Some(&token)).await, std::slice::from_ref(&tweet));

    // The views stand still, so what is newer than they are comes from PostgreSQL.
    let senders = primary.backends("application_name = 'feedmill-capture' AND backend_type = 'walsender'").await;
    primary.freeze(&senders);
    let ben = system.register("ben").await;
    until_replayed(&system, &primary, &standby).await;
    let served = reads(&system, "served").await;
    assert_eq!(verify(&system, &ben).await, (200, ben.id.clone().into()));
    assert_eq!(reads(&system, "served").await, served + 1.0, "from the replica");

    // It is behind: what it does not have yet is the primary's to say.
    standby.superuser("feedmill").await.batch_execute("SELECT pg_wal_replay_pause()").await.unwrap();
    let cy = system.register("cy").await;
    let behind = reads(&system, "behind").await;
    assert_eq!(verify(&system, &cy).await, (200, cy.id.clone().into()));
    assert_eq!(reads(&system, "behind").await, behind + 1.0);

    // It takes a statement, and answers nothing.
    let frozen = standby.backends("application_name = 'feedmill-replica'").await;
    assert!(!frozen.is_empty());
    standby.freeze(&frozen);
    let away = reads(&system, "away").await;
    assert_eq!(verify(&system, &cy).await, (200, cy.id.clone().into()));
    assert_eq!(reads(&system, "away").await, away + 1.0);
    standby.thaw(&frozen);

    // It is away, and comes back.
    standby.stop_immediate();
    assert_eq!(verify(&system, &ben).await, (200, ben.id.clone().into()));
    assert!(reads(&system, "away").await >= 1.0);
    standby.start().await;
    let again = async |system: &System| {
        let before = reads(system, "served").await;
        assert_eq!(verify(system, &ben).await.0, 200);
        reads(system, "served").await > before
    };
    system.until("it serves again", again).await;

    // The primary is away: what is read goes on, what is written is told to come again, and then all is well by itself.
    primary.thaw(&senders);
    let shows = async |system: &System| system.get("/api/users/cy", None).await.status == 200;
    system.until("the views go on", shows).await;
    primary.stop_immediate();
    assert_eq!(system.home(&ada, None).await, [tweet]);
    for path in ["/api/users/ada", "/api/auth/verify", "/api/users/ben/tweets"] {
        assert_eq!(system.get(path, Some(&ada)).await.status, 200, "{path}");
    }
    assert_eq!(system.get("/ready", None).await.status, 200);
    for answer in [
        system.post("/api/tweets", Some(&ada), json!({ "content": "x" })).await,
        system.post(&format!("/api/follows/{}", ben.id), Some(&ada), Value::Null).await,
        system.delete(&format!("/api/follows/{}", ben.id), Some(&ada)).await,
        system.post("/api/auth/login", None, json!({ "username": "ada", "password": "correct horse battery" })).await,
    ] {
        assert_eq!((answer.status, &answer.body["error"]), (503, &json!("database-unavailable")), "{answer:?}");
    }
    primary.start().await;
    let writes = async |system: &System| {
        system.post(&format!("/api/follows/{}", ben.id), Some(&ada), Value::Null).await.status < 300
    };
    system.until("a write goes through", writes).await;
    let (second, token) = system.tweet(&ada, "and again").await;
    let shows = async |system: &System| system.get_after(&token, "/api/timeline", Some(&ada)).await.status == 200;
    system.until("the new post shows", shows).await;
    assert_eq!(system.home(&ada, Some(&token)).await[0], second);
    system.verified().await;

    // One that was promoted follows nobody: it is not believed any more.
    standby.superuser("feedmill").await.batch_execute("SELECT pg_promote()").await.unwrap();
    let senders = primary.backends("application_name = 'feedmill-capture' AND backend_type = 'walsender'").await;
    primary.freeze(&senders);
    let dan = system.register("dan").await;
    let served = reads(&system, "served").await;
    assert_eq!(verify(&system, &dan).await, (200, dan.id.clone().into()));
    assert_eq!(reads(&system, "served").await, served);
    primary.thaw(&senders);
}
