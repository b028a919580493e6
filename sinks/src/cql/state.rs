//! What a keyspace says of itself: its format, its source, and the generation of each store.

use std::collections::HashMap;

use feedmill_model::{SourceId, Time};
use serde::{Deserialize, Serialize};

use super::cluster::Cluster;
use super::fault::{CqlError, Fault};
use super::schema::FORMAT;
use super::settings::CqlSettings;
use super::statement::Statement;

const FORMAT_NAME: &str = "format";
const SOURCE_NAME: &str = "source";
const HISTORY_NAME: &str = "history";
const FANOUT_NAME: &str = "fanout_days";
const WRITER_NAME: &str = "writer";

/// Which history of the source positions are of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct History {
    /// It.
    pub(super) source: SourceId,
    /// Positions of times before it are of another.
    pub(super) since: Time,
}

/// How often a store was begun anew, and before which time it is not to be read since then.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Generation {
    pub(super) number: i64,
    pub(super) due: Time,
}

impl Generation {
    fn text(self) -> String {
        format!("{} {}", self.number, self.due)
    }

    fn of(text: &str) -> Option<Self> {
        let (number, due) = text.split_once(' ').unwrap_or((text, "0"));
        Some(Generation { number: number.parse().ok()?, due: due.parse().ok()? })
    }
}

/// What whoever reads must know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Told {
    pub(super) history: History,
    /// Of facts, rows, home timelines and reactions.
    pub(super) generations: [Generation; 4],
}

/// The database in the text of a source. Its timeline and slot change when a standby is promoted and what differs is taken
/// over, and then the stores go on.
fn system(source: &str) -> &str {
    source.split_once(" timeline ").map_or(source, |(system, _)| system)
}

/// Whether both are of one database.
pub(super) fn is_same_system(one: &SourceId, other: &SourceId) -> bool {
    one.system == other.system
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
            self.begin_history(source, 0).await.map_err(failed)?;
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

    /// The generation of a store.
    pub(super) async fn generation(&self, store: &str) -> Result<Generation, Fault> {
        let found = self.get(&generation_name(store)).await?;
        Ok(found.as_deref().and_then(Generation::of).unwrap_or_default())
    }

    pub(super) async fn set_generation(&self, store: &str, generation: Generation) -> Result<(), Fault> {
        // Not by anybody's clock: the greatest counts.
        self.set(&generation_name(store), &generation.text(), generation.number).await
    }

    /// Says of which history positions are, for who reads.
    pub(super) async fn begin_history(&self, source: &SourceId, since: Time) -> Result<(), Fault> {
        let undecodable = |_| Fault::Undecodable { of: "state" };
        let history = serde_json::to_string(&History { source: source.clone(), since }).map_err(undecodable)?;
        self.tell(HISTORY_NAME, &history).await
    }

    /// Says for how many days entries stay in home timelines, for who reads.
    pub(super) async fn keep_for(&self, fanout_days: u32) -> Result<(), Fault> {
        self.tell(FANOUT_NAME, &fanout_days.to_string()).await
    }

    /// Who writes the stores.
    pub(super) async fn writer(&self) -> Result<Option<String>, Fault> {
        self.get(WRITER_NAME).await
    }

    /// Says who writes the stores from now on.
    pub(super) async fn begin_writer(&self, writer: &str) -> Result<(), Fault> {
        self.tell(WRITER_NAME, writer).await
    }

    /// Writes what is not so yet. The last to be written counts.
    async fn tell(&self, name: &str, value: &str) -> Result<(), Fault> {
        if self.get(name).await?.as_deref() == Some(value) {
            return Ok(());
        }
        let quoted = value.replace('\'', "''");
        self.0.run(&format!("INSERT INTO state (name, value) VALUES ('{name}', '{quoted}')")).await.map(drop)
    }

    /// All of it, in one request, for who reads; `None` where nobody has said it yet. What the keyspace holds has to fit.
    pub(super) async fn told(&self, stores: [&str; 4], fanout_days: u32) -> Result<Option<Told>, CqlError> {
        let CqlSettings { keyspace, .. } = &self.0.settings;
        let servers = || self.0.settings.servers();
        let failed = |source: Fault| CqlError::Engine {
            tried: "read whose it is",
            keyspace: keyspace.clone(),
            source: Box::new(source),
        };
        let undecodable = || failed(Fault::Undecodable { of: "state" });
        let generation_names = stores.map(generation_name);
        let names = [FORMAT_NAME, HISTORY_NAME, FANOUT_NAME].into_iter();
        let names: Vec<&str> = names.chain(generation_names.iter().map(String::as_str)).collect();
        let found = self.0.page(Statement::StateRead, (names,)).await.map_err(failed)?;
        let rows = found.rows::<(String, Option<String>)>().map_err(|_| undecodable())?;
        let found: HashMap<String, Option<String>> = rows.collect::<Result<_, _>>().map_err(|_| undecodable())?;
        let value = |name: &str| found.get(name).and_then(Option::as_deref);
        let Some(format) = value(FORMAT_NAME) else { return Ok(None) };
        if format != FORMAT.to_string() {
            let (keyspace, found) = (keyspace.clone(), format.to_owned());
            return Err(CqlError::Format { servers: servers(), keyspace, found, expected: FORMAT });
        }
        let (Some(history), Some(days)) = (value(HISTORY_NAME), value(FANOUT_NAME)) else { return Ok(None) };
        if days != fanout_days.to_string() {
            let (keyspace, found) = (keyspace.clone(), days.to_owned());
            return Err(CqlError::FanoutDays { servers: servers(), keyspace, found, expected: fanout_days });
        }
        let history = serde_json::from_str(history).map_err(|_| undecodable())?;
        let generations = generation_names.each_ref().map(|name| value(name).and_then(Generation::of));
        Ok(Some(Told { history, generations: generations.map(Option::unwrap_or_default) }))
    }
}

fn generation_name(store: &str) -> String {
    format!("generation_{store}")
}
