//! Where each reply stands in its thread.
//!
//! ```text
//!   tweet 1 ─┬─ reply 2 ─┬─ reply 5        (1, [2]) (1, [2 5]) (1, [2 7]) (1, [3])
//!            │           └─ reply 7
//!            └─ reply 3                    in the order of keys: depth first, a subtree is a prefix
//! ```
//!
//! An operator of ours, by thread, instead of `iterate`: the threads of a time are independent of each other, a reply's
//! path is found by going up from it, and nothing but (id, parent, author) is kept of it, 24 bytes. The few that have no
//! way to the root, or lie deeper than a path goes, are kept a second time. Once a row has gone from a thread, so are all
//! of the thread, by what they answer, some 40 bytes each: only so is it known who was below it.
//!
//! Why it is correct: all replies that name a thread come to one worker, and an answer counts only in the thread of what
//! it answers. A reply has a way to the root if it answers the root or a reply that has one. So one that comes changes
//! nothing but itself and those that waited for it, directly or not; one that goes, nothing but itself and those below it,
//! which wait from then on. Those that go in a circle (of a writer who lets replies be older than what they answer) wait
//! for each other.
//!
//! What it costs: for each row that comes or goes as many steps as its path is long, at most [`PATH_MAX`] however deep it
//! lies, because a reply that lies deeper knows from which it hangs; each step is a search among the replies of the thread.
//! Up to the time that the stores have reached, nothing is looked for: where the replies of a thread stand is found out
//! when it changes for the first time after that.

use std::collections::BTreeMap;
use std::rc::Rc;

use feedmill_model::{PATH_MAX, Time, Tweet, ViewRow, shard_of};
use hashbrown::HashMap;
use serde::{Deserialize, Serialize};

use crate::closed::{Emit, each_time};
use crate::collection::Rows;

/// A reply as it is kept.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
struct Reply {
    id: i64,
    parent: i64,
    user: i64,
}

/// Replies by what they answer and their id, with their author.
type Answers = BTreeMap<(i64, i64), i64>;

/// The replies of a thread.
#[derive(Default)]
struct Thread {
    /// In the order of ids.
    replies: Vec<Reply>,
    /// Whether it is known where they stand.
    settled: bool,
    /// What most threads have nothing of.
    rest: Option<Box<Rest>>,
}

/// What is known of a thread beside its replies.
#[derive(Default)]
struct Rest {
    /// Replies that have no way to the root.
    astray: Answers,
    /// Of those whose path is as long as it can be, the one before them in their path: it is not what they answer if they
    /// lie deeper.
    hang_from: HashMap<i64, i64>,
    /// All replies, once one has gone.
    all: Option<Answers>,
}

/// Is handed a reply and its path.
type Visit<'a> = dyn FnMut(Reply, &[i64]) + 'a;

impl Thread {
    /// Replies go and come, both in the order of ids; where they stand is not asked.
    fn apply(&mut self, gone: &[Reply], new: &[Reply]) {
        if gone.len() > self.replies.len() / 8 {
            self.replies.retain(|reply| gone.binary_search(reply).is_err());
        } else {
            for reply in gone {
                if let Ok(at) = self.replies.binary_search(reply) {
                    self.replies.remove(at);
                }
            }
        }
        let Some(first) = new.first() else { return };
        if self.replies.last().is_none_or(|last| last < first) {
            // Ids grow with time.
            self.replies.extend(new);
        } else if new.len() > self.replies.len() / 8 {
            self.replies.extend(new);
            self.replies.sort_unstable();
        } else {
            for reply in new {
                let at = self.replies.partition_point(|other| other < reply);
                self.replies.insert(at, *reply);
            }
        }
    }

    /// The same, and tells which rows change by that.
    fn change(&mut self, root: i64, gone: &[Reply], new: &[Reply], emit: &mut Emit<'_, ViewRow>) {
        let row = |reply: Reply, path: &[i64]| {
            let Reply { parent, user, .. } = reply;
            ViewRow::Reply { root, path: path.to_vec(), parent, user }
        };
        let mut rest = self.rest.take().unwrap_or_default();
        if !self.settled {
            self.settled = true;
            Open { root, replies: &self.replies, rest: &mut rest }.place(&self.replies, &mut |_, _| {});
        }
        let mut withdrawn = HashMap::new();
        let mut open = Open { root, replies: &self.replies, rest: &mut rest };
        for reply in gone {
            open.withdraw(*reply, &mut |reply, path| {
                withdrawn.insert(reply.id, row(reply, path));
            });
        }
        self.apply(gone, new);
        let mut open = Open { root, replies: &self.replies, rest: &mut rest };
        open.place(new, &mut |reply, path| {
            let (before, after) = (withdrawn.remove(&reply.id), row(reply, path));
            if before.as_ref() != Some(&after) {
                before.into_iter().for_each(|before| emit(before, -1));
                emit(after, 1);
            }
        });
        withdrawn.into_values().for_each(|row| emit(row, -1));
        self.rest = (!rest.is_empty()).then_some(rest);
    }
}

impl Rest {
    fn is_empty(&self) -> bool {
        self.astray.is_empty() && self.hang_from.is_empty() && self.all.is_none()
    }
}

/// A thread at work.
struct Open<'a> {
    root: i64,
    replies: &'a [Reply],
    rest: &'a mut Rest,
}

impl Open<'_> {
    fn find(&self, id: i64) -> Option<Reply> {
        let at = self.replies.binary_search_by_key(&id, |reply| reply.id).ok()?;
        self.replies.get(at).copied()
    }

    /// The replies from the root down to one that has a way there, itself included.
    fn path(&self, reply: Reply) -> Vec<i64> {
        let mut path = vec![reply.id];
        let mut above = self.rest.hang_from.get(&reply.id).copied().unwrap_or(reply.parent);
        while above != self.root && path.len() < PATH_MAX {
            path.push(above);
            let Some(reply) = self.find(above) else { break };
            above = reply.parent;
        }
        path.reverse();
        path
    }

    /// The path of what `reply` answers, empty for the root; `None` if that has no way there.
    fn path_above(&self, reply: Reply) -> Option<Vec<i64>> {
        if reply.parent == self.root {
            return Some(Vec::new());
        }
        let parent = self.find(reply.parent)?;
        let is_astray = self.rest.astray.contains_key(&(parent.parent, parent.id));
        (!is_astray).then(|| self.path(parent))
    }

    /// Finds a place for `new` ones, and so for those that waited for them.
    fn place(&mut self, new: &[Reply], visit: &mut Visit<'_>) {
        for Reply { id, parent, user } in new {
            self.rest.astray.insert((*parent, *id), *user);
            if let Some(all) = &mut self.rest.all {
                all.insert((*parent, *id), *user);
            }
        }
        for reply in new {
            // It may have come with what it waited for.
            if !self.rest.astray.contains_key(&(reply.parent, reply.id)) {
                continue;
            }
            let Some(mut path) = self.path_above(*reply) else { continue };
            for (level, reply) in below(&self.rest.astray, *reply, path.len() + 1) {
                self.rest.astray.remove(&(reply.parent, reply.id));
                path.truncate(level - 1);
                if level == PATH_MAX {
                    self.rest.hang_from.extend(path.last().map(|last| (reply.id, *last)));
                }
                path.push(reply.id);
                visit(reply, &path);
            }
        }
    }

    /// Takes the place from one that goes, and from all below it, which wait for it from now on.
    fn withdraw(&mut self, reply: Reply, visit: &mut Visit<'_>) {
        let all = self.rest.all.get_or_insert_with(|| {
            self.replies.iter().map(|Reply { id, parent, user }| ((*parent, *id), *user)).collect()
        });
        all.remove(&(reply.parent, reply.id));
        if self.rest.astray.remove(&(reply.parent, reply.id)).is_some() {
            return;
        }
        let mut path = self.path(reply);
        let found = self.rest.all.as_ref().map(|all| below(all, reply, path.len()));
        for (level, one) in found.unwrap_or_default() {
            path.truncate(level - 1);
            path.push(one.id);
            visit(one, &path);
            self.rest.hang_from.remove(&one.id);
            if one != reply {
                self.rest.astray.insert((one.parent, one.id), one.user);
            }
        }
    }
}

/// `top`, which is at `level`, and all that is below it, depth first, each with its level; none is beyond [`PATH_MAX`].
fn below(answers: &Answers, top: Reply, level: usize) -> Vec<(usize, Reply)> {
    let (mut found, mut open) = (Vec::new(), vec![(level.min(PATH_MAX), top)]);
    while let Some((level, reply)) = open.pop() {
        let next = (level + 1).min(PATH_MAX);
        let answers = answers.range((reply.id, i64::MIN)..=(reply.id, i64::MAX));
        open.extend(answers.map(|(&(parent, id), &user)| (next, Reply { id, parent, user })));
        found.push((level, reply));
    }
    found
}

/// Each reply, deleted or not, at its place in the thread; only the changes after `reached`.
pub(crate) fn conversation(tweets: Rows<'_, Rc<Tweet>>, reached: Time) -> Rows<'_, ViewRow> {
    let replies = tweets.flat_map(|tweet| {
        let parent = tweet.reply_to_id.filter(|_| tweet.id != tweet.conversation_id)?;
        Some((tweet.conversation_id, Reply { id: tweet.id, parent, user: tweet.user_id }))
    });
    let mut threads = HashMap::<i64, Thread>::new();
    each_time(
        replies,
        "Conversation",
        |(root, _)| u64::from(shard_of(*root)),
        move |time, changes, emit| {
            for of_thread in changes.chunk_by(|((one, _), _), ((other, _), _)| one == other) {
                let Some(&((root, _), _)) = of_thread.first() else { continue };
                let (mut gone, mut new) = (Vec::new(), Vec::new());
                for ((_, reply), diff) in of_thread {
                    if *diff > 0 { &mut new } else { &mut gone }.push(*reply);
                }
                let thread = threads.entry(root).or_default();
                if time > reached {
                    thread.change(root, &gone, &new, emit);
                } else {
                    thread.apply(&gone, &new);
                }
                if thread.replies.is_empty() {
                    threads.remove(&root);
                }
            }
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const ROOT: i64 = 1;
    const USER: i64 = 9;

    /// Number `n` of a chain.
    fn link(n: i64) -> Reply {
        Reply { id: ROOT + n, parent: ROOT + n - 1, user: USER }
    }

    fn chain(length: i64) -> Vec<Reply> {
        (1..=length).map(link).collect()
    }

    /// The path of number `n` of a chain.
    fn path_in_chain(n: i64) -> Vec<i64> {
        let above = (1..n).take(PATH_MAX - 1).map(|n| ROOT + n);
        above.chain([ROOT + n]).collect()
    }

    /// Applies a change and returns what it emits, by the last of the path.
    fn change(thread: &mut Thread, gone: &[Reply], new: &[Reply]) -> BTreeMap<(i64, isize), Vec<i64>> {
        let mut changes = BTreeMap::new();
        thread.change(ROOT, gone, new, &mut |row, diff| {
            let ViewRow::Reply { path, .. } = row else { unreachable!("a thread has replies") };
            let id = *path.last().expect("a path ends at its reply");
            assert!(changes.insert((id, diff), path).is_none(), "{id} changes twice");
        });
        changes
    }

    /// However long the chain is: nothing is emitted but what comes and goes, at a path that ends.
    #[test]
    fn a_chain_beyond_the_longest_path_grows_and_shrinks() {
        let (mut thread, replies) = (Thread::default(), chain(100_000));
        let mut changed = |gone: &[Reply], new: &[Reply]| {
            let (mut changed, diff) = (0, if gone.is_empty() { 1 } else { -1 });
            thread.change(ROOT, gone, new, &mut |row, sign| {
                let ViewRow::Reply { path, .. } = row else { unreachable!("a thread has replies") };
                let n = path.last().expect("a path ends at its reply") - ROOT;
                assert!(sign == diff && (n % 17 > 0 || path == path_in_chain(n)), "{n}: {path:?}");
                changed += 1;
            });
            assert_eq!(changed, gone.len() + new.len());
        };
        replies.chunks(997).for_each(|replies| changed(&[], replies));
        let (few, many) = replies.split_at(50);
        many.rchunks(997).for_each(|replies| changed(replies, &[]));
        few.rchunks(1).for_each(|reply| changed(reply, &[]));
        assert!(thread.replies.is_empty() && thread.rest.is_some_and(|rest| rest.hang_from.is_empty()));
    }

    #[test]
    fn what_lies_below_one_that_goes_waits_for_it_and_nothing_else_changes() {
        let length = 3 * PATH_MAX as i64;
        let mut thread = Thread::default();
        let beside: Vec<Reply> = (0..10_000).map(|n| Reply { id: 100_000 + n, parent: ROOT, user: USER }).collect();
        assert_eq!(change(&mut thread, &[], &[chain(length), beside.clone()].concat()).len(), length as usize + 10_000);
        for at in [length, PATH_MAX as i64 + 1, PATH_MAX as i64, PATH_MAX as i64 - 1, 2] {
            let paths = |diff| (at..=length).map(|n| ((ROOT + n, diff), path_in_chain(n))).collect::<BTreeMap<_, _>>();
            assert_eq!(change(&mut thread, &[link(at)], &[]), paths(-1), "without {at}");
            assert_eq!(change(&mut thread, &[], &[link(at)]), paths(1), "with {at} again");
        }
        // What is replaced by itself changes nothing, and by another's only itself.
        assert!(change(&mut thread, &[link(2)], &[link(2)]).is_empty());
        let other = Reply { user: USER + 1, ..link(2) };
        let changed: Vec<_> = change(&mut thread, &[link(2)], &[other]).into_keys().collect();
        assert_eq!(changed, [(ROOT + 2, -1), (ROOT + 2, 1)]);
        assert_eq!(change(&mut thread, &beside, &[]).len(), 10_000);
    }

    #[test]
    fn one_that_waits_is_not_looked_at_until_what_it_answers_comes() {
        let mut thread = Thread::default();
        let waiting: Vec<Reply> = (0..1_000).map(|n| Reply { id: 10_000 + n, parent: 2_000 + n, user: USER }).collect();
        assert!(change(&mut thread, &[], &waiting).is_empty());
        let awaited = Reply { id: 2_007, parent: ROOT, user: USER };
        let placed: Vec<_> = change(&mut thread, &[], &[awaited]).into_values().collect();
        assert_eq!(placed, [vec![2_007], vec![2_007, 10_007]]);
        assert_eq!(thread.rest.as_ref().map(|rest| rest.astray.len()), Some(999));
        // One that is awaited waits itself.
        let also = [Reply { id: 2_008, parent: 3_000, user: USER }, Reply { id: 3_000, parent: 4_000, user: USER }];
        assert!(change(&mut thread, &[], &also).is_empty());
        assert_eq!(change(&mut thread, &[], &[Reply { id: 4_000, parent: ROOT, user: USER }]).len(), 4);
    }

    #[test]
    fn a_circle_waits_for_itself_and_ends_when_it_is_broken() {
        let mut thread = Thread::default();
        let reply = |id, parent| Reply { id, parent, user: USER };
        assert!(
            change(&mut thread, &[], &[reply(2, 4), reply(3, 2), reply(4, 3), reply(5, 5), reply(6, 4)]).is_empty()
        );
        let broken = change(&mut thread, &[reply(2, 4)], &[reply(2, ROOT)]);
        assert!(broken.into_values().eq([vec![2], vec![2, 3], vec![2, 3, 4], vec![2, 3, 4, 6]]));
        let closed = change(&mut thread, &[reply(2, ROOT)], &[reply(2, 4)]);
        assert!(closed.into_keys().eq([(2, -1), (3, -1), (4, -1), (6, -1)]));
        assert!(change(&mut thread, &[reply(2, 4), reply(5, 5)], &[]).is_empty());
    }

    #[test]
    fn a_thread_that_was_loaded_stands_as_one_that_grew() {
        let length = 2 * PATH_MAX as i64;
        let waiting = Reply { id: 90_000, parent: 80_000, user: USER };
        let mut loaded = Thread::default();
        for slice in chain(length).rchunks(700) {
            loaded.apply(&[], slice);
        }
        loaded.apply(&[], &[waiting, link(100_000)]);
        loaded.apply(&[link(100_000)], &[]);
        assert!(loaded.rest.is_none());
        let next = link(length + 1);
        let placed: Vec<_> = change(&mut loaded, &[], &[next]).into_values().collect();
        assert_eq!(placed, [path_in_chain(length + 1)]);
        assert_eq!(change(&mut loaded, &[link(2)], &[]).len(), length as usize);
        let awaited = Reply { id: 80_000, parent: ROOT, user: USER };
        assert_eq!(change(&mut loaded, &[], &[awaited]).len(), 2);
    }

    #[test]
    fn most_threads_keep_nothing_but_their_replies() {
        let mut thread = Thread::default();
        for n in 1..=900 {
            change(&mut thread, &[], &[link(n)]);
        }
        assert!(thread.rest.is_none() && size_of::<Reply>() == 24);
    }
}
