//! The stores of the processes that derive.
//!
//! ```text
//!   process 0 ─ makes keyspace, tables, index; empties what a load has left half ─ least position that a shard has ─┐
//!   others ───────────────────────────────────────────────────────────── wait ─► open what is there ◄───────────────┘
//! ```

use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::ensure;
use feedmill_connectors::kafka::{Times, TimesRecord};
use feedmill_model::{Closed, Document, Fact, Lsn, Phase, Position, RowSink, SourceId, StoreError, ViewRow};
use feedmill_sinks::cql::{CqlHome, CqlIndex, CqlStores};
use feedmill_sinks::search::{SearchIndex, SearchStore};
use feedmill_sinks::{ElasticSearch, IndexStore};
use serde::{Deserialize, Serialize};
use tokio::runtime::Handle;

use super::place::{Estate, Place};
use crate::config::Settings;
use crate::up::stores::{range, search_folder};

/// How long the search server may take to begin an empty index.
const EMPTIED_MAX: Duration = Duration::from_secs(60);

/// Facts, rows, home timelines; and search, where this process writes it.
#[derive(Clone)]
pub struct Stores {
    /// Facts, rows and reactions.
    pub index: Arc<CqlIndex>,
    /// Home timelines.
    pub home: Arc<CqlHome>,
    /// What search finds.
    pub search: Option<Arc<dyn SearchStore>>,
}

/// Where all processes begin.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Beginning {
    /// The state that the dataflows are loaded with.
    pub load: Position,
    /// Home timelines that are begun are complete above this entry,
    pub floor: i64,
    /// unless the load fills them.
    pub fill: bool,
    /// The newest batch in Kafka.
    pub newest: Position,
    /// What search has, by shard.
    searched: Vec<Option<Position>>,
    /// As whom they write the stores.
    pub writer: String,
}

/// Makes the stores ready, and finds out where to begin. One process does this, before any other opens them.
pub fn prepare(settings: &Settings, place: &Place, newest: &TimesRecord) -> anyhow::Result<(Stores, Beginning)> {
    let source = SourceId::from(&newest.source);
    let (CqlStores { index, home }, writer) = Handle::current().block_on(async {
        let stores = CqlStores::open(place.estate.store.clone(), &source, settings.parameters()).await?;
        let writer = stores.claim().await?;
        stores.clear_incomplete().await?;
        anyhow::Ok((stores, writer))
    })?;
    let owner = place.estate.owner(&source);
    let search = ElasticSearch::open(place.estate.search.clone(), &search_folder(settings), Some(&owner))?;
    let searched = search.progress();
    // A store that was emptied is filled; one that is new begins with what comes, and the rest is merged.
    let fill = home.position().is_none() && home.is_emptied();
    let stores = Stores { index, home, search: Some(Arc::new(search)) };
    // The stores may have more than there was when this process started.
    let newest = Times::of(&place.estate.log)?.newest()?;
    let load = stores.load(&searched, &newest)?;
    let floor = newest.greatest_entry;
    Ok((stores, Beginning { load, floor, fill, newest: newest.position(), searched, writer }))
}

/// Opens the stores that another process has made ready, which it writes as `writer`.
pub fn open(settings: &Settings, place: &Place, newest: &TimesRecord, writer: &str) -> anyhow::Result<Stores> {
    let source = SourceId::from(&newest.source);
    let opened = CqlStores::open(place.estate.store.clone(), &source, settings.parameters());
    let stores = Handle::current().block_on(opened)?;
    stores.join(writer);
    let CqlStores { index, home } = stores;
    Ok(Stores { index, home, search: None })
}

/// Empties stores, which the next start of all processes fills. None may run meanwhile.
pub fn empty(settings: &Settings, phases: &[Phase]) -> anyhow::Result<()> {
    let estate = Estate::new(settings)?;
    let newest = Times::of(&estate.log)?.newest()?;
    let source = SourceId::from(&newest.source);
    let CqlStores { index, home } = Handle::current().block_on(async {
        let stores = CqlStores::open(estate.store.clone(), &source, settings.parameters()).await?;
        // Processes that run in spite of that end.
        stores.claim().await?;
        anyhow::Ok(stores)
    })?;
    for phase in phases {
        match phase {
            Phase::Facts => index.rebuild_facts(newest.time)?,
            Phase::Rows => index.rebuild_rows(newest.time)?,
            // In the tables of the rows.
            Phase::Reactions => index.rebuild_rows(newest.time)?,
            Phase::Home => home.clear()?,
            Phase::Search => {
                let owner = estate.owner(&source);
                let search = ElasticSearch::open(estate.search.clone(), &search_folder(settings), Some(&owner))?;
                search.rebuild(newest.time)?;
                let begun = Instant::now();
                search.durable(EMPTIED_MAX)?;
                ensure!(
                    begun.elapsed() < EMPTIED_MAX,
                    "search was not emptied within {EMPTIED_MAX:?}: {}",
                    search.waits().unwrap_or_else(|| "the server is slow".to_owned())
                );
            }
        }
    }
    Ok(())
}

impl Stores {
    /// The least position that a store has; those that have nothing are loaded there. If none has anything, the newest.
    fn load(&self, searched: &[Option<Position>], newest: &TimesRecord) -> anyhow::Result<Position> {
        let reached = [
            range(RowSink::<Fact>::progress(&*self.index)),
            range(RowSink::<ViewRow>::progress(&*self.index)),
            range(self.index.reactions_progress()),
            range(feedmill_model::HomeSink::progress(&*self.home)),
            range(searched.to_vec()),
        ];
        let reached = reached.into_iter().flatten();
        if let Some(greatest) = reached.clone().map(|(_, greatest)| greatest.time).max() {
            ensure!(
                greatest <= newest.time,
                "the stores are at time {greatest}, beyond the log in Kafka, which ends at {}: they are not of the same \
                 history. Name another keyspace with --store and another prefix with --search, and they are filled again",
                newest.time
            );
        }
        let mut load = reached.map(|(least, _)| least).min_by_key(|least| least.time).unwrap_or(newest.position());
        if load.time < newest.history {
            // A position of another history says nothing to who waits for one of this.
            load.lsn = Lsn(0);
        }
        Ok(load)
    }

    /// What the dataflows give documents to.
    pub fn documents(&self, beginning: &Beginning) -> Arc<dyn RowSink<Document>> {
        match &self.search {
            Some(search) => Arc::clone(search) as _,
            None => Arc::new(Elsewhere(beginning.searched.clone())),
        }
    }

    /// The process ends: a closed time that cannot be applied in a moment fails.
    pub fn end(&self) {
        IndexStore::end(&*self.index);
    }
}

/// Search, which another process writes.
struct Elsewhere(Vec<Option<Position>>);

impl RowSink<Document> for Elsewhere {
    fn progress(&self) -> Vec<Option<Position>> {
        self.0.clone()
    }

    fn apply(&self, _: &Closed<Document>) -> Result<(), StoreError> {
        // The dataflows send the documents there.
        Ok(())
    }
}
