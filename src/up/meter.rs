//! How far a copy is: a bar on a terminal, a line now and then where there is none, metrics, and the copy's step in
//! `status` and `/ready`.

use std::io::IsTerminal;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use indicatif::{HumanCount, HumanDuration, ProgressBar, ProgressStyle};
use tokio::time::Instant;

use super::stations::Stations;

/// How often a line is logged, or the bar is drawn.
const LINE_INTERVAL: Duration = Duration::from_secs(5);
const BAR_INTERVAL: Duration = Duration::from_millis(200);
const BAR: &str = "{msg} {wide_bar} {human_pos} of about {human_len} rows, {percent} %, {eta} left";

/// Counts the rows of one copy.
pub struct Meter {
    /// By the server's statistics.
    expected: u64,
    copied: AtomicU64,
    begun: Instant,
    stations: Arc<Stations>,
    /// `None` where standard error is no terminal.
    bar: Option<ProgressBar>,
}

impl Meter {
    /// A copy begins of about `expected` rows.
    pub fn begin(expected: u64, connections: usize, stations: &Arc<Stations>) -> Self {
        stations.copy().begin(Some(expected), format!("tables into the change log, over {connections} connections"));
        metrics::gauge!("feedmill_copy_rows_expected").set(expected as f64);
        tracing::info!("copying about {} rows over {connections} connections", HumanCount(expected));
        let style = ProgressStyle::with_template(BAR).unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = || ProgressBar::new(expected).with_style(style).with_message("copying");
        let bar = std::io::stderr().is_terminal().then(bar);
        Meter { expected, copied: AtomicU64::new(0), begun: Instant::now(), stations: Arc::clone(stations), bar }
    }

    /// So many rows more have been taken.
    pub fn add(&self, rows: usize) {
        self.copied.fetch_add(rows as u64, Ordering::Relaxed);
        self.stations.copy().add(rows as u64);
        metrics::counter!("feedmill_copy_rows_total").increment(rows as u64);
    }

    /// Waits until it is time to tell again.
    pub async fn interval(&self) {
        tokio::time::sleep(if self.bar.is_some() { BAR_INTERVAL } else { LINE_INTERVAL }).await;
    }

    /// Tells how far it is.
    pub fn tell(&self) {
        let copied = self.copied.load(Ordering::Relaxed);
        if let Some(bar) = &self.bar {
            bar.set_length(self.expected.max(copied));
            bar.set_position(copied);
            return;
        }
        let seconds = self.begun.elapsed().as_secs_f64().max(f64::MIN_POSITIVE);
        let left = self.expected.saturating_sub(copied) as f64 * seconds / (copied as f64).max(1.0);
        tracing::info!(
            "copied {} of about {} rows ({} %), {} rows/s, {} left",
            HumanCount(copied),
            HumanCount(self.expected.max(copied)),
            100 * copied / self.expected.max(copied).max(1),
            HumanCount((copied as f64 / seconds) as u64),
            HumanDuration(Duration::from_secs_f64(left.min(1e9))),
        );
    }

    /// All is copied.
    pub fn end(&self) {
        if let Some(bar) = &self.bar {
            bar.finish_and_clear();
        }
    }
}
