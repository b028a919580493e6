//! What a process that serves must be told.

use anyhow::{Context, bail};
use feedmill_api::Keys;
use feedmill_connectors::postgres::Source;
use feedmill_sinks::ElasticSettings;
use feedmill_sinks::cql::CqlSettings;

use crate::config::{SearchPlace, Settings};

/// Where everything is that it reads and writes, and what it signs with.
#[derive(Clone, Debug)]
pub struct Place {
    /// Facts, rows and home timelines.
    pub store: CqlSettings,
    /// What search finds.
    pub search: ElasticSettings,
    /// What is written.
    pub source: Source,
    /// Its replica, if there is one.
    pub replica: Option<Source>,
    /// What signs tokens.
    pub keys: Keys,
}

impl Place {
    /// By the settings, which must name all of it.
    pub fn of(settings: &Settings) -> anyhow::Result<Self> {
        let search = match settings.search_place()? {
            SearchPlace::Local => None,
            SearchPlace::Elastic(search) => Some(*search),
        };
        let given = (settings.cluster()?, search, settings.database_url.as_deref(), settings.keys.as_deref());
        let (Some(store), Some(search), Some(source), Some(keys)) = given else {
            let missing = [
                ("--store cql://…", given.0.is_none()),
                ("--search http(s)://…", given.1.is_none()),
                ("--database-url postgresql://…", given.2.is_none()),
                ("--keys FILE", given.3.is_none()),
            ];
            let missing: Vec<&str> =
                missing.into_iter().filter(|(_, is_missing)| *is_missing).map(|(flag, _)| flag).collect();
            bail!(
                "`feedmill serve` reads a CQL cluster and an Elasticsearch that others fill, writes PostgreSQL, and signs with \
                 keys that all instances share: give it {} too. On one machine alone, `feedmill up` serves",
                missing.join(", ")
            );
        };
        let replica =
            settings.replica_url.as_deref().map(str::parse).transpose().context("--replica-url cannot be used")?;
        let source = source.parse().context("--database-url cannot be used")?;
        Ok(Place { store, search, source, replica, keys: Keys::load(keys)? })
    }
}
