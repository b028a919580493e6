//! The comparison itself, in the process that captures.
//!
//! The stores are its own, or others write them from what it publishes: then it is what is published that is held at a position,
//! and stores that say that they have it have nothing beyond it.

use std::collections::HashSet;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use feedmill_connectors::postgres::Source;
use feedmill_dataflows::definition;
use feedmill_ingest::Log;
use feedmill_model::{Lsn, Parameters, Phase, Time, View};
use feedmill_sinks::cql::{CacheAges, CqlReader, CqlSettings};
use feedmill_sinks::search::{SearchIndex, SearchSnapshot, SearchStore};
use feedmill_sinks::{ElasticReader, ElasticSettings, FrozenViews, StoreViews};
use tokio::sync::{Mutex, mpsc};
use tokio_postgres::Client;

use super::quarantine::Aside;
use super::{Report, compare, served};
use crate::control::Answer;
use crate::up::cut::{self, Beyond, CutSnapshot};
use crate::up::{Cut, Held, Hold, room};

/// How long the stores may take to reach the position.
const REACH_MAX: Duration = Duration::from_secs(120);
/// Timelines with and without pushed entries that are compared as served, unless `--sample` says otherwise.
const PUSHED_SAMPLE: usize = 100;
const MERGED_SAMPLE: usize = 10_000;

/// Compares the stores of this process with its source.
pub struct Verifier {
    /// The database.
    pub source: Source,
    /// To make the log stand at a position.
    pub cuts: mpsc::Sender<Cut>,
    /// To make whoever takes batches from it stand there.
    pub hold: Arc<Hold>,
    /// What is compared with the database.
    pub stores: Compared,
    /// What knows of rows in quarantine.
    pub log: Log,
    /// The settings that define the views.
    pub parameters: Parameters,
    /// Where the copy of home timelines lies while it is compared.
    pub folder: PathBuf,
    /// Bytes of the disk that the copy leaves free.
    pub reserve: u64,
    /// Whoever compares the stores or builds them again holds this.
    pub one_at_a_time: Arc<Mutex<()>>,
}

/// Stores that are compared with the database.
#[derive(Clone)]
pub enum Compared {
    /// This process writes them.
    Own {
        /// Facts, rows and home timelines.
        views: Arc<dyn StoreViews>,
        /// What search finds.
        search: Arc<dyn SearchStore>,
    },
    /// Others do.
    Others {
        /// Facts, rows and home timelines.
        store: Box<CqlSettings>,
        /// What search finds.
        search: Box<ElasticSettings>,
    },
}

/// They, to be read.
struct Stores {
    views: Arc<dyn StoreViews>,
    search: Arc<dyn SearchIndex>,
    /// Makes what search was handed to be found, where this process hands it over.
    own: Option<Arc<dyn SearchStore>>,
}

impl Compared {
    async fn open(&self, parameters: &Parameters) -> anyhow::Result<Stores> {
        Ok(match self {
            Compared::Own { views, search } => {
                let own = Arc::clone(search);
                Stores { views: Arc::clone(views), search: Arc::clone(search) as _, own: Some(own) }
            }
            Compared::Others { store, search } => {
                let opened = CqlReader::open(*store.clone(), parameters.clone(), CacheAges::default()).await;
                let reader = opened.context("could not read the stores that are to be compared")?;
                let search = Arc::new(ElasticReader::open(search, reader.progress())?);
                Stores { views: Arc::new(reader.views()), search, own: None }
            }
        })
    }
}

/// The source as of a position; the dataflows take no batch beyond it while the guard lives.
type Snapshot = CutSnapshot<Held>;

/// Source and stores, both as of one position.
struct Frozen {
    client: Client,
    views: FrozenViews,
    search: Box<dyn SearchSnapshot>,
    time: Time,
    aside: Aside,
    held: Duration,
}

impl Verifier {
    /// Compares every view, and sends a report for each.
    pub async fn run(&self, sample: Option<usize>, answers: mpsc::Sender<Answer>) -> anyhow::Result<()> {
        let _one = self.one_at_a_time.try_lock().context(
            "another verify or a replay is running: try again when it has ended; `feedmill status` says how far a replay is",
        )?;
        let stores = self.stores.open(&self.parameters).await?;
        let Frozen { client, mut views, search, time, aside, held } = self.frozen(&stores).await?;
        let send = async |answer| answers.send(answer).await.context("whoever asked has gone away");
        if let Some(report) = aside.hide(&client).await? {
            send(Answer::View(report)).await?;
        }
        for view in View::ALL {
            if view != View::Home {
                let sql = definition(view, time, &self.parameters);
                let store = |each: &mut dyn FnMut(&str, &str)| match view {
                    View::Search => Ok(search.scan(&mut |key: String, value: String| each(&key, &value))?),
                    _ => scan(&views, view, time, each),
                };
                send(Answer::View(compare::compare(&client, view.name(), &sql, &store, &|_| true).await?)).await?;
            }
        }
        let (report, pushed) = self.home(&client, &views, time).await?;
        send(Answer::View(report)).await?;
        let viewers = viewers(&client, &pushed, sample).await?;
        let wanted = viewers.iter().copied().collect();
        tokio::task::block_in_place(|| views.keep_records(&wanted, time))?;
        send(Answer::View(served::compare(&client, &views, &self.parameters, &viewers).await?)).await?;
        send(Answer::Held { seconds: held.as_secs_f64() }).await
    }

    /// Source and stores at one position. What is written meanwhile becomes visible when this returns.
    async fn frozen(&self, stores: &Stores) -> anyhow::Result<Frozen> {
        // Whoever writes is not to wait for what is behind, like reactions after a transaction of very many likes.
        if let Some(position) = self.log.position() {
            have(stores, position.lsn).await?;
        }
        let hold = |position| self.hold.at(position);
        let snapshot = cut::take(&self.source, &self.cuts, "verify", Beyond::GoesOn, hold).await?;
        let positioned = snapshot.since.elapsed();
        let time = reached(stores, &snapshot).await?;
        let reached = snapshot.since.elapsed();
        let aside = Aside::at(&self.log, time)?;
        let (views, folder, reserve) = (Arc::clone(&stores.views), self.folder.clone(), self.reserve);
        std::fs::create_dir_all(&folder).with_context(|| format!("could not make the folder {}", folder.display()))?;
        let (search, own) = (Arc::clone(&stores.search), stores.own.clone());
        let frozen = tokio::task::spawn_blocking(move || {
            if let Some(own) = own {
                // What was handed over is committed, and then it is found.
                own.durable(REACH_MAX)?;
            }
            anyhow::Ok((views.freeze(&folder, room(&folder, reserve))?, search.snapshot()?))
        });
        let frozen = frozen.await?;
        drop(snapshot.guard);
        let held = snapshot.since.elapsed();
        tracing::info!(
            "verify has held what is written for {held:?}: {positioned:?} until the source was at one position, then \
             {:?} until the stores were, and {:?} for their snapshots",
            reached.saturating_sub(positioned),
            held.saturating_sub(reached),
        );
        metrics::histogram!("feedmill_verify_hold_seconds").record(held);
        let (views, search) = frozen.context("could not take a snapshot of the stores")?;
        if let Some(reason) = stores.search.waits().filter(|_| search.time() < time) {
            bail!("search has not reached {time} within {REACH_MAX:?}, but {}: {reason}", search.time());
        }
        ensure!(
            search.time() == time,
            "search did not stop at {time}, but at {}; this is a defect of Feedmill's",
            search.time()
        );
        // The exported snapshot lives until the slot's connection ends, and then in this one.
        Ok(Frozen { client: self.open(&snapshot.name).await?, views, search, time, aside, held })
    }

    async fn open(&self, snapshot: &str) -> anyhow::Result<Client> {
        let client = self.source.connect("feedmill-verify").await?;
        // The name comes from the server, and is made of hexadecimal digits and dashes.
        let begin = format!(
            "BEGIN ISOLATION LEVEL REPEATABLE READ; SET TRANSACTION SNAPSHOT '{snapshot}';
             SET LOCAL jit = off; SET LOCAL work_mem = '128MB'; SET LOCAL statement_timeout = 0"
        );
        client.batch_execute(&begin).await.context("could not use the exported snapshot")?;
        Ok(client)
    }

    /// Pushed entries above each viewer's floor; also gives who has any.
    async fn home(&self, client: &Client, views: &FrozenViews, time: Time) -> anyhow::Result<(Report, HashSet<i64>)> {
        let floors = tokio::task::block_in_place(|| views.floors(time))?;
        let sql = definition(View::Home, time, &self.parameters);
        let store = |each: &mut dyn FnMut(&str, &str)| scan(views, View::Home, time, each);
        // A viewer whom the SQL knows and the store does not has no floor: every entry is missing.
        let counts =
            |key: &str| entry_of(key).is_none_or(|(viewer, id)| floors.get(&viewer).is_none_or(|floor| id > *floor));
        let mut report = compare::compare(client, View::Home.name(), &sql, &store, &counts).await?;
        let mut pushed = HashSet::new();
        let mut note = |key: &str, _: &str| pushed.extend(entry_of(key).map(|(viewer, _)| viewer));
        tokio::task::block_in_place(|| scan(views, View::Home, time, &mut note))?;
        let users: i64 =
            client.query_one("SELECT count(*) FROM users WHERE deleted_at IS NULL", &[]).await?.try_get(0)?;
        report.note = Some(format!(
            "{} entries above floors of {} viewers; {} viewers merged",
            report.rows,
            pushed.len(),
            usize::try_from(users)?.saturating_sub(pushed.len())
        ));
        Ok((report, pushed))
    }
}

/// Waits until all stores have what was committed before the position.
async fn have(stores: &Stores, position: Lsn) -> anyhow::Result<()> {
    let progress = stores.views.progress();
    for phase in Phase::ALL {
        ensure!(
            progress.reached(phase, position, REACH_MAX).await,
            "the stores have not reached {position} within {REACH_MAX:?}: {} is at {}; `/health` says what stands still",
            phase.name(),
            progress.position(phase).lsn
        );
    }
    Ok(())
}

/// Waits until all stores stand at the position; gives their time.
async fn reached(stores: &Stores, snapshot: &Snapshot) -> anyhow::Result<Time> {
    have(stores, snapshot.position).await?;
    let progress = stores.views.progress();
    let [facts, rows, home, search, reactions] = *progress.watch().borrow();
    ensure!(
        [facts, rows, search, reactions].iter().all(|position| *position == home) && home.lsn == snapshot.position,
        "the stores did not stop at {}, but at {facts:?}, {rows:?}, {home:?}, {search:?}, {reactions:?}; this is a defect of Feedmill's",
        snapshot.position
    );
    Ok(home.time)
}

fn scan(views: &FrozenViews, view: View, time: Time, each: &mut dyn FnMut(&str, &str)) -> anyhow::Result<()> {
    Ok(views.scan(view, time, &mut |key: String, value: String| each(&key, &value))?)
}

/// Viewer and id of a key of the home view.
fn entry_of(key: &str) -> Option<(i64, i64)> {
    let mut fields = key.split(' ');
    Some((fields.next()?.parse().ok()?, fields.next()?.parse().ok()?))
}

/// Whose timelines are compared as served: those without pushed entries, up to a bound, and some of the others.
async fn viewers(client: &Client, pushed: &HashSet<i64>, sample: Option<usize>) -> anyhow::Result<Vec<i64>> {
    let rows = client.query("SELECT id FROM users WHERE deleted_at IS NULL ORDER BY id", &[]).await?;
    let users = rows.iter().map(|row| row.try_get(0)).collect::<Result<Vec<i64>, _>>()?;
    let (pushed, merged): (Vec<i64>, Vec<i64>) = users.iter().partition(|user| pushed.contains(user));
    Ok(match sample {
        Some(sample) => spread(&users, sample),
        None => [spread(&merged, MERGED_SAMPLE), spread(&pushed, PUSHED_SAMPLE)].concat(),
    })
}

/// At most `count` of `users`, evenly spread over them: the same ones at each run.
fn spread(users: &[i64], count: usize) -> Vec<i64> {
    let step = users.len().div_ceil(count.max(1)).max(1);
    users.iter().copied().step_by(step).take(count).collect()
}
