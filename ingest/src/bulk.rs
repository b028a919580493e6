//! What home timelines need to know of a batch: the greatest entry id, and whether it is too large to be fanned out.

use feedmill_model::{Change, EntryId, PackedEntry, Row, Time, floor_of};

/// The id of the entry that a row is, or 0 if it is none, or none that a home timeline can hold.
pub(crate) fn entry_id(row: &Row) -> i64 {
    let entry = match row {
        Row::Tweet(tweet) if tweet.reply_to_id.is_none() => EntryId::tweet(tweet.id),
        Row::Retweet(retweet) => EntryId::retweet(retweet.id),
        _ => return 0,
    };
    PackedEntry::new(entry).map_or(0, PackedEntry::id)
}

/// The greatest entry id among the new rows, or 0.
pub(crate) fn greatest_entry(changes: &[Change]) -> i64 {
    changes.iter().filter_map(|change| change.new.as_ref()).map(entry_id).max().unwrap_or(0)
}

/// The floor of a batch with more than `bulk_rows` changes of entries and follows: past every entry that is known.
pub(crate) fn floor(changes: &[Change], bulk_rows: usize, time: Time, greatest_entry: i64) -> Option<i64> {
    let is_bulk =
        changes.len() > bulk_rows && changes.iter().filter(|change| is_fanned_out(change)).count() > bulk_rows;
    is_bulk.then(|| floor_of(time).max(greatest_entry))
}

fn is_fanned_out(change: &Change) -> bool {
    let is = |row: &Row| match row {
        Row::Tweet(tweet) => tweet.reply_to_id.is_none(),
        Row::Retweet(_) | Row::Follow(_) => true,
        _ => false,
    };
    change.old.as_ref().is_some_and(is) || change.new.as_ref().is_some_and(is)
}

#[cfg(test)]
mod tests {
    use feedmill_model::{Like, Retweet, Tweet};

    use super::*;

    fn tweet(id: i64, reply_to_id: Option<i64>) -> Change {
        Change { old: None, new: Some(Row::Tweet(Box::new(Tweet { id, reply_to_id, ..Tweet::default() }))) }
    }

    #[test]
    fn only_entries_that_a_home_timeline_can_hold_count() {
        let retweet = Row::Retweet(Retweet { id: 7, user_id: 1, tweet_id: 1, created_at: 0 });
        let changes = [tweet(5, None), tweet(9, Some(5)), tweet(-3, None), tweet(1 << 62, None)];
        assert_eq!(greatest_entry(&changes), 5);
        assert_eq!(greatest_entry(&[Change { old: None, new: Some(retweet.clone()) }]), 7);
        assert_eq!(greatest_entry(&[Change { old: Some(retweet), new: None }]), 0);
    }

    #[test]
    fn bulk_is_more_than_the_limit_of_what_is_fanned_out() {
        let like = Change { old: None, new: Some(Row::Like(Like { user_id: 1, tweet_id: 1, created_at: 0 })) };
        let entries = [tweet(1, None), tweet(2, None), like.clone(), like, tweet(3, Some(1))];
        assert_eq!(floor(&entries, 2, 9, 2), None);
        assert_eq!(floor(&entries, 1, 9, 2), Some(floor_of(9)));
        assert_eq!(floor(&entries, 1, 9, i64::MAX >> 1), Some(i64::MAX >> 1));
    }
}
