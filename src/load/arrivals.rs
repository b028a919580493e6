//! When what is sent is due: by the clock alone, whatever became of what was sent before (an open loop).
//!
//! A loop that waits for answers sends less when the system is slow, and so hides how slow it is. Here each request has its
//! time, its latency counts from that time, and one that cannot even be sent (too many wait for answers) is an error.

use std::ops::Range;
use std::time::Duration;

use tokio::time::{Instant, sleep_until};

/// No sleep is shorter: what is due within it is sent together.
const PAUSE: Duration = Duration::from_millis(1);

/// Requests at a constant rate for a time.
#[derive(Clone, Debug)]
pub struct Arrivals {
    per_s: f64,
    total: u64,
    next: u64,
}

impl Arrivals {
    /// `per_s` requests a second; the last one is due before `lasting` is over.
    pub fn new(per_s: f64, lasting: Duration) -> Self {
        Arrivals { per_s, total: (per_s * lasting.as_secs_f64()).round() as u64, next: 0 }
    }

    /// When request `n` is due, after the start.
    pub fn at(&self, n: u64) -> Duration {
        Duration::from_secs_f64(n as f64 / self.per_s)
    }

    /// The requests that have become due until `elapsed` after the start, each given once.
    pub fn due(&mut self, elapsed: Duration) -> Range<u64> {
        let first = self.next;
        let until = ((elapsed.as_secs_f64() * self.per_s) as u64 + 1).min(self.total);
        self.next = until.max(first);
        first..self.next
    }

    /// Calls `send` with the number and the time of each request when it is due, and returns after the last.
    pub async fn drive(mut self, start: Instant, mut send: impl FnMut(u64, Instant)) {
        loop {
            for n in self.due(start.elapsed()) {
                send(n, start + self.at(n));
            }
            if self.next == self.total {
                return;
            }
            sleep_until((start + self.at(self.next)).max(Instant::now() + PAUSE)).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_request_is_due_once_and_at_its_time() {
        for (per_s, lasting_ms) in [(2_000.0, 3_000), (0.5, 10_000), (333.3, 1_000), (7.0, 0)] {
            let mut arrivals = Arrivals::new(per_s, Duration::from_millis(lasting_ms));
            let total = arrivals.total;
            assert_eq!(total, (per_s * lasting_ms as f64 / 1_000.0).round() as u64);
            let mut seen = 0;
            // Looked at irregularly, as a busy machine does.
            for step in 0..=lasting_ms {
                if step % 7 == 3 && step != lasting_ms {
                    continue;
                }
                let elapsed = Duration::from_millis(step);
                let due = arrivals.due(elapsed);
                assert_eq!(due.start, seen);
                for n in due.clone() {
                    assert!(arrivals.at(n) <= elapsed + Duration::from_nanos(1), "{n} of {per_s} at {elapsed:?}");
                }
                seen = due.end;
                if seen < total {
                    assert!(
                        arrivals.at(seen) + Duration::from_nanos(1) >= elapsed,
                        "{seen} of {per_s} is late at {elapsed:?}"
                    );
                }
            }
            assert_eq!(seen, total);
        }
    }

    #[tokio::test]
    async fn what_is_late_is_sent_at_once_and_keeps_its_time() {
        let start = Instant::now() - Duration::from_secs(10);
        let mut sent = Vec::new();
        Arrivals::new(100.0, Duration::from_secs(1)).drive(start, |n, at| sent.push((n, at - start))).await;
        assert_eq!(sent.len(), 100);
        assert!(sent.iter().zip(0..).all(|(sent, n)| *sent == (n, Duration::from_secs_f64(n as f64 / 100.0))));
    }
}
