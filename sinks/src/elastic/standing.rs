//! Where the indices on the server stand: which generation is written, which is read, and how far each is.
//!
//! ```text
//!   feedmill-search ── alias ──► feedmill-search-g000007          what is read
//!                                feedmill-search-g000008          what is written, when it is built anew
//!   feedmill-search-progress ─ document `standing` ─ owner, writing, reached by shard, serving
//!                            └ documents `refused-…`
//! ```
//!
//! Why it is correct: the document changes only from the version that was read or written last, so of two processes the
//! one that came last writes, and the other finds out at its next step. It names a shard's time only when all that came up
//! to it is durable in the index that it names beside it. A generation that is not complete has no progress, and the next
//! start leaves it and begins another. The alias goes from one to the next in one step of the server's.

use std::io::ErrorKind;
use std::path::{Path, PathBuf};

use feedmill_model::{Position, SHARDS};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

use super::client::{Client, Failure, Method, at, hits};
use super::layout;
use crate::search::{Reached, read_reached, write_reached};

const STANDING: &str = "standing";
/// Documents that were refused, at most as many as are looked at.
pub(super) const REFUSED_MAX: usize = 1_000;

/// The names of everything on the server.
#[derive(Clone, Debug)]
pub(super) struct Names {
    prefix: String,
}

impl Names {
    pub fn new(prefix: &str) -> Self {
        Names { prefix: prefix.to_owned() }
    }

    /// What is read.
    pub fn alias(&self) -> String {
        format!("{}-search", self.prefix)
    }

    /// How the names of generations begin.
    pub fn generations(&self) -> String {
        format!("{}-search-g", self.prefix)
    }

    pub fn progress(&self) -> String {
        format!("{}-search-progress", self.prefix)
    }

    /// The component templates: ours, and one that somebody may make.
    pub fn settings(&self) -> String {
        format!("{}-search@settings", self.prefix)
    }

    pub fn custom(&self) -> String {
        format!("{}-search@custom", self.prefix)
    }
}

/// A generation that is read, and up to where.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Serving {
    pub index: String,
    pub position: Position,
}

/// What the server keeps of how far it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Standing {
    kind: String,
    pub format: u32,
    /// Whose log it is filled from: a data folder's, or another's that was named.
    pub owner: String,
    pub writing: String,
    reached: String,
    pub serving: Option<Serving>,
}

impl Standing {
    /// `writing` has nothing yet.
    pub fn new(owner: &str, writing: String, serving: Option<Serving>) -> Self {
        let reached = write_reached(&[None; SHARDS]);
        let (kind, owner) = (STANDING.to_owned(), owner.to_owned());
        Standing { kind, format: layout::FORMAT, owner, writing, reached, serving }
    }

    /// How far what is written is.
    pub fn reached(&self) -> Reached {
        read_reached(&self.reached).unwrap_or([None; SHARDS])
    }

    /// What is written is so far.
    pub fn reach(&mut self, reached: &Reached) {
        self.reached = write_reached(reached);
    }

    /// Whether what is written is what is read.
    pub fn is_served(&self) -> bool {
        self.serving.as_ref().is_some_and(|serving| serving.index == self.writing)
    }
}

/// The version of a document: a write names the one that it replaces.
pub(super) type Version = (u64, u64);

fn version(answer: &Value) -> Result<Version, Failure> {
    let number = |name: &str| answer.get(name)?.as_u64();
    let both = number("_seq_no").zip(number("_primary_term"));
    both.ok_or_else(|| Failure::Passing("the answer has no version".to_owned()))
}

/// The server, and the names there.
#[derive(Clone)]
pub(super) struct Server {
    pub client: Client,
    pub names: Names,
}

impl Server {
    /// Makes templates, and the index of the progress.
    pub async fn prepare(&self) -> Result<(), Failure> {
        let put = async |path: String, body: Value| self.client.ask(Method::Put, &path, &body).await;
        put(format!("_component_template/{}", self.names.settings()), layout::settings()).await?;
        put(format!("_index_template/{}", self.names.alias()), layout::template(&self.names)).await?;
        match put(self.names.progress(), layout::progress()).await {
            Err(Failure::Refused(told)) if told.contains("resource_already_exists_exception") => {}
            made => drop(made?),
        }
        Ok(())
    }

    /// What the server says of how far it is; nothing at first.
    pub async fn look(&self) -> Result<Option<(Standing, Version)>, Failure> {
        let path = format!("{}/_doc/{STANDING}", self.names.progress());
        let answer = match self.client.ask(Method::Get, &path, &Value::Null).await {
            Err(Failure::Missing(_)) => return Ok(None),
            answer => answer?,
        };
        let version = version(&answer)?;
        // What another version of us wrote has fields that we do not know, and no progress for us.
        let standing = serde_json::from_value(at(&answer, "/_source").clone());
        let unknown = |_| Standing { format: 0, ..Standing::new("", String::new(), None) };
        Ok(Some((standing.unwrap_or_else(unknown), version)))
    }

    /// Puts `standing` in the place of what has the version `before`.
    pub async fn write(&self, standing: &Standing, before: Option<Version>) -> Result<Version, Failure> {
        let body = serde_json::to_value(standing).map_err(|error| Failure::Refused(error.to_string()))?;
        let mut before = before;
        loop {
            let condition = match before {
                Some((number, term)) => format!("if_seq_no={number}&if_primary_term={term}"),
                None => "op_type=create".to_owned(),
            };
            let path = format!("{}/_doc/{STANDING}?{condition}", self.names.progress());
            let told = match self.client.ask(Method::Put, &path, &body).await {
                Err(Failure::Conflict(told)) => told,
                answer => return version(&answer?),
            };
            match self.look().await? {
                // Only its reply was lost.
                Some((is, version)) if is == *standing => return Ok(version),
                // An earlier process of this folder had one under way.
                Some((is, version))
                    if (&is.owner, &is.writing) == (&standing.owner, &standing.writing) && before != Some(version) =>
                {
                    before = Some(version);
                }
                _ => return Err(Failure::Conflict(told)),
            }
        }
    }

    /// All generations that there are.
    pub async fn generations(&self) -> Result<Vec<String>, Failure> {
        let path = format!("{}*/_alias", self.names.generations());
        match self.client.ask(Method::Get, &path, &Value::Null).await {
            Err(Failure::Missing(_)) => Ok(Vec::new()),
            answer => Ok(answer?.as_object().map(|all| all.keys().cloned().collect()).unwrap_or_default()),
        }
    }

    /// Makes the next generation, and gives its name.
    pub async fn make(&self) -> Result<String, Failure> {
        let begin = self.names.generations();
        let known = self.generations().await?;
        let numbers = known.iter().filter_map(|name| name.strip_prefix(&begin)?.parse::<u64>().ok());
        let name = format!("{begin}{:06}", numbers.max().unwrap_or(0) + 1);
        self.client.ask(Method::Put, &name, &json!({})).await?;
        Ok(name)
    }

    /// `index` is read from now on, and no other.
    pub async fn serve(&self, index: &str) -> Result<(), Failure> {
        let alias = self.names.alias();
        let path = format!("_alias/{alias}");
        let before = match self.client.ask(Method::Get, &path, &Value::Null).await {
            Err(Failure::Missing(_)) => Vec::new(),
            answer => answer?.as_object().map(|all| all.keys().cloned().collect()).unwrap_or_default(),
        };
        let others = before.iter().filter(|other| *other != index);
        let mut actions: Vec<Value> =
            others.map(|other| json!({ "remove": { "index": other, "alias": alias } })).collect();
        actions.push(json!({ "add": { "index": index, "alias": alias } }));
        self.client.ask(Method::Post, "_aliases", &json!({ "actions": actions })).await.map(drop)
    }

    /// Removes all generations but those of `standing`.
    pub async fn tidy(&self, standing: &Standing) -> Result<(), Failure> {
        let serving = standing.serving.as_ref().map(|serving| &serving.index);
        for index in self.generations().await? {
            if index == standing.writing || Some(&index) == serving {
                continue;
            }
            match self.client.ask(Method::Delete, &index, &Value::Null).await {
                Err(Failure::Missing(_)) => {}
                removed => drop(removed?),
            }
        }
        Ok(())
    }

    /// The documents that `index` refused: id and time.
    pub async fn refused(&self, index: &str) -> Result<Vec<(String, u64)>, Failure> {
        let progress = self.names.progress();
        self.client.ask(Method::Post, &format!("{progress}/_refresh"), &Value::Null).await?;
        let query = json!({
            "size": REFUSED_MAX,
            "query": { "bool": { "filter": [{ "term": { "kind": "refused" } }, { "term": { "index": index } }] } },
        });
        let found = self.client.ask(Method::Post, &format!("{progress}/_search"), &query).await?;
        let one = |hit: &Value| Some((at(hit, "/_source/id").as_str()?.to_owned(), at(hit, "/_source/time").as_u64()?));
        Ok(hits(&found).iter().filter_map(one).collect())
    }
}

/// What the folder keeps of the standing: a copy, for a start while the server is away.
#[derive(Clone, Debug)]
pub(super) struct FolderCopy {
    path: PathBuf,
}

impl FolderCopy {
    pub fn in_folder(folder: &Path) -> Self {
        FolderCopy { path: folder.join("standing.json") }
    }

    /// `None` if there is none, or none that can be read.
    pub fn read(&self) -> std::io::Result<Option<Standing>> {
        match std::fs::read(&self.path) {
            Ok(text) => Ok(serde_json::from_slice(&text).ok()),
            Err(error) if error.kind() == ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// To be called when the server has it: the copy is never further.
    pub fn write(&self, standing: &Standing) -> std::io::Result<()> {
        let next = self.path.with_extension("next");
        std::fs::write(&next, serde_json::to_vec(standing)?)?;
        std::fs::File::open(&next)?.sync_all()?;
        std::fs::rename(&next, &self.path)
    }
}

/// A name for a data folder that no other has.
pub(super) fn new_owner() -> String {
    use std::hash::{BuildHasher, RandomState};
    format!("{:016x}", RandomState::new().hash_one(std::process::id()))
}
