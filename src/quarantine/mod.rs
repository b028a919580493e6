//! `feedmill quarantine`: rows that cannot be used, asked of the running process over its control socket.

mod server;

pub use server::answer;

use std::process::ExitCode;

use clap::{Args, Subcommand};
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::control::{self, Answer, Request};

/// What `feedmill quarantine` takes beside the settings.
#[derive(Args, Clone, Debug)]
pub struct QuarantineArgs {
    #[command(subcommand)]
    command: QuarantineCommand,

    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Table, global = true)]
    format: Format,
}

#[derive(Subcommand, Clone, Debug)]
enum QuarantineCommand {
    /// List the rows, with the reason of each
    List {
        /// At most so many
        #[arg(long, value_name = "N", default_value_t = 1_000)]
        limit: usize,
        /// Begin after the row with this id
        #[arg(long, value_name = "ID")]
        after: Option<String>,
    },
    /// Show all that is known of a row
    Show {
        /// As `list` prints it: tweets/17, likes/3/17
        id: String,
    },
    /// Try rows again: those that can be used by now are a batch of their own
    Retry {
        /// As `list` prints them
        #[arg(required_unless_present = "all")]
        ids: Vec<String>,
        /// Every row
        #[arg(long, conflicts_with = "ids")]
        all: bool,
    },
    /// Forget a row: it stays out of every view until it changes in PostgreSQL
    Drop {
        /// As `list` prints it
        id: String,
    },
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// For people.
    Table,
    /// A JSON object a row.
    Json,
}

/// What is asked of the running process.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ask {
    /// Rows in the order of their ids.
    List {
        /// After this id.
        after: Option<String>,
        /// At most so many.
        limit: usize,
    },
    /// A row.
    Show(String),
    /// Try these again; all of them if there are none.
    Retry(Vec<String>),
    /// Forget a row.
    Drop(String),
}

/// A row in quarantine, or what became of it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Told {
    /// By which it is named.
    pub id: String,
    /// Where it stands: `held`, `back` or `dropped`.
    pub state: String,
    /// Why it cannot be used.
    pub reason: Option<String>,
    /// What was done to the row in PostgreSQL.
    pub operation: Option<String>,
    /// The batch that set it aside, in milliseconds since 1970.
    pub time_ms: Option<u64>,
    /// The end of that batch in PostgreSQL's log.
    pub lsn: Option<String>,
    /// Its columns as they were sent; one that was not has no entry, and NULL is `null`.
    pub columns: serde_json::Map<String, serde_json::Value>,
    /// The row, if all that is wrong with it is its time.
    pub row: Option<serde_json::Value>,
}

/// Prints what the running process answers. The exit code is 1 if a row that was tried again still cannot be used.
pub async fn run(args: QuarantineArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let (ask, whole) = match args.command {
        QuarantineCommand::List { limit, after } => (Ask::List { after, limit }, false),
        QuarantineCommand::Show { id } => (Ask::Show(id), true),
        QuarantineCommand::Retry { ids, .. } => (Ask::Retry(ids), false),
        QuarantineCommand::Drop { id } => (Ask::Drop(id), false),
    };
    let retried = matches!(ask, Ask::Retry(_));
    let (mut rows, mut held) = (0, 0);
    control::ask(&settings.data, &Request::Quarantine(ask), |answer| {
        let Answer::Quarantined(row) = answer else { return };
        rows += 1;
        held += usize::from(row.state == "held");
        match args.format {
            Format::Json => println!("{}", serde_json::to_string(&row).unwrap_or_default()),
            Format::Table if whole => println!("{}", serde_json::to_string_pretty(&row).unwrap_or_default()),
            Format::Table => print_line(&row),
        }
    })
    .await?;
    if args.format == Format::Table && rows == 0 {
        println!("no row is in quarantine");
    }
    Ok(if retried && held > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_line(row: &Told) {
    let operation = row.operation.as_deref().unwrap_or_default();
    println!("{:<32} {:<8} {:<7} {}", row.id, row.state, operation, row.reason.as_deref().unwrap_or_default());
}
