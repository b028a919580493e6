//! Which partitions the partitioned tables have, and what happens when that changes.
//!
//! ```text
//!   every 2 s: partitions in the catalogue ≠ those of the last comparison ──► resync of that table ──► remember them
//! ```
//!
//! The tables are published through their roots, so rows that are written are in the stream whatever partition they are
//! in. But to attach a table that has rows, to detach or drop a partition, or to truncate one alone emits nothing. So the
//! set of partitions is read in the same snapshot as the rows of a copy, and kept beside the log; when the catalogue shows
//! another, the table is compared anew and the difference taken over.
//!
//! A partition is told by its table, by the entry that ties it to its parent (which is another one after it was detached
//! and attached again), and by its file (which is another one after it was truncated, and, to no harm, after it was
//! rewritten). One that Feedmill made itself was empty, says so in its comment, and needs no comparison; nor does one that
//! is empty now.
//!
//! A change during a copy is seen too: rows are read from the partitions that are there at that moment, and the set by
//! the snapshot, which is older. A difference of the two is a difference to the catalogue as well.

use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use feedmill_connectors::postgres::Source;
use feedmill_model::Relation;
use serde::{Deserialize, Serialize};
use tokio::time::{MissedTickBehavior, interval};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::resync::Resyncer;

/// How often the catalogue is read.
const POLL: Duration = Duration::from_secs(2);
/// Pause after something went wrong.
const RETRY: Duration = Duration::from_secs(10);
/// The relations that are partitioned.
const PARTITIONED: [Relation; 2] = [Relation::Users, Relation::Tweets];
/// Where the set is kept, in the data folder.
const FILE: &str = "partitions.json";

/// The partitions of each partitioned table, by name of the table.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Partitions(BTreeMap<String, BTreeSet<String>>);

/// Partitions as they are now.
struct Found {
    partitions: Partitions,
    /// Those that held nothing when they were attached, or hold nothing now.
    empty: BTreeSet<String>,
}

impl Partitions {
    /// As the transaction of `client` sees them.
    pub async fn read(client: &Client) -> anyhow::Result<Self> {
        Ok(Found::read(client).await?.partitions)
    }

    /// Those of the last copy or comparison; nothing when that is not known.
    fn load(data: &Path) -> Self {
        let text = std::fs::read(data.join(FILE)).unwrap_or_default();
        serde_json::from_slice(&text).unwrap_or_default()
    }

    /// Remembers them, durably.
    pub fn save(&self, data: &Path) -> anyhow::Result<()> {
        let (path, new) = (data.join(FILE), data.join(format!("{FILE}.new")));
        let write = || {
            let mut file = std::fs::File::create(&new)?;
            file.write_all(&serde_json::to_vec(self)?)?;
            file.sync_all()?;
            std::fs::rename(&new, &path)
        };
        write().with_context(|| format!("could not write {}", path.display()))
    }

    /// Takes over those of `relation` from `other`, and remembers them.
    pub fn update(data: &Path, relation: Relation, other: &Partitions) -> anyhow::Result<()> {
        let mut known = Self::load(data);
        if let Some(partitions) = other.0.get(relation.table()) {
            known.0.insert(relation.table().to_owned(), partitions.clone());
        }
        known.save(data)
    }
}

impl Found {
    async fn read(client: &Client) -> anyhow::Result<Self> {
        let query = "SELECT root, concat_ws(':', relid::oid, inherits.xmin, pending, class.relfilenode),
                            coalesce(made.xmin = inherits.xmin, false) OR pg_relation_size(relid) = 0
                     FROM unnest($1::text[]) AS root, pg_partition_tree(to_regclass('public.' || root))
                     JOIN (SELECT inhrelid, xmin, to_jsonb(i) ->> 'inhdetachpending' AS pending FROM pg_inherits AS i)
                          AS inherits ON inhrelid = relid
                     JOIN pg_class AS class ON class.oid = relid
                     LEFT JOIN pg_description AS made ON objoid = relid AND classoid = 'pg_class'::regclass
                          AND objsubid = 0 AND description = 'made by feedmill'
                     WHERE isleaf";
        let roots = PARTITIONED.map(Relation::table);
        let rows = client.query(query, &[&roots.as_slice()]).await.context("could not read the partitions")?;
        let mut found = Found { partitions: Partitions::default(), empty: BTreeSet::new() };
        for row in rows {
            let (root, partition, empty): (String, String, Option<bool>) =
                (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            if empty == Some(true) {
                found.empty.insert(partition.clone());
            }
            found.partitions.0.entry(root).or_default().insert(partition);
        }
        Ok(found)
    }

    /// Whether `relation` has to be compared, given the partitions of the last time.
    fn differs(&self, relation: Relation, known: &Partitions) -> bool {
        let table = relation.table();
        let none = BTreeSet::new();
        let (now, before) = (self.partitions.0.get(table).unwrap_or(&none), known.0.get(table).unwrap_or(&none));
        before.difference(now).next().is_some() || now.difference(before).any(|new| !self.empty.contains(new))
    }
}

/// Watches the catalogue until the end.
pub async fn watch(
    source: Source,
    data: std::path::PathBuf,
    resyncer: Arc<Resyncer>,
    end: CancellationToken,
) -> anyhow::Result<&'static str> {
    let work = async {
        loop {
            if let Err(error) = session(&source, &data, &resyncer).await {
                tracing::warn!("partitions are not being followed: {error:#}; trying again in {RETRY:?}");
            }
            tokio::time::sleep(RETRY).await;
        }
    };
    tokio::select! {
        () = work => {}
        () = end.cancelled() => {}
    }
    Ok("the watch of partitions")
}

async fn session(source: &Source, data: &Path, resyncer: &Resyncer) -> anyhow::Result<()> {
    let client = source.connect("feedmill-partitions").await?;
    let mut poll = interval(POLL);
    poll.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        poll.tick().await;
        let found = Found::read(&client).await?;
        let known = Partitions::load(data);
        if found.partitions == known {
            continue;
        }
        for relation in PARTITIONED {
            if found.differs(relation, &known) {
                tracing::info!(
                    "partitions of {} were attached, detached, dropped or truncated: comparing the table",
                    relation.table()
                );
                resyncer.run(&[relation]).await?;
            } else {
                Partitions::update(data, relation, &found.partitions)?;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn partitions(of_tweets: &[&str]) -> Partitions {
        let set = of_tweets.iter().map(ToString::to_string).collect();
        Partitions(BTreeMap::from([("tweets".to_owned(), set)]))
    }

    #[test]
    fn whatever_may_have_held_rows_is_compared() {
        let found = Found { partitions: partitions(&["1:7", "2:8"]), empty: BTreeSet::from(["2:8".to_owned()]) };
        let differs = |known: &[&str]| found.differs(Relation::Tweets, &partitions(known));
        assert!(!differs(&["1:7", "2:8"]));
        assert!(!differs(&["1:7"]), "a new partition is empty");
        assert!(differs(&["2:8"]), "a new partition holds rows");
        assert!(differs(&["1:7", "2:8", "3:9"]), "one is gone");
        assert!(differs(&["1:6", "2:8"]), "one was detached and attached again");
        assert!(found.differs(Relation::Tweets, &Partitions::default()));
        assert!(!found.differs(Relation::Users, &Partitions::default()));
    }

    #[test]
    fn what_is_known_outlives_the_process() {
        let folder = tempfile::tempdir().expect("a folder");
        assert_eq!(Partitions::load(folder.path()), Partitions::default());
        partitions(&["1:7"]).save(folder.path()).expect("saved");
        assert_eq!(Partitions::load(folder.path()), partitions(&["1:7"]));
        Partitions::update(folder.path(), Relation::Tweets, &partitions(&["2:8"])).expect("saved");
        assert_eq!(Partitions::load(folder.path()), partitions(&["2:8"]));
    }
}
