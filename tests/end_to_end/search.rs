//! What is posted is found, and what is deleted is not.

use std::path::Path;

use feedmill_sinks::LocalSearch;
use feedmill_sinks::search::{AccountQuery, Query, Search};

use crate::system::System;

/// Copies a folder of files, those alone that stay while it is copied.
fn copy(from: &Path, to: &Path) -> std::io::Result<()> {
    std::fs::create_dir_all(to)?;
    for entry in std::fs::read_dir(from)? {
        let entry = entry?;
        std::fs::copy(entry.path(), to.join(entry.file_name()))?;
    }
    Ok(())
}

/// The index as a process that is killed now leaves it; `None` if a file went meanwhile.
fn left(system: &System) -> Option<(LocalSearch, tempfile::TempDir)> {
    let dir = tempfile::tempdir().unwrap();
    copy(&system.data().join("search"), dir.path()).ok()?;
    Some((LocalSearch::open(dir.path()).ok()?, dir))
}

/// Ids of the tweets that the running process has committed, newest first.
async fn found(system: &System, query: &str) -> Vec<String> {
    let Some((search, _dir)) = left(system) else { return Vec::new() };
    let ids = search.latest(&Query::parse(query).unwrap(), None, 100).await.unwrap_or_default();
    ids.iter().map(ToString::to_string).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_posted_is_found_after_every_kind_of_end() {
    let mut system = System::start(&[]).await;
    let ada = system.register("ada").await;
    let mut posted = Vec::new();
    for text in ["Grüße an #Feedmill", "noch ein Gruß, https://example.org/feedmill"] {
        posted.insert(0, system.tweet(&ada, text).await.0);
    }
    system.until("both are found", async |system| found(system, "gruss").await == posted[..1]).await;
    assert_eq!(found(&system, "#feedmill").await, posted[1..]);
    system.verified().await;

    system.kill();
    system.go().await;
    posted.insert(0, system.tweet(&ada, "feedmill again").await.0);
    system
        .until("a third is found", async |system| found(system, "feedmill").await == [&posted[0][..], &posted[2]])
        .await;
    system.verified().await;

    let deleted = system.delete(&format!("/api/tweets/{}", posted[2]), Some(&ada)).await;
    assert!((200..300).contains(&deleted.status), "{deleted:?}");
    let other = system.register("ada_lovelace").await;
    system.until("what was deleted is gone", async |system| found(system, "feedmill").await == posted[..1]).await;
    assert!(system.interrupt().0.success());
    let (search, _dir) = left(&system).unwrap();
    let accounts = search.accounts(&AccountQuery::parse("ADA").unwrap(), 10).await.unwrap();
    let mut ids: Vec<String> = accounts.iter().map(|hit| hit.id.to_string()).collect();
    ids.sort();
    let mut expected = vec![ada.id.clone(), other.id];
    expected.sort();
    assert_eq!(ids, expected);
    system.go().await;
    system.verified().await;

    // Another one's folder, or none: it is filled from the change log.
    assert!(system.interrupt().0.success());
    std::fs::remove_dir_all(system.data().join("search")).unwrap();
    system.go().await;
    system.until("it is filled again", async |system| found(system, "feedmill").await == posted[..1]).await;
    system.verified().await;
}
