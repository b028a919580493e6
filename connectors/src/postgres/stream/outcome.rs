//! Which subtransactions of a committed transaction were rolled back, asked of the server.
//!
//! A server tells a rollback ([`StreamAbort`](super::super::pgoutput::Message::StreamAbort)) of what it sent only if it
//! still had changes of the subtransaction in memory then. It forgets it of one whose changes it had put on its own disk
//! before: because they lie before the place where the stream began (a connection was lost in the middle of the
//! transaction), or because a row was not yet whole. PostgreSQL 14 to 18 do so. Then the changes come and nothing takes
//! them back.
//!
//! Why asking is right: a subtransaction is marked as rolled back at once, long before the transaction around it is
//! committed, and so before we hear of the commit. One that is not marked so by then is committed with it, even if the
//! server has not marked that yet: a commit is sent as soon as it is in the log, and may wait for a standby after that.

use std::collections::HashSet;
use std::io;
use std::time::Duration;

use tokio::time::timeout;

use super::super::error::with_causes;
use super::super::{ReplicationError, Source};

/// The `application_name` of the connection that asks.
const APPLICATION: &str = "feedmill-outcome";

/// How long the answer may take; the server hears nothing from the stream meanwhile.
const ANSWER_MAX: Duration = Duration::from_secs(10);

/// Transaction numbers of the stream are the lower halves of whole ones: those nearest to the first that is not yet over. They
/// may lie beyond it, while the commit is not over for the server.
const ROLLED_BACK: &str = "
SELECT xid
  FROM unnest($1::bigint[]) AS xid,
       (SELECT pg_snapshot_xmax(pg_current_snapshot())::text::bigint AS next) AS snapshot
 WHERE pg_xact_status((next + ((xid - next + 2147483648) & 4294967295) - 2147483648)::text::xid8) = 'aborted'";

/// Those of `subtransactions` that were rolled back.
///
/// # Errors
/// The server cannot be asked: the stream is to begin again.
pub(super) async fn rolled_back(source: &Source, subtransactions: &[u32]) -> Result<HashSet<u32>, ReplicationError> {
    let ask = async {
        let client = source.connect(APPLICATION).await.map_err(|error| lost(&error))?;
        let xids: Vec<i64> = subtransactions.iter().map(|xid| i64::from(*xid)).collect();
        let rows = client.query(ROLLED_BACK, &[&xids]).await.map_err(|error| lost(&error))?;
        let xid = |row: tokio_postgres::Row| {
            let xid: i64 = row.try_get(0).map_err(|error| lost(&error))?;
            u32::try_from(xid).map_err(|error| lost(&error))
        };
        rows.into_iter().map(xid).collect()
    };
    timeout(ANSWER_MAX, ask).await.map_err(|error| lost(&error))?
}

fn lost(error: &dyn std::error::Error) -> ReplicationError {
    let error = io::Error::other(with_causes(error));
    ReplicationError::Lost { tried: "ask which parts of a transaction were rolled back".to_owned(), error }
}
