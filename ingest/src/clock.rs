//! When the log mints a time, and when it refuses to.
//!
//! A time is `max(now, last + 1)`, so it only ever grows. It decides what windows hold and what has aged, so a clock that
//! is wrong by more than an hour must not get into the log, where it would stay:
//!
//! - *The clock was set back*: `last + 1` lies more than an hour ahead of now. Times would creep by a millisecond a batch
//!   until now has caught up.
//! - *The clock runs ahead of the source's*: entries would age before their time, and after the clock is set right the
//!   log would be in the case above.
//!
//! How old the newest commit is does not tell the second: after an outage commits are as old as the outage was long, and
//! with a right clock they must be taken. What tells it is the source's clock: if the source says `s` when it was asked
//! after `t` by our clock, then our clock is ahead by at least `t − s`, however long the answer took.

use feedmill_model::{Lsn, Time, Timestamp};

use crate::LogError;

/// A clock that is further off than this is wrong.
const OFF_MAX_MS: u64 = 3_600_000;

/// The next time. `ahead_ms` is by how much, at the least, this machine's clock is known to be ahead of the source's.
pub(crate) fn mint(last: Time, now_ms: u64, ahead_ms: u64, lsn: Lsn) -> Result<Time, LogError> {
    if ahead_ms > OFF_MAX_MS {
        return Err(LogError::ClockAhead { lsn, ahead_ms });
    }
    let time = now_ms.max(last.saturating_add(1));
    if time > now_ms.saturating_add(OFF_MAX_MS) {
        return Err(LogError::ClockBack { lsn, time, now_ms });
    }
    Ok(time)
}

/// By how much, at the least, this machine's clock is ahead of the source's, which said `source` when it was asked after
/// `asked_ms`.
pub(crate) fn ahead_ms(source: Timestamp, asked_ms: u64) -> u64 {
    let source_ms = u64::try_from(source.saturating_add(999) / 1_000).unwrap_or(0);
    asked_ms.saturating_sub(source_ms)
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: u64 = OFF_MAX_MS;
    const NOW: u64 = 1_700_000_000_000;

    #[test]
    fn times_grow_by_the_clock_or_by_one() {
        assert_eq!(mint(NOW - 5, NOW, 0, Lsn(1)).expect("minted"), NOW);
        assert_eq!(mint(NOW, NOW, 0, Lsn(1)).expect("minted"), NOW + 1);
        assert_eq!(mint(NOW + HOUR - 1, NOW, 0, Lsn(1)).expect("minted"), NOW + HOUR);
    }

    #[test]
    fn a_clock_that_is_an_hour_off_is_refused() {
        assert!(matches!(mint(NOW + HOUR, NOW, 0, Lsn(1)), Err(LogError::ClockBack { .. })));
        assert!(mint(NOW, NOW, HOUR, Lsn(1)).is_ok());
        assert!(matches!(mint(NOW, NOW, HOUR + 1, Lsn(1)), Err(LogError::ClockAhead { .. })));
    }

    #[test]
    fn a_slow_answer_does_not_look_like_a_fast_clock() {
        let source = |ms: u64| Timestamp::try_from(ms * 1_000).expect("fits");
        assert_eq!(ahead_ms(source(NOW + 2 * HOUR), NOW), 0);
        assert_eq!(ahead_ms(source(NOW), NOW + 2 * HOUR), 2 * HOUR);
        assert_eq!(ahead_ms(-1, NOW), NOW);
    }
}
