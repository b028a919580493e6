//! `feedmill validate`: whether the source and the data folder are as a start needs them, and what mends them.
//!
//! ```text
//!   address ── reached? ─┬─ yes ── the checks of the source (connectors::postgres::validate) ─┐
//!                        └─ no private cluster runs ── what a start would do                  ├── a line each
//!   data folder ── writable, room, format of the change log ──────────────────────────────────┘
//! ```
//!
//! Nothing is changed, so it can run before the first start and beside a running system.

mod folder;

use std::process::ExitCode;

use clap::Args;
use feedmill_connectors::postgres::validate::{self, Finding, Outcome, Usage};
use feedmill_connectors::postgres::{Cluster, Source};

use crate::config::Settings;
use crate::up::{SLOT, private_source};
use crate::verify::Format;

/// What `feedmill validate` takes beside the settings.
#[derive(Args, Clone, Debug)]
pub struct ValidateArgs {
    /// How the result is printed
    #[arg(long, value_enum, default_value_t = Format::Table)]
    pub format: Format,
}

/// Runs every check and prints what it found. Fails when one of them does.
pub async fn run(args: ValidateArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let mut findings = of_source(settings).await;
    findings.extend(folder::findings(&settings.data));
    for finding in &findings {
        match args.format {
            Format::Table => print(finding),
            Format::Json => println!("{}", serde_json::to_string(finding)?),
        }
    }
    let count = |outcome| findings.iter().filter(|finding| finding.outcome == outcome).count();
    let (failed, warned) = (count(Outcome::Fail), count(Outcome::Warn));
    if args.format == Format::Table {
        println!("{} checks: {failed} fail, {warned} warn", findings.len());
    }
    Ok(if failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn print(finding: &Finding) {
    println!("{:<30} {:<5} {}", finding.check, finding.outcome, finding.found.replace('\n', " "));
    if let Some(mend) = &finding.mend {
        println!("{:<36} mend: {mend}", "");
    }
}

async fn of_source(settings: &Settings) -> Vec<Finding> {
    let usage = Usage { slot: SLOT, pool_size: settings.pool_size, copied: folder::log(&settings.data).exists() };
    let source = match &settings.database_url {
        Some(url) => url.parse::<Source>(),
        None => match private_source(&settings.data) {
            Some(source) if source.connect("feedmill-validate").await.is_ok() => Ok(source),
            _ => return vec![of_private_cluster(settings).await],
        },
    };
    match source {
        Ok(source) => validate::source(&source, usage).await,
        Err(error) => vec![Finding::fail("address", error.to_string(), "set --database-url right")],
    }
}

/// No private cluster runs: what a start would do.
async fn of_private_cluster(settings: &Settings) -> Finding {
    const CHECK: &str = "private cluster";
    let folder = settings.data.join("postgres");
    match Cluster::prospect(&folder).await {
        Ok(prospect) => {
            let what = if prospect.exists { "start the one that is" } else { "make a new one" };
            let found = format!(
                "none runs; `feedmill up` will {what} in {}, with PostgreSQL {}; its checks can be run then",
                folder.display(),
                prospect.version
            );
            Finding::ok(CHECK, found)
        }
        Err(error) => {
            let mend = "install PostgreSQL: apt-get install postgresql, or name one that runs with --database-url";
            Finding::fail(CHECK, error.to_string(), mend)
        }
    }
}
