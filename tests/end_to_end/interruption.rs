//! PostgreSQL restarts, connections die or stall, another process holds the slot.

use crate::postgres::Postgres;
use crate::system::System;

#[tokio::test(flavor = "multi_thread")]
async fn c12_a_crash_of_postgres_applies_nothing_twice() {
    let mut postgres = Postgres::new(&[]).await;
    let mut system = System::start_on(&postgres, &[]).await;
    let ada = system.register("ada").await;
    let mut expected = Vec::new();
    for round in 0..3 {
        for n in 0..5 {
            expected.insert(0, system.tweet(&ada, &format!("tweet {round}.{n}")).await.0);
        }
        postgres.stop_immediate();
        // On every second crash we are started again as well, so both sides recognise what they have.
        if round % 2 == 1 {
            system.kill();
        }
        postgres.start().await;
        if round % 2 == 1 {
            system.go().await;
        }
        // A pooled connection may find out only now that its server died.
        system
            .until("a write goes through", async |system| {
                system.post("/api/follows/1", Some(&ada), serde_json::json!({})).await.status == 404
            })
            .await;
        system.until("it is ready", async |system| system.get("/ready", None).await.status == 200).await;
        system.until("all posts show, each once", async |system| system.home(&ada, None).await == expected).await;
        let profile = system.get("/api/users/ada", None).await.body;
        assert_eq!(profile.get("user").unwrap_or(&profile)["counts"]["tweets"], expected.len(), "{profile}");
        system.verified().await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_postgres_says_what_it_tried() {
    let mut postgres = Postgres::new(&[]).await;
    postgres.stop_fast();
    let mut system = System::new(&[]);
    system.database_url = Some(postgres.url());
    let printed = system.expect_start_failure().await;
    assert!(printed.contains("could not connect to postgres://feedmill@127.0.0.1"), "{printed}");
}
