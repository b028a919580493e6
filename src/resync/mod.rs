//! `feedmill resync`: the change log against the database, row by row, and only the difference is taken over.
//!
//! ```text
//!   capture stands at P ◄── temporary slot: consistent point P, exported snapshot ──► rows, in parallel parts
//!            │                                                                              │ staged
//!   change log as of P ──────────────────────── merge by key ◄──────────────────────────────┘
//!                                                    └─► one batch at a new time: what is new, changed and gone
//! ```
//!
//! Why nothing is lost or undone: the snapshot holds just what committed before P, and the log stands there until the
//! difference is in it; what was committed meanwhile waits in the stream, and comes after it. Reads go on.

mod server;

pub use server::{Resyncer, Snapshot, compare};

use std::process::ExitCode;

use clap::Args;
use clap::builder::PossibleValuesParser;
use feedmill_model::Relation;
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::control::{self, Answer, Request};

/// What `feedmill resync` takes beside the settings.
#[derive(Args, Clone, Debug)]
pub struct ResyncArgs {
    /// Compare only this table; may be given several times [default: all]
    #[arg(long, value_name = "TABLE", value_parser = PossibleValuesParser::new(Relation::ALL.map(Relation::table)))]
    pub relation: Vec<String>,
}

/// How one table compares with the change log.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compared {
    /// The table.
    pub table: String,
    /// Rows that the database has.
    pub rows: u64,
    /// Rows that the change log lacked.
    pub inserted: u64,
    /// Rows that it had with other values.
    pub updated: u64,
    /// Rows that it had and the database has not.
    pub deleted: u64,
}

/// Asks the running process and prints what it has taken over.
pub async fn run(args: ResyncArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    println!("{:<12} {:>12} {:>10} {:>10} {:>10}", "table", "rows", "inserted", "updated", "deleted");
    let (mut rows, mut differences) = (0, 0);
    control::ask(&settings.data, &Request::Resync { tables: args.relation }, |answer| {
        let Answer::Compared(Compared { table, rows: of_table, inserted, updated, deleted }) = answer else { return };
        rows += of_table;
        differences += inserted + updated + deleted;
        println!("{table:<12} {of_table:>12} {inserted:>10} {updated:>10} {deleted:>10}");
    })
    .await?;
    println!("{rows} rows compared, {differences} differences taken over");
    Ok(ExitCode::SUCCESS)
}
