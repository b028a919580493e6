//! Whether a database can serve as a source, and what mends it where it cannot.
//!
//! ```text
//!  connection ─ encryption ─ server ─ role ─ schema ─┬─ privileges ─ publication ─ replica identity
//!                                                    └─ (not made yet: the start makes it)
//!             ─ slot ─ room for slots, walsenders, connections ─ clock
//! ```
//!
//! Each check looks at one thing and changes nothing: it can be run before the schema exists, and beside a running
//! system. `feedmill validate` runs all and prints what each found. A start runs those that it depends on: the server's
//! and the role's before it migrates the schema, the publication's and the identities' after that.

use std::fmt;

use serde::Serialize;
use tokio_postgres::Client;

use super::error::with_causes;
use super::{Replication, Source};

mod relations;
mod role;
mod server;
mod slot;

/// What a check found.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Finding {
    /// What was looked at.
    pub check: &'static str,
    /// How it is.
    pub outcome: Outcome,
    /// What was found, in words.
    pub found: String,
    /// The statements or the command that mend it; what cannot be mended by one is said in words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

/// How it is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Outcome {
    /// As it should be.
    Ok,
    /// It works, and may surprise.
    Warn,
    /// It does not work.
    Fail,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(match self {
            Outcome::Ok => "ok",
            Outcome::Warn => "warn",
            Outcome::Fail => "fail",
        })
    }
}

impl Finding {
    /// All is well.
    pub fn ok(check: &'static str, found: impl Into<String>) -> Finding {
        Finding { check, outcome: Outcome::Ok, found: found.into(), mend: None }
    }

    /// It works, and may surprise.
    pub fn warn(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { check, outcome: Outcome::Warn, found: found.into(), mend: Some(mend.into()) }
    }

    /// It does not work.
    pub fn fail(check: &'static str, found: impl Into<String>, mend: impl Into<String>) -> Finding {
        Finding { check, outcome: Outcome::Fail, found: found.into(), mend: Some(mend.into()) }
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.check, self.found)?;
        match &self.mend {
            Some(mend) => write!(f, "; mend it by: {mend}"),
            None => Ok(()),
        }
    }
}

/// A source that cannot be used as it is: what failed.
#[derive(Debug)]
pub struct Unfit(pub Vec<Finding>);

impl fmt::Display for Unfit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the database cannot be the source")?;
        self.0.iter().try_for_each(|finding| write!(f, "\n  {finding}"))
    }
}

impl std::error::Error for Unfit {}

/// What a check that asks the server gives: its findings, or why it could not ask.
type Asked = Result<Vec<Finding>, tokio_postgres::Error>;

/// What is going to use the source.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Usage<'a> {
    /// The replication slot.
    pub slot: &'a str,
    /// Connections of the API.
    pub pool_size: usize,
    /// Whether data from the slot are here, so that it must be there.
    pub copied: bool,
}

/// Runs every check. A source that cannot be reached is one finding.
pub async fn source(source: &Source, usage: Usage<'_>) -> Vec<Finding> {
    let client = match source.connect("feedmill-validate").await {
        Ok(client) => client,
        Err(error) => {
            let mend = "see that the address is right and that the server runs and lets us in (pg_hba.conf)";
            return vec![Finding::fail("connection", error.to_string(), mend)];
        }
    };
    let mut findings = vec![Finding::ok("connection", source.to_string())];
    let mut add = |check, asked: Asked| match asked {
        Ok(found) => findings.extend(found),
        Err(error) => {
            let mend = "see the server's log, and try again";
            findings.push(Finding::fail(check, format!("could not ask the server: {}", with_causes(&error)), mend));
        }
    };
    add("encryption", server::encryption(&client, source).await);
    add("server", server::fitness(&client).await);
    add("role", role::attributes(&client).await);
    add("replication", Ok(vec![replication(source, usage.slot).await]));
    add("schema", role::schema(&client).await);
    add("privileges", role::privileges(&client).await);
    add("publication", relations::publication(&client).await);
    add("replica identity", relations::identities(&client).await);
    add("slot", slot::slot(&client, usage.slot, usage.copied).await);
    add("room", server::room(&client, usage.slot, usage.pool_size).await);
    add("settings", server::settings(&client).await);
    add("clock", server::clock(&client).await);
    findings
}

/// What must hold before the schema is migrated.
pub(super) async fn before_migration(client: &Client) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let mut findings = server::fitness(client).await?;
    findings.extend(role::attributes(client).await?);
    Ok(findings)
}

/// What must hold once the schema and the publication are there.
pub(super) async fn after_migration(client: &Client) -> Result<Vec<Finding>, tokio_postgres::Error> {
    let mut findings = relations::publication(client).await?;
    findings.extend(relations::identities(client).await?);
    Ok(findings)
}

/// Tells the log what may surprise; what does not work is the error.
pub(super) fn judge(findings: Vec<Finding>) -> Result<(), Unfit> {
    for finding in findings.iter().filter(|finding| finding.outcome == Outcome::Warn) {
        tracing::warn!("{finding}");
    }
    let failed: Vec<Finding> = findings.into_iter().filter(|finding| finding.outcome == Outcome::Fail).collect();
    if failed.is_empty() { Ok(()) } else { Err(Unfit(failed)) }
}

/// Whether a connection in replication mode is let in.
async fn replication(source: &Source, slot: &str) -> Finding {
    const CHECK: &str = "replication";
    let identity = match Replication::connect(source, "feedmill-validate").await {
        Ok(mut connection) => connection.identify(slot).await,
        Err(error) => Err(error),
    };
    match identity {
        Ok(identity) => Finding::ok(CHECK, format!("system {}, timeline {}", identity.system, identity.timeline)),
        Err(error) => {
            let mend = "see that the role has REPLICATION, that a walsender is free, and that pg_hba.conf lets it in";
            Finding::fail(CHECK, error.to_string(), mend)
        }
    }
}
