//! What the log knows of itself: one small value, written together with whatever it tells of.

use std::path::Path;

use feedmill_model::{Position, SourceId, Time};
use serde::{Deserialize, Serialize};

use crate::LogError;
use crate::key::{decode, encode};

/// Grows when what is stored changes in a way that an older version cannot read.
const FORMAT: u32 = 3;

/// What the log holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum LogState {
    /// Nothing.
    Empty,
    /// A first copy that has not ended; after a crash it has to be begun anew.
    Copying,
    /// A source as of a position.
    Ready,
}

/// The stored value is the format, then this.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct Meta {
    pub state: LogState,
    pub source: Option<SourceId>,
    /// The newest batch, or the end of the copy; set if and only if the state is ready.
    pub position: Option<Position>,
    /// The tail has every batch after this time.
    pub tail_after: Time,
    pub greatest_entry: i64,
    /// Positions in the source's log before this time are of another history.
    pub history: Time,
}

impl Meta {
    pub const EMPTY: Meta =
        Meta { state: LogState::Empty, source: None, position: None, tail_after: 0, greatest_entry: 0, history: 0 };

    /// The newest batch, if there is a finished copy.
    pub fn ready(&self) -> Result<Position, LogError> {
        self.position.filter(|_| self.state == LogState::Ready).ok_or(LogError::NotReady)
    }

    /// Whether the log can tell of this time.
    pub fn check_is_held(&self, asked: Time) -> Result<(), LogError> {
        let (oldest, newest) = (self.tail_after, self.ready()?.time);
        if (oldest..=newest).contains(&asked) { Ok(()) } else { Err(LogError::Gone { asked, oldest, newest }) }
    }

    pub fn to_bytes(&self) -> Result<Vec<u8>, LogError> {
        encode(&(FORMAT, self), "the header")
    }

    /// The format comes first, so that it can be told whatever follows it.
    pub fn from_bytes(bytes: &[u8], dir: &Path) -> Result<Self, LogError> {
        let corrupt = || LogError::Corrupt { what: "the header".to_owned() };
        let (found, rest) = postcard::take_from_bytes::<u32>(bytes).map_err(|_| corrupt())?;
        if found != FORMAT {
            return Err(LogError::Format { path: dir.to_owned(), found, known: FORMAT });
        }
        decode(rest, || "the header".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_newer_format_is_named_and_garbage_is_not_a_format() {
        let mut bytes = Meta::EMPTY.to_bytes().expect("can be stored");
        assert_eq!(Meta::from_bytes(&bytes, Path::new("log")).expect("is ours").state, LogState::Empty);
        bytes[0] = 7;
        let error = Meta::from_bytes(&bytes, Path::new("log")).expect_err("is not ours");
        assert!(matches!(error, LogError::Format { found: 7, known: FORMAT, .. }), "{error}");
        for garbage in [&[][..], &[0xFF; 9]] {
            assert!(matches!(Meta::from_bytes(garbage, Path::new("log")), Err(LogError::Corrupt { .. })));
        }
    }
}
