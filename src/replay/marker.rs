//! The file that says which stores are to be built again, until they are.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use feedmill_model::Phase;

/// Names of stores, a line each. It is put in its place whole, by a rename.
#[derive(Clone, Debug)]
pub struct Marker {
    path: PathBuf,
}

impl Marker {
    /// The one of a data folder.
    pub fn in_folder(data: &Path) -> Self {
        Marker { path: data.join("replay") }
    }

    /// The stores that are to be built again; none if there is no marker.
    pub fn stores(&self) -> anyhow::Result<Vec<Phase>> {
        let text = match fs::read_to_string(&self.path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            text => text.with_context(|| format!("could not read {}", self.path.display()))?,
        };
        let stores = text.lines().map(|name| Phase::ALL.into_iter().find(|phase| phase.name() == name));
        stores.collect::<Option<Vec<Phase>>>().with_context(|| {
            format!(
                "{} names what is no store. It marks a replay that has not ended: remove the file, start, and ask for the \
                 replay again",
                self.path.display()
            )
        })
    }

    /// Marks `stores`, durably.
    pub fn write(&self, stores: &[Phase]) -> anyhow::Result<()> {
        let next = self.path.with_extension("next");
        let written = || {
            let mut file = File::create(&next)?;
            stores.iter().try_for_each(|phase| writeln!(file, "{}", phase.name()))?;
            file.sync_all()?;
            fs::rename(&next, &self.path)?;
            self.sync_folder()
        };
        written().with_context(|| format!("could not write {}, which marks the replay", self.path.display()))
    }

    /// All is done: there is no marker any more.
    pub fn remove(&self) -> anyhow::Result<()> {
        let removed = fs::remove_file(&self.path).and_then(|()| self.sync_folder());
        removed
            .with_context(|| format!("could not remove {}, which marks the replay that has ended", self.path.display()))
    }

    fn sync_folder(&self) -> io::Result<()> {
        self.path.parent().map_or(Ok(()), |folder| File::open(folder)?.sync_all())
    }
}
