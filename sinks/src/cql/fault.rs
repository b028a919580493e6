//! What goes wrong with a cluster, and whether another attempt can mend it.

use std::time::Duration;

use feedmill_model::StoreError;
use scylla::errors::{DbError, ExecutionError, NewSessionError, PrepareError, RequestAttemptError};

use crate::ReadError;

/// Why a CQL store could not be opened.
#[derive(Debug, thiserror::Error)]
pub enum CqlError {
    /// No node answers.
    #[error(
        "could not connect to the CQL cluster at {servers}: {problem}. Check that it runs and that host and port, user and \
         password, and TLS are those of the cluster"
    )]
    Connect {
        /// The nodes.
        servers: String,
        /// What went wrong.
        problem: String,
    },
    /// The keyspace is another version's.
    #[error(
        "the keyspace {keyspace} at {servers} has format {found}, this version of feedmill reads {expected}: name another \
         keyspace, or drop this one, and it is built again from the change log"
    )]
    Format {
        /// The nodes.
        servers: String,
        /// The keyspace.
        keyspace: String,
        /// Its format.
        found: String,
        /// Ours.
        expected: u32,
    },
    /// The keyspace is another source's.
    #[error(
        "the keyspace {keyspace} at {servers} holds what was derived from {found}, and this is {expected}: name another \
         keyspace, or drop this one, and it is built again from the change log"
    )]
    Source {
        /// The nodes.
        servers: String,
        /// The keyspace.
        keyspace: String,
        /// Its source.
        found: String,
        /// Ours.
        expected: String,
    },
    /// Another source has taken over the keyspace.
    #[error(
        "the keyspace holds what was derived from {found} now, and held what was from {expected}: start this process again, with \
         the right --database-url and --store"
    )]
    Replaced {
        /// Its source.
        found: String,
        /// What it was.
        expected: String,
    },
    /// Nobody has filled the keyspace.
    #[error(
        "the keyspace {keyspace} at {servers} has nothing to read yet: start what fills it, `feedmill up` or `feedmill run` with \
         the same --store"
    )]
    Empty {
        /// The nodes.
        servers: String,
        /// The keyspace.
        keyspace: String,
    },
    /// It is filled with other settings than it is to be read with.
    #[error(
        "the keyspace {keyspace} at {servers} is filled with --fanout-days {found}, and this process has {expected}: give it the \
         same"
    )]
    FanoutDays {
        /// The nodes.
        servers: String,
        /// The keyspace.
        keyspace: String,
        /// Of who fills it.
        found: String,
        /// Ours.
        expected: u32,
    },
    /// Nodes are in several datacenters, and it is not said which one is near.
    #[error(
        "the CQL cluster at {servers} is in the datacenters {found}, and {problem}: name one of them with `datacenter=` in --store, \
         the same for all processes that share the keyspace"
    )]
    Datacenter {
        /// The nodes.
        servers: String,
        /// The datacenters.
        found: String,
        /// What does not fit.
        problem: String,
    },
    /// TLS cannot be set up.
    #[error("TLS to the CQL cluster cannot be set up: {0}")]
    Tls(String),
    /// The cluster did not do something.
    #[error("could not {tried} in the keyspace {keyspace}: {source}")]
    Engine {
        /// What was tried.
        tried: &'static str,
        /// The keyspace.
        keyspace: String,
        /// What went wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

impl CqlError {
    /// Whether it may pass by itself: the cluster is away, or somebody may yet fill the keyspace.
    pub const fn may_pass(&self) -> bool {
        matches!(self, CqlError::Connect { .. } | CqlError::Empty { .. } | CqlError::Engine { .. })
    }
}

/// What goes wrong with a request or a row.
#[derive(Debug, thiserror::Error)]
pub(super) enum Fault {
    #[error(
        "the CQL cluster at {servers} did not do it within {waited:?}: {problem}. Check that enough of its nodes run for \
         the consistency level; the store goes on where it is when feedmill is started again"
    )]
    Unavailable { servers: String, waited: Duration, problem: String },
    #[error("the CQL cluster at {servers} refuses it: {problem}")]
    Refused { servers: String, problem: String },
    #[error("a row of {of} cannot be decoded: `feedmill replay` builds it again from the change log")]
    Undecodable { of: &'static str },
    #[error("a row cannot be encoded: {0}")]
    Unencodable(#[from] postcard::Error),
    #[error("{0}")]
    Local(String),
    #[error("how far the stores are could not be read for {0:?}: check that the CQL cluster answers")]
    Unfollowed(Duration),
    #[error(
        "another process has begun to write the keyspace {0}, and two at once would spoil it: stop one of them, or give it \
         another --store"
    )]
    Superseded(String),
    #[error("the process ends")]
    Stopped,
}

impl Fault {
    pub(super) fn store(self, store: &'static str, tried: impl Into<String>) -> StoreError {
        StoreError { store, tried: tried.into(), source: Box::new(self) }
    }

    pub(super) fn read(self, what: &'static str) -> ReadError {
        ReadError { store: "CQL", what, source: Box::new(self) }
    }
}

/// Whether the same request may be answered the next time.
pub(super) fn may_pass(error: &ExecutionError) -> bool {
    match error {
        ExecutionError::BadQuery(_) | ExecutionError::UseKeyspaceError(_) => false,
        ExecutionError::LastAttemptError(attempt) => attempt_may_pass(attempt),
        ExecutionError::PrepareError(PrepareError::AllAttemptsFailed { first_attempt }) => {
            attempt_may_pass(first_attempt)
        }
        _ => true,
    }
}

fn attempt_may_pass(error: &RequestAttemptError) -> bool {
    match error {
        RequestAttemptError::DbError(error, _) => !matches!(
            error,
            DbError::SyntaxError
                | DbError::Invalid
                | DbError::AlreadyExists { .. }
                | DbError::FunctionFailure { .. }
                | DbError::AuthenticationError
                | DbError::Unauthorized
                | DbError::ConfigError
                | DbError::ProtocolError
        ),
        RequestAttemptError::SerializationError(_) | RequestAttemptError::CqlRequestSerialization(_) => false,
        _ => true,
    }
}

/// Whether the cluster does not know the table that was asked for, or its keyspace.
pub(super) fn is_unknown(error: &ExecutionError) -> bool {
    matches!(error, ExecutionError::LastAttemptError(RequestAttemptError::DbError(DbError::Invalid, _)))
}

pub(super) fn connect(servers: String, error: &NewSessionError) -> CqlError {
    CqlError::Connect { servers, problem: error.to_string() }
}
