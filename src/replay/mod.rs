//! `feedmill replay`: stores that are built again from the change log, in the running process.
//!
//! ```text
//!   views ─► their stores ─► marker, durable ─► dataflows end ─► stores emptied ─► dataflows begin anew: load, tail
//!                               └─ the next start goes on ◄─ whatever kills it ───────────┴─► caught up: marker goes
//! ```
//!
//! What processes of `feedmill run` write is emptied while none of them runs (`--publish` and `--store` name it), and filled by
//! their next start: a load from the rows in Kafka, as it is for a store that is new.
//!
//! Nothing is asked of PostgreSQL, and capture goes on meanwhile. Home timelines are filled with the entries of the month,
//! and merged until then; reads that need facts or rows that are not there are told to come again.

mod marker;
mod server;

pub use marker::Marker;
pub use server::{Replay, Replayer};

use std::collections::BTreeSet;
use std::io::IsTerminal;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use clap::Args;
use clap::builder::PossibleValuesParser;
use feedmill_api::Step;
use feedmill_model::{Phase, View};
use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};

use crate::config::Settings;
use crate::control::{self, Answer, Request};

/// How often a line is printed where there is no terminal.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const BAR: &str = "{msg} {wide_bar} {human_pos} of about {human_len} rows, {percent} %, {eta} left";

/// What `feedmill replay` takes beside the settings.
#[derive(Args, Clone, Debug)]
pub struct ReplayArgs {
    /// Build the stores of these views again: facts, rows, home, search, reactions, or any view that `feedmill verify` lists [default: all]
    #[arg(value_name = "VIEW", value_parser = PossibleValuesParser::new(names()), hide_possible_values = true)]
    pub views: Vec<String>,
}

/// What may be named: the stores, and the views that are in them.
fn names() -> Vec<&'static str> {
    let views =
        View::ALL.into_iter().map(View::name).filter(|view| Phase::ALL.iter().all(|phase| phase.name() != *view));
    Phase::ALL.into_iter().map(Phase::name).chain(views).collect()
}

/// The stores that hold what is named; all, if nothing is.
pub fn stores_of(named: &[String]) -> anyhow::Result<Vec<Phase>> {
    if named.is_empty() {
        return Ok(Phase::ALL.to_vec());
    }
    let mut stores = BTreeSet::new();
    for name in named {
        let of_view = View::ALL.into_iter().filter(|view| view.name() == name).map(View::phase);
        let mut phases = Phase::ALL.into_iter().filter(|phase| phase.name() == name).chain(of_view);
        let phase = phases.next();
        stores.insert(
            phase.with_context(|| format!("there is no view `{name}`; these there are: {}", names().join(", ")))?,
        );
    }
    Ok(stores.into_iter().collect())
}

/// What people call these stores.
pub fn told(stores: &[Phase]) -> String {
    stores.iter().map(|phase| phase.name()).collect::<Vec<_>>().join(", ")
}

/// Asks the running process, and prints how far it is. Stores of several processes are emptied for their next start.
pub async fn run(args: ReplayArgs, settings: &Settings) -> anyhow::Result<ExitCode> {
    let phases = stores_of(&args.views)?;
    let stores = told(&phases);
    if settings.store.is_some() && settings.publish.is_some() && !control::answers(&settings.data).await {
        let settings = settings.clone();
        tokio::task::spawn_blocking(move || crate::run::empty(&settings, &phases)).await??;
        println!("{stores}: emptied; the next start of `feedmill run` fills them from Kafka");
        return Ok(ExitCode::SUCCESS);
    }
    let mut meter = Meter::new(&stores);
    let request = Request::Replay { views: args.views };
    let asked = control::ask(&settings.data, &request, |answer| {
        if let Answer::Replaying(step) = answer {
            meter.tell(&step);
        }
    });
    let outcome = asked.await;
    let Meter { bar, last, begun, .. } = meter;
    if let Some(bar) = bar {
        bar.finish_and_clear();
    }
    outcome?;
    let last = last.context("the running process did not tell how far it was; is it of another version?")?;
    ensure!(last.done, "the running process did not tell that it was done; is it of another version?");
    println!("{stores}: {} in {:.1} s", last.detail, begun.elapsed().as_secs_f64());
    Ok(ExitCode::SUCCESS)
}

/// A bar on a terminal, a line now and then where there is none.
struct Meter {
    begun: Instant,
    bar: Option<ProgressBar>,
    said: Option<Instant>,
    last: Option<Step>,
}

impl Meter {
    fn new(stores: &str) -> Self {
        let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = || ProgressBar::new(0).with_style(style).with_message(stores.to_owned());
        let bar = std::io::stderr().is_terminal().then(bar);
        Meter { begun: Instant::now(), bar, said: None, last: None }
    }

    fn tell(&mut self, step: &Step) {
        self.last = Some(step.clone());
        let total = step.total.unwrap_or(0).max(step.completed);
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(step.completed);
            return;
        }
        if step.done || self.said.is_some_and(|said| said.elapsed() < LINE_INTERVAL) {
            return;
        }
        self.said = Some(Instant::now());
        let left = step
            .eta_seconds
            .map_or(String::new(), |left| format!(", {} left", HumanDuration(Duration::from_secs(left))));
        println!(
            "{} of about {} rows, {:.0} %{left}",
            HumanCount(step.completed),
            HumanCount(total),
            step.percent.unwrap_or(0.0)
        );
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_view_stands_for_its_store() {
        let stores = |named: &[&str]| stores_of(&named.iter().map(ToString::to_string).collect::<Vec<_>>());
        assert_eq!(stores(&[]).unwrap(), Phase::ALL);
        assert_eq!(stores(&["home"]).unwrap(), [Phase::Home]);
        assert_eq!(stores(&["tweet", "blocks", "counts", "rows"]).unwrap(), [Phase::Facts, Phase::Rows]);
        let error = stores(&["tweet", "likes"]).unwrap_err().to_string();
        assert!(error.contains("no view `likes`") && names().iter().all(|name| error.contains(name)), "{error}");
        for name in names() {
            assert_eq!(stores(&[name]).unwrap().len(), 1, "{name}");
        }
    }
}
