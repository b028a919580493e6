//! What a world must serve, but for timelines: written down as plainly as possible, from all that is known.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};

use feedmill_model::{Notice, NoticeKind};

use crate::world::{Kind, Post, World};

/// A reply as it is served: id, what it answers, how deep it lies, and its author unless it was deleted.
pub type ThreadLine = (i64, i64, usize, Option<i64>);

/// A notification as it is served: kind, order of the newest, whether it is new, the tweet, who did it.
pub type NoticeLine = (NoticeKind, i64, bool, i64, Vec<i64>);

impl World {
    fn hides(&self, viewer: Option<i64>, user: i64) -> bool {
        let muted = viewer.is_some_and(|viewer| viewer != user && self.mutes.contains(&(viewer, user)));
        muted || !self.may_read(viewer, user)
    }

    /// Who likes a tweet.
    pub fn likers(&self, viewer: Option<i64>, tweet: usize) -> Vec<i64> {
        let likes = self.likes.iter().filter(|((_, liked), _)| *liked == tweet);
        let mut likers: Vec<(i64, i64)> = likes.map(|((user, _), at)| (*at, *user)).collect();
        likers.sort_by_key(|liker| Reverse(*liker));
        likers.into_iter().map(|(_, user)| user).filter(|user| self.may_read(viewer, *user)).collect()
    }

    /// Who retweeted a tweet.
    pub fn retweeters(&self, viewer: Option<i64>, tweet: usize) -> Vec<i64> {
        let retweets = self.posts.iter().rev().filter(|post| post.kind == Kind::Retweet(tweet) && !post.deleted);
        retweets.map(|post| post.user).filter(|user| self.may_read(viewer, *user)).collect()
    }

    /// Who asks to follow.
    pub fn requests(&self, viewer: i64) -> Vec<i64> {
        let requests = self.follows.iter().filter(|((_, user), (accepted, _))| *user == viewer && !accepted);
        let mut requests: Vec<(i64, i64)> = requests.map(|((follower, _), (_, at))| (*at, *follower)).collect();
        requests.sort_by_key(|request| Reverse(*request));
        requests.into_iter().map(|(_, user)| user).collect()
    }

    /// The tweets with a tag.
    pub fn tagged(&self, viewer: Option<i64>, tag: &str) -> Vec<i64> {
        let tagged = |post: &&Post| post.tags.contains(tag) && !post.deleted && !self.hides(viewer, post.user);
        self.posts.iter().rev().filter(tagged).map(|post| post.id).collect()
    }

    /// The tweets that trend, and how often they were liked.
    pub fn trending(&self, viewer: Option<i64>) -> Vec<(i64, u64)> {
        let mut likes: BTreeMap<usize, u64> = BTreeMap::new();
        for (_, tweet) in self.likes.keys() {
            *likes.entry(*tweet).or_default() += 1;
        }
        likes.retain(|tweet, _| !self.posts[*tweet].deleted && !self.hides(viewer, self.posts[*tweet].user));
        let mut trending: Vec<(i64, u64)> =
            likes.into_iter().map(|(tweet, likes)| (self.posts[tweet].id, likes)).collect();
        trending.sort_by_key(|(tweet, likes)| Reverse((*likes, *tweet)));
        trending
    }

    fn has_answers(&self, tweet: usize) -> bool {
        self.posts.iter().any(|post| post.kind == Kind::Reply(tweet))
    }

    /// Whether a thread may be read from a tweet on: `None` if there is none.
    pub fn may_read_thread(&self, viewer: Option<i64>, tweet: usize) -> Option<bool> {
        let post = &self.posts[tweet];
        match post.deleted {
            true => (post.kind == Kind::Tweet && self.has_answers(tweet)).then_some(true),
            false => Some(self.may_read(viewer, post.user)),
        }
    }

    /// What answers a tweet, and what answers that.
    pub fn thread(&self, viewer: Option<i64>, tweet: usize, author_first: bool) -> Vec<ThreadLine> {
        let root = &self.posts[self.path(tweet).0];
        let first = |post: &Post| author_first && !root.deleted && !post.deleted && post.user == root.user;
        let mut lines = Vec::new();
        let (own, others): (Vec<usize>, Vec<usize>) =
            self.answers(tweet).partition(|answer| first(&self.posts[*answer]));
        own.into_iter().chain(others).for_each(|answer| self.subtree(viewer, answer, &mut lines));
        lines
    }

    fn answers(&self, tweet: usize) -> impl Iterator<Item = usize> {
        (0..self.posts.len()).filter(move |index| self.posts[*index].kind == Kind::Reply(tweet))
    }

    fn subtree(&self, viewer: Option<i64>, reply: usize, lines: &mut Vec<ThreadLine>) {
        let post = &self.posts[reply];
        let Kind::Reply(to) = post.kind else { panic!("{post:?} is no reply") };
        if self.may_read(viewer, post.user) || self.deleted.contains(&post.user) {
            let depth = self.path(reply).1.len();
            lines.push((post.id, self.posts[to].id, depth, (!post.deleted).then_some(post.user)));
        }
        self.answers(reply).for_each(|answer| self.subtree(viewer, answer, lines));
    }

    /// What a tweet answers: id, and whether it was deleted or is hidden. Of what is hidden nobody learns that it was
    /// deleted, but for the first tweet of a thread, of which nobody knows any more whose it was.
    pub fn ancestors(&self, viewer: Option<i64>, tweet: usize) -> Vec<(i64, bool, bool)> {
        let (mut at, mut ancestors) = (tweet, Vec::new());
        while let Kind::Reply(to) = self.posts[at].kind {
            let post = &self.posts[to];
            let by_nobody = self.deleted.contains(&post.user);
            let unknown = post.deleted && post.kind == Kind::Tweet;
            let hidden = !unknown && !by_nobody && !self.may_read(viewer, post.user);
            ancestors.push((post.id, !hidden && (post.deleted || by_nobody), hidden));
            at = to;
        }
        ancestors.reverse();
        ancestors
    }

    fn is_noticed(&self, viewer: i64, notice: &Notice) -> bool {
        let muted = self.mutes.contains(&(viewer, notice.actor));
        match notice.kind {
            NoticeKind::Follow | NoticeKind::FollowRequest => !muted && !self.blocked(viewer, notice.actor),
            _ => !muted && self.may_read(Some(viewer), notice.actor),
        }
    }

    /// What happened to the viewer and is shown, each thing for itself.
    pub fn noticed(&self, viewer: i64) -> Vec<Notice> {
        let answers: BTreeSet<i64> =
            self.notices(viewer).iter().filter(|n| n.kind == NoticeKind::Reply).map(|n| n.tweet).collect();
        let mut notices = self.notices(viewer);
        notices.retain(|notice| {
            let twice = notice.kind == NoticeKind::Mention && answers.contains(&notice.tweet);
            !twice && self.is_noticed(viewer, notice)
        });
        notices
    }

    fn mark(&self, viewer: i64) -> i64 {
        self.marks.get(&viewer).copied().unwrap_or(i64::MIN)
    }

    /// How many of these were not read.
    pub fn unread(&self, viewer: i64) -> usize {
        self.noticed(viewer).iter().filter(|notice| notice.order > self.mark(viewer)).count()
    }

    /// The same, grouped.
    pub fn notifications(&self, viewer: i64) -> Vec<NoticeLine> {
        let line = |n: Notice| (n.kind, n.order, n.order > self.mark(viewer), n.tweet, vec![n.actor]);
        grouped(self.noticed(viewer).into_iter().map(line))
    }

    /// Whom the viewer may want to follow, and how many of the accounts followed follow them.
    pub fn suggestions(&self, viewer: i64) -> Vec<(i64, usize)> {
        let followed: Vec<i64> = (1..=self.users).filter(|user| self.is_followed(viewer, *user)).collect();
        let mut suggestions: Vec<(i64, usize)> = (1..=self.users)
            .map(|user| (user, followed.iter().filter(|followed| self.is_followed(**followed, user)).count()))
            .collect();
        suggestions.retain(|(user, mutual)| {
            let known = *user == viewer || self.follows.contains_key(&(viewer, *user));
            *mutual > 0 && !known && !self.blocked(viewer, *user) && !self.mutes.contains(&(viewer, *user))
        });
        suggestions.sort_by_key(|(user, mutual)| Reverse((*mutual, *user)));
        suggestions
    }
}

/// Neighbours that are of one kind and about one tweet, as one.
pub fn grouped(lines: impl IntoIterator<Item = NoticeLine>) -> Vec<NoticeLine> {
    let mut groups: Vec<NoticeLine> = Vec::new();
    for line in lines {
        let grouped = matches!(line.0, NoticeKind::Like | NoticeKind::Retweet | NoticeKind::Follow);
        match groups.last_mut().filter(|group| grouped && group.0 == line.0 && group.3 == line.3) {
            Some(group) => group.4.extend(line.4),
            None => groups.push(line),
        }
    }
    groups
}
