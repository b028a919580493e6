//! When something is true: the time of a batch, and the place in the source's log that it covers.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

/// The logical time of a batch: milliseconds since 1970, strictly increasing, minted once by the change log.
pub type Time = u64;

/// The full minute that `time` lies in, counted since 1970.
pub const fn minute_of(time: Time) -> u64 {
    time / 60_000
}

/// A position in PostgreSQL's write-ahead log, in bytes; written as PostgreSQL writes it, `16/B374D848`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Lsn(pub u64);

impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:X}/{:X}", self.0 >> 32, self.0 & 0xFFFF_FFFF)
    }
}

/// A text that is not an LSN.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a log position; one looks like 16/B374D848")]
pub struct ParseLsnError(pub String);

impl FromStr for Lsn {
    type Err = ParseLsnError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let half = |digits: &str| match digits.len() {
            1..=8 if digits.bytes().all(|byte| byte.is_ascii_hexdigit()) => u32::from_str_radix(digits, 16).ok(),
            _ => None,
        };
        text.split_once('/')
            .and_then(|(high, low)| Some(Lsn(u64::from(half(high)?) << 32 | u64::from(half(low)?))))
            .ok_or_else(|| ParseLsnError(text.to_owned()))
    }
}

/// Which history of which database a position belongs to. Positions of different sources never compare.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SourceId {
    /// `system_identifier` of the cluster.
    pub system: u64,
    /// Timeline of the cluster: grows at each promotion of a standby.
    pub timeline: u32,
    /// Name of the replication slot.
    pub slot: String,
}

impl fmt::Display for SourceId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "system {} timeline {} slot {}", self.system, self.timeline, self.slot)
    }
}

/// A batch's time, and the end of the log that it covers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Position {
    /// Time of the batch.
    pub time: Time,
    /// Everything that the source committed before this is in the batch or in an earlier one.
    pub lsn: Lsn,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_lsn_reads_what_it_writes_and_refuses_the_rest() {
        for lsn in [Lsn(0), Lsn(0x16_B374_D848), Lsn(u64::MAX)] {
            assert_eq!(lsn.to_string().parse(), Ok(lsn));
        }
        for text in ["", "/", "1", "1/", "123456789/0", "x/1", "1/2/3", "+1/2"] {
            assert_eq!(text.parse::<Lsn>(), Err(ParseLsnError(text.to_owned())), "{text}");
        }
    }
}
