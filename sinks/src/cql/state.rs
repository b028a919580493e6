//! What a keyspace says of itself: its format, its source, and the generation of each store.

use feedmill_model::SourceId;

use super::cluster::Cluster;
use super::fault::{CqlError, Fault};
use super::schema::FORMAT;

const FORMAT_NAME: &str = "format";
const SOURCE_NAME: &str = "source";

/// The database in the text of a source. Its timeline and slot change when a standby is promoted and what differs is taken
/// over, and then the stores go on.
fn system(source: &str) -> &str {
    source.split_once(" timeline ").map_or(source, |(system, _)| system)
}

/// The table `state`.
pub(super) struct State<'a>(&'a Cluster);

impl<'a> State<'a> {
    pub(super) const fn new(cluster: &'a Cluster) -> Self {
        State(cluster)
    }

    async fn get(&self, name: &str) -> Result<Option<String>, Fault> {
        let undecodable = || Fault::Undecodable { of: "state" };
        // Names are ours and have nothing that would have to be quoted.
        let found = self.0.run(&format!("SELECT value FROM state WHERE name = '{name}'")).await?;
        let rows = found.into_rows_result().map_err(|_| undecodable())?;
        let row = rows.maybe_first_row::<(Option<String>,)>().map_err(|_| undecodable())?;
        Ok(row.and_then(|(value,)| value))
    }

    async fn set(&self, name: &str, value: &str, at: i64) -> Result<(), Fault> {
        let quoted = value.replace('\'', "''");
        let text = format!("INSERT INTO state (name, value) VALUES ('{name}', '{quoted}') USING TIMESTAMP {at}");
        self.0.run(&text).await.map(drop)
    }

    /// Checks that the keyspace is of this version and of this source, or says so of a new one.
    pub(super) async fn check(&self, source: &SourceId) -> Result<(), CqlError> {
        let settings = &self.0.settings;
        let (servers, keyspace) = (settings.servers(), settings.keyspace.clone());
        let failed = |source: Fault| CqlError::Engine {
            tried: "read whose it is",
            keyspace: settings.keyspace.clone(),
            source: Box::new(source),
        };
        let ours = (FORMAT.to_string(), source.to_string());
        let Some(format) = self.get(FORMAT_NAME).await.map_err(failed)? else {
            self.set(SOURCE_NAME, &ours.1, 1).await.map_err(failed)?;
            // The format comes last: where it is, everything is made.
            return self.set(FORMAT_NAME, &ours.0, 1).await.map_err(failed);
        };
        if format != ours.0 {
            return Err(CqlError::Format { servers, keyspace, found: format, expected: FORMAT });
        }
        let found = self.get(SOURCE_NAME).await.map_err(failed)?.unwrap_or_default();
        if system(&found) != system(&ours.1) {
            return Err(CqlError::Source { servers, keyspace, found, expected: ours.1 });
        }
        Ok(())
    }

    /// How often the store was begun anew.
    pub(super) async fn generation(&self, store: &str) -> Result<i64, Fault> {
        let found = self.get(&format!("generation_{store}")).await?;
        Ok(found.and_then(|number| number.parse().ok()).unwrap_or(0))
    }

    pub(super) async fn set_generation(&self, store: &str, generation: i64) -> Result<(), Fault> {
        self.set(&format!("generation_{store}"), &generation.to_string(), generation).await
    }
}
