//! The reads of [`Views`](crate::Views), each a round or two of requests that go out together.

use std::sync::Arc;

use feedmill_model::{Counter, Notice, Parameters, Position, Time, TrendWindow, Tweet, User, View, ViewRow, shard_of};
use futures::future::try_join;

use super::cache::{Caches, ENTRIES_MAX, Piece};
use super::cluster::Cluster;
use super::fault::Fault;
use super::ledger::{ProgressRow, of_shard, progress_rows};
use super::lists::{END, Lists};
use super::place::{Kind, counter, is_accepted, key_in, name, of_one, of_two, other, whole};
use super::record::stored;
use super::spread::List;
use super::statement::{ENTRY, Statement};
use super::trends;
use crate::key::Key;
use crate::views::List as EdgeList;
use crate::{
    CountedTweet, Edge, HomeHead, HomeRecord, Profile, Relationship, Reply, TimelineItem, TrendingTag, TrendingTweet,
    layout,
};

/// Reads the tables.
pub(super) struct Reader {
    pub(super) cluster: Arc<Cluster>,
    /// What was read lately, where that can be known to be as new as what is read.
    pub(super) caches: Option<Caches>,
}

/// How far home timelines are.
#[derive(Clone, Debug)]
pub(super) enum Homes {
    /// As the progress of a generation says it now.
    Asked(i64),
    /// As it was found before the read began: what it serves is not newer.
    Known(Arc<[ProgressRow]>),
}

impl Homes {
    pub(super) async fn rows(self, cluster: &Cluster) -> Result<Arc<[ProgressRow]>, Fault> {
        match self {
            Homes::Asked(generation) => Ok(progress_rows(cluster, HOME, generation).await?.into()),
            Homes::Known(rows) => Ok(rows),
        }
    }
}

/// What a partition of the table `rows` has of a user or a tweet.
struct OwnRows {
    row: Option<Vec<u8>>,
    counts: Vec<(Counter, i64)>,
}

impl OwnRows {
    fn count(&self, counter: Counter) -> i64 {
        self.counts.iter().find(|(of, _)| *of == counter).map_or(0, |(_, count)| *count)
    }
}

const fn list_of(list: EdgeList) -> List {
    match list {
        EdgeList::Followers => List::Followers,
        EdgeList::Following => List::Following,
        EdgeList::FollowRequests => List::FollowRequests,
        EdgeList::Likers => List::Likers,
    }
}

impl Reader {
    fn lists(&self) -> Lists<'_> {
        Lists(&self.cluster)
    }

    /// A value of the table `rows`.
    async fn value(&self, view: View, owner: i64, key: Vec<u8>) -> Result<Option<Vec<u8>>, Fault> {
        let undecodable = || Fault::Undecodable { of: view.name() };
        let found = self.cluster.page(Statement::RowKeys, (owner, view.name(), vec![key])).await?;
        let row = found.maybe_first_row::<(Vec<u8>, Vec<u8>)>().map_err(|_| undecodable())?;
        Ok(row.map(|(_, value)| value))
    }

    /// All values of a view that lie with an owner, with their keys.
    async fn values(&self, view: View, owner: i64) -> Result<Vec<(Vec<u8>, Vec<u8>)>, Fault> {
        let undecodable = || Fault::Undecodable { of: view.name() };
        let found = self.cluster.page(Statement::RowsOf, (owner, vec![view.name()])).await?;
        let rows = found.rows::<(&str, Vec<u8>, Vec<u8>)>().map_err(|_| undecodable())?;
        rows.map(|row| row.map(|(_, key, value)| (key, value)).map_err(|_| undecodable())).collect()
    }

    /// A row, and the counts beside it.
    async fn own_rows(&self, view: View, owner: i64) -> Result<OwnRows, Fault> {
        let undecodable = || Fault::Undecodable { of: view.name() };
        let views = vec![view.name(), View::Counts.name(), View::LikeCounts.name()];
        let found = self.cluster.page(Statement::RowsOf, (owner, views)).await?;
        let mut own = OwnRows { row: None, counts: Vec::new() };
        for row in found.rows::<(&str, &[u8], &[u8])>().map_err(|_| undecodable())? {
            let (of, key, value) = row.map_err(|_| undecodable())?;
            if of == view.name() {
                own.row = Some(value.to_vec());
            } else {
                let (count, _) = layout::of_two(value).ok_or_else(undecodable)?;
                own.counts.push((counter(key).ok_or_else(undecodable)?, count as i64));
            }
        }
        Ok(own)
    }

    pub(super) async fn user_by_name(&self, of: &str) -> Result<Option<i64>, Fault> {
        let (owner, key) = name(&of.to_ascii_lowercase());
        let value = self.value(View::Username, owner, key).await?;
        value.map(|value| decoded(View::Username, layout::id(&value))).transpose()
    }

    async fn profile(&self, id: i64) -> Result<Option<Arc<Profile>>, Fault> {
        let own = self.own_rows(View::Profile, id).await?;
        let Some(row) = &own.row else { return Ok(None) };
        let user: User = decoded(View::Profile, postcard::from_bytes(row).ok())?;
        let [followers, following, tweets] =
            [Counter::Followers, Counter::Following, Counter::Tweets].map(|counter| own.count(counter));
        Ok(Some(Arc::new(Profile { user, followers, following, tweets })))
    }

    /// Profiles at `time`, which rows have now.
    pub(super) async fn profiles(&self, ids: &[i64], time: Time) -> Result<Vec<Option<Arc<Profile>>>, Fault> {
        let profile = |id: i64| async move {
            match &self.caches {
                Some(caches) => caches.profiles.get(time, id, || self.profile(id)).await,
                None => self.profile(id).await,
            }
        };
        self.cluster.each(ids.iter().copied(), profile).await
    }

    pub(super) async fn tweets(&self, ids: &[i64]) -> Result<Vec<Option<Arc<CountedTweet>>>, Fault> {
        let tweet = |id: i64| async move {
            let own = self.own_rows(View::Tweet, id).await?;
            let Some(row) = &own.row else { return Ok(None) };
            let tweet: Tweet = decoded(View::Tweet, postcard::from_bytes(row).ok())?;
            let [likes, retweets, replies] =
                [Counter::Likes, Counter::Retweets, Counter::Replies].map(|counter| own.count(counter));
            Ok(Some(Arc::new(CountedTweet { tweet, likes, retweets, replies })))
        };
        self.cluster.each(ids.iter().copied(), tweet).await
    }

    pub(super) async fn retweets(&self, ids: &[i64]) -> Result<Vec<Option<(i64, i64)>>, Fault> {
        let retweet = |id: i64| async move {
            let Some(own) = self.own_rows(View::Retweet, id).await?.row else { return Ok(None) };
            let (user, tweet) = decoded(View::Retweet, layout::of_two(&own))?;
            Ok(Some((user as i64, tweet as i64)))
        };
        self.cluster.each(ids.iter().copied(), retweet).await
    }

    /// What `decode` makes of at most `limit` rows of a list, in the order of their keys: those whose keys begin with `all`
    /// and come after `after`.
    async fn page<T>(
        &self,
        list: List,
        owner: i64,
        (all, after): (Key, Option<Key>),
        limit: usize,
        decode: impl Fn(&[u8], &[u8]) -> Option<T>,
    ) -> Result<Vec<T>, Fault> {
        let from = key_in(list, after.as_ref().unwrap_or(&all));
        let to = [key_in(list, &all).as_slice(), &END].concat();
        let rows = self.lists().page(list, owner, from, to, limit).await?;
        let row = |(key, value): (Vec<u8>, Vec<u8>)| {
            decode(&whole(list, owner, &key), &value).ok_or(Fault::Undecodable { of: list.name() })
        };
        rows.into_iter().map(row).collect()
    }

    pub(super) async fn edges(
        &self,
        list: EdgeList,
        of: i64,
        after: Option<Edge>,
        limit: usize,
    ) -> Result<Vec<Edge>, Fault> {
        let range = (layout::id_key(of), after.map(|after| layout::edge_key(of, after)));
        self.page(list_of(list), of, range, limit, |key, _| layout::edge(key).map(|(_, edge)| edge)).await
    }

    pub(super) async fn retweeters(
        &self,
        tweet: i64,
        before: Option<i64>,
        limit: usize,
    ) -> Result<Vec<(i64, i64)>, Fault> {
        let range = (layout::id_key(tweet), before.map(|before| layout::id_key(tweet).descending(before)));
        let decode = |key: &[u8], value: &[u8]| layout::retweeter(key, value).map(|(_, id, user)| (id, user));
        self.page(List::Retweeters, tweet, range, limit, decode).await
    }

    /// A piece of a timeline at `time`, which rows have now.
    pub(super) async fn timeline(&self, piece: Piece, time: Time) -> Result<Vec<TimelineItem>, Fault> {
        let Some(caches) = self.caches.as_ref().filter(|_| piece.limit <= ENTRIES_MAX) else {
            return self.timeline_now(piece).await;
        };
        let read = || async { self.timeline_now(piece).await.map(|items| Some(items.into())) };
        let found = caches.timelines.get(time, piece, read).await?;
        Ok(found.map(|items| items.to_vec()).unwrap_or_default())
    }

    async fn timeline_now(&self, Piece { user, replies, before, limit }: Piece) -> Result<Vec<TimelineItem>, Fault> {
        let list = if replies { List::Replies } else { List::Timeline };
        let before = before.map(|before| layout::timeline_key(user, replies, before));
        let range = (layout::timeline_prefix(user, replies), before);
        let decode = |key: &[u8], value: &[u8]| layout::timeline_item(key, value).map(|(_, _, item)| item);
        self.page(list, user, range, limit, decode).await
    }

    pub(super) async fn tagged(&self, tag: &str, before: Option<i64>, limit: usize) -> Result<Vec<i64>, Fault> {
        let range = (layout::tag_prefix(tag), before.map(|before| layout::tag_prefix(tag).descending(before)));
        let (owner, _) = name(tag);
        self.page(List::Hashtag, owner, range, limit, |key, _| layout::tagged(key).map(|(_, tweet)| tweet)).await
    }

    pub(super) async fn replies(
        &self,
        root: i64,
        under: &[i64],
        after: Option<&[i64]>,
        limit: usize,
    ) -> Result<Vec<Reply>, Fault> {
        let range = (layout::path_key(root, under), after.map(|after| layout::path_key(root, after)));
        let decode = |key: &[u8], value: &[u8]| match layout::row(View::Conversation, key, value)?.0 {
            ViewRow::Reply { path, parent, user, .. } => Some(Reply { path, parent, user }),
            _ => None,
        };
        self.page(List::Conversation, root, range, limit, decode).await
    }

    pub(super) async fn replies_of(&self, root: i64, ids: &[i64]) -> Result<Vec<Option<Reply>>, Fault> {
        let reply = |id: i64| async move {
            let range = (layout::id_key(root).ascending(id), None);
            Ok(self.page(List::ConversationPaths, root, range, 1, layout::by_reply).await?.pop())
        };
        self.cluster.each(ids.iter().copied(), reply).await
    }

    pub(super) async fn notifications(
        &self,
        user: i64,
        after: Option<&Notice>,
        limit: usize,
    ) -> Result<Vec<Notice>, Fault> {
        let range = (layout::id_key(user), after.map(|after| layout::notice_key(user, after)));
        let decode = |key: &[u8], _: &[u8]| layout::notice(key).map(|(_, notice)| notice);
        self.page(List::Notifications, user, range, limit, decode).await
    }

    pub(super) async fn liked(&self, user: i64, tweets: &[i64]) -> Result<Vec<bool>, Fault> {
        let key = |tweet: &i64| key_in(List::Liked, &layout::id_key(user).ascending(*tweet));
        let found = self.lists().get(List::Liked, user, tweets.iter().map(key).collect()).await?;
        Ok(tweets.iter().map(|tweet| found.contains_key(&key(tweet))).collect())
    }

    pub(super) async fn retweeted(&self, user: i64, tweets: &[i64]) -> Result<Vec<Option<i64>>, Fault> {
        let key = |tweet: &i64| key_in(List::Retweeted, &layout::id_key(user).ascending(*tweet));
        let found = self.lists().get(List::Retweeted, user, tweets.iter().map(key).collect()).await?;
        let id = |tweet| found.get(&key(tweet)).map(|value| decoded(View::Retweeted, layout::id(value))).transpose();
        tweets.iter().map(id).collect()
    }

    pub(super) async fn trending_tags(&self, window: TrendWindow) -> Result<Vec<TrendingTag>, Fault> {
        let tag = |row| match row {
            ViewRow::TrendingTag { tag, authors, uses, .. } => Some(TrendingTag { tag, authors, uses }),
            _ => None,
        };
        self.trends(View::TrendingHashtags, window as i64, tag).await
    }

    pub(super) async fn trending_tweets(&self) -> Result<Vec<TrendingTweet>, Fault> {
        let tweet = |row| match row {
            ViewRow::TrendingTweet { tweet, likes } => Some(TrendingTweet { tweet, likes }),
            _ => None,
        };
        self.trends(View::TrendingTweets, 0, tweet).await
    }

    /// What `decode` makes of the rows of a list of trends.
    async fn trends<T>(&self, view: View, owner: i64, decode: impl Fn(ViewRow) -> Option<T>) -> Result<Vec<T>, Fault> {
        let Some(value) = self.value(view, owner, trends::KEY.to_vec()).await? else { return Ok(Vec::new()) };
        let rows = decoded(view, trends::rows_of(view, &value))?;
        decoded(view, rows.into_iter().map(decode).collect())
    }

    pub(super) async fn read_mark(&self, user: i64) -> Result<Option<i64>, Fault> {
        let rows = self.values(View::ReadMarks, user).await?;
        rows.first().map(|(_, value)| decoded(View::ReadMarks, layout::id(value))).transpose()
    }

    /// The facts between the viewer, if there is one, and each of `users`: a partition of each, and the viewer's.
    pub(super) async fn relationships(&self, viewer: Option<i64>, users: &[i64]) -> Result<Vec<Relationship>, Fault> {
        let kinds = [Kind::Follow, Kind::Block, Kind::Mute];
        let keys = users.iter().flat_map(|user| kinds.map(|kind| of_two(kind, *user)));
        let own = async {
            match viewer {
                Some(viewer) => self.lists().get(List::Facts, viewer, keys.collect()).await,
                None => Ok(Default::default()),
            }
        };
        let of_user = |user: i64| {
            let mut keys = vec![of_one(Kind::Protected), of_one(Kind::DeletedUser)];
            keys.extend(viewer.iter().flat_map(|viewer| [of_two(Kind::Follow, *viewer), of_two(Kind::Block, *viewer)]));
            self.lists().get(List::Facts, user, keys)
        };
        let (own, others) = try_join(own, self.cluster.each(users.iter().copied(), of_user)).await?;
        let relationship = |(user, facts): (&i64, std::collections::HashMap<Vec<u8>, Vec<u8>>)| {
            let has = |key: Vec<u8>| facts.contains_key(&key);
            let (protected, deleted) = (has(of_one(Kind::Protected)), has(of_one(Kind::DeletedUser)));
            let mut relationship = Relationship { protected, deleted, ..Relationship::default() };
            if let Some(viewer) = viewer.filter(|viewer| viewer != user) {
                let accepted = |value: &Vec<u8>| is_accepted(value);
                relationship.following = own.get(&of_two(Kind::Follow, *user)).map(accepted);
                relationship.followed_by = facts.get(&of_two(Kind::Follow, viewer)).map(accepted);
                relationship.blocks = own.contains_key(&of_two(Kind::Block, *user));
                relationship.blocked_by = has(of_two(Kind::Block, viewer));
                relationship.mutes = own.contains_key(&of_two(Kind::Mute, *user));
            }
            relationship
        };
        Ok(users.iter().zip(others).map(relationship).collect())
    }

    /// At most `limit` accounts to which `user` has a fact of a kind, by id, after `after`.
    pub(super) async fn others(
        &self,
        kind: Kind,
        user: i64,
        after: Option<i64>,
        limit: usize,
    ) -> Result<Vec<i64>, Fault> {
        let from = after.map_or_else(|| of_one(kind), |after| of_two(kind, after));
        let to = [of_one(kind).as_slice(), &END].concat();
        let rows = self.lists().page(List::Facts, user, from, to, limit).await?;
        let id = |(key, _): (Vec<u8>, Vec<u8>)| other(&key).ok_or(Fault::Undecodable { of: List::Facts.name() });
        rows.into_iter().map(id).collect()
    }

    pub(super) async fn deleted_tweets(&self, ids: &[i64]) -> Result<Vec<bool>, Fault> {
        let is_deleted = |id: i64| async move {
            Ok(!self.lists().get(List::Facts, id, vec![of_one(Kind::DeletedTweet)]).await?.is_empty())
        };
        self.cluster.each(ids.iter().copied(), is_deleted).await
    }

    /// The viewer's record; `None` for one who has none, or while the store has nothing.
    pub(super) async fn home(
        &self,
        viewer: i64,
        homes: Homes,
        parameters: &Parameters,
    ) -> Result<Option<HomeRecord>, Fault> {
        let record = self.cluster.page(Statement::RecordRead, (viewer,));
        let (found, progress) = try_join(record, homes.rows(&self.cluster)).await?;
        let stored = stored(&found)?;
        let (Some((own, _)), Some(bound)) = (stored.record, bound(of_shard(&progress, shard_of(viewer)), parameters))
        else {
            return Ok(None);
        };
        let floor = own.max(bound);
        let entries = stored.entries.into_iter().take_while(|entry| entry.id() > floor).collect();
        Ok(Some(HomeRecord { floor, hot: stored.hot, entries }))
    }

    pub(super) async fn heads(
        &self,
        viewers: &[i64],
        authors: &[i64],
        homes: Homes,
        parameters: &Parameters,
    ) -> Result<Vec<Option<HomeHead>>, Fault> {
        let records = self.cluster.each(viewers.iter().copied(), |viewer| async move {
            stored(&self.cluster.page(Statement::HomeHead, (viewer, ENTRY)).await?)
        });
        let (records, progress) = try_join(records, homes.rows(&self.cluster)).await?;
        let head = |(viewer, stored): (&i64, super::record::StoredRecord)| {
            let (own, time) = stored.record?;
            let bound = bound(of_shard(&progress, shard_of(*viewer)), parameters)?;
            let takes = stored.hot.iter().any(|author| authors.binary_search(author).is_ok());
            Some(HomeHead { stamp: time, takes, hot: !stored.hot.is_empty(), floor: own.max(bound) })
        };
        Ok(viewers.iter().zip(records).map(head).collect())
    }
}

/// The stores.
pub(super) const FACTS: &str = "facts";
pub(super) const ROWS: &str = "rows";
pub(super) const REACTIONS: &str = "reactions";
pub(super) const HOME: &str = "home";

/// No record of a shard is complete at or below it; `None` while the shard has nothing.
pub(super) fn bound((position, floor): (Option<Position>, Option<i64>), parameters: &Parameters) -> Option<i64> {
    let horizon = parameters.horizon(position?.time);
    Some(floor.map_or(horizon, |floor| floor.max(horizon)))
}

fn decoded<T>(view: View, decoded: Option<T>) -> Result<T, Fault> {
    decoded.ok_or(Fault::Undecodable { of: view.name() })
}
