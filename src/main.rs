//! Feedmill turns PostgreSQL's write-ahead log into feeds.

mod capture;
mod config;
mod control;
mod exclusion;
mod import;
mod load;
mod log;
mod quarantine;
mod replay;
mod resync;
mod run;
mod serve;
mod status;
mod up;
mod validate;
mod verify;

use std::cell::OnceCell;
use std::process::ExitCode;

use anyhow::Context;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::config::Settings;
use crate::log::Log;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Feeds from PostgreSQL's write-ahead log: timelines, followers and counts, kept in step with every commit
#[derive(Parser)]
#[command(name = "feedmill", version, arg_required_else_help = true)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run everything on this machine: PostgreSQL, capture, dataflows, stores, HTTP API
    Up {
        #[command(flatten)]
        settings: Settings,
    },
    /// Capture what PostgreSQL commits and publish it to Kafka, for views that are derived elsewhere
    Capture {
        #[command(flatten)]
        settings: Settings,
    },
    /// Derive the views from Kafka into a CQL cluster and Elasticsearch, as one process of several
    Run {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: run::RunArgs,
    },
    /// Serve the API from a CQL cluster and Elasticsearch that others fill; any number of processes side by side
    Serve {
        #[command(flatten)]
        settings: Settings,
    },
    /// Import users, follows, tweets and likes from CSV files into PostgreSQL
    Import {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: import::ImportArgs,
    },
    /// Generate load on a running system and measure it
    Load {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: load::LoadArgs,
    },
    /// Show where PostgreSQL, the change log, the dataflows and each store stand
    Status {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: status::StatusArgs,
    },
    /// Look at rows that cannot be used, try them again, or forget them
    Quarantine {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: quarantine::QuarantineArgs,
    },
    /// Compare every view of a running system with its SQL definition
    Verify {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: verify::VerifyArgs,
    },
    /// Check the source and the data folder, and say what mends them
    Validate {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: validate::ValidateArgs,
    },
    /// Compare the change log of a running system with the database and take over the difference
    Resync {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: resync::ResyncArgs,
    },
    /// Build stores of a running system again from its change log
    Replay {
        #[command(flatten)]
        settings: Settings,
        #[command(flatten)]
        args: replay::ReplayArgs,
    },
    /// Show the settings in force
    Config {
        #[command(flatten)]
        settings: Settings,
    },
}

fn main() -> ExitCode {
    #[cfg(feature = "failpoints")]
    feedmill_model::failpoint::configure();
    let matches = Cli::command().get_matches();
    match execute(&matches) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("feedmill: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn execute(matches: &ArgMatches) -> anyhow::Result<ExitCode> {
    let cli = Cli::from_arg_matches(matches).unwrap_or_else(|error| error.exit());
    let (_, matches) = matches.subcommand().context("no command was given")?;
    // What it still holds is written when this ends.
    let log = OnceCell::new();
    let resolve = |settings: Settings| -> anyhow::Result<Settings> {
        let settings = settings.resolve(matches)?;
        // One command resolves its settings, once.
        let _ = log.set(Log::start(&settings)?);
        if let Some(flag) = settings.shows_password(matches) {
            tracing::warn!(
                "everybody on this machine can read the password of --{flag} in the list of processes: set \
                 FEEDMILL_{} instead, or put it into the file of --config, or into ~/.pgpass",
                flag.to_uppercase().replace('-', "_")
            );
        }
        Ok(settings)
    };
    let runtime =
        tokio::runtime::Builder::new_multi_thread().enable_all().build().context("could not start threads")?;
    let done = |()| ExitCode::SUCCESS;
    let outcome = match cli.command {
        Command::Up { settings } => runtime.block_on(up::run(resolve(settings)?)).map(done),
        Command::Capture { settings } => runtime.block_on(capture::run(resolve(settings)?)).map(done),
        Command::Run { settings, args } => runtime.block_on(run::run(args, resolve(settings)?)).map(done),
        Command::Serve { settings } => runtime.block_on(serve::run(resolve(settings)?)).map(done),
        Command::Import { settings, args } => {
            let source = up::running_source(&resolve(settings)?)?;
            runtime.block_on(import::run(args, source)).map(done)
        }
        Command::Load { settings, args } => {
            let settings = resolve(settings)?;
            runtime.block_on(async { load::run(args, up::running_source(&settings)?, &settings).await }).map(done)
        }
        Command::Status { settings, args } => runtime.block_on(status::run(args, &resolve(settings)?)),
        Command::Quarantine { settings, args } => runtime.block_on(quarantine::run(args, &resolve(settings)?)),
        Command::Verify { settings, args } => runtime.block_on(verify::run(args, &resolve(settings)?)),
        Command::Validate { settings, args } => runtime.block_on(validate::run(args, &resolve(settings)?)),
        Command::Resync { settings, args } => runtime.block_on(resync::run(args, &resolve(settings)?)),
        Command::Replay { settings, args } => runtime.block_on(replay::run(args, &resolve(settings)?)),
        Command::Config { settings } => resolve(settings)?.print().map(done),
    };
    // What still blocks (a password being hashed, a terminal being read) must not keep the process.
    runtime.shutdown_timeout(std::time::Duration::from_secs(1));
    outcome
}
