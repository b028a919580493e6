//! `feedmill verify`: every view against its SQL definition, at one position of the log.
//!
//! ```text
//!   capture pauses ── temporary slot ── consistent point P, exported snapshot ── capture ends a batch at P
//!                                                                                      │ time T
//!   dataflows' intake is held at T ◄───────────────────────────────────────────────────┘
//!   stores reach T ── snapshot of the index, copy of home ── intake goes on
//!                         │
//!                         ├── key by key, view by view ──► rows compared, missing, extra
//!   SQL at P, T ──────────┘
//! ```
//!
//! Why it is exact: the exported snapshot holds just what committed before P, the batch that ends at P makes the change
//! log hold just the same, and the stores stand at that batch's time while their snapshots are taken. Writes go on
//! meanwhile: for the time of the hold, which is told, they wait in the change log. The comparison itself holds nobody up.

mod compare;
mod quarantine;
mod served;
mod server;

pub use server::{Compared, Verifier};

use std::process::ExitCode;

use clap::Args;
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::control::{self, Answer, Request};

/// What `feedmill verify` takes beside the settings.
#[derive(Args, Clone, Debug)]
pub struct VerifyArgs {
    /// Compare at most N timelines as served [default: 10,000 without pushed entries, and 100 of the others]
    #[arg(long, value_name = "N")]
    pub sample: Option<usize>,

    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Form of the result.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A line each.
    Table,
    /// A JSON object each.
    Json,
}

/// How one view compares with its SQL.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Report {
    /// Name of the view.
    pub view: String,
    /// Rows of the SQL that were compared.
    pub rows: u64,
    /// Rows that the SQL has and the store lacks, or has with another value.
    pub missing: u64,
    /// Rows that the store has and the SQL lacks, or has with another value.
    pub extra: u64,
    /// What else there is to say.
    pub note: Option<String>,
    /// Some of the differences.
    pub examples: Vec<String>,
}

/// Asks the running process and prints what it answers. The exit code is 1 on any difference.
pub async fn run(args: VerifyArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut differences = 0;
    let mut compared = 0;
    let mut held = 0.0;
    if args.format == Format::Table {
        println!("{:<20} {:>12} {:>10} {:>10}", "view", "rows", "missing", "extra");
    }
    control::ask(&settings.data, &Request::Verify { sample: args.sample }, |answer| {
        let report = match answer {
            Answer::View(report) => report,
            Answer::Held { seconds } => {
                held = seconds;
                return;
            }
            _ => return,
        };
        differences += report.missing + report.extra;
        compared += report.rows;
        match args.format {
            Format::Json => println!("{}", serde_json::to_string(&report).unwrap_or_default()),
            Format::Table => print_line(&report),
        }
    })
    .await?;
    if args.format == Format::Table {
        println!("writes were held for {held:.2} s; {compared} rows compared, {differences} differences");
    } else {
        println!("{}", serde_json::json!({ "rows": compared, "differences": differences, "heldSeconds": held }));
    }
    Ok(if differences == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print_line(report: &Report) {
    let note = report.note.as_deref().unwrap_or_default();
    println!("{:<20} {:>12} {:>10} {:>10}  {note}", report.view, report.rows, report.missing, report.extra);
    for example in &report.examples {
        println!("    {example}");
    }
}
