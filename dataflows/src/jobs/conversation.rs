//! Where each reply stands in its thread.
//!
//! ```text
//!   tweet 1 ─┬─ reply 2 ─┬─ reply 5        (1, [2]) (1, [2 5]) (1, [2 7]) (1, [3])
//!            │           └─ reply 7
//!            └─ reply 3                    in the order of keys: depth first, a subtree is a prefix
//! ```
//!
//! An operator of ours, by thread, instead of `iterate`: the threads of a time are independent of each other, a reply's
//! path is found by going up from it, and nothing but (id, parent, author) is kept of it, 24 bytes.
//!
//! Why it is correct: all replies that name a thread come to one worker, and an answer counts only in the thread of what
//! it answers. Where a reply stands depends only on those above it, so new ones change nothing but themselves and those that
//! waited for them. Where one goes, the thread's paths are found anew and compared with those before. A way up is not longer than there are replies, so that one which goes in a circle (of a writer who lets replies be
//! older than what they answer) ends, and leads nowhere.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use feedmill_model::{PATH_MAX, Tweet, ViewRow, shard_of};
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

/// The replies of a thread.
#[derive(Default)]
struct Thread {
    /// In the order of ids.
    replies: Vec<Reply>,
    /// Those that have no way to the root.
    astray: Vec<Reply>,
}

impl Thread {
    fn find(&self, id: i64) -> Option<&Reply> {
        let at = self.replies.binary_search_by_key(&id, |reply| reply.id).ok()?;
        self.replies.get(at)
    }

    /// The replies from the root down to `reply`, itself included; `None` if it has no way to the root.
    fn path(&self, root: i64, reply: &Reply) -> Option<Vec<i64>> {
        let (mut path, mut parent) = (vec![reply.id], reply.parent);
        while parent != root {
            let above = self.find(parent).filter(|_| path.len() <= self.replies.len())?;
            path.push(above.id);
            parent = above.parent;
        }
        path.reverse();
        if path.len() > PATH_MAX {
            path.truncate(PATH_MAX - 1);
            path.push(reply.id);
        }
        Some(path)
    }

    fn row(&self, root: i64, reply: &Reply) -> Option<ViewRow> {
        let Reply { parent, user, .. } = *reply;
        Some(ViewRow::Reply { root, path: self.path(root, reply)?, parent, user })
    }

    /// Applies the changes of one time.
    fn change(&mut self, root: i64, changes: &[(&Reply, isize)], emit: &mut Emit<'_, ViewRow>) {
        let gone: BTreeSet<&Reply> = changes.iter().filter(|(_, diff)| *diff < 0).map(|(reply, _)| *reply).collect();
        if gone.is_empty() {
            self.insert(changes);
            let mut waiting = std::mem::take(&mut self.astray);
            waiting.extend(changes.iter().map(|(reply, _)| **reply));
            for reply in waiting {
                match self.row(root, &reply) {
                    Some(row) => emit(row, 1),
                    None => self.astray.push(reply),
                }
            }
            return;
        }
        let mut rows = BTreeMap::new();
        for reply in &self.replies {
            self.row(root, reply).into_iter().for_each(|row| *rows.entry(row).or_insert(0) -= 1);
        }
        self.replies.retain(|reply| !gone.contains(reply));
        self.insert(changes);
        self.astray.clear();
        for reply in &self.replies {
            match self.row(root, reply) {
                Some(row) => *rows.entry(row).or_insert(0) += 1,
                None => self.astray.push(*reply),
            }
        }
        rows.into_iter().filter(|(_, diff)| *diff != 0).for_each(|(row, diff)| emit(row, diff));
    }

    fn insert(&mut self, changes: &[(&Reply, isize)]) {
        let new = changes.iter().filter(|(_, diff)| *diff > 0).map(|(reply, _)| **reply);
        if changes.len() > self.replies.len() / 8 {
            self.replies.extend(new);
            self.replies.sort_unstable();
        } else {
            // At the end or near it: ids grow with time.
            for reply in new {
                let at = self.replies.partition_point(|other| *other < reply);
                self.replies.insert(at, reply);
            }
        }
    }
}

/// Each reply, deleted or not, at its place in the thread.
pub(crate) fn conversation(tweets: Rows<'_, Rc<Tweet>>) -> Rows<'_, ViewRow> {
    let replies = tweets.flat_map(|tweet| {
        let parent = tweet.reply_to_id.filter(|_| tweet.id != tweet.conversation_id)?;
        Some((tweet.conversation_id, Reply { id: tweet.id, parent, user: tweet.user_id }))
    });
    let mut threads = HashMap::<i64, Thread>::new();
    each_time(
        replies,
        "Conversation",
        |(root, _)| u64::from(shard_of(*root)),
        move |changes, emit| {
            for of_thread in changes.chunk_by(|((one, _), _), ((other, _), _)| one == other) {
                let Some(&((root, _), _)) = of_thread.first() else { continue };
                let changes: Vec<_> = of_thread.iter().map(|((_, reply), diff)| (reply, *diff)).collect();
                let thread = threads.entry(root).or_default();
                thread.change(root, &changes, emit);
                if thread.replies.is_empty() {
                    threads.remove(&root);
                }
            }
        },
    )
}
