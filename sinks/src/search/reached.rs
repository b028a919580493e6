//! How far each shard of a search index is, and what all engines are given alike.

use feedmill_model::{Lsn, Position, SHARDS, Time};

/// Characters of a prefix by which an account is found.
const PREFIX_CHARS_MAX: usize = 20;

/// The last closed time, by shard.
pub(crate) type Reached = [Option<Position>; SHARDS];

/// The least of what shards have; `None` if one has nothing.
pub(crate) fn least(reached: &Reached) -> Option<Position> {
    let all: Option<Vec<Position>> = reached.iter().copied().collect();
    all?.into_iter().min_by_key(|position| position.time)
}

/// The time of the least; 0 if one has nothing.
pub(crate) fn time_of(reached: &Reached) -> Time {
    least(reached).map_or(0, |position| position.time)
}

/// The shards of the bits `shards` reach `position`, unless they are beyond it.
pub(crate) fn reaches(reached: &mut Reached, shards: u64, position: Position) {
    for (shard, own) in reached.iter_mut().enumerate() {
        if shards & (1 << shard) != 0 && own.is_none_or(|own| own.time < position.time) {
            *own = Some(position);
        }
    }
}

/// Progress as text: time and LSN of each shard in order, or `-`.
pub(crate) fn write_reached(reached: &Reached) -> String {
    let one = |position: &Option<Position>| match position {
        Some(position) => format!("{}@{}", position.time, position.lsn),
        None => "-".to_owned(),
    };
    reached.iter().map(one).collect::<Vec<_>>().join(" ")
}

/// `None` if it cannot be read.
pub(crate) fn read_reached(text: &str) -> Option<Reached> {
    let one = |text: &str| match text.split_once('@') {
        Some((time, lsn)) => Some(Some(Position { time: time.parse().ok()?, lsn: lsn.parse::<Lsn>().ok()? })),
        None => (text == "-").then_some(None),
    };
    let all: Vec<Option<Position>> = text.split(' ').map(one).collect::<Option<_>>()?;
    <[Option<Position>; SHARDS]>::try_from(all).ok()
}

/// The beginning by which a word of a name is looked for.
pub(crate) fn prefix(word: &str) -> String {
    word.chars().take(PREFIX_CHARS_MAX).collect()
}

/// All beginnings by which a word of a name is found.
pub(crate) fn prefixes(word: &str) -> impl Iterator<Item = &str> {
    let ends = word.char_indices().map(|(at, c)| at + c.len_utf8()).take(PREFIX_CHARS_MAX);
    ends.filter_map(|end| word.get(..end))
}
