//! To whom an author's entries go: accepted followers who are active, without mutes and without blocks either way.
//!
//! ```text
//!   follows (viewer, author) ─┐
//!   mutes, blocks both ways ──┼─► by viewer: active?, accounts followed, accounts hidden ─► (author, viewer)
//!   active (viewer) ──────────┘
//! ```
//!
//! An operator of ours, because joins and antijoins would arrange all follows three times. Its state is a sorted list
//! of accounts a viewer; with the one arrangement by author that both joins share, that is all that is kept of follows.
//!
//! Why it is correct: a viewer's links all come to one worker, which applies those of one time together ([`each_time`]). It
//! emits the difference between the viewer's visible accounts before and after:
//! all of them when the viewer becomes active or stops being so, only those with a changed link otherwise.

use feedmill_model::{Block, Follow, Mute, shard_of};
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::closed::each_time;
use crate::collection::Rows;

/// What a viewer's home timeline depends on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
enum Link {
    /// The viewer is active.
    Active,
    /// The viewer is an accepted follower of this account.
    Follows(i64),
    /// The viewer mutes or blocks this account, or is blocked by it: each counts.
    Hides(i64),
}

/// A viewer's part of the state.
#[derive(Default)]
struct Viewer {
    active: bool,
    /// Sorted.
    followed: Box<[i64]>,
}

/// The state of one worker.
#[derive(Default)]
struct Viewers {
    viewers: HashMap<i64, Viewer>,
    /// Accounts hidden from a viewer, sorted, and how often; for viewers who have any.
    hidden: HashMap<i64, Vec<(i64, isize)>>,
}

/// Pairs of author and viewer: the changes of the job's output.
type Pairs<'a> = dyn FnMut(i64, i64, isize) + 'a;

impl Viewers {
    /// Applies the changes of one viewer at one time, sorted by link and each link once.
    fn change(&mut self, viewer: i64, links: &[(Link, isize)], emit: &mut Pairs<'_>) {
        let (activity, links) = links.split_at(links.partition_point(|(link, _)| *link == Link::Active));
        let (follows, hides) = links.split_at(links.partition_point(|(link, _)| matches!(link, Link::Follows(_))));
        let was_active = self.viewers.get(&viewer).is_some_and(|viewer| viewer.active);
        let is_active = activity.first().map_or(was_active, |(_, diff)| *diff > 0);

        if was_active && is_active {
            self.emit_changed(viewer, follows, hides, emit);
        } else if was_active {
            self.emit_all(viewer, -1, emit);
        }
        self.apply(viewer, is_active, follows, hides);
        if is_active && !was_active {
            self.emit_all(viewer, 1, emit);
        }
    }

    fn hidden(&self, viewer: i64, author: i64) -> isize {
        let Some(hidden) = self.hidden.get(&viewer) else { return 0 };
        let found = hidden.binary_search_by_key(&author, |(author, _)| *author).ok();
        found.and_then(|index| hidden.get(index)).map_or(0, |(_, times)| *times)
    }

    fn follows(&self, viewer: i64, author: i64) -> isize {
        let followed = self.viewers.get(&viewer).map(|viewer| &*viewer.followed).unwrap_or_default();
        isize::from(followed.binary_search(&author).is_ok())
    }

    fn emit_all(&self, viewer: i64, diff: isize, emit: &mut Pairs<'_>) {
        let followed = self.viewers.get(&viewer).map(|viewer| &*viewer.followed).unwrap_or_default();
        let hides_any = self.hidden.contains_key(&viewer);
        for &author in followed {
            if !hides_any || self.hidden(viewer, author) <= 0 {
                emit(author, viewer, diff);
            }
        }
    }

    fn emit_changed(&self, viewer: i64, follows: &[(Link, isize)], hides: &[(Link, isize)], emit: &mut Pairs<'_>) {
        let mut follows = follows.iter().map(author_of).peekable();
        let mut hides = hides.iter().map(author_of).peekable();
        loop {
            let Some(author) = follows.peek().into_iter().chain(hides.peek()).map(|(author, _)| *author).min() else {
                return;
            };
            let follow = follows.next_if(|(first, _)| *first == author).map_or(0, |(_, diff)| diff);
            let hide = hides.next_if(|(first, _)| *first == author).map_or(0, |(_, diff)| diff);
            let (followed, hidden) = (self.follows(viewer, author), self.hidden(viewer, author));
            let before = followed > 0 && hidden <= 0;
            let after = followed + follow > 0 && hidden + hide <= 0;
            if before != after {
                emit(author, viewer, if after { 1 } else { -1 });
            }
        }
    }

    fn apply(&mut self, viewer: i64, active: bool, follows: &[(Link, isize)], hides: &[(Link, isize)]) {
        let state = self.viewers.entry(viewer).or_default();
        state.active = active;
        if !follows.is_empty() {
            state.followed = merge(&state.followed, follows);
        }
        if !active && state.followed.is_empty() {
            self.viewers.remove(&viewer);
        }
        if hides.is_empty() {
            return;
        }
        let hidden = self.hidden.entry(viewer).or_default();
        for (author, diff) in hides.iter().map(author_of) {
            match hidden.binary_search_by_key(&author, |(author, _)| *author) {
                Ok(index) => hidden.get_mut(index).into_iter().for_each(|(_, times)| *times += diff),
                Err(index) => hidden.insert(index, (author, diff)),
            }
        }
        hidden.retain(|(_, times)| *times != 0);
        if hidden.is_empty() {
            self.hidden.remove(&viewer);
        }
    }
}

/// The other account of a change of a link.
fn author_of((link, diff): &(Link, isize)) -> (i64, isize) {
    match *link {
        Link::Follows(author) | Link::Hides(author) => (author, *diff),
        Link::Active => (0, 0),
    }
}

/// `followed` with `changes`, in one pass over both; no larger than it need be.
fn merge(followed: &[i64], changes: &[(Link, isize)]) -> Box<[i64]> {
    let added = changes.iter().filter(|(_, diff)| *diff > 0).count();
    let mut merged = Vec::with_capacity(followed.len() + added);
    let mut followed = followed.iter().copied().peekable();
    for (author, diff) in changes.iter().map(author_of) {
        while let Some(before) = followed.next_if(|before| *before < author) {
            merged.push(before);
        }
        let there = isize::from(followed.next_if_eq(&author).is_some());
        if there + diff > 0 {
            merged.push(author);
        }
    }
    merged.extend(followed);
    merged.into_boxed_slice()
}

/// Pairs of author and viewer.
pub(crate) fn audience<'scope>(
    follows: Rows<'scope, Follow>,
    mutes: Rows<'scope, Mute>,
    blocks: Rows<'scope, Block>,
    active: Rows<'scope, i64>,
) -> Rows<'scope, (i64, i64)> {
    let follows =
        follows.flat_map(|follow| follow.accepted.then_some((follow.follower_id, Link::Follows(follow.following_id))));
    let mutes = mutes.map(|mute| (mute.muter_id, Link::Hides(mute.muted_id)));
    let blocks = blocks.flat_map(|Block { blocker_id, blocked_id }| {
        [(blocker_id, Link::Hides(blocked_id)), (blocked_id, Link::Hides(blocker_id))]
    });
    let active = active.map(|viewer| (viewer, Link::Active));
    by_viewer(follows.concatenate([mutes, blocks, active]))
}

fn by_viewer<'scope>(links: Rows<'scope, (i64, Link)>) -> Rows<'scope, (i64, i64)> {
    let mut viewers = Viewers::default();
    let route = |(viewer, _): &(i64, Link)| u64::from(shard_of(*viewer));
    each_time(links, "Audience", route, move |_time, changes, emit| {
        let mut links = Vec::new();
        for changes in changes.chunk_by(|((one, _), _), ((other, _), _)| one == other) {
            let Some(&((viewer, _), _)) = changes.first() else { continue };
            links.clear();
            links.extend(changes.iter().map(|((_, link), diff)| (*link, *diff)));
            viewers.change(viewer, &links, &mut |author, viewer, diff| emit((author, viewer), diff));
        }
    })
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use feedmill_model::Time;
    use proptest::prelude::*;

    use super::*;
    use crate::testing::{History, changes_of, run};

    const END: Time = 12;

    /// Each pair of a follow that is there, of a viewer who is active, without those that are hidden.
    fn naive(history: &History<(i64, Link)>) -> BTreeMap<(Time, (i64, i64)), isize> {
        changes_of(END, |time| {
            let mut links = BTreeMap::<_, isize>::new();
            for (link, diff) in history.range(..=time).flat_map(|(_, changes)| changes) {
                *links.entry(*link).or_default() += diff;
            }
            let there: BTreeSet<_> = links.into_iter().filter(|(_, times)| *times > 0).map(|(link, _)| link).collect();
            let pairs = there.iter().filter_map(|(viewer, link)| match link {
                Link::Follows(author) => Some((*author, *viewer)),
                _ => None,
            });
            let shown = pairs.filter(|(author, viewer)| {
                there.contains(&(*viewer, Link::Active)) && !there.contains(&(*viewer, Link::Hides(*author)))
            });
            shown.map(|pair| (pair, 1)).collect()
        })
    }

    fn link() -> impl Strategy<Value = Link> {
        prop_oneof![Just(Link::Active), (-1..3_i64).prop_map(Link::Follows), (-1..3_i64).prop_map(Link::Hides),]
    }

    proptest! {
        #[test]
        fn equals_the_oracle_on_any_number_of_workers(
            changes in prop::collection::vec((0..END, 0..3_i64, link(), prop::bool::weighted(0.6)), 0..80),
            workers in 1..=4_usize,
        ) {
            // Follows and activity are there once or not at all; an account can be hidden for several reasons.
            let mut history = History::<(i64, Link)>::new();
            let mut there = BTreeMap::new();
            let mut changes = changes;
            changes.sort_by_key(|(time, ..)| *time);
            for (time, viewer, link, inserted) in changes {
                let times = there.entry((viewer, link)).or_insert(0);
                let most = if matches!(link, Link::Hides(_)) { 3 } else { 1 };
                let diff = if inserted { 1 } else { -1 };
                if (0..=most).contains(&(*times + diff)) {
                    *times += diff;
                    history.entry(time).or_default().push(((viewer, link), diff));
                }
            }
            prop_assert_eq!(run(workers, &history, END, by_viewer), naive(&history));
        }
    }

    #[test]
    fn a_list_stays_sorted_and_no_larger_than_it_must_be() {
        let changes = [(Link::Follows(1), 1), (Link::Follows(5), -1), (Link::Follows(9), 1), (Link::Follows(11), -1)];
        assert_eq!(*merge(&[-3, 5, 7, 9], &changes), [-3, 1, 7, 9]);
        assert_eq!(*merge(&[], &changes), [1, 9]);
    }

    #[test]
    fn nothing_is_kept_of_a_viewer_without_links() {
        let mut viewers = Viewers::default();
        let links = [(Link::Active, 1), (Link::Follows(2), 1), (Link::Hides(3), 1)];
        let undone = links.map(|(link, diff)| (link, -diff));
        let mut emitted = Vec::new();
        for links in [links, undone] {
            viewers.change(1, &links, &mut |author, viewer, diff| emitted.push((author, viewer, diff)));
        }
        assert_eq!(emitted, [(2, 1, 1), (2, 1, -1)]);
        assert!(viewers.viewers.is_empty() && viewers.hidden.is_empty());
    }
}
