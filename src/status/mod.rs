//! `feedmill status`: where everything stands, asked of the running process over its control socket.

mod down;
mod table;

use std::io::{IsTerminal, Write};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::Context;
use clap::Args;
use feedmill_api::Report;
use tokio::time::{MissedTickBehavior, interval};

use crate::config::Settings;
use crate::control::{self, Answer, Request};

/// How often `--watch` asks.
const REFRESH: Duration = Duration::from_secs(1);
/// Terminal: to the upper left corner; erase the rest of the line; erase what is below.
const HOME: &str = "\x1b[H";
const ERASE_LINE: &str = "\x1b[K";
const ERASE_BELOW: &str = "\x1b[J";

/// What `feedmill status` takes beside the settings.
#[derive(Args, Clone, Debug)]
pub struct StatusArgs {
    /// Show it again every second, in place on a terminal, until Ctrl-C
    #[arg(long)]
    pub watch: bool,

    /// How it is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Form of the output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, clap::ValueEnum)]
pub enum Format {
    /// A line a stage.
    Table,
    /// One JSON object, the one that `/health` answers.
    Json,
}

/// Prints where everything stands. The exit code is 1 when no process runs.
pub async fn run(args: StatusArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut again = interval(REFRESH);
    again.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let in_place = args.watch && args.format == Format::Table && std::io::stdout().is_terminal();
    loop {
        again.tick().await;
        let (text, code) = match control::answers(&settings.data).await {
            true => (told(args.format, &ask(settings).await?)?, ExitCode::SUCCESS),
            false => (down::told(args.format, &settings.data)?, ExitCode::FAILURE),
        };
        let shown = show(&text, in_place);
        match shown {
            // Whoever read this has seen enough.
            Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => return Ok(code),
            shown => shown.context("could not print the status")?,
        }
        if !args.watch {
            return Ok(code);
        }
    }
}

async fn ask(settings: &Settings) -> anyhow::Result<Report> {
    let mut told = None;
    control::ask(&settings.data, &Request::Status, |answer| {
        if let Answer::Status(report) = answer {
            told = Some(*report);
        }
    })
    .await?;
    told.context("the running process did not tell its status; is it of another version than this command?")
}

fn told(format: Format, report: &Report) -> anyhow::Result<String> {
    Ok(match format {
        Format::Json => serde_json::to_string(report)? + "\n",
        Format::Table => table::of(report),
    })
}

fn show(text: &str, in_place: bool) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    if in_place {
        write!(out, "{HOME}")?;
        for line in text.lines() {
            writeln!(out, "{line}{ERASE_LINE}")?;
        }
        write!(out, "{ERASE_BELOW}")?;
    } else {
        write!(out, "{text}")?;
    }
    out.flush()
}
