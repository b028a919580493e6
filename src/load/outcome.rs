//! What was measured, and how it is shown.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::Context;
use hdrhistogram::Histogram;
use parking_lot::Mutex;
use serde::Serialize;

use super::large::LargeOutcome;

/// Longer ones count as this.
const LATENCY_MAX: Duration = Duration::from_secs(600);

/// A histogram of latencies, filled by many tasks.
#[derive(Debug)]
pub struct Latencies(Mutex<Histogram<u64>>);

impl Latencies {
    /// An empty one, exact to three digits.
    pub fn new() -> anyhow::Result<Self> {
        let histogram = Histogram::new_with_bounds(1, LATENCY_MAX.as_micros() as u64, 3);
        Ok(Latencies(Mutex::new(histogram.context("could not make a histogram")?)))
    }

    /// Counts one.
    pub fn record(&self, latency: Duration) {
        let micros = u64::try_from(latency.as_micros()).unwrap_or(u64::MAX);
        self.0.lock().saturating_record(micros);
    }

    /// What it holds; `None` if that is nothing.
    pub fn summary(&self) -> Option<Summary> {
        let histogram = self.0.lock();
        let ms = |micros: u64| micros as f64 / 1_000.0;
        (!histogram.is_empty()).then(|| Summary {
            p50: ms(histogram.value_at_quantile(0.5)),
            p90: ms(histogram.value_at_quantile(0.9)),
            p99: ms(histogram.value_at_quantile(0.99)),
            max: ms(histogram.max()),
            count: histogram.len(),
        })
    }
}

/// Quantiles in milliseconds.
#[derive(Clone, Copy, Debug, Serialize)]
pub struct Summary {
    /// The median.
    pub p50: f64,
    /// Of 10, 9 are at most this.
    pub p90: f64,
    /// Of 100, 99 are at most this.
    pub p99: f64,
    /// The greatest.
    pub max: f64,
    /// How many there were.
    pub count: u64,
}

/// What went wrong, by kind.
#[derive(Debug, Default)]
pub struct Errors(Mutex<BTreeMap<String, Failures>>);

/// Errors of one kind.
#[derive(Clone, Debug, Serialize)]
pub struct Failures {
    /// How many.
    pub count: u64,
    /// The first one.
    pub example: String,
}

impl Errors {
    /// Counts one; the first of its kind is the example.
    pub fn count(&self, kind: &str, example: impl FnOnce() -> String) {
        let mut kinds = self.0.lock();
        match kinds.get_mut(kind) {
            Some(failures) => failures.count += 1,
            None => drop(kinds.insert(kind.to_owned(), Failures { count: 1, example: example() })),
        }
    }

    /// All kinds.
    pub fn by_kind(&self) -> BTreeMap<String, Failures> {
        self.0.lock().clone()
    }
}

/// The result of a run.
#[derive(Debug, Serialize)]
pub struct Outcome {
    /// Committed posts a second, from the first one due to the last one committed.
    pub posts_per_s: f64,
    /// Entries that the home store applied a second, from the first post to the last delivery.
    pub deliveries_per_s: f64,
    /// From the answer to a commit until a follower's timeline shows the post.
    pub visible_ms: Option<Summary>,
    /// Reads of timelines, from the time when they were due.
    pub read_ms: Option<Summary>,
    /// Posts, from the time when they were due until their commit was answered.
    pub post_ms: Option<Summary>,
    /// Everything that went wrong.
    pub errors: u64,
    /// The same by kind.
    pub errors_by_kind: BTreeMap<String, Failures>,
    /// Committed posts.
    pub posts: u64,
    /// The large transaction, if there was one.
    pub large: Option<LargeOutcome>,
    /// Entries that the home store applied.
    pub deliveries: u64,
    /// Mean pushed followers of a committed post.
    pub followers_per_post: f64,
    /// Seconds from the first post to the last delivery.
    pub seconds: f64,
}

impl Outcome {
    /// Prints it for people.
    pub fn print(&self) {
        println!("{:<22} {:>14.1}", "posts/s", self.posts_per_s);
        println!("{:<22} {:>14}", "posts", self.posts);
        if self.deliveries > 0 {
            println!("{:<22} {:>14.1}", "deliveries/s", self.deliveries_per_s);
            println!("{:<22} {:>14}", "deliveries", self.deliveries);
        }
        println!("{:<22} {:>14.1}", "followers a post", self.followers_per_post);
        println!("{:<22} {:>14.1}", "seconds", self.seconds);
        println!();
        println!("{:<22} {:>10} {:>10} {:>10} {:>10} {:>10}", "ms", "p50", "p90", "p99", "max", "count");
        let of_large = self
            .large
            .map(|large| [("beside the large one", large.beside_ms), ("behind the large one", large.behind_ms)]);
        let all = [("commit to visible", self.visible_ms), ("read a timeline", self.read_ms), ("post", self.post_ms)];
        for (what, summary) in all.into_iter().chain(of_large.into_iter().flatten()) {
            match summary {
                Some(Summary { p50, p90, p99, max, count }) => {
                    println!("{what:<22} {p50:>10.1} {p90:>10.1} {p99:>10.1} {max:>10.1} {count:>10}");
                }
                None => println!("{what:<22} {:>10}", "none"),
            }
        }
        if let Some(LargeOutcome { of, rows, written_s, visible_s, .. }) = self.large {
            println!();
            println!(
                "one transaction of {rows} {}: written in {written_s:.1} s, visible {visible_s:.1} s after its commit",
                of.name()
            );
        }
        println!();
        println!("{:<22} {:>14}", "errors", self.errors);
        for (kind, Failures { count, example }) in &self.errors_by_kind {
            println!("  {kind:<20} {count:>14}  {example}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_are_milliseconds() {
        let latencies = Latencies::new().unwrap();
        assert!(latencies.summary().is_none());
        (1..=100).for_each(|ms| latencies.record(Duration::from_millis(ms)));
        latencies.record(Duration::from_secs(100_000));
        let summary = latencies.summary().unwrap();
        assert!((summary.p50 - 51.0).abs() < 0.1 && (summary.p99 - 100.0).abs() < 0.1, "{summary:?}");
        assert!((summary.max / 600_000.0 - 1.0).abs() < 0.01, "{summary:?}");
    }

    #[test]
    fn errors_are_counted_by_kind_with_the_first_as_example() {
        let errors = Errors::default();
        errors.count("one", || "first".to_owned());
        errors.count("one", || "second".to_owned());
        let by_kind = errors.by_kind();
        assert_eq!((by_kind["one"].count, by_kind["one"].example.as_str()), (2, "first"));
    }
}
