//! The database that is written, and whose commits the stores are of.
//!
//! ```text
//!   every second: clock, end of the log ─► postgresql (station)
//!                        └─► commits up to then lie before this position ─► when the stores have it, nothing older is to come
//! ```

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use feedmill_connectors::postgres::{Source, SourceError};
use feedmill_model::{Lsn, Phase, SourceId, Time};
use feedmill_sinks::Views;
use tokio::sync::watch;
use tokio::time::error::Elapsed;
use tokio::time::{MissedTickBehavior, interval, timeout};
use tokio_postgres::Client;
use tokio_util::sync::CancellationToken;

use crate::up::stations::Stations;

/// How often it is asked, and how long it may take to answer.
const ASK: Duration = Duration::from_secs(1);
const ANSWER_MAX: Duration = Duration::from_secs(5);
/// Ends of the log that are remembered: of half an hour. Stores that are farther behind are of no later commit than that.
const ENDS_MAX: usize = 1_800;

/// The clock before the end of the log: what was committed by then lies before that end.
const END: &str = "
    SELECT (extract(epoch FROM clock_timestamp()) * 1000)::bigint, pg_current_wal_insert_lsn()::text,
           pg_current_wal_flush_lsn()::text";

/// Which database it is, and whether it has our tables.
const IDENTITY: &str = "SELECT system_identifier::text, to_regclass('accounts') IS NOT NULL FROM pg_control_system()";

/// Checks that the database is the one that the stores are of. An error that is none of the connection is final.
pub async fn check(source: &Source, of: &SourceId) -> anyhow::Result<()> {
    let client = source.connect("feedmill-status").await?;
    let asked = timeout(ANSWER_MAX, client.query_one(IDENTITY, &[])).await;
    let row = asked.context("could not ask which database it is")?.context("could not ask which database it is")?;
    let (system, has_tables): (String, bool) = (row.try_get(0)?, row.try_get(1)?);
    ensure!(
        system == of.system.to_string(),
        "--database-url is the database system {system}, and what --store holds was derived from {of}: name the database and the \
         keyspace that belong together"
    );
    ensure!(
        has_tables,
        "the database of --database-url has no tables of Feedmill's: name the one that `feedmill capture` or `feedmill up` reads"
    );
    Ok(())
}

/// Whether another attempt can help.
pub fn is_transient(error: &anyhow::Error) -> bool {
    let of_source = error.downcast_ref::<SourceError>().is_some_and(SourceError::is_transient);
    of_source
        || error.is::<Elapsed>()
        || error.downcast_ref::<tokio_postgres::Error>().is_some_and(tokio_postgres::Error::is_closed)
}

/// Ends of the log, and when they were.
#[derive(Default)]
struct Ends(VecDeque<(Lsn, Time)>);

impl Ends {
    /// One that was found later than the others. Of another history, it may lie before them.
    fn add(&mut self, lsn: Lsn, ms: Time) {
        if self.0.back().is_some_and(|(last, _)| *last > lsn) {
            self.0.clear();
        }
        match self.0.back_mut() {
            Some((last, at)) if *last == lsn => *at = ms,
            _ => self.0.push_back((lsn, ms)),
        }
        if self.0.len() > ENDS_MAX {
            self.0.pop_front();
        }
    }

    /// Up to when everything that was committed lies before `lsn`.
    fn before(&self, lsn: Lsn) -> Option<Time> {
        let end = self.0.partition_point(|(end, _)| *end <= lsn);
        end.checked_sub(1).and_then(|last| self.0.get(last)).map(|(_, ms)| *ms)
    }
}

/// Asks until the end how far the log is, and tells up to when commits have reached the stores.
pub async fn watch(
    source: Source,
    views: Arc<dyn Views>,
    mut of: watch::Receiver<SourceId>,
    stations: Arc<Stations>,
    end: CancellationToken,
) -> anyhow::Result<&'static str> {
    let mut again = interval(ASK);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let mut moved = views.progress().watch();
    let (mut connection, mut ends) = (None::<Client>, Ends::default());
    loop {
        tokio::select! {
            _ = again.tick() => {}
            Ok(()) = moved.changed() => {
                for phase in [Phase::Rows, Phase::Home, Phase::Reactions] {
                    let position = views.progress().position(phase);
                    if let Some(ms) = ends.before(position.lsn) {
                        views.changes().committed(position.time, ms);
                    }
                }
                continue;
            }
            () = end.cancelled() => return Ok("the watch of the database"),
        }
        if of.has_changed().unwrap_or(false) {
            // Its positions are of another history.
            of.mark_unchanged();
            ends = Ends::default();
        }
        let asked = async {
            let client = match connection.take() {
                Some(client) => client,
                None => source.connect("feedmill-status").await?,
            };
            let row = client.query_one(END, &[]).await.context("could not ask for the end of its log")?;
            let (ms, inserted, flushed): (i64, &str, &str) = (row.try_get(0)?, row.try_get(1)?, row.try_get(2)?);
            stations.postgresql().moved(flushed.parse()?);
            ends.add(inserted.parse()?, Time::try_from(ms).unwrap_or(0));
            anyhow::Ok(client)
        };
        let asked = tokio::select! {
            asked = timeout(ANSWER_MAX, asked) => asked,
            () = end.cancelled() => continue,
        };
        match asked {
            Ok(Ok(client)) => {
                connection = Some(client);
                stations.postgresql().goes_on();
            }
            Ok(Err(error)) => stations.postgresql().waiting(format!("{error:#}")),
            Err(_) => stations.postgresql().waiting(format!("it has not answered within {ANSWER_MAX:?}")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn commits_have_come_as_far_as_the_last_end_that_is_reached() {
        let mut ends = Ends::default();
        assert_eq!(ends.before(Lsn(100)), None);
        ends.add(Lsn(100), 10);
        ends.add(Lsn(100), 11);
        ends.add(Lsn(200), 12);
        assert_eq!(
            [99, 100, 199, 200, 300].map(|lsn| ends.before(Lsn(lsn))),
            [None, Some(11), Some(11), Some(12), Some(12)]
        );
        // Of another history.
        ends.add(Lsn(50), 13);
        assert_eq!((ends.before(Lsn(49)), ends.before(Lsn(100))), (None, Some(13)));
        (0..2 * ENDS_MAX as u64).for_each(|n| ends.add(Lsn(1_000 + n), 20 + n));
        assert_eq!(ends.0.len(), ENDS_MAX);
    }
}
