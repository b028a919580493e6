//! How many entries the home store has applied: its counter in `/metrics`, watched. A process that only serves has none, and is
//! taken to have delivered nothing.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, ensure};
use tokio::time::{Instant, MissedTickBehavior, interval};
use tokio_util::sync::CancellationToken;

use super::client::Client;

/// Counter of entries that the home store applied.
const COUNTER: &str = "feedmill_home_deliveries_total";
/// So often it is read: so exact is the time of the last delivery.
const EVERY: Duration = Duration::from_millis(100);
/// When nothing came for this long, all has been delivered. The system sets the counter five times a second.
const QUIET: Duration = Duration::from_secs(1);
/// Deliveries that come later are an error.
const DRAIN_MAX: Duration = Duration::from_secs(60);

/// What was delivered in a run.
#[derive(Clone, Copy, Debug)]
pub struct Delivered {
    /// Entries applied.
    pub entries: u64,
    /// When the last change of the counter was seen.
    pub last: Instant,
    /// Whether the counter came to rest.
    pub drained: bool,
}

/// The counter's value now; 0 where there is none.
async fn counter(client: &Client) -> anyhow::Result<u64> {
    let answer = client.get("/metrics", None).await.context("could not read /metrics")?;
    let text = str::from_utf8(&answer.body).context("/metrics is not UTF-8")?;
    Ok(value(text).unwrap_or(0))
}

fn value(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.split(['{', ' ']).next() == Some(COUNTER))?;
    line.rsplit(' ').next()?.parse::<f64>().ok().map(|value| value as u64)
}

/// Watches the counter until it rests after `ended`. With a token that is cancelled already it waits for the rest.
pub async fn watch(client: Arc<Client>, ended: CancellationToken) -> anyhow::Result<Delivered> {
    let before = counter(&client).await?;
    let mut tick = interval(EVERY);
    tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
    let (mut value, mut last) = (before, Instant::now());
    let mut end = None;
    loop {
        tick.tick().await;
        let now = counter(&client).await?;
        ensure!(now >= value, "{COUNTER} went from {value} to {now}: the system was started again meanwhile");
        if now > value {
            (value, last) = (now, Instant::now());
        }
        if ended.is_cancelled() {
            let end: Instant = *end.get_or_insert_with(Instant::now);
            let drained = end.max(last).elapsed() > QUIET;
            if drained || end.elapsed() > DRAIN_MAX {
                return Ok(Delivered { entries: value - before, last, drained });
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_counter_is_found_among_others() {
        let text = "# TYPE feedmill_home_deliveries_total counter\nfeedmill_home_deliveries_total_other 3\n\
                    feedmill_home_deliveries_total 1200\nanother 5\n";
        assert_eq!(value(text), Some(1_200));
        assert_eq!(value("another 5\n"), None);
    }
}
