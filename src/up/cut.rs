//! A snapshot of the source at a position at which the change log has a batch end.
//!
//! ```text
//!   capture pauses ── temporary slot ── consistent point P, exported snapshot ── capture ends a batch at P
//! ```
//!
//! Why the two are the same: the exported snapshot holds just what committed before P, and the batch that ends at P makes
//! the change log hold just that.

use std::time::Duration;

use anyhow::{Context, bail};
use feedmill_connectors::postgres::{Replication, Source};
use feedmill_model::Lsn;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout};

use super::capture::{CUT_PAUSE_MAX, Cut};

/// Attempts to find a position at which no other transaction is under way for long.
const ATTEMPTS: usize = 5;
/// How long capture may take to pause, and to reach the position.
const REACH_MAX: Duration = Duration::from_secs(120);

/// The source as of a position: while this lives, the snapshot does.
pub struct CutSnapshot<G> {
    /// Everything that was committed before it is in the snapshot and in the log.
    pub position: Lsn,
    /// Name of the exported snapshot.
    pub name: String,
    /// Since when capture, and so what is written, waits for it.
    pub since: Instant,
    /// What was made for the position.
    pub guard: G,
    /// Capture stands at the position while there is one.
    _capture: Option<oneshot::Sender<()>>,
    _slot: Replication,
}

/// What happens beyond the position while the snapshot lives.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Beyond {
    /// Capture goes on.
    GoesOn,
    /// Capture stands at the position, and with it the change log.
    Waits,
}

/// Takes a snapshot for `purpose`, a word for names. `prepare` is called with the position before the batch that ends
/// there is on its way; what it gives is kept as long as the snapshot.
pub async fn take<G>(
    source: &Source,
    cuts: &mpsc::Sender<Cut>,
    purpose: &str,
    beyond: Beyond,
    mut prepare: impl FnMut(Lsn) -> G,
) -> anyhow::Result<CutSnapshot<G>> {
    let mut missed = Missed::Position;
    for _ in 0..ATTEMPTS {
        missed = match attempt_at(source, cuts, purpose, beyond, &mut prepare).await? {
            Ok(snapshot) => return Ok(snapshot),
            Err(missed) => missed,
        };
    }
    match missed {
        Missed::Position => {
            let holder = oldest_transaction(source).await?;
            bail!(
                "no position was found within {ATTEMPTS} attempts of {CUT_PAUSE_MAX:?}, because a transaction has been \
                 under way all the time ({holder}); end it, or try again"
            )
        }
        Missed::Capture => bail!(
            "capture did not come to the position within {ATTEMPTS} attempts, because its connection was lost or what \
             lies before takes long; try again when `feedmill status` says that it goes on"
        ),
    }
}

/// Why an attempt led to nothing.
enum Missed {
    /// A transaction was under way all the time.
    Position,
    /// Capture gave up before it was there.
    Capture,
}

async fn attempt_at<G>(
    source: &Source,
    cuts: &mpsc::Sender<Cut>,
    purpose: &str,
    beyond: Beyond,
    prepare: &mut impl FnMut(Lsn) -> G,
) -> anyhow::Result<Result<CutSnapshot<G>, Missed>> {
    let application = "feedmill-cut";
    let mut replication = Replication::connect(source, application).await?;
    // No other slot can have this name: a temporary one goes with its server process, and may outlive for a moment the
    // connection of an attempt that was given up.
    let name = format!("feedmill_{purpose}_{}", replication.pid());
    let (paused, is_paused) = oneshot::channel();
    let (give_position, position) = oneshot::channel();
    let (done, is_done) = oneshot::channel();
    let (capture, resume) = oneshot::channel();
    let capture = (beyond == Beyond::Waits).then_some(capture);
    cuts.send(Cut { paused, position, done, resume }).await.ok().context("capture has ended")?;
    if !matches!(timeout(REACH_MAX, is_paused).await, Ok(Ok(()))) {
        bail!("capture does not answer; `/health` says what stands still");
    }
    let since = Instant::now();
    // Capture gives the attempt up after the same time, and goes on.
    let Ok(slot) = timeout(CUT_PAUSE_MAX, replication.create_slot(&name, true)).await else {
        // The server would go on waiting for the transaction, and keep the slot.
        let client = source.connect(application).await?;
        client.execute("SELECT pg_terminate_backend($1)", &[&replication.pid()]).await?;
        return Ok(Err(Missed::Position));
    };
    let slot = slot.context("could not make a temporary slot for a snapshot")?;
    let position = slot.consistent_point;
    let guard = prepare(position);
    let snapshot = CutSnapshot { position, name: slot.snapshot, since, guard, _capture: capture, _slot: replication };
    if give_position.send(position).is_err() {
        return Ok(Err(Missed::Position));
    }
    let is_done = matches!(timeout(REACH_MAX, is_done).await, Ok(Ok(())));
    Ok(if is_done { Ok(snapshot) } else { Err(Missed::Capture) })
}

async fn oldest_transaction(source: &Source) -> anyhow::Result<String> {
    let client = source.connect("feedmill-cut").await?;
    let query = "SELECT format('pid %s, user %s, application %s, since %s', pid, usename, application_name, xact_start)
                 FROM pg_stat_activity WHERE backend_xid IS NOT NULL ORDER BY xact_start LIMIT 1";
    let row = client.query_opt(query, &[]).await?;
    Ok(row.map_or(Ok("it has just ended".to_owned()), |row| row.try_get(0))?)
}
