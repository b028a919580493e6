//! The search index on this machine's disk, in tantivy.
//!
//! ```text
//!   worker ─ Closed<Document> ─► queue (bounded) ─► one thread: delete, add ─► commit with the progress ─► readers
//!                                                                  once a second at most, and for `durable`
//! ```
//!
//! Why it is correct: the queue is taken together with the progress that it brings its shards to, and a commit has both
//! in one file that is replaced at once, so after a crash a shard has all that its progress says. What lies after it is
//! replayed by the change log, which keeps its tail from [`SearchStore::durable`] on; replayed again it changes nothing,
//! since what is put is deleted by its id first. (A closed time that does not fit into the queue may be committed in
//! parts, its progress with the last.) A first load has no progress until its end: if that never comes, the next start
//! finds shards without progress and begins with an empty index.
//!
//! Why it holds nobody up: a worker waits only while the queue is full, and not for ever; commits, merges and sorting are the thread's.
//! What was handed over is found at most [`COMMIT_EVERY`] and the time of a commit later.

mod layout;
mod read;

use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use feedmill_model::{Closed, Document, Op, Phase, Position, RowSink, SHARDS, StoreError, Time, failpoint};
use parking_lot::{Condvar, Mutex, MutexGuard};
use tantivy::directory::MmapDirectory;
use tantivy::indexer::IndexWriterOptions;
use tantivy::{Index, IndexReader, IndexWriter, ReloadPolicy, TantivyError};
use tokio::sync::watch;

use self::layout::Fields;
use self::read::SearchReader;
use crate::search::{
    Reached, SearchIndex, SearchSnapshot, SearchStore, least, reaches, read_reached, time_of, write_reached,
};
use crate::{ReadError, Rebuilding};

/// Version of what the folder holds, and of the rules by which texts are cut into words. Another version is refused:
/// derived data is rebuilt rather than migrated.
const FORMAT: &str = "1";
const FORMAT_FILE: &str = "format";
/// Between two commits.
const COMMIT_EVERY: Duration = Duration::from_millis(800);
/// Operations that wait; whoever brings more waits.
const QUEUED_MAX: usize = 20_000;
/// Words and texts in memory before they become a segment.
const WRITER_BYTES: usize = 64 << 20;
/// How long whoever waits for the thread waits: for a commit that was asked for, or for room in the queue.
const WAIT_MAX: Duration = Duration::from_secs(120);

/// Why the search index could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum SearchOpenError {
    /// It was written by another version.
    #[error(
        "the search index in {path} has format {found}, this version of feedmill reads {FORMAT}: \
         move the folder away, and it is built again from the change log"
    )]
    Format {
        /// Where.
        path: PathBuf,
        /// Its format.
        found: String,
    },
    /// Folder or file could not be read or written.
    #[error("could not {tried} of the search index in {path}: {source}")]
    Folder {
        /// What was tried.
        tried: &'static str,
        /// Where.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: std::io::Error,
    },
    /// The engine could not do it.
    #[error(
        "could not {tried} the search index in {path}: {source}; if that stays, move the folder away, and it is built \
         again from the change log"
    )]
    Engine {
        /// What was tried.
        tried: &'static str,
        /// Where.
        path: PathBuf,
        /// What went wrong.
        #[source]
        source: TantivyError,
    },
}

/// What went wrong after the index was opened.
#[derive(Clone, Debug, thiserror::Error)]
enum Fault {
    #[error("{0}")]
    Engine(#[from] TantivyError),
    #[error("the thread that writes it has ended")]
    Ended,
    #[error("the thread that writes it did not do so within {WAIT_MAX:?}: look at the disk (errors, speed)")]
    Late,
}

impl Fault {
    fn store(self, tried: impl Into<String>) -> StoreError {
        StoreError { store: "search", tried: tried.into(), source: Box::new(self) }
    }
}

/// What workers, readers and the thread that writes share.
struct State {
    /// Operations that the thread has not taken.
    queue: Vec<Op<Document>>,
    /// What was handed over, once all of the queue is taken.
    accepted: Reached,
    /// What is committed.
    committed: Reached,
    /// What is found.
    found: Reached,
    /// Before this is found nothing is read: the index is built again.
    due: Time,
    /// The index is to be emptied first.
    empty: bool,
    /// Commits that were asked for, and those of them that are done.
    asked: u64,
    done: u64,
    /// Why the thread writes no more.
    fault: Option<Fault>,
    end: bool,
}

struct Shared {
    state: Mutex<State>,
    /// Something to do for the thread.
    work: Condvar,
    /// Something was taken or committed.
    moved: Condvar,
    /// The time that is found, for who waits for it.
    found: watch::Sender<Time>,
}

/// The search index on this machine's disk.
pub struct LocalSearch {
    shared: Arc<Shared>,
    reader: IndexReader,
    fields: Fields,
    thread: Option<JoinHandle<()>>,
}

impl LocalSearch {
    /// Opens the index in the folder `dir`, or makes it. One whose first load was not completed is emptied.
    pub fn open(dir: &Path) -> Result<Self, SearchOpenError> {
        let engine = |tried| move |source| SearchOpenError::Engine { tried, path: dir.to_path_buf(), source };
        check_format(dir)?;
        let directory = MmapDirectory::open(dir).map_err(TantivyError::from).map_err(engine("open the folder of"))?;
        let (schema, fields) = layout::schema();
        let index = Index::open_or_create(directory, schema).map_err(engine("open"))?;
        let options = IndexWriterOptions::builder()
            .memory_budget_per_thread(WRITER_BYTES)
            .num_worker_threads(1)
            .num_merge_threads(1)
            .build();
        let mut writer: IndexWriter = index.writer_with_options(options).map_err(engine("begin to write"))?;
        let payload = index.load_metas().map_err(engine("read the progress of"))?.payload;
        let reached = payload.as_deref().and_then(read_reached).filter(|reached| least(reached).is_some());
        let reached = match reached {
            Some(reached) => reached,
            None => {
                let emptied = writer.delete_all_documents().and_then(|_| writer.commit());
                emptied.map_err(engine("empty"))?;
                [None; SHARDS]
            }
        };
        let reader = index.reader_builder().reload_policy(ReloadPolicy::Manual).try_into();
        let reader: IndexReader = reader.map_err(engine("read"))?;
        let state = State {
            queue: Vec::new(),
            accepted: reached,
            committed: reached,
            found: reached,
            due: 0,
            empty: false,
            asked: 0,
            done: 0,
            fault: None,
            end: false,
        };
        let found = watch::Sender::new(time_of(&reached));
        let shared = Arc::new(Shared { state: Mutex::new(state), work: Condvar::new(), moved: Condvar::new(), found });
        let write = Writer { shared: Arc::clone(&shared), writer, reader: reader.clone(), fields };
        let thread = std::thread::Builder::new().name("search".to_owned()).spawn(move || write.run());
        let failed = |source| SearchOpenError::Folder { tried: "start the thread", path: dir.to_path_buf(), source };
        let thread = Some(thread.map_err(failed)?);
        Ok(LocalSearch { shared, reader, fields, thread })
    }

    /// The index as it is found now, to be read while it goes on.
    fn reader(&self) -> Result<SearchReader, ReadError> {
        let state = self.shared.state.lock();
        match least(&state.found).filter(|found| found.time >= state.due) {
            Some(found) => Ok(SearchReader::new(self.reader.searcher(), self.fields, found.time)),
            None => Err(ReadError { store: "local", what: "search", source: Box::new(Rebuilding(Phase::Search)) }),
        }
    }

    /// Asks for a commit, and waits for it, at most `limit`; tells whether it came.
    fn committed<'a>(
        &'a self,
        mut state: MutexGuard<'a, State>,
        limit: Duration,
    ) -> Result<(MutexGuard<'a, State>, bool), Fault> {
        state.asked += 1;
        let (asked, until) = (state.asked, Instant::now() + limit);
        self.shared.work.notify_one();
        while state.done < asked {
            if let Some(fault) = state.fault.clone() {
                return Err(fault);
            }
            if self.shared.moved.wait_until(&mut state, until).timed_out() {
                return Ok((state, false));
            }
        }
        Ok((state, true))
    }
}

impl Drop for LocalSearch {
    fn drop(&mut self) {
        self.shared.state.lock().end = true;
        self.shared.work.notify_one();
        if let Some(thread) = self.thread.take() {
            // It has told why if it could not end well.
            let _ = thread.join();
        }
    }
}

impl RowSink<Document> for LocalSearch {
    fn progress(&self) -> Vec<Option<Position>> {
        self.shared.state.lock().accepted.to_vec()
    }

    fn apply(&self, closed: &Closed<Document>) -> Result<(), StoreError> {
        let failed = |fault: Fault| fault.store(format!("apply the closed time {}", closed.position.time));
        let mut state = self.shared.state.lock();
        let until = Instant::now() + WAIT_MAX;
        // A shard is of one worker, which comes once at a time: what is due stays so.
        let has_it = |own: &Option<Position>| own.is_some_and(|own| own.time >= closed.position.time);
        let due: Vec<bool> = state.accepted.iter().map(|own| !has_it(own)).collect();
        for (shard, op) in &closed.ops {
            if !due.get(usize::from(*shard)).is_some_and(|due| *due) {
                continue;
            }
            while state.queue.len() >= QUEUED_MAX && state.fault.is_none() {
                self.shared.work.notify_one();
                if self.shared.moved.wait_until(&mut state, until).timed_out() {
                    return Err(failed(Fault::Late));
                }
            }
            state.queue.push(op.clone());
        }
        if let Some(fault) = state.fault.clone() {
            return Err(failed(fault));
        }
        if !closed.loading {
            reaches(&mut state.accepted, closed.shards, closed.position);
        }
        self.shared.work.notify_one();
        Ok(())
    }
}

impl SearchStore for LocalSearch {
    fn rebuild(&self, due: Time) -> Result<(), StoreError> {
        let mut state = self.shared.state.lock();
        state.queue.clear();
        (state.accepted, state.found) = ([None; SHARDS], [None; SHARDS]);
        (state.due, state.empty) = (due, true);
        self.shared.found.send_replace(0);
        match self.committed(state, WAIT_MAX) {
            Ok((_, true)) => Ok(()),
            Ok((_, false)) => Err(Fault::Late.store("begin anew")),
            Err(fault) => Err(fault.store("begin anew")),
        }
    }

    fn durable(&self, limit: Duration) -> Result<Option<Position>, StoreError> {
        let (state, _) = self.committed(self.shared.state.lock(), limit).map_err(|fault| fault.store("commit"))?;
        Ok(least(&state.committed))
    }
}

impl SearchIndex for LocalSearch {
    fn found(&self) -> Option<Position> {
        let state = self.shared.state.lock();
        least(&state.found).filter(|found| found.time >= state.due)
    }

    fn snapshot(&self) -> Result<Box<dyn SearchSnapshot>, ReadError> {
        Ok(Box::new(self.reader()?))
    }
}

fn check_format(dir: &Path) -> Result<(), SearchOpenError> {
    let failed = |tried| move |source| SearchOpenError::Folder { tried, path: dir.to_path_buf(), source };
    std::fs::create_dir_all(dir).map_err(failed("make the folder"))?;
    let file = dir.join(FORMAT_FILE);
    match std::fs::read_to_string(&file) {
        Ok(found) if found == FORMAT => Ok(()),
        Ok(found) => Err(SearchOpenError::Format { path: dir.to_path_buf(), found }),
        Err(error) if error.kind() == ErrorKind::NotFound => {
            std::fs::write(&file, FORMAT).map_err(failed("write the format"))
        }
        Err(error) => Err(failed("read the format")(error)),
    }
}

/// What the thread has taken.
struct Taken {
    ops: Vec<Op<Document>>,
    reached: Reached,
    empty: bool,
    asked: u64,
}

/// The thread that writes.
struct Writer {
    shared: Arc<Shared>,
    writer: IndexWriter,
    reader: IndexReader,
    fields: Fields,
}

impl Writer {
    fn run(mut self) {
        // Whatever ends it, whoever waits is told.
        let outcome = catch_unwind(AssertUnwindSafe(|| self.write())).unwrap_or_else(|panic| {
            let text = panic.downcast_ref::<String>().map(String::as_str);
            let text = text.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(TantivyError::ErrorInThread(text.to_owned()))
        });
        let fault = outcome.err().map_or(Fault::Ended, Fault::Engine);
        if matches!(fault, Fault::Engine(_)) {
            tracing::error!("the search index cannot be written any more: {fault}");
        }
        self.shared.state.lock().fault = Some(fault);
        self.shared.moved.notify_all();
    }

    /// Writes until the end.
    fn write(&mut self) -> Result<(), TantivyError> {
        let mut committed = Instant::now().checked_sub(COMMIT_EVERY).unwrap_or_else(Instant::now);
        let mut changed = false;
        while let Some(taken) = self.take(changed.then(|| committed + COMMIT_EVERY)) {
            self.shared.moved.notify_all();
            if taken.empty {
                self.writer.delete_all_documents()?;
            }
            changed |= !taken.ops.is_empty();
            for op in taken.ops {
                self.apply(op)?;
            }
            if taken.asked > 0 || (changed && committed.elapsed() >= COMMIT_EVERY) {
                self.commit(&taken.reached)?;
                (committed, changed) = (Instant::now(), false);
                // Who asked for the commit then reads what it brought.
                self.found(taken.reached);
                let mut state = self.shared.state.lock();
                state.committed = taken.reached;
                state.done = state.done.max(taken.asked);
                self.shared.moved.notify_all();
            } else if !changed {
                self.found(taken.reached);
            }
        }
        Ok(())
    }

    /// All of this is found from now on.
    fn found(&self, reached: Reached) {
        self.shared.state.lock().found = reached;
        self.shared.found.send_replace(time_of(&reached));
    }

    /// Waits for something to do, at most until `until`; `None` at the end. What is taken at `until` may be nothing.
    fn take(&self, until: Option<Instant>) -> Option<Taken> {
        let mut state = self.shared.state.lock();
        let idle = |state: &State| {
            state.queue.is_empty() && state.asked == state.done && (until.is_some() || state.found == state.accepted)
        };
        while !state.end && idle(&state) {
            match until {
                Some(until) if self.shared.work.wait_until(&mut state, until).timed_out() => break,
                Some(_) => {}
                None => self.shared.work.wait(&mut state),
            }
        }
        let asked = if state.asked > state.done { state.asked } else { 0 };
        (!state.end).then(|| Taken {
            ops: std::mem::take(&mut state.queue),
            reached: state.accepted,
            empty: std::mem::take(&mut state.empty),
            asked,
        })
    }

    fn apply(&self, op: Op<Document>) -> Result<(), TantivyError> {
        match op {
            Op::Put(document) => {
                self.writer.delete_term(self.fields.key(&document));
                self.writer.add_document(self.fields.document(&document))?;
            }
            Op::Delete(document) => drop(self.writer.delete_term(self.fields.key(&document))),
            // Documents are never added up.
            Op::Add(..) => {}
        }
        Ok(())
    }

    /// Commits what was written, with `reached`, and shows it to readers.
    fn commit(&mut self, reached: &Reached) -> Result<(), TantivyError> {
        failpoint!("search_commit_before");
        let began = Instant::now();
        let mut prepared = self.writer.prepare_commit()?;
        prepared.set_payload(&write_reached(reached));
        prepared.commit()?;
        failpoint!("search_commit_after");
        self.reader.reload()?;
        metrics::histogram!("feedmill_search_commit_seconds").record(began.elapsed().as_secs_f64());
        Ok(())
    }
}
