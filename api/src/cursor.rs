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
use feedmill_model::{EntryId, Notice};
use feedmill_sinks::Edge;
use feedmill_sinks::read::{FIRST_MAX, HomeCursor, Rank, SHOWN_MAX, SearchFrom, ThreadCursor};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::live::KNOWN_MAX;

/// The form of cursors; another form will be another number.
const VERSION: u8 = 1;
/// Bytes of the longest: a home cursor with [`SHOWN_MAX`] ids of at most 10 bytes, and its place; or the id of an event, with
/// twice [`KNOWN_MAX`] of at most 11 bytes, and two floors.
const BYTES_MAX: usize = if SHOWN_MAX * 10 > KNOWN_MAX * 22 { SHOWN_MAX * 10 } else { KNOWN_MAX * 22 } + 32;
/// The same in base64.
const CURSOR_CHARACTERS_MAX: usize = BYTES_MAX * 4 / 3 + 4;

/// Lists, by what their cursors bear. No two have the same.
pub(crate) mod list {
    pub(crate) const ANCESTORS: u8 = b'a';
    pub(crate) const BLOCKS: u8 = b'b';
    pub(crate) const CONVERSATION: u8 = b'c';
    pub(crate) const FOLLOWERS: u8 = b'f';
    pub(crate) const FOLLOWING: u8 = b'g';
    pub(crate) const HOME: u8 = b'h';
    pub(crate) const LIKES: u8 = b'l';
    pub(crate) const MUTES: u8 = b'm';
    pub(crate) const NOTIFICATIONS: u8 = b'n';
    pub(crate) const FOLLOW_REQUESTS: u8 = b'q';
    pub(crate) const RETWEETS: u8 = b'r';
    pub(crate) const SEARCH: u8 = b's';
    pub(crate) const HASHTAG: u8 = b't';
    pub(crate) const USER: u8 = b'u';
    pub(crate) const STREAM: u8 = b'v';
}

/// A place in a list.
pub(crate) trait Cursor: Serialize + DeserializeOwned {
    /// Whether it is one that a page can have ended at.
    fn is_bounded(&self) -> bool {
        true
    }
}

impl Cursor for HomeCursor {
    fn is_bounded(&self) -> bool {
        self.shown.len() <= SHOWN_MAX
    }
}

impl Cursor for ThreadCursor {
    fn is_bounded(&self) -> bool {
        self.first.len() <= FIRST_MAX
    }
}

/// Where a page of what was found ended.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) enum SearchCursor {
    /// Of tweets, by their order.
    Tweets(SearchFrom),
    /// Of users.
    Users(Rank),
}

impl Cursor for SearchCursor {
    fn is_bounded(&self) -> bool {
        match self {
            // The first page has no cursor.
            SearchCursor::Tweets(SearchFrom::Latest(before)) => before.is_some(),
            SearchCursor::Tweets(SearchFrom::Relevant(after)) => after.is_some_and(|after| after.score.is_finite()),
            SearchCursor::Users(after) => after.score.is_finite(),
        }
    }
}

impl Cursor for EntryId {}
impl Cursor for Edge {}
impl Cursor for Notice {}
impl Cursor for i64 {}

/// The text of a cursor of a list.
pub(crate) fn encode<C: Cursor>(list: u8, cursor: &C) -> Option<String> {
    let bytes = postcard::to_extend(cursor, vec![VERSION, list]).ok()?;
    Some(URL_SAFE_NO_PAD.encode(bytes))
}

/// The cursor of a text; `None` for what this list has not given out.
pub(crate) fn decode<C: Cursor>(list: u8, text: &str) -> Option<C> {
    if text.len() > CURSOR_CHARACTERS_MAX {
        return None;
    }
    let bytes = URL_SAFE_NO_PAD.decode(text).ok()?;
    let place = bytes.strip_prefix(&[VERSION, list])?;
    let (cursor, rest) = postcard::take_from_bytes::<C>(place).ok()?;
    (rest.is_empty() && cursor.is_bounded()).then_some(cursor)
}

#[cfg(test)]
mod tests {
    use std::fmt::Debug;

    use super::*;
    use feedmill_model::{EntryKind, NoticeKind};
    use proptest::prelude::*;

    fn entries() -> impl Strategy<Value = EntryId> {
        (any::<i64>(), prop_oneof![Just(EntryKind::Tweet), Just(EntryKind::Retweet)])
            .prop_map(|(id, kind)| EntryId { id, kind })
    }

    fn notices() -> impl Strategy<Value = Notice> {
        (any::<i64>(), proptest::sample::select(&NoticeKind::ALL[..]), any::<i64>(), any::<i64>())
            .prop_map(|(order, kind, actor, tweet)| Notice { order, kind, actor, tweet })
    }

    fn searches() -> impl Strategy<Value = SearchCursor> {
        let rank = || (proptest::num::f32::NORMAL, any::<i64>()).prop_map(|(score, id)| Rank { score, id });
        prop_oneof![
            any::<i64>().prop_map(|id| SearchCursor::Tweets(SearchFrom::Latest(Some(id)))),
            rank().prop_map(|rank| SearchCursor::Tweets(SearchFrom::Relevant(Some(rank)))),
            rank().prop_map(SearchCursor::Users),
        ]
    }

    /// It comes back to its list, and to no other.
    fn comes_back<C: Cursor + Debug + PartialEq>(list: u8, cursor: &C) -> Result<(), TestCaseError> {
        let text = encode(list, cursor).unwrap();
        let decoded = decode::<C>(list, &text);
        prop_assert_eq!(decoded.as_ref(), Some(cursor));
        prop_assert!(decode::<C>(list + 1, &text).is_none());
        prop_assert!(text.len() <= CURSOR_CHARACTERS_MAX);
        Ok(())
    }

    proptest! {
        #[test]
        fn a_cursor_comes_back(
            before in proptest::option::of(entries()),
            shown in proptest::collection::vec(any::<i64>(), 0..=SHOWN_MAX),
            first in proptest::collection::vec(any::<i64>(), 0..=FIRST_MAX),
            at in any::<i64>(),
            id in any::<i64>(),
            in_first in any::<bool>(),
            notice in notices(),
            search in searches(),
        ) {
            if let Some(entry) = before {
                comes_back(list::USER, &entry)?;
            }
            comes_back(list::LIKES, &Edge { at, id })?;
            comes_back(list::HASHTAG, &id)?;
            comes_back(list::HOME, &HomeCursor { before, shown })?;
            comes_back(list::CONVERSATION, &ThreadCursor { last: id, first, in_first })?;
            comes_back(list::NOTIFICATIONS, &notice)?;
            comes_back(list::SEARCH, &search)?;
        }

        #[test]
        fn any_text_is_a_cursor_or_refused(text in ".*", bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            let framed = URL_SAFE_NO_PAD.encode([&[VERSION, list::HOME], bytes.as_slice()].concat());
            for text in [text, URL_SAFE_NO_PAD.encode(bytes), framed] {
                let of = list::HOME;
                let _ = (decode::<HomeCursor>(of, &text), decode::<EntryId>(of, &text), decode::<Edge>(of, &text));
                let _ = (decode::<ThreadCursor>(of, &text), decode::<Notice>(of, &text), decode::<i64>(of, &text));
                let search = decode::<SearchCursor>(of, &text);
                prop_assert!(search.is_none_or(|cursor| cursor.is_bounded()));
            }
        }
    }

    #[test]
    fn what_no_page_ended_at_is_refused() {
        let of = list::FOLLOWERS;
        let edge = encode(of, &Edge { at: 1, id: 2 }).unwrap();
        assert_eq!(decode::<Edge>(list::FOLLOWING, &edge), None, "another list's");
        assert_eq!(decode::<EntryId>(of, &edge), None, "another form");
        assert_eq!(decode::<Edge>(of, &format!("{edge}AAAA")), None, "something behind it");
        assert_eq!(decode::<Edge>(of, &edge[..edge.len() - 2]), None, "cut");
        assert_eq!(decode::<Edge>(of, ""), None);
        let shown = HomeCursor { before: None, shown: vec![1; SHOWN_MAX + 1] };
        assert_eq!(decode::<HomeCursor>(of, &encode(of, &shown).unwrap()), None, "more than was shown");
        let first = ThreadCursor { last: 1, first: vec![1; FIRST_MAX + 1], in_first: true };
        assert_eq!(decode::<ThreadCursor>(of, &encode(of, &first).unwrap()), None, "more than come first");
        for score in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let rank = Rank { score, id: 1 };
            for cursor in [SearchCursor::Users(rank), SearchCursor::Tweets(SearchFrom::Relevant(Some(rank)))] {
                assert_eq!(decode::<SearchCursor>(of, &encode(of, &cursor).unwrap()), None, "{cursor:?}");
            }
        }
        assert_eq!(decode::<Edge>(of, &"A".repeat(1 << 20)), None);
        let mut of_another_version = URL_SAFE_NO_PAD.decode(&edge).unwrap();
        of_another_version[0] += 1;
        assert_eq!(decode::<Edge>(of, &URL_SAFE_NO_PAD.encode(of_another_version)), None);
    }
}
