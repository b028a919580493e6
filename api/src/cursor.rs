//! Where a page of a list ended, as clients carry it.
//!
//! ```text
//!   base64url( version 1 | list 1 | place, as postcard writes it )
//! ```
//!
//! A cursor is opaque to clients, yet what comes back is anybody's: its length, version, list and form are checked. It
//! needs no secret, for it gives no right: whatever it says, a page holds only what its reader may see.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use feedmill_model::EntryId;
use feedmill_sinks::Edge;
use feedmill_sinks::read::{HomeCursor, SHOWN_MAX};
use serde::Serialize;
use serde::de::DeserializeOwned;

/// The form of cursors; another form will be another number.
const VERSION: u8 = 1;
/// The longest cursor: a home cursor with [`SHOWN_MAX`] ids of at most 10 bytes, and its place, in base64.
const CURSOR_CHARACTERS_MAX: usize = (SHOWN_MAX * 10 + 32) * 4 / 3 + 4;

/// A place in a list.
pub(crate) trait Cursor: Serialize + DeserializeOwned {
    /// Which list; no two lists have the same.
    const LIST: u8;

    /// Whether it is one that a page can have ended at.
    fn is_bounded(&self) -> bool {
        true
    }
}

impl Cursor for HomeCursor {
    const LIST: u8 = b'h';

    fn is_bounded(&self) -> bool {
        self.shown.len() <= SHOWN_MAX
    }
}

impl Cursor for EntryId {
    const LIST: u8 = b'u';
}

impl Cursor for Edge {
    const LIST: u8 = b'f';
}

/// The text of a cursor.
pub(crate) fn encode<C: Cursor>(cursor: &C) -> Option<String> {
    let bytes = postcard::to_extend(cursor, vec![VERSION, C::LIST]).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

/// The cursor of a text; `None` for what this list has not given out.
pub(crate) fn decode<C: Cursor>(text: &str) -> Option<C> {
    if text.len() > CURSOR_CHARACTERS_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let place = bytes.strip_prefix(&[VERSION, C::LIST])?;
    let (cursor, rest) = postcard::take_from_bytes::<C>(place).ok()?;
    (rest.is_empty() && cursor.is_bounded()).then_some(cursor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use feedmill_model::EntryKind;
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = EntryId> {
        (any::<i64>(), prop_oneof![Just(EntryKind::Tweet), Just(EntryKind::Retweet)])
            .prop_map(|(id, kind)| EntryId { id, kind })
    }

    proptest! {
        #[test]
        fn a_cursor_comes_back(
            before in proptest::option::of(entries()),
            shown in proptest::collection::vec(any::<i64>(), 0..=SHOWN_MAX),
            at in any::<i64>(),
            id in any::<i64>(),
        ) {
            if let Some(entry) = before {
                prop_assert_eq!(decode::<EntryId>(&encode(&entry).unwrap()), Some(entry));
            }
            let edge = Edge { at, id };
            prop_assert_eq!(decode::<Edge>(&encode(&edge).unwrap()), Some(edge));
            let home = HomeCursor { before, shown };
            prop_assert_eq!(decode::<HomeCursor>(&encode(&home).unwrap()), Some(home));
        }

        #[test]
        fn any_text_is_a_cursor_or_refused(text in ".*", bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let framed = URL_SAFE_NO_PAD.encode([&[VERSION, b'h'], bytes.as_slice()].concat());
            for text in [text, URL_SAFE_NO_PAD.encode(bytes), framed] {
                let _ = (decode::<HomeCursor>(&text), decode::<EntryId>(&text), decode::<Edge>(&text));
            }
        }
    }

    #[test]
    fn what_no_page_ended_at_is_refused() {
        let edge = encode(&Edge { at: 1, id: 2 }).unwrap();
        assert_eq!(decode::<EntryId>(&edge), None, "another list's");
        assert_eq!(decode::<Edge>(&format!("{edge}AAAA")), None, "something behind it");
        assert_eq!(decode::<Edge>(&edge[..edge.len() - 2]), None, "cut");
        assert_eq!(decode::<Edge>(""), None);
        let shown = HomeCursor { before: None, shown: vec![1; SHOWN_MAX + 1] };
        assert_eq!(decode::<HomeCursor>(&encode(&shown).unwrap()), None, "more than was shown");
        assert_eq!(decode::<Edge>(&"A".repeat(1 << 20)), None);
        let mut of_another_version = URL_SAFE_NO_PAD.decode(&edge).unwrap();
        of_another_version[0] += 1;
        assert_eq!(decode::<Edge>(&URL_SAFE_NO_PAD.encode(of_another_version)), None);
    }
}
