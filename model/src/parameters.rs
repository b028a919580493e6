//! The settings that decide what the views contain. They are part of a view's definition: a store that was filled under
//! one value is not valid under another.

use serde::{Deserialize, Serialize};

/// Settings of the views.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameters {
    /// Days for which an entry stays in pushed home timelines.
    pub fanout_days: u32,
    /// Days for which a user counts as active after the last day with activity.
    pub active_days: u32,
    /// Followers at which an account becomes popular, and so hot; below 0.8 of it, it stops being so.
    pub hot_followers: u64,
    /// Changes of entries or follows in one batch above which it is not fanned out.
    pub bulk_rows: usize,
    /// Entries at which a home timeline is cut.
    pub home_max: usize,
    /// Entries that a cut leaves.
    pub home_keep: usize,
    /// Accounts followed of which timelines are merged at read.
    pub following_max: usize,
}

impl Default for Parameters {
    fn default() -> Self {
        Parameters {
            fanout_days: 30,
            active_days: 30,
            hot_followers: 10_000,
            bulk_rows: 100_000,
            home_max: 1_000,
            home_keep: 800,
            following_max: 5_000,
        }
    }
}

impl Parameters {
    /// [`Self::fanout_days`] in milliseconds.
    pub const fn fanout_ms(&self) -> u64 {
        self.fanout_days as u64 * 86_400_000
    }

    /// Entries with an id at or below this are not part of any pushed timeline at `time`.
    pub const fn horizon(&self, time: crate::Time) -> i64 {
        crate::floor_of(time.saturating_sub(self.fanout_ms()))
    }

    /// The first full minute, as a time, at which `user`, last active on `day`, is no longer active.
    ///
    /// `day` counts days since 1970. Each user's limit falls at another second of the day, so that they do not all
    /// expire at once; it takes effect at the full minute, `minute(t) < minute(limit)`.
    pub const fn active_until(&self, user: i64, day: i32) -> crate::Time {
        let seconds = (day as i64 + self.active_days as i64) * 86_400 + user.rem_euclid(86_400);
        if seconds < 0 { 0 } else { (seconds / 60 * 60_000) as u64 }
    }
}
