//! What home timelines need to know of a batch: the greatest entry id, and whether it is too large to be fanned out.

use feedmill_model::{Change, EntryId, PackedEntry, Row, Time, floor_of};

/// The id of the entry that a row is, or 0 if it is none, or none that a home timeline can hold.
pub(crate) fn entry_id(row: &Row) -> i64 {
    match row {
        Row::Tweet(tweet) if tweet.reply_to_id.is_some() => 0,
        row => touched_id(row),
    }
}

/// What is counted of a batch while its changes go by.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct Tally {
    /// Changes of entries and follows.
    fanned_out: usize,
    /// The greatest entry id among the new rows, or 0.
    pub greatest_entry: i64,
    /// The greatest id of a tweet or retweet that comes or goes. Its deliveries are suppressed in a bulk batch too, and
    /// one that goes is not among the entries that the log knows any more.
    greatest_touched: i64,
}

impl Tally {
    /// Counts a change.
    pub fn add(&mut self, old: Option<&Row>, new: Option<&Row>) {
        for row in [old, new].into_iter().flatten() {
            self.greatest_touched = self.greatest_touched.max(touched_id(row));
        }
        self.fanned_out += usize::from(old.is_some_and(is_fanned_out) || new.is_some_and(is_fanned_out));
        self.greatest_entry = self.greatest_entry.max(new.map_or(0, entry_id));
    }

    /// Counts a change of a follow, which need not be decoded for it.
    pub fn add_follow(&mut self) {
        self.fanned_out += 1;
    }

    pub fn of(changes: &[Change]) -> Self {
        let mut tally = Tally::default();
        changes.iter().for_each(|change| tally.add(change.old.as_ref(), change.new.as_ref()));
        tally
    }

    /// The floor of a batch with more than `bulk_rows` changes of entries and follows: past every entry that is known,
    /// of which `greatest_entry` is the greatest, and past every one that the batch touches.
    pub fn floor(&self, bulk_rows: usize, time: Time, greatest_entry: i64) -> Option<i64> {
        (self.fanned_out > bulk_rows).then(|| floor_of(time).max(greatest_entry).max(self.greatest_touched))
    }
}

/// The same, if replies were entries too.
fn touched_id(row: &Row) -> i64 {
    let entry = match row {
        Row::Tweet(tweet) => EntryId::tweet(tweet.id),
        Row::Retweet(retweet) => EntryId::retweet(retweet.id),
        _ => return 0,
    };
    PackedEntry::new(entry).map_or(0, PackedEntry::id)
}

fn is_fanned_out(row: &Row) -> bool {
    match row {
        Row::Tweet(tweet) => tweet.reply_to_id.is_none(),
        Row::Retweet(_) | Row::Follow(_) => true,
        _ => false,
    }
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
        let greatest_entry = |changes: &[Change]| Tally::of(changes).greatest_entry;
        assert_eq!(greatest_entry(&changes), 5);
        assert_eq!(greatest_entry(&[Change { old: None, new: Some(retweet.clone()) }]), 7);
        assert_eq!(greatest_entry(&[Change { old: Some(retweet), new: None }]), 0);
    }

    #[test]
    fn bulk_is_more_than_the_limit_of_what_is_fanned_out() {
        let like = Change { old: None, new: Some(Row::Like(Like { user_id: 1, tweet_id: 1, created_at: 0 })) };
        let entries = [tweet(1, None), tweet(2, None), like.clone(), like, tweet(3, Some(1))];
        let tally = Tally::of(&entries);
        assert_eq!(tally.floor(2, 9, 2), None);
        assert_eq!(tally.floor(1, 9, 2), Some(floor_of(9)));
        assert_eq!(tally.floor(1, 9, i64::MAX >> 1), Some(i64::MAX >> 1));
    }

    #[test]
    fn the_floor_is_past_what_goes_and_past_replies() {
        let late = floor_of(9) + 5;
        let gone = Change { old: tweet(late, None).new, new: None };
        assert_eq!(Tally::of(&[gone, tweet(1, None)]).floor(1, 9, 2), Some(late));
        assert_eq!(Tally::of(&[tweet(late, Some(1)), tweet(1, None)]).floor(0, 9, 2), Some(late));
    }
}
