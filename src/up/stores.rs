//! The change log and the stores, opened before anything else so that reads are served at once, as of the age they are.
//!
//! ```text
//!   log ─────┐
//!   index ───┼─ in parallel ─► reads are served ─► PostgreSQL, schema, identity ─► load, tail ─► ready
//!   home ────┤
//!   search ──┘
//! ```
//!
//! Facts, rows, reactions and home timelines are on this machine, or with `--store` in a CQL cluster. Which it is, is asked here alone.
//! What is in a cluster is of the source that the log is of, so the log is opened first.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, ensure};
use feedmill_ingest::{Log, LogState, Options};
use feedmill_model::{Fact, Lsn, Phase, Position, RowSink, SourceId, Time, ViewRow};
use feedmill_sinks::cql::{CqlHome, CqlIndex, CqlSettings, CqlStores, CqlViews};
use feedmill_sinks::search::SearchStore;
use feedmill_sinks::{
    ElasticSearch, HomeStore, IndexStore, LocalHome, LocalIndex, LocalSearch, LocalViews, Progress, StoreViews,
};
use tokio::sync::watch;
use tokio::task::spawn_blocking;
use tokio_util::sync::CancellationToken;

use crate::config::{SearchPlace, Settings};

/// Facts, rows, reactions, home timelines and search.
#[derive(Clone)]
pub struct Stores {
    /// Facts, rows and reactions.
    pub index: Arc<dyn IndexStore>,
    /// Home timelines.
    pub home: Arc<dyn HomeStore>,
    /// What search finds.
    pub search: Arc<dyn SearchStore>,
    engine: Engine,
}

/// Where facts, rows and home timelines are.
#[derive(Clone)]
enum Engine {
    Local(Arc<LocalIndex>, Arc<LocalHome>),
    Cql(Arc<CqlIndex>, Arc<CqlHome>),
}

fn log_folder(settings: &Settings) -> PathBuf {
    settings.data.join("log")
}

fn index_folder(settings: &Settings) -> PathBuf {
    settings.data.join("index")
}

fn home_folder(settings: &Settings) -> PathBuf {
    settings.data.join("home")
}

/// Where the search index lies, or what is known of it here.
pub fn search_folder(settings: &Settings) -> PathBuf {
    settings.data.join("search")
}

/// Opens the log, or makes an empty one.
pub async fn open_log(settings: &Settings) -> anyhow::Result<Log> {
    let folder = log_folder(settings);
    let reserve_bytes = settings.disk_reserve_mb << 20;
    let options = Options { bulk_rows: settings.bulk_rows, reserve_bytes, ..Options::default() };
    Ok(spawn_blocking(move || Log::open(&folder, options)).await??)
}

/// Opens the log, and the stores beside it if there are any and they are of that log.
pub async fn open(settings: &Settings) -> anyhow::Result<(Log, Option<Stores>)> {
    let started = Instant::now();
    let is_local = settings.cluster()?.is_none();
    let known = is_local && log_folder(settings).exists() && index_folder(settings).exists();
    let log = open_log(settings);
    let stores = async { if known { open_local(settings).await.map(Some) } else { Ok(None) } };
    let (log, stores) = tokio::join!(log, stores);
    let (log, mut stores) = (log?, stores?);
    if !is_local && log.state() == LogState::Ready {
        stores = Some(open_stores(settings, &log).await?);
    }
    // A copy that did not end begins with removing the stores.
    let stores = stores.filter(|_| log.state() == LogState::Ready);
    if stores.is_some() {
        tracing::info!("opened the change log and the stores in {:?}", started.elapsed());
    }
    Ok((log, stores))
}

/// Opens the stores of what `log` is of, or makes them.
pub async fn open_stores(settings: &Settings, log: &Log) -> anyhow::Result<Stores> {
    let Some(cluster) = settings.cluster()? else { return open_local(settings).await };
    let (folder, place) = (search_folder(settings), settings.search_place()?);
    let search = spawn_blocking(move || open_search(place, &folder));
    let CqlStores { index, home } = open_cluster(cluster, settings, &source_of(log)?).await?;
    let engine = Engine::Cql(Arc::clone(&index), Arc::clone(&home));
    Ok(Stores { index, home, search: search.await??, engine })
}

/// Opens the stores in a cluster; what a load has left that did not end goes.
async fn open_cluster(cluster: CqlSettings, settings: &Settings, source: &SourceId) -> anyhow::Result<CqlStores> {
    let stores = CqlStores::open(cluster, source, settings.parameters()).await?;
    stores.claim().await?;
    stores.clear_incomplete().await?;
    Ok(stores)
}

async fn open_local(settings: &Settings) -> anyhow::Result<Stores> {
    let (folder, parameters) = (home_folder(settings), settings.parameters());
    let home = spawn_blocking(move || LocalHome::open(&folder, parameters));
    let (folder, place) = (search_folder(settings), settings.search_place()?);
    let search = spawn_blocking(move || open_search(place, &folder));
    let folder = index_folder(settings);
    let index = spawn_blocking(move || LocalIndex::open(&folder));
    let (home, search, index) = tokio::join!(home, search, index);
    let (index, home) = (Arc::new(index??), Arc::new(home?));
    let engine = Engine::Local(Arc::clone(&index), Arc::clone(&home));
    Ok(Stores { index, home, search: search??, engine })
}

/// Opens the search index, or begins one. A folder that was another place's is that of an index which is filled anew.
fn open_search(place: SearchPlace, folder: &Path) -> anyhow::Result<Arc<dyn SearchStore>> {
    Ok(match place {
        SearchPlace::Local => Arc::new(LocalSearch::open(folder)?),
        SearchPlace::Elastic(settings) => Arc::new(ElasticSearch::open(*settings, folder, None)?),
    })
}

/// Whether there are stores in the folder, be it without a log.
pub fn are_there(settings: &Settings) -> bool {
    index_folder(settings).exists() || search_folder(settings).exists()
}

/// Empties the stores in a cluster, if they are in one, and of the same source; of another they are refused when they are
/// opened.
pub async fn empty_cluster(settings: &Settings, source: &SourceId) -> anyhow::Result<()> {
    if let Some(cluster) = settings.cluster()? {
        let stores = CqlStores::open(cluster, source, settings.parameters()).await?;
        stores.claim().await?;
        stores.clear().await?;
    }
    Ok(())
}

/// Removes the stores from the folder, of which none may be open: what was derived from another copy of the source.
pub fn remove(settings: &Settings) -> anyhow::Result<()> {
    for folder in [index_folder(settings), home_folder(settings), search_folder(settings)] {
        if folder.exists() {
            std::fs::remove_dir_all(&folder)
                .with_context(|| format!("could not remove the old {}", folder.display()))?;
        }
    }
    Ok(())
}

/// The least and the greatest of what shards have reached; `None` if one has nothing.
pub fn range(progress: Vec<Option<Position>>) -> Option<(Position, Position)> {
    let progress = progress.into_iter().collect::<Option<Vec<Position>>>()?;
    let by_time = |position: &&Position| position.time;
    Some((*progress.iter().min_by_key(by_time)?, *progress.iter().max_by_key(by_time)?))
}

impl Stores {
    /// Reads them; `progress` says how far they are.
    pub fn views(&self, progress: &Arc<Progress>) -> Arc<dyn StoreViews> {
        let progress = Arc::clone(progress);
        match self.engine.clone() {
            Engine::Local(index, home) => Arc::new(LocalViews::new(index, home, progress)),
            Engine::Cql(index, home) => Arc::new(CqlViews::new(index, home, progress)),
        }
    }

    /// How far facts, rows, home timelines, search and reactions are; `None` for one that has nothing.
    fn reached(&self) -> [Option<(Position, Position)>; 5] {
        [
            range(RowSink::<Fact>::progress(&*self.index)),
            range(RowSink::<ViewRow>::progress(&*self.index)),
            range(self.home.progress()),
            range(self.search.progress()),
            range(self.index.reactions_progress()),
        ]
    }

    /// Whether they can be read: home timelines that are not there are merged from rows, and facts, rows, reactions or search that
    /// are `rebuilt` refuse by themselves.
    pub fn are_filled(&self, rebuilt: &[Phase]) -> bool {
        let [facts, rows, _, _, reactions] = self.reached();
        let needed = [(Phase::Facts, facts), (Phase::Rows, rows), (Phase::Reactions, reactions)];
        needed.iter().all(|(phase, reached)| reached.is_some() || rebuilt.contains(phase))
    }

    /// Those that are begun anew where `phases` are.
    pub fn begun_with(&self, phases: &[Phase]) -> Vec<Phase> {
        let together = [Phase::Rows, Phase::Reactions];
        let shared = self.index.shares_tables() && together.iter().any(|phase| phases.contains(phase));
        Phase::ALL.into_iter().filter(|phase| phases.contains(phase) || (shared && together.contains(phase))).collect()
    }

    /// Empties the stores of `phases`, whose progress goes first. Facts, rows, reactions and search are not read before they have the time
    /// `due`, and home timelines not before the next load has filled them. No closed time may be applied meanwhile.
    pub fn rebuild(&self, phases: &[Phase], due: Time) -> anyhow::Result<()> {
        for phase in phases {
            match phase {
                Phase::Facts => self.index.rebuild_facts(due)?,
                Phase::Rows => self.index.rebuild_rows(due)?,
                Phase::Home => self.home.fill()?,
                Phase::Search => self.search.rebuild(due)?,
                Phase::Reactions => self.index.rebuild_reactions(due)?,
            }
        }
        Ok(())
    }

    /// Where the views are that are read: facts, rows, home timelines, search, reactions. The position of a store that has nothing is the
    /// time of `otherwise`, and no LSN.
    pub fn positions(&self, otherwise: Position) -> [Position; 5] {
        let reached = self.reached();
        let [_, rows, ..] = reached;
        let least = |reached: Option<(Position, Position)>| reached.map(|(least, _)| least);
        let nothing = Position { lsn: Lsn(0), ..least(rows).unwrap_or(otherwise) };
        reached.map(|reached| least(reached).unwrap_or(nothing))
    }

    /// Where each part of the dataflows loads the state of the log and goes on from: the least that a store of it has. Stores that
    /// have nothing are loaded at whatever time the others stand at; if none has anything, at the newest.
    ///
    /// Home timelines of which the log does not have the tail any more begin anew.
    pub fn start(&self, log: &Log) -> anyhow::Result<Starts> {
        let newest =
            log.position().context("the change log is empty after the first copy; this is a defect of Feedmill's")?;
        if let Some(saved) = self.home.position().filter(|saved| saved.time < log.tail_after()) {
            tracing::warn!(
                "home timelines were saved at time {}, and the change log does not have all that came after it: they are \
                 filled anew as posts come",
                saved.time
            );
            self.home.clear()?;
        }
        if let Some((least, _)) = range(self.search.progress()).filter(|(least, _)| least.time < log.tail_after()) {
            tracing::warn!(
                "search is at time {}, and the change log does not have all that came after it: it is built again",
                least.time
            );
            self.search.rebuild(newest.time)?;
        }
        let reached = self.reached();
        let greatest = reached.iter().flatten().map(|(_, greatest)| *greatest).max_by_key(|greatest| greatest.time);
        if let Some(greatest) = greatest {
            ensure!(
                greatest.time <= newest.time,
                "the stores are at time {}, beyond the change log, which is at {newest:?}: they are not of the same \
                 history. Remove the folders `index`, `home` and `search` in the data folder (with --store, name another \
                 keyspace), and they are filled again",
                greatest.time,
            );
        }
        let least = |reached: &[Option<(Position, Position)>]| {
            reached.iter().flatten().map(|(least, _)| *least).min_by_key(|least| least.time)
        };
        let [main @ .., reactions] = reached;
        let main = least(&main).or(least(&[reactions])).unwrap_or(newest);
        Ok(Starts { main, reactions: least(&[reactions]).unwrap_or(main) })
    }
}

/// Where the parts of the dataflows load the state and go on from.
#[derive(Clone, Copy, Debug)]
pub struct Starts {
    /// All but reactions.
    pub main: Position,
    /// Reactions.
    pub reactions: Position,
}

impl Starts {
    /// The earlier of both.
    pub fn earlier(&self) -> Position {
        if self.reactions.time < self.main.time { self.reactions } else { self.main }
    }

    /// Without positions in the source's log: those may be of another history.
    pub fn without_lsn(self) -> Self {
        let without = |position| Position { lsn: Lsn(0), ..position };
        Starts { main: without(self.main), reactions: without(self.reactions) }
    }

    /// Without those of times before `history`, which are of another.
    pub fn of_history(self, history: Time) -> Self {
        let of =
            |position: Position| if position.time < history { Position { lsn: Lsn(0), ..position } } else { position };
        Starts { main: of(self.main), reactions: of(self.reactions) }
    }
}

/// Tells the store of which history its positions are, for who reads it in another process: now, and whenever that changes.
pub async fn tell_history(
    index: Arc<dyn IndexStore>,
    log: Log,
    mut identity: watch::Receiver<SourceId>,
    end: CancellationToken,
) -> anyhow::Result<&'static str> {
    loop {
        let (index, source, since) = (Arc::clone(&index), identity.borrow_and_update().clone(), log.history());
        spawn_blocking(move || index.begin_history(&source, since)).await??;
        tokio::select! {
            changed = identity.changed() => if changed.is_err() { end.cancelled().await },
            () = end.cancelled() => {}
        }
        if end.is_cancelled() {
            return Ok("the history of the stores");
        }
    }
}

/// The source of a log that is ready.
pub fn source_of(log: &Log) -> anyhow::Result<SourceId> {
    log.source().context("the change log does not say of which source it is; this is a defect of Feedmill's")
}
