//! What a client was told, and so what is new: the id of every event.
//!
//! ```text
//!   ids ─────────── floor ── k ──── k k ────►      k: known     everything else above the floor is new
//! ```
//!
//! Like a cursor it needs no secret: whatever it says, its reader is told only what may be seen, and no more than a page.

use feedmill_model::{EntryId, EntryKind, NoticeKind, Time, floor_of};
use serde::{Deserialize, Serialize};

use crate::cursor::{self, Cursor, list};

/// How long the transaction of an entry may take from its id to its commit, for the entry to be told.
pub(super) const WINDOW_MS: u64 = 60_000;
/// What is known above a floor, at most; of more the floor rises, so that of a timeline which gets more in the window only
/// what comes below fewer newer ones is told. An id and its kind take seven bytes of an event's id, as a rule.
pub(crate) const KNOWN_MAX: usize = 128;

/// What was told of one list.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Told {
    floor: i64,
    /// Ids and kinds, ascending.
    known: Vec<(i64, u8)>,
}

/// What was told of all.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Mark {
    pub(super) entries: Told,
    pub(super) notices: Told,
}

impl Told {
    /// Everything at or below `floor`.
    pub(super) const fn to(floor: i64) -> Self {
        Told { floor, known: Vec::new() }
    }

    /// Everything that can have committed before `time`, but for the window.
    pub(super) fn before(time: Time) -> Self {
        Told::to(floor_of(time.saturating_sub(WINDOW_MS)))
    }

    pub(super) const fn floor(&self) -> i64 {
        self.floor
    }

    pub(super) fn knows(&self, id: i64, kind: u8) -> bool {
        id <= self.floor || self.known.binary_search(&(id, kind)).is_ok()
    }

    /// It was told. Where more are known than there is room for the floor rises to the least, so those that are added in
    /// one go come in ascending order.
    pub(super) fn add(&mut self, id: i64, kind: u8) {
        if id <= self.floor {
            return;
        }
        if let Err(place) = self.known.binary_search(&(id, kind)) {
            self.known.insert(place, (id, kind));
        }
        if self.known.len() > KNOWN_MAX {
            let (least, _) = self.known.remove(0);
            self.rise(least);
        }
    }

    /// Nothing at or below `floor` is new any more.
    pub(super) fn rise(&mut self, floor: i64) {
        self.floor = self.floor.max(floor);
        self.known.retain(|(id, _)| *id > self.floor);
    }

    /// All of it that was there at `time` was looked at.
    pub(super) fn looked_at(&mut self, time: Time) {
        self.rise(Told::before(time).floor);
    }

    /// The entries that are known above the floor.
    pub(super) fn entries(&self) -> Vec<EntryId> {
        let entry = |&(id, kind)| if kind == 0 { EntryId::tweet(id) } else { EntryId::retweet(id) };
        self.known.iter().map(entry).collect()
    }
}

/// The kind of an entry, as it is known.
pub(super) const fn entry_kind(entry: EntryId) -> u8 {
    matches!(entry.kind, EntryKind::Retweet) as u8
}

/// The kind of a notification, as it is known.
pub(super) const fn notice_kind(kind: NoticeKind) -> u8 {
    kind as u8
}

/// Known ids by their distance from the one before, the first from the floor, which is short to write.
#[derive(Serialize, Deserialize)]
struct Written(i64, Vec<(u64, u8)>);

impl Serialize for Told {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let before = std::iter::once(self.floor).chain(self.known.iter().map(|(id, _)| *id));
        let known = self.known.iter().zip(before).map(|((id, kind), before)| (id.wrapping_sub(before) as u64, *kind));
        Written(self.floor, known.collect()).serialize(serializer)
    }
}

impl<'de> Deserialize<'de> for Told {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let Written(floor, known) = Written::deserialize(deserializer)?;
        let ids = known.into_iter().scan(floor, |id, (above, kind)| {
            *id = id.wrapping_add(above as i64);
            Some((*id, kind))
        });
        Ok(Told { floor, known: ids.collect() })
    }
}

impl Told {
    fn is_bounded(&self) -> bool {
        self.known.len() <= KNOWN_MAX && self.known.is_sorted() && self.known.iter().all(|(id, _)| *id > self.floor)
    }
}

impl Cursor for Mark {
    fn is_bounded(&self) -> bool {
        self.entries.is_bounded() && self.notices.is_bounded()
    }
}

impl Mark {
    /// The id of the event after which this was told.
    pub(super) fn text(&self) -> Option<String> {
        cursor::encode(list::STREAM, self)
    }

    /// The mark of an event's id; `None` for what is none.
    pub(crate) fn of(text: &str) -> Option<Mark> {
        cursor::decode(list::STREAM, text)
    }
}

#[cfg(test)]
mod tests {
    use feedmill_model::id_at;
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn a_mark_comes_back_and_knows_what_was_told(
            floor in any::<i64>(),
            ids in proptest::collection::vec((any::<i64>(), 0..2_u8), 0..=2 * KNOWN_MAX),
        ) {
            let mut ids = ids;
            ids.sort_unstable();
            let mut told = Told::to(floor);
            for (id, kind) in &ids {
                told.add(*id, *kind);
                prop_assert!(told.knows(*id, *kind) && told.is_bounded());
            }
            prop_assert!(ids.iter().all(|(id, kind)| told.knows(*id, *kind)));
            let mark = Mark { entries: told.clone(), notices: told };
            prop_assert_eq!(Mark::of(&mark.text().unwrap()), Some(mark));
        }

        #[test]
        fn any_text_is_a_mark_or_none(text in ".*", bytes in proptest::collection::vec(any::<u8>(), 0..64)) {
            use base64::Engine;
            use base64::engine::general_purpose::URL_SAFE_NO_PAD;
            let framed = URL_SAFE_NO_PAD.encode([&[1, list::STREAM], bytes.as_slice()].concat());
            for text in [text, URL_SAFE_NO_PAD.encode(bytes), framed] {
                if let Some(mark) = Mark::of(&text) {
                    prop_assert!(mark.is_bounded());
                }
            }
        }
    }

    #[test]
    fn what_was_not_told_is_new_although_it_comes_late() {
        let mut told = Told::before(1_000_000);
        let id = |ms| id_at(ms, 0);
        told.add(id(990_000), 0);
        told.add(id(990_002), 0);
        assert!(!told.knows(id(990_001), 0), "it committed after what was made later");
        assert!(!told.knows(id(990_000), 1), "a retweet is not the tweet");
        assert!(told.knows(id(1_000_000 - WINDOW_MS as i64), 0), "that long no transaction takes");
        told.looked_at(1_060_001);
        assert!(told.knows(id(990_001), 0) && told.known.is_empty(), "that long ago");
    }

    #[test]
    fn as_much_is_known_as_there_is_room_for() {
        let mut told = Told::to(0);
        (1..=KNOWN_MAX as i64 + 1).for_each(|id| told.add(id * 10, 0));
        assert_eq!((told.floor, told.known.len()), (10, KNOWN_MAX));
        assert!(told.knows(9, 0) && !told.knows(11, 0));
    }
}
