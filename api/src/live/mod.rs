//! Live updates: what is new for a viewer, as it comes, by server-sent events and by WebSocket.
//!
//! ```text
//!   stores ─ progress moved ─► hub, one task ──── heads of the viewers, in one batch ──► whose head moved
//!          ─ what changed ───►     │              ids that changed ───────────────────► whose notifications,
//!                                  ▼                                                    tweets on screen, rights
//!                         seat of a client: flags
//!                                  │ wakes
//!                                  ▼
//!        client, a task: the wire is free ─► reads the views ─► judged, written at once ─► SSE or WebSocket
//! ```
//!
//! The hub reads nothing but heads: it only says *who* has to be looked at again, in flags that a second telling does not
//! make more of. Each client looks for itself, with the reads that the REST answers use, and never more than a page.
//!
//! Why nothing is missed: what changed is told after it can be read, and a client registers before its first look. So
//! whatever a look did not find is flagged after it, and is found by the next. What a client was sent it remembers in its
//! [`Mark`]: a floor, at or below which nothing is new, and the entries above it that it knows. Ids are drawn
//! before a transaction commits, so one may come in below others that were sent already; the floor therefore stays
//! [`mark::WINDOW_MS`] behind the newest entry that was applied (not behind the clock: after an outage what was made long
//! ago is applied, batch after batch). What comes later than that, or was imported, is not told; and of a timeline that gets
//! more than [`KNOWN_MAX`] entries in the window, neither is what comes below that many newer ones. An entry of which another
//! worker has not applied a row yet is left for the next look.
//!
//! Why nothing is sent twice: what is in the mark is not new. The mark after each event is that event's id, and a client
//! that comes back with its last id goes on from there, on whichever instance. If more is missed than a page holds it is
//! told to load the list instead (`reset`).
//!
//! Why nothing is sent that its viewer may not see: events are made when the wire can take them, by reads that ask the
//! facts last, and are handed over whole before anything else is waited for. No judged event waits in a queue.
//!
//! Why memory is bounded: there is no queue. A client has a mark, at most [`WATCHED_MAX`] tweets on screen, and one page
//! that is being written; what happens meanwhile are flags. A client that takes nothing for `stream_stall` is dropped. What
//! lies in the kernel is bounded by the listener (`TCP_NOTSENT_LOWAT`).
//!
//! Why it leaves others their share: a hub's round takes at most one part in so many of a core, so with very many
//! clients rounds become fewer instead of dearer, and all clients together read with at most half of the cores ([`Looks`]).
//!
//! Where the stores are another process's, nobody names what has changed. The hub then looks at the heads once a second at most,
//! after the stores have moved, and what heads do not tell each client looks at itself, as often: timelines of hot accounts,
//! notifications, what is not read, rights, and counts. How far the commits are that were applied is told by their position in the
//! source's log, and when that was the end of it ([`Changes::committed`](feedmill_sinks::Changes::committed)): an entry that is yet
//! to come was committed later, so the floor stays behind it as it does behind the newest entry.

mod client;
mod event;
mod hub;
mod mark;
mod registry;
mod socket;
mod sse;
mod ticket;

use std::sync::Arc;
use std::time::Duration;

use feedmill_sinks::Views;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

pub(crate) use self::client::{Client, Resume, tweet_ids};
pub(crate) use self::mark::{KNOWN_MAX, Mark};
pub(crate) use self::registry::Full;
use self::registry::{Place, Registry};
pub(crate) use self::socket::serve as serve_socket;
pub(crate) use self::sse::serve as serve_events;
pub(crate) use self::ticket::{TICKET_S, Tickets};
use crate::state::Looks;

/// Tweets on screen of which a client is told the counts, at most.
pub(crate) const WATCHED_MAX: usize = 100;

/// All streams of this process.
pub(crate) struct Live {
    registry: Registry,
    /// Clients that read at a time.
    reads: Semaphore,
}

impl Live {
    /// Streams of these views until `shutdown`; must be called in a tokio runtime.
    pub fn start(views: Arc<dyn Views>, limits: Limits, looks: Looks, shutdown: CancellationToken) -> Arc<Self> {
        let live = Arc::new(Live { registry: Registry::new(limits), reads: Semaphore::new(looks.readers) });
        tokio::spawn(hub::run(views, Arc::downgrade(&live), looks, shutdown));
        live
    }

    /// Waits for a turn to read, until what this returns is dropped.
    async fn turn(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.reads.acquire().await.ok()
    }

    /// A place for one more stream of `viewer`.
    pub fn join(self: &Arc<Self>, viewer: i64, transport: &'static str) -> Result<Place, Full> {
        Place::take(self, viewer, transport)
    }
}

/// How many streams there may be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Limits {
    /// At a time, in this process.
    pub streams: usize,
    /// Of one user.
    pub of_user: usize,
}

/// Why a stream ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum End {
    /// The client left.
    Left,
    /// The process ends.
    Shutdown,
    /// The token has expired.
    Expired,
    /// The session has ended.
    SignedOut,
    /// The account was deleted.
    AccountDeleted,
    /// The client took nothing for too long.
    Slow,
    /// The client did not answer.
    Silent,
    /// The client sent what is no message.
    BadMessage,
    /// The client sent too many messages.
    TooManyMessages,
}

impl End {
    /// Its name, for clients and metrics.
    const fn name(self) -> &'static str {
        match self {
            End::Left => "left",
            End::Shutdown => "shutdown",
            End::Expired => "expired",
            End::SignedOut => "signed-out",
            End::AccountDeleted => "account-deleted",
            End::Slow => "slow",
            End::Silent => "silent",
            End::BadMessage => "bad-message",
            End::TooManyMessages => "too-many-messages",
        }
    }

    /// What the client can do.
    const fn advice(self) -> &'static str {
        match self {
            End::Left => "Come again.",
            End::Shutdown => "The server stops. Come again with the last id.",
            End::Expired => "The token has expired. Refresh it.",
            End::SignedOut => "The session has ended. Log in again.",
            End::AccountDeleted => "The account does not exist any more.",
            End::Slow => "What was sent was not taken for too long. Come again with the last id.",
            End::Silent => "No ping was answered. Come again with the last id.",
            End::BadMessage => "A message is the text {\"watch\":[\"1\",\"2\"]} with at most 100 ids.",
            End::TooManyMessages => "Two messages a second are enough. Come again with the last id.",
        }
    }

    /// The code of the close frame (RFC 6455, 7.4, and IANA's registry).
    const fn code(self) -> u16 {
        match self {
            End::Left => 1000,
            End::Shutdown => 1001,
            End::BadMessage => 1007,
            End::Expired | End::SignedOut | End::AccountDeleted | End::Silent | End::TooManyMessages => 1008,
            End::Slow => 1013,
        }
    }
}

/// How long a last word may take.
const FAREWELL_MAX: Duration = Duration::from_secs(2);
