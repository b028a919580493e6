//! `feedmill quarantine`: rows that cannot be used, asked of the running process over its control socket.

mod server;

pub use server::answer;

use std::process::ExitCode;

use anyhow::{bail, ensure};
use clap::Args;
use serde::{Deserialize, Serialize};

use crate::config::Settings;
use crate::control::{self, Answer, Request};

/// What `feedmill quarantine` takes beside the settings.
#[derive(Args, Clone, Debug)]
pub struct QuarantineArgs {
    /// What to do
    #[arg(value_enum)]
    action: Action,

    /// Which rows, as `list` prints them: tweets/17, likes/3/17
    #[arg(value_name = "ID")]
    ids: Vec<String>,

    /// Retry every row
    #[arg(long, conflicts_with = "ids")]
    all: bool,

    /// List at most N rows
    #[arg(long, value_name = "N", default_value_t = 1_000)]
    limit: usize,

    /// List the rows after this one
    #[arg(long, value_name = "ID")]
    after: Option<String>,

    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    format: Format,
}

/// What can be done.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
enum Action {
    /// List the rows, with the reason of each
    List,
    /// Show all that is known of a row
    Show,
    /// Try rows again: those that can be used by now are a batch of their own
    Retry,
    /// Forget a row: it stays out of every view until it changes in PostgreSQL
    Drop,
}

impl QuarantineArgs {
    fn ask(&self) -> anyhow::Result<Ask> {
        let one = || match self.ids.as_slice() {
            [id] => Ok(id.clone()),
            _ => bail!("name one row, as `feedmill quarantine list` prints it"),
        };
        ensure!(self.action != Action::List || self.ids.is_empty(), "`list` takes no ids; `show` shows a row");
        ensure!(!self.all || self.action == Action::Retry, "--all is for `retry`");
        Ok(match self.action {
            Action::List => Ask::List { after: self.after.clone(), limit: self.limit },
            Action::Show => Ask::Show(one()?),
            Action::Retry => {
                ensure!(self.all || !self.ids.is_empty(), "name the rows to try again, or say --all");
                Ask::Retry(self.ids.clone())
            }
            Action::Drop => Ask::Drop(one()?),
        })
    }
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
    let (ask, action) = (args.ask()?, args.action);
    let (mut rows, mut held) = (0, 0);
    control::ask(&settings.data, &Request::Quarantine(ask), |answer| {
        let Answer::Quarantined(row) = answer else { return };
        rows += 1;
        held += usize::from(row.state == "held");
        match args.format {
            Format::Json => println!("{}", serde_json::to_string(&row).unwrap_or_default()),
            Format::Table if action == Action::Show => {
                println!("{}", serde_json::to_string_pretty(&row).unwrap_or_default())
            }
            Format::Table => print_line(&row),
        }
    })
    .await?;
    if args.format == Format::Table && rows == 0 {
        println!("no row is in quarantine");
    }
    Ok(if action == Action::Retry && held > 0 { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

fn print_line(row: &Told) {
    let operation = row.operation.as_deref().unwrap_or_default();
    println!("{:<32} {:<8} {:<7} {}", row.id, row.state, operation, row.reason.as_deref().unwrap_or_default());
}
