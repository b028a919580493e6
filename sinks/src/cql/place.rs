//! Which table, partition and key a fact or a row has, from the keys of [`crate::layout`].

use feedmill_model::{Counter, Fact, Keyed, View, ViewRow, name_owner};

use super::spread::{List, Listed};
use super::trends::Of;
use crate::key::Key;
use crate::layout;

/// Bytes before what orders a list: the shard, and the owner.
const OWNED: usize = 9;

/// Where a row is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Place {
    /// In the table `rows`, beside others of its owner.
    Row { owner: i64, view: View, key: Vec<u8> },
    /// In a list.
    Listed { list: List, owner: i64, key: Vec<u8> },
    /// In a list that is one value.
    Trend { of: Of, key: Vec<u8> },
}

/// What a list's keys have before them in [`crate::layout`], which the partition says here.
const fn prefix(list: List) -> usize {
    match list {
        List::Facts => 0,
        List::Hashtag => 1,
        // Whether it is a reply.
        List::Timeline | List::Replies => OWNED + 1,
        _ => OWNED,
    }
}

/// A key of the layout, as it is in its list.
pub(super) fn key_in(list: List, key: &Key) -> Vec<u8> {
    key.as_ref().get(prefix(list)..).unwrap_or_default().to_vec()
}

/// The key of the layout again.
pub(super) fn whole(list: List, owner: i64, key: &[u8]) -> Vec<u8> {
    let before = match list {
        List::Facts => Key::of(owner),
        List::Hashtag => Key::of(owner),
        List::Timeline | List::Replies => layout::timeline_prefix(owner, list == List::Replies),
        _ => layout::id_key(owner),
    };
    [before.as_ref(), key].concat()
}

/// Where a row is that the layout keeps under `key`.
pub(super) fn place(row: &ViewRow) -> Place {
    let key = layout::key(row);
    let list = match row {
        ViewRow::Follower { .. } => List::Followers,
        ViewRow::Following { .. } => List::Following,
        ViewRow::FollowRequest { .. } => List::FollowRequests,
        ViewRow::Liker { .. } => List::Likers,
        ViewRow::Liked { .. } => List::Liked,
        ViewRow::Retweeter { .. } => List::Retweeters,
        ViewRow::Retweeted { .. } => List::Retweeted,
        ViewRow::TimelineEntry { reply: false, .. } => List::Timeline,
        ViewRow::TimelineEntry { reply: true, .. } => List::Replies,
        ViewRow::Tagged { .. } => List::Hashtag,
        ViewRow::Reply { .. } => List::Conversation,
        ViewRow::Notification { .. } => List::Notifications,
        ViewRow::Profile(_)
        | ViewRow::Username { .. }
        | ViewRow::Tweet(_)
        | ViewRow::Retweet { .. }
        | ViewRow::ReadMark { .. }
        | ViewRow::Count { .. } => {
            return Place::Row { owner: row.owner(), view: layout::view(row), key: key_of_row(&key) };
        }
        ViewRow::TrendingTag { .. } | ViewRow::TrendingTweet { .. } => {
            return Place::Trend { of: (layout::view(row), row.owner()), key: key_of_row(&key) };
        }
    };
    Place::Listed { list, owner: row.owner(), key: key_in(list, &key) }
}

/// Where a reply is found by its id.
pub(super) fn place_by_reply(row: &ViewRow) -> Option<Place> {
    let ViewRow::Reply { root, path, .. } = row else { return None };
    let key = key_in(List::ConversationPaths, &layout::by_reply_key(*root, path));
    Some(Place::Listed { list: List::ConversationPaths, owner: *root, key })
}

/// The shard is not part of a key here: an owner has one.
fn key_of_row(key: &Key) -> Vec<u8> {
    key.as_ref().get(1..).unwrap_or_default().to_vec()
}

/// The key of a count among the rows of its owner.
pub(super) fn count_key(counter: Counter, of: i64) -> Vec<u8> {
    key_of_row(&layout::count_key(counter, of))
}

/// Which counter a key of [`View::Counts`] or [`View::LikeCounts`] is of.
pub(super) fn counter(key: &[u8]) -> Option<Counter> {
    let number = key.first()?;
    Counter::ALL.into_iter().find(|counter| *counter as u8 == *number)
}

/// Owner and key of a name.
pub(super) fn name(name: &str) -> (i64, Vec<u8>) {
    (name_owner(name), name.as_bytes().to_vec())
}

/// Which fact a key is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    Follow = 1,
    Block = 2,
    Mute = 3,
    Protected = 4,
    DeletedUser = 5,
    DeletedTweet = 6,
}

/// The key of a fact of one account or tweet.
pub(super) fn of_one(kind: Kind) -> Vec<u8> {
    vec![kind as u8]
}

/// The key of a fact of an account about another.
pub(super) fn of_two(kind: Kind, other: i64) -> Vec<u8> {
    // Smaller ids first.
    let mut key = vec![kind as u8];
    key.extend((other as u64 ^ 1 << 63).to_be_bytes());
    key
}

/// The other account of such a key.
pub(super) fn other(key: &[u8]) -> Option<i64> {
    let (_, other) = key.split_first()?;
    Some((u64::from_be_bytes(other.try_into().ok()?) ^ 1 << 63) as i64)
}

/// Whether a fact's value says that a follow is accepted.
pub(super) fn is_accepted(value: &[u8]) -> bool {
    value == [1]
}

/// A fact that is there, or not.
pub(super) fn fact(fact: &Fact, is_there: bool) -> Listed {
    let (key, value) = match *fact {
        Fact::Follow { following, accepted, .. } => (of_two(Kind::Follow, following), vec![u8::from(accepted)]),
        Fact::Block { blocked, .. } => (of_two(Kind::Block, blocked), Vec::new()),
        Fact::Mute { muted, .. } => (of_two(Kind::Mute, muted), Vec::new()),
        Fact::Protected(_) => (of_one(Kind::Protected), Vec::new()),
        Fact::DeletedUser(_) => (of_one(Kind::DeletedUser), Vec::new()),
        Fact::DeletedTweet(_) => (of_one(Kind::DeletedTweet), Vec::new()),
    };
    Listed { list: List::Facts, owner: fact.owner(), key, value: is_there.then_some(value) }
}

/// The fact again.
pub(super) fn fact_of(owner: i64, key: &[u8], value: &[u8]) -> Option<Fact> {
    let kinds = [Kind::Follow, Kind::Block, Kind::Mute, Kind::Protected, Kind::DeletedUser, Kind::DeletedTweet];
    let number = key.first()?;
    Some(match kinds.into_iter().find(|kind| *kind as u8 == *number)? {
        Kind::Follow => Fact::Follow { follower: owner, following: other(key)?, accepted: is_accepted(value) },
        Kind::Block => Fact::Block { blocker: owner, blocked: other(key)? },
        Kind::Mute => Fact::Mute { muter: owner, muted: other(key)? },
        Kind::Protected => Fact::Protected(owner),
        Kind::DeletedUser => Fact::DeletedUser(owner),
        Kind::DeletedTweet => Fact::DeletedTweet(owner),
    })
}

/// The row of a list again; `Some(None)` for what only finds another row.
pub(super) fn whole_row(list: List, owner: i64, key: &[u8], value: &[u8]) -> Option<Option<ViewRow>> {
    let view = match list {
        List::Facts => return None,
        List::ConversationPaths => return Some(None),
        List::Followers => View::Followers,
        List::Following => View::Following,
        List::FollowRequests => View::FollowRequests,
        List::Likers => View::Likers,
        List::Liked => View::Liked,
        List::Retweeters => View::Retweeters,
        List::Retweeted => View::Retweeted,
        List::Timeline | List::Replies => View::UserTimeline,
        List::Hashtag => View::Hashtag,
        List::Conversation => View::Conversation,
        List::Notifications => View::Notifications,
    };
    layout::row(view, &whole(list, owner, key), value).map(|(row, _)| Some(row))
}

/// The row of the table `rows` again, and the count if it is one.
pub(super) fn row_of(view: View, owner: i64, key: &[u8], value: &[u8]) -> Option<(ViewRow, i64)> {
    layout::row(view, &[Key::of(owner).as_ref(), key].concat(), value)
}

#[cfg(test)]
mod tests {
    use feedmill_model::{EntryId, Notice, NoticeKind, Tweet, User};

    use super::*;

    #[test]
    fn the_layout_reads_what_a_list_has() {
        let rows = [
            ViewRow::Follower { user: 1, at: -5, follower: i64::MAX },
            ViewRow::TimelineEntry { user: 1, reply: true, entry: EntryId::retweet(8), tweet: 7 },
            ViewRow::TimelineEntry { user: -1, reply: false, entry: EntryId::tweet(8), tweet: 8 },
            ViewRow::Liked { user: -2, tweet: 7 },
            ViewRow::Retweeted { user: 1, tweet: 7, id: 8 },
            ViewRow::Tagged { tag: "日本".to_owned(), tweet: 7 },
            ViewRow::Reply { root: 1, path: vec![2, -3, i64::MAX], parent: -3, user: 5 },
            ViewRow::Notification { user: 1, notice: Notice { order: -9, kind: NoticeKind::Like, actor: 2, tweet: 3 } },
        ];
        for expected in rows {
            let Place::Listed { list, owner, key } = place(&expected) else { panic!("{expected:?} is of a list") };
            let value = layout::value(&expected, 1).unwrap();
            let found = layout::row(layout::view(&expected), &whole(list, owner, &key), &value);
            assert_eq!(found, Some((expected, 1)));
        }
    }

    #[test]
    fn what_is_read_together_lies_together() {
        let owner = |row: &ViewRow| match place(row) {
            Place::Row { owner, .. } => owner,
            Place::Listed { .. } | Place::Trend { .. } => panic!("{row:?} is in a list"),
        };
        let tweet = ViewRow::Tweet(Box::new(Tweet { id: 7, ..Tweet::default() }));
        let user = ViewRow::Profile(Box::new(User { id: 9, ..User::default() }));
        assert_eq!(owner(&tweet), owner(&ViewRow::Count { counter: Counter::Likes, of: 7 }));
        assert_eq!(owner(&user), owner(&ViewRow::Count { counter: Counter::Followers, of: 9 }));
        assert_eq!(counter(&count_key(Counter::Replies, -1)), Some(Counter::Replies));
        assert_eq!(other(&of_two(Kind::Block, -7)), Some(-7));
    }
}
