//! A session with the cluster, and how a request is tried.
//!
//! ```text
//!   writes ─► of one partition together (unlogged batch) ─► window ─► attempt ─► acknowledged
//!                                                             ▲          │ not, but may pass
//!                                                             └─ pause ──┘ until `retry_for` is over
//! ```
//!
//! Each request may be sent as often as one likes: a write has its timestamp and says the same each time, so what arrives
//! twice, or late, changes nothing. A batch is of one partition, so that it is one mutation of each replica, which needs no
//! log of batches, and takes effect at once or not at all.

use std::collections::BTreeSet;
use std::future::Future;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use futures::{StreamExt, TryStreamExt, stream};
use openssl::error::ErrorStack;
use openssl::ssl::{SslConnector, SslMethod};
use openssl::x509::X509;
use openssl::x509::store::X509StoreBuilder;
use parking_lot::Mutex;
use scylla::client::execution_profile::{ExecutionProfile, ExecutionProfileBuilder, ExecutionProfileHandle};
use scylla::client::session::{OpenSsl010Config, Session};
use scylla::client::session_builder::SessionBuilder;
use scylla::errors::ExecutionError;
use scylla::policies::load_balancing::DefaultPolicy;
use scylla::policies::speculative_execution::{SimpleSpeculativeExecutionPolicy, SpeculativeExecutionPolicy};
use scylla::response::query_result::{QueryResult, QueryRowsResult};
use scylla::serialize::row::SerializeRow;
use scylla::statement::Consistency as Level;
use scylla::statement::batch::{Batch, BatchType};
use tokio::runtime::Handle;
use tokio::sync::{Notify, watch};
use tokio::task::block_in_place;

use super::fault::{self, CqlError, Fault, is_unknown, may_pass};
use super::schema;
use super::settings::{BATCH_BYTES, BATCH_ROWS, Consistency, CqlSettings, Tls};
use super::state::State;
use super::statement::{Statement, Statements, Write};
use super::window::{Answer, Window};

/// Before the second attempt; it doubles with each.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_secs(2);
/// For how long somebody waits for a page, if one attempt is not answered; and within which a failed one is tried again.
const PAGE_MAX: Duration = Duration::from_secs(5);
const PAGE_RETRY: Duration = Duration::from_secs(1);
/// For how long a request is waited for when the process ends.
const LAST_MAX: Duration = Duration::from_secs(1);
/// A connection that says nothing for so long is looked after, and given up after as long again.
const KEEPALIVE: Duration = Duration::from_secs(10);

/// A session with the cluster, in the keyspace.
pub(super) struct Cluster {
    pub(super) session: Session,
    pub(super) settings: CqlSettings,
    pub(super) handle: Handle,
    /// With the consistency of writes.
    own: Statements,
    /// With that of pages.
    pages: Statements,
    window: Window,
    retries: AtomicU64,
    /// Whether the last request of the store was tried again.
    is_away: AtomicBool,
    /// A closed time with rows was applied: there is progress to be written.
    pub(super) progressed: Notify,
    /// Whom the keyspace must name as its writer, if anybody.
    writer: Mutex<Option<String>>,
    /// Why nothing may be written any more.
    barred: Mutex<Option<Fault>>,
    /// Set when the process ends: nothing is tried again.
    ends: watch::Sender<bool>,
}

impl Cluster {
    /// Connects, and makes the keyspace and its tables if they are not there.
    pub(super) async fn open(settings: CqlSettings) -> Result<Self, CqlError> {
        let session = connect(&settings).await?;
        // Tables are not made again where they are: each takes a round of all nodes.
        if !is_made(&session, &settings).await? {
            schema::make(&session, &settings).await?;
        }
        Cluster::with(session, settings).await
    }

    /// Connects, and makes nothing.
    pub(super) async fn open_made(settings: CqlSettings) -> Result<Self, CqlError> {
        let session = connect(&settings).await?;
        if !is_made(&session, &settings).await? {
            return Err(CqlError::Empty { servers: settings.servers(), keyspace: settings.keyspace });
        }
        Cluster::with(session, settings).await
    }

    async fn with(session: Session, settings: CqlSettings) -> Result<Self, CqlError> {
        let engine = |source: ExecutionError| CqlError::Engine {
            tried: "prepare the statements",
            keyspace: settings.keyspace.clone(),
            source: Box::new(Fault::Refused { servers: settings.servers(), problem: source.to_string() }),
        };
        session.use_keyspace(&settings.keyspace, false).await.map_err(|error| engine(error.into()))?;
        let prepare = |level, profile| Statements::prepare(&session, level, profile);
        let own = prepare(level(settings.write_consistency), None).await.map_err(|error| engine(error.into()))?;
        let impatient = Some(impatient(&settings));
        let pages = prepare(level(settings.read_consistency), impatient).await.map_err(|error| engine(error.into()))?;
        let window = Window::new(settings.concurrency);
        Ok(Cluster {
            session,
            handle: Handle::current(),
            own,
            pages,
            window,
            retries: AtomicU64::new(0),
            is_away: AtomicBool::new(false),
            progressed: Notify::new(),
            writer: Mutex::default(),
            barred: Mutex::default(),
            ends: watch::Sender::new(false),
            settings,
        })
    }

    /// The keyspace must go on naming this writer.
    pub(super) fn written_by(&self, writer: &str) {
        *self.writer.lock() = Some(writer.to_owned());
    }

    /// Looks whether it does. One that cannot be asked now is asked again.
    pub(super) async fn look_for_another(&self) {
        let Some(own) = self.writer.lock().clone() else { return };
        if let Ok(Some(found)) = State::new(self).writer().await
            && found != own
        {
            self.bar(Fault::Superseded(self.settings.keyspace.clone()));
        }
    }

    /// Nothing is written any more: the next closed time fails.
    pub(super) fn bar(&self, fault: Fault) {
        self.barred.lock().get_or_insert(fault);
    }

    /// Fails from when on something says that nothing may be written; whoever asks first is told why.
    pub(super) fn check(&self) -> Result<(), Fault> {
        match &mut *self.barred.lock() {
            Some(fault) => Err(std::mem::replace(fault, Fault::Stopped)),
            None => Ok(()),
        }
    }

    /// The process ends: what is not answered in a moment fails, and is not tried again.
    pub(super) fn end(&self) {
        self.ends.send_replace(true);
    }

    /// Waits until that, and the moment after it.
    async fn ended(&self) {
        let mut ends = self.ends.subscribe();
        if ends.wait_for(|ends| *ends).await.is_err() {
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(LAST_MAX).await;
    }

    /// Waits for so long, unless the process ends.
    pub(super) async fn pause(&self, pause: Duration) -> Result<(), Fault> {
        tokio::select! {
            () = tokio::time::sleep(pause) => Ok(()),
            () = self.ended() => Err(Fault::Stopped),
        }
    }

    /// Requests that were tried again since the session was opened.
    pub(super) fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// Waits for what a closed time needs. A thread of a runtime lets others go on meanwhile.
    pub(super) fn wait<F: Future>(&self, future: F) -> F::Output {
        match Handle::try_current() {
            Ok(_) => block_in_place(|| self.handle.block_on(future)),
            Err(_) => self.handle.block_on(future),
        }
    }

    /// Writes all of them in any order, those of one partition together. Neighbours are sent together, so that they should be
    /// sorted by partition.
    pub(super) async fn write(&self, writes: &[Write]) -> Result<(), Fault> {
        self.write_together(requests(writes)).await
    }

    /// Writes lists of which each is of one partition, and takes effect at once.
    pub(super) async fn write_together<'a>(&self, requests: impl Iterator<Item = &'a [Write]>) -> Result<(), Fault> {
        let most = self.settings.concurrency;
        stream::iter(requests.map(Ok)).try_for_each_concurrent(most, |request| self.request(request)).await
    }

    /// Writes one partition's rows.
    async fn request(&self, writes: &[Write]) -> Result<(), Fault> {
        let sent = || async {
            let permit = self.window.enter().await;
            let begun = Instant::now();
            let sent = self.send(writes).await;
            let answer = if sent.is_ok() { Answer::After(begun.elapsed()) } else { Answer::None };
            self.window.leave(permit, answer);
            sent
        };
        self.tried(self.settings.retry_for, sent).await.map(drop)
    }

    async fn send(&self, writes: &[Write]) -> Result<QueryResult, ExecutionError> {
        let prepared = |write: &Write| self.own.get(write.statement()).cloned();
        if let [write] = writes
            && let Some(statement) = self.own.get(write.statement())
        {
            return self.session.execute_unpaged(statement, write).await;
        }
        let statements = writes.iter().filter_map(prepared).map(Into::into).collect();
        let mut batch = Batch::new_with_statements(BatchType::Unlogged, statements);
        batch.set_consistency(level(self.settings.write_consistency));
        batch.set_is_idempotent(true);
        self.session.batch(&batch, writes.iter().collect::<Vec<_>>()).await
    }

    /// Reads with the consistency of writes: what is read so is as new as what was written.
    pub(super) async fn read(&self, what: Statement, values: impl SerializeRow) -> Result<QueryRowsResult, Fault> {
        self.query(&self.own, self.settings.retry_for, what, values).await
    }

    /// Reads a page.
    pub(super) async fn page(&self, what: Statement, values: impl SerializeRow) -> Result<QueryRowsResult, Fault> {
        self.query(&self.pages, PAGE_RETRY, what, values).await
    }

    async fn query(
        &self,
        statements: &Statements,
        retry_for: Duration,
        what: Statement,
        values: impl SerializeRow,
    ) -> Result<QueryRowsResult, Fault> {
        let Some(statement) = statements.get(what) else { return Err(Fault::Stopped) };
        let found = self.tried(retry_for, || self.session.execute_unpaged(statement, &values)).await?;
        found.into_rows_result().map_err(|_| Fault::Undecodable { of: "an answer" })
    }

    /// Runs a statement that has no values.
    pub(super) async fn run(&self, text: &str) -> Result<QueryResult, Fault> {
        self.tried(self.settings.retry_for, || self.session.query_unpaged(text, ())).await
    }

    /// What an attempt gives, tried again for a while if that can help.
    async fn tried<F: Future<Output = Result<QueryResult, ExecutionError>>>(
        &self,
        retry_for: Duration,
        attempt: impl Fn() -> F,
    ) -> Result<QueryResult, Fault> {
        let (begun, mut pause) = (Instant::now(), PAUSE);
        loop {
            let attempted = tokio::select! {
                attempted = attempt() => attempted,
                () = self.ended() => return Err(Fault::Stopped),
            };
            let error = match attempted {
                Ok(found) => {
                    if self.is_away.swap(false, Ordering::Relaxed) {
                        tracing::info!("the CQL cluster answers again");
                    }
                    return Ok(found);
                }
                Err(error) => error,
            };
            let (servers, problem) = (self.settings.servers(), error.to_string());
            if !may_pass(&error) {
                return Err(Fault::Refused { servers, problem });
            }
            let waited = begun.elapsed();
            if waited + pause > retry_for {
                return Err(Fault::Unavailable { servers, waited, problem });
            }
            if pause > PAUSE && !self.is_away.swap(true, Ordering::Relaxed) {
                tracing::warn!(
                    "the CQL cluster at {servers} does not do what it is asked ({problem}); it is asked again"
                );
            }
            self.retries.fetch_add(1, Ordering::Relaxed);
            metrics::counter!("feedmill_cql_retries_total").increment(1);
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.ended() => return Err(Fault::Stopped),
            }
            pause = (pause * 2).min(PAUSE_MAX);
        }
    }

    /// Runs something for each item, as many at a time as requests may be on their way.
    pub(super) async fn each<T, R, F: Future<Output = Result<R, Fault>>>(
        &self,
        items: impl IntoIterator<Item = T>,
        run: impl FnMut(T) -> F,
    ) -> Result<Vec<R>, Fault> {
        stream::iter(items).map(run).buffered(self.settings.concurrency.max(1)).try_collect().await
    }
}

/// Neighbours of one partition, in requests that are not too large.
fn requests(writes: &[Write]) -> impl Iterator<Item = &[Write]> {
    let mut rest = writes;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let mut bytes = 0;
        let fits = |write: &&Write| {
            bytes += write.bytes();
            first.is_beside(write) && bytes <= BATCH_BYTES
        };
        let count = rest.iter().take(BATCH_ROWS).take_while(fits).count().max(1);
        let (request, after) = rest.split_at_checked(count)?;
        rest = after;
        Some(request)
    })
}

/// Whether the tables are all there, as the last that is made says.
async fn is_made(session: &Session, settings: &CqlSettings) -> Result<bool, CqlError> {
    let text = format!("SELECT value FROM {}.state WHERE name = 'format'", settings.keyspace);
    match session.query_unpaged(text, ()).await {
        Ok(found) => Ok(found.into_rows_result().is_ok_and(|rows| rows.rows_num() > 0)),
        Err(error) if is_unknown(&error) => Ok(false),
        // What may not be read must not be taken for what is not there.
        Err(error) => Err(CqlError::Engine {
            tried: "look what there is",
            keyspace: settings.keyspace.clone(),
            source: Box::new(Fault::Refused { servers: settings.servers(), problem: error.to_string() }),
        }),
    }
}

async fn connect(settings: &CqlSettings) -> Result<Session, CqlError> {
    let mut builder = SessionBuilder::new()
        .known_nodes(&settings.nodes)
        .keyspaces_to_fetch([&settings.keyspace])
        .keepalive_interval(KEEPALIVE)
        .keepalive_timeout(KEEPALIVE)
        .driver_config_reporting(false)
        .default_execution_profile_handle(profile(settings).build().into_handle());
    if let Some(user) = &settings.user {
        builder = builder.user(user, settings.password.clone().unwrap_or_default());
    }
    if let Some(authorities) = trusted(&settings.tls)? {
        let context = client(authorities).map_err(|error| CqlError::Tls(error.to_string()))?;
        builder = builder.tls_context(Some(context));
    }
    let session = builder.build().await.map_err(|error| fault::connect(settings.servers(), &error))?;
    let state = session.get_cluster_state();
    let datacenters = state.get_nodes_info().iter().filter_map(|node| node.datacenter.as_deref()).collect();
    check_datacenter(settings, &datacenters)?;
    Ok(session)
}

/// A quorum of a datacenter is one of whoever coordinates the request: two who do so in different ones need not see what the other
/// has written.
fn check_datacenter(settings: &CqlSettings, datacenters: &BTreeSet<&str>) -> Result<(), CqlError> {
    let is_local = |consistency| matches!(consistency, Consistency::LocalOne | Consistency::LocalQuorum);
    let problem = match settings.datacenter.as_deref() {
        // One that tells of none is asked as it is.
        Some(named) if !datacenters.is_empty() && !datacenters.contains(named) => {
            format!("`datacenter={named}` is none of them")
        }
        None if datacenters.len() > 1
            && (is_local(settings.write_consistency) || is_local(settings.read_consistency)) =>
        {
            "consistency is that of one of them".to_owned()
        }
        _ => return Ok(()),
    };
    let found = datacenters.iter().copied().collect::<Vec<_>>().join(", ");
    Err(CqlError::Datacenter { servers: settings.servers(), found, problem })
}

fn profile(settings: &CqlSettings) -> ExecutionProfileBuilder {
    let mut balancing = DefaultPolicy::builder().token_aware(true);
    if let Some(datacenter) = &settings.datacenter {
        balancing = balancing.prefer_datacenter(datacenter.clone());
    }
    ExecutionProfile::builder()
        .consistency(level(settings.write_consistency))
        .request_timeout(Some(settings.timeout))
        .load_balancing_policy(balancing.build())
}

/// For pages, for which somebody waits: another node is asked too when one does not answer for as long as the settings say.
fn impatient(settings: &CqlSettings) -> ExecutionProfileHandle {
    let policy = |retry_interval| SimpleSpeculativeExecutionPolicy { max_retry_count: 1, retry_interval };
    let policy = settings.speculate_after.map(|after| Arc::new(policy(after)) as Arc<dyn SpeculativeExecutionPolicy>);
    let timeout = settings.timeout.min(PAGE_MAX);
    profile(settings).request_timeout(Some(timeout)).speculative_execution_policy(policy).build().into_handle()
}

/// Nodes must show a certificate of their address that one of `authorities` has signed.
fn client(authorities: Vec<X509>) -> Result<OpenSsl010Config, ErrorStack> {
    let mut store = X509StoreBuilder::new()?;
    for authority in authorities {
        store.add_cert(authority)?;
    }
    let mut builder = SslConnector::builder(SslMethod::tls_client())?;
    builder.set_cert_store(store.build());
    Ok(OpenSsl010Config::new(builder))
}

/// Whom we trust to vouch for the servers; `None` where nothing is encrypted.
fn trusted(tls: &Tls) -> Result<Option<Vec<X509>>, CqlError> {
    let authorities = match tls {
        Tls::Off => return Ok(None),
        Tls::System => {
            let known = rustls_native_certs::load_native_certs().certs;
            known.iter().filter_map(|certificate| X509::from_der(certificate).ok()).collect()
        }
        Tls::File(file) => {
            let unusable = |problem: String| {
                let file = file.display();
                CqlError::Tls(format!("the authority's file {file} cannot be used ({problem}); name a PEM file"))
            };
            let text = std::fs::read(file).map_err(|error| unusable(error.to_string()))?;
            X509::stack_from_pem(&text).map_err(|error| unusable(error.to_string()))?
        }
    };
    if authorities.is_empty() {
        let problem = "no authority is trusted; name one with tls=FILE, or install some, for example by: apt-get install \
                       ca-certificates";
        return Err(CqlError::Tls(problem.to_owned()));
    }
    Ok(Some(authorities))
}

const fn level(consistency: Consistency) -> Level {
    match consistency {
        Consistency::One => Level::One,
        Consistency::LocalOne => Level::LocalOne,
        Consistency::Quorum => Level::Quorum,
        Consistency::LocalQuorum => Level::LocalQuorum,
        Consistency::All => Level::All,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_several_datacenters_one_is_named_unless_all_are_asked() {
        let check = |datacenter: Option<&str>, consistency, datacenters: &[&str]| {
            let datacenter = datacenter.map(str::to_owned);
            let settings = CqlSettings {
                datacenter,
                write_consistency: consistency,
                read_consistency: consistency,
                ..CqlSettings::default()
            };
            check_datacenter(&settings, &datacenters.iter().copied().collect()).map_err(|error| error.to_string())
        };
        assert_eq!(check(None, Consistency::LocalQuorum, &["one"]), Ok(()));
        assert_eq!(check(None, Consistency::LocalQuorum, &[]), Ok(()));
        assert_eq!(check(None, Consistency::Quorum, &["one", "other"]), Ok(()));
        assert_eq!(check(Some("other"), Consistency::LocalQuorum, &["one", "other"]), Ok(()));
        let told = check(None, Consistency::LocalQuorum, &["one", "other"]).unwrap_err();
        assert!(told.contains("datacenters one, other") && told.contains("`datacenter=`"), "{told}");
        let told = check(Some("third"), Consistency::Quorum, &["one", "other"]).unwrap_err();
        assert!(told.contains("`datacenter=third` is none of them"), "{told}");
    }
}
